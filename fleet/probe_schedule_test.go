package fleet_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func TestAScheduleGivesEachRoundOneMomentAndSpreadsThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const members, rounds, every = 1000, 20, 30 * time.Second
		p, again := fleet.NewProber(fleet.ProbeOptions{Seed: 7}), fleet.NewProber(fleet.ProbeOptions{Seed: 7})
		other := fleet.NewProber(fleet.ProbeOptions{Seed: 8})
		begin := time.Now()
		load := map[int64]int{}
		differs := 0
		for i := range members {
			in := fleet.Instance{Name: fmt.Sprintf("acme-%d", i), Interval: every}
			at := begin
			for range rounds {
				next := p.Schedule(at, in)
				// Asked in between, and by a monitor that was started later, it says the same.
				middle := at.Add(next.Sub(at) / 2)
				if !p.Schedule(middle, in).Equal(next) || !again.Schedule(at, in).Equal(next) {
					t.Fatalf("%s: the schedule depends on who asks when", in.Name)
				}
				if gap := next.Sub(at); !next.After(at) || gap > every+every/10 || !at.Equal(begin) && gap < every-every/10 {
					t.Fatalf("%s: a gap of %s in an interval of %s", in.Name, gap, every)
				}
				if !other.Schedule(at, in).Equal(next) {
					differs++
				}
				at = next
				load[int64(at.Sub(begin)/time.Second)]++
			}
		}
		for second := int64(35); second < 500; second++ {
			if n := load[second]; n < 10 || n > 70 { // 33 on average
				t.Errorf("%d probes in second %d", n, second)
			}
		}
		if differs < members*rounds*9/10 {
			t.Errorf("another seed gives another moment in %d of %d rounds only", differs, members*rounds)
		}
	})
}

func TestAScheduleWithoutAnIntervalHasOne(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	p := fleet.NewProber(fleet.ProbeOptions{})
	if next := p.Schedule(now, fleet.Instance{Name: "a"}); !next.After(now) || next.Sub(now) > 33*time.Second {
		t.Errorf("next after %s", next.Sub(now))
	}
}
