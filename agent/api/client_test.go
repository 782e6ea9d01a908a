package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const password = "correct horse <battery> & staple"

func ptr[T any](v T) *T { return &v }

func newClient(t *testing.T, handler http.Handler, opts ...api.Option) *api.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := api.NewClient(server.URL, append([]api.Option{api.WithToken("tok-secret-1"), api.WithUserAgent("agnesctl/2026.04.3")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	media := "application/json"
	if status >= 400 {
		media = "application/problem+json"
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func TestEachMethodMakesItsCall(t *testing.T) {
	t.Parallel()
	type want struct {
		call string // method and path
		body string
		do   func(context.Context, *api.Client) error
	}
	secret := redact.Secret(password)
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(password)
	pw := strings.TrimSpace(plain.String())

	for _, tc := range []want{
		{"GET /api/health", "", func(ctx context.Context, c *api.Client) error { _, err := c.Health(ctx); return err }},
		{"GET /api/health/details", "", func(ctx context.Context, c *api.Client) error { _, err := c.HealthDetails(ctx); return err }},
		{"GET /api/version", "", func(ctx context.Context, c *api.Client) error { _, err := c.Version(ctx); return err }},
		{"POST /auth/bootstrap", `{"email":"a@b.c","password":` + pw + `}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.Bootstrap(ctx, api.BootstrapRequest{Email: "a@b.c", Password: secret}, "setup-1")
			return err
		}},
		{"POST /auth/token", `{"email":"a@b.c","password":` + pw + `}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.Token(ctx, api.TokenRequest{Email: "a@b.c", Password: secret})
			return err
		}},
		{"GET /auth/tokens", "", func(ctx context.Context, c *api.Client) error { _, err := c.AccessTokens(ctx); return err }},
		{"POST /auth/tokens", `{"name":"ci","expires_in_days":7}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.CreateAccessToken(ctx, api.CreateTokenRequest{Name: "ci", ExpiresInDays: 7})
			return err
		}},
		{"DELETE /auth/tokens/t1", "", func(ctx context.Context, c *api.Client) error { return c.RevokeAccessToken(ctx, "t1") }},
		{"GET /api/users", "", func(ctx context.Context, c *api.Client) error { _, err := c.Users(ctx); return err }},
		{"GET /api/users/u%2F1", "", func(ctx context.Context, c *api.Client) error { _, err := c.User(ctx, "u/1"); return err }},
		{"POST /api/users", `{"email":"x@b.c","role":"analyst","password":` + pw + `,"grants":["*"]}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.CreateUser(ctx, api.CreateUserRequest{Email: "x@b.c", Role: api.RoleAnalyst, Password: secret, Grants: []string{"*"}})
			return err
		}},
		{"POST /api/users", `{"email":"x@b.c","role":"analyst"}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.CreateUser(ctx, api.CreateUserRequest{Email: "x@b.c", Role: api.RoleAnalyst})
			return err
		}},
		{"PATCH /api/users/u1", `{"password":` + pw + `,"disabled":false,"grants":[]}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.UpdateUser(ctx, "u1", api.UpdateUserRequest{Password: &secret, Disabled: ptr(false), Grants: &[]string{}})
			return err
		}},
		{"DELETE /api/users/u1", "", func(ctx context.Context, c *api.Client) error { return c.DeleteUser(ctx, "u1") }},
		{"GET /api/admin/config", "", func(ctx context.Context, c *api.Client) error { _, err := c.Config(ctx); return err }},
		{"POST /api/admin/configure", `{"data_source":"keboola","keboola_token":` + pw + `,"instance_name":""}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.Configure(ctx, api.ConfigureRequest{DataSource: "keboola", KeboolaToken: &secret, InstanceName: ptr("")})
			return err
		}},
		{"POST /api/admin/discover-and-register", "", func(ctx context.Context, c *api.Client) error { _, err := c.Discover(ctx, false); return err }},
		{"POST /api/admin/discover-and-register?dry_run=true", "", func(ctx context.Context, c *api.Client) error { _, err := c.Discover(ctx, true); return err }},
		{"GET /api/admin/registry", "", func(ctx context.Context, c *api.Client) error { _, err := c.Registry(ctx); return err }},
		{"POST /api/admin/register-table", `{"source":"csv","source_table":"orders"}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.RegisterTable(ctx, api.RegisterTableRequest{Source: "csv", SourceTable: "orders"})
			return err
		}},
		{"PUT /api/admin/registry/orders", `{"enabled":false}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.UpdateTable(ctx, "orders", api.UpdateTableRequest{Enabled: ptr(false)})
			return err
		}},
		{"DELETE /api/admin/registry/orders", "", func(ctx context.Context, c *api.Client) error { return c.UnregisterTable(ctx, "orders") }},
		{"POST /api/sync/trigger", `{"tables":["orders"],"source":"csv"}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.TriggerSync(ctx, api.SyncRequest{Tables: []string{"orders"}, Source: "csv"})
			return err
		}},
		{"GET /api/sync/status", "", func(ctx context.Context, c *api.Client) error { _, err := c.SyncStatus(ctx); return err }},
		{"GET /api/sync/jobs/j1", "", func(ctx context.Context, c *api.Client) error { _, err := c.Job(ctx, "j1"); return err }},
		{"GET /api/sync/manifest", "", func(ctx context.Context, c *api.Client) error { _, err := c.Manifest(ctx); return err }},
		{"GET /api/catalog/tables", "", func(ctx context.Context, c *api.Client) error { _, err := c.Catalog(ctx); return err }},
		{"GET /api/catalog/tables/orders", "", func(ctx context.Context, c *api.Client) error { _, err := c.CatalogTable(ctx, "orders"); return err }},
		{"POST /api/query", `{"sql":"SELECT ?","limit":0,"params":["<&>"]}`, func(ctx context.Context, c *api.Client) error {
			_, err := c.Query(ctx, api.QueryRequest{SQL: "SELECT ?", Limit: ptr(0), Params: []json.RawMessage{json.RawMessage(`"<&>"`)}})
			return err
		}},
		{"GET /api/admin/audit?limit=5", "", func(ctx context.Context, c *api.Client) error { _, err := c.Audit(ctx, 5); return err }},
	} {
		t.Run(tc.call, func(t *testing.T) {
			t.Parallel()
			var call, body string
			var header http.Header
			c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				call, body, header = r.Method+" "+r.RequestURI, string(raw), r.Header
				if r.Method == http.MethodDelete {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				writeJSON(w, http.StatusOK, map[string]any{})
			}))
			if err := tc.do(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if call != tc.call || body != tc.body {
				t.Errorf("got %s %s, want %s %s", call, body, tc.call, tc.body)
			}
			if header.Get("Authorization") != "Bearer tok-secret-1" || header.Get("User-Agent") != "agnesctl/2026.04.3" {
				t.Errorf("headers are %v", header)
			}
			if tc.call == "POST /auth/bootstrap" && header.Get("X-Setup-Token") != "setup-1" {
				t.Errorf("the setup token is missing in %v", header)
			}
		})
	}
}

