package analytics

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestPublishedTablesAnswerAndDescribeThemselves(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("shop",
		tbl("orders", "SELECT 1 AS id, 'a' AS note UNION ALL SELECT 2, 'b'"),
		tbl("parts", "SELECT 1 AS n", "SELECT 2 AS n", "SELECT 3 AS n"),
		tbl("order", "SELECT 7 AS lucky"),
		tbl("unbound", "SELECT 1 AS x"))
	s := f.open()
	if _, ok := s.Acquire(); ok {
		t.Fatal("a generation before the first publish")
	}
	p := f.publish(s, append(bind("shop.orders", "shop.parts", "shop.order"),
		Binding{ID: "renamed", Source: "shop", SourceTable: "orders", Description: "mine", QueryMode: connectors.Local})...)
	if len(p.Failed)+len(p.Warnings) > 0 || p.Unchanged {
		t.Fatalf("unexpected: %+v", p)
	}
	g, ok := s.Acquire()
	if !ok {
		t.Fatal("nothing to acquire")
	}
	defer g.Release()
	database := filepath.Join(f.analytics(), databaseFile)
	for query, want := range map[string]string{
		"SELECT sum(id) FROM orders":                             "3",
		"SELECT sum(n) FROM parts":                               "6",
		`SELECT lucky FROM "order"`:                              "7",
		"SELECT count(*) FROM renamed":                           "2",
		"SELECT count(*) FROM duckdb_views() WHERE NOT internal": "4",
		"SELECT count(*) FROM duckdb_views() WHERE sql LIKE '%/generations/00000001/data/shop/%'": "4",
	} {
		if got := f.one(database, query); got != want {
			t.Errorf("%s: expected %s, found %s", query, want, got)
		}
	}

	info := g.Tables["renamed"]
	file := filepath.Join(g.Dir, "data", "shop", "orders.parquet")
	raw, err := os.ReadFile(file)
	f.must(err)
	sum := sha256.Sum256(raw)
	want := TableInfo{
		ID: "renamed", Source: "shop", SourceTable: "orders", Description: "mine", QueryMode: connectors.Local,
		Rows: 2, SizeBytes: int64(len(raw)), Files: []string{file}, FileHashes: []string{hex.EncodeToString(sum[:])},
		ContentHash: hex.EncodeToString(sum[:]), Columns: []Column{{"id", "INTEGER"}, {"note", "VARCHAR"}},
		ExtractedAt: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), parts: info.parts,
	}
	if diff := cmp.Diff(want, info, cmp.AllowUnexported(TableInfo{}, part{})); diff != "" {
		t.Errorf("table differs (-want +got):\n%s", diff)
	}
	if got := g.Tables["parts"]; len(got.Files) != 3 || got.Rows != 3 || len(got.ContentHash) != 64 {
		t.Errorf("table of three files: %+v", got)
	}
	if g.Tables["orders"].Description != "about orders" {
		t.Errorf("expected the extract's description, found %q", g.Tables["orders"].Description)
	}
	for _, path := range []string{file, g.DatabasePath} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s: expected a read-only file, found %v %v", path, info.Mode(), err)
		}
	}
	if target, _ := os.Readlink(database); target != "generations/00000001/server.duckdb" {
		t.Errorf("expected a relative pointer, found %q", target)
	}
}

func TestUnchangedPublishKeepsTheGeneration(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("a", tbl("t", "SELECT 1 AS v"), tbl("u", "SELECT 1 AS v"))
	f.foreign("b", tbl("w", "SELECT 1 AS v"), tbl("multi", "SELECT 1 AS v", "SELECT 2 AS v"))
	s := f.open(settled)
	tables := bind("a.t", "a.u", "b.w", "b.multi")
	first := f.publish(s, tables...)
	again := f.publish(s, tables...)
	if !again.Unchanged || again.Generation.ID != first.Generation.ID {
		t.Fatalf("expected generation %d unchanged, found %d, %v", first.Generation.ID, again.Generation.ID, again.Unchanged)
	}
	// Also from disk, without what memory knows.
	f.must(s.Close())
	s = f.open(settled)
	if p := f.publish(s, tables...); !p.Unchanged {
		t.Fatal("expected no change after a restart")
	}
	if p := f.publish(s, tables[:3]...); p.Unchanged || len(p.Generation.Tables) != 3 {
		t.Fatal("a table that is no longer bound must disappear")
	}
	tables[0].Description = "new words"
	if p := f.publish(s, tables[:3]...); p.Unchanged || p.Generation.Tables["t"].Description != "new words" {
		t.Fatal("a new description must be published")
	}
}

func TestUnchangedFilesAreReusedNotReadAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("own", tbl("kept", "SELECT 1 AS v"), tbl("t", "SELECT 1 AS v"))
	f.foreign("far", tbl("w", "SELECT 1 AS v"), tbl("x", "SELECT 1 AS v"))
	s := f.open(settled)
	tables := bind("own.kept", "own.t", "far.w", "far.x")
	f.publish(s, tables...)
	hash := f.publish(s, tables...).Generation.Tables["kept"].ContentHash

	// Bytes that changed behind an unchanged identity are the proof that nobody looked.
	g := f.publish(s, tables...).Generation
	f.must(os.Chmod(g.Tables["w"].Files[0], 0o644))
	info, err := os.Stat(g.Tables["w"].Files[0])
	f.must(err)
	raw, err := os.ReadFile(g.Tables["w"].Files[0])
	f.must(err)
	raw[20] ^= 0xff
	f.must(os.WriteFile(g.Tables["w"].Files[0], raw, 0o644))
	f.must(os.Chtimes(g.Tables["w"].Files[0], info.ModTime(), info.ModTime()))

	f.foreign("far2", tbl("y", "SELECT 1 AS v")) // something new, so that a generation is built
	p := f.publish(s, append(tables, bind("far2.y")...)...)
	if p.Unchanged || len(p.Failed) > 0 {
		t.Fatalf("%+v", p)
	}
	now := p.Generation.Tables
	if now["kept"].ContentHash != hash {
		t.Error("hash changed")
	}
	for _, id := range []string{"kept", "t", "w", "x"} {
		was, err := os.Stat(g.Tables[id].Files[0])
		f.must(err)
		is, err := os.Stat(now[id].Files[0])
		f.must(err)
		if !os.SameFile(was, is) || now[id].FileHashes[0] != g.Tables[id].FileHashes[0] {
			t.Errorf("table %s was taken again", id)
		}
	}
}

func TestAForeignFileTooYoungToTrustIsCopiedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.foreign("far", tbl("w", "SELECT 1 AS v"))
	s := f.open()
	first := f.publish(s, bind("far.w")...).Generation.Tables["w"]
	p := f.publish(s, bind("far.w")...)
	was, err := os.Stat(first.Files[0])
	f.must(err)
	is, err := os.Stat(p.Generation.Tables["w"].Files[0])
	f.must(err)
	if os.SameFile(was, is) {
		t.Fatal("a file that was written a moment ago cannot be known to be the same")
	}
}

func TestAGenerationNeverChanges(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("own", tbl("a", "SELECT 1 AS v"))
	f.foreign("far", tbl("b", "SELECT 1 AS v"))
	s := f.open()
	f.publish(s, bind("own.a", "far.b")...)
	g, _ := s.Acquire()
	defer g.Release()

	f.commit("own", tbl("a", "SELECT 2 AS v"))
	// Truncate and write, as pyarrow does: the same inode.
	file := filepath.Join(f.extracts(), "far", "data", "b.parquet")
	f.must(os.WriteFile(file, []byte("broken"), 0o644))

	if got := f.one(g.DatabasePath, "SELECT a.v + b.v FROM a, b"); got != "2" {
		t.Fatalf("a pinned generation changed: expected 2, found %s", got)
	}
	p := f.publish(s, bind("own.a", "far.b")...)
	if p.Failed["b"] == nil || !p.Generation.Tables["b"].Stale {
		t.Fatalf("expected b stale, found %+v", p)
	}
	if got := f.one(p.Generation.DatabasePath, "SELECT a.v*10 + b.v FROM a, b"); got != "21" {
		t.Fatalf("expected the new a and the last good b (21), found %s", got)
	}
}

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

