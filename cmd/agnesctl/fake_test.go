package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

const (
	setupToken = "setup-token-0123456789"
	queryError = "Parser Error: syntax error at or near \"SELEC\""
)

// instance is a server that speaks an instance's API and keeps its awkward
// rules: 503 setup_required before an admin exists, 403 bootstrap afterwards,
// 401 without a token, 409 while a sync runs, 409 for what the environment
// fixes, unknown fields refused.
type instance struct {
	mu         sync.Mutex
	email      string
	password   string
	tokens     int
	config     map[string]string
	fixed      map[string]string // by setting, the variable that fixes it
	available  []string          // tables of the source
	registered map[string]*api.CatalogTable
	jobs       []*api.Job
	failSync   bool
	stuck      bool // a sync runs and does not end
	status     string
	changes    []string // every call that changed something
}

var epoch = time.Date(2026, 4, 3, 12, 0, 0, 0, time.UTC)

func newFake() *instance {
	return &instance{
		config: map[string]string{}, fixed: map[string]string{}, available: []string{"customers", "orders"},
		registered: map[string]*api.CatalogTable{}, status: api.Healthy,
	}
}

func (f *instance) start() *httptest.Server { return httptest.NewServer(f) }

func (f *instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/api/health" {
		f.send(w, 200, f.health())
		return
	}
	if r.URL.Path == "/auth/bootstrap" {
		f.bootstrap(w, r)
		return
	}
	if f.email == "" {
		w.Header().Set("Retry-After", "5")
		f.fail(w, 503, "setup_required", "The instance waits for its first admin.", "Open /setup or POST /auth/bootstrap.")
		return
	}
	if r.URL.Path == "/auth/token" {
		f.signIn(w, r)
		return
	}
	var n int
	if _, err := fmt.Sscanf(r.Header.Get("Authorization"), "Bearer agnes-token-%d", &n); err != nil || n < 1 || n > f.tokens {
		f.fail(w, 401, "unauthenticated", "Expected a valid access token.", "POST /auth/token")
		return
	}
	f.authenticated(w, r)
}

func (f *instance) authenticated(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	job, isJob := strings.CutPrefix(path, "/api/sync/jobs/")
	table, isTable := strings.CutPrefix(path, "/api/catalog/tables/")
	switch call := r.Method + " " + path; {
	case call == "GET /api/health/details":
		f.send(w, 200, api.HealthDetails{
			Health: f.health(), Tables: len(f.registered), Isolation: "none", Disk: api.Disk{TotalBytes: 2e12, FreeBytes: 1.5e12},
			Sources: []api.SourceHealth{{Name: "csv", LastSync: &epoch, Status: "succeeded"}},
		})
	case call == "GET /api/admin/config":
		var c api.Config
		for _, k := range []string{"data_source", "csv_dir", "instance_name"} {
			c.Settings = append(c.Settings, api.Setting{Key: k, Value: f.config[k], Source: "file"})
		}
		f.send(w, 200, c)
	case call == "POST /api/admin/configure":
		f.configure(w, r)
	case call == "POST /api/admin/discover-and-register":
		f.discover(w, r.URL.Query().Get("dry_run") == "true")
	case call == "POST /api/sync/trigger":
		f.trigger(w, r)
	case call == "GET /api/sync/status":
		var s api.SyncStatus
		for _, j := range f.jobs {
			if j.Done() {
				s.Last = j
			} else {
				s.Running = j
			}
		}
		f.send(w, 200, s)
	case isJob:
		f.job(w, strings.TrimSuffix(job, "/events"), strings.HasSuffix(job, "/events"))
	case call == "GET /api/catalog/tables":
		c := api.Catalog{Tables: []api.CatalogTable{}, Count: len(f.registered)}
		for _, id := range f.available {
			if t := f.registered[id]; t != nil {
				c.Tables = append(c.Tables, *t)
			}
		}
		f.send(w, 200, c)
	case isTable:
		t := f.registered[table]
		if t == nil {
			f.fail(w, 404, "table_not_found", "There is no table "+table+" that you may see.", "GET /api/catalog/tables")
			return
		}
		described := *t
		described.Columns = []api.Column{{Name: "id", Type: "BIGINT"}, {Name: "note\x1b[2J", Type: "VARCHAR"}}
		f.send(w, 200, described)
	case call == "POST /api/query":
		f.query(w, r)
	default:
		f.fail(w, 404, "not_found", "No such path.", "GET /openapi.json")
	}
}

