package server_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

const deprecatedWarning = "Running deprecated version 2026.04.3. Update to stable."

func TestADeprecatedInstanceSaysSoAndIsAsHealthyAsBefore(t *testing.T) {
	t.Parallel()
	hub := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(hub.Close)
	image := strings.TrimPrefix(hub.URL, "http://") + "/owner/agnes"
	tag, err := name.NewTag(image + ":deprecated-2026.04.3")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, empty.Image); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	start := func(t *testing.T, check string) *world {
		t.Helper()
		w := newWorld(t, func(o *worldOptions) {
			o.dir, o.env["AGNES_IMAGE"], o.env["AGNES_UPDATE_CHECK"] = dir, image, check
		})
		if err := w.instance.WatchUpdates(); err != nil {
			t.Fatal(err)
		}
		return w
	}
	health := func(w *world) (h api.Health) {
		w.call("GET", "/api/health", "", nil).into(w.t, &h)
		return h
	}
	t.Run("the registry knows", func(t *testing.T) {
		w := start(t, "on")
		admin := w.synced()
		h := health(w)
		for !h.Update.Deprecated && t.Context().Err() == nil {
			h = health(w)
		}
		if !slices.Equal(h.Warnings, []string{deprecatedWarning}) || h.Status != api.Healthy || h.Channel != "stable" || h.Update.Latest != "" {
			t.Errorf("health = %+v, want the warning alone and the status healthy", h)
		}
		if r := w.call("GET", "/readyz", "", nil); r.status != http.StatusOK {
			t.Errorf("/readyz = %d", r.status)
		}
		if r := w.call("GET", "/metrics", admin, nil); !strings.Contains(string(r.body), "agnes_deprecated 1") {
			t.Error("the metrics do not say so")
		}
		var d api.HealthDetails
		w.call("GET", "/api/health/details", admin, nil).into(t, &d)
		if !d.Update.Deprecated || !slices.Contains(d.Warnings, deprecatedWarning) {
			t.Errorf("details = %+v", d.Health)
		}
	})
	hub.Close()
	t.Run("a restart without the registry", func(t *testing.T) {
		if h := health(start(t, "on")); !slices.Contains(h.Warnings, deprecatedWarning) || !h.Update.Deprecated {
			t.Errorf("health = %+v, want the warning", h)
		}
	})
	t.Run("switched off", func(t *testing.T) {
		if h := health(start(t, "off")); slices.Contains(h.Warnings, deprecatedWarning) || h.Update.Deprecated {
			t.Errorf("health = %+v, want no warning", h)
		}
	})
}

func TestHealthSaysWhichImageFailedHere(t *testing.T) {
	t.Parallel()
	for failed, want := range map[string]string{"sha256:bad": "sha256:bad", "sha256:runs": "", "": ""} {
		w := newWorld(t, func(o *worldOptions) {
			o.env["AGNES_IMAGE_DIGEST"], o.env["AGNES_UPDATE_FAILED"] = "sha256:runs", failed
		})
		var h api.Health
		w.call("GET", "/api/health", "", nil).into(t, &h)
		if h.Update.Failed != want {
			t.Errorf("with %q recorded, health says %q, want %q", failed, h.Update.Failed, want)
		}
	}
}

func TestDetailsSayWhatADeployRecorded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var hashes []string
	for _, digest := range []string{"sha256:one", "sha256:two"} {
		t.Run(digest, func(t *testing.T) {
			w := newWorld(t, func(o *worldOptions) {
				o.dir, o.env["AGNES_IMAGE_DIGEST"], o.env["AGNES_BUNDLE_VERSION"] = dir, digest, "2026.04.3"
			})
			var d api.HealthDetails
			w.call("GET", "/api/health/details", w.operator(), nil).into(t, &d)
			if d.ImageDigest != digest || d.BundleVersion != "2026.04.3" {
				t.Errorf("details = %+v", d)
			}
			hashes = append(hashes, d.ConfigHash)
		})
	}
	if len(hashes) != 2 || hashes[0] == "" || hashes[0] != hashes[1] {
		t.Errorf("the configuration's hashes over two deploys are %v, want them equal", hashes)
	}
}
