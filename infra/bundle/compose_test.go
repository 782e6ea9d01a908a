package bundle_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/infra/bundle"
	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
)

// The override files of the design, word for word.
const (
	tierA = `services:
  app:
    volumes:
      - ./custom-connectors:/app/connectors/custom:ro
`
	tierB = `services:
  connector-sap:
    build: ./custom-connectors/sap
    volumes:
      - data:/data
    environment:
      - DATA_DIR=/data
      - SAP_HOST=...
    profiles:
      - extract
`
)

// service is the part of compose's answer that the tests look at.
type service struct {
	Image   string
	Build   *struct{ Context string }
	Volumes []struct {
		Type, Source, Target string
		ReadOnly             bool `json:"read_only"`
	}
	Environment map[string]*string
	Ports       []struct{ HostIP, Published string }
	ReadOnly    bool     `json:"read_only"`
	CapDrop     []string `json:"cap_drop"`
	CapAdd      []string `json:"cap_add"`
	SecurityOpt []string `json:"security_opt"`
	Restart     string
	StopGrace   string `json:"stop_grace_period"`
	PullPolicy  string `json:"pull_policy"`
	MemLimit    string `json:"mem_limit"`
	Profiles    []string
	Logging     struct{ Options map[string]string }
}

// host is a folder as a customer has it.
type host struct {
	t   *testing.T
	dir string
}

