package gitrefs_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
	"github.com/keboola/agnes-the-ai-analyst/release/refstest"
)

// git runs git without anybody's configuration and returns its output.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.com", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// bare makes a bare repository with n commits.
func bare(t testing.TB, n int) (path string, commits []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "r.git")
	git(t, ".", "init", "-q", "--bare", "-b", "main", path)
	git(t, path, "config", "http.receivepack", "true")
	var in strings.Builder
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\nmark :%d\ncommitter t <t@example.com> %d +0000\ndata 6\ncommit\n", i+1, 1775000000+i)
		// Text that does not compress: reading a tag must not transfer it.
		var noise strings.Builder
		for range 40 {
			noise.WriteString(rand.Text() + "\n")
		}
		fmt.Fprintf(&in, "M 644 inline file\ndata <<END\n%sEND\n\n", noise.String())
	}
	cmd := exec.Command("git", "fast-import", "--quiet")
	cmd.Dir, cmd.Stdin = path, strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git fast-import: %v\n%s", err, out)
	}
	commits = strings.Fields(git(t, path, "rev-list", "--reverse", "refs/heads/main"))
	if len(commits) != n {
		t.Fatalf("made %d commits, want %d", len(commits), n)
	}
	return path, commits
}

func open(t testing.TB, location string, o gitrefs.Options) *gitrefs.Refs {
	t.Helper()
	refs, err := gitrefs.Open(location, o)
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

func repository(t *testing.T, path string, commits []string, location string, o gitrefs.Options) refstest.Repository {
	return refstest.Repository{
		Refs: open(t, location, o), Another: open(t, location, o), Commits: commits, Atomic: true,
		Plant: func(ref, commit string) { plant(t, path, ref, commit) },
	}
}

// plant writes a loose ref: quicker than a process for each.
func plant(t *testing.T, path, ref, commit string) {
	file := filepath.Join(path, filepath.FromSlash(ref))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(commit+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serveHTTP serves a folder by git's own http-backend. A password may be asked.
func serveHTTP(t *testing.T, folder, password string) (url string) {
	t.Helper()
	backend := &cgi.Handler{
		Path:   filepath.Join(git(t, ".", "--exec-path"), "git-http-backend"),
		Stderr: io.Discard,
		Env:    []string{"GIT_PROJECT_ROOT=" + folder, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "REMOTE_USER=t"},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != password {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// serveDaemon serves a folder by git daemon.
func serveDaemon(t *testing.T, folder string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	cmd := exec.Command(filepath.Join(git(t, ".", "--exec-path"), "git-daemon"), "--listen=127.0.0.1", fmt.Sprintf("--port=%d", addr.Port),
		"--base-path="+folder, "--export-all", "--enable=receive-pack", "--reuseaddr")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", addr.String())
		if err == nil {
			conn.Close()
			return "git://" + addr.String()
		}
		if time.Now().After(deadline) {
			t.Fatalf("git daemon does not listen: %v %s", err, said.String())
		}
	}
}

// sshHost is an ssh server that runs what git asks for, and an agent with the
// one key that it lets in.
type sshHost struct {
	url, agent, knownHosts string
	address                string
}

func signer(t *testing.T) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, key
}

func serveSSH(t *testing.T) sshHost {
	t.Helper()
	host, _ := signer(t)
	user, userKey := signer(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() == "git" && bytes.Equal(key.Marshal(), user.PublicKey().Marshal()) {
			return &ssh.Permissions{}, nil
		}
		return nil, fmt.Errorf("who is %s", c.User())
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveConn(conn, config)
		}
	}()

	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: &userKey}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent") //nolint:usetesting // a socket's path must be short, and t.TempDir's is not
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := sshHost{address: l.Addr().String(), url: "ssh://git@" + l.Addr().String(), agent: filepath.Join(dir, "s"), knownHosts: filepath.Join(dir, "known_hosts")}
	al, err := net.Listen("unix", h.agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { al.Close() })
	go func() {
		for {
			conn, err := al.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keyring, conn); conn.Close() }()
		}
	}()
	line := knownhosts.Line([]string{knownhosts.Normalize(h.address)}, host.PublicKey())
	if err := os.WriteFile(h.knownHosts, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func serveConn(conn net.Conn, config *ssh.ServerConfig) {
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		ch, reqs, err := offered.Accept()
		if err != nil {
			return
		}
		go func() {
			defer ch.Close()
			for req := range reqs {
				if req.Type != "exec" {
					_ = req.Reply(false, nil)
					continue
				}
				_ = req.Reply(true, nil)
				cmd := exec.Command("sh", "-c", string(req.Payload[4:]))
				cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
				in, _ := cmd.StdinPipe()
				go func() { _, _ = io.Copy(in, ch); in.Close() }()
				code := byte(0)
				if cmd.Run() != nil {
					code = 1
				}
				_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, code})
				return
			}
		}()
	}
}
