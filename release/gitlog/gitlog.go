// Package gitlog reads the history of a local clone: it is a release.History.
//
// It only reads, and through go-git, so it needs no git program. What it cannot
// see, such as what lies below a shallow clone's end, is an error that says how to
// fetch it, and never an empty answer.
package gitlog

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// fileLimit bounds what ReadFile returns: changelogs and fragments are text.
const fileLimit = 8 << 20

// Clone is a local repository, bare or with a working tree.
type Clone struct {
	dir     string
	repo    *git.Repository
	shallow map[plumbing.Hash]bool // commits whose parents were not fetched

	mu    sync.Mutex // go-git's storage is not made for parallel use
	trees map[plumbing.Hash]*object.Tree
}

// Open opens the repository that dir is in: a folder of a working tree, a linked
// working tree or a bare repository.
func Open(dir string) (*Clone, error) {
	repo, err := git.PlainOpenWithOptions(dir, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if errors.Is(err, git.ErrRepositoryNotExists) {
		repo, err = git.PlainOpen(dir) // bare
	}
	if errors.Is(err, git.ErrRepositoryNotExists) {
		return nil, problem.Wrap(err, problem.NotFound, "expected a git clone at "+dir+", found none", "cd into the clone, or name it: --repo-dir DIR")
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "expected to open the git clone at "+dir, "git -C "+dir+" status")
	}
	ends, err := repo.Storer.Shallow()
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "expected to read where the clone at "+dir+" ends", "git -C "+dir+" fetch --unshallow --tags")
	}
	c := &Clone{dir: dir, repo: repo, shallow: map[plumbing.Hash]bool{}, trees: map[plumbing.Hash]*object.Tree{}}
	for _, id := range ends {
		c.shallow[id] = true
	}
	return c, nil
}

// Root returns the working tree's folder, or "" for a bare repository.
func (c *Clone) Root() string {
	tree, err := c.repo.Worktree()
	if err != nil {
		return ""
	}
	return tree.Filesystem.Root()
}

var github = regexp.MustCompile(`^(?:https://(?:[^@/]*@)?|ssh://git@|git@|git://)([A-Za-z0-9.-]+)(?::\d+)?[:/]([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+?)(?:\.git)?/?$`)

// GitHub returns OWNER/NAME of the remote origin where that is on github.com, and
// "" otherwise.
func (c *Clone) GitHub() string {
	remote, err := c.repo.Remote("origin")
	if err != nil || len(remote.Config().URLs) == 0 {
		return ""
	}
	m := github.FindStringSubmatch(remote.Config().URLs[0])
	if m == nil || !strings.EqualFold(m[1], "github.com") {
		return ""
	}
	return m[2] + "/" + m[3]
}

// Between implements release.History. The commits come in an order in which
// children stand before their parents, newer ones first where that leaves a choice.
func (c *Clone) Between(ctx context.Context, from, to string) (release.Range, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[plumbing.Hash]bool{}
	if from != "" {
		if err := c.walk(ctx, from, seen, nil); err != nil {
			return release.Range{}, err
		}
	}
	old := plumbing.NewHash(from)
	found := map[plumbing.Hash]*object.Commit{}
	r := release.Range{Older: from != to && seen[plumbing.NewHash(to)]}
	descends := from == "" || from == to || r.Older
	err := c.walk(ctx, to, seen, func(commit *object.Commit) error {
		if c.shallow[commit.Hash] {
			return c.cut(commit.Hash)
		}
		descends = descends || slices.Contains(commit.ParentHashes, old)
		found[commit.Hash] = commit
		return nil
	})
	if err != nil {
		return release.Range{}, err
	}
	r.Commits = ordered(found)
	if descends {
		return r, nil
	}
	// History was rewritten: count what the older one has and the newer one lacks.
	reached := map[plumbing.Hash]bool{}
	if err := c.walk(ctx, to, reached, nil); err != nil {
		return release.Range{}, err
	}
	err = c.walk(ctx, from, reached, func(*object.Commit) error { r.Gone++; return nil })
	return r, err
}

// walk visits every commit that is reachable from start and not in seen, and adds
// it there.
func (c *Clone) walk(ctx context.Context, start string, seen map[plumbing.Hash]bool, visit func(*object.Commit) error) error {
	todo := []plumbing.Hash{plumbing.NewHash(start)}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[id] {
			continue
		}
		seen[id] = true
		commit, err := c.commit(id)
		if err != nil {
			return err
		}
		if visit != nil {
			if err := visit(commit); err != nil {
				return err
			}
		}
		if !c.shallow[id] {
			todo = append(todo, commit.ParentHashes...)
		}
	}
	return nil
}

func (c *Clone) commit(id plumbing.Hash) (*object.Commit, error) {
	commit, err := c.repo.CommitObject(id)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, problem.Wrap(release.ErrNotFound, problem.NotFound, fmt.Sprintf("expected the commit %s in the clone at %s, found none", id, c.dir),
			fmt.Sprintf("git -C %s fetch --tags origin %s", c.dir, id))
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, fmt.Sprintf("expected to read the commit %s in the clone at %s", id, c.dir), "git -C "+c.dir+" fsck")
	}
	return commit, nil
}

func (c *Clone) cut(id plumbing.Hash) error {
	return problem.New(problem.NotFound, fmt.Sprintf("expected the history between the two versions in the clone at %s, found that it ends at %s: the clone is shallow", c.dir, id),
		fmt.Sprintf("git -C %s fetch --unshallow --tags", c.dir))
}

