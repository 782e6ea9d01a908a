package gitrefs

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Descends reports whether commit has ancestor in its history. Only a repository
// on this machine is asked: over the network the question would cost its whole
// history, and the answer is release.ErrNotFound, as for a commit that is not there.
func (r *Refs) Descends(_ context.Context, ancestor, commit string) (bool, error) {
	if r.at.endpoint.Protocol != "file" {
		return false, fmt.Errorf("the history of %s: %w", r.at.shown, release.ErrNotFound)
	}
	repo, err := git.PlainOpenWithOptions(r.at.endpoint.Path, &git.PlainOpenOptions{EnableDotGitCommonDir: true})
	if err != nil {
		return false, fmt.Errorf("open %s: %w", r.at.shown, err)
	}
	old, err := repo.CommitObject(plumbing.NewHash(ancestor))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, fmt.Errorf("commit %s in %s: %w", ancestor, r.at.shown, release.ErrNotFound)
	}
	if err != nil {
		return false, fmt.Errorf("read commit %s: %w", ancestor, err)
	}
	young, err := repo.CommitObject(plumbing.NewHash(commit))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, fmt.Errorf("commit %s in %s: %w", commit, r.at.shown, release.ErrNotFound)
	}
	if err != nil {
		return false, fmt.Errorf("read commit %s: %w", commit, err)
	}
	return old.IsAncestor(young)
}
