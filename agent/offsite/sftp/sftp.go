// Package sftp keeps backups on an SSH server, over SFTP.
//
// The server's host key is pinned: the first connection is checked like every
// other, and there is no way to accept an unknown key. A backup is written
// under a temporary name, flushed (fsync@openssh.com) and then renamed, which
// OpenSSH refuses where the name is taken. SFTP has no checksum of a whole
// file; SSH protects each packet, and the size is compared.
//
// A connection that is lost is made anew, and writing goes on with the piece
// that was not acknowledged.
package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Options are what a target is made of.
type Options struct {
	URL     offsite.URL   // sftp://USER@HOST[:PORT]/PATH
	Key     redact.Secret // private key, in OpenSSH or PEM form, without a passphrase
	HostKey string        // lines of known_hosts, or "TYPE BASE64"; several are alternatives
	Backoff offsite.Backoff
	Timeout time.Duration // of connecting; 15 s
}

// Target is the folder on the server. It implements offsite.Target.
type Target struct {
	opt    Options
	dir    string
	config *ssh.ClientConfig

	mu   sync.Mutex
	live *session // nil where there is none
}

// session is one connection to the server.
type session struct {
	raw    net.Conn
	client *sftp.Client
}

// cut ends the connection. It goes by the connection itself: both SSH and SFTP
// would say goodbye first and wait for a server that may be silent for good.
func (s *session) cut() {
	_ = s.raw.Close()
	_ = s.client.Close()
}

const (
	piece     = 4 << 20 // what is sent again after a lost connection
	temporary = ".partial-"
	abandoned = 24 * time.Hour // a temporary file of a crash
	cleanTime = 5 * time.Second

	// Codes of SFTP version 3 (draft-ietf-secsh-filexfer-02, section 7) that
	// the library does not turn into errors of its own.
	statusFailure        = 4
	statusNoConnection   = 6
	statusConnectionLost = 7
)

// New returns the target. It checks the keys and connects to nothing yet.
func New(opt Options) (*Target, error) {
	t := &Target{opt: opt, dir: opt.URL.Path}
	if opt.Timeout == 0 {
		t.opt.Timeout = 15 * time.Second
	}
	if opt.Key == "" {
		return nil, problem.New(problem.Usage, "No key is set for the SFTP target.", "Set AGNES_BACKUP_SFTP_KEY to the path of a private key without a passphrase.")
	}
	signer, err := ssh.ParsePrivateKey([]byte(opt.Key.Reveal()))
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return nil, problem.New(problem.Usage, "The key of the SFTP target is locked with a passphrase, which nobody is there to type.",
			"Make one for this purpose alone: ssh-keygen -t ed25519 -N '' -f backup-key")
	}
	if err != nil {
		return nil, problem.New(problem.Usage, "The key of the SFTP target is no SSH private key.", "Set AGNES_BACKUP_SFTP_KEY to the path of one: ssh-keygen -t ed25519 -N '' -f backup-key")
	}
	pinned, err := hostKeys(opt.HostKey)
	if err != nil {
		return nil, err
	}
	t.config = &ssh.ClientConfig{
		User: opt.URL.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: t.opt.Timeout,
		HostKeyCallback: t.check(pinned), HostKeyAlgorithms: algorithms(pinned),
	}
	return t, nil
}

const scanHint = "Read it on the server itself (cat /etc/ssh/ssh_host_ed25519_key.pub), then set AGNES_BACKUP_SFTP_HOST_KEY to that line."

// hostKeys reads pinned keys.
func hostKeys(text string) ([]ssh.PublicKey, error) {
	var keys []ssh.PublicKey
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			_, _, key, _, _, err = ssh.ParseKnownHosts([]byte(line))
		}
		if err != nil {
			return nil, problem.New(problem.Usage, fmt.Sprintf("AGNES_BACKUP_SFTP_HOST_KEY holds %.30q, which is no public host key.", line), scanHint)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, problem.New(problem.Usage, "The host key of the SFTP target is not set, and an unknown server is never trusted.", scanHint)
	}
	return keys, nil
}

