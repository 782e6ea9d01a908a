package ssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	cryptossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Options say who the host is and who we are. A host key and a way to sign in
// are required.
type Options struct {
	// HostKeys are the host's public keys as ssh-keyscan and provisioning print
	// them, without the name: "ssh-ed25519 AAAA…".
	HostKeys []string
	// KnownHosts is a known_hosts file; used where HostKeys is empty. Certificate
	// authorities in it are not: NewSystem is for them.
	KnownHosts string
	// Identity is a private key's file, without a passphrase.
	Identity string
	// Agent is ssh-agent's socket, SSH_AUTH_SOCK; used where Identity is empty.
	Agent string
	// ConnectTimeout bounds opening the connection, sign-in included; 0: 10 s.
	ConnectTimeout time.Duration
	// KeepAlive is how long a host may be silent before the connection is given up;
	// 0: 15 s. It is asked three times as often.
	KeepAlive time.Duration
}

func (o Options) connectTimeout() time.Duration { return cmp.Or(o.ConnectTimeout, 10*time.Second) }

func (o Options) keepAlive() time.Duration { return cmp.Or(o.KeepAlive, 15*time.Second) }

// New returns the shell of a host. It reads the keys and connects to nothing yet.
func New(t deploy.Target, o Options) (*Shell, error) {
	pins, err := readPins(t, o)
	if err != nil {
		return nil, err
	}
	d := &dialer{target: t, options: o, pins: pins}
	switch {
	case o.Identity != "":
		if d.key, err = readIdentity(o.Identity); err != nil {
			return nil, err
		}
	case o.Agent == "":
		return nil, problem.New(problem.Usage, "expected a way to sign in at "+t.String()+", found neither an identity file nor an ssh-agent",
			"name a private key's file; or start an agent: eval \"$(ssh-agent)\" && ssh-add")
	}
	return newShell(t, d.open), nil
}

func readIdentity(file string) (cryptossh.Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected a private key in "+file, "ssh-keygen -t ed25519 -f "+file)
	}
	key, err := cryptossh.ParsePrivateKey(text)
	if _, protected := errors.AsType[*cryptossh.PassphraseMissingError](err); protected {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected a key without a passphrase in %s, found one that is protected", file),
			"ssh-add "+file+", then run the same command without the identity file: the agent signs")
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected a private key of OpenSSH in "+file, "see what it is: ssh-keygen -lf "+file)
	}
	return key, nil
}

// dialer opens connections to one host.
type dialer struct {
	target  deploy.Target
	options Options
	pins    *pins
	key     cryptossh.Signer // nil: the agent's
}

// open connects and signs in.
func (d *dialer) open(ctx context.Context) (*link, error) {
	var refused error
	known := false
	config := &cryptossh.ClientConfig{
		User: d.target.User,
		HostKeyCallback: func(_ string, remote net.Addr, key cryptossh.PublicKey) error {
			refused = d.pins.check(remote, key)
			known = refused == nil
			return refused
		},
		HostKeyAlgorithms: d.pins.algorithms(),
		Auth:              []cryptossh.AuthMethod{cryptossh.PublicKeys(d.key)},
	}
	if d.key == nil {
		sock, err := new(net.Dialer).DialContext(ctx, "unix", d.options.Agent)
		if err != nil {
			return nil, problem.Wrap(err, problem.Unauthenticated, "expected an ssh-agent at "+d.options.Agent, `eval "$(ssh-agent)" && ssh-add`)
		}
		defer sock.Close()
		config.Auth = []cryptossh.AuthMethod{cryptossh.PublicKeysCallback(agent.NewClient(sock).Signers)}
	}
	client, err := d.handshake(ctx, config)
	if none, ok := errors.AsType[*cryptossh.AlgorithmNegotiationError](err); ok && len(d.pins.known) > 0 && none.What == "host key" {
		// The host has no key of the pinned type: say which it has.
		config.HostKeyAlgorithms = nil
		if client, again := d.handshake(ctx, config); again == nil {
			_ = client.Close() // it cannot come to this: the callback refuses what is not pinned
		}
	}
	switch {
	case refused != nil:
		return nil, refused
	case err != nil:
		return nil, d.explain(err, known)
	}
	l := newLink(client, nil)
	go l.keepAlive(d.options.keepAlive())
	return l, nil
}

// handshake opens a TCP connection and SSH on it, both within the timeout.
func (d *dialer) handshake(ctx context.Context, config *cryptossh.ClientConfig) (*cryptossh.Client, error) {
	deadline := time.Now().Add(d.options.connectTimeout())
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", d.target.Address())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = conn.SetDeadline(deadline)
	if err == nil {
		var over cryptossh.Conn
		var channels <-chan cryptossh.NewChannel
		var requests <-chan *cryptossh.Request
		if over, channels, requests, err = cryptossh.NewClientConn(conn, d.target.Address(), config); err == nil && stop() {
			if err = conn.SetDeadline(time.Time{}); err == nil {
				return cryptossh.NewClient(over, channels, requests), nil
			}
		}
	}
	stop()
	_ = conn.Close() // the error before it is what matters
	return nil, cmp.Or(err, ctx.Err())
}

// explain turns a failed handshake into what a person reads. Once the host is
// known, only signing in is left to fail, or the network.
func (d *dialer) explain(err error, known bool) error {
	t := d.target
	with, by := "a key of the ssh-agent", ""
	if d.key != nil {
		with, by = "the key of "+d.options.Identity, " -i "+deploy.Quote(d.options.Identity)
	}
	try := fmt.Sprintf("ssh -p %d%s %s@%s true", t.Port, by, t.User, t.Host)
	if _, network := errors.AsType[net.Error](err); known && !network && !errors.Is(err, io.EOF) {
		return problem.Wrap(err, problem.Unauthenticated, fmt.Sprintf("expected %s to take %s for the user %s", t.Address(), with, t.User),
			fmt.Sprintf("add the public key to ~%s/.ssh/authorized_keys on the host, then try: %s", t.User, try))
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("expected an SSH connection to %s within %s", t.Address(), d.options.connectTimeout()),
		"see whether it answers: "+try).WithCode("host_unreachable")
}

// keepAlive asks the host whether it is there and gives the connection up when no
// answer comes: TCP alone would wait for a quarter of an hour.
func (l *link) keepAlive(silence time.Duration) {
	tick := time.NewTicker(silence / 3)
	defer tick.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-tick.C:
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			_, _, _ = l.client.SendRequest("keepalive@openssh.com", true, nil) // a refusal is an answer; an end closes done
		}()
		limit := time.NewTimer(silence * 2 / 3)
		select {
		case <-answered:
		case <-l.done:
		case <-limit.C:
			l.close(fmt.Errorf("the host has not answered for %s", silence))
		}
		limit.Stop()
	}
}
