//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
)

// caddyImage makes an image of the name that docker-compose.yml has for its proxy,
// laid out and started as its publishers do. The program in it is Debian's Caddy,
// an older one.
func caddyImage(t *testing.T, d *dockertest.Daemon) {
	t.Helper()
	compose, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`image: (caddy:[0-9.]+)\n`).FindSubmatch(compose)
	if named == nil {
		t.Fatal("docker-compose.yml names no image caddy:VERSION")
	}
	program, err := os.ReadFile(filepath.Join("../.tools/bin", "caddy"))
	if err != nil {
		t.Fatalf("%v. Next: make deps-test", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "caddy"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "Dockerfile"), strings.Join([]string{
		"FROM debian:bookworm-slim",
		"COPY caddy /usr/bin/",
		"ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data",
		`CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]`,
	}, "\n")+"\n")
	d.BaseImages()
	build := d.Command(t.Context(), "build", "--quiet", "--tag", string(named[1]), dir)
	build.Env = append(build.Env, "DOCKER_BUILDKIT=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// certified waits until Caddy has an authority of its own, as it has for
// localhost, and returns the file of its certificate.
func (c *composed) certified() string {
	c.t.Helper()
	const root = "/data/caddy/pki/authorities/local/root.crt"
	file := filepath.Join(c.t.TempDir(), "root.crt")
	writeFile(c.t, file, c.compose("exec", "-T", "caddy", "sh", "-c", "for i in $(seq 200); do test -s "+root+" && break; sleep 0.1; done; cat "+root))
	return file
}

func TestTheProductionProfilePutsTLSInFrontAndAsksForTheSetupToken(t *testing.T) {
	parallelOnImage(t)
	d := slimHost(t)
	caddyImage(t, d)
	port, secure, plain := freePort(t), freePort(t), freePort(t)
	c := &composed{process: &process{t: t, url: "https://localhost:" + secure, out: &buffer{}}, d: d, dir: clone(t), env: []string{"AGNES_TAG=slim", "AGNES_PORT=" + port, "DOMAIN=localhost"}}
	// Elsewhere than on the ports 80 and 443, which are the machine's.
	writeFile(t, filepath.Join(c.dir, "docker-compose.override.yml"), strings.Join([]string{
		"services:",
		"  app:",
		"    volumes: [./examples/shop:/files:ro]",
		"  caddy:",
		"    ports: !override",
		"      - 127.0.0.1:" + secure + ":443",
		"      - 127.0.0.1:" + plain + ":80",
	}, "\n")+"\n")
	// As it is in a clone that somebody else than root made, under umask 077.
	caddyfile := filepath.Join(c.dir, "Caddyfile")
	if err := os.Chmod(caddyfile, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(caddyfile, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	c.compose("--profile", "production", "up", "-d")
	c.healthy()

	authority := c.certified()
	pool := x509.NewCertPool()
	if pem, err := os.ReadFile(authority); err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("the authority's certificate: %v", err)
	}
	browser := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
	type answer struct {
		code   int
		header http.Header
		text   string
	}
	ask := func(method, url, body string, headers ...string) answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatalf("%v\n%s", err, c.compose("logs", "caddy"))
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(text)}
	}

	if a := ask("GET", "http://"+net.JoinHostPort("localhost", plain)+"/setup", ""); a.code != http.StatusPermanentRedirect || a.header.Get("Location") != "https://localhost/setup" {
		t.Errorf("without TLS: %d to %q", a.code, a.header.Get("Location"))
	}
	if a := ask("GET", c.url+"/api/health", ""); a.code != http.StatusOK || !strings.Contains(a.text, `"setup_required":true`) || a.header.Get("Strict-Transport-Security") == "" || a.header.Get("Server") != "" {
		t.Errorf("health through the proxy: %+v", a)
	}

	// AGNES_BOOTSTRAP is open here, for the port is this machine's alone. With a
	// domain strangers come in by the proxy, so that nobody is let in without the token.
	const admin = `{"email":"` + adminEmail + `","password":"` + adminPassword + `"}`
	for _, stranger := range [][]string{
		{c.url},
		{c.url, "X-Forwarded-For", "127.0.0.1"},
		{"http://127.0.0.1:" + port},
	} {
		if a := ask("POST", stranger[0]+"/auth/bootstrap", admin, stranger[1:]...); a.code != http.StatusForbidden || !strings.Contains(a.text, "X-Setup-Token") {
			t.Errorf("bootstrap by %v without the token: %d %s", stranger, a.code, a.text)
		}
	}
	secret := filepath.Join(t.TempDir(), "setup_token")
	writeFile(t, secret, c.inside("cat", "/data/state/.setup_token"))
	env := []string{"SSL_CERT_FILE=" + authority, "XDG_CONFIG_HOME=" + t.TempDir(), "AGNES_TOKEN=", "AGNES_URL=" + c.url}
	password := filepath.Join(t.TempDir(), "password")
	writeFile(t, password, adminPassword)
	for _, args := range [][]string{
		{"instance", "setup", "--email", adminEmail, "--password-stdin", "--setup-token-file", secret, "--source", "csv", "--csv-dir", "/files"},
		{"smoke", c.url, "--email", adminEmail, "--password-file", password},
	} {
		if out, errs, code := command(t, adminPassword+"\n", env, "agnesctl", args...); code != 0 {
			t.Fatalf("agnesctl %s ends with %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
	}

	// Everything else works through the proxy as it does without.
	login := ask("POST", c.url+"/auth/token", admin)
	var token api.TokenResponse
	if err := json.Unmarshal([]byte(login.text), &token); err != nil {
		t.Fatalf("%v: %s", err, login.text)
	}
	bearer := []string{"Authorization", "Bearer " + token.AccessToken}
	whole := ask("GET", c.url+"/api/data/orders/download", "", bearer...)
	part := ask("GET", c.url+"/api/data/orders/download", "", append(bearer, "Range", "bytes=4-103", "Accept-Encoding", "gzip")...)
	if whole.code != http.StatusOK || part.code != http.StatusPartialContent || part.text != whole.text[4:104] {
		t.Errorf("a part of a table: %d, of the whole: %d; %d bytes of %d", part.code, whole.code, len(part.text), len(whole.text))
	}
	if a := ask("GET", c.url+"/api/data/orders/download", "", append(bearer, "If-None-Match", whole.header.Get("ETag"))...); a.code != http.StatusNotModified {
		t.Errorf("a table that has not changed: %d", a.code)
	}
	if a := ask("GET", c.url+"/api/catalog/tables", "", append(bearer, "Accept-Encoding", "gzip")...); a.code != http.StatusOK || a.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the catalog is not compressed: %d %v", a.code, a.header)
	}
}
