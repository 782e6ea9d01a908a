package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// Input is all that a step depends on besides the document.
type Input struct {
	Now    time.Time
	Fresh  bool // nobody has watched by now: a soak begins anew
	Seen   []Seen
	Orders []Order // in the order of Seq; those that were taken in before are skipped
	Probes Tally   // of the wave that soaks, since it does
}

// Tally counts the probes of a wave's taken members while it soaks.
type Tally struct {
	Good, Bad int
	Unsteady  int // members whose last probe was not good
}

// Order is what somebody wants of a rollout.
type Order struct {
	Seq  int64
	Verb Verb
	By   string
}

// Seen is something that happened to a member.
type Seen struct {
	Member string
	What   What
	Detail string
	Runs   string // version, where it is known
	Before Before // of Began
}

// What happened to a member.
type What string

// What can happen. In another state than the one that it belongs to, it is late
// and changes nothing.
const (
	Began     What = "began"     // taking: how it is now was noted; delivery may begin
	Again     What = "again"     // taking, reverting: it was inconclusive, and may be tried once more
	Arrived   What = "arrived"   // taking: it runs the target and is well
	Broke     What = "broke"     // taking: it failed and its host went back
	Sick      What = "sick"      // taking, taken: it runs the target and is not well
	Halted    What = "halted"    // taking: it failed and its host could not go back
	Away      What = "away"      // taking, taken: it cannot be reached, or did not arrive in time
	Doubtful  What = "doubtful"  // taking, taken: neither pass nor fail could be shown
	Untouched What = "untouched" // taking: nothing had begun there
	Home      What = "home"      // reverting: it is where it was
	Lost      What = "lost"      // reverting: it could not be taken back
)

// Do is what an Action wants of a member.
type Do string

// What has to be under way.
const (
	Take   Do = "take"   // bring it to the target
	Settle Do = "settle" // finish what may be under way there, begin nothing, and say where it is
	Watch  Do = "watch"  // see whether it stays well
	Back   Do = "back"   // take it to where it was
)

// Action is something that has to be under way for a member.
type Action struct {
	Do     Do
	Wave   string
	Member string
}

// Next returns the rollout as it is after what was seen and ordered, and all
// that has to be under way now: what goes on already and what is to be begun.
// It is pure. Events of the change are in Unsaid.
//
// Of no wave more than MaxUnavailable members are on their way there or back at a
// time, and none that is well is sent on its way while so many are away.
func Next(r Rollout, in Input) (Rollout, []Action) {
	s := step{r: r.clone(), in: in, who: r.By}
	for _, o := range in.Orders {
		if o.Seq > s.r.Order {
			s.r.Order = o.Seq
			s.who = o.By
			s.order(o)
			s.who = r.By
		}
	}
	for _, seen := range in.Seen {
		s.happened(seen)
	}
	if in.Fresh && s.r.State == Running {
		s.resoak()
	}
	for s.once() {
	}
	for _, seen := range in.Seen { // last: what else was seen may have ended all beginning
		if seen.What == Began {
			s.began(seen)
		}
	}
	s.r.CatchUp = s.r.unreached()
	return s.r, s.r.actions()
}

type step struct {
	r   Rollout
	in  Input
	who string
}

// say adds a line to the audit.
func (s *step) say(w *WaveState, m *Member, event, detail string) {
	s.r.Events++
	e := Event{
		Seq: s.r.Events, At: s.in.Now.UTC(), Rollout: s.r.ID, Who: s.who, Event: event,
		To: cmp.Or(s.r.Version, s.r.Tag), Digest: s.r.Digest, Detail: detail,
	}
	if w != nil {
		e.Wave = w.Name
	}
	if m != nil {
		e.Member, e.From = m.Name, m.From
	}
	s.r.Unsaid = append(s.r.Unsaid, e)
}

// enter takes the rollout to a state.
func (s *step) enter(state State, reason string) {
	s.r.State, s.r.Reason = state, reason
	if state.Ended() {
		s.r.Ended = s.in.Now.UTC()
		for i := range s.r.Waves {
			if w := &s.r.Waves[i]; w.State != WavePassed && w.State != WaveFailed {
				w.State = WaveLeftOver
			}
		}
	}
	s.say(nil, nil, string(state), reason)
}

