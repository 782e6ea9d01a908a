package query_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/pgtest"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// far is what a test may see of databases elsewhere.
type far struct {
	views    []query.View
	attached map[string]*query.Attachment
}

func (f *far) ask(e *query.Engine, sqlText string) (*query.Result, error) {
	return e.Query(context.Background(), query.Request{
		Generation: 1, Views: f.views, SQL: sqlText, Limit: 100, Timeout: 20 * time.Second,
		Attach: func(key string) (*query.Attachment, error) {
			if at := f.attached[key]; at != nil {
				return at, nil
			}
			return nil, errors.New("no such attachment: " + key)
		},
	})
}

func extension(t *testing.T, name string) string {
	t.Helper()
	path, ok := query.FindExtension(pgtest.Extensions(t), name)
	if !ok {
		t.Fatalf("there is no extension %s", name)
	}
	return path
}

const (
	farSecret = "s3cr3t-of-an-ungranted-remote-table"
	password  = "An-Analyst's pass=word; 7"
)

// postgres starts a server with the tables orders, customers and hidden, and
// one user who may read all of them.
func postgres(t *testing.T) (*pgtest.Server, *far) {
	t.Helper()
	file := extension(t, "postgres")
	s := pgtest.Start(t)
	s.SQL(`
		CREATE TABLE customers (id int PRIMARY KEY, name text);
		INSERT INTO customers VALUES (1, 'Zoë'), (2, 'Ben');
		CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric(12,2), at timestamptz, day date, tags text[], j jsonb, ok boolean, u uuid, raw bytea, f float8);
		INSERT INTO orders SELECT i, 1 + i % 2, i * 1.25, '2026-04-09 01:02:03+02', '2026-04-09', '{a,b}', '{"k": 1}', i % 2 = 0, '00000000-0000-0000-0000-00000000000a', '\xaa', 0.5
			FROM generate_series(1, 5000) i;
		CREATE TYPE mood AS ENUM ('fine', '` + farSecret + `');
		CREATE TABLE hidden (v text, m mood);
		INSERT INTO hidden VALUES ('` + farSecret + `', 'fine');
		CREATE VIEW broken AS SELECT 1 / (id - id) AS x FROM orders;
		CREATE ROLE analyst LOGIN PASSWORD '` + strings.ReplaceAll(password, "'", "''") + `';
		GRANT SELECT ON customers, orders, hidden, broken TO analyst;
		GRANT INSERT, UPDATE, DELETE, TRUNCATE ON customers, orders, hidden TO analyst;
		GRANT CREATE ON SCHEMA public TO analyst;`)
	return s, &far{
		views: []query.View{
			{Name: "orders", Attachment: "crm.pg", Table: "orders"},
			{Name: "Clients", Attachment: "crm.pg", Table: "customers"},
			{Name: "gone", Attachment: "crm.pg", Table: "hidde"},
			{Name: "broken", Attachment: "crm.pg", Table: "broken"},
		},
		attached: map[string]*query.Attachment{
			"crm.pg": {Alias: "pg", Extension: "postgres", ExtensionFile: file, URL: s.URL("analyst"), TokenEnv: "PGPASSWORD", Token: redact.Secret(password)},
		},
	}
}

