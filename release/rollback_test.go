package release_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// state of a step by its name.
func state(steps []release.Step, name string) release.StepState {
	for _, s := range steps {
		if s.Name == name {
			return s.State
		}
	}
	return ""
}

func TestRollbackRestoresFirstThenWritesDown(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	bad := all[2]
	p := h.publisher(t)
	var notices []release.Notice
	p.Notify = func(_ context.Context, n release.Notice) error { notices = append(notices, n); return nil }
	h.Requests()
	got, err := p.Rollback(t.Context(), bad.Version, release.Version{}, "smoke failed")
	if err != nil {
		t.Fatalf("%v %+v", err, got)
	}
	h.expect(t, map[string]string{"stable": all[1].Digest, release.DeprecatedTag(bad.Version): bad.Digest, release.VersionTag(release.Stable, bad.Version): bad.Digest})
	if got.Stable != all[1].Version.String() || got.StableDigest != all[1].Digest || got.Failed != bad.Version || got.DeprecatedTag != release.DeprecatedTag(bad.Version) {
		t.Errorf("%+v", got)
	}
	writes := ocitest.Writes(h.Requests())
	if len(writes) != 2 || writes[0].Path != "/manifests/stable" {
		t.Errorf("writes %+v, want stable first, then the audit tag", writes)
	}
	verdicts, err := h.ledger.Verdicts(t.Context())
	deprecations, err2 := h.ledger.Deprecations(t.Context())
	if d := deprecations[bad.Version]; err != nil || err2 != nil || verdicts[bad.Version] != release.VerdictFail || d.Replacement != all[1].Version || d.Reason != "smoke failed" {
		t.Errorf("%v %v %v %v", verdicts, deprecations, err, err2)
	}
	if len(notices) != 1 || !strings.Contains(notices[0].Text, all[1].Version.String()) || notices[0].Event != "rollback/"+bad.Version.String() {
		t.Errorf("%+v", notices)
	}

	// Again: nothing is written, and the answer is the same.
	refs := h.git(t, "", "--git-dir", h.dir, "for-each-ref")
	again, err := p.Rollback(t.Context(), bad.Version, release.Version{}, "smoke failed")
	if err != nil || again.Stable != got.Stable || again.Replacement != got.Replacement {
		t.Errorf("%+v, %v, want as before: %+v", again, err, got)
	}
	if w := ocitest.Writes(h.Requests()); len(w) > 0 || h.git(t, "", "--git-dir", h.dir, "for-each-ref") != refs {
		t.Errorf("a second run wrote %+v", w)
	}
}

func TestRollbackNeverGoesToABadVersion(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 7)
	if err := h.ledger.Record(t.Context(), all[5].Version, release.VerdictFail, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.ledger.Deprecate(t.Context(), all[4].Version, "x", release.Version{}); err != nil {
		t.Fatal(err)
	}
	h.Remove(t, release.VersionTag(release.Stable, all[3].Version)) // pruned
	links, err := h.Manifest(t, all[2].Digest).Links()
	if err != nil {
		t.Fatal(err)
	}
	h.Remove(t, links.Children[2])                                                   // one platform is gone
	h.SetTag(t, h.Manifest(t, all[1].Digest), release.DeprecatedTag(all[1].Version)) // in the registry alone
	bad := all[6]

	p := h.publisher(t)
	for name, to := range map[string]release.Version{
		"failed": all[5].Version, "deprecated": all[4].Version, "missing": all[3].Version, "lacks a platform": all[2].Version, "is deprecated": all[1].Version, "itself": bad.Version,
	} {
		h.Requests()
		_, err := p.Rollback(t.Context(), bad.Version, to, "")
		refused(t, err, name, to.String())
		if w := ocitest.Writes(h.Requests()); len(w) > 0 {
			t.Errorf("%s: wrote %+v", name, w)
		}
	}
	if _, err := p.Rollback(t.Context(), bad.Version, release.Version{Year: 2026, Month: 4, N: 77}, ""); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("to a version that nobody claimed: %v", err)
	}
	got, err := p.Rollback(t.Context(), bad.Version, release.Version{}, "")
	if err != nil || got.Stable != all[0].Version.String() {
		t.Errorf("%+v, %v, want %s, the one that is left", got, err, all[0].Version)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest})
}

