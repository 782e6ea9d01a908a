package release_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// small is a registry with something to delete: an old dev index of two parts
// with a signature, beside a stable one that shares a part.
func small() (s scene, index, own, shared, sig string) {
	w := newWorld()
	shared, own = w.push(nil, "", old), w.push(nil, "", old)
	index = w.push([]string{shared, own}, "", old, "dev-2026.04.1", "sha-0000001")
	sig = w.push(nil, "", old, strings.Replace(index, ":", "-", 1)+".sig")
	w.push([]string{shared}, "", old, "stable", "stable-2026.04.2", "2026.04.2")
	w.push(nil, "", old, "dev-2026.05.1")
	in := w.input()
	ledger(&in)
	return scene{w, in}, index, own, shared, sig
}

// file is a journal on disk.
func file(t *testing.T) *release.Journal {
	t.Helper()
	j, err := release.OpenJournal(filepath.Join(t.TempDir(), "plan.json.journal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func applyOptions() release.ApplyOptions {
	return release.ApplyOptions{Wait: instant, Now: func() time.Time { return pruneNow }}
}

func TestApplyDeletesParentsFirstAndWritesTheJournalBefore(t *testing.T) {
	t.Parallel()
	s, index, own, shared, sig := small()
	plan := must(release.Plan(s.in))
	j := file(t)
	watched := &watchedDeletes{world: s.world, journal: j.Path(), t: t}
	var seen []int
	o := applyOptions()
	o.Progress = func(done, total int) { seen = append(seen, done, total) }
	result, err := release.Apply(t.Context(), plan, watched, j, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(watched.order) != 3 || watched.order[0] != index || !slices.Contains(watched.order, own) || !slices.Contains(watched.order, sig) {
		t.Errorf("deleted %v", watched.order)
	}
	if _, there := s.manifests[shared]; !there {
		t.Error("the shared part is gone")
	}
	if result.Deleted != 3 || !slices.Equal(seen, []int{1, 3, 2, 3, 3, 3}) {
		t.Errorf("%+v, progress %v", result, seen)
	}
	entries := must(release.ReadJournal(j.Path()))
	if e := entries[0]; e.Digest != index || !slices.Equal(e.Tags, []string{"dev-2026.04.1", "sha-0000001"}) || !slices.Equal(e.Children, []string{shared, own}) || !e.At.Equal(pruneNow) {
		t.Errorf("%+v", e)
	}
}

// watchedDeletes looks at the journal's file at each deletion.
type watchedDeletes struct {
	*world
	journal string
	order   []string
	t       *testing.T
}

// Delete fails the test when the entry is not in the file.
func (w *watchedDeletes) Delete(ctx context.Context, id int64) error {
	entries, err := release.ReadJournal(w.journal)
	if err != nil || len(entries) == 0 || entries[len(entries)-1].ID != id {
		w.t.Errorf("version %d is deleted and not in the journal: %v %v", id, entries, err)
	}
	w.order = append(w.order, w.versions[id].Digest)
	return w.world.Delete(ctx, id)
}

func TestApplyRefusesWhatChangedSinceThePlan(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(s *scene, index, own string)
		want   string
	}{
		"a new manifest":                 {func(s *scene, _, _ string) { s.push(nil, "", 0, "dev-2026.05.19") }, "(dev-2026.05.19) is new"},
		"a tag on what goes":             {func(s *scene, _, own string) { s.tag(own, "keep-me") }, "had the tags [] and has [keep-me]"},
		"a tag on what stays":            {func(s *scene, _, _ string) { s.tag(s.digests[4], "confirmed-2026.04.2") }, "confirmed-2026.04.2"},
		"a tag that moved":               {func(s *scene, index, _ string) { s.tag(index, "stable") }, "has [dev-2026.04.1 sha-0000001 stable]"},
		"a deletion by somebody else":    {func(s *scene, _, own string) { s.drop(own) }, "is gone"},
		"a kept version that is missing": {func(s *scene, _, _ string) { s.drop(s.digests[5]) }, "(dev-2026.05.1) is gone"},
		"an id with another digest": {func(s *scene, _, own string) {
			v := s.versions[s.id(own)]
			v.Digest = "sha256:" + strings.Repeat("1", 64)
			s.versions[v.ID] = v
		}, "had the tags [] and has []"},
	} {
		s, index, own, _, _ := small()
		plan := must(release.Plan(s.in))
		c.change(&s, index, own)
		before := len(s.versions)
		_, err := release.Apply(t.Context(), plan, s.world, file(t), applyOptions())
		if !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected a refusal with %q, found %v", name, c.want, err)
		}
		if len(s.versions) != before {
			t.Errorf("%s: something was deleted", name)
		}
	}
}

func TestApplyLooksAgainRightBeforeEachDeletion(t *testing.T) {
	t.Parallel()
	s, _, own, _, sig := small()
	plan := must(release.Plan(s.in))
	// Somebody tags what is to be deleted second, after the list was compared.
	second := s.versionOf(plan.Order[1])
	s.fault = func(call int) error {
		if call == 3 { // list, look, delete
			s.tag(second, "v1")
		}
		return nil
	}
	j := file(t)
	_, err := release.Apply(t.Context(), plan, s.world, j, applyOptions())
	if !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "stopped after 1 of 3") {
		t.Errorf("%v", err)
	}
	if s.manifests[own].Digest == "" || s.manifests[sig].Digest == "" {
		t.Error("more was deleted than the first")
	}
	if entries := must(release.ReadJournal(j.Path())); len(entries) != 1 {
		t.Errorf("the journal has %d entries, expected 1", len(entries))
	}
}

