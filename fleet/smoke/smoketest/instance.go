// Package smoketest is an instance for tests of what looks at instances from
// outside: a server with an instance's state and its awkward rules, and a way
// to break each of its answers.
//
// It answers 503 setup_required before setup, 401 without a token that works,
// 403 to who is no admin, 409 while a sync runs or a drain is on, 422 to unknown
// fields and to addresses of another domain. Its syncs take time and stamp the
// tables that they refresh. It keeps to the clock of time.Now, so it works in a
// bubble of testing/synctest, over Pipe.
package smoketest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// What a new instance has.
const (
	Email      = "admin@company.com"
	Password   = redact.Secret(`S3cure "Pass"/123`)
	AdminToken = redact.Secret("agnes_operator_0123456789abcdefghij")
	Version    = "2026.04.3"
)

// Knobs are the state that a test may set before and between calls.
type Knobs struct {
	SetupRequired bool
	AllowedDomain string        // for new accounts; any when empty
	Draining      bool          // refuses every change
	SyncTakes     time.Duration // how long a sync runs; at once when zero
	SyncHangs     bool          // a sync never ends and never gets on
	SyncFails     bool          // a sync ends as failed; the data stay
	SyncStale     bool          // a sync succeeds, but its tables serve their last good data
	SyncLies      bool          // a sync says that it refreshed, but the data stay
	SyncUnchanged bool          // a sync finds nothing new at the source
	NoPhase       bool          // health tells no phase, as old versions do

	Warnings  []string                     // in health
	Services  map[string]api.ServiceHealth // in health
	AfterSync func(*Knobs)                 // runs when a sync ends; may be nil
}

// Fault answers a call in place of the instance.
type Fault func(http.ResponseWriter, *http.Request)

type account struct {
	api.User
	password redact.Secret
}

// Instance is the server. It is safe for concurrent use.
type Instance struct {
	mu       sync.Mutex
	knobs    Knobs
	users    []account
	tokens   map[redact.Secret]string // -> user id
	tables   []api.CatalogTable
	jobs     []api.Job
	faults   map[string]Fault
	from     map[string]int // the call from which the fault holds
	calls    map[string]int
	requests []string // method and path of each, in order
}

// New returns an instance that is set up, healthy, and synced a day ago.
func New() *Instance {
	now := time.Now().UTC()
	yesterday := now.Add(-24 * time.Hour)
	i := &Instance{
		tokens: map[redact.Secret]string{}, faults: map[string]Fault{}, from: map[string]int{}, calls: map[string]int{},
		knobs: Knobs{Services: map[string]api.ServiceHealth{"state": {Status: api.Healthy, Detail: "Writes succeed."}}},
		users: []account{{api.User{ID: "u1", Email: Email, Role: api.RoleAdmin, CreatedAt: now}, Password}},
	}
	for _, id := range []string{"customers", "orders"} {
		i.tables = append(i.tables, api.CatalogTable{ID: id, Name: id, SourceType: "csv", QueryMode: "local", Rows: 3, LastSync: &yesterday})
	}
	return i
}

// Change sets knobs.
func (i *Instance) Change(set func(*Knobs)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	set(&i.knobs)
}

// Break lets a fault answer a call, such as "GET /api/health", from its nth time
// on, counted from 1. A path that ends with a slash stands for all below it.
func (i *Instance) Break(call string, nth int, f Fault) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.faults[call], i.from[call] = f, nth
}

// Empty takes all tables away.
func (i *Instance) Empty() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tables = nil
}

// AddUser adds an account as if it had been made at a time.
func (i *Instance) AddUser(u api.User, password redact.Secret) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.users = append(i.users, account{u, password})
}

// StartSync starts a sync as another caller would.
func (i *Instance) StartSync() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.start()
}

// Emails lists the addresses of all accounts.
func (i *Instance) Emails() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for _, u := range i.users {
		out = append(out, u.Email)
	}
	return out
}

// Requests lists method and path of each call so far.
func (i *Instance) Requests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.requests)
}

// ServeHTTP serves http.Handler.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f := i.fault(r); f != nil {
		f(w, r)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.advance()
	call := r.Method + " " + r.URL.Path
	switch {
	case call == "GET /api/health":
		send(w, 200, i.health())
	case i.knobs.SetupRequired:
		w.Header().Set("Retry-After", "5")
		fail(w, 503, "setup_required", "The instance waits for its first admin.")
	case call == "POST /auth/token":
		i.signIn(w, r)
	default:
		i.signedIn(w, r, call)
	}
}

// fault counts the call and returns what is to answer in the instance's place.
func (i *Instance) fault(r *http.Request) Fault {
	i.mu.Lock()
	defer i.mu.Unlock()
	call := r.Method + " " + r.URL.Path
	i.requests = append(i.requests, call)
	for key, f := range i.faults {
		if call == key || strings.HasSuffix(key, "/") && strings.HasPrefix(call, key) {
			if i.calls[key]++; i.calls[key] >= i.from[key] {
				return f
			}
		}
	}
	return nil
}

func (i *Instance) health() api.Health {
	k := i.knobs
	h := api.Health{
		Status: api.Healthy, Version: Version, Channel: "stable", SchemaVersion: 1, Timestamp: time.Now().UTC(),
		SetupRequired: k.SetupRequired, Phase: api.PhaseServing, Warnings: append([]string{}, k.Warnings...), Services: k.Services,
	}
	for _, s := range k.Services {
		if s.Status != api.Healthy {
			h.Warnings = append(h.Warnings, s.Detail)
			if h.Status != api.Unhealthy {
				h.Status = s.Status
			}
		}
	}
	if i.running() != nil {
		h.Phase = api.PhaseSyncing
	}
	if k.NoPhase {
		h.Phase = ""
	}
	return h
}

