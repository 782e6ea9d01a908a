package release_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

func TestNumbersCountOverAllChannels(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 3)
	l := ledgerOf(openRefs(t, path))
	if next, err := l.Next(t.Context()); err != nil || next.String() != "2026.04.1" {
		t.Errorf("Next gives %s, %v", next, err)
	}
	mustClaim(t, l, release.Dev, c[0], "2026.04.1", true)
	mustClaim(t, l, release.Stable, c[0], "2026.04.2", true)
	mustClaim(t, l, release.Dev, c[1], "2026.04.3", true)
	mustClaim(t, l, release.Dev, c[0], "2026.04.1", false)
	mustClaim(t, ledgerOf(openRefs(t, path)), release.Stable, c[0], "2026.04.2", false)
	if next, err := l.Next(t.Context()); err != nil || next.String() != "2026.04.4" {
		t.Errorf("Next gives %s, %v", next, err)
	}
	claims := mustVersions(t, l, "2026.04.3 dev "+c[1][:7], "2026.04.2 stable "+c[0][:7], "2026.04.1 dev "+c[0][:7])
	if !claims[0].ClaimedAt.IsZero() {
		t.Error("the listing has times; it should not need to read objects")
	}
	dated, err := l.Dated(t.Context(), claims...)
	if err != nil || len(dated) != 3 || !dated[2].ClaimedAt.Equal(april()) || dated[2].Version != claims[2].Version {
		t.Errorf("Dated gives %+v, %v", dated, err)
	}
	if got, err := l.ByVersion(t.Context(), ver(t, "2026.04.2")); err != nil || got.Channel != release.Stable || !got.ClaimedAt.Equal(april()) {
		t.Errorf("ByVersion gives %+v, %v", got, err)
	}
	if got, err := l.ClaimOf(t.Context(), release.Dev, c[1]); err != nil || got.Version != ver(t, "2026.04.3") {
		t.Errorf("ClaimOf gives %+v, %v", got, err)
	}
	if _, err := l.ClaimOf(t.Context(), release.Stable, c[2]); !errors.Is(err, release.ErrNotFound) || !strings.Contains(problem.As(err).Hint, "version claim --channel stable --commit "+c[2]) {
		t.Errorf("ClaimOf an unclaimed commit: %v", err)
	}
	for _, v := range []string{"2026.04.4", "2026.05.1"} {
		if _, err := l.ByVersion(t.Context(), ver(t, v)); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("ByVersion(%s): %v", v, err)
		}
	}
}

func TestANumberIsOneMoreThanTheGreatest(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 1)
	for _, tag := range []string{"2026.04.2", "2026.04.11", "2026.04.012", "2026.04.x", "2026.04.99-rc1", "2026.03.50", "v2026.04.77", "x/2026.04.88"} {
		plantTag(t, path, tag, c[0])
	}
	l := ledgerOf(openRefs(t, path))
	mustClaim(t, l, release.Dev, c[0], "2026.04.12", true)
	mustVersions(t, l, "2026.04.12 dev "+c[0][:7]) // what people tagged is no claim
	if _, err := l.ByVersion(t.Context(), ver(t, "2026.04.11")); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("a tag by hand is taken for a claim: %v", err)
	}
}

func TestTheMonthIsAskedAgainAtEachAttempt(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 2)
	refs := openRefs(t, path)
	now := time.Date(2026, 4, 30, 23, 59, 59, 0, time.UTC)
	f := &fault{Refs: refs}
	l := release.NewLedger(f, release.LedgerOptions{Wait: atOnce, Now: func() time.Time { return now }})
	f.create = func(context.Context, release.Tag, ...string) (release.Tag, error) {
		now, f.create = now.Add(time.Second), nil // midnight passes while the server is away
		return release.Tag{}, problem.New(problem.Unavailable, "away", "")
	}
	got, err := l.Claim(t.Context(), release.Dev, c[0])
	if err != nil || got.Version.String() != "2026.05.1" {
		t.Errorf("got %s, %v; want 2026.05.1", got.Version, err)
	}
	// The pair keeps its number over the months.
	now = now.AddDate(0, 3, 0)
	if got, err := l.Claim(t.Context(), release.Dev, c[0]); err != nil || got.Version.String() != "2026.05.1" || got.Claimed {
		t.Errorf("later: %+v, %v", got, err)
	}
}

