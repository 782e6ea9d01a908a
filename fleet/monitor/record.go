package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	ownTick    = 30 * time.Second // how often the monitor looks at itself
	lifeTick   = 2 * time.Minute  // how often it says that it lives
	lastWrite  = 10 * time.Second // for one write, and a millisecond a row; longer than the store waits for another writer
	firstRetry = time.Second      // of a batch that was not written; doubled each time
	lastRetry  = 30 * time.Second
	muteAfter  = time.Minute // without a store, until people are told by other ways
	batchTakes = 1000        // results that a batch waits for, where one follows the other
	mostWaits  = 50_000      // changes and latencies that wait for the store
)

// record takes results in until there are no more.
func (m *Monitor) record() {
	defer close(m.batches)
	tick := time.NewTicker(ownTick)
	defer tick.Stop()
	if m.opening == 0 {
		m.signs = true
	}
	for {
		m.handOver()
		select {
		case o, more := <-m.done:
			if !more {
				m.end()
				return
			}
			m.take(o)
		case <-tick.C:
			m.lookAtItself(time.Now())
		case <-m.written:
			m.writing = false
		}
	}
}

// handOver gives the batch to the writer where that is free.
func (m *Monitor) handOver() {
	if m.writing || m.batch.Empty() || len(m.done) > 0 && m.taken < batchTakes {
		return // what waits comes along in the same transaction
	}
	m.taken = 0
	m.batches <- m.batch
	m.batch, m.writing = store.Batch{}, true
}

// end writes what is left.
func (m *Monitor) end() {
	now := time.Now()
	for i := range m.watched {
		w := &m.watched[i]
		if hour, ok := w.latency.flush(w.in.Name); ok {
			m.hours = append(m.hours, hour)
		}
	}
	m.alive(now)
	if m.writing {
		<-m.written
		m.writing = false
	}
	if !m.batch.Empty() {
		m.batches <- m.batch
		<-m.written
	}
}

// alive says that the monitor watches.
func (m *Monitor) alive(now time.Time) {
	if !m.lifeFrom.IsZero() {
		m.lifeSaid = now
		m.batch.Latency, m.hours = append(m.batch.Latency, m.hours...), nil // which are in no hurry
		m.batch.Latency = m.batch.Latency[max(0, len(m.batch.Latency)-mostWaits):]
		m.batch.WatchedFrom, m.batch.WatchedUntil = m.lifeFrom, now
	}
}

// take takes one outcome in. Until something of the fleet has answered, it is not
// known whose fault it is that others do not.
func (m *Monitor) take(o outcome) {
	m.rounds.Add(1)
	m.taken++
	w := &m.watched[o.i]
	if o.r.Fault == fleet.FaultTimeout && m.starved.Load() >= o.r.At.Add(-time.Second).UnixNano() {
		o.r.SelfTrouble = true // it may have answered while we did not run
	}
	if m.opening > 0 && !w.seenFirst {
		w.seenFirst = true
		m.opening--
	}
	doubtful := !o.r.Reached && !o.r.SelfTrouble && o.r.Fault != fleet.FaultConfig
	if o.r.Reached && !m.signs {
		m.signs = true
		held := m.held
		m.held = nil
		for _, h := range held {
			m.count(h)
		}
	}
	switch {
	case !doubtful || m.signs:
		m.count(o)
	case m.opening > 0:
		m.held = append(m.held, o)
	default:
		// Everybody was asked and nobody answers. One silent instance alone proves
		// nothing about us.
		for _, h := range append(m.held, o) {
			h.r.SelfTrouble = len(m.watched) > 1
			m.count(h)
		}
		m.held = nil
	}
}

// count lets a result count and shows it.
func (m *Monitor) count(o outcome) {
	w := &m.watched[o.i]
	m.total++
	if o.r.SelfTrouble {
		m.ours++
	}
	if o.r.Health != fleet.Unreachable {
		if hour, ok := w.latency.add(o.r.At, o.r.Timing.Total, w.in.Name); ok {
			m.hours = append(m.hours, hour)
		}
	}
	if !o.r.SelfTrouble && w.mind.last.Before(o.round) {
		s := sight{rules: &m.rules, mind: &w.mind, in: w.in, r: o.r, at: o.r.At, out: &m.batch}
		if s.see() {
			m.saveMind(w.in.Name, &w.mind, o.r.At)
		}
	}
	m.show(o.i, o.r, w.mind.tracks[working].Record)
	w.busy.Store(false)
}

func (m *Monitor) saveMind(name string, who *mind, at time.Time) {
	doc, err := who.save()
	if err != nil {
		m.log.LogAttrs(context.Background(), slog.LevelError, "what is known of an instance cannot be written", slog.String("instance", name), slog.Any("error", err))
		return
	}
	m.remember(name, doc)
	if at.After(m.batch.Seen) {
		m.batch.Seen = at
	}
}

