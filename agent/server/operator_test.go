package server_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// operator returns the token that the instance has written for its operator.
func (w *world) operator() string {
	w.t.Helper()
	return strings.TrimSpace(mustRead(w.t, filepath.Join(w.dir, "state", ".operator_token")))
}

func TestTheOperatorTokenActsAsAnAdminWithoutAnAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	operator := w.operator()

	var d api.HealthDetails
	w.call("GET", "/api/health/details", operator, nil).into(t, &d)
	if d.Tables != 2 || d.ConfigHash == "" {
		t.Errorf("details = %+v, want both tables", d)
	}
	var u api.User
	w.call("POST", "/api/users", operator, map[string]any{"email": "smoke@agnes.invalid", "role": "admin", "password": "throw-away-password"}).into(t, &u)
	if r := w.call("DELETE", "/api/users/"+u.ID, operator, nil); r.status != http.StatusNoContent {
		t.Errorf("delete the user = %d %s", r.status, r.body)
	}
	if out, r := w.query(operator, "SELECT count(*) FROM orders"); len(out.Rows) != 1 {
		t.Errorf("query = %d %s", r.status, r.body)
	}
	if job := w.sync(operator); job.Status != api.JobSucceeded || job.RequestedBy != "operator" {
		t.Errorf("job = %+v", job)
	}
	var made api.Backup
	w.call("POST", "/api/admin/backup", operator, api.BackupRequest{}).into(t, &made)

	var actions []string
	var log api.AuditLog
	w.call("GET", "/api/admin/audit?limit=1000", admin, nil).into(t, &log)
	for _, e := range log.Entries {
		if e.Actor == "operator" {
			actions = append(actions, e.Action)
		}
	}
	for _, want := range []string{"user.create", "user.delete", "sync.trigger", "backup.create"} {
		if !slices.Contains(actions, want) {
			t.Errorf("the audit log has %v of the operator, want %s among them", actions, want)
		}
	}
	for call, body := range map[[2]string]any{{"POST", "/auth/tokens"}: map[string]string{"name": "lasting"}, {"POST", "/auth/logout"}: nil} {
		r := w.call(call[0], call[1], operator, body)
		if p := r.problem(t); r.status != http.StatusForbidden || p.Code != "no_account" || !strings.Contains(p.Hint, "POST /api/users") {
			t.Errorf("%v = %d %s, want 403 no_account with the way out", call, r.status, r.body)
		}
	}
}

func TestTheOperatorTokenIsOfOneStartAndForOneReader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := agent.Layout{Root: dir}.OperatorToken()
	var first string
	t.Run("first start", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) { o.dir = dir })
		w.bootstrap()
		first = w.operator()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v; want mode 0600", info, err)
		}
	})
	if _, err := os.Stat(path); err == nil {
		t.Error("the token outlives the instance")
	}
	t.Run("second start", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) { o.dir = dir })
		second := w.operator()
		if second == first || len(second) < 40 {
			t.Errorf("the second token is %d characters, the same: %t", len(second), second == first)
		}
		for name, token := range map[string]string{"of before": first, "cut": second[:len(second)-1], "the prefix": "agnes_operator_", "longer": second + "A"} {
			if r := w.call("GET", "/api/health/details", token, nil); r.status != http.StatusUnauthorized || r.problem(t).Code != "invalid_token" {
				t.Errorf("a token that is %s = %d %s, want 401", name, r.status, r.body)
			}
		}
	})
}

func TestNoLogAndNoAnswerHoldsTheOperatorToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	operator := w.operator()
	w.call("POST", "/api/users", operator, map[string]any{"email": "ana@company.com", "role": "analyst"})
	w.call("POST", "/api/admin/backup", operator, api.BackupRequest{Extracts: true})
	for _, path := range []string{
		"/api/health", "/api/health/details", "/api/version", "/api/users", "/auth/tokens", "/api/admin/config", "/api/admin/audit?limit=1000",
		"/api/admin/backups", "/api/admin/registry", "/api/sync/status", "/metrics", "/setup", "/openapi.json", "/" + operator, "/api/users/" + operator,
	} {
		for _, token := range []string{operator, admin} {
			r := w.call("GET", path, token, nil)
			// What the caller put into the address may come back, but not be logged.
			if !strings.Contains(path, operator) && strings.Contains(string(r.body), operator) {
				t.Errorf("GET %s shows the operator token", path)
			}
		}
	}
	if strings.Contains(w.logged(), operator) {
		t.Error("the log holds the operator token")
	}
}

func TestInSetupModeTheOperatorMayDoWhatADeployNeeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	operator := w.operator()
	for call, want := range map[[2]string]int{
		{"GET", "/api/health/details"}:   http.StatusOK,
		{"POST", "/api/admin/backup"}:    http.StatusOK,
		{"GET", "/api/admin/backups"}:    http.StatusOK,
		{"POST", "/api/users"}:           http.StatusServiceUnavailable,
		{"POST", "/api/sync/trigger"}:    http.StatusServiceUnavailable,
		{"POST", "/api/admin/configure"}: http.StatusServiceUnavailable,
	} {
		var body any
		if call[0] == "POST" {
			body = map[string]any{}
		}
		if r := w.call(call[0], call[1], operator, body); r.status != want {
			t.Errorf("%v by the operator = %d %s, want %d", call, r.status, r.body, want)
		}
		for _, token := range []string{"", operator + "x"} {
			if r := w.call(call[0], call[1], token, body); r.status != http.StatusServiceUnavailable || r.problem(t).Code != "setup_required" {
				t.Errorf("%v by a stranger = %d %s, want 503 setup_required", call, r.status, r.body)
			}
		}
	}
	w.bootstrap() // the first admin still is a person's to create
}