// algorithms makes the server show a key of a kind that is pinned.
func algorithms(keys []ssh.PublicKey) []string {
	var names []string
	for _, k := range keys {
		if k.Type() == ssh.KeyAlgoRSA {
			names = append(names, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		names = append(names, k.Type())
	}
	return names
}

func (t *Target) check(pinned []ssh.PublicKey) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, shown ssh.PublicKey) error {
		want := ""
		for _, k := range pinned {
			if string(k.Marshal()) == string(shown.Marshal()) {
				return nil
			}
			want += " " + ssh.FingerprintSHA256(k)
		}
		return offsite.Fault(offsite.CodeHostKey, nil, fmt.Sprintf("The server %s shows the host key %s; expected%s.", t.opt.URL.Host, ssh.FingerprintSHA256(shown), want),
			"Somebody may stand between. If the server's key was changed on purpose: "+scanHint)
	}
}

// Close implements offsite.Target.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		t.live.cut()
	}
	t.live = nil
	return nil
}

// drop ends a connection. What follows is a new one, or none.
func (t *Target) drop(s *session) {
	s.cut()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == s {
		t.live = nil
	}
}

// session returns the connection, made where there is none.
func (t *Target) session(ctx context.Context) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		return t.live, nil
	}
	addr := t.opt.URL.Host
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "22")
	}
	raw, err := (&net.Dialer{Timeout: t.opt.Timeout, KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, t.fault(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	deadline := time.Now().Add(t.opt.Timeout)
	_ = raw.SetDeadline(deadline) // until SFTP has answered
	c, chans, reqs, err := ssh.NewClientConn(raw, addr, t.config)
	if err != nil {
		_ = raw.Close()
		return nil, t.loginFault(err)
	}
	client, err := sftp.NewClient(ssh.NewClient(c, chans, reqs), sftp.UseConcurrentWrites(true))
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, t.fault(err)
		}
		return nil, offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The server %s gives no SFTP", t.opt.URL.Host), "Switch it on in its sshd_config: Subsystem sftp internal-sftp")
	}
	_ = raw.SetDeadline(time.Time{})
	t.live = &session{raw, client}
	return t.live, nil
}

// do runs f with a connection, with a new one each time that it is lost. It
// ends with ctx even where the server says nothing anymore.
func (t *Target) do(ctx context.Context, f func(*sftp.Client) error) error {
	return t.opt.Backoff.Retry(ctx, func() error {
		return t.once(ctx, func(s *session) error { return f(s.client) })
	})
}

func (t *Target) once(ctx context.Context, f func(*session) error) error {
	s, err := t.session(ctx)
	if err == nil {
		stop := context.AfterFunc(ctx, s.cut)
		err = t.fault(f(s))
		stop()
		if offsite.Transient(err) || ctx.Err() != nil {
			t.drop(s)
		}
	}
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}

// Put implements offsite.Target.
func (t *Target) Put(ctx context.Context, name string, size int64, r io.Reader) error {
	final := path.Join(t.dir, name)
	part := path.Join(path.Dir(final), temporary+rand.Text())
	if err := t.do(ctx, func(c *sftp.Client) error { return t.prepare(c, final, name, size) }); err != nil {
		return err
	}
	err := offsite.Chunks(r, size, piece, func(offset int64, data []byte, _ bool) error {
		return t.do(ctx, func(c *sftp.Client) error { return write(c, part, offset, data) })
	})
	if err == nil {
		err = t.do(ctx, func(c *sftp.Client) error { return t.finish(c, part, final, name, size) })
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		_ = t.once(clean, func(s *session) error {
			err = t.perhapsFull(s.client, err)
			return s.client.Remove(part) // what stays is swept a day later
		})
	}
	return err
}

func (t *Target) prepare(c *sftp.Client, final, name string, size int64) error {
	if err := t.exists(c); err != nil {
		return err
	}
	if _, err := c.Lstat(final); err == nil {
		return t.taken(name)
	}
	if free, ok := space(c, t.dir); ok && free < size {
		return t.full(fmt.Errorf("%d bytes are free, %d are needed", free, size))
	}
	if err := c.MkdirAll(path.Dir(final)); err != nil {
		return err
	}
	entries, err := c.ReadDir(path.Dir(final))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) && time.Since(e.ModTime()) > abandoned {
			_ = c.Remove(path.Join(path.Dir(final), e.Name()))
		}
	}
	return err
}

