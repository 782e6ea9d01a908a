package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	gh "github.com/google/go-github/v62/github"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// deletesPerMinute keeps below GitHub's 80 writes a minute with room for what
// else runs with the same token.
const deletesPerMinute = 60

// Packages is a container package's versions (docs.github.com/rest/packages).
type Packages struct {
	c           *Client
	owner, name string

	mu      sync.Mutex
	kind    string      // orgs or users, once known
	deletes []time.Time // of the last minute, oldest first
}

var _ release.Packages = (*Packages)(nil)

// Packages returns the container package that the registry calls
// ghcr.io/OWNER/NAME. Whether the owner is an organization or a person is found
// out at the first call.
func (c *Client) Packages(owner, name string) *Packages {
	return &Packages{c: c, owner: owner, name: name}
}

// path returns the path of the package's versions.
func (p *Packages) path(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kind == "" {
		var owner struct {
			Type string `json:"type"`
		}
		if _, err := p.c.do(ctx, http.MethodGet, "users/"+url.PathEscape(p.owner), nil, &owner); err != nil {
			return "", p.c.fail(err, "show the owner "+p.owner, ReadPackages)
		}
		p.kind = "users"
		if owner.Type == "Organization" {
			p.kind = "orgs"
		}
	}
	// A name may hold slashes: ghcr.io/OWNER/REPO/IMAGE.
	return fmt.Sprintf("%s/%s/packages/container/%s/versions", p.kind, url.PathEscape(p.owner), url.PathEscape(p.name)), nil
}

// Versions implements release.Packages.
func (p *Packages) Versions(ctx context.Context) ([]release.PackageVersion, error) {
	path, err := p.path(ctx)
	if err != nil {
		return nil, err
	}
	found, err := list[*gh.PackageVersion](ctx, p.c, path+"?per_page=100&state=active")
	if err != nil {
		return nil, p.c.fail(err, "list the versions of "+p.String(), ReadPackages)
	}
	versions := make([]release.PackageVersion, 0, len(found))
	seen := map[int64]bool{}
	for _, one := range found {
		v, err := asVersion(one)
		if err != nil {
			return nil, err
		}
		// A push meanwhile shifts the pages, and one is shown twice.
		if !seen[v.ID] {
			seen[v.ID] = true
			versions = append(versions, v)
		}
	}
	return versions, nil
}

// Version implements release.Packages.
func (p *Packages) Version(ctx context.Context, id int64) (release.PackageVersion, error) {
	path, err := p.path(ctx)
	if err != nil {
		return release.PackageVersion{}, err
	}
	one := new(gh.PackageVersion)
	if _, err := p.c.do(ctx, http.MethodGet, fmt.Sprintf("%s/%d", path, id), nil, one); err != nil {
		if text, gone := says(err, http.StatusNotFound); gone {
			if err := p.readable(ctx, path); err != nil {
				return release.PackageVersion{}, err
			}
			return release.PackageVersion{}, absent(fmt.Sprintf("expected the version %d in %s, found that it is gone: %s", id, p, text), "release-bot prune")
		}
		return release.PackageVersion{}, p.c.fail(err, fmt.Sprintf("show the version %d of %s", id, p), ReadPackages)
	}
	return asVersion(one)
}

// readable tells a version that is gone from a package that this token cannot
// see: both answer 404.
func (p *Packages) readable(ctx context.Context, path string) error {
	if _, err := p.c.do(ctx, http.MethodGet, path+"?per_page=1", nil, nil); err != nil {
		return p.c.fail(err, "list the versions of "+p.String(), ReadPackages)
	}
	return nil
}