func TestRollbackToANamedVersion(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	if got, err := h.publisher(t).Rollback(t.Context(), all[2].Version, all[0].Version, ""); err != nil || got.Stable != all[0].Version.String() {
		t.Errorf("%+v, %v", got, err)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest})
}

func TestRollbackWithoutAnywhereToGoDoesTheRest(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	only := h.stable(t, 1)[0]
	for range 2 {
		got, err := h.publisher(t).Rollback(t.Context(), only.Version, release.Version{}, "")
		refused(t, err, "go back to")
		if got.Stable != only.Version.String() || len(got.Steps) < 7 {
			t.Errorf("%+v", got)
		}
		h.expect(t, map[string]string{"stable": only.Digest, release.DeprecatedTag(only.Version): only.Digest})
		if v, err := h.ledger.Verdicts(t.Context()); err != nil || v[only.Version] != release.VerdictFail {
			t.Errorf("%v, %v", v, err)
		}
	}
}

func TestRollbackLeavesStableThatIsElsewhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	got, err := h.publisher(t).Rollback(t.Context(), all[1].Version, release.Version{}, "found out late")
	if err != nil || state(got.Steps, "restore") != release.Skipped || got.Stable != all[2].Version.String() || got.Replacement != all[2].Version {
		t.Errorf("%+v, %v", got, err)
	}
	h.expect(t, map[string]string{"stable": all[2].Digest, release.DeprecatedTag(all[1].Version): all[1].Digest})

	// Where stable is missing, it is restored.
	h.Remove(t, "stable")
	if _, err := h.publisher(t).Rollback(t.Context(), all[2].Version, release.Version{}, ""); err != nil {
		t.Fatal(err)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest})
}

func TestRollbackIsForStable(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.stable(t, 1)
	dev := h.build(t, release.Dev)
	h.publish(t, dev)
	_, err := h.publisher(t).Rollback(t.Context(), dev.Version, release.Version{}, "")
	refused(t, err, "dev")
	if _, err := h.publisher(t).Rollback(t.Context(), release.Version{Year: 2026, Month: 4, N: 99}, release.Version{}, ""); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("%v, want not found", err)
	}
	p := h.publisher(t)
	p.Ledger = nil
	if _, err := p.Rollback(t.Context(), dev.Version, release.Version{}, ""); !problem.Is(err, problem.Usage) {
		t.Errorf("%v, want a usage error", err)
	}
}

// A publication of the failed version that is still running writes :stable
// after the rollback restored it.
func TestRollbackOutlastsALatePublication(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 2)
	bad := all[1]
	h.Intercept(func(_ http.ResponseWriter, r *http.Request, after bool) bool {
		if after && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, release.DeprecatedTag(bad.Version)) {
			h.SetTag(t, h.Manifest(t, bad.Digest), "stable")
		}
		return false
	})
	got, err := h.publisher(t).Rollback(t.Context(), bad.Version, release.Version{}, "")
	if err != nil || state(got.Steps, "look again") != release.Done {
		t.Errorf("%+v, %v", got, err)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest})

	// And the other way round: a rollback goes through while a publication is about
	// to write the floating tag. The publication takes it back by itself.
	next := h.build(t, release.Stable)
	rolled := false
	h.Intercept(func(_ http.ResponseWriter, r *http.Request, after bool) bool {
		if !after && !rolled && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/stable") {
			rolled = true
			if _, err := h.publisher(t).Rollback(t.Context(), next.Version, release.Version{}, ""); err != nil {
				t.Error(err)
			}
		}
		return false
	})
	if m := move(t, h.publish(t, next), "stable"); m.Moved || !rolled {
		t.Errorf("%+v", m)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest})
}