// sqlite writes a SQLite file with the tables notes and hidden.
func sqlite(t *testing.T, dir string) (string, *far) {
	t.Helper()
	binary := extension(t, "sqlite")
	file := filepath.Join(dir, "notes.db")
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Init: []string{"LOAD " + duck.Literal(binary)}})
	if err != nil {
		t.Fatal(err)
	}
	defer func(db *sql.DB) { _ = db.Close() }(db)
	if _, err := db.ExecContext(t.Context(), `ATTACH `+duck.Literal(file)+` AS s (TYPE sqlite);
		CREATE TABLE s.notes (id BIGINT, t VARCHAR, x DOUBLE, b BLOB);
		INSERT INTO s.notes SELECT range, 'note ' || range, range / 4, 'ab'::BLOB FROM range(1000);
		CREATE TABLE s.people (id BIGINT, name VARCHAR);
		INSERT INTO s.people VALUES (7, 'Ada');
		CREATE TABLE s.hidden (v VARCHAR);
		INSERT INTO s.hidden VALUES ('`+farSecret+`');
		DETACH s;`); err != nil {
		t.Fatal(err)
	}
	return file, &far{
		views: []query.View{{Name: "notes", Attachment: "files.lite", Table: "notes"}, {Name: "people", Attachment: "files.lite", Table: "people"}},
		attached: map[string]*query.Attachment{
			"files.lite": {Alias: "lite", Extension: "sqlite", ExtensionFile: binary, URL: file},
		},
	}
}

func checkAnswers(t *testing.T, e *query.Engine, f *far, answers map[string]string) {
	t.Helper()
	for sqlText, want := range answers {
		res, err := f.ask(e, sqlText)
		if err != nil {
			t.Errorf("%s: %v", sqlText, err)
			continue
		}
		if got, err := json.Marshal(res.Rows); err != nil || string(got) != want {
			t.Errorf("%s = %s, %v, want %s", sqlText, got, err, want)
		}
	}
}

// checkProblem checks an error's kind and code, that it says what to do, and
// that it gives none of the secrets away, not even to the log.
func checkProblem(t *testing.T, err error, kind problem.Kind, code string, secrets ...string) {
	t.Helper()
	p := problem.As(err)
	if err == nil || p.Kind != kind || p.WireCode() != code || p.Hint == "" {
		t.Errorf("error %v (kind %s, code %s, hint %q), want kind %s, code %s and a hint", err, p.Kind, p.WireCode(), p.Hint, kind, code)
		return
	}
	for _, secret := range append(secrets, password, farSecret) {
		if strings.Contains(err.Error()+p.Hint, secret) {
			t.Errorf("the error shows %q: %v", secret, err)
		}
	}
}

func TestPostgresTablesAreQueriedInPlace(t *testing.T) {
	t.Parallel()
	s, f := postgres(t)
	f.views = append(f.views, parquet(t, t.TempDir(), "near", "SELECT 1 AS id"))
	e := engine(t)
	checkAnswers(t, e, f, map[string]string{
		`SELECT count(*), sum(amount) FROM orders`: `[[5000,15628125.00]]`,
		`SELECT name, count(*) FROM orders o JOIN clients c ON o.customer = c.id WHERE o.id <= 9 GROUP BY ALL ORDER BY 1`: `[["Ben",5],["Zoë",4]]`,
		`SELECT id, amount, "at", day, tags, j, ok, u, raw, f FROM memory.main."ORDERS" WHERE id = 2`:                     `[[2,2.50,"2026-04-08T23:02:03Z","2026-04-09",["a","b"],"{\"k\": 1}",true,"00000000-0000-0000-0000-00000000000a","qg==",0.5]]`,
		`WITH c AS (FROM clients WHERE name = 'Zoë') SELECT (SELECT max(id) FROM orders), id FROM c`:                      `[[5000,1]]`,
		`SHOW TABLES`: `[["Clients"],["broken"],["gone"],["near"],["orders"]]`,
		`SELECT name FROM (SHOW TABLES) WHERE name = 'hidden' AND (SELECT count(*) FROM clients) > 0`: `[]`,
		`SELECT * FROM near`: `[[1]]`,
	})
	if res, err := f.ask(e, `DESCRIBE orders`); err != nil || fmt.Sprint(res.Rows[2][:2]) != "[amount DECIMAL(12,2)]" {
		t.Errorf("DESCRIBE orders = %v, %v, want the types of PostgreSQL's columns", res, err)
	}
	if !strings.Contains(s.Log(), `"id" = '2'`) {
		t.Error("PostgreSQL was not asked for the one row that a filter names")
	}
	for _, format := range []query.Format{query.CSV, query.NDJSON, query.Arrow, query.Parquet} {
		var got strings.Builder
		sum, err := e.Run(t.Context(), query.Request{
			Views: f.views, SQL: `SELECT * EXCLUDE (u) FROM orders`, Format: format, Timeout: time.Minute,
			Attach: func(key string) (*query.Attachment, error) { return f.attached[key], nil },
		}, func(query.Columns) (io.Writer, error) { return &got, nil })
		if err != nil || got.Len() < 5000 || len(sum.Tables) != 1 {
			t.Errorf("%s: %d bytes, tables %v, %v", format, got.Len(), sum.Tables, err)
		}
	}
}

