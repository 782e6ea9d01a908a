package query

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Scheduling priorities (nice values) of workers. A fresh statement runs a
// little below the server; one that takes long gives way to all others.
const (
	freshNice = 5
	longNice  = 19
	longAfter = 150 * time.Millisecond
)

// Settings of a worker's process. A statement makes and drops thousands of
// small C++ objects: with the default of 7 to a size, glibc's per-thread lists
// overflow into its slow paths, which cost a fifth of a small statement's time.
// Other C libraries ignore the name.
const workerEnv = "GOMEMLIMIT=64MiB GOMAXPROCS=2 TZ=UTC GLIBC_TUNABLES=glibc.malloc.tcache_count=1000"

// timerSlack is how late a worker's timers may be. Go's monitor thread would
// wake every 20 µs while a statement runs, in each worker, for nothing: a worker
// has one goroutine, and its deadline is the server's to keep.
const timerSlack = 2 * time.Millisecond

// process is the server's end of one worker.
type process struct {
	cmd     *exec.Cmd
	control *os.File // both ways
	in      *bufio.Reader
	out     *bufio.Writer
	stream  *os.File // Parquet comes out here
	buf     []byte
	mu      sync.Mutex
	nice    int           // guarded by mu
	spent   bool          // may not be used again
	done    chan struct{} // closed when the process has ended and was reaped
	end     sync.Once

	// When bound:
	key        string
	generation int64
	isolation  string
}

// spawn starts a worker that is not bound yet. It inherits no secret: no
// environment but what is given, and no descriptor but its own three.
func spawn(command []string, environment ...string) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to a new worker: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "worker control")
	defer func() { _ = theirs.Close() }()
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	p := &process{control: os.NewFile(uintptr(fds[0]), "worker"), nice: freshNice, done: make(chan struct{})}
	p.in, p.out = bufio.NewReader(p.control), bufio.NewWriter(p.control)
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, p.control.Close())
	}
	defer func() { _ = writer.Close() }()
	p.stream = reader
	p.cmd = exec.CommandContext(context.Background(), command[0], command[1:]...) //nolint:gosec // this program itself; kill ends it, no request
	p.cmd.Env = append(strings.Fields(workerEnv), environment...)
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = []*os.File{theirs, writer}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startSlack(p.cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start a worker: %w", err), p.control.Close(), reader.Close())
	}
	_ = unix.Setpriority(unix.PRIO_PGRP, p.cmd.Process.Pid, freshNice)
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// startSlack starts a process whose threads all have timerSlack: a thread
// inherits it from the one that makes it, also through exec (prctl(2)).
func startSlack(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack.Nanoseconds()), 0, 0, 0) == nil {
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // back to this thread's own
	}
	return cmd.Start()
}

// kill ends the worker at once, whatever it does.
func (p *process) kill() {
	p.end.Do(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		_ = p.control.Close()
		_ = p.stream.Close()
	})
}

func (p *process) send(kind frameKind, message any) error {
	return errors.Join(writeMessage(p.out, kind, message), p.out.Flush())
}

// bind tells the worker what it may see.
func (p *process) bind(ctx context.Context, m bindMessage) error {
	defer context.AfterFunc(ctx, p.kill)()
	if err := p.send(frameBind, m); err != nil {
		return fmt.Errorf("bind a worker: %w", err)
	}
	kind, payload, err := readFrame(p.in, p.buf)
	p.buf = payload
	if err != nil {
		return fmt.Errorf("bind a worker: %w", err)
	}
	var ready readyMessage
	if err := json.Unmarshal(payload, &ready); err != nil || kind != frameReady {
		return fmt.Errorf("bind a worker: an unexpected answer %q", kind)
	}
	if ready.Err != nil {
		return fmt.Errorf("bind a worker: %w", ready.Err)
	}
	p.isolation = ready.Isolation
	return nil
}

// answer is where an answer's bytes go. start is called once, before the first
// byte; a failure before that is still a clean failure for the caller.
type answer struct {
	start func(Columns) (io.Writer, error)
	to    io.Writer
	head  Columns
	bytes int64
}

