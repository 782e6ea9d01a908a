package state

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestSnapshotUnderLoadIsOnePointInTime(t *testing.T) {
	t.Parallel()
	ctx, dir := context.Background(), t.TempDir()
	s := mustOpen(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // users in order; each commit adds a user and its audit entry
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.CreateUser(ctx, newUser(fmt.Sprintf("u%06d@b.c", i), RoleAnalyst), By{}); err != nil {
				t.Error(err)
				return
			}
			if i%50 == 0 {
				if err := s.Checkpoint(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	wg.Go(func() { // and other writers
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			a, b := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
			if _, err := s.RegisterTables(ctx, []Table{{ID: a, Source: "csv", SourceTable: a}, {ID: b, Source: "csv", SourceTable: b}}, By{}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const n = 8
	last := 0
	for i := range n {
		into := filepath.Join(t.TempDir(), databaseFile)
		if err := s.Snapshot(ctx, into); err != nil {
			t.Fatal(err)
		}
		copied := mustOpen(t, filepath.Dir(into))
		users := emails(t, copied)
		for k, e := range users {
			if e != fmt.Sprintf("u%06d@b.c", k) {
				t.Fatalf("snapshot %d: user %d is %s", i, k, e)
			}
		}
		audit, err := copied.ListAudit(ctx, 1<<30, "")
		created := slices.DeleteFunc(audit, func(e AuditEntry) bool { return e.Action != "user.create" })
		if err != nil || len(created) != len(users) {
			t.Errorf("snapshot %d: %d users, %d audit entries, %v", i, len(users), len(created), err)
		}
		tables, err := copied.ListTables(ctx)
		if err != nil || len(tables)%2 != 0 {
			t.Errorf("snapshot %d: %d tables, want whole pairs, %v", i, len(tables), err)
		}
		if len(users) < last {
			t.Errorf("snapshot %d has %d users, the one before had %d", i, len(users), last)
		}
		last = len(users)
		_ = copied.Close()
	}
	close(stop)
	wg.Wait()
	if last == 0 {
		t.Error("no snapshot saw a write: the test shows nothing")
	}
	t.Logf("%d snapshots, the last with %d users", n, last)
}

func TestSnapshotNeverOverwritesAndLeavesNothingWhenItFails(t *testing.T) {
	t.Parallel()
	ctx, dir := context.Background(), t.TempDir()
	s := mustOpen(t, dir)
	out := t.TempDir()
	dest := filepath.Join(out, "it's one.duckdb")
	if err := s.Snapshot(ctx, dest); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dest); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	wantProblem(t, s.Snapshot(ctx, dest), problem.Conflict, dest)
	if err := s.Snapshot(ctx, filepath.Join(out, "no", "such", "folder")); err == nil {
		t.Error("a snapshot into a missing folder worked")
	}
	small := mountTmpfs(t, "size=64k")
	wantProblem(t, s.Snapshot(ctx, filepath.Join(small, "x.duckdb")), problem.NoSpace, "df -h "+small)
	for _, d := range []string{out, small} {
		left, _ := os.ReadDir(d)
		if want := map[string]int{out: 1, small: 0}[d]; len(left) != want {
			t.Errorf("left in %s: %v", d, left)
		}
	}
	if err := s.Canary(ctx); err != nil {
		t.Errorf("after a failed snapshot: %v", err)
	}
	if err := s.Checkpoint(ctx); err != nil {
		t.Errorf("after a failed snapshot: %v", err)
	}
}
