package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/client"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Repository is the fleet's git repository as a rollout writes it: files of its
// branch, by compare-and-set, and one ref that is the lease. Nothing is cloned to
// the disk; the last commit alone is fetched, and a push holds just what is new.
type Repository struct {
	remote *fleet.Remote
	branch plumbing.ReferenceName // empty: the remote's HEAD
	author string

	mu    sync.Mutex    // of lease
	lease plumbing.Hash // what the lease's ref points at while it is ours
}

// authorEmail stands in commits beside the operator's name.
const authorEmail = "agnesctl@users.noreply.github.com"

// gitTimeout bounds one conversation with the repository.
const gitTimeout = 2 * time.Minute

// NewRepository returns the repository of a remote. branch may be empty for its
// default one; author stands in commits.
func NewRepository(remote *fleet.Remote, branch, author string) *Repository {
	r := &Repository{remote: remote, author: author}
	if branch != "" {
		r.branch = plumbing.NewBranchReferenceName(strings.TrimPrefix(branch, "refs/heads/"))
	}
	return r
}

// String names the repository, without credentials.
func (r *Repository) String() string { return r.remote.URL }

// HasBranch is a problem.Refused where there is no such branch to commit to: a tag
// or a commit is none.
func (r *Repository) HasBranch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	remote := git.NewRemote(memory.NewStorage(), &config.RemoteConfig{Name: "origin", URLs: []string{r.remote.URL}})
	listed, err := remote.ListContext(ctx, &git.ListOptions{Auth: r.remote.Auth})
	if err != nil {
		return r.remote.Failed(err, "to read")
	}
	if r.branch != "" && !slices.ContainsFunc(listed, func(l *plumbing.Reference) bool { return l.Name() == r.branch }) {
		return problem.New(problem.Refused, fmt.Sprintf("expected the branch %s in %s, found none: what hosts shall run is committed to a branch", r.branch.Short(), r), "Name a branch: --git "+r.remote.URL+" --at BRANCH")
	}
	return nil
}

// revision is the last commit of the branch.
type revision struct {
	name    plumbing.ReferenceName
	head    plumbing.Hash
	tree    plumbing.Hash
	objects *memory.Storage
}

// fetch reads the last commit of the branch.
func (r *Repository) fetch(ctx context.Context) (*revision, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	objects := memory.NewStorage()
	o := &git.CloneOptions{URL: r.remote.URL, Auth: r.remote.Auth, NoCheckout: true, Depth: 1, SingleBranch: true, Tags: git.NoTags}
	if r.branch != "" {
		o.ReferenceName = r.branch
	}
	repo, err := git.CloneContext(ctx, objects, nil, o)
	if err != nil {
		return nil, r.remote.Failed(err, "to read")
	}
	head, err := repo.Head()
	if err != nil {
		return nil, r.remote.Failed(err, "a branch in")
	}
	commit, err := repo.CommitObject(head.Hash())
	if err != nil {
		return nil, r.remote.Failed(err, "to read")
	}
	return &revision{name: head.Name(), head: head.Hash(), tree: commit.TreeHash, objects: objects}, nil
}

