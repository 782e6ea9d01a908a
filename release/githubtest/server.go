// Package githubtest is a GitHub in this process, with its container registry:
// a server that holds state and keeps the real one's awkward rules, for tests of
// what releases.
//
// A Server has two halves over one state. The API half (everything but /v2/)
// answers what release-bot calls of api.github.com; each route names its path in
// GitHub's own API description, and every request and answer is held against it
// (description.go), so that the tests fail where this server and the real one
// would part. The registry half (/v2/) is GHCR: manifests are package versions,
// so deleting a version takes its manifest and all its tags along.
//
// Faults are injected by rule (fault.go): statuses, lost replies, limits, lists
// that lag. Seeding is by methods (Repo, Package, Pull …) without HTTP. Where a
// rule comes from is said beside it; "observed" means public reports of the real
// service's answers, where its documentation is silent.
package githubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Token is known to every Server and may do everything.
const Token = "ghs_agnesTestTokenWithEveryRight00000000" //nolint:gosec // of a server that lives for one test

// Server is one GitHub. All methods are safe for concurrent use.
type Server struct {
	URL  string // of the API, without a slash at the end
	Host string // of the registry: images are HOST/OWNER/NAME

	t        testing.TB
	http     *httptest.Server
	describe *description // nil where GitHub's description is not at hand
	blobs    http.Handler

	mu       sync.Mutex
	now      func() time.Time
	rand     *rand.Rand
	lastID   int64
	owners   map[string]*owner
	repos    map[string]*Repo
	packages map[string]*Package
	tokens   map[string]Grant
	requests []Request
	faults   []*Fault
	before   func(Request)
	after    func(Request)
	lists    int64 // answered lists, the clock of what lags
	lag      int64
	limits   limits
	pageRefs bool
	login    bool // the registry asks for a bearer token
}

type owner struct {
	id    int64
	login string
	kind  string // Organization or User
}

// Option changes a new Server.
type Option func(*Server)

// WithClock sets the server's clock.
func WithClock(now func() time.Time) Option { return func(s *Server) { s.now = now } }

// WithSeed seeds what faults with a probability draw from.
func WithSeed(seed uint64) Option {
	return func(s *Server) { s.rand = rand.New(rand.NewPCG(seed, seed)) } //nolint:gosec // repeatable on purpose
}

// WithPagedRefs makes matching-refs send pages. github.com has not done so since
// 2020 at the latest (github.com/google/go-github/issues/1567); others do.
func WithPagedRefs() Option { return func(s *Server) { s.pageRefs = true } }

// WithRegistryLogin makes the registry answer only with a bearer token of
// /token, as ghcr.io does, even for public images.
func WithRegistryLogin() Option { return func(s *Server) { s.login = true } }

// WithListLag makes every list show a write only after so many further lists were
// answered. Reads of one thing are never late.
func WithListLag(lists int) Option { return func(s *Server) { s.lag = int64(lists) } }

// New starts a server that ends with the test.
func New(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := &Server{
		t: t, describe: describe(t), now: time.Now,
		rand:   rand.New(rand.NewPCG(1, 1)), //nolint:gosec // repeatable on purpose
		owners: map[string]*owner{}, repos: map[string]*Repo{}, packages: map[string]*Package{},
		tokens: map[string]Grant{Token: All()},
		lastID: 1000,
	}
	for _, o := range options {
		o(s)
	}
	s.blobs = newBlobs()
	mux := http.NewServeMux()
	for _, r := range routes() {
		mux.Handle(r.method+" "+r.pattern, s.api(r))
	}
	mux.HandleFunc("/v2/", s.serveRegistry)
	mux.HandleFunc("GET /token", s.serveToken)
	mux.HandleFunc("/", s.unknown)
	s.http = httptest.NewServer(mux)
	t.Cleanup(s.http.Close)
	s.URL = s.http.URL
	s.Host = strings.TrimPrefix(s.URL, "http://")
	return s
}

