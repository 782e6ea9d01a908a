package dockertest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BaseImage is what every image here descends from: Debian 12 without
// documentation, as `make deps-test` made it from Debian's packages.
const BaseImage = "debian:bookworm-slim"

// GoImage has the Go toolchain, a C++ compiler, and the modules and compiled
// packages of this repository, so that a build in it needs no network.
const GoImage = "golang:1.26-bookworm"

// BaseImages imports BaseImage and GoImage under their names.
func (d *Daemon) BaseImages() {
	d.t.Helper()
	d.Base(BaseImage)
	d.Base(GoImage)
}

// Base imports one of the two base images.
func (d *Daemon) Base(name string) {
	d.t.Helper()
	archive := filepath.Join(tools(), "data/images", strings.ReplaceAll(name, ":", "_")+".tar")
	if dir := os.Getenv("AGNES_TEST_DATA"); dir != "" {
		archive = filepath.Join(dir, "images", filepath.Base(archive))
	}
	if !isFile(archive) {
		missing(d.t, archive)
	}
	args := []string{"import"}
	if name == GoImage {
		for _, env := range []string{
			"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOPATH=/go", "GOTOOLCHAIN=local",
		} {
			args = append(args, "--change", "ENV "+env)
		}
	}
	d.Docker(append(args, "--change", `CMD ["bash"]`, archive, name)...)
}

// Load loads an archive of `docker save`.
func (d *Daemon) Load(archive string) {
	d.t.Helper()
	d.Docker("load", "--quiet", "--input", archive)
}

// Snapshot is the data of a daemon: images and volumes. A container in it would
// share its files with the one it was copied from: remove containers first.
type Snapshot struct{ dir string }

// Snapshot shuts the daemon down, keeps a copy of its data and boots it again.
// The caller removes it; it may outlive the test.
func (d *Daemon) Snapshot() *Snapshot {
	d.t.Helper()
	if d.opts.disk > 0 {
		d.t.Fatal("a daemon with a disk of its own cannot be kept: its data is not on this machine's file system")
	}
	d.Shutdown()
	dir, err := os.MkdirTemp("", "agnes-docker-snapshot-")
	if err != nil {
		d.t.Fatal(err)
	}
	s := &Snapshot{dir: dir}
	(&Snapshot{dir: d.data()}).cloneTo(d.t, dir)
	d.Boot()
	return s
}

// Remove removes the snapshot's data. Daemons that began with it keep theirs.
func (s *Snapshot) Remove() error {
	return root(context.Background(), "rm", "-rf", s.dir).Run()
}

// cloneTo copies a data folder. Layers never change once they are made, so the
// copy has them by hard link; all else is copied, except what names the old
// daemon's networks.
func (s *Snapshot) cloneTo(t testing.TB, dir string) {
	t.Helper()
	mustRoot(t, "bash", "-euc", `
mkdir -p "$2"
for f in "$1"/*; do case ${f##*/} in
network | runtimes | tmp) ;;
overlay2) cp -al "$f" "$2/" 2>/dev/null || { rm -rf "$2/overlay2"; cp -a "$f" "$2/"; } ;;
*) cp -a "$f" "$2/" ;;
esac; done`, "clone", s.dir, dir)
}