// entry finds a path in a commit; c.mu is held.
func (c *Clone) entry(ctx context.Context, commit, path string) (*object.Tree, *object.TreeEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	tree, err := c.tree(commit)
	if err != nil {
		return nil, nil, err
	}
	entry, err := tree.FindEntry(path)
	if err != nil {
		return nil, nil, c.missing(err, commit, path)
	}
	return tree, entry, nil
}

// ReadFile implements release.History.
func (c *Clone) ReadFile(ctx context.Context, commit, path string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, entry, err := c.entry(ctx, commit, path)
	if err != nil {
		return nil, err
	}
	if entry.Mode != filemode.Regular && entry.Mode != filemode.Executable && entry.Mode != filemode.Deprecated {
		return nil, problem.New(problem.Invalid, fmt.Sprintf("expected a file at %s of %s, found a %s", path, commit, modeName(entry.Mode)), "")
	}
	blob, err := c.repo.BlobObject(entry.Hash)
	if err != nil {
		return nil, c.missing(err, commit, path)
	}
	if blob.Size > fileLimit {
		return nil, problem.New(problem.TooLarge, fmt.Sprintf("expected at most %d bytes at %s of %s, found %d", fileLimit, path, commit, blob.Size), "")
	}
	r, err := blob.Reader()
	if err == nil {
		defer r.Close()
		var content []byte
		if content, err = io.ReadAll(r); err == nil {
			return content, nil
		}
	}
	return nil, fmt.Errorf("read %s of %s: %w", path, commit, err)
}

// ReadDir implements release.History.
func (c *Clone) ReadDir(ctx context.Context, commit, path string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tree, entry, err := c.entry(ctx, commit, path)
	if err != nil {
		return nil, err
	}
	if entry.Mode != filemode.Dir {
		return nil, problem.New(problem.Invalid, fmt.Sprintf("expected a folder at %s of %s, found a %s", path, commit, modeName(entry.Mode)), "")
	}
	sub, err := tree.Tree(path)
	if err != nil {
		return nil, c.missing(err, commit, path)
	}
	names := make([]string, len(sub.Entries))
	for i, e := range sub.Entries {
		names[i] = e.Name
	}
	return names, nil
}

func (c *Clone) tree(commit string) (*object.Tree, error) {
	id := plumbing.NewHash(commit)
	if t := c.trees[id]; t != nil {
		return t, nil
	}
	found, err := c.commit(id)
	if err != nil {
		return nil, err
	}
	t, err := found.Tree()
	if err != nil {
		return nil, c.missing(err, commit, ".")
	}
	c.trees[id] = t
	return t, nil
}

// missing tells a path that is not in the commit from an object that is not in
// the clone, as in a partial one.
func (c *Clone) missing(err error, commit, path string) error {
	for _, none := range []error{object.ErrEntryNotFound, object.ErrDirectoryNotFound, object.ErrFileNotFound} {
		if errors.Is(err, none) {
			return fmt.Errorf("%s of %s: %w", path, commit, release.ErrNotFound)
		}
	}
	return problem.Wrap(err, problem.Invalid, fmt.Sprintf("expected to read %s of the commit %s in the clone at %s", path, commit, c.dir),
		"a partial clone lacks files of older commits: git clone without --filter")
}

func modeName(m filemode.FileMode) string {
	switch m {
	case filemode.Dir:
		return "folder"
	case filemode.Regular, filemode.Executable, filemode.Deprecated:
		return "file"
	case filemode.Symlink:
		return "symbolic link"
	case filemode.Submodule:
		return "submodule"
	default:
		return "thing of mode " + m.String()
	}
}

// ordered sorts commits: children before parents, then newer before older.
func ordered(found map[plumbing.Hash]*object.Commit) []release.Commit {
	children := map[plumbing.Hash]int{}
	for _, commit := range found {
		for _, p := range commit.ParentHashes {
			children[p]++
		}
	}
	ready := &newest{}
	for id, commit := range found {
		if children[id] == 0 {
			heap.Push(ready, commit)
		}
	}
	out := make([]release.Commit, 0, len(found))
	for ready.Len() > 0 {
		commit := heap.Pop(ready).(*object.Commit)
		out = append(out, toCommit(commit))
		for _, p := range commit.ParentHashes {
			if children[p]--; children[p] == 0 && found[p] != nil {
				heap.Push(ready, found[p])
			}
		}
	}
	return out
}

func toCommit(c *object.Commit) release.Commit {
	parents := make([]string, len(c.ParentHashes))
	for i, p := range c.ParentHashes {
		parents[i] = p.String()
	}
	return release.Commit{
		ID: c.Hash.String(), Parents: parents,
		Author:  release.Person{Name: c.Author.Name, Email: c.Author.Email},
		Message: c.Message, At: c.Committer.When.UTC(),
	}
}

// newest is a heap of commits, the newest on top; the id breaks ties, so that the
// order is the same in every clone.
type newest []*object.Commit

// Len, Less, Swap, Push and Pop make it a heap.
func (n *newest) Len() int { return len(*n) }

// Less puts the newer one first.
func (n *newest) Less(i, j int) bool {
	a, b := (*n)[i], (*n)[j]
	if !a.Committer.When.Equal(b.Committer.When) {
		return a.Committer.When.After(b.Committer.When)
	}
	return a.Hash.String() < b.Hash.String()
}

// Swap exchanges two.
func (n *newest) Swap(i, j int) { (*n)[i], (*n)[j] = (*n)[j], (*n)[i] }

// Push adds one.
func (n *newest) Push(x any) { *n = append(*n, x.(*object.Commit)) }

// Pop removes the last one.
func (n *newest) Pop() any {
	last := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return last
}
