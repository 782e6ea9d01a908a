//go:build bench

package csv_test

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// benchLimit is what the project promises: how much longer than DuckDB's own
// COPY the way from a CSV file to a committed extract may take.
const benchLimit = 1.3

// TestBenchCSVToParquet measures, on one file of 5 million rows and 6 columns
// and in turns, DuckDB's command line (AGNES_BENCH_DUCKDB, or duckdb in PATH)
// running COPY, and Discover, Extract and Commit of this package.
func TestBenchCSVToParquet(t *testing.T) {
	cli := os.Getenv("AGNES_BENCH_DUCKDB")
	if cli == "" {
		var err error
		if cli, err = exec.LookPath("duckdb"); err != nil {
			t.Fatal("the benchmark needs DuckDB's command line: pip install duckdb-cli==1.5.5, then set AGNES_BENCH_DUCKDB to its path")
		}
	}
	for name, query := range map[string]string{
		"mixed columns": `SELECT i AS id, 'customer ' || hash(i) % 100000 AS customer, (hash(i * 7) % 1000000) / 100 AS amount, DATE '2020-01-01' + (hash(i * 3) % 2000)::INT AS day,
			TIMESTAMP '2024-01-01' + to_seconds(i) AS created, ['new', 'paid', 'shipped', 'returned'][1 + (hash(i * 11) % 4)::INT] AS status FROM range(5_000_000) t(i)`,
		"whole numbers": `SELECT i AS a, hash(i) % 1000 AS b, hash(i * 3) % 1000000 AS c, hash(i * 5) % 1000000000 AS d, i % 7 AS e, i // 3 AS f FROM range(5_000_000) t(i)`,
	} {
		t.Run(name, func(t *testing.T) { benchCSV(t, cli, query) })
	}
}

func benchCSV(t *testing.T, cli, query string) {
	dir := t.TempDir()
	file := filepath.Join(dir, "in", "orders.csv")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, "COPY ("+query+") TO "+duck.Literal(file)+" (HEADER)")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw := func() time.Duration {
		began := time.Now()
		cmd := exec.CommandContext(t.Context(), cli, "-c", "COPY (FROM "+duck.Literal(file)+") TO "+duck.Literal(filepath.Join(dir, "x.parquet")))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return time.Since(began)
	}
	ours := func() time.Duration {
		extracts, err := os.MkdirTemp(dir, "extracts-") //nolint:usetesting // removed after each round, not at the end
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(extracts)
		began := time.Now()
		src := csv.New(csv.Options{Dir: filepath.Dir(file)})
		if _, _, err := src.Discover(t.Context()); err != nil {
			t.Fatal(err)
		}
		e, res, err := connectors.Run(t.Context(), src, connectors.Request{}, extracts, nil)
		took := time.Since(began)
		if err != nil || len(res.Failed) > 0 || e.Tables[0].Rows != 5_000_000 {
			t.Fatalf("Run = %+v, %v", res, err)
		}
		return took
	}
	raw() // the file is in the page cache afterwards, for both
	var raws, ourss []time.Duration
	for range 3 {
		raws = append(raws, raw())
		ourss = append(ourss, ours())
	}
	slices.Sort(raws)
	slices.Sort(ourss)
	ratio := float64(ourss[1]) / float64(raws[1])
	t.Logf("CSV to parquet, 5 million rows, %s: DuckDB's COPY %v, extract %v (medians of 3), ratio %.2f (limit %.1f)",
		strings.ReplaceAll(t.Name(), "_", " "), raws[1].Round(time.Millisecond), ourss[1].Round(time.Millisecond), ratio, benchLimit)
	if ratio > benchLimit {
		t.Errorf("ratio %.2f, want at most %.1f; all runs: %v and %v", ratio, benchLimit, raws, ourss)
	}
}

func mustExec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(context.Background(), query); err != nil {
		t.Fatal(err)
	}
}
