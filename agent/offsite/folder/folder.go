// Package folder keeps backups in a folder of another disk: an NFS or SMB
// mount, a USB disk, a second volume.
//
// A backup is written under a temporary name, flushed to the disk, read back
// from it, and only then given its name. A folder that is on the same disk as
// the data is refused: what kills that disk kills both, and a mount that is
// missing looks just like it.
package folder

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Options are what a folder is made of.
type Options struct {
	URL   offsite.URL // file:///PATH[?same_disk=yes]
	Apart string      // must be on another disk; anything may be where empty
}

// Target is the folder. It implements offsite.Target.
type Target struct {
	opt Options
	dir string
}

// temporary begins the name of a file that is being written. One that is older
// than a day was left by a crash.
const (
	temporary = ".partial-"
	abandoned = 24 * time.Hour
)

// New returns the target. It looks at nothing yet.
func New(opt Options) *Target { return &Target{opt: opt, dir: filepath.FromSlash(opt.URL.Path)} }

// Close implements offsite.Target.
func (*Target) Close() error { return nil }

// Put implements offsite.Target.
func (t *Target) Put(ctx context.Context, name string, size int64, r io.Reader) (err error) {
	if err := t.usable(size); err != nil {
		return err
	}
	path := t.path(name)
	if _, err := os.Lstat(path); err == nil {
		return t.taken(name)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return t.fault(err)
	}
	t.sweep(filepath.Dir(path))
	part := filepath.Join(filepath.Dir(path), temporary+rand.Text())
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return t.fault(err)
	}
	defer func() {
		_ = f.Close() // flushed, or given up
		_ = os.Remove(part)
	}()
	sent := sha256.New()
	err = offsite.Chunks(r, size, 1<<20, func(_ int64, piece []byte, _ bool) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		sent.Write(piece)
		_, err := f.Write(piece)
		return t.fault(err)
	})
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return t.fault(err)
	}
	if err := t.check(f, sent, size); err != nil {
		return err
	}
	// A link is the one way to take a name that must be free.
	if err := os.Link(part, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return t.taken(name)
		}
		if err := unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
			if err := t.renameFree(part, path, name); err != nil {
				return err
			}
		}
	}
	return t.fault(syncDir(filepath.Dir(path)))
}

// renameFree serves file systems that know neither links nor a rename that
// spares what is there (FAT, some network mounts). One instance writes its
// folder, under names that it makes once.
func (t *Target) renameFree(part, path, name string) error {
	if _, err := os.Lstat(path); err == nil {
		return t.taken(name)
	}
	return t.fault(os.Rename(part, path))
}

// check reads the file back, from the disk where the system lets go of its
// cache.
func (t *Target) check(f *os.File, sent hash.Hash, size int64) error {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a wish
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return t.fault(err)
	}
	stored := sha256.New()
	n, err := io.Copy(stored, f)
	if err != nil {
		return t.fault(err)
	}
	if n != size || !bytes.Equal(stored.Sum(nil), sent.Sum(nil)) {
		return offsite.Fault(offsite.CodeDamaged, nil, fmt.Sprintf("Expected to read from %s what was written, found other bytes.", t.dir),
			"Check that disk: its file system (fsck), its cable, its memory.")
	}
	return nil
}

// Get implements offsite.Target.
func (t *Target) Get(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if err := t.exists(); err != nil {
				return nil, err
			}
			return nil, offsite.Fault(offsite.CodeNoObject, err, fmt.Sprintf("There is no %s in %s", name, t.dir), "See what is there: agnes backup list --target "+t.opt.URL.String())
		}
		return nil, t.fault(err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// List implements offsite.Target.
func (t *Target) List(_ context.Context, prefix string) ([]offsite.Object, error) {
	if err := t.exists(); err != nil {
		return nil, err
	}
	var list []offsite.Object
	err := filepath.WalkDir(t.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		}
		if err != nil {
			if path != t.dir && d != nil && d.IsDir() && errors.Is(err, fs.ErrPermission) {
				return fs.SkipDir // lost+found and the like are others'
			}
			return err
		}
		name, _ := filepath.Rel(t.dir, path)
		name = filepath.ToSlash(name)
		if d.IsDir() && strings.Count(name, "/") > 0 {
			return fs.SkipDir // backups are one level deep
		}
		if !d.Type().IsRegular() || !strings.HasPrefix(name, prefix) || strings.HasPrefix(d.Name(), temporary) {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone since
		}
		list = append(list, offsite.Object{Name: name, Size: fi.Size(), Stored: fi.ModTime()})
		return nil
	})
	slices.SortFunc(list, func(a, b offsite.Object) int { return strings.Compare(a.Name, b.Name) })
	return list, t.fault(err)
}

