// Package sshtest gives tests a real OpenSSH server of their own.
//
// It listens on a free port of 127.0.0.1, lets the current user in with one key
// and serves SFTP. `make deps` installs it. Where it is missing, a test is
// skipped with a word on that, and fails where CI is "true".
package sshtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running sshd.
type Server struct {
	Addr    string // 127.0.0.1:PORT
	User    string
	KeyFile string // private key that the server lets in
	HostKey string // "ssh-ed25519 AAAA…"
	Dir     string // configuration and log

	t       testing.TB
	program string
	cmd     *exec.Cmd
	log     string
}

func missing(t testing.TB, what string) {
	t.Helper()
	text := fmt.Sprintf("%s: NOT RUN: there is no %s. Next: apt-get install openssh-server", t.Name(), what)
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// Start starts a server that ends with the test. config are further lines of
// its sshd_config.
func Start(t testing.TB, config ...string) *Server {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd = "/usr/sbin/sshd"; !isFile(sshd) {
			missing(t, "sshd")
		}
	}
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		missing(t, "ssh-keygen")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, User: me.Username, Dir: t.TempDir()}
	s.log = filepath.Join(s.Dir, "sshd.log")
	if os.Geteuid() == 0 {
		_ = os.MkdirAll("/run/sshd", 0o755) // where sshd drops its privileges; a service manager makes it
	}
	host := s.keygen("host")
	s.KeyFile = s.keygen("client")
	s.HostKey = strings.TrimSpace(s.read(host + ".pub"))
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.Addr)
	lines := append([]string{
		"Port " + port, "ListenAddress 127.0.0.1", "HostKey " + host, "PidFile none",
		"AuthorizedKeysFile " + s.KeyFile + ".pub", "StrictModes no", "UsePAM no",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
		"Subsystem sftp internal-sftp", "MaxStartups 100",
	}, quietHome(config, s.Dir)...)
	if err := os.WriteFile(filepath.Join(s.Dir, "sshd_config"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.program = sshd
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

// quietHome keeps what the machine's user has in ~/.bashrc out of the tests: bash
// reads it in each session, and what it prints would be taken for a command's. Of
// several SetEnv lines sshd takes the first alone.
func quietHome(config []string, home string) []string {
	all := append([]string(nil), config...)
	for i, line := range all {
		if strings.HasPrefix(line, "SetEnv ") {
			all[i] += " HOME=" + home
			return all
		}
	}
	return append(all, "SetEnv HOME="+home)
}

// Trust lets another key in, too: one operator reaches many hosts with one key.
func (s *Server) Trust(keyFile string) {
	s.t.Helper()
	all := s.read(s.KeyFile+".pub") + s.read(keyFile+".pub")
	if err := os.WriteFile(s.KeyFile+".pub", []byte(all), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Restart ends the server and its connections, as a power cut does, and starts
// it again at the same address with the same keys.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.cmd = exec.Command(s.program, "-D", "-f", filepath.Join(s.Dir, "sshd_config"), "-E", s.log) //nolint:gosec,noctx // found on the path; ended by Stop
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		s.t.Fatal(err)
	}
	s.wait()
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

func (s *Server) keygen(name string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if out, err := exec.CommandContext(s.t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path).CombinedOutput(); err != nil { //nolint:gosec // a path of this test
		s.t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return path
}

func (s *Server) read(path string) string {
	s.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

func (s *Server) wait() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 15*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr); err == nil {
			banner := make([]byte, 4)
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, _ = c.Read(banner)
			_ = c.Close()
			if bytes.HasPrefix(banner, []byte("SSH")) {
				return
			}
		}
		<-time.After(10 * time.Millisecond)
	}
	log, _ := os.ReadFile(s.log)
	s.t.Fatalf("sshd is not ready after 15 s\n%s", log)
}

// Stop ends the server and its connections.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	for _, pid := range descendants(s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = s.cmd.Wait()
	s.cmd = nil
}

// descendants returns a process and all below it, itself first: each session
// of sshd is a process group of its own.
func descendants(pid int) []int {
	all := []int{pid}
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, field := range strings.Fields(string(data)) {
		if child, err := strconv.Atoi(field); err == nil {
			all = append(all, descendants(child)...)
		}
	}
	return all
}