func TestSQLiteTablesAreQueriedInPlace(t *testing.T) {
	t.Parallel()
	_, f := sqlite(t, t.TempDir())
	f.views = append(f.views, parquet(t, t.TempDir(), "near", "SELECT 1 AS id"))
	checkAnswers(t, engine(t), f, map[string]string{
		`SELECT count(*), sum(x) FROM notes`:                                 `[[1000,124875]]`,
		`SELECT n.t, p.name, b FROM notes n JOIN people p USING (id)`:        `[["note 7","Ada","YWI="]]`,
		`SELECT t FROM notes WHERE id = 5 UNION ALL SELECT name FROM people`: `[["note 5"],["Ada"]]`,
		`SHOW TABLES`: `[["near"],["notes"],["people"]]`,
	})
}

// reaches are spellings that lead to the table hidden of an attached database,
// or to something else that no statement may reach.
func reaches(alias, url, secretFile string) []string {
	quoted := duck.Literal(url)
	return []string{
		`SELECT * FROM hidden`,
		`SELECT * FROM ` + alias + `.hidden`,
		`SELECT * FROM ` + alias + `.public.hidden`,
		`SELECT * FROM ` + alias + `.main.hidden`,
		`SELECT * FROM "` + alias + `"."hidden"`,
		`SELECT * FROM "` + alias + `.hidden"`,
		`SELECT * FROM public.hidden`,
		`SELECT * FROM postgres_query(` + duck.Literal(alias) + `, 'SELECT * FROM hidden')`,
		`SELECT * FROM sqlite_query(` + duck.Literal(alias) + `, 'SELECT * FROM hidden')`,
		`SELECT * FROM postgres_scan(` + quoted + `, 'public', 'hidden')`,
		`SELECT * FROM postgres_scan_pushdown(` + quoted + `, 'public', 'hidden')`,
		`SELECT * FROM sqlite_scan(` + quoted + `, 'hidden')`,
		`SELECT * FROM "sqlite_scan"(` + quoted + `, 'hidden')`,
		`SELECT * FROM ` + quoted,
		`SELECT * FROM read_text(` + duck.Literal(secretFile) + `)`,
		`SELECT * FROM sqlite_scan(` + duck.Literal(secretFile) + `, 'hidden')`,
		`CALL sqlite_attach(` + quoted + `)`,
		`CALL postgres_attach(` + quoted + `)`,
		`CALL postgres_execute(` + duck.Literal(alias) + `, 'DROP TABLE hidden')`,
		`CALL pg_clear_cache()`,
		`ATTACH ` + quoted + ` AS again`,
		`ATTACH ` + duck.Literal(secretFile) + ` AS again (TYPE sqlite)`,
		`DETACH ` + alias,
		`USE ` + alias,
		`INSERT INTO ` + alias + `.hidden VALUES ('x')`,
		`UPDATE ` + alias + `.hidden SET v = 'x'`,
		`DELETE FROM ` + alias + `.hidden`,
		`CREATE TABLE ` + alias + `.made (a INT)`,
		`DROP TABLE ` + alias + `.hidden`,
		`COPY ` + alias + `.hidden FROM '/dev/null'`,
		`COPY FROM DATABASE ` + alias + ` TO memory`,
		`SELECT * FROM duckdb_databases()`,
		`SELECT * FROM duckdb_tables()`,
		`SELECT * FROM information_schema.tables`,
		`SELECT * FROM duckdb_secrets()`,
		`SELECT * FROM duckdb_settings()`,
		`SHOW ALL TABLES`,
		`SHOW TABLES FROM ` + alias,
		`SHOW DATABASES`,
		`SELECT getenv('PGPASSWORD')`,
		`SELECT * FROM read_text('/proc/self/environ')`,
		`SELECT current_setting('secret_directory')`,
	}
}

