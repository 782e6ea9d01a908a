package analytics

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestWhatCannotBePublishedKeepsItsLastGoodTable(t *testing.T) {
	t.Parallel()
	parquet := func(f *fixture, source, table string) string {
		return filepath.Join(f.extracts(), source, "data", table+".parquet")
	}
	for name, c := range map[string]struct {
		damage func(f *fixture) // to source s, with tables t and u
		stale  []string         // the others are fresh
		reason string
	}{
		"a truncated file": {func(f *fixture) {
			f.foreign("s", tbl("t", "SELECT 2 AS v"), tbl("u", "SELECT 2 AS v"))
			f.must(os.Truncate(parquet(f, "s", "t"), 40))
		}, []string{"t"}, "cannot be served"},
		"an empty file": {func(f *fixture) {
			f.foreign("s", tbl("t", "SELECT 2 AS v"), tbl("u", "SELECT 2 AS v"))
			f.must(os.Truncate(parquet(f, "s", "t"), 0))
		}, []string{"t"}, "cannot be served"},
		"a missing file": {func(f *fixture) {
			f.foreign("s", tbl("t", "SELECT 2 AS v"), tbl("u", "SELECT 2 AS v"))
			f.must(os.Remove(parquet(f, "s", "t")))
		}, []string{"t"}, "data/t.parquet"},
		"a symbolic link in a file's place": {func(f *fixture) {
			f.foreign("s", tbl("t", "SELECT 2 AS v"), tbl("u", "SELECT 2 AS v"))
			f.must(os.Rename(parquet(f, "s", "t"), filepath.Join(f.dir, "elsewhere.parquet")))
			f.must(os.Symlink(filepath.Join(f.dir, "elsewhere.parquet"), parquet(f, "s", "t")))
		}, []string{"t"}, "symbolic link"},
		"parts of different schema": {func(f *fixture) {
			f.must(os.RemoveAll(filepath.Join(f.extracts(), "s")))
			f.foreign("s", tbl("t", "SELECT 2 AS v", "SELECT 'x' AS v"), tbl("u", "SELECT 2 AS v"))
		}, []string{"t"}, `column "v" is INTEGER in the first file and VARCHAR in part-00001.parquet`},
		"a part with a column more": {func(f *fixture) {
			f.must(os.RemoveAll(filepath.Join(f.extracts(), "s")))
			f.commit("s", tbl("t", "SELECT 2 AS v", "SELECT 2 AS v, 3 AS w"), tbl("u", "SELECT 2 AS v"))
		}, []string{"t"}, `column "w" is no such column`},
		"a table gone from _meta": {func(f *fixture) {
			f.foreign("s", tbl("u", "SELECT 2 AS v"))
		}, []string{"t"}, "no longer has table \"t\"; unregister it with DELETE /api/admin/registry/t if"},
		"an extract without tables": {func(f *fixture) {
			f.foreign("s")
		}, []string{"t", "u"}, "is empty"},
		"a missing source": {func(f *fixture) {
			f.must(os.RemoveAll(filepath.Join(f.extracts(), "s")))
		}, []string{"t", "u"}, `source "s" cannot be read`},
		"a corrupt extract.duckdb": {func(f *fixture) {
			f.must(os.WriteFile(filepath.Join(f.extracts(), "s", connectors.ExtractFile), []byte(strings.Repeat("nonsense", 4096)), 0o644))
		}, []string{"t", "u"}, `source "s" cannot be read`},
		"a stray write-ahead log": {func(f *fixture) {
			f.must(os.WriteFile(filepath.Join(f.extracts(), "s", connectors.ExtractFile+".wal"), []byte("x"), 0o644))
		}, []string{"t", "u"}, "wal"},
		"a storage version of the future": {func(f *fixture) {
			path := filepath.Join(f.extracts(), "s", connectors.ExtractFile)
			raw, err := os.ReadFile(path)
			f.must(err)
			raw[12] = 250 // the version follows the checksum and the four magic bytes
			f.must(os.WriteFile(path, raw, 0o644))
		}, []string{"t", "u"}, `source "s" cannot be read`},
		"no _meta": {func(f *fixture) {
			f.foreign("s")
			f.meta("s", "DROP TABLE _meta")
		}, []string{"t", "u"}, "_meta"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.foreign("s", tbl("t", "SELECT 1 AS v"), tbl("u", "SELECT 1 AS v"))
			f.commit("other", tbl("o", "SELECT 1 AS v"))
			s := f.open()
			tables := bind("s.t", "s.u", "other.o")
			f.publish(s, tables...)
			c.damage(f)
			f.commit("other", tbl("o", "SELECT 2 AS v"))
			p := f.publish(s, tables...)

			if len(p.Failed) != len(c.stale) {
				t.Errorf("expected failures of %v, found %v", c.stale, p.Failed)
			}
			for _, id := range []string{"t", "u", "o"} {
				want, stale := "2", false
				for _, name := range c.stale {
					if name == id {
						want, stale = "1", true
					}
				}
				info := p.Generation.Tables[id]
				if info.Stale != stale || stale && info.StaleSince.IsZero() {
					t.Errorf("%s: expected stale %v, found %+v", id, stale, info)
				}
				if got := f.one(p.Generation.DatabasePath, "SELECT v FROM "+id); got != want {
					t.Errorf("%s: expected %s, found %s", id, want, got)
				}
				if !stale {
					continue
				}
				if !strings.Contains(info.StaleReason, c.reason) || strings.Contains(info.StaleReason, "\n") {
					t.Errorf("%s: expected a reason with %q, found %q", id, c.reason, info.StaleReason)
				}
				if e := problem.As(p.Failed[id]); e.Hint == "" || e.Kind == problem.Internal || strings.Contains(e.Hint, "{id}") {
					t.Errorf("%s: expected a problem with a hint, found %#v", id, e)
				}
			}

			// The same trouble again is no reason for another generation.
			if again := f.publish(s, tables...); !again.Unchanged && again.Generation.ID > p.Generation.ID+1 {
				t.Errorf("expected no further change, found %+v", again)
			}

			// Mended, all is fresh again.
			f.must(os.RemoveAll(filepath.Join(f.extracts(), "s")))
			f.foreign("s", tbl("t", "SELECT 3 AS v"), tbl("u", "SELECT 3 AS v"))
			p = f.publish(s, tables...)
			if len(p.Failed) > 0 || p.Generation.Tables["t"].Stale || p.Generation.Tables["t"].StaleReason != "" {
				t.Errorf("expected a fresh table, found %v", p.Failed)
			}
			if got := f.one(p.Generation.DatabasePath, "SELECT t.v + u.v FROM t, u"); got != "6" {
				t.Errorf("expected 6, found %s", got)
			}
		})
	}
}

