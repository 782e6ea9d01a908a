package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// releases is a bare repository with claims and the images that belong to them.
// Copies of it are the same to the byte, so runs can be compared.
type releases struct {
	dir    string
	builds []release.Build
}

func newReleases(t *testing.T, n int) releases {
	t.Helper()
	dir, commits := bareRepository(t, n)
	r := releases{dir: dir}
	for _, commit := range commits {
		claim, err := r.ledger(t).Claim(t.Context(), release.Stable, commit)
		if err != nil {
			t.Fatal(err)
		}
		r.builds = append(r.builds, release.Build{Channel: release.Stable, Version: claim.Version, Commit: commit})
	}
	return r
}

func (r releases) ledger(t *testing.T) *release.Ledger {
	t.Helper()
	refs, err := gitrefs.Open(r.dir, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC)
	return release.NewLedger(refs, release.LedgerOptions{Now: func() time.Time { return at }})
}

// stage is one copy of releases with a registry, where one command is run.
type stage struct {
	*ocitest.Server
	dir    string // of the repository
	builds []release.Build
}

// newStage copies r and pushes its images; the first published of them have
// their tags, and stable is at the last of those.
func newStage(t *testing.T, r releases, published int) *stage {
	t.Helper()
	s := &stage{Server: ocitest.New(t), dir: filepath.Join(t.TempDir(), "r.git"), builds: slices.Clone(r.builds)}
	if err := os.CopyFS(s.dir, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	for i, b := range s.builds {
		m := s.Push(t, ocitest.Image{Text: b.Commit})
		s.builds[i].Digest = m.Digest
		if i < published {
			for _, tag := range release.TagsFor(b.Channel, b.Version, b.Commit).All() {
				s.SetTag(t, m, tag)
			}
		}
	}
	return s
}

// state is everything outside that a command can change, without what differs
// between two equal runs: times and nonces.
func (s *stage) state(t *testing.T) map[string]string {
	t.Helper()
	all := s.Tags(t)
	for line := range strings.Lines(runGit(t, "", "-C", s.dir, "for-each-ref", "--format=%(refname) %(*objectname)")) {
		name, commit, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[name] = commit
	}
	return all
}

// run starts the program, kills it where kill says, and returns its exit code: -1
// for a process that was killed.
func (s *stage) run(t *testing.T, kill func(pid func() int, dead <-chan struct{}), args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	cmd := program(t, nil, append(args, "--git", s.dir, "--registry", s.Repository())...)
	cmd.Stdout, cmd.Stderr = &out, &out
	started, dead := make(chan struct{}), make(chan struct{})
	if kill != nil {
		kill(func() int { <-started; return cmd.Process.Pid }, dead)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	close(started)
	err := cmd.Wait()
	close(dead)
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() < 0 && kill == nil) {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// counted counts the requests to the registry; at the one numbered k (from 1) it
// kills the program right before or right after the request is carried out.
func (s *stage) counted(k int, afterwards bool) (kill func(func() int, <-chan struct{}), count func() int) {
	var mu sync.Mutex
	n := 0
	return func(pid func() int, dead <-chan struct{}) {
			s.Intercept(func(_ http.ResponseWriter, _ *http.Request, after bool) bool {
				mu.Lock()
				if !after {
					n++
				}
				mine := n == k && after == afterwards
				mu.Unlock()
				if mine {
					_ = syscall.Kill(pid(), syscall.SIGKILL) // it may be dead already
					<-dead
					panic(http.ErrAbortHandler)
				}
				return false
			})
		}, func() int {
			mu.Lock()
			defer mu.Unlock()
			return n
		}
}

// hooks makes the repository count pushes; at the one numbered k (from 1; 0: none)
// it kills the program right before or right after the refs are written.
func (s *stage) hooks(t *testing.T, k int, afterwards bool) (count func() int) {
	t.Helper()
	const script = `#!/bin/sh
cd "$(dirname "$0")/.."
if [ %[1]s = pre-receive ]; then echo >>pushes; fi
if [ "$(wc -l <pushes)" -eq %[2]d ] && [ %[1]s = %[3]s ]; then
	until [ -s pid ]; do sleep 0.01; done
	kill -9 "$(cat pid)"
	exit 1
fi
exit 0
`
	at := "pre-receive"
	if afterwards {
		at = "post-receive"
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, hook := range []string{"pre-receive", "post-receive"} {
		if err := os.WriteFile(filepath.Join(s.dir, "hooks", hook), fmt.Appendf(nil, script, hook, k, at), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return func() int {
		raw, _ := os.ReadFile(filepath.Join(s.dir, "pushes"))
		return len(raw)
	}
}

// TestKilledAnywhereTheVerbsConverge kills each verb at each of its calls to the
// registry and at each of its pushes, right before and right after, runs it again
// and compares with an undisturbed run. stable is watched all the time.
func TestKilledAnywhereTheVerbsConverge(t *testing.T) {
	t.Parallel()
	r := newReleases(t, 3)
	if err := r.ledger(t).Record(t.Context(), r.builds[2].Version, release.VerdictPass, ""); err != nil {
		t.Fatal(err)
	}
	failed := newReleases(t, 3)
	v := func(i int) string { return r.builds[i].Version.String() }
	publish := []string{"publish", "--channel", "stable", "--version", v(2), "--commit", r.builds[2].Commit, "--digest", "DIGEST"}
	for name, c := range map[string]struct {
		from      releases
		published int
		args      []string
		setup     func(*testing.T, *stage)
		ends      int // index of the build that stable ends at
		calls     int // at least
		pushes    int
	}{
		"publish":          {r, 2, publish, nil, 2, 12, 0},
		"publish breaking": {r, 2, append(slices.Clone(publish), "--breaking"), nil, 2, 16, 1},
		"promote": {r, 2, []string{"promote", v(2), "--breaking"}, func(t *testing.T, s *stage) {
			s.SetTag(t, s.Manifest(t, s.builds[2].Digest), release.VersionTag(release.Stable, s.builds[2].Version))
		}, 2, 8, 1},
		"verdict":              {failed, 3, []string{"verdict", v(2), "pass"}, nil, 2, 3, 1},
		"verdict inconclusive": {failed, 3, []string{"verdict", v(2), "inconclusive"}, nil, 2, 3, 1},
		"deprecate":            {failed, 3, []string{"deprecate", v(0), "--reason", "x", "--replacement", v(2)}, nil, 2, 4, 1},
		"rollback":             {failed, 3, []string{"rollback", "--failed", v(2)}, nil, 1, 9, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			open := func(t *testing.T) (*stage, []string) {
				s := newStage(t, c.from, c.published)
				if c.setup != nil {
					c.setup(t, s)
				}
				args := slices.Clone(c.args)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "DIGEST", s.builds[2].Digest)
				}
				return s, args
			}
			s, args := open(t)
			count, calls := s.counted(0, false)
			pushes := s.hooks(t, 0, false)
			if code, out := s.run(t, count, args...); code != 0 {
				t.Fatalf("undisturbed: exit %d\n%s", code, out)
			}
			want := s.state(t)
			if want["stable"] != s.builds[c.ends].Digest || calls() < c.calls || pushes() != c.pushes {
				t.Fatalf("undisturbed: stable at %s, %d calls, %d pushes: %v", want["stable"], calls(), pushes(), want)
			}
			t.Logf("%d calls to the registry and %d pushes, each killed before and after", calls(), pushes())
			check := func(t *testing.T, s *stage, args []string, killed int, out string) {
				t.Helper()
				if killed != -1 {
					t.Errorf("the program was not killed: exit %d\n%s", killed, out)
				}
				if s.Digest(t, "stable") == "" {
					t.Error("stable is missing after the kill")
				}
				s.Intercept(nil)
				s.hooks(t, 0, false)
				if code, out := s.run(t, nil, args...); code != 0 {
					t.Errorf("the second run: exit %d\n%s", code, out)
				}
				if got := s.state(t); !maps.Equal(got, want) {
					t.Errorf("ends at %v,\nwant %v", got, want)
				}
				// Once it was moved where it belongs, it was never anywhere else.
				if states := slices.Compact(s.States("stable")); len(states) > 1 || len(states) == 1 && states[0] != s.builds[c.ends].Digest {
					t.Errorf("stable went through %v, want %s only", states, s.builds[c.ends].Digest)
				}
			}
			for _, afterwards := range []bool{false, true} {
				for k := 1; k <= calls(); k++ {
					s, args := open(t)
					kill, _ := s.counted(k, afterwards)
					code, out := s.run(t, kill, args...)
					check(t, s, args, code, out)
				}
				for k := 1; k <= c.pushes; k++ {
					s, args := open(t)
					s.hooks(t, k, afterwards)
					code, out := s.run(t, func(func() int, <-chan struct{}) {}, args...)
					check(t, s, args, code, out)
				}
				if t.Failed() {
					t.Fatalf("afterwards: %t", afterwards)
				}
			}
		})
	}
}

// TestKilledAnywhereAlertsOnGitHubConverge does the same over GitHub's API and
// registry, with verbs that tell people: one issue, one verdict, whenever it was
// killed. The program dies when a call was carried out and before it is answered.
func TestKilledAnywhereAlertsOnGitHubConverge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args   []string // of the second of two versions, 2026.04.2
		before release.Verdict
		ends   int // index of the version that stable ends at
		issue  string
		refs   []string
		calls  int // at least
	}{
		"rollback":     {[]string{"rollback", "--failed", "2026.04.2"}, "", 0, "open", []string{"refs/tags/verdict/2026.04.2", "refs/tags/deprecated/2026.04.2"}, 15},
		"inconclusive": {[]string{"verdict", "2026.04.2", "inconclusive"}, "", 1, "open", []string{"refs/tags/verdict/2026.04.2"}, 8},
		"a pass that settles it": {
			[]string{"verdict", "2026.04.2", "pass"},
			release.VerdictInconclusive, 1, "closed",
			[]string{"refs/tags/verdict/2026.04.2", "refs/tags/verdict/2026.04.2.2"},
			8,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, calls := killedOnGitHub(t, 0, c.before, c.ends, c.args...)
			for _, ref := range c.refs {
				if want[ref] == "" {
					t.Errorf("undisturbed: no %s", ref)
				}
			}
			if want["issues"] != c.issue || calls < c.calls {
				t.Fatalf("undisturbed: %d calls, %v", calls, want)
			}
			t.Logf("%d calls, killed after each", calls)
			for k := 1; k <= calls; k++ {
				if got, _ := killedOnGitHub(t, k, c.before, c.ends, c.args...); !maps.Equal(got, want) {
					t.Errorf("killed at call %d: %v, want %v", k, got, want)
				}
			}
		})
	}
}

