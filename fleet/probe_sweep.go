package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Sweep is what a sweep says of itself.
type Sweep struct {
	Began  time.Time
	Took   time.Duration
	Probed int // results that were handed on

	// SelfTrouble is set when our own network kept the sweep from an answer: no
	// instance that failed is known to be down, and their results say so too.
	SelfTrouble *problem.Error
}

// Sweep probes all instances, a bounded number at once, and hands each result to
// each, one at a time, as soon as it is known whose fault a failure is. The names
// that made the sweep before wait come first, so that their waiting overlaps with
// work. Who waited in vain while this machine was behind with its own work is asked
// once more when all others have had their turn. A context that ends stops it within
// moments; what was not known by then is not handed on, and the error says so.
func (p *Prober) Sweep(ctx context.Context, instances []Instance, each func(Result)) (Sweep, error) {
	s := Sweep{Began: time.Now()}
	p.idle.sweep()
	var (
		mu    sync.Mutex
		order = p.order(instances)
		late  []int // indexes of instances that are asked once more
		held  []doubt
		signs int // instances that gave a sign of life
		ours  int // results that are blamed on us
		room  = newRoom(p.o.Concurrency, p.o.Connect)
		pulse = takePulse(p.o.Connect / 8)
	)
	defer pulse.stop()
	report := func(r Result) {
		s.Probed++
		if r.SelfTrouble {
			ours++
		}
		each(r)
	}
	one := func(i int, again bool) {
		in := instances[i]
		r, how := p.ask(ctx, in)
		room.saw(r)
		if r.Fault == FaultTimeout && !again && (room.squeezed(r.At) || pulse.weak(r.At)) {
			mu.Lock()
			defer mu.Unlock()
			late = append(late, i)
			return
		}
		state := online
		switch {
		case r.Fault == FaultSelf:
			r.SelfTrouble = true
		case how == unreached && r.Fault != FaultConfig:
			state = p.self.check(ctx, in, r.At.Add(r.Timing.Total))
		}
		if ctx.Err() != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if how == reached {
			signs++
		}
		switch state {
		case offline:
			r.blame()
		case unknown: // nothing answered yet at all; the end of the sweep knows more
			held = append(held, doubt{r, in})
			return
		case online:
		}
		report(r)
	}
	next := func() (i int, again, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		list := &order
		if again = len(order) == 0; again {
			list = &late
		}
		if len(*list) == 0 {
			return 0, again, false
		}
		i, *list = (*list)[0], (*list)[1:]
		return i, again, true
	}
	defer context.AfterFunc(ctx, room.wake)()
	var workers sync.WaitGroup
	for range min(p.o.Concurrency, len(instances)) {
		workers.Go(func() {
			for more := true; more && room.enter(ctx); {
				// Who only waits for a silent host takes no processor from others.
				leave := sync.OnceFunc(room.leave)
				silent := time.AfterFunc(p.o.Connect/2, leave)
				var i int
				var again bool
				if i, again, more = next(); more {
					one(i, again)
				}
				silent.Stop()
				leave()
			}
		})
	}
	workers.Wait()
	for _, d := range held {
		if ctx.Err() != nil {
			break
		}
		// One silent instance alone proves nothing about us.
		if signs == 0 && len(instances) > 1 || signs > 0 && p.self.check(ctx, d.in, d.r.At.Add(d.r.Timing.Total)) == offline {
			d.r.blame()
		}
		report(d.r)
	}
	s.Took = time.Since(s.Began)
	if ours > 0 {
		s.SelfTrouble = problem.New(problem.Inconclusive,
			fmt.Sprintf("%d of %d instances could not be asked because of this machine or its network; nothing is known of them.", ours, len(instances)),
			"Check this machine's network, name server and limits, then ask again.")
	}
	if err := ctx.Err(); err != nil {
		return s, problem.Wrap(err, problem.Inconclusive, fmt.Sprintf("The sweep was ended after %d of %d instances.", s.Probed, len(instances)), "Ask again.")
	}
	return s, nil
}

// room lets fewer probes run when there are too many for a processor: a probe that
// waits for its turn in a queue of our own would be taken for a host that is silent.
// The sign is what a TLS handshake takes beyond the round trip that the connection
// took, on average: it is some milliseconds of work however far the hosts are.
type room struct {
	mu        sync.Mutex
	free      *sync.Cond
	inside    int
	limit     int
	most      int
	tolerable time.Duration
	average   time.Duration
	samples   int       // since the limit was changed
	spoken    time.Time // when a handshake last came to an end
	behind    time.Time // when the average was last above what is tolerable
}

const leastRoom = 32

func newRoom(most int, connect time.Duration) *room {
	r := &room{limit: most, most: most, tolerable: connect / 8}
	r.free = sync.NewCond(&r.mu)
	return r
}

// enter waits for a place; it reports false when ctx has ended.
func (r *room) enter(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.inside >= r.limit && ctx.Err() == nil {
		r.free.Wait()
	}
	r.inside++
	return ctx.Err() == nil
}

func (r *room) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inside--
	for range r.limit - r.inside { // more than one after the room has grown
		r.free.Signal()
	}
}

// wake lets those who wait see that their context has ended.
func (r *room) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free.Broadcast()
}

// squeezed reports whether handshakes have had to queue since a moment: then a wait
// that ended in vain may have been for us.
func (r *room) squeezed(since time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.behind.After(since)
}

// pulse tells whether this machine does what it has to when it has to. A timer that
// is late by itself is a processor that others have.
type pulse struct {
	began     time.Time
	tolerable time.Duration
	due, late atomic.Int64 // since began, in ns: the next beat, and the last one that was late
	done      chan struct{}
}

const pulseEvery = 50 * time.Millisecond

