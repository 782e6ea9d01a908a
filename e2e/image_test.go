//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
)

// composed is a folder on a host where docker compose runs an instance.
type composed struct {
	*process // speaks to the instance
	d        *dockertest.Daemon
	dir      string
	env      []string
}

// compose runs docker compose in the folder.
func (c *composed) compose(args ...string) string {
	c.t.Helper()
	cmd := c.d.Command(c.t.Context(), append([]string{"compose"}, args...)...)
	cmd.Dir = c.dir
	cmd.Env = append(cmd.Env, c.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		logs := c.d.Command(c.t.Context(), "compose", "logs", "--tail", "50")
		logs.Dir, logs.Env = c.dir, cmd.Env
		text, _ := logs.CombinedOutput()
		c.t.Fatalf("docker compose %s: %v\n%s\n%s", strings.Join(args, " "), err, out, text)
	}
	return string(out)
}

// healthy waits until Docker calls the instance healthy.
func (c *composed) healthy() {
	c.t.Helper()
	id := strings.TrimSpace(c.compose("ps", "--quiet", "app"))
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		if c.d.Docker("inspect", "--format", "{{.State.Health.Status}}", id) == "healthy" {
			return
		}
	}
	c.t.Fatalf("not healthy after 60 s\n%s", c.d.Docker("inspect", "--format", "{{json .State}}", id))
}

// inside runs a command in the instance's container.
func (c *composed) inside(args ...string) string {
	c.t.Helper()
	return c.compose(append([]string{"exec", "-T", "app"}, args...)...)
}

// clone makes a clone of this repository's HEAD.
func clone(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "agnes-the-ai-analyst")
	if out, err := exec.CommandContext(t.Context(), "git", "clone", "--quiet", "--depth", "1", "file://"+repository(t), dir).CombinedOutput(); err != nil {
		t.Fatalf("git clone: %v\n%s", err, out)
	}
	return dir
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFromGitCloneToAnAnswerWithDockerCompose(t *testing.T) {
	parallelOnImage(t)
	d := imageHost(t, dockertest.WithInternet()) // the build asks for what a commit has changed
	port := freePort(t)
	c := &composed{process: &process{t: t, url: "http://127.0.0.1:" + port, out: &buffer{}}, d: d, dir: clone(t), env: []string{"AGNES_PORT=" + port, "DOCKER_BUILDKIT=0"}}
	writeFile(t, filepath.Join(c.dir, "docker-compose.override.yml"), "services:\n  app:\n    volumes:\n      - ./examples/shop:/files:ro\n")

	c.compose("up", "-d")
	c.healthy()
	var health api.Health
	c.must("GET", "/api/health", "", nil, &health)
	if !health.SetupRequired || health.Status != "healthy" {
		t.Errorf("a new instance is %+v", health)
	}
	if resp, err := http.Get(c.url + "/api/catalog/tables"); err != nil {
		t.Error(err)
	} else {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("before setup, the catalog answers %s", resp.Status)
		}
	}
	secrets := func() string {
		t.Helper()
		return c.inside("sh", "-c", `for f in .jwt_secret .session_secret; do stat -c '%a %U' /data/state/$f; sha256sum </data/state/$f; done`)
	}
	before := secrets()
	if lines := strings.Split(before, "\n"); len(lines) < 4 || lines[0] != "600 agnes" || lines[2] != "600 agnes" {
		t.Errorf("the secrets are\n%s", before)
	}

	token := specSetup(t, c.process, "/files")
	count := func() {
		t.Helper()
		var answer api.QueryResponse
		c.must("POST", "/api/query", token, map[string]string{"sql": "SELECT count(*) FROM orders JOIN customers USING (customer_id)"}, &answer)
		if n, ok := answer.Rows[0][0].(float64); !ok || n < 2000 {
			t.Errorf("the joined answer = %v", answer.Rows)
		}
	}
	count()
	var details api.HealthDetails
	c.must("GET", "/api/health/details", token, nil, &details)
	if !strings.Contains(details.Isolation, "process") {
		t.Errorf("in the container, queries are kept apart by %q", details.Isolation)
	}
	t.Logf("isolation: %s", details.Isolation)

	if got := c.inside("agnesctl", "instance", "health", "-o", "json"); !strings.Contains(got, `"healthy"`) {
		t.Errorf("agnesctl in the container says %s", got)
	}

	c.compose("down")
	c.compose("up", "-d")
	c.healthy()
	if after := secrets(); after != before {
		t.Errorf("the secrets changed:\n%s\nwere\n%s", after, before)
	}
	c.must("GET", "/api/health", "", nil, &health)
	if health.SetupRequired {
		t.Error("after down and up, the admin is gone")
	}
	var users struct{ Users []struct{ Email string } }
	c.must("GET", "/api/users", token, nil, &users)
	if len(users.Users) != 1 || users.Users[0].Email != adminEmail {
		t.Errorf("the users are %+v", users)
	}
	count()
}

