package github_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

const image = "application/vnd.oci.image.manifest.v1+json"

// push fills the package with n manifests; every second one has a tag.
func push(p *githubtest.Package, n int) []githubtest.Version {
	var all []githubtest.Version
	for i := range n {
		var tags []string
		if i%2 == 0 {
			tags = []string{fmt.Sprint("tag-", i)}
		}
		all = append(all, p.Push(image, fmt.Appendf(nil, `{"mediaType":%q,"n":%d}`, image, i), tags...))
	}
	return all
}

func TestVersionsOfOrganizationsAndOfPeople(t *testing.T) {
	t.Parallel()
	for owner, base := range map[string]string{"acme": "/orgs/acme", "jane": "/users/jane"} {
		t.Run(base, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.User("jane")
			pushed := push(w.Package(owner, "agnes/tools"), 250)
			p := w.client.Packages(owner, "agnes/tools")
			got, err := p.Versions(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := w.Count("GET", base+"/packages/container/agnes%2Ftools/versions"); n != 3 || len(w.Requests()) != 4 {
				t.Errorf("%d lists and %d requests for 250 versions, want 3 and the one for the owner", n, len(w.Requests()))
			}
			want := map[int64]githubtest.Version{}
			for _, v := range pushed {
				want[v.ID] = v
			}
			for _, v := range got {
				if diff := cmp.Diff(release.PackageVersion{ID: v.ID, Digest: want[v.ID].Digest, Tags: want[v.ID].Tags, CreatedAt: want[v.ID].Created}, v); diff != "" {
					t.Error(diff)
				}
				delete(want, v.ID)
			}
			if len(got) != 250 || len(want) != 0 {
				t.Errorf("%d versions, %d are missing", len(got), len(want))
			}
			v, err := p.Version(t.Context(), pushed[7].ID)
			if err != nil || v.Digest != pushed[7].Digest {
				t.Errorf("Version: %v, %v", v, err)
			}
			// Deletion, its repetition, and the way back.
			if err := p.Delete(t.Context(), pushed[4].ID); err != nil {
				t.Fatal(err)
			}
			expect(t, p.Delete(t.Context(), pushed[4].ID), problem.NotFound, release.ErrNotFound)
			_, err = p.Version(t.Context(), pushed[4].ID)
			expect(t, err, problem.NotFound, release.ErrNotFound, "Package version not found")
			for range 2 {
				if err := p.Restore(t.Context(), pushed[4].ID); err != nil {
					t.Fatal(err)
				}
			}
			if v, err := p.Version(t.Context(), pushed[4].ID); err != nil || len(v.Tags) != 1 {
				t.Errorf("after Restore: %v, %v, want its tag again", v, err)
			}
			if err := p.Delete(t.Context(), pushed[4].ID); err != nil {
				t.Fatal(err)
			}
			_ = w.clock.Sleep(t.Context(), 31*24*time.Hour)
			expect(t, p.Restore(t.Context(), pushed[4].ID), problem.NotFound, release.ErrNotFound, "30 days")
		})
	}
}

func TestWhatGitHubKeepsIsRetained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pkg := w.Package("acme", "agnes")
	pushed := push(pkg, 3) // tags on the first and the last
	p := w.client.Packages("acme", "agnes")
	pkg.SetDownloads(pushed[1].ID, 5001)
	expect(t, p.Delete(t.Context(), pushed[1].ID), problem.Refused, release.ErrRetained, "more than 5000 downloads")
	if err := p.Delete(t.Context(), pushed[0].ID); err != nil {
		t.Fatal(err)
	}
	expect(t, p.Delete(t.Context(), pushed[2].ID), problem.Refused, release.ErrRetained, "last tagged version")
	w.Inject(githubtest.Fault{Method: "DELETE", Status: 400, Body: map[string]any{"message": "Problems parsing JSON"}})
	expect(t, p.Delete(t.Context(), pushed[2].ID), problem.Invalid, nil, "Problems parsing JSON")
}

func TestADeletionWhoseReplyIsLostIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pushed := push(w.Package("acme", "agnes"), 4)
	p := w.client.Packages("acme", "agnes")
	w.LoseReply("DELETE", "")
	expect(t, p.Delete(t.Context(), pushed[0].ID), problem.NotFound, release.ErrNotFound) // gone, which is what was asked for
	w.Heal()
	w.Inject(githubtest.Fault{Method: "DELETE", Status: 502, Times: 2})
	if err := p.Delete(t.Context(), pushed[1].ID); err != nil {
		t.Errorf("after two 502: %v", err)
	}
	w.Heal()
	w.Inject(githubtest.Fault{Method: "DELETE", Status: 502})
	expect(t, p.Delete(t.Context(), pushed[2].ID), problem.Unavailable, release.ErrUncertain, "502")
	w.Heal()
	w.LoseReply("POST", "*/restore")
	if err := p.Restore(t.Context(), pushed[1].ID); err != nil {
		t.Errorf("Restore with a lost reply: %v", err)
	}
}

