package ssh

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cryptossh "golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// System says how the system's ssh opens the connection. Zero values leave it to
// ~/.ssh/config. Whatever that says, unknown host keys are refused and nothing is
// asked for.
type System struct {
	Program    string        // "" is ssh, 7.4 or newer
	Config     string        // another file than ~/.ssh/config and /etc/ssh/ssh_config
	KnownHosts string        // the only known_hosts file
	Identity   string        // the only key
	Jump       deploy.Target // the host to go through; the zero value is none, or the configuration's
	// ConnectTimeout bounds connecting, sign-in and jumps each; 0: 10 s.
	ConnectTimeout time.Duration
	// KeepAlive is how long a host may be silent, in whole seconds; 0: 15 s.
	KeepAlive time.Duration
}

// NewSystem returns the shell of a host that the system's ssh knows how to
// reach. It starts nothing yet.
func NewSystem(t deploy.Target, o System) (*Shell, error) {
	program, err := exec.LookPath(cmp.Or(o.Program, "ssh"))
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected the system's ssh", "apt-get install openssh-client")
	}
	o.Program = program
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, 10*time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 15*time.Second)
	return newShell(t, func(ctx context.Context) (*link, error) { return o.open(ctx, t) }), nil
}

// ready is what the host says once the connection stands.
const ready = "agnes-ready"

// open starts one ssh as the master of a control socket, and takes the socket
// over. Its only command on the host reads until its input ends: when this
// process dies, ssh does, too.
func (o System) open(ctx context.Context, t deploy.Target) (*link, error) {
	dir, err := socketDir()
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "expected a folder for ssh's control socket", "free some space in "+os.TempDir())
	}
	m := &master{cmd: exec.Command(o.Program, o.arguments(t, filepath.Join(dir, "m"))...), dir: dir, over: make(chan struct{})} //nolint:gosec,noctx // it outlives ctx; close ends it
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}                                                                     // a Ctrl-C is for agnesctl, which still needs the host
	m.cmd.Stderr = &m.said
	out, err := m.start()
	if err != nil {
		m.close()
		return nil, problem.Wrap(err, problem.Unavailable, "expected to start "+o.Program, "")
	}
	begun := make(chan struct{})
	go m.wait(out, begun)
	limit := time.NewTimer(2*o.ConnectTimeout + time.Second) // ssh's own limits come first
	defer limit.Stop()
	select {
	case <-begun:
	case <-m.over:
	case <-ctx.Done():
	case <-limit.C:
	}
	select {
	case <-begun:
	default:
		m.close()
		return nil, o.explain(t, m)
	}
	client, err := m.client(ctx)
	if err != nil {
		m.close()
		return nil, problem.Wrap(err, problem.Unavailable, "expected the control socket of "+o.Program+" to take commands", "see that it is 7.4 or newer: ssh -V")
	}
	return newLink(client, m.close), nil
}

// socketDir makes the folder of the control socket, whose path has to be short
// (108 bytes, unix(7); ssh needs 17 of them for itself).
func socketDir() (string, error) {
	base := ""
	if len(os.TempDir()) > 50 {
		base = "/tmp"
	}
	return os.MkdirTemp(base, "agnes-ssh-")
}

func (o System) arguments(t deploy.Target, socket string) []string {
	seconds := func(d time.Duration) string { return strconv.Itoa(max(1, int(d.Round(time.Second)/time.Second))) }
	shared := []string{"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=" + seconds(o.ConnectTimeout)}
	if o.Config != "" {
		shared = append(shared, "-F", o.Config)
	}
	if o.KnownHosts != "" {
		// The value is a list that spaces separate, with quotes of its own.
		shared = append(shared, "-o", `UserKnownHostsFile="`+literal(o.KnownHosts)+`"`, "-o", "GlobalKnownHostsFile=/dev/null")
	}
	if o.Identity != "" {
		shared = append(shared, "-o", "IdentitiesOnly=yes", "-o", `IdentityFile="`+literal(o.Identity)+`"`)
	}
	args := append([]string{
		"-M", "-S", socket, "-T", "-o", "ControlPersist=no", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no",
		"-o", "UpdateHostKeys=no", "-o", "ServerAliveCountMax=2", "-o", "ServerAliveInterval=" + seconds(o.KeepAlive/3),
	}, shared...)
	if o.Jump.Host != "" {
		// Not -J, which leaves the jump host's key to the configuration.
		const forward = "[%h]:%p"
		words := append(append([]string{o.Program}, shared...), "-p", strconv.Itoa(o.Jump.Port), "-W", forward, "--", o.Jump.User+"@"+o.Jump.Host)
		for i, word := range words {
			if words[i] = deploy.Quote(word); word != forward {
				words[i] = literal(words[i])
			}
		}
		args = append(args, "-o", "ProxyCommand="+strings.Join(words, " "))
	}
	return append(args, "-p", strconv.Itoa(t.Port), "--", t.User+"@"+t.Host, "echo "+ready+"; exec cat >/dev/null")
}