// Env returns the environment that a workflow of the repository gives its steps,
// as far as it is about GitHub.
func (s *Server) Env(repo string) map[string]string {
	return map[string]string{"GITHUB_API_URL": s.URL, "GITHUB_REPOSITORY": repo, "GITHUB_TOKEN": Token}
}

// User makes an owner a person; owners are organizations otherwise.
func (s *Server) User(login string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner(login).kind = "User"
}

func (s *Server) owner(login string) *owner {
	key := strings.ToLower(login)
	if s.owners[key] == nil {
		s.owners[key] = &owner{id: s.id(), login: login, kind: "Organization"}
	}
	return s.owners[key]
}

// id returns a number that nothing else has.
func (s *Server) id() int64 {
	s.lastID++
	return s.lastID
}

// stamp returns the time in the API's precision.
func (s *Server) stamp() time.Time { return s.now().UTC().Truncate(time.Second) }

// Request is a call that the server answered.
type Request struct {
	Method string
	Path   string // escaped as it was sent, without the query
	Query  string
	Status int // 0: the connection was cut
}

// Requests returns the calls so far, in the order in which they were answered.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Count returns how many calls of a method had a path that the pattern matches:
// a * stands for anything. No method is any method.
func (s *Server) Count(method, pattern string) int {
	n := 0
	for _, r := range s.Requests() {
		if (method == "" || r.Method == method) && match(pattern, r.Path) {
			n++
		}
	}
	return n
}

// Forget empties the list of calls.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// call is one request to the API on its way.
type call struct {
	s     *Server
	r     *http.Request
	body  []byte
	repo  *Repo
	grant Grant
	login string // of the caller
}

// answer is what a handler gives back; body is sent as JSON.
type answer struct {
	status int
	body   any
	header http.Header
}

type object = map[string]any

// route is one path of the API.
type route struct {
	method, pattern string
	need            need
	handle          func(*call) answer
}

// path is the route's name in GitHub's description.
func (r route) path() string { return strings.ReplaceAll(r.pattern, "...}", "}") }

func routes() []route {
	return slices.Concat(gitRoutes(), issueRoutes(), pullRoutes(), releaseRoutes(), packageRoutes(), ruleRoutes(), treeRoutes())
}

// api answers the calls of one route.
func (s *Server) api(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(io.LimitReader(req.Body, 10<<20))
		if err != nil {
			return // the caller went away
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		entry := Request{Method: req.Method, Path: req.URL.EscapedPath(), Query: req.URL.RawQuery}
		s.watched(before, entry)

		fault := s.fault(entry)
		var a answer
		if fault != nil && !fault.Carry {
			a = fault.answer()
		} else {
			s.mu.Lock()
			a = s.carry(r, req, body)
			s.mu.Unlock()
			s.describe.check(s.t, r, req, body, a)
			if fault != nil {
				a = fault.answer()
			}
		}
		s.finish(w, entry, fault, a)
	})
}

// carry carries a call out.
func (s *Server) carry(r route, req *http.Request, body []byte) answer {
	c := &call{s: s, r: req, body: body}
	if a := s.authenticate(c); a != nil {
		return *a
	}
	limited := s.limit(c)
	if limited.status == 0 {
		limited.header = limited.header.Clone()
	} else {
		return limited
	}
	a := s.perform(r, c)
	if a.header == nil {
		a.header = http.Header{}
	}
	for name, values := range limited.header {
		a.header[name] = values
	}
	if c.grant.Scopes != nil {
		a.header.Set("X-OAuth-Scopes", strings.Join(c.grant.Scopes, ", "))
	}
	return a
}

func (s *Server) perform(r route, c *call) answer {
	if name := c.r.PathValue("repo"); name != "" {
		c.repo = s.repos[strings.ToLower(c.r.PathValue("owner")+"/"+name)]
		if c.repo == nil || c.repo.Private && c.grant.Contents < Read {
			return notFound
		}
	}
	if a := r.need.check(c); a != nil {
		return *a
	}
	return r.handle(c)
}

