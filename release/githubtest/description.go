package githubtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// exception is where GitHub's own description is wrong or says less than its
// prose documentation, so that a call must not be held against it.
type exception struct {
	method, path string // as in the description; a * stands for anything
	status       int    // 0: any
	part         string // query, status (it lists none such) or answer
	reason       string
}

func exceptions() []exception {
	return []exception{
		{"*", "*", http.StatusUnauthorized, "status", "described once for all, under Troubleshooting the REST API"},
		{"*", "*", http.StatusForbidden, "status", "the same; also rate limits"},
		{"*", "*", http.StatusNotFound, "status", "the same: a missing right"},
		{"*", "*", http.StatusTooManyRequests, "status", "described under Rate limits for the REST API"},
		{"*", "*", http.StatusGone, "status", "issues that are switched off"},
		{"DELETE", "/*/packages/*", http.StatusBadRequest, "status", "what GitHub keeps is described in prose only"},
		{"GET", "/repos/*/matching-refs/*", 0, "query", "per_page and page were taken from the description when the endpoint stopped to heed them; other servers do"},
		{"GET", "/repos/*/commits/{commit_sha}/pulls", http.StatusUnprocessableEntity, "status", "a commit that is not there (observed)"},
		{"GET", "/users/*/versions", 0, "query", "the list of an organization's versions has them, and this one heeds them (observed)"},
		{"PUT", "/repos/*/contents/{path}", http.StatusConflict, "answer", "one of two forms, of which the first takes everything that the second takes"},
		{"POST", "/repos/*/statuses/{sha}", http.StatusUnprocessableEntity, "status", "a commit that is not there (observed)"},
	}
}

// description is GitHub's description of the routes that this package has.
type description struct{ doc *openapi3.T }

// shared holds what is read once in a process: the file has 13 MB.
var shared = sync.OnceValues(loadDescription) //nolint:gochecknoglobals // a cache of a file that does not change

// describe returns the description, or nil after saying so where it is not at
// hand. In CI it must be.
func describe(t testing.TB) *description {
	t.Helper()
	d, err := shared()
	switch {
	case err == nil:
		return d
	case errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") != "true":
		t.Logf("githubtest: calls are NOT held against GitHub's description: %v. Next: make deps-test", err)
		return nil
	default:
		t.Fatalf("githubtest: %v. Next: make deps-test", err)
		return nil
	}
}

func descriptionPath() string {
	dir := os.Getenv("AGNES_TEST_DATA")
	if dir == "" {
		_, self, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(self), "../../.tools/data")
	}
	return filepath.Join(dir, "octokit", "api.github.com.json")
}

