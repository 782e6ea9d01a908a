//go:build e2e || realdata || bench

// Package e2e tells whole stories across the built binaries: what a person, a
// script or a crash does to a real process over real sockets and files.
//
// TestMain builds the binaries once. The harness starts agnes serve on free
// ports of this machine and speaks to it as any client would; each file after
// it is one story.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	adminEmail    = "admin@company.com"
	adminPassword = "SecurePass123!"
)

// bin is where TestMain has built the binaries.
var bin string

// lanes has a place for each test that may run at once: -parallel of them. The flag
// itself counts those, too, that only wait for the image.
var lanes chan struct{}

// parallel is t.Parallel for the tests here.
func parallel(t *testing.T) {
	t.Helper()
	t.Parallel()
	takeLane(t)
}

func takeLane(t *testing.T) {
	lanes <- struct{}{}
	t.Cleanup(func() { <-lanes })
}

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "agnes-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	flag.Parse()
	atOnce := flag.Lookup("test.parallel").Value
	n, err := strconv.Atoi(atOnce.String())
	if err == nil {
		lanes, err = make(chan struct{}, n), atOnce.Set("1000")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, name := range []string{"agnes", "agnesctl", "release-bot"} {
		build := exec.Command("go", "build", "-tags", "duckdb_arrow", "-o", filepath.Join(dir, name), "../cmd/"+name)
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n", name, err)
			return 1
		}
	}
	defer removeImages()
	return m.Run()
}

// process is a running agnes serve.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	out  *buffer       // standard output and error
	log  *buffer       // standard error alone
	done chan struct{} // closed when the process has ended
	err  error
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
}

// launch starts agnes serve over a data directory and does not wait for it.
func launch(t *testing.T, dataDir string, env ...string) *process {
	t.Helper()
	return launchIn(t, "", dataDir, env)
}

// launchIn is launch in another directory, with further flags.
func launchIn(t *testing.T, dir, dataDir string, env []string, flags ...string) *process {
	t.Helper()
	addr := "127.0.0.1:" + freePort(t)
	p := &process{t: t, url: "http://" + addr, out: &buffer{}, log: &buffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(bin, "agnes"), append([]string{"serve", "--data-dir", dataDir, "--addr", addr}, flags...)...)
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, io.MultiWriter(p.out, p.log)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// start starts agnes serve and waits until it is ready.
func start(t *testing.T, dataDir string, env ...string) *process {
	t.Helper()
	p := launch(t, dataDir, env...)
	p.waitReady()
	return p
}

func (p *process) waitReady() {
	p.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-p.done:
			p.t.Fatalf("agnes serve ended: %v\n%s", p.err, p.out)
		default:
		}
		if resp, err := http.Get(p.url + "/readyz"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		<-time.After(5 * time.Millisecond)
	}
	p.t.Fatalf("agnes serve is not ready after 30 s\n%s", p.out)
}

// kill ends the process without a chance to clean up.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends the process as an operator does and fails the test unless it ends
// cleanly.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("agnes serve did not stop within 30 s\n%s", p.out)
	}
	if p.err != nil {
		p.t.Fatalf("agnes serve stopped with %v\n%s", p.err, p.out)
	}
}

// call makes a request; an answer of 300 or more, or none, is an error.
func (p *process) call(ctx context.Context, method, path, token string, body, into any) error {
	var data io.Reader
	if body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			return err
		}
		data = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, data)
	if err != nil {
		return err
	}
	if data != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// must is call that fails the test.
func (p *process) must(method, path, token string, body, into any) {
	p.t.Helper()
	if err := p.call(p.t.Context(), method, path, token, body, into); err != nil {
		p.t.Fatalf("%v\n%s", err, p.out)
	}
}

// command runs one of the built binaries and returns what it printed.
func command(t *testing.T, stdin string, env []string, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, name), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
