package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// bareRepository makes a bare git repository with n commits.
func bareRepository(t testing.TB, n int) (path string, commits []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "r.git")
	runGit(t, "", "init", "-q", "--bare", "--template=", "-b", "main", path)
	var in strings.Builder
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter t <t@example.com> %d +0000\ndata 6\ncommit\n\n", 1775000000+i)
	}
	runGit(t, in.String(), "-C", path, "fast-import", "--quiet")
	commits = strings.Fields(runGit(t, "", "-C", path, "rev-list", "--reverse", "refs/heads/main"))
	if len(commits) != n {
		t.Fatalf("made %d commits, want %d", len(commits), n)
	}
	return path, commits
}

func runGit(t testing.TB, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Stdin = strings.NewReader(in)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// place is where claims go: flags and environment that lead a process there.
type place struct {
	args, env []string
	commits   []string // at least 101
	burns     bool     // refs cannot be created together, so a crash or a race may leave a number unused
}

// claimRace starts 100 processes for as many pairs, half of each channel, and 20
// for one more pair, all at once.
func claimRace(t *testing.T, p place) map[string]release.Claim {
	t.Helper()
	type pair struct{ channel, commit string }
	var pairs []pair
	for i := range 100 {
		pairs = append(pairs, pair{[]string{"dev", "stable"}[i%2], p.commits[i]})
	}
	for range 20 {
		pairs = append(pairs, pair{"stable", p.commits[100]})
	}
	got := make([]release.Claim, len(pairs))
	var begin, done sync.WaitGroup
	begin.Add(1)
	for i, pair := range pairs {
		done.Go(func() {
			var out, errs bytes.Buffer
			cmd := program(t, append([]string{fmt.Sprint("GITHUB_RUN_ID=", i)}, p.env...),
				append([]string{"version", "claim", "-o", "json", "--at", "2026-04-08T12:00:00Z", "--channel", pair.channel, "--commit", pair.commit}, p.args...)...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			begin.Wait()
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %v\n%s", pair, err, errs.String())
				return
			}
			if err := json.Unmarshal(out.Bytes(), &got[i]); err != nil {
				t.Errorf("%v: %v in %s", pair, err, out.String())
			}
			if string(got[i].Channel) != pair.channel || got[i].Commit != pair.commit {
				t.Errorf("%v got the claim of another: %+v", pair, got[i])
			}
		})
	}
	begin.Done()
	done.Wait()

	claims := map[string]release.Claim{}
	owners := map[release.Version]string{}
	first := map[string]int{}
	for i, pair := range pairs {
		key := pair.channel + "/" + pair.commit
		if before, ok := claims[key]; ok && before.Version != got[i].Version {
			t.Errorf("%s has %s and %s", key, before.Version, got[i].Version)
		}
		claims[key] = got[i]
		if owner, ok := owners[got[i].Version]; ok && owner != key {
			t.Errorf("%s belongs to %s and to %s", got[i].Version, owner, key)
		}
		owners[got[i].Version] = key
		if got[i].Claimed {
			first[key]++
		}
	}
	if len(owners) != 101 {
		t.Errorf("there are %d numbers, want 101", len(owners))
	}
	for key := range claims {
		// An interrupted claim may be finished by another run of its pair.
		if first[key] > 1 || first[key] == 0 && !p.burns {
			t.Errorf("%s: %d processes say that they claimed it, want one", key, first[key])
		}
	}
	return claims
}

// claimedAlready runs the program in this process for each claim again.
func claimedAlready(t *testing.T, p place, claims map[string]release.Claim) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(claims)) {
		want := claims[key]
		var out, errs bytes.Buffer
		env := map[string]string{}
		for _, e := range p.env {
			name, value, _ := strings.Cut(e, "=")
			env[name] = value
		}
		// A month later it is still the same claim.
		args := append([]string{"version", "claim", "-o", "json", "--at", "2026-05-08T12:00:00Z", "--channel", string(want.Channel), "--commit", want.Commit}, p.args...)
		code := run(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs)
		var got release.Claim
		if err := json.Unmarshal(out.Bytes(), &got); code != 0 || err != nil || got.Version != want.Version || got.Claimed {
			t.Errorf("%s again: exit %d, %+v, want %s; %s", key, code, got, want.Version, errs.String())
		}
	}
}

