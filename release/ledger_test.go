package release_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
)

// gitRepository makes a bare repository with n commits.
func gitRepository(t testing.TB, n int) (path string, commits []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "r.git")
	run := func(in string, args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Stdin = strings.NewReader(in)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("", "init", "-q", "--bare", "--template=", "-b", "main", path)
	var in strings.Builder
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter t <t@example.com> %d +0000\ndata 6\ncommit\n\n", 1775000000+i)
	}
	run(in.String(), "-C", path, "fast-import", "--quiet")
	commits = strings.Fields(run("", "-C", path, "rev-list", "--reverse", "refs/heads/main"))
	if len(commits) != n {
		t.Fatalf("made %d commits, want %d", len(commits), n)
	}
	return path, commits
}

func openRefs(t testing.TB, path string) release.Refs {
	t.Helper()
	refs, err := gitrefs.Open(path, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

// april is when the tests' claims are made.
func april() time.Time { return time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC) }

// atOnce waits for nothing.
func atOnce(ctx context.Context, _ time.Duration) error { return ctx.Err() }

func ledgerOf(refs release.Refs) *release.Ledger {
	return release.NewLedger(refs, release.LedgerOptions{Now: april, Wait: atOnce})
}

// fault decorates real refs: what is set replaces the call and may make it.
type fault struct {
	release.Refs
	create func(context.Context, release.Tag, ...string) (release.Tag, error)
	list   func(context.Context, string) ([]release.Ref, error)
}

func (f *fault) Create(ctx context.Context, t release.Tag, also ...string) (release.Tag, error) {
	if f.create != nil {
		return f.create(ctx, t, also...)
	}
	return f.Refs.Create(ctx, t, also...)
}

func (f *fault) List(ctx context.Context, prefix string) ([]release.Ref, error) {
	if f.list != nil {
		return f.list(ctx, prefix)
	}
	return f.Refs.List(ctx, prefix)
}

func mustClaim(t *testing.T, l *release.Ledger, ch release.Channel, commit, want string, claimed bool) release.Claim {
	t.Helper()
	c, err := l.Claim(t.Context(), ch, commit)
	if err != nil {
		t.Fatal(err)
	}
	if c.Version.String() != want || c.Claimed != claimed || c.Channel != ch || c.Commit != commit || c.Tag != want || !c.ClaimedAt.Equal(april()) {
		t.Errorf("got %+v, want %s, claimed %v", c, want, claimed)
	}
	return c
}

func mustVersions(t *testing.T, l *release.Ledger, want ...string) []release.Claim {
	t.Helper()
	claims, err := l.Claims(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range claims {
		got = append(got, fmt.Sprintf("%s %s %s", c.Version, c.Channel, c.Commit[:7]))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the claims are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return claims
}

func TestVerdictsOnlyBecomeHeavier(t *testing.T) {
	t.Parallel()
	path, commits := gitRepository(t, 1)
	l := ledgerOf(openRefs(t, path))
	v := mustClaim(t, l, release.Stable, commits[0], "2026.04.1", true).Version
	for i, step := range []struct {
		record  release.Verdict
		holds   release.Verdict
		entries int
		refused bool
	}{
		{release.VerdictInconclusive, release.VerdictInconclusive, 1, false},
		{release.VerdictInconclusive, release.VerdictInconclusive, 1, false},
		{release.VerdictPass, release.VerdictPass, 2, false},
		{release.VerdictPass, release.VerdictPass, 2, false},
		{release.VerdictInconclusive, release.VerdictPass, 2, false},
		{release.VerdictFail, release.VerdictFail, 3, false},
		{release.VerdictFail, release.VerdictFail, 3, false},
		{release.VerdictInconclusive, release.VerdictFail, 3, false},
		{release.VerdictPass, release.VerdictFail, 3, true},
	} {
		err := l.Record(t.Context(), v, step.record, "smoke test 7\nline two")
		if step.refused != problem.Is(err, problem.Refused) || !step.refused && err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		all, err := l.Verdicts(t.Context())
		if err != nil || len(all) != 1 || all[v] != step.holds {
			t.Errorf("step %d: %v, %v; want %s", i, all, err, step.holds)
		}
		if tags, err := openRefs(t, path).List(t.Context(), "refs/tags/verdict/"); err != nil || len(tags) != step.entries {
			t.Errorf("step %d: %d entries, %v; want %d", i, len(tags), err, step.entries)
		}
	}
	// People see the entries as tags with their reasons.
	tag, err := openRefs(t, path).Find(t.Context(), "refs/tags/verdict/2026.04.1.3")
	if err != nil || !strings.Contains(tag.Message, "Verdict of 2026.04.1: fail\n\nsmoke test 7\nline two\n\nVerdict: fail\nRun: manual\nNonce: ") || tag.Commit != commits[0] {
		t.Errorf("the third entry is %+v, %v", tag, err)
	}
	for name, err := range map[string]error{
		"a verdict that is none": l.Record(t.Context(), v, "good", ""),
		"an unclaimed version":   l.Record(t.Context(), ver(t, "2026.04.9"), release.VerdictPass, ""),
	} {
		if p := problem.As(err); err == nil || p.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A verdict whose index was cut off, and one that somebody else records at the
// same moment.
func TestVerdictsSurviveInterruptionsAndRaces(t *testing.T) {
	t.Parallel()
	path, commits := gitRepository(t, 1)
	refs := openRefs(t, path)
	v := mustClaim(t, ledgerOf(refs), release.Stable, commits[0], "2026.04.1", true).Version

	cut := &fault{Refs: refs}
	cut.create = func(ctx context.Context, tag release.Tag, _ ...string) (release.Tag, error) {
		_, err := refs.Create(ctx, tag) // and then the process dies
		return release.Tag{}, errors.Join(errors.New("killed"), err)
	}
	if err := ledgerOf(cut).Record(t.Context(), v, release.VerdictPass, ""); err == nil {
		t.Fatal("the interruption went unnoticed")
	}
	if all, err := ledgerOf(refs).Verdicts(t.Context()); err != nil || all[v] != release.VerdictPass {
		t.Errorf("the verdict without index is %v, %v", all, err)
	}

	raced := &fault{Refs: refs}
	raced.create = func(ctx context.Context, tag release.Tag, also ...string) (release.Tag, error) {
		raced.create = nil
		if err := ledgerOf(openRefs(t, path)).Record(ctx, v, release.VerdictFail, "theirs"); err != nil {
			t.Error(err)
		}
		return refs.Create(ctx, tag, also...)
	}
	if err := ledgerOf(raced).Record(t.Context(), v, release.VerdictFail, "ours"); err != nil {
		t.Error(err)
	}
	tags, err := refs.List(t.Context(), "refs/tags/verdict/")
	if err != nil || len(tags) != 2 {
		t.Errorf("%d entries, %v; want pass and one fail", len(tags), err)
	}

	lost := &fault{Refs: refs}
	other := mustClaim(t, ledgerOf(refs), release.Dev, commits[0], "2026.04.2", true).Version
	lost.create = func(ctx context.Context, tag release.Tag, also ...string) (release.Tag, error) {
		lost.create = nil
		_, err := refs.Create(ctx, tag) // the index is not written, and the reply is lost
		return release.Tag{}, errors.Join(release.ErrUncertain, err)
	}
	if err := ledgerOf(lost).Record(t.Context(), other, release.VerdictPass, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := refs.Find(t.Context(), "refs/agnes/verdicts/2026.04.2/pass"); err != nil {
		t.Errorf("the index was not mended: %v", err)
	}
}

func TestADeprecationIsWrittenOnce(t *testing.T) {
	t.Parallel()
	path, commits := gitRepository(t, 2)
	refs := openRefs(t, path)
	l := ledgerOf(refs)
	v := mustClaim(t, l, release.Stable, commits[0], "2026.04.1", true).Version
	next := mustClaim(t, l, release.Stable, commits[1], "2026.04.2", true).Version

	reason := "Drops the column \"x\".\n\nNonce: of a kind"
	want := release.Deprecation{Version: v, Reason: reason, Replacement: next, At: april()}
	for i, created := range []bool{true, false} {
		got, made, err := l.Deprecate(t.Context(), v, reason+strings.Repeat("!", i), next)
		if err != nil || made != created || got != want {
			t.Errorf("call %d: %+v, %v, %v; want %+v", i, got, made, err, want)
		}
	}
	if got, _, err := l.Deprecate(t.Context(), next, "failed", release.Version{}); err != nil || !got.Replacement.IsZero() {
		t.Errorf("without a replacement: %+v, %v", got, err)
	}
	all, err := ledgerOf(openRefs(t, path)).Deprecations(t.Context())
	if err != nil || len(all) != 2 || all[v] != want || all[next].Reason != "failed" {
		t.Errorf("all: %+v, %v", all, err)
	}

	for name, call := range map[string]func() error{
		"no reason":           func() error { _, _, err := l.Deprecate(t.Context(), v, " ", next); return err },
		"replaced by itself":  func() error { _, _, err := l.Deprecate(t.Context(), v, "x", v); return err },
		"never claimed":       func() error { _, _, err := l.Deprecate(t.Context(), ver(t, "2026.04.9"), "x", next); return err },
		"claimed by a person": func() error { _, _, err := l.Deprecate(t.Context(), ver(t, "2026.04.7"), "x", next); return err },
	} {
		if name == "claimed by a person" {
			plantTag(t, path, "2026.04.7", commits[0])
		}
		if err := call(); err == nil || problem.As(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A person's own tag deprecates, too, and nothing ever expires by it.
	plantTag(t, path, "deprecated/2026.04.7", commits[0])
	all, err = l.Deprecations(t.Context())
	if d := all[ver(t, "2026.04.7")]; err != nil || !d.At.Equal(april()) {
		t.Errorf("a tag by hand: %+v, %v", d, err)
	}
}

func TestManyWhoDeprecateAgree(t *testing.T) {
	t.Parallel()
	path, commits := gitRepository(t, 1)
	v := mustClaim(t, ledgerOf(openRefs(t, path)), release.Stable, commits[0], "2026.04.1", true).Version
	var mu sync.Mutex
	var created int
	var group sync.WaitGroup
	reasons := map[string]bool{}
	for i := range 8 {
		group.Go(func() {
			l := release.NewLedger(openRefs(t, path), release.LedgerOptions{Now: april})
			d, made, err := l.Deprecate(t.Context(), v, fmt.Sprint("reason ", i), release.Version{})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if made {
				created++
			}
			reasons[d.Reason] = true
		})
	}
	group.Wait()
	if created != 1 || len(reasons) != 1 {
		t.Errorf("%d created it, and they read %v", created, reasons)
	}
}

func plantTag(t *testing.T, path, name, commit string) {
	t.Helper()
	if out, err := exec.Command("git", "-C", path, "update-ref", "refs/tags/"+name, commit).CombinedOutput(); err != nil {
		t.Fatalf("git update-ref: %v\n%s", err, out)
	}
}
