package monitor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// stateDir is a folder in memory where there is one: a month has tens of thousands
// of transactions, each of which a disk must confirm.
func stateDir(t *testing.T) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		dir, err := os.MkdirTemp("/dev/shm", "agnes-monitor-") //nolint:usetesting // in memory
		if err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			return dir
		}
	}
	return t.TempDir()
}

// flapper is an instance whose state holds from one round to the next.
type flapper struct {
	in    fleet.Instance
	dues  []time.Time // of each round
	bad   []fleet.Health
	now   int // round of the last question
	asked int
}

// world is a fleet that flaps, those who hear of it, and the deaths of monitors.
type world struct {
	t       *testing.T
	rand    *rand.Rand
	mu      sync.Mutex
	members map[string]*flapper

	probes    int
	onProbe   func(probes int)
	onArrival func(arrivals int)
	arrivals  int
	heard     map[string]map[string]int // channel: incident and event: arrivals
	messages  map[string]map[string]int // channel: message: arrivals
	cut       map[string]map[string]int // channel: message: deaths between arrival and note
	items     map[string]alert.Item     // by incident and event
	refusals  int
}

// probe answers as the round of the moment has it.
func (w *world) probe(_ context.Context, in fleet.Instance) fleet.Result {
	w.mu.Lock()
	now := time.Now()
	f := w.members[in.Name]
	for f.now+1 < len(f.dues) && !f.dues[f.now+1].After(now) {
		f.now++
	}
	f.asked++
	health := f.bad[f.now]
	w.probes++
	probes, hook := w.probes, w.onProbe
	w.mu.Unlock()
	if hook != nil {
		hook(probes)
	}
	r := fleet.Result{Name: in.Name, URL: in.URL, At: now, Health: health, Reached: health != fleet.Unreachable, Timing: fleet.Timing{Total: 3 * time.Millisecond}}
	if r.Good() {
		r.Version, r.Channel = "2026.04.1", "stable"
	}
	if probes%16 == 0 {
		waitFor(time.Duration(probes%977) * time.Millisecond)
	}
	return r
}

// channel is a sink that keeps what arrives. Its receiver forgets nothing where it
// is told ids.
type channel struct {
	w    *world
	name string
	dead *atomic.Bool
}

var errNoNetwork = errors.New("the network is down")

func (c channel) Send(_ context.Context, m alert.Message) (string, error) {
	waitFor(70*time.Millisecond + time.Duration(len(m.ID)+int(m.ID[0])))
	c.w.mu.Lock()
	if c.dead.Load() {
		c.w.mu.Unlock()
		return "", errNoNetwork // nothing was sent
	}
	c.w.refusals++
	if c.w.refusals%7 == 0 {
		c.w.mu.Unlock()
		return "", &alert.Error{Why: "HTTP 429", After: time.Minute}
	}
	c.w.arrivals++
	arrivals, hook := c.w.arrivals, c.w.onArrival
	first := c.w.messages[c.name][m.ID] == 0
	c.w.messages[c.name][m.ID]++
	if c.name != "hook" || first {
		for _, i := range m.Items {
			key := i.Incident + " " + string(i.Event)
			c.w.heard[c.name][key]++
			c.w.items[key] = i
		}
	}
	c.w.mu.Unlock()
	if hook != nil {
		hook(arrivals)
	}
	waitFor(30 * time.Millisecond)
	if c.dead.Load() {
		c.w.mu.Lock()
		c.w.cut[c.name][m.ID]++
		c.w.mu.Unlock()
	}
	return "", nil
}

// expected is what must be heard of an instance, by the words of the documentation
// and not by the monitor's code: down once two of the last three rounds since the
// last turn are bad, up once two are good.
func (f *flapper) expected() (all []string) {
	var last []bool
	state, kind, opened := "", fleet.Health(""), 0
	for round, health := range f.bad {
		if round < f.first() {
			continue
		}
		good := health == fleet.Healthy
		last = append(last, good)
		last = last[max(0, len(last)-3):]
		goods := 0
		for _, g := range last {
			if g {
				goods++
			}
		}
		switch {
		case state != "up" && goods >= 2:
			if state == "down" {
				all = append(all, fmt.Sprintf("%s %s closed %d-%d", f.in.Name, kind, opened, round))
			}
			state, last = "up", nil
		case state != "down" && len(last)-goods >= 2:
			state, last, kind, opened = "down", nil, health, round
			all = append(all, fmt.Sprintf("%s %s opened %d", f.in.Name, kind, round))
		}
	}
	return all
}

// first is the round in which the watch begins: the one under way.
func (f *flapper) first() int { return 1 }

