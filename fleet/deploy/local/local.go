// Package local runs a deployment's commands on this machine: what agnesctl does
// on the host itself, without SSH.
//
// Shell is a deploy.Shell over os/exec. Each command leads a process group of its
// own, so that an end of ctx reaches what the command started, too.
package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// grace is what a command has between TERM and KILL.
const grace = 2 * time.Second

// Shell runs commands as the user that this process runs as. It is safe for
// concurrent use.
type Shell struct {
	home string
}

var _ deploy.Shell = (*Shell)(nil)

// New returns the shell of this machine.
func New() *Shell {
	home, err := os.UserHomeDir()
	if err != nil { // a systemd unit has no HOME
		home = "/"
		if u, err := user.Current(); err == nil && u.HomeDir != "" {
			home = u.HomeDir
		}
	}
	return &Shell{home: home}
}

// String implements deploy.Shell.
func (s *Shell) String() string { return "this machine" }

// Close implements deploy.Shell: there is no connection to end.
func (s *Shell) Close() error { return nil }

// Dial implements deploy.Shell.
func (s *Shell) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "expected an answer at "+address+" on this machine", "see what listens there: ss -ltn")
	}
	return conn, nil
}

// Run implements deploy.Shell.
func (s *Shell) Run(ctx context.Context, c deploy.Command) (deploy.Output, error) {
	if err := c.Check(); err != nil {
		return deploy.Output{}, err
	}
	if ctx.Err() != nil {
		return deploy.Output{}, s.ended(ctx, c)
	}
	dir := c.Dir
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.home, dir)
	}
	if err := enter(dir); err != nil {
		return notBegun(126, err), nil
	}
	env := append(append(os.Environ(), c.Env...), "PWD="+dir)
	program, err := find(c.Args[0], dir, env)
	if err != nil {
		return notBegun(codeOf(err), err), nil
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, c.Args[1:]...) //nolint:gosec // running what it is told is what a Shell is for
	cmd.Args[0] = c.Args[0]
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	var stdin io.WriteCloser
	if c.Stdin != nil { // given as cmd.Stdin, os/exec would wait for it after the command's end
		if stdin, err = cmd.StdinPipe(); err != nil {
			return deploy.Output{}, s.cannot(c, err)
		}
	}
	if err := cmd.Start(); err != nil {
		if ctx.Err() != nil {
			return deploy.Output{}, s.ended(ctx, c)
		}
		return notBegun(codeOf(err), err), nil
	}
	var unread <-chan error
	if stdin != nil {
		unread = deploy.Feed(stdin, c.Stdin)
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what outlived TERM; mostly nothing is left
		return deploy.Output{}, s.ended(ctx, c)
	}
	select {
	case err := <-unread:
		return deploy.Output{}, s.cannot(c, err)
	default:
	}
	out := deploy.Output{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Code: cmd.ProcessState.ExitCode()}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		out.Code = 128 + int(status.Signal())
	}
	// A process that it left behind may hold its output open: the command has ended
	// all the same.
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited && !errors.Is(err, exec.ErrWaitDelay) {
		return deploy.Output{}, s.cannot(c, err)
	}
	return out, nil
}

func (s *Shell) cannot(c deploy.Command, err error) error {
	return problem.Wrap(err, problem.Unavailable, "expected to hand "+c.Args[0]+" on this machine its input and to take its output", "")
}

func (s *Shell) ended(ctx context.Context, c deploy.Command) error {
	return problem.Wrap(context.Cause(ctx), problem.Timeout, c.Args[0]+" on this machine was ended before it was done", "")
}

// notBegun is the answer of a command that could not be started, as a shell
// gives it.
func notBegun(code int, err error) deploy.Output {
	return deploy.Output{Code: code, Stderr: []byte(err.Error() + "\n")}
}

func codeOf(err error) int {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// enter reports why no program can run in dir. os/exec would report it in the
// words of a missing program.
func enter(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", dir)
	}
	return err
}

// find looks a program up as a shell in dir would, by the PATH that the program
// itself gets.
func find(program, dir string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		if !filepath.IsAbs(program) {
			program = filepath.Join(dir, program)
		}
		return exec.LookPath(program)
	}
	var path string
	for _, pair := range env {
		if value, ok := strings.CutPrefix(pair, "PATH="); ok {
			path = value
		}
	}
	var denied error
	for _, at := range filepath.SplitList(path) {
		if !filepath.IsAbs(at) {
			at = filepath.Join(dir, at)
		}
		found, err := exec.LookPath(filepath.Join(at, program))
		if err == nil {
			return found, nil
		}
		if errors.Is(err, os.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &exec.Error{Name: program, Err: exec.ErrNotFound}
}
