package fleet_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestDriftIsWantedAgainstActual(t *testing.T) {
	t.Parallel()
	const digest, other = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	runs := fleet.Result{Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable", Commit: "abc1234def5678", Digest: digest}
	change := func(f func(*fleet.Result)) fleet.Result { r := runs; f(&r); return r }
	blind := change(func(r *fleet.Result) { r.Digest = "" })
	old := change(func(r *fleet.Result) { r.Deprecated, r.Latest = true, "2026.04.5" })
	dev := change(func(r *fleet.Result) { r.Channel = "dev" })
	gone := fleet.Result{Health: fleet.Unreachable, Err: problem.New(problem.Unavailable, "no", "")}
	for _, tt := range []struct {
		pin, channel string
		r            fleet.Result
		want         string // yes, no or unknown
		says         string
	}{
		{"", "stable", runs, "no", ""},
		{"", "stable", dev, "yes", "runs channel dev, wanted stable"},
		{"", "stable", old, "yes", "runs 2026.04.3, which is deprecated; stable has 2026.04.5"},
		{"", "", runs, "unknown", "neither a pin nor a channel"},
		{"", "stable", gone, "unknown", "did not say what it runs (unreachable)"},
		{"stable-2026.04.3", "stable", runs, "no", ""},
		{"2026.04.3", "", runs, "no", ""},
		{"confirmed-2026.04.3", "", runs, "no", ""},
		{"ghcr.io:443/keboola/agnes:stable-2026.04.3", "", runs, "no", ""},
		{"stable-2026.04.3", "", old, "no", ""}, // it was pinned there
		{"stable-2026.04.2", "stable", runs, "yes", "runs 2026.04.3, pinned to 2026.04.2"},
		{"stable-2026.04.3", "", dev, "yes", "runs channel dev"},
		{"stable-2026.04.30", "", runs, "yes", "pinned to 2026.04.30"},
		{"stable-2026.04.2", "", gone, "unknown", "unreachable"},
		{digest, "", runs, "no", ""},
		{other, "", runs, "yes", "pinned to " + other},
		{digest, "", blind, "unknown", "give a token"},
		{"stable-2026.04.3@" + digest, "", blind, "no", ""},
		{"stable-2026.04.2@" + digest, "", blind, "yes", "pinned to 2026.04.2"},
		{"stable-2026.04.3@" + other, "", runs, "yes", "pinned to " + other},
		{"sha-abc1234", "", runs, "no", ""},
		{"dev-sha-abc1235", "", runs, "yes", "pinned to the commit abc1235"},
		{"latest", "", runs, "unknown", `the pin "latest"`},
	} {
		d := fleet.Drifted(fleet.Instance{Pin: tt.pin, Channel: tt.channel}, tt.r)
		got := "unknown"
		if d.Known {
			got = map[bool]string{true: "yes", false: "no"}[d.Drifted]
		}
		if got != tt.want || !strings.Contains(d.Reason, tt.says) || (tt.says == "") != (d.Reason == "") {
			t.Errorf("pin %q channel %q: %s because %q, want %s because %q", tt.pin, tt.channel, got, d.Reason, tt.want, tt.says)
		}
	}
}

func TestDriftIsMoreThanTheVersion(t *testing.T) {
	t.Parallel()
	const digest, other = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	runs := fleet.Result{
		Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable", Digest: digest, Details: true, BundleVersion: "2026.04.3", ConfigHash: "5f1d7a84db00d2fc",
	}
	change := func(f func(*fleet.Result)) fleet.Result { r := runs; f(&r); return r }
	gone := fleet.Result{Health: fleet.Unreachable, Err: problem.New(problem.Unavailable, "no", "")}
	pinned := fleet.Instance{Name: "acme", Pin: "stable-2026.04.3"}
	follows := fleet.Instance{Name: "acme", Channel: "stable"}
	settled := fleet.Instance{Name: "acme", Channel: "stable", ConfigHash: "5f1d7a84db00d2fc"}
	tag := func(name, digest, version string) fleet.Facts {
		return fleet.Facts{Tags: map[string]fleet.Tagged{name: {Digest: digest, Version: version}}}
	}
	host := func(h fleet.HostFacts) fleet.Facts { return fleet.Facts{Hosts: map[string]fleet.HostFacts{"acme": h}} }
	for name, tt := range map[string]struct {
		in    fleet.Instance
		r     fleet.Result
		facts fleet.Facts
		want  string // kinds; "-" for none, "?" for unknown
		says  string
	}{
		"all as wanted":                    {settled, runs, tag("stable", digest, "2026.04.3"), "-", ""},
		"the pin's tag is another image":   {pinned, runs, tag("stable-2026.04.3", other, "2026.04.3"), "digest", "stable-2026.04.3 is " + other},
		"without a token no digest":        {pinned, change(func(r *fleet.Result) { r.Digest = "" }), tag("stable-2026.04.3", other, "2026.04.3"), "-", ""},
		"the channel has moved on":         {follows, runs, tag("stable", other, "2026.04.4"), "behind", "runs 2026.04.3, stable is at 2026.04.4"},
		"the registry has trouble":         {follows, runs, fleet.Facts{Tags: map[string]fleet.Tagged{"stable": {Trouble: "it is away"}}}, "-", ""},
		"a digest without a version":       {follows, change(func(r *fleet.Result) { r.Digest = "" }), tag("stable", other, ""), "?", "give a token"},
		"deprecated and moved on":          {follows, change(func(r *fleet.Result) { r.Deprecated = true }), tag("stable", other, "2026.04.4"), "deprecated", "stable has 2026.04.4"},
		"other settings":                   {settled, change(func(r *fleet.Result) { r.ConfigHash = "0000000000000000" }), fleet.Facts{}, "config", "its settings are 0000000000000000, pinned to 5f1d7a84db00d2fc"},
		"settings that cannot be seen":     {settled, change(func(r *fleet.Result) { r.ConfigHash = "" }), fleet.Facts{}, "?", "give a token"},
		"files of another version":         {follows, change(func(r *fleet.Result) { r.BundleVersion = "2026.04.2" }), fleet.Facts{}, "bundle", "compose files of 2026.04.2"},
		"no deploy has set it up":          {follows, change(func(r *fleet.Result) { r.BundleVersion = "" }), fleet.Facts{}, "-", ""},
		"a foreign updater":                {follows, runs, host(fleet.HostFacts{Foreign: []string{"tower (containrrr/watchtower)"}}), "updater", "tower (containrrr/watchtower)"},
		"a foreign updater, and it is off": {follows, gone, host(fleet.HostFacts{Foreign: []string{"tower"}}), "updater", "tower"},
		".env names another image":         {follows, runs, host(fleet.HostFacts{Running: digest, Pinned: other}), "host", ".env names " + other},
		"a host that cannot be looked at":  {follows, runs, host(fleet.HostFacts{Trouble: "no route"}), "?", "no route"},
		"nobody looked at the host":        {follows, runs, fleet.Facts{Hosts: map[string]fleet.HostFacts{"bolt": {Foreign: []string{"tower"}}}}, "-", ""},
		"all at once": {
			settled, change(func(r *fleet.Result) {
				r.Channel, r.ConfigHash, r.BundleVersion = "dev", "0000000000000000", "2026.04.1"
			}),
			host(fleet.HostFacts{Foreign: []string{"tower"}}), "channel config bundle updater", "; its host has",
		},
	} {
		d := tt.facts.Drift(tt.in, tt.r)
		var kinds []string
		for _, one := range d.Reasons {
			kinds = append(kinds, string(one.Kind))
		}
		got := strings.Join(kinds, " ")
		switch {
		case !d.Known:
			got = "?"
		case !d.Drifted:
			got = "-"
		}
		if got != tt.want || !strings.Contains(d.Reason, tt.says) || (tt.says == "") != (d.Reason == "") {
			t.Errorf("%s: %s because %q, want %s because %q", name, got, d.Reason, tt.want, tt.says)
		}
	}
}

func TestStatusHasTheShapeThatOthersParse(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)
	instances := []fleet.Instance{
		{Name: "acme", URL: "https://acme.example.com", Channel: "stable"},
		{Name: "bolt", URL: "https://bolt.example.com", Pin: "stable-2026.04.2"},
		{Name: "core", URL: "https://core.example.com", Channel: "stable"},
		{Name: "dune", URL: "https://dune.example.com", Channel: "stable"},
		{Name: "echo", URL: "https://echo.example.com", Channel: "stable"},
	}
	status := fleet.NewStatus(at, instances, []fleet.Result{
		{
			Name: "acme", At: at, Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable", Timing: fleet.Timing{Total: 1200 * time.Microsecond},
			Details: true, Digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", BundleVersion: "2026.04.3", ConfigHash: "5f1d", LastSync: at.Add(-90 * time.Second),
			CertNotAfter: at.AddDate(0, 1, 0), SchemaVersion: 7, Commit: "abc1234", Phase: "serving",
		},
		{Name: "bolt", At: at, Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable", Warnings: []string{"The disk has 4% left."}, Notes: []string{"The certificate ends."}},
		{Name: "core", At: at, Health: fleet.Unreachable, Fault: fleet.FaultConnect, Err: problem.New(problem.Unavailable, "Nothing listens.", "Start it.")},
		{Name: "dune", At: at, Health: fleet.Degraded, Version: "2026.04.1", Channel: "dev", Deprecated: true},
	})
	j, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/status.json.golden", append(j, '\n'))
	var names []string
	for _, i := range status.Instances {
		names = append(names, i.Name)
	}
	if got := strings.Join(names, " "); got != "core echo dune bolt acme" {
		t.Errorf("the worst does not come first: %s", got)
	}
	var shape struct {
		Instances []map[string]any `json:"instances"`
	}
	if err := json.Unmarshal(j, &shape); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields("name url status version channel wanted drift drift_reasons digest bundle_version config_hash data_age_s latency_ms warnings error") {
		for _, one := range shape.Instances {
			if _, ok := one[key]; !ok {
				t.Errorf("%v lacks %s", one["name"], key)
			}
		}
	}
}
