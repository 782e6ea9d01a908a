package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// counter is a queue with a record of who was let in. It is used inside a
// synctest bubble: when settle returns, everybody is either in or waits.
type counter struct {
	t     reporter
	queue *queue
	all   []*visit

	mu    sync.Mutex
	order []string // in which they were let in
}

type reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

type visit struct {
	name, user string
	most       int
	cancel     context.CancelFunc
	came       bool // enter has returned
	leave      func()
	err        error
}

func newCounter(t reporter, size int) *counter {
	return &counter{t: t, queue: newQueue(size)}
}

// arrive queues one statement and waits until it is in or waits.
func (c *counter) arrive(user, name string, most int) *visit {
	v := c.hurry(user, name, most)
	synctest.Wait()
	return v
}

// hurry queues one statement and waits for nothing.
func (c *counter) hurry(user, name string, most int) *visit {
	ctx, cancel := context.WithCancel(context.Background())
	v := &visit{name: name, user: user, most: most, cancel: cancel}
	c.all = append(c.all, v)
	go func() {
		v.leave, v.err = c.queue.enter(ctx, user, most)
		v.came = true
		if v.err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.order = append(c.order, name)
		}
	}()
	return v
}

func (c *counter) depart(v *visit) {
	v.leave()
	v.leave = nil
	synctest.Wait()
}

func (c *counter) giveUp(v *visit) {
	v.cancel()
	synctest.Wait()
}

// in lists who runs.
func (c *counter) in() (running []*visit) {
	for _, v := range c.all {
		if v.came && v.leave != nil {
			running = append(running, v)
		}
	}
	return running
}

// drain lets everybody through, one after the other, and checks that nothing
// is left.
func (c *counter) drain() {
	c.t.Helper()
	for {
		running := c.in()
		if len(running) == 0 {
			break
		}
		c.depart(running[0])
	}
	for _, v := range c.all {
		v.cancel()
		if !v.came {
			c.t.Errorf("%s waits in an empty queue", v.name)
		}
	}
	synctest.Wait()
	c.empty()
}

func (c *counter) empty() {
	c.t.Helper()
	q := c.queue
	if q.free != q.size || len(q.running) != 0 || len(q.lines) != 0 || len(q.turns) != 0 {
		c.t.Errorf("an empty queue keeps %d of %d places free, running %v, lines of %d users, turns %v", q.free, q.size, q.running, len(q.lines), q.turns)
	}
}

func (c *counter) want(order string) {
	c.t.Helper()
	if got := strings.Join(c.order, " "); got != order {
		c.t.Errorf("let in: %s; want %s", got, order)
	}
}

func TestTenHeavyStatementsDelayAnotherUserByOneTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 1)
		for n := range 10 {
			c.arrive("ana", fmt.Sprintf("a%d", n), 0)
		}
		c.arrive("ben", "b0", 0)
		c.arrive("eva", "e0", 0)
		c.arrive("ben", "b1", 0)
		c.want("a0")
		c.drain()
		c.want("a0 a1 b0 e0 a2 b1 a3 a4 a5 a6 a7 a8 a9")
	})
}

func TestAUserAtTheirBoundWaitsAndHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 4)
		first := c.arrive("ana", "a0", 2)
		for n := 1; n < 6; n++ {
			c.arrive("ana", fmt.Sprintf("a%d", n), 2)
		}
		c.want("a0 a1")
		other := c.arrive("ben", "b0", 2)
		c.arrive("ben", "b1", 2)
		c.arrive("ben", "b2", 2)
		c.want("a0 a1 b0 b1")
		c.depart(other)
		c.want("a0 a1 b0 b1 b2") // ana came before, and may not
		c.depart(first)
		c.want("a0 a1 b0 b1 b2 a2")
		c.drain()
	})
}

func TestThoseWhoGiveUpLeaveNoTraceAndBlockNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 1)
		running := c.arrive("ana", "a0", 0)
		var waiting []*visit
		for _, name := range []string{"a1", "b0", "a2", "b1", "e0"} {
			waiting = append(waiting, c.arrive(name[:1], name, 0))
		}
		for _, at := range []int{0, 1, 4} { // the first in line, the first of another, an only one
			c.giveUp(waiting[at])
			if !errors.Is(waiting[at].err, context.Canceled) {
				t.Errorf("%s gave up and got %v", waiting[at].name, waiting[at].err)
			}
		}
		if got := fmt.Sprint(c.queue.turns); got != "[a b]" {
			t.Errorf("turns = %s, want none of e, who has gone", got)
		}
		c.depart(running)
		c.want("a0 a2")
		c.drain()
		c.want("a0 a2 b1")

		// Who gives up at the head of a line may have been all that held the
		// rest of it up.
		c = newCounter(t, 2)
		c.arrive("ana", "a0", 0)
		bounded := c.arrive("ana", "a1", 1)
		c.arrive("ana", "a2", 2)
		c.want("a0")
		c.giveUp(bounded)
		c.want("a0 a2")
		c.drain()
	})
}

