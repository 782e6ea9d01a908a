package fleet_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func selector(t testing.TB, text string) fleet.Selector {
	t.Helper()
	s, err := fleet.ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fleetOf(n int) *fleet.Inventory {
	v := &fleet.Inventory{}
	for i := range n {
		tier := "normal"
		if i%4 == 0 {
			tier = "canary"
		}
		v.Instances = append(v.Instances, fleet.Instance{Name: fmt.Sprintf("i%d", i), Labels: map[string]string{"tier": tier}})
	}
	return v
}

func sizes(t testing.TB, v *fleet.Inventory, waves []fleet.Wave) (all []int) {
	t.Helper()
	assigned, err := v.Assign(waves)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range assigned {
		all = append(all, len(a.Members))
	}
	return all
}

func TestAWaveTakesOfWhatIsLeft(t *testing.T) {
	t.Parallel()
	waves := []fleet.Wave{
		{Name: "half-the-canaries", Match: selector(t, "tier=canary"), Percent: 50},
		{Name: "canaries", Match: selector(t, "tier=canary")},
		{Name: "tenth", Percent: 10},
		{Name: "rest"},
	}
	for n, want := range map[int][]int{0: {0, 0, 0, 0}, 1: {1, 0, 0, 0}, 2: {1, 0, 1, 0}, 40: {5, 5, 3, 27}, 44: {6, 5, 4, 29}} {
		if got := sizes(t, fleetOf(n), waves); !slices.Equal(got, want) {
			t.Errorf("%d instances: %v, want %v", n, got, want)
		}
	}
}

func TestThereIsACanaryAtAnySizeOfFleet(t *testing.T) {
	t.Parallel()
	for n, want := range map[int][]int{1: {1, 0}, 2: {1, 1}, 100: {1, 99}, 101: {2, 99}, 1000: {10, 990}} {
		if got := sizes(t, fleetOf(n), fleet.DefaultWaves()); !slices.Equal(got, want) {
			t.Errorf("%d instances: %v, want %v", n, got, want)
		}
	}
}

func TestAShareIsTheSameWhateverTheOrderAndHardlyChangesWithAnInstance(t *testing.T) {
	t.Parallel()
	waves := []fleet.Wave{{Name: "some", Percent: 20}, {Name: "rest"}}
	picked := func(v *fleet.Inventory) []string {
		assigned, err := v.Assign(waves)
		if err != nil {
			t.Fatal(err)
		}
		all := names(assigned[0].Members)
		slices.Sort(all)
		return all
	}
	v := fleetOf(50)
	before := picked(v)
	slices.Reverse(v.Instances)
	if got := picked(v); !slices.Equal(got, before) {
		t.Errorf("turned around: %v, before %v", got, before)
	}
	v.Instances = append(v.Instances, fleet.Instance{Name: "new"})
	gone := 0
	for _, name := range before {
		if !slices.Contains(picked(v), name) {
			gone++
		}
	}
	if gone > 1 {
		t.Errorf("one instance more, and %d others left the wave", gone)
	}
}

func TestInstancesWithoutAWaveAreNamed(t *testing.T) {
	t.Parallel()
	_, err := fleetOf(16).Assign([]fleet.Wave{{Name: "canary", Match: selector(t, "tier=canary")}})
	if err == nil || !strings.Contains(err.Error(), "found none for i1, i2, i3, i5, i6, i7, i9, i10, i11, i13 and 2 more") {
		t.Errorf("got %v", err)
	}
}

func TestALimitAllowsAtLeastOne(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit fleet.Limit
		total int
		want  int
		text  string
	}{
		{fleet.Limit{}, 10, 1, "1"},
		{fleet.Limit{Count: 3}, 10, 3, "3"},
		{fleet.Limit{Percent: 10}, 5, 1, "10%"},
		{fleet.Limit{Percent: 10}, 29, 2, "10%"},
		{fleet.Limit{Percent: 100}, 29, 29, "100%"},
	} {
		if got := c.limit.Of(c.total); got != c.want || c.limit.String() != c.text {
			t.Errorf("%s of %d: %d, want %d", c.limit, c.total, got, c.want)
		}
	}
}

// TestEveryMemberIsInExactlyOneWave holds for any inventory and any waves: either
// all are assigned, each to the first wave that may take it, or those that are in
// none are an error.
func TestEveryMemberIsInExactlyOneWave(t *testing.T) {
	t.Parallel()
	texts := []string{"", "tier=canary", "tier!=canary", "cloud in (gcp,aws)", "!tier", "delivery=push", "name=i3", "channel", "tier=canary,cloud=aws"}
	rapid.Check(t, func(r *rapid.T) {
		v := &fleet.Inventory{}
		for n := range rapid.IntRange(0, 60).Draw(r, "instances") {
			i := fleet.Instance{
				Name:   fmt.Sprintf("i%d", n),
				Cloud:  rapid.SampledFrom([]string{"", "gcp", "aws", "host"}).Draw(r, "cloud"),
				Host:   rapid.SampledFrom([]string{"", "ssh://a@b/c"}).Draw(r, "host"),
				Pin:    rapid.SampledFrom([]string{"", "2026.04.3"}).Draw(r, "pin"),
				Labels: map[string]string{},
			}
			if tier := rapid.SampledFrom([]string{"", "canary", "gold"}).Draw(r, "tier"); tier != "" {
				i.Labels["tier"] = tier
			}
			v.Instances = append(v.Instances, i)
		}
		var waves []fleet.Wave
		for n := range rapid.IntRange(0, 6).Draw(r, "waves") {
			waves = append(waves, fleet.Wave{
				Name: fmt.Sprint(n), Match: selector(t, rapid.SampledFrom(texts).Draw(r, "match")),
				Percent: rapid.SampledFrom([]int{0, 0, 1, 10, 50, 99, 100}).Draw(r, "percent"),
			})
		}
		assigned, err := v.Assign(waves)
		seen := map[string]int{}
		for w, a := range assigned {
			for _, m := range a.Members {
				if !waves[w].Match.Matches(m.LabelSet()) {
					r.Fatalf("%s is in the wave %s, which does not match it", m.Name, waves[w].Match)
				}
				seen[m.Name]++
			}
		}
		if err != nil {
			if assigned != nil {
				r.Fatalf("both an answer and %v", err)
			}
			for _, w := range waves {
				if w.Match.Empty() && (w.Percent == 0 || w.Percent == 100) {
					r.Fatalf("a wave takes the rest, but: %v", err)
				}
			}
			return
		}
		if len(assigned) != len(waves) {
			r.Fatalf("%d waves became %d", len(waves), len(assigned))
		}
		for _, i := range v.Instances {
			if seen[i.Name] != 1 {
				r.Fatalf("%s is in %d waves", i.Name, seen[i.Name])
			}
		}
		again, err := v.Assign(waves)
		if err != nil {
			r.Fatal(err)
		}
		for w := range assigned {
			if !slices.Equal(names(assigned[w].Members), names(again[w].Members)) {
				r.Fatalf("wave %d differs the second time", w)
			}
		}
	})
}
