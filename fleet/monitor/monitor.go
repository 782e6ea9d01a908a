// Package monitor watches a fleet: it asks each instance in its turn, judges by
// several probes, remembers what changed, and has people told of it.
//
// The parts, each a goroutine or a few:
//
//   - The schedule (schedule.go) hands instances that are due to a bounded number of
//     workers. When those do not keep up, rounds are left out, and that is said.
//   - The record (record.go) takes results in, one after the other. What it decides
//     by is a mind for each instance (mind.go). A result that changes no mind, as
//     most do, writes nothing.
//   - The writer keeps what the record learns in the store, in one transaction for
//     each batch: minds, changes, incidents and what has to be said of them. So a
//     monitor that dies at any moment leaves a state from which the next one decides
//     the same. While the store cannot be written, the record goes on and the
//     batches wait.
//   - A courier for each channel (courier.go) makes messages of what has to be said,
//     sends each until it has arrived, and notes that.
//   - The view (view.go) is what the fleet's page shows.
//
// Each round of an instance counts at most once over all restarts, with one
// exception that changes nothing: what only says again what is known already.
package monitor

import (
	"cmp"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Options are what a Monitor needs; Inventory, Store and Prober are required.
type Options struct {
	Inventory *fleet.Inventory
	Shard     fleet.Shard // which of its instances are watched; the zero Shard has them all
	Store     *store.Store
	Prober    *fleet.Prober
	Channels  []alert.Channel
	Workers   int // probes at once; 256 when zero
	Log       *slog.Logger

	// Silenced says why nobody is to be told of an instance at a moment: it is in
	// a rollout. Maintenance windows are the inventory's.
	Silenced func(name string, at time.Time) (reason string, ok bool)
	// Link is the page of an instance, for messages; nil for none.
	Link func(name string) string
	// Status makes the fleet's status; fleet.NewStatus when nil.
	Status func(at time.Time, instances []fleet.Instance, results []fleet.Result) fleet.Status
	// Drift compares with what is wanted; fleet.Drifted when nil.
	Drift func(fleet.Instance, fleet.Result) fleet.Drift
	// Probe asks an instance; the Prober when nil.
	Probe func(context.Context, fleet.Instance) fleet.Result
}

const defaultWorkers = 256

// Monitor watches a fleet. Its methods are safe for concurrent use.
type Monitor struct {
	o      Options
	rules  rules
	log    *slog.Logger
	byName map[string]int

	mu      sync.Mutex
	watched []watched // by their place in the shard; what the record alone uses is not guarded
	view    view
	trouble string // of the store; empty while it takes what is written

	own     mind // of the monitor itself; the record's
	rounds  atomic.Int64
	missed  atomic.Int64
	starved atomic.Int64 // when the monitor itself last did not get a processor in time; nanoseconds since 1970

	jobs    chan job
	done    chan outcome
	batches chan store.Batch
	written chan struct{}
	wakes   []chan struct{} // of the couriers
	shouts  sync.WaitGroup  // what is told past the store

	// Of the record's goroutine.
	batch    store.Batch
	writing  bool
	taken    int // results since a batch was handed over
	hours    []store.NamedLatency
	held     []outcome
	signs    bool      // something of the fleet has answered since the begin
	opening  int       // instances whose first result is not there yet
	total    int       // results since the monitor last looked at itself
	ours     int       // of them, those that failed by our own fault
	lifeFrom time.Time // since when it watches; zero while it is in trouble
	lifeSaid time.Time
	looked   time.Time // when it last looked at itself
}

// watched is an instance with what is known of it.
type watched struct {
	in     fleet.Instance
	result fleet.Result // guarded by Monitor.mu
	seen   bool         // guarded by Monitor.mu; there is a result
	record fleet.Record // guarded by Monitor.mu; of whether it works

	busy      atomic.Bool // a probe is under way, or its result waits
	seenFirst bool
	mind      mind
	latency   latency
}

// New returns a Monitor. It makes no call.
func New(o Options) (*Monitor, error) {
	if o.Inventory == nil || o.Store == nil || o.Prober == nil {
		return nil, problem.New(problem.Internal, "Expected an inventory, a store and a prober for the monitor.", "")
	}
	if o.Inventory.Watch == (fleet.Watch{}) {
		withDefaults := *o.Inventory
		withDefaults.Watch = fleet.DefaultWatch()
		o.Inventory = &withDefaults
	}
	watch := o.Inventory.Watch
	judge, err := fleet.NewJudge(watch.Down, watch.Of)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.Status == nil {
		o.Status = fleet.NewStatus
	}
	if o.Drift == nil {
		o.Drift = fleet.Drifted
	}
	if o.Probe == nil {
		o.Probe = inTurn(o.Prober)
	}
	m := &Monitor{
		o: o, log: o.Log, byName: map[string]int{},
		jobs: make(chan job), done: make(chan outcome, 256), batches: make(chan store.Batch), written: make(chan struct{}, 1),
	}
	m.rules = rules{judge: judge, watch: watch, drifted: o.Drift, silenced: m.silenced, tell: m.tell}
	mine := o.Shard.Of(o.Inventory.Instances)
	m.watched = make([]watched, len(mine))
	for i, in := range mine {
		in.Interval = cmp.Or(in.Interval, fleet.DefaultInterval)
		m.watched[i].in = in
		m.byName[in.Name] = i
	}
	for range o.Channels {
		m.wakes = append(m.wakes, make(chan struct{}, 1))
	}
	return m, nil
}

// inTurn probes with no more at once than the machine can bear.
func inTurn(p *fleet.Prober) func(context.Context, fleet.Instance) fleet.Result {
	return func(ctx context.Context, in fleet.Instance) fleet.Result {
		leave, ok := p.Turn(ctx)
		if !ok {
			return fleet.Result{Name: in.Name, URL: in.URL, At: time.Now(), Health: fleet.Unreachable, Fault: fleet.FaultSelf, SelfTrouble: true}
		}
		r := p.One(ctx, in)
		leave(r)
		return r
	}
}

// Run watches until ctx ends; it can be called once. It fails at its begin only:
// where another monitor is at work on the store, or the store cannot be read; that
// ctx ends meanwhile is an end like any other.
// Afterwards whatever happens is said in the log and in Condition, and it goes on.
func (m *Monitor) Run(ctx context.Context) error {
	release, err := m.o.Store.Watch()
	if err != nil {
		return err
	}
	defer release()
	if err := m.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "watching", slog.Int("instances", len(m.watched)), slog.String("shard", m.o.Shard.String()), slog.Int("channels", len(m.o.Channels)))

	var couriers, probing, recording sync.WaitGroup
	for i := range m.o.Channels {
		couriers.Go(func() { m.courier(ctx, m.o.Channels[i], m.wakes[i]) })
	}
	couriers.Go(func() { m.prune(ctx) })
	recording.Go(func() { m.writer(ctx) })
	recording.Go(func() { m.record() })
	probing.Go(func() { m.schedule(ctx, &probing) })

	probing.Wait()
	close(m.done) // the record takes what is left, writes it and ends, and the writer after it
	recording.Wait()
	couriers.Wait()
	m.shouts.Wait()
	m.log.LogAttrs(ctx, slog.LevelInfo, "the watch has ended")
	if trouble := m.Condition().Store; trouble != "" {
		return problem.New(problem.Internal, "The monitor's last words were not written: "+trouble, "What they were about will be seen again by the next one.")
	}
	return nil
}