// TestAPlaceGivenToOneWhoGivesUpIsNotLost lets both happen in the same moment,
// in either order.
func TestAPlaceGivenToOneWhoGivesUpIsNotLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lost, kept := 0, 0
		for n := range 400 {
			c := newCounter(t, 1)
			running := c.arrive("ana", "a0", 0)
			late := c.arrive("ben", "b0", 0)
			next := c.arrive("eva", "e0", 0)
			if n%2 == 0 {
				late.cancel()
				running.leave()
			} else {
				running.leave()
				late.cancel()
			}
			running.leave = nil
			synctest.Wait()
			if late.err != nil {
				lost++
			} else {
				kept++
				c.depart(late)
			}
			if !next.came {
				t.Fatal("the one behind waits for a place that is free")
			}
			c.depart(next)
			c.empty()
		}
		if lost == 0 || kept == 0 {
			t.Errorf("of those that gave up in the moment of their turn, %d went and %d ran: the test needs both", lost, kept)
		}
	})
}

func TestOneUsersLineHasAnEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 1)
		c.arrive("ana", "a0", 0)
		for n := range mostWaiting {
			c.hurry("ana", fmt.Sprintf("a%d", n+1), 0)
		}
		synctest.Wait()
		refused := c.arrive("ana", "too many", 0)
		p := problem.As(refused.err)
		if p.Kind != problem.RateLimited || p.WireCode() != "too_many_queries" || p.Hint == "" || p.RetryAfter <= 0 {
			t.Errorf("with %d waiting the next one = %v, want a refusal of kind rate_limited with a hint and a time", mostWaiting, refused.err)
		}
		if other := c.arrive("ben", "b0", 0); other.err != nil {
			t.Errorf("another user = %v, want a place in a line of their own", other.err)
		}
		c.depart(c.in()[0])
		if again := c.arrive("ana", "again", 0); again.err != nil {
			t.Errorf("once one has run, the next = %v, want a place", again.err)
		}
		c.drain()
	})
}

// TestTheQueueIsFairWhateverComesAndGoes plays random arrivals, departures and
// changes of mind and checks after each of them what the queue promises.
func TestTheQueueIsFairWhateverComesAndGoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 4).Draw(rt, "places")
		j := &judge{bound: map[string]int{}, passed: map[string]map[string]int{}}
		for _, user := range j.users() {
			j.bound[user] = rapid.IntRange(0, 3).Draw(rt, "most of "+user)
		}
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.IntRange(0, 3).Draw(rt, "what"), rapid.IntRange(0, 11).Draw(rt, "who")}
		}), 1, 80).Draw(rt, "steps")
		synctest.Test(t, func(*testing.T) { // in which rapid itself cannot run
			j.counter = newCounter(j, size)
			for n, s := range steps {
				j.take(s, n)
			}
			j.drain()
		})
		if len(j.faults) > 0 {
			rt.Fatal(j.faults[0])
		}
	})
}

// step is one event: what happens, and to which of those it can happen to.
type step struct{ what, who int }

// judge checks a counter's promises after each step.
type judge struct {
	*counter
	bound  map[string]int
	seen   int                       // entries of order that were judged
	passed map[string]map[string]int // by user who could run: how often each other was let in since
	faults []string
}

func (j *judge) users() []string { return []string{"ana", "ben", "eva"} }

// Helper makes judge a reporter.
func (j *judge) Helper() {}

// Errorf makes judge a reporter.
func (j *judge) Errorf(format string, args ...any) {
	j.faults = append(j.faults, fmt.Sprintf(format, args...))
}

func (j *judge) take(s step, n int) {
	var waiting []*visit
	waited := map[string]bool{}
	for _, v := range j.all {
		if !v.came {
			waiting = append(waiting, v)
			waited[v.user] = true
		}
	}
	running := j.in()
	switch {
	case s.what == 0 && len(running) > 0:
		j.depart(running[s.who%len(running)])
	case s.what == 1 && len(waiting) > 0:
		j.giveUp(waiting[s.who%len(waiting)])
	default:
		user := j.users()[s.who%3]
		j.arrive(user, fmt.Sprintf("%s %d", user, n), j.bound[user])
	}
	j.check(waited)
}

