package watch

import (
	"cmp"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// refresh is how often the view takes what has come in: often enough to be live, and
// seldom enough that ten thousand results in a second cost four redraws.
const refresh = 250 * time.Millisecond

// Model is the live view of a Board, for bubbletea. It draws the rows that are seen,
// so that the size of a fleet does not matter.
type Model struct {
	board *Board
	now   func() time.Time
	rows  []row // by the index of the instance

	order    []int // of the rows that are shown
	selected int   // the row under the cursor, by instance; -1 before one was chosen
	cursor   int   // its place in order
	top      int   // place of the first row on the screen

	width, height int
	by            int // index in sorts
	reverse       bool
	only          int // index in filters
	text          string
	typing        bool
	open          page
	scroll        int // of a page

	counts counts
}

// page is what covers the table.
type page int

const (
	table page = iota
	details
	help
)

// NewModel returns the view of a board; now is the clock.
func NewModel(b *Board, now func() time.Time) *Model {
	m := &Model{board: b, now: now, rows: make([]row, len(b.instances)), selected: -1, width: 80, height: 24}
	for i, in := range b.instances {
		m.rows[i].line, m.rows[i].bad = fleet.InstanceStatus{Name: in.Name, URL: in.URL, Wanted: in.Wanted()}, -1
		m.order = append(m.order, i)
	}
	m.counts = count(m.rows)
	m.arrange()
	return m
}

// sorting is one order of the rows.
type sorting struct {
	name    string
	compare func(a, b *row) int
}

// sorts are the orders, each broken by the name.
func sorts() []sorting {
	version := func(w *row) string { return w.line.Version }
	number := func(n *int64) int64 {
		if n == nil {
			return -1
		}
		return *n
	}
	return []sorting{
		{"worst first", func(a, b *row) int { return cmp.Compare(b.bad, a.bad) }},
		{"name", func(_, _ *row) int { return 0 }},
		{"latest change", func(a, b *row) int { return b.since.Compare(a.since) }},
		{"version", func(a, b *row) int { return strings.Compare(version(a), version(b)) }},
		{"latency", func(a, b *row) int { return cmp.Compare(number(b.line.LatencyMS), number(a.line.LatencyMS)) }},
		{"age of data", func(a, b *row) int { return cmp.Compare(number(b.line.DataAgeS), number(a.line.DataAgeS)) }},
	}
}

// filter is one choice of rows by their state.
type filter struct {
	name string
	has  func(*row) bool
}

func filters() []filter {
	health := func(all ...fleet.Health) func(*row) bool {
		return func(w *row) bool { return w.known && slices.Contains(all, w.line.Status) }
	}
	return []filter{
		{"all", func(*row) bool { return true }},
		{"in trouble", health(fleet.Unreachable, fleet.Unhealthy)},
		{"not healthy", health(fleet.Unreachable, fleet.Unhealthy, fleet.Degraded)},
		{"drifted", func(w *row) bool { return w.line.Drift != nil && *w.line.Drift }},
		{"with warnings", func(w *row) bool { return len(w.line.Warnings) > 0 }},
		{"healthy", health(fleet.Healthy)},
	}
}

// matches reports whether a row holds the text that was typed, in any case.
func (w *row) matches(text string) bool {
	if text == "" {
		return true
	}
	l := w.line
	for _, part := range []string{l.Name, w.state, l.Wanted, l.Channel, l.Version, l.URL, l.Error} {
		if strings.Contains(strings.ToLower(part), text) {
			return true
		}
	}
	return false
}

// arrange makes the order anew. The cursor stays at its instance, and the instance
// where it is on the screen.
func (m *Model) arrange() {
	has, text := filters()[m.only].has, strings.ToLower(m.text)
	m.order = m.order[:0]
	for i := range m.rows {
		if w := &m.rows[i]; has(w) && w.matches(text) {
			m.order = append(m.order, i)
		}
	}
	compare := sorts()[m.by].compare
	slices.SortFunc(m.order, func(x, y int) int {
		a, b := &m.rows[x], &m.rows[y]
		c := cmp.Or(compare(a, b), strings.Compare(a.line.Name, b.line.Name))
		if m.reverse {
			return -c
		}
		return c
	})
	if m.selected >= 0 {
		if at := slices.Index(m.order, m.selected); at >= 0 {
			m.top += at - m.cursor
			m.cursor = at
		}
	}
	m.settle()
}

// settle keeps cursor and screen within the rows.
func (m *Model) settle() {
	m.cursor = max(0, min(m.cursor, len(m.order)-1))
	room := m.room()
	m.top = min(m.top, m.cursor)
	m.top = max(m.top, m.cursor-room+1)
	m.top = max(0, min(m.top, len(m.order)-room))
}

// room is how many rows fit on the screen.
func (m *Model) room() int { return max(1, m.height-headLines-footLines) }

// move puts the cursor somewhere, as a person wants.
func (m *Model) move(to int) {
	m.cursor = to
	m.settle()
	if len(m.order) > 0 {
		m.selected = m.order[m.cursor]
	}
}

type tickMsg struct{}

func tick() tea.Cmd { return tea.Tick(refresh, func(time.Time) tea.Msg { return tickMsg{} }) }

// Init serves tea.Model.
func (m *Model) Init() tea.Cmd { return tick() }

// Update serves tea.Model.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tickMsg:
		m.absorb()
		return m, tick()
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.settle()
	case tea.PasteMsg:
		if m.typing {
			m.search(m.text + msg.Content)
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// absorb takes what has come in.
func (m *Model) absorb() {
	fresh := m.board.take()
	for i, r := range fresh {
		m.rows[i].put(m.board.facts.Line(r.At, m.board.instances[i], r), r.At)
	}
	if len(fresh) > 0 {
		m.counts = count(m.rows)
		m.arrange()
	}
}

// search filters by text.
func (m *Model) search(text string) {
	const longest = 60
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text)
	if runes := []rune(clean); len(runes) > longest {
		clean = string(runes[:longest])
	}
	m.text = clean
	m.arrange()
}

// key does what a key asks for.
func (m *Model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case m.typing:
		m.typed(k, name)
	case m.open != table:
		m.pageKey(name)
	default:
		return m.tableKey(name)
	}
	return nil
}

