package server_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// TestBadRequestsGetOneShapeOfAnswer sends what clients get wrong to real
// routes: each answer is a problem with a code, and with a hint where the
// caller can do something about it.
func TestBadRequestsGetOneShapeOfAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	big := strings.Repeat("x", 10<<20)
	for name, tc := range map[string]struct {
		method, path string
		token        string
		body         any
		headers      []string
		status       int
	}{
		"no JSON":                     {"POST", "/api/query", admin, "SELECT 1", nil, 400},
		"half of JSON":                {"POST", "/api/query", admin, `{"sql": "SELECT 1"`, nil, 400},
		"two JSON values":             {"POST", "/api/query", admin, `{"sql":"SELECT 1"} {"sql":"SELECT 2"}`, nil, 400},
		"no body":                     {"POST", "/api/query", admin, nil, nil, 400},
		"an unknown field":            {"POST", "/api/query", admin, `{"sql":"SELECT 1","limitt":1}`, nil, 422},
		"a wrong type":                {"POST", "/api/query", admin, `{"sql":1}`, nil, 422},
		"a missing field":             {"POST", "/api/query", admin, `{}`, nil, 422},
		"a limit out of range":        {"POST", "/api/query", admin, `{"sql":"SELECT 1","limit":-1}`, nil, 422},
		"a list where an object is":   {"POST", "/api/query", admin, `[]`, nil, 422},
		"null":                        {"POST", "/api/query", admin, `null`, nil, 422},
		"a nested parameter":          {"POST", "/api/query", admin, `{"sql":"SELECT ?","params":[[1]]}`, nil, 422},
		"broken UTF-8":                {"POST", "/api/query", admin, "{\"sql\":\"SELECT '\xff'\"}", nil, 400},
		"a statement over the limit":  {"POST", "/api/query", admin, map[string]string{"sql": "SELECT '" + strings.Repeat("x", 70<<10) + "'"}, nil, 422},
		"10 MB":                       {"POST", "/api/query", admin, `{"sql":"` + big + `"}`, nil, 413},
		"10 MB by a stranger":         {"POST", "/api/query", "", `{"sql":"` + big + `"}`, nil, 401},
		"10 MB of password":           {"POST", "/auth/token", "", `{"email":"a@b.c","password":"` + big + `"}`, nil, 413},
		"another content type":        {"POST", "/api/query", admin, "sql=SELECT+1", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		"deep nesting":                {"POST", "/api/query", admin, `{"sql":` + strings.Repeat("[", 100_000) + `}`, nil, 400},
		"a token of rubbish":          {"GET", "/api/catalog/tables", "rubbish", nil, nil, 401},
		"a token with no signature":   {"GET", "/api/catalog/tables", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", nil, nil, 401},
		"a token in another scheme":   {"GET", "/api/catalog/tables", "", nil, []string{"Authorization", "Basic YTpi"}, 401},
		"a path that is not there":    {"GET", "/api/nowhere", admin, nil, nil, 404},
		"a method that is not there":  {"DELETE", "/api/query", admin, nil, nil, 405},
		"an id that is not there":     {"GET", "/api/users/no-such-id", admin, nil, nil, 404},
		"a job that is not there":     {"GET", "/api/sync/jobs/no-such-id", admin, nil, nil, 404},
		"events of no job":            {"GET", "/api/sync/jobs/no-such-id/events", admin, nil, nil, 404},
		"a traversal":                 {"GET", "/api/data/..%2f..%2fstate%2fsystem.duckdb/download", admin, nil, nil, 404},
		"a table id of 10 kB":         {"GET", "/api/catalog/tables/" + strings.Repeat("x", 10<<10), admin, nil, nil, 422},
		"a sync of unknown tables":    {"POST", "/api/sync/trigger", admin, `["nowhere"]`, nil, 422},
		"a sync of an unknown source": {"POST", "/api/sync/trigger", admin, `{"source":"nowhere"}`, nil, 422},
		"a sync of numbers":           {"POST", "/api/sync/trigger", admin, `[1]`, nil, 422},
		"a weak password":             {"POST", "/api/users", admin, `{"email":"a@b.co","role":"analyst","password":"short"}`, nil, 422},
		"an address that is none":     {"POST", "/api/users", admin, `{"email":"nobody","role":"analyst"}`, nil, 422},
		"a role that is none":         {"POST", "/api/users", admin, `{"email":"a@b.co","role":"king"}`, nil, 422},
		"a part that is no number":    {"GET", "/api/data/orders/download?part=x", admin, nil, nil, 422},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.call(tc.method, tc.path, tc.token, tc.body, tc.headers...)
			if r.status != tc.status {
				t.Fatalf("%s %s = %d %.300s, want %d", tc.method, tc.path, r.status, r.body, tc.status)
			}
			if got := r.header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("Content-Type = %q", got)
			}
			p := r.problem(t)
			if p.Status != tc.status || p.Title == "" || p.Detail == "" || p.Code == "" || p.Type == "" || p.Hint == "" {
				t.Errorf("problem = %+v, want every member filled", p)
			}
			if len(r.body) > 4<<10 {
				t.Errorf("the answer has %d bytes; it echoes the request", len(r.body))
			}
		})
	}
	var h api.Health
	w.call("GET", "/api/health", "a token of yesterday", nil).into(t, &h)
	if h.Status != api.Healthy {
		t.Errorf("afterwards health = %+v", h)
	}
}

