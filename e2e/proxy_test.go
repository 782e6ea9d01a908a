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
	ask := func(method, url, body string, headers ...string) (*http.Response, string) {
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
		return resp, string(text)
	}

	if resp, _ := ask("GET", "http://"+net.JoinHostPort("localhost", plain)+"/setup", ""); resp.StatusCode != http.StatusPermanentRedirect || resp.Header.Get("Location") != "https://localhost/setup" {
		t.Errorf("without TLS: %s to %q", resp.Status, resp.Header.Get("Location"))
	}
	resp, text := ask("GET", c.url+"/api/health", "")
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, `"setup_required":true`) || resp.Header.Get("Strict-Transport-Security") == "" || resp.Header.Get("Server") != "" {
		t.Errorf("health through the proxy: %s %v\n%s", resp.Status, resp.Header, text)
	}

	// AGNES_BOOTSTRAP is open here, for the port is this machine's alone. With a
	// domain strangers come in by the proxy, so that nobody is let in without the token.
	const admin = `{"email":"` + adminEmail + `","password":"` + adminPassword + `"}`
	for _, stranger := range [][]string{
		{c.url},
		{c.url, "X-Forwarded-For", "127.0.0.1"},
		{"http://127.0.0.1:" + port},
	} {
		if resp, text := ask("POST", stranger[0]+"/auth/bootstrap", admin, stranger[1:]...); resp.StatusCode != http.StatusForbidden || !strings.Contains(text, "X-Setup-Token") {
			t.Errorf("bootstrap by %v without the token: %s %s", stranger, resp.Status, text)
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
	_, text = ask("POST", c.url+"/auth/token", `{"email":"`+adminEmail+`","password":"`+adminPassword+`"}`)
	var token api.TokenResponse
	if err := json.Unmarshal([]byte(text), &token); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	bearer := []string{"Authorization", "Bearer " + token.AccessToken}
	whole, parquet := ask("GET", c.url+"/api/data/orders/download", "", bearer...)
	part, text := ask("GET", c.url+"/api/data/orders/download", "", append(bearer, "Range", "bytes=4-103", "Accept-Encoding", "gzip")...)
	if whole.StatusCode != http.StatusOK || part.StatusCode != http.StatusPartialContent || text != parquet[4:104] {
		t.Errorf("a part of a table: %s, of the whole: %s; %d bytes of %d", part.Status, whole.Status, len(text), len(parquet))
	}
	if again, _ := ask("GET", c.url+"/api/data/orders/download", "", append(bearer, "If-None-Match", whole.Header.Get("ETag"))...); again.StatusCode != http.StatusNotModified {
		t.Errorf("a table that has not changed: %s", again.Status)
	}
	if resp, _ := ask("GET", c.url+"/api/catalog/tables", "", append(bearer, "Accept-Encoding", "gzip")...); resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the catalog is not compressed: %s %v", resp.Status, resp.Header)
	}
}
