//go:build e2e

package e2e

import (
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// What a deploy does on a host: it learns that the version is deprecated, reads
// the operator token, drains, backs up, restarts, and tries the new process out
// with a throw-away account.
func TestADeployWorksThroughTheOperatorToken(t *testing.T) {
	parallel(t)
	hub := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(hub.Close)
	image := strings.TrimPrefix(hub.URL, "http://") + "/owner/agnes"
	push := func(version string, tags ...string) {
		t.Helper()
		img, err := mutate.Config(empty.Image, v1.Config{Labels: map[string]string{"org.opencontainers.image.version": version}})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range tags {
			tag, err := name.NewTag(image + ":" + text)
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Write(tag, img); err != nil {
				t.Fatal(err)
			}
		}
	}
	push("2026.04.3", "stable-2026.04.3", "deprecated-2026.04.3")
	push("2026.04.12", "stable-2026.04.12", "stable")

	data := t.TempDir()
	path := filepath.Join(data, "state", ".operator_token")
	run := func(version string) (*process, string) {
		t.Helper()
		p := start(t, data, "AGNES_IMAGE="+image, "AGNES_VERSION="+version, "RELEASE_CHANNEL=stable", "AGNES_BUNDLE_VERSION="+version, "AGNES_IMAGE_DIGEST=sha256:"+version)
		token, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return p, strings.TrimSpace(string(token))
	}
	old, operator := run("2026.04.3")
	old.must("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}, &api.TokenResponse{})
	var h api.Health
	eventually(t, 30*time.Second, "the instance says that it is deprecated", func() bool {
		old.must("GET", "/api/health", "", nil, &h)
		return h.Update.Deprecated && h.Update.Latest != ""
	})
	if !slices.Contains(h.Warnings, "Running deprecated version 2026.04.3. Update to stable.") || h.Update.Latest != "2026.04.12" || h.Status != api.Healthy {
		t.Errorf("health = %+v", h)
	}
	var d api.Drain
	old.must("POST", "/api/admin/drain", operator, api.DrainRequest{Drain: true}, &d)
	if !d.Draining || d.SyncRunning {
		t.Errorf("drain = %+v", d)
	}
	old.must("POST", "/api/admin/backup", operator, api.BackupRequest{Reason: "deploy"}, &api.Backup{})
	old.stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("the operator token outlives the process")
	}

	next, operatorNow := run("2026.04.12")
	if operatorNow == operator {
		t.Error("the operator token is the one of before")
	}
	var after api.HealthDetails
	next.must("GET", "/api/health/details", operatorNow, nil, &after)
	if after.Phase != api.PhaseServing || after.Update.Deprecated || after.BundleVersion != "2026.04.12" || after.ImageDigest != "sha256:2026.04.12" {
		t.Errorf("after the deploy: %+v", after)
	}
	if err := next.call(t.Context(), "GET", "/api/health/details", operator, nil, nil); err == nil {
		t.Error("the operator token of before still works")
	}
	var u api.User
	next.must("POST", "/api/users", operatorNow, map[string]string{"email": "smoke@agnes.invalid", "role": api.RoleAdmin, "password": "throw-away-password"}, &u)
	next.must("DELETE", "/api/users/"+u.ID, operatorNow, nil, nil)
	next.stop()
	for _, secret := range []string{operator, operatorNow} {
		if strings.Contains(old.out.String()+next.out.String(), secret) {
			t.Error("a log holds the operator token")
		}
	}
}