// file returns a file's content, and whether it is there.
func (v *revision) file(name string) ([]byte, bool, error) {
	tree, err := object.GetTree(v.objects, v.tree)
	if err != nil {
		return nil, false, err
	}
	f, err := tree.File(name)
	if errors.Is(err, object.ErrFileNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	text, err := f.Contents()
	return []byte(text), true, err
}

// pushTries is how often a commit is made anew because somebody else's came
// first.
const pushTries = 10

// Change writes files of the branch, or removes those without content, in one
// commit on top of whatever is there: when somebody else's push comes first, the
// change is made again upon theirs. Where the files are so already there is no
// commit.
func (r *Repository) Change(ctx context.Context, files map[string][]byte, message string) error {
	var refused error
	for try := range pushTries {
		if try > 0 {
			wait := min(100*time.Millisecond<<try, 5*time.Second)
			if err := pause.For(ctx, wait/2+rand.N(wait)); err != nil { //nolint:gosec // spreads load
				return err
			}
		}
		at, err := r.fetch(ctx)
		if err != nil {
			if refused = err; try < 3 && !problem.Is(err, problem.Unauthenticated) {
				continue
			}
			return err
		}
		commit, fresh, err := r.commit(at, files, message)
		if err != nil || commit.IsZero() {
			return err
		}
		err = r.push(ctx, at.name, at.head, commit, fresh)
		if err == nil {
			return nil
		}
		if problem.Is(err, problem.Unauthenticated) {
			return err
		}
		refused = err
	}
	return refused
}

// commit makes the commit and returns its id with all objects that the remote
// lacks. It is the zero id where nothing would change.
func (r *Repository) commit(at *revision, files map[string][]byte, message string) (plumbing.Hash, *memory.Storage, error) {
	fresh := memory.NewStorage()
	root, err := put(at.objects, fresh, at.tree, files)
	if err != nil {
		return plumbing.ZeroHash, nil, err
	}
	if root == at.tree {
		return plumbing.ZeroHash, nil, nil
	}
	if root.IsZero() {
		if root, err = encode(fresh, at.objects, &object.Tree{}); err != nil {
			return plumbing.ZeroHash, nil, err
		}
	}
	who := object.Signature{Name: r.author, Email: authorEmail, When: time.Now().UTC()}
	id, err := encode(fresh, at.objects, &object.Commit{Author: who, Committer: who, Message: message, TreeHash: root, ParentHashes: []plumbing.Hash{at.head}})
	return id, fresh, err
}

// encode writes an object into both storages.
func encode(fresh, all *memory.Storage, o interface {
	Encode(plumbing.EncodedObject) error
},
) (plumbing.Hash, error) {
	encoded := fresh.NewEncodedObject()
	if err := o.Encode(encoded); err != nil {
		return plumbing.ZeroHash, err
	}
	if _, err := all.SetEncodedObject(encoded); err != nil {
		return plumbing.ZeroHash, err
	}
	return fresh.SetEncodedObject(encoded)
}

// put returns the tree with files in it, by their paths, or without those whose
// content is nil; the zero id is the empty tree. Each folder is written once.
func put(all, fresh *memory.Storage, tree plumbing.Hash, files map[string][]byte) (plumbing.Hash, error) {
	entries := map[string]object.TreeEntry{}
	if !tree.IsZero() {
		t, err := object.GetTree(all, tree)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		for _, e := range t.Entries {
			entries[e.Name] = e
		}
	}
	folders := map[string]map[string][]byte{}
	for name, content := range files {
		first, rest, below := strings.Cut(name, "/")
		switch {
		case below && folders[first] == nil:
			folders[first] = map[string][]byte{rest: content}
		case below:
			folders[first][rest] = content
		case content == nil:
			delete(entries, first)
		default:
			id, err := write(fresh, content)
			if err != nil {
				return plumbing.ZeroHash, err
			}
			entries[first] = object.TreeEntry{Name: first, Mode: filemode.Regular, Hash: id}
		}
	}
	for name, below := range folders {
		was, there := entries[name]
		if there && was.Mode != filemode.Dir {
			return plumbing.ZeroHash, problem.New(problem.Conflict, "expected a folder "+name+" in the fleet's repository, found something else", "Name another folder in fleet.yaml: rollout: {desired: DIR}")
		}
		id, err := put(all, fresh, was.Hash, below)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		entries[name] = object.TreeEntry{Name: name, Mode: filemode.Dir, Hash: id}
		if id.IsZero() {
			delete(entries, name)
		}
	}
	if len(entries) == 0 {
		return plumbing.ZeroHash, nil
	}
	list := slices.Collect(maps.Values(entries))
	sort.Sort(object.TreeEntrySorter(list))
	return encode(fresh, all, &object.Tree{Entries: list})
}

// write makes a file's content an object.
func write(fresh *memory.Storage, content []byte) (plumbing.Hash, error) {
	blob := fresh.NewEncodedObject()
	blob.SetType(plumbing.BlobObject)
	w, err := blob.Writer()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if _, err := w.Write(content); err != nil {
		return plumbing.ZeroHash, err
	}
	return fresh.SetEncodedObject(blob)
}

// push moves a ref from one object to another, which may be none, and only from
// there. An error may leave it done: whoever repeats looks first.
func (r *Repository) push(ctx context.Context, ref plumbing.ReferenceName, from, to plumbing.Hash, objects *memory.Storage) error {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	session, err := r.receiver()
	if err != nil {
		return r.remote.Failed(err, "to write")
	}
	defer session.Close()
	adv, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		return r.remote.Failed(err, "to write")
	}
	req := packp.NewReferenceUpdateRequest()
	for _, c := range []capability.Capability{capability.ReportStatus, capability.Quiet} {
		if adv.Capabilities.Supports(c) {
			_ = req.Capabilities.Set(c) // takes no argument, so nothing can be wrong with it
		}
	}
	req.Commands = []*packp.Command{{Name: ref, Old: from, New: to}}
	if objects != nil {
		var ids []plumbing.Hash
		for id := range objects.Objects {
			ids = append(ids, id)
		}
		var pack bytes.Buffer
		if _, err := packfile.NewEncoder(&pack, objects, false).Encode(ids, 0); err != nil {
			return err
		}
		req.Packfile = io.NopCloser(&pack)
	}
	report, err := session.ReceivePack(ctx, req)
	if err == nil && report != nil {
		err = report.Error()
	}
	if err != nil {
		return r.remote.Failed(err, "to move "+ref.Short()+" of")
	}
	return nil
}