func TestOurLayersKeepTheirSize(t *testing.T) {
	parallelOnImage(t)
	builtImage(t)
	if images.err != nil {
		t.Errorf("make image: %v", images.err)
	}
	for line := range strings.Lines(images.report) {
		var name string
		var size, bar int64
		if n, err := fmt.Sscan(line, &name, &size, &bar); n != 3 || size <= 0 || size > bar {
			t.Errorf("make image says %q (%v)", line, err)
		}
	}
}

func TestTheImageRunsUnprivilegedOnAReadOnlyRoot(t *testing.T) {
	parallelOnImage(t)
	d := imageHost(t)
	confined := []string{"run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}
	for _, image := range []string{slimImage, fullImage} {
		var config struct {
			User   string
			Labels map[string]string
			Env    []string
		}
		if err := json.Unmarshal([]byte(d.Docker("image", "inspect", "--format", "{{json .Config}}", image)), &config); err != nil {
			t.Fatal(err)
		}
		if config.User != "10001:10001" {
			t.Errorf("%s runs as %q", image, config.User)
		}
		for _, label := range []string{"version", "revision", "source", "created"} {
			if _, ok := config.Labels["org.opencontainers.image."+label]; !ok {
				t.Errorf("%s has no label %s: %v", image, label, config.Labels)
			}
		}
		if v := config.Labels["io.agnes.schema-version"]; v == "" || v == "0" {
			t.Errorf("%s says schema version %q", image, v)
		}
		if got := d.Docker(append(confined, "--entrypoint", "agnesctl", image, "version")...); !strings.Contains(got, "dev") {
			t.Errorf("agnesctl of %s says %q", image, got)
		}
	}
	if out, err := d.Command(t.Context(), append(confined, "--entrypoint", "python3", slimImage, "-V")...).CombinedOutput(); err == nil {
		t.Errorf("%s has Python: %s", slimImage, out)
	}
	// A connector's DuckDB must write files that the instance's can read.
	python := d.Docker(append(confined, "--entrypoint", "python3", fullImage, "-c", "import duckdb, pyarrow.parquet; print(duckdb.sql('SELECT version()').fetchone()[0])")...)
	if want := driverDuckDB(t); python != want {
		t.Errorf("Python has DuckDB %s, the instance's driver %s", python, want)
	}
	// What a connector's environment is made with.
	d.Docker(append(confined, "--tmpfs", "/tmp", "--entrypoint", "python3", fullImage, "-m", "venv", "--system-site-packages", "/tmp/venv")...)
}

// driverDuckDB returns the DuckDB release inside the driver that go.mod
// requires: its version 2.10505.0 stands for v1.5.5.
func driverDuckDB(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(mod), "github.com/duckdb/duckdb-go/v2 v2.")
	var n int
	if _, err := fmt.Sscanf(rest, "%d.", &n); err != nil {
		t.Fatalf("read the driver's version out of go.mod: %v", err)
	}
	return fmt.Sprintf("v%d.%d.%d", n/10000, n/100%100, n%100)
}

func TestTheImageHandsOutTheBundleOfItsVersion(t *testing.T) {
	parallelOnImage(t)
	d := imageHost(t)
	out, err := d.Command(t.Context(), "run", "--rm", "--network", "none", "--entrypoint", "agnesctl", slimImage, "host", "bundle", "--tar").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(out)); ; {
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
		path := filepath.Join(dir, h.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, h.FileInfo().Mode().Perm())); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"docker-compose.yml", "docker-compose.prod.yml", "Caddyfile"} {
		want, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the repository's (%v)", name, err)
		}
	}
	// The program in it runs on the host, without Docker.
	program := exec.CommandContext(t.Context(), filepath.Join(dir, "bin/agnesctl"), "host", "bundle", dir)
	if out, err := program.CombinedOutput(); err != nil || strings.Contains(string(out), "created") || strings.Contains(string(out), "replaced") {
		t.Errorf("the bundle's program finds something to write: %v\n%s", err, out)
	}
}

func TestAVariantOfTheImageIsAnImageOfItsOwn(t *testing.T) {
	parallelOnImage(t)
	d := imageHost(t)
	name := imageVariant(t, d, "LABEL io.agnes.channel=broken\nCOPY note /note", map[string]string{"note": "different\n"})
	if got := d.Docker("run", "--rm", "--entrypoint", "cat", name, "/note"); got != "different" {
		t.Errorf("the variant's file says %q", got)
	}
}