func TestDeprecateConverges(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 2)
	old, newer := all[0], all[1]
	p := h.publisher(t)
	// The registry fails after the ledger was written.
	h.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
		if after || r.Method != http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	_, err := p.Deprecate(t.Context(), old.Version, "loses rows", newer.Version)
	if problem.ExitCode(err) != 5 {
		t.Errorf("%v, want inconclusive", err)
	}
	h.Intercept(nil)
	for range 2 {
		got, err := p.Deprecate(t.Context(), old.Version, "another reason", release.Version{})
		if err != nil || got.Replacement != newer.Version || got.Stable != newer.Version.String() || state(got.Steps, "ledger") != release.Skipped {
			t.Errorf("%+v, %v, want the first entry", got, err)
		}
		h.expect(t, map[string]string{release.DeprecatedTag(old.Version): old.Digest})
	}
	d, err := h.ledger.Deprecations(t.Context())
	if err != nil || len(d) != 1 || d[old.Version].Reason != "loses rows" {
		t.Errorf("%+v, %v", d, err)
	}
	for name, call := range map[string]func() error{
		"no reason": func() error { _, err := p.Deprecate(t.Context(), newer.Version, " ", release.Version{}); return err },
		"by itself": func() error { _, err := p.Deprecate(t.Context(), newer.Version, "x", newer.Version); return err },
		"no ledger": func() error {
			q := *p
			q.Ledger = nil
			_, err := q.Deprecate(t.Context(), newer.Version, "x", release.Version{})
			return err
		},
	} {
		if err := call(); !problem.Is(err, problem.Usage) {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
	if _, err := p.Deprecate(t.Context(), newer.Version, "x", release.Version{Year: 2026, Month: 4, N: 9}); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("a replacement that nobody claimed: %v", err)
	}
}

// TestRegistryTroubleIsNeverAVerdict makes each call of each verb fail, in each
// way, and holds that the verb ends inconclusive with no verdict written; then the
// registry recovers, and a second run ends as an undisturbed one.
func TestRegistryTroubleIsNeverAVerdict(t *testing.T) {
	t.Parallel()
	faults := map[string]func(w http.ResponseWriter){
		"500": func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"429": func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "9000")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"cut": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	}
	for fault, answer := range faults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			for k := int32(0); ; k++ {
				h := newHouse(t)
				all := h.stable(t, 2)
				bad := all[1]
				var calls atomic.Int32
				h.Intercept(func(w http.ResponseWriter, _ *http.Request, after bool) bool {
					if after {
						return false
					}
					if calls.Add(1) <= k+1 { // the sign-in is a call, too
						return false
					}
					answer(w)
					return true
				})
				_, err := h.publisher(t).Rollback(t.Context(), bad.Version, release.Version{}, "")
				if calls.Load() <= k+1 {
					if k < 5 || err != nil {
						t.Errorf("a rollback of %d calls: %v", k, err)
					}
					return
				}
				verdicts, verr := h.ledger.Verdicts(t.Context())
				restored := slices.Contains(h.States("stable")[2:], all[0].Digest)
				if problem.ExitCode(err) != 5 || verr != nil || verdicts[bad.Version] != "" && !restored {
					t.Errorf("call %d: exit %d (%v), verdicts %v: want inconclusive and no verdict", k, problem.ExitCode(err), err, verdicts)
				}
				h.Intercept(nil)
				if _, err := h.publisher(t).Rollback(t.Context(), bad.Version, release.Version{}, ""); err != nil {
					t.Errorf("call %d: the second run: %v", k, err)
				}
				h.expect(t, map[string]string{"stable": all[0].Digest, release.DeprecatedTag(bad.Version): bad.Digest})
			}
		})
	}
}

