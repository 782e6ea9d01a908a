package csv

import (
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

// meter reports progress in bytes of the source's files.
type meter struct {
	report func(connectors.Progress)

	mu    sync.Mutex
	table table
	total int64
	base  int64 // bytes of the tables that are done
	sent  int64
}

func newMeter(report func(connectors.Progress)) *meter {
	if report == nil {
		report = func(connectors.Progress) {}
	}
	return &meter{report: report}
}

func (m *meter) begin(t table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table = t
	m.send(m.base)
}

func (m *meter) end(t table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.base += t.size()
	m.send(m.base)
}

// send keeps Done from going back, as it would when a file is read twice.
func (m *meter) send(done int64) {
	m.sent = min(max(m.sent, done), m.total)
	m.report(connectors.Progress{Table: m.table.name, Done: m.sent, Total: m.total, Unit: "bytes"})
}

// watchEvery is how often the place in a file is looked at.
const watchEvery = 200 * time.Millisecond

// watch reports, until stop is called, how far this process has read into the
// files: DuckDB itself does not say.
func (m *meter) watch(paths []string) (stop func()) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		furthest := map[string]int64{}
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			readPositions(paths, furthest)
			var n int64
			for _, at := range furthest {
				n += at
			}
			m.mu.Lock()
			m.send(m.base + min(n, m.table.size()))
			m.mu.Unlock()
		}
	})
	return func() {
		close(done)
		ended.Wait()
	}
}
