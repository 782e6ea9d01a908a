package dashboard

import (
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// column is one of the table.
type column struct {
	Key, Name string
	Num, Sort bool
}

// functions are what templates write with.
func functions() template.FuncMap {
	return template.FuncMap{
		"states": states, "glyph": glyph, "tone": tone, "plural": plural, "thousands": thousands,
		"ago": ago, "age": age, "day": day, "ms": milliseconds, "percent": percent,
		"bars": barsOfStates, "strips": barsOfTally, "tally": tallyOf, "waveTally": tallyOfWave, "running": running, "can": can, "notable": notable, "quiet": quietOf,
		"add":   func(a, b int) int { return a + b },
		"clean": func(v any) string { return cli.Sanitize(fmt.Sprint(v)) },
		"lines": func(err error) string { // several faults are several lines
			lines := strings.Split(err.Error(), "\n")
			for i, line := range lines {
				lines[i] = cli.Sanitize(line)
			}
			return strings.Join(lines, "\n")
		},
		"cause":    func(p *problem.Error) string { return fmt.Sprint(p.Err) },
		"host":     func(raw string) string { return strings.TrimSuffix(raw[strings.Index(raw, "//")+2:], "/") },
		"delivery": func(in fleet.Instance) string { return in.Delivery() },
		"dataAge":  func(s *int64) string { return age(time.Duration(*s) * time.Second) },
		"between":  func(a, b time.Time) string { return age(b.Sub(a)) },
		"duration": func(d time.Duration) string { return age(d) },
		"until": func(at time.Time) string {
			if left := time.Until(at); left > 0 {
				return "in " + age(left)
			}
			return "over"
		},
		"window": func(d time.Duration) string {
			if d <= 24*time.Hour {
				return fmt.Sprintf("%d h", int(d.Hours()))
			}
			return age(d)
		},
		"weblink":      weblink,
		"driftChoices": func() []string { return []string{"yes", "no", "unknown"} },
		"columns": func() []column {
			return []column{
				{"name", "Instance", false, true},
				{"state", "State", false, true},
				{"version", "Version", false, true},
				{"channel", "Channel", false, true},
				{"wanted", "Wanted", false, true},
				{"drift", "Drift", false, true},
				{"age", "Data", true, true},
				{"latency", "Latency", true, true},
				{"says", "Says", false, false},
				{"probed", "Asked", true, true},
			}
		},
		"short": func(text string, n int) string {
			if r := []rune(text); len(r) > n {
				return string(r[:n]) + "…"
			}
			return text
		},
	}
}

// weblink returns an address that may be a link, or nothing.
func weblink(raw string) string {
	if u, err := url.Parse(raw); err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" {
		return u.String()
	}
	return ""
}

// age says how long something is, in its largest unit or two.
func age(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		if m := int(d.Minutes()) % 60; m != 0 && d < 10*time.Hour {
			return fmt.Sprintf("%d h %02d", int(d.Hours()), m)
		}
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// ago is a moment as browsers count it on: <time>.
func ago(at time.Time) template.HTML {
	if at.IsZero() {
		return `<span class="none">never</span>`
	}
	stamp := at.UTC().Format(time.RFC3339)
	text := at.UTC().Format("2006-01-02 15:04")
	if since := time.Since(at); since < 20*time.Hour && since > -time.Minute {
		text = at.UTC().Format("15:04:05")
	}
	return template.HTML(`<time datetime="` + stamp + `" title="` + stamp + `" data-ago>` + text + `</time>`) //nolint:gosec // made of a time alone
}

func day(at time.Time) string { return at.UTC().Format("2006-01-02") }

// percent is a share as people read uptime: 99.98%.
func percent(part, whole time.Duration) string {
	if whole <= 0 {
		return "–"
	}
	p := 100 * float64(part) / float64(whole)
	switch {
	case part == whole:
		return "100%"
	case p >= 99.995:
		return "99.99%" // not rounded up to all
	}
	return fmt.Sprintf("%.2f%%", p)
}

// glyph tells a state apart without its color.
func glyph(state string) string {
	switch state {
	case string(fleet.Healthy):
		return "●"
	case string(fleet.Degraded):
		return "▲"
	case string(fleet.Unhealthy):
		return "✕"
	case string(fleet.Unreachable):
		return "◌"
	}
	return "?"
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return thousands(n) + " " + noun + "s"
}

// thousands writes 12,345.
func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func milliseconds(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return age(d)
}