func (f *instance) health() api.Health {
	h := api.Health{
		Status: f.status, Version: "2026.04.3", Channel: "stable", SchemaVersion: 1, Timestamp: epoch, SetupRequired: f.email == "",
		Warnings: []string{}, Services: map[string]api.ServiceHealth{"state": {Status: api.Healthy, Detail: "writes"}},
	}
	if f.status != api.Healthy {
		h.Services["disk"] = api.ServiceHealth{Status: f.status, Detail: "98% full", Hint: "Free space in DATA_DIR."}
	}
	return h
}

func (f *instance) bootstrap(w http.ResponseWriter, r *http.Request) {
	var req api.BootstrapRequest
	switch {
	case f.email != "":
		f.fail(w, 403, "already_set_up", "An admin exists.", "POST /auth/token")
	case r.Header.Get(api.SetupTokenHeader) != setupToken:
		f.fail(w, 403, "setup_token_required", "Expected the setup token in X-Setup-Token.", "Read DATA_DIR/state/.setup_token.")
	case !f.decode(w, r, &req):
	case len(req.Password) < 10:
		f.fail(w, 422, "invalid_password", "Expected a password of at least 10 characters.", "Choose a longer one.")
	default:
		f.email, f.password = req.Email, req.Password.Reveal()
		f.changed("bootstrap")
		f.sendToken(w)
	}
}

func (f *instance) signIn(w http.ResponseWriter, r *http.Request) {
	var req api.TokenRequest
	if !f.decode(w, r, &req) {
		return
	}
	if req.Email != f.email || req.Password.Reveal() != f.password {
		f.fail(w, 401, "wrong_credentials", "E-mail address or password is wrong.", "Try again.")
		return
	}
	f.sendToken(w)
}

func (f *instance) sendToken(w http.ResponseWriter) {
	f.tokens++
	f.send(w, 200, api.TokenResponse{
		AccessToken: fmt.Sprintf("agnes-token-%d", f.tokens), TokenType: "bearer", UserID: "u1", Email: f.email, Role: api.RoleAdmin,
		ExpiresAt: epoch.Add(24 * time.Hour),
	})
}

func (f *instance) configure(w http.ResponseWriter, r *http.Request) {
	var req api.ConfigureRequest
	if !f.decode(w, r, &req) {
		return
	}
	if req.DataSource != "csv" {
		f.fail(w, 422, "source_not_available", "The data source "+req.DataSource+" comes with connector "+req.DataSource+".", "Use csv.")
		return
	}
	wanted := map[string]*string{"data_source": &req.DataSource, "csv_dir": req.CSVDir, "instance_name": req.InstanceName}
	for key, value := range wanted {
		if variable := f.fixed[key]; value != nil && variable != "" {
			f.fail(w, 409, "fixed_by_environment", key+" is fixed by "+variable+".", "Change "+variable+" and restart.")
			return
		}
	}
	if dir := req.CSVDir; dir != nil && !filepath.IsAbs(*dir) {
		f.fail(w, 422, "csv_dir", "Expected an absolute directory.", "Use /srv/data.")
		return
	}
	for key, value := range wanted {
		if value != nil {
			f.config[key] = *value
		}
	}
	f.changed("configure")
	f.send(w, 200, api.ConfigureResponse{Status: "configured", DataSource: "csv", Connection: "local"})
}

func (f *instance) discover(w http.ResponseWriter, dry bool) {
	d := api.Discovery{Errors: []api.DiscoveryError{}, Tables: []api.RegisteredTable{}, Source: "csv", DryRun: dry, Warnings: []string{}}
	for _, id := range f.available {
		d.Tables = append(d.Tables, api.RegisteredTable{ID: id, Name: id, Source: "csv", SourceTable: id, QueryMode: "local"})
		if f.registered[id] != nil {
			d.Skipped++
			continue
		}
		d.Registered++
		if !dry {
			f.registered[id] = &api.CatalogTable{ID: id, Name: id, SourceType: "csv", QueryMode: "local"}
			f.changed("register " + id)
		}
	}
	if slices.Contains(f.available, "bad name") {
		d.Errors = append(d.Errors, api.DiscoveryError{Table: "bad name", Message: "not a table name", Hint: "Rename the file."})
	}
	f.send(w, 200, d)
}

