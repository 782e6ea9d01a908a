package gitrefs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
)

func claimTag(commit string) release.Tag {
	return release.Tag{Name: "2026.04.1", Commit: commit, Message: "Claim", At: time.Unix(1775000000, 0)}
}

// expect checks what a person sees: the kind, words of the message, of the hint.
func expect(t *testing.T, err error, kind problem.Kind, message, hint string) {
	t.Helper()
	if err == nil {
		t.Fatalf("there was no error, want %s: %s", kind, message)
	}
	p := problem.As(err)
	if p.Kind != kind || !strings.Contains(p.Message, message) || !strings.Contains(p.Hint, hint) {
		t.Errorf("got %s: %s\nNext: %s\nwant %s with %q and %q\ncause: %v", p.Kind, p.Message, p.Hint, kind, message, hint, err)
	}
	if kind != problem.NotFound && errors.Is(err, release.ErrNotFound) {
		t.Errorf("a failure is taken for a missing ref: %v", err)
	}
}

func TestLocationsThatCannotBeUsedAreRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                   "expected a git repository, found nothing",
		"ftp://host/r.git":                   "found ftp://",
		"https://user:s3cret@ho st/r.git":    "none of them",
		"http://user:s3cret@example.com/r":   "expected https",
		"ssh://git:s3cret@example.com/r.git": "without a password",
	} {
		_, err := gitrefs.Open(text, gitrefs.Options{})
		expect(t, err, problem.Usage, want, "")
		if strings.Contains(err.Error()+problem.As(err).Hint, "s3cret") {
			t.Errorf("%s: the error shows the password: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"https://user:s3cret@example.com/r.git": "https://example.com/r.git",
		"https://ghp_s3cret@example.com/r.git":  "https://example.com/r.git",
		"git@example.com:o/r.git":               "ssh://git@example.com/o/r.git",
		"/a/r.git":                              "/a/r.git",
		"file:///a/r.git":                       "/a/r.git",
	} {
		if refs := open(t, text, gitrefs.Options{}); refs.String() != want {
			t.Errorf("%s is shown as %s, want %s", text, refs, want)
		}
	}
}

func TestARepositoryThatIsNotThere(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	for _, location := range []string{t.TempDir() + "/none", t.TempDir(), serveHTTP(t, filepath.Dir(path), "") + "/none.git"} {
		refs := open(t, location, gitrefs.Options{})
		_, err := refs.Find(t.Context(), "refs/tags/2026.04.1")
		expect(t, err, problem.NotFound, "expected a git repository at "+location, "git ls-remote")
		_, create := refs.Create(t.Context(), claimTag(commits[0]))
		expect(t, create, problem.NotFound, "expected a git repository at "+location, "git ls-remote")
		if errors.Is(err, release.ErrNotFound) || errors.Is(create, release.ErrNotFound) {
			t.Errorf("%s: a missing repository is taken for a missing ref", location)
		}
	}
}

func TestAnEmptyRepositoryHasNoRefsAndNoCommit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.git")
	git(t, ".", "init", "-q", "--bare", path)
	git(t, path, "config", "http.receivepack", "true")
	for _, location := range []string{path, serveHTTP(t, filepath.Dir(path), "") + "/r.git"} {
		refs := open(t, location, gitrefs.Options{})
		if list, err := refs.List(t.Context(), "refs/"); err != nil || len(list) != 0 {
			t.Errorf("%s: List gives %v, %v", location, list, err)
		}
		_, err := refs.Create(t.Context(), claimTag(strings.Repeat("a", 40)))
		expect(t, err, problem.NotFound, "expected commit aaaa", "git push "+location+" aaaa")
	}
}

func TestPackedRefsAreSeen(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	refs := open(t, path, gitrefs.Options{})
	if _, err := refs.Create(t.Context(), claimTag(commits[0]), "refs/agnes/claims/dev/x"); err != nil {
		t.Fatal(err)
	}
	git(t, path, "pack-refs", "--all")
	git(t, path, "repack", "-adq")
	fresh := open(t, path, gitrefs.Options{})
	if got, err := fresh.Find(t.Context(), "refs/agnes/claims/dev/x"); err != nil || got.Name != "2026.04.1" {
		t.Errorf("Find gives %v, %v", got, err)
	}
	if _, err := fresh.Create(t.Context(), claimTag(commits[0])); !errors.Is(err, release.ErrExists) {
		t.Errorf("Create of a packed ref: %v, want ErrExists", err)
	}
}

