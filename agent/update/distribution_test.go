package update

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"
)

// distribution starts Debian's docker-registry, which asks for a user and a
// password.
func distribution(t *testing.T, user, password string) (host string) {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		const next = "make deps-test, or apt-get install docker-registry"
		if os.Getenv("CI") == "true" {
			t.Fatalf("docker-registry is missing\nNext: %s", next)
		}
		t.Skipf("NOT PROVEN against docker-registry, which is missing\nNext: %s", next)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	config, users := filepath.Join(dir, "config.yml"), filepath.Join(dir, "htpasswd")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\n"+
		"http: {addr: %q, secret: test}\nauth: {htpasswd: {realm: test, path: %s}}\n", dir, host, users)
	for path, content := range map[string]string{config: text, users: user + ":" + string(hash) + "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, "serve", config)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the test's context has killed it
	deadline := time.Now().Add(30 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		<-tick.C
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			tick.Stop()
			return host
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer at %s:\n%s", host, &out)
		}
	}
}

// Not parallel: it sets DOCKER_CONFIG.
func TestAPrivateRegistryIsAskedWithDockersLogin(t *testing.T) {
	const user, password = "agnes", "correct horse"
	host := distribution(t, user, password)
	hub := imagesAt(t, host+"/owner/agnes", remote.WithAuth(&authn.Basic{Username: user, Password: password}))
	hub.push("2026.04.10", "stable", "stable-2026.04.10")
	hub.push(running, "stable-"+running, "deprecated-"+running)

	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	c, _ := watch(t, nil, hub.repo)
	if err := c.check(t.Context()); err == nil || c.Status() != (Status{}) {
		t.Errorf("without a login: %v, %+v; want it to be unknown", err, c.Status())
	}
	login := func(password string) {
		t.Helper()
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	login("wrong")
	if err := c.check(t.Context()); err == nil || c.Status() != (Status{}) {
		t.Errorf("with a wrong password: %v, %+v; want it to be unknown", err, c.Status())
	}
	login(password)
	check(t, c, Status{Deprecated: true, Latest: "2026.04.10"})
	login("changed since")
	if err := c.check(t.Context()); err == nil || c.Status() != (Status{Deprecated: true, Latest: "2026.04.10"}) {
		t.Errorf("with a login that ended: %v, %+v; want what was known", err, c.Status())
	}
}
