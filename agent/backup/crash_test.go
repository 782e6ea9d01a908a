package backup

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// wantNoRubbish asserts that nothing but backups and kept folders is left.
func wantNoRubbish(t *testing.T, d Dirs) {
	t.Helper()
	for _, pattern := range []string{
		filepath.Join(d.Backups, workPrefix+"*"), filepath.Join(d.Backups, proofPrefix+"*"),
		filepath.Join(d.Extracts, stagingDir, holdPrefix+"*"), d.Work,
	} {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			t.Errorf("left behind: %v (%v)", found, err)
		}
	}
}

// copyData copies a data directory, so that each kill meets the same one.
func copyData(t *testing.T, from Dirs) Dirs {
	t.Helper()
	to := dirsOf(filepath.Join(t.TempDir(), "data"))
	if err := os.CopyFS(to.Root, os.DirFS(from.Root)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{to.State, to.Backups} {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestABackupKilledAtAnyStepLosesNothing(t *testing.T) {
	t.Parallel()
	first := newData(t, "g1")
	old := mustCreate(t, first)
	steps, _ := play(t, "create", copyData(t, first).Root, "-")
	if len(steps) < 7 {
		t.Fatalf("only the steps %v are tried", steps)
	}
	for _, step := range steps {
		d := copyData(t, first)
		if _, killed := play(t, "create", d.Root, step); !killed {
			t.Fatalf("%s: was not killed", step)
		}
		list, broken, err := List(d)
		want := 1
		if step == "named" {
			want = 2
		}
		if err != nil || len(broken) > 0 || len(list) != want {
			t.Errorf("killed after %q: %d backups, want %d; %v, %v", step, len(list), want, broken, err)
		}
		for _, b := range list {
			if _, err := Verify(t.Context(), b.Path, ""); err != nil {
				t.Errorf("killed after %q: %v", step, err)
			}
		}
		if list[len(list)-1].ID != old.ID {
			t.Errorf("killed after %q: the old backup is gone", step)
		}
		wantGeneration(t, d, "g1")
		mustCreate(t, d)
		wantNoRubbish(t, d)
	}
}

// restorable is a data directory of generation g2 with a backup of g1, and
// further data that the backup does not hold.
func restorable(t *testing.T) (Dirs, string) {
	t.Helper()
	d := newData(t, "g1")
	b := mustCreate(t, d)
	advance(t, d, "g2")
	extract(t, d, "other", "g2")
	return d, filepath.Base(b.Path)
}

func wantOther(t *testing.T, d Dirs) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(d.Extracts, "other", "extract.duckdb")); err != nil {
		t.Errorf("the source that the backup does not hold: %v", err)
	}
}

func TestARestoreKilledAtAnyStepIsFinishedOrUndone(t *testing.T) {
	t.Parallel()
	first, name := restorable(t)
	run := copyData(t, first)
	steps, _ := play(t, "restore", run.Root, filepath.Join(run.Backups, name), "-")
	wantGeneration(t, run, "g1")
	if len(steps) < 8 {
		t.Fatalf("only the steps %v are tried", steps)
	}
	begun := slices.Index(steps, "journal")
	for n, step := range steps {
		d := copyData(t, first)
		if _, killed := play(t, "restore", d.Root, filepath.Join(d.Backups, name), step); !killed {
			t.Fatalf("%s: was not killed", step)
		}
		finished, err := Recover(t.Context(), d, nil)
		if err != nil {
			t.Fatalf("killed after %q: %v", step, err)
		}
		if (n >= begun && step != "ended") != (finished != nil) {
			t.Errorf("killed after %q: finished is %+v", step, finished)
		}
		want := "g2"
		if n >= begun {
			want = "g1"
			wantKept(t, d)
		}
		wantGeneration(t, d, want)
		wantOther(t, d)
		wantNoRubbish(t, d)

		// Killed again in the middle of the recovery.
		if finished != nil {
			for _, again := range steps[n+1:] {
				d := copyData(t, first)
				_, _ = play(t, "restore", d.Root, filepath.Join(d.Backups, name), step)
				_, _ = play(t, "recover", d.Root, again)
				if _, err := Recover(t.Context(), d, nil); err != nil {
					t.Fatalf("killed after %q and %q: %v", step, again, err)
				}
				wantGeneration(t, d, "g1")
				wantNoRubbish(t, d)
			}
		}
	}
}

// wantKept asserts that what a restore replaced is whole.
func wantKept(t *testing.T, d Dirs) {
	t.Helper()
	kept, err := keptFolders(d)
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept folders: %v, %v", kept, err)
	}
	for path := range kept {
		wantGeneration(t, dirsOf(path), "g2")
	}
}

