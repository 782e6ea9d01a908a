package release

import (
	"context"
	"errors"
	"path"
	"slices"
)

// FileReader reads the files of one state of a repository: a working tree, or the
// head of a branch. Paths have slashes and begin at the repository's root.
type FileReader interface {
	// ReadFile returns a file, or ErrNotFound.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// ReadDir returns the names in a folder, or ErrNotFound.
	ReadDir(ctx context.Context, path string) ([]string, error)
}

// Committer is a Forge that can change a branch.
type Committer interface {
	// Commit asks edit what to change at the branch's head (nil deletes a file) and
	// commits that. Where the branch has moved meanwhile, it asks again for the new
	// head, so that nothing of others is lost. When there is nothing to change, there
	// is no commit, and the id is empty.
	Commit(ctx context.Context, branch, message string, edit func(ctx context.Context, head FileReader) (map[string][]byte, error)) (id string, err error)
}

// ChangelogCommit is the message of the commit that brings EditChangelog's result
// to a branch.
func (n *Notes) ChangelogCommit() string { return changelogCommit(n.Version) }

const emptyChangelog = "# Changelog\n\n## Unreleased\n"

// EditChangelog returns what changes in a repository when the entries of the
// release move below its version: files with their new bytes, nil for one that is
// deleted. Nothing is lost that came into the files since the release's commit.
// Where all is done, the result is empty; where a run was cut off between the
// changelog and the fragments, it is the rest.
func (n *Notes) EditChangelog(ctx context.Context, files ChangelogFiles, now FileReader) (map[string][]byte, error) {
	if n.Channel != Stable || len(n.entries) == 0 {
		return nil, nil //nolint:nilnil // nothing to change
	}
	file, err := now.ReadFile(ctx, files.Path)
	if errors.Is(err, ErrNotFound) {
		file, err = []byte(emptyChangelog), nil
	}
	if err != nil {
		return nil, err
	}
	c, err := ParseChangelog(files.Path, file)
	if err != nil {
		return nil, err
	}
	edits := map[string][]byte{}
	_, done := c.Section(n.Version)
	if err := c.Release(files.Path, n.Version, n.Date, n.entries); err != nil {
		return nil, err
	}
	if !done {
		if text := c.Bytes(); string(text) != string(file) {
			edits[files.Path] = text
		}
	}
	section, ok := c.Section(n.Version)
	if !ok {
		return edits, nil
	}
	// A fragment goes when the section holds what it says, as it says it now.
	names, err := now.ReadDir(ctx, files.Dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	for _, name := range names {
		file := path.Join(files.Dir, name)
		if ok, err := IsFragment(file); err != nil || !ok {
			continue // of others: the next release will say so
		}
		content, err := now.ReadFile(ctx, file)
		if err != nil {
			return nil, err
		}
		e, err := ParseFragment(file, content)
		if err == nil && slices.ContainsFunc(section, func(s ChangelogEntry) bool { return entryKey(s) == entryKey(e) }) {
			edits[file] = nil
		}
	}
	return edits, nil
}
