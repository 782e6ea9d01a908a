package rollout

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// worker does one job for one member.
type worker struct {
	*Engine
	m      Member
	job    Job
	target Target
	window time.Duration // to arrive in; of a member that comes by itself
	every  time.Duration
}

const (
	// patience is how many probes in a row have to find our own network at fault
	// before that is said.
	patience = 6
	// sickFor is how long a member that came by itself may be unwell: its host has
	// the same doubts and goes back by itself.
	sickFor = 15 * time.Minute
)

// do returns what came of the job; nothing where nobody wants to know any more.
func (w *worker) do(ctx context.Context, what Do) Seen {
	if _, known := w.instances[w.m.Name]; !known {
		detail := "it is not in the inventory any more"
		switch what {
		case Watch:
			return Seen{What: Doubtful, Detail: detail}
		case Back:
			return Seen{What: Lost, Detail: detail}
		default:
			return Seen{What: Away, Detail: detail}
		}
	}
	deliver := w.o.Deliver[w.m.Delivery]
	switch what {
	case Watch:
		return w.watch(ctx, deliver)
	case Back:
		return w.back(ctx, deliver)
	case Settle:
		return w.follow(ctx, deliver.Settle(ctx, w.job))
	default:
		if w.m.Before.At.IsZero() {
			seen, ok := w.look(ctx, deliver)
			if !ok || !w.report(seen) {
				return without(seen, Began)
			}
			w.m.Before, w.job.Before, w.m.Since = seen.Before, seen.Before, time.Now()
			w.job.Asked = w.m.Since
		}
		return w.follow(ctx, w.try(ctx, deliver.Take))
	}
}

// try delivers, and once more where that was inconclusive, unless the rollout has
// come to another mind.
func (w *worker) try(ctx context.Context, deliver func(context.Context, Job) Outcome) Outcome {
	for again := 0; ; again++ {
		out := deliver(ctx, w.job)
		if out.What != Doubtful || again >= w.o.Retries || pause.For(ctx, w.every) != nil || !w.report(Seen{What: Again}) {
			return out
		}
	}
}

// byHand adds what a person can do where the rollout cannot.
func (w *worker) byHand(seen Seen) Seen {
	if host := w.job.Instance.Host; host != "" && (seen.What == Lost || seen.What == Halted) {
		seen.Detail += "; look: agnesctl host status --host " + host + ", and go back by hand: agnesctl host rollback --host " + host
	}
	return seen
}

// without drops what was reported already.
func without(seen Seen, reported What) Seen {
	if seen.What == reported {
		return Seen{}
	}
	return seen
}

// look notes how the member is before it is touched. A member that comes by
// itself and does not answer is not sent for: nobody would know from where.
func (w *worker) look(ctx context.Context, deliver Deliverer) (seen Seen, ok bool) {
	var r fleet.Result
	for again := range 3 {
		if again > 0 && pause.For(ctx, w.every) != nil {
			return Seen{}, false
		}
		if r = w.o.Probe(ctx, w.job.Instance); r.Good() {
			break
		}
	}
	switch {
	case r.SelfTrouble:
		return Seen{What: Doubtful, Detail: "this machine or its network is in trouble: " + said(r)}, false
	case r.Health == fleet.Unreachable && w.m.Delivery == fleet.Pull:
		return Seen{What: Away, Detail: "it does not answer, and was not sent for: " + said(r)}, false
	}
	image, desired, err := deliver.Look(ctx, w.job)
	if err != nil && !isAway(err) && pause.For(ctx, w.every) == nil { // a host that goes away in the midst of a command is away
		image, desired, err = deliver.Look(ctx, w.job)
	}
	switch {
	case isAway(err):
		return Seen{What: Away, Detail: err.Error()}, false
	case err != nil:
		return Seen{What: Doubtful, Detail: "it cannot be said how to come back from where it is: " + err.Error()}, false
	}
	image.Version, image.Channel, image.Digest = cmp.Or(image.Version, r.Version), cmp.Or(image.Channel, r.Channel), cmp.Or(image.Digest, r.Digest)
	return Seen{What: Began, Runs: r.Version, Before: Before{
		At: time.Now().UTC(), Health: r.Health, Image: image, Desired: desired, Synced: r.LastSync, Stale: r.StaleTables, Details: r.Details,
	}}, true
}