func TestNothingElseOfAnAttachedDatabaseIsReached(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "secret.db")
	file, lite := sqlite(t, dir)
	if err := os.WriteFile(secretFile, []byte(farSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	s, pg := postgres(t)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t)
	for _, tc := range []struct {
		f                 *far
		alias, table, url string
	}{{pg, "pg", "clients", s.URL("analyst")}, {lite, "lite", "people", file}} {
		attempts := reaches(tc.alias, tc.url, secretFile)
		for _, attempt := range attempts {
			if body, ok := strings.CutPrefix(attempt, "SELECT "); ok { // once more where the database is attached
				attempts = append(attempts, "SELECT (SELECT count(*) FROM "+tc.table+") AS c, "+body,
					"SELECT x.* FROM "+tc.table+" c, (SELECT "+body+") x")
			}
		}
		attempts = append(attempts,
			`SELECT enum_range(NULL::`+tc.alias+`.public.mood) FROM `+tc.table,
			`SELECT 'x'::`+tc.alias+`.public.mood FROM `+tc.table,
			`SELECT enum_range(from_json('{"a": "fine"}', '{"a": "'||'`+tc.alias+`.public.mood"}').a) FROM `+tc.table,
			`SELECT enum_range(from_json('{"a": "fine"}', '{"a": "`+tc.alias+`.public.mood"}').a) FROM `+tc.table,
			`SELECT enum_range({'a': NULL}::STRUCT(a `+tc.alias+`.public.mood).a) FROM `+tc.table,
			`SELECT CAST('x' AS mood) FROM `+tc.table,
			`SELECT typeof(NULL::`+tc.alias+`.public.hidden) FROM `+tc.table,
			`SELECT concat(make_type('`+tc.alias+`.public.hidden')) FROM `+tc.table,
			`SELECT * FROM (DESCRIBE `+tc.alias+`.public.hidden) x, `+tc.table,
			`SELECT hidden FROM `+tc.table, `SELECT hidden.v FROM `+tc.table, `SELECT * FROM `+tc.table+` WHERE `+tc.alias+`.public.hidden.v = 'a'`)
		for _, attempt := range attempts {
			res, err := tc.f.ask(e, attempt)
			if err == nil {
				t.Errorf("%s: answered %v, want a refusal", attempt, res.Rows)
				continue
			}
			p := problem.As(err)
			if p.Kind == problem.Internal || p.Hint == "" {
				t.Errorf("%s: %v (kind %s, hint %q), want a problem with a hint", attempt, err, p.Kind, p.Hint)
			}
			for _, secret := range []string{farSecret, password} {
				if strings.Contains(err.Error()+p.Hint, secret) && !strings.Contains(attempt, secret) {
					t.Errorf("%s: the refusal shows %s: %v", attempt, secret, err)
				}
			}
		}
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("a statement changed the SQLite file")
	}
	if got := s.SQL(`SELECT v, (SELECT count(*) FROM pg_tables WHERE schemaname = 'public') FROM hidden`); got != farSecret+"|3" {
		t.Errorf("PostgreSQL holds %q afterwards, want what it held before", got)
	}
}

