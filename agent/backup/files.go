package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// reserve is what a backup or a restore leaves free: an instance that cannot
// write its state is worse than a missing backup.
const reserve = 64 << 20

// roomFor reports problem.NoSpace unless n bytes and the reserve are free.
func roomFor(dir string, n int64, what string) error {
	free, ok := freeBytes(dir)
	if !ok || n <= free-reserve {
		return nil
	}
	return problem.New(problem.NoSpace,
		fmt.Sprintf("%s needs up to %s and leaves %s free; found %s free in %s.", what, mb(n), mb(reserve), mb(free), dir),
		fmt.Sprintf("Free space there (df -h %s shows how much is left; agnes backup list shows old backups), then try again.", dir))
}

func mb(n int64) string { return fmt.Sprintf("%d MB", (n+1<<20-1)>>20) }

// freeBytes returns what is free where dir is; not every file system can say.
func freeBytes(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // not an int64 on every system
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || strings.Contains(err.Error(), "No space left on device")
}

// syncPath flushes a file or a folder.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree flushes everything below dir, files before the folders that name them.
func syncTree(dir string) error {
	var folders []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			folders = append(folders, path)
			return nil
		}
		return syncPath(path)
	})
	for i := len(folders) - 1; i >= 0 && err == nil; i-- {
		err = syncPath(folders[i])
	}
	return err
}

// exists reports whether something has this name.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// sameDevice reports whether two paths are on one file system.
func sameDevice(a, b string) (bool, error) {
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Stat(a, &sa), unix.Stat(b, &sb)); err != nil {
		return false, err
	}
	return sa.Dev == sb.Dev, nil
}

// copyFile copies a regular file; to must not exist. A symbolic link is refused.
func copyFile(ctx context.Context, from, to string, mode fs.FileMode) (err error) {
	in, err := openRegular(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, reader{ctx, in})
	return errors.Join(err, out.Close())
}

// openRegular opens a regular file and follows no symbolic link.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no regular file", path), err, f.Close())
	}
	return f, nil
}

// hashFile returns a file's size and SHA-256.
func hashFile(ctx context.Context, path string) (int64, string, error) {
	f, err := openRegular(path)
	if err != nil {
		return 0, "", err
	}
	h := sha256.New()
	n, err := io.Copy(h, reader{ctx, f})
	return n, hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

// reader ends with its context.
type reader struct {
	ctx context.Context //nolint:containedctx // of one copy
	io.Reader
}

// Read serves io.Reader.
func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