// isAway reports whether an error says that a host cannot be reached.
func isAway(err error) bool {
	return err != nil && problem.As(err).Code == codeAway
}

const codeAway = "member_away"

// follow looks whether the member shows what was delivered.
func (w *worker) follow(ctx context.Context, out Outcome) Seen {
	if out.What != Delivered {
		return Seen{What: out.What, Detail: out.Detail, Runs: out.Runs}
	}
	return w.arrive(ctx)
}

// arrive waits for the member to run the target and be well, twice in three
// probes.
func (w *worker) arrive(ctx context.Context) Seen {
	within := w.window
	if w.m.Delivery == fleet.Push {
		within = w.o.Settle
	}
	until := time.Now().Add(within)
	if began := w.m.Since; !began.IsZero() && w.m.Delivery == fleet.Pull { // also before this program
		until = began.Add(within)
	}
	var record fleet.Record
	var firstSick time.Time
	ours := 0
	for {
		r := w.o.Probe(ctx, w.job.Instance)
		if ctx.Err() != nil {
			return Seen{}
		}
		bad := w.unwell(r)
		there := r.Good() && w.target.runs(r)
		switch {
		case r.SelfTrouble:
			ours++
		case w.m.Delivery == fleet.Pull && r.UpdateFailed == w.target.Digest && !w.target.runs(r):
			return Seen{What: Broke, Detail: "its host tried it, and took it back because it failed: agnesctl host status says why", Runs: r.Version}
		case there && bad == "":
			ours = 0
			if record, _ = w.judge.Decide(record, r.At, fleet.Good); record.Standing == fleet.Up {
				return Seen{What: Arrived, Detail: w.arrived(r), Runs: r.Version}
			}
		case w.target.runs(r) || w.m.Delivery == fleet.Push:
			ours = 0
			record, _ = w.judge.Decide(record, r.At, fleet.Bad)
			if firstSick.IsZero() {
				firstSick = time.Now()
			}
		default:
			ours, firstSick = 0, time.Time{}
		}
		if there && bad == "" { // at the end of its time, too: it has arrived, unless the next probe says otherwise
			if pause.For(ctx, w.every) != nil {
				return Seen{}
			}
			continue
		}
		if !time.Now().Before(until) || !firstSick.IsZero() && w.m.Delivery == fleet.Pull && time.Since(firstSick) >= sickFor {
			return w.late(r, bad, ours > 0)
		}
		if pause.For(ctx, w.every) != nil {
			return Seen{}
		}
	}
}

func (w *worker) arrived(r fleet.Result) string {
	text := "runs " + cmp.Or(r.Version, w.target.Digest)
	if !r.Details {
		text += "; without a token its image's digest and the age of its data are not known"
	}
	return text
}

// late is what it means that a member has not arrived in time.
func (w *worker) late(r fleet.Result, bad string, ours bool) Seen {
	seen := Seen{Runs: r.Version}
	switch {
	case ours:
		seen.What, seen.Detail = Doubtful, "this machine or its network is in trouble: "+said(r)
	case w.target.runs(r):
		seen.What, seen.Detail = Sick, "it runs "+cmp.Or(r.Version, "the target")+" and is not well: "+bad
	case w.m.Delivery == fleet.Pull && r.Health == fleet.Unreachable:
		seen.What, seen.Detail = Away, fmt.Sprintf("it does not answer after %s: %s", w.window, said(r))
	case w.m.Delivery == fleet.Pull:
		seen.What, seen.Detail = Away, fmt.Sprintf("it did not arrive within %s and runs %s", w.window, cmp.Or(r.Version, "nothing known"))
	case r.Version == "" && w.m.Before.Health == fleet.Unreachable:
		seen.What, seen.Detail = Arrived, "its address does not answer here, now as before; the deploy's own tests passed"
	case r.Version == "":
		seen.What, seen.Detail = Sick, "its address answered before the deploy and does not any more: "+said(r)
	default:
		seen.What, seen.Detail = Doubtful, fmt.Sprintf("its host was taken to %s, and its address shows %s: is it another machine's?", cmp.Or(w.target.Version, w.target.Digest), r.Version)
	}
	return seen
}

