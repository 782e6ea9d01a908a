package ssh_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cryptossh "golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/shelltest"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/ssh"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
)

// host is an sshd with what the adapters want to know of it.
type host struct {
	*sshtest.Server
	target deploy.Target
	known  string // a known_hosts file
}

func start(t *testing.T, config ...string) host {
	t.Helper()
	s := sshtest.Start(t, config...)
	target, err := deploy.ParseTarget("ssh://" + s.User + "@" + s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%d %s\n", target.Port, s.HostKey), 0o600); err != nil {
		t.Fatal(err)
	}
	return host{s, target, known}
}

// newKey writes a private key and returns its public half.
func newKey(t *testing.T, file string) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := cryptossh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := cryptossh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(cryptossh.MarshalAuthorizedKey(key)))
}

// shell takes what New and NewSystem return.
func shell(t *testing.T) func(*ssh.Shell, error) deploy.Shell {
	t.Helper()
	return func(s *ssh.Shell, err error) deploy.Shell {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
}

// silent is a host that takes connections and says nothing: it listens, and
// nobody accepts.
func silent(t *testing.T, like deploy.Target) deploy.Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	like.Port = l.Addr().(*net.TCPAddr).Port
	return like
}

func TestAHostThatForbidsForwardingSaysSo(t *testing.T) {
	t.Parallel()
	sshd := start(t, "AllowTcpForwarding no")
	for name, s := range map[string]deploy.Shell{
		"of its own":       shell(t)(ssh.New(sshd.target, ssh.Options{HostKeys: []string{sshd.HostKey}, Identity: sshd.KeyFile})),
		"the system's ssh": shell(t)(ssh.NewSystem(sshd.target, ssh.System{Config: "/dev/null", KnownHosts: sshd.known, Identity: sshd.KeyFile})),
	} {
		_, err := s.Dial(t.Context(), "tcp", sshd.Addr)
		if p := problem.As(err); p.Code != deploy.NoForwarding || p.Kind != problem.Refused || !strings.Contains(p.Hint, "AllowTcpForwarding") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnotherMachineIsAShell(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	options := ssh.Options{HostKeys: []string{sshd.HostKey}, Identity: sshd.KeyFile}
	shelltest.Run(t, shelltest.Host{
		New: func(t *testing.T) deploy.Shell { return shell(t)(ssh.New(sshd.target, options)) },
		Cut: func(*testing.T) { sshd.Restart() },
		Unreachable: func(t *testing.T, timeout time.Duration) deploy.Shell {
			o := options
			o.ConnectTimeout = timeout
			return shell(t)(ssh.New(silent(t, sshd.target), o))
		},
	})
}

func TestAnotherMachineIsAShellThroughTheSystemsSSH(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	options := ssh.System{Config: "/dev/null", KnownHosts: sshd.known, Identity: sshd.KeyFile}
	shelltest.Run(t, shelltest.Host{
		New: func(t *testing.T) deploy.Shell { return shell(t)(ssh.NewSystem(sshd.target, options)) },
		Cut: func(*testing.T) { sshd.Restart() },
		Unreachable: func(t *testing.T, timeout time.Duration) deploy.Shell {
			o := options
			o.ConnectTimeout = timeout
			return shell(t)(ssh.NewSystem(silent(t, sshd.target), o))
		},
	})
}
