package connectors

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// put writes rows rows of version version as a table's file.
func put(ctx context.Context, path string, rows, version int) error {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("COPY (SELECT i, %d AS version FROM range(%d) t(i)) TO %s (FORMAT parquet)", version, rows, duck.Literal(path)))
	return errors.Join(err, db.Close())
}

// build commits an extract with the tables a and b, both of one version.
func build(ctx context.Context, extracts string, version int, step func(string)) error {
	w, err := NewWriter(ctx, extracts, "shop")
	if err != nil {
		return err
	}
	if step != nil {
		w.step = step
	}
	for _, table := range []string{"a", "b"} {
		if err := put(ctx, w.Path(table), 10*version, version); err != nil {
			return errors.Join(err, w.Abort())
		}
		if err := w.Add(Meta{Table: table, Rows: int64(10 * version)}, fmt.Sprint(version)); err != nil {
			return errors.Join(err, w.Abort())
		}
	}
	_, err = w.Commit(ctx)
	return err
}

// version returns which version the extract has, after it was proved whole.
func version(t *testing.T, extracts string) string {
	t.Helper()
	dir := filepath.Join(extracts, "shop")
	r, err := Verify(t.Context(), dir)
	if err != nil || !r.OK {
		t.Fatalf("Verify = %+v, %v", r, err)
	}
	e, err := ReadExtract(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if e.State["a"] != e.State["b"] || len(e.Tables) != 2 {
		t.Fatalf("a mixed extract: %+v", e)
	}
	return e.State["a"]
}

func leftovers(t *testing.T, extracts string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(extracts, stagingDir))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestCommitReplacesTheWholeExtract(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	for v := 1; v <= 3; v++ {
		if err := build(t.Context(), extracts, v, nil); err != nil {
			t.Fatal(err)
		}
		if got := version(t, extracts); got != fmt.Sprint(v) {
			t.Errorf("version = %s, want %d", got, v)
		}
		if left := leftovers(t, extracts); left != nil {
			t.Errorf("the staging folder holds %v", left)
		}
	}
	if got := storageVersion(filepath.Join(extracts, "shop", ExtractFile)); got != 64 {
		t.Errorf("storage version = %d, want the oldest in use, 64", got)
	}
}

func TestCommittedExtractHoldsWhatWasDeclared(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	w, err := NewWriter(t.Context(), extracts, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if w.Previous() != nil {
		t.Error("the first run has a previous extract")
	}
	for n := range 3 {
		path, err := w.PartPath("parts", n)
		if err != nil {
			t.Fatal(err)
		}
		if err := put(t.Context(), path, 5, 1); err != nil {
			t.Fatal(err)
		}
	}
	scratch, err := w.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		w.Add(Meta{Table: "parts", Rows: -1, Description: "it's \"quoted\""}, "s"),
		w.Add(Meta{Table: "far", Rows: -1, SizeBytes: -1, QueryMode: Remote}, ""),
		w.Remote(RemoteAttach{Alias: "pg", Extension: "postgres", URL: "host=db", TokenEnv: "PGPASSWORD"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := ReadExtract(t.Context(), filepath.Join(extracts, "shop"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Tables, want.Tables) || !slices.Equal(got.Remote, want.Remote) || !maps.Equal(got.State, want.State) || got.Dir != want.Dir {
		t.Errorf("Commit = %+v\nReadExtract = %+v", got, want)
	}
	parts, _ := want.Meta("parts")
	files, err := want.Files("parts")
	if parts.Rows != 15 || parts.SizeBytes < 100 || parts.ExtractedAt.IsZero() || len(files) != 3 || err != nil {
		t.Errorf("parts = %+v, files %v, %v", parts, files, err)
	}
	if r, err := Verify(t.Context(), got.Dir); err != nil || !r.OK {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(got.Dir, scratchDir)); err == nil {
		t.Error("the scratch folder was published")
	}
	if err := w.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	if _, err := NewWriter(t.Context(), extracts, "../etc"); !problem.Is(err, problem.Invalid) {
		t.Errorf("a source name with a path: %v", err)
	}
	w, err := NewWriter(t.Context(), extracts, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewWriter(t.Context(), extracts, "shop"); !problem.Is(err, problem.Conflict) {
		t.Errorf("a second Writer: %v, want a conflict", err)
	}
	if err := Recover(t.Context(), extracts); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, extracts); !slices.Equal(left, []string{"shop.next"}) {
		t.Errorf("Recover left %v of a live Writer", left)
	}
	if err := put(t.Context(), w.Path("a"), 5, 1); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"a table without file":     w.Add(Meta{Table: "b"}, ""),
		"a bad name":               w.Add(Meta{Table: "b b"}, ""),
		"the contract's own name":  w.Add(Meta{Table: "_Meta"}, ""),
		"keeping without previous": w.Keep("a"),
		"a token as token_env":     w.Remote(RemoteAttach{Alias: "x", TokenEnv: "xoxb-secret"}),
		"a bad alias":              w.Remote(RemoteAttach{Alias: "x y"}),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), "xoxb") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	if err := w.Add(Meta{Table: "a", Rows: 5}, ""); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(Meta{Table: "A", QueryMode: Remote}, ""); err == nil {
		t.Error("A was accepted beside a")
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, extracts); left != nil {
		t.Errorf("Abort left %v", left)
	}
}

// Each fault of the staged files must keep the extract of before in place and
// leave nothing behind.
func TestFailedCommitChangesNothing(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(w *Writer) error{
		"a wrong row count":   func(w *Writer) error { w.tables[0].meta.Rows = 99; return nil },
		"a truncated file":    func(w *Writer) error { return os.Truncate(w.Path("a"), 50) },
		"a file nobody added": func(w *Writer) error { return put(context.Background(), w.Path("c"), 1, 1) },
		"a file that is gone": func(w *Writer) error { return os.Remove(w.Path("a")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extracts := t.TempDir()
			if err := build(t.Context(), extracts, 1, nil); err != nil {
				t.Fatal(err)
			}
			w, err := NewWriter(t.Context(), extracts, "shop")
			if err != nil {
				t.Fatal(err)
			}
			if err := put(t.Context(), w.Path("a"), 5, 1); err != nil {
				t.Fatal(err)
			}
			if err := w.Add(Meta{Table: "a", Rows: 5}, ""); err != nil {
				t.Fatal(err)
			}
			if err := spoil(w); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Commit(t.Context()); err == nil {
				t.Fatal("Commit has no error")
			}
			if got := version(t, extracts); got != "1" {
				t.Errorf("version = %s", got)
			}
			if left := leftovers(t, extracts); left != nil {
				t.Errorf("the staging folder holds %v", left)
			}
		})
	}
}

func TestKeepCarriesATableOverByLink(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	if err := build(t.Context(), extracts, 1, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(extracts, "shop/data/a.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(t.Context(), extracts, "shop")
	if err != nil {
		t.Fatal(err)
	}
	// An abandoned attempt at the table must not be in the way.
	if err := os.WriteFile(w.Path("a"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.Keep("a"); err != nil {
		t.Fatal(err)
	}
	e, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(filepath.Join(extracts, "shop/data/a.parquet"))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was not linked: %v", err)
	}
	if len(e.Tables) != 1 || e.Tables[0].Rows != 10 || e.State["a"] != "1" {
		t.Errorf("Commit = %+v", e)
	}
}

func TestKeepRefusesAFileThatWasDamaged(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	if err := build(t.Context(), extracts, 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(extracts, "shop/data/a.parquet"), 100); err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(t.Context(), extracts, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Keep("a"); err == nil {
		t.Error("the damaged table was kept")
	}
	if err := w.Keep("b"); err != nil {
		t.Error(err)
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Error(err)
	}
}

const crashEnv = "CONNECTORS_CRASH"

// TestCrasher is not a test of its own: as a child process it commits version 2
// and kills itself, as kill -9 does, at the named step.
func TestCrasher(t *testing.T) {
	extracts, at, found := strings.Cut(os.Getenv(crashEnv), "|")
	if !found {
		return
	}
	_ = build(context.Background(), extracts, 2, func(step string) {
		if step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
}

// A process killed between any two steps of Commit leaves the old or the new
// extract, whole, once Recover or the next Writer has run.
func TestKilledCommitLeavesOneWholeExtract(t *testing.T) {
	t.Parallel()
	steps := map[string]string{ // step: the version that must be there
		"begin": "1", "proved": "1", "database": "1", "synced": "1", "exchanged": "2", "swapped": "2",
	}
	for step, want := range steps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			extracts := t.TempDir()
			if err := build(t.Context(), extracts, 1, nil); err != nil {
				t.Fatal(err)
			}
			crash(t, extracts, step)
			if err := Recover(t.Context(), extracts); err != nil {
				t.Fatal(err)
			}
			if got := version(t, extracts); got != want {
				t.Errorf("version = %s, want %s", got, want)
			}
			if left := leftovers(t, extracts); left != nil {
				t.Errorf("Recover left %v", left)
			}
			if err := build(t.Context(), extracts, 3, nil); err != nil || version(t, extracts) != "3" {
				t.Errorf("the next commit: %v", err)
			}
		})
	}
	t.Run("the next Writer recovers too", func(t *testing.T) {
		t.Parallel()
		extracts := t.TempDir()
		if err := build(t.Context(), extracts, 1, nil); err != nil {
			t.Fatal(err)
		}
		crash(t, extracts, "database")
		if err := build(t.Context(), extracts, 3, nil); err != nil || version(t, extracts) != "3" {
			t.Errorf("the next commit: %v", err)
		}
	})
}

func crash(t *testing.T, extracts, step string) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrasher$")
	child.Env = append(os.Environ(), crashEnv+"="+extracts+"|"+step)
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child did not die at %q: %v\n%s", step, err, out)
	}
}

// Where folders cannot be exchanged, the swap takes two steps.
func TestSwapInTwoSteps(t *testing.T) {
	t.Parallel()
	extracts := t.TempDir()
	if err := build(t.Context(), extracts, 1, nil); err != nil {
		t.Fatal(err)
	}
	// The extract of before is set aside and the process dies.
	if err := os.Rename(filepath.Join(extracts, "shop"), oldDir(extracts, "shop")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(nextDir(extracts, "shop"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Recover(t.Context(), extracts); err != nil {
		t.Fatal(err)
	}
	if got := version(t, extracts); got != "1" {
		t.Errorf("version = %s", got)
	}
	// The whole swap.
	other := t.TempDir()
	if err := build(t.Context(), other, 2, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(other, "shop"), nextDir(extracts, "shop")); err != nil {
		t.Fatal(err)
	}
	var steps []string
	if err := swapInTwoSteps(extracts, "shop", func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	// The process dies before the old one is removed.
	if err := Recover(t.Context(), extracts); err != nil {
		t.Fatal(err)
	}
	if got := version(t, extracts); got != "2" || !slices.Equal(steps, []string{"set aside"}) {
		t.Errorf("version = %s after %v", got, steps)
	}
	if left := leftovers(t, extracts); left != nil {
		t.Errorf("the staging folder holds %v", left)
	}
}

func TestRecoverWithoutAnything(t *testing.T) {
	t.Parallel()
	if err := Recover(t.Context(), filepath.Join(t.TempDir(), "missing")); err != nil {
		t.Error(err)
	}
}
