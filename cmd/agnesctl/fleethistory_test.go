package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

func TestAHistoryIsToldAsATableAndAsJSON(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	at := func(before time.Duration) time.Time { return now.Add(-before) }
	if err := s.Remember(t.Context(), store.Batch{
		Changes: []store.Change{
			{At: at(10 * time.Hour), Name: "acme", What: store.ChangeHealth, To: "healthy"},
			{At: at(4 * time.Hour), Name: "acme", What: store.ChangeHealth, From: "healthy", To: "unreachable", Reason: "It is \x1b[31msilent."},
			{At: at(3 * time.Hour), Name: "acme", What: store.ChangeHealth, From: "unreachable", To: "healthy"},
		},
		Opened:      []store.Opening{{Incident: store.Incident{ID: "acme-1", Name: "acme", Kind: "unreachable", Opened: at(4 * time.Hour), Summary: "It is silent.", Silenced: "a rollout"}}},
		Closed:      []store.Closing{{ID: "acme-1", At: at(3 * time.Hour), Ending: "It is back."}},
		Latency:     []store.NamedLatency{{Name: "acme", LatencyHour: store.LatencyHour{Hour: at(2 * time.Hour).Truncate(time.Hour), Count: 120, P50: 20 * time.Millisecond, P95: 90 * time.Millisecond, Max: time.Second}}},
		WatchedFrom: at(10 * time.Hour), WatchedUntil: now,
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) (int, string, string) {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"fleet", "history", "--state", dir}, args...), func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, table, errs := ask("acme")
	for _, want := range []string{"24h     90.000 %  41.7 %", "unreachable  " + at(3*time.Hour).Format(time.DateTime) + " (nobody was told: a rollout)", "unknown      healthy", "half of 120 probes within 20 ms, 95% within 90 ms, all within 1000 ms"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if code != 0 || strings.Contains(table, "\x1b") {
		t.Errorf("exit %d: %s%s", code, table, errs)
	}
	code, text, errs := ask("acme", "-o", "json")
	var h fleetHistory
	if err := json.Unmarshal([]byte(text), &h); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, text, errs)
	}
	if len(h.Changes) != 3 || len(h.Incidents) != 1 || len(h.Latency) != 1 || h.Latency[0].P95MS != 90 || h.Uptime[0].Percent == nil || h.Uptime[0].UpS < 9*3600-5 {
		t.Errorf("found %+v", h)
	}
	if code, text, _ := ask("--since", "3h30m"); code != 0 || strings.Contains(text, "UPTIME") || strings.Count(text, "health ") != 1 {
		t.Errorf("exit %d: %s", code, text)
	}
	for since, want := range map[string]int{"3h30m": 1, "10m": 0} { // it was closed three hours ago
		code, text, errs := ask("acme", "--since", since)
		if code != 0 || strings.Count(text, "It is silent.") != want || !strings.Contains(text, "90.000 %") {
			t.Errorf("%s: exit %d: %s%s", since, code, text, errs)
		}
	}
	if code, _, errs := ask("nobody"); code != 1 || !strings.Contains(errs, "Nothing is remembered of an instance nobody.") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