func TestATableThatNeverWasGoodIsAbsentAndNamed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.foreign("s", tbl("good", "SELECT 1 AS v"), tbl("bad", "SELECT 1 AS v"), tbl("bad2", "SELECT 1 AS v"))
	for _, name := range []string{"bad", "bad2"} {
		f.must(os.WriteFile(filepath.Join(f.extracts(), "s", "data", name+".parquet"), []byte("PAR1"), 0o644))
	}
	s := f.open()
	p := f.publish(s, bind("s.good", "s.bad", "s.bad2", "s.unknown", "nowhere.x")...)
	if len(p.Generation.Tables) != 1 || len(p.Failed) != 4 {
		t.Fatalf("expected one table and four failures, found %v and %v", p.Generation.Tables, p.Failed)
	}
	if got := f.one(p.Generation.DatabasePath, "SELECT count(*) FROM duckdb_views() WHERE NOT internal"); got != "1" {
		t.Errorf("expected one view, found %s", got)
	}
	if e := problem.As(p.Failed["unknown"]); e.Kind != problem.NotFound || !strings.Contains(e.Hint, "/registry/unknown") {
		t.Errorf("found %#v", e)
	}
	if exists(filepath.Join(p.Generation.Dir, "data", "s", "bad.parquet")) {
		t.Error("a rejected file stayed in the generation")
	}
	f.must(os.Remove(filepath.Join(f.extracts(), "s", "data", "bad.parquet")))
}

func TestManyBrokenTablesDoNotHideTheGoodOnes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var tables []extractTable
	var names []string
	for i := range 150 {
		name := fmt.Sprintf("t%03d", i)
		tables, names = append(tables, tbl(name, "SELECT 1 AS v")), append(names, "s."+name)
	}
	f.foreign("s", tables...)
	for i := 0; i < 150; i += 10 {
		f.must(os.Truncate(filepath.Join(f.extracts(), "s", "data", fmt.Sprintf("t%03d.parquet", i)), 9))
	}
	p := f.publish(f.open(), bind(names...)...)
	if len(p.Failed) != 15 || len(p.Generation.Tables) != 135 {
		t.Fatalf("expected 15 failures and 135 tables, found %d and %d", len(p.Failed), len(p.Generation.Tables))
	}
}

func TestTwoNamesForOneSourceTableFallBackTogether(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.foreign("s", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	both := []Binding{{ID: "one", Source: "s", SourceTable: "t"}, {ID: "two", Source: "s", SourceTable: "t"}}
	f.publish(s, both[0])
	f.must(os.WriteFile(filepath.Join(f.extracts(), "s", "data", "t.parquet"), []byte("no parquet"), 0o644))
	p := f.publish(s, both...) // the second name is new and still gets the last good data
	if got := f.one(p.Generation.DatabasePath, "SELECT one.v + two.v FROM one, two"); got != "2" || len(p.Failed) != 2 {
		t.Fatalf("expected 2 and two failures, found %s and %v", got, p.Failed)
	}
}
