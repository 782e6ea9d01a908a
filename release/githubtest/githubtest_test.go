package githubtest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// recorded is a test that only notes its failures.
type recorded struct {
	testing.TB

	errors []string
}

func (r *recorded) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// send makes a call as a token and returns its answer.
func (s *Server) send(t *testing.T, token, method, path string, in any) (int, any, http.Header) {
	t.Helper()
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err, nil
	}
	defer resp.Body.Close()
	var out any
	_ = json.NewDecoder(resp.Body).Decode(&out)
	return resp.StatusCode, out, resp.Header
}

// Every route is called, once so that it succeeds and once so that it does not,
// and each call is held against GitHub's description.
func TestEveryRouteIsAsGitHubDescribesIt(t *testing.T) {
	t.Parallel()
	s := New(t)
	if s.describe == nil {
		t.Skip("NOT RUN: GitHub's description is not at hand. Next: make deps-test")
	}
	s.User("jane")
	r := s.Repo("acme/agnes")
	commit := r.Commit("one")
	r.Require("ci")
	r.SetFile("docs/a.md", []byte("a"))
	pull := r.Pull(Pull{Title: "Mend", Author: "jane", Commits: []string{commit}, Merged: s.now(), MergeCommit: commit, Labels: []string{"bug"}})
	open := r.Pull(Pull{Title: "Open", Author: "jane", Commits: []string{commit}})
	r.Review(open, Review{Author: "joe", State: "APPROVED", Commit: commit})
	version := s.Package("acme", "agnes").Push("application/json", []byte(`{"n":1}`), "dev").ID
	s.Package("acme", "agnes").Push("application/json", []byte(`{"n":2}`), "stable")
	mine := s.Package("jane", "tool").Push("application/json", []byte(`{"n":1}`), "dev").ID
	s.Package("jane", "tool").Push("application/json", []byte(`{"n":2}`), "stable")
	const repo, org, user = "/repos/acme/agnes", "/orgs/acme/packages/container/agnes/versions", "/users/jane/packages/container/tool/versions"
	id := func(v any, names ...string) string {
		for _, name := range names {
			v = v.(object)[name]
		}
		if f, is := v.(float64); is {
			return fmt.Sprintf("%.0f", f)
		}
		return fmt.Sprint(v)
	}
	call := func(want int, method, path string, in any) any {
		t.Helper()
		status, out, _ := s.send(t, Token, method, path, in)
		if status != want {
			t.Errorf("%s %s: %d, want %d: %v", method, path, status, want, out)
		}
		return out
	}
	call(200, "GET", repo, nil)
	call(200, "GET", "/users/acme", nil)
	call(404, "GET", "/users/nobody", nil)
	tag := object{"tag": "2026.04.1", "message": "m", "object": commit, "type": "commit", "tagger": object{"name": "n", "email": "e@x", "date": "2026-04-08T12:00:00Z"}}
	sha := id(call(201, "POST", repo+"/git/tags", tag), "sha")
	if again := id(call(201, "POST", repo+"/git/tags", tag), "sha"); again != sha {
		t.Errorf("the same tag object twice: %s and %s", sha, again)
	}
	call(422, "POST", repo+"/git/tags", object{"tag": "x", "message": "m", "object": strings.Repeat("a", 40), "type": "commit"})
	call(200, "GET", repo+"/git/tags/"+sha, nil)
	call(404, "GET", repo+"/git/tags/"+commit, nil)
	call(201, "POST", repo+"/git/refs", object{"ref": "refs/tags/2026.04.1", "sha": sha})
	call(422, "POST", repo+"/git/refs", object{"ref": "refs/tags/2026.04.1", "sha": sha})
	call(422, "POST", repo+"/git/refs", object{"ref": "refs/tags/2026.04.1/x", "sha": sha})
	call(422, "POST", repo+"/git/refs", object{"ref": "tags/2026.04.2", "sha": sha})
	call(422, "POST", repo+"/git/refs", object{"ref": "refs/tags/2026.04.2", "sha": strings.Repeat("a", 40)})
	call(200, "GET", repo+"/git/ref/tags/2026.04.1", nil)
	call(404, "GET", repo+"/git/ref/tags/2026.04", nil)
	if n := len(call(200, "GET", repo+"/git/matching-refs/tags/2026", nil).([]any)); n != 1 {
		t.Errorf("%d matching refs, want 1", n)
	}
	call(200, "GET", repo+"/git/commits/"+commit, nil)
	call(404, "GET", repo+"/git/commits/"+sha, nil)
	call(200, "GET", repo+"/compare/"+commit+"...main", nil)
	call(404, "GET", repo+"/compare/"+commit+"...nothing", nil)

	number := id(call(201, "POST", repo+"/issues", object{"title": "t", "body": "b", "labels": []string{"incident"}}), "number")
	call(422, "POST", repo+"/issues", object{"title": ""})
	call(422, "POST", repo+"/issues", object{"title": "t", "body": strings.Repeat("x", 65537)})
	if n := len(call(200, "GET", repo+"/issues?state=all&labels=incident&per_page=5&page=1", nil).([]any)); n != 1 {
		t.Errorf("%d issues with the label, want 1", n)
	}
	call(200, "GET", repo+"/issues/"+number, nil)
	call(404, "GET", repo+"/issues/999", nil)
	comment := id(call(201, "POST", repo+"/issues/"+number+"/comments", object{"body": "c"}), "id")
	call(200, "GET", repo+"/issues/"+number+"/comments", nil)
	call(200, "PATCH", repo+"/issues/comments/"+comment, object{"body": "d"})
	call(200, "POST", repo+"/issues/"+number+"/labels", object{"labels": []string{"BREAKING"}})
	call(200, "DELETE", repo+"/issues/"+number+"/labels/BREAKING", nil)
	call(404, "DELETE", repo+"/issues/"+number+"/labels/BREAKING", nil)
	call(200, "PATCH", repo+"/issues/"+number, object{"state": "closed"})
	call(201, "POST", repo+"/labels", object{"name": "new", "color": "ff0000"})
	call(422, "POST", repo+"/labels", object{"name": "NEW"})
	call(200, "GET", repo+"/labels", nil)

	call(200, "GET", repo+"/pulls?state=all", nil)
	call(200, "GET", fmt.Sprintf("%s/pulls/%d", repo, pull), nil)
	call(404, "GET", repo+"/pulls/999", nil)
	call(200, "GET", repo+"/commits/"+commit+"/pulls", nil)
	call(422, "GET", repo+"/commits/"+strings.Repeat("a", 40)+"/pulls", nil)
	call(200, "GET", fmt.Sprintf("%s/pulls/%d/reviews", repo, open), nil)
	review := id(call(200, "POST", fmt.Sprintf("%s/pulls/%d/reviews", repo, open), object{"event": "APPROVE"}), "id")
	call(200, "PUT", fmt.Sprintf("%s/pulls/%d/reviews/%s/dismissals", repo, open, review), object{"message": "no"})
	call(201, "POST", repo+"/statuses/"+commit, object{"state": "pending", "context": "ci", "description": "waits"})
	call(422, "POST", repo+"/statuses/"+strings.Repeat("a", 40), object{"state": "success"})
	if state := id(call(200, "GET", repo+"/commits/"+commit+"/status", nil), "state"); state != "pending" || r.Status(commit, "ci") != "pending" {
		t.Errorf("the combined status is %s, want pending", state)
	}
	page := id(call(201, "POST", repo+"/releases", object{"tag_name": "2026.04.1", "name": "n", "body": "b", "make_latest": "true"}), "id")
	call(422, "POST", repo+"/releases", object{"tag_name": "2026.04.1"})
	call(200, "PATCH", repo+"/releases/"+page, object{"body": "c"})
	call(200, "GET", repo+"/releases/tags/2026.04.1", nil)
	call(404, "GET", repo+"/releases/tags/2026.04.2", nil)
	call(200, "GET", repo+"/releases/latest", nil)
	content := base64.StdEncoding.EncodeToString([]byte("b"))
	old := id(call(200, "GET", repo+"/contents/docs/a.md", nil), "sha")
	call(404, "GET", repo+"/contents/docs/b.md", nil)
	call(422, "PUT", repo+"/contents/docs/a.md", object{"message": "m", "content": content})
	call(409, "PUT", repo+"/contents/docs/a.md", object{"message": "m", "content": content, "sha": commit})
	call(200, "PUT", repo+"/contents/docs/a.md", object{"message": "m", "content": content, "sha": old})
	call(201, "PUT", repo+"/contents/docs/b.md", object{"message": "m", "content": content})
	if n := len(call(200, "GET", repo+"/contents/docs?ref=main", nil).([]any)); n != 2 {
		t.Errorf("%d files in the folder, want 2", n)
	}
	call(404, "GET", repo+"/contents/docs/b.md?ref="+commit, nil) // it came later
	head := id(call(200, "GET", repo+"/git/ref/heads/main", nil), "object", "sha")
	blob := func(path string, more object) object {
		entry := object{"path": path, "mode": "100644", "type": "blob"}
		for name, v := range more {
			entry[name] = v
		}
		return object{"base_tree": id(call(200, "GET", repo+"/git/commits/"+head, nil), "tree", "sha"), "tree": []object{entry}}
	}
	grown := id(call(201, "POST", repo+"/git/trees", blob("docs/c.md", object{"content": "c"})), "sha")
	call(201, "POST", repo+"/git/trees", blob("docs/a.md", object{"sha": nil}))
	call(422, "POST", repo+"/git/trees", blob("docs/none.md", object{"sha": nil}))
	made := id(call(201, "POST", repo+"/git/commits", object{"message": "m", "tree": grown, "parents": []string{head}}), "sha")
	call(422, "POST", repo+"/git/commits", object{"message": "m", "tree": strings.Repeat("a", 40), "parents": []string{head}})
	call(422, "PATCH", repo+"/git/refs/heads/none", object{"sha": made})
	call(200, "PATCH", repo+"/git/refs/heads/main", object{"sha": made, "force": false})
	call(422, "PATCH", repo+"/git/refs/heads/main", object{"sha": head})
	call(200, "GET", repo+"/contents/docs/c.md", nil)
	call(200, "GET", repo+"/rules/branches/main", nil)
	call(200, "GET", repo+"/rulesets", nil)
	call(404, "GET", repo+"/branches/main/protection", nil)

	for base, v := range map[string]int64{org: version, user: mine} {
		one := fmt.Sprintf("%s/%d", base, v)
		call(200, "GET", base+"?per_page=1&state=active", nil)
		call(200, "GET", one, nil)
		call(204, "DELETE", one, nil)
		call(404, "DELETE", one, nil)
		call(404, "GET", one, nil)
		if n := len(call(200, "GET", base+"?state=deleted", nil).([]any)); n != 1 {
			t.Errorf("%d deleted versions, want 1", n)
		}
		call(204, "POST", one+"/restore", nil)
		call(404, "POST", one+"/restore", nil)
	}
	call(404, "GET", "/orgs/jane/packages/container/tool/versions", nil) // a person's, by an organization's path

	called := map[string]bool{}
	for _, request := range s.Requests() {
		for _, r := range routes() {
			if request.Method == r.method && fits(r.pattern, request.Path) {
				called[r.method+" "+r.pattern] = true
			}
		}
	}
	for _, r := range routes() {
		if !called[r.method+" "+r.pattern] {
			t.Errorf("no call of %s %s", r.method, r.pattern)
		}
	}
}