func (s *step) set(w *WaveState, m *Member, state MemberState, detail string) {
	m.State, m.Detail, m.Since = state, detail, s.in.Now.UTC()
	s.say(w, m, string(state), detail)
}

func (s *step) stage(w *WaveState, stage WaveStage, detail string) {
	w.State = stage
	s.say(w, nil, "wave "+string(stage), detail)
}

// order takes in what somebody wants.
func (s *step) order(o Order) {
	state := s.r.State
	switch {
	case o.Verb == Pause && state == Running:
		s.enter(Pausing, "paused by "+o.By)
	case o.Verb == Abort && !state.Ended() && state != Aborting:
		s.enter(Aborting, "aborted by "+o.By)
	case o.Verb == Resume && (state == Pausing || state == Paused || state == Stopping || state == Stopped):
		s.again(state)
		s.enter(Running, "resumed by "+o.By)
	}
}

// again prepares a rollout to go on: what was inconclusive is tried once more,
// and a soak that nobody has watched begins anew.
func (s *step) again(from State) {
	w := s.r.current()
	if w == nil {
		return
	}
	s.resoak()
	for i := range w.Members {
		m := &w.Members[i]
		if m.State == Unclear || m.State == Unreached && from != Pausing && from != Paused {
			m.Arrived = false
			s.set(w, m, Waiting, "is tried again")
		}
	}
}

// resoak lets the soak of the current wave begin anew.
func (s *step) resoak() {
	if w := s.r.current(); w != nil && w.State == WaveSoaking {
		w.State = WaveTaking
	}
}

// happened takes in what was seen of a member.
func (s *step) happened(seen Seen) {
	w, m := s.r.member(seen.Member)
	if m == nil {
		return
	}
	if seen.Runs != "" && (m.State == Taking || m.State == Taken || m.State == TakingBack) {
		m.Runs = seen.Runs
	}
	type in struct {
		state MemberState
		what  What
	}
	switch (in{m.State, seen.What}) {
	case in{Taking, Arrived}:
		m.Arrived = true
		s.set(w, m, Taken, seen.Detail)
	case in{Taking, Broke}:
		m.Failed = true
		s.set(w, m, FailedBack, seen.Detail)
	case in{Taking, Sick}, in{Taken, Sick}:
		m.Failed = true
		s.set(w, m, Bad, seen.Detail)
	case in{Taking, Halted}:
		m.Failed = true
		s.set(w, m, Astray, seen.Detail)
	case in{Taking, Away}, in{Taken, Away}:
		s.set(w, m, Unreached, seen.Detail)
	case in{Taking, Doubtful}, in{Taken, Doubtful}:
		s.set(w, m, Unclear, seen.Detail)
	case in{Taking, Untouched}:
		m.Sent = false
		s.set(w, m, Waiting, seen.Detail)
	case in{TakingBack, Home}:
		m.Recall = false
		if m.Failed {
			seen.Detail = m.Detail + "; " + seen.Detail
		}
		s.set(w, m, Reverted, seen.Detail)
	case in{TakingBack, Lost}:
		m.Recall = false
		s.set(w, m, Astray, seen.Detail)
	}
}

// began lets the delivery to a member begin, while the rollout goes on.
func (s *step) began(seen Seen) {
	if _, m := s.r.member(seen.Member); m != nil && m.State == Taking && s.r.State == Running {
		m.Before, m.Sent, m.Since = seen.Before, true, s.in.Now.UTC() // its time runs from now
		m.From = cmp.Or(seen.Before.Image.Version, m.From)
	}
}

// mayGoOn reports whether the job of a member may begin something there: to
// deliver while the rollout goes on, to take it back always.
func (r *Rollout) mayGoOn(member string) bool {
	_, m := r.member(member)
	switch {
	case m == nil:
		return false
	case m.State == TakingBack:
		return true
	default:
		return m.State == Taking && m.Sent && r.State == Running
	}
}

// once takes one step by itself and reports whether there was one to take.
func (s *step) once() bool {
	switch s.r.State {
	case Planned:
		s.enter(Running, "")
		return true
	case Running:
		return s.run()
	case Pausing, Stopping:
		w := s.r.current()
		switch {
		case w != nil && s.failed(w):
		case s.r.pushing():
			return false
		case s.r.State == Pausing:
			s.enter(Paused, s.r.Reason)
		default:
			s.enter(Stopped, s.r.Reason)
		}
		return true
	case Reverting:
		return s.revert()
	case Aborting:
		return s.abort()
	default:
		return false
	}
}

