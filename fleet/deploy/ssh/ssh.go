// Package ssh runs a deployment's commands on another machine.
//
// Shell is a deploy.Shell over one connection, which carries every command and
// every dialed port. It is opened when the first command needs it, and again
// after it broke. New opens it by itself: the host's key has to be pinned, there
// is no trust on first use. NewSystem lets the system's ssh open it, with all
// that a person's ~/.ssh/config knows of jump hosts, and takes its control
// socket over; from there on both are the same.
//
// A command's process number comes back on its stderr, behind a random mark, and
// is cut out there. By it an end of ctx ends the command: sshd refuses signals
// for root, and does not end what it started when a channel is closed.
package ssh

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	cryptossh "golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	// sessions that run at once, others wait. sshd admits ten (MaxSessions): two
	// are left for ending commands and for the system's ssh itself, the rest for
	// those that sshd still counts after they were closed.
	sessions = 6
	// grace is what a command has between TERM and KILL.
	grace = 2 * time.Second
	// ending bounds how long ending a command may take, the grace included.
	ending = grace + 8*time.Second
)

// Shell runs commands on one host. It is safe for concurrent use.
type Shell struct {
	name string
	host string // for messages: host:port
	open func(context.Context) (*link, error)

	slots  chan struct{}
	lock   chan struct{} // guards what follows; held while a connection is opened
	link   *link
	closed bool
}

var _ deploy.Shell = (*Shell)(nil)

func newShell(t deploy.Target, open func(context.Context) (*link, error)) *Shell {
	return &Shell{name: t.String(), host: t.Address(), open: open, slots: make(chan struct{}, sessions), lock: make(chan struct{}, 1)}
}

// String implements deploy.Shell.
func (s *Shell) String() string { return s.name }

// Close implements deploy.Shell. Commands that run lose their connection.
func (s *Shell) Close() error {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	s.closed = true
	if s.link != nil {
		s.link.close(nil)
		s.link = nil
	}
	return nil
}

// connected returns the connection and opens one where there is none.
func (s *Shell) connected(ctx context.Context) (*link, error) {
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return nil, s.ended(ctx, "connecting")
	}
	if s.closed {
		return nil, problem.New(problem.Internal, "expected an open shell, found that of "+s.name+" closed", "")
	}
	if s.link != nil {
		select {
		case <-s.link.done:
			s.link.close(nil)
			s.link = nil
		default:
			return s.link, nil
		}
	}
	l, err := s.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, s.ended(ctx, "connecting")
		}
		return nil, err
	}
	s.link = l
	return l, nil
}

func (s *Shell) ended(ctx context.Context, what string) error {
	return problem.Wrap(context.Cause(ctx), problem.Timeout, what+" on "+s.name+" was ended before it was done", "")
}

// broke is the error of a command whose session ended before it did. A connection
// that breaks ends its sessions a moment before it is known to be over: that is
// waited for, so that the next command does not begin on it.
func (s *Shell) broke(l *link, what string, err error) error {
	select {
	case <-l.done:
	case <-time.After(time.Second): // the session alone was lost
	}
	if lost := l.reason(); lost != nil {
		err = lost
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("the connection to %s broke while %s ran there; how it ended is not known", s.name, what),
		"run the same again: it begins by looking at the state of the host").WithCode("connection_lost")
}

// Dial implements deploy.Shell. The connection has no deadlines of its own: end
// it by Close.
func (s *Shell) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	l, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := l.client.DialContext(ctx, network, address)
	if refused, ok := errors.AsType[*cryptossh.OpenChannelError](err); ok && refused.Reason == cryptossh.Prohibited {
		return nil, problem.Wrap(err, problem.Refused, fmt.Sprintf("expected to reach %s on %s through the connection, which its sshd forbids", address, s.name),
			"allow it in sshd_config there, for this user at least: AllowTcpForwarding local").WithCode(deploy.NoForwarding)
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("expected an answer at %s on %s", address, s.name), "see there what listens: ss -ltn")
	}
	return conn, nil
}

// Run implements deploy.Shell.
func (s *Shell) Run(ctx context.Context, c deploy.Command) (deploy.Output, error) {
	script, err := c.Script()
	if err != nil {
		return deploy.Output{}, err
	}
	what := c.Args[0]
	if ctx.Err() != nil {
		return deploy.Output{}, s.ended(ctx, what)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return deploy.Output{}, s.ended(ctx, what)
	}
	l, err := s.connected(ctx)
	if err != nil {
		return deploy.Output{}, err
	}
	session, err := l.session(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return deploy.Output{}, s.ended(ctx, what)
		}
		return deploy.Output{}, s.broke(l, what, err)
	}
	defer session.Close()
	run := &running{session: session, stderr: marked{mark: rand.Text(), found: make(chan struct{})}, done: make(chan error, 1)}
	go func() { run.done <- run.carry(script, c) }()
	select {
	case err = <-run.done:
	case <-ctx.Done():
		run.end(l)
		return deploy.Output{}, s.ended(ctx, what)
	}
	out := deploy.Output{Stdout: run.stdout.Bytes(), Stderr: run.stderr.text.Bytes()}
	if exit, ok := errors.AsType[*cryptossh.ExitError](err); ok {
		out.Code = exit.ExitStatus()
		err = nil
	}
	var unread unreadError
	switch {
	case errors.As(err, &unread):
		return deploy.Output{}, problem.Wrap(unread.err, problem.Unavailable, "expected to hand "+what+" on "+s.name+" its input", "")
	case err != nil:
		return deploy.Output{}, s.broke(l, what, err)
	}
	return out, nil
}

