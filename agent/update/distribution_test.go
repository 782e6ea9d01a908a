package update

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keboola/agnes-the-ai-analyst/internal/registrytest"
)

// Not parallel: it sets DOCKER_CONFIG.
func TestAPrivateRegistryIsAskedWithDockersLogin(t *testing.T) {
	const user, password = "agnes", "correct horse"
	host := registrytest.StartPrivate(t, user, password)
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
