package ssh_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cryptossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/ssh"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func try(t *testing.T, s deploy.Shell) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := s.Run(ctx, deploy.Command{Args: []string{"true"}})
	if err == nil && out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	return err
}

func fingerprint(t *testing.T, line string) string {
	t.Helper()
	key, _, _, _, err := cryptossh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return cryptossh.FingerprintSHA256(key)
}

// refusal holds an error to what a person needs: both fingerprints and the next
// command.
func refusal(t *testing.T, err error, code string, texts ...string) {
	t.Helper()
	if !problem.Is(err, problem.Refused) {
		t.Fatalf("%v, want a refusal", err)
	}
	e := problem.As(err)
	if e.WireCode() != code {
		t.Errorf("code %s, want %s", e.WireCode(), code)
	}
	for _, text := range append(texts, "ssh-keyscan -p ") {
		if !strings.Contains(e.Message+e.Hint, text) {
			t.Errorf("%s\n%s\nwant it to say %q", e.Message, e.Hint, text)
		}
	}
}

func TestOnlyThePinnedHostKeyIsTaken(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	dir := t.TempDir()
	other := newKey(t, filepath.Join(dir, "other"))
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := cryptossh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	otherType := strings.TrimSpace(string(cryptossh.MarshalAuthorizedKey(public)))
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	at := fmt.Sprintf("[127.0.0.1]:%d ", sshd.target.Port)
	found := fingerprint(t, sshd.HostKey)
	run := func(o ssh.Options) error {
		t.Helper()
		o.Identity = sshd.KeyFile
		return try(t, shell(t)(ssh.New(sshd.target, o)))
	}

	for name, o := range map[string]ssh.Options{
		"its key":                 {HostKeys: []string{sshd.HostKey}},
		"its key among others":    {HostKeys: []string{otherType, other, sshd.HostKey}},
		"its file":                {KnownHosts: sshd.known},
		"a file that knows more":  {KnownHosts: file("more", "example.org "+other+"\n"+at+sshd.HostKey+"\n")},
		"a file of hashed names":  {KnownHosts: hashed(t, file("hashed", at+sshd.HostKey+"\n"))},
		"its key with a comment":  {HostKeys: []string{sshd.HostKey + " root@host"}},
		"its key, file elsewhere": {HostKeys: []string{sshd.HostKey}, KnownHosts: "/no/such/file"},
	} {
		if err := run(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	refusal(t, run(ssh.Options{HostKeys: []string{other}}), "host_key_mismatch", fingerprint(t, other), found)
	refusal(t, run(ssh.Options{HostKeys: []string{otherType}}), "host_key_mismatch", fingerprint(t, otherType), found)
	changed := file("changed", "# a comment\n"+at+other+"\n")
	refusal(t, run(ssh.Options{KnownHosts: changed}), "host_key_mismatch", fingerprint(t, other), found, changed+":2")
	unknown := file("unknown", "127.0.0.1 "+sshd.HostKey+"\n") // port 22's
	refusal(t, run(ssh.Options{KnownHosts: unknown}), "host_key_unknown", found, ">>"+unknown)
	if err := run(ssh.Options{KnownHosts: file("revoked", "@revoked * "+sshd.HostKey+"\n"+at+sshd.HostKey+"\n")}); !problem.Is(err, problem.Refused) || problem.As(err).Code != "host_key_revoked" {
		t.Errorf("a revoked key: %v, want a refusal", err)
	}

	s := shell(t)(ssh.NewSystem(sshd.target, ssh.System{Config: "/dev/null", KnownHosts: changed, Identity: sshd.KeyFile}))
	refusal(t, try(t, s), "host_key_mismatch", found)
	s = shell(t)(ssh.NewSystem(sshd.target, ssh.System{Config: "/dev/null", KnownHosts: file("empty", ""), Identity: sshd.KeyFile}))
	refusal(t, try(t, s), "host_key_unknown")
}

// hashed lets ssh-keygen hide the names of a known_hosts file.
func hashed(t *testing.T, name string) string {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-H", "-f", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(name)
	if err != nil || !strings.HasPrefix(string(text), "|1|") {
		t.Fatalf("%s, %v, want a hashed name", text, err)
	}
	return name
}

func TestWhatIsMissingIsSaidBeforeAnythingConnects(t *testing.T) {
	t.Parallel()
	target, err := deploy.ParseTarget("ssh://agnes@203.0.113.7:2222")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	protected := filepath.Join(dir, "protected")
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := cryptossh.MarshalPrivateKeyWithPassphrase(private, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(protected, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	pinned := newKey(t, filepath.Join(dir, "plain"))
	for name, c := range map[string]struct {
		o    ssh.Options
		want string
	}{
		"no host key":      {ssh.Options{Identity: protected}, "ssh-keyscan -p 2222 203.0.113.7"},
		"no file":          {ssh.Options{KnownHosts: filepath.Join(dir, "none")}, "ssh-keyscan -p 2222 203.0.113.7 >>" + dir},
		"a bad key":        {ssh.Options{HostKeys: []string{"ssh-ed25519 not"}}, "ssh-keyscan"},
		"no way to log in": {ssh.Options{HostKeys: []string{pinned}}, "ssh-add"},
		"no identity file": {ssh.Options{HostKeys: []string{pinned}, Identity: filepath.Join(dir, "none")}, "ssh-keygen"},
		"no key in it":     {ssh.Options{HostKeys: []string{pinned}, Identity: os.Args[0]}, "ssh-keygen -lf"},
		"a passphrase":     {ssh.Options{HostKeys: []string{pinned}, Identity: protected}, "ssh-add " + protected},
	} {
		if _, err := ssh.New(target, c.o); !problem.Is(err, problem.Usage) || !strings.Contains(problem.As(err).Hint, c.want) {
			t.Errorf("%s: %v, want a hint that says %q", name, err, c.want)
		}
	}
	if _, err := ssh.NewSystem(target, ssh.System{Program: filepath.Join(dir, "none")}); !problem.Is(err, problem.Usage) {
		t.Errorf("no ssh: %v", err)
	}
}

func TestAKeyThatTheHostDoesNotTakeIsSaidSo(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	stranger := filepath.Join(t.TempDir(), "stranger")
	newKey(t, stranger)
	for _, s := range []deploy.Shell{
		shell(t)(ssh.New(sshd.target, ssh.Options{HostKeys: []string{sshd.HostKey}, Identity: stranger})),
		shell(t)(ssh.NewSystem(sshd.target, ssh.System{Config: "/dev/null", KnownHosts: sshd.known, Identity: stranger})),
	} {
		if err := try(t, s); !problem.Is(err, problem.Unauthenticated) || problem.As(err).Hint == "" {
			t.Errorf("%v, want that the key is not taken", err)
		}
	}
}

func TestTheAgentSigns(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	text, err := os.ReadFile(sshd.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := cryptossh.ParseRawPrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "agent-") //nolint:usetesting // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, conn) }()
		}
	}()
	options := ssh.Options{HostKeys: []string{sshd.HostKey}, Agent: socket}
	if err := try(t, shell(t)(ssh.New(sshd.target, options))); err != nil {
		t.Error(err)
	}
	if err := ring.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	if err := try(t, shell(t)(ssh.New(sshd.target, options))); !problem.Is(err, problem.Unauthenticated) {
		t.Errorf("an agent without keys: %v", err)
	}
	options.Agent = socket + "-none"
	if err := try(t, shell(t)(ssh.New(sshd.target, options))); !problem.Is(err, problem.Unauthenticated) {
		t.Errorf("no agent: %v", err)
	}
}

// wire is a network between here and the host. It counts connections, and can go
// silent as a cable does that is pulled.
type wire struct {
	port    int
	opened  atomic.Int32
	silence chan struct{}
	once    sync.Once
}

func (w *wire) cut() { w.once.Do(func() { close(w.silence) }) }

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{port: l.Addr().(*net.TCPAddr).Port, silence: make(chan struct{})}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			w.opened.Add(1)
			go w.copy(far, near)
			go w.copy(near, far)
		}
	}()
	return w
}