// running is one command.
type running struct {
	session *cryptossh.Session
	stdout  bytes.Buffer
	stderr  marked
	done    chan error
}

// unreadError is an error of reading the command's input.
type unreadError struct{ err error }

func (e unreadError) Error() string { return e.err.Error() }

// carry starts the command and waits for its end.
func (r *running) carry(script string, c deploy.Command) error {
	r.session.Stdout, r.session.Stderr = &r.stdout, &r.stderr
	stdin, err := r.session.StdinPipe()
	if err != nil {
		return err
	}
	if err := r.session.Start(fmt.Sprintf("printf '%%s %%s\\n' %s \"$$\" >&2\n%s", r.stderr.mark, script)); err != nil {
		return err
	}
	unread := deploy.Feed(stdin, c.Stdin)
	err = r.session.Wait()
	select {
	case err := <-unread:
		return unreadError{err}
	default:
		return err
	}
}

// end ends the command and what it started, and waits for that: TERM to its
// process group (sshd makes each command its leader), KILL after the grace.
func (r *running) end(l *link) {
	limit := time.NewTimer(ending)
	defer limit.Stop()
	select {
	case <-r.stderr.found:
		l.kill(r.stderr.pid, limit.C)
	case <-r.done: //nolint:errcheck // ctx has ended, whatever it says
		return
	case <-limit.C:
	}
	_ = r.session.Close() // it may be over
	select {
	case <-r.done: //nolint:errcheck // as above
	case <-limit.C:
	}
}

// marked takes a command's stderr and cuts the line with its process number out.
type marked struct {
	mark  string
	text  bytes.Buffer
	pid   string        // once found is closed
	found chan struct{} // closed then
	once  sync.Once
}

// Write takes what the command said. It is called by one goroutine.
func (m *marked) Write(p []byte) (int, error) {
	m.text.Write(p)
	if m.pid != "" {
		return len(p), nil
	}
	before, after, ok := bytes.Cut(m.text.Bytes(), []byte(m.mark+" "))
	pid, rest, whole := bytes.Cut(after, []byte("\n"))
	if !ok || !whole {
		return len(p), nil
	}
	m.pid = string(pid)
	text := append(append([]byte{}, before...), rest...)
	m.text.Reset()
	m.text.Write(text)
	m.once.Do(func() { close(m.found) })
	return len(p), nil
}

// link is one connection.
type link struct {
	client *cryptossh.Client
	also   func()        // closes what carries the client, if anything does
	done   chan struct{} // closed when the connection is over
	killer chan struct{} // one session at a time ends commands

	mu   sync.Mutex
	lost error // why it was given up
}

func newLink(client *cryptossh.Client, also func()) *link {
	l := &link{client: client, also: also, done: make(chan struct{}), killer: make(chan struct{}, 1)}
	go func() {
		_ = client.Wait() // the reason is what broke the command that ran
		close(l.done)
	}()
	return l
}

// close ends the connection, for a reason where nobody asked for it.
func (l *link) close(why error) {
	l.mu.Lock()
	l.lost = cmp.Or(l.lost, why)
	l.mu.Unlock()
	_ = l.client.Close() // it may be over
	if l.also != nil {
		l.also()
	}
}

func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// session opens one. sshd counts a session for a moment after it was closed, so
// a refusal is asked about again.
func (l *link) session(ctx context.Context) (*cryptossh.Session, error) {
	type opened struct {
		session *cryptossh.Session
		err     error
	}
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		got := make(chan opened, 1)
		go func() {
			session, err := l.client.NewSession()
			got <- opened{session, err}
		}()
		var o opened
		select {
		case o = <-got:
		case <-ctx.Done():
			go func() {
				if o := <-got; o.err == nil {
					_ = o.session.Close() // nobody wants it any more
				}
			}()
			return nil, ctx.Err()
		}
		if _, refused := errors.AsType[*cryptossh.OpenChannelError](o.err); !refused || wait > time.Second {
			return o.session, o.err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// kill ends a process group on the host, until the limit at most.
func (l *link) kill(pid string, limit <-chan time.Time) {
	select {
	case l.killer <- struct{}{}:
		defer func() { <-l.killer }()
	case <-l.done:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), ending) //nolint:contextcheck // the command's own has ended
	defer cancel()
	session, err := l.session(ctx)
	if err != nil {
		return // the connection is gone; nothing can be sent
	}
	defer session.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = session.Run(killScript(pid)) // its code says nothing: the group may be gone already
	}()
	select {
	case <-done:
	case <-limit:
	}
}

// killScript waits on the host, which spares round trips and goes on when the
// connection breaks. Not every sleep takes fractions.
func killScript(pid string) string {
	group := "-- -" + pid + " 2>/dev/null"
	return fmt.Sprintf(`kill -TERM %[1]s || exit 0
for i in 1 2 3 4 5 6 7 8 9 10; do
	kill -0 %[1]s || exit 0
	sleep %.1[2]f 2>/dev/null || sleep 1
done
kill -KILL %[1]s`, group, grace.Seconds()/10)
}
