package query_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// TestMain makes the test binary play the worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == query.WorkerCommand {
		if err := query.WorkerMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func engine(t *testing.T) *query.Engine {
	t.Helper()
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// parquet writes one table and returns its view.
func parquet(t *testing.T, dir, name, sqlText string) query.View {
	t.Helper()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func(db *sql.DB) { _ = db.Close() }(db)
	file := filepath.Join(dir, name+".parquet")
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("COPY (%s) TO %s (FORMAT parquet)", sqlText, duck.Literal(file))); err != nil {
		t.Fatal(err)
	}
	return query.View{Name: name, Files: []string{file}}
}

func ask(e *query.Engine, views []query.View, sqlText string, params ...any) (*query.Result, error) {
	return e.Query(context.Background(), query.Request{
		Generation: 1, Views: views, SQL: sqlText, Params: params, Limit: 10, Timeout: 20 * time.Second,
	})
}

func TestLegitimateStatementsAreAnswered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	views := []query.View{
		parquet(t, dir, "order", `SELECT range AS id, range % 3 AS "drop", 'a;b' AS note FROM range(20)`),
		parquet(t, dir, "Customers", `SELECT 1 AS id, 'Zoë' AS name`),
	}
	e := engine(t)
	for _, tc := range []struct {
		sql    string
		params []any
		want   string
	}{
		{`SELECT 1`, nil, `[[1]]`},
		{`SELECT count(*) FROM "order"`, nil, `[[20]]`},
		{`SELECT "drop" FROM "order" WHERE id = 4;`, nil, `[[1]]`},
		{`SELECT 'DELETE FROM x; DROP TABLE y' -- ; DROP TABLE z`, nil, `[["DELETE FROM x; DROP TABLE y"]]`},
		{"SELECT 2 /* ; */ ; ;", nil, `[[2]]`},
		{`SELECT name FROM customers`, nil, `[["Zoë"]]`},
		{`SELECT name FROM memory.main."CUSTOMERS"`, nil, `[["Zoë"]]`},
		{`WITH c AS (SELECT id FROM "order" WHERE id < ?) SELECT sum(id) FROM c`, []any{int64(3)}, `[[3]]`},
		{`SELECT $1 || $2`, []any{"a", "b"}, `[["ab"]]`},
		{`FROM range(2)`, nil, `[[0],[1]]`},
		{`VALUES (1, 'x')`, nil, `[[1,"x"]]`},
		{`SHOW TABLES`, nil, `[["Customers"],["order"]]`},
		{`WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT max(n) FROM t`, nil, `[[3]]`},
		{`SELECT list_transform([1, 2], lambda x: x + 1)`, nil, `[[[2,3]]]`},
		{`SELECT (SELECT max(id) FROM "order" o WHERE o.id < c.id + 1) FROM customers c`, nil, `[[1]]`},
	} {
		res, err := ask(e, views, tc.sql, tc.params...)
		if err != nil {
			t.Errorf("%s: %v", tc.sql, err)
			continue
		}
		got, err := json.Marshal(res.Rows)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != tc.want {
			t.Errorf("%s = %s, want %s", tc.sql, got, tc.want)
		}
	}
}

func TestWhatAQueryMustNotDoIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	granted := parquet(t, dir, "granted", `SELECT 'seen' AS v`)
	const secret = "s3cr3t-of-the-other-table"
	hidden := parquet(t, dir, "hidden", fmt.Sprintf(`SELECT '%s' AS v`, secret))
	made := filepath.Join(dir, "made")
	before, err := os.ReadFile(granted.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t)
	for _, sqlText := range []string{
		`SELECT * FROM hidden`,
		`SELECT * FROM granted, hidden`,
		`SELECT * FROM '` + hidden.Files[0] + `'`,
		`SELECT * FROM "` + hidden.Files[0] + `"`,
		`SELECT * FROM read_parquet('` + hidden.Files[0] + `')`,
		`SELECT * FROM parquet_scan('` + filepath.Join(dir, "*") + `')`,
		`SELECT * FROM parquet_metadata('` + granted.Files[0] + `')`,
		`SELECT * FROM read_text('/etc/passwd')`,
		`SELECT content FROM read_blob('` + hidden.Files[0] + `')`,
		`FROM glob('` + dir + `/*')`,
		`SELECT * FROM query('SELECT * FROM hid' || 'den')`,
		`SELECT * FROM "query"('SELECT 1')`,
		`SELECT * FROM query_table('hidden')`,
		`SELECT * FROM duckdb_settings()`,
		`SELECT * FROM duckdb_views()`,
		`SELECT * FROM duckdb_views`,
		`SELECT * FROM sqlite_master`,
		`SELECT * FROM information_schema.tables`,
		`SELECT * FROM pg_catalog.pg_class`,
		`SELECT current_setting('allowed_paths')`,
		`SELECT getenv('PATH')`,
		`SELECT * FROM enable_logging(storage='file', storage_path='` + made + `')`,
		`SELECT * FROM duckdb_logs()`,
		`COPY granted TO '` + granted.Files[0] + `' (USE_TMP_FILE false)`,
		`COPY (SELECT 1) TO '` + made + `'`,
		`EXPORT DATABASE '` + made + `'`,
		`ATTACH '` + made + `' AS x`,
		`ATTACH ':memory:' AS x`,
		`CREATE TABLE x AS SELECT 1`,
		`CREATE OR REPLACE VIEW granted AS SELECT 1`,
		`DROP VIEW granted`,
		`INSERT INTO granted VALUES ('x')`,
		`SET memory_limit = '1TB'`,
		`RESET lock_configuration`,
		`PRAGMA enable_profiling`,
		`CALL enable_logging()`,
		`INSTALL httpfs`,
		`LOAD httpfs`,
		`PREPARE p AS SELECT 1`,
		`EXECUTE p`,
		`BEGIN`,
		`SELECT 1; SELECT 2`,
		`SELECT 1; DROP VIEW granted`,
		`COPY (SELECT 1) TO '` + made + `'; SELECT 1`,
		``,
		`SELEC 1`,
		"SELECT '\x00'",
		"SELECT '\xff'",
		`SELECT nope FROM granted`,
		strings.Repeat(" ", query.MaxSQL) + `SELECT 1`,
		`SHOW DATABASES`,
		`SELECT * FROM sniff_csv('/etc/passwd')`,
	} {
		res, err := ask(e, []query.View{granted}, sqlText)
		name := sqlText[:min(len(sqlText), 80)]
		if err == nil {
			t.Errorf("%s: answered %v, want a refusal", name, res.Rows)
			continue
		}
		p := problem.As(err)
		if p.Kind == problem.Internal || p.Hint == "" {
			t.Errorf("%s: %v (kind %s, hint %q), want a problem with a hint", name, err, p.Kind, p.Hint)
		}
		if strings.Contains(p.Message+p.Hint, secret) {
			t.Errorf("%s: the refusal shows another table's value: %v", name, err)
		}
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("a statement made a file")
	}
	after, err := os.ReadFile(granted.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("a statement changed a published file")
	}
	if res, err := ask(e, []query.View{granted}, `SELECT v FROM granted`); err != nil || res.Rows[0][0] != "seen" {
		t.Errorf("afterwards SELECT v FROM granted = %v, %v, want seen", res, err)
	}
}