// lookAtItself judges the monitor as it judges instances: it is in trouble when at
// least half of its results are its own fault. Then nobody is told of instances,
// and of this once.
func (m *Monitor) lookAtItself(now time.Time) {
	o := fleet.Nothing
	switch {
	case m.total == 0:
	case 2*m.ours >= m.total:
		o = fleet.Bad
	default:
		o = fleet.Good
	}
	// Time in which this process, or its machine, was stopped was not watched. The
	// wall clock goes on meanwhile.
	if now.Round(0).Sub(m.looked.Round(0)) > 3*ownTick && !m.looked.IsZero() && !m.lifeFrom.IsZero() {
		m.lifeFrom = now
	}
	m.looked = now
	total, ours := m.total, m.ours
	m.total, m.ours = 0, 0
	if o != fleet.Bad {
		if m.lifeFrom.IsZero() {
			m.lifeFrom = now
		}
		if now.Sub(m.lifeSaid) >= lifeTick {
			m.alive(now)
		}
	} else {
		m.lifeFrom = time.Time{} // what it does not see is not known
	}
	t := &m.own.tracks[itself]
	changed := t.observe(m.rules.judge, now, o)
	switch {
	case t.Incident == nil && t.Record.Standing == fleet.Down && o == fleet.Bad:
		i := store.Incident{
			ID: fmt.Sprintf("monitor-%d", now.UnixMicro()), Kind: string(fleet.KindMonitor), Opened: now,
			Summary: fmt.Sprintf("The monitor cannot reach the fleet: %d of %d probes failed by its own fault in the last %s. Nothing is known of the instances.", ours, total, ownTick),
			Hint:    "Look at the network, the name server and the limits of the monitor's machine.",
		}
		m.batch.Opened = append(m.batch.Opened, store.Opening{Incident: i, To: m.tell(fleet.Instance{}, fleet.KindMonitor)})
		t.Incident = &open{ID: i.ID, Kind: fleet.KindMonitor}
		m.log.LogAttrs(context.Background(), slog.LevelError, "the monitor cannot reach the fleet", slog.Int("failed", ours), slog.Int("probes", total), slog.String("hint", i.Hint))
		changed = true
	case t.Incident != nil && t.Record.Standing == fleet.Up:
		m.batch.Closed = append(m.batch.Closed, store.Closing{ID: t.Incident.ID, At: now, Ending: endings[itself]})
		t.Incident = nil
		changed = true
	}
	if changed {
		m.saveMind("", &m.own, now)
	}
	if extra := len(m.batch.Changes) - mostWaits; extra > 0 {
		m.log.LogAttrs(context.Background(), slog.LevelError, "changes are lost: the store does not take them", slog.Int("lost", extra))
		m.batch.Changes = m.batch.Changes[extra:]
	}
}

// writer writes batches until there are no more. One that fails is tried until it
// is written, or the monitor ends.
func (m *Monitor) writer(ctx context.Context) {
	var rest store.Batch
	for b := range m.batches {
		// None is written without those before it.
		rest.Add(b)
		if m.write(ctx, rest) {
			rest = store.Batch{}
		}
		m.written <- struct{}{}
	}
}

func (m *Monitor) write(ctx context.Context, b store.Batch) bool {
	began, pause := time.Now(), firstRetry
	var told time.Time
	for {
		// A write that has begun is brought to its end: the monitor's end must not
		// undo what was decided.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite+time.Duration(b.Rows())*time.Millisecond)
		err := m.o.Store.Remember(limited, b)
		cancel()
		if err == nil {
			m.storeWorks(ctx, told)
			if len(b.Opened)+len(b.Told)+len(b.Closed) > 0 {
				m.wake()
			}
			return true
		}
		if m.storeFails(ctx, err); ctx.Err() != nil {
			return false
		}
		if told.IsZero() && time.Since(began) >= muteAfter {
			told = time.Now().UTC()
			m.shout(ctx, alert.Item{Event: alert.Opened, Opened: told}, err)
		}
		waitUntil(ctx, time.Now().Add(pause), nil)
		pause = min(2*pause, lastRetry)
	}
}

func (m *Monitor) wake() {
	for _, wake := range m.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (m *Monitor) storeFails(ctx context.Context, err error) {
	m.mu.Lock()
	m.trouble = err.Error()
	m.mu.Unlock()
	m.log.LogAttrs(ctx, slog.LevelError, "the store cannot be written; the monitor goes on and tries again", slog.Any("error", err), slog.String("hint", problem.As(err).Hint))
}

func (m *Monitor) storeWorks(ctx context.Context, told time.Time) {
	m.mu.Lock()
	was := m.trouble
	m.trouble = ""
	m.mu.Unlock()
	if was != "" {
		m.log.LogAttrs(ctx, slog.LevelInfo, "the store can be written again")
	}
	if !told.IsZero() {
		m.shout(ctx, alert.Item{Event: alert.Closed, Opened: told, Closed: time.Now().UTC(), Ending: "The monitor can write again."}, errors.New(was))
	}
}

// shout tells people past the store, which does not work: at most once for each
// trouble of one process, and without a promise. Nothing waits for it.
func (m *Monitor) shout(ctx context.Context, item alert.Item, cause error) {
	item.Incident, item.Kind, item.Hint = "monitor-store", fleet.KindMonitor, problem.As(cause).Hint
	item.Summary = "The monitor cannot write what it learns: " + cause.Error() + " Until it can, nobody is told of anything else."
	message := alert.Message{ID: fmt.Sprintf("monitor-store-%s-%d", item.Event, item.Opened.Unix()), Items: []alert.Item{item}}
	for _, c := range m.o.Channels {
		if c.Threads() || !c.Wants(fleet.KindMonitor, nil) {
			continue
		}
		m.shouts.Go(func() {
			limited, cancel := context.WithTimeout(ctx, sendLimit)
			defer cancel()
			if _, err := c.Sink.Send(limited, message); err != nil {
				m.log.LogAttrs(ctx, slog.LevelError, "a channel did not take the message", slog.String("channel", c.Name), slog.Any("error", err))
			}
		})
	}
}