// typed edits the text to filter by.
func (m *Model) typed(k tea.KeyPressMsg, name string) {
	switch name {
	case "enter", "up", "down":
		m.typing = false
	case "esc":
		m.typing = false
		m.search("")
	case "backspace":
		if runes := []rune(m.text); len(runes) > 0 {
			m.search(string(runes[:len(runes)-1]))
		}
	case "ctrl+u":
		m.search("")
	default:
		m.search(m.text + k.Text)
	}
}

// pageKey serves the details and the help.
func (m *Model) pageKey(name string) {
	switch name {
	case "esc", "q", "enter", "backspace", "left", "h", "?":
		m.open = table
	case "down", "j":
		m.scroll++
	case "up", "k":
		m.scroll = max(0, m.scroll-1)
	case "pgdown", "space":
		m.scroll += m.height - 2
	case "pgup":
		m.scroll = max(0, m.scroll-m.height+2)
	case "home", "g":
		m.scroll = 0
	}
}

func (m *Model) tableKey(name string) tea.Cmd {
	switch name {
	case "q":
		return tea.Quit
	case "down", "j":
		m.move(m.cursor + 1)
	case "up", "k":
		m.move(m.cursor - 1)
	case "pgdown", "space", "ctrl+f":
		m.move(m.cursor + m.room())
	case "pgup", "ctrl+b":
		m.move(m.cursor - m.room())
	case "home", "g":
		m.move(0)
	case "end", "G":
		m.move(len(m.order) - 1)
	case "enter", "right", "l":
		if len(m.order) > 0 {
			m.move(m.cursor)
			m.open, m.scroll = details, 0
		}
	case "?":
		m.open, m.scroll = help, 0
	case "/":
		m.typing = true
	case "esc":
		m.only = 0
		m.search("")
	case "f":
		m.only = (m.only + 1) % len(filters())
		m.arrange()
	case "F":
		m.only = (m.only + len(filters()) - 1) % len(filters())
		m.arrange()
	case "s":
		m.by = (m.by + 1) % len(sorts())
		m.arrange()
	case "r":
		m.reverse = !m.reverse
		m.arrange()
	}
	return nil
}