// silent hides what git's listing tells and a forge's API does not.
func silent(refs release.Refs) release.Refs {
	return &fault{Refs: refs, list: func(ctx context.Context, prefix string) ([]release.Ref, error) {
		list, err := refs.List(ctx, prefix)
		for i := range list {
			if list[i].Commit != list[i].ID {
				list[i].Commit = ""
			}
		}
		return list, err
	}}
}

func TestAClaimThatWasCutOffIsAdopted(t *testing.T) {
	t.Parallel()
	for name, view := range map[string]func(release.Refs) release.Refs{
		"where listings tell commits": func(r release.Refs) release.Refs { return r },
		"where they do not":           silent,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, c := gitRepository(t, 2)
			refs := view(openRefs(t, path))
			cut := &fault{Refs: refs}
			cut.create = func(ctx context.Context, tag release.Tag, _ ...string) (release.Tag, error) {
				_, err := refs.Create(ctx, tag)
				return release.Tag{}, errors.Join(errors.New("killed"), err)
			}
			if _, err := ledgerOf(cut).Claim(t.Context(), release.Dev, c[0]); err == nil {
				t.Fatal("the interruption went unnoticed")
			}
			l := ledgerOf(refs)
			mustClaim(t, l, release.Stable, c[0], "2026.04.2", true)
			mustVersions(t, l, "2026.04.2 stable "+c[0][:7], "2026.04.1 dev "+c[0][:7])
			if got, err := l.ByVersion(t.Context(), ver(t, "2026.04.1")); err != nil || got.Channel != release.Dev {
				t.Errorf("ByVersion gives %+v, %v", got, err)
			}
			if got, err := l.ClaimOf(t.Context(), release.Dev, c[0]); err != nil || got.Version != ver(t, "2026.04.1") || got.ClaimedAt.IsZero() {
				t.Errorf("ClaimOf gives %+v, %v", got, err)
			}
			mustClaim(t, l, release.Dev, c[0], "2026.04.1", false)
			if _, err := refs.Find(t.Context(), "refs/agnes/claims/dev/"+c[0]); err != nil {
				t.Errorf("the pair's ref was not mended: %v", err)
			}
			mustClaim(t, l, release.Dev, c[1], "2026.04.3", true)
		})
	}
}

// Where refs cannot be created together, a run can find that another run of its
// pair was quicker with the second one. Both then have that one's number.
func TestTwoRunsOfOnePairAgreeAndTheOtherNumberIsBurned(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 1)
	refs := openRefs(t, path)
	slow := &fault{Refs: refs}
	slow.create = func(ctx context.Context, tag release.Tag, also ...string) (release.Tag, error) {
		made, err := refs.Create(ctx, tag)
		if err != nil {
			return made, err
		}
		// The other run listed before our number was there, so it takes the next.
		other := tag
		other.Name, other.Message = "2026.04.2", strings.ReplaceAll(tag.Message, "Nonce: ", "Nonce: other")
		if _, err := refs.Create(ctx, other, also...); err != nil {
			t.Error(err)
		}
		return release.Tag{}, refs.Point(ctx, also[0], made)
	}
	mustClaim(t, ledgerOf(slow), release.Dev, c[0], "2026.04.2", false)
	l := ledgerOf(refs)
	mustVersions(t, l, "2026.04.2 dev "+c[0][:7])
	if _, err := l.ByVersion(t.Context(), ver(t, "2026.04.1")); !errors.Is(err, release.ErrNotFound) || !strings.Contains(err.Error(), "left unused") {
		t.Errorf("the burned number: %v", err)
	}
	if next, err := l.Next(t.Context()); err != nil || next.String() != "2026.04.3" {
		t.Errorf("Next gives %s, %v", next, err)
	}
}

// The same on a git server that creates refs one after the other.
func TestClaimsOnAServerWithoutAtomicPushes(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 3)
	if out, err := exec.Command("git", "-C", path, "config", "receive.advertiseAtomic", "false").CombinedOutput(); err != nil {
		t.Fatalf("git config: %v\n%s", err, out)
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	owners := map[release.Version]string{}
	pairs := map[string]release.Version{}
	for i := range 9 {
		group.Go(func() {
			claim, err := release.NewLedger(openRefs(t, path), release.LedgerOptions{Now: april}).Claim(t.Context(), release.Dev, c[i%3])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			if v, ok := pairs[claim.Commit]; ok && v != claim.Version {
				t.Errorf("%s has %s and %s", claim.Commit, v, claim.Version)
			}
			pairs[claim.Commit], owners[claim.Version] = claim.Version, claim.Commit
		})
	}
	group.Wait()
	if len(owners) != 3 || len(pairs) != 3 {
		t.Errorf("%v: want three numbers for three pairs", owners)
	}
	for commit, v := range pairs {
		mustClaim(t, ledgerOf(openRefs(t, path)), release.Dev, commit, v.String(), false)
	}
	if claims, err := ledgerOf(openRefs(t, path)).Claims(t.Context()); err != nil || len(claims) != 3 {
		t.Errorf("the claims are %+v, %v", claims, err)
	}
}