// requests has one filled value of each request type.
var requests = []any{
	api.BootstrapRequest{Email: "e", Password: password, Name: "n"},
	api.TokenRequest{Email: "e", Password: password},
	api.CreateTokenRequest{Name: "n"},
	api.CreateUserRequest{Email: "e", Password: password},
	api.UpdateUserRequest{Password: ptr(redact.Secret(password))},
	api.ConfigureRequest{
		DataSource: "jira", KeboolaToken: ptr(redact.Secret(password)),
		JiraAPIToken: ptr(redact.Secret(password)), JiraWebhookSecret: ptr(redact.Secret(password)),
	},
	api.RegisterTableRequest{Source: "s"},
	api.UpdateTableRequest{},
	api.SyncRequest{Source: "s"},
	api.QueryRequest{SQL: "SELECT 1", Params: []json.RawMessage{json.RawMessage("1")}},
}

func TestEveryRequestTypeKeepsItsSecretsOnTheWire(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, r := range requests {
		known[reflect.TypeOf(r).Name()] = true
	}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			if name := spec.(*ast.TypeSpec).Name.Name; strings.HasSuffix(name, "Request") && !known[name] {
				t.Errorf("%s is not in this test's list", name)
			}
		}
	}
	for _, r := range requests {
		wire, err := api.EncodeRequest(r)
		if err != nil {
			t.Errorf("%T: %v", r, err)
			continue
		}
		if strings.Contains(string(wire), redact.Placeholder) {
			t.Errorf("%T is sent as %s", r, wire)
		}
		back := reflect.New(reflect.TypeOf(r))
		if err := json.Unmarshal(wire, back.Interface()); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back.Elem().Interface(), r) {
			t.Errorf("%T does not come back from %s", r, wire)
		}
	}
	for _, bad := range []any{
		struct{ Deep []redact.Secret }{},
		struct{ Deep struct{ S redact.Secret } }{},
		struct{ Deep map[string]redact.Secret }{},
		struct{ api.TokenRequest }{},
		"text",
	} {
		if wire, err := api.EncodeRequest(bad); err == nil {
			t.Errorf("%T was encoded as %s, want a refusal", bad, wire)
		}
	}
}

