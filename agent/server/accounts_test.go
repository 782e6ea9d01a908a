package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

func TestSigningInAndOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	for name, body := range map[string]map[string]string{
		"a wrong password":   {"email": adminEmail, "password": "wrong-password"},
		"an unknown account": {"email": "nobody@company.com", "password": adminPassword},
		"no address at all":  {"email": "nonsense", "password": adminPassword},
	} {
		r := w.call("POST", "/auth/token", "", body)
		if p := r.problem(t); r.status != http.StatusUnauthorized || p.Code != "invalid_credentials" {
			t.Errorf("%s = %d %+v, want the same 401 for all", name, r.status, p)
		}
	}
	var tok api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": " ADMIN@Company.com ", "password": adminPassword}).into(t, &tok)
	if tok.TokenType != "bearer" || tok.Role != "admin" || tok.Email != adminEmail || tok.UserID == "" {
		t.Errorf("token response = %+v", tok)
	}
	if r := w.call("POST", "/auth/logout", tok.AccessToken, nil); r.status != http.StatusNoContent {
		t.Fatalf("logout = %d %s", r.status, r.body)
	}
	if r := w.call("GET", "/api/sync/status", tok.AccessToken, nil); r.status != http.StatusUnauthorized || r.problem(t).Code != "invalid_token" {
		t.Errorf("a revoked token = %d, want 401", r.status)
	}
	if r := w.call("GET", "/api/sync/status", admin, nil); r.status != http.StatusOK {
		t.Errorf("another session = %d, want 200", r.status)
	}
	if r := w.call("GET", "/api/sync/status", "", nil); r.status != http.StatusUnauthorized || r.header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("no token = %d, WWW-Authenticate %q", r.status, r.header.Get("WWW-Authenticate"))
	}
}

func TestSignInAttemptsAreLimitedByAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.bootstrap()
	for range 200 {
		r := w.call("POST", "/auth/token", "", map[string]string{"email": "victim@company.com", "password": "guess-guess-guess"})
		if r.status == http.StatusTooManyRequests {
			if r.header.Get("Retry-After") == "" || r.problem(t).Hint == "" {
				t.Errorf("429 without Retry-After or hint: %v %s", r.header, r.body)
			}
			var tok api.TokenResponse
			w.call("POST", "/auth/token", "", map[string]string{"email": adminEmail, "password": adminPassword}).into(t, &tok)
			return
		}
	}
	t.Error("200 guesses at one account were all checked")
}

func TestPersonalAccessTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	var created api.CreatedToken
	w.call("POST", "/auth/tokens", admin, map[string]any{"name": "agent", "role": "analyst", "expires_in_days": 7}).into(t, &created)
	if !strings.HasPrefix(created.Token, "agnes_pat_") || created.ExpiresAt == nil {
		t.Fatalf("created = %+v", created)
	}
	if r := w.call("GET", "/api/catalog/tables", created.Token, nil); r.status != http.StatusOK {
		t.Errorf("the token on the catalog = %d", r.status)
	}
	if r := w.call("GET", "/api/users", created.Token, nil); r.status != http.StatusForbidden {
		t.Errorf("an analyst's token on an admin's call = %d, want 403", r.status)
	}
	if r := w.call("POST", "/auth/tokens", created.Token, map[string]any{"name": "more", "role": "admin"}); r.status != http.StatusForbidden {
		t.Errorf("a token that makes a stronger one = %d, want 403", r.status)
	}
	list := w.call("GET", "/auth/tokens", admin, nil)
	if strings.Contains(string(list.body), created.Token) {
		t.Error("the list shows the token's value")
	}
	if r := w.call("DELETE", "/auth/tokens/"+created.ID, admin, nil); r.status != http.StatusNoContent {
		t.Errorf("revoke = %d %s", r.status, r.body)
	}
	if r := w.call("GET", "/api/catalog/tables", created.Token, nil); r.status != http.StatusUnauthorized {
		t.Errorf("a revoked token = %d, want 401", r.status)
	}
	if r := w.call("DELETE", "/auth/tokens/"+created.ID, admin, nil); r.status != http.StatusNotFound {
		t.Errorf("revoking twice = %d, want 404", r.status)
	}
}

func TestAnAnalystSeesGrantedTablesOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	token, id := w.analyst(admin, "ana@company.com", "orders")

	var cat api.Catalog
	w.call("GET", "/api/catalog/tables", token, nil).into(t, &cat)
	if cat.Count != 1 || cat.Tables[0].ID != "orders" || cat.Tables[0].Rows != 100 {
		t.Errorf("catalog = %+v, want orders alone", cat)
	}
	for _, path := range []string{"/api/catalog/tables/customers", "/api/data/customers/download"} {
		granted := w.call("GET", strings.Replace(path, "customers", "orders", 1), token, nil)
		hidden := w.call("GET", path, token, nil)
		missing := w.call("GET", strings.Replace(path, "customers", "nowhere", 1), token, nil)
		if granted.status != http.StatusOK || hidden.status != http.StatusNotFound {
			t.Errorf("%s: granted %d, hidden %d, want 200 and 404", path, granted.status, hidden.status)
		}
		if strings.ReplaceAll(string(hidden.body), "customers", "nowhere") != string(missing.body) {
			t.Errorf("%s: a hidden table answers %s, a missing one %s; they must not differ", path, hidden.body, missing.body)
		}
	}
	if out, _ := w.query(token, "SELECT count(*) FROM orders"); fmt.Sprint(out.Rows) != "[[100]]" {
		t.Errorf("orders = %+v", out)
	}
	if _, r := w.query(token, "SELECT * FROM customers"); r.status != http.StatusForbidden {
		t.Errorf("customers = %d %s, want 403", r.status, r.body)
	}
	for _, path := range []string{"/api/sync/manifest", "/api/health/details", "/api/sync/status"} {
		if r := w.call("GET", path, token, nil); r.status != http.StatusOK || strings.Contains(string(r.body), "customers") {
			t.Errorf("GET %s = %d %s, want no word of customers", path, r.status, r.body)
		}
	}
	for _, call := range [][2]string{
		{"GET", "/api/users"},
		{"GET", "/api/admin/registry"},
		{"GET", "/api/admin/config"},
		{"GET", "/api/admin/audit"},
		{"POST", "/api/admin/configure"},
		{"POST", "/api/admin/discover-and-register"},
		{"POST", "/api/sync/trigger"},
		{"POST", "/api/admin/register-table"},
		{"DELETE", "/api/admin/registry/orders"},
		{"DELETE", "/api/users/" + id},
	} {
		if r := w.call(call[0], call[1], token, nil); r.status != http.StatusForbidden || r.problem(t).Code != "admin_required" {
			t.Errorf("%s %s by an analyst = %d %s, want 403", call[0], call[1], r.status, r.body)
		}
	}

	w.call("PATCH", "/api/users/"+id, admin, map[string]any{"grants": []string{"*"}}).into(t, &api.User{})
	if _, r := w.query(token, "SELECT * FROM customers"); r.status != http.StatusOK {
		t.Errorf("after the grant customers = %d, want 200 at once", r.status)
	}
	w.call("PATCH", "/api/users/"+id, admin, map[string]any{"grants": []string{}}).into(t, &api.User{})
	if _, r := w.query(token, "SELECT * FROM orders"); r.status != http.StatusForbidden {
		t.Errorf("after the grants are gone orders = %d, want 403 at once", r.status)
	}
	if r := w.call("PATCH", "/api/users/"+id, admin, map[string]any{"grants": []string{"nowhere"}}); r.status != http.StatusUnprocessableEntity {
		t.Errorf("a grant of an unknown table = %d, want 422", r.status)
	}
	w.call("PATCH", "/api/users/"+id, admin, map[string]any{"disabled": true}).into(t, &api.User{})
	if r := w.call("GET", "/api/catalog/tables", token, nil); r.status != http.StatusUnauthorized {
		t.Errorf("a disabled account = %d, want 401", r.status)
	}
}

func TestUsersAreManagedWithoutLosingTheLastAdmin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	var users api.Users
	w.call("GET", "/api/users", admin, nil).into(t, &users)
	me := users.Users[0].ID
	for name, r := range map[string]reply{
		"deleting":  w.call("DELETE", "/api/users/"+me, admin, nil),
		"demoting":  w.call("PATCH", "/api/users/"+me, admin, map[string]string{"role": "analyst"}),
		"disabling": w.call("PATCH", "/api/users/"+me, admin, map[string]bool{"disabled": true}),
	} {
		if p := r.problem(t); r.status != http.StatusConflict || p.Hint == "" {
			t.Errorf("%s the last admin = %d %+v, want 409 with a hint", name, r.status, p)
		}
	}
	w.analyst(admin, "ana@company.com")
	if r := w.call("POST", "/api/users", admin, map[string]string{"email": "ANA@company.com", "role": "analyst"}); r.status != http.StatusConflict {
		t.Errorf("a second account of one address = %d, want 409", r.status)
	}
	w.call("PATCH", "/api/users/"+me, admin, map[string]string{"password": "a-new-password"}).into(t, &api.User{})
	if r := w.call("GET", "/api/users", admin, nil); r.status != http.StatusUnauthorized {
		t.Errorf("a session of before the password changed = %d, want 401", r.status)
	}
	var tok api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": adminEmail, "password": "a-new-password"}).into(t, &tok)
	var log api.AuditLog
	w.call("GET", "/api/admin/audit", tok.AccessToken, nil).into(t, &log)
	seen := map[string]bool{}
	for _, e := range log.Entries {
		seen[e.Action] = true
	}
	for _, action := range []string{"user.create", "user.update", "session.create"} {
		if !seen[action] {
			t.Errorf("the audit log has no %s: %+v", action, seen)
		}
	}
}
