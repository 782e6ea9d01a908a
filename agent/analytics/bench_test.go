//go:build bench

package analytics

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

const (
	benchSources = 100
	benchTables  = 25
)

// TestBenchPublish compares publishing 100 sources of 25 tables with what
// DuckDB alone takes to attach each source, read its _meta and create the same
// views in one file. Raw and ours alternate; medians are compared.
func TestBenchPublish(t *testing.T) {
	f := newFixture(t)
	var bindings []Binding
	for i := range benchSources {
		source := fmt.Sprintf("s%03d", i)
		f.benchExtract(source, 0)
		for j := range benchTables {
			table := fmt.Sprintf("t%02d", j)
			bindings = append(bindings, Binding{ID: source + "_" + table, Source: source, SourceTable: table})
		}
	}
	clock := func(do func()) time.Duration {
		start := time.Now()
		do()
		return time.Since(start)
	}
	var autocommit, oneTransaction, cold, nothing, oneTable []time.Duration
	for round := range 3 {
		autocommit = append(autocommit, clock(func() { f.rawPublish(false) }))
		oneTransaction = append(oneTransaction, clock(func() { f.rawPublish(true) }))
		f.must(os.RemoveAll(f.analytics()))
		s := f.open()
		ours := func() time.Duration {
			return clock(func() {
				if p := f.publish(s, bindings...); len(p.Failed) > 0 || len(p.Generation.Tables) != len(bindings) {
					t.Fatalf("%d tables, failures: %v", len(p.Generation.Tables), p.Failed)
				}
			})
		}
		cold = append(cold, ours())
		nothing = append(nothing, ours())
		f.benchExtract("s000", round+1)
		oneTable = append(oneTable, ours())
		f.must(s.Close())
	}
	raw := min(median(autocommit), median(oneTransaction))
	for _, line := range []struct {
		what  string
		times []time.Duration
	}{
		{"raw, one transaction a view", autocommit},
		{"raw, one transaction in all", oneTransaction},
		{"publish, cold (hashes computed)", cold},
		{"publish, one table changed", oneTable},
		{"publish, nothing changed", nothing},
	} {
		m := median(line.times)
		t.Logf("%-32s median %8s  %.2fx of the faster raw  %v", line.what, m.Round(time.Millisecond), float64(m)/float64(raw), line.times)
	}
	if m := median(cold); m > 2*raw {
		t.Errorf("expected a cold publish within twice the raw time %s, found %s", raw, m)
	}
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

// benchExtract commits a source of 25 small tables; with a version, its first
// table is another than before and the others are kept.
func (f *fixture) benchExtract(source string, version int) {
	f.Helper()
	ctx := context.Background()
	w, err := connectors.NewWriter(ctx, f.extracts(), source)
	f.must(err)
	for j := range benchTables {
		table := fmt.Sprintf("t%02d", j)
		if w.Previous() != nil && j > 0 {
			f.must(w.Keep(table))
			continue
		}
		_, err := f.sql.ExecContext(ctx, fmt.Sprintf(`COPY (SELECT i AS id, 'name ' || i AS name, i * 1.5 AS amount, DATE '2026-01-01' + i::INT AS day, i %% 3 = 0 AS flag
			FROM range(%d, %d) t(i)) TO %s (FORMAT parquet)`, version, version+100, duck.Literal(w.Path(table))))
		f.must(err)
		f.must(w.Add(connectors.Meta{Table: table, Rows: 100}, "state"))
	}
	_, err = w.Commit(ctx)
	f.must(err)
}

// rawPublish is the least that DuckDB itself does for such a database.
func (f *fixture) rawPublish(oneTransaction bool) {
	f.Helper()
	ctx := context.Background()
	path := filepath.Join(f.dir, "raw.duckdb")
	f.must(removeIfThere(path))
	db, err := duck.Open(ctx, path, duck.Options{Threads: 2})
	f.must(err)
	conn, err := db.Conn(ctx)
	f.must(err)
	exec := func(stmt string) {
		f.Helper()
		_, err := conn.ExecContext(ctx, stmt)
		f.must(err)
	}
	if oneTransaction {
		exec("BEGIN")
	}
	for i := range benchSources {
		source := fmt.Sprintf("s%03d", i)
		dir := filepath.Join(f.extracts(), source)
		exec("ATTACH " + duck.Literal(filepath.Join(dir, connectors.ExtractFile)) + " AS " + source + " (READ_ONLY)")
		rows, err := conn.QueryContext(ctx, "SELECT table_name FROM "+source+"._meta")
		f.must(err)
		tables := f.texts(rows)
		for _, name := range tables {
			exec("CREATE VIEW " + source + "_" + name + " AS SELECT * FROM read_parquet([" +
				duck.Literal(filepath.Join(dir, "data", name+".parquet")) + "])")
		}
	}
	if oneTransaction {
		exec("COMMIT")
	}
	exec("CHECKPOINT")
	f.must(conn.Close())
	f.must(db.Close())
}

// texts reads one column of text and closes rows.
func (f *fixture) texts(rows *sql.Rows) []string {
	f.Helper()
	defer rows.Close()
	var out []string
	for rows.Next() {
		var text string
		f.must(rows.Scan(&text))
		out = append(out, text)
	}
	f.must(rows.Err())
	return out
}

// TestBenchOpen opens a store of 500 tables with 20 columns each.
func TestBenchOpen(t *testing.T) {
	f := newFixture(t)
	columns := "i AS c0"
	for i := range 19 {
		columns += fmt.Sprintf(", i AS a_column_with_a_name_%d", i)
	}
	var tables []extractTable
	var names []string
	for i := range 500 {
		name := fmt.Sprintf("t%03d", i)
		tables, names = append(tables, tbl(name, "SELECT "+columns+" FROM range(3) t(i)")), append(names, "s."+name)
	}
	f.commit("s", tables...)
	s := f.open()
	f.publish(s, bind(names...)...)
	f.must(s.Close())
	var times []time.Duration
	for range 9 {
		start := time.Now()
		s := f.open()
		times = append(times, time.Since(start))
		if g, ok := s.Acquire(); !ok || len(g.Tables) != 500 {
			t.Fatal("expected 500 tables")
		}
		f.must(s.Close())
	}
	best := slices.Min(times) // noise only adds
	t.Logf("open with 500 tables of 20 columns: best %s, median %s %v", best, median(times), times)
	if best > 20*time.Millisecond {
		t.Errorf("expected less than 20ms, found %s", best)
	}
}