// Delete implements release.Packages.
func (p *Packages) Delete(ctx context.Context, id int64) error {
	path, err := p.path(ctx)
	if err != nil {
		return err
	}
	path = fmt.Sprintf("%s/%d", path, id)
	for attempt := 1; ; attempt++ {
		if err := p.wait(ctx); err != nil {
			return err
		}
		_, err := p.c.do(ctx, http.MethodDelete, path, nil, nil)
		if err == nil {
			return nil
		}
		if text, kept := says(err, http.StatusBadRequest); kept && retained.MatchString(text) {
			return problem.Wrap(release.ErrRetained, problem.Refused,
				fmt.Sprintf("expected to delete the version %d of %s, found that GitHub keeps it: %s", id, p, text), "it stays; GitHub's support can delete it")
		}
		if text, gone := says(err, http.StatusNotFound); gone {
			// 404 is also the answer to a token that may read and not delete; not so
			// after an attempt without an answer, which may have been the deletion.
			if _, e := p.Version(ctx, id); e == nil && attempt == 1 {
				return problem.New(problem.Forbidden,
					fmt.Sprintf("expected to delete the version %d of %s, found it there and 404: %s", id, p, text), DeletePackages.hint(p.c.Repo()))
			} else if e != nil && !errors.Is(e, release.ErrNotFound) {
				return e
			}
			return absent(fmt.Sprintf("expected the version %d in %s, found that it is gone: %s", id, p, text), "")
		}
		err = p.c.fail(err, fmt.Sprintf("delete the version %d of %s", id, p), DeletePackages)
		if attempt == attempts || !errors.Is(err, release.ErrUncertain) {
			return err
		}
		if err := p.c.sleep(ctx, backoff<<attempt); err != nil {
			return err
		}
	}
}

// retained is how GitHub says that it keeps a version by its own rules:
// docs.github.com/packages/learn-github-packages/deleting-and-restoring-a-package
// names the downloads; of the last version it says so only when asked.
var retained = regexp.MustCompile(`(?i)cannot be deleted|cannot delete the last`)

// Restore implements release.Packages. Restoring what is there is no error.
func (p *Packages) Restore(ctx context.Context, id int64) error {
	path, err := p.path(ctx)
	if err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		_, err := p.c.do(ctx, http.MethodPost, fmt.Sprintf("%s/%d/restore", path, id), nil, nil)
		if err == nil {
			return nil
		}
		text, none := says(err, http.StatusNotFound)
		if !none {
			text, none = says(err, http.StatusBadRequest)
		}
		if none {
			if _, e := p.Version(ctx, id); e == nil || !errors.Is(e, release.ErrNotFound) {
				return e // it is there, or nobody can tell
			}
			return absent(fmt.Sprintf("expected a deleted version %d of %s, found none to restore: %s", id, p, text),
				"GitHub keeps what was deleted for 30 days; after that, build and push it again. "+DeletePackages.hint(p.c.Repo()))
		}
		err = p.c.fail(err, fmt.Sprintf("restore the version %d of %s", id, p), WritePackages)
		if attempt == attempts || !errors.Is(err, release.ErrUncertain) {
			return err
		}
		if err := p.c.sleep(ctx, backoff<<attempt); err != nil {
			return err
		}
	}
}

// wait holds a deletion back until it is within the budget.
func (p *Packages) wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		now := p.c.now()
		for len(p.deletes) > 0 && now.Sub(p.deletes[0]) >= time.Minute {
			p.deletes = p.deletes[1:]
		}
		if len(p.deletes) < deletesPerMinute {
			p.deletes = append(p.deletes, now)
			p.mu.Unlock()
			return nil
		}
		pause := time.Minute - now.Sub(p.deletes[0])
		p.mu.Unlock()
		if err := p.c.sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// String names the package as the registry does.
func (p *Packages) String() string { return "ghcr.io/" + p.owner + "/" + p.name }

// asVersion takes what the API shows of a version. What it does not show must
// not be taken for nothing: a version without known tags would look untagged.
func asVersion(one *gh.PackageVersion) (release.PackageVersion, error) {
	v := release.PackageVersion{ID: one.GetID(), Digest: one.GetName(), CreatedAt: one.GetCreatedAt().UTC()}
	box := one.GetMetadata().GetContainer()
	if v.ID == 0 || !strings.HasPrefix(v.Digest, "sha256:") || v.CreatedAt.IsZero() || box == nil || box.Tags == nil {
		return release.PackageVersion{}, problem.New(problem.Inconclusive,
			fmt.Sprintf("expected a container's version with id, digest, time and tags, found %d %q without one of them", v.ID, v.Digest), "run the command again")
	}
	v.Tags = append(v.Tags, box.Tags...)
	return v, nil
}
