package monitor

import (
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func TestAWallClockThatIsSetBackMakesNobodyDeaf(t *testing.T) {
	t.Parallel()
	p := fleet.NewProber(fleet.ProbeOptions{})
	defer p.Close()
	m := &Monitor{o: Options{Prober: p}}
	in := fleet.Instance{Name: "acme", Interval: 30 * time.Second}
	wrong := time.Now().Add(2 * time.Hour)
	before, _ := m.turnAfter(wrong, wrong, in)
	now := wrong.Add(-2 * time.Hour).Round(0) // the same moment on a clock that was set
	at, left := m.turnAfter(before, now, in)
	if wait := at.Sub(now); wait <= 0 || wait > 36*time.Second || left != 0 {
		t.Errorf("the next turn is in %s, with %d left out", wait, left)
	}
	for n := range 100 { // and no round is left out, or comes twice, on a clock that goes right
		next, left := m.turnAfter(at, at, in)
		if gap := next.Sub(at); gap <= 20*time.Second || gap > 36*time.Second || left != 0 {
			t.Fatalf("round %d comes after %s, with %d left out", n, gap, left)
		}
		at = next
	}
	if _, left := m.turnAfter(at, at.Add(5*time.Minute), in); left < 9 || left > 11 {
		t.Errorf("of five minutes %d rounds are left out", left)
	}
}

func TestTimeInWhichTheMonitorWasStoppedIsUnknown(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 4, 12, 10, 0, 0, 0, time.UTC)
	m := &Monitor{lifeFrom: began}
	m.lookAtItself(began.Add(ownTick))
	if m.lifeFrom != began {
		t.Errorf("it watches since %s", m.lifeFrom)
	}
	woke := began.Add(8 * time.Hour)
	m.lookAtItself(woke)
	if m.batch.WatchedFrom != woke || m.batch.WatchedUntil != woke {
		t.Errorf("it says that it watched from %s to %s; it was stopped until %s", m.batch.WatchedFrom, m.batch.WatchedUntil, woke)
	}
}
