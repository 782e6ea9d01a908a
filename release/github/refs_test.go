package github_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

func TestAClaimCostsThreeWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1"), "refs/agnes/claims/dev/x"); err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, r := range w.Requests() {
		calls = append(calls, r.Method+" "+strings.TrimPrefix(r.Path, "/repos/acme/agnes/"))
	}
	if diff := cmp.Diff([]string{"POST git/tags", "POST git/refs", "POST git/refs"}, calls); diff != "" {
		t.Error(diff)
	}
}

func TestEveryUncertainWriteOfARefSaysSo(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]githubtest.Fault{
		"409":                              {Status: 409},
		"500":                              {Status: 500},
		"502 with a page of HTML":          {Status: 502},
		"500 though it was carried out":    {Status: 500, Carry: true},
		"a lost reply":                     {Carry: true, Cut: true},
		"a connection cut before":          {Cut: true},
		"422 that only says update failed": {Status: 422, Body: map[string]any{"message": "Reference update failed", "documentation_url": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			fault.Method, fault.Path, fault.Times = "POST", "*/git/refs", 1
			w.Inject(fault)
			_, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1"))
			expect(t, err, problem.Unavailable, release.ErrUncertain, "refs/tags/2026.04.1")
			if n := w.Count("POST", "*/git/refs"); n != 1 {
				t.Errorf("%d writes of the ref, want 1: only the caller may try again", n)
			}
			_, err = w.client.Refs().Find(t.Context(), "refs/tags/2026.04.1")
			if done := fault.Carry; done != (err == nil) {
				t.Errorf("Find after it: %v, want found: %v", err, done)
			}
		})
	}
}

func TestTheTagObjectIsWrittenAgainWithoutHarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.LoseReply("POST", "*/git/tags")
	w.Inject(githubtest.Fault{Method: "POST", Path: "*/git/tags", Times: 1, Status: 502})
	made, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1"))
	if err != nil {
		t.Fatal(err)
	}
	if n := w.Count("POST", "*/git/tags"); n != 3 {
		t.Errorf("%d writes of the tag object, want 3", n)
	}
	if at := w.repo.Refs()["refs/tags/2026.04.1"]; at != made.ID {
		t.Errorf("the ref points at %s, want %s", at, made.ID)
	}
}

func TestARefNamesWhatStandsAgainstIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(*world)
		token   string
		kind    problem.Kind
		wraps   error
		texts   []string
	}{
		"the ref exists": {
			prepare: func(w *world) { w.repo.SetRef("refs/tags/2026.04.1", w.commits[0]) },
			kind:    problem.Internal, wraps: release.ErrExists, // a RefError: the ledger's own business
		},
		"the repository has no commit": {
			prepare: func(w *world) { w.Repo("acme/empty") },
			kind:    problem.Unprocessable, texts: []string{"Git Repository is empty", "git push"},
		},
		"a workflow's token without the right": {
			token: "reader", kind: problem.Forbidden, texts: []string{"Resource not accessible by integration", "permissions: {contents: write}"},
		},
		"a classic token without the scope": {
			token: "classic", kind: problem.NotFound, texts: []string{"404 where a right is missing", "contents: write", "scope repo"},
		},
		"a token that is not valid": {token: "stale", kind: problem.Unauthenticated, texts: []string{"Bad credentials", "GITHUB_TOKEN"}},
		"no token":                  {token: "-", kind: problem.Unauthenticated, texts: []string{"GITHUB_TOKEN"}},
		"a ruleset": {
			prepare: func(w *world) { w.repo.Lock("refs/tags/*") },
			kind:    problem.Refused, texts: []string{"creations being restricted", "Bypass list"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Grant("reader", githubtest.Grant{Contents: githubtest.Read})
			w.Grant("classic", githubtest.Grant{Contents: githubtest.Read, Scopes: []string{"read:org"}})
			if c.prepare != nil {
				c.prepare(w)
			}
			client := w.client
			if c.token != "" {
				client = w.as(t, strings.TrimPrefix(c.token, "-"))
			}
			if strings.Contains(name, "no commit") {
				client = w.of(t, "acme/empty")
			}
			_, err := client.Refs().Create(t.Context(), tag(w, "2026.04.1"))
			expect(t, err, c.kind, c.wraps, c.texts...)
			if refErr := (*release.RefError)(nil); c.wraps != nil && (!errors.As(err, &refErr) || refErr.Ref != "refs/tags/2026.04.1") {
				t.Errorf("%v is no RefError of the ref", err)
			}
		})
	}
}

