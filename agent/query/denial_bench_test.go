//go:build bench

package query_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
)

// Ten offenders of one user at a time, again and again, while another user asks
// small things: 1,000 samples before and 1,000 during.
func TestBenchOthersBesideOffenders(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	dir := t.TempDir()
	granted := parquet(t, dir, "granted", "SELECT md5(range::VARCHAR) AS v FROM range(20000)")
	other := parquet(t, dir, "other", "SELECT 1 AS v")
	hash := digest(t, granted, other)
	e := engine(t)
	e.Warm()
	probeLatency(t, e, []query.View{other}, 200)
	idle, kids, fds := memory(t), len(children(t)), descriptors(t)
	const samples = 1000
	quiet := probeLatency(t, e, []query.View{other}, samples)

	var stop atomic.Bool
	var wg sync.WaitGroup
	var most, ran, slow atomic.Int64
	list := offenders(granted)
	for i := range 10 {
		wg.Go(func() {
			for n := i; !stop.Load(); n += 7 {
				began := time.Now()
				format := []query.Format{query.JSON, query.CSV, query.NDJSON}[n%3]
				// Half of the places are one user's at most, as for a role.
				_ = run(e, "offender", []query.View{granted}, list[n%len(list)], format, 2*time.Second, max(1, e.Workers()/2))
				ran.Add(1)
				if time.Since(began) > 3*time.Second {
					slow.Add(1)
				}
			}
		})
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for !stop.Load() {
			if grew := memory(t) - idle; grew > most.Load() {
				most.Store(grew)
			}
			<-time.After(20 * time.Millisecond)
		}
	}()
	loaded := probeLatency(t, e, []query.View{other}, samples)
	stop.Store(true)
	wg.Wait()
	<-watching
	a, b := percentile(quiet, 99), percentile(loaded, 99)
	ratio := float64(b) / float64(a)
	t.Logf("SELECT 1 unloaded p50 %s p99 %s; beside %d offenders p50 %s p99 %s: %.1fx (bar 10x); the server grew by %d MB (bar 100)",
		percentile(quiet, 50), a, ran.Load(), percentile(loaded, 50), b, ratio, most.Load()>>20)
	if ratio > 10 {
		t.Errorf("p99 is %.1fx of the unloaded one, want at most 10x", ratio)
	}
	if most.Load() > 100<<20 {
		t.Errorf("the server grew by %d MB, want less than 100", most.Load()>>20)
	}
	if slow.Load() > 0 {
		t.Errorf("%d of %d offenders ended later than a second after their deadline", slow.Load(), ran.Load())
	}
	if digest(t, granted, other) != hash {
		t.Error("a published file has changed")
	}
	settled(t, "child processes", kids+e.Workers(), func() int { return len(children(t)) })
	settled(t, "descriptors", fds+2*e.Workers(), func() int { return descriptors(t) })
	probeLatency(t, e, []query.View{granted}, 10)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	settled(t, "child processes after Close", 0, func() int { return len(children(t)) })
}
