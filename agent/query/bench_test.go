//go:build bench

package query_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// rounds is how often the sides of a comparison take turns.
const rounds = 5

// TestBenchSmallQueries compares gate and workers behind a plain handler with a
// plain database/sql handler: the same statements, random literals, in turns.
func TestBenchSmallQueries(t *testing.T) {
	e := engine(t)
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	ours := serve(t, func(w http.ResponseWriter, r *http.Request) {
		sqlText, _ := io.ReadAll(r.Body)
		_, err := e.Run(r.Context(), query.Request{User: r.Header.Get("User"), SQL: string(sqlText), Limit: 1000, Timeout: time.Minute},
			func(query.Columns) (io.Writer, error) { return w, nil })
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, "}")
	})
	plain := serve(t, func(w http.ResponseWriter, r *http.Request) {
		sqlText, _ := io.ReadAll(r.Body)
		rows, err := db.QueryContext(r.Context(), string(sqlText))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer func() { _ = rows.Close() }()
		cols, _ := rows.Columns()
		out := [][]any{}
		for rows.Next() {
			row, to := make([]any, len(cols)), make([]any, len(cols))
			for i := range row {
				to[i] = &row[i]
			}
			_ = rows.Scan(to...)
			out = append(out, row)
		}
		if rows.Err() != nil {
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"columns": cols, "rows": out})
	})
	for _, clients := range []int{1, 16} {
		for _, url := range []string{ours, plain} {
			load(t, url, clients) // both sides start what they start once
		}
		var rate, p50, p99 []float64
		for range rounds {
			a, b := load(t, ours, clients), load(t, plain, clients)
			rate = append(rate, a.rate/b.rate)
			p50 = append(p50, a.p50/b.p50)
			p99 = append(p99, a.p99/b.p99)
			t.Logf("%2d clients: ours %6.0f/s p50 %.2f ms p99 %.2f ms; plain %6.0f/s p50 %.2f ms p99 %.2f ms",
				clients, a.rate, a.p50, a.p99, b.rate, b.p50, b.p99)
		}
		t.Logf("%2d clients: requests/s %.2fx, p50 %.2fx, p99 %.2fx of plain (medians)", clients, median(rate), median(p50), median(p99))
	}
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return "http://" + ln.Addr().String()
}

type loadResult struct{ rate, p50, p99 float64 }

func load(t *testing.T, url string, clients int) loadResult {
	t.Helper()
	const total = 6000
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var mu sync.Mutex
	var times []float64
	var wg sync.WaitGroup
	began := time.Now()
	for c := range clients {
		wg.Go(func() {
			var mine []float64
			for range total / clients {
				at := time.Now()
				req, _ := http.NewRequest(http.MethodPost, url, strings.NewReader("SELECT "+strconv.Itoa(rand.IntN(1<<30))))
				req.Header.Set("User", strconv.Itoa(c))
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%d %s", resp.StatusCode, body)
					return
				}
				mine = append(mine, float64(time.Since(at).Microseconds())/1000)
			}
			mu.Lock()
			times = append(times, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	slices.Sort(times)
	return loadResult{float64(len(times)) / took, times[len(times)/2], times[len(times)*99/100]}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// TestBenchLargeAnswers compares five million rows out of a worker with
// DuckDB's own COPY in this process to a file in memory.
func TestBenchLargeAnswers(t *testing.T) {
	dir := t.TempDir()
	view := parquet(t, dir, "big", largeRows)
	e := engine(t)
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	shm, err := os.MkdirTemp("/dev/shm", "agnes-bench-") //nolint:usetesting // the peer writes into memory, not to a disk
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(shm) }()
	for _, c := range []struct {
		format query.Format
		copy   string
		bar    float64
	}{{query.CSV, "csv", 1.3}, {query.NDJSON, "json", 1.6}, {query.Arrow, "csv", 0.9}, {query.Parquet, "parquet, COMPRESSION zstd", 1.3}} {
		var ratio, first []float64
		var bytes int64
		for range rounds {
			at := time.Now()
			if _, err := db.Exec(fmt.Sprintf("COPY (SELECT * FROM read_parquet('%s')) TO '%s' (FORMAT %s)", view.Files[0], filepath.Join(shm, "out"), c.copy)); err != nil {
				t.Fatal(err)
			}
			peer := time.Since(at).Seconds()
			at = time.Now()
			w := &timedWriter{began: at}
			sum, err := e.Run(t.Context(), query.Request{User: "u", Generation: 1, Views: []query.View{view}, SQL: "SELECT * FROM big", Format: c.format, Timeout: 5 * time.Minute},
				func(query.Columns) (io.Writer, error) { return w, nil })
			if err != nil {
				t.Fatal(err)
			}
			if sum.Rows != 5_000_000 {
				t.Fatalf("%d rows", sum.Rows)
			}
			ratio = append(ratio, time.Since(at).Seconds()/peer)
			first = append(first, w.first.Seconds()*1000)
			bytes = sum.Bytes
			t.Logf("%-8s COPY %.2f s, ours %.2f s", c.format, peer, time.Since(at).Seconds())
		}
		t.Logf("%-8s %.2fx of COPY %s (bar %.1f), first byte %.0f ms, %d MB", c.format, median(ratio), strings.Fields(c.copy)[0], c.bar, median(first), bytes>>20)
	}
}

type timedWriter struct {
	began time.Time
	first time.Duration
}

func (w *timedWriter) Write(p []byte) (int, error) {
	if w.first == 0 {
		w.first = time.Since(w.began)
	}
	return len(p), nil
}

// TestBenchSpawn measures what the first statement costs.
func TestBenchSpawn(t *testing.T) {
	dir := t.TempDir()
	one := parquet(t, dir, "t", "SELECT 1 AS v")
	for _, tables := range []int{1, 1000} {
		views := make([]query.View, tables)
		for i := range views {
			link := filepath.Join(dir, fmt.Sprintf("t%d_%d.parquet", tables, i))
			if err := os.Link(one.Files[0], link); err != nil {
				t.Fatal(err)
			}
			views[i] = query.View{Name: fmt.Sprintf("t%d", i), Files: []string{link}}
		}
		var cold []float64
		for range 10 {
			e, err := query.New(t.Context(), query.Options{Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			at := time.Now()
			if _, err := ask(e, views, "SELECT v FROM t0"); err != nil {
				t.Fatal(err)
			}
			cold = append(cold, time.Since(at).Seconds()*1000)
			_ = e.Close()
		}
		t.Logf("%4d tables: a new process answers its first statement after %.0f ms (median)", tables, median(cold))
	}
}