func (r *Repository) receiver() (transport.ReceivePackSession, error) {
	endpoint, err := transport.NewEndpoint(r.remote.URL)
	if err != nil {
		return nil, err
	}
	over, err := client.NewClient(endpoint)
	if err != nil {
		return nil, err
	}
	return over.NewReceivePackSession(endpoint, r.remote.Auth)
}

// fetchRef reads the commit that a ref points at: not there is the zero id.
func (r *Repository) fetchRef(ctx context.Context, ref plumbing.ReferenceName) (plumbing.Hash, *object.Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	objects := memory.NewStorage()
	remote := git.NewRemote(objects, &config.RemoteConfig{Name: "origin", URLs: []string{r.remote.URL}})
	listed, err := remote.ListContext(ctx, &git.ListOptions{Auth: r.remote.Auth})
	if err != nil {
		return plumbing.ZeroHash, nil, r.remote.Failed(err, "to read")
	}
	at := slices.IndexFunc(listed, func(l *plumbing.Reference) bool { return l.Name() == ref })
	if at < 0 {
		return plumbing.ZeroHash, nil, nil
	}
	spec := config.RefSpec("+" + ref.String() + ":" + ref.String())
	err = remote.FetchContext(ctx, &git.FetchOptions{Auth: r.remote.Auth, Depth: 1, Tags: git.NoTags, RefSpecs: []config.RefSpec{spec}})
	if err != nil && !errors.Is(err, git.NoErrAlreadyUpToDate) {
		return plumbing.ZeroHash, nil, r.remote.Failed(err, "to read "+ref.String()+" of")
	}
	found, err := objects.Reference(ref)
	if err != nil {
		return plumbing.ZeroHash, nil, r.remote.Failed(err, "to read "+ref.String()+" of")
	}
	commit, err := object.GetCommit(objects, found.Hash())
	if err != nil {
		return found.Hash(), nil, nil // somebody else's: it holds no lease
	}
	return found.Hash(), commit, nil
}