// fits is the mux's matching, written differently.
func fits(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	for i, part := range want {
		switch {
		case strings.HasSuffix(part, "...}"):
			return len(got) > i
		case i >= len(got):
			return false
		case !strings.HasPrefix(part, "{") && part != got[i]:
			return false
		}
	}
	return len(want) == len(got)
}

func TestWhatDiffersFromTheDescriptionFailsTheTest(t *testing.T) {
	t.Parallel()
	s := New(t)
	if s.describe == nil {
		t.Skip("NOT RUN: GitHub's description is not at hand. Next: make deps-test")
	}
	refs := gitRoutes()[slices.IndexFunc(gitRoutes(), func(r route) bool { return r.pattern == "/repos/{owner}/{repo}/git/refs" })]
	good := created(object{"ref": "refs/tags/x", "node_id": "n", "url": "http://x/", "object": object{"type": "tag", "sha": strings.Repeat("a", 40), "url": "http://x/"}})
	short := created(object{"ref": "refs/tags/x", "node_id": "n", "url": "http://x/"})
	wrong := created(object{"ref": 7, "node_id": "n", "url": "http://x/", "object": good.body.(object)["object"]})
	for name, c := range map[string]struct {
		body   string // and the query, after a ?
		answer answer
		want   string // nothing: no failure
	}{
		"as described":               {`{"ref":"refs/tags/x","sha":"a"}`, good, ""},
		"a request without a field":  {`{"ref":"refs/tags/x"}`, good, "a request is not as GitHub describes it"},
		"a request of another type":  {`{"ref":"refs/tags/x","sha":7}`, good, "a request is not as GitHub describes it"},
		"an answer without a field":  {`{"ref":"refs/tags/x","sha":"a"}`, short, "an answer is not as GitHub describes it"},
		"an answer of another type":  {`{"ref":"refs/tags/x","sha":"a"}`, wrong, "an answer is not as GitHub describes it"},
		"a parameter not described":  {`{"ref":"refs/tags/x","sha":"a"}?page=2`, good, "does not describe the parameter page"},
		"a status not described":     {`{"ref":"refs/tags/x","sha":"a"}`, answer{status: 418}, "does not describe the answer 418"},
		"a status that is excepted":  {`{"ref":"refs/tags/x","sha":"a"}`, refusal(403, "no"), ""},
		"an error of another form":   {`{"ref":"refs/tags/x","sha":"a"}`, answer{status: 422, body: object{"text": "no"}}, "an answer is not as GitHub describes it"},
		"an answer without any body": {`{"ref":"refs/tags/x","sha":"a"}`, answer{status: 201}, "an answer is not as GitHub describes it"},
	} {
		body, query, _ := strings.Cut(c.body, "?")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/repos/acme/agnes/git/refs?"+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.SetPathValue("owner", "acme")
		req.SetPathValue("repo", "agnes")
		r := &recorded{TB: t}
		s.describe.check(r, refs, req, []byte(body), c.answer)
		if got := strings.Join(r.errors, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// An exception that the description no longer needs must go.
func TestEveryExceptionIsNeeded(t *testing.T) {
	t.Parallel()
	s := New(t)
	if s.describe == nil {
		t.Skip("NOT RUN: GitHub's description is not at hand. Next: make deps-test")
	}
	for _, e := range exceptions() {
		needed := slices.ContainsFunc(routes(), func(r route) bool {
			operation := s.describe.doc.Paths.Value(r.path()).GetOperation(r.method)
			if !match(e.method, r.method) || !match(e.path, r.path()) {
				return false
			}
			switch e.part {
			case "status":
				return operation.Responses.Status(e.status) == nil
			case "query":
				return operation.Parameters.GetByInAndName("query", "per_page") == nil
			default:
				return operation.Responses.Status(e.status) != nil // TestEveryRoute… fails without it
			}
		})
		if !needed {
			t.Errorf("the exception for %s %s, %d is not needed: %s", e.method, e.path, e.status, e.reason)
		}
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	s := New(t, WithSeed(7))
	r := s.Repo("acme/agnes")
	r.Commit("one")
	s.LoseReply("POST", "*/issues")
	if status, out, _ := s.send(t, Token, "POST", "/repos/acme/agnes/issues", object{"title": "t"}); status != 0 {
		t.Errorf("a lost reply: %d %v, want a cut connection", status, out)
	}
	if n := len(r.Issues()); n != 1 {
		t.Errorf("%d issues after a lost reply, want 1", n)
	}
	s.Inject(Fault{Method: "GET", Path: "/repos/*/issues", Skip: 1, Times: 1, Status: 429, Header: http.Header{"Retry-After": {"3"}}})
	var got []int
	for range 3 {
		status, _, header := s.send(t, Token, "GET", "/repos/acme/agnes/issues", nil)
		if got = append(got, status); status == 429 && header.Get("Retry-After") != "3" {
			t.Errorf("Retry-After is %q, want 3", header.Get("Retry-After"))
		}
	}
	if !slices.Equal(got, []int{200, 429, 200}) {
		t.Errorf("the answers are %v, want 200, 429, 200", got)
	}
	draw := func() string {
		s := New(t, WithSeed(11))
		s.Repo("acme/agnes")
		s.Inject(Fault{Probability: 0.5})
		text := ""
		for range 40 {
			status, _, _ := s.send(t, Token, "GET", "/repos/acme/agnes/labels", nil)
			text += fmt.Sprint(status, " ")
		}
		return text
	}
	first := draw()
	if first != draw() || !strings.Contains(first, "200") || !strings.Contains(first, "500") {
		t.Errorf("a probability of 0.5 is not repeatable or not half: %s", first)
	}
}

func TestListsLagAndReadsDoNot(t *testing.T) {
	t.Parallel()
	s := New(t, WithListLag(2))
	r := s.Repo("acme/agnes")
	r.SetRef("refs/tags/a", r.Commit("one"))
	p := s.Package("acme", "agnes")
	v := p.Push("application/json", []byte(`{}`), "dev")
	p.Push("application/json", []byte(`{"n":2}`), "stable")
	length := func(path string) int {
		_, out, _ := s.send(t, Token, "GET", path, nil)
		return len(out.([]any))
	}
	if status, _, _ := s.send(t, Token, "GET", "/repos/acme/agnes/git/ref/tags/a", nil); status != 200 {
		t.Errorf("a read is late: %d", status)
	}
	var seen []int
	for range 4 {
		seen = append(seen, length("/repos/acme/agnes/git/matching-refs/tags/"))
	}
	if !slices.Equal(seen, []int{0, 0, 1, 1}) {
		t.Errorf("the lists have %v, want 0, 0, 1, 1", seen)
	}
	const versions = "/orgs/acme/packages/container/agnes/versions"
	s.send(t, Token, "DELETE", fmt.Sprintf("%s/%d", versions, v.ID), nil)
	seen = nil
	for range 4 {
		seen = append(seen, length(versions))
	}
	if !slices.Equal(seen, []int{2, 2, 1, 1}) {
		t.Errorf("the lists have %v, want 2, 2, 1, 1", seen)
	}
}

func TestTagsAndTimesOfVersions(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC)
	s := New(t, WithClock(func() time.Time { return at }))
	p := s.Package("acme", "agnes")
	one := p.Push("application/json", []byte(`{"n":1}`), "dev")
	two := p.Push("application/json", []byte(`{"n":2}`))
	at = at.Add(time.Hour)
	p.Push("application/json", []byte(`{"n":2}`), "dev", "v2")
	all := p.Versions()
	if len(all) != 2 || all[0].ID != two.ID || !slices.Equal(all[0].Tags, []string{"dev", "v2"}) || len(all[1].Tags) != 0 || !all[0].Updated.Equal(one.Created) {
		t.Errorf("the versions are %+v", all)
	}
	if p.Tag("dev") != two.Digest || p.Manifest(one.Digest) == nil {
		t.Error("the tag did not move, or took its old manifest along")
	}
}
