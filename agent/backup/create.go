package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
)

// Request says what a backup is to hold and why it is made.
type Request struct {
	Reason    string
	Scheduled bool
	Extracts  bool
	Version   string // of this agnes
	// Snapshot writes a consistent copy of system.duckdb to dest, which does
	// not exist: state.Store.Snapshot, or state.SnapshotClosed.
	Snapshot func(ctx context.Context, dest string) error

	step func(string) // tests are told what was done
}

func (r Request) did(step string) {
	if r.step != nil {
		r.step(step)
	}
}

// Create makes a backup and proves it: it was read back whole and its database
// was opened before Create returns. Any failure, a full disk say (NoSpace),
// leaves nothing behind; what a killed process left is removed by the next
// Create. The caller sees to it that only one runs for a data directory.
func Create(ctx context.Context, d Dirs, r Request) (_ Info, err error) {
	if err := os.MkdirAll(d.Backups, 0o700); err != nil {
		return Info{}, err
	}
	if err := Sweep(d); err != nil {
		return Info{}, err
	}
	m := Manifest{
		Format: format, CreatedAt: time.Now().UTC().Truncate(time.Second), Reason: r.Reason, Scheduled: r.Scheduled, Version: r.Version, Extracts: r.Extracts,
	}
	m.ID = newID(m.CreatedAt)
	work := filepath.Join(d.Backups, workPrefix+m.ID)
	held := &held{d: d, dir: filepath.Join(d.Extracts, stagingDir, holdPrefix+m.ID), files: map[string]string{}}
	defer func() {
		if rerr := errors.Join(os.RemoveAll(work), held.release()); rerr != nil && err == nil {
			err = rerr
		}
		err = writeProblem(err, d.Backups, "no backup was made")
	}()
	if r.Extracts {
		if err := held.take(ctx); err != nil {
			return Info{}, err
		}
		m.LeftOut = held.leftOut
		r.did("extracts held")
	}
	if err := roomFor(d.Backups, 2*databaseBytes(d)+held.bytes, "A backup"); err != nil {
		return Info{}, err
	}
	if err := os.MkdirAll(filepath.Join(work, "state"), 0o700); err != nil {
		return Info{}, err
	}
	if m.Database, err = copyState(ctx, d, r, work, held.files); err != nil {
		return Info{}, err
	}
	r.did("state copied")
	for _, name := range order(held.files) {
		f := File{Path: name}
		if f.Size, f.SHA256, err = hashFile(ctx, held.files[name]); err != nil {
			return Info{}, err
		}
		m.Files = append(m.Files, f)
	}
	r.did("hashed")
	archive := filepath.Join(work, "archive")
	if _, err := writeArchive(ctx, archive, m, func(name string) string { return held.files[name] }); err != nil {
		return Info{}, err
	}
	r.did("written")
	if err := os.RemoveAll(filepath.Join(work, "state")); err != nil { // its room is needed for the proof
		return Info{}, err
	}
	info, err := prove(ctx, archive, work)
	if err != nil {
		return Info{}, err
	}
	r.did("proved")
	info.Path = d.path(m.ID)
	if err := os.Rename(archive, info.Path); err != nil {
		return Info{}, err
	}
	r.did("named")
	return info, syncPath(d.Backups)
}

// order puts the database first, so that it is proved before the bulk is read.
func order(files map[string]string) []string {
	names := slices.Sorted(maps.Keys(files))
	slices.SortStableFunc(names, func(a, b string) int {
		rank := func(name string) int {
			switch {
			case name == database:
				return 0
			case strings.HasPrefix(name, "state/"):
				return 1
			}
			return 2
		}
		return rank(a) - rank(b)
	})
	return names
}

func databaseBytes(d Dirs) int64 {
	sum := int64(1 << 20) // the small files
	for _, suffix := range []string{"", ".wal"} {
		if fi, err := os.Stat(filepath.Join(d.State, "system.duckdb"+suffix)); err == nil {
			sum += fi.Size()
		}
	}
	return sum
}

// copyState copies database, configuration and secrets into work and adds them
// to files.
func copyState(ctx context.Context, d Dirs, r Request, work string, files map[string]string) (state.Content, error) {
	copied := filepath.Join(work, "state", "system.duckdb")
	if err := r.Snapshot(ctx, copied); err != nil {
		return state.Content{}, err
	}
	r.did("snapshot")
	files[database] = copied
	content, err := state.ReadContent(ctx, copied)
	if err != nil {
		return state.Content{}, err
	}
	for _, name := range stateFiles() {
		from, to := filepath.Join(d.State, name), filepath.Join(work, "state", name)
		switch err := copyFile(ctx, from, to, 0o600); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return state.Content{}, fmt.Errorf("copy %s: %w", from, err)
		default:
			files["state/"+name] = to
		}
	}
	return content, nil
}

