package state

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// versions returns the embedded first migration followed by steps.
func versions(t testing.TB, steps ...string) []migration {
	t.Helper()
	first, err := migrationFiles.ReadFile("migrations/0001_init.sql")
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"0001_init.sql": {Data: first}}
	for i, sql := range steps {
		files[fmt.Sprintf("%04d_step.sql", i+2)] = &fstest.MapFile{Data: []byte(sql)}
	}
	ms, err := loadMigrations(files)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

const (
	addPhone = "ALTER TABLE tokens ADD COLUMN phone VARCHAR DEFAULT ''; CREATE TABLE extra (id VARCHAR PRIMARY KEY);"
	upCase   = "UPDATE users SET name = upper(email);"
	picky    = "CREATE TABLE picky (v VARCHAR CHECK (v <> 'a@b.c')); INSERT INTO picky SELECT email FROM users;" // fails on data only
)

func openAt(t testing.TB, dir string, ms []migration) (*Store, error) {
	t.Helper()
	opt := testOptions(dir)
	opt.Version = fmt.Sprintf("2026.04.%d", latest(ms))
	s, err := open(context.Background(), opt, ms)
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

func mustOpenAt(t testing.TB, dir string, ms []migration) *Store {
	t.Helper()
	s, err := openAt(t, dir, ms)
	if err != nil {
		t.Fatalf("open: %v (hint: %s)", err, problem.As(err).Hint)
	}
	return s
}

func TestMigrationKeepsDataAndASnapshotOfTheStateBefore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpenAt(t, dir, versions(t))
	mustUser(t, s, "a@b.c", RoleAdmin)
	if got := s.listSnapshots(); len(got) > 0 {
		t.Errorf("a new database was snapshotted: %v", got)
	}
	_ = s.Close()

	s = mustOpenAt(t, dir, versions(t, addPhone, upCase))
	if s.SchemaVersion() != 3 {
		t.Errorf("schema version %d", s.SchemaVersion())
	}
	users, err := s.ListUsers(context.Background())
	if err != nil || len(users) != 1 || users[0].Name != "A@B.C" {
		t.Errorf("users %v, %v", users, err)
	}
	snaps := s.listSnapshots()
	if len(snaps) != 1 || !strings.HasPrefix(snaps[0], "system-schema0001-") {
		t.Fatalf("snapshots %v", snaps)
	}
	_ = s.Close()

	// The snapshot is the state before, and says where it comes from.
	old := t.TempDir()
	copyTestFile(t, filepath.Join(dir, snapshotsDir, snaps[0]), filepath.Join(old, databaseFile))
	s = mustOpenAt(t, old, versions(t))
	if users, err := s.ListUsers(context.Background()); err != nil || len(users) != 1 || users[0].Name != "" {
		t.Errorf("users of the snapshot %v, %v", users, err)
	}
	var schema string
	if err := s.db.QueryRow("SELECT value FROM instance WHERE key = 'snapshot_schema'").Scan(&schema); err != nil || schema != "1" {
		t.Errorf("the snapshot notes schema %q, %v", schema, err)
	}
	// A start without a pending migration takes no snapshot.
	s = mustOpenAt(t, dir, versions(t, addPhone, upCase))
	if got := s.listSnapshots(); len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
}

func TestNewerSchemaIsRefusedAndItsHintRestores(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "it's a folder") // quoting matters
	s := mustOpenAt(t, dir, versions(t))
	mustUser(t, s, "before@b.c", RoleAdmin)
	_ = s.Close()
	s = mustOpenAt(t, dir, versions(t, addPhone))
	mustUser(t, s, "after@b.c", RoleAdmin)
	newer := readCrashed(t, dir) // with a log, as a crash leaves it
	_ = s.Close()
	newer.writeTo(t, dir)

	_, err := openAt(t, dir, versions(t))
	p := wantProblem(t, err, problem.Refused, "schema version 2", "2026.04.2", "2026.04.1", "system-schema0001-")
	if p.WireCode() != "schema_newer" {
		t.Errorf("code %s", p.WireCode())
	}
	runHint(t, p.Hint)
	s = mustOpenAt(t, dir, versions(t))
	if got := emails(t, s); !cmp.Equal(got, []string{"before@b.c"}) {
		t.Errorf("after the hint: %v", got)
	}
	if len(s.Warnings()) > 0 {
		t.Errorf("warnings: %v", s.Warnings())
	}
	aside, _ := filepath.Glob(filepath.Join(dir, quarantineDir, "*", databaseFile+"*"))
	if len(aside) == 0 {
		t.Error("the newer database is gone")
	}
}

func TestNewerSchemaWithoutASnapshotNamesTheVersionToRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_ = mustOpenAt(t, dir, versions(t, addPhone)).Close()
	_, err := openAt(t, dir, versions(t))
	wantProblem(t, err, problem.Refused, "Start agnes 2026.04.2 again")
}

func TestFailingMigrationChangesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpenAt(t, dir, versions(t))
	mustUser(t, s, "a@b.c", RoleAdmin)
	_ = s.Close()
	_, err := openAt(t, dir, versions(t, addPhone, upCase+"DELETE FROM tokens;"+picky))
	p := wantProblem(t, err, problem.Internal, "0003_step.sql", "system-schema0001-")
	if p.WireCode() != "migration_failed" {
		t.Errorf("code %s", p.WireCode())
	}
	s = mustOpenAt(t, dir, versions(t, addPhone)) // the step that worked stays
	if got := emails(t, s); len(got) != 1 {
		t.Errorf("users %v", got)
	}
	_ = s.Close()
	_, err = openAt(t, dir, versions(t, addPhone, picky))
	p = wantProblem(t, err, problem.Internal)
	runHint(t, p.Hint) // to the newest snapshot, taken at version 2
	if got := emails(t, mustOpenAt(t, dir, versions(t, addPhone))); len(got) != 1 {
		t.Errorf("users after the hint %v", got)
	}
}

func TestSchemaChangedByHandIsRefusedWithTheDifference(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, want string }{
		"a column dropped":      {"ALTER TABLE audit DROP COLUMN remote", "column audit.remote is missing"},
		"a column added":        {"ALTER TABLE audit ADD COLUMN x INTEGER", "column audit.x is not expected"},
		"a type changed":        {"ALTER TABLE audit ALTER remote TYPE BIGINT USING 1", "expected remote VARCHAR NOT NULL, found remote BIGINT"},
		"a table dropped":       {"DROP TABLE table_registry", "table table_registry is missing"},
		"a table added":         {"CREATE TABLE mine (i INTEGER)", "table mine is not expected"},
		"a default added":       {"ALTER TABLE audit ALTER remote SET DEFAULT 'x'", "DEFAULT"},
		"NOT NULL taken away":   {"ALTER TABLE audit ALTER remote DROP NOT NULL", "expected remote VARCHAR NOT NULL, found remote VARCHAR"},
		"the primary key moved": {"CREATE OR REPLACE TABLE instance (key VARCHAR NOT NULL, value VARCHAR NOT NULL)", "primary key of instance: expected [key], found []"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_ = mustOpenAt(t, dir, versions(t)).Close()
			db, err := openDatabase(context.Background(), filepath.Join(dir, databaseFile))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(c.sql); err != nil {
				t.Fatal(err)
			}
			_ = db.Close()
			ms := versions(t)
			if name < "a t" { // with a migration pending it is no different
				ms = versions(t, addPhone)
			}
			_, err = openAt(t, dir, ms)
			if p := wantProblem(t, err, problem.Refused, c.want); p.WireCode() != "schema_mismatch" {
				t.Errorf("code %s", p.WireCode())
			}
		})
	}
}

func TestEditedMigrationIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_ = mustOpenAt(t, dir, versions(t, addPhone)).Close()
	_, err := openAt(t, dir, versions(t, addPhone+" -- edited"))
	wantProblem(t, err, problem.Refused, "Migration 2", "0002_step.sql")
}

func TestForeignDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := openDatabase(context.Background(), filepath.Join(dir, databaseFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE customers (i INTEGER)"); err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	_, err = Open(context.Background(), testOptions(dir))
	wantProblem(t, err, problem.Refused, "schema_migrations", "mv ")
}

func TestFiveSnapshotsAreKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var steps []string
	for range 8 {
		_ = mustOpenAt(t, dir, versions(t, steps...)).Close()
		steps = append(steps, upCase)
	}
	s := mustOpenAt(t, dir, versions(t, steps...))
	got := s.listSnapshots()
	if len(got) != keepSnapshots || !strings.HasPrefix(got[0], "system-schema0004-") || !strings.HasPrefix(got[4], "system-schema0008-") {
		t.Errorf("snapshots %v", got)
	}
	if snap, ok := s.newestSnapshot(6); !ok || !strings.Contains(snap, "system-schema0006-") {
		t.Errorf("newest snapshot for schema 6: %s, %v", snap, ok)
	}
	if _, ok := s.newestSnapshot(3); ok {
		t.Error("a snapshot for schema 3 is still there")
	}
}

func TestNoMigrationWithoutASnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_ = mustOpenAt(t, dir, versions(t)).Close()
	if err := os.WriteFile(filepath.Join(dir, snapshotsDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openAt(t, dir, versions(t, addPhone)); err == nil {
		t.Fatal("migrated without a snapshot")
	}
	if s := mustOpenAt(t, dir, versions(t)); s.SchemaVersion() != 1 {
		t.Errorf("schema %d", s.SchemaVersion())
	}
}

func TestMigrationFilesAreNumberedWithoutAGap(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]fstest.MapFS{
		"a gap":     {"0001_a.sql": {}, "0003_b.sql": {}},
		"a repeat":  {"0001_a.sql": {}, "0001_b.sql": {}},
		"no number": {"init.sql": {}},
		"nothing":   {},
	} {
		if _, err := loadMigrations(files); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestSchemaIsWhatADatabaseHasAndTheSameEveryTime(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	want, err := Schema(ctx)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Schema(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Error(diff)
	}
	s := mustOpen(t, t.TempDir())
	got, err := describe(ctx, s.db)
	if err != nil {
		t.Fatal(err)
	}
	got.Version = LatestSchemaVersion()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	keys := map[string]string{}
	for _, table := range want.Tables {
		keys[table.Name] = strings.Join(table.PrimaryKey, ",")
	}
	if len(keys) < 8 || keys["users"] != "id" || keys["schema_migrations"] != "version" || keys["audit"] != "" {
		t.Errorf("tables and keys: %v", keys)
	}
	if text, err := json.Marshal(want); err != nil || strings.Contains(string(text), ":null") {
		t.Errorf("%s, %v", text, err)
	}
}
