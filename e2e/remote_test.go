//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/pgtest"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// remoteExtract writes what a connector of remote tables leaves.
func remoteExtract(t *testing.T, data, source string, a connectors.RemoteAttach, tables ...string) {
	t.Helper()
	dir := filepath.Join(data, "extracts", source)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := duck.Open(t.Context(), filepath.Join(dir, "extract.duckdb"), duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := db.ExecContext(t.Context(), connectors.MetaDDL()+connectors.RemoteAttachDDL()); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if _, err := db.ExecContext(t.Context(), `INSERT INTO _meta VALUES (?, 'in place', -1, -1, now()::TIMESTAMP, 'remote')`, table); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO _remote_attach VALUES (?, ?, ?, ?)`, a.Alias, a.Extension, a.URL, a.TokenEnv); err != nil {
		t.Fatal(err)
	}
}

func TestTablesOfADatabaseElsewhereAreQueriedInPlace(t *testing.T) {
	parallel(t)
	extensions := pgtest.Extensions(t)
	pg := pgtest.Start(t)
	const password, hidden = "remote-Passw0rd-of-the-test", "s3cr3t-value-of-payroll"
	pg.SQL(`
		CREATE TABLE accounts (id int, name text, credit numeric(10,2));
		INSERT INTO accounts VALUES (1, 'Zoë', 10.50), (2, 'Ben', 20.25);
		CREATE TABLE visits (account int, day date);
		INSERT INTO visits SELECT 1 + i % 2, date '2026-04-01' + i FROM generate_series(1, 20) i;
		CREATE TABLE payroll (v text);
		INSERT INTO payroll VALUES ('` + hidden + `');
		CREATE ROLE agnes LOGIN PASSWORD '` + password + `';
		GRANT SELECT, INSERT ON accounts, visits, payroll TO agnes;`)

	data := t.TempDir()
	lite := filepath.Join(t.TempDir(), "lite.db")
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Init: []string{"LOAD " + duck.Literal(filepath.Join(extensions, "sqlite_scanner.duckdb_extension"))}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `ATTACH `+duck.Literal(lite)+` AS s (TYPE sqlite); CREATE TABLE s.memos AS SELECT 1 AS id, 'remember' AS text; DETACH s`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	remoteExtract(t, data, "crm", connectors.RemoteAttach{Alias: "crm_db", Extension: "postgres", URL: pg.URL("agnes"), TokenEnv: "PGPASSWORD"}, "accounts", "visits", "payroll")
	remoteExtract(t, data, "lite", connectors.RemoteAttach{Alias: "lite_db", Extension: "sqlite", URL: lite}, "memos")
	remoteExtract(t, data, "sly", connectors.RemoteAttach{Alias: "sly_db", Extension: "sqlite", URL: filepath.Join(data, "state", "system.duckdb")}, "users")
	remoteExtract(t, data, "erp", connectors.RemoteAttach{Alias: "erp_db", Extension: "mysql", URL: "host=erp.example.com", TokenEnv: "MYSQL_PWD"}, "invoices")

	env := []string{debug, "AGNES_EXTENSION_DIR=" + extensions, "PGPASSWORD=" + password, "MYSQL_PWD="}
	p := start(t, data, env...)
	fresh, err := api.NewClient(p.url)
	if err != nil {
		t.Fatal(err)
	}
	token, err := fresh.Bootstrap(t.Context(), api.BootstrapRequest{Email: adminEmail, Password: adminPassword}, "")
	if err != nil {
		t.Fatalf("bootstrap: %v\n%s", err, p.out)
	}
	in := &world{process: p, data: data, secrets: map[string]string{"token": token.AccessToken}}
	if in.client, err = api.NewClient(p.url, api.WithToken(redact.Secret(token.AccessToken))); err != nil {
		t.Fatal(err)
	}
	csv := shop(t)
	if _, err := in.client.Configure(t.Context(), api.ConfigureRequest{DataSource: "csv", CSVDir: &csv}); err != nil {
		t.Fatal(err)
	}
	if _, err := in.client.Discover(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	in.sync("succeeded")
	register := func(source string, tables ...string) {
		t.Helper()
		for _, table := range tables {
			if _, err := in.client.RegisterTable(t.Context(), api.RegisterTableRequest{Source: source, SourceTable: table, QueryMode: "remote"}); err != nil {
				t.Fatalf("register %s: %v\n%s", table, err, p.out)
			}
		}
	}
	register("crm", "accounts", "visits", "payroll")
	register("lite", "memos")
	if h, err := in.client.Health(t.Context()); err != nil || h.Services["remote"].Status != api.Healthy {
		t.Errorf("remote = %+v, %v, want healthy", h.Services["remote"], err)
	}

	rows := func(sql string) string {
		t.Helper()
		answer, err := in.client.Query(t.Context(), api.QueryRequest{SQL: sql})
		if err != nil {
			t.Fatalf("%s: %v\n%s", sql, err, p.out)
		}
		got, err := json.Marshal(answer.Rows)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	for sql, want := range map[string]string{
		`SELECT name, sum(credit), count(*) FROM accounts a JOIN visits v ON v.account = a.id GROUP BY 1 ORDER BY 1`: `[["Ben",202.50,10],["Zoë",105.00,10]]`,
		`SELECT text FROM memos`:                               `[["remember"]]`,
		`SELECT count(*) FROM orders WHERE 1 = 0`:              `[[0]]`,
		`SELECT count(*) FROM visits WHERE day < '2026-04-04'`: `[[2]]`,
	} {
		if got := rows(sql); got != want {
			t.Errorf("%s = %s, want %s", sql, got, want)
		}
	}
	var csvBody bytes.Buffer
	if _, err := in.client.QueryStream(t.Context(), api.QueryRequest{SQL: "SELECT name FROM accounts ORDER BY 1"}, "text/csv", &csvBody); err != nil || !strings.Contains(csvBody.String(), "Zoë") {
		t.Errorf("CSV of a remote table = %q, %v", csvBody.String(), err)
	}
	if c, err := in.client.CatalogTable(t.Context(), "accounts"); err != nil || c.QueryMode != "remote" {
		t.Errorf("catalog = %+v, %v, want query_mode remote", c, err)
	}
	for _, sql := range []string{`SELECT * FROM accounts, orders`, `SELECT * FROM accounts, memos`} {
		_, err := in.client.Query(t.Context(), api.QueryRequest{SQL: sql})
		wantProblem(t, err, problem.Unprocessable, "synced")
	}

	// An analyst sees what was granted, whatever the instance's own user may read.
	if _, err := in.client.CreateUser(t.Context(), api.CreateUserRequest{Email: "ana@company.com", Role: api.RoleAnalyst, Password: "Another-Passw0rd!", Grants: []string{"accounts"}}); err != nil {
		t.Fatal(err)
	}
	anaToken, err := fresh.Token(t.Context(), api.TokenRequest{Email: "ana@company.com", Password: "Another-Passw0rd!"})
	if err != nil {
		t.Fatal(err)
	}
	ana, err := api.NewClient(p.url, api.WithToken(redact.Secret(anaToken.AccessToken)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ana.Query(t.Context(), api.QueryRequest{SQL: "SELECT count(*) FROM accounts"}); err != nil || fmt.Sprint(got.Rows) != "[[2]]" {
		t.Errorf("a granted remote table = %v, %v", got, err)
	}
	for _, sql := range []string{
		`SELECT * FROM payroll`, `SELECT * FROM crm_db.payroll`, `SELECT * FROM crm_db.public.payroll`, `SELECT p.* FROM accounts, crm_db.public.payroll p`,
		`SELECT * FROM postgres_query('crm_db', 'SELECT * FROM payroll')`, `SELECT q.* FROM accounts, postgres_query('crm_db', 'SELECT * FROM payroll') q`,
		`INSERT INTO crm_db.payroll VALUES ('x')`, `SELECT * FROM duckdb_databases()`,
	} {
		got, err := ana.Query(t.Context(), api.QueryRequest{SQL: sql})
		if err == nil || strings.Contains(err.Error(), hidden) {
			t.Errorf("%s = %v, %v, want a refusal", sql, got, err)
		}
	}

	// What is missing is told, and costs no publish.
	register("erp", "invoices")
	register("sly", "users")
	_, err = in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT * FROM invoices"})
	wantProblem(t, err, problem.Unprocessable, "MYSQL_PWD")
	_, err = in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT * FROM users"})
	wantProblem(t, err, problem.Unprocessable, "keeps for itself")
	h, err := in.client.Health(t.Context())
	if s := h.Services["remote"]; err != nil || s.Status != api.Degraded || s.Hint == "" || h.Status != api.Degraded {
		t.Errorf("remote = %+v, %v, want degraded with a hint", s, err)
	}
	if public, err := json.Marshal(h); err != nil || strings.Contains(string(public), "erp") || strings.Contains(string(public), "MYSQL_PWD") {
		t.Errorf("public health names what is missing: %s, %v", public, err)
	}
	details, err := in.client.HealthDetails(t.Context())
	if err != nil || !strings.Contains(details.Services["remote"].Detail, "MYSQL_PWD") {
		t.Errorf("details: %+v, %v, want them to name MYSQL_PWD", details, err)
	}
	if d, err := ana.HealthDetails(t.Context()); err != nil || strings.Contains(d.Services["remote"].Detail, "erp") {
		t.Errorf("an analyst without a grant reads of it: %+v, %v", d.Services["remote"], err)
	}

	pg.SQL(`ALTER ROLE agnes PASSWORD 'another'`)
	_, err = in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT * FROM accounts"})
	wantProblem(t, err, problem.Unavailable, "refused the instance's login", "PGPASSWORD")
	pg.Stop()
	_, err = in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT * FROM accounts"})
	wantProblem(t, err, problem.Unavailable, "cannot be reached")
	if got := rows(`SELECT text FROM memos`); got != `[["remember"]]` {
		t.Errorf("another database while one is down: %s", got)
	}
	p.stop()
	keepsSecrets(t, p.out.String(), map[string]string{"database password": password, "hidden value": hidden})
	state, err := os.ReadFile(filepath.Join(data, "state", "system.duckdb"))
	if err != nil || bytes.Contains(state, []byte(password)) || bytes.Contains(state, []byte(hidden)) {
		t.Errorf("the state holds the database's password, or a value: %v", err)
	}
}
