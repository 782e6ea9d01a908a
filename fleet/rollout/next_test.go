package rollout_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
)

// TestMain plays more games than rapid does unless told: they are cheap, and what is
// wrong in one of thousands matters to somebody.
func TestMain(m *testing.M) {
	flag.Parse()
	const name = "rapid.checks"
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == name })
	if !told {
		if err := flag.Set(name, "2000"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// fleets draws any inventory with any waves and limits, and what its instances
// say.
func fleets(t *rapid.T) rollout.PlanOptions {
	limit := rapid.Custom(func(t *rapid.T) fleet.Limit {
		if rapid.Bool().Draw(t, "share") {
			return fleet.Limit{Percent: rapid.IntRange(1, 100).Draw(t, "percent")}
		}
		return fleet.Limit{Count: rapid.IntRange(0, 12).Draw(t, "count")}
	})
	o := rollout.PlanOptions{
		Inventory: &fleet.Inventory{}, Seen: map[string]fleet.Result{}, ID: "r", By: "ada", Now: time.Unix(1e9, 0),
		Target:         rollout.Target{Image: "i", Tag: "stable", Digest: newDigest, Version: newVersion, Channel: "stable"},
		MaxUnreachable: limit.Draw(t, "max unreachable"), ArriveWithin: time.Hour, ErrorBudget: rapid.IntRange(0, 100).Draw(t, "budget"),
	}
	tiers := []string{"canary", "early", "other"}
	for i := range rapid.IntRange(0, 24).Draw(t, "instances") {
		in := fleet.Instance{Name: fmt.Sprintf("i%d", i), URL: "https://i", Labels: map[string]string{"tier": rapid.SampledFrom(tiers).Draw(t, "tier")}}
		in.Channel = rapid.SampledFrom([]string{"stable", "stable", "stable", "dev"}).Draw(t, "channel")
		if rapid.IntRange(0, 9).Draw(t, "pinned") == 0 {
			in.Channel, in.Pin = "", rapid.SampledFrom([]string{"stable-2026.04.1", "stable-" + newVersion, newVersion}).Draw(t, "pin")
		}
		if rapid.Bool().Draw(t, "push") {
			in.Host = fmt.Sprintf("ssh://agnes@h%d/opt/agnes", i)
		}
		if rapid.IntRange(0, 4).Draw(t, "asked") > 0 {
			o.Seen[in.Name] = fleet.Result{
				Name: in.Name, Channel: "stable", Version: rapid.SampledFrom([]string{oldVersion, newVersion}).Draw(t, "runs"),
				Health: rapid.SampledFrom([]fleet.Health{fleet.Healthy, fleet.Healthy, fleet.Unhealthy, fleet.Unreachable}).Draw(t, "health"),
			}
		}
		o.Inventory.Instances = append(o.Inventory.Instances, in)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "waves") {
		w := fleet.Wave{Name: fmt.Sprintf("w%d", i), MaxUnavailable: limit.Draw(t, "max unavailable"), Soak: time.Duration(rapid.IntRange(0, 2).Draw(t, "soak")) * time.Minute}
		if rapid.Bool().Draw(t, "by tier") {
			w.Match, _ = fleet.ParseSelector("tier=" + rapid.SampledFrom(tiers).Draw(t, "match")) // is one
		} else {
			w.Percent = rapid.IntRange(1, 60).Draw(t, "share of wave")
		}
		o.Inventory.Waves = append(o.Inventory.Waves, w)
	}
	o.Inventory.Waves = append(o.Inventory.Waves, fleet.Wave{Name: "rest", MaxUnavailable: limit.Draw(t, "max unavailable"), Soak: time.Minute})
	if left := rapid.IntRange(0, 6).Draw(t, "left out"); left > 0 {
		o.Chosen = func(in fleet.Instance) bool { return len(in.Name)%left != 1 }
	}
	return o
}

func TestAPlanTakesEveryInstanceOnceOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := fleets(t)
		r, err := rollout.NewPlan(o)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for _, w := range r.Waves {
			if len(w.Members) == 0 || w.MaxUnavailable < 1 || w.MaxUnavailable > len(w.Members) {
				t.Fatalf("the wave %s has %d members, %d at a time", w.Name, len(w.Members), w.MaxUnavailable)
			}
			for _, wave := range o.Inventory.Waves {
				if wave.Name == w.Name && w.MaxUnavailable > wave.MaxUnavailable.Of(len(w.Members)) {
					t.Fatalf("of %d members of the wave %s %d go at a time, and its limit is %s", len(w.Members), w.Name, w.MaxUnavailable, wave.MaxUnavailable)
				}
			}
			for _, m := range w.Members {
				seen[m.Name]++
			}
		}
		for _, s := range r.Skipped {
			seen[s.Name]++
			if s.Reason == "" {
				t.Fatalf("%s is skipped without a reason", s.Name)
			}
		}
		for _, in := range o.Inventory.Instances {
			if seen[in.Name] != 1 {
				t.Fatalf("%s is %d times in the plan", in.Name, seen[in.Name])
			}
		}
		if len(seen) != len(o.Inventory.Instances) {
			t.Fatalf("the plan has %d of %d", len(seen), len(o.Inventory.Instances))
		}
		if n := r.Size(); n > 1 && 2*len(r.Waves[0].Members) > n {
			t.Fatalf("%d of %d go first: that is no canary", len(r.Waves[0].Members), n)
		}
	})
}