// killedOnGitHub returns what is outside after a run that was killed at the k-th
// call (0: not at all) and one that was not, and how many calls the first one made.
// The version before had the verdict given, with the issue that goes with it.
func killedOnGitHub(t *testing.T, k int, before release.Verdict, ends int, args ...string) (all map[string]string, calls int) {
	t.Helper()
	hub := githubtest.New(t)
	repo, images := hub.Repo("keboola/agnes"), hub.Package("keboola", "agnes")
	client, err := github.New(github.Options{API: hub.URL, Repo: "keboola/agnes", Token: githubtest.Token})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC)
	ledger := release.NewLedger(client.Refs(), release.LedgerOptions{Now: func() time.Time { return at }})
	var versions, digests []string
	for i := range 2 {
		commit := fmt.Sprintf("%040x", i+1)
		repo.AddCommit(commit)
		claim, err := ledger.Claim(t.Context(), release.Stable, commit)
		if err != nil {
			t.Fatal(err)
		}
		v := images.Push("application/vnd.oci.image.manifest.v1+json", fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, i),
			release.TagsFor(release.Stable, claim.Version, commit).All()...)
		versions, digests = append(versions, claim.Version.String()), append(digests, v.Digest)
	}
	var env []string
	for name, value := range hub.Env("keboola/agnes") {
		env = append(env, name+"="+value)
	}
	args = append(slices.Clone(args), "--registry", hub.Host+"/keboola/agnes")
	if before != "" {
		if out, err := program(t, env, "verdict", versions[1], string(before), "--registry", hub.Host+"/keboola/agnes").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	var mu sync.Mutex
	var states []string
	started, dead := make(chan struct{}), make(chan struct{})
	first := program(t, env, args...)
	hub.Watch(nil, func(githubtest.Request) {
		mu.Lock()
		calls++
		mine := calls == k
		if s := images.Tag("stable"); len(states) == 0 || states[len(states)-1] != s {
			states = append(states, s)
		}
		mu.Unlock()
		if mine {
			<-started
			_ = first.Process.Signal(syscall.SIGKILL) // it may be dead already
			<-dead
		}
	})
	var out bytes.Buffer
	first.Stdout, first.Stderr = &out, &out
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	close(started)
	_ = first.Wait() // the exit code says it all
	close(dead)
	if want := map[bool]int{true: -1, false: 0}[k > 0]; first.ProcessState.ExitCode() != want {
		t.Fatalf("call %d: exit %d, want %d\n%s", k, first.ProcessState.ExitCode(), want, out.String())
	}
	mu.Lock()
	calls = max(calls, k)
	made := calls
	calls++ // past k: the second run is left alone
	mu.Unlock()
	if k > 0 {
		if out, err := program(t, env, args...).CombinedOutput(); err != nil {
			t.Errorf("call %d: the second run: %v\n%s", k, err, out)
		}
	}
	verdicts, err := ledger.Verdicts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(states) > 2 || states[len(states)-1] != digests[ends] {
		t.Errorf("call %d: stable went through %v, want once from %s to %s", k, states, digests[1], digests[ends])
	}
	var issues []string
	for _, i := range repo.Issues() {
		issues = append(issues, i.State)
	}
	all = map[string]string{"stable": images.Tag("stable"), "deprecated": images.Tag("deprecated-" + versions[1]), "confirmed": images.Tag("confirmed-" + versions[1]), "issues": strings.Join(issues, " ")}
	for name := range repo.Refs() {
		if !strings.HasPrefix(name, "refs/agnes/verdicts/") { // an index, which reading makes up for
			all[name] = "exists"
		}
	}
	all["verdicts"] = fmt.Sprint(verdicts)
	return all, made
}
