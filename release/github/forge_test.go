package github_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

var alert = release.Alert{
	Marker: "<!-- release-bot:rollback:2026.04.3 -->", Title: "2026.04.3 failed", Body: "It is rolled back.", Labels: []string{"incident"},
}

func TestAnAlertIsOneIssue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 130 { // the issue is on the second page
		w.repo.Pull(githubtest.Pull{Title: fmt.Sprint("pull ", i), Body: alert.Marker, Author: "jane"}) // pull requests do not count
	}
	first, err := w.client.Alert(t.Context(), alert)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.as(t, githubtest.Token).Alert(t.Context(), alert)
	if err != nil || again != first {
		t.Errorf("the second call: %q, %v, want %q", again, err, first)
	}
	want := []githubtest.Issue{{Number: 131, Title: alert.Title, Body: alert.Marker + "\n" + alert.Body, State: "open", Labels: alert.Labels}}
	if diff := cmp.Diff(want, w.repo.Issues()); diff != "" {
		t.Error(diff)
	}
	w.repo.CloseIssue(131)
	third, err := w.client.Alert(t.Context(), alert)
	if err != nil || third == first {
		t.Errorf("after it was closed: %q, %v, want a new one", third, err)
	}
}

func TestAnAlertIsSettledOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if url, err := w.client.Settle(t.Context(), alert.Marker, "It is well."); err != nil || url != "" {
		t.Errorf("without an issue: %q, %v", url, err)
	}
	other := alert
	other.Marker = "<!-- release-bot:rollback:2026.04.30 -->"
	if _, err := w.client.Alert(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	opened, err := w.client.Alert(t.Context(), alert)
	if err != nil {
		t.Fatal(err)
	}
	w.Grant("reader", githubtest.Grant{Contents: githubtest.Read, Issues: githubtest.Read})
	_, err = w.as(t, "reader").Settle(t.Context(), alert.Marker, "It is well.")
	expect(t, err, problem.Forbidden, nil, "issues: write")
	for _, want := range []string{opened, ""} {
		if url, err := w.client.Settle(t.Context(), alert.Marker, "It is well."); err != nil || url != want {
			t.Errorf("%q, %v, want %q", url, err, want)
		}
	}
	want := []githubtest.Issue{
		{Number: 1, Title: other.Title, Body: other.Marker + "\n" + other.Body, State: "open", Labels: other.Labels},
		{Number: 2, Title: alert.Title, Body: alert.Marker + "\n" + alert.Body + "\n\nIt is well.\n", State: "closed", Labels: alert.Labels},
	}
	if diff := cmp.Diff(want, w.repo.Issues()); diff != "" {
		t.Error(diff)
	}
}

func TestAnAlertWhoseReplyIsLostIsFoundAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.LoseReply("POST", "*/issues")
	w.Inject(githubtest.Fault{Method: "POST", Path: "*/issues", Times: 1, Status: 502})
	if _, err := w.client.Alert(t.Context(), alert); err != nil {
		t.Fatal(err)
	}
	if n := len(w.repo.Issues()); n != 1 {
		t.Errorf("%d issues, want 1", n)
	}
}

func TestAnAlertSaysWhyItCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Grant("reader", githubtest.Grant{Contents: githubtest.Read, Issues: githubtest.Read})
	_, err := w.as(t, "reader").Alert(t.Context(), alert)
	expect(t, err, problem.Forbidden, nil, "issues: write")
	w.repo.NoIssues = true
	_, err = w.client.Alert(t.Context(), alert)
	expect(t, err, problem.Refused, nil, "switched off", "--webhook-url")
}

func TestALongTextIsCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := alert
	long.Body = strings.Repeat("číslo\n", 20000)
	if _, err := w.client.Alert(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	body := w.repo.Issues()[0].Body
	if n := utf8.RuneCountInString(body); n < 60000 || !utf8.ValidString(body) || !strings.HasPrefix(body, long.Marker) || !strings.Contains(body, "too long") {
		t.Errorf("the issue has %d characters: %.100s … %s", n, body, body[len(body)-100:])
	}
}

