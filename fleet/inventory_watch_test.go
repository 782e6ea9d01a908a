package fleet_test

import (
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

const watching = `watch: {judge: 3/5, degraded_after: 1h, group_wait: 10s}
defaults: {max_data_age: 30h}
maintenance:
  - {match: {cloud: gcp}, from: 2026-05-01T20:00:00Z, to: 2026-05-02T02:00:00+02:00, reason: a move}
  - {weekly: "Sun 02:00-04:00 Europe/Prague", match: tier=canary}
alerts:
  - {type: slack, url: "${env:SLACK}", match: {tier: canary}, kinds: [unreachable]}
  - {name: hook, type: webhook, url: https://example.com/hook?x=1, secret: "${env:HOOK}"}
  - {name: mail, type: email, server: "mx.example.com:587", user: u, password: "${env:MAIL}", from: a@example.com, to: [b@example.com]}
  - {type: telegram, token: "${env:BOT}", chat: "-100123"}
  - {type: github, repo: acme/fleet, token: "${env:GH}", labels: [incident]}
instances:
  - {name: a, url: https://a.com, labels: {tier: canary}, cloud: gcp}
  - {name: b, url: https://b.com, max_data_age: 2h}
`

func TestTheSectionsAboutWatchingAreRead(t *testing.T) {
	t.Parallel()
	v, err := fleet.Load(write(t, map[string]string{"fleet.yaml": watching}), fleet.LoadOptions{Getenv: func(name string) string { return "value-of-" + name }})
	if err != nil {
		t.Fatal(err)
	}
	if w := v.Watch; w.Down != 3 || w.Of != 5 || w.DegradedAfter != time.Hour || w.GroupWait != 10*time.Second || w.DriftAfter != 24*time.Hour || w.CertBefore != 14*24*time.Hour {
		t.Errorf("watch is %+v", w)
	}
	if v.Instances[0].MaxDataAge != 30*time.Hour || v.Instances[1].MaxDataAge != 2*time.Hour {
		t.Errorf("ages are %s and %s", v.Instances[0].MaxDataAge, v.Instances[1].MaxDataAge)
	}
	for i, want := range []string{"value-of-SLACK", "https://example.com/hook?x=1"} {
		if got, err := v.Alerts[i].URL.Read(); err != nil || got.Reveal() != want {
			t.Errorf("address %d is %q: %v", i, got.Reveal(), err)
		}
	}
	for i, want := range []string{"", "value-of-HOOK", "value-of-MAIL", "value-of-BOT", "value-of-GH"} {
		if got, err := v.Alerts[i].Secret.Read(); err != nil || got.Reveal() != want {
			t.Errorf("secret %d is %q: %v", i, got.Reveal(), err)
		}
	}
	slack := v.Alerts[0]
	canary, other := v.Instances[0].LabelSet(), v.Instances[1].LabelSet()
	for _, c := range []struct {
		kind   fleet.Kind
		labels map[string]string
		want   bool
	}{
		{fleet.KindUnreachable, canary, true},
		{fleet.KindUnreachable, other, false},
		{fleet.KindDrift, canary, false},
		{fleet.KindMonitor, nil, false},
	} {
		if got := slack.Wants(c.kind, c.labels); got != c.want {
			t.Errorf("slack wants %s of %v: %v", c.kind, c.labels, got)
		}
	}
	if v.Alerts[1].Name != "hook" || !v.Alerts[1].Wants(fleet.KindMonitor, nil) {
		t.Error("the hook hears not of the monitor")
	}
	move, weekly := v.Maintenance[0], v.Maintenance[1]
	at := func(text string) time.Time {
		parsed, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	for _, c := range []struct {
		m    fleet.Maintenance
		at   string
		want bool
	}{
		{move, "2026-05-01T19:59:59Z", false},
		{move, "2026-05-01T20:00:00Z", true},
		{move, "2026-05-01T23:59:59Z", true},
		{move, "2026-05-02T00:00:00Z", false},
		{weekly, "2026-05-03T00:00:00Z", true},  // a Sunday, 02:00 in Prague
		{weekly, "2026-05-03T02:00:00Z", false}, // 04:00
		{weekly, "2026-05-04T00:00:00Z", false}, // a Monday
		{weekly, "2026-01-04T01:00:00Z", true},  // in winter
		{weekly, "2026-01-04T00:30:00Z", false},
	} {
		if got := c.m.Covers(canary, at(c.at)); got != c.want {
			t.Errorf("%s%s covers %s: %v", c.m.From, c.m.Weekly, c.at, got)
		}
		if c.m.Covers(other, at(c.at)) {
			t.Errorf("%s covers another instance", c.m.Reason)
		}
	}
}

func TestAWeeklySpanKnowsItsDays(t *testing.T) {
	t.Parallel()
	sunday := time.Date(2026, 5, 3, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{ // by hour: days on which it is open at 01:00, 12:00 and 23:00
		"daily 23:00-02:00":       "0123456 - 0123456",
		"Sat,Sun 00:00-24:00":     "06 06 06",
		"Fri-Mon 12:00-13:00":     "- 0156 -",
		"Mon-Fri 22:00-02:00 UTC": "23456 - 12345",
	} {
		w, err := fleet.ParseWeekly(text)
		if err != nil {
			t.Error(err)
			continue
		}
		got := ""
		for i, hour := range []int{1, 12, 23} {
			if i > 0 {
				got += " "
			}
			days := ""
			for day := range 7 {
				if w.Contains(sunday.AddDate(0, 0, day).Add(time.Duration(hour) * time.Hour)) {
					days += string(rune('0' + day))
				}
			}
			if days == "" {
				days = "-"
			}
			got += days
		}
		if got != want {
			t.Errorf("%s is open on %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "Sun", "Sun 4:00-5:00", "Sun 02:00-02:00", "Mon-Wed-Fri 02:00-03:00", "Sun 24:00-01:00", "Sun 02:00-04:00 Nowhere/Else"} {
		if w, err := fleet.ParseWeekly(text); err == nil {
			t.Errorf("%q was read as %s", text, w)
		}
	}
}
