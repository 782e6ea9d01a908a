//go:build bench

package query_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
)

// largeRows is what large answers are measured with.
const largeRows = `SELECT range AS id, range % 1000 AS customer, 'customer ' || (range % 5000) AS name, range * 0.37 AS amount,
	DATE '2020-01-01' + (range % 2000)::INTEGER AS day, range % 7 = 0 AS flag FROM range(5000000)`

// TestBenchLargeAnswersMemory measures what five million rows cost in memory at
// both ends, and how long the first byte takes.
func TestBenchLargeAnswersMemory(t *testing.T) {
	view := parquet(t, t.TempDir(), "big", largeRows)
	for _, format := range []query.Format{query.JSON, query.NDJSON, query.CSV, query.Arrow, query.Parquet} {
		var first []float64
		var worker, parent int64
		for range rounds {
			e := engine(t)
			e.Warm()
			if _, err := ask(e, []query.View{view}, "SELECT count(*) FROM big"); err != nil {
				t.Fatal(err)
			}
			debug.FreeOSMemory()
			idle := memory(t)
			resetPeak(t)
			w := &peakWriter{t: t, timedWriter: timedWriter{began: time.Now()}}
			sum, err := e.Run(t.Context(), query.Request{User: "u", Generation: 1, Views: []query.View{view}, SQL: "SELECT * FROM big", Format: format, Timeout: 5 * time.Minute},
				func(query.Columns) (io.Writer, error) { return w, nil })
			if err != nil {
				t.Fatal(err)
			}
			if sum.Rows != 5_000_000 || w.worker == 0 {
				t.Fatalf("%d rows, a worker of %d bytes", sum.Rows, w.worker)
			}
			parent = max(parent, memoryOf(t, "self", "VmHWM:")-idle)
			worker = max(worker, w.worker)
			first = append(first, w.first.Seconds()*1000)
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%-8s worker's peak %d MB (bar 150), server's %d MB above idle (bar 80), first byte %.0f ms, worst %.0f ms (bar 100)",
			format, worker>>20, parent>>20, median(first), slices.Max(first))
	}
}

// peakWriter looks at the workers' peaks as an answer comes in: a worker that
// wrote Parquet is gone at its end.
type peakWriter struct {
	timedWriter
	t      *testing.T
	looked time.Time
	worker int64
}

func (w *peakWriter) Write(p []byte) (int, error) {
	n, err := w.timedWriter.Write(p)
	if at := time.Now(); at.Sub(w.looked) > 50*time.Millisecond {
		w.looked = at
		for _, pid := range children(w.t) {
			w.worker = max(w.worker, memoryOf(w.t, strconv.Itoa(pid), "VmHWM:"))
		}
	}
	return n, err
}

// resetPeak makes VmHWM start again from what is resident now: proc(5), clear_refs.
func resetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// TestBenchIdleWorkers measures what workers that wait cost: twenty, each bound
// to grants of its own and each with statements behind it.
func TestBenchIdleWorkers(t *testing.T) {
	const workers = 20
	one := parquet(t, t.TempDir(), "t", "SELECT range AS v FROM range(100000)")
	e, err := query.New(t.Context(), query.Options{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			views := []query.View{{Name: fmt.Sprintf("t%d", i), Files: one.Files}}
			for n := range 100 {
				if _, err := ask(e, views, fmt.Sprintf("SELECT sum(v), %d FROM t%d", n, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var pss, rss []float64
	for _, pid := range children(t) {
		pss = append(pss, float64(memoryOf(t, strconv.Itoa(pid), "Pss:"))/(1<<20))
		rss = append(rss, float64(memoryOf(t, strconv.Itoa(pid), "VmRSS:"))/(1<<20))
	}
	if len(pss) < workers || slices.Min(pss) == 0 {
		t.Fatalf("%d workers, PSS %.1f; expected at least %d that can be read", len(pss), pss, workers)
	}
	t.Logf("%d idle workers, spares included: PSS %.1f MB each, worst %.1f MB (bar 15); RSS %.1f MB", len(pss), median(pss), slices.Max(pss), median(rss))
}

// TestBenchAfterKill measures how soon the same grants are answered again after
// a statement was ended at its deadline.
func TestBenchAfterKill(t *testing.T) {
	dir := t.TempDir()
	one := parquet(t, dir, "t", "SELECT 1 AS v")
	views := make([]query.View, 1000)
	for i := range views {
		link := filepath.Join(dir, fmt.Sprintf("t%d.parquet", i))
		if err := os.Link(one.Files[0], link); err != nil {
			t.Fatal(err)
		}
		views[i] = query.View{Name: fmt.Sprintf("t%d", i), Files: []string{link}}
	}
	e := engine(t)
	e.Warm()
	var late, next []float64
	for range 20 {
		const limit = 200 * time.Millisecond
		began := time.Now()
		err := run(e, "u", views, "SELECT count(*) FROM range(10000000) a, range(10000000) b, t0", query.JSON, limit, 4)
		if err == nil {
			t.Fatal("the statement was not ended")
		}
		late = append(late, (time.Since(began)-limit).Seconds()*1000)
		began = time.Now()
		if _, err := ask(e, views, "SELECT v FROM t0"); err != nil {
			t.Fatal(err)
		}
		next = append(next, time.Since(began).Seconds()*1000)
	}
	t.Logf("a statement past its deadline ends %.0f ms late, worst %.0f ms; the next answer on the same 1000 tables takes %.0f ms, worst %.0f ms (bar 250)",
		median(late), slices.Max(late), median(next), slices.Max(next))
}
