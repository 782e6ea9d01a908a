package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// ApplyOptions are the surroundings of Apply; all have defaults.
type ApplyOptions struct {
	// InUse is what is in use now: a plan that would delete something of it is
	// refused.
	InUse    InUse
	DryRun   bool                                             // check everything, delete nothing
	Now      func() time.Time                                 // default time.Now
	Wait     func(ctx context.Context, d time.Duration) error // before another attempt; default: a timer
	Progress func(done, total int)                            // of deletions; may be nil
	// Relist is how often the list is compared again while deletions go on
	// (default 5 minutes): a push in the meantime may need what is about to go.
	Relist time.Duration
}

// PruneOutcome is what became of a version that a plan deletes.
type PruneOutcome string

// The outcomes.
const (
	PruneDeleted  PruneOutcome = "deleted"
	PruneGone     PruneOutcome = "gone"     // it was deleted before
	PruneRetained PruneOutcome = "retained" // the host keeps it, by a rule of its own
	PruneNeeded   PruneOutcome = "needed"   // kept, because a retained one needs it
	PruneWould    PruneOutcome = "would"    // dry run: it would be deleted
)

// PrunedVersion is one row of a PruneResult.
type PrunedVersion struct {
	ID      int64        `json:"id"`
	Digest  string       `json:"digest"`
	Tags    []string     `json:"tags"`
	Outcome PruneOutcome `json:"outcome"`
	Detail  string       `json:"detail,omitempty"` // why it was kept
}

// PruneResult is what Apply did, in the plan's order.
type PruneResult struct {
	Repository string          `json:"repository"`
	Deleted    int             `json:"deleted"`
	Gone       int             `json:"gone"`
	Retained   int             `json:"retained"`
	Needed     int             `json:"needed"`
	DryRun     bool            `json:"dry_run,omitempty"`
	Versions   []PrunedVersion `json:"versions"`
}

// Apply carries a plan out: it deletes exactly what the plan says, in its order,
// or less. It refuses a plan when the package has changed since, except for what
// the journal says that this plan did before; so an interrupted Apply is
// repeated with the same plan and journal, and ends as it would have. What the
// host retains stays, and all that it needs.
func Apply(ctx context.Context, plan PrunePlan, packages Packages, journal *Journal, o ApplyOptions) (PruneResult, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == nil {
		o.Wait = pause.For
	}
	if o.Relist == 0 {
		o.Relist = 5 * time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(int, int) {}
	}
	a := &applying{
		ApplyOptions: o, plan: plan, packages: packages, journal: journal, graph: newGraph(plan.Versions, nil),
		at: make(map[int64]int, len(plan.Versions)), needed: map[int]string{},
		result: PruneResult{Repository: plan.Repository, DryRun: o.DryRun, Versions: []PrunedVersion{}},
	}
	for i, v := range plan.Versions {
		a.at[v.ID] = i
	}
	if err := a.sound(); err != nil {
		return a.result, err
	}
	if err := a.unused(); err != nil {
		return a.result, err
	}
	if err := a.unchanged(ctx); err != nil {
		return a.result, err
	}
	for i, id := range plan.Order {
		if err := a.next(ctx, a.at[id]); err != nil {
			return a.result, a.stopped(i, err)
		}
		o.Progress(i+1, len(plan.Order))
	}
	return a.result, nil
}

type applying struct {
	ApplyOptions
	plan     PrunePlan
	packages Packages
	journal  *Journal
	graph    *graph
	at       map[int64]int  // index in plan.Versions by id
	needed   map[int]string // by index: the retained version that needs it
	listedAt time.Time
	result   PruneResult
}

const newPlan = "release-bot prune --plan FILE" // makes one from what is there now

func unsound(format string, args ...any) error {
	return problem.New(problem.Refused, "this plan cannot be applied: "+fmt.Sprintf(format, args...), newPlan)
}

// sound holds a plan from a file to what no plan may do, whoever wrote it.
func (a *applying) sound() error {
	if a.plan.Format != PlanFormat {
		return unsound("expected format %d, found %d", PlanFormat, a.plan.Format)
	}
	place := make(map[int]int, len(a.plan.Order))
	for n, id := range a.plan.Order {
		i, ok := a.at[id]
		if _, twice := place[i]; !ok || twice || a.plan.Versions[i].Action != PruneDelete {
			return unsound("its order names version %d, which is not exactly one version that it deletes", id)
		}
		place[i] = n
	}
	if len(a.at) != len(a.plan.Versions) || len(a.graph.at) != len(a.plan.Versions) {
		return unsound("it has a version or a digest twice")
	}
	for i, n := range a.graph.nodes {
		n0, going := place[i]
		if !going {
			if n.Action != PruneKeep {
				return unsound("it deletes %s and its order does not say when", n.name())
			}
			for _, next := range slices.Concat(n.children, n.referrers) {
				if _, goes := place[next]; goes {
					return unsound("it keeps %s and deletes %s, which that needs", n.name(), a.graph.nodes[next].name())
				}
			}
			continue
		}
		for _, tag := range n.Tags {
			if kind := ParseTag(tag).Kind; kind == TagFloating || kind == TagForeign {
				return unsound("it deletes %s, which has the tag %s", short(n.Digest), tag)
			}
		}
		for _, child := range n.children {
			if n1, ok := place[child]; ok && n1 < n0 {
				return unsound("it deletes %s before %s, which needs it", a.graph.nodes[child].name(), n.name())
			}
		}
	}
	return nil
}

