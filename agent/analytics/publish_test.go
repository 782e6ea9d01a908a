package analytics

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

func TestRemoteTablesOfAnotherProgramsExtractArePublished(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.foreign("pg", tbl("far"))
	p := f.publish(f.open(), bind("pg.far")...)
	if info, ok := p.Generation.Tables["far"]; !ok || info.Remote == nil || len(p.Generation.Remotes["pg"]) != 1 {
		t.Errorf("found %+v and %v", p.Generation.Tables, p.Generation.Remotes)
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
	shm, err := os.MkdirTemp("/dev/shm", "agnes-analytics-") //nolint:usetesting // another file system than t.TempDir's is the point
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
