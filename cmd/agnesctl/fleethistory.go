package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// fleetHistory is the answer of `agnesctl fleet history`.
type fleetHistory struct {
	Name      string           `json:"name"` // empty: of the whole fleet
	Uptime    []historyUptime  `json:"uptime"`
	Incidents []store.Incident `json:"incidents"` // the newest first
	Changes   []store.Change   `json:"changes"`   // the newest first
	Latency   []historyLatency `json:"latency"`   // oldest first
}

type historyUptime struct {
	Window  string   `json:"window"`
	KnownS  int64    `json:"known_s"` // how much of it somebody watched
	UpS     int64    `json:"up_s"`    // of that: healthy or degraded
	Percent *float64 `json:"percent"` // null: nothing is known
}

type historyLatency struct {
	Hour  time.Time `json:"hour"`
	Count int       `json:"count"`
	P50MS float64   `json:"p50_ms"`
	P95MS float64   `json:"p95_ms"`
	MaxMS float64   `json:"max_ms"`
}

// uptimeWindow is a span of time before now.
type uptimeWindow struct {
	name string
	long time.Duration
}

func uptimeWindows() []uptimeWindow {
	return []uptimeWindow{{"24h", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}, {"30d", 30 * 24 * time.Hour}}
}

func newFleetHistory(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	format := cli.Table
	var since time.Duration
	var limit int
	c := &cobra.Command{
		Use:   "history [NAME]",
		Short: "Tell how an instance was: uptime, incidents, changes, latency",
		Long: `history tells what the monitor (agnesctl fleet serve) remembers of an instance, or
the incidents and changes of the whole fleet. No instance is asked.

Uptime counts what was watched: the time in which no monitor ran, or it had no
network, is not known.`,
		Example: `  agnesctl fleet history acme
  agnesctl fleet history --since 48h
  agnesctl fleet history acme --state /var/lib/agnes-fleet -o json`,
		Args: cobra.MaximumNArgs(1),
	}
	f.add(c)
	state := stateFlag(c, f)
	c.Flags().DurationVar(&since, "since", 30*24*time.Hour, "incidents, changes and latencies of so long before now")
	c.Flags().IntVar(&limit, "limit", 50, "most changes, and most incidents")
	cli.OutputFlag(c, &format)
	c.RunE = func(c *cobra.Command, args []string) error {
		if since <= 0 || limit <= 0 {
			return cli.UsageError("--since and --limit must be more than 0.")
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		s, err := openHistory(c.Context(), state())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		h, err := readHistory(c.Context(), s, name, time.Now(), since, limit)
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, h, func(g *cli.Grid) { historyTable(g, h) })
	}
	return c
}

// openHistory opens what a monitor has left; to look must not make a database.
func openHistory(ctx context.Context, dir string) (*store.Store, error) {
	path := filepath.Join(dir, store.File)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "Expected what a monitor remembers at "+path+", found nothing.", "Start one: agnesctl fleet serve. Or name its folder: --state DIR")
	}
	return store.Open(ctx, dir)
}

func readHistory(ctx context.Context, s *store.Store, name string, now time.Time, since time.Duration, limit int) (h fleetHistory, err error) {
	h = fleetHistory{Name: name, Uptime: []historyUptime{}, Latency: []historyLatency{}}
	if h.Changes, err = s.Changes(ctx, name, now.Add(-since), limit); err != nil {
		return h, err
	}
	if h.Incidents, err = s.Incidents(ctx, store.IncidentQuery{Name: name, Since: now.Add(-since), Limit: limit}); err != nil || name == "" {
		return h, err
	}
	windows := uptimeWindows()
	spans := make([]time.Duration, len(windows))
	for i, w := range windows {
		spans[i] = w.long
	}
	uptime, err := s.Uptime(ctx, name, now, spans...)
	if err != nil {
		return h, err
	}
	for i, u := range uptime {
		line := historyUptime{Window: windows[i].name, KnownS: int64(u.Known / time.Second), UpS: int64(u.Up / time.Second)}
		if u.Known > 0 {
			percent := 100 * float64(u.Up) / float64(u.Known)
			line.Percent = &percent
		}
		h.Uptime = append(h.Uptime, line)
	}
	hours, err := s.Latency(ctx, name, now.Add(-since))
	for _, l := range hours {
		h.Latency = append(h.Latency, historyLatency{l.Hour, l.Count, milliseconds(l.P50), milliseconds(l.P95), milliseconds(l.Max)})
	}
	watched := slices.ContainsFunc(uptime, func(u store.Uptime) bool { return u.Known > 0 })
	if err == nil && !watched && len(h.Changes)+len(h.Incidents)+len(h.Latency) == 0 {
		err = problem.New(problem.NotFound, "Nothing is remembered of an instance "+name+".", "agnesctl fleet list names all of them.")
	}
	return h, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func historyTable(g *cli.Grid, h fleetHistory) {
	const clock = "2006-01-02 15:04:05"
	if h.Name != "" {
		windows := uptimeWindows()
		g.Row("UPTIME", "UP", "WATCHED")
		for i, u := range h.Uptime {
			up := "unknown"
			if u.Percent != nil {
				up = fmt.Sprintf("%.3f %%", *u.Percent)
			}
			g.Row(u.Window, up, fmt.Sprintf("%.1f %%", 100*float64(u.KnownS)/windows[i].long.Seconds()))
		}
		g.Line("")
	}
	g.Row("INCIDENT", "INSTANCE", "KIND", "UNTIL", "SAYS")
	for _, i := range h.Incidents {
		until := "open"
		if !i.Closed.IsZero() {
			until = i.Closed.Format(clock)
		}
		if i.Silenced != "" {
			until += " (nobody was told: " + i.Silenced + ")"
		}
		g.Row(i.Opened.Format(clock), orMonitor(i.Name), i.Kind, until, i.Summary)
	}
	g.Line("")
	g.Row("CHANGE", "INSTANCE", "WHAT", "FROM", "TO", "SAYS")
	for _, c := range h.Changes {
		g.Row(c.At.Format(clock), c.Name, c.What, orUnknown(c.From), orUnknown(c.To), c.Reason)
	}
	if len(h.Latency) > 0 {
		last := h.Latency[len(h.Latency)-1]
		g.Line("")
		g.Line("Latency in the hour from %s: half of %s within %.0f ms, 95%% within %.0f ms, all within %.0f ms. -o json has each hour.",
			last.Hour.Format(clock), plural(last.Count, "probe"), last.P50MS, last.P95MS, last.MaxMS)
	}
	g.Line("Times are UTC.")
}

func orMonitor(name string) string {
	if name == "" {
		return "(the monitor)"
	}
	return name
}

func orUnknown(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}
