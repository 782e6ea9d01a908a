package monitor_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// bench is a fleet whose answers a test decides, and what people hear.
type bench struct {
	t      *testing.T
	dir    string
	o      monitor.Options
	m      *monitor.Monitor
	prober *fleet.Prober

	mu       sync.Mutex
	answer   func(name string) fleet.Result
	messages []alert.Message
	asked    map[string]int
	refuse   error
}

func newBench(t *testing.T, names ...string) *bench {
	b := &bench{t: t, dir: stateDir(t), asked: map[string]int{}, prober: fleet.NewProber(fleet.ProbeOptions{})}
	t.Cleanup(b.prober.Close)
	inventory := &fleet.Inventory{Watch: fleet.DefaultWatch()}
	for _, name := range names {
		inventory.Instances = append(inventory.Instances, fleet.Instance{Name: name, URL: "https://" + name + ".example.com", Channel: "stable", Interval: 30 * time.Second, Timeout: time.Second, Labels: map[string]string{"of": name}})
	}
	b.answers(nil)
	b.o = monitor.Options{Inventory: inventory, Prober: b.prober, Probe: b.probe, Channels: []alert.Channel{{Alert: fleet.Alert{Name: "chat", Type: fleet.AlertSlack}, Sink: b}}}
	return b
}

// answers decides what instances say that are not well.
func (b *bench) answers(say func(name string) fleet.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = func(name string) fleet.Result {
		if say != nil {
			if r := say(name); r.Health != "" {
				return r
			}
		}
		return fleet.Result{Health: fleet.Healthy, Reached: true, Version: "2026.04.1", Channel: "stable", Timing: fleet.Timing{Total: 5 * time.Millisecond}}
	}
}

func (b *bench) probe(_ context.Context, in fleet.Instance) fleet.Result {
	waitFor(3 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[in.Name]++
	r := b.answer(in.Name)
	r.Name, r.URL, r.At = in.Name, in.URL, time.Now().Add(-3*time.Millisecond)
	return r
}

func (b *bench) Send(_ context.Context, m alert.Message) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != nil {
		return "", b.refuse
	}
	b.messages = append(b.messages, m)
	return "", nil
}

func (b *bench) refuses(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = err
}

func (b *bench) times(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[name]
}

// heard is each thing in its order, and forgets it.
func (b *bench) heard() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.messages {
		for _, i := range m.Items {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", i.Name, i.Kind, i.Event)))
		}
	}
	b.messages = nil
	return all
}

func (b *bench) expect(when string, want ...string) {
	b.t.Helper()
	if got := b.heard(); !slices.Equal(got, want) {
		b.t.Errorf("%s people heard %q, want %q", when, got, want)
	}
}

// run starts the monitor and returns how to end it.
func (b *bench) run() (stop func()) {
	b.t.Helper()
	s, err := store.Open(b.t.Context(), b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.o.Store = s
	if b.m, err = monitor.New(b.o); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
		_ = s.Close()
	}
}

func (b *bench) incidents() []store.Incident {
	b.t.Helper()
	all, err := b.o.Store.Incidents(b.t.Context(), store.IncidentQuery{})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

var (
	silent  = fleet.Result{Health: fleet.Unreachable, Err: problem.New(problem.Unavailable, "It is silent.", "Look at its machine.")}
	refused = fleet.Result{Health: fleet.Unreachable, Reached: true}
	offline = fleet.Result{Health: fleet.Unreachable, SelfTrouble: true}
)

func of(r fleet.Result, names ...string) func(string) fleet.Result {
	return func(name string) fleet.Result {
		if len(names) == 0 || slices.Contains(names, name) {
			return r
		}
		return fleet.Result{}
	}
}

func manyNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("acme-%03d", i))
	}
	return names
}

