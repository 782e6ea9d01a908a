package deploy

import (
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func image(version string) Image {
	return Image{Repository: "r", Tag: "stable", Digest: "sha256:" + strings.Repeat("0", 52) + strings.ReplaceAll(version, ".", "-"), Version: version}
}

// A host on stable that runs 2026.11.4, at noon; 2026.11.5 is on offer since
// yesterday's noon, and nothing else is known of it.
func usual() facts {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	return facts{
		now: now, policy: UpdatePolicy{Tag: "stable", MinAge: 48 * time.Hour}, seed: "host",
		runs: image("2026.11.4"), wanted: image("2026.11.5"), seen: now.Add(-24 * time.Hour),
	}
}

func TestAnUpdateIsTakenWhen(t *testing.T) {
	t.Parallel()
	night, err := ParseWindow("23:00-04:00")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*facts)
		goes   bool
		reason string
	}{
		{"it is not confirmed and young: no", func(*facts) {}, false, "not confirmed yet; without that it waits until 2026-11-25T12:00:00Z"},
		{"it is confirmed", func(f *facts) { f.confirmed = true }, true, "is confirmed"},
		{"it is old enough", func(f *facts) { f.seen = f.now.Add(-48 * time.Hour) }, true, "has been out for 48h"},
		{"it runs: no", func(f *facts) { f.wanted = f.runs; f.confirmed = true }, false, "runs"},
		{"it is off: no", func(f *facts) { f.confirmed, f.policy.Off = true, true }, false, "off"},
		{"the window is shut: no", func(f *facts) { f.confirmed, f.policy.Window = true, night }, false, "window 23:00-04:00 is not open"},
		{"the window is open over midnight", func(f *facts) {
			f.confirmed, f.policy.Window = true, night
			f.now = time.Date(2026, 11, 25, 3, 59, 0, 0, time.UTC)
		}, true, "confirmed"},
		{"it is deprecated: no", func(f *facts) { f.confirmed, f.deprecated = true, true }, false, "is deprecated"},
		{"it failed here before: no, though confirmed", func(f *facts) {
			f.confirmed = true
			f.failed = &Record{Verdict: smoke.Fail, Reason: "smoke"}
		}, false, "failed here"},
		{"it could not be tried an hour ago: no", func(f *facts) {
			f.confirmed = true
			f.tried = &Record{Reason: "pull"}
		}, false, "could not be tried"},
		{"somebody left it by hand: no, though named", func(f *facts) {
			f.named = true
			f.left = &Record{}
		}, false, "left by hand"},
		{"the tag went back and what runs is good: no", func(f *facts) { f.confirmed, f.wanted = true, image("2026.11.3") }, false, "not deprecated"},
		{"the tag went back and what runs is deprecated", func(f *facts) { f.withdrawn, f.wanted = true, image("2026.11.3") }, true, "2026.11.4 (sha256:000000000000) is deprecated"},
		{"ten is more than nine", func(f *facts) { f.confirmed, f.runs, f.wanted = true, image("2026.11.9"), image("2026.11.10") }, true, "confirmed"},
		{"a version is named: back, too, and unconfirmed", func(f *facts) { f.named, f.wanted = true, image("2026.10.1") }, true, "by name"},
		{"dev takes what is newest", func(f *facts) { f.wanted.Tag = "dev" }, true, "channel dev"},
		{"what runs was built by hand", func(f *facts) { f.confirmed, f.runs = true, Image{ID: "sha256:1"} }, true, "confirmed"},
	} {
		f := usual()
		c.change(&f)
		if d := decide(f); d.Go != c.goes || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %v, %q; want %v, …%s…", c.name, d.Go, d.Reason, c.goes, c.reason)
		}
	}
}

