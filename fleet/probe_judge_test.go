package fleet_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func judge(t rapid.TB, m, n int) fleet.Judge {
	t.Helper()
	j, err := fleet.NewJudge(m, n)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestAJudgeDecidesByMOfNBothWays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		m, n     int
		seen     string // observations
		standing string // after each: ? undecided, U up, D down
	}{
		{1, 1, "gbgb", "UDUD"},
		{2, 3, "gg", "?U"},
		{2, 3, "bb", "?D"},
		{2, 3, "gbg", "??U"},
		{2, 3, "ggbgggb", "?UUUUUU"},         // one lost packet
		{2, 3, "ggbb", "?UUD"},               // twice in a row
		{2, 3, "ggbgb", "?UUUD"},             // two of three
		{2, 3, "ggbbgg", "?UUDDU"},           // back
		{2, 3, "ggbgbgbg", "?UUUDDDU"},       // a change needs two of its own
		{3, 3, "gggbgbgbgbg", "??UUUUUUUUU"}, // flapping never moves three of three
		{3, 5, "gggbgbb", "??UUUUD"},
		{2, 3, "gg-b-b", "?UUUUD"}, // our own trouble is no observation
		{2, 3, "gg-------", "?UUUUUUUU"},
	} {
		j, r, got := judge(t, tt.m, tt.n), fleet.Record{}, ""
		at := time.Unix(0, 0)
		for _, o := range tt.seen {
			at = at.Add(time.Minute)
			was := r.Standing
			var changed bool
			r, changed = j.Decide(r, at, fleet.Observation(o))
			if changed != (was != r.Standing && was != "" || was == "" && r.Standing != fleet.Undecided) {
				t.Errorf("%d of %d, %s: changed is %v from %q to %q", tt.m, tt.n, tt.seen, changed, was, r.Standing)
			}
			if changed && !r.Since.Equal(at) {
				t.Errorf("it changed at %s, not at %s", at, r.Since)
			}
			got += map[fleet.Standing]string{fleet.Undecided: "?", fleet.Up: "U", fleet.Down: "D"}[r.Standing]
		}
		if got != tt.standing {
			t.Errorf("%d of %d, %s: %s, want %s", tt.m, tt.n, tt.seen, got, tt.standing)
		}
	}
}

func TestAJudgeThatCouldSayBothIsRefused(t *testing.T) {
	t.Parallel()
	for _, mn := range [][2]int{{0, 1}, {1, 2}, {2, 4}, {4, 3}, {-1, 0}, {40, 65}} {
		if _, err := fleet.NewJudge(mn[0], mn[1]); err == nil {
			t.Errorf("%d of %d was taken", mn[0], mn[1])
		}
	}
}

// TestAJudgeGoesOnAfterARestart holds a judge that is restarted and hears some
// observations twice against one that runs through, and the rule itself against a
// count by hand.
func TestAJudgeGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 7).Draw(t, "n")
		m := rapid.IntRange(n/2+1, n).Draw(t, "m")
		seen := rapid.SliceOfN(rapid.SampledFrom([]byte("gb-")), 0, 200).Draw(t, "seen")
		j := judge(t, m, n)
		var through, restarted fleet.Record
		since := ""
		for i, o := range seen {
			at := time.Unix(int64(i)*300, 0).UTC()
			var a, b bool
			was := through.Standing
			through, a = j.Decide(through, at, fleet.Observation(o))
			if rapid.Bool().Draw(t, "restart") {
				saved, err := json.Marshal(restarted)
				if err != nil {
					t.Fatal(err)
				}
				restarted = fleet.Record{}
				if err := json.Unmarshal(saved, &restarted); err != nil {
					t.Fatal(err)
				}
				j = judge(t, m, n)
			}
			restarted, b = j.Decide(restarted, at, fleet.Observation(o))
			again, twice := j.Decide(restarted, at, fleet.Observation(o))
			if a != b || through != restarted || o != '-' && (twice || again != restarted) {
				t.Fatalf("through %+v (%v), restarted %+v (%v), again %+v (%v)", through, a, restarted, b, again, twice)
			}
			if o != '-' {
				since += string(o)
			}
			last := since[max(0, len(since)-n):]
			bad, good := strings.Count(last, "b") >= m, strings.Count(last, "g") >= m
			want := was
			switch {
			case bad && was != fleet.Down:
				want = fleet.Down
			case good && was != fleet.Up:
				want = fleet.Up
			}
			if bad && good || a != (want != was) || a && through.Standing != want {
				t.Fatalf("after %s of %s: %+v, want %s", last, fmt.Sprint(string(seen)), through, want)
			}
			if a {
				since = ""
			}
		}
	})
}