func TestAFleetIsWatched(t *testing.T) {
	for name, test := range map[string]func(t *testing.T){
		"a site that is lost is one message, and so is its return":     aSiteIsLost,
		"a network that is down is told once, and no instance":         theNetworkIsDown,
		"a monitor that begins without a network blames no instance":   noNetworkAtTheBegin,
		"one silent instance alone is down":                            oneAlone,
		"what is silenced is told when the silence ends, if it lasts":  silences,
		"a maintenance window silences those that it matches":          maintenance,
		"what lasts is an incident, and what passes is none":           patience,
		"an instance that leaves the inventory takes its incident":     leaving,
		"a message that is refused comes later, and before the others": refusals,
		"a second monitor on one store is refused":                     twoMonitors,
		"a store that is locked stops no probe, and loses nothing":     lockedStore,
		"a reader that is slow is told to begin anew":                  slowReader,
		"a monitor that does not keep up leaves rounds out":            notKeepingUp,
		"uptime counts what was watched":                               uptime,
		"what an instance does not say any more is over":               saidNoMore,
		"what cannot be read is looked at anew, once":                  brokenMind,
		"a watch that is ended before it began has ended well":         endedBeforeItBegan,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, test)
		})
	}
}

func aSiteIsLost(t *testing.T) {
	b := newBench(t, manyNames(200)...)
	defer b.run()()
	waitFor(5 * time.Minute)
	b.answers(of(refused, manyNames(150)...))
	waitFor(5 * time.Minute)
	b.answers(nil)
	waitFor(5 * time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.messages) != 2 || len(b.messages[0].Items) != 150 || len(b.messages[1].Items) != 150 {
		t.Fatalf("%d messages", len(b.messages))
	}
	if b.messages[0].Title() != "150 new incidents" || b.messages[1].Title() != "150 incidents are over" {
		t.Errorf("they are %q and %q", b.messages[0].Title(), b.messages[1].Title())
	}
}

func theNetworkIsDown(t *testing.T) {
	b := newBench(t, manyNames(50)...)
	stop := b.run()
	waitFor(5 * time.Minute)
	b.answers(of(offline))
	waitFor(10 * time.Minute)
	b.expect("while it is down", "monitor opened")
	stop() // it is remembered
	defer b.run()()
	waitFor(10 * time.Minute)
	b.expect("after a restart")
	if s := b.m.Status(); s.Summary.SelfTroubled != 50 {
		t.Errorf("the status is %+v", s.Summary)
	}
	b.answers(nil)
	waitFor(5 * time.Minute)
	b.expect("at its end", "monitor closed")
	u, err := b.o.Store.Uptime(t.Context(), "acme-001", time.Now(), 30*time.Minute)
	if err != nil || u[0].Known > 13*time.Minute || u[0].Known < 8*time.Minute || u[0].Up != u[0].Known {
		t.Errorf("of 30 minutes with 20 offline it knows %+v: %v", u, err)
	}
}

func noNetworkAtTheBegin(t *testing.T) {
	b := newBench(t, manyNames(50)...)
	b.answers(of(silent))
	defer b.run()()
	waitFor(10 * time.Minute)
	b.expect("without a network", "monitor opened")
	b.answers(of(silent, "acme-007"))
	waitFor(10 * time.Minute)
	b.expect("with one", "acme-007 unreachable opened", "monitor closed")
}

func oneAlone(t *testing.T) {
	b := newBench(t, "acme")
	b.answers(of(silent))
	defer b.run()()
	waitFor(5 * time.Minute)
	b.expect("of the only one", "acme unreachable opened")
	if r, record, ok := b.m.Result("acme"); !ok || r.Health != fleet.Unreachable || record.Standing != fleet.Down {
		t.Errorf("%+v %+v %v", r, record, ok)
	}
	if i := b.incidents(); len(i) != 1 || i[0].Summary != "It is silent." || i[0].Hint != "Look at its machine." {
		t.Errorf("%+v", i)
	}
}