// What holds where the gate has a gap: the process's sandbox and read-only
// attachments. Other tables of the same database are not part of it; its user's
// rights there decide.
func TestARemoteWorkerWithoutItsGateStillHarmsNothing(t *testing.T) {
	t.Parallel()
	e, err := query.New(t.Context(), query.Options{Command: query.UngatedCommand(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if isolation := landlockHere(t, e); !strings.Contains(isolation, "Landlock ABI") {
		if os.Getenv("CI") != "" {
			t.Fatalf("NOT RUN: isolation %q; expected a kernel with Landlock", isolation)
		}
		t.Skipf("NOT RUN: isolation %q; needs a kernel with Landlock", isolation)
	}
	dir := t.TempDir()
	file, lite := sqlite(t, dir)
	lite.views = []query.View{{Name: "granted", Attachment: "files.lite", Table: "people"}}
	state := filepath.Join(dir, "state.db")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, data, 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := elsewhere.Accept()
			if err != nil {
				close(called)
				return
			}
			called <- struct{}{}
			_ = conn.Close()
		}
	}()
	s, pg := postgres(t)
	pg.views = []query.View{{Name: "granted", Attachment: "crm.pg", Table: "customers"}}
	_, port, _ := net.SplitHostPort(elsewhere.Addr().String())
	for _, f := range []*far{lite, pg} {
		if res, err := f.ask(e, `SELECT count(*) FROM granted`); err != nil || len(res.Rows) != 1 {
			t.Errorf("SELECT count(*) FROM granted = %v, %v", res, err)
		}
		for _, attempt := range []string{
			`SELECT * FROM sqlite_scan(` + duck.Literal(state) + `, 'hidden')`,
			`SELECT * FROM read_text(` + duck.Literal(state) + `)`,
			`SELECT * FROM read_text('/proc/self/environ')`,
			`INSERT INTO pg.hidden VALUES ('made')`,
			`INSERT INTO lite.hidden VALUES ('made')`,
			`SELECT * FROM postgres_query('pg', 'INSERT INTO hidden VALUES (''made'') RETURNING v')`,
			`CALL postgres_execute('pg', 'INSERT INTO hidden VALUES (''made'')')`,
			`SELECT * FROM postgres_query('pg', 'SELECT nextval(''nothing'')')`,
			`ATTACH ` + duck.Literal(s.URL("analyst")) + ` AS writable (TYPE postgres)`,
			`SET enable_external_access = true`,
			`SELECT * FROM postgres_scan('host=127.0.0.1 user=a dbname=a port=` + port + `', 'public', 'hidden')`,
			`COPY (SELECT 1) TO ` + duck.Literal(filepath.Join(dir, "made")),
		} {
			if res, err := f.ask(e, attempt); err == nil {
				t.Errorf("%s: answered %v", attempt, res.Rows)
			}
		}
		res, err := f.ask(e, `SELECT path, options::VARCHAR FROM duckdb_databases()`)
		if err != nil || strings.Contains(fmt.Sprint(res.Rows), password) {
			t.Errorf("duckdb_databases() = %v, %v, want no password", res, err)
		}
	}
	_ = elsewhere.Close()
	if _, ok := <-called; ok {
		t.Error("a statement reached another port")
	}
	if got := s.SQL(`SELECT count(*) FROM hidden`); got != "1" {
		t.Errorf("hidden has %s rows, want 1", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "made")); err == nil {
		t.Error("a statement made a file")
	}
}

func landlockHere(t *testing.T, e *query.Engine) string {
	t.Helper()
	near := parquet(t, t.TempDir(), "granted", "SELECT 1 AS id")
	if _, err := ask(e, []query.View{near}, `SELECT 1`); err != nil {
		t.Fatal(err)
	}
	return e.Isolation()
}

func TestAStatementReadsOneDatabase(t *testing.T) {
	t.Parallel()
	_, f := sqlite(t, t.TempDir())
	f.views = append(f.views, parquet(t, t.TempDir(), "near", "SELECT 1 AS id"), query.View{Name: "orders", Attachment: "crm.pg", Table: "orders"})
	e := engine(t)
	for _, sqlText := range []string{
		`SELECT * FROM notes JOIN near USING (id)`,
		`SELECT * FROM notes JOIN orders USING (id)`,
		`SELECT (SELECT max(id) FROM notes) FROM near`,
		`SELECT id FROM notes UNION ALL SELECT id FROM orders`,
	} {
		_, err := f.ask(e, sqlText)
		checkProblem(t, err, problem.Unprocessable, "mixed_engines")
	}
	checkAnswers(t, e, f, map[string]string{`SELECT id FROM near`: `[[1]]`, `SELECT count(*) FROM people`: `[[1]]`})
}

func TestAFailureOfARemoteDatabaseIsExplained(t *testing.T) {
	t.Parallel()
	s, f := postgres(t)
	e := engine(t)
	at := f.attached["crm.pg"]

	_, err := f.ask(e, `SELECT * FROM gone`)
	checkProblem(t, err, problem.Unprocessable, "remote_table_missing")
	_, err = f.ask(e, `SELECT nope FROM orders`)
	checkProblem(t, err, problem.Invalid, "invalid_sql")
	if !strings.Contains(problem.As(err).Message, "nope") {
		t.Errorf("%v does not name the column", err)
	}
	_, err = f.ask(e, `SELECT * FROM broken`)
	checkProblem(t, err, problem.Unprocessable, "remote_failed")

	wrong := *at
	wrong.Token = "wr0ng-password"
	f.attached["crm.pg"] = &wrong
	_, err = f.ask(e, `SELECT * FROM orders`)
	checkProblem(t, err, problem.Unavailable, "remote_login_failed", "wr0ng-password")

	inURL := *at
	inURL.Token, inURL.URL = "", s.URL("analyst")+" password='wr0ng-in-url'"
	f.attached["crm.pg"] = &inURL
	_, err = f.ask(e, `SELECT * FROM orders`)
	checkProblem(t, err, problem.Unavailable, "remote_login_failed", "wr0ng-in-url")

	broken := *at
	broken.ExtensionFile = filepath.Join(t.TempDir(), "postgres_scanner.duckdb_extension")
	if err := os.WriteFile(broken.ExtensionFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.attached["crm.pg"] = &broken
	_, err = f.ask(e, `SELECT * FROM orders`)
	checkProblem(t, err, problem.Unavailable, "remote_extension")

	f.attached["crm.pg"] = at
	_, err = f.ask(e, `SELECT count(*) FROM orders`)
	if err != nil {
		t.Errorf("after failures: %v", err)
	}
	s.Stop()
	_, err = f.ask(e, `SELECT * FROM orders`)
	checkProblem(t, err, problem.Unavailable, "remote_unavailable")
	s.Restart()
	checkAnswers(t, e, f, map[string]string{`SELECT count(*) FROM orders`: `[[5000]]`})
}

func TestASQLiteFileThatCannotBeReadWithoutWritingIsExplained(t *testing.T) {
	t.Parallel()
	file, f := sqlite(t, t.TempDir())
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[18], data[19] = 2, 2 // the file format's mark of WAL mode
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = f.ask(engine(t), `SELECT * FROM notes`)
	checkProblem(t, err, problem.Unprocessable, "remote_file_journal")
}

func TestARemoteStatementEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	s, f := postgres(t)
	s.SQL(`CREATE VIEW slow AS SELECT pg_sleep(30)::text AS x; GRANT SELECT ON slow TO analyst`)
	f.views = append(f.views, query.View{Name: "slow", Attachment: "crm.pg", Table: "slow"})
	began := time.Now()
	_, err := engine(t).Query(t.Context(), query.Request{
		Views: f.views, SQL: `SELECT * FROM slow`, Timeout: 2 * time.Second,
		Attach: func(key string) (*query.Attachment, error) { return f.attached[key], nil },
	})
	checkProblem(t, err, problem.Timeout, "query_timeout")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s, want little more than its 2 s", took)
	}
}
