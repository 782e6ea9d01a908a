package analytics

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// commitStamp replaces an extract by connectors.Writer, as a sync does: two
// tables that carry the same stamp.
func (f *fixture) commitStamp(source string, stamp int) {
	f.Helper()
	ctx := context.Background()
	w, err := connectors.NewWriter(ctx, f.extracts(), source)
	f.must(err)
	for _, table := range []string{source + "_a", source + "_b"} {
		_, err := f.sql.ExecContext(ctx, fmt.Sprintf("COPY (SELECT %d AS stamp FROM range(100)) TO %s (FORMAT parquet)", stamp, duck.Literal(w.Path(table))))
		f.must(err)
		f.must(w.Add(connectors.Meta{Table: table, Rows: -1}, "state"))
	}
	_, err = w.Commit(ctx)
	f.must(err)
}

// swapStamp does the same without the Writer's care: a copy of the last extract
// with new files takes its place by rename.
func (f *fixture) swapStamp(source string, stamp int) {
	f.Helper()
	dir := filepath.Join(f.extracts(), source)
	next, old := filepath.Join(f.extracts(), ".next"), filepath.Join(f.extracts(), ".old")
	f.must(os.MkdirAll(filepath.Join(next, "data"), 0o755))
	raw, err := os.ReadFile(filepath.Join(dir, connectors.ExtractFile))
	f.must(err)
	f.must(os.WriteFile(filepath.Join(next, connectors.ExtractFile), raw, 0o644))
	for _, table := range []string{source + "_a", source + "_b"} {
		_, err := f.sql.Exec(fmt.Sprintf("COPY (SELECT %d AS stamp FROM range(100)) TO %s (FORMAT parquet)", stamp,
			duck.Literal(filepath.Join(next, "data", table+".parquet"))))
		f.must(err)
	}
	f.must(os.Rename(dir, old))
	f.must(os.Rename(next, dir))
	f.must(os.RemoveAll(old))
}

// stamps is true when all four tables carry one stamp, which is then answered.
const stamps = `SELECT CASE WHEN count(DISTINCT stamp) = 1 AND count(*) = 400 THEN min(stamp)::VARCHAR ELSE 'torn' END
	FROM (FROM s_a UNION ALL FROM s_b UNION ALL FROM z_a UNION ALL FROM z_b)`

var stamped = bind("s.s_a", "s.s_b", "z.z_a", "z.z_b")

func TestEveryAnswerComesFromOneGeneration(t *testing.T) {
	f := newFixture(t)
	s := f.open()
	f.commitStamp("s", 1)
	f.commitStamp("z", 1)
	replace := func(stamp int) {
		f.swapStamp("s", stamp)
		f.swapStamp("z", stamp)
		if p := f.publish(s, stamped...); len(p.Failed) > 0 {
			t.Fatalf("publish %d: %v", stamp, p.Failed)
		}
	}
	replace(1)

	var answers atomic.Int64
	engine := &engine{open: map[int64]*sql.DB{}}
	stop := make(chan struct{})
	var g errgroup.Group
	for range 20 {
		g.Go(func() error {
			for last := 0; ; {
				stamp, err := engine.read(s)
				if err != nil || stamp < last {
					return fmt.Errorf("found stamp %d after %d: %w", stamp, last, err)
				}
				last = stamp
				answers.Add(2)
				select {
				case <-stop:
					return nil
				case <-time.After(time.Duration(rand.IntN(400)) * time.Millisecond):
				}
			}
		})
	}
	for stamp := 2; stamp <= 51; stamp++ {
		replace(stamp)
	}
	close(stop)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d answers by 20 readers during 50 publishes", answers.Load())
	f.must(s.Close())
	if got, want := f.onDisk(), []string{"00000049", "00000050", "00000051"}; !slices.Equal(got, want) {
		t.Errorf("expected the current and two old generations %v, found %v", want, got)
	}
	if len(engine.open) > 0 {
		t.Errorf("expected every generation to retire, found open handles of %v", slices.Collect(maps.Keys(engine.open)))
	}
	f.noOpenFiles()
}