// round is the round of a moment, which has gone through the store's microseconds.
func (f *flapper) round(at time.Time) int {
	i, found := slices.BinarySearchFunc(f.dues, at.Add(time.Microsecond), time.Time.Compare)
	if !found {
		i--
	}
	return i
}

// newWorld makes the fleet: mostly up, with slips of a round, outages of a few, and
// some that come and go with each round.
func newWorld(t *testing.T, prober *fleet.Prober, members int, month time.Duration, seed uint64) *world {
	w := &world{
		t: t, rand: rand.New(rand.NewPCG(seed, 1)), members: map[string]*flapper{}, heard: map[string]map[string]int{}, messages: map[string]map[string]int{},
		cut: map[string]map[string]int{}, items: map[string]alert.Item{},
	}
	for _, name := range []string{"chat", "hook"} {
		w.heard[name], w.messages[name], w.cut[name] = map[string]int{}, map[string]int{}, map[string]int{}
	}
	begin := time.Now()
	for n := range members {
		f := &flapper{in: fleet.Instance{Name: fmt.Sprintf("acme-%03d", n), URL: "https://acme.example.com", Channel: "stable", Interval: 5 * time.Minute, Timeout: 5 * time.Second}}
		// Round 0 ends before the watch begins, round 1 is under way.
		at := begin.Add(-2 * f.in.Interval)
		for at.Before(begin.Add(month)) {
			next := prober.Schedule(at, f.in)
			if !next.After(begin) {
				f.dues = f.dues[:0]
				f.dues = append(f.dues, at, next)
			} else {
				f.dues = append(f.dues, next)
			}
			at = next
		}
		for len(f.bad) < len(f.dues) {
			up, down, kind := 200+w.rand.IntN(1000), 1+w.rand.IntN(8), fleet.Unreachable
			switch w.rand.IntN(4) {
			case 0:
				down = 1 // a slip, which is nobody's business
			case 1:
				kind = fleet.Unhealthy
			case 2:
				for range 4 { // it flaps
					f.bad = append(append(f.bad, slices.Repeat([]fleet.Health{fleet.Healthy}, 1+w.rand.IntN(3))...), slices.Repeat([]fleet.Health{kind}, 1+w.rand.IntN(3))...)
				}
			}
			f.bad = append(append(f.bad, slices.Repeat([]fleet.Health{fleet.Healthy}, up)...), slices.Repeat([]fleet.Health{kind}, down)...)
		}
		f.bad = f.bad[:len(f.dues)]
		for i := max(0, len(f.bad)-12); i < len(f.bad); i++ { // all is over when the watch ends
			f.bad[i] = fleet.Healthy
		}
		w.members[f.in.Name] = f
	}
	return w
}

// life is one monitor from its begin to its end.
type life struct {
	w      *world
	st     *store.Store
	dead   atomic.Bool
	cancel context.CancelFunc
	done   chan error
}