func TestAnObjectStoreOfSHA256IsRefused(t *testing.T) {
	t.Parallel()
	path, _ := bare(t, 1)
	_, err := open(t, path, gitrefs.Options{}).Create(t.Context(), claimTag(strings.Repeat("a", 64)))
	expect(t, err, problem.Usage, "40 hexadecimal digits", "SHA-256")
}

func TestTheServersRefusalIsQuoted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hook, script string
		want         string
	}{
		"before any ref":   {"pre-receive", "echo 'tags are protected here'; exit 1", "tags are protected here"},
		"for one ref":      {"update", `case $1 in refs/agnes/*) echo no agnes refs; exit 1;; esac`, "no agnes refs"},
		"by configuration": {"", "", "deny updating a hidden ref"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, commits := bare(t, 1)
			if tc.hook == "" {
				git(t, path, "config", "receive.hideRefs", "refs/agnes/")
			} else if err := os.WriteFile(filepath.Join(path, "hooks", tc.hook), []byte("#!/bin/sh\n"+tc.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, location := range []string{path, serveHTTP(t, filepath.Dir(path), "") + "/r.git"} {
				refs := open(t, location, gitrefs.Options{})
				_, err := refs.Create(t.Context(), claimTag(commits[0]), "refs/agnes/claims/dev/x")
				expect(t, err, problem.Forbidden, tc.want, "refs/agnes/*")
				if list, err := refs.List(t.Context(), "refs/agnes/"); err != nil || len(list) != 0 {
					t.Errorf("afterwards there are %v, %v", list, err)
				}
				// Git keeps the other ref of an atomic push when one is hidden.
				if list, err := refs.List(t.Context(), "refs/tags/"); err != nil || tc.hook != "" && len(list) != 0 {
					t.Errorf("afterwards there are %v, %v", list, err)
				} else if len(list) > 0 {
					git(t, path, "update-ref", "-d", "refs/tags/2026.04.1")
				}
			}
		})
	}
}