func takePulse(tolerable time.Duration) *pulse {
	p := &pulse{began: time.Now(), tolerable: tolerable, done: make(chan struct{})}
	p.due.Store(int64(pulseEvery))
	go func() {
		timer := time.NewTimer(pulseEvery)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
			case <-p.done:
				return
			}
			now := time.Since(p.began)
			if now-time.Duration(p.due.Load()) > p.tolerable {
				p.late.Store(int64(now))
			}
			p.due.Store(int64(now + pulseEvery))
			timer.Reset(pulseEvery)
		}
	}()
	return p
}

// weak reports whether the machine has been behind since a moment; a beat that is
// overdue right now counts.
func (p *pulse) weak(since time.Time) bool {
	overdue := time.Since(p.began) - time.Duration(p.due.Load())
	return overdue > p.tolerable || time.Duration(p.late.Load()) > since.Sub(p.began)
}

func (p *pulse) stop() { close(p.done) }

// saw moves the limit: down fast, up slowly.
func (r *room) saw(result Result) {
	t := result.Timing
	if t.TLS == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if result.Fault != FaultTimeout {
		r.spoken = time.Now()
	} else if r.spoken.After(result.At) {
		return // it is that host that is silent: others were heard meanwhile
	}
	r.average += (max(0, t.TLS-t.Connect) - r.average) / 16
	if r.average > r.tolerable {
		r.behind = time.Now()
	}
	if r.samples++; r.samples < r.limit {
		return
	}
	switch {
	case r.average > r.tolerable:
		r.limit, r.samples = max(min(leastRoom, r.most), r.limit*3/4), 0
	case r.average < r.tolerable/2:
		r.limit, r.samples = min(r.most, r.limit+r.limit/4), 0
	}
}

// doubt is a failure of which it is not known yet whose it is.
type doubt struct {
	r  Result
	in Instance
}

// order returns the indexes of the instances in the order of asking.
func (p *Prober) order(instances []Instance) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	order := make([]int, 0, len(instances))
	for _, slow := range []bool{true, false} {
		for i, in := range instances {
			if p.slow[in.Name] == slow {
				order = append(order, i)
			}
		}
	}
	return order
}

// network is what is known of our own.
type network int

const (
	unknown network = iota // nobody to ask
	online
	offline
)

// selfCheck tells a silent instance from a network of ours that is down: it
// remembers who answered last and, at a failure, tries a few of them. What is
// reached on this machine itself proves nothing about the world, so there are
// two lists.
type selfCheck struct {
	o     ProbeOptions
	lists [2]witnesses
}

type witnesses struct {
	mu    sync.Mutex
	known [8]witness // the last one first
	seen  time.Time  // last sign of life

	turn chan struct{} // who may look; the others wait for what is found
	lost time.Time     // begin of the last look that found nobody
}

// witness is a host that answered.
type witness struct {
	name    string // of the instance
	address string
	via     *route // where there is a proxy between
	scheme  string
}

func newSelfCheck(o ProbeOptions) *selfCheck {
	s := &selfCheck{o: o}
	for i := range s.lists {
		s.lists[i].turn = make(chan struct{}, 1)
	}
	return s
}

func (s *selfCheck) list(in Instance) *witnesses {
	if isLoopback(in.URL) {
		return &s.lists[1]
	}
	return &s.lists[0]
}

// saw records a sign of life.
func (s *selfCheck) saw(in Instance, who witness) {
	w := s.list(in)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = time.Now()
	at := slices.IndexFunc(w.known[:], func(k witness) bool { return k.name == who.name })
	if at < 0 {
		at = len(w.known) - 1
	}
	copy(w.known[1:at+1], w.known[:at])
	w.known[0] = who // with the address that it has now
}

const (
	freshSign = 500 * time.Millisecond // a sign of life this old still counts
	lookLimit = time.Second
)

// check says whether our network was up when an attempt to reach in failed.
func (s *selfCheck) check(ctx context.Context, in Instance, failed time.Time) network {
	w := s.list(in)
	if state, ok := w.recent(failed); ok {
		return state
	}
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return unknown
	}
	if state, ok := w.recent(failed); ok { // found by who had the turn before
		return state
	}
	w.mu.Lock()
	known := w.known
	w.mu.Unlock()
	var ask []witness
	for _, k := range known {
		if k.name != "" && k.name != in.Name && len(ask) < 3 {
			ask = append(ask, k)
		}
	}
	if !isLoopback(in.URL) {
		for _, address := range s.o.Beacons {
			ask = append(ask, witness{address: address})
		}
	}
	if len(ask) == 0 {
		return unknown
	}
	began := time.Now()
	up := s.any(ctx, ask)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case up:
		w.seen = time.Now()
		return online
	case ctx.Err() != nil:
		return unknown
	}
	w.lost = began
	return offline
}

// recent says what is known about the moment of a failure without looking.
func (w *witnesses) recent(failed time.Time) (network, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.seen.Before(failed.Add(-freshSign)):
		return online, true
	case !w.lost.IsZero() && !w.lost.Before(failed):
		return offline, true
	}
	return unknown, false
}

// any reports whether one of them can be reached; a refusal is a sign of life too.
func (s *selfCheck) any(ctx context.Context, them []witness) bool {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(min(s.o.Connect, lookLimit), lookLimit))
	defer cancel()
	found := make(chan bool, len(them))
	for _, k := range them {
		go func() { found <- s.reaches(ctx, k) }()
	}
	up := false
	for range them {
		if <-found {
			up = true
			cancel()
		}
	}
	return up
}

func (s *selfCheck) reaches(ctx context.Context, k witness) bool {
	if k.via != nil {
		c, err := k.via.transport.NewClientConn(ctx, k.scheme, k.address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	c, err := s.o.Dial(ctx, "tcp", k.address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil || alive(err)
}