// copy passes bytes on until the wire is cut; then it keeps both ends open.
func (w *wire) copy(to io.WriteCloser, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-w.silence:
			return
		default:
		}
		if _, werr := to.Write(buffer[:n]); err != nil || werr != nil {
			_ = to.Close()
			return
		}
	}
}

func TestAHostThatGoesSilentIsFound(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	for name, open := range map[string]func(t *testing.T, target deploy.Target) deploy.Shell{
		"own": func(t *testing.T, target deploy.Target) deploy.Shell {
			t.Helper()
			return shell(t)(ssh.New(target, ssh.Options{HostKeys: []string{sshd.HostKey}, Identity: sshd.KeyFile, KeepAlive: 300 * time.Millisecond}))
		},
		"system's": func(t *testing.T, target deploy.Target) deploy.Shell {
			t.Helper()
			known := filepath.Join(t.TempDir(), "known_hosts")
			if err := os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%d %s\n", target.Port, sshd.HostKey), 0o600); err != nil {
				t.Fatal(err)
			}
			return shell(t)(ssh.NewSystem(target, ssh.System{Config: "/dev/null", KnownHosts: known, Identity: sshd.KeyFile, KeepAlive: 3 * time.Second}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, sshd.target.Address())
			target := sshd.target
			target.Port = w.port
			s := open(t, target)
			if err := try(t, s); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			started := filepath.Join(t.TempDir(), "started")
			go func() {
				_, err := s.Run(t.Context(), deploy.Command{Args: []string{"sh", "-c", `touch "$0"; sleep 5`, started}})
				done <- err
			}()
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for _, err := os.Stat(started); errors.Is(err, os.ErrNotExist); _, err = os.Stat(started) {
				<-tick.C
			}
			w.cut()
			began := time.Now()
			select {
			case err := <-done:
				if !problem.Is(err, problem.Unavailable) || problem.As(err).Code != "connection_lost" {
					t.Errorf("%v, want a lost connection", err)
				}
				t.Logf("found after %s: %v", time.Since(began), err)
			case <-time.After(8 * time.Second):
				t.Fatal("the silence was not noticed")
			}
		})
	}
}

