package backup

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// migrateOnce makes a database look like one of a newer agnes.
func migrateOnce(t *testing.T, path string) {
	t.Helper()
	db, err := duck.Open(t.Context(), path, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		fmt.Sprintf("INSERT INTO schema_migrations VALUES (%d, 'later.sql', 'x', now()::TIMESTAMP, '2027.01.1')", state.LatestSchemaVersion()+1),
		"CREATE TABLE later (i INTEGER)", "CHECKPOINT",
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestABackupUnderConcurrentWritesIsOneMoment(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	store, err := state.Open(t.Context(), state.Options{Dir: d.State, Version: "2026.04.3"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var written atomic.Int64
	confirmed := make(chan string, 1<<16)
	for w := range 3 {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				email := fmt.Sprintf("w%d-%06d@b.co", w, n)
				if _, err := store.CreateUser(context.Background(), state.User{Email: email, Role: state.RoleAnalyst, PasswordHash: "x"}, state.By{Actor: "test"}); err != nil {
					t.Error(err)
					return
				}
				written.Add(1)
				confirmed <- email
			}
		})
	}
	writers.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			extract(t, d, "csv", fmt.Sprintf("g%06d", n))
		}
	})
	var backups []Info
	var before [][]string // confirmed before each backup began
	var sofar []string
	for len(backups) < 5 {
		for len(confirmed) > 0 {
			sofar = append(sofar, <-confirmed)
		}
		before = append(before, slices.Clone(sofar))
		r := closedRequest(d, nil)
		r.Snapshot = store.Snapshot
		info, err := Create(t.Context(), d, r)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.LeftOut) > 0 {
			t.Errorf("left out: %v", info.LeftOut)
		}
		backups = append(backups, info)
	}
	stop()
	writers.Wait()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d users were written meanwhile", written.Load())
	for n, b := range backups {
		to := dirsOf(filepath.Join(t.TempDir(), "elsewhere")) // an empty host
		done, err := Restore(t.Context(), to, b.Path, RestoreOptions{})
		if err != nil || done.Restored != b.ID || !done.Extracts {
			t.Fatalf("%+v, %v", done, err)
		}
		got, err := state.ReadContent(t.Context(), filepath.Join(to.State, "system.duckdb"))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Database.Differs(got); err != nil {
			t.Error(err)
		}
		restored, err := state.Open(t.Context(), state.Options{Dir: to.State})
		if err != nil {
			t.Fatal(err)
		}
		users, err := restored.ListUsers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		audit, err := restored.ListAudit(t.Context(), 1<<30, "")
		if err != nil || len(audit) != len(users) {
			t.Errorf("%d users and %d audit entries, %v: a commit was torn", len(users), len(audit), err)
		}
		there := map[string]bool{}
		for _, u := range users {
			there[u.Email] = true
		}
		for _, email := range before[n] {
			if !there[email] {
				t.Errorf("backup %d: %s was confirmed before it began and is missing", n, email)
			}
		}
		if err := restored.Close(); err != nil {
			t.Fatal(err)
		}
		for _, f := range b.Files[1:] {
			if _, sum, err := hashFile(t.Context(), filepath.Join(to.Root, f.Path)); err != nil || sum != f.SHA256 {
				t.Errorf("%s: %v", f.Path, err)
			}
		}
		if _, _, data := generation(t, to); data == "" {
			t.Error("the extract says nothing")
		}
	}
	if list, broken, err := List(d); err != nil || len(broken) > 0 || len(list) != 5 {
		t.Errorf("%d backups, %v, %v", len(list), broken, err)
	}
}