func silences(t *testing.T) {
	b := newBench(t, "acme", "bolt", "cube", "dart")
	begin := time.Now()
	b.o.Silenced = func(name string, at time.Time) (string, bool) {
		return "a rollout", name != "dart" && at.Before(begin.Add(time.Hour))
	}
	stop := b.run()
	waitFor(10 * time.Minute)
	b.answers(of(refused, "acme", "bolt"))
	waitFor(10 * time.Minute)
	b.answers(of(refused, "acme"))
	waitFor(20 * time.Minute)
	b.expect("while it is silenced")
	stop()
	defer b.run()()
	waitFor(10 * time.Minute)
	b.expect("after a restart")
	waitFor(15 * time.Minute)
	b.expect("after the silence", "acme unreachable opened")
	b.answers(nil)
	waitFor(10 * time.Minute)
	b.expect("at its end", "acme unreachable closed")
	for _, i := range b.incidents() {
		if i.Closed.IsZero() || (i.Silenced == "a rollout") != (i.Name == "bolt") {
			t.Errorf("%+v", i)
		}
	}
}

func maintenance(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	match, err := fleet.ParseSelector("of=acme")
	if err != nil {
		t.Fatal(err)
	}
	b.o.Inventory.Maintenance = []fleet.Maintenance{{Match: match, From: time.Now(), To: time.Now().Add(time.Hour), Reason: "a move"}}
	b.answers(of(refused))
	defer b.run()()
	waitFor(30 * time.Minute)
	b.expect("in the window", "bolt unreachable opened")
	if i := b.incidents(); len(i) != 2 || i[0].Silenced+i[1].Silenced != "Maintenance: a move" {
		t.Errorf("%+v", i)
	}
	waitFor(35 * time.Minute)
	b.expect("after it", "acme unreachable opened")
}

func patience(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	begin := time.Now()
	troubled := func(name string) fleet.Result {
		r := fleet.Result{
			Health: fleet.Degraded, Reached: true, Version: "2026.04.1", Channel: "dev", Deprecated: true, Latest: "2026.05.1", Warnings: []string{"The disk is nearly full."},
			CertNotAfter: begin.Add(10 * 24 * time.Hour), Details: true, LastSync: begin.Add(-27 * time.Hour),
		}
		if name == "bolt" {
			return fleet.Result{}
		}
		return r
	}
	b.answers(troubled)
	stop := b.run()
	waitFor(20 * time.Minute)
	b.expect("at once", "acme deprecated opened", "acme certificate opened", "acme stale opened")
	b.answers(nil)
	waitFor(5 * time.Minute)
	b.answers(troubled)
	waitFor(25 * time.Minute)
	b.heard()
	stop()
	defer b.run()()
	b.expect("before half an hour")
	waitFor(10 * time.Minute)
	b.expect("after half an hour", "acme degraded opened")
	waitFor(24 * time.Hour)
	b.expect("after a day", "acme drift opened")
	for _, i := range b.incidents() {
		if i.Kind == string(fleet.KindDegraded) && i.Summary != "It is degraded: The disk is nearly full." || i.Kind == string(fleet.KindDrift) && i.Summary != "Drift: runs channel dev, wanted stable." {
			t.Errorf("%+v", i)
		}
	}
	changes, err := b.o.Store.Changes(t.Context(), "acme", time.Time{}, 0)
	if err != nil || len(changes) != 4 || changes[0].To != "degraded" || changes[1].To != "healthy" {
		t.Errorf("%+v: %v", changes, err)
	}
}

func saidNoMore(t *testing.T) {
	b := newBench(t, "acme")
	old := func(details bool) func(string) fleet.Result {
		return func(string) fleet.Result {
			return fleet.Result{Health: fleet.Healthy, Reached: true, Version: "2026.04.1", Channel: "stable", Details: details, LastSync: time.Now().AddDate(0, 0, -30)}
		}
	}
	b.answers(old(true))
	stop := b.run()
	waitFor(10 * time.Minute)
	b.expect("with a token", "acme stale opened")
	waitFor(3 * time.Hour)
	stop()
	b.answers(old(false)) // its token was taken from the inventory
	defer b.run()()
	waitFor(50 * time.Minute)
	b.expect("at first")
	waitFor(20 * time.Minute)
	b.expect("without a token", "acme stale closed")
	b.answers(old(true))
	waitFor(10 * time.Minute)
	b.expect("with one again", "acme stale opened")
}