// player drives Next with whatever happens next, and checks every step.
type player struct {
	t     *rapid.T
	r     rollout.Rollout
	now   time.Time
	seq   int64
	begun map[string]int // times that a member was sent for
	tried map[string]int // times that a resumption allows
	acts  []rollout.Action

	failed string // wave
}

// possible is what can happen to a member for which something is under way.
func possible(do rollout.Do, m rollout.Member) []rollout.What {
	switch do {
	case rollout.Take:
		all := []rollout.What{rollout.Arrived, rollout.Arrived, rollout.Arrived, rollout.Broke, rollout.Sick, rollout.Halted, rollout.Away, rollout.Doubtful}
		if !m.Sent {
			return []rollout.What{rollout.Began, rollout.Began, rollout.Away, rollout.Doubtful}
		}
		return all
	case rollout.Settle:
		if !m.Sent { // the one who looks at it does not know yet
			return []rollout.What{rollout.Began, rollout.Began, rollout.Away, rollout.Untouched}
		}
		return []rollout.What{rollout.Arrived, rollout.Broke, rollout.Sick, rollout.Halted, rollout.Away, rollout.Doubtful, rollout.Untouched}
	case rollout.Watch:
		return []rollout.What{rollout.Sick, rollout.Away, rollout.Doubtful}
	default:
		return []rollout.What{rollout.Home, rollout.Home, rollout.Lost}
	}
}

func find(r rollout.Rollout, name string) (rollout.WaveState, rollout.Member) {
	for _, w := range r.Waves {
		for _, m := range w.Members {
			if m.Name == name {
				return w, m
			}
		}
	}
	return rollout.WaveState{}, rollout.Member{}
}

func count(w rollout.WaveState, states ...rollout.MemberState) (n int) {
	for _, m := range w.Members {
		if slices.Contains(states, m.State) {
			n++
		}
	}
	return n
}