// check holds the queue against its promises; waited are the users who waited
// before the step.
func (j *judge) check(waited map[string]bool) {
	inside, first := map[string]int{}, map[string]*visit{}
	running := j.in()
	for _, v := range running {
		inside[v.user]++
	}
	if len(running) > j.queue.size || j.queue.free != j.queue.size-len(running) {
		j.Errorf("%d run and %d places are free, of %d", len(running), j.queue.free, j.queue.size)
	}
	for _, v := range j.all {
		switch {
		case !v.came && first[v.user] == nil:
			first[v.user] = v
		case v.came && v.err == nil && first[v.user] != nil:
			j.Errorf("%s was let in before %s", v.name, first[v.user].name)
		}
	}
	entered := j.order[j.seen:]
	j.seen = len(j.order)
	for _, user := range j.users() {
		most := j.bound[user]
		if most > 0 && inside[user] > most {
			j.Errorf("%d of %s run, at most %d may", inside[user], user, most)
		}
		could := first[user] != nil && (most == 0 || inside[user] < most)
		if could && len(running) < j.queue.size {
			j.Errorf("%s waits while %d of %d places are free", first[user].name, j.queue.free, j.queue.size)
		}
		j.turns(user, could && waited[user], entered)
	}
}

// turns holds that a user who could run is passed over by each other user at
// most once.
func (j *judge) turns(user string, could bool, entered []string) {
	own := func(name string) bool { return strings.HasPrefix(name, user) }
	if !could || slices.ContainsFunc(entered, own) {
		j.passed[user] = map[string]int{}
		return
	}
	for _, name := range entered {
		other, _, _ := strings.Cut(name, " ")
		if j.passed[user][other]++; j.passed[user][other] > 1 {
			j.Errorf("%s was let in %d times while %s waited for a turn", other, j.passed[user][other], user)
		}
	}
}

// held is a reader that takes an answer when it is let go.
type held struct{ began, free chan struct{} }

func (h *held) Write(p []byte) (int, error) {
	<-h.free
	return len(p), nil
}

// occupy fills an engine of one place until the returned call.
func occupy(t *testing.T, e *Engine) (end func()) {
	t.Helper()
	h := &held{make(chan struct{}), make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		_, err := e.Run(context.Background(), Request{User: "ana", SQL: "SELECT 1", Timeout: time.Minute}, func(Columns) (io.Writer, error) {
			close(h.began)
			return h, nil
		})
		ended <- err
	}()
	select {
	case <-h.began:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() {
		close(h.free)
		if err := <-ended; err != nil {
			t.Errorf("the statement that held the place: %v", err)
		}
	}
}

func TestAStatementThatNeverGetsItsTurnEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	e, err := New(t.Context(), Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	end := occupy(t, e)

	const patience = 150 * time.Millisecond
	began := time.Now()
	_, err = e.Query(t.Context(), Request{User: "ben", SQL: "SELECT 2", Timeout: patience})
	p := problem.As(err)
	if p.Kind != problem.Timeout || p.WireCode() != "query_timeout" || p.Hint == "" {
		t.Errorf("a statement without a turn = %v, want problem.Timeout with a hint", err)
	}
	if !strings.Contains(p.Message, "turn") || strings.Contains(p.Hint, "WHERE") {
		t.Errorf("its caller reads %q, %q; want to know that it waited, for its own text was not the cause", p.Message, p.Hint)
	}
	if took := time.Since(began); took < patience || took > patience+5*time.Second {
		t.Errorf("it ended after %s, want %s", took, patience)
	}

	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := e.Query(ctx, Request{User: "ben", SQL: "SELECT 3", Timeout: time.Minute})
		gone <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that goes away while waiting = %v", err)
	}
	if n := e.Running(); n != 1 {
		t.Errorf("%d statements run, want the one that holds the place", n)
	}
	end()
	if _, err := e.Query(t.Context(), Request{User: "ben", SQL: "SELECT 4", Timeout: time.Minute}); err != nil {
		t.Errorf("once the place is free: %v", err)
	}
	if n := e.Running(); n != 0 {
		t.Errorf("%d statements run, want none", n)
	}
}