func TestABackupHoldsWhatItSaysAndNobodyElseReadsIt(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	for name, text := range map[string]string{".operator_token": "no", ".setup_token": "no", ".env_overlay": "A=1\n"} {
		if err := os.WriteFile(filepath.Join(d.State, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	extract(t, d, "busy", "g1")
	extract(t, d, "linked", "g1")
	if err := os.WriteFile(filepath.Join(d.Extracts, "busy", "extract.duckdb.wal"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.Extracts, "linked", "data", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(d.Extracts, "folder")); err != nil {
		t.Fatal(err)
	}
	info := mustCreate(t, d)
	var names []string
	for _, f := range info.Files {
		names = append(names, f.Path)
	}
	want := []string{
		"state/system.duckdb", "state/.env_overlay", "state/.jwt_secret", "state/.session_secret", "state/instance.yaml",
		"extracts/csv/data/facts.parquet", "extracts/csv/extract.duckdb",
	}
	if !slices.Equal(names, want) {
		t.Errorf("holds %v, want %v", names, want)
	}
	left := strings.Join(info.LeftOut, "\n")
	if len(info.LeftOut) != 3 || !strings.Contains(left, "busy: extract.duckdb has a write-ahead log") || !strings.Contains(left, "linked: data/link is a symbolic link") || !strings.Contains(left, "folder: ") {
		t.Errorf("left out %v", info.LeftOut)
	}
	if fi, err := os.Stat(info.Path); err != nil || fi.Mode().Perm() != 0o600 || fi.Size() != info.SizeBytes {
		t.Errorf("%v, %v", fi, err)
	}
	if _, sum, err := hashFile(t.Context(), info.Path); err != nil || sum != info.SHA256 {
		t.Errorf("the file's SHA-256 is %s, want %s (%v)", sum, info.SHA256, err)
	}
	advance(t, d, "g2")
	if _, err := Restore(t.Context(), d, info.Path, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, d, "g1")
	for _, path := range []string{d.State, filepath.Join(d.State, ".jwt_secret"), filepath.Join(d.State, "system.duckdb")} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v, %v", path, fi.Mode(), err)
		}
	}
	if note, done, err := TakeNote(d); err != nil || note == nil || note.ID != info.ID || !note.Extracts || done() != nil {
		t.Errorf("note %+v, %v", note, err)
	}
	if note, _, err := TakeNote(d); note != nil || err != nil {
		t.Errorf("the note is there twice: %+v, %v", note, err)
	}
}

func TestABackupWithoutDataLeavesTheDataAlone(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	r := closedRequest(d, nil)
	r.Extracts = false
	info, err := Create(t.Context(), d, r)
	if err != nil {
		t.Fatal(err)
	}
	advance(t, d, "g2")
	done, err := Restore(t.Context(), d, info.Path, RestoreOptions{})
	if err != nil || done.Extracts {
		t.Fatalf("%+v, %v", done, err)
	}
	if database, config, data := generation(t, d); database != "g1" || config != "g1" || data != "g2" {
		t.Errorf("found %s, %s, %s; want the state of g1 and the data of g2", database, config, data)
	}
}

func TestAStoppedStateIsCopiedAsItIs(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	path := filepath.Join(d.State, "system.duckdb")
	migrateOnce(t, path)
	newer := state.LatestSchemaVersion() + 1
	before := tree(t, d.Root)
	if got, err := state.StoredSchemaVersion(t.Context(), d.State); err != nil || got != newer {
		t.Errorf("schema version %d, %v; want %d", got, err, newer)
	}
	if diffs := changes(before, tree(t, d.Root)); len(diffs) > 0 {
		t.Errorf("asking for the version changed %v", diffs)
	}
	// A newer schema can be backed up by an older program; restoring it is another matter.
	info := mustCreate(t, d)
	if info.Database.Schema != newer || info.Database.Version != "2027.01.1" {
		t.Errorf("%+v", info.Database)
	}
	_, err := Restore(t.Context(), d, info.Path, RestoreOptions{})
	wantProblem(t, err, problem.Refused, "2027.01.1")
}

// TestTheSchemaVersionIsReadBehindALog leaves a write-ahead log, as a kill does.
func TestTheSchemaVersionIsReadBehindALog(t *testing.T) {
	t.Parallel()
	from, d := newData(t, "g1"), dirsOf(t.TempDir())
	db, err := duck.Open(t.Context(), filepath.Join(from.State, "system.duckdb"), duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	newer := state.LatestSchemaVersion() + 1
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("INSERT INTO schema_migrations VALUES (%d, 'later.sql', 'x', now()::TIMESTAMP, '2027.01.1')", newer)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(d.State, os.DirFS(from.State)); err != nil { // while the log is there
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.State, "system.duckdb.wal")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, d.Root)
	if got, err := state.StoredSchemaVersion(t.Context(), d.State); err != nil || got != newer {
		t.Errorf("schema version %d, %v; want %d", got, err, newer)
	}
	if diffs := changes(before, tree(t, d.Root)); len(diffs) > 0 {
		t.Errorf("asking for the version changed %v", diffs)
	}
}

func TestAFullDiskLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=160m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("only root can mount a small disk")
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	from := newData(t, "g1")
	d := dirsOf(filepath.Join(disk, "data"))
	if err := os.CopyFS(d.Root, os.DirFS(from.Root)); err != nil {
		t.Fatal(err)
	}
	good := mustCreate(t, d)
	advance(t, d, "g2")
	filler := filepath.Join(disk, "filler")
	fill := func(leave int64) {
		t.Helper()
		free, _ := freeBytes(disk)
		if err := os.WriteFile(filler, make([]byte, max(0, free-leave)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, d.Root)
	check := func(what string, err error) {
		t.Helper()
		wantProblem(t, err, problem.NoSpace, "df -h")
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if diffs := changes(before, tree(t, d.Root)); len(diffs) > 0 {
			t.Errorf("%s on a full disk left %v", what, diffs)
		}
	}
	fill(reserve)
	_, err := Create(t.Context(), d, closedRequest(d, nil))
	check("create, checked first", err)
	fill(reserve)
	_, err = Restore(t.Context(), d, good.Path, RestoreOptions{})
	check("restore, checked first", err)

	// The disk fills while they run, after the check.
	for _, step := range []string{"extracts held", "snapshot", "hashed", "written"} {
		_, err = Create(t.Context(), d, closedRequest(d, func(done string) {
			if done == step {
				fill(0)
			}
		}))
		check("create after "+step, err)
	}
	_, err = Restore(t.Context(), d, good.Path, RestoreOptions{step: func(done string) {
		if done == "extracted" {
			fill(0)
		}
	}})
	check("restore", err)
	wantGeneration(t, d, "g2")
	if _, err := Restore(t.Context(), d, good.Path, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, d, "g1")
}

func TestRoomIsReckonedWithoutOverflow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, n := range []int64{math.MaxInt64, math.MaxInt64 - reserve, 4 * maxBytes} {
		wantProblem(t, roomFor(dir, n, "A backup"), problem.NoSpace, "needs up to")
	}
	if err := roomFor(dir, 1, "A backup"); err != nil {
		t.Error(err)
	}
}