// meta runs a statement in a source's extract.duckdb.
func (f *fixture) meta(source, stmt string) {
	f.Helper()
	path := filepath.Join(f.extracts(), source, connectors.ExtractFile)
	_, err := f.sql.Exec("ATTACH '" + path + "' AS e; USE e; " + stmt + "; USE memory; DETACH e")
	f.must(err)
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

func TestWarnings(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.foreign("s", tbl("t", "SELECT 1 AS v FROM range(5)"))
	s := f.open()
	f.publish(s, bind("s.t")...)
	f.foreign("s", tbl("t", "SELECT 1 AS v WHERE false"))
	p := f.publish(s, bind("s.t")...)
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "0 rows now; it had 5 before") || p.Generation.Tables["t"].Stale {
		t.Errorf("expected a fresh table and a warning with both counts, found %v", p.Warnings)
	}
	f.foreign("s", extractTable{"t", []string{"SELECT 1 AS v FROM range(3)"}, 9})
	bindings := bind("s.t")
	bindings[0].QueryMode = connectors.Remote
	p = f.publish(s, bindings...)
	if len(p.Warnings) != 2 || !strings.Contains(p.Warnings[0], "published as local") || !strings.Contains(p.Warnings[1], "says 9 rows, its files hold 3") {
		t.Errorf("found %q", p.Warnings)
	}
	if p.Generation.Tables["t"].Rows != 3 {
		t.Errorf("expected the true number of rows, found %d", p.Generation.Tables["t"].Rows)
	}
}

func TestRemoteTablesHaveNoView(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("pg", tbl("far"), tbl("near", "SELECT 1 AS v"))
	s := f.open()
	p := f.publish(s, bind("pg.far", "pg.near")...)
	info := p.Generation.Tables["far"]
	want := &connectors.RemoteAttach{Alias: "pg", Extension: "postgres", URL: "postgres://db", TokenEnv: "PG_TOKEN"}
	if diff := cmp.Diff(want, info.Remote); diff != "" || info.QueryMode != connectors.Remote || len(info.Files) > 0 || info.ContentHash != "" {
		t.Errorf("found %+v\n%s", info, diff)
	}
	if len(p.Generation.Remotes["pg"]) != 1 {
		t.Errorf("found %v", p.Generation.Remotes)
	}
	if got := f.one(p.Generation.DatabasePath, "SELECT count(*) FROM duckdb_views() WHERE NOT internal"); got != "1" {
		t.Errorf("expected the local view alone, found %s", got)
	}
	if p := f.publish(s, bind("pg.far", "pg.near")...); !p.Unchanged {
		t.Error("expected no change")
	}
	f.must(os.RemoveAll(filepath.Join(f.extracts(), "pg")))
	if p := f.publish(s, bind("pg.far", "pg.near")...); !p.Generation.Tables["far"].Stale || p.Generation.Remotes["pg"] == nil {
		t.Error("expected a stale remote table with its attachment")
	}
}

func TestBindingsAreCheckedBeforeAnything(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := f.open()
	for name, bindings := range map[string][]Binding{
		"bad id":            {{ID: "a b", Source: "s", SourceTable: "t"}},
		"bad source":        {{ID: "a", Source: "../s", SourceTable: "t"}},
		"hidden source":     {{ID: "a", Source: ".staging", SourceTable: "t"}},
		"bad source table":  {{ID: "a", Source: "s", SourceTable: "x/../../y"}},
		"ids equal by case": {{ID: "Orders", Source: "s", SourceTable: "t"}, {ID: "orders", Source: "z", SourceTable: "t"}},
	} {
		_, err := s.Publish(context.Background(), bindings)
		if e := problem.As(err); err == nil || e.Hint == "" || e.Kind == problem.Internal {
			t.Errorf("%s: found %#v", name, err)
		}
	}
	if got := f.onDisk(); len(got) != 0 {
		t.Errorf("expected nothing on disk, found %v", got)
	}
}

func TestNoTablesIsAGenerationToo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := f.open()
	f.publish(s)
	if got := f.one(filepath.Join(f.analytics(), databaseFile), "SELECT 1"); got != "1" {
		t.Fatalf("found %s", got)
	}
}

func TestACancelledPublishLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("s", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Publish(ctx, bind("s.t")); err == nil {
		t.Fatal("expected an error")
	}
	if got := f.onDisk(); len(got) != 0 {
		t.Errorf("expected nothing on disk, found %v", got)
	}
}

func TestFilesOnAnotherFileSystemAreCopied(t *testing.T) {
	t.Parallel()
	shm, err := os.MkdirTemp("/dev/shm", "agnes-analytics-")
	if err != nil {
		t.Skipf("this machine has no /dev/shm to serve as another file system: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	f := newFixture(t)
	f.must(os.Symlink(shm, f.extracts()))
	f.commit("s", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	p := f.publish(s, bind("s.t")...)
	if len(p.Failed) > 0 || p.Generation.Tables["t"].parts[0].Linked {
		t.Fatalf("expected a copy, found %+v %v", p.Generation.Tables["t"].parts, p.Failed)
	}
	if got := f.one(p.Generation.DatabasePath, "SELECT v FROM t"); got != "1" {
		t.Fatalf("found %s", got)
	}
}