func (w *world) versionOf(id int64) string { return w.versions[id].Digest }

func TestALongApplyComparesTheListAgain(t *testing.T) {
	t.Parallel()
	s, _, _, _, _ := small()
	plan := must(release.Plan(s.in))
	now := pruneNow
	o := applyOptions()
	o.Now = func() time.Time { return now }
	s.fault = func(call int) error {
		if call == 3 {
			now = now.Add(6 * time.Minute)
			s.push([]string{s.digests[1]}, "", 0, "dev-2026.05.19") // needs a part that is about to go
		}
		return nil
	}
	if _, err := release.Apply(t.Context(), plan, s.world, file(t), o); !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "is new") {
		t.Errorf("%v", err)
	}
}

func TestApplyKeepsWhatARetainedVersionNeeds(t *testing.T) {
	t.Parallel()
	s, index, own, _, sig := small()
	s.retained[s.id(index)] = true
	before := s.left()
	result, err := s.apply(must(release.Plan(s.in)), &release.MemoryJournal{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, s.left()); diff != "" {
		t.Error(diff)
	}
	outcomes := map[string]string{}
	for _, v := range result.Versions {
		outcomes[v.Digest] = fmt.Sprint(v.Outcome, ": ", v.Detail)
	}
	if !strings.Contains(outcomes[index], "more than 5000 downloads") {
		t.Errorf("the host's words are missing: %q", outcomes[index])
	}
	for _, digest := range []string{own, sig} {
		if !strings.HasPrefix(outcomes[digest], "needed: "+index[:19]) {
			t.Errorf("%q", outcomes[digest])
		}
	}
	if result.Retained != 1 || result.Needed != 2 {
		t.Errorf("%+v", result)
	}
}

func TestApplySettlesLostRepliesAndTrouble(t *testing.T) {
	t.Parallel()
	unavailable := problem.New(problem.Unavailable, "502 from the host", "")
	for name, c := range map[string]struct {
		fault func(call int) error
		kind  problem.Kind // of the error; none: it ends well
	}{
		"a reply that was lost": {func(call int) error {
			if call == 3 {
				return problem.Wrap(release.ErrUncertain, problem.Unavailable, "lost", "")
			}
			return nil
		}, ""},
		"trouble that passes": {func(call int) error {
			if call%4 == 0 {
				return unavailable
			}
			return nil
		}, ""},
		"trouble that stays": {func(call int) error {
			if call > 3 {
				return unavailable
			}
			return nil
		}, problem.Inconclusive},
		"a right that is missing": {func(call int) error {
			if call == 3 {
				return problem.New(problem.Forbidden, "no right", "give the token packages: write")
			}
			return nil
		}, problem.Forbidden},
	} {
		s, _, _, _, _ := small()
		plan := must(release.Plan(s.in))
		s.fault = c.fault
		j := file(t)
		result, err := release.Apply(t.Context(), plan, s.world, j, applyOptions())
		if c.kind == "" && (err != nil || result.Deleted != 3) || c.kind != "" && !problem.Is(err, c.kind) {
			t.Errorf("%s: %v, %+v", name, err, result)
		}
		if problem.Is(err, problem.Forbidden) && problem.As(err).Hint != "give the token packages: write" {
			t.Errorf("%s: the hint is lost: %q", name, problem.As(err).Hint)
		}
		s.fault = nil
		if _, err := release.Apply(t.Context(), plan, s.world, j, applyOptions()); err != nil || len(s.versions) != 3 {
			t.Errorf("%s, repeated: %v, %d versions left", name, err, len(s.versions))
		}
	}
}

func TestApplyStopsWhenItIsInterrupted(t *testing.T) {
	t.Parallel()
	s, _, _, _, _ := small()
	ctx, cancel := context.WithCancel(t.Context())
	s.fault = func(call int) error {
		if call == 4 {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	_, err := release.Apply(ctx, must(release.Plan(s.in)), s.world, file(t), applyOptions())
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stopped after 1 of 3 versions") {
		t.Errorf("%v", err)
	}
}

func TestApplyRefusesAPlanThatNoPlannerMade(t *testing.T) {
	t.Parallel()
	index := func(p release.PrunePlan, tag string) int {
		return slices.IndexFunc(p.Versions, func(v release.PlannedVersion) bool { return slices.Contains(v.Tags, tag) })
	}
	for name, change := range map[string]func(p *release.PrunePlan){
		"deletes :stable": func(p *release.PrunePlan) {
			i := index(*p, "stable")
			p.Versions[i].Action = release.PruneDelete
			p.Order = append([]int64{p.Versions[i].ID}, p.Order...)
		},
		"keeps an index and deletes its part": func(p *release.PrunePlan) {
			i := index(*p, "dev-2026.04.1")
			p.Versions[i].Action = release.PruneKeep
			p.Order = slices.DeleteFunc(p.Order, func(id int64) bool { return id == p.Versions[i].ID })
		},
		"deletes parts first":         func(p *release.PrunePlan) { slices.Reverse(p.Order) },
		"deletes one twice":           func(p *release.PrunePlan) { p.Order = append(p.Order, p.Order[0]) },
		"deletes an unknown one":      func(p *release.PrunePlan) { p.Order = append(p.Order, 7) },
		"deletes one without a place": func(p *release.PrunePlan) { p.Order = p.Order[:2] },
		"orders what it keeps": func(p *release.PrunePlan) {
			p.Order = append(p.Order, p.Versions[index(*p, "dev-2026.05.1")].ID)
		},
		"has a version twice":  func(p *release.PrunePlan) { p.Versions = append(p.Versions, p.Versions[0]) },
		"is of another format": func(p *release.PrunePlan) { p.Format = 2 },
		"keeps an index of what it deletes": func(p *release.PrunePlan) {
			p.Versions[index(*p, "stable")].Children = []string{p.Versions[index(*p, "dev-2026.04.1")].Digest}
		},
	} {
		s, _, _, _, _ := small()
		plan := must(release.Plan(s.in))
		change(&plan)
		_, err := release.Apply(t.Context(), plan, s.world, file(t), applyOptions())
		if !problem.Is(err, problem.Refused) || s.calls != 0 {
			t.Errorf("%s: %v after %d calls", name, err, s.calls)
		}
	}
}

func TestApplyRefusesWhatIsInUseByNow(t *testing.T) {
	t.Parallel()
	s, index, own, _, _ := small()
	plan := must(release.Plan(s.in))
	for _, reference := range []string{index, own, "dev-2026.04.1", "2026.04.1"} {
		o := applyOptions()
		o.InUse.Add(reference, "acme")
		if _, err := release.Apply(t.Context(), plan, s.world, file(t), o); !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "in use by acme") {
			t.Errorf("%s: %v", reference, err)
		}
	}
	o := applyOptions()
	o.InUse.Add("stable-2026.04.2", "acme")
	o.DryRun = true
	result, err := release.Apply(t.Context(), plan, s.world, file(t), o)
	if err != nil || len(result.Versions) != 3 || result.Versions[0].Outcome != release.PruneWould || len(s.versions) != 6 {
		t.Errorf("%v %+v", err, result)
	}
}

func TestAJournalSurvivesItsWritersEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	line := `{"id":1,"digest":"sha256:aa","tags":["dev"],"children":[],"at":"2026-05-20T12:00:00Z"}` + "\n"
	if err := os.WriteFile(path, []byte(line+line[:40]), 0o644); err != nil {
		t.Fatal(err)
	}
	j := must(release.OpenJournal(path))
	j.Close()
	if got := string(must(os.ReadFile(path))); got != line {
		t.Errorf("the torn line is still there: %q", got)
	}
	if err := os.WriteFile(path, []byte("{}\n"+line), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := release.OpenJournal(path); !problem.Is(err, problem.Invalid) || !strings.Contains(err.Error(), "journal:1") {
		t.Errorf("%v", err)
	}
	if _, err := release.ReadJournal(path + ".no"); !problem.Is(err, problem.Usage) {
		t.Errorf("%v", err)
	}
	if _, err := release.OpenJournal(filepath.Join(path, "below")); err == nil {
		t.Error("a journal below a file")
	}
}

func TestNothingIsDeletedThatTheJournalDoesNotTake(t *testing.T) {
	t.Parallel()
	s, _, _, _, _ := small()
	j := file(t)
	j.Close()
	for _, j := range []*release.Journal{j, must(release.PeekJournal(j.Path()))} {
		if _, err := release.Apply(t.Context(), must(release.Plan(s.in)), s.world, j, applyOptions()); err == nil || len(s.versions) != 6 {
			t.Errorf("%v, %d versions", err, len(s.versions))
		}
	}
}

func TestRestorePutsPartsBackBeforeIndexes(t *testing.T) {
	t.Parallel()
	s, index, own, _, _ := small()
	before := fmt.Sprint(s.versions)
	var memory release.MemoryJournal
	must(s.apply(must(release.Plan(s.in)), &memory))
	entries := must(memory.Open()).Entries()
	var order []string
	restoring := &watchedRestores{world: s.world, order: &order}

	// A reply is lost, and the host has one moment of trouble.
	s.calls = 0
	s.fault = func(call int) error {
		switch call {
		case 2:
			return problem.Wrap(release.ErrUncertain, problem.Unavailable, "lost", "")
		case 5:
			return problem.New(problem.Unavailable, "502", "")
		}
		return nil
	}
	result, err := release.Restore(t.Context(), entries, restoring, applyOptions())
	if err != nil || result.Restored != 3 {
		t.Fatalf("%v %+v", err, result)
	}
	if slices.Index(order, own) > slices.Index(order, index) {
		t.Errorf("restored in the order %v", order)
	}
	if after := fmt.Sprint(s.versions); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	s.fault = nil
	again, err := release.Restore(t.Context(), entries, restoring, applyOptions())
	if err != nil || again.Restored != 0 || again.There != 3 {
		t.Errorf("again: %v %+v", err, again)
	}

	// The order of the journal does not matter: one of several prunes has its own.
	must(s.apply(must(release.Plan(s.in)), &release.MemoryJournal{}))
	slices.Reverse(entries)
	order = nil
	must(release.Restore(t.Context(), entries, restoring, applyOptions()))
	if slices.Index(order, own) > slices.Index(order, index) {
		t.Errorf("restored in the order %v", order)
	}

	// What the host forgot is said, and the rest comes back.
	must(s.apply(must(release.Plan(s.in)), &release.MemoryJournal{}))
	delete(s.deleted, result.Versions[0].ID)
	s.tagless = true
	partly, err := release.Restore(t.Context(), entries, restoring, applyOptions())
	if err != nil || partly.Lost != 1 || partly.Restored != 2 {
		t.Errorf("%v %+v", err, partly)
	}
	if !slices.ContainsFunc(partly.Versions, func(v release.RestoredVersion) bool {
		return v.Digest == index && strings.Contains(v.Detail, "without dev-2026.04.1, sha-0000001: set it again")
	}) {
		t.Errorf("%+v", partly.Versions)
	}
}

type watchedRestores struct {
	*world
	order *[]string
}

// Restore notes the order.
func (w *watchedRestores) Restore(ctx context.Context, id int64) error {
	if v, ok := w.deleted[id]; ok {
		*w.order = append(*w.order, v.Digest)
	}
	return w.world.Restore(ctx, id)
}
