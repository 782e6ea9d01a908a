package state

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestEveryConfirmedCommitSurvivesKill9 kills a process that commits numbered
// users and prints each number once its commit is confirmed. Checkpoints run
// every few milliseconds, so that kills meet them too.
func TestEveryConfirmedCommitSurvivesKill9(t *testing.T) {
	const kills = 30
	ctx, dir := context.Background(), t.TempDir()
	_ = mustOpen(t, dir).Close()
	next, committed, recovered := 0, 0, 0
	for round := range kills {
		cmd, out, line := startHelper(t, "commit", dir, strconv.Itoa(next))
		if strings.HasPrefix(line, "error") {
			t.Fatalf("round %d: the next start failed: %s", round, line)
		}
		until, timer := rand.IntN(15), (*time.Timer)(nil)
		seen := map[string]bool{}
		scan := bufio.NewScanner(out)
		for text := line; ; text = scan.Text() {
			if n, err := strconv.Atoi(text); err == nil {
				seen[numbered(n)] = true
				next = n + 1
			}
			if len(seen) >= until && timer == nil { // then at any moment of the commits that follow
				timer = time.AfterFunc(rand.N(8*time.Millisecond), func() { _ = cmd.Process.Kill() })
			}
			if strings.HasPrefix(text, "error") {
				t.Fatal(text)
			}
			if !scan.Scan() {
				break
			}
		}
		_ = cmd.Wait()
		committed += len(seen)
		if len(walFiles(filepath.Join(dir, databaseFile))) > 0 {
			recovered++
		}

		s, err := Open(ctx, testOptions(dir))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		there := map[string]bool{}
		for _, e := range emails(t, s) {
			there[e] = true
		}
		for e := range seen {
			if !there[e] {
				t.Errorf("round %d: %s was confirmed and is gone", round, e)
			}
		}
		audit, err := s.ListAudit(ctx, 1<<30, "")
		if err != nil || len(audit) != len(there) {
			t.Errorf("round %d: %d users and %d audit entries (%v)", round, len(there), len(audit), err)
		}
		if w := s.Warnings(); len(w) > 0 {
			t.Errorf("round %d: a plain kill warns: %v", round, w)
		}
		if there[numbered(next)] { // committed, killed before it was printed
			next++
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if committed < kills || recovered == 0 {
		t.Errorf("%d commits, %d of %d starts with a log: the test shows nothing", committed, recovered, kills)
	}
	t.Logf("%d commits confirmed over %d kills, %d of them left a write-ahead log", committed, kills, recovered)
}

// TestKill9DuringAMigrationLeavesItDoneOrNotBegun kills processes that migrate.
func TestKill9DuringAMigrationLeavesItDoneOrNotBegun(t *testing.T) {
	steps := []string{addPhone, upCase, "CREATE TABLE later AS SELECT range AS i FROM range(20000);"}
	first := mustOpenAt(t, t.TempDir(), versions(t))
	for i := range 20 {
		mustUser(t, first, numbered(i), RoleAdmin)
	}
	_ = first.Close()
	from := map[int]int{}
	for round := range 12 {
		dir := t.TempDir()
		copyTestFile(t, first.path, filepath.Join(dir, databaseFile))
		cmd, _, _ := startHelper(t, "migrate", append([]string{dir}, steps...)...)
		if round%3 > 0 { // the snapshot is made, so migrations come next
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(time.Millisecond) {
				if snaps, _ := filepath.Glob(filepath.Join(dir, snapshotsDir, "system-schema*")); len(snaps) > 0 {
					break
				}
			}
			<-time.After(rand.N(12 * time.Millisecond))
		} else {
			<-time.After(rand.N(100 * time.Millisecond))
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		db, err := openDatabase(context.Background(), filepath.Join(dir, databaseFile))
		if err != nil {
			t.Fatal(err)
		}
		applied, err := appliedMigrations(context.Background(), db)
		if err != nil {
			t.Fatal(err)
		}
		from[len(applied)]++
		_ = db.Close()
		s := mustOpenAt(t, dir, versions(t, steps...))
		users, err := s.ListUsers(context.Background())
		if err != nil || len(users) != 20 || users[0].Name != strings.ToUpper(users[0].Email) {
			t.Errorf("round %d: %d users, %v", round, len(users), err)
		}
		if w := s.Warnings(); len(w) > 0 {
			t.Errorf("round %d: %v", round, w)
		}
		if strays, _ := filepath.Glob(filepath.Join(dir, snapshotsDir, ".*")); len(strays) > 0 && len(applied) == 1 {
			t.Errorf("round %d: strays %v", round, strays)
		}
		_ = s.Close()
	}
	t.Logf("kills by the version that was reached: %v", from)
}

func numbered(n int) string { return fmt.Sprintf("u%06d@b.c", n) }