func TestNoErrorOrLogHoldsASecret(t *testing.T) {
	t.Parallel()
	secrets := []string{password, "tok-secret-1", "setup-secret-9"}
	echo := strings.Join(secrets, " ")
	for name, handler := range map[string]http.HandlerFunc{
		"a problem that echoes them": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 422, api.Problem{Status: 422, Detail: echo, Code: echo, Hint: echo, Errors: []api.ProblemItem{{Location: "body", Message: echo}}})
		},
		"a page that echoes them": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, echo)
		},
		"JSON of another shape": func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, []string{echo}) },
		"a closed connection": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://u:"+"tok-secret-1@example.invalid/?t=tok-secret-1", http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			c := newClient(t, handler, api.WithLogger(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
			_, err := c.Bootstrap(t.Context(), api.BootstrapRequest{Email: "a@b.c", Password: password}, "setup-secret-9")
			e, ok := errors.AsType[*problem.Error](err)
			if !ok {
				t.Fatalf("got %v, want a problem.Error", err)
			}
			text := fmt.Sprintf("%v %+v %s %s %s %s", err, e.Err, e.Message, e.Hint, e.Code, log.String())
			for _, s := range secrets {
				if strings.Contains(text, s) {
					t.Errorf("%q leaked in: %s", s, text)
				}
			}
			if log.Len() == 0 {
				t.Error("nothing was logged")
			}
		})
	}
}

func TestErrorsSayWhatAnsweredAndWhatToDo(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		kind    problem.Kind
		want    []string
	}{
		"a problem": {
			func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, 409, api.Problem{Title: "Conflict", Status: 409, Detail: "A sync runs.", Code: "sync_already_in_progress", Hint: "wait"})
			},
			problem.Conflict,
			[]string{"A sync runs.", "sync_already_in_progress", "wait"},
		},
		"a problem of several fields": {
			func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, 422, api.Problem{Status: 422, Detail: "validation failed", Errors: []api.ProblemItem{{Location: "body.sql", Message: "too short"}}})
			},
			problem.Unprocessable,
			[]string{"validation failed", "body.sql: too short"},
		},
		"a rate limit": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "30")
				writeJSON(w, 429, api.Problem{Status: 429, Detail: "Too many."})
			},
			problem.RateLimited,
			[]string{"Too many.", "30 seconds"},
		},
		"a proxy's page": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				w.WriteHeader(http.StatusBadGateway)
				fmt.Fprint(w, "<html><head><style>x{}</style><title>502 Bad Gateway</title></head>\n<body>nginx\x1b[2J</body></html>")
			},
			problem.Unavailable,
			[]string{"502", "text/html", "502 Bad Gateway nginx[2J", "curl -i"},
		},
		"another program with status 200": {
			func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") },
			problem.Unavailable,
			[]string{"200", "text/plain", `"hello"`},
		},
		"a redirect to another host": {
			func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://elsewhere.invalid/api/health?x=1", http.StatusMovedPermanently)
			},
			problem.Unavailable,
			[]string{"301", "https://elsewhere.invalid/api/health;", "--url"},
		},
		"garbage as JSON": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, "{nope")
			},
			problem.Unavailable,
			[]string{"not the JSON", "agnesctl version"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := newClient(t, tc.handler).Health(t.Context())
			e, ok := errors.AsType[*problem.Error](err)
			if !ok || e.Kind != tc.kind {
				t.Fatalf("got %#v, want kind %s", err, tc.kind)
			}
			text := e.Message + " " + e.Code + " " + e.Hint
			for _, part := range tc.want {
				if !strings.Contains(text, part) {
					t.Errorf("no %q in %q", part, text)
				}
			}
			if strings.ContainsRune(text, 0x1b) || strings.Contains(text, "x=1") {
				t.Errorf("%q is not clean", text)
			}
		})
	}
}