// A lock that another writer holds is not a ref that exists.
func TestAHeldLockIsWorthAnotherTry(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	lock := filepath.Join(path, "refs", "tags", "2026.04.1.lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refs := open(t, path, gitrefs.Options{})
	for _, also := range [][]string{nil, {"refs/agnes/claims/dev/x"}} {
		_, err := refs.Create(t.Context(), claimTag(commits[0]), also...)
		expect(t, err, problem.Unavailable, "another writer", "repeat")
		if errors.Is(err, release.ErrExists) {
			t.Errorf("a lock is taken for a ref: %v", err)
		}
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if _, err := refs.Create(t.Context(), claimTag(commits[0])); err != nil {
		t.Errorf("without the lock: %v", err)
	}
}

func TestWrongCredentialsOverHTTPAreNamedAndNeverShown(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	base := serveHTTP(t, filepath.Dir(path), "right")
	at, _ := url.Parse(base + "/r.git")
	for name, tc := range map[string]struct {
		user  *url.Userinfo
		token string
	}{
		"none":                   {},
		"a wrong token":          {token: "wr0ng"},
		"a wrong password":       {user: url.UserPassword("me", "wr0ng/%")},
		"a wrong token as a URL": {user: url.User("wr0ng")},
	} {
		u := *at
		u.User = tc.user
		refs := open(t, u.String(), gitrefs.Options{Token: "wr0ng"})
		if tc.token == "" && tc.user == nil {
			refs = open(t, u.String(), gitrefs.Options{})
		}
		_, list := refs.List(t.Context(), "refs/tags/")
		_, create := refs.Create(t.Context(), claimTag(commits[0]))
		for _, err := range []error{list, create} {
			expect(t, err, problem.Unauthenticated, base+"/r.git", "GITHUB_TOKEN")
			if p := problem.As(err); strings.Contains(err.Error()+p.Hint, "wr0ng") {
				t.Errorf("%s: the error shows the secret: %v", name, err)
			}
		}
	}
	// A password in the location wins over the token.
	at.User = url.UserPassword("me", "right")
	if _, err := open(t, at.String(), gitrefs.Options{Token: "wr0ng"}).List(t.Context(), "refs/"); err != nil {
		t.Error(err)
	}
}

func TestSSHTrustsNoUnknownHostAndNoOtherKey(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	h, other := serveSSH(t), serveSSH(t)
	try := func(o gitrefs.Options) error {
		refs := open(t, h.url+path, o)
		_, list := refs.List(t.Context(), "refs/")
		_, create := refs.Create(t.Context(), claimTag(commits[0]))
		if problem.As(list).Kind != problem.As(create).Kind {
			t.Errorf("reading says %v, writing %v", list, create)
		}
		return create
	}
	expect(t, try(gitrefs.Options{KnownHosts: []string{h.knownHosts}}), problem.Unauthenticated, "SSH_AUTH_SOCK", "ssh-add")
	expect(t, try(gitrefs.Options{AgentSocket: h.agent + "x", KnownHosts: []string{h.knownHosts}}), problem.Unauthenticated, "expected an ssh-agent at", "ssh-add")
	expect(t, try(gitrefs.Options{AgentSocket: h.agent, KnownHosts: []string{h.knownHosts + "x"}}), problem.Unauthenticated, "known_hosts", "ssh-keyscan")
	expect(t, try(gitrefs.Options{AgentSocket: h.agent, KnownHosts: []string{other.knownHosts}}), problem.Unauthenticated, "expected a known host", "ssh-keyscan -p")
	expect(t, try(gitrefs.Options{AgentSocket: other.agent, KnownHosts: []string{h.knownHosts}}), problem.Unauthenticated, "expected credentials", "ssh-add")

	// The host's line with another host's key.
	theirs, err := os.ReadFile(other.knownHosts)
	if err != nil {
		t.Fatal(err)
	}
	_, ours, _ := net.SplitHostPort(h.address)
	_, port, _ := net.SplitHostPort(other.address)
	swapped := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(swapped, []byte(strings.Replace(string(theirs), ":"+port, ":"+ours, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, try(gitrefs.Options{AgentSocket: h.agent, KnownHosts: []string{swapped}}), problem.Unauthenticated, "found another", "ssh-keyscan")
}

// cutting forwards to a git server, and cuts or spoils the pushes that it is
// told to: the push itself is carried out or not.
type cutting struct {
	carryOut bool
	status   int // answered instead of the server's answer; 0 cuts the connection
	left     atomic.Int32
}

func (c *cutting) serve(t *testing.T, target string) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "git-receive-pack") || c.left.Add(-1) < 0 {
			proxy.ServeHTTP(w, r)
			return
		}
		if c.carryOut {
			proxy.ServeHTTP(httptest.NewRecorder(), r)
		}
		if c.status != 0 {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(c.status)
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestALostReplyIsUncertain(t *testing.T) {
	t.Parallel()
	for _, carryOut := range []bool{true, false} {
		for _, status := range []int{0, 500, 502} {
			t.Run(fmt.Sprint(carryOut, status), func(t *testing.T) {
				t.Parallel()
				path, commits := bare(t, 1)
				cut := &cutting{carryOut: carryOut, status: status}
				cut.left.Store(1)
				refs := open(t, cut.serve(t, serveHTTP(t, filepath.Dir(path), ""))+"/r.git", gitrefs.Options{})
				_, err := refs.Create(t.Context(), claimTag(commits[0]))
				if !errors.Is(err, release.ErrUncertain) {
					t.Errorf("got %v, want ErrUncertain", err)
				}
				expect(t, err, problem.Unavailable, "took the push", "repeat")
				_, err = refs.Find(t.Context(), "refs/tags/2026.04.1")
				if errors.Is(err, release.ErrNotFound) == carryOut {
					t.Errorf("carried out: %v, but Find says %v", carryOut, err)
				}
			})
		}
	}
}

// Whatever gets lost on the way, the claim is found out.
func TestAClaimSurvivesLostReplies(t *testing.T) {
	t.Parallel()
	for _, carryOut := range []bool{true, false} {
		for _, status := range []int{0, 502, 429} {
			t.Run(fmt.Sprint(carryOut, status), func(t *testing.T) {
				t.Parallel()
				path, commits := bare(t, 1)
				cut := &cutting{carryOut: carryOut, status: status}
				cut.left.Store(2)
				refs := open(t, cut.serve(t, serveHTTP(t, filepath.Dir(path), ""))+"/r.git", gitrefs.Options{})
				var waited atomic.Int32
				l := release.NewLedger(refs, release.LedgerOptions{Wait: func(context.Context, time.Duration) error { waited.Add(1); return nil }})
				got, err := l.Claim(t.Context(), release.Stable, commits[0])
				if err != nil || !got.Claimed || got.Version.N != 1 || waited.Load() > 2 {
					t.Errorf("got %+v, %v after %d waits", got, err, waited.Load())
				}
				if list, err := refs.List(t.Context(), "refs/tags/"); err != nil || len(list) != 1 {
					t.Errorf("there are %v, %v; want one tag", list, err)
				}
			})
		}
	}
}

func TestARateLimitSaysWhenToComeBack(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 1)
	cut := &cutting{status: 429}
	cut.left.Store(1)
	_, err := open(t, cut.serve(t, serveHTTP(t, filepath.Dir(path), ""))+"/r.git", gitrefs.Options{}).Create(t.Context(), claimTag(commits[0]))
	expect(t, err, problem.RateLimited, "slow down", "later")
	if got := problem.As(err).RetryAfter; got != 7*time.Second {
		t.Errorf("RetryAfter is %v, want 7s", got)
	}
}

func TestAServerThatNeverAnswersIsLeft(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	h := serveSSH(t) // for an agent
	for _, scheme := range []string{"git", "http", "ssh"} {
		location := fmt.Sprintf("%s://%s/r.git", scheme, l.Addr())
		o := gitrefs.Options{Timeout: 200 * time.Millisecond, AgentSocket: h.agent, KnownHosts: []string{h.knownHosts}}
		_, err := open(t, location, o).List(t.Context(), "refs/")
		expect(t, err, problem.Unavailable, "", "git ls-remote")

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		o.Timeout = time.Minute
		if _, err := open(t, location, o).List(ctx, "refs/"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: a canceled call says %v", scheme, err)
		}
	}
	closed := l.Addr().String()
	l.Close()
	_, err = open(t, "http://"+closed+"/r.git", gitrefs.Options{}).List(t.Context(), "refs/")
	expect(t, err, problem.Unavailable, closed, "git ls-remote")
}

// Whatever the repository holds, reading a claim transfers the claim alone.
func TestReadingATagTransfersNothingElse(t *testing.T) {
	t.Parallel()
	path, commits := bare(t, 40)
	backend := serveHTTP(t, filepath.Dir(path), "")
	var got atomic.Int64
	u, _ := url.Parse(backend)
	proxy := httputil.NewSingleHostReverseProxy(u)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		proxy.ServeHTTP(rec, r)
		if strings.HasSuffix(r.URL.Path, "git-upload-pack") {
			got.Add(int64(rec.Body.Len()))
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	t.Cleanup(srv.Close)
	writer := open(t, path, gitrefs.Options{})
	for i, commit := range commits {
		tag := claimTag(commit)
		tag.Name = fmt.Sprint("2026.04.", i+1)
		if _, err := writer.Create(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	refs := open(t, srv.URL+"/r.git", gitrefs.Options{})
	list, err := refs.List(t.Context(), "refs/tags/")
	if err != nil {
		t.Fatal(err)
	}
	tags, err := refs.Read(t.Context(), list)
	if err != nil || len(tags) != len(commits) {
		t.Fatalf("Read gives %d tags, %v", len(tags), err)
	}
	if per := got.Load() / int64(len(commits)); per == 0 || per > 400 {
		t.Errorf("a tag object took %d bytes of transfer, want 1 to 400", per)
	}
	t.Logf("%d bytes for %d tag objects", got.Load(), len(commits))
}
