package monitor

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// job is an instance that is due.
type job struct {
	i     int
	round time.Time // when it was due: names the round
}

// outcome is what came of it.
type outcome struct {
	job
	r fleet.Result
}

// turn is when an instance is due.
type turn struct {
	at    time.Time
	i     int
	first bool // its round began before the monitor did
}

// turns are a heap, the next first.
type turns []turn

func (t turns) Len() int           { return len(t) }
func (t turns) Less(a, b int) bool { return t[a].at.Before(t[b].at) }
func (t turns) Swap(a, b int)      { t[a], t[b] = t[b], t[a] }

// Push and Pop serve container/heap.
func (t *turns) Push(x any) { *t = append(*t, x.(turn)) } //nolint:forcetypeassert // of heap alone

// Pop takes the last one.
func (t *turns) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
	return x
}

// starvedAfter is how late the schedule wakes on a machine on which a silence says
// nothing about who is silent.
const starvedAfter = 250 * time.Millisecond

// lateLog is how often it is said that the workers do not keep up.
const lateLog = time.Minute

// schedule hands out what is due until ctx ends. Every instance is asked at once
// at the begin: nobody wants to wait for its turn, and the round that is under way
// would be missed.
func (m *Monitor) schedule(ctx context.Context, workers *sync.WaitGroup) {
	begin := time.Now()
	due := make(turns, len(m.watched))
	for i := range m.watched {
		due[i] = turn{begin, i, true}
	}
	heap.Init(&due)
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer close(m.jobs)
	running := 0
	var said time.Time
	var saidMissed int64
	for len(due) > 0 {
		next := due[0]
		if wait := time.Until(next.at); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			if woke := time.Now(); woke.Sub(next.at) > starvedAfter {
				m.starved.Store(woke.UnixNano())
			}
		}
		now := time.Now()
		j := job{next.i, next.at}
		if next.first {
			j.round = onOurClock(m.roundOf(now, m.watched[next.i].in), now)
		}
		if m.watched[next.i].busy.CompareAndSwap(false, true) {
			select {
			case m.jobs <- j:
			default:
				if running < m.o.Workers {
					running++
					workers.Go(func() { m.work(ctx) })
				}
				select {
				case m.jobs <- j:
				case <-ctx.Done():
					return
				}
			}
		} else {
			m.missed.Add(1) // its last probe is not back yet
		}
		after := next.at
		if next.first {
			after = now
		}
		at, left := m.turnAfter(after, time.Now(), m.watched[next.i].in)
		m.missed.Add(left)
		due[0] = turn{at: at, i: next.i}
		heap.Fix(&due, 0)
		if missed := m.missed.Load(); missed > saidMissed && now.Sub(said) >= lateLog {
			m.log.LogAttrs(ctx, slog.LevelWarn, "the monitor does not keep up: rounds were left out", slog.Int64("missed", missed-saidMissed), slog.Int("workers", m.o.Workers))
			said, saidMissed = now, missed
		}
	}
	<-ctx.Done() // an empty fleet
}

// turnAfter returns when an instance is due after its turn at after, and how many
// rounds are left out.
func (m *Monitor) turnAfter(after, now time.Time, in fleet.Instance) (at time.Time, left int64) {
	at = m.o.Prober.Schedule(after, in)
	switch {
	case !at.After(now):
		// A whole round has passed while this one waited for a worker.
		later := m.o.Prober.Schedule(now, in)
		at, left = later, max(1, int64(later.Sub(at)/in.Interval))
	case at.Sub(now) > 2*in.Interval:
		at = m.o.Prober.Schedule(now, in) // the wall clock was set back
	}
	return onOurClock(at, now), left
}

// onOurClock gives a moment the monotonic clock of now: what waits for it, and rounds
// that are compared, do not go wrong when the wall clock is set.
func onOurClock(at, now time.Time) time.Time { return now.Add(at.Sub(now)) }

// roundOf returns when the round of an instance began that is under way.
func (m *Monitor) roundOf(now time.Time, in fleet.Instance) time.Time {
	// A round is no longer than its interval and the jitter, a tenth of it.
	round := m.o.Prober.Schedule(now.Add(-in.Interval*6/5), in)
	for {
		next := m.o.Prober.Schedule(round, in)
		if next.After(now) {
			return round
		}
		round = next
	}
}

// work probes what it is handed until there is no more.
func (m *Monitor) work(ctx context.Context) {
	for j := range m.jobs {
		r := m.o.Probe(ctx, m.watched[j.i].in)
		if ctx.Err() != nil {
			continue // it was cut off by our own end
		}
		m.done <- outcome{j, r}
	}
}
