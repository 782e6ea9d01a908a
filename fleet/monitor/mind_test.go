package monitor

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// TestAMindThatIsRestoredDecidesAsIfNothingHadHappened compares a mind, which is
// saved only when it changed and restored at any moment, with a Judge of the fleet
// that sees everything.
func TestAMindThatIsRestoredDecidesAsIfNothingHadHappened(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 7).Draw(t, "n")
		judge, err := fleet.NewJudge(rapid.IntRange(n/2+1, n).Draw(t, "m"), n)
		if err != nil {
			t.Fatal(err)
		}
		rules := &rules{
			judge: judge, watch: fleet.DefaultWatch(), drifted: fleet.Drifted,
			silenced: func(fleet.Instance, time.Time) string { return "" }, tell: func(fleet.Instance, fleet.Kind) []string { return []string{"chat"} },
		}
		in := fleet.Instance{Name: "acme", Channel: "stable"}
		at := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
		var who mind
		saved, err := who.save()
		if err != nil {
			t.Fatal(err)
		}
		var oracle fleet.Record
		isOpen, opened, closed := false, 0, 0
		for step, kind := range rapid.SliceOfN(rapid.IntRange(0, 3), 1, 200).Draw(t, "probes") {
			at = at.Add(time.Minute)
			r := fleet.Result{Name: "acme", At: at, Health: fleet.Healthy, Version: "2026.04.1", Channel: "stable"}
			switch kind {
			case 0:
				r.Health, r.Version = fleet.Unreachable, ""
			case 1:
				r.Health, r.Version = fleet.Unhealthy, ""
			}
			var turned bool
			oracle, turned = judge.Decide(oracle, at, fleet.Observe(r))
			wantOpen := oracle.Standing == fleet.Down

			var out store.Batch
			s := sight{rules: rules, mind: &who, in: in, r: r, at: at, out: &out}
			if s.see() {
				if saved, err = who.save(); err != nil {
					t.Fatal(err)
				}
			} else if !out.Empty() || turned {
				t.Fatalf("step %d: nothing is to be saved, and something follows: %+v", step, out)
			}
			opened, closed = opened+len(out.Opened), closed+len(out.Closed)
			if got := who.tracks[working].Record; got.Standing != oracle.Standing || !got.Since.Equal(oracle.Since) {
				t.Fatalf("step %d: found %+v, want %+v", step, got, oracle)
			}
			if wantOpen != (len(out.Opened) == 1) && wantOpen != isOpen || wantOpen == isOpen && len(out.Opened)+len(out.Closed) > 0 {
				t.Fatalf("step %d: open %v -> %v, and %d opened, %d closed", step, isOpen, wantOpen, len(out.Opened), len(out.Closed))
			}
			isOpen = wantOpen
			if rapid.Bool().Draw(t, "restart") {
				if who, err = restore(saved, at); err != nil {
					t.Fatal(err)
				}
			}
		}
		if open := opened - closed; open != 0 && open != 1 || (open == 1) != isOpen {
			t.Fatalf("%d opened, %d closed", opened, closed)
		}
	})
}

func TestAClockThatWasWrongOnceMakesNobodyDeaf(t *testing.T) {
	t.Parallel()
	judge, _ := fleet.NewJudge(1, 1)
	now := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	var who mind
	who.last = now.AddDate(1, 0, 0)
	who.tracks[working].observe(judge, who.last, fleet.Good)
	doc, err := who.save()
	if err != nil {
		t.Fatal(err)
	}
	if who, err = restore(doc, now); err != nil {
		t.Fatal(err)
	}
	who.tracks[working].observe(judge, now.Add(time.Second), fleet.Bad)
	if got := who.tracks[working].Record.Standing; got != fleet.Down || who.last.After(now) {
		t.Errorf("found %s, last seen %s", got, who.last)
	}
}

func TestLatenciesAreNearTheirPercentiles(t *testing.T) {
	t.Parallel()
	var l latency
	at := time.Date(2026, 4, 1, 10, 59, 59, 0, time.UTC)
	for ms := range 1000 {
		if _, ok := l.add(at, time.Duration(ms+1)*time.Millisecond, "acme"); ok {
			t.Fatal("the hour ended by itself")
		}
	}
	h, ok := l.add(at.Add(time.Second), time.Millisecond, "acme")
	near := func(got, want time.Duration) bool { return (got - want).Abs() < want*7/100 }
	if !ok || h.Count != 1000 || !h.Hour.Equal(at.Truncate(time.Hour)) || h.Max != time.Second || !near(h.P50, 500*time.Millisecond) || !near(h.P95, 950*time.Millisecond) {
		t.Errorf("%v %+v", ok, h)
	}
}
