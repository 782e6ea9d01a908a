package github_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/refstest"
)

const repoName = "acme/agnes"

// clock is a time that only sleeping moves.
type clock struct {
	mu    sync.Mutex
	at    time.Time
	slept []time.Duration
}

func newClock() *clock { return &clock{at: time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
	c.slept = append(c.slept, d)
	return ctx.Err()
}

func (c *clock) total() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum time.Duration
	for _, d := range c.slept {
		sum += d
	}
	return sum
}

// world is a server with a repository of three commits, and a client of it whose
// clock is the server's.
type world struct {
	*githubtest.Server

	clock   *clock
	repo    *githubtest.Repo
	client  *github.Client
	commits []string
	log     *notes
}

// notes is a log that several clients write.
type notes struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (n *notes) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(b)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

func newWorld(t *testing.T, options ...githubtest.Option) *world {
	t.Helper()
	w := &world{clock: newClock(), log: &notes{}}
	w.Server = githubtest.New(t, append([]githubtest.Option{githubtest.WithClock(w.clock.Now)}, options...)...)
	w.repo = w.Repo(repoName)
	for _, text := range []string{"one", "two", "three"} {
		w.commits = append(w.commits, w.repo.Commit(text))
	}
	w.client = w.as(t, githubtest.Token)
	return w
}

func (w *world) as(t *testing.T, token string) *github.Client {
	t.Helper()
	c, err := github.New(github.Options{
		API: w.URL, Repo: repoName, Token: redact.Secret(token), Now: w.clock.Now, Sleep: w.clock.Sleep,
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tag(w *world, name string) release.Tag {
	return release.Tag{Name: name, Commit: w.commits[0], Message: "Claim " + name + "\n\nNonce: 1", At: w.clock.Now()}
}

// expect checks an error's kind, what it wraps (nil: none of the four), and that
// its text and hint hold what a person needs.
func expect(t *testing.T, err error, kind problem.Kind, wraps error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", kind)
	}
	p := problem.As(err)
	if p.Kind != kind {
		t.Errorf("kind %s, want %s: %v", p.Kind, kind, err)
	}
	for _, sentinel := range []error{release.ErrNotFound, release.ErrExists, release.ErrUncertain, release.ErrRetained} {
		if got, want := errors.Is(err, sentinel), errors.Is(wraps, sentinel); got != want {
			t.Errorf("errors.Is(err, %q) = %v, want %v: %v", sentinel, got, want, err)
		}
	}
	for _, text := range texts {
		if !strings.Contains(p.Message+"\n"+p.Hint, text) {
			t.Errorf("no %q in: %s\nhint: %s", text, p.Message, p.Hint)
		}
	}
	if strings.Contains(err.Error()+p.Hint, githubtest.Token) {
		t.Errorf("the token is in the error: %v", err)
	}
}

func TestRefsConform(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]githubtest.Option{
		"as github.com answers": nil,
		"with pages of refs":    {githubtest.WithPagedRefs()},
		"with lists that lag":   {githubtest.WithListLag(3)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refstest.Run(t, func(t *testing.T) refstest.Repository {
				w := newWorld(t, options...)
				return refstest.Repository{
					Refs: w.client.Refs(), Another: w.as(t, githubtest.Token).Refs(), Commits: w.commits, Plant: w.repo.SetRef,
				}
			})
		})
	}
}

func TestAnAPIMustBeSafeToCall(t *testing.T) {
	t.Parallel()
	for api, good := range map[string]bool{
		"":                              true,
		"https://api.github.com":        true,
		"https://git.acme.com/api/v3/":  true,
		"http://127.0.0.1:8080":         true,
		"http://localhost:8080":         true,
		"http://[::1]:8080":             true,
		"http://api.github.com":         false,
		"http://127.0.0.1.nip.io":       false,
		"https://user:hunter2@acme.com": false,
		"https://acme.com/?x=hunter2":   false,
		"ftp://127.0.0.1":               false,
		"api.github.com":                false,
		"https://%hunter2":              false,
	} {
		_, err := github.New(github.Options{API: api, Repo: repoName, Token: "t"})
		if good != (err == nil) {
			t.Errorf("%q: %v, want accepted: %v", api, err, good)
		}
		if err != nil {
			expect(t, err, problem.Usage, nil, "--api-url")
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%q: a secret is in the error: %v", api, err)
			}
		}
	}
	for _, repo := range []string{"", "acme", "acme/agnes/x", "acme/../x", "-acme/x", "acme/a b"} {
		_, err := github.New(github.Options{Repo: repo})
		expect(t, err, problem.Usage, nil, "--repo")
	}
}

func (w *world) of(t *testing.T, repo string) *github.Client {
	t.Helper()
	return w.client2(t, repo, githubtest.Token)
}

func (w *world) client2(t *testing.T, repo, token string) *github.Client {
	t.Helper()
	c, err := github.New(github.Options{API: w.URL, Repo: repo, Token: redact.Secret(token), Now: w.clock.Now, Sleep: w.clock.Sleep})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