func TestAMissingRightForPackagesIsToldFromSomethingGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pushed := push(w.Package("acme", "agnes"), 4)
	w.Grant("reader", githubtest.Grant{Packages: githubtest.Read})
	w.Grant("blind", githubtest.Grant{Contents: githubtest.Admin})
	w.Grant("scopeless", githubtest.Grant{Scopes: []string{"repo"}, Packages: githubtest.Admin})
	ctx := t.Context()
	expect(t, w.as(t, "reader").Packages("acme", "agnes").Delete(ctx, pushed[0].ID), problem.Forbidden, nil, "delete:packages", "role Admin")
	_, err := w.as(t, "blind").Packages("acme", "agnes").Versions(ctx)
	expect(t, err, problem.NotFound, nil, "packages: read")
	_, err = w.as(t, "blind").Packages("acme", "agnes").Version(ctx, pushed[0].ID)
	expect(t, err, problem.NotFound, nil, "packages: read")
	if err := w.as(t, "blind").Packages("acme", "agnes").Delete(ctx, pushed[0].ID); err == nil || errors.Is(err, release.ErrNotFound) {
		t.Errorf("Delete without any right: %v, must not say that it is gone", err)
	}
	if err := w.as(t, "blind").Packages("acme", "agnes").Restore(ctx, pushed[0].ID); err == nil || errors.Is(err, release.ErrNotFound) {
		t.Errorf("Restore without any right: %v, must not say that there is nothing", err)
	}
	_, err = w.as(t, "scopeless").Packages("acme", "agnes").Versions(ctx)
	expect(t, err, problem.Forbidden, nil, "read:packages")
	_, err = w.client.Packages("nobody", "agnes").Versions(ctx)
	expect(t, err, problem.NotFound, nil, "nobody")
}

func TestAtMostSixtyDeletionsAMinute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pushed := push(w.Package("acme", "agnes"), 200)
	w.Limit(githubtest.Limits{WritesPerMinute: 80})
	p := w.client.Packages("acme", "agnes")
	start := w.clock.Now()
	var at []time.Time
	for _, v := range pushed[:150] {
		if err := p.Delete(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
		at = append(at, w.clock.Now())
	}
	for i := 60; i < len(at); i++ {
		if at[i].Sub(at[i-60]) < time.Minute {
			t.Errorf("deletion %d came %s after deletion %d", i, at[i].Sub(at[i-60]), i-60)
		}
	}
	if took := w.clock.Now().Sub(start); took > 3*time.Minute {
		t.Errorf("150 deletions took %s, want 2m", took)
	}
	for _, r := range w.Requests() {
		if r.Status == http.StatusTooManyRequests {
			t.Error("the host's own limit was met")
			break
		}
	}
}

// A version whose tags are not shown would look untagged, and be deleted.
func TestAVersionThatIsNotShownCompletelyIsNoVersion(t *testing.T) {
	t.Parallel()
	for _, metadata := range []any{nil, map[string]any{"package_type": "container"}, map[string]any{"package_type": "container", "container": map[string]any{}}} {
		w := newWorld(t)
		push(w.Package("acme", "agnes"), 1)
		w.Inject(githubtest.Fault{Path: "*/versions", Status: 200, Body: []any{map[string]any{
			"id": 1, "name": "sha256:abc", "created_at": "2026-04-01T00:00:00Z", "metadata": metadata,
		}}})
		_, err := w.client.Packages("acme", "agnes").Versions(t.Context())
		expect(t, err, problem.Inconclusive, nil, "tags")
	}
}

func TestPreflightNamesTheRightThatIsMissing(t *testing.T) {
	t.Parallel()
	all := []github.Right{github.ReadContents, github.WriteContents, github.WriteIssues, github.ReadPulls, github.ReadPackages, github.WritePackages, github.DeletePackages}
	classic := func(scopes ...string) githubtest.Grant {
		g := githubtest.All()
		g.Scopes = append([]string{}, scopes...) // none is not nil
		return g
	}
	with := func(change func(*githubtest.Grant)) githubtest.Grant {
		g := githubtest.All()
		change(&g)
		return g
	}
	for name, c := range map[string]struct {
		grant githubtest.Grant
		texts []string // none: everything is there
		kind  problem.Kind
	}{
		"a workflow's token with everything":   {grant: githubtest.All()},
		"a workflow's token without contents":  {with(func(g *githubtest.Grant) { g.Contents = githubtest.Read }), []string{`"contents: write"`, "permissions: {contents: write}"}, problem.Forbidden},
		"a workflow's token without issues":    {with(func(g *githubtest.Grant) { g.Issues = githubtest.None }), []string{`"issues: write"`}, problem.Forbidden},
		"a classic token with everything":      {grant: classic("repo", "write:packages", "delete:packages")},
		"a classic token without delete":       {classic("repo", "write:packages"), []string{`"packages: delete"`, "delete:packages"}, problem.Forbidden},
		"a classic token without any scope":    {classic(), []string{`"contents: write"`, `scopes are ""`}, problem.Forbidden},
		"a classic token for public code only": {grant: classic("public_repo", "write:packages", "delete:packages")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Grant("it", c.grant)
			before := len(w.repo.Refs())
			err := w.as(t, "it").Preflight(t.Context(), all...)
			if c.texts == nil {
				if err != nil {
					t.Error(err)
				}
			} else {
				expect(t, err, c.kind, nil, c.texts...)
			}
			if len(w.repo.Refs()) != before || len(w.repo.Issues()) != 0 {
				t.Error("Preflight changed something")
			}
		})
	}
	w := newWorld(t)
	w.Grant("public", classic("public_repo"))
	w.Repo("acme/secret").Private = true
	expect(t, w.client2(t, "acme/secret", "public").Preflight(t.Context(), github.WriteContents), problem.Forbidden, nil, "public_repo")
	expect(t, w.as(t, "").Preflight(t.Context(), github.WriteContents), problem.Unauthenticated, nil, "GITHUB_TOKEN")
	expect(t, w.as(t, "stale").Preflight(t.Context(), github.WriteContents), problem.Unauthenticated, nil, "Bad credentials")
	expect(t, w.of(t, "acme/nowhere").Preflight(t.Context(), github.WriteContents), problem.NotFound, nil, "acme/nowhere")
	w.repo.NoIssues = true
	expect(t, w.client.Preflight(t.Context(), github.WriteIssues), problem.Refused, nil, "switched off")
}
