package query_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func listen(t *testing.T, h http.HandlerFunc) string {
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

// memory is this process's resident memory in bytes.
func memory(t *testing.T) int64 { t.Helper(); return memoryOf(t, "self", "VmRSS:") }

func memoryOf(t *testing.T, pid, field string) int64 {
	t.Helper()
	name := "status"
	if field == "Pss:" {
		name = "smaps_rollup"
	}
	data, err := os.ReadFile(filepath.Join("/proc", pid, name))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// offenders are statements that aim at time or memory. Whatever becomes of
// them, it happens within the deadline.
func offenders(granted query.View) []string {
	and := "SELECT 1 WHERE true" + strings.Repeat(" AND 1=1", (60<<10)/8)
	deep := func(open, inner, closed string, n int) string {
		return "SELECT " + strings.Repeat(open, n) + inner + strings.Repeat(closed, n)
	}
	bomb := "WITH t0 AS (SELECT {'a': 1, 'b': 2} AS x)"
	for i := range 40 {
		bomb += fmt.Sprintf(", t%d AS (SELECT {'a': x, 'b': x} AS x FROM t%d)", i+1, i)
	}
	doubling := "WITH t0 AS (SELECT 'x' AS x)"
	for i := range 60 {
		doubling += fmt.Sprintf(", t%d AS (SELECT x || x AS x FROM t%d)", i+1, i)
	}
	return []string{
		`SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))`,
		`SELECT damerau_levenshtein(repeat('a', 100000), repeat('b', 100000))`,
		`SELECT jaccard(repeat('ab', 100000000), repeat('bc', 100000000))`,
		`SELECT repeat('x', 2000000000)`,
		`SELECT length(repeat('x', 2000000000) || repeat('y', 2000000000))`,
		`SELECT repeat(repeat(repeat('x', 10000), 10000), 10000)`,
		`SELECT list_transform(range(1000000000), lambda x: x)`,
		`SELECT range(1000000000)`,
		`SELECT count(*) FROM range(1000000) a, range(1000000) b`,
		`SELECT count(*) FROM granted a, granted b, granted c, granted d, granted e, granted f`,
		`SELECT a.v FROM granted a, granted b, granted c, granted d ORDER BY md5(a.v || b.v || c.v || d.v)`,
		`SELECT DISTINCT a.range, b.range FROM range(100000) a, range(100000) b`,
		`SELECT a.range, sum(b.range) OVER (ORDER BY a.range, b.range) FROM range(100000) a, range(100000) b`,
		`SELECT string_agg(repeat('x', 1000), '') FROM range(10000000)`,
		`SELECT list(range) FROM range(10000000000)`,
		`SELECT histogram(range) FROM range(1000000000)`,
		`SELECT map_from_entries(list((range, range))) FROM range(100000000)`,
		`WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t`,
		`WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT max(length(s)) FROM t`,
		`SELECT count(*) FROM generate_series(1, 1000000000000)`,
		`SELECT count(*) FROM range(10000000000) WHERE regexp_matches(range::VARCHAR || repeat('a', 5000), '(a+)+$')`,
		`SELECT regexp_matches(repeat('a', 100000), '((a{0,100}){0,100}){0,100}b')`,
		`SELECT regexp_replace(repeat('a', 100000000), 'a', repeat('b', 1000), 'g')`,
		`SELECT regexp_extract_all(repeat('a', 100000000), 'a')`,
		`SELECT string_split(repeat('a,', 500000000), ',')`,
		`SELECT format('{:>2000000000}', 'x')`,
		`SELECT printf('%2000000000d', 1)`,
		`SELECT lpad('x', 2000000000, 'y')`,
		`SELECT bitstring('1', 2000000000)`,
		`SELECT list_sort(list_transform(range(100000000), lambda x: md5(x::VARCHAR)))`,
		`SELECT sum(exp(range)) FROM range(1000000000000)`,
		`SELECT 1 + ` + strings.Repeat("1 + ", 15000) + `1`,
		`SELECT 1 ` + strings.Repeat("UNION ALL SELECT 1 ", 3000),
		`SELECT 1 IN (` + strings.Repeat("1,", 30000) + `1)`,
		deep("(", "1", ")", 30000), deep("(SELECT ", "1", ")", 6000), deep("CASE WHEN true THEN ", "1", " END", 2300),
		deep("[", "1", "]", 30000), deep("-", "1", "", 60000), deep("NOT ", "true", "", 15000), deep("{'a':", "1", "}", 9000), deep("abs(", "1", ")", 12000),
		`SELECT '` + strings.Repeat("[", 50000) + `'::JSON`,
		`SELECT json_extract('` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `', '$` + strings.Repeat("[0]", 5000) + `')`,
		`SELECT json_structure('` + strings.Repeat("[", 900) + strings.Repeat("]", 900) + `')`,
		"SELECT * FROM " + strings.Repeat("(SELECT * FROM ", 3000) + "granted" + strings.Repeat(")", 3000),
		and, strings.ReplaceAll(and, "AND", "OR "), bomb + " SELECT x FROM t40", doubling + " SELECT length(x) FROM t60",
		"SELECT 1 -- " + strings.Repeat("x", 1<<20),
		"SELECT '" + strings.Repeat("x", query.MaxSQL-20) + "'",
		`COPY granted TO ` + duck.Literal(granted.Files[0]) + ` (USE_TMP_FILE false)`,
		`COPY (SELECT 1) TO ` + duck.Literal(granted.Files[0]) + ` (FORMAT parquet)`,
		`ATTACH ` + duck.Literal(granted.Files[0]) + ` AS x`,
		`SELECT * FROM write_log('x')`,
	}
}

func digest(t *testing.T, views ...query.View) string {
	t.Helper()
	h := sha256.New()
	for _, v := range views {
		for _, f := range v.Files {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = h.Write(data)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// run runs a statement to nowhere.
func run(e *query.Engine, user string, views []query.View, sqlText string, format query.Format, timeout time.Duration, concurrent int) error {
	_, err := e.Run(context.Background(), query.Request{
		User: user, Generation: 1, Views: views, SQL: sqlText, Format: format, Timeout: timeout, Concurrent: concurrent,
	}, func(query.Columns) (io.Writer, error) { return io.Discard, nil })
	return err
}

// Each offender alone: it ends at its deadline at the latest, as a clear
// failure or a harmless answer, costs the server no memory and leaves nothing
// behind.
func TestOffendersEndAtTheirDeadline(t *testing.T) {
	dir := t.TempDir()
	granted := parquet(t, dir, "granted", "SELECT md5(range::VARCHAR) AS v FROM range(20000)")
	views := []query.View{granted}
	before := digest(t, granted)
	e := engine(t)
	if err := run(e, "u", views, "SELECT 1", query.JSON, time.Minute, 0); err != nil {
		t.Fatal(err)
	}
	idle := memory(t)
	most := int64(0)
	deadline := time.Second
	for _, sqlText := range offenders(granted) {
		name := fmt.Sprintf("%.70s … (%d bytes)", sqlText, len(sqlText))
		began := time.Now()
		err := run(e, "u", views, sqlText, query.JSON, deadline, 0)
		took := time.Since(began)
		if took > deadline+time.Second {
			t.Errorf("%s: ended after %s, want at most %s", name, took, deadline+time.Second)
		}
		if p := problem.As(err); err != nil && (p.Kind == problem.Internal || p.Hint == "" || len(p.Message) > 64<<10) {
			t.Errorf("%s: %.300v (kind %s), want a problem with a hint", name, err, p.Kind)
		}
		t.Logf("%5d ms %-14s %s", took.Milliseconds(), outcome(err), name)
		most = max(most, memory(t)-idle)
	}
	t.Logf("the server grew by %d MB at most (bar 100)", most>>20)
	if most > 100<<20 {
		t.Errorf("the server grew by %d MB, want less than 100", most>>20)
	}
	if digest(t, granted) != before {
		t.Error("a published file has changed")
	}
	if err := run(e, "u", views, "SELECT count(*) FROM granted", query.JSON, 10*time.Second, 0); err != nil {
		t.Errorf("afterwards a small statement fails: %v", err)
	}
}

func outcome(err error) string {
	if err == nil {
		return "answered"
	}
	return problem.As(err).WireCode()
}

func percentile(samples []time.Duration, p int) time.Duration {
	slices.Sort(samples)
	return samples[(len(samples)-1)*p/100]
}

// probeLatency runs n small statements one after the other.
func probeLatency(t *testing.T, e *query.Engine, views []query.View, n int) []time.Duration {
	t.Helper()
	var out []time.Duration
	for i := range n {
		began := time.Now()
		if err := run(e, "victim", views, "SELECT "+strconv.Itoa(i), query.JSON, time.Minute, 4); err != nil {
			t.Errorf("the other user's SELECT 1: %v", err)
		}
		out = append(out, time.Since(began))
	}
	return out
}

// settled waits until a number has fallen to what it may be.
func settled(t *testing.T, what string, most int, get func() int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	got := get()
	for ; got > most && time.Now().Before(deadline); got = get() {
		<-time.After(20 * time.Millisecond)
	}
	if got > most {
		t.Errorf("%s: %d, want at most %d", what, got, most)
	}
}
