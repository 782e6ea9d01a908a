package release_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// serial lets one reader at a time into a world, which knows no others.
type serial struct {
	*world
	mu   sync.Mutex
	most int // readers at once
	now  int
}

// Manifest counts who waits.
func (s *serial) Manifest(ctx context.Context, digest string) (release.Manifest, error) {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	runtime.Gosched()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	return s.world.Manifest(ctx, digest)
}

// Version waits for readers.
func (s *serial) Version(ctx context.Context, id int64) (release.PackageVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.world.Version(ctx, id)
}

// readRefs counts the tag objects that are read.
type readRefs struct {
	release.Refs
	read []string
}

// Read notes the names.
func (r *readRefs) Read(ctx context.Context, refs []release.Ref) ([]release.Tag, error) {
	for _, ref := range refs {
		r.read = append(r.read, strings.TrimPrefix(ref.Name, "refs/tags/"))
	}
	return r.Refs.Read(ctx, refs)
}

// book claims so many dev versions a day before and after the limit of 30 days,
// and one stable version, and returns the ledger.
func book(t *testing.T) (*release.Ledger, *readRefs) {
	t.Helper()
	path, commits := gitRepository(t, 8)
	refs := &readRefs{Refs: openRefs(t, path)}
	now := pruneNow
	l := release.NewLedger(refs, release.LedgerOptions{Now: func() time.Time { return now }})
	for i, at := range []time.Time{
		pruneNow.AddDate(0, -2, 0), // 2026.03.1: the whole month is old
		pruneNow.AddDate(0, 0, -31), pruneNow.AddDate(0, 0, -29),
		pruneNow.AddDate(0, 0, -10), // 2026.05.1: the whole month is young
	} {
		now = at
		if _, err := l.Claim(t.Context(), release.Dev, commits[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Claim(t.Context(), release.Stable, commits[4]); err != nil { // 2026.05.2
		t.Fatal(err)
	}
	refs.read = nil
	return l, refs
}

func TestSurveyReadsEachThingOnceAndOnlyWhatDecides(t *testing.T) {
	t.Parallel()
	l, refs := book(t)
	w := newWorld()
	shared := w.push(nil, "", old)
	for _, tag := range []string{"dev-2026.03.1", "dev-2026.04.1", "dev-2026.04.2", "dev-2026.05.1", "stable-2026.05.2"} {
		w.push([]string{shared, w.push(nil, "", old)}, "", old, tag)
	}
	s := &serial{world: w}
	policy := release.DefaultPrunePolicy()
	policy.KeepDevLast = 1
	in, err := release.Survey(t.Context(), release.SurveyOptions{Packages: s, Registry: s, Ledger: l, Policy: policy, Now: pruneNow, Parallel: 3})
	if err != nil {
		t.Fatal(err)
	}
	for digest, n := range w.reads {
		if n != 1 {
			t.Errorf("%s was read %d times", digest, n)
		}
	}
	if len(w.reads) != 11 || s.most > 3 {
		t.Errorf("%d manifests read, %d at a time", len(w.reads), s.most)
	}
	// The other months are old or young whatever the day.
	slices.Sort(refs.read)
	if got := strings.Join(refs.read, " "); got != "2026.04.1 2026.04.2" {
		t.Errorf("read the times of %s", got)
	}
	plan, err := release.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	var going []string
	for _, v := range plan.Versions {
		if v.Action == release.PruneDelete && len(v.Tags) > 0 {
			going = append(going, v.Tags...)
		}
	}
	slices.Sort(going)
	if got := strings.Join(going, " "); got != "dev-2026.03.1 dev-2026.04.1" || plan.Delete != 4 {
		t.Errorf("the plan deletes %s, %d in all", got, plan.Delete)
	}
}

func TestSurveyStopsAtWhatItCannotRead(t *testing.T) {
	t.Parallel()
	l, _ := book(t)
	for name, spoil := range map[string]func(w *world, digest string){
		"the registry does not have it": func(w *world, digest string) { delete(w.manifests, digest) },
		"it is no manifest": func(w *world, digest string) {
			w.manifests[digest] = release.Manifest{Digest: digest, Raw: []byte("<html>")}
		},
		"it is another": func(w *world, digest string) {
			w.manifests[digest] = release.Manifest{Digest: "sha256:00", Raw: []byte("{}")}
		},
		"the registry is in trouble": func(w *world, _ string) {
			w.fault = func(int) error {
				if len(w.reads) > 1 {
					return problem.New(problem.Unavailable, "502", "")
				}
				return nil
			}
		},
	} {
		w := newWorld()
		part := w.push(nil, "", old)
		index := w.push([]string{part}, "", old, "stable")
		w.push(nil, "", old)
		spoil(w, part)
		s := &serial{world: w}
		_, err := release.Survey(t.Context(), release.SurveyOptions{Packages: s, Registry: s, Ledger: l, Policy: release.DefaultPrunePolicy(), Now: pruneNow})
		if !problem.Is(err, problem.Inconclusive) && !problem.Is(err, problem.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if w.fault == nil && !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v names neither %s nor %s", name, err, part, index)
		}
	}
}

func TestSurveyDoesNotBelieveAListThatLags(t *testing.T) {
	t.Parallel()
	l, _ := book(t)
	w := newWorld()
	gone := w.push(nil, "", old)                              // listed, and deleted
	shared, own := w.push(nil, "", old), w.push(nil, "", old) // needed by what is not listed yet
	deep := w.push([]string{own}, "", old)
	w.hidden[deep] = true
	w.hidden[w.push([]string{shared, deep}, "", 0, "stable-2026.05.2")] = true
	was, is := w.push(nil, "", old, "dev"), w.push(nil, "", old, "dev-2026.03.1")
	lagging := &lagging{serial: &serial{world: w}, gone: w.versions[w.id(gone)]}
	w.drop(gone)
	lagging.moved = func(all []release.PackageVersion) { w.tag(is, "dev") }
	in, err := release.Survey(t.Context(), release.SurveyOptions{Packages: lagging, Registry: lagging, Ledger: l, Policy: release.DefaultPrunePolicy(), Now: pruneNow})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := release.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]release.PlannedVersion{}
	for _, v := range plan.Versions {
		got[v.Digest] = v
	}
	for digest, want := range map[string]release.PruneRule{shared: release.RuleChild, own: release.RuleChild, is: release.RuleUnlisted, was: release.RuleFloating} {
		if v := got[digest]; v.Action != release.PruneKeep || v.Rule != want {
			t.Errorf("expected to keep %s by %s, found %s by %s: %s", digest[:19], want, v.Action, v.Rule, v.Reason)
		}
	}
	if _, ok := got[gone]; ok {
		t.Error("what is gone is in the plan")
	}
	if all := strings.Join(plan.Notes, "\n"); strings.Count(all, "the package's list does not have it") != 2 {
		t.Errorf("notes:\n%s", all)
	}
}

// lagging lists a version that is gone, and the state before a tag moved.
type lagging struct {
	*serial
	gone  release.PackageVersion
	moved func([]release.PackageVersion)
}

// Versions lags.
func (l *lagging) Versions(ctx context.Context) ([]release.PackageVersion, error) {
	all, err := l.serial.Versions(ctx)
	l.moved(all)
	return append(all, l.gone, all[0]), err // and one row comes on two pages
}

func TestSurveyRefusesAListThatChangedWhileItWasRead(t *testing.T) {
	t.Parallel()
	l, _ := book(t)
	w := newWorld()
	w.push(nil, "", old, "dev-2026.03.1")
	s := &serial{world: w}
	twice := &lagging{serial: s, gone: release.PackageVersion{ID: 1001, Digest: w.digests[0], Tags: []string{"stable"}}, moved: func([]release.PackageVersion) {}}
	_, err := release.Survey(t.Context(), release.SurveyOptions{Packages: twice, Registry: s, Ledger: l, Policy: release.DefaultPrunePolicy(), Now: pruneNow})
	if !problem.Is(err, problem.Inconclusive) {
		t.Errorf("%v", err)
	}
	broken := errors.New("no list")
	w.fault = func(int) error { return broken }
	if _, err := release.Survey(t.Context(), release.SurveyOptions{Packages: s, Registry: s, Ledger: l, Policy: release.DefaultPrunePolicy(), Now: pruneNow}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestAPlanOfTenThousand measures what the planner itself needs; the registry's
// answers lie in memory before.
func TestAPlanOfTenThousand(t *testing.T) {
	w := newWorld()
	var claims []release.Claim
	for n := range 2500 {
		v := version(2025, 1+n%12, int64(n+1))
		a, b := w.push(nil, "", old), w.push(nil, "", old)
		att := w.push(nil, a, old)
		w.push([]string{a, b, att}, "", old, release.VersionTag(release.Dev, v), fmt.Sprintf("sha-%07x", n))
		claims = append(claims, release.Claim{Version: v, Channel: release.Dev})
	}
	in := w.input()
	in.Claims = claims
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	plan, err := release.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
	t.Logf("10,000 versions planned in %v with %d MiB allocated, garbage included: %d to delete", time.Since(began), allocated, plan.Delete)
	if plan.Delete != 10000-20*4 {
		t.Errorf("%d to delete", plan.Delete)
	}
	if allocated > 60 {
		t.Errorf("expected less than 60 MiB")
	}
}
