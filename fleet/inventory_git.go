package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// fetchTimeout bounds all that is asked of a remote repository.
const fetchTimeout = 2 * time.Minute

// revision is the tree of one commit.
type revision struct {
	name  string // as people named it
	files *object.Tree
}

// openRevision opens a clone, or fetches what is needed of a remote repository
// into memory.
func openRevision(ctx context.Context, repository, ref string, token redact.Secret) (*revision, error) {
	if ref == "" {
		ref = "HEAD"
	}
	if !isURL(repository) {
		return openClone(strings.TrimPrefix(repository, "file://"), ref)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	remote, err := newRemote(repository, token)
	if err != nil {
		return nil, err
	}
	return remote.fetch(ctx, ref)
}

func openClone(dir, ref string) (*revision, error) {
	repo, err := git.PlainOpenWithOptions(dir, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if errors.Is(err, git.ErrRepositoryNotExists) {
		repo, err = git.PlainOpen(dir) // bare
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected a git repository at "+dir, "Name one: --git URL")
	}
	return revisionOf(repo, ref, dir)
}

// revisionOf finds a revision in a repository.
func revisionOf(repo *git.Repository, ref, shown string) (*revision, error) {
	hash, err := repo.ResolveRevision(plumbing.Revision(ref))
	if err != nil {
		return nil, noRevision(ref, shown, err)
	}
	commit, err := repo.CommitObject(*hash)
	if err != nil {
		return nil, noRevision(ref, shown, err)
	}
	files, err := commit.Tree()
	if err != nil {
		return nil, noRevision(ref, shown, err)
	}
	return &revision{name: ref, files: files}, nil
}

func noRevision(ref, shown string, err error) error {
	return problem.Wrap(err, problem.Usage, fmt.Sprintf("expected a branch, tag or commit of %s, found %q", shown, ref), "git ls-remote "+shown)
}

// remote is a repository elsewhere.
type remote struct {
	url   string // without credentials
	auth  transport.AuthMethod
	clear func(error) error // takes credentials out of an error
}

// newRemote takes the credentials out of a URL. They, and the token, go to https
// or to this machine only.
func newRemote(repository string, token redact.Secret) (*remote, error) {
	r := &remote{url: repository, clear: func(err error) error { return err }}
	if !strings.Contains(repository, "://") { // user@host:path
		return r, nil
	}
	u, err := url.Parse(repository)
	if err != nil { // its words would quote the text with its password
		return nil, problem.New(problem.Usage, "expected a git repository, found text that is no address", "Write it as https://HOST/OWNER/NAME")
	}
	switch u.Scheme {
	case "http", "https":
	case "ssh", "git":
		if _, secret := u.User.Password(); secret {
			return nil, problem.New(problem.Usage, "expected an ssh repository without a password: ssh signs in with a key of the ssh-agent", "ssh-add, then repeat without the password")
		}
		return r, nil
	default:
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected a repository by https, ssh, git or as a folder, found %s://", u.Scheme), "Write it as https://HOST/OWNER/NAME")
	}
	user, secret := u.User.Username(), redact.Secret("")
	if password, ok := u.User.Password(); ok {
		secret = redact.Secret(password)
	} else if user != "" { // https://TOKEN@host
		user, secret = "x-access-token", redact.Secret(user)
	} else if token != "" {
		user, secret = "x-access-token", token
	}
	u.User = nil
	r.url = u.String()
	if secret == "" {
		return r, nil
	}
	if addr, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !addr.IsLoopback()) {
		return nil, problem.New(problem.Usage, "expected https for a repository with credentials, found http: everybody on the way could read them", "Write https://"+u.Host+u.Path)
	}
	r.auth = &http.BasicAuth{Username: user, Password: secret.Reveal()}
	r.clear = func(err error) error {
		for _, plain := range []error{context.Canceled, context.DeadlineExceeded} {
			if errors.Is(err, plain) {
				return plain
			}
		}
		return errors.New(strings.ReplaceAll(err.Error(), secret.Reveal(), redact.Placeholder)) // its chain could show the secret
	}
	return r, nil
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}$`)

// fetch gets one commit where the server can name it, and otherwise all history:
// HEAD~3 and short ids mean nothing to a server.
func (r *remote) fetch(ctx context.Context, ref string) (*revision, error) {
	listed, err := git.NewRemote(memory.NewStorage(), &config.RemoteConfig{Name: "origin", URLs: []string{r.url}}).ListContext(ctx, &git.ListOptions{Auth: r.auth})
	if err != nil {
		return nil, r.unreachable(err)
	}
	if name := serverName(listed, ref); name != "" {
		options := &git.CloneOptions{URL: r.url, Auth: r.auth, NoCheckout: true, Depth: 1, SingleBranch: true, ReferenceName: name, Tags: git.NoTags}
		repo, err := git.CloneContext(ctx, memory.NewStorage(), nil, options)
		if err != nil {
			return nil, r.unreachable(err)
		}
		found, err := revisionOf(repo, "HEAD", r.url)
		if found != nil {
			found.name = ref
		}
		return found, err
	}
	if commitID.MatchString(ref) {
		if found := r.commit(ctx, ref); found != nil {
			return found, nil
		}
	}
	repo, err := git.CloneContext(ctx, memory.NewStorage(), nil, &git.CloneOptions{URL: r.url, Auth: r.auth, NoCheckout: true, Tags: git.AllTags})
	if err != nil {
		return nil, r.unreachable(err)
	}
	return revisionOf(repo, ref, r.url)
}

// commit fetches a commit by its id, which not every server allows.
func (r *remote) commit(ctx context.Context, id string) *revision {
	repo, err := git.Init(memory.NewStorage(), nil)
	if err != nil {
		return nil
	}
	from, err := repo.CreateRemote(&config.RemoteConfig{Name: "origin", URLs: []string{r.url}})
	if err != nil {
		return nil
	}
	err = from.FetchContext(ctx, &git.FetchOptions{Auth: r.auth, Depth: 1, Tags: git.NoTags, RefSpecs: []config.RefSpec{config.RefSpec(id + ":refs/heads/wanted")}})
	if err != nil {
		return nil
	}
	found, err := revisionOf(repo, id, r.url)
	if err != nil {
		return nil
	}
	return found
}

// serverName returns the full name of the branch or tag that ref means, in git's
// order, or nothing.
func serverName(listed []*plumbing.Reference, ref string) plumbing.ReferenceName {
	for _, full := range []string{ref, "refs/" + ref, "refs/tags/" + ref, "refs/heads/" + ref} {
		for _, one := range listed {
			if one.Name().String() == full {
				return one.Name()
			}
		}
	}
	return ""
}

func (r *remote) unreachable(err error) error {
	kind := problem.Unavailable
	if errors.Is(err, transport.ErrAuthenticationRequired) || errors.Is(err, transport.ErrAuthorizationFailed) {
		kind = problem.Unauthenticated
	}
	return problem.Wrap(r.clear(err), kind, "expected to read the git repository "+r.url, "git ls-remote "+r.url)
}

// tree returns the files below a folder of the revision.
func (r *revision) tree(dir string) tree {
	at := func(name string) string { return path.Join(dir, name) }
	shown := func(name string) string { return r.name + ":" + at(name) }
	return tree{
		shown: shown,
		ca:    shown,
		read: func(name string) ([]byte, error) {
			entry, err := r.files.FindEntry(at(name))
			if err != nil {
				return nil, gone(name, err)
			}
			if entry.Mode != filemode.Regular && entry.Mode != filemode.Executable && entry.Mode != filemode.Deprecated {
				return nil, errNotRegular // a link, too: it may lead anywhere
			}
			file, err := r.files.TreeEntryFile(entry)
			if err != nil {
				return nil, gone(name, err)
			}
			if file.Size > inventoryLimit {
				return nil, errTooLarge
			}
			reader, err := file.Reader()
			if err != nil {
				return nil, err
			}
			defer reader.Close()
			return readLimited(reader)
		},
		list: func(sub string) ([]string, error) {
			folder := r.files
			if full := at(sub); full != "." {
				var err error
				if folder, err = r.files.Tree(full); err != nil {
					return nil, gone(sub, err)
				}
			}
			var names []string
			for _, e := range folder.Entries {
				if e.Mode.IsFile() {
					names = append(names, e.Name)
				}
			}
			return names, nil
		},
	}
}

// gone makes go-git's several errors for a missing file fs.ErrNotExist.
func gone(name string, err error) error {
	if errors.Is(err, object.ErrEntryNotFound) || errors.Is(err, object.ErrDirectoryNotFound) || errors.Is(err, object.ErrFileNotFound) || errors.Is(err, plumbing.ErrObjectNotFound) {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return err
}

// inClone returns the top folder of the clone that a file is in, and the file's
// path inside it. The file itself may be gone by now.
func inClone(file string) (root, inside string, err error) {
	dir, err := filepath.Abs(filepath.Dir(file))
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", "", err
	}
	repo, err := git.PlainOpenWithOptions(dir, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if err != nil {
		return "", "", err
	}
	work, err := repo.Worktree()
	if err != nil {
		return "", "", err
	}
	if root, err = filepath.EvalSymlinks(work.Filesystem.Root()); err != nil {
		return "", "", err
	}
	inside, err = filepath.Rel(root, filepath.Join(dir, filepath.Base(file)))
	return root, filepath.ToSlash(inside), err
}
