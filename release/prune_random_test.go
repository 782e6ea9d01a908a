package release_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// The random registries, 10,000 of them: in shards that run in parallel, each
// from its seed.
const (
	shards        = 4
	shardOfScenes = 2500
)

func eachScene(t *testing.T, check func(t *testing.T, r *rand.Rand, s scene)) {
	t.Helper()
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for n := range shardOfScenes {
				seed := uint64(shard*shardOfScenes + n)
				r := rand.New(rand.NewPCG(seed, 7))
				size := 12
				if n%50 == 0 {
					size = 80
				}
				s := newScene(r, size)
				check(t, r, s)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// instant lets nothing wait.
func instant(ctx context.Context, _ time.Duration) error { return ctx.Err() }

func (s scene) apply(plan release.PrunePlan, journal *release.MemoryJournal) (release.PruneResult, error) {
	j, err := journal.Open()
	if err != nil {
		return release.PruneResult{}, err
	}
	return release.Apply(context.Background(), plan, s.world, j, release.ApplyOptions{Wait: instant, Now: func() time.Time { return pruneNow }})
}

// digests that the world still has.
func (w *world) left() []string { return slices.Sorted(maps.Keys(w.manifests)) }

func TestPlanKeepsAndDeletesWhatAnIndependentModelSays(t *testing.T) {
	t.Parallel()
	var deleted, kept [shards]int
	t.Run("scenes", func(t *testing.T) {
		eachScene(t, func(t *testing.T, r *rand.Rand, s scene) {
			plan, err := release.Plan(s.in)
			if err != nil {
				t.Fatal(err)
			}
			m := newModel(s.in)
			for _, v := range plan.Versions {
				if stays := m.stays(v.Digest); stays != (v.Action == release.PruneKeep) {
					t.Errorf("the model says %v of %s [%v], the plan: %s, %s: %s", stays, v.Digest[:19], v.Tags, v.Action, v.Rule, v.Reason)
				}
				if v.Reason == "" || v.Rule == "" {
					t.Errorf("%s has no reason", v.Digest)
				}
			}
			if plan.Delete != len(plan.Order) || plan.Keep+plan.Delete != len(s.in.Versions) {
				t.Errorf("the plan counts %d and %d, has %d in order and %d in all", plan.Keep, plan.Delete, len(plan.Order), len(s.in.Versions))
			}
			shard := int(t.Name()[len(t.Name())-1] - '0')
			deleted[shard] += plan.Delete
			kept[shard] += plan.Keep

			// The same facts in another order are the same plan.
			r.Shuffle(len(s.in.Versions), func(i, j int) { s.in.Versions[i], s.in.Versions[j] = s.in.Versions[j], s.in.Versions[i] })
			again, err := release.Plan(s.in)
			if err != nil || !cmp.Equal(plan, again) {
				t.Errorf("another order makes another plan: %v\n%s", err, cmp.Diff(plan, again))
			}
		})
	})
	var d, k int
	for i := range shards {
		d, k = d+deleted[i], k+kept[i]
	}
	if t.Logf("%d registries: %d versions kept, %d deleted", shards*shardOfScenes, k, d); d < k/10 || k < d/10 {
		t.Error("the random registries are one-sided: they show nothing")
	}
}

func TestAfterApplyEveryKeptTagPullsAndAnotherPruneDoesNothing(t *testing.T) {
	t.Parallel()
	eachScene(t, func(t *testing.T, _ *rand.Rand, s scene) {
		plan, err := release.Plan(s.in)
		if err != nil {
			t.Fatal(err)
		}
		tags := s.tagsByDigest()
		result, err := s.apply(plan, &release.MemoryJournal{})
		if err != nil {
			t.Fatal(err)
		}
		// Whatever is left and has a tag, retained by the host or not, is as
		// complete as it was.
		for digest := range s.manifests {
			if len(tags[digest]) == 0 {
				continue
			}
			for _, part := range walk(s.in.Links, tags, digest) {
				if _, there := s.manifests[part]; !there {
					t.Errorf("%s %v lost %s", digest, tags[digest], part)
				}
			}
		}
		if left := result.Retained + result.Needed; result.Deleted != plan.Delete-left || (left > 0) != (result.Retained > 0) {
			t.Errorf("of %d: %d deleted, %d retained, %d needed", plan.Delete, result.Deleted, result.Retained, result.Needed)
		}
		for _, v := range s.versions {
			i := slices.IndexFunc(plan.Versions, func(p release.PlannedVersion) bool { return p.ID == v.ID })
			if i >= 0 && plan.Versions[i].Action == release.PruneDelete && !slices.ContainsFunc(result.Versions, func(r release.PrunedVersion) bool {
				return r.ID == v.ID && (r.Outcome == release.PruneRetained || r.Outcome == release.PruneNeeded)
			}) {
				t.Errorf("%s should be gone", v.Digest)
			}
		}

		// Once more, from a new look at it: nothing that could go is left.
		before := s.left()
		s.refresh()
		again, err := release.Plan(s.in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.apply(again, &release.MemoryJournal{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, s.left()); diff != "" {
			t.Errorf("the second prune changed something:\n%s", diff)
		}
	})
}

// refresh lists the world again.
func (s *scene) refresh() {
	base := s.input()
	s.in.Versions, s.in.Links, s.in.Unlisted = base.Versions, base.Links, base.Unlisted
}

// errPruneKilled is the end of a process: it comes before or after the host acted.
var errPruneKilled = errors.New("killed")

func TestAnInterruptedApplyThatIsRepeatedEndsTheSame(t *testing.T) {
	t.Parallel()
	eachScene(t, func(t *testing.T, r *rand.Rand, s scene) {
		plan, err := release.Plan(s.in)
		if err != nil {
			t.Fatal(err)
		}
		whole := s.clone()
		if _, err := (scene{whole, s.in}).apply(plan, &release.MemoryJournal{}); err != nil {
			t.Fatal(err)
		}
		calls := whole.calls
		var journal release.MemoryJournal
		for range 1 + r.IntN(3) { // killed up to three times
			at, after := 1+r.IntN(calls), r.IntN(2) == 0
			s.calls = 0
			s.fault = func(call int) error {
				switch {
				case call < at:
					return nil
				case call == at && after: // the host does it, and nobody hears
					return errors.Join(errPruneKilled, release.ErrUncertain)
				default:
					return errPruneKilled
				}
			}
			if _, err := s.apply(plan, &journal); err == nil {
				break // it had less to do than the first time
			} else if !errors.Is(err, errPruneKilled) {
				t.Fatalf("%v", err)
			}
		}
		s.fault = nil
		if _, err := s.apply(plan, &journal); err != nil {
			t.Fatalf("%v", err)
		}
		if diff := cmp.Diff(whole.left(), s.left()); diff != "" {
			t.Errorf("interrupted and repeated (+) is not the whole (-):\n%s", diff)
		}
		// A new plan after the interruption would have ended the same, too.
		s.refresh()
		if again, err := release.Plan(s.in); err != nil {
			t.Fatal(err)
		} else if _, err := s.apply(again, &release.MemoryJournal{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole.left(), s.left()); diff != "" {
			t.Errorf("a new plan goes further:\n%s", diff)
		}
		// And the journal brings all of it back.
		entries := must(journal.Open()).Entries()
		if _, err := release.Restore(t.Context(), entries, s.world, release.ApplyOptions{Wait: instant}); err != nil {
			t.Fatal(err)
		}
		if len(s.versions) != len(s.digests)-s.dropped {
			t.Errorf("%d versions after restore, %d before", len(s.versions), len(s.digests)-s.dropped)
		}
	})
}

func TestANewPlanAfterAnInterruptionEndsTheSame(t *testing.T) {
	t.Parallel()
	eachScene(t, func(t *testing.T, r *rand.Rand, s scene) {
		// What is young and whose subject is gone could be a push in flight to a
		// plan that does not know better: here nothing is young. And what the host
		// retains is not looked at: it depends on what was tried.
		clear(s.retained)
		for id, v := range s.versions {
			v.CreatedAt = pruneNow.AddDate(-1, 0, 0)
			s.versions[id] = v
		}
		s.refresh()
		plan := must(release.Plan(s.in))
		whole := s.clone()
		must((scene{whole, s.in}).apply(plan, &release.MemoryJournal{}))
		at := 1 + r.IntN(whole.calls)
		s.fault = func(call int) error {
			if call >= at {
				return errPruneKilled
			}
			return nil
		}
		if _, err := s.apply(plan, &release.MemoryJournal{}); err != nil && !errors.Is(err, errPruneKilled) {
			t.Fatal(err)
		}
		s.fault = nil
		s.refresh()
		must(s.apply(must(release.Plan(s.in)), &release.MemoryJournal{}))
		if diff := cmp.Diff(whole.left(), s.left()); diff != "" {
			t.Errorf("interrupted and planned anew (+) is not the whole (-):\n%s", diff)
		}
	})
}

func (w *world) clone() *world {
	c := *w
	c.manifests, c.attic, c.versions, c.deleted = maps.Clone(w.manifests), maps.Clone(w.attic), maps.Clone(w.versions), maps.Clone(w.deleted)
	c.calls = 0
	return &c
}

func TestAPlanSurvivesItsFile(t *testing.T) {
	t.Parallel()
	s := newScene(rand.New(rand.NewPCG(3, 3)), 60)
	plan := must(release.Plan(s.in))
	var file bytes.Buffer
	if err := plan.Write(&file); err != nil {
		t.Fatal(err)
	}
	got, err := release.ReadPlan("plan.json", file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plan, got); diff != "" {
		t.Error(diff)
	}
	var doc map[string]any
	if err := json.Unmarshal(file.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no JSON":         "plan",
		"another key":     `{"format":1,"surprise":true}`,
		"another format":  `{"format":2}`,
		"more after it":   file.String() + "{}",
		"another program": `{"instances":[]}`,
	} {
		if _, err := release.ReadPlan("plan.json", []byte(text)); !problem.Is(err, problem.Refused) && !problem.Is(err, problem.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
