package rollout

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Target is the image that a fleet is taken to.
type Target struct {
	Image   string // repository
	Tag     string // as it was asked for
	Digest  string // what the tag meant at the start
	Version string // of the image's labels; may be empty
	Channel string
}

// PlanOptions are what a plan is made of.
type PlanOptions struct {
	Inventory *fleet.Inventory
	Target    Target
	Chosen    func(fleet.Instance) bool // -l; nil for all
	Seen      map[string]fleet.Result   // of a sweep; who is absent was not asked

	MaxUnreachable fleet.Limit   // of the members
	ArriveWithin   time.Duration // how long a member may take to arrive by itself
	ErrorBudget    int           // percent of the probes of a wave while it soaks
	Soak           *time.Duration

	Now time.Time
	By  string
	ID  string
}

// canarySoak is that of a wave that the plan puts before the others.
const canarySoak = 10 * time.Minute

// NewPlan divides a fleet into waves, once and for all, and says who is left
// out. Every instance of the inventory is a member of exactly one wave, or is
// skipped with a reason. There is a canary at any size: where the first wave
// that has members holds more than half of all of them, one goes ahead alone.
func NewPlan(o PlanOptions) (Rollout, error) {
	r := Rollout{
		ID: o.ID, Image: o.Target.Image, Tag: o.Target.Tag, Digest: o.Target.Digest, Version: o.Target.Version, Channel: o.Target.Channel,
		State: Planned, Started: o.Now.UTC(), By: o.By, Skipped: []Skipped{}, Waves: []WaveState{}, CatchUp: []string{},
		ArriveWithin: Span(o.ArriveWithin), ErrorBudget: o.ErrorBudget,
	}
	assigned, err := o.Inventory.Assign(o.Inventory.Waves)
	if err != nil {
		return r, err
	}
	total := 0
	var first fleet.Limit // of the first wave that has members
	for _, a := range assigned {
		w := WaveState{Name: a.Wave.Name, State: WaveWaiting, Soak: Span(a.Wave.Soak), Members: []Member{}}
		if o.Soak != nil {
			w.Soak = Span(*o.Soak)
		}
		for _, in := range a.Members {
			if why := o.skip(in); why != "" {
				r.Skipped = append(r.Skipped, Skipped{Name: in.Name, Wave: a.Wave.Name, Reason: why})
				continue
			}
			w.Members = append(w.Members, o.member(in))
		}
		if len(w.Members) == 0 {
			continue
		}
		w.MaxUnavailable = atOnce(a.Wave.MaxUnavailable, w.Members)
		if total == 0 {
			first = a.Wave.MaxUnavailable
		}
		total += len(w.Members)
		r.Waves = append(r.Waves, w)
	}
	r.MaxUnreachable = UnreachableBudget(o.MaxUnreachable, total)
	if total > 1 && 2*len(r.Waves[0].Members) > total {
		r.Waves = o.canary(r.Waves, first)
	}
	return r, nil
}

// atOnce is how many of a wave may be on their way.
func atOnce(l fleet.Limit, members []Member) int { return min(l.Of(len(members)), len(members)) }

// skip returns why an instance is left alone, or nothing.
func (o PlanOptions) skip(in fleet.Instance) string {
	t := o.Target
	switch {
	case o.Chosen != nil && !o.Chosen(in):
		return "not selected"
	case in.Pin != "" && !t.is(in.Pin):
		return "pinned to " + in.Pin
	case in.Pin == "" && t.Channel != "" && in.Wanted() != t.Channel:
		return "follows the channel " + in.Wanted()
	}
	if seen, asked := o.Seen[in.Name]; asked && seen.Good() && t.runs(seen) {
		return "runs it already"
	}
	return ""
}

// is reports whether a pin names the target.
func (t Target) is(pin string) bool {
	tag := release.ParseTag(pin)
	if t.Version == "" {
		return pin == t.Tag
	}
	return tag.Version.String() == t.Version && (tag.Kind == release.TagNumber || t.Channel == "" || string(tag.Channel) == t.Channel)
}

// runs reports whether an instance says that it runs the target: by digest where
// it tells it, else by version and channel.
func (t Target) runs(r fleet.Result) bool {
	if r.Digest != "" {
		return r.Digest == t.Digest
	}
	return t.Version != "" && r.Version == t.Version && (t.Channel == "" || r.Channel == "" || r.Channel == t.Channel)
}

func (o PlanOptions) member(in fleet.Instance) Member {
	seen := o.Seen[in.Name]
	m := Member{
		Name: in.Name, Delivery: in.Delivery(), State: Waiting, From: seen.Version, Runs: seen.Version,
		To: cmp.Or(o.Target.Version, o.Target.Tag),
	}
	m.Before = Before{Health: seen.Health, Image: deploy.Image{Version: seen.Version, Channel: seen.Channel, Digest: seen.Digest}}
	return m
}

// canary lets one member of the first wave go ahead alone. It is the first by a
// hash of the names of those that answer well, for one that does not would prove
// nothing.
func (o PlanOptions) canary(waves []WaveState, limit fleet.Limit) []WaveState {
	first := &waves[0]
	place := func(m Member) []byte {
		sum := sha256.Sum256([]byte(m.Name))
		return sum[:]
	}
	answers := func(m Member) int {
		if o.Seen[m.Name].Good() {
			return 0
		}
		return 1
	}
	chosen := slices.MinFunc(first.Members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(answers(a), answers(b)), bytes.Compare(place(a), place(b)), strings.Compare(a.Name, b.Name))
	})
	ahead := WaveState{Name: "canary", State: WaveWaiting, Soak: Span(canarySoak), MaxUnavailable: 1, Members: []Member{chosen}}
	if first.Soak > 0 || o.Soak != nil {
		ahead.Soak = first.Soak
	}
	if slices.ContainsFunc(waves, func(w WaveState) bool { return w.Name == ahead.Name }) {
		ahead.Name = first.Name + " ahead"
	}
	first.Members = slices.DeleteFunc(first.Members, func(m Member) bool { return m.Name == chosen.Name })
	first.MaxUnavailable = atOnce(limit, first.Members)
	return append([]WaveState{ahead}, waves...)
}

// CatchUpPlan is a rollout of the same image, in the same way, to the members that
// an earlier one could not reach.
func CatchUpPlan(old Rollout, o PlanOptions) (Rollout, error) {
	if old.State == Failed {
		return Rollout{}, problem.New(problem.Refused, fmt.Sprintf("The rollout %s failed: nobody is sent after it.", old.ID), "Roll out another tag: agnesctl fleet rollout --tag TAG")
	}
	if len(old.CatchUp) == 0 {
		return Rollout{}, problem.New(problem.Refused, fmt.Sprintf("Every member of the rollout %s was reached.", old.ID), "agnesctl fleet rollout --status "+old.ID)
	}
	o.Target = Target{Image: old.Image, Tag: old.Tag, Digest: old.Digest, Version: old.Version, Channel: old.Channel}
	chosen := o.Chosen
	o.Chosen = func(in fleet.Instance) bool {
		return slices.Contains(old.CatchUp, in.Name) && (chosen == nil || chosen(in))
	}
	r, err := NewPlan(o)
	if err != nil {
		return r, err
	}
	for _, name := range old.CatchUp {
		if !slices.ContainsFunc(o.Inventory.Instances, func(in fleet.Instance) bool { return in.Name == name }) {
			r.Skipped = append(r.Skipped, Skipped{Name: name, Reason: "not in the inventory any more"})
		}
	}
	r.Of, r.Flags = old.ID, old.Flags
	return r, nil
}