// next takes one step and checks what must hold.
func (p *player) next(in rollout.Input) {
	in.Now = p.now
	before := p.r
	p.r, p.acts = rollout.Next(before, in)
	unwell := map[string]bool{} // as of this step
	for _, seen := range in.Seen {
		unwell[seen.Member] = slices.Contains([]rollout.What{rollout.Sick, rollout.Away, rollout.Doubtful}, seen.What)
	}
	for i, w := range p.r.Waves {
		was := before.Waves[i]
		if w.State == rollout.WaveFailed {
			p.failed = w.Name
		}
		if n := count(w, rollout.Taking, rollout.TakingBack); n > w.MaxUnavailable {
			p.t.Fatalf("%d of the wave %s are on their way, and %d may be", n, w.Name, w.MaxUnavailable)
		}
		if w.State == rollout.WavePassed && was.State != rollout.WavePassed {
			taken := 0
			for _, any := range p.r.Waves {
				taken += count(any, rollout.Taken)
			}
			if taken == 0 {
				p.t.Fatalf("the wave %s passed, and no member runs the target", w.Name)
			}
		}
		for n, m := range w.Members {
			old := was.Members[n]
			if m.Name != old.Name || len(w.Members) != len(was.Members) {
				p.t.Fatalf("the wave %s has other members now", w.Name)
			}
			if p.r.State != rollout.Running && (m.Sent && !old.Sent || m.State == rollout.Taking && rollout.MayGoOn(p.r, m.Name)) {
				p.t.Fatalf("a delivery to %s begins while the rollout is %s", m.Name, p.r.State)
			}
			began := m.State == rollout.Taking && old.State != rollout.Taking
			left := m.State == rollout.TakingBack && old.State == rollout.Taken && !unwell[m.Name]
			if m.State == rollout.TakingBack && m.Arrived && old.State != rollout.TakingBack && p.r.State == rollout.Aborting {
				p.t.Fatalf("%s had arrived, and the abort takes it back", m.Name)
			}
			if away := count(w, rollout.Taking, rollout.TakingBack, rollout.Bad); (began || left) && away > w.MaxUnavailable {
				p.t.Fatalf("%s was sent for while %d of %d were away", m.Name, away, w.MaxUnavailable)
			}
			if began {
				p.begun[m.Name]++
				if p.begun[m.Name] > 1+p.tried[m.Name] {
					p.t.Fatalf("%s was sent for %d times", m.Name, p.begun[m.Name])
				}
				if p.r.State != rollout.Running && !slices.Contains([]rollout.State{rollout.Reverting, rollout.Stopping}, p.r.State) {
					p.t.Fatalf("%s was sent for while the rollout is %s", m.Name, p.r.State)
				}
				for _, earlier := range p.r.Waves[:i] {
					if earlier.State != rollout.WavePassed {
						p.t.Fatalf("%s of the wave %s was sent for before the wave %s passed", m.Name, w.Name, earlier.Name)
					}
				}
			}
		}
	}
	if p.r.State == rollout.Done {
		for _, w := range p.r.Waves {
			for _, m := range w.Members {
				if m.State != rollout.Taken && m.State != rollout.Unreached {
					p.t.Fatalf("it is done, and %s is %s", m.Name, m.State)
				}
			}
		}
	}
	if p.r.State == rollout.Failed {
		for _, w := range p.r.Waves {
			for _, m := range w.Members {
				back := m.State == rollout.Reverted || m.State == rollout.Astray || m.State == rollout.FailedBack && m.Delivery == fleet.Push
				if w.Name == p.failed && m.Sent && !back {
					p.t.Fatalf("its wave failed, and %s, which may run the target, is left %s", m.Name, m.State)
				}
			}
		}
	}
	if p.r.State == rollout.Aborted {
		open := []rollout.MemberState{rollout.Waiting, rollout.Taking, rollout.Unreached, rollout.Unclear}
		for _, w := range p.r.Waves {
			for _, m := range w.Members {
				if m.Delivery == fleet.Pull && m.Sent && !m.Arrived && slices.Contains(open, m.State) {
					p.t.Fatalf("it is aborted, and %s, which is %s, may still come", m.Name, m.State)
				}
			}
		}
	}
	if p.r.State.Ended() && len(p.acts) > 0 {
		p.t.Fatalf("it is %s, and %v go on", p.r.State, p.acts)
	}
}

// happen lets something happen to a member for which something is under way, and
// now and then to several at once.
func (p *player) happen() bool {
	if len(p.acts) == 0 {
		return false
	}
	var seen []rollout.Seen
	first := rapid.IntRange(0, len(p.acts)-1).Draw(p.t, "which")
	for _, a := range p.acts[first:min(len(p.acts), first+rapid.SampledFrom([]int{1, 1, 1, 3}).Draw(p.t, "at once"))] {
		_, m := find(p.r, a.Member)
		what := rapid.SampledFrom(possible(a.Do, m)).Draw(p.t, "what")
		if what == rollout.Untouched {
			p.tried[a.Member]++
		}
		seen = append(seen, rollout.Seen{Member: a.Member, What: what, Before: rollout.Before{At: p.now}})
	}
	p.next(rollout.Input{Seen: seen})
	return true
}

