package release_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

func ver(t testing.TB, s string) release.Version {
	t.Helper()
	v, err := release.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAVersionHasOneSpelling(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"2026.04.1", "2026.12.10", "0001.01.1", "9999.10.999999999999999999"} {
		if v := ver(t, s); v.String() != s {
			t.Errorf("%s is printed as %s", s, v)
		}
	}
	for _, s := range []string{
		"", "2026", "2026.04", "2026.4.1", "2026.04.0", "2026.04.01", "2026.04.-1", "2026.04.+1", "2026.00.1", "2026.13.1", "26.04.1",
		"v2026.04.1", "2026.04.1 ", " 2026.04.1", "2026.04.1\n", "2026.04.1-rc1", "2026.04.1.2", "2026.04.٣", "2026-04-1",
		"12026.04.1", "2026.04.1000000000000000000", "2026.04.9223372036854775808",
	} {
		v, err := release.ParseVersion(s)
		if !problem.Is(err, problem.Usage) || !v.IsZero() {
			t.Errorf("%q gives %v, %v; want a usage error", s, v, err)
		}
	}
}

func TestVersionsCompareByTimeOfClaim(t *testing.T) {
	t.Parallel()
	want := []string{"2025.12.900", "2026.01.1", "2026.04.2", "2026.04.10", "2026.04.100", "2026.05.1", "2026.10.1"}
	var got []release.Version
	for _, i := range []int{3, 0, 6, 2, 5, 1, 4} {
		got = append(got, ver(t, want[i]))
	}
	slices.SortFunc(got, release.Version.Compare)
	for i, v := range got {
		if v.String() != want[i] {
			t.Errorf("place %d holds %s, want %s", i, v, want[i])
		}
	}
}

func TestTheMonthIsThatOfUTC(t *testing.T) {
	t.Parallel()
	// Still April in New York, already May in UTC.
	at := time.Date(2026, 4, 30, 21, 0, 0, 0, time.FixedZone("EDT", -4*3600))
	month := release.MonthOf(at)
	if month.Prefix() != "2026.05." || month.N != 0 {
		t.Errorf("MonthOf gives %s%d, want 2026.05.0", month.Prefix(), month.N)
	}
	if got := ver(t, "2026.12.7").MonthEnd(); !got.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("December ends at %v", got)
	}
}

func TestAVersionInJSON(t *testing.T) {
	t.Parallel()
	type holder struct {
		V    release.Version         `json:"v"`
		None release.Version         `json:"none"`
		Map  map[release.Version]int `json:"map"`
	}
	in := holder{V: ver(t, "2026.04.3"), Map: map[release.Version]int{ver(t, "2026.04.10"): 1}}
	out, err := json.Marshal(in)
	if want := `{"v":"2026.04.3","none":"","map":{"2026.04.10":1}}`; err != nil || string(out) != want {
		t.Fatalf("got %s, %v; want %s", out, err, want)
	}
	var back holder
	if err := json.Unmarshal(out, &back); err != nil || back.V != in.V || !back.None.IsZero() || back.Map[ver(t, "2026.04.10")] != 1 {
		t.Errorf("back: %+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"v":"2026.4.3"}`), &back); err == nil {
		t.Error("a wrong spelling was taken")
	}
}

func FuzzVersion(f *testing.F) {
	for _, s := range []string{"2026.04.3", "2026.12.10", "2026.4.1", "2026.04.01", "", "9999.10.999999999999999999"} {
		f.Add(s, "2026.04.9")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		v, err := release.ParseVersion(a)
		if err != nil {
			if !v.IsZero() {
				t.Errorf("%q failed and gave %v", a, v)
			}
			return
		}
		if v.String() != a {
			t.Errorf("%q is printed as %q", a, v)
		}
		if !strings.HasPrefix(a, v.Prefix()) || v.IsZero() || v.N < 1 {
			t.Errorf("%q is taken apart to %+v", a, v)
		}
		w, err := release.ParseVersion(b)
		if err != nil {
			return
		}
		if c := v.Compare(w); c != -w.Compare(v) || (c == 0) != (a == b) {
			t.Errorf("%s against %s: %d and %d", a, b, c, w.Compare(v))
		}
		// A longer number of the same month is greater, whatever a comparison of texts says.
		if v.Prefix() == w.Prefix() && len(a) > len(b) && v.Compare(w) != 1 {
			t.Errorf("%s is not greater than %s", a, b)
		}
	})
}