// Delete implements offsite.Target.
func (t *Target) Delete(_ context.Context, name string) error {
	if err := t.exists(); err != nil {
		return err
	}
	if err := os.Remove(t.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return t.fault(err)
	}
	return nil
}

func (t *Target) path(name string) string { return filepath.Join(t.dir, filepath.FromSlash(name)) }

func (t *Target) exists() error {
	fi, err := os.Stat(t.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The folder %s does not exist, or is none", t.dir),
			fmt.Sprintf("Mount the backup disk (findmnt %s shows whether it is), or make the folder there: mkdir %s", t.dir, t.dir))
	}
	return t.fault(err)
}

// usable says whether size more bytes may be written.
func (t *Target) usable(size int64) error {
	if err := t.exists(); err != nil {
		return err
	}
	if t.opt.Apart != "" && t.opt.URL.Param("same_disk") != "yes" {
		same, err := sameDisk(t.dir, t.opt.Apart)
		if err != nil {
			return t.fault(err)
		}
		if same {
			return offsite.Fault(offsite.CodeMissing, nil, fmt.Sprintf("The folder %s is on the same disk as %s; expected another disk to be mounted there.", t.dir, t.opt.Apart),
				fmt.Sprintf("Mount the backup disk (findmnt -T %s shows what is), or say that this is meant: file://%s?same_disk=yes", t.dir, t.opt.URL.Path))
		}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(t.dir, &s); err != nil {
		return t.fault(err)
	}
	if free := int64(s.Bavail) * s.Bsize; s.Blocks > 0 && free < size {
		return t.full(fmt.Errorf("%d bytes are free, %d are needed", free, size))
	}
	return nil
}

func sameDisk(a, b string) (bool, error) {
	var x, y unix.Stat_t
	if err := unix.Stat(a, &x); err != nil {
		return false, err
	}
	err := unix.Stat(b, &y)
	return x.Dev == y.Dev, err
}

// sweep removes what crashes left.
func (t *Target) sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), temporary) && time.Since(fi.ModTime()) > abandoned {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func (t *Target) taken(name string) error {
	return offsite.Fault(offsite.CodeExists, nil, fmt.Sprintf("%s is in %s already.", name, t.dir), "Nothing has to be done: a backup appears there whole or not at all.")
}

func (t *Target) full(err error) error {
	return offsite.Fault(offsite.CodeNoSpace, err, fmt.Sprintf("The disk of %s is full", t.dir),
		fmt.Sprintf("Free space there (df -h %s), or keep fewer backups: AGNES_BACKUP_OFFSITE_KEEP", t.dir))
}

// fault says what an error of the file system means.
func (t *Target) fault(err error) error {
	_, known := errors.AsType[*problem.Error](err)
	switch {
	case err == nil, known:
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return t.full(err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("The folder %s cannot be written", t.dir),
			fmt.Sprintf("Give it to the user that agnes runs as (chown -R %d:%d %s), and mount it read-write.", os.Geteuid(), os.Getegid(), t.dir))
	}
	return offsite.Fault(offsite.CodeUnreachable, err, fmt.Sprintf("The folder %s does not answer as it should", t.dir), fmt.Sprintf("Look at the disk and its mount: findmnt -T %s; dmesg", t.dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) { // some network file systems have no such thing
		err = nil
	}
	return errors.Join(err, d.Close())
}