// loadDescription reads the paths of our routes and the components that they
// reach, which is a hundredth of the file.
func loadDescription() (*description, error) {
	raw, err := os.ReadFile(descriptionPath())
	if err != nil {
		return nil, err
	}
	var file struct {
		OpenAPI    string                                `json:"openapi"`
		Info       json.RawMessage                       `json:"info"`
		Paths      map[string]json.RawMessage            `json:"paths"`
		Components map[string]map[string]json.RawMessage `json:"components"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("read %s: %w", descriptionPath(), err)
	}
	paths, components := object{}, object{}
	var want []string
	// keep decodes a part without its examples and notes what it refers to.
	keep := func(raw json.RawMessage) any {
		var v any
		_ = json.Unmarshal(raw, &v) // it was valid a moment ago
		return prune(v, &want)
	}
	for _, r := range routes() {
		part, found := file.Paths[r.path()]
		if !found {
			return nil, fmt.Errorf("expected the path %s in %s, found none", r.path(), descriptionPath())
		}
		if paths[r.path()] == nil {
			paths[r.path()] = keep(part)
		}
	}
	for len(want) > 0 {
		ref := want[0]
		want = want[1:]
		parts := strings.Split(ref, "/")
		if len(parts) != 4 || parts[1] != "components" {
			return nil, fmt.Errorf("expected a reference #/components/KIND/NAME, found %s", ref)
		}
		kind, name := parts[2], parts[3]
		if components[kind] == nil {
			components[kind] = object{}
		}
		if of := components[kind].(object); of[name] == nil {
			of[name] = keep(file.Components[kind][name])
		}
	}
	small, err := json.Marshal(object{"openapi": file.OpenAPI, "info": file.Info, "paths": paths, "components": components})
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(small)
	if err != nil {
		return nil, fmt.Errorf("understand %s: %w", descriptionPath(), err)
	}
	return &description{doc: doc}, nil
}

// prune drops examples and collects references.
func prune(v any, refs *[]string) any {
	switch v := v.(type) {
	case object:
		for name, child := range v {
			if ref, is := child.(string); is && name == "$ref" {
				*refs = append(*refs, ref)
			}
			// A property may have the name, too; then it is a schema.
			schema, _ := child.(object)
			if _, property := schema["type"]; !property && (name == "examples" || name == "example") {
				delete(v, name)
				continue
			}
			v[name] = prune(child, refs)
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i], refs)
		}
	}
	return v
}

// check holds a call and its answer against the description, and fails the test
// where they part.
func (d *description) check(t testing.TB, r route, req *http.Request, body []byte, a answer) {
	if d == nil {
		return
	}
	item := d.doc.Paths.Value(r.path())
	operation := item.GetOperation(r.method)
	if operation == nil {
		t.Errorf("GitHub's description has no %s %s", r.method, r.path())
		return
	}
	values, query := map[string]string{}, map[string]bool{}
	for _, p := range append(item.Parameters, operation.Parameters...) {
		switch p.Value.In {
		case openapi3.ParameterInPath:
			values[p.Value.Name] = req.PathValue(p.Value.Name)
		case openapi3.ParameterInQuery:
			query[p.Value.Name] = true
		}
	}
	for name := range req.URL.Query() {
		if !query[name] && !excepted(r, a.status, "query") {
			t.Errorf("GitHub does not describe the parameter %s of %s %s", name, r.method, r.path())
		}
	}
	copied := req.Clone(context.Background())
	copied.Body = http.NoBody
	if len(body) > 0 {
		copied.Body = readCloser(body)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: copied, PathParams: values, QueryParams: req.URL.Query(),
		Route:   &routers.Route{Spec: d.doc, Path: r.path(), PathItem: item, Method: r.method, Operation: operation},
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	// What the server refused as malformed is the caller's to have got wrong.
	if a.status != http.StatusBadRequest && a.status < 500 {
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			t.Errorf("a request is not as GitHub describes it: %s %s: %v\n%s", r.method, req.URL, err, body)
		}
	}
	if operation.Responses.Status(a.status) == nil {
		if !excepted(r, a.status, "status") {
			t.Errorf("GitHub does not describe the answer %d to %s %s", a.status, r.method, r.path())
		}
		return
	}
	encoded, err := json.Marshal(excerpt(a.body))
	if err != nil {
		t.Errorf("encode an answer: %v", err)
		return
	}
	header := a.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/json; charset=utf-8")
	if a.body == nil {
		encoded = nil
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: a.status, Header: header, Body: readCloser(encoded), Options: in.Options,
	}
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil && !excepted(r, a.status, "answer") {
		t.Errorf("an answer is not as GitHub describes it: %s %s: %v", r.method, r.path(), err)
	}
}

// excerpt shortens a long list: its entries are made alike.
func excerpt(body any) any {
	const some = 10
	if list, is := body.([]object); is && len(list) > 2*some {
		return append(append([]object{}, list[:some]...), list[len(list)-some:]...)
	}
	return body
}

func excepted(r route, status int, part string) bool {
	for _, e := range exceptions() {
		if match(e.method, r.method) && match(e.path, r.path()) && (e.status == 0 || e.status == status) && e.part == part {
			return true
		}
	}
	return false
}

func readCloser(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
