package monitor

import (
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// Event tells that an instance's line has changed in what people look at; a
// latency or a time of its own is no change.
type Event struct {
	Seq    uint64
	Name   string
	Line   fleet.InstanceStatus
	Reload bool // events were dropped for a slow reader: read Status again; the rest is empty
}

// view is what others see. Monitor.mu guards it.
type view struct {
	seq         uint64
	subscribers map[chan Event]bool
	status      fleet.Status
	made        time.Time // of status
}

const (
	statusAge   = time.Second // of a Status that is handed out again
	eventBuffer = 256
)

// show keeps a result for those who ask, and tells subscribers of it.
func (m *Monitor) show(i int, r fleet.Result, record fleet.Record) {
	w := &m.watched[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	tell := len(m.view.subscribers) > 0 && (!w.seen || looksDifferent(&w.result, &r) || w.record.Standing != record.Standing)
	w.result, w.record, w.seen = r, record, true
	if !tell {
		return
	}
	m.view.seq++
	e := Event{Seq: m.view.seq, Name: w.in.Name, Line: m.o.Status(time.Now(), []fleet.Instance{w.in}, []fleet.Result{r}).Instances[0]}
	for c := range m.view.subscribers {
		select {
		case c <- e:
		default:
			// The record does not wait for readers. What is in the buffer is of no use
			// to one that has to begin anew.
			for len(c) > 0 {
				select {
				case <-c:
				default:
				}
			}
			c <- Event{Seq: e.Seq, Reload: true} // nobody else writes, so there is room
		}
	}
}

// looksDifferent reports whether people should see a new line.
func looksDifferent(a, b *fleet.Result) bool {
	message := func(r *fleet.Result) string {
		if r.Err == nil {
			return ""
		}
		return r.Err.Message
	}
	return a.Health != b.Health || a.Fault != b.Fault || a.Version != b.Version || a.Channel != b.Channel || a.Commit != b.Commit || a.Phase != b.Phase ||
		a.SchemaVersion != b.SchemaVersion || a.SetupRequired != b.SetupRequired || a.Deprecated != b.Deprecated || a.Latest != b.Latest ||
		a.Digest != b.Digest || a.BundleVersion != b.BundleVersion || a.ConfigHash != b.ConfigHash || a.StaleTables != b.StaleTables || !a.LastSync.Equal(b.LastSync) ||
		a.SelfTrouble != b.SelfTrouble || message(a) != message(b) || !slices.Equal(a.Warnings, b.Warnings) || !slices.Equal(a.Notes, b.Notes)
}

// Status returns the fleet as it was last seen. It is made at most once a second,
// and shared: do not change it. An instance that was not asked yet is unreachable
// by our fault.
func (m *Monitor) Status() fleet.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(m.view.made) < statusAge && !m.view.made.IsZero() {
		return m.view.status
	}
	instances, results := make([]fleet.Instance, len(m.watched)), make([]fleet.Result, 0, len(m.watched))
	for i := range m.watched {
		w := &m.watched[i]
		instances[i] = w.in
		if w.seen {
			results = append(results, w.result)
		}
	}
	m.view.status, m.view.made = m.o.Status(now, instances, results), now
	return m.view.status
}

// Subscribe returns events from now on, and how to end them. A slow reader loses
// events and is told so by one with Reload.
func (m *Monitor) Subscribe() (<-chan Event, func()) {
	c := make(chan Event, eventBuffer)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.view.subscribers == nil {
		m.view.subscribers = map[chan Event]bool{}
	}
	m.view.subscribers[c] = true
	return c, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.view.subscribers, c)
	}
}

// Result returns what was last seen of an instance and how it is judged; false
// where it is not watched or was not asked yet.
func (m *Monitor) Result(name string) (fleet.Result, fleet.Record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.byName[name]
	if !ok || !m.watched[i].seen {
		return fleet.Result{}, fleet.Record{}, false
	}
	return m.watched[i].result, m.watched[i].record, true
}
