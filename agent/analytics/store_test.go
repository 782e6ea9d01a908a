package analytics

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestOpenTakesUpWhatTheLastProcessLeft(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage func(f *fixture) // after generations 1 and 2
		want   int64            // current; 0: none
		disk   []string
	}{
		"nothing": {func(*fixture) {}, 2, []string{"00000001", "00000002"}},
		"a half-written generation": {func(f *fixture) {
			f.must(os.MkdirAll(filepath.Join(generationDir(f.analytics(), 3), "data"), 0o755))
		}, 2, []string{"00000001", "00000002"}},
		"a complete generation whose pointer did not move": {func(f *fixture) {
			f.must(os.CopyFS(generationDir(f.analytics(), 3), os.DirFS(generationDir(f.analytics(), 2))))
		}, 2, []string{"00000001", "00000002"}},
		"a removal that was interrupted": {func(f *fixture) {
			f.must(os.Rename(generationDir(f.analytics(), 1), filepath.Join(f.analytics(), generationsDir, trashPrefix+"00000001")))
		}, 2, []string{"00000002"}},
		"no pointer": {func(f *fixture) {
			f.must(os.Remove(filepath.Join(f.analytics(), databaseFile)))
		}, 2, []string{"00000001", "00000002"}},
		"a dangling pointer": {func(f *fixture) {
			f.must(os.Remove(filepath.Join(f.analytics(), databaseFile)))
			f.must(os.Symlink("generations/00000009/server.duckdb", filepath.Join(f.analytics(), databaseFile)))
		}, 2, []string{"00000001", "00000002"}},
		"a file in the pointer's place": {func(f *fixture) {
			f.must(os.Remove(filepath.Join(f.analytics(), databaseFile)))
			f.must(os.WriteFile(filepath.Join(f.analytics(), databaseFile), []byte("x"), 0o644))
		}, 2, []string{"00000001", "00000002"}},
		"a pointer half on its way": {func(f *fixture) {
			f.must(os.Symlink("generations/00000009/server.duckdb", filepath.Join(f.analytics(), pointerTemp+"9")))
		}, 2, []string{"00000001", "00000002"}},
		"a pointer that went back": {func(f *fixture) {
			f.must(os.Remove(filepath.Join(f.analytics(), databaseFile)))
			f.must(os.Symlink(pointerTarget(1), filepath.Join(f.analytics(), databaseFile)))
		}, 1, []string{"00000001"}},
		"the current manifest is garbage": {func(f *fixture) {
			f.rewrite(filepath.Join(generationDir(f.analytics(), 2), manifestFile), "{")
		}, 1, []string{"00000001", "00000002"}},
		"the current database is gone": {func(f *fixture) {
			f.must(os.Remove(filepath.Join(generationDir(f.analytics(), 2), databaseFile)))
		}, 1, []string{"00000001"}},
		"everything is gone": {func(f *fixture) {
			f.must(os.RemoveAll(filepath.Join(f.analytics(), generationsDir)))
		}, 0, nil},
		"an outside program's log": {func(f *fixture) {
			f.must(os.WriteFile(filepath.Join(f.analytics(), databaseFile+".wal"), []byte("x"), 0o644))
		}, 2, []string{"00000001", "00000002"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			s := f.open()
			for i := range 2 {
				f.commit("s", tbl("t", fmt.Sprintf("SELECT %d AS v", i+1)))
				f.publish(s, bind("s.t")...)
			}
			f.must(s.Close())
			c.damage(f)

			s = f.open()
			if got := f.onDisk(); !slices.Equal(got, c.disk) {
				t.Errorf("expected %v on disk, found %v", c.disk, got)
			}
			g, ok := s.Acquire()
			switch {
			case c.want == 0:
				if ok {
					t.Errorf("expected no generation, found %d", g.ID)
				}
			case !ok || g.ID != c.want:
				t.Fatalf("expected generation %d, found %+v", c.want, g)
			default:
				if got := f.one(filepath.Join(f.analytics(), databaseFile), "SELECT v FROM t"); got != fmt.Sprint(c.want) {
					t.Errorf("expected %d through the pointer, found %s", c.want, got)
				}
			}
			f.commit("s", tbl("t", "SELECT 77 AS v"))
			if p := f.publish(s, bind("s.t")...); p.Generation.ID <= c.want {
				t.Errorf("expected a later number than %d, found %d", c.want, p.Generation.ID)
			}
			if got := f.one(filepath.Join(f.analytics(), databaseFile), "SELECT v FROM t"); got != "77" {
				t.Errorf("expected 77, found %s", got)
			}
			if stray, _ := filepath.Glob(filepath.Join(f.analytics(), "*server.duckdb?*")); len(stray) > 0 {
				t.Errorf("expected nothing beside the pointer, found %v", stray)
			}
		})
	}
}