// failed begins the way back of a wave in which a member failed.
func (s *step) failed(w *WaveState) bool {
	at := slices.IndexFunc(w.Members, func(m Member) bool { return m.Failed })
	if at < 0 {
		return false
	}
	m := w.Members[at]
	s.fail(w, fmt.Sprintf("%s failed in the wave %s: %s", m.Name, w.Name, m.Detail))
	return true
}

func (s *step) fail(w *WaveState, reason string) {
	s.stage(w, WaveFailed, reason)
	s.enter(Reverting, reason)
}

// run is one step of a rollout that goes on.
func (s *step) run() bool {
	w := s.r.current()
	if w == nil {
		s.enter(Done, "")
		return true
	}
	if s.failed(w) {
		return true
	}
	if at := slices.IndexFunc(w.Members, func(m Member) bool { return m.State == Unclear }); at >= 0 {
		s.enter(Stopping, fmt.Sprintf("%s is inconclusive: %s", w.Members[at].Name, w.Members[at].Detail))
		return true
	}
	if n := len(s.r.unreached()); n > s.r.MaxUnreachable {
		s.enter(Stopping, fmt.Sprintf("%d members cannot be reached, and max_unreachable is %d", n, s.r.MaxUnreachable))
		return true
	}
	switch w.State {
	case WaveWaiting:
		w.Began = s.in.Now.UTC()
		s.stage(w, WaveTaking, fmt.Sprintf("%d members, %d at a time", len(w.Members), w.MaxUnavailable))
		return true
	case WaveTaking:
		return s.begin(w)
	default:
		return s.soak(w)
	}
}

// begin sends members on their way, and ends the stage when all are there.
func (s *step) begin(w *WaveState) bool {
	waiting := slices.IndexFunc(w.Members, func(m Member) bool { return m.State == Waiting })
	switch {
	case waiting >= 0 && w.underway() < w.MaxUnavailable:
		m := &w.Members[waiting]
		if !m.Sent { // else the way back is the one that was noted the first time
			m.Before.At = time.Time{}
		}
		s.set(w, m, Taking, "")
	case w.underway() > 0:
		return false
	case s.unproven(w):
	default:
		w.Settled = s.in.Now.UTC()
		s.stage(w, WaveSoaking, "for "+time.Duration(w.Soak).String())
	}
	return true
}

// unproven stops a rollout of which no member runs the target: a wave that could
// not be reached has shown nothing.
func (s *step) unproven(w *WaveState) bool {
	if s.r.Count(Taken) > 0 {
		return false
	}
	s.enter(Stopping, fmt.Sprintf("no member of the wave %s could be taken, so nothing is known of %s", w.Name, cmp.Or(s.r.Version, s.r.Tag)))
	return true
}

// soak lets a wave pass that has stayed well for long enough.
func (s *step) soak(w *WaveState) bool {
	over := !s.in.Now.Before(w.Settled.Add(time.Duration(w.Soak)))
	p := s.in.Probes
	const few = 20 // probes, before a share of them says anything
	if all := p.Good + p.Bad; p.Bad > 0 && (over || all >= few) && 100*p.Bad > s.r.ErrorBudget*all {
		reason := fmt.Sprintf("%d of %d probes of the wave %s failed while it soaked, and the error budget is %d%%", p.Bad, all, w.Name, s.r.ErrorBudget)
		s.fail(w, reason)
		return true
	}
	if !over || p.Unsteady > 0 && w.Soak > 0 {
		return false
	}
	if s.unproven(w) {
		return true
	}
	w.Ended = s.in.Now.UTC()
	s.stage(w, WavePassed, "")
	return true
}