// A forge's listing can lag behind: the collision tells, and the search goes on
// from there.
func TestAListingThatLagsBehindIsNotBelieved(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 6)
	refs := openRefs(t, path)
	for i, commit := range c[:5] {
		mustClaim(t, ledgerOf(refs), release.Dev, commit, fmt.Sprint("2026.04.", i+1), true)
	}
	stale := &fault{Refs: refs, list: func(context.Context, string) ([]release.Ref, error) { return nil, nil }}
	mustClaim(t, ledgerOf(stale), release.Stable, c[5], "2026.04.6", true)
}

func TestEveryLostReplyIsFoundOut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		number, pair bool
		claimed      bool
	}{
		"nothing was done":              {false, false, true},
		"the number was created":        {true, false, true},
		"the number and the pair's ref": {true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, c := gitRepository(t, 1)
			refs := openRefs(t, path)
			f := &fault{Refs: refs}
			f.create = func(ctx context.Context, tag release.Tag, also ...string) (release.Tag, error) {
				f.create = nil
				var err error
				switch {
				case tc.pair:
					_, err = refs.Create(ctx, tag, also...)
				case tc.number:
					_, err = refs.Create(ctx, tag)
				}
				return release.Tag{}, errors.Join(release.ErrUncertain, err)
			}
			mustClaim(t, ledgerOf(f), release.Dev, c[0], "2026.04.1", tc.claimed)
			mustClaim(t, ledgerOf(refs), release.Dev, c[0], "2026.04.1", false)
		})
	}
}