// Sweep removes what killed processes left: of backups, of proofs, of backups
// that were being fetched, and of restores before their swap. A proof or a
// fetch may be under way in another process, so of these only what is left of
// old ones goes. The caller holds the DATA_DIR lock, and makes no backup.
func Sweep(d Dirs) error {
	entries, err := os.ReadDir(d.Backups)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		stray := strings.HasPrefix(e.Name(), workPrefix)
		if fi, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), proofPrefix) {
			stray = time.Since(fi.ModTime()) > longestProof
		}
		if stray {
			errs = append(errs, os.RemoveAll(filepath.Join(d.Backups, e.Name())))
		}
	}
	errs = append(errs, sweepFetches(d.Backups))
	strays, err := filepath.Glob(filepath.Join(d.Extracts, stagingDir, holdPrefix+"*"))
	for _, stray := range strays {
		errs = append(errs, os.RemoveAll(stray))
	}
	pending, perr := Pending(d)
	if perr == nil && !pending { // else Recover is to finish or undo it
		errs = append(errs, os.RemoveAll(d.Work))
	}
	return errors.Join(append(errs, err, perr)...)
}

// NewFetch creates a file in dir for a backup that is brought here, and removes
// what killed processes left of theirs. While the file is open nobody takes it
// for such.
func NewFetch(dir string) (*os.File, error) {
	_ = sweepFetches(dir) // in a folder of several users, others' may stay
	f, err := os.CreateTemp(dir, fetchPrefix+"*")
	if err != nil {
		return nil, err
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // where files cannot be locked, its age protects it
	return f, nil
}

func sweepFetches(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, fetchPrefix+"*"))
	errs := []error{err}
	for _, path := range paths {
		if abandoned(path) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// abandoned reports whether the process that fetched a file is gone: nobody
// holds its lock. One that has just begun may not hold it yet.
func abandoned(path string) bool {
	f, err := openRegular(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // and with it the lock
	fi, err := f.Stat()
	if err != nil || time.Since(fi.ModTime()) < time.Minute {
		return false
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return true
	case errors.Is(err, unix.EWOULDBLOCK):
		return false
	}
	return time.Since(fi.ModTime()) > longestProof
}

// Verify reads the whole backup at path: every checksum is compared, and the
// database is opened and compared with what it was copied from. It writes the
// database into a folder of its own, below scratch or, where that cannot be
// written or is "", below the system's folder for temporary files.
func Verify(ctx context.Context, path, scratch string) (_ Info, err error) {
	work, err := os.MkdirTemp(scratch, proofPrefix+"*")
	if err != nil {
		if work, err = os.MkdirTemp("", proofPrefix+"*"); err != nil {
			return Info{}, writeProblem(err, os.TempDir(), "the backup was not verified")
		}
	}
	defer func() {
		err = writeProblem(errors.Join(err, os.RemoveAll(work)), filepath.Dir(work), "the backup was not verified")
	}()
	return prove(ctx, path, work)
}

// prove verifies a backup; its database is left below work.
func prove(ctx context.Context, path, work string) (Info, error) {
	o, err := open(path)
	if err != nil {
		return Info{}, err
	}
	defer o.close()
	if err := roomFor(work, o.databaseBytes(), "Verifying a backup"); err != nil {
		return Info{}, err
	}
	write := into(work)
	err = o.each(ctx, func(f File) (io.WriteCloser, error) {
		if f.Path != database {
			return nil, nil //nolint:nilnil // nothing is written
		}
		return write(f)
	})
	if err != nil {
		return Info{}, err
	}
	return o.info(), o.proveDatabase(ctx, filepath.Join(work, filepath.FromSlash(database)))
}

func (o *opened) databaseBytes() int64 {
	for _, f := range o.Files {
		if f.Path == database {
			return f.Size
		}
	}
	return 0
}

// proveDatabase opens a database that came out of the archive.
func (o *opened) proveDatabase(ctx context.Context, path string) error {
	got, err := state.ReadContent(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return bad(o.path, "its database cannot be opened", err)
	}
	if err := o.Database.Differs(got); err != nil {
		return bad(o.path, "its database does not hold what the manifest says: "+err.Error(), nil)
	}
	return nil
}
