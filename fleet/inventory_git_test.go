package fleet_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// gitFleet makes a clone whose two commits pin acme to .1 and .2, the first one
// tagged "before". It returns its folder and the id of the first commit.
func gitFleet(t *testing.T) (dir, first string) {
	t.Helper()
	dir = t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "git", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("init", "-q", "-b", "main")
	put(".gitignore", "secrets/\n")
	put("ops/fleet.yaml", "include: ['customers/*.yaml']\n")
	put("ops/customers/acme.yaml", "instances: [{name: acme, url: https://acme.com, pin: 2026.04.1, token: '${file:../secrets/acme.token}', tls: {ca: ../ca.pem}}]\n")
	put("ops/ca.pem", authority(t))
	put("ops/secrets/acme.token", "token-acme\n")
	run("add", ".")
	run("commit", "-qm", "one")
	run("tag", "-am", "before", "before")
	first = run("rev-parse", "HEAD")
	put("ops/customers/acme.yaml", "instances: [{name: acme, url: https://acme.com, pin: 2026.04.2}]\n")
	if err := os.Symlink("customers/acme.yaml", filepath.Join(dir, "ops/linked.yaml")); err != nil {
		t.Fatal(err)
	}
	run("add", ".")
	run("commit", "-qm", "two")
	run("config", "uploadpack.allowReachableSHA1InWant", "true")
	put("ops/customers/acme.yaml", "instances: [{name: acme, url: https://acme.com, pin: 2026.04.3}]\n") // not committed
	return dir, first
}

// authority returns a certificate in PEM form.
func authority(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	return pemOf(server.Certificate().Raw)
}

func wantPin(t *testing.T, want string, v *fleet.Inventory, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Instances) != 1 || v.Instances[0].Pin != want {
		t.Errorf("wanted %v, want %s", v.Instances, want)
	}
}

func TestWhatWasWantedAtACommitIsReadFromAClone(t *testing.T) {
	t.Parallel()
	dir, first := gitFleet(t)
	file := filepath.Join(dir, "ops/fleet.yaml")
	v, err := fleet.Load(file, fleet.LoadOptions{})
	wantPin(t, "2026.04.3", v, err)
	for ref, want := range map[string]string{"HEAD": "2026.04.2", "main": "2026.04.2", "HEAD~1": "2026.04.1", "before": "2026.04.1", first: "2026.04.1", first[:8]: "2026.04.1", "": "2026.04.2"} {
		v, err := fleet.LoadAt(t.Context(), file, ref, fleet.LoadOptions{})
		wantPin(t, want, v, err)
	}
	v, err = fleet.LoadAt(t.Context(), file, "before", fleet.LoadOptions{})
	wantPin(t, "2026.04.1", v, err)
	acme := v.Instances[0]
	if got := acme.Source.String(); got != "before:ops/customers/acme.yaml:1:13" {
		t.Errorf("source %s", got)
	}
	if acme.TLS.CAFile != "before:ops/ca.pem" || !strings.HasPrefix(acme.TLS.PEM, "-----BEGIN CERTIFICATE") {
		t.Errorf("authority %s, %d bytes", acme.TLS.CAFile, len(acme.TLS.PEM))
	}
	if secret, err := acme.Token.Read(); err != nil || secret.Reveal() != "token-acme" {
		t.Errorf("the token of the working tree: %q, %v", secret.Reveal(), err)
	}
	v, err = fleet.LoadGit(t.Context(), dir, "before", "ops/fleet.yaml", fleet.LoadOptions{})
	wantPin(t, "2026.04.1", v, err)
	if _, err := v.Instances[0].Token.Read(); err == nil || !strings.Contains(err.Error(), "a secret must not come from git") {
		t.Errorf("a secret without its folder: %v", err)
	}
}

func TestALinkInGitIsNoInventory(t *testing.T) {
	t.Parallel()
	dir, _ := gitFleet(t)
	_, err := fleet.LoadGit(t.Context(), dir, "HEAD", "ops/linked.yaml", fleet.LoadOptions{})
	if err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsMissingInGitIsNamed(t *testing.T) {
	t.Parallel()
	dir, _ := gitFleet(t)
	for _, c := range []struct{ repository, ref, file, want string }{
		{dir, "nothing", "ops/fleet.yaml", `expected a branch, tag or commit of ` + dir + `, found "nothing"`},
		{dir, "HEAD", "fleet.yaml", "expected the fleet's inventory at HEAD:fleet.yaml"},
		{dir, "HEAD", "../fleet.yaml", "expected the inventory's path inside the repository"},
		{t.TempDir(), "HEAD", "fleet.yaml", "expected a git repository at "},
		{"http://me:hunter2@example.com/x", "HEAD", "fleet.yaml", "expected https for a repository with credentials"},
		{"ssh://me:hunter2@example.com/x", "HEAD", "fleet.yaml", "expected an ssh repository without a password"},
		{"ftp://me:hunter2@example.com/x", "HEAD", "fleet.yaml", "expected a repository by https, ssh, git or as a folder, found ftp://"},
	} {
		_, err := fleet.LoadGit(t.Context(), c.repository, c.ref, c.file, fleet.LoadOptions{})
		if !problem.Is(err, problem.Usage) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s %s %s: got %v\nwant %s", c.repository, c.ref, c.file, err, c.want)
		}
	}
}

// gitServer serves a repository as git itself does, to who signs in.
func gitServer(t *testing.T, dir, password string) string {
	t.Helper()
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != password {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/.git"
}

func TestWhatWasWantedAtACommitIsReadFromAServer(t *testing.T) {
	t.Parallel()
	dir, first := gitFleet(t)
	url := gitServer(t, dir, "hunter2")
	for ref, want := range map[string]string{"": "2026.04.2", "HEAD": "2026.04.2", "main": "2026.04.2", "refs/heads/main": "2026.04.2", "before": "2026.04.1", first: "2026.04.1", "main~1": "2026.04.1", first[:10]: "2026.04.1"} {
		v, err := fleet.LoadGit(t.Context(), url, ref, "ops/fleet.yaml", fleet.LoadOptions{GitToken: "hunter2"})
		wantPin(t, want, v, err)
	}
	v, err := fleet.LoadGit(t.Context(), strings.Replace(url, "//", "//me:hunter2@", 1), "before", "ops/fleet.yaml", fleet.LoadOptions{SecretDir: filepath.Join(dir, "ops")})
	wantPin(t, "2026.04.1", v, err)
	if secret, err := v.Instances[0].Token.Read(); err != nil || secret.Reveal() != "token-acme" {
		t.Errorf("the token of the secrets' folder: %q, %v", secret.Reveal(), err)
	}
	_, err = fleet.LoadGit(t.Context(), strings.Replace(url, "//", "//me:hunter3@", 1), "", "ops/fleet.yaml", fleet.LoadOptions{})
	if !problem.Is(err, problem.Unauthenticated) || strings.Contains(err.Error(), "hunter") {
		t.Errorf("a wrong password: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fleet.LoadGit(ctx, url, "", "ops/fleet.yaml", fleet.LoadOptions{GitToken: "hunter2"}); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted fetch: %v", err)
	}
}