func TestAnEmptyRepositoryHasNoRefs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Repo("acme/empty")
	refs := w.of(t, "acme/empty").Refs()
	if list, err := refs.List(t.Context(), "refs/tags/"); err != nil || len(list) > 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	_, err := refs.Find(t.Context(), "refs/tags/2026.04.1")
	expect(t, err, problem.NotFound, release.ErrNotFound)
}

// 404 is the answer to a ref that is not there and to a repository that the token
// cannot see. Only the first may let anybody create something.
func TestAMissingRightIsNoMissingRef(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Repo("acme/hidden").Private = true
	w.Repo("acme/hidden").Commit("one")
	w.Grant("blind", githubtest.Grant{})
	refs := w.client.Refs()
	_, err := refs.Find(t.Context(), "refs/tags/2026.04.1")
	expect(t, err, problem.NotFound, release.ErrNotFound, "refs/tags/2026.04.1")
	before := len(w.Requests())
	_, err = refs.Find(t.Context(), "refs/tags/2026.04.2")
	expect(t, err, problem.NotFound, release.ErrNotFound)
	if n := len(w.Requests()) - before; n != 1 {
		t.Errorf("%d requests for the second missing ref, want 1", n)
	}
	hidden := w.client2(t, "acme/hidden", "blind").Refs()
	_, err = hidden.Find(t.Context(), "refs/tags/2026.04.1")
	expect(t, err, problem.NotFound, nil, "contents: read")
	_, err = hidden.List(t.Context(), "refs/tags/")
	expect(t, err, problem.NotFound, nil, "contents: read")
}

func TestReadsAreRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []githubtest.Fault{{Status: 500}, {Cut: true}, {Status: 503, Header: http.Header{"Retry-After": {"7"}}}} {
		f.Method, f.Times = "GET", 1
		w.Inject(f)
	}
	got, err := w.as(t, githubtest.Token).Refs().Find(t.Context(), "refs/tags/2026.04.1")
	if err != nil || got.ID != made.ID {
		t.Errorf("%v, %v, want %v", got, err, made)
	}
	w.Inject(githubtest.Fault{Method: "GET"})
	_, err = w.as(t, githubtest.Token).Refs().Find(t.Context(), "refs/tags/2026.04.1")
	expect(t, err, problem.Unavailable, nil, "500", "githubstatus")
	w.Heal()
	w.Inject(githubtest.Fault{Method: "GET", Cut: true})
	_, err = w.as(t, githubtest.Token).Refs().List(t.Context(), "refs/tags/")
	expect(t, err, problem.Unavailable, nil, "no answer")
}

func TestAnObjectThatIsNotEverywhereYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Inject(githubtest.Fault{Method: "POST", Path: "*/git/refs", Times: 2, Status: 422, Body: map[string]any{"message": "Object does not exist", "documentation_url": "x"}})
	if _, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1")); err != nil {
		t.Fatal(err)
	}
	if w.clock.total() == 0 {
		t.Error("it did not wait")
	}
}

func TestARenamedRepositoryIsNotFollowedByWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Inject(githubtest.Fault{Method: "POST", Status: 301, Header: http.Header{"Location": {w.URL + "/repositories/1/git/tags"}}})
	_, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1"))
	expect(t, err, problem.NotFound, nil, "/repositories/1", "--repo")
}

func TestThePagesOfAListStayOnTheHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Inject(githubtest.Fault{Method: "GET", Path: "*/matching-refs/*", Status: 200, Body: []any{}, Header: http.Header{"Link": {`<https://evil.example/steal>; rel="next"`}}})
	_, err := w.client.Refs().List(t.Context(), "refs/tags/")
	expect(t, err, problem.Unavailable, nil, "link to elsewhere")
}
