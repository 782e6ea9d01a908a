package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
)

// usage is what a server holds at a moment.
type usage struct {
	Workers     int   // child processes
	Zombies     int   // of them, ended and not reaped
	Descriptors int   // open
	Goroutines  int   //
	Heap        int64 // bytes that Go still reaches
	RSS         int64 // bytes of memory that the process occupies
	Generations int   // on disk
	Stacks      string
}

// String is usage without stacks.
func (u usage) String() string {
	return fmt.Sprintf("%d workers (%d zombies), %d descriptors, %d goroutines, %.1f MB heap, %.0f MB RSS, %d generations",
		u.Workers, u.Zombies, u.Descriptors, u.Goroutines, float64(u.Heap)/(1<<20), float64(u.RSS)/(1<<20), u.Generations)
}

// order is what the test tells the server's process, one JSON value each;
// each is answered by one line on standard output.
type order struct {
	Tables map[string]string // new content of the source; empty: measure
}

// played is a server in a process of its own, so that its memory and
// descriptors are not mixed with its clients'.
type played struct {
	world // whose url and t serve call
	in    io.WriteCloser
	out   *bufio.Reader
}

// play starts this test binary again as a server over a source with tables.
func play(t *testing.T, tables map[string]string) *played {
	t.Helper()
	p := &played{world: world{t: t, dir: t.TempDir()}}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPlayServer$", "-test.timeout=20m", "play", p.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	t.Cleanup(func() {
		_ = p.in.Close() // which stops it
		go func() {
			_, _ = io.Copy(io.Discard, p.out)
			ended <- cmd.Wait()
		}()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server's process ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the server's process did not stop within 30 s")
			t.Logf("killed: %v", errors.Join(cmd.Process.Kill(), <-ended))
		}
	})
	p.ask(order{Tables: tables}, &p.url)
	return p
}

func (p *played) ask(o order, into any) {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(o); err != nil {
		p.t.Fatalf("the server's process takes no orders: %v", err)
	}
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if err != nil {
		p.t.Fatalf("the server's process answers %q, %v", line, err)
	}
}

func (p *played) measure() (u usage) {
	p.t.Helper()
	p.ask(order{}, &u)
	return u
}

// TestPlayServer is the server's side of played. Run without its arguments, it
// has nothing to do.
func TestPlayServer(t *testing.T) {
	if flag.NArg() != 2 || flag.Arg(0) != "play" {
		return
	}
	dir := flag.Arg(1)
	src := &source{tables: map[string]string{}}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	in, err := agent.Open(t.Context(), agent.Options{
		Inputs:  settings.Inputs{Flags: map[string]string{settings.DataDir: dir}, Getenv: func(string) string { return "" }},
		Sources: map[string]agent.OpenSource{"csv": func(*settings.Resolved) (connectors.Source, error) { return src, nil }},
		Build:   buildinfo.Info{Version: "2026.04.3", Channel: "stable", Commit: "abc1234", Go: "go"},
		Log:     log,
		QueryLimits: func(role string, l api.Limits) api.Limits {
			if role == api.RoleAdmin {
				l.Seconds = 1
			}
			return l
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.Warm()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.New(server.Options{Instance: in, Log: log}).Run(ctx, ln) }()

	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		var answer any = "http://" + ln.Addr().String()
		if len(o.Tables) == 0 {
			if answer, err = measure(dir); err != nil {
				t.Fatal(err)
			}
		}
		for name, sqlText := range o.Tables {
			src.set(name, sqlText)
		}
		if err := answers.Encode(answer); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := errors.Join(<-served, in.Close()); err != nil {
		t.Error(err)
	}
}

// measure looks at this process.
func measure(dir string) (u usage, err error) {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap, u.Goroutines = int64(m.HeapAlloc), runtime.NumGoroutine()
	stacks := make([]byte, 1<<20)
	u.Stacks = string(stacks[:runtime.Stack(stacks, true)])
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return u, err
	}
	u.Descriptors = len(fds)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return u, err
			}
			u.RSS = kb << 10
		}
	}
	generations, err := os.ReadDir(filepath.Join(dir, "analytics", "generations"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return u, err
	}
	u.Generations = len(generations)
	return u, u.countChildren()
}

func (u *usage) countChildren() error {
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, path := range processes {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended since
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			u.Workers++
			if fields[0] == "Z" {
				u.Zombies++
			}
		}
	}
	return nil
}
