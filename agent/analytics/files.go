package analytics

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// settle is by default how old a file must be before its times can prove that it did not
// change: a write within one tick of the file system's clock leaves no trace.
const settle = 2 * time.Second

// identity tells one state of a file from another.
type identity struct {
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime"` // nanoseconds
	Ctime int64  `json:"ctime"` // nanoseconds; a new link changes it, too
}

// sameContent ignores what linking and chmod change.
func (a identity) sameContent(b identity) bool {
	a.Ctime, b.Ctime = 0, 0
	return a == b
}

// age is the time since the file last changed in any way.
func (a identity) age(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, max(a.Mtime, a.Ctime)))
}

// identify returns the identity of what lies at path, without following a link.
func identify(path string) (identity, fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return identity{}, nil, err
	}
	id, err := identityOf(path)
	return id, info, err
}

func identityOf(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return identity{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return identity{
		Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size, //nolint:unconvert // the width of Dev differs between systems
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
	}, nil
}

// link hardlinks src to dst. A false answer without an error means that a copy
// is needed: another file system, or no right to link.
func link(src, dst string) (bool, error) {
	err := os.Link(src, dst)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EMLINK), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	default:
		return false, err
	}
}

// copyFile writes the bytes of src to the new file dst, syncs it and returns
// the bytes' SHA-256 in hex.
func copyFile(src io.Reader, dst string) (sum string, err error) {
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", &destinationError{err}
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(&writeErrors{out, h}, src); err != nil {
		return "", err
	}
	if err := errors.Join(out.Sync(), out.Chmod(0o444)); err != nil {
		return "", &destinationError{err}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeErrors hashes what it writes, and marks failures of writing, to tell
// them from failures of reading.
type writeErrors struct {
	w io.Writer
	h hash.Hash
}

func (w *writeErrors) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.h.Write(p[:n])
	if err != nil {
		err = &destinationError{err}
	}
	return n, err
}

// destinationError is a failure on our own side: it ends the publish, and is no
// fault of the table at hand.
type destinationError struct{ err error }

func (e *destinationError) Error() string { return e.err.Error() }
func (e *destinationError) Unwrap() error { return e.err }

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// protect takes the write bits away: whoever reads a generation in place could
// otherwise write to it, DuckDB's COPY among them.
func protect(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o222 == 0 {
		return nil
	}
	err := os.Chmod(path, info.Mode().Perm()&^0o222)
	if errors.Is(err, fs.ErrPermission) {
		return nil // another user's file, hence not ours to change either
	}
	return err
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// writeSynced writes a new file that survives a power loss, once its folder is
// synced, too.
func writeSynced(path string, content []byte, perm fs.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// isNoSpace reports a full disk, quota or file size limit, also when DuckDB
// gives it as text.
func isNoSpace(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, e) || strings.Contains(strings.ToLower(err.Error()), e.Error()) {
			return true
		}
	}
	return false
}

// publishError gives a failure of the whole publish its kind and next step.
func (s *Store) publishError(err error) error {
	var p *problem.Error
	switch {
	case errors.As(err, &p):
		return err
	case isNoSpace(err):
		return problem.Wrap(err, problem.NoSpace,
			fmt.Sprintf("publish needs free space below %s, and found none; the generation before is still served", s.dir),
			"Free space (`df -h "+s.dir+"`, `df -i "+s.dir+"`), then sync again: POST /api/sync/trigger.")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return problem.Wrap(err, problem.Unavailable,
			fmt.Sprintf("publish must write below %s, and may not; the generation before is still served", s.dir),
			"Give the instance's user write access to "+s.dir+", then sync again: POST /api/sync/trigger.")
	default:
		return fmt.Errorf("publish analytics: %w", err)
	}
}
