//go:build e2e || realdata || bench

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
	"github.com/keboola/agnes-the-ai-analyst/internal/registrytest"
)

// The images that builtImage builds.
const (
	slimImage = "agnes:slim" // without Python
	fullImage = "agnes:full"
)

// project is whose repository and image the sites use.
const project = "acme/agnes"

// images is what the first test that needs it builds, once for this process.
var images struct {
	once     sync.Once
	snapshot *dockertest.Snapshot // both, with the cache of their build
	slim     *dockertest.Snapshot // slimImage alone, as it comes by a pull
	pushed   string               // folder of a registry that has its layers in the project's repository
	report   string               // of make image
	err      error                // of make image: an image over its bar is built all the same
}

// builtImage builds the image of the working tree as `make image` does and
// returns what a daemon starts with to have it: both targets, and every step in
// the cache, so that building the same again takes a second.
func builtImage(t *testing.T) *dockertest.Snapshot {
	t.Helper()
	images.once.Do(func() {
		d := dockertest.Start(t, dockertest.WithInternet())
		d.BaseImages()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		// No commit: what docker compose builds from a clone is given none.
		cmd := exec.CommandContext(ctx, "make", "-C", "..", "--no-print-directory", "image", "COMMIT=")
		cmd.Env = append(os.Environ(), append(d.Env(), "DOCKER_BUILDKIT=0")...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		began := time.Now()
		images.err = cmd.Run()
		images.report = out.String()
		if strings.Count(images.report, "\n") != 2 {
			t.Fatalf("make image: %v\n%s%s", images.err, out.String(), errs.String())
		}
		t.Logf("make image took %s: %s", time.Since(began).Round(time.Second), images.report)
		images.snapshot = d.Snapshot()
		keepSlim(t, d)
	})
	if images.slim == nil {
		t.Fatal("the image could not be built; the first test that needed it says why")
	}
	return images.snapshot
}

// parallelOnImage is parallel for a test that needs the image: the others go on
// while it is built.
func parallelOnImage(t *testing.T) {
	t.Helper()
	t.Parallel()
	builtImage(t)
	takeLane(t)
}

// keepSlim pushes and pulls slimImage once, so that no site packs and unpacks these
// layers again. In the registry's folder they are layers of no image yet.
func keepSlim(t *testing.T, d *dockertest.Daemon) {
	t.Helper()
	var err error
	if images.pushed, err = os.MkdirTemp("", "agnes-registry-"); err != nil { //nolint:usetesting // it outlives this test
		t.Fatal(err)
	}
	ref := registrytest.StartIn(t, images.pushed) + "/" + project + ":slim"
	d.Docker("tag", slimImage, ref)
	d.Docker("push", "-q", ref)
	puller := dockertest.Start(t)
	puller.Docker("pull", "-q", ref)
	puller.Docker("tag", ref, slimImage)
	puller.Docker("rmi", ref)
	if err := os.RemoveAll(filepath.Join(images.pushed, "docker/registry/v2/repositories", project, "_manifests")); err != nil {
		t.Fatal(err)
	}
	images.slim = puller.Snapshot()
}

func removeImages() {
	for _, s := range []*dockertest.Snapshot{images.snapshot, images.slim} {
		if s != nil {
			if err := s.Remove(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	_ = os.RemoveAll(images.pushed)
}

// slimHost starts a Docker daemon that has slimImage alone.
func slimHost(t *testing.T, opts ...dockertest.Option) *dockertest.Daemon {
	t.Helper()
	builtImage(t)
	return dockertest.Start(t, append(opts, dockertest.From(images.slim))...)
}

// imageHost starts a Docker daemon that has the built images.
func imageHost(t *testing.T, opts ...dockertest.Option) *dockertest.Daemon {
	t.Helper()
	return dockertest.Start(t, append(opts, dockertest.From(builtImage(t)))...)
}

// imageVariant builds an image that is the built one (slimImage) with further
// lines of a Dockerfile, and files for these to copy; it returns the image's
// name, which is different each time.
func imageVariant(t *testing.T, d *dockertest.Daemon, lines string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), text)
	}
	writeFile(t, filepath.Join(dir, "Dockerfile"), "FROM "+slimImage+"\n"+lines+"\n")
	name := "agnes:variant-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	cmd := d.Command(t.Context(), "build", "--quiet", "--tag", name, dir)
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a variant: %v\n%s", err, out)
	}
	return name
}
