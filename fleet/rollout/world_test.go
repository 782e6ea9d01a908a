package rollout_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	oldVersion = "2026.04.2"
	newVersion = "2026.04.3"
	newDigest  = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// world is a fleet of the mind, and a deliverer to it.
type world struct {
	mu    sync.Mutex
	at    map[string]*machine
	dead  bool // the engine was killed: what it does has no effect any more
	trips map[string]int

	most, away int       // members on their way at a time
	took       time.Time // when the last delivery began
}

type machine struct {
	runs   string
	health fleet.Health
	stale  int
	silent bool // cannot be reached
	self   bool // our own network
	failed bool // its host took the target back and says so

	take, back func() rollout.Outcome // in place of success
	once       bool                   // take holds for the first time only
	half       bool                   // a deploy was cut off here
}

func newWorld(instances []fleet.Instance) *world {
	w := &world{at: map[string]*machine{}, trips: map[string]int{}}
	for _, in := range instances {
		w.at[in.Name] = &machine{runs: oldVersion, health: fleet.Healthy}
	}
	return w
}

func (w *world) change(name string, f func(*machine)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.at[name])
}

func (w *world) running(version string) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, m := range w.at {
		if m.runs == version {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (w *world) Probe(_ context.Context, in fleet.Instance) fleet.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.at[in.Name]
	r := fleet.Result{Name: in.Name, At: time.Now(), Health: m.health, Version: m.runs, Channel: "stable", Details: true, StaleTables: m.stale}
	if m.failed {
		r.UpdateFailed = newDigest
	}
	if m.silent {
		r = fleet.Result{Name: in.Name, At: time.Now(), Health: fleet.Unreachable, SelfTrouble: m.self, Err: problem.New(problem.Unavailable, "no answer", "")}
	}
	return r
}

var errAway = problem.New(problem.Unavailable, "its host cannot be reached", "").WithCode("member_away")

func (w *world) Look(_ context.Context, j rollout.Job) (deploy.Image, *deploy.Desired, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.at[j.Instance.Name]
	if m.silent {
		return deploy.Image{}, nil, errAway
	}
	return deploy.Image{Version: m.runs, Channel: "stable"}, nil, nil
}

// travel takes as long as a deploy, and reports whether the engine still lives.
func (w *world) travel(ctx context.Context, name string) bool {
	w.mu.Lock()
	w.trips[name]++
	w.away++
	w.most = max(w.most, w.away)
	w.mu.Unlock()
	select {
	case <-time.After(30 * time.Second):
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away--
	if w.dead {
		w.at[name].half = true
	}
	return !w.dead && ctx.Err() == nil
}

func (w *world) Take(ctx context.Context, j rollout.Job) rollout.Outcome {
	w.mu.Lock()
	w.took = time.Now()
	w.mu.Unlock()
	return w.deliver(ctx, j)
}

func (w *world) deliver(ctx context.Context, j rollout.Job) rollout.Outcome {
	alive := w.travel(ctx, j.Instance.Name)
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.at[j.Instance.Name]
	if !alive {
		return rollout.Outcome{What: rollout.Doubtful, Detail: "cut off"}
	}
	m.half = false
	if take := m.take; take != nil {
		if m.once {
			m.take = nil
		}
		return take()
	}
	m.runs = j.Target.Version
	return rollout.Outcome{What: rollout.Delivered}
}

func (w *world) Settle(ctx context.Context, j rollout.Job) rollout.Outcome {
	w.mu.Lock()
	m := w.at[j.Instance.Name]
	half, runs := m.half, m.runs
	w.mu.Unlock()
	switch {
	case half:
		return w.deliver(ctx, j) // the journal is there: it is finished
	case runs == j.Target.Version:
		return rollout.Outcome{What: rollout.Delivered}
	}
	return rollout.Outcome{What: rollout.Untouched}
}

func (w *world) Back(ctx context.Context, j rollout.Job) rollout.Outcome {
	alive := w.travel(ctx, j.Instance.Name)
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.at[j.Instance.Name]
	switch {
	case !alive:
		return rollout.Outcome{What: rollout.Lost, Detail: "cut off"}
	case m.back != nil:
		return m.back()
	case m.silent:
		return rollout.Outcome{What: rollout.Doubtful, Detail: "its host cannot be reached"}
	}
	m.runs, m.health, m.half = j.Before.Image.Version, fleet.Healthy, false
	return rollout.Outcome{What: rollout.Home}
}

// members makes n instances a0, a1, …
func members(n int, host bool) (list []fleet.Instance) {
	for i := range n {
		in := fleet.Instance{Name: fmt.Sprintf("a%d", i), URL: "https://a.example", Channel: "stable"}
		if host {
			in.Host = fmt.Sprintf("ssh://agnes@host%d/opt/agnes", i)
		}
		list = append(list, in)
	}
	return list
}

// waves are: the one with the label name=a0, then the rest.
func waves(t testing.TB, rest fleet.Limit) []fleet.Wave {
	t.Helper()
	first, err := fleet.ParseSelector("name=a0")
	if err != nil {
		t.Fatal(err)
	}
	return []fleet.Wave{{Name: "canary", Match: first, Soak: 2 * time.Minute}, {Name: "rest", Soak: time.Minute, MaxUnavailable: rest}}
}

func plan(t testing.TB, instances []fleet.Instance, rest fleet.Limit) rollout.Rollout {
	t.Helper()
	r, err := rollout.NewPlan(rollout.PlanOptions{
		Inventory: &fleet.Inventory{Waves: waves(t, rest), Instances: instances},
		Target:    rollout.Target{Image: "registry/agnes", Tag: "stable", Digest: newDigest, Version: newVersion, Channel: "stable"},
		Seen:      map[string]fleet.Result{}, MaxUnreachable: fleet.Limit{Count: 1}, ArriveWithin: 2 * time.Hour, ErrorBudget: 10,
		Now: time.Now(), By: "ada@ops", ID: "r1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stage is an engine's surroundings.
type stage struct {
	t         *testing.T
	s         *store.Store
	dir       string
	world     *world
	instances []fleet.Instance
	deliver   rollout.Deliverer
	probe     func(context.Context, fleet.Instance) fleet.Result
	stay      bool
	retries   int
	notify    func(rollout.Event)
}

func newStage(t *testing.T, instances []fleet.Instance) *stage {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	w := newWorld(instances)
	return &stage{t: t, s: s, dir: dir, world: w, instances: instances, deliver: w, probe: w.Probe}
}

func (st *stage) acquire() *rollout.Lease {
	st.t.Helper()
	lease, err := rollout.Acquire(st.t.Context(), st.s, nil, "ada@ops")
	if err != nil {
		st.t.Fatal(err)
	}
	return lease
}

func (st *stage) engine() *rollout.Engine {
	st.t.Helper()
	e, err := rollout.New(rollout.Options{
		Store: st.s, Deliver: map[string]rollout.Deliverer{fleet.Push: st.deliver, fleet.Pull: st.deliver}, Probe: st.probe,
		Instances: st.instances, Audit: filepath.Join(st.dir, rollout.AuditFile), Stay: st.stay, Retries: st.retries, Poll: 5 * time.Second,
		Notify: func(_ context.Context, e rollout.Event) {
			if st.notify != nil {
				st.notify(e)
			}
		},
	})
	if err != nil {
		st.t.Fatal(err)
	}
	return e
}

// run drives a rollout to where it comes to rest.
func (st *stage) run(r rollout.Rollout) rollout.Rollout {
	st.t.Helper()
	lease := st.acquire()
	got, err := st.engine().Run(st.t.Context(), lease, r)
	if err != nil {
		st.t.Fatal(err)
	}
	if err := lease.Release(st.t.Context()); err != nil {
		st.t.Fatal(err)
	}
	return got
}

// states is "a0 taken, a1 failed".
func states(r rollout.Rollout) string {
	var all []string
	for _, w := range r.Waves {
		for _, m := range w.Members {
			all = append(all, m.Name+" "+string(m.State))
		}
	}
	return strings.Join(all, ", ")
}

func wantStates(t *testing.T, r rollout.Rollout, state rollout.State, members string) {
	t.Helper()
	if r.State != state || states(r) != members {
		t.Fatalf("got %s (%s): %s\nwant %s: %s", r.State, r.Reason, states(r), state, members)
	}
}

// pass lets time pass in a test's bubble.
func pass(d time.Duration) { <-time.After(d) }