// order gives an order, and returns whether it can have an effect.
func (p *player) order(verb rollout.Verb) {
	p.seq++
	if verb == rollout.Resume && p.r.State != rollout.Running {
		for _, w := range p.r.Waves {
			for _, m := range w.Members {
				if m.State == rollout.Unclear || m.State == rollout.Unreached {
					p.tried[m.Name]++
				}
			}
		}
	}
	p.next(rollout.Input{Orders: []rollout.Order{{Seq: p.seq, Verb: verb, By: "eve"}}})
}

// TestTheMachineKeepsItsPromisesWhateverHappens plays any fleet with any limits,
// any outcomes and any orders, and aborts it at any moment.
func TestTheMachineKeepsItsPromisesWhateverHappens(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r, err := rollout.NewPlan(fleets(t))
		if err != nil {
			t.Fatal(err)
		}
		p := &player{t: t, r: r, now: time.Unix(1e9, 0), begun: map[string]int{}, tried: map[string]int{}}
		p.next(rollout.Input{})
		steps := rapid.IntRange(0, 120).Draw(t, "steps")
		for range steps {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				p.order(rapid.SampledFrom([]rollout.Verb{rollout.Pause, rollout.Resume, rollout.Resume}).Draw(t, "verb"))
			case 1, 2, 3:
				p.now = p.now.Add(time.Duration(rapid.IntRange(1, 200).Draw(t, "seconds")) * time.Second)
				p.next(rollout.Input{Probes: rollout.Tally{
					Good: rapid.IntRange(0, 50).Draw(t, "good"), Bad: rapid.IntRange(0, 3).Draw(t, "bad"), Unsteady: rapid.IntRange(0, 1).Draw(t, "unsteady"),
				}})
			default:
				p.happen()
			}
		}
		ended := p.r.State.Ended()
		was := p.r.State
		begun := 0
		for _, n := range p.begun {
			begun += n
		}
		p.order(rollout.Abort)
		for range 200 { // whatever comes of what is under way, it comes to an end
			if p.r.State.Ended() {
				break
			}
			if !p.happen() {
				t.Fatalf("aborted in %s it stays %s with nothing under way", was, p.r.State)
			}
		}
		after := 0
		for _, n := range p.begun {
			after += n
		}
		switch {
		case !ended && p.r.State != rollout.Aborted:
			t.Fatalf("aborted in %s it ended as %s", was, p.r.State)
		case ended && p.r.State != was:
			t.Fatalf("an abort after its end changed it from %s to %s", was, p.r.State)
		case after != begun:
			t.Fatalf("%d members were sent for after the abort", after-begun)
		}
	})
}

// TestARolloutThatNobodyDisturbsTakesEveryMember plays any fleet where everything
// goes well.
func TestARolloutThatNobodyDisturbsTakesEveryMember(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r, err := rollout.NewPlan(fleets(t))
		if err != nil {
			t.Fatal(err)
		}
		p := &player{t: t, r: r, now: time.Unix(1e9, 0), begun: map[string]int{}, tried: map[string]int{}}
		p.next(rollout.Input{})
		for range 1000 {
			if p.r.State.Ended() {
				break
			}
			sent := false
			for _, a := range p.acts {
				if a.Do == rollout.Watch {
					continue
				}
				_, m := find(p.r, a.Member)
				what := rollout.Arrived
				if !m.Sent {
					what = rollout.Began
				}
				p.next(rollout.Input{Seen: []rollout.Seen{{Member: a.Member, What: what}}})
				sent = true
				break
			}
			if !sent {
				p.now = p.now.Add(time.Minute)
				p.next(rollout.Input{Probes: rollout.Tally{Good: 10}})
			}
		}
		if p.r.State != rollout.Done {
			t.Fatalf("it is %s: %s", p.r.State, p.r.Reason)
		}
		for _, w := range p.r.Waves {
			for _, m := range w.Members {
				if p.begun[m.Name] != 1 || m.State != rollout.Taken {
					t.Fatalf("%s was sent for %d times and is %s", m.Name, p.begun[m.Name], m.State)
				}
			}
		}
	})
}
