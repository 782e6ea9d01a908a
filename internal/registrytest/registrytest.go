// Package registrytest gives tests a real OCI registry of their own: Debian's
// docker-registry, the implementation that most registries descend from, and
// which checks what it is sent.
//
// It listens on a free port of 127.0.0.1, over HTTP, and lets manifests be
// deleted. `make deps-test` installs it. Where it is missing, a test is skipped
// with a word on that, and fails where CI is "true".
package registrytest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Start starts a registry that ends with the test and returns its HOST:PORT.
func Start(t testing.TB) (host string) {
	t.Helper()
	return start(t, t.TempDir(), "")
}

// StartIn starts one that keeps what it has in a folder, and has what is there.
func StartIn(t testing.TB, dir string) (host string) {
	t.Helper()
	return start(t, dir, "")
}

// StartPrivate starts one that asks everybody for a user and a password.
func StartPrivate(t testing.TB, user, password string) (host string) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, t.TempDir(), user+":"+string(hash)+"\n")
}

func start(t testing.TB, dir, users string) (host string) {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		text := t.Name() + ": NOT RUN: there is no docker-registry. Next: make deps-test"
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	_ = l.Close()
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\n"+
		"http: {addr: %q, secret: test, relativeurls: true}\n", dir, host)
	if users != "" {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(users), 0o600); err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file)
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, "serve", config) //nolint:gosec // found on the path
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the test's context has ended it
	deadline := time.Now().Add(30 * time.Second)
	for {
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host); err == nil {
			_ = conn.Close()
			return host
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer at %s\n%s", host, said.String())
		}
		<-time.After(5 * time.Millisecond)
	}
}