// engine holds one handle for each generation, as a query engine does, from the
// first question until the generation retires.
type engine struct {
	mu   sync.Mutex
	open map[int64]*sql.DB
}

// read asks one generation twice, with some time in between.
func (e *engine) read(s *Store) (int, error) {
	gen, ok := s.Acquire()
	if !ok {
		return 0, fmt.Errorf("nothing to acquire")
	}
	defer gen.Release()
	db, err := e.handle(gen)
	if err != nil {
		return 0, fmt.Errorf("generation %d: %w", gen.ID, err)
	}
	var first, second string
	if err := db.QueryRow(stamps).Scan(&first); err != nil {
		return 0, fmt.Errorf("generation %d: %w", gen.ID, err)
	}
	<-time.After(time.Duration(rand.IntN(300)) * time.Millisecond)
	if err := db.QueryRow(stamps).Scan(&second); err != nil || first != second {
		return 0, fmt.Errorf("generation %d: found %q after %q: %w", gen.ID, second, first, err)
	}
	return strconv.Atoi(first)
}

func (e *engine) handle(gen *Generation) (*sql.DB, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if db, ok := e.open[gen.ID]; ok {
		return db, nil
	}
	db, err := duck.Open(context.Background(), gen.DatabasePath, duck.Options{ReadOnly: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	e.open[gen.ID] = db
	gen.OnRetire(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if err := e.open[gen.ID].Close(); err == nil {
			delete(e.open, gen.ID)
		}
	})
	return db, nil
}

// noOpenFiles fails the test when this process holds a file of the fixture open.
func (f *fixture) noOpenFiles() {
	f.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		f.Logf("open files cannot be listed here: %v", err)
		return
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && strings.HasPrefix(target, f.dir) {
			f.Errorf("left open: %s", target)
		}
	}
}

// An outside program opens the published path whenever it likes.
func TestThePublishedPathIsAlwaysACompleteDatabase(t *testing.T) {
	f := newFixture(t)
	s := f.open()
	f.commitStamp("s", 1)
	f.commitStamp("z", 1)
	f.publish(s, stamped...)

	child := f.helper("outside", f.dir)
	for stamp := 2; stamp <= 51; stamp++ {
		f.swapStamp("s", stamp)
		f.swapStamp("z", stamp)
		f.publish(s, stamped...)
	}
	f.must(os.WriteFile(filepath.Join(f.dir, "stop"), nil, 0o644))
	if err := child.Wait(); err != nil {
		t.Fatalf("outside program: %v\n%s", err, child.Stderr)
	}
	t.Logf("outside program: %s", child.Stdout)
}

// outside reads the published path until the file "stop" appears.
func outside(dir string) error {
	path := filepath.Join(dir, "analytics", databaseFile)
	gone := make(chan error, 1)
	go func() { // between two opens: the path never names nothing
		for {
			if _, err := os.Stat(path); err != nil {
				gone <- err
				return
			}
		}
	}()
	n, seen := 0, map[string]bool{}
	for !exists(filepath.Join(dir, "stop")) {
		got, err := queryOne(path, stamps)
		if err != nil {
			return err
		}
		if got == "torn" {
			return fmt.Errorf("two generations in one answer")
		}
		seen[got] = true
		n++
		select {
		case err := <-gone:
			return err
		default:
		}
	}
	fmt.Printf("%d answers from %d generations", n, len(seen))
	if n < 10 || len(seen) < 2 {
		return fmt.Errorf("expected at least 10 answers from several generations")
	}
	return nil
}

func TestPublishesQueueAndObeyTheirContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("s", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	s.building <- struct{}{} // a publish that runs
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Publish(ctx, bind("s.t")); err == nil {
			t.Error("expected the waiting publish to give up")
		}
	})
	cancel()
	wg.Wait()
	<-s.building
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			_, err := s.Publish(context.Background(), bind("s.t"))
			return err
		})
	}
	f.must(g.Wait())
	if got := f.onDisk(); len(got) != 1 {
		t.Errorf("expected one generation, since nothing changed, found %v", got)
	}
}