func TestLimitsEndAQuery(t *testing.T) {
	t.Parallel()
	e := engine(t)
	res, err := e.Query(t.Context(), query.Request{SQL: `SELECT * FROM range(100) ORDER BY 1 DESC`, Limit: 3, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if want := "[[99] [98] [97]]"; fmt.Sprint(res.Rows) != want || !res.Truncated {
		t.Errorf("Rows = %v, truncated %v, want the first three in order and truncated", res.Rows, res.Truncated)
	}
	res, err = e.Query(t.Context(), query.Request{SQL: `SELECT * FROM range(3)`, Limit: 3, Timeout: time.Minute})
	if err != nil || len(res.Rows) != 3 || res.Truncated {
		t.Errorf("three rows at limit 3 = %+v, %v, want all and not truncated", res, err)
	}
	_, err = e.Query(t.Context(), query.Request{SQL: `SELECT count(*) FROM range(1000000) a, range(1000000) b`, Limit: 1, Timeout: 200 * time.Millisecond})
	if !problem.Is(err, problem.Timeout) {
		t.Errorf("an endless query = %v, want problem.Timeout", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = e.Query(ctx, query.Request{SQL: `SELECT 1`, Limit: 1, Timeout: time.Minute}); err == nil {
		t.Error("a caller that has gone away got an answer")
	}
}

func TestValuesKeepTheirDigitsAndDates(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for sqlText, want := range map[string]string{
		`9223372036854775807::BIGINT`:                      `9223372036854775807`,
		`170141183460469231731687303715884105727::HUGEINT`: `170141183460469231731687303715884105727`,
		`12345678901234567890.123456789::DECIMAL(38,9)`:    `12345678901234567890.123456789`,
		`-0.05::DECIMAL(4,2)`:                              `-0.05`,
		`DATE '2026-04-09'`:                                `"2026-04-09"`,
		`TIMESTAMP '2026-04-09 01:02:03.5'`:                `"2026-04-09T01:02:03.5"`,
		`TIMESTAMPTZ '2026-04-09 01:02:03+02'`:             `"2026-04-08T23:02:03Z"`,
		`TIME '01:02:03'`:                                  `"01:02:03"`,
		`'NaN'::DOUBLE`:                                    `"NaN"`,
		`'-inf'::DOUBLE`:                                   `"-Infinity"`,
		`NULL`:                                             `null`,
		`true`:                                             `true`,
		`'\xAA'::BLOB`:                                     `"qg=="`,
		`uuid '00000000-0000-0000-0000-00000000000a'`:      `"00000000-0000-0000-0000-00000000000a"`,
		`[1, NULL, 3]`:                                     `[1,null,3]`,
		`{'a': 1, 'b': DATE '2026-01-01'}`:                 `{"a":1,"b":"2026-01-01"}`,
		`MAP {'k': 1.50::DECIMAL(4,2)}`:                    `[{"key":"k","value":1.50}]`,
		`'x'::ENUM('x', 'y')`:                              `"x"`,
	} {
		res, err := ask(e, nil, "SELECT "+sqlText)
		if err != nil {
			t.Errorf("%s: %v", sqlText, err)
			continue
		}
		got, err := json.Marshal(res.Rows[0][0])
		if err != nil || string(got) != want {
			t.Errorf("%s = %s (%s), %v, want %s", sqlText, got, res.Types[0], err, want)
		}
	}
}
