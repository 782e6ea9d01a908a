package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

const (
	stagingDir = ".staging" // of connectors, which removes at a start what has no source's name
	holdPrefix = ".backup-"
	maxTakes   = 5
)

// held are the extracts as they were at one moment. A sync replaces a source's
// folder as a whole and never a file in it, so hard links to its files stay
// what they are while syncs go on.
type held struct {
	d       Dirs
	dir     string
	files   map[string]string // path in the archive -> path on disk
	bytes   int64             // of the extracts
	leftOut []string
}

// unfit is why an extract cannot be taken as a whole.
type unfit string

func (u unfit) Error() string { return string(u) }

// take holds the committed extract of every source.
func (h *held) take(ctx context.Context) error {
	entries, err := os.ReadDir(h.d.Extracts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if connectors.ValidName(e.Name()) != nil {
			continue
		}
		err := h.source(ctx, e.Name())
		if reason, ok := errors.AsType[unfit](err); ok {
			h.leftOut = append(h.leftOut, e.Name()+": "+string(reason))
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// source holds one extract, again where a sync replaced it meanwhile.
func (h *held) source(ctx context.Context, name string) error {
	for range maxTakes {
		if err := ctx.Err(); err != nil {
			return err
		}
		files, bytes, err := h.links(ctx, name)
		if err == nil {
			for to, from := range files {
				h.files[to] = from
			}
			h.bytes += bytes
			return nil
		}
		if rerr := os.RemoveAll(filepath.Join(h.dir, name)); rerr != nil {
			return rerr
		}
		if !errors.Is(err, errReplaced) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return unfit(fmt.Sprintf("it was replaced %d times while it was copied", maxTakes))
}

var errReplaced = errors.New("the extract was replaced")

// links links every file of one source's extract. The folder is held open
// meanwhile, so that a new one cannot get its identity.
func (h *held) links(ctx context.Context, source string) (files map[string]string, bytes int64, err error) {
	from := filepath.Join(h.d.Extracts, source)
	folder, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, 0, unfit("it is no folder, or a symbolic link")
	}
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	before, err := folder.Stat()
	if err != nil {
		return nil, 0, err
	}
	if live, err := exists(filepath.Join(from, connectors.ExtractFile+".wal")); err != nil {
		return nil, 0, err
	} else if live {
		return nil, 0, unfit(connectors.ExtractFile + " has a write-ahead log: it is being written, or was not closed")
	}
	files = map[string]string{}
	err = filepath.WalkDir(from, func(at string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		to := filepath.Join(h.dir, source, rel)
		name := path.Join("extracts", source, filepath.ToSlash(rel))
		switch {
		case e.IsDir():
			return os.MkdirAll(to, 0o700)
		case !e.Type().IsRegular():
			return unfit(rel + " is a symbolic link or no regular file")
		case !allowed(name):
			return unfit(fmt.Sprintf("%q is no name for a file in a backup", rel))
		}
		if err := h.link(ctx, at, to); err != nil {
			return err
		}
		fi, err := os.Lstat(to)
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return unfit(rel + " is a symbolic link or no regular file")
		}
		files[name] = to
		bytes += fi.Size()
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	after, err := os.Lstat(from)
	if err != nil {
		return nil, 0, err
	}
	if !os.SameFile(before, after) {
		return nil, 0, errReplaced
	}
	return files, bytes, nil
}

// link links a file, or copies it where links are not possible.
func (h *held) link(ctx context.Context, from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if err := roomFor(h.d.Extracts, fi.Size(), "A backup"); err != nil {
		return err
	}
	return copyFile(ctx, from, to, 0o600)
}

func (h *held) release() error { return os.RemoveAll(h.dir) }