// The restored state is damaged right after it was put in place, so the proof
// fails and everything is taken back; kills meet that too.
func TestARestoreThatDoesNotOpenIsTakenBack(t *testing.T) {
	t.Parallel()
	first, name := restorable(t)
	run := copyData(t, first)
	steps, _ := play(t, "restore-broken", run.Root, filepath.Join(run.Backups, name), "-")
	wantGeneration(t, run, "g2")
	begun := slices.Index(steps, "undo")
	if begun < 0 || len(steps) < begun+5 {
		t.Fatalf("the steps are %v", steps)
	}
	for _, step := range steps[slices.Index(steps, "state in place"):] {
		d := copyData(t, first)
		before := tree(t, d.Root)
		if _, killed := play(t, "restore-broken", d.Root, filepath.Join(d.Backups, name), step); !killed {
			t.Fatalf("%s: was not killed", step)
		}
		if _, err := Recover(t.Context(), d, nil); err != nil {
			t.Fatalf("killed after %q: %v", step, err)
		}
		if diffs := changes(before, tree(t, d.Root)); len(diffs) > 0 {
			t.Errorf("killed after %q: %v", step, diffs)
		}
		wantGeneration(t, d, "g2")
		wantNoRubbish(t, d)
	}
}

func TestARestoreKilledAtAnyMomentLeavesOneWholeGeneration(t *testing.T) {
	t.Parallel()
	first, name := restorable(t)
	ended := map[string]int{}
	for round := range 12 {
		d := copyData(t, first)
		cmd := exec.CommandContext(t.Context(), os.Args[0], d.Root, filepath.Join(d.Backups, name), "-")
		cmd.Env = append(os.Environ(), helperEnv+"=restore")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(rand.N(150*time.Millisecond), func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		// The next restore recovers as the next start does.
		if round%2 == 0 {
			if _, err := Restore(t.Context(), d, filepath.Join(d.Backups, name), RestoreOptions{DryRun: true}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := Recover(t.Context(), d, nil); err != nil {
			t.Fatal(err)
		}
		database, config, data := generation(t, d)
		if database != config || config != data || !strings.HasPrefix(database, "g") {
			t.Errorf("round %d: database %s, configuration %s, data %s", round, database, config, data)
		}
		wantNoRubbish(t, d)
		ended[database]++
	}
	t.Logf("generations after the kills: %v", ended)
}

// What may hold secrets does not outlive the process that was killed over it,
// and what a living process works on stays.
func TestWhatKilledProcessesLeftIsSwept(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	if err := os.MkdirAll(filepath.Join(d.Work, freshDir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(d.Backups, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	fetch := func(age time.Time) *os.File {
		f, err := NewFetch(d.Backups)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(f.Name(), age, age); err != nil {
			t.Fatal(err)
		}
		return f
	}
	killed, alive, begun := fetch(old), fetch(old), fetch(time.Now())
	defer func() { _ = alive.Close() }()
	if err := errors.Join(killed.Close(), begun.Close()); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(d); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{killed.Name(): false, alive.Name(): true, begun.Name(): true, d.Work: false} {
		if there, err := exists(path); err != nil || there != want {
			t.Errorf("%s is there: %t, %v; want %t", path, there, err, want)
		}
	}
	wantGeneration(t, d, "g1")

	// One that is in the middle of its swap is for Recover.
	if err := os.MkdirAll(d.Work, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journalPath(d), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(d); err != nil {
		t.Fatal(err)
	}
	if pending, err := Pending(d); err != nil || !pending {
		t.Errorf("a journal was swept: %v", err)
	}
	if err := Sweep(dirsOf(filepath.Join(t.TempDir(), "none"))); err != nil {
		t.Errorf("where there is nothing: %v", err)
	}
}