// unwell returns what speaks against a member that should run the target, or
// nothing.
func (w *worker) unwell(r fleet.Result) string {
	switch b := w.m.Before; {
	case !r.Good():
		return said(r)
	case !w.target.runs(r):
		return "it runs " + cmp.Or(r.Version, "nothing known")
	case b.Details && r.Details && r.LastSync.Before(b.Synced):
		return fmt.Sprintf("its data is from %s, and was from %s before", r.LastSync.UTC().Format(time.RFC3339), b.Synced.UTC().Format(time.RFC3339))
	case b.Details && r.Details && r.StaleTables > b.Stale:
		return fmt.Sprintf("%d of its tables are stale, and %d were before", r.StaleTables, b.Stale)
	}
	return ""
}

func said(r fleet.Result) string {
	if r.Err != nil {
		return r.Err.Message
	}
	return string(r.Health)
}

// watch sees whether a member stays well, and returns once it does not.
func (w *worker) watch(ctx context.Context, deliver Deliverer) Seen {
	var record fleet.Record
	ours := 0
	for {
		r := w.o.Probe(ctx, w.job.Instance)
		if ctx.Err() != nil {
			return Seen{}
		}
		bad := w.unwell(r)
		hidden := w.m.Delivery == fleet.Push && w.m.Before.Health == fleet.Unreachable && r.Health == fleet.Unreachable
		switch {
		case r.SelfTrouble:
			if ours++; ours >= patience {
				return Seen{What: Doubtful, Detail: "this machine or its network is in trouble: " + said(r)}
			}
		case bad == "" || hidden:
			ours = 0
			w.tally.add(w.m.Name, true, true)
			record, _ = w.judge.Decide(record, r.At, fleet.Good)
		default:
			ours = 0
			w.tally.add(w.m.Name, false, r.Health != fleet.Unreachable)
			if record, _ = w.judge.Decide(record, r.At, fleet.Bad); record.Standing == fleet.Down {
				return w.down(ctx, deliver, r, bad)
			}
		}
		if pause.For(ctx, w.every) != nil {
			return Seen{}
		}
	}
}

// down tells a host that is gone from an instance that is.
func (w *worker) down(ctx context.Context, deliver Deliverer, r fleet.Result, bad string) Seen {
	if r.Health != fleet.Unreachable {
		return Seen{What: Sick, Detail: bad, Runs: r.Version}
	}
	if w.m.Delivery == fleet.Push {
		if _, _, err := deliver.Look(ctx, w.job); !isAway(err) {
			return Seen{What: Sick, Detail: "its host answers and it does not: " + bad}
		}
	}
	return Seen{What: Away, Detail: "it answered and does not any more: " + bad}
}

// back takes a member to where it was.
func (w *worker) back(ctx context.Context, deliver Deliverer) Seen {
	out := w.try(ctx, deliver.Back)
	if out.What == Doubtful {
		out.What = Lost
	}
	if out.What != Delivered {
		return Seen{What: out.What, Detail: out.Detail, Runs: out.Runs}
	}
	if w.m.Recall {
		return Seen{What: Home, Detail: "it had not arrived, and what it shall run is what it ran"}
	}
	before := Target{Version: w.m.Before.Image.Version, Channel: w.m.Before.Image.Channel, Digest: w.m.Before.Image.Digest}
	until := w.m.Since.Add(w.window)
	for {
		r := w.o.Probe(ctx, w.job.Instance)
		switch {
		case ctx.Err() != nil:
			return Seen{}
		case before.runs(r) && (r.Good() || w.m.Before.Health == fleet.Unhealthy): // no better than it was
			return Seen{What: Home, Detail: "runs " + cmp.Or(r.Version, before.Digest) + " again", Runs: r.Version}
		case !time.Now().Before(until):
			return Seen{What: Lost, Runs: r.Version, Detail: fmt.Sprintf("what it shall run is %s again, and it did not come back within %s: %s", cmp.Or(before.Version, before.Digest), w.window, said(r))}
		}
		if pause.For(ctx, w.every) != nil {
			return Seen{}
		}
	}
}
