package github

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	gh "github.com/google/go-github/v62/github"
	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// readers is how many tag objects are read at a time.
const readers = 4

// Refs are the repository's refs over the git database API
// (docs.github.com/rest/git/refs and /tags). A claim costs two writes: the tag
// object, which nobody sees yet, and the ref, whose creation is the
// compare-and-set.
type Refs struct{ c *Client }

var _ release.Refs = (*Refs)(nil)

// Refs returns the repository's refs.
func (c *Client) Refs() *Refs { return &Refs{c: c} }

// Create implements release.Refs. The API cannot create several refs at once: it
// creates refs/tags/NAME, then those of also, and stops at the first that exists.
func (r *Refs) Create(ctx context.Context, t release.Tag, also ...string) (release.Tag, error) {
	if t.At.IsZero() {
		t.At = r.c.now()
	}
	t.At = t.At.UTC().Truncate(time.Second)
	made, _, err := r.c.gh.Git.CreateTag(ctx, r.c.owner, r.c.repo, &gh.Tag{
		Tag: &t.Name, Message: &t.Message,
		Object: &gh.GitObject{SHA: &t.Commit, Type: gh.String("commit")},
		Tagger: &gh.CommitAuthor{Name: gh.String(release.TaggerName), Email: gh.String(release.TaggerEmail), Date: &gh.Timestamp{Time: t.At}},
	})
	if err != nil {
		return release.Tag{}, r.failTag(ctx, err, t)
	}
	t = r.remember(made)
	for _, ref := range append([]string{"refs/tags/" + t.Name}, also...) {
		if err := r.Point(ctx, ref, t); err != nil {
			return release.Tag{}, err
		}
	}
	return t, nil
}

// failTag says why no tag object could be written. GitHub answers 404 for a
// missing right, and 404 or 422 for a commit that it does not have.
func (r *Refs) failTag(ctx context.Context, err error, t release.Tag) error {
	_, missing := says(err, http.StatusNotFound)
	_, refused := says(err, http.StatusUnprocessableEntity)
	if missing || refused {
		if e := r.c.visible(ctx); e != nil {
			return e
		}
		_, e := r.c.do(ctx, http.MethodGet, r.c.path("git/commits/%s", t.Commit), nil, nil)
		if _, gone := says(e, http.StatusNotFound); gone {
			return absent(fmt.Sprintf("expected %s to have the commit %s, found that it does not", r.c.Repo(), t.Commit),
				fmt.Sprintf("push the commit first: git push origin %s:refs/heads/BRANCH", t.Commit))
		}
	}
	return r.c.fail(err, "write the tag object of "+t.Name, WriteContents)
}

// Point implements release.Refs.
func (r *Refs) Point(ctx context.Context, ref string, t release.Tag) error {
	for attempt := 1; ; attempt++ {
		_, _, err := r.c.gh.Git.CreateRef(ctx, r.c.owner, r.c.repo, &gh.Reference{Ref: &ref, Object: &gh.GitObject{SHA: &t.ID}})
		if err == nil {
			return nil
		}
		text, refused := says(err, http.StatusUnprocessableEntity)
		switch {
		case refused && strings.Contains(text, "already exists"):
			return &release.RefError{Ref: ref}
		case refused && strings.Contains(text, "Object does not exist") && attempt < attempts:
			// The object was written a moment ago, and not everywhere yet.
			if e := r.c.sleep(ctx, backoff<<(attempt-1)); e != nil {
				return e
			}
		default:
			return r.c.fail(err, "create "+ref, WriteContents)
		}
	}
}

// Find implements release.Refs.
func (r *Refs) Find(ctx context.Context, ref string) (release.Tag, error) {
	found, _, err := r.c.gh.Git.GetRef(ctx, r.c.owner, r.c.repo, ref)
	if err != nil {
		_, gone := says(err, http.StatusNotFound)
		if gone {
			if e := r.c.visible(ctx); e != nil {
				return release.Tag{}, e
			}
		}
		if gone || isEmpty(err) {
			return release.Tag{}, absent(fmt.Sprintf("expected the ref %s in %s, found none", ref, r.c.Repo()), "release-bot version list")
		}
		return release.Tag{}, r.c.fail(err, "show "+ref, ReadContents)
	}
	return r.read(ctx, asRef(found))
}

// List implements release.Refs.
func (r *Refs) List(ctx context.Context, prefix string) ([]release.Ref, error) {
	// One request today: the endpoint ignores per_page and gives everything
	// (github.com/github/docs/issues/3863). Other servers send pages.
	parts := strings.Split(strings.TrimPrefix(prefix, "refs/"), "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	found, err := list[*gh.Reference](ctx, r.c, r.c.path("git/matching-refs/%s?per_page=100", strings.Join(parts, "/")))
	if isEmpty(err) {
		return nil, nil
	}
	if err != nil {
		return nil, r.c.fail(err, "list refs below "+prefix, ReadContents)
	}
	var refs []release.Ref
	seen := map[string]bool{}
	for _, ref := range found {
		// A page can shift while refs are created, and show one twice.
		if name := ref.GetRef(); strings.HasPrefix(name, prefix) && !seen[name] {
			seen[name] = true
			refs = append(refs, asRef(ref))
		}
	}
	return refs, nil
}

// Read implements release.Refs.
func (r *Refs) Read(ctx context.Context, refs []release.Ref) ([]release.Tag, error) {
	tags := make([]release.Tag, len(refs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, ref := range refs {
		group.Go(func() error {
			var err error
			tags[i], err = r.read(ctx, ref)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return tags, nil
}

// read returns the tag object of a ref, from memory where it was read before.
func (r *Refs) read(ctx context.Context, ref release.Ref) (release.Tag, error) {
	if ref.Commit == ref.ID {
		return release.Tag{ID: ref.ID, Name: strings.TrimPrefix(ref.Name, "refs/tags/"), Commit: ref.ID}, nil
	}
	r.c.mu.Lock()
	t, known := r.c.tags[ref.ID]
	r.c.mu.Unlock()
	if known {
		return t, nil
	}
	found, _, err := r.c.gh.Git.GetTag(ctx, r.c.owner, r.c.repo, ref.ID)
	if err != nil {
		return release.Tag{}, r.c.fail(err, "show the tag object of "+ref.Name, ReadContents)
	}
	return r.remember(found), nil
}

func (r *Refs) remember(found *gh.Tag) release.Tag {
	t := release.Tag{
		ID: found.GetSHA(), Name: found.GetTag(), Commit: found.GetObject().GetSHA(), Message: found.GetMessage(),
		At: found.GetTagger().GetDate().UTC().Truncate(time.Second),
	}
	r.c.mu.Lock()
	r.c.tags[t.ID] = t
	r.c.mu.Unlock()
	return t
}

// asRef takes what the API shows of a ref. A ref to a commit is a person's
// lightweight tag: it is its own object.
func asRef(ref *gh.Reference) release.Ref {
	r := release.Ref{Name: ref.GetRef(), ID: ref.GetObject().GetSHA()}
	if ref.GetObject().GetType() != "tag" {
		r.Commit = r.ID
	}
	return r
}
