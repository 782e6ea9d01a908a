package watch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/watch"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

var noon = time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)

// viewer drives a Model as bubbletea and a person do.
type viewer struct {
	t     *testing.T
	board *watch.Board
	model tea.Model
	now   time.Time
}

func newViewer(t *testing.T, instances []fleet.Instance, width, height int) *viewer {
	t.Helper()
	v := &viewer{t: t, board: watch.NewBoard(instances, fleet.Facts{}), now: noon}
	v.model = watch.NewModel(v.board, func() time.Time { return v.now })
	v.send(tea.WindowSizeMsg{Width: width, Height: height})
	return v
}

func (v *viewer) send(msg tea.Msg) tea.Cmd {
	var cmd tea.Cmd
	v.model, cmd = v.model.Update(msg)
	return cmd
}

// put gives results and lets the view take them.
func (v *viewer) put(results ...fleet.Result) {
	for _, r := range results {
		v.board.Put(r)
	}
	v.send(watch.Tick())
}

// keys presses each word: a key's name, or text.
func (v *viewer) keys(words ...string) (last tea.Cmd) {
	named := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "down": tea.KeyDown, "up": tea.KeyUp, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "home": tea.KeyHome, "end": tea.KeyEnd, "backspace": tea.KeyBackspace}
	for _, w := range words {
		if code, is := named[w]; is {
			last = v.send(tea.KeyPressMsg{Code: code})
			continue
		}
		if w == "ctrl+c" {
			last = v.send(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
			continue
		}
		for _, r := range w {
			last = v.send(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
	return last
}

// screen is what is seen, without colors, line by line; it must fit.
func (v *viewer) screen(width, height int) []string {
	v.t.Helper()
	lines := strings.Split(v.model.View().Content, "\n")
	if len(lines) != height {
		v.t.Errorf("the view has %d lines, the screen %d", len(lines), height)
	}
	for i, line := range lines {
		lines[i] = strings.TrimRight(ansi.Strip(line), " ")
		if w := ansi.StringWidth(lines[i]); w > width {
			v.t.Errorf("line %d is %d wide, the screen %d: %q", i, w, width, lines[i])
		}
	}
	return lines
}

// names are those of the table's rows.
func (v *viewer) names(width, height int) (names []string) {
	for _, line := range v.screen(width, height)[3 : height-1] {
		if name, _, _ := strings.Cut(line, " "); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func some(n int) (all []fleet.Instance) {
	for i := range n {
		all = append(all, fleet.Instance{Name: fmt.Sprintf("sim-%05d", i), URL: fmt.Sprintf("https://sim-%05d.example.com", i), Channel: "stable"})
	}
	return all
}

func well(name, version string) fleet.Result {
	return fleet.Result{Name: name, At: noon, Health: fleet.Healthy, Version: version, Channel: "stable", Timing: fleet.Timing{Total: 20 * time.Millisecond}}
}

func silent(name string) fleet.Result {
	return fleet.Result{Name: name, At: noon, Health: fleet.Unreachable, Fault: fleet.FaultTimeout, Err: problem.New(problem.Timeout, "Expected an answer, found none.", "Look at the machine.")}
}

func TestTheWorstComesFirstAndFitsIntoEightyColumns(t *testing.T) {
	t.Parallel()
	v := newViewer(t, some(3), 80, 24)
	if first := v.screen(80, 24); !strings.Contains(first[0], "3 instances: 3 not asked yet") || !strings.Contains(first[3], "asking…") {
		t.Errorf("in the beginning:\n%s", strings.Join(first, "\n"))
	}
	v.put(well("sim-00000", "2026.04.3"), well("sim-00001", "2026.04.2"), silent("sim-00002"))
	screen := v.screen(80, 24)
	if got := strings.Join(v.names(80, 24), " "); got != "sim-00002 sim-00000 sim-00001" {
		t.Errorf("the order is %s", got)
	}
	if !strings.Contains(screen[0], "3 instances: 1 unreachable, 2 healthy") || !strings.Contains(screen[3], "unreachable (timeout)") {
		t.Errorf("\n%s", strings.Join(screen, "\n"))
	}
	for _, size := range [][2]int{{200, 50}, {40, 10}, {20, 5}, {1, 1}, {80, 24}} {
		v.send(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		v.screen(size[0], size[1])
	}
}

func TestRowsAreSortedAndFiltered(t *testing.T) {
	t.Parallel()
	v := newViewer(t, some(4), 80, 24)
	degraded := well("sim-00003", "2026.04.1")
	degraded.Health, degraded.At = fleet.Degraded, noon.Add(time.Minute)
	v.put(well("sim-00000", "2026.04.3"), well("sim-00001", "2026.04.2"), silent("sim-00002"), degraded)
	for _, step := range []struct {
		keys []string
		want string
	}{
		{nil, "sim-00002 sim-00003 sim-00000 sim-00001"},
		{[]string{"s"}, "sim-00000 sim-00001 sim-00002 sim-00003"},
		{[]string{"s"}, "sim-00003 sim-00000 sim-00001 sim-00002"}, // latest change
		{[]string{"s"}, "sim-00002 sim-00003 sim-00001 sim-00000"}, // version
		{[]string{"r"}, "sim-00000 sim-00001 sim-00003 sim-00002"},
		{[]string{"r", "s", "s", "s"}, "sim-00002 sim-00003 sim-00000 sim-00001"},
		{[]string{"f"}, "sim-00002"},
		{[]string{"f"}, "sim-00002 sim-00003"},
		{[]string{"F", "F"}, "sim-00002 sim-00003 sim-00000 sim-00001"},
		{[]string{"/", "2026.04.2"}, "sim-00001"},
		{[]string{"backspace", "3", "enter"}, "sim-00000"},
		{[]string{"esc", "/", "TIMEOUT", "enter"}, "sim-00002"},
		{[]string{"/", "nothing has this"}, ""},
		{[]string{"esc"}, "sim-00002 sim-00003 sim-00000 sim-00001"},
		{[]string{"/", "q"}, ""}, // is text, and no key
		{[]string{"esc", "esc"}, "sim-00002 sim-00003 sim-00000 sim-00001"},
	} {
		v.keys(step.keys...)
		if got := strings.Join(v.names(80, 24), " "); got != step.want {
			t.Errorf("after %v: %s, want %s", step.keys, got, step.want)
		}
	}
}

func TestTheCursorStaysAtItsInstance(t *testing.T) {
	t.Parallel()
	v := newViewer(t, some(100), 80, 24)
	v.keys("s", "end")
	if !strings.Contains(strings.Join(v.names(80, 24), " "), "sim-00099") {
		t.Fatal("the last row is not shown")
	}
	v.put(silent("sim-00050"))
	v.keys("r") // by name, from the end: the cursor goes along
	v.keys("enter")
	if screen := v.screen(80, 24); screen[0] != "sim-00099" {
		t.Errorf("the details are those of %q", screen[0])
	}
	v.keys("esc", "home", "down", "enter")
	if screen := v.screen(80, 24); screen[0] != "sim-00098" {
		t.Errorf("the details are those of %q", screen[0])
	}
}

func TestDetailsSaySinceWhenWhyAndWhatToDo(t *testing.T) {
	t.Parallel()
	v := newViewer(t, some(2), 80, 24)
	v.put(well("sim-00000", "2026.04.3"), well("sim-00001", "2026.04.3"))
	gone := silent("sim-00001")
	gone.At = noon.Add(2 * time.Minute)
	v.put(gone)
	gone.At = noon.Add(3 * time.Minute) // the same again: since does not move
	v.put(gone)
	v.now = noon.Add(5 * time.Minute)
	if screen := v.screen(80, 24); !strings.Contains(screen[3], "unreachable (timeout) 3m") {
		t.Errorf("%q", screen[3])
	}
	v.keys("enter")
	text := strings.Join(v.screen(80, 24), "\n")
	for _, want := range []string{"unreachable (timeout), since 2026-04-09 12:02:00 UTC (3m)", "Expected an answer, found none.", "next          Look at the machine.", "https://sim-00001.example.com"} {
		if !strings.Contains(text, want) {
			t.Errorf("the details lack %q:\n%s", want, text)
		}
	}
	v.keys("q") // back, not out
	if got := v.names(80, 24); len(got) != 2 {
		t.Errorf("%v", got)
	}
	v.keys("?")
	if text := strings.Join(v.screen(80, 24), "\n"); !strings.Contains(text, "quit") {
		t.Errorf("the help:\n%s", text)
	}
	v.keys("esc")
	for _, key := range []string{"q", "ctrl+c"} {
		if cmd := v.keys(key); cmd == nil {
			t.Errorf("%s does nothing", key)
		} else if _, quits := cmd().(tea.QuitMsg); !quits {
			t.Errorf("%s does not quit", key)
		}
	}
}

func TestWhatAnInstanceSaysCannotDriveTheTerminal(t *testing.T) {
	t.Parallel()
	const evil = "\x1b]0;owned\a\x1b[2J\u202eabc\r\n\x9b31m\xff"
	v := newViewer(t, some(1), 200, 50)
	r := well("sim-00000", evil)
	r.Channel, r.Commit, r.Phase, r.Warnings, r.Digest, r.ConfigHash, r.BundleVersion = evil, evil, evil, []string{evil}, evil, evil, evil
	r.Health, r.Err = fleet.Unhealthy, problem.New(problem.Unavailable, evil, evil)
	v.put(r)
	for _, keys := range [][]string{nil, {"enter"}} {
		v.keys(keys...)
		content := v.model.View().Content
		for line := range strings.SplitSeq(content, "\n") {
			// Colors of our own are all that drives.
			for _, ours := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[7m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[35m"} {
				line = strings.ReplaceAll(line, ours, "")
			}
			if strings.ContainsAny(line, "\x1b\a\r\u009b\u202e") || !utf8.ValidString(line) {
				t.Errorf("it gets through: %q", line)
			}
		}
	}
}

func TestTenThousandRowsCostWhatIsSeen(t *testing.T) {
	t.Parallel()
	const n = 10_000
	v := newViewer(t, some(n), 80, 24)
	for i := range n {
		v.board.Put(well(fmt.Sprintf("sim-%05d", i), "2026.04.3"))
	}
	began := time.Now()
	v.send(watch.Tick())
	t.Logf("to take %d results takes %s", n, time.Since(began))
	v.keys("s", "end")
	if names := v.names(80, 24); len(names) != 20 || names[19] != "sim-09999" {
		t.Errorf("%v", names)
	}
	redraw := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			_ = v.model.View()
		}
	})
	// Twenty rows of nine cells: what all ten thousand would allocate is far beyond.
	if redraw.AllocsPerOp() > 5_000 {
		t.Errorf("a redraw makes %d allocations", redraw.AllocsPerOp())
	}
	t.Logf("a redraw takes %s", time.Duration(redraw.NsPerOp()))
}

// counter answers every probe by refusing, and counts.
type counter struct {
	mu sync.Mutex
	at map[string][]time.Time
}

func (c *counter) dial(_ context.Context, _, address string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at[address] = append(c.at[address], time.Now())
	return nil, errors.New("nobody is there")
}

func TestEachInstanceIsAskedOnceAnInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		instances := some(50)
		for i := range instances {
			instances[i].Interval = time.Minute
		}
		c := &counter{at: map[string][]time.Time{}}
		p := fleet.NewProber(fleet.ProbeOptions{Dial: c.dial})
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		results := 0
		if err := watch.Poll(ctx, p, instances, func(fleet.Result) { results++ }); err != nil {
			t.Error(err)
		}
		if len(c.at) != 50 {
			t.Errorf("%d of 50 were asked", len(c.at))
		}
		for address, at := range c.at {
			// The first sweep, then once a minute; a phase of its own moves the second one.
			if len(at) < 10 || len(at) > 12 {
				t.Errorf("%s was asked %d times in ten minutes", address, len(at))
			}
		}
		if results < 500 {
			t.Errorf("%d results", results)
		}
	})
}

func TestWithoutATerminalEachChangeIsALine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		instances := some(2)
		c := &counter{at: map[string][]time.Time{}}
		p := fleet.NewProber(fleet.ProbeOptions{Dial: c.dial})
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var out bytes.Buffer
		if err := watch.Lines(ctx, &out, p, instances, fleet.Facts{}); err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) < 3 || !strings.Contains(out.String(), "first seen -> ") || !strings.Contains(out.String(), "2 instances: 2 unknown") {
			t.Errorf("%s", out.String())
		}
		if len(lines) > 8 { // nothing changes for five minutes
			t.Errorf("%d lines for %d instances that stay as they are:\n%s", len(lines), len(instances), out.String())
		}
	})
}

// full is a disk that is.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestLinesThatCannotBeWrittenEndTheWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &counter{at: map[string][]time.Time{}}
		p := fleet.NewProber(fleet.ProbeOptions{Dial: c.dial})
		defer p.Close()
		if err := watch.Lines(t.Context(), full{}, p, some(2), fleet.Facts{}); err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("%v", err)
		}
	})
}