func TestAnswersThatAreListsAreNeverNull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	for _, path := range []string{
		"/api/catalog/tables", "/api/admin/registry", "/api/sync/status", "/api/sync/manifest", "/auth/tokens", "/api/health/details", "/api/health",
	} {
		if r := w.call("GET", path, admin, nil); r.status != http.StatusOK || strings.Contains(string(r.body), ":null") {
			t.Errorf("GET %s = %d %s, want lists as []", path, r.status, r.body)
		}
	}
	if _, r := w.query(admin, "SELECT 1 WHERE false"); !strings.Contains(string(r.body), `"rows":[]`) {
		t.Errorf("no rows = %s, want []", r.body)
	}
}

// TestNoSecretReachesALogOrAnAnswer sends secrets the right and the wrong way
// and searches everything that came out.
func TestNoSecretReachesALogOrAnAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const wrong = "wr0ng-s3cr3t-value"
	admin := w.synced()
	var answers strings.Builder
	keep := func(r reply) { answers.Write(r.body) }
	for _, body := range []string{
		fmt.Sprintf(`{"email":"x@company.com","password":%q}`, wrong),
		fmt.Sprintf(`{"email":"x@company.com","password":[%q]}`, wrong),
		fmt.Sprintf(`{"email":1,"password":%q}`, wrong),
		fmt.Sprintf(`{"email":"x@company.com","password":%q,"passwordd":%q}`, wrong, wrong),
		fmt.Sprintf(`{"email":"x@company.com","password":%q`, wrong),
	} {
		keep(w.call("POST", "/auth/token", "", body))
		keep(w.call("POST", "/auth/bootstrap", "", body))
		keep(w.call("POST", "/api/users", admin, body))
	}
	keep(w.call("POST", "/api/admin/configure", admin, fmt.Sprintf(`{"data_source":"keboola","keboola_token":%q}`, wrong)))
	keep(w.call("POST", "/api/admin/configure", admin, fmt.Sprintf(`{"data_source":"csv","keboola_token":{"x":%q}}`, wrong)))
	keep(w.call("GET", "/api/users", "agnes_pat_"+wrong, nil))
	for _, path := range []string{"/api/users", "/api/admin/config", "/api/admin/audit", "/api/health/details", "/metrics", "/openapi.json"} {
		keep(w.call("GET", path, admin, nil))
	}
	jwt := strings.TrimSpace(mustRead(t, w.dir+"/state/.jwt_secret"))
	for name, secret := range map[string]string{"a password": adminPassword, "a wrong secret": wrong, "the signing key": jwt, "a session token": admin, "a hash": "$argon2id$"} {
		if strings.Contains(answers.String(), secret) {
			t.Errorf("%s is in an answer", name)
		}
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%s is in the log", name)
		}
	}
}

func TestUnknownErrorsGiveNothingAway(t *testing.T) {
	t.Parallel()
	p := problem.As(fmt.Errorf("open /data/state/system.duckdb: input/output error"))
	if strings.Contains(p.Message+p.Hint, "/data") || p.Kind != problem.Internal || p.Hint == "" {
		t.Errorf("problem = %+v", p)
	}
}

func TestTheAPIDescribesItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	var doc struct {
		OpenAPI string                               `json:"openapi"`
		Paths   map[string]map[string]map[string]any `json:"paths"`
	}
	w.call("GET", "/openapi.json", "", nil).into(t, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("openapi = %q, want 3.1", doc.OpenAPI)
	}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if op["summary"] == "" || op["operationId"] == "" {
				t.Errorf("%s %s has no summary or id", method, path)
			}
		}
	}
	for _, path := range []string{"/api/health", "/auth/bootstrap", "/api/query", "/api/sync/jobs/{id}/events", "/api/data/{table}/download"} {
		if doc.Paths[path] == nil {
			t.Errorf("the description lacks %s", path)
		}
	}
	docs := w.call("GET", "/docs/", "", nil)
	outside := regexp.MustCompile(`(src|href)="(https?:)?//`)
	if docs.status != http.StatusOK || outside.Match(docs.body) {
		t.Errorf("/docs/ = %d; it must load nothing from outside:\n%s", docs.status, docs.body)
	}
	script := regexp.MustCompile(`src="(/docs/[^"]+bundle[^"]*)"`).FindSubmatch(docs.body)
	if script == nil {
		t.Fatalf("/docs/ has no script of its own:\n%s", docs.body)
	}
	if r := w.call("GET", string(script[1]), "", nil); r.status != http.StatusOK || len(r.body) < 100_000 {
		t.Errorf("GET %s = %d with %d bytes", script[1], r.status, len(r.body))
	}
	metrics := w.call("GET", "/metrics", admin, nil, "Accept", "application/openmetrics-text")
	for _, want := range []string{"agnes_build_info{", "agnes_http_requests_total{", "agnes_ready", "# EOF"} {
		if !strings.Contains(string(metrics.body), want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if r := w.call("GET", "/metrics", "", nil, "X-Forwarded-For", "203.0.113.1"); r.status != http.StatusUnauthorized {
		t.Errorf("/metrics for a stranger = %d, want 401", r.status)
	}
}