func newComposeHost(t *testing.T, files map[string]string) host {
	t.Helper()
	h := host{t: t, dir: t.TempDir()}
	if _, err := bundle.Write(h.dir, bundle.Files()); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(h.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// config returns the services that compose reads out of the folder. Compose
// must have nothing to complain about.
func (h host) config(env []string, args ...string) map[string]service {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), dockertest.Compose(h.t), append(args, "config", "--format", "json")...)
	cmd.Dir = h.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 {
		h.t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	var project struct {
		Name     string
		Services map[string]service
	}
	if err := json.Unmarshal(out.Bytes(), &project); err != nil {
		h.t.Fatal(err)
	}
	if project.Name != "agnes" {
		h.t.Errorf("the project is called %q", project.Name)
	}
	return project.Services
}

func (s service) env(name string) string {
	if v := s.Environment[name]; v != nil {
		return *v
	}
	return ""
}

func (s service) mount(target string) string {
	for _, v := range s.Volumes {
		if v.Target == target {
			return v.Source
		}
	}
	return ""
}

func TestEveryCombinationOfComposeFilesIsOneInstance(t *testing.T) {
	t.Parallel()
	base, prod, override := "docker-compose.yml", "docker-compose.prod.yml", "docker-compose.override.yml"
	for name, c := range map[string]struct {
		files     []string
		overrides string
	}{
		"a clone":                              {nil, ""},
		"a clone with connectors":              {nil, tierA},
		"a clone with a container":             {nil, tierB},
		"a clone, files named":                 {[]string{base}, tierA},
		"production":                           {[]string{base, prod}, ""},
		"production with connectors":           {[]string{base, prod, override}, tierA},
		"production with a container":          {[]string{base, prod, override}, tierB},
		"production with the bundle's example": {[]string{base, prod, "docker-compose.override.yml.example"}, ""},
	} {
		for _, profile := range []string{"", "production", "extract"} {
			t.Run(name+" "+profile, func(t *testing.T) {
				t.Parallel()
				files := map[string]string{}
				if c.overrides != "" {
					files[override] = c.overrides
				}
				var args []string
				for _, f := range c.files {
					args = append(args, "-f", f)
				}
				env := []string{}
				if profile != "" {
					args = append(args, "--profile", profile)
				}
				if profile == "production" {
					env = append(env, "DOMAIN=data.customer.com")
				}
				services := newComposeHost(t, files).config(env, args...)
				app := services["app"]
				if production := slices.Contains(c.files, prod); production != (app.Build == nil) {
					t.Errorf("production is %v, the build is %v", production, app.Build)
				} else if production && app.Image != "ghcr.io/keboola/agnes-the-ai-analyst:stable" {
					t.Errorf("the image is %s", app.Image)
				} else if production && app.PullPolicy != "" {
					t.Errorf("the pull policy is %q: docker compose pull skips an image that is there, whatever its tag has become", app.PullPolicy)
				} else if !production && app.PullPolicy != "never" {
					t.Errorf("the pull policy of what is built here is %q", app.PullPolicy)
				}
				if app.mount("/data") != "data" {
					t.Errorf("/data is %q", app.mount("/data"))
				}
				if !app.ReadOnly || !slices.Equal(app.CapDrop, []string{"ALL"}) || !slices.Equal(app.SecurityOpt, []string{"no-new-privileges"}) {
					t.Errorf("the instance is not confined: %+v", app)
				}
				if app.Restart != "unless-stopped" || app.StopGrace != "1m0s" || app.MemLimit == "" || app.Logging.Options["max-size"] == "" {
					t.Errorf("limits are missing: %+v", app)
				}
				used := c.overrides != "" && (c.files == nil || slices.Contains(c.files, override))
				connectors := used && c.overrides == tierA || slices.Contains(c.files, "docker-compose.override.yml.example")
				if got := app.mount("/app/connectors/custom"); connectors != strings.HasSuffix(got, "/custom-connectors") {
					t.Errorf("custom connectors are mounted from %q", got)
				}
				sap, ok := services["connector-sap"]
				if want := used && c.overrides == tierB && profile == "extract"; ok != want {
					t.Errorf("connector-sap is there: %v, want %v", ok, want)
				} else if ok && (sap.mount("/data") != "data" || sap.env("SAP_HOST") != "...") {
					t.Errorf("connector-sap = %+v", sap)
				}
				caddy, ok := services["caddy"]
				if ok != (profile == "production") {
					t.Errorf("caddy is there: %v", ok)
				}
				// The second reads a Caddyfile of mode 0600; no other power may come with it.
				if ok && (!slices.Equal(caddy.CapDrop, []string{"ALL"}) || !slices.Equal(slices.Sorted(slices.Values(caddy.CapAdd)), []string{"DAC_OVERRIDE", "NET_BIND_SERVICE"}) || !caddy.ReadOnly) {
					t.Errorf("caddy is confined otherwise: %+v", caddy)
				}
			})
		}
	}
}

func TestTheInstanceIsOpenOnThisMachineAloneAndSettingsComeFromDotEnv(t *testing.T) {
	t.Parallel()
	zero := newComposeHost(t, nil).config(nil)["app"]
	if len(zero.Ports) != 1 || zero.env("AGNES_BOOTSTRAP") != "open" || zero.env("AGNES_BIND") != "127.0.0.1" || zero.env("DOMAIN") != "" {
		t.Errorf("with nothing set: %+v", zero)
	}
	set := newComposeHost(t, map[string]string{".env": strings.Join([]string{
		"AGNES_BIND=0.0.0.0", "AGNES_PORT=9000", "DOMAIN=data.customer.com", "KEBOOLA_STORAGE_TOKEN='a$b#c'", "AGNES_BOOTSTRAP=token", "DATA_DIR=/elsewhere", "AGNES_MEMORY=8g",
	}, "\n")}).config(nil)["app"]
	for name, want := range map[string]string{
		"AGNES_BIND": "0.0.0.0", "DOMAIN": "data.customer.com", "KEBOOLA_STORAGE_TOKEN": "a$$b#c", "AGNES_BOOTSTRAP": "token", "DATA_DIR": "/data",
	} {
		if got := set.env(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if set.Ports[0].Published != "9000" || set.MemLimit != "8589934592" {
		t.Errorf("port and memory: %+v, %s", set.Ports, set.MemLimit)
	}
}

func TestTheProvisionedHostsPlainUpRunsThePinnedImage(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("ab", 32)
	app := newComposeHost(t, map[string]string{
		".env": "COMPOSE_FILE=docker-compose.yml:docker-compose.prod.yml\nAGNES_IMAGE=registry.company.com/agnes\nAGNES_TAG=stable-2026.04.3\nAGNES_IMAGE_DIGEST=" + digest + "\n",
	}).config(nil)["app"]
	if want := "registry.company.com/agnes:stable-2026.04.3@" + digest; app.Image != want || app.Build != nil {
		t.Errorf("image %s, build %v; want %s and none", app.Image, app.Build, want)
	}
	if app.env("AGNES_IMAGE_DIGEST") != digest {
		t.Errorf("the instance is told %q", app.env("AGNES_IMAGE_DIGEST"))
	}
}