// rewrite replaces the content of a protected file.
func (f *fixture) rewrite(path, content string) {
	f.Helper()
	f.must(os.Chmod(path, 0o644))
	f.must(os.WriteFile(path, []byte(content), 0o644))
}

func TestAMovedDataDirectoryIsServedAndRebuilt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.dir = filepath.Join(f.dir, "before")
	f.commit("s", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	f.publish(s, bind("s.t")...)
	f.must(s.Close())
	after := filepath.Join(filepath.Dir(f.dir), "after")
	f.must(os.Rename(f.dir, after))
	f.dir = after

	s = f.open()
	g, ok := s.Acquire()
	if !ok || !exists(g.Tables["t"].Files[0]) {
		t.Fatalf("expected files at the new place, found %+v", g)
	}
	g.Release()
	if p := f.publish(s, bind("s.t")...); p.Unchanged {
		t.Fatal("expected new views, since the old ones hold the old path")
	}
	if got := f.one(filepath.Join(f.analytics(), databaseFile), "SELECT v FROM t"); got != "1" {
		t.Fatalf("found %s", got)
	}
}

func TestGenerationsLiveWhilePinnedAndRetireOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := f.open(func(s *Store) { s.keep = 1 })
	publish := func(v int) {
		f.commit("s", tbl("t", fmt.Sprintf("SELECT %d AS v", v)))
		f.publish(s, bind("s.t")...)
	}
	retired := make(chan int64, 16)
	publish(1)
	a, _ := s.Acquire()
	b, _ := s.Acquire()
	a.OnRetire(func() { retired <- 1 })
	publish(2)
	two, _ := s.Acquire()
	two.OnRetire(func() { retired <- 2 })
	two.Release()
	two.Release() // no further effect
	publish(3)    // retires 2
	if got := <-retired; got != 2 {
		t.Fatalf("expected 2 to retire, found %d", got)
	}
	publish(4)
	// 1 is pinned, 3 is kept, 4 is current.
	if got, want := f.onDisk(), []string{"00000001", "00000003", "00000004"}; !slices.Equal(got, want) {
		t.Fatalf("expected %v, found %v", want, got)
	}
	a.Release()
	a.Release()
	if got := f.one(b.DatabasePath, "SELECT v FROM t"); got != "1" {
		t.Fatalf("a released twin unpinned its neighbor: %s", got)
	}
	select {
	case got := <-retired:
		t.Fatalf("%d retired while pinned", got)
	default:
	}
	b.Release()
	if got := <-retired; got != 1 {
		t.Fatalf("expected 1 to retire, found %d", got)
	}
	f.eventually(func() bool { return !exists(a.Dir) }, "generation 1 to be removed")
	b.OnRetire(func() { retired <- 100 })
	if got := <-retired; got != 100 {
		t.Fatal("a late callback must run at once")
	}

	g, _ := s.Acquire()
	g.OnRetire(func() { retired <- 4 })
	f.must(s.Close())
	if _, ok := s.Acquire(); ok {
		t.Error("acquired from a closed store")
	}
	if _, err := s.Publish(context.Background(), nil); err == nil {
		t.Error("published to a closed store")
	}
	g.Release()
	if got := <-retired; got != 4 {
		t.Fatalf("expected 4 to retire after Close, found %d", got)
	}
	if !exists(g.DatabasePath) {
		t.Error("the current generation was deleted")
	}
}

func (f *fixture) eventually(ok func() bool, what string) {
	f.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			f.Fatalf("waited in vain for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestOpenRefusesAPathThatDuckDBReadsAsAPattern(t *testing.T) {
	t.Parallel()
	if _, err := Open(context.Background(), Options{Dir: filepath.Join(t.TempDir(), "a[1]"), ExtractsDir: t.TempDir()}); err == nil {
		t.Fatal("expected an error")
	}
}
