//go:build e2e

package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// TestNoSecretReachesTheLog sends every kind of secret where it belongs and
// where it does not, to an instance that logs all it can.
func TestNoSecretReachesTheLog(t *testing.T) {
	parallel(t)
	data := t.TempDir()
	p := start(t, data, debug)
	raw, err := os.ReadFile(filepath.Join(data, "state", ".setup_token"))
	if err != nil {
		t.Fatal(err)
	}
	setupToken := strings.TrimSpace(string(raw))
	for _, request := range []func(*http.Request){
		func(r *http.Request) { r.URL.RawQuery = "token=" + setupToken },
		func(r *http.Request) { r.Header.Set("X-Setup-Token", setupToken) },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/setup", nil)
		if err != nil {
			t.Fatal(err)
		}
		request(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		page, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if strings.Contains(string(page), setupToken) {
			t.Errorf("the setup page holds the token:\n%s", page)
		}
	}
	p.stop()
	if strings.Contains(p.log.String(), setupToken) || strings.Count(p.out.String(), setupToken) != 1 {
		t.Errorf("the setup token belongs on standard output, once:\n%s", p.out)
	}

	in := settled(t, data, shop(t))
	for name, secret := range map[string]string{
		"another user's password": "hunter2-of-another-user",
		"a wrong password":        "hunter2-that-is-wrong",
		"a source's credential":   "hunter2-of-a-source",
		"a foreign token":         "eyJhbGciOiJub25lIn0.eyJzdWIiOiJodW50ZXIyIn0.hunter2",
	} {
		in.secrets[name] = secret
	}
	ctx := t.Context()
	_, err = in.client.CreateUser(ctx, api.CreateUserRequest{Email: "two@company.com", Role: api.RoleAnalyst, Password: redact.Secret(in.secrets["another user's password"])})
	if err != nil {
		t.Fatal(err)
	}
	pat, err := in.client.CreateAccessToken(ctx, api.CreateTokenRequest{Name: "job"})
	if err != nil {
		t.Fatal(err)
	}
	in.secrets["a personal access token"] = pat.Token
	_, err = in.client.Token(ctx, api.TokenRequest{Email: adminEmail, Password: redact.Secret(in.secrets["a wrong password"])})
	if !problem.Is(err, problem.Unauthenticated) {
		t.Errorf("a wrong password: %v", err)
	}
	credential := redact.Secret(in.secrets["a source's credential"])
	_, err = in.client.Configure(ctx, api.ConfigureRequest{DataSource: "keboola", KeboolaToken: &credential})
	wantProblem(t, err, problem.Unprocessable, "keboola")
	if err != nil && strings.Contains(err.Error(), credential.Reveal()) {
		t.Errorf("the refusal holds the credential: %v", err)
	}
	for name, token := range map[string]string{"a personal access token": pat.Token, "a foreign token": in.secrets["a foreign token"]} {
		err := in.call(ctx, "GET", "/api/catalog/tables", token, nil, &api.Catalog{})
		if (err == nil) != (token == pat.Token) {
			t.Errorf("%s: %v", name, err)
		}
		// In the wrong places.
		for _, path := range []string{"/api/catalog/tables/", "/api/nowhere/", "/api/catalog/tables?token="} {
			_ = in.call(ctx, "GET", path+token, "", nil, nil)
		}
		_ = in.call(ctx, "POST", "/api/users", pat.Token, map[string]any{"email": "x@company.com", "role": "analyst", "password": []string{token}}, nil)
	}
	in.stop()
}