// revert is one step of a wave's way back.
func (s *step) revert() bool {
	at := slices.IndexFunc(s.r.Waves, func(w WaveState) bool { return w.State == WaveFailed })
	w := &s.r.Waves[at]
	// Those that are not well go first: they cost nobody anything, and one that is
	// well never leaves while one that is not still waits.
	for _, well := range []bool{false, true} {
		for i := range w.Members {
			m := &w.Members[i]
			if !m.needsBack() || (m.State == Taken) != well {
				continue
			}
			if m.State != Taking && w.underway() >= w.MaxUnavailable {
				continue
			}
			s.back(w, m, m.State == Unreached || m.State == FailedBack)
			return true
		}
	}
	if w.underway() > 0 || slices.ContainsFunc(w.Members, func(m Member) bool { return m.needsBack() }) {
		return false
	}
	w.Ended = s.in.Now.UTC()
	s.enter(Failed, s.r.Reason)
	return true
}

// needsBack reports whether a member of a failed wave has to be taken back. One
// that is being deployed over SSH comes to an end first.
func (m Member) needsBack() bool {
	switch m.State {
	case Taken, Bad:
		return true
	case Unclear, Unreached, Waiting: // it may run the target, or come to
		return m.Sent
	case Taking:
		return m.Delivery == fleet.Pull
	case FailedBack: // what its host reads has to go back, too
		return m.Delivery == fleet.Pull && m.Sent
	default:
		return false
	}
}

// back sends a member on its way back. To recall it is to take its desired state
// back and not to wait for it.
func (s *step) back(w *WaveState, m *Member, recall bool) {
	if !m.Sent && m.State == Taking {
		s.set(w, m, Waiting, "had not begun")
		return
	}
	m.Recall = recall
	s.set(w, m, TakingBack, m.Detail)
}

// callable reports whether an abort takes back what a member's host reads: it has
// not arrived, and could yet.
func (m Member) callable() bool {
	switch m.State {
	case Taking:
		return m.Delivery == fleet.Pull
	case Waiting, Unreached, Unclear:
		return m.Delivery == fleet.Pull && m.Sent && !m.Arrived
	default:
		return false
	}
}

// abort is one step of an end before the end: deploys come to their end, and who
// has not arrived is called back.
func (s *step) abort() bool {
	busy := false
	for i := range s.r.Waves {
		w := &s.r.Waves[i]
		for n := range w.Members {
			m := &w.Members[n]
			callable := m.callable()
			if callable && (m.State == Taking || w.underway() < w.MaxUnavailable) {
				s.back(w, m, true)
				return true
			}
			busy = busy || callable
		}
		busy = busy || w.underway() > 0
	}
	if busy {
		return false
	}
	s.enter(Aborted, s.r.Reason)
	return true
}

// current returns the first wave that has not passed.
func (r *Rollout) current() *WaveState {
	for i := range r.Waves {
		if r.Waves[i].State != WavePassed {
			return &r.Waves[i]
		}
	}
	return nil
}

// underway counts the members on their way, there or back.
func (w *WaveState) underway() int {
	return w.count(Taking, TakingBack)
}

func (w *WaveState) count(states ...MemberState) (n int) {
	for i := range w.Members {
		if slices.Contains(states, w.Members[i].State) {
			n++
		}
	}
	return n
}

// pushing reports whether a deploy over SSH is under way.
func (r *Rollout) pushing() bool {
	return slices.ContainsFunc(r.Waves, func(w WaveState) bool {
		return slices.ContainsFunc(w.Members, func(m Member) bool {
			return m.State == Taking && m.Delivery == fleet.Push || m.State == TakingBack
		})
	})
}

func (r *Rollout) unreached() []string {
	names := []string{}
	for _, w := range r.Waves {
		for _, m := range w.Members {
			if m.State == Unreached {
				names = append(names, m.Name)
			}
		}
	}
	return names
}

// actions lists what has to be under way.
func (r *Rollout) actions() []Action {
	var all []Action
	for i := range r.Waves {
		w := &r.Waves[i]
		add := func(do Do, m Member) { all = append(all, Action{Do: do, Wave: w.Name, Member: m.Name}) }
		for _, m := range w.Members {
			switch {
			case m.State == TakingBack:
				add(Back, m)
			case m.State == Taking && r.State == Running:
				add(Take, m)
			case m.State == Taking && m.Delivery == fleet.Push && !r.State.Resting():
				add(Settle, m)
			case m.State == Taken && r.State == Running && w.State != WavePassed && w.Soak > 0:
				add(Watch, m)
			}
		}
	}
	return all
}