// hub is a GitHub that knows the house's commits as far as it is told.
func hub(t *testing.T) (*githubtest.Server, *githubtest.Repo, *github.Client) {
	t.Helper()
	server := githubtest.New(t)
	client, err := github.New(github.Options{
		API: server.URL, Repo: "keboola/agnes", Token: githubtest.Token,
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	})
	if err != nil {
		t.Fatal(err)
	}
	return server, server.Repo("keboola/agnes"), client
}

func TestStableMovesToDescendantsOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	server, repo, client := hub(t)
	first := h.stable(t, 1)[0]
	stray, next, unknown := h.build(t, release.Stable), h.build(t, release.Stable), h.build(t, release.Stable)
	repo.AddCommit(first.Commit)
	repo.AddCommit(stray.Commit)
	repo.AddCommit(next.Commit, first.Commit)
	p := h.publisher(t)
	p.Ancestry = client
	got, err := p.Publish(t.Context(), stray)
	if m := move(t, got, "stable"); err != nil || m.Moved || !strings.Contains(m.Reason, "descend") {
		t.Errorf("%+v, %v", m, err)
	}
	h.expect(t, map[string]string{"stable": first.Digest, release.VersionTag(release.Stable, stray.Version): stray.Digest})
	if got, err := p.Publish(t.Context(), next); err != nil || !move(t, got, "stable").Moved {
		t.Errorf("%+v, %v", got, err)
	}
	// What the host cannot tell holds nothing back.
	if got, err := p.Publish(t.Context(), unknown); err != nil || !move(t, got, "stable").Moved {
		t.Errorf("%+v, %v", got, err)
	}
	if n := server.Count("GET", "/repos/*/compare/*"); n != 3 {
		t.Errorf("asked %d times for ancestry, want once a publication", n)
	}
	// Branches of dev are no descendants of each other, and nobody asks.
	for range 2 {
		b := h.build(t, release.Dev)
		repo.AddCommit(b.Commit)
		if got, err := p.Publish(t.Context(), b); err != nil || !move(t, got, "dev").Moved {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if n := server.Count("GET", "/repos/*/compare/*"); n != 3 {
		t.Errorf("asked about dev")
	}
	// A host in trouble makes it inconclusive; the tags that never move are there.
	server.Inject(githubtest.Fault{Path: "/repos/*/compare/*", Status: http.StatusBadGateway})
	last := h.build(t, release.Stable)
	if _, err := p.Publish(t.Context(), last); problem.ExitCode(err) != 5 {
		t.Errorf("%v, want inconclusive", err)
	}
	h.expect(t, map[string]string{"stable": unknown.Digest, release.VersionTag(release.Stable, last.Version): last.Digest})
}

func TestAFailingAlertFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	server, repo, client := hub(t)
	all := h.stable(t, 2)
	p := h.publisher(t)
	p.Forge = client
	notified := 0
	p.Notify = func(context.Context, release.Notice) error { notified++; return nil }
	server.Inject(githubtest.Fault{Method: http.MethodPost, Path: "/repos/*/issues", Status: http.StatusBadGateway})
	got, err := p.Rollback(t.Context(), all[1].Version, release.Version{}, "")
	if problem.ExitCode(err) != 5 || state(got.Steps, "issue") != release.Failed || notified != 1 {
		t.Errorf("%+v, %v: want the issue failed and the webhook called", got, err)
	}
	h.expect(t, map[string]string{"stable": all[0].Digest, release.DeprecatedTag(all[1].Version): all[1].Digest})
	server.Heal()
	for range 2 {
		got, err = p.Rollback(t.Context(), all[1].Version, release.Version{}, "")
		if issues := repo.Issues(); err != nil || got.IssueURL == "" || len(issues) != 1 || !strings.Contains(issues[0].Body, all[0].Version.String()) {
			t.Errorf("%+v, %v, %+v", got, err, issues)
		}
	}
}