func (a *answer) write(data []byte) error {
	if err := a.open(); err != nil {
		return err
	}
	n, err := a.to.Write(data)
	a.bytes += int64(n)
	if err != nil {
		return &sinkError{err}
	}
	return nil
}

func (a *answer) open() error {
	if a.to != nil {
		return nil
	}
	to, err := a.start(a.head)
	if err != nil {
		return &sinkError{err}
	}
	a.to = to
	return nil
}

// sinkError is a failure of the caller's side.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return "the caller took no more of the answer: " + e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// query runs one statement. After any error but a *workerError the process
// must not be used again.
func (p *process) query(ctx context.Context, m queryMessage, a *answer) (endMessage, error) {
	stop := context.AfterFunc(ctx, p.kill)
	slow := time.AfterFunc(longAfter, p.demote)
	copying := &streamCopy{done: make(chan struct{})}
	end, err := p.converse(m, a, copying)
	slow.Stop()
	if !stop() {
		p.spent = true // it is being killed, whatever it has answered
	}
	if copying.started {
		if err != nil {
			p.kill() // which ends the stream
		}
		<-copying.done // nothing may touch the answer from here on
		if copying.err != nil && !errors.Is(copying.err, os.ErrClosed) {
			err = copying.err // what made the worker fail
		}
	}
	return end, err
}

// streamCopy is a Parquet answer on its way.
type streamCopy struct {
	started bool
	done    chan struct{}
	err     error // set when done is closed
}

func (p *process) converse(m queryMessage, a *answer, copying *streamCopy) (endMessage, error) {
	if err := p.send(frameQuery, m); err != nil {
		return endMessage{}, err
	}
	for {
		kind, payload, err := readFrame(p.in, p.buf)
		p.buf = payload
		if err != nil {
			return endMessage{}, err
		}
		switch kind {
		case frameStart:
			var head startMessage
			if err := json.Unmarshal(payload, &head); err != nil {
				return endMessage{}, err
			}
			a.head = Columns{Names: head.Columns, Types: head.Types, Tables: head.Tables}
			if m.Format == Parquet && !copying.started {
				p.spent, copying.started = true, true
				go func() {
					defer close(copying.done)
					copying.err = p.copyStream(a, m.MaxBytes)
				}()
			}
		case frameData:
			if err := a.write(payload); err != nil {
				return endMessage{}, err
			}
		case frameFail:
			var fail workerError
			if err := json.Unmarshal(payload, &fail); err != nil {
				return endMessage{}, err
			}
			return endMessage{}, &fail
		case frameEnd:
			var end endMessage
			if err := json.Unmarshal(payload, &end); err != nil {
				return endMessage{}, err
			}
			if !copying.started {
				return end, a.open()
			}
			// The worker ends with its connection, and its stream with it.
			return end, unix.Shutdown(int(p.control.Fd()), unix.SHUT_WR)
		default:
			return endMessage{}, fmt.Errorf("an unexpected frame %q", kind)
		}
	}
}

func (p *process) copyStream(a *answer, most int64) error {
	buf := make([]byte, dataSize)
	for {
		n, err := p.stream.Read(buf)
		if n > 0 {
			if most > 0 && a.bytes+int64(n) > most {
				p.kill()
				return answerTooLarge(most)
			}
			if err := a.write(buf[:n]); err != nil {
				p.kill()
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// demote makes a statement that takes long give way to all others.
func (p *process) demote() { p.setNice(longNice) }

// refresh undoes a demotion, which only root may; otherwise the worker is spent.
func (p *process) refresh() {
	if !p.setNice(freshNice) {
		p.spent = true
	}
}

func (p *process) setNice(nice int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nice != nice && unix.Setpriority(unix.PRIO_PGRP, p.cmd.Process.Pid, nice) == nil {
		p.nice = nice
	}
	return p.nice == nice
}

// ended reports whether the process is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