// unused holds the plan against what is in use now.
func (a *applying) unused() error {
	j := newJudge(PruneInput{InUse: a.InUse})
	for _, id := range a.plan.Order {
		v := a.plan.Versions[a.at[id]]
		versions := map[Version][]ParsedTag{}
		for _, tag := range v.Tags {
			if t := ParseTag(tag); !t.Version.IsZero() {
				versions[t.Version] = nil
			}
		}
		if who := j.users(v.Digest, v.Tags, versions); who != "" {
			return unsound("it deletes %s, which is in use by %s", a.graph.nodes[a.at[id]].name(), who)
		}
	}
	return nil
}

// unchanged lists the package again and compares it with the plan's listing.
func (a *applying) unchanged(ctx context.Context) error {
	now, err := a.packages.Versions(ctx)
	if err != nil {
		return err
	}
	a.listedAt = a.Now()
	var drift []string
	here := make(map[int64]bool, len(now))
	for _, v := range now {
		if here[v.ID] {
			continue // a page brought it twice
		}
		here[v.ID] = true
		if i, ok := a.at[v.ID]; !ok {
			drift = append(drift, fmt.Sprintf("%s is new", node{PlannedVersion: PlannedVersion{PackageVersion: v}}.name()))
		} else if was := a.plan.Versions[i]; was.Digest != v.Digest || !sameTags(was.Tags, v.Tags) {
			drift = append(drift, tagsChanged(was.PackageVersion, v))
		}
	}
	for i, v := range a.plan.Versions {
		done := v.Action == PruneDelete && a.journal.has(v.ID, v.Digest)
		if !here[v.ID] && !done {
			drift = append(drift, a.graph.nodes[i].name()+" is gone")
		}
	}
	return drifted(drift)
}

func drifted(drift []string) error {
	if len(drift) == 0 {
		return nil
	}
	const most = 5
	text := strings.Join(drift[:min(most, len(drift))], "; ")
	if len(drift) > most {
		text += fmt.Sprintf("; and %d more", len(drift)-most)
	}
	return problem.New(problem.Refused, "expected the package as it was when the plan was made, found changes: "+text, newPlan).WithCode("drift")
}

func tagsChanged(was, is PackageVersion) string {
	return fmt.Sprintf("%s had the tags [%s] and has [%s]", short(was.Digest), strings.Join(was.Tags, " "), strings.Join(is.Tags, " "))
}

func sameTags(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// next deals with one version of the order.
func (a *applying) next(ctx context.Context, i int) error {
	v := a.plan.Versions[i]
	row := PrunedVersion{ID: v.ID, Digest: v.Digest, Tags: v.Tags}
	if by, ok := a.needed[i]; ok {
		a.result.Needed++
		row.Outcome, row.Detail = PruneNeeded, by+" needs it"
		a.result.Versions = append(a.result.Versions, row)
		return nil
	}
	if a.DryRun {
		row.Outcome = PruneWould
		a.result.Versions = append(a.result.Versions, row)
		return nil
	}
	if a.Now().Sub(a.listedAt) >= a.Relist {
		if err := a.unchanged(ctx); err != nil {
			return err
		}
	}
	err := a.remove(ctx, v)
	switch {
	case err == nil:
		row.Outcome = PruneDeleted
		a.result.Deleted++
	case errors.Is(err, ErrNotFound):
		row.Outcome = PruneGone
		a.result.Gone++
	case errors.Is(err, ErrRetained):
		row.Outcome, row.Detail = PruneRetained, err.Error()
		a.result.Retained++
		name := a.graph.nodes[i].name()
		a.graph.needs(i, func(next int) {
			if _, ok := a.needed[next]; !ok {
				a.needed[next] = name
			}
		})
	default:
		return err
	}
	a.result.Versions = append(a.result.Versions, row)
	return nil
}

// remove deletes one version after it looked at it once more. After a lost reply
// it looks again before it repeats.
func (a *applying) remove(ctx context.Context, v PlannedVersion) error {
	const attempts = 5
	uncertain := false
	for n := 1; ; n++ {
		is, err := a.packages.Version(ctx, v.ID)
		if errors.Is(err, ErrNotFound) && uncertain {
			return nil // it was this call
		}
		if err == nil {
			if is.Digest != v.Digest || !sameTags(is.Tags, v.Tags) {
				return drifted([]string{tagsChanged(v.PackageVersion, is)})
			}
			if err := a.journal.add(JournalEntry{ID: v.ID, Digest: v.Digest, Tags: v.Tags, Children: nonNil(v.Children), At: a.Now().UTC()}); err != nil {
				return err
			}
			err = a.packages.Delete(ctx, v.ID)
			uncertain = uncertain || errors.Is(err, ErrUncertain)
			if errors.Is(err, ErrNotFound) && uncertain {
				return nil
			}
		}
		if err == nil || !retryable(err) || n == attempts {
			return err
		}
		if err := a.Wait(ctx, pauseAfter(err, n)); err != nil {
			return err
		}
	}
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// pauseAfter is how long to wait after the n-th failure: as long as the host
// asks, or a little longer each time.
func pauseAfter(err error, n int) time.Duration {
	if e, ok := errors.AsType[*problem.Error](err); ok && e.RetryAfter > 0 {
		return e.RetryAfter + jitter(firstPause)
	}
	return jitter(min(firstPause<<n, maxPause))
}

// stopped says how far it came and what goes on from there.
func (a *applying) stopped(done int, err error) error {
	at := fmt.Sprintf("stopped after %d of %d versions (%d deleted)", done, len(a.plan.Order), a.result.Deleted)
	if retryable(err) {
		return problem.Wrap(err, problem.Inconclusive, at+"; the journal knows how far it came", "repeat the command: it goes on from there")
	}
	if e, ok := errors.AsType[*problem.Error](err); ok {
		c := *e
		c.Message = at + ": " + e.Message
		return &c
	}
	return fmt.Errorf("%s; repeat the command to go on from there: %w", at, err)
}