func TestAHundredAndTwentyProcessesClaimAtOnce(t *testing.T) {
	path, commits := bareRepository(t, 101)
	p := place{args: []string{"--git", "file://" + path}, commits: commits}
	numbers := func() int { return len(strings.Fields(runGit(t, "", "-C", path, "tag", "--list", "20*"))) }
	begun := time.Now()
	claims := claimRace(t, p)
	t.Logf("120 processes claimed 101 versions in %v", time.Since(begun).Round(time.Millisecond))
	if n := numbers(); n != 101 {
		t.Errorf("%d tags exist, want 101: no number is burned", n)
	}
	claimedAlready(t, p, claims)
	if n := numbers(); n != 101 {
		t.Errorf("after asking again %d tags exist, want 101", n)
	}
}

// The same over GitHub's API, in trouble: it answers 409, 500 and 502, loses
// replies and lists late. It cannot create two refs at once, so a number may be
// left unused; it is never given twice.
func TestAHundredAndTwentyProcessesClaimAtOnceOverGitHub(t *testing.T) {
	server := githubtest.New(t, githubtest.WithSeed(8), githubtest.WithListLag(2))
	repo := server.Repo("keboola/app")
	p := place{burns: true}
	for name, value := range server.Env("keboola/app") {
		p.env = append(p.env, name+"="+value)
	}
	for i := range 101 {
		p.commits = append(p.commits, repo.Commit(fmt.Sprint("commit ", i)))
	}
	for _, f := range []githubtest.Fault{
		{Status: 409}, {Status: 500}, {Status: 500, Carry: true}, {Status: 502}, {Carry: true, Cut: true}, {Cut: true},
	} {
		f.Method, f.Path, f.Probability = "POST", "*/git/*", 0.04
		server.Inject(f)
	}
	begun := time.Now()
	claims := claimRace(t, p)
	requests := len(server.Requests())
	numbers := 0
	for name := range repo.Refs() {
		if strings.HasPrefix(name, "refs/tags/") {
			numbers++
		}
	}
	t.Logf("120 processes claimed 101 versions in %v with %d requests; %d numbers were left unused",
		time.Since(begun).Round(time.Millisecond), requests, numbers-101)
	server.Heal()
	claimedAlready(t, p, claims)

	// What a claim costs when nobody else is there.
	server.Forget()
	var out, errs bytes.Buffer
	env := server.Env("keboola/app")
	args := []string{"version", "claim", "--channel", "dev", "--commit", repo.Commit("one more")}
	if code := run(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	t.Logf("a claim alone takes %d requests", len(server.Requests()))
	if n := len(server.Requests()); n > 10 {
		t.Errorf("a claim alone takes %d requests, want 10 at most: %v", n, server.Requests())
	}
}

// A process that is killed at a random moment of its claim leaves nothing, or a
// claim that the next run of the pair has.
func TestAKilledClaimIsOneClaim(t *testing.T) {
	t.Parallel()
	path, commits := bareRepository(t, 12)
	for i, commit := range commits {
		args := []string{"version", "claim", "-o", "json", "--git", path, "--channel", "dev", "--commit", commit}
		cmd := program(t, nil, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*8*time.Millisecond)
		<-ctx.Done()
		cancel()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		var versions []release.Version
		for range 2 {
			out, err := program(t, nil, args...).Output()
			var got release.Claim
			if err == nil {
				err = json.Unmarshal(out, &got)
			}
			if err != nil {
				t.Fatal(err)
			}
			versions = append(versions, got.Version)
		}
		if versions[0] != versions[1] {
			t.Errorf("commit %d has %v", i, versions)
		}
	}
	if tags := strings.Fields(runGit(t, "", "-C", path, "tag")); len(tags) != len(commits) {
		t.Errorf("%d tags for %d commits: %v", len(tags), len(commits), tags)
	}
}