func (f *instance) trigger(w http.ResponseWriter, r *http.Request) {
	var req api.SyncRequest
	if !f.decode(w, r, &req) {
		return
	}
	if n := len(f.jobs); n > 0 && !f.jobs[n-1].Done() {
		f.fail(w, 409, "sync_already_in_progress", "A sync runs already.", "GET /api/sync/status")
		return
	}
	tables := req.Tables
	if len(tables) == 0 {
		for _, id := range f.available {
			if f.registered[id] != nil {
				tables = append(tables, id)
			}
		}
	}
	job := &api.Job{ID: fmt.Sprintf("job-%d", len(f.jobs)+1), Status: api.JobRunning, CreatedAt: epoch, StartedAt: &epoch, Warnings: []string{}}
	for _, id := range tables {
		if f.registered[id] == nil {
			f.fail(w, 404, "table_not_found", "There is no table "+id+".", "GET /api/admin/registry")
			return
		}
		job.Tables = append(job.Tables, api.JobTable{ID: id, Source: "csv", Status: api.JobQueued})
	}
	f.jobs = append(f.jobs, job)
	f.changed("sync")
	f.send(w, 200, api.SyncTriggered{Status: "triggered", JobID: job.ID, Tables: tables, Message: "Started."})
}

// job answers for a job and, as a stream, brings it to its end.
func (f *instance) job(w http.ResponseWriter, id string, events bool) {
	i := slices.IndexFunc(f.jobs, func(j *api.Job) bool { return j.ID == id })
	if i < 0 {
		f.fail(w, 404, "job_not_found", "There is no job "+id+".", "GET /api/sync/status")
		return
	}
	job := f.jobs[i]
	if !events {
		f.send(w, 200, job)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	emit := func() {
		data, _ := json.Marshal(job)
		fmt.Fprintf(w, ": tick\n\nevent: job\ndata: %s\n\n", data)
		w.(http.Flusher).Flush()
	}
	emit()
	if f.stuck || job.Done() {
		return
	}
	ended := epoch.Add(1500 * time.Millisecond)
	for n := range job.Tables {
		t := &job.Tables[n]
		t.Status, t.Rows = api.JobSucceeded, int64(100*(n+1))
		if f.failSync {
			t.Status, t.Rows, t.Error, t.Hint = api.JobFailed, 0, "bad row in "+t.ID+".csv line 3", "Mend line 3."
		} else {
			catalog := f.registered[t.ID]
			catalog.Rows, catalog.SizeBytes, catalog.LastSync = t.Rows, 2048, &ended
		}
		job.Progress = float64(n+1) / float64(len(job.Tables))
		emit()
	}
	job.Status, job.EndedAt = api.JobSucceeded, &ended
	if f.failSync {
		job.Status, job.Error, job.Hint = api.JobFailed, "No table could be read.", "Mend the files, then sync again."
	}
	emit()
}

func (f *instance) query(w http.ResponseWriter, r *http.Request) {
	var req api.QueryRequest
	if !f.decode(w, r, &req) {
		return
	}
	if strings.HasPrefix(req.SQL, "SELEC ") {
		f.fail(w, 400, "query_failed", queryError, "Mend the statement.")
		return
	}
	if accept := r.Header.Get("Accept"); accept != "application/json" {
		w.Header().Set("Content-Type", accept)
		fmt.Fprintf(w, "id,note\n1,%s\n", accept)
		return
	}
	params := make([]any, len(req.Params))
	for i, p := range req.Params {
		params[i] = p
	}
	f.send(w, 200, api.QueryResponse{
		Columns: []string{"id", "note", "params"}, Types: []string{"BIGINT", "VARCHAR", "JSON"},
		Rows:     [][]any{{int64(9007199254740993), "a\x1b]0;owned\x07\nb", params}, {nil, strings.TrimSpace(req.SQL), nil}},
		RowCount: 2, Truncated: req.Limit != nil && *req.Limit == 2,
	})
}

func (f *instance) changed(what string) { f.changes = append(f.changes, what) }

func (f *instance) decode(w http.ResponseWriter, r *http.Request, into any) bool {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		f.fail(w, 400, "invalid", "The body is not what was expected: "+err.Error(), "See /docs.")
		return false
	}
	return true
}

func (f *instance) send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *instance) fail(w http.ResponseWriter, status int, code, detail, hint string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: detail, Hint: hint})
}