func TestAReleaseIsMadeOnceAndBroughtUpToDate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	page := func(v, body string, pre bool) release.Page {
		version, err := release.ParseVersion(v)
		if err != nil {
			t.Fatal(err)
		}
		return release.Page{Version: version, Body: body, Prerelease: pre}
	}
	_, err := w.client.Release(t.Context(), page("2026.04.9", "nobody claimed it", false))
	expect(t, err, problem.NotFound, release.ErrNotFound, "refs/tags/2026.04.9")
	for _, name := range []string{"2026.04.9", "2026.04.10", "2026.04.11"} {
		if _, err := w.client.Refs().Create(t.Context(), tag(w, name)); err != nil {
			t.Fatal(err)
		}
	}
	refs := len(w.repo.Refs())
	w.LoseReply("POST", "*/releases")
	for _, p := range []release.Page{page("2026.04.10", "ten", false), page("2026.04.9", "nine", false), page("2026.04.11", "dev", true), page("2026.04.10", "ten, better", false)} {
		if _, err := w.client.Release(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	want := []githubtest.Page{
		{Tag: "2026.04.10", Name: "2026.04.10", Body: "ten, better", Latest: true}, // not 2026.04.9, though it came later
		{Tag: "2026.04.9", Name: "2026.04.9", Body: "nine"},
		{Tag: "2026.04.11", Name: "2026.04.11", Body: "dev", Prerelease: true},
	}
	if diff := cmp.Diff(want, w.repo.Releases()); diff != "" {
		t.Error(diff)
	}
	if n := len(w.repo.Refs()); n != refs {
		t.Errorf("%d refs, want %d: a release must not make tags", n, refs)
	}
	w.Forget()
	if _, err := w.client.Release(t.Context(), page("2026.04.10", "ten, better", false)); err != nil {
		t.Fatal(err)
	}
	if n := w.Count("POST", "*") + w.Count("PATCH", "*"); n != 0 {
		t.Errorf("%d writes of what was right already", n)
	}
}

func TestChangesAreMergedPullRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	merge := w.repo.Commit("merge")
	at := w.clock.Now()
	w.repo.Pull(githubtest.Pull{Title: "Still open", Author: "eve", Commits: []string{merge}})
	w.repo.Pull(githubtest.Pull{Title: "Given up", Author: "eve", Commits: []string{merge}, Closed: true})
	w.repo.Pull(githubtest.Pull{Title: "Carries it along", Author: "eve", Commits: []string{merge}, Merged: at, MergeCommit: w.commits[2]})
	number := w.repo.Pull(githubtest.Pull{Title: "Mend it", Author: "jane", Labels: []string{"bug", "BREAKING"}, Commits: []string{w.commits[1]}, Merged: at, MergeCommit: merge})
	changes, err := w.client.Changes(t.Context(), []string{merge, w.commits[0], strings.Repeat("a", 40)})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]release.Change{merge: {
		Number: number, Title: "Mend it", Author: "jane", Labels: []string{"bug", "BREAKING"}, URL: fmt.Sprintf("%s/acme/agnes/pull/%d", w.URL, number),
	}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
}

func TestDescent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two, three := w.commits[0], w.commits[1], w.commits[2]
	side, alone := strings.Repeat("a", 40), strings.Repeat("b", 40)
	w.repo.AddCommit(side, one)
	w.repo.AddCommit(alone)
	for _, c := range []struct {
		ancestor, commit string
		want             bool
	}{
		{one, three, true},
		{two, two, true},
		{three, one, false},
		{two, side, false},
		{one, side, true},
		{alone, three, false},
	} {
		got, err := w.client.Descends(t.Context(), c.ancestor, c.commit)
		if err != nil || got != c.want {
			t.Errorf("Descends(%.7s, %.7s) = %v, %v, want %v", c.ancestor, c.commit, got, err, c.want)
		}
	}
	_, err := w.client.Descends(t.Context(), strings.Repeat("c", 40), one)
	expect(t, err, problem.NotFound, release.ErrNotFound, "git push")
}