func TestAnUnreachableInstanceIsNamedWithTheNextStep(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + listener.Addr().String()
	listener.Close()
	c, err := api.NewClient(at)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Health(t.Context())
	e := problem.As(err)
	if e.Kind != problem.Unavailable || e.Message != "Nothing listens at "+at+"." || !strings.Contains(e.Hint, "AGNES_URL") {
		t.Errorf("got %+v", e)
	}

	tls := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tls.Close)
	tls.Config.ErrorLog = nil
	c, _ = api.NewClient(tls.URL)
	if _, err = c.Health(t.Context()); !strings.Contains(problem.As(err).Hint, "SSL_CERT_FILE") {
		t.Errorf("an unknown authority is reported as %+v", problem.As(err))
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Health(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled call ends with %v, want context.Canceled in its chain", err)
	}
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"http://Example.COM:80/":           "http://example.com",
		"https://example.com:443/base/":    "https://example.com/base",
		" http://127.0.0.1:8000 ":          "http://127.0.0.1:8000",
		"http://[::1]:8000":                "http://[::1]:8000",
		"127.0.0.1:8000":                   "",
		"ftp://example.com":                "",
		"http://":                          "",
		"https://user:hunter22@host":       "",
		"https://host/?token=hunter22":     "",
		"http://user:hunter22@ho st/\x7f?": "",
	} {
		u, err := api.ParseURL(in)
		if want == "" {
			e := problem.As(err)
			if err == nil || e.Kind != problem.Usage || e.Hint == "" || strings.Contains(err.Error(), "hunter22") {
				t.Errorf("ParseURL(%q) = %v, %v; want a usage problem without the secret", in, u, err)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("ParseURL(%q) = %v, %v; want %s", in, u, err, want)
		}
	}
}

func TestIDsCannotChangeThePath(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); w.WriteHeader(http.StatusNoContent) }))
	for _, id := range []string{"", ".", ".."} {
		if err := c.DeleteUser(t.Context(), id); !problem.Is(err, problem.Usage) {
			t.Errorf("DeleteUser(%q) = %v, want a usage problem", id, err)
		}
	}
	if calls.Load() != 0 {
		t.Errorf("%d calls were made", calls.Load())
	}
}

func TestOnlyGetIsTriedAgain(t *testing.T) {
	t.Parallel()
	hangUp := func(w http.ResponseWriter) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		_ = conn.(*net.TCPConn).SetLinger(0) // a reset instead of an orderly end
		conn.Close()
	}
	for name, tc := range map[string]struct {
		fail      func(w http.ResponseWriter)
		failures  int32
		post      bool
		wantCalls int32
		wantErr   bool
	}{
		"a reset GET":                 {hangUp, 2, false, 3, false},
		"a reset GET, once too often": {hangUp, 9, false, 3, true},
		"a reset POST":                {hangUp, 1, true, 1, true},
		"503 with Retry-After": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			writeJSON(w, 503, api.Problem{Status: 503, Code: "starting", Detail: "Starting."})
		}, 1, false, 2, false},
		"503 with a long Retry-After": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "600")
			writeJSON(w, 503, api.Problem{Status: 503, Code: "starting", Detail: "Starting."})
		}, 1, false, 1, true},
		"503 without Retry-After": {func(w http.ResponseWriter) { writeJSON(w, 503, api.Problem{Status: 503, Detail: "No."}) }, 1, false, 1, true},
		"503 in setup mode": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			writeJSON(w, 503, api.Problem{Status: 503, Code: "setup_required", Detail: "No."})
		}, 1, false, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if calls.Add(1) <= tc.failures {
					tc.fail(w)
					return
				}
				writeJSON(w, 200, api.Health{Status: api.Healthy})
			}), api.WithoutPauses(nil))
			var err error
			if tc.post {
				_, err = c.Discover(t.Context(), false)
			} else {
				_, err = c.Health(t.Context())
			}
			if (err != nil) != tc.wantErr || calls.Load() != tc.wantCalls {
				t.Errorf("%d calls and error %v, want %d calls", calls.Load(), err, tc.wantCalls)
			}
		})
	}
}

func TestALargeAnswerIsRefusedAndDigitsAreKept(t *testing.T) {
	t.Parallel()
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, 200, api.QueryResponse{Columns: []string{"n"}, Rows: [][]any{{int64(9007199254740993)}}, RowCount: 1})
	}))
	got, err := c.Query(t.Context(), api.QueryRequest{SQL: "SELECT 1"})
	if err != nil || fmt.Sprint(got.Rows[0][0]) != "9007199254740993" {
		t.Errorf("got %+v, %v; want all digits", got, err)
	}

	c = newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"columns":["%s"]}`, strings.Repeat("x", 4096))
	}), api.WithMaxAnswer(1024))
	if _, err := c.Query(t.Context(), api.QueryRequest{SQL: "SELECT 1"}); !problem.Is(err, problem.TooLarge) {
		t.Errorf("got %v, want too_large", err)
	}
}

func TestASilentInstanceTimesOut(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := newClient(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Health(ctx); !problem.Is(err, problem.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
}
