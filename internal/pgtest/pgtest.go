// Package pgtest gives tests the real things that remote tables need: a
// PostgreSQL server of the test's own, and DuckDB's extension binaries.
//
// `make deps-test` installs both. Where they are missing, a test is skipped
// with a word on that, and fails where CI is "true".
package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running PostgreSQL on 127.0.0.1 with password login.
type Server struct {
	Port     string
	User     string // superuser
	Password string

	t    testing.TB
	bin  string
	dir  string
	cred *syscall.Credential
	cmd  *exec.Cmd
	log  string
}

// missing ends a test that lacks something.
func missing(t testing.TB, what string) {
	t.Helper()
	text := fmt.Sprintf("%s: NOT RUN: there is no %s. Next: make deps-test", t.Name(), what)
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// Extensions returns the directory with DuckDB's extension binaries.
func Extensions(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("AGNES_TEST_DATA")
	if dir == "" {
		_, self, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(self), "../../.tools/data")
	}
	dir, err := filepath.Abs(filepath.Join(dir, "extensions"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres_scanner", "sqlite_scanner"} {
		if _, err := os.Stat(filepath.Join(dir, name+".duckdb_extension")); err != nil {
			missing(t, filepath.Join(dir, name+".duckdb_extension"))
		}
	}
	return dir
}

// Start starts a server that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		missing(t, "PostgreSQL in /usr/lib/postgresql")
	}
	dir, err := os.MkdirTemp("", "agnes-pg-") //nolint:usetesting // t.TempDir lies below folders that the server's user cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{User: "postgres", Password: "pg-Passw0rd-" + strconv.Itoa(os.Getpid()), t: t, bin: filepath.Dir(found[len(found)-1]), dir: dir, log: filepath.Join(dir, "log")}
	if os.Geteuid() == 0 { // PostgreSQL does not run as root
		account, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(account.Uid, 10, 32)
		gid, _ := strconv.ParseUint(account.Gid, 10, 32)
		s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(s.Password), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := s.command("initdb", "-D", filepath.Join(dir, "data"), "-U", s.User, "--auth=scram-sha-256", "--pwfile="+password, "--no-sync", "--encoding=UTF8").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(s.t.Context()), filepath.Join(s.bin, name), args...) //nolint:gosec // PostgreSQL's own programs
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "PGPASSWORD=" + s.Password}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

// Restart starts a stopped server again, on the same port.
func (s *Server) Restart() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-p", s.Port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "log_statement=all", "-c", "shared_buffers=16MB")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.command("pg_isready", "-q", "-h", "127.0.0.1", "-p", s.Port).Run() != nil {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("PostgreSQL is not ready after 30 s\n%s", s.Log())
		}
	}
}

// Stop ends the server at once; further calls do nothing.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// SQL runs statements as the superuser and returns what they answer, without
// headers.
func (s *Server) SQL(text string) string {
	s.t.Helper()
	cmd := s.command("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", s.Port, "-U", s.User, "-d", "postgres")
	cmd.Stdin = strings.NewReader(text)
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("psql: %v\n%s", err, &failure)
	}
	return strings.TrimSpace(out.String())
}

// URL is what _remote_attach holds to reach the server as user.
func (s *Server) URL(user string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%s dbname=postgres user=%s", s.Port, user)
}

// Log returns what the server has logged, with every statement that it ran.
func (s *Server) Log() string {
	s.t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}
