package watch

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

const (
	headLines = 3 // what there is, how it is shown, and the columns' names
	footLines = 1 // the keys
)

// SGR sequences. A terminal without colors, and a person who does not want them
// (NO_COLOR), get none: bubbletea drops them.
const (
	bold    = "\x1b[1m"
	faint   = "\x1b[2m"
	inverse = "\x1b[7m"
	red     = "\x1b[31m"
	green   = "\x1b[32m"
	yellow  = "\x1b[33m"
	magenta = "\x1b[35m"
	plain   = "\x1b[0m"
)

// View serves tea.Model.
func (m *Model) View() tea.View {
	v := tea.NewView(strings.Join(m.screen(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "agnesctl fleet status"
	return v
}

// screen returns the lines of the screen, none wider and not more than it has.
func (m *Model) screen() []string {
	var lines []string
	switch m.open {
	case details:
		lines = m.page(m.details(), "esc back  ↑↓ scroll")
	case help:
		lines = m.page(helpText(), "esc back  ↑↓ scroll")
	default:
		lines = m.table()
	}
	lines = lines[:min(len(lines), max(1, m.height))]
	for i, line := range lines {
		lines[i] = ansi.Truncate(line, m.width, "")
	}
	return lines
}

// page shows text that may be longer than the screen.
func (m *Model) page(text []string, keys string) []string {
	room := max(1, m.height-footLines)
	m.scroll = max(0, min(m.scroll, len(text)-room))
	shown := append([]string{}, text[m.scroll:min(len(text), m.scroll+room)]...)
	for len(shown) < room {
		shown = append(shown, "")
	}
	return append(shown, faint+keys+plain)
}

func (m *Model) table() []string {
	sorted := sorts()[m.by].name
	if m.reverse {
		sorted += ", reversed"
	}
	how := fmt.Sprintf("%d shown: %s; sorted by %s", len(m.order), filters()[m.only].name, sorted)
	switch {
	case m.typing:
		how = "filter: " + cli.Sanitize(m.text) + "█"
	case m.text != "":
		how += fmt.Sprintf("; with %q", cli.Sanitize(m.text))
	}
	columns := m.columns()
	lines := []string{
		bold + m.now().UTC().Format("15:04:05") + plain + "  " + m.counts.String(),
		faint + how + plain,
		bold + m.line(columns, func(c column) string { return c.head }) + plain,
	}
	now, room := m.now(), m.room()
	for at := m.top; at < min(len(m.order), m.top+room); at++ {
		w := &m.rows[m.order[at]]
		text := m.line(columns, func(c column) string { return cli.Sanitize(c.cell(w, now)) })
		if at == m.cursor {
			text = inverse + text + plain
		} else {
			text = color(w) + text + plain
		}
		lines = append(lines, text)
	}
	for len(lines) < headLines+room {
		lines = append(lines, "")
	}
	return append(lines, faint+"↑↓ move  enter details  / filter  f state  s sort  r reverse  ? help  q quit"+plain)
}

func color(w *row) string {
	switch {
	case !w.known:
		return faint
	case w.line.SelfTrouble:
		return magenta
	case w.line.Status == fleet.Unhealthy || w.line.Status == fleet.Unreachable:
		return red
	case w.bad > 0:
		return yellow
	default:
		return green
	}
}

// column is one of the table's.
type column struct {
	head  string
	width int
	from  int // width of the screen from which it is shown
	cell  func(w *row, now time.Time) string
}

func allColumns() []column {
	return []column{
		{"NAME", 18, 0, func(w *row, _ time.Time) string { return w.line.Name }},
		{"STATUS", 21, 0, func(w *row, _ time.Time) string {
			if !w.known {
				return "asking…"
			}
			return word(w.line)
		}},
		{"SINCE", 6, 0, func(w *row, now time.Time) string {
			if !w.known {
				return ""
			}
			return age(now.Sub(w.since))
		}},
		{"VERSION", 11, 0, func(w *row, _ time.Time) string { return w.line.Version }},
		{"WANTED", 18, 100, func(w *row, _ time.Time) string { return w.line.Wanted }},
		{"DRIFT", 7, 0, func(w *row, _ time.Time) string { return drift(w.line) }},
		{"DATA", 6, 120, func(w *row, now time.Time) string {
			if w.line.DataAgeS == nil {
				return ""
			}
			return age(time.Duration(*w.line.DataAgeS)*time.Second + now.Sub(w.line.ProbedAt))
		}},
		{"ms", 6, 110, func(w *row, _ time.Time) string {
			if w.line.LatencyMS == nil {
				return ""
			}
			return fmt.Sprint(*w.line.LatencyMS)
		}},
		{"SAYS", 0, 0, func(w *row, _ time.Time) string { return said(w.line) }},
	}
}

func (m *Model) columns() []column {
	var shown []column
	for _, c := range allColumns() {
		if m.width >= c.from {
			shown = append(shown, c)
		}
	}
	return shown
}

// line sets cells into their columns; the last one has what is left.
func (m *Model) line(columns []column, cell func(column) string) string {
	var b strings.Builder
	used := 0
	for i, c := range columns {
		width := c.width
		if i == len(columns)-1 {
			width = max(0, m.width-used)
		}
		text := ansi.Truncate(cell(c), width, "…")
		b.WriteString(text + strings.Repeat(" ", max(0, width-ansi.StringWidth(text))))
		if used += width + 1; i < len(columns)-1 {
			b.WriteString(" ")
		}
	}
	return b.String()
}

func drift(l fleet.InstanceStatus) string {
	switch {
	case l.Drift == nil:
		return "?"
	case *l.Drift:
		return "yes"
	default:
		return "no"
	}
}

// age is a duration in its largest unit.
func age(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// details is all that is known of the instance under the cursor.
func (m *Model) details() []string {
	if m.selected < 0 {
		return nil
	}
	w := &m.rows[m.selected]
	l := w.line
	var lines []string
	add := func(name, value string) {
		if value != "" {
			lines = append(lines, m.wrapped(name, cli.Sanitize(value))...)
		}
	}
	moment := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	lines = append(lines, bold+cli.Sanitize(l.Name)+plain, "")
	add("address", l.URL)
	if !w.known {
		return append(lines, "It was not asked yet.")
	}
	add("status", fmt.Sprintf("%s, since %s (%s)", word(l), moment(w.since), age(m.now().Sub(w.since))))
	add("asked", moment(l.ProbedAt))
	add("says", l.Error)
	add("next", l.Hint)
	add("version", l.Version)
	add("channel", l.Channel)
	add("wanted", l.Wanted)
	add("drift", drift(l))
	for _, d := range l.DriftReasons {
		add("", d.Text)
	}
	if l.Drift == nil {
		add("", l.DriftReason)
	}
	for _, text := range l.Warnings {
		add("warning", text)
	}
	if l.LatencyMS != nil {
		add("latency", fmt.Sprintf("%d ms (name %d, connection %d, TLS %d)", *l.LatencyMS, l.DNSMS, l.ConnectMS, l.TLSMS))
	}
	if l.DataAgeS != nil {
		add("age of data", (time.Duration(*l.DataAgeS) * time.Second).String())
	}
	if l.CertDaysLeft != nil {
		add("certificate", fmt.Sprintf("valid until %s, %d days left", moment(l.CertNotAfter), *l.CertDaysLeft))
	}
	add("image", l.Digest)
	add("settings", l.ConfigHash)
	add("bundle", l.BundleVersion)
	add("commit", l.Commit)
	add("phase", l.Phase)
	if l.SchemaVersion > 0 {
		add("schema", fmt.Sprint(l.SchemaVersion))
	}
	return lines
}

// wrapped is a named value over as many lines as it needs.
func (m *Model) wrapped(name, value string) []string {
	const indent = 14
	var lines []string
	for i, part := range strings.Split(ansi.Wrap(value, max(20, m.width-indent), ""), "\n") {
		if i > 0 {
			name = ""
		}
		lines = append(lines, fmt.Sprintf("%-*s%s", indent, name, part))
	}
	return lines
}

func helpText() []string {
	return []string{
		bold + "A fleet, live" + plain,
		"",
		"Each instance is asked at its own interval. SINCE is how long its state has been",
		"what it is, as far as this program has seen.",
		"",
		"↑ ↓  j k        move",
		"PgUp PgDn       a page; space too",
		"Home End  g G   first and last",
		"Enter →         details of an instance, with the next step",
		"/               filter by text: name, state, version, address; Esc ends it",
		"f F             next and previous choice of states: all, in trouble, …",
		"s               next order: worst first, name, latest change, version, …",
		"r               reverse it",
		"Esc             everything again",
		"q  Ctrl-C       quit",
		"",
		"Nothing is changed anywhere. agnesctl fleet plan says what would mend a drift.",
	}
}