// write puts a piece at its place. It says the same each time, so that a lost
// answer does no harm.
func write(c *sftp.Client, part string, offset int64, data []byte) (err error) {
	f, err := c.OpenFile(part, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if offset == 0 {
		if err := f.Chmod(0o600); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(data, offset)
	return err
}

// finish checks the file and gives it its name.
func (t *Target) finish(c *sftp.Client, part, final, name string, size int64) error {
	fi, err := c.Lstat(part)
	if errors.Is(err, fs.ErrNotExist) {
		// An answer to the rename may have been lost.
		if done, derr := c.Lstat(final); derr == nil && done.Size() == size {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if fi.Size() != size {
		return offsite.Fault(offsite.CodeDamaged, nil, fmt.Sprintf("Expected %d bytes at %s, found %d.", size, t.opt.URL, fi.Size()), "It is tried again; if it stays so, check the server's disk.")
	}
	if _, ok := c.HasExtension("fsync@openssh.com"); ok {
		f, err := c.OpenFile(part, os.O_WRONLY)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	if err := c.Rename(part, final); err != nil {
		if _, there := c.Lstat(final); there == nil {
			return t.taken(name)
		}
		return err
	}
	return nil
}

// Get implements offsite.Target.
func (t *Target) Get(ctx context.Context, name string, offset int64) (r io.ReadCloser, err error) {
	err = t.opt.Backoff.Retry(ctx, func() error {
		return t.once(ctx, func(s *session) (err error) {
			r, err = t.open(ctx, s, name, offset)
			return err
		})
	})
	return r, err
}

func (t *Target) open(ctx context.Context, s *session, name string, offset int64) (io.ReadCloser, error) {
	f, err := s.client.Open(path.Join(t.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		if err := t.exists(s.client); err != nil {
			return nil, err
		}
		return nil, offsite.Fault(offsite.CodeNoObject, err, fmt.Sprintf("There is no %s at %s", name, t.opt.URL), "See what is there: agnes backup list --target "+t.opt.URL.String())
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t.stream(ctx, s, f), nil
}

// stream reads f with many requests on their way at once. Where ctx ends before
// its reader is closed, so does the connection: the server may be silent.
func (t *Target) stream(ctx context.Context, s *session, f *sftp.File) io.ReadCloser {
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() {
		_ = pw.CloseWithError(ctx.Err())
		t.drop(s)
	})
	go func() {
		_, err := f.WriteTo(pw)
		_ = f.Close() // it was only read
		stop()
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.drop(s) // whoever reads on gets a new connection
		}
		_ = pw.CloseWithError(err)
	}()
	return streamed{pr, stop}
}

// streamed is a file that is being read.
type streamed struct {
	*io.PipeReader

	stop func() bool // leaves the connection alone from now on
}

// Close serves io.Closer.
func (s streamed) Close() error {
	s.stop()
	return s.PipeReader.Close()
}

// List implements offsite.Target.
func (t *Target) List(ctx context.Context, prefix string) (list []offsite.Object, err error) {
	err = t.do(ctx, func(c *sftp.Client) error {
		list = nil
		if err := t.exists(c); err != nil {
			return err
		}
		folders, err := c.ReadDir(t.dir)
		if err != nil {
			return err
		}
		for _, folder := range folders {
			if !folder.IsDir() {
				if strings.HasPrefix(folder.Name(), prefix) {
					list = append(list, object(folder.Name(), folder))
				}
				continue
			}
			if at := folder.Name() + "/"; !strings.HasPrefix(at, prefix) && !strings.HasPrefix(prefix, at) {
				continue
			}
			files, err := c.ReadDir(path.Join(t.dir, folder.Name()))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				continue // gone since, or others'
			}
			if err != nil {
				return err
			}
			for _, f := range files {
				if name := folder.Name() + "/" + f.Name(); f.Mode().IsRegular() && strings.HasPrefix(name, prefix) && !strings.HasPrefix(f.Name(), temporary) {
					list = append(list, object(name, f))
				}
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b offsite.Object) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

func object(name string, fi os.FileInfo) offsite.Object {
	return offsite.Object{Name: name, Size: fi.Size(), Stored: fi.ModTime()}
}

// Delete implements offsite.Target.
func (t *Target) Delete(ctx context.Context, name string) error {
	return t.do(ctx, func(c *sftp.Client) error {
		if err := t.exists(c); err != nil {
			return err
		}
		if err := c.Remove(path.Join(t.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}
