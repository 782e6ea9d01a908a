package analytics

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// fixture is a data directory.
type fixture struct {
	testing.TB
	dir string
	sql *sql.DB // scratch, in memory
}

func newFixture(tb testing.TB) *fixture { return fixtureAt(tb, tb.TempDir()) }

func fixtureAt(tb testing.TB, dir string) *fixture {
	tb.Helper()
	db, err := duck.Open(context.Background(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return &fixture{TB: tb, dir: dir, sql: db}
}

func (f *fixture) extracts() string  { return filepath.Join(f.dir, "extracts") }
func (f *fixture) analytics() string { return filepath.Join(f.dir, "analytics") }

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// open opens the store, and closes it at the test's end.
func (f *fixture) open(opt ...func(*Store)) *Store {
	f.Helper()
	s, err := Open(context.Background(), Options{Dir: f.analytics(), ExtractsDir: f.extracts(), Log: slog.New(slog.DiscardHandler)})
	f.must(err)
	for _, set := range opt {
		set(s)
	}
	f.Cleanup(func() { _ = s.Close() })
	return s
}

// settled makes a store trust the times of files that are young.
func settled(s *Store) { s.settle = 0 }

func (f *fixture) publish(s *Store, bindings ...Binding) *Published {
	f.Helper()
	p, err := s.Publish(context.Background(), bindings)
	f.must(err)
	return p
}

// bind registers tables named "source.table" by the table's name.
func bind(names ...string) []Binding {
	var out []Binding
	for _, n := range names {
		source, table, _ := strings.Cut(n, ".")
		out = append(out, Binding{ID: table, Source: source, SourceTable: table})
	}
	return out
}

// extractTable is a table of an extract; sql of several parts gives one file each.
type extractTable struct {
	name string
	sql  []string
	meta int64 // rows that _meta states instead of the true number, when not 0
}

func tbl(name string, sql ...string) extractTable { return extractTable{name: name, sql: sql} }

// commit writes an extract as connectors.Writer does: beside the old one, then
// in its place by rename.
func (f *fixture) commit(source string, tables ...extractTable) {
	f.Helper()
	temp := filepath.Join(f.extracts(), ".staging", source)
	f.must(os.RemoveAll(temp))
	f.write(temp, true, tables)
	dir, old := filepath.Join(f.extracts(), source), temp+".old"
	if exists(dir) {
		f.must(os.Rename(dir, old))
	}
	f.must(os.Rename(temp, dir))
	f.must(os.RemoveAll(old))
}

// foreign writes an extract in place, as a program in another container may.
func (f *fixture) foreign(source string, tables ...extractTable) {
	f.Helper()
	dir := filepath.Join(f.extracts(), source)
	_ = os.Remove(filepath.Join(dir, connectors.ExtractFile))
	f.write(dir, false, tables)
}

func (f *fixture) write(dir string, state bool, tables []extractTable) {
	f.Helper()
	ctx := context.Background()
	f.must(os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	db, err := duck.Open(ctx, filepath.Join(dir, connectors.ExtractFile), duck.Options{Threads: 1})
	f.must(err)
	defer func() { f.must(db.Close()) }()
	exec := func(stmt string) {
		f.Helper()
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			f.Fatalf("%s: %v", stmt, err)
		}
	}
	exec(connectors.MetaDDL())
	if state {
		exec("CREATE TABLE _source_state (table_name VARCHAR NOT NULL, state VARCHAR)")
	}
	for _, t := range tables {
		if len(t.sql) == 0 { // remote
			exec("INSERT INTO _meta VALUES (" + duck.Literal(t.name) + ", 'far away', -1, -1, TIMESTAMP '2026-04-01', 'remote')")
			exec(connectors.RemoteAttachDDL())
			exec("INSERT INTO _remote_attach VALUES ('pg', 'postgres', 'postgres://db', 'PG_TOKEN')")
			continue
		}
		file := filepath.Join(dir, "data", t.name+".parquet")
		if len(t.sql) > 1 {
			f.must(os.MkdirAll(filepath.Join(dir, "data", t.name), 0o755))
		}
		var total int64
		for i, stmt := range t.sql {
			if len(t.sql) > 1 {
				file = filepath.Join(dir, "data", t.name, fmt.Sprintf("%d.parquet", i))
			}
			rows, err := f.sql.ExecContext(ctx, "COPY ("+stmt+") TO "+duck.Literal(file)+" (FORMAT parquet)")
			f.must(err)
			n, _ := rows.RowsAffected()
			total += n
		}
		if t.meta != 0 {
			total = t.meta
		}
		exec(fmt.Sprintf("INSERT INTO _meta VALUES (%s, 'about %s', %d, 1, TIMESTAMP '2026-04-01', 'local')", duck.Literal(t.name), t.name, total))
	}
}

// meta runs a statement in a source's extract.duckdb.
func (f *fixture) meta(source, stmt string) {
	f.Helper()
	path := filepath.Join(f.extracts(), source, connectors.ExtractFile)
	_, err := f.sql.Exec("ATTACH '" + path + "' AS e; USE e; " + stmt + "; USE memory; DETACH e")
	f.must(err)
}

// one reads one text from a database, opened as an outside program would.
func (f *fixture) one(database, query string) string {
	f.Helper()
	out, err := queryOne(database, query)
	f.must(err)
	return out
}

func queryOne(database, query string) (string, error) {
	db, err := duck.Open(context.Background(), database, duck.Options{ReadOnly: true, Threads: 1})
	if err != nil {
		return "", err
	}
	defer db.Close()
	var out string
	err = db.QueryRowContext(context.Background(), "SELECT ("+query+")::VARCHAR").Scan(&out)
	return out, err
}

// onDisk lists the generations' folders.
func (f *fixture) onDisk() []string {
	f.Helper()
	entries, err := os.ReadDir(filepath.Join(f.analytics(), generationsDir))
	f.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
