package server_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

const (
	adminEmail    = "admin@company.com"
	adminPassword = "SecurePass123!"
)

// TestMain makes the test binary play the query worker.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == query.WorkerCommand {
		if err := query.WorkerMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// source is a data source whose content the test writes: SQL by table.
type source struct {
	mu     sync.Mutex
	tables map[string]string
	err    error         // of the source as a whole
	hold   chan struct{} // when set, Extract waits for it
	asked  func()        // when set, Discover calls it
}

func (s *source) set(table, sqlText string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sqlText == "" {
		delete(s.tables, table)
		return
	}
	s.tables[table] = sqlText
}

func (s *source) Name() string { return "csv" }

func (s *source) Check(context.Context) error { return s.err }

func (s *source) Discover(context.Context) ([]connectors.Table, []connectors.Warning, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil {
		s.asked()
	}
	var out []connectors.Table
	for name := range s.tables {
		out = append(out, connectors.Table{Name: name, Rows: -1, SizeBytes: -1, QueryMode: connectors.Local})
	}
	return out, nil, s.err
}

func (s *source) Extract(ctx context.Context, _ connectors.Request, w *connectors.Writer, _ func(connectors.Progress)) (connectors.Result, error) {
	s.mu.Lock()
	hold, err := s.hold, s.err
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return connectors.Result{}, ctx.Err()
		}
	}
	if err != nil {
		return connectors.Result{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	db, err := duck.Open(ctx, duck.Memory, duck.Options{})
	if err != nil {
		return connectors.Result{}, err
	}
	defer func(db *sql.DB) { _ = db.Close() }(db)
	res := connectors.Result{Failed: map[string]error{}}
	for name, text := range s.tables {
		var rows int64
		copied, err := db.ExecContext(ctx, fmt.Sprintf("COPY (%s) TO %s (FORMAT parquet)", text, duck.Literal(w.Path(name))))
		if err != nil {
			res.Failed[name] = err
			continue
		}
		if rows, err = copied.RowsAffected(); err != nil {
			return res, err
		}
		m := connectors.Meta{Table: name, Rows: rows, ExtractedAt: time.Now().UTC(), QueryMode: connectors.Local}
		if err := w.Add(m, ""); err != nil {
			return res, err
		}
		res.Tables = append(res.Tables, m)
	}
	return res, nil
}

// world is an instance behind a real HTTP server.
type world struct {
	t        *testing.T
	dir      string
	source   *source
	instance *agent.Instance
	url      string
	log      *bytes.Buffer
	logs     *lockedWriter // over log
}

type worldOptions struct {
	dir    string
	env    map[string]string
	limits func(role string, standard api.Limits) api.Limits
	server server.Options

	afterBackup func(backup.Info)
}

func newWorld(t *testing.T, opts ...func(*worldOptions)) *world {
	t.Helper()
	o := worldOptions{dir: t.TempDir(), env: map[string]string{}}
	for _, f := range opts {
		f(&o)
	}
	w := &world{t: t, dir: o.dir, log: &bytes.Buffer{}, source: &source{tables: map[string]string{
		"orders":    "SELECT range AS id, range % 10 AS customer_id FROM range(100)",
		"customers": "SELECT range AS id, 'customer ' || range AS name FROM range(10)",
	}}}
	w.logs = &lockedWriter{w: w.log}
	log := slog.New(slog.NewTextHandler(w.logs, nil))
	in, err := agent.Open(t.Context(), agent.Options{
		Inputs: settings.Inputs{Flags: map[string]string{settings.DataDir: o.dir}, Getenv: func(k string) string { return o.env[k] }},
		Sources: map[string]agent.OpenSource{
			"csv": func(*settings.Resolved) (connectors.Source, error) { return w.source, nil },
		},
		Build: buildinfo.Info{Version: "2026.04.3", Channel: "stable", Commit: "abc1234", Go: "go"},
		Log:   log,

		QueryLimits: o.limits,
		AfterBackup: func(_ context.Context, b backup.Info) {
			if o.afterBackup != nil {
				o.afterBackup(b)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.instance = in
	o.server.Instance, o.server.Log = in, log
	ts := httptest.NewServer(server.New(o.server).Handler())
	w.url = ts.URL
	t.Cleanup(func() {
		ts.Close()
		if err := in.Close(); err != nil {
			t.Errorf("close the instance: %v", err)
		}
	})
	return w
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// reply is an answer with its body read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) problem(t *testing.T) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("the answer %d is no problem: %v\n%s", r.status, err, r.body)
	}
	return p
}

func (r reply) into(t *testing.T, v any) {
	t.Helper()
	if r.status >= 300 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%v in %s", err, r.body)
	}
}

// call sends a request; headers alternate name and value. A body that is text
// goes as it is, anything else as JSON.
func (w *world) call(method, path, token string, body any, headers ...string) reply {
	w.t.Helper()
	var data io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		data = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			w.t.Fatal(err)
		}
		data = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, data)
	if err != nil {
		w.t.Fatal(err)
	}
	if data != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, out}
}

// bootstrap creates the admin and returns its token.
func (w *world) bootstrap() string {
	w.t.Helper()
	var tok api.TokenResponse
	w.call("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}).into(w.t, &tok)
	return tok.AccessToken
}

// synced bootstraps, configures, discovers and syncs.
func (w *world) synced() (token string) {
	w.t.Helper()
	token = w.bootstrap()
	w.call("POST", "/api/admin/configure", token, map[string]string{"data_source": "csv", "csv_dir": "/files"}).into(w.t, &api.ConfigureResponse{})
	w.call("POST", "/api/admin/discover-and-register", token, nil).into(w.t, &api.Discovery{})
	if job := w.sync(token); job.Status != api.JobSucceeded {
		w.t.Fatalf("the sync ended as %+v", job)
	}
	return token
}

// sync triggers a sync and waits for its end by its events.
func (w *world) sync(token string) api.Job {
	w.t.Helper()
	var trig api.SyncTriggered
	w.call("POST", "/api/sync/trigger", token, nil).into(w.t, &trig)
	return w.wait(token, trig.JobID)
}

func (w *world) wait(token, job string) api.Job {
	w.t.Helper()
	r := w.call("GET", "/api/sync/jobs/"+job+"/events", token, nil)
	var last api.Job
	for line := range strings.Lines(string(r.body)) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &last); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	if !last.Done() {
		w.t.Fatalf("the event stream ended with %+v", last)
	}
	return last
}

func (w *world) analyst(adminToken, email string, grants ...string) (token, id string) {
	w.t.Helper()
	var u api.User
	w.call("POST", "/api/users", adminToken, map[string]any{
		"email": email, "role": "analyst", "password": "another-password", "grants": grants,
	}).into(w.t, &u)
	var tok api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": email, "password": "another-password"}).into(w.t, &tok)
	return tok.AccessToken, u.ID
}

func (w *world) query(token, sqlText string) (api.QueryResponse, reply) {
	w.t.Helper()
	r := w.call("POST", "/api/query", token, map[string]string{"sql": sqlText})
	var out api.QueryResponse
	if r.status == http.StatusOK {
		r.into(w.t, &out)
	}
	return out, r
}

var errSource = errors.New("the source is on strike")

func mustRead(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