// load goes on from where the last monitor was.
func (m *Monitor) load(ctx context.Context) error {
	now := time.Now()
	docs, err := m.o.Store.Minds(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{"": true}
	for _, in := range m.o.Inventory.Instances {
		known[in.Name] = true
	}
	m.batch.Seen = now
	for name, doc := range docs {
		saved, err := restore(doc, now)
		if err != nil {
			m.log.LogAttrs(ctx, slog.LevelError, "what was remembered cannot be read: it begins anew", slog.String("instance", name), slog.Any("error", err))
			saved = mind{}
			if err := m.disown(ctx, name, now); err != nil {
				return err
			}
		}
		i, mine := m.byName[name]
		switch {
		case name == "":
			m.own = saved
		case mine:
			m.watched[i].mind = saved
			m.watched[i].record = saved.tracks[working].Record
		case known[name]:
			m.forget(name, &saved, now, "Another poller watches it now.")
		default:
			m.forget(name, &saved, now, "It is not in the inventory any more.")
		}
	}
	names := make([]string, len(m.o.Channels))
	for i, c := range m.o.Channels {
		names[i] = c.Name
	}
	lost, err := m.o.Store.Abandon(ctx, names, now)
	if err != nil {
		return err
	}
	if lost > 0 {
		m.log.LogAttrs(ctx, slog.LevelWarn, "channels are not in the inventory any more, and nobody heard what waited for them", slog.Int("lost", lost))
	}
	m.lifeFrom, m.opening = now, len(m.watched)
	return nil
}

// disown closes what is open of an instance, where it is not known what that is.
func (m *Monitor) disown(ctx context.Context, name string, now time.Time) error {
	all, err := m.o.Store.Incidents(ctx, store.IncidentQuery{Name: name, OpenOnly: true})
	for _, one := range all {
		if one.Name == name { // no name asks for all
			m.batch.Closed = append(m.batch.Closed, store.Closing{ID: one.ID, At: now, Ending: "What was known of it cannot be read: it is looked at anew."})
		}
	}
	return err
}

// forget ends what is known of an instance that is not watched any more.
func (m *Monitor) forget(name string, saved *mind, now time.Time, why string) {
	for i := range saved.tracks {
		if incident := saved.tracks[i].Incident; incident != nil {
			m.batch.Closed = append(m.batch.Closed, store.Closing{ID: incident.ID, At: now, Ending: why})
		}
	}
	if saved.health != "" {
		m.batch.Changes = append(m.batch.Changes, store.Change{At: now, Name: name, What: store.ChangeHealth, From: saved.health, Version: saved.version, Reason: why})
	}
	m.remember(name, nil)
}

func (m *Monitor) remember(name string, doc []byte) {
	if m.batch.Minds == nil {
		m.batch.Minds = map[string][]byte{}
	}
	m.batch.Minds[name] = doc
}

// silenced says why nobody is to be told of an instance.
func (m *Monitor) silenced(in fleet.Instance, at time.Time) string {
	if in.Name == "" {
		return "" // the monitor itself
	}
	if m.o.Silenced != nil {
		if reason, ok := m.o.Silenced(in.Name, at); ok {
			return reason
		}
	}
	if len(m.o.Inventory.Maintenance) == 0 {
		return ""
	}
	labels := in.LabelSet()
	for _, window := range m.o.Inventory.Maintenance {
		if window.Covers(labels, at) {
			return strings.TrimSuffix("Maintenance: "+window.Reason, ": ")
		}
	}
	return ""
}

// tell names the channels that must hear of an incident.
func (m *Monitor) tell(in fleet.Instance, kind fleet.Kind) []string {
	labels := in.LabelSet()
	var to []string
	for _, c := range m.o.Channels {
		if c.Wants(kind, labels) {
			to = append(to, c.Name)
		}
	}
	return to
}

// prune keeps the store from growing, in small steps.
func (m *Monitor) prune(ctx context.Context) {
	for ctx.Err() == nil {
		now := time.Now()
		more, err := m.o.Store.Prune(ctx, now.Add(-m.rules.watch.Keep), now.Add(-m.rules.watch.KeepLatency))
		pause := time.Hour
		switch {
		case err != nil && ctx.Err() == nil:
			m.log.LogAttrs(ctx, slog.LevelWarn, "old records were not removed", slog.Any("error", err))
		case more:
			pause = 100 * time.Millisecond
		}
		waitUntil(ctx, now.Add(pause), nil)
	}
}

// waitUntil returns at a moment, or before it when ctx ends or wake says so.
func waitUntil(ctx context.Context, at time.Time, wake <-chan struct{}) {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-wake:
	}
}

// Condition is how the monitor itself is.
type Condition struct {
	Rounds int64  // probes that were made
	Missed int64  // rounds that were left out, since the workers did not keep up
	Store  string // why the store does not take what is learned; empty while it does
}

// Condition returns how the monitor is.
func (m *Monitor) Condition() Condition {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Condition{Rounds: m.rounds.Load(), Missed: m.missed.Load(), Store: m.trouble}
}