func TestAllCommandsOfAHostShareOneConnection(t *testing.T) {
	t.Parallel()
	sshd := start(t)
	w := newWire(t, sshd.target.Address())
	target := sshd.target
	target.Port = w.port
	s := shell(t)(ssh.New(target, ssh.Options{HostKeys: []string{sshd.HostKey}, Identity: sshd.KeyFile}))
	var all sync.WaitGroup
	for range 15 {
		all.Go(func() {
			if err := try(t, s); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := w.opened.Load(); n != 1 {
		t.Errorf("%d connections, want one", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := try(t, s); !problem.Is(err, problem.Internal) {
		t.Errorf("after Close: %v, want an error", err)
	}
}

func TestTheSystemsSSHGoesThroughAnotherHost(t *testing.T) {
	t.Parallel()
	sshd, jump := start(t), start(t)
	w := newWire(t, jump.target.Address())
	through := jump.target
	through.Port = w.port
	dir := filepath.Join(t.TempDir(), "it's 100% odd")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(dir, "identity")
	text, err := os.ReadFile(sshd.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(identity, text, 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(sshd.KeyFile + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(jump.KeyFile+".pub", key, 0o600); err != nil { // what jump takes
		t.Fatal(err)
	}
	known := filepath.Join(dir, "known_hosts")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(known, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	direct := fmt.Sprintf("[127.0.0.1]:%d %s\n", sshd.target.Port, sshd.HostKey)
	write(direct)
	o := ssh.System{Config: "/dev/null", KnownHosts: known, Identity: identity, Jump: through}
	if err := try(t, shell(t)(ssh.NewSystem(sshd.target, o))); !problem.Is(err, problem.Refused) {
		t.Errorf("a jump host whose key is not known: %v, want a refusal", err)
	}
	before := w.opened.Load()
	write(direct + fmt.Sprintf("[127.0.0.1]:%d %s\n", w.port, jump.HostKey))
	if err := try(t, shell(t)(ssh.NewSystem(sshd.target, o))); err != nil {
		t.Fatal(err)
	}
	if n := w.opened.Load() - before; n != 1 {
		t.Errorf("%d connections went through the jump host, want one", n)
	}
}

func TestTheSystemsSSHLeavesNothingBehind(t *testing.T) {
	sshd := start(t)
	short, err := os.MkdirTemp("/tmp", "left-") //nolint:usetesting // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	t.Setenv("TMPDIR", short)
	s := shell(t)(ssh.NewSystem(sshd.target, ssh.System{Config: "/dev/null", KnownHosts: sshd.known, Identity: sshd.KeyFile}))
	if err := try(t, s); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(short); err != nil || len(left) != 1 {
		t.Fatalf("%v, %v, want the socket's folder", left, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(short); err != nil || len(left) != 0 {
		t.Errorf("%v, %v, want nothing", left, err)
	}
}
