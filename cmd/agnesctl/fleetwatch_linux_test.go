package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
)

// person looks at a terminal of 80 by 24.
type person struct {
	screen *vt.SafeEmulator
	master *os.File

	mu   sync.Mutex
	raw  bytes.Buffer
	more chan struct{}
}

// sitDown puts a person before the other end of a program's terminal.
func sitDown(t *testing.T, master, slave *os.File) *person {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	p := &person{screen: vt.NewSafeEmulator(80, 24), master: master, more: make(chan struct{}, 1)}
	go func() { _, _ = io.Copy(master, p.screen) }() // what a terminal answers to questions
	go func() {
		chunk := make([]byte, 4096)
		for {
			n, err := master.Read(chunk)
			if err != nil {
				return
			}
			_, _ = p.screen.Write(chunk[:n])
			p.mu.Lock()
			p.raw.Write(chunk[:n])
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
	return p
}

// sees waits until the screen shows a text.
func (p *person) sees(t *testing.T, text string) {
	t.Helper()
	for limit := time.After(60 * time.Second); ; {
		shown := ansi.Strip(p.screen.Render())
		if strings.Contains(shown, text) {
			return
		}
		select {
		case <-p.more:
		case <-limit:
			t.Fatalf("%q does not appear; the screen shows\n%s", text, shown)
		}
	}
}

func (p *person) types(t *testing.T, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if _, err := p.master.WriteString(k); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchShowsAFleetOnATerminal(t *testing.T) {
	t.Parallel()
	s, err := sim.Start(t.Context(), sim.Options{N: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.N() {
		if err := s.Set(i, sim.State{Version: "2026.04.7", Channel: "stable"}); err != nil {
			t.Fatal(err)
		}
	}
	file := simFleet(t, s, "127.0.0.1:1/acme/agnes", "", func(int) string { return ", interval: 1s, timeout: 1s" })
	for name, noColor := range map[string]string{"with colors": "", "NO_COLOR": "1"} {
		t.Run(name, func(t *testing.T) {
			master, slave := pseudoTerminal(t)
			person := sitDown(t, master, slave)
			if err := s.Set(1, sim.State{Version: "2026.04.7", Channel: "stable"}); err != nil {
				t.Fatal(err)
			}
			env := map[string]string{"TERM": "xterm-256color", "NO_COLOR": noColor}
			var errs bytes.Buffer
			code := make(chan int, 1)
			go func() {
				code <- run(t.Context(), []string{"fleet", "status", "-f", file, "--watch"}, func(k string) string { return env[k] }, slave, slave, &errs)
			}()
			person.sees(t, "3 instances: 3 healthy")
			if err := s.Set(1, sim.State{Version: "2026.04.7", Channel: "stable", Fault: sim.SaysDegraded}); err != nil {
				t.Fatal(err)
			}
			person.sees(t, "3 instances: 1 degraded, 2 healthy")
			person.types(t, "/", "sim-00002", "\r")
			person.sees(t, `1 shown: all; sorted by worst first; with "sim-00002"`)
			person.types(t, "\r")
			person.sees(t, "address       "+s.URL(2))
			person.types(t, "q", "?") // an escape and a key at once would be Alt
			person.sees(t, "A fleet, live")
			person.types(t, "\x03")
			if got := <-code; got != 0 {
				t.Errorf("exit %d: %s", got, errs.String())
			}
			person.mu.Lock()
			all := person.raw.String()
			person.mu.Unlock()
			if !strings.Contains(all, "\x1b[?1049h") {
				t.Error("the screen that was there is overwritten")
			}
			if colors := strings.Contains(all, "\x1b[32m") || strings.Contains(all, ";32m"); colors == (noColor != "") {
				t.Errorf("colors: %v", colors)
			}
			if !echoes(t, slave) {
				t.Error("the terminal does not echo any more")
			}
		})
	}
}

func TestWatchWithoutATerminalWritesLines(t *testing.T) {
	t.Parallel()
	s, err := sim.Start(t.Context(), sim.Options{N: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.N() {
		if err := s.Set(i, sim.State{Version: "2026.04.7", Channel: "stable"}); err != nil {
			t.Fatal(err)
		}
	}
	file := simFleet(t, s, "127.0.0.1:1/acme/agnes", "", func(int) string { return ", interval: 1s, timeout: 1s" })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &cancelOn{text: "sim-00001  healthy, 2026.04.7 -> unhealthy, 2026.04.7", cancel: cancel}
	well := &cancelOn{text: "2 instances: 2 healthy", cancel: func() {
		if err := s.Set(1, sim.State{Version: "2026.04.7", Channel: "stable", Fault: sim.SaysUnhealthy}); err != nil {
			t.Error(err)
		}
	}}
	var errs bytes.Buffer
	code := run(ctx, []string{"fleet", "status", "-f", file, "--watch"}, func(string) string { return "" }, strings.NewReader(""), tee{well, out}, &errs)
	if code != 0 || !strings.Contains(out.String(), out.text) {
		t.Errorf("exit %d\n%s%s", code, out.String(), errs.String())
	}
}

// tee writes to both.
type tee struct{ a, b *cancelOn }

func (w tee) Write(p []byte) (int, error) {
	if n, err := w.a.Write(p); err != nil {
		return n, err
	}
	return w.b.Write(p)
}