func (w *world) begin(dir string, prober *fleet.Prober) *life {
	l := &life{w: w, done: make(chan error, 1)}
	var err error
	if l.st, err = store.Open(w.t.Context(), dir); err != nil {
		w.t.Fatal(err)
	}
	inventory := &fleet.Inventory{Watch: fleet.DefaultWatch()}
	for _, f := range w.members {
		inventory.Instances = append(inventory.Instances, f.in)
	}
	slices.SortFunc(inventory.Instances, func(a, b fleet.Instance) int { return strings.Compare(a.Name, b.Name) })
	m, err := monitor.New(monitor.Options{
		Inventory: inventory, Store: l.st, Prober: prober, Probe: w.probe, Log: slog.New(slog.DiscardHandler),
		Channels: []alert.Channel{
			{Alert: fleet.Alert{Name: "chat", Type: fleet.AlertSlack}, Sink: channel{w, "chat", &l.dead}},
			{Alert: fleet.Alert{Name: "hook", Type: fleet.AlertWebhook}, Sink: channel{w, "hook", &l.dead}},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	l.cancel = cancel
	go func() { l.done <- m.Run(ctx) }()
	return l
}

// kill is what kill -9 is to the world: from now on nothing is written, and nothing
// is sent.
func (l *life) kill() {
	if l.dead.CompareAndSwap(false, true) {
		_ = l.st.Close()
		l.cancel()
	}
}

// died returns when the process is gone.
func (l *life) died() error { return <-l.done }

// end is a monitor that may finish.
func (l *life) end() {
	l.cancel()
	if err := l.died(); err != nil {
		l.w.t.Errorf("a monitor ended with %v", err)
	}
	_ = l.st.Close()
}

// TestAMonthOfFlappingIsToldExactlyOnceOverFiftyRestarts polls 100 instances each
// five minutes for 30 days. The monitor is started 50 times anew: 25 times after it
// could finish, 25 times after it was killed, at any moment: while it waits, in the
// midst of a round while it writes, and between a message's arrival and the note of
// it. A channel whose receiver knows ids hears of each begin and end exactly once;
// one whose receiver does not hears exactly those messages twice in whose midst the
// monitor died.
func TestAMonthOfFlappingIsToldExactlyOnceOverFiftyRestarts(t *testing.T) {
	const members, restarts, month = 100, 50, 30 * 24 * time.Hour
	dir := stateDir(t)
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		prober := fleet.NewProber(fleet.ProbeOptions{Seed: 7})
		defer prober.Close()
		w := newWorld(t, prober, members, month, 42)
		begin := time.Now()
		deaths := map[string]int{}
		for n := range restarts + 1 {
			l := w.begin(dir, prober)
			until := begin.Add(month * time.Duration(n+1) / (restarts + 1)).Add(-time.Duration(w.rand.Int64N(int64(time.Hour))))
			if n == restarts {
				until = begin.Add(month - 10*time.Minute)
			}
			w.sleep(until)
			switch {
			case n == restarts:
				waitFor(5 * time.Minute) // the last messages
				l.end()
			case n%2 == 0:
				deaths["finished"]++
				l.end()
			case n%6 == 1:
				deaths["killed while it waited"]++
				l.kill()
				_ = l.died() // it could not finish
			case n%6 == 3:
				deaths["killed in a round"]++
				w.hook(func() { w.onProbe = w.once(w.probes+1+w.rand.IntN(50), func() { go l.kill() }) })
				_ = l.died() // it could not finish
			default:
				deaths["killed between arrival and note"]++
				w.hook(func() { w.onArrival = w.once(w.arrivals+1, l.kill) })
				_ = l.died() // it could not finish
			}
			w.hook(func() { w.onProbe, w.onArrival = nil, nil })
			if n < restarts {
				waitFor(time.Duration(w.rand.Int64N(int64(time.Minute))))
			}
		}
		w.compare(deaths)
	})
	t.Logf("took %s", time.Since(began).Round(time.Millisecond))
}

func (w *world) hook(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) sleep(until time.Time) { waitFor(time.Until(until)) }

// once calls f at the nth event.
func (w *world) once(n int, f func()) func(int) {
	return func(at int) {
		if at == n {
			f()
		}
	}
}

// compare holds what was heard to what had to be.
func (w *world) compare(deaths map[string]int) {
	t := w.t
	t.Helper()
	var want []string
	slips := 0
	for _, f := range w.members {
		want = append(want, f.expected()...)
		for i := 2; i+1 < len(f.bad); i++ {
			if f.bad[i] != fleet.Healthy && f.bad[i-1] == fleet.Healthy && f.bad[i+1] == fleet.Healthy {
				slips++
			}
		}
	}
	slices.Sort(want)
	for _, name := range []string{"hook", "chat"} {
		var got []string
		for key, arrivals := range w.heard[name] {
			i := w.items[key]
			f := w.members[i.Name]
			text := fmt.Sprintf("%s %s %s %d", i.Name, i.Kind, i.Event, f.round(i.Opened))
			if i.Event == alert.Closed {
				text += fmt.Sprintf("-%d", f.round(i.Closed))
			}
			got = append(got, text)
			if name == "hook" && arrivals != 1 {
				t.Errorf("%s heard %d times of %s", name, arrivals, text)
			}
		}
		slices.Sort(got)
		report(t, name, want, got)
		for id, arrivals := range w.messages[name] {
			if arrivals != 1+w.cut[name][id] {
				t.Errorf("%s: message %s arrived %d times, and %d monitors died in its midst", name, id, arrivals, w.cut[name][id])
			}
		}
	}
	cuts := 0
	for _, n := range w.cut {
		for range n {
			cuts++
		}
	}
	t.Logf("%d probes, %d slips, %d things to tell, %d messages to chat and %d to the hook, ends of the monitor %v, %d messages with a death in their midst",
		w.probes, slips, len(want), len(w.messages["chat"]), len(w.messages["hook"]), deaths, cuts)
	if len(want) < 1000 || cuts == 0 || slips < 100 {
		t.Error("the month was too quiet to prove anything")
	}
}

func report(t *testing.T, name string, want, got []string) {
	t.Helper()
	w, g := map[string]int{}, map[string]int{}
	for _, s := range want {
		w[s]++
	}
	for _, s := range got {
		g[s]++
	}
	wrong := 0
	for s, n := range w {
		if g[s] < n {
			wrong++
			if wrong < 20 {
				t.Errorf("%s did not hear: %s", name, s)
			}
		}
	}
	for s, n := range g {
		if n > w[s] {
			wrong++
			if wrong < 40 {
				t.Errorf("%s heard what did not happen: %s", name, s)
			}
		}
	}
}