// literal keeps ssh from expanding what looks like a token, TOKENS in ssh_config(5).
func literal(text string) string { return strings.ReplaceAll(text, "%", "%%") }

// explain says why ssh opened no connection, in its own words.
func (o System) explain(t deploy.Target, m *master) error {
	said := cmp.Or(strings.Join(strings.Fields(m.said.String()), " "), "no answer in time")
	hint := fmt.Sprintf("try it by hand: ssh -o StrictHostKeyChecking=yes -p %d %s@%s true", t.Port, t.User, t.Host)
	switch {
	case strings.Contains(said, "Host key verification failed"):
		code := "host_key_mismatch"
		if strings.Contains(said, "host key is known for") { // No ED25519 host key is known for …
			code = "host_key_unknown"
		}
		return problem.New(problem.Refused, fmt.Sprintf("expected %s to show a host key that is known; ssh says: %s", t.Address(), said),
			fmt.Sprintf("compare it with what the host's console says (%s); only where they agree: ssh-keyscan -p %d %s >>%s", ownFingerprint, t.Port, t.Host, cmp.Or(o.KnownHosts, "~/.ssh/known_hosts"))).
			WithCode(code)
	case strings.Contains(said, "Permission denied"):
		return problem.New(problem.Unauthenticated, fmt.Sprintf("expected %s to take a key for the user %s; ssh says: %s", t.Address(), t.User, said), hint)
	}
	return problem.New(problem.Unavailable, fmt.Sprintf("expected an SSH connection to %s; ssh says: %s", t.Address(), said), hint).WithCode("host_unreachable")
}

// master is a running ssh.
type master struct {
	cmd   *exec.Cmd
	stdin io.Closer
	dir   string
	said  lockedBuffer
	over  chan struct{} // closed when it has ended
	once  sync.Once
}

func (m *master) start() (io.Reader, error) {
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	m.stdin = stdin
	return out, nil
}

// wait says when the host has answered, and reaps ssh.
func (m *master) wait(out io.Reader, begun chan<- struct{}) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasSuffix(lines.Text(), ready) { // a login script may talk before
			close(begun)
			break
		}
	}
	_, _ = io.Copy(io.Discard, out) // until its end
	_ = m.cmd.Wait()                // what it said tells more than its code
	close(m.over)
}

// client speaks SSH through the control socket.
func (m *master) client(ctx context.Context) (*cryptossh.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.dir, "m"))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	over, channels, requests, err := cryptossh.NewControlClientConn(conn)
	if !stop() || err != nil {
		_ = conn.Close() // the error before it is what matters
		return nil, cmp.Or(err, ctx.Err())
	}
	return cryptossh.NewClient(over, channels, requests), nil
}

// close ends ssh and waits for it.
func (m *master) close() {
	m.once.Do(func() {
		defer os.RemoveAll(m.dir)
		if m.stdin == nil {
			return // it never ran
		}
		_ = m.stdin.Close()
		limit := time.NewTimer(2 * time.Second)
		defer limit.Stop()
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-m.over:
		case <-limit.C:
			_ = m.cmd.Process.Kill()
			<-m.over
		}
	})
}

// lockedBuffer takes what ssh says while others read it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write takes more.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns all of it.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
