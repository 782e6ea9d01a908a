package gitlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/google/renameio/v2"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// WorkTree is the folder that a clone's files are checked out to: a
// release.FileReader. No path and no link leads out of it.
type WorkTree struct{ dir string }

// WorkTree returns the clone's working tree; a bare repository has none.
func (c *Clone) WorkTree() (*WorkTree, error) {
	dir := c.Root()
	if dir == "" {
		return nil, problem.New(problem.Usage, "expected a clone with a working tree at "+c.dir+", found a bare repository", "name a clone: --repo-dir DIR")
	}
	return &WorkTree{dir: dir}, nil
}

// ReadFile implements release.FileReader.
func (w *WorkTree) ReadFile(_ context.Context, path string) ([]byte, error) {
	root, err := os.OpenRoot(w.dir)
	if err != nil {
		return nil, w.failed(err, path)
	}
	defer root.Close()
	content, err := root.ReadFile(path)
	if err != nil {
		return nil, w.failed(err, path)
	}
	return content, nil
}

// ReadDir implements release.FileReader.
func (w *WorkTree) ReadDir(_ context.Context, path string) ([]string, error) {
	root, err := os.OpenRoot(w.dir)
	if err != nil {
		return nil, w.failed(err, path)
	}
	defer root.Close()
	dir, err := root.Open(path)
	if err != nil {
		return nil, w.failed(err, path)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, w.failed(err, path)
	}
	slices.Sort(names)
	return names, nil
}

// Write changes files: each one at once or not at all, new contents before
// deletions, so that after an interruption nothing is missing.
func (w *WorkTree) Write(ctx context.Context, edits map[string][]byte) error {
	root, err := os.OpenRoot(w.dir)
	if err != nil {
		return w.failed(err, ".")
	}
	defer root.Close()
	names := slices.Sorted(maps.Keys(edits))
	for _, path := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if content := edits[path]; content != nil {
			if err := renameio.WriteFile(path, content, 0o644, renameio.WithRoot(root), renameio.WithExistingPermissions()); err != nil {
				return w.failed(err, path)
			}
		}
	}
	for _, path := range names {
		if edits[path] != nil {
			continue
		}
		if err := root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return w.failed(err, path)
		}
	}
	return nil
}

func (w *WorkTree) failed(err error, path string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s in %s: %w", path, w.dir, release.ErrNotFound)
	}
	return problem.Wrap(err, problem.Invalid, fmt.Sprintf("expected to use %s in the working tree at %s", path, w.dir), "check its permissions, and that it is no link to elsewhere")
}