func (i *Instance) signIn(w http.ResponseWriter, r *http.Request) {
	var req struct{ Email, Password string }
	if !decode(w, r, &req) {
		return
	}
	at := slices.IndexFunc(i.users, func(u account) bool { return u.Email == req.Email && u.password.Reveal() == req.Password })
	if at < 0 {
		fail(w, 401, "invalid_credentials", "The e-mail address or the password is wrong.")
		return
	}
	token := fmt.Sprintf("agnes-session-%02d-0123456789", len(i.tokens))
	i.tokens[redact.Secret(token)] = i.users[at].ID
	send(w, 200, api.TokenResponse{AccessToken: token, TokenType: "bearer", UserID: i.users[at].ID, Email: req.Email, Role: i.users[at].Role})
}

// role returns the caller's role; empty for who is not signed in.
func (i *Instance) role(r *http.Request) string {
	token := redact.Secret(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if token == AdminToken {
		return api.RoleAdmin
	}
	for _, u := range i.users {
		if id, known := i.tokens[token]; known && u.ID == id {
			return u.Role
		}
	}
	return ""
}

func (i *Instance) signedIn(w http.ResponseWriter, r *http.Request, call string) {
	role := i.role(r)
	job, isJob := strings.CutPrefix(call, "GET /api/sync/jobs/")
	user, isDelete := strings.CutPrefix(call, "DELETE /api/users/")
	admin := isDelete || call == "POST /api/users" || call == "GET /api/users" || call == "GET /api/admin/config" || call == "POST /api/sync/trigger"
	change := isDelete || call == "POST /api/users" || call == "POST /api/sync/trigger"
	switch {
	case role == "":
		fail(w, 401, "token_required", "This call needs an access token.")
	case admin && role != api.RoleAdmin:
		fail(w, 403, "admin_required", "This call needs the role admin; yours is "+role+".")
	case change && i.knobs.Draining:
		fail(w, 409, "draining", "The instance is draining: it starts no sync and takes no change.")
	case call == "GET /api/health/details":
		send(w, 200, api.HealthDetails{Health: i.health(), Tables: len(i.tables), ConfigHash: "5f1d7a84db00d2fc"})
	case call == "GET /api/catalog/tables":
		send(w, 200, api.Catalog{Tables: append([]api.CatalogTable{}, i.tables...), Count: len(i.tables)})
	case call == "POST /api/query":
		i.query(w, r)
	case call == "POST /api/sync/trigger":
		i.trigger(w, r)
	case call == "GET /api/sync/status":
		send(w, 200, i.syncStatus())
	case isJob:
		i.job(w, job)
	case call == "GET /api/admin/config":
		send(w, 200, api.Config{Settings: []api.Setting{{Key: "allowed_domain", Value: i.knobs.AllowedDomain}}})
	case call == "GET /api/users":
		out := api.Users{Count: len(i.users)}
		for _, u := range i.users {
			out.Users = append(out.Users, u.User)
		}
		send(w, 200, out)
	case call == "POST /api/users":
		i.createUser(w, r)
	case isDelete:
		i.deleteUser(w, user)
	default:
		fail(w, 404, "not_found", "No such path.")
	}
}

func (i *Instance) query(w http.ResponseWriter, r *http.Request) {
	var req struct{ SQL string }
	if !decode(w, r, &req) {
		return
	}
	if req.SQL != "SELECT 1" {
		fail(w, 400, "query_failed", "This instance knows SELECT 1 alone.")
		return
	}
	send(w, 200, api.QueryResponse{Columns: []string{"1"}, Types: []string{"INTEGER"}, Rows: [][]any{{1}}, RowCount: 1})
}

func (i *Instance) createUser(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Email, Name, Role, Password string
		Grants                      []string
	}
	if !decode(w, r, &req) {
		return
	}
	switch domain := i.knobs.AllowedDomain; {
	case domain != "" && !strings.HasSuffix(req.Email, "@"+domain):
		fail(w, 422, "domain_not_allowed", "The e-mail address is not of the domain "+domain+".")
		return
	case len(req.Password) < 10:
		fail(w, 422, "invalid_password", "Expected a password of at least 10 characters.")
		return
	}
	u := api.User{
		ID: fmt.Sprintf("u%d", len(i.requests)), Email: req.Email, Name: req.Name, Role: req.Role, Grants: req.Grants, CreatedAt: time.Now().UTC(),
	}
	i.users = append(i.users, account{u, redact.Secret(req.Password)})
	send(w, 201, u)
}

func (i *Instance) deleteUser(w http.ResponseWriter, id string) {
	at := slices.IndexFunc(i.users, func(u account) bool { return u.ID == id })
	if at < 0 {
		fail(w, 404, "not_found", "There is no such user.")
		return
	}
	i.users = slices.Delete(i.users, at, at+1)
	w.WriteHeader(http.StatusNoContent)
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		fail(w, 422, "unprocessable", "The body is not what was expected: "+err.Error())
		return false
	}
	return true
}

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a caller that is gone reads no more
}

func fail(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: detail})
}