// finish logs the call and sends its answer, or cuts the connection.
func (s *Server) finish(w http.ResponseWriter, entry Request, fault *Fault, a answer) {
	entry.Status = a.status
	if fault != nil && fault.Cut {
		entry.Status = 0
	}
	s.mu.Lock()
	s.requests = append(s.requests, entry)
	s.mu.Unlock()
	s.watched(after, entry)
	if fault != nil && fault.Cut {
		cut(w)
		return
	}
	var body []byte
	switch b := a.body.(type) {
	case nil:
	case []byte:
		body = b
	default:
		body, _ = json.Marshal(b) // of maps and strings alone
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the caller may have been killed
}

// cut ends a connection without an answer.
func cut(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// unknown answers what no route is for, and fails the test: the real server might
// know it.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	s.t.Errorf("githubtest has no route for %s %s", r.Method, r.URL.Path)
	s.finish(w, Request{Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery}, nil, notFound)
}

// read decodes a call's body.
func (c *call) read(v any) bool { return json.Unmarshal(c.body, v) == nil }

// number reads a path value that is a number.
func (c *call) number(name string) int64 {
	n, _ := strconv.ParseInt(c.r.PathValue(name), 10, 64)
	return n
}

func ok(body any) answer      { return answer{status: http.StatusOK, body: body} }
func created(body any) answer { return answer{status: http.StatusCreated, body: body} }

// refusal is an error's answer, in GitHub's form.
func refusal(status int, message string, errs ...object) answer {
	body := object{"message": message, "documentation_url": "https://docs.github.com/rest", "status": strconv.Itoa(status)}
	if len(errs) > 0 {
		list := make([]any, len(errs))
		for i, e := range errs {
			list[i] = e
		}
		body["errors"] = list
	}
	return answer{status: status, body: body}
}

var notFound = refusal(http.StatusNotFound, "Not Found") //nolint:gochecknoglobals // a constant

// invalid is the answer to a field that cannot be used.
func invalid(resource, field, code string) answer {
	return refusal(http.StatusUnprocessableEntity, "Validation Failed", object{"resource": resource, "field": field, "code": code})
}

// pages answers one page of a list: 30 entries, or per_page up to 100, and a Link
// header (docs.github.com/rest/using-the-rest-api/using-pagination-in-the-rest-api).
func pages[T any](c *call, all []T, show func(T) object) answer {
	q := c.r.URL.Query()
	size, page := 30, 1
	if n, err := strconv.Atoi(q.Get("per_page")); err == nil && n > 0 {
		size = min(n, 100)
	}
	if n, err := strconv.Atoi(q.Get("page")); err == nil && n > 0 {
		page = n
	}
	last := max((len(all)+size-1)/size, 1)
	from, to := min((page-1)*size, len(all)), min(page*size, len(all))
	body := make([]object, 0, to-from)
	for _, one := range all[from:to] {
		body = append(body, show(one))
	}
	a := ok(body)
	var links []string
	add := func(rel string, n int) {
		q := url.Values{}
		for name, values := range c.r.URL.Query() {
			q[name] = values
		}
		q.Set("page", strconv.Itoa(n))
		links = append(links, fmt.Sprintf(`<%s%s?%s>; rel="%s"`, c.s.URL, c.r.URL.EscapedPath(), q.Encode(), rel))
	}
	if page > 1 {
		add("prev", page-1)
	}
	if page < last {
		add("next", page+1)
		add("last", last)
	}
	if page > 1 {
		add("first", 1)
	}
	if links != nil {
		a.header = http.Header{"Link": {strings.Join(links, ", ")}}
	}
	return a
}

// lagging is when something was written, counted in lists.
type lagging struct{ at int64 }

// mark says that something is written now.
func (s *Server) mark() lagging { return lagging{at: s.lists} }

// listed counts a list that is answered.
func (s *Server) listed() { s.lists++ }

// shows reports whether lists show a write already.
func (s *Server) shows(l lagging) bool { return s.lists > l.at+s.lag || s.lag == 0 }
