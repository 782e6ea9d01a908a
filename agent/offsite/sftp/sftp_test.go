package sftp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/offsitetest"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/sftp"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
)

const (
	name  = "instance/agnes-1.tar.zst.age"
	piece = 4 << 20
)

func key(t *testing.T, s *sshtest.Server) redact.Secret {
	t.Helper()
	data, err := os.ReadFile(s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return redact.Secret(data)
}

func options(t *testing.T, s *sshtest.Server, addr, dir string) sftp.Options {
	t.Helper()
	u, err := offsite.ParseURL("sftp://" + s.User + "@" + addr + dir)
	if err != nil {
		t.Fatal(err)
	}
	return sftp.Options{
		URL: u, Key: key(t, s), HostKey: s.HostKey, Timeout: 5 * time.Second,
		Backoff: offsite.Backoff{Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }},
	}
}

func open(t *testing.T, opt sftp.Options) *sftp.Target {
	t.Helper()
	target, err := sftp.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target
}

func TestSFTPConforms(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t)
	offsitetest.Conform(t, offsitetest.Harness{
		Piece:   piece,
		Open:    func(t *testing.T) offsite.Target { return open(t, options(t, s, s.Addr, t.TempDir())) },
		Missing: func(t *testing.T) offsite.Target { return open(t, options(t, s, s.Addr, t.TempDir()+"/none")) },
		Refused: func(t *testing.T) offsite.Target {
			other := sshtest.Start(t)
			opt := options(t, s, s.Addr, t.TempDir())
			opt.Key = key(t, other)
			return open(t, opt)
		},
		Unreachable: func(t *testing.T) offsite.Target {
			gone := sshtest.Start(t)
			opt := options(t, gone, gone.Addr, t.TempDir())
			gone.Stop()
			return open(t, opt)
		},
	})
}

func TestOnlyThePinnedHostIsTrusted(t *testing.T) {
	t.Parallel()
	s, other := sshtest.Start(t), sshtest.Start(t)
	opt := options(t, s, s.Addr, t.TempDir())

	opt.HostKey = other.HostKey
	err := open(t, opt).Put(t.Context(), name, 1, strings.NewReader("x"))
	if !offsite.HasCode(err, offsite.CodeHostKey) || !strings.Contains(err.Error(), "SHA256:") || problem.As(err).Hint == "" {
		t.Errorf("another host's key: %v", err)
	}
	opt.HostKey = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCqGKukO1De7zhZj6+H0qtjTkVxwTCpvKe4eCZ0FPqri0cb2JZfXJ/DgYSF6vUpwmJG8wVQZKjeGcjDOL5UlsuusFncCzWBQ7RKNUSesmQRMSGkVb1/3j+skZ6UtW+5u09lHNsj6tQ51s1SPrCBkedbNf0Tp0GbMJDyR4e9T04ZZw=="
	if err := open(t, opt).Put(t.Context(), name, 1, strings.NewReader("x")); !offsite.HasCode(err, offsite.CodeHostKey) {
		t.Errorf("a key of another kind: %v", err)
	}
	for _, none := range []string{"", "# nothing", "no key"} {
		opt.HostKey = none
		if _, err := sftp.New(opt); !problem.Is(err, problem.Usage) {
			t.Errorf("host key %q: %v", none, err)
		}
	}
	// One of several, as a line of known_hosts.
	opt.HostKey = other.HostKey + "\n[127.0.0.1]:22 " + s.HostKey + "\n"
	offsitetest.Put(t, open(t, opt), name, []byte("x"))
}

func TestKeysThatCannotServeAreNamed(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t)
	opt := options(t, s, s.Addr, t.TempDir())
	for _, bad := range []redact.Secret{"", "hunter2-hunter2"} {
		opt.Key = bad
		_, err := sftp.New(opt)
		if !problem.Is(err, problem.Usage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}

// wire carries bytes to a server and cuts connections.
type wire struct {
	net.Listener
	to    string
	up    atomic.Int64 // bytes to the server until the next cut; none where 0
	down  atomic.Int64
	cuts  atomic.Int64
	hung  atomic.Bool // it takes bytes and carries none
	conns sync.WaitGroup
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: ln, to: to}
	w.conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.conns.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close() })
	return w
}

