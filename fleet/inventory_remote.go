package fleet

import (
	"errors"
	"path"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Remote is a git repository that can be written to: an address or a folder, and
// what signs in there. No error of it shows a credential.
type Remote struct {
	URL  string // without credentials
	Auth transport.AuthMethod

	clear func(error) error
}

// NewRemote takes the credentials out of an address, as LoadGit does. The token
// goes to https, and to this machine, only.
func NewRemote(repository string, token redact.Secret) (*Remote, error) {
	r, err := newRemote(strings.TrimPrefix(repository, "file://"), token)
	if err != nil {
		return nil, err
	}
	return &Remote{URL: r.url, Auth: r.auth, clear: r.clear}, nil
}

// Failed explains an error of a conversation with the repository.
func (r *Remote) Failed(err error, expected string) error {
	kind := problem.Unavailable
	if errors.Is(err, transport.ErrAuthenticationRequired) || errors.Is(err, transport.ErrAuthorizationFailed) {
		kind = problem.Unauthenticated
	}
	return problem.Wrap(r.clear(err), kind, "expected "+expected+" the git repository "+r.URL, "See whether it answers: git ls-remote "+r.URL)
}

// Place is where an inventory lies in git.
type Place struct {
	Repository string // address or folder
	Branch     string // short name; empty: the default one
	Dir        string // of the inventory, in the repository; "." for its top
}

// PlaceOf returns where the inventory's working tree comes from: the remote of
// its branch, or origin. It reports false where it comes from nowhere.
func PlaceOf(file string) (Place, bool, error) {
	root, inside, err := inClone(file)
	if errors.Is(err, git.ErrRepositoryNotExists) {
		return Place{}, false, nil
	}
	if err != nil {
		return Place{}, false, problem.Wrap(err, problem.Usage, "expected to read the git repository of "+file, "git -C "+path.Dir(file)+" status")
	}
	repo, err := git.PlainOpenWithOptions(root, &git.PlainOpenOptions{EnableDotGitCommonDir: true})
	if err != nil {
		return Place{}, false, err
	}
	settings, err := repo.Config()
	if err != nil {
		return Place{}, false, err
	}
	place := Place{Dir: path.Dir(inside)}
	from := "origin"
	if head, err := repo.Head(); err == nil && head.Name().IsBranch() {
		place.Branch = head.Name().Short()
		if b := settings.Branches[place.Branch]; b != nil && b.Remote != "" && b.Remote != "." {
			from, place.Branch = b.Remote, b.Merge.Short()
		}
	}
	remote := settings.Remotes[from]
	if remote == nil || len(remote.URLs) == 0 {
		return Place{}, false, nil
	}
	place.Repository = remote.URLs[0]
	return place, true, nil
}
