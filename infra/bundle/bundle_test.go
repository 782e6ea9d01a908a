package bundle_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/infra/bundle"
)

func names(files []bundle.File) []string {
	var all []string
	for _, f := range files {
		all = append(all, f.Name)
	}
	return all
}

func TestTheBundleHoldsWhatAHostNeedsAndNothingOfTheCustomers(t *testing.T) {
	t.Parallel()
	want := []string{
		"Caddyfile", "docker-compose.override.yml.example", "docker-compose.prod.yml", "docker-compose.yml",
		"systemd/agnes-update.service", "systemd/agnes-update.timer",
	}
	if diff := cmp.Diff(want, names(bundle.Files())); diff != "" {
		t.Error(diff)
	}
}

func TestTheCopiesAreWhatAClonesRootHolds(t *testing.T) {
	t.Parallel()
	for _, f := range bundle.Files() {
		if strings.Contains(f.Name, "/") {
			continue
		}
		root, err := os.ReadFile(filepath.Join("../..", f.Name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(root, f.Data) {
			t.Errorf("infra/bundle/%s differs from %s. Next: go generate ./infra/bundle", f.Name, f.Name)
		}
	}
}

func TestWriteReplacesItsFilesAndKeepsTheCustomers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	yours := map[string]string{
		".env": "KEBOOLA_STORAGE_TOKEN=x\n", "docker-compose.override.yml": "services: {}\n",
		"config/own.pem": "pem", "custom-connectors/snow/extractor.py": "print()", "docker-compose.local.yml": "services: {}\n",
	}
	for name, text := range yours {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := append(bundle.Files(), bundle.File{Name: bundle.Program, Mode: 0o755, Data: []byte("#!/bin/sh\n")})
	actions := func(changes []bundle.Change, err error) map[string]string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, c := range changes {
			all[c.Name] = c.Action
		}
		return all
	}
	planned := actions(bundle.Plan(dir, files))
	if data, _ := os.ReadFile(filepath.Join(dir, "docker-compose.yml")); string(data) != "old" {
		t.Fatal("a plan has written")
	}
	done := actions(bundle.Write(dir, files))
	if diff := cmp.Diff(planned, done); diff != "" {
		t.Errorf("planned and done differ:\n%s", diff)
	}
	if done["docker-compose.yml"] != "replaced" || done["bin/agnesctl"] != "created" {
		t.Errorf("done: %v", done)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s is not what the bundle holds (%v)", f.Name, err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != f.Mode {
			t.Errorf("%s: %v, want mode %v (%v)", f.Name, fi.Mode(), f.Mode, err)
		}
	}
	for name, text := range yours {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != text {
			t.Errorf("%s was touched: %q (%v)", name, data, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || !slices.Equal(left, []string{filepath.Join(dir, ".env")}) {
		t.Errorf("left over: %v (%v)", left, err)
	}
	for name, action := range actions(bundle.Write(dir, files)) {
		if action != "unchanged" {
			t.Errorf("the second time, %s is %s", name, action)
		}
	}
}

func TestTheArchiveIsTheSameBytesEachTime(t *testing.T) {
	t.Parallel()
	files := append(bundle.Files(), bundle.File{Name: bundle.Program, Mode: 0o755, Data: []byte("program")})
	var one, two bytes.Buffer
	if err := errors.Join(bundle.Tar(&one, files), bundle.Tar(&two, files)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two archives of the same files differ")
	}
	var got []bundle.File
	for r := tar.NewReader(&one); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, bundle.File{Name: h.Name, Mode: h.FileInfo().Mode().Perm(), Data: data})
	}
	if diff := cmp.Diff(files, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheUpdateUnitsAreWhatSystemdUnderstands(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v. Next: make deps-test", err)
		}
		t.Skip("no systemd-analyze here. Next: make deps-test")
	}
	// It looks whether the program is there, which here lies elsewhere.
	dir := t.TempDir()
	program := bundle.File{Name: bundle.Program, Mode: 0o755, Data: []byte("#!/bin/sh\n")}
	if _, err := bundle.Write(dir, append(bundle.Files(), program)); err != nil {
		t.Fatal(err)
	}
	verify := func(change ...string) string {
		t.Helper()
		args := []string{"verify", "--man=no"}
		for _, name := range []string{"agnes-update.service", "agnes-update.timer", "docker.service"} {
			text := []byte("[Service]\nExecStart=/bin/true\n")
			if name != "docker.service" {
				var err error
				if text, err = os.ReadFile(filepath.Join(dir, "systemd", name)); err != nil {
					t.Fatal(err)
				}
			}
			text = []byte(strings.NewReplacer(append(change, "=/opt/agnes/", "="+dir+"/")...).Replace(string(text)))
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
		if err != nil {
			return string(out) + err.Error()
		}
		return string(out)
	}
	if out := verify(); out != "" {
		t.Errorf("systemd says of the units:\n%s", out)
	}
	if out := verify("TimeoutStopSec=", "TimeoutStoppSec="); !strings.Contains(out, "TimeoutStoppSec") {
		t.Errorf("a wrong name would not be found: %q", out)
	}
}