func (w *wire) carry(c net.Conn) {
	s, err := (&net.Dialer{}).Dial("tcp", w.to)
	if err != nil {
		_ = c.Close()
		return
	}
	end := sync.OnceFunc(func() { _, _ = c.Close(), s.Close() })
	pump := func(to, from net.Conn, left *atomic.Int64) {
		defer end()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 && !w.hung.Load() {
				if before := left.Load(); before > 0 && left.Add(-int64(n)) <= 0 {
					left.Store(0)
					w.cuts.Add(1)
					return // without these bytes
				}
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	go pump(s, c, &w.up)
	pump(c, s, &w.down)
}

func TestALostConnectionIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t)
	w := newWire(t, s.Addr)
	dir := t.TempDir()
	target := open(t, options(t, s, w.Addr().String(), dir))
	data := offsitetest.Bytes(3*piece + 999)
	w.up.Store(piece + piece/2) // in the middle of the second piece
	offsitetest.Put(t, target, name, data)
	if w.cuts.Load() != 1 {
		t.Fatalf("%d cuts, want 1", w.cuts.Load())
	}
	offsitetest.Holds(t, target, name, data)

	w.down.Store(2 * piece)
	var got bytes.Buffer
	vault := offsite.Vault{Target: target, Backoff: offsite.Backoff{Wait: func(context.Context, time.Duration) error { return nil }}}
	if err := vault.Raw(t.Context(), offsite.Copy{Instance: "instance", ID: "1", Size: int64(len(data))}, &got); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("read over a cut: %d bytes, %v", got.Len(), err)
	}
	if w.cuts.Load() != 2 {
		t.Errorf("%d cuts, want 2", w.cuts.Load())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "instance", ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAServerThatDiesIsUnreachable(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t)
	target := open(t, options(t, s, s.Addr, t.TempDir()))
	data := offsitetest.Bytes(2 * piece)
	dies := io.MultiReader(bytes.NewReader(data[:piece]), readerFunc(func(p []byte) (int, error) { s.Stop(); return 0, io.EOF }), bytes.NewReader(data[piece:]))
	if err := target.Put(t.Context(), name, int64(len(data)), dies); !offsite.HasCode(err, offsite.CodeUnreachable) {
		t.Errorf("put: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAFullServerIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size=12m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("NOT RUN: a disk of its own cannot be mounted: %v", err)
		}
		t.Skipf("NOT RUN: a disk of its own cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := sshtest.Start(t)
	target := open(t, options(t, s, s.Addr, dir))
	big := offsitetest.Bytes(16 << 20)
	if err := target.Put(t.Context(), name, int64(len(big)), bytes.NewReader(big)); !offsite.HasCode(err, offsite.CodeNoSpace) {
		t.Errorf("put of more than is free: %v", err)
	}
	data := big[:3*piece-piece/2]
	fills := io.MultiReader(bytes.NewReader(data[:piece]), readerFunc(func([]byte) (int, error) {
		_ = os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 12<<20), 0o600) // until it is full
		return 0, io.EOF
	}), bytes.NewReader(data[piece:]))
	if err := target.Put(t.Context(), name, int64(len(data)), fills); !offsite.HasCode(err, offsite.CodeNoSpace) || problem.As(err).Hint == "" {
		t.Errorf("put while the disk fills: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	offsitetest.Put(t, target, name, data)
}

func TestAFolderThatIsNotOursIsARefusal(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t, "ForceCommand internal-sftp -R") // read-only
	target := open(t, options(t, s, s.Addr, t.TempDir()))
	if err := target.Put(t.Context(), name, 1, strings.NewReader("x")); !offsite.HasCode(err, offsite.CodeCredentials) || problem.As(err).Hint == "" {
		t.Errorf("put: %v", err)
	}
}

// within fails the test where f takes longer than a stop of the instance may.
func within(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

func TestAServerThatIsSilentHoldsNothingUp(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t)
	w := newWire(t, s.Addr)
	target := open(t, options(t, s, w.Addr().String(), t.TempDir()))
	data := offsitetest.Bytes(2 * piece)
	offsitetest.Put(t, target, name, data)

	ctx, cancel := context.WithCancel(t.Context())
	hangs := io.MultiReader(bytes.NewReader(data[:piece]), readerFunc(func([]byte) (int, error) {
		w.hung.Store(true)
		time.AfterFunc(100*time.Millisecond, cancel)
		return 0, io.EOF
	}), bytes.NewReader(data[piece:]))
	err := within(t, "an upload", func() error { return target.Put(ctx, name+"2", int64(len(data)), hangs) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}

	w.hung.Store(false)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	r, err := target.Get(ctx, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	w.hung.Store(true)
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := within(t, "a download", func() error { _, err := io.Copy(io.Discard, r); return err }); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	w.hung.Store(false)
	if list, err := target.List(t.Context(), ""); err != nil || len(list) != 1 { // with a new connection
		t.Errorf("list: %v, %v", list, err)
	}

	w.hung.Store(true)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := within(t, "a list", func() error { _, err := target.List(ctx, ""); return err }); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	w.hung.Store(false)
	if _, err := target.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	w.hung.Store(true)
	if err := within(t, "closing", target.Close); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestAServerWhoseSFTPIsSilentIsUnreachable(t *testing.T) {
	t.Parallel()
	s := sshtest.Start(t, "ForceCommand sleep 60")
	opt := options(t, s, s.Addr, t.TempDir())
	opt.Timeout, opt.Backoff.Attempts = 2*time.Second, 2
	target := open(t, opt)
	if err := within(t, "a list", func() error { _, err := target.List(t.Context(), ""); return err }); !offsite.HasCode(err, offsite.CodeUnreachable) {
		t.Errorf("list: %v", err)
	}
}