// Any mix of faults at any call: no number twice, one claim a pair, and all of
// them the same when asked again.
func TestClaimsUnderRandomFaults(t *testing.T) {
	t.Parallel()
	empty, c := gitRepository(t, 4)
	rapid.Check(t, func(rt *rapid.T) {
		path := t.TempDir()
		if err := os.CopyFS(path, os.DirFS(empty)); err != nil {
			rt.Fatal(err)
		}
		refs := openRefs(t, path)
		f := &fault{Refs: silent(refs)}
		f.create = func(ctx context.Context, tag release.Tag, also ...string) (release.Tag, error) {
			switch rapid.SampledFrom([]string{"ok", "ok", "ok", "lost", "half", "not done", "busy", "killed"}).Draw(rt, "fault") {
			case "lost":
				if _, err := refs.Create(ctx, tag, also...); err != nil {
					return release.Tag{}, err
				}
				return release.Tag{}, release.ErrUncertain
			case "half":
				if _, err := refs.Create(ctx, tag); err != nil {
					return release.Tag{}, err
				}
				return release.Tag{}, release.ErrUncertain
			case "not done":
				return release.Tag{}, release.ErrUncertain
			case "busy":
				return release.Tag{}, problem.New(problem.Unavailable, "busy", "")
			case "killed":
				if _, err := refs.Create(ctx, tag); err != nil {
					return release.Tag{}, err
				}
				return release.Tag{}, errKilled
			}
			return refs.Create(ctx, tag, also...)
		}
		l := ledgerOf(f)
		got := map[string]release.Claim{}
		for range rapid.IntRange(1, 8).Draw(rt, "claims") {
			channel := rapid.SampledFrom([]release.Channel{release.Dev, release.Stable}).Draw(rt, "channel")
			commit := rapid.SampledFrom(c).Draw(rt, "commit")
			claim, err := l.Claim(t.Context(), channel, commit)
			if errors.Is(err, errKilled) || problem.Is(err, problem.Inconclusive) {
				continue
			}
			if err != nil {
				rt.Fatal(err)
			}
			key := string(channel) + commit
			if before, ok := got[key]; ok && before.Version != claim.Version {
				rt.Fatalf("%s had %s and now has %s", key, before.Version, claim.Version)
			}
			got[key] = claim
		}
		all, err := ledgerOf(refs).Claims(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		seen := map[release.Version]bool{}
		pairs := map[string]bool{}
		for _, claim := range all {
			key := string(claim.Channel) + claim.Commit
			if seen[claim.Version] || pairs[key] {
				rt.Fatalf("%+v is there twice", claim)
			}
			seen[claim.Version], pairs[key] = true, true
			if known, ok := got[key]; ok && known.Version != claim.Version {
				rt.Fatalf("%s was told %s, the ledger says %s", key, known.Version, claim.Version)
			}
		}
		for key, claim := range got {
			if !pairs[key] {
				rt.Fatalf("%+v is not in the ledger", claim)
			}
		}
	})
}

var errKilled = errors.New("killed")

func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 1)
	refs := openRefs(t, path)
	for name, tc := range map[string]struct {
		err   error
		calls int
		kind  problem.Kind
	}{
		"a server that is away":  {problem.New(problem.Unavailable, "away", ""), 9, problem.Inconclusive},
		"replies that get lost":  {release.ErrUncertain, 9, problem.Inconclusive},
		"a missing right":        {problem.New(problem.Forbidden, "no", "ask"), 1, problem.Forbidden},
		"a limit of an hour":     {&problem.Error{Kind: problem.RateLimited, RetryAfter: time.Hour}, 1, problem.RateLimited},
		"a commit never pushed":  {problem.Wrap(release.ErrNotFound, problem.NotFound, "no commit", "push"), 1, problem.NotFound},
		"an answer without kind": {errors.New("odd"), 1, problem.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			f := &fault{Refs: refs, create: func(context.Context, release.Tag, ...string) (release.Tag, error) {
				calls++
				return release.Tag{}, tc.err
			}}
			_, err := ledgerOf(f).Claim(t.Context(), release.Dev, c[0])
			if calls != tc.calls || problem.As(err).Kind != tc.kind || !errors.Is(err, tc.err) {
				t.Errorf("%d calls, %v; want %d and %s", calls, err, tc.calls, tc.kind)
			}
		})
	}
	t.Run("waits as long as it is told to", func(t *testing.T) {
		t.Parallel()
		var waited []time.Duration
		f := &fault{Refs: refs}
		f.create = func(context.Context, release.Tag, ...string) (release.Tag, error) {
			if len(waited) > 0 {
				return release.Tag{}, errKilled
			}
			return release.Tag{}, &problem.Error{Kind: problem.RateLimited, RetryAfter: 40 * time.Second}
		}
		l := release.NewLedger(f, release.LedgerOptions{Now: april, Wait: func(_ context.Context, d time.Duration) error {
			waited = append(waited, d)
			return nil
		}})
		if _, err := l.Claim(t.Context(), release.Dev, c[0]); !errors.Is(err, errKilled) {
			t.Error(err)
		}
		if len(waited) != 1 || waited[0] < 40*time.Second || waited[0] > 41*time.Second {
			t.Errorf("waited %v, want 40 s and a little", waited)
		}
	})
	t.Run("ends with its context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		f := &fault{Refs: refs, create: func(context.Context, release.Tag, ...string) (release.Tag, error) {
			cancel()
			return release.Tag{}, problem.New(problem.Unavailable, "away", "")
		}}
		if _, err := release.NewLedger(f, release.LedgerOptions{}).Claim(ctx, release.Dev, c[0]); err == nil {
			t.Error("no error")
		}
	})
	for _, call := range []func() error{
		func() error { _, err := ledgerOf(refs).Claim(t.Context(), "beta", c[0]); return err },
		func() error { _, err := ledgerOf(refs).Claim(t.Context(), release.Dev, "HEAD"); return err },
	} {
		if err := call(); !problem.Is(err, problem.Usage) {
			t.Errorf("got %v, want a usage error", err)
		}
	}
}

// Within one second, with the same run id, many claims write different objects.
func TestClaimsInOneSecondAreToldApart(t *testing.T) {
	t.Parallel()
	path, c := gitRepository(t, 4)
	var mu sync.Mutex
	var group sync.WaitGroup
	owners := map[release.Version]int{}
	for i := range 12 {
		group.Go(func() {
			l := release.NewLedger(openRefs(t, path), release.LedgerOptions{Now: april, Run: "7/1"})
			claim, err := l.Claim(t.Context(), release.Dev, c[i%4])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			owners[claim.Version] += map[bool]int{true: 1}[claim.Claimed]
		})
	}
	group.Wait()
	if len(owners) != 4 {
		t.Errorf("%d numbers for four pairs: %v", len(owners), owners)
	}
	for v, n := range owners {
		if n != 1 {
			t.Errorf("%s was claimed by %d calls, want one", v, n)
		}
	}
}