func brokenMind(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	b.answers(of(refused, "acme"))
	stop := b.run()
	waitFor(10 * time.Minute)
	stop()
	b.expect("before", "acme unreachable opened")
	s, err := store.Open(t.Context(), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remember(t.Context(), store.Batch{Minds: map[string][]byte{"acme": []byte("{")}}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	defer b.run()()
	waitFor(10 * time.Minute)
	b.expect("after", "acme unreachable closed", "acme unreachable opened")
	if open, err := b.o.Store.Incidents(t.Context(), store.IncidentQuery{OpenOnly: true}); err != nil || len(open) != 1 {
		t.Errorf("%+v: %v", open, err)
	}
}

func leaving(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	b.answers(of(refused, "acme"))
	stop := b.run()
	waitFor(10 * time.Minute)
	stop()
	b.expect("before", "acme unreachable opened")
	b.o.Inventory.Instances = b.o.Inventory.Instances[1:]
	defer b.run()()
	waitFor(10 * time.Minute)
	b.expect("after", "acme unreachable closed")
	if i := b.incidents(); len(i) != 1 || i[0].Ending != "It is not in the inventory any more." {
		t.Errorf("%+v", i)
	}
}

func refusals(t *testing.T) {
	b := newBench(t, "acme", "bolt", "cube")
	defer b.run()()
	waitFor(5 * time.Minute)
	b.refuses(&alert.Error{Why: "HTTP 503"})
	b.answers(of(refused, "acme"))
	waitFor(10 * time.Minute)
	b.answers(of(refused, "bolt"))
	waitFor(10 * time.Minute)
	waiting, err := b.o.Store.Unsaid(t.Context())
	if err != nil || len(waiting) != 1 || waiting[0].Channel != "chat" || waiting[0].Waiting != 3 || waiting[0].Error != "HTTP 503" {
		t.Errorf("%+v: %v", waiting, err)
	}
	b.refuses(nil)
	waitFor(20 * time.Minute)
	b.expect("in the end", "acme unreachable opened", "bolt unreachable opened", "acme unreachable closed")
	// A gateway that restarts says no once; the message is not lost.
	b.refuses(&alert.Error{Why: "HTTP 503"})
	b.answers(of(refused, "cube"))
	waitFor(15 * time.Minute)
	b.refuses(&alert.Error{Why: "HTTP 400", Final: true})
	waitFor(11 * time.Minute)
	b.refuses(nil)
	waitFor(time.Hour)
	b.expect("after a gateway's restart", "bolt unreachable closed", "cube unreachable opened")
	b.refuses(&alert.Error{Why: "invalid_payload", Final: true})
	b.answers(nil)
	waitFor(time.Hour)
	if waiting, err = b.o.Store.Unsaid(t.Context()); err != nil || len(waiting) != 0 {
		t.Errorf("what is refused for good waits on: %+v: %v", waiting, err)
	}
}

func twoMonitors(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	defer b.run()()
	waitFor(time.Minute)
	second, err := monitor.New(b.o)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !problem.Is(err, problem.Refused) {
		t.Errorf("found %v, want a refusal", err)
	}
}

func lockedStore(t *testing.T) {
	b := newBench(t, manyNames(20)...)
	defer b.run()()
	waitFor(5 * time.Minute)
	other, err := sql.Open("sqlite", "file:"+filepath.Join(b.dir, store.File)+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	lock, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := b.times("acme-003")
	b.answers(of(refused, "acme-003"))
	waitFor(20 * time.Minute)
	b.answers(of(refused, "acme-004"))
	waitFor(20 * time.Minute)
	if asked := b.times("acme-003") - before; asked < 78 {
		t.Errorf("it was asked %d times in 40 minutes", asked)
	}
	if c := b.m.Condition(); !strings.Contains(c.Store, "locked") {
		t.Errorf("the condition is %+v", c)
	}
	b.expect("while it is locked", "monitor opened") // past the store
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	waitFor(5 * time.Minute)
	b.expect("after that", "monitor closed", "acme-003 unreachable opened", "acme-004 unreachable opened", "acme-003 unreachable closed")
	if c := b.m.Condition(); c.Store != "" {
		t.Errorf("the condition is %+v", c)
	}
}

func slowReader(t *testing.T) {
	b := newBench(t, manyNames(300)...)
	defer b.run()()
	waitFor(5 * time.Minute)
	slow, stopSlow := b.m.Subscribe()
	quick, stopQuick := b.m.Subscribe()
	defer stopSlow()
	seen := map[string]fleet.Health{}
	go func() {
		for e := range quick {
			if e.Reload {
				t.Error("the quick reader lost something")
			}
			seen[e.Name] = e.Line.Status
			if len(seen) == 300 {
				stopQuick()
				return
			}
		}
	}()
	waitFor(time.Minute)
	if len(seen) != 0 {
		t.Errorf("%d events without a change", len(seen))
	}
	b.answers(of(refused))
	waitFor(5 * time.Minute)
	if len(seen) != 300 || seen["acme-299"] != fleet.Unreachable {
		t.Errorf("the quick reader saw %d", len(seen))
	}
	reloads := 0
	for len(slow) > 0 {
		if e := <-slow; e.Reload {
			reloads++
		}
	}
	if s := b.m.Status(); reloads != 1 || s.Summary.Unreachable != 300 {
		t.Errorf("the slow reader was told %d times; the status is %+v", reloads, s.Summary)
	}
}

func notKeepingUp(t *testing.T) {
	b := newBench(t, manyNames(20)...)
	b.o.Workers = 1
	b.o.Probe = func(ctx context.Context, in fleet.Instance) fleet.Result {
		waitFor(5 * time.Second) // 20 of these take more than an interval
		return b.probe(ctx, in)
	}
	stop := b.run()
	waitFor(30 * time.Minute)
	stop()
	least := 1000
	for _, n := range b.asked {
		least = min(least, n)
	}
	if c := b.m.Condition(); c.Missed < 500 || least < 10 {
		t.Errorf("%+v; somebody was asked only %d times", c, least)
	}
	b.expect("of slow probes")
}

func uptime(t *testing.T) {
	b := newBench(t, "acme", "bolt")
	stop := b.run()
	waitFor(time.Hour)
	b.answers(of(refused, "acme"))
	waitFor(time.Hour)
	stop()
	waitFor(time.Hour) // nobody watches
	b.answers(nil)
	defer b.run()()
	waitFor(time.Hour)
	u, err := b.o.Store.Uptime(t.Context(), "acme", time.Now(), 4*time.Hour, 90*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	near := func(got, want time.Duration) bool { return (got - want).Abs() < 4*time.Minute }
	if !near(u[0].Known, 3*time.Hour) || !near(u[0].Up, 2*time.Hour) || !near(u[1].Known, time.Hour) || !near(u[1].Up, time.Hour) {
		t.Errorf("found %+v", u)
	}
	hours, err := b.o.Store.Latency(t.Context(), "bolt", time.Time{})
	if err != nil || len(hours) < 2 || hours[0].Max != 5*time.Millisecond {
		t.Errorf("found %+v: %v", hours, err)
	}
}

func endedBeforeItBegan(t *testing.T) {
	b := newBench(t, "acme")
	s, err := store.Open(t.Context(), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	b.o.Store = s
	m, err := monitor.New(b.o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
}
