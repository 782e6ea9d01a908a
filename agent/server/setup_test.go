package server_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
)

func TestAFreshInstanceAnswersOnlyWhatSetupNeeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{"/setup", "/api/health", "/livez", "/api/version"} {
		if r := w.call("GET", path, "", nil); r.status != http.StatusOK {
			t.Errorf("GET %s = %d, want 200 in setup mode", path, r.status)
		}
	}
	for _, path := range []string{"/api/catalog/tables", "/api/health/details", "/metrics", "/openapi.json", "/docs/", "/", "/nowhere"} {
		r := w.call("GET", path, "", nil)
		if p := r.problem(t); r.status != http.StatusServiceUnavailable || p.Code != "setup_required" || !strings.Contains(p.Hint, "/auth/bootstrap") {
			t.Errorf("GET %s = %d %+v, want 503 setup_required with the next call", path, r.status, p)
		}
		if r := w.call("GET", path, "", nil, "Accept", "text/html"); r.status != http.StatusSeeOther || r.header.Get("Location") != "/setup" {
			t.Errorf("GET %s by a browser = %d to %q, want a redirect to /setup", path, r.status, r.header.Get("Location"))
		}
	}
	var h api.Health
	w.call("GET", "/api/health", "", nil).into(t, &h)
	if !h.SetupRequired || h.Version != "2026.04.3" || h.Channel != "stable" || h.Commit != "abc1234" || h.SchemaVersion < 1 {
		t.Errorf("health = %+v, want setup_required and the build", h)
	}
	w.bootstrap()
	w.call("GET", "/api/health", "", nil).into(t, &h)
	if h.SetupRequired {
		t.Error("setup_required is still true after the bootstrap")
	}
}

func TestBootstrapWorksOnceAlsoUnderContention(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var wg sync.WaitGroup
	codes := make(chan int, 10)
	for range 10 {
		wg.Go(func() {
			codes <- w.call("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}).status
		})
	}
	wg.Wait()
	close(codes)
	won := 0
	for code := range codes {
		switch code {
		case http.StatusOK:
			won++
		case http.StatusForbidden, http.StatusTooManyRequests:
		default:
			t.Errorf("a losing bootstrap answered %d", code)
		}
	}
	if won != 1 {
		t.Errorf("%d bootstraps won, want exactly one", won)
	}
	r := w.call("POST", "/auth/bootstrap", "", map[string]string{"email": "late@company.com", "password": adminPassword})
	if p := r.problem(t); r.status != http.StatusForbidden || p.Code != "setup_complete" || p.Hint == "" {
		t.Errorf("a late bootstrap = %d %+v, want 403 setup_complete", r.status, p)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "state", ".setup_token")); err == nil {
		t.Error("the setup token outlived the setup")
	}
}

func TestStrangersNeedTheSetupToken(t *testing.T) {
	t.Parallel()
	body := map[string]string{"email": adminEmail, "password": adminPassword}
	for name, tc := range map[string]struct {
		server  server.Options
		headers []string
		status  int
	}{
		"the machine's own user":        {server.Options{}, nil, 200},
		"through a proxy":               {server.Options{}, []string{"X-Forwarded-For", "203.0.113.9"}, 403},
		"through a proxy, RFC 7239":     {server.Options{}, []string{"Forwarded", "for=203.0.113.9"}, 403},
		"where a domain is set":         {server.Options{Domain: "data.company.com"}, nil, 403},
		"a page of another site":        {server.Options{}, []string{"Origin", "https://evil.example"}, 403},
		"a rebound name in the browser": {server.Options{}, []string{"Origin", "http://evil.example", "Host", "evil.example"}, 403},
		"this machine's own page":       {server.Options{}, []string{"Origin", "http://localhost:8000", "Host", "localhost:8000"}, 200},
		"a cross-site fetch":            {server.Options{LocalOnly: true}, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"a wrong token":                 {server.Options{}, []string{"X-Setup-Token", "not-it"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *worldOptions) { o.server = tc.server })
			r := w.call("POST", "/auth/bootstrap", "", body, tc.headers...)
			if r.status != tc.status {
				t.Fatalf("bootstrap = %d %s, want %d", r.status, r.body, tc.status)
			}
			if tc.status != http.StatusForbidden {
				return
			}
			token := strings.TrimSpace(mustRead(t, filepath.Join(w.dir, "state", ".setup_token")))
			if p := r.problem(t); strings.Contains(string(r.body), token) || !strings.Contains(p.Hint, "X-Setup-Token") {
				t.Errorf("the refusal %+v must name the header and not show the token", p)
			}
			headers := append(append([]string{}, tc.headers...), "X-Setup-Token", token)
			if r := w.call("POST", "/auth/bootstrap", "", body, headers...); r.status != http.StatusOK {
				t.Errorf("with the token = %d %s, want 200", r.status, r.body)
			}
		})
	}
}

func TestSecretsAreMadeOncePerDataDirectoryAndKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	read := func() map[string]string {
		out := map[string]string{}
		for _, name := range []string{".jwt_secret", ".session_secret"} {
			path := filepath.Join(dir, "state", name)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %o, want 0600", name, info.Mode().Perm())
			}
			out[name] = mustRead(t, path)
		}
		return out
	}
	var token string
	var first map[string]string
	t.Run("first start", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) { o.dir = dir })
		token, first = w.bootstrap(), read()
	})
	t.Run("second start", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) { o.dir = dir })
		if second := read(); second[".jwt_secret"] != first[".jwt_secret"] || second[".session_secret"] != first[".session_secret"] {
			t.Error("a restart changed the secrets")
		}
		if r := w.call("GET", "/api/health/details", token, nil); r.status != http.StatusOK {
			t.Errorf("the token of before the restart answers %d, want 200", r.status)
		}
	})
	t.Run("a key from the environment wins", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) {
			o.dir, o.env["JWT_SECRET_KEY"] = dir, strings.Repeat("k", 40)
		})
		if r := w.call("GET", "/api/health/details", token, nil); r.status != http.StatusUnauthorized {
			t.Errorf("a token of another key answers %d, want 401", r.status)
		}
	})
}
