package analytics

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

// publishUntilKilled replaces the extracts and publishes in a loop, and writes
// down what it was told to be published.
func publishUntilKilled(dir string) (err error) {
	defer asError(&err)
	f := fixtureAt(standalone{}, dir)
	f.must(connectors.Recover(context.Background(), f.extracts()))
	s := f.open()
	stamp := 0
	if g, ok := s.Acquire(); ok {
		if _, err := fmt.Sscan(f.one(g.DatabasePath, stamps), &stamp); err != nil {
			return err
		}
		g.Release()
	}
	for {
		stamp++
		f.commitStamp("s", stamp)
		f.commitStamp("z", stamp)
		p := f.publish(s, stamped...)
		if len(p.Failed) > 0 {
			return fmt.Errorf("publish: %v", p.Failed)
		}
		f.must(os.WriteFile(filepath.Join(dir, "published"), fmt.Append(nil, p.Generation.ID, " ", stamp), 0o644))
	}
}

func TestKilledAtAnyMomentTheOldOrTheNewGenerationIsWhole(t *testing.T) {
	f := newFixture(t)
	f.commitStamp("s", 1)
	f.commitStamp("z", 1)
	s := f.open()
	f.publish(s, stamped...)
	f.must(s.Close())
	ledger := filepath.Join(f.dir, "published")
	f.must(os.WriteFile(ledger, []byte("1 1"), 0o644))
	half := 0
	for kill := range 30 {
		child := f.helper("publisher", f.dir)
		// At work first; then a moment of a publish, or, each third time, any moment.
		before, err := os.ReadFile(ledger)
		f.must(err)
		f.eventually(func() bool {
			now, err := os.ReadFile(ledger)
			return err == nil && len(now) > 0 && string(now) != string(before)
		}, "the publisher's first round")
		span := 200 * time.Millisecond
		if kill%3 > 0 {
			f.eventually(func() bool { return f.unfinished() > 0 }, "a generation that is being built")
			span = 60 * time.Millisecond
		}
		<-time.After(rand.N(span))
		f.must(child.Process.Kill())
		if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("kill %d: the publisher ended by itself: %v\n%s", kill, err, child.Stderr)
		}
		half += min(1, f.unfinished())
		f.inspectAfterKill(kill)
	}
	if half == 0 {
		t.Error("no kill met a publish at work: the test proves too little")
	}
	t.Logf("30 kills, %d of them with a generation half-written", half)
}

// unfinished counts the generations without a manifest.
func (f *fixture) unfinished() int {
	f.Helper()
	n := 0
	for _, name := range f.onDisk() {
		if _, ok := parseGeneration(name); ok && !exists(filepath.Join(f.analytics(), generationsDir, name, manifestFile)) {
			n++
		}
	}
	return n
}

// inspectAfterKill opens the store and proves that what it serves is whole and
// not older than what was reported as published.
func (f *fixture) inspectAfterKill(kill int) {
	f.Helper()
	// The published path, before anybody repaired anything.
	seen := f.one(filepath.Join(f.analytics(), databaseFile), stamps)
	s, err := Open(context.Background(), Options{Dir: f.analytics(), ExtractsDir: f.extracts(), Log: slog.New(slog.DiscardHandler)})
	f.must(err)
	g, ok := s.Acquire()
	if !ok {
		f.Fatalf("kill %d: nothing is published", kill)
	}
	got := f.one(g.DatabasePath, stamps)
	g.Release()
	f.must(s.Close())
	var stamp, wantStamp int
	var wantID int64
	raw, err := os.ReadFile(filepath.Join(f.dir, "published"))
	f.must(err)
	if len(raw) > 0 { // empty: killed while writing it
		_, err = fmt.Sscan(string(raw), &wantID, &wantStamp)
		f.must(err)
	}
	if _, err := fmt.Sscan(got, &stamp); err != nil || got != seen || stamp < wantStamp || g.ID < wantID {
		f.Fatalf("kill %d: generation %d answers %q (published path: %q); generation %d with %d was reported", kill, g.ID, got, seen, wantID, wantStamp)
	}
	for _, info := range g.Tables {
		if sum, err := hashFile(info.Files[0]); err != nil || sum != info.ContentHash {
			f.Fatalf("kill %d: %s: hash %s, %v", kill, info.ID, sum, err)
		}
	}
	for _, name := range f.onDisk() {
		dir := filepath.Join(f.analytics(), generationsDir, name)
		if !exists(filepath.Join(dir, manifestFile)) || !exists(filepath.Join(dir, databaseFile)) {
			f.Fatalf("kill %d: %s is half-written after Open", kill, dir)
		}
	}
}
