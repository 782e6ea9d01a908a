// Package shelltest is the contract of deploy.Shell as tests.
//
// Run holds one adapter to everything that deploy.Shell promises. The host is
// always this machine, over a real sshd or none, so that a process that a command
// started can be looked for by its number.
package shelltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
)

// Host is the adapter under test.
type Host struct {
	// New returns a shell of this machine that nobody else uses.
	New func(t *testing.T) deploy.Shell
	// Cut breaks all connections at once, as a host does that loses its power. Nil
	// where there are none.
	Cut func(t *testing.T)
	// Unreachable returns a shell of a host that does not answer, with this connect
	// timeout. Nil where there is none.
	Unreachable func(t *testing.T, timeout time.Duration) deploy.Shell
}

// Run runs all tests of the contract.
func Run(t *testing.T, h Host) {
	t.Helper()
	shared := h.New(t)
	t.Cleanup(func() {
		if err := shared.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Run("commands", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, deploy.Shell){
			"a code is an answer":                         codes,
			"stdout and stderr stay apart and whole":      apart,
			"arguments arrive as they are":                arguments,
			"five megabytes go in and out":                large,
			"input that nobody reads is no failure":       unread,
			"input that cannot be read is an error":       broken,
			"a command runs in its folder":                folder,
			"variables are added":                         environment,
			"what cannot begin has a shell's code":        notBegun,
			"a signal's code is 128 and its number":       signaled,
			"ctx ends the command and its children":       canceled,
			"ctx ends a command that ignores TERM":        stubborn,
			"an ended ctx runs nothing":                   endedBefore,
			"twenty commands at once keep their own":      concurrent,
			"a port on the host's loopback can be dialed": dial,
			"a closed port cannot":                        dialNobody,
			"it has a name":                               named,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, shared)
			})
		}
	})
	t.Run("close can be called twice", func(t *testing.T) {
		t.Parallel()
		s := h.New(t)
		run(t, s, deploy.Command{Args: []string{"true"}})
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	t.Run("a shell that ran nothing can be closed", func(t *testing.T) {
		t.Parallel()
		if err := h.New(t).Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if h.Unreachable != nil {
		t.Run("an unreachable host is given up after the connect timeout", func(t *testing.T) {
			t.Parallel()
			unreachable(t, h)
		})
	}
	if h.Cut != nil {
		t.Run("a connection that breaks is an error, and the next command has a new one", func(t *testing.T) { cut(t, h) })
	}
}

const patience = 20 * time.Second

func run(t *testing.T, s deploy.Shell, c deploy.Command) deploy.Output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := s.Run(ctx, c)
	if err != nil {
		t.Fatalf("%q on %s: %v", c.Args, s, err)
	}
	return out
}

func sh(script string, args ...string) deploy.Command {
	return deploy.Command{Args: append([]string{"sh", "-c", script, "sh"}, args...)}
}

func codes(t *testing.T, s deploy.Shell) {
	for _, code := range []int{0, 1, 2, 77, 254, 255} {
		out := run(t, s, sh("exit "+strconv.Itoa(code)))
		if out.Code != code || len(out.Stdout)+len(out.Stderr) > 0 {
			t.Errorf("%+v, want code %d and no text", out, code)
		}
	}
}

func apart(t *testing.T, s deploy.Shell) {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	c := sh("cat; printf 'not\\000ended' >&2; exit 3")
	c.Stdin = bytes.NewReader(all)
	out := run(t, s, c)
	if !bytes.Equal(out.Stdout, all) || string(out.Stderr) != "not\x00ended" || out.Code != 3 {
		t.Errorf("%+v, want all bytes on stdout, some on stderr and code 3", out)
	}
}

func arguments(t *testing.T, s deploy.Shell) {
	args := []string{
		"", " ", "a b", "it's", `"`, "''", "$HOME", "`id`", "$(id)", "a\nb\n", "-n", "--", `\`, `\n`, "*", "~", "!!", "#", "a=b", ";", "|", "&", ">x", "{a,b}",
		"žluťoučký 🐎", "\xff\xfe", "\t\r\x01\x7f", strings.Repeat("x", 50_000),
	}
	out := run(t, s, deploy.Command{Args: append([]string{"printf", `%s\0`}, args...)})
	if got, want := string(out.Stdout), strings.Join(args, "\x00")+"\x00"; got != want || out.Code != 0 {
		t.Errorf("%.1000q with code %d: %s, want %.1000q", got, out.Code, out.Stderr, want)
	}
}

func large(t *testing.T, s deploy.Shell) {
	in := make([]byte, 5<<20)
	for i := range in {
		in[i] = byte(rand.Uint32()) //nolint:gosec // any bytes will do
	}
	// Not a *bytes.Reader: a stream whose length nobody knows.
	out := run(t, s, deploy.Command{Args: []string{"cat"}, Stdin: io.MultiReader(bytes.NewReader(in))})
	if !bytes.Equal(out.Stdout, in) || out.Code != 0 {
		t.Errorf("%d bytes came back with code %d, want the same %d bytes", len(out.Stdout), out.Code, len(in))
	}
}

func unread(t *testing.T, s deploy.Shell) {
	out := run(t, s, deploy.Command{Args: []string{"true"}, Stdin: bytes.NewReader(make([]byte, 5<<20))})
	if out.Code != 0 {
		t.Errorf("%+v, want code 0", out)
	}
	forever, w := io.Pipe()
	defer w.Close()
	if out := run(t, s, deploy.Command{Args: []string{"true"}, Stdin: forever}); out.Code != 0 {
		t.Errorf("with input that never comes: %+v, want code 0", out)
	}
	if out := run(t, s, deploy.Command{Args: []string{"cat"}}); out.Code != 0 || len(out.Stdout) > 0 {
		t.Errorf("without input: %+v, want an end at once", out)
	}
}

func broken(t *testing.T, s deploy.Shell) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cause := errors.New("the disk is gone")
	out, err := s.Run(ctx, deploy.Command{Args: []string{"cat"}, Stdin: io.MultiReader(strings.NewReader("half"), iotest.ErrReader(cause))})
	if !errors.Is(err, cause) {
		t.Errorf("%+v, %v, want %v: half of a file is no file", out, err, cause)
	}
}

func folder(t *testing.T, s deploy.Shell) {
	dir := filepath.Join(t.TempDir(), "it's a $dir", "-")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out := run(t, s, deploy.Command{Args: []string{"pwd"}, Dir: dir}); string(out.Stdout) != dir+"\n" {
		t.Errorf("%q %s, want %s", out.Stdout, out.Stderr, dir)
	}
	script := filepath.Join(dir, "here")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho here\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out := run(t, s, deploy.Command{Args: []string{"./here"}, Dir: dir}); string(out.Stdout) != "here\n" {
		t.Errorf("./here in its folder: %q %s", out.Stdout, out.Stderr)
	}
	home := strings.TrimSpace(string(run(t, s, deploy.Command{Args: []string{"pwd"}}).Stdout))
	if want, err := os.UserHomeDir(); err == nil && home != want {
		t.Errorf("without a folder: %q, want the login directory %s", home, want)
	}
	if out := run(t, s, deploy.Command{Args: []string{"pwd"}, Dir: "."}); strings.TrimSpace(string(out.Stdout)) != home {
		t.Errorf("in .: %q, want %s", out.Stdout, home)
	}
}

func environment(t *testing.T, s deploy.Shell) {
	c := sh(`printf '%s|' "$A" "$B" "$C" "${PATH:+has a PATH}"`)
	c.Env = []string{"A=it's $HOME\n`id`", "B=", "C=a=b 🐎"}
	if got, want := string(run(t, s, c).Stdout), "it's $HOME\n`id`||a=b 🐎|has a PATH|"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "agnes-only-here"), []byte("#!/bin/sh\necho found\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c = deploy.Command{Args: []string{"agnes-only-here"}, Env: []string{"PATH=" + bin + ":/usr/bin:/bin"}}
	if out := run(t, s, c); string(out.Stdout) != "found\n" {
		t.Errorf("a program by its own PATH: %+v", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := s.Run(ctx, deploy.Command{Args: []string{"true"}, Env: []string{"A;id=x"}}); err == nil {
		t.Errorf("a variable that is none was taken: %+v", out)
	}
}

func notBegun(t *testing.T, s deploy.Shell) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		deploy.Command
		code int
	}{
		{deploy.Command{Args: []string{"agnes-no-such-program", "x"}}, 127},
		{deploy.Command{Args: []string{"/no/such/program"}}, 127},
		{deploy.Command{Args: []string{plain}}, 126},
		{deploy.Command{Args: []string{"/"}}, 126},
		{deploy.Command{Args: []string{"touch", plain + "-ran"}, Dir: "/no/such/folder"}, 126},
		{deploy.Command{Args: []string{"touch", plain + "-ran"}, Dir: plain}, 126},
	} {
		if out := run(t, s, c.Command); out.Code != c.code || len(out.Stderr) == 0 {
			t.Errorf("%q in %q: code %d %q, want code %d with a reason", c.Args, c.Dir, out.Code, out.Stderr, c.code)
		}
	}
	if _, err := os.Stat(plain + "-ran"); err == nil {
		t.Error("a command ran elsewhere than in its folder")
	}
}

func signaled(t *testing.T, s deploy.Shell) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		if out := run(t, s, sh(fmt.Sprintf("kill -%d $$", signal))); out.Code != 128+int(signal) {
			t.Errorf("%+v, want code %d", out, 128+int(signal))
		}
	}
}

// canceled looks for the processes by number: the host is this machine.
func canceled(t *testing.T, s deploy.Shell) {
	end(t, s, `sleep 600 & echo $! >>"$1.new"; echo $$ >>"$1.new"; mv "$1.new" "$1"; wait`)
}

func stubborn(t *testing.T, s deploy.Shell) {
	end(t, s, `trap '' TERM HUP INT PIPE; echo $$ >"$1.new"; mv "$1.new" "$1"; while :; do sleep 0.2; done`)
}

// end starts a script that writes its process numbers to a file, ends ctx and
// waits for the processes' end.
func end(t *testing.T, s deploy.Shell, script string) {
	t.Helper()
	pidFile := filepath.Join(t.TempDir(), "pids")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		out, err := s.Run(ctx, sh(script, pidFile))
		if err == nil {
			err = fmt.Errorf("no error but %+v", out)
		}
		done <- err
	}()
	var pids []string
	await(t, "the command's process numbers", func() bool {
		text, err := os.ReadFile(pidFile)
		pids = strings.Fields(string(text))
		return err == nil
	})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want %v", err, context.Canceled)
		}
	case <-time.After(patience):
		t.Fatal("the command went on after the end of ctx")
	}
	for _, pid := range pids {
		await(t, "the end of process "+pid, func() bool { return !alive(t, pid) })
	}
}

// alive reports whether a process of this machine runs. One that ended and that
// nobody has asked for its code does not.
func alive(t *testing.T, pid string) bool {
	t.Helper()
	number, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("expected a process number, found %q", pid)
	}
	if errors.Is(syscall.Kill(number, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func endedBefore(t *testing.T, s deploy.Shell) {
	ran := filepath.Join(t.TempDir(), "ran")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if out, err := s.Run(ctx, deploy.Command{Args: []string{"touch", ran}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v, want %v", out, err, context.Canceled)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the command ran")
	}
}

func concurrent(t *testing.T, s deploy.Shell) {
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			want := strconv.Itoa(i)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			out, err := s.Run(ctx, sh(`sleep 0.1; cat; echo "$1" >&2; exit "$1"`, want))
			if err != nil || out.Code != i || string(out.Stderr) != want+"\n" {
				t.Errorf("command %d: %+v, %v", i, out, err)
			}
		})
	}
	all.Wait()
}

func dial(t *testing.T, s deploy.Shell) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body) // a broken answer fails the test
	}))
	defer web.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: s.Dial}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, body := range []string{"small", strings.Repeat("large", 200_000)} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, web.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("dial %s through %s: %v", web.URL, s, err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // read to its end
		if err != nil || string(got) != body {
			t.Errorf("%d bytes came back, %v, want %d", len(got), err, len(body))
		}
	}
}

// dialNobody takes an error of the first read, too: the system's ssh learns late
// that nobody listens.
func dialNobody(t *testing.T, s deploy.Shell) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := s.Dial(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil {
		t.Errorf("%d bytes, %v, want an error that nobody listens", n, err)
	}
}

func named(t *testing.T, s deploy.Shell) {
	if s.String() == "" {
		t.Error("the shell has no name")
	}
}

func unreachable(t *testing.T, h Host) {
	const timeout = time.Second
	s := h.Unreachable(t, timeout)
	defer s.Close()
	began := time.Now()
	out, err := s.Run(t.Context(), deploy.Command{Args: []string{"true"}})
	if took := time.Since(began); err == nil || took > timeout+5*time.Second {
		t.Errorf("%+v, %v after %s, want an error after %s", out, err, took, timeout)
	}
}

func cut(t *testing.T, h Host) {
	s := h.New(t)
	defer s.Close()
	started := filepath.Join(t.TempDir(), "started")
	type answer struct {
		out deploy.Output
		err error
	}
	got := make(chan answer, 1)
	go func() {
		out, err := s.Run(t.Context(), sh(`touch "$1"; sleep 5`, started))
		got <- answer{out, err}
	}()
	await(t, "the command's start", func() bool { _, err := os.Stat(started); return err == nil })
	h.Cut(t)
	select {
	case a := <-got:
		if a.err == nil {
			t.Errorf("%+v, want an error: nobody knows how it ended", a.out)
		}
	case <-time.After(4 * time.Second):
		t.Fatal("a broken connection was not noticed")
	}
	if out := run(t, s, deploy.Command{Args: []string{"echo", "again"}}); string(out.Stdout) != "again\n" {
		t.Errorf("after a new connection: %+v", out)
	}
}
