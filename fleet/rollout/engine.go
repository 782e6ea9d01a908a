package rollout

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Options are what an Engine works with.
type Options struct {
	Store     *store.Store
	Deliver   map[string]Deliverer // by fleet.Push and fleet.Pull
	Probe     func(context.Context, fleet.Instance) fleet.Result
	Instances []fleet.Instance
	Audit     string                       // file; none when empty
	Notify    func(context.Context, Event) // of each line of the audit, in order; may be nil
	Log       *slog.Logger

	// Stay keeps the engine at a rollout that somebody else's order has paused, so
	// that theirs can resume it, too.
	Stay bool

	Retries int // how often a delivery or a way back that was inconclusive is repeated

	Every  time.Duration // between two probes of a member; 5 s when zero
	Settle time.Duration // how long a member may take to show what was deployed to it; 2 min when zero
	Poll   time.Duration // between two looks for orders; 1 s when zero
}

// Engine drives a rollout.
type Engine struct {
	o         Options
	instances map[string]fleet.Instance
	judge     fleet.Judge
	reports   chan report
	wake      chan struct{} // a job has ended: another one for its member can begin
	tally     tally
}

// New returns an Engine. One drives one rollout.
func New(o Options) (*Engine, error) {
	judge, err := fleet.NewJudge(2, 3)
	if err != nil {
		return nil, err
	}
	o.Every = cmp.Or(o.Every, 5*time.Second)
	o.Settle = cmp.Or(o.Settle, 2*time.Minute)
	o.Poll = cmp.Or(o.Poll, time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{o: o, instances: map[string]fleet.Instance{}, judge: judge, reports: make(chan report), wake: make(chan struct{}, 1)}
	for _, in := range o.Instances {
		e.instances[in.Name] = in
	}
	return e, nil
}

// report is what a job has seen. The engine answers whether the job may begin
// what it is for, after it has written the report down.
type report struct {
	seen   Seen
	answer chan bool
}

// job is something under way for a member.
type job struct {
	do      Do
	deploys bool // over SSH: it is never cut off
	cancel  context.CancelFunc
	ended   chan struct{}
}

// Run drives a rollout until nothing happens by itself any more, and returns it
// as it is then. The end of ctx pauses it: nothing begins, and what is under way
// is finished. The rollout is saved while the lease is held; once it is lost,
// Run ends with store.ErrLeaseLost.
func (e *Engine) Run(ctx context.Context, lease *Lease, r Rollout) (Rollout, error) {
	audit, err := openAudit(e.o.Audit, r.ID)
	if err != nil {
		return r, err
	}
	defer audit.close()
	work := lease.held // outlives ctx
	l := &loop{Engine: e, lease: lease, audit: audit, r: r, jobs: map[string]*job{}}
	defer l.leave()
	if err := l.record(work, r.Unsaid); err != nil {
		return r, err
	}
	tick := time.NewTicker(e.o.Poll)
	defer tick.Stop()
	interrupted := ctx.Done()
	for {
		if err := l.turn(work); err != nil {
			return l.r, err
		}
		if l.r.State.Resting() && (l.r.State != Paused || !e.o.Stay || ctx.Err() != nil) {
			return l.r, nil
		}
		select {
		case got := <-e.reports:
			l.pending = append(l.pending, got)
		case <-e.wake:
		case <-tick.C:
		case <-interrupted:
			interrupted = nil
			if err := Give(work, e.o.Store, l.r.ID, Pause, lease.owner+" (interrupted)"); err != nil && !problem.Is(err, problem.Refused) {
				return l.r, err
			}
		case <-lease.held.Done():
			return l.r, context.Cause(lease.held)
		}
		l.drain()
	}
}

// leave ends what only watches, and waits for deploys: one that is cut off would
// have to be ended by somebody. What they report is not written down; the next
// engine asks again.
func (l *loop) leave() {
	for _, p := range l.pending {
		p.answer <- false
	}
	done := make(chan struct{})
	var all sync.WaitGroup
	for _, j := range l.jobs {
		if !j.deploys {
			j.cancel()
		}
		all.Go(func() { <-j.ended })
	}
	go func() { all.Wait(); close(done) }()
	for {
		select {
		case got := <-l.reports:
			got.answer <- false
		case <-done:
			return
		}
	}
}

// loop is one run of an engine.
type loop struct {
	*Engine
	lease   *Lease
	audit   *audit
	r       Rollout
	jobs    map[string]*job
	pending []report
	turns   int
}

// drain takes in what else was reported by now, so that it is written down once.
func (l *loop) drain() {
	for {
		select {
		case got := <-l.reports:
			l.pending = append(l.pending, got)
		default:
			return
		}
	}
}

// turn takes in what happened, writes down what follows, and begins it.
func (l *loop) turn(ctx context.Context) error {
	orders, err := l.o.Store.Orders(ctx, l.r.ID, l.r.Order)
	if err != nil {
		return err
	}
	in := Input{Now: time.Now(), Fresh: l.turns == 0, Probes: l.tally.count(l.r.soaking())}
	for _, o := range orders {
		in.Orders = append(in.Orders, Order{Seq: o.Seq, Verb: Verb(o.Verb), By: o.By})
	}
	for _, p := range l.pending {
		in.Seen = append(in.Seen, p.seen)
	}
	next, actions := Next(l.r, in)
	if len(in.Seen)+len(in.Orders) > 0 || next.Events != l.r.Events {
		if err := l.save(ctx, next); err != nil {
			return err
		}
	}
	for _, p := range l.pending {
		p.answer <- l.r.mayGoOn(p.seen.Member)
	}
	l.pending = nil
	l.turns++
	l.tally.begin(l.r.soaking())
	l.reconcile(ctx, actions)
	return nil
}

// save writes the document down, then its new lines of the audit.
func (l *loop) save(ctx context.Context, next Rollout) error {
	doc, err := json.Marshal(next)
	if err != nil {
		return err
	}
	record := store.Rollout{ID: next.ID, Started: next.Started, State: string(next.State), Doc: doc}
	for again := 0; ; again++ {
		err := l.o.Store.SaveRollout(ctx, record, l.lease.local)
		if err == nil {
			break
		}
		if errors.Is(err, store.ErrLeaseLost) || again == 5 {
			return err
		}
		if err := pause.For(ctx, time.Second); err != nil {
			return context.Cause(ctx)
		}
	}
	l.r = next
	return l.record(ctx, next.Unsaid)
}

func (l *loop) record(ctx context.Context, events []Event) error {
	news, err := l.audit.write(events)
	if err != nil {
		return err
	}
	for _, e := range news {
		l.o.Log.Info("The rollout went on.", "event", e.Event, "wave", e.Wave, "member", e.Member, "detail", e.Detail)
		if l.o.Notify != nil {
			l.o.Notify(ctx, e)
		}
	}
	return nil
}

// reconcile begins what has to be under way and is not, and ends what has not to
// be. A deploy that has begun is never cut off.
func (l *loop) reconcile(ctx context.Context, actions []Action) {
	wanted := map[string]Action{}
	for _, a := range actions {
		wanted[a.Member] = a
	}
	for name, j := range l.jobs {
		select {
		case <-j.ended:
			delete(l.jobs, name)
			continue
		default:
		}
		a, still := wanted[name]
		if !j.deploys && (!still || a.Do != j.do) {
			j.cancel()
		}
	}
	for name, a := range wanted {
		if _, busy := l.jobs[name]; !busy {
			l.jobs[name] = l.start(context.WithoutCancel(ctx), a) // leave ends it
		}
	}
}

func (l *loop) start(ctx context.Context, a Action) *job {
	ctx, cancel := context.WithCancel(ctx)
	_, m := l.r.member(a.Member)
	j := &job{do: a.Do, deploys: a.Do != Watch && m.Delivery == fleet.Push, cancel: cancel, ended: make(chan struct{})}
	w := &worker{Engine: l.Engine, m: *m, target: l.r.target(), window: time.Duration(l.r.ArriveWithin)}
	w.job = Job{
		Rollout: l.r.ID, Wave: a.Wave, Instance: l.instances[a.Member], Before: m.Before, Asked: m.Since, Recall: m.Recall,
		Target: deploy.Image{Repository: l.r.Image, Tag: l.r.Tag, Digest: l.r.Digest, Version: l.r.Version, Channel: l.r.Channel},
	}
	every := max(l.o.Every, time.Duration(len(l.jobs)/100)*time.Second)
	w.every = every
	go func() {
		defer func() {
			cancel()
			close(j.ended)
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}()
		seen := w.byHand(w.do(ctx, a.Do))
		if seen.What == "" || ctx.Err() != nil {
			return // nobody wants to know any more
		}
		w.report(seen)
	}()
	return j
}

// report hands over what was seen, and returns whether the member may be touched.
func (w *worker) report(seen Seen) bool {
	seen.Member = w.m.Name
	answer := make(chan bool, 1)
	w.reports <- report{seen, answer}
	return <-answer
}

func (r *Rollout) target() Target {
	return Target{Image: r.Image, Tag: r.Tag, Digest: r.Digest, Version: r.Version, Channel: r.Channel}
}

// soaking returns the name of the wave that soaks, or nothing, and when it began.
func (r *Rollout) soaking() soak {
	if w := r.current(); w != nil && w.State == WaveSoaking && r.State == Running {
		return soak{wave: w.Name, since: w.Settled, members: w.count(Taken)}
	}
	return soak{}
}

type soak struct {
	wave    string
	since   time.Time
	members int
}

// tally counts the probes of the soak that goes on.
type tally struct {
	mu        sync.Mutex
	of        soak
	good, bad int
	steady    map[string]bool
}

// begin starts anew where another soak goes on.
func (t *tally) begin(s soak) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of.wave != s.wave || !t.of.since.Equal(s.since) {
		t.good, t.bad, t.steady = 0, 0, map[string]bool{}
	}
	t.of = s
}

// add takes in a probe. One that nothing answered leaves its member unsteady and
// speaks against nobody.
func (t *tally) add(member string, good, answered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.of.wave == "":
		return
	case good:
		t.good++
	case answered:
		t.bad++
	}
	t.steady[member] = good
}

func (t *tally) count(s soak) Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of.wave != s.wave || !t.of.since.Equal(s.since) {
		return Tally{Unsteady: s.members}
	}
	steady := 0
	for _, good := range t.steady {
		if good {
			steady++
		}
	}
	return Tally{Good: t.good, Bad: t.bad, Unsteady: max(0, s.members-steady)}
}