func TestWhatAHostsHistoryHasAgainstAVersion(t *testing.T) {
	t.Parallel()
	f := usual()
	wanted, other := f.wanted, image("2026.11.3")
	pass, fail := Record{To: wanted, Verdict: smoke.Pass}, Record{To: wanted, Verdict: smoke.Fail}
	reverted := Record{To: wanted, Verdict: smoke.Inconclusive, Reverted: true, Ended: f.now.Add(-time.Hour)}
	back := Record{From: wanted, To: other, Verdict: smoke.Pass, Back: true}
	asked, early := f, f
	asked.asked, early.asked = f.now.Add(-time.Minute), f.now.Add(-2*time.Hour)
	ahead := f
	ahead.asked = f.now.Add(time.Hour)
	left := Record{To: wanted, Verdict: smoke.Inconclusive, Reverted: true, Left: true, Ended: f.now.Add(-24 * time.Hour)}
	later := reverted
	later.Ended = f.now.Add(time.Hour)
	old := reverted
	old.Ended = f.now.Add(-24 * time.Hour)
	for name, c := range map[string]struct {
		facts   facts
		records []Record
		want    string
	}{
		"nothing":                                       {f, nil, ""},
		"others do not count":                           {f, []Record{{To: other, Verdict: smoke.Fail}}, ""},
		"it failed":                                     {f, []Record{pass, fail}, "failed"},
		"it failed, and was inconclusive later":         {f, []Record{fail, old}, "failed"},
		"it failed and passed later":                    {f, []Record{fail, pass}, ""},
		"it cost a way back an hour ago":                {f, []Record{reverted}, "tried"},
		"it cost a way back, and was asked for before":  {early, []Record{reverted}, "tried"},
		"it cost a way back, and was asked for since":   {asked, []Record{reverted}, ""},
		"it cost a way back, and will be asked for":     {ahead, []Record{reverted}, "tried"}, // a clock is wrong
		"it failed, and was asked for since":            {asked, []Record{fail}, "failed"},
		"it cost a way back yesterday":                  {f, []Record{old}, ""},
		"somebody went back from it":                    {f, []Record{pass, back}, "left"},
		"somebody went back before it ended":            {f, []Record{left}, "left"},
		"it cost a way back, by a clock that was wrong": {f, []Record{later}, ""},
		"somebody went back, and forward by hand":       {f, []Record{pass, back, pass}, ""},
	} {
		g := c.facts
		g.against(c.records)
		got := ""
		switch {
		case g.failed != nil:
			got = "failed"
		case g.left != nil:
			got = "left"
		case g.tried != nil:
			got = "tried"
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestAnOldStateIsRestoredOnlyWhereAPersonAskedForIt(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	at := func(id string, schema int, ago time.Duration) api.Backup {
		return api.Backup{ID: id, SchemaVersion: schema, CreatedAt: now.Add(-ago)}
	}
	fresh := []api.Backup{at("now", 6, time.Second), at("deploy", 5, time.Hour), at("night", 5, 20*time.Hour)}
	stale := []api.Backup{at("now", 6, time.Second), at("night", 6, 20*time.Hour), at("deploy", 5, 20*24*time.Hour)}
	for name, c := range map[string]struct {
		backups []api.Backup
		unasked bool
		want    string
	}{
		"asked for":                          {stale, false, "deploy"},
		"by itself, soon after":              {fresh, true, "deploy"},
		"by itself, twenty days after":       {stale, true, ""},
		"asked for, and there is none older": {fresh[:1], false, ""},
	} {
		tx := transaction{opt: Options{Unasked: c.unasked, Now: func() time.Time { return now }}}
		tx.j.Schema, tx.j.To = 6, Image{Version: "2026.11.3", Tag: "stable", Schema: 5}
		got, err := tx.older(c.backups)
		if got != c.want || (c.want == "") != problem.Is(err, problem.Refused) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestAWindowIsAsLongAsTheTimersTick(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{"02:00-02:15": true, "23:55-00:10": true, "02:00-02:10": false, "23:55-00:05": false, "02:00-02:00": true} {
		if _, err := ParseWindow(text); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestNoTagOrDigestBeginsAnotherSetting(t *testing.T) {
	t.Parallel()
	good := "sha256:" + strings.Repeat("a", 64)
	for _, o := range []Options{{Tag: "stable\nAGNES_VERIFY=off"}, {Tag: "a b"}, {Tag: "-x"}, {Tag: "stable", Digest: "sha256:ab"}, {Digest: good + "\n"}} {
		if err := o.check(); err == nil {
			t.Errorf("%q %q passes", o.Tag, o.Digest)
		}
	}
	if err := (Options{Tag: "stable-2026.04.3", Digest: good}).check(); err != nil {
		t.Error(err)
	}
	var i Image
	i.label(map[string]string{"org.opencontainers.image.version": "1\nAGNES_VERIFY=off", "io.agnes.channel": "x\ny"})
	if i.Version != "" || i.Channel != "" {
		t.Errorf("an image's label came through: %+v", i)
	}
}

func TestHostsSpreadOverTheJitterAndEachKeepsItsPlace(t *testing.T) {
	t.Parallel()
	f := usual()
	f.confirmed, f.policy.Jitter, f.seen = true, time.Hour, f.now
	tenths := map[int]int{}
	for i := range 1000 {
		f.seed = time.Duration(i).String()
		at := time.Duration(0)
		for ; at <= time.Hour; at += time.Minute {
			f.now = f.seen.Add(at)
			if decide(f).Go {
				break
			}
		}
		if at > time.Hour {
			t.Fatalf("host %d has no turn within the hour", i)
		}
		for later := at; later < 2*time.Hour; later += 7 * time.Minute {
			f.now = f.seen.Add(later)
			if !decide(f).Go {
				t.Fatalf("host %d had its turn at %s and lost it at %s", i, at, later)
			}
		}
		tenths[int(at/(6*time.Minute))]++
	}
	for tenth := range 10 {
		if n := tenths[tenth]; n < 50 || n > 170 {
			t.Errorf("%d of 1000 hosts have their turn in tenth %d of the hour; expected about 100: %v", n, tenth, tenths)
		}
	}
}

func TestAPolicyWithAMistakeNamesTheLine(t *testing.T) {
	t.Parallel()
	none := func(string) ([]byte, error) { return []byte("tok\n"), nil }
	for line, want := range map[string]string{
		"AGNES_UPDATE=maybe":                           "AGNES_UPDATE in .env",
		"AGNES_UPDATE_MIN_AGE=two days":                "AGNES_UPDATE_MIN_AGE",
		"AGNES_UPDATE_JITTER=-1m":                      "AGNES_UPDATE_JITTER",
		"AGNES_UPDATE_WINDOW=2-5":                      `"2-5"`,
		"AGNES_UPDATE_WINDOW=02:00-05:00 Nowhere/Land": "Nowhere/Land",
		"AGNES_VERIFY=maybe":                           "AGNES_VERIFY",
		"AGNES_VERIFY=key":                             "AGNES_VERIFY_KEY",
	} {
		if _, err := parseUpdatePolicy([]byte(line+"\n"), none); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want it to name %s", line, err, want)
		}
	}
	p, err := parseUpdatePolicy([]byte("AGNES_UPDATE_WINDOW=02:00-05:00 Europe/Prague\nAGNES_UPDATE_TOKEN_FILE=/x\n"), none)
	if err != nil {
		t.Fatal(err)
	}
	if p.Tag != "stable" || p.Image != StandardImage || p.MinAge != 24*time.Hour || p.Jitter != 10*time.Minute || p.Token.Reveal() != "tok" {
		t.Errorf("the standard policy is %+v", p)
	}
	// Prague is an hour ahead of UTC in winter, two in summer.
	for at, open := range map[string]bool{
		"2026-11-24T00:59:00Z": false, "2026-11-24T01:00:00Z": true, "2026-11-24T03:59:00Z": true, "2026-11-24T04:00:00Z": false,
		"2026-07-01T00:00:00Z": true, "2026-07-01T03:00:00Z": false,
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Window.Contains(when); got != open {
			t.Errorf("at %s the window is open: %v, want %v", at, got, open)
		}
	}
}
