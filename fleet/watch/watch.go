// Package watch follows a fleet from one terminal: Poll asks each instance again
// and again, a Board keeps what each of them last said and since when, View shows
// the board live, and Lines writes a line for each change where there is no terminal.
//
// It remembers nothing and alerts nobody: that is the monitor's work.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// Board is what each instance last said. It is safe for concurrent use.
type Board struct {
	facts     fleet.Facts
	instances []fleet.Instance
	index     map[string]int

	mu     sync.Mutex
	latest map[int]fleet.Result // that nobody has taken yet; the newest of each instance
}

// NewBoard returns a board of instances, with what else is known of them.
func NewBoard(instances []fleet.Instance, facts fleet.Facts) *Board {
	b := &Board{facts: facts, instances: instances, index: make(map[string]int, len(instances)), latest: map[int]fleet.Result{}}
	for i, in := range instances {
		b.index[in.Name] = i
	}
	return b
}

// Put takes a result.
func (b *Board) Put(r fleet.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, known := b.index[r.Name]; known {
		b.latest[i] = r
	}
}

// take returns the results since the last time, by the index of their instances.
func (b *Board) take() map[int]fleet.Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.latest
	b.latest = map[int]fleet.Result{}
	return taken
}

// row is what is known of one instance.
type row struct {
	line  fleet.InstanceStatus
	known bool      // it was asked
	since time.Time // of the probe that first said what line says
	state string    // what counts as a change
	bad   int       // line's Badness; -1 before it was asked
}

// put takes a result and reports whether it changes anything, and what was before.
func (w *row) put(line fleet.InstanceStatus, at time.Time) (before string, changed bool) {
	before, now := w.state, stateOf(line)
	changed = !w.known || before != now
	if changed {
		w.since, w.state = at, now
	}
	w.line, w.known, w.bad = line, true, line.Badness()
	return before, changed
}

// stateOf is what counts as a change: how it is, what it runs, and whether that is
// what is wanted.
func stateOf(l fleet.InstanceStatus) string {
	parts := []string{word(l)}
	if l.Version != "" {
		parts = append(parts, l.Version)
	}
	if l.Drift != nil && *l.Drift {
		parts = append(parts, "drift")
	}
	return strings.Join(parts, ", ")
}

// word is the state in a word, with what kept the probe from an answer.
func word(l fleet.InstanceStatus) string {
	switch {
	case l.SelfTrouble:
		return "unknown (self)"
	case l.Fault != fleet.NoFault:
		return fmt.Sprintf("%s (%s)", l.Status, l.Fault)
	default:
		return string(l.Status)
	}
}

// said is what there is to say of an instance, the worst first.
func said(l fleet.InstanceStatus) string {
	switch {
	case l.Error != "":
		return l.Error
	case l.Drift != nil && *l.Drift:
		return l.DriftReason
	case len(l.Warnings) > 0:
		return l.Warnings[0]
	default:
		return ""
	}
}

// Lines polls until ctx ends and writes a line for each change. What is well in
// the beginning is counted, not listed.
func Lines(ctx context.Context, out io.Writer, p *fleet.Prober, instances []fleet.Instance, facts fleet.Facts) error {
	b := NewBoard(instances, facts)
	rows := make([]row, len(instances))
	write := func(at time.Time, format string, args ...any) error {
		_, err := fmt.Fprintf(out, "%s  %s\n", at.UTC().Format(time.RFC3339), cli.Sanitize(fmt.Sprintf(format, args...)))
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := 0
	var broken error // nobody reads any more
	err := Poll(ctx, p, instances, func(r fleet.Result) {
		i, known := b.index[r.Name]
		if !known || broken != nil {
			return
		}
		line := facts.Line(r.At, instances[i], r)
		first := !rows[i].known
		before, changed := rows[i].put(line, r.At)
		if first {
			seen++
			before, changed = "first seen", line.Badness() > 0
		}
		if changed {
			broken = write(r.At, "%s  %s -> %s  %s", r.Name, before, rows[i].state, said(line))
		}
		if first && seen == len(instances) && broken == nil {
			broken = write(r.At, "%s", count(rows))
		}
		if broken != nil {
			cancel()
		}
	})
	if broken != nil {
		return fmt.Errorf("write a change: %w", broken)
	}
	return err
}

// Terminal is where Show shows.
type Terminal struct {
	In, Out *os.File
	Getenv  func(string) string // TERM, COLORTERM, NO_COLOR and their like
}

// Show polls and shows the fleet on a terminal until a person quits or ctx ends.
func Show(ctx context.Context, t Terminal, p *fleet.Prober, instances []fleet.Instance, facts fleet.Facts) error {
	var environ []string
	for _, name := range []string{"TERM", "COLORTERM", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM_PROGRAM", "TMUX", "STY", "WT_SESSION", "LANG", "LC_ALL", "SSH_TTY"} {
		if value := t.Getenv(name); value != "" {
			environ = append(environ, name+"="+value)
		}
	}
	board := NewBoard(instances, facts)
	program := tea.NewProgram(NewModel(board, time.Now), tea.WithContext(ctx), tea.WithInput(t.In), tea.WithOutput(t.Out),
		tea.WithEnvironment(environ), tea.WithoutSignalHandler(), tea.WithFPS(30))
	polling, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		err := Poll(polling, p, instances, board.Put)
		if done <- err; err != nil {
			program.Quit()
		}
	}()
	_, err := program.Run()
	left := polling.Err() != nil || errors.Is(err, tea.ErrProgramKilled)
	stop()
	if wrong := <-done; wrong != nil && !errors.Is(wrong, context.Canceled) {
		return wrong
	}
	if left { // its context ended, which is how this ends
		return nil
	}
	return err
}

// counts are of those that were asked.
type counts struct {
	asked, of                                 int
	healthy, degraded, unhealthy, unreachable int
	drifted, ours                             int
}

func count(rows []row) counts {
	c := counts{of: len(rows)}
	for i := range rows {
		w := &rows[i]
		if !w.known {
			continue
		}
		c.asked++
		switch {
		case w.line.SelfTrouble:
			c.ours++
		case w.line.Status == fleet.Healthy:
			c.healthy++
		case w.line.Status == fleet.Degraded:
			c.degraded++
		case w.line.Status == fleet.Unhealthy:
			c.unhealthy++
		default:
			c.unreachable++
		}
		if w.line.Drift != nil && *w.line.Drift {
			c.drifted++
		}
	}
	return c
}

// String is one line, the worst first where there is not much room.
func (c counts) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{c.of - c.asked, "not asked yet"},
		{c.ours, "unknown, for this machine's network is in trouble"},
		{c.unreachable, "unreachable"},
		{c.unhealthy, "unhealthy"},
		{c.degraded, "degraded"},
		{c.healthy, "healthy"},
		{c.drifted, "drifted"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return fmt.Sprintf("%d instances: %s", c.of, strings.Join(parts, ", "))
}