func TestLimitsAreWaitedFor(t *testing.T) {
	t.Parallel()
	soon := http.Header{"X-Ratelimit-Remaining": {"0"}}
	for name, c := range map[string]struct {
		fault githubtest.Fault
		want  time.Duration // at least
	}{
		"429 with Retry-After":                    {githubtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"42"}}}, 42 * time.Second},
		"429 that names no time":                  {githubtest.Fault{Status: 429}, time.Minute},
		"403 of a secondary limit":                {githubtest.Fault{Status: 403, Header: http.Header{"Retry-After": {"30"}}}, 30 * time.Second},
		"403 that only says so":                   {githubtest.Fault{Status: 403, Body: map[string]any{"message": "You have exceeded a secondary rate limit.", "documentation_url": "x"}}, time.Minute},
		"403 with the end of the primary limit":   {githubtest.Fault{Status: 403, Header: soon}, 5 * time.Minute},
		"429 twice, each time longer if nameless": {githubtest.Fault{Status: 429, Times: 2}, 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			f := c.fault
			f.Method, f.Path, f.Times = "POST", "*/git/refs", max(f.Times, 1)
			if f.Header.Get("X-Ratelimit-Remaining") == "0" {
				f.Header = http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {fmt.Sprint(w.clock.Now().Add(5 * time.Minute).Unix())}}
			}
			w.Inject(f)
			if _, err := w.client.Refs().Create(t.Context(), tag(w, "2026.04.1")); err != nil {
				t.Fatal(err)
			}
			if got := w.clock.total(); got < c.want || got > c.want+2*time.Second {
				t.Errorf("waited %s, want %s", got, c.want)
			}
			if !strings.Contains(w.log.String(), "GitHub asks to wait") {
				t.Errorf("nobody was told of the wait: %s", w.log)
			}
			if strings.Contains(w.log.String(), githubtest.Token) {
				t.Error("the token is in the log")
			}
		})
	}
}

func TestTheServersOwnLimitsAreKept(t *testing.T) {
	t.Parallel()
	for _, limits := range []githubtest.Limits{{PerHour: 20}, {WritesPerMinute: 5}, {WritesPerMinute: 5, Forbid: true}} {
		w := newWorld(t)
		w.Limit(limits)
		client, err := github.New(github.Options{API: w.URL, Repo: repoName, Token: githubtest.Token, Now: w.clock.Now, Sleep: w.clock.Sleep, MaxWait: 2 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if _, err := client.Refs().Create(t.Context(), tag(w, fmt.Sprintf("2026.04.%d", i+1))); err != nil {
				t.Fatalf("%+v: %v", limits, err)
			}
		}
		limited := slices.ContainsFunc(w.Requests(), func(r githubtest.Request) bool { return r.Status == 403 || r.Status == 429 })
		if !limited || w.clock.total() == 0 {
			t.Errorf("%+v: no limit was met (%v) or waited for (%s)", limits, limited, w.clock.total())
		}
	}
}

func TestALimitThatIsTooLongIsAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Inject(githubtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"3600"}}})
	_, err := w.client.Refs().List(t.Context(), "refs/tags/")
	expect(t, err, problem.RateLimited, nil, "429", "1h0m0s")
	if after := problem.As(err).RetryAfter; after != time.Hour {
		t.Errorf("RetryAfter %s, want 1h", after)
	}
	if n := len(w.Requests()); n != 1 || w.clock.total() != 0 {
		t.Errorf("%d requests and %s of waiting, want 1 and none", n, w.clock.total())
	}
}
