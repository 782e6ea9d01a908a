package query_test

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// What the gate accepts may read granted tables only, whatever else there is
// to read. So the fuzz target runs accepted statements in a database that,
// unlike a real scope, also holds another table as a view, as a table, as a
// file that may be opened and as a variable.
type openScope struct {
	mu     sync.Mutex
	db     *sql.DB
	dir    string
	file   string
	secret string
	open   func() (*sql.DB, error)
}

func newOpenScope(f testing.TB) *openScope {
	f.Helper()
	s := &openScope{dir: f.TempDir(), secret: "hid" + "den_cell_value_7c1f"}
	granted := writeTable(f, s.dir, "granted", `SELECT range AS id, 'seen' || range AS v, DATE '2026-01-01' + range::INTEGER AS day, [range, 2] AS tags FROM range(5)`)
	s.file = writeTable(f, s.dir, "hidden", fmt.Sprintf("SELECT range AS id, '%s' AS v FROM range(3)", s.secret)).Files[0]
	s.open = func() (*sql.DB, error) {
		db, err := duck.Open(context.Background(), duck.Memory, duck.Options{Threads: 1, Settings: map[string]string{"memory_limit": "256MB", "temp_directory": ""}})
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		_, err = db.Exec(strings.Join([]string{
			"CREATE VIEW granted AS SELECT * FROM read_parquet(" + duck.List(granted.Files) + ")",
			"CREATE VIEW hidden AS SELECT * FROM read_parquet(" + duck.Literal(s.file) + ")",
			"CREATE TABLE vault AS FROM hidden",
			"CREATE MACRO reveal() AS (SELECT max(v) FROM vault)",
			"CREATE MACRO revealed() AS TABLE FROM vault",
			"SET VARIABLE token = " + duck.Literal(s.secret),
			"SET allowed_directories = [" + duck.Literal(s.dir) + "]",
			"SET enable_external_access = false",
			"SET lock_configuration = true",
		}, ";\n"))
		return db, err
	}
	var err error
	if s.db, err = s.open(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.db.Close() })
	return s
}

// bulk spots what makes a statement expensive. Cost is the engine's concern,
// not the gate's, and a fuzzer must not spend its time on it.
var bulk = regexp.MustCompile(`\d{5}|\d[eE]\d|0[xX]|\*\s*\d|\d\s*\*|\^|<<|sleep`)

// answer runs a statement and returns every value and error of it as text.
// The second result is false where it did not end in time.
func (s *openScope) answer(text string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	db, done := s.db, make(chan string, 1)
	go func() {
		var b strings.Builder
		defer func() { done <- b.String() }()
		rows, err := db.QueryContext(ctx, text)
		if err != nil {
			b.WriteString(err.Error())
			return
		}
		defer func() { _ = rows.Close() }()
		names, err := rows.Columns()
		if err != nil {
			return
		}
		fmt.Fprintln(&b, names)
		for n := 0; n < 100 && rows.Next(); n++ {
			values := make([]any, len(names))
			targets := make([]any, len(names))
			for i := range values {
				targets[i] = &values[i]
			}
			if err := rows.Scan(targets...); err != nil {
				b.WriteString(err.Error())
			}
			for _, v := range values {
				if raw, ok := v.([]byte); ok {
					v = string(raw)
				}
				fmt.Fprintln(&b, v)
			}
		}
		if err := rows.Err(); err != nil {
			b.WriteString(err.Error())
		}
	}()
	select {
	case text := <-done:
		return text, true
	case <-time.After(5 * time.Second):
		// Nothing ends a scalar function; leave that database to it.
		if fresh, err := s.open(); err == nil {
			s.db = fresh
		}
		return "", false
	}
}

func FuzzGate(f *testing.F) {
	scope := newOpenScope(f)
	check := query.GateCheck(f)
	granted := func(name string) bool { return strings.EqualFold(name, "granted") }

	// The corpora's statements, with the names and files that lie here.
	placeholders := strings.NewReplacer("{{hidden_file}}", "hidden.parquet", "{{granted_file}}", "granted.parquet", "{{dir}}", ".", "{{data}}", ".",
		"{{out}}", "out", "{{state_file}}", "state.db", "{{hidden_column}}", "v", "{{env_name}}", "HOME", "pg_settings", "hidden", "duckdb_views", "vault")
	_, escapes := corpus[escape](f, "escapes")
	for class, list := range escapes {
		for _, e := range list {
			if class != denial {
				f.Add(placeholders.Replace(e.SQL))
			}
		}
	}
	_, legit := corpus[legitimate](f, "legitimate")
	for _, list := range legit {
		for _, l := range list {
			f.Add(strings.NewReplacer("orders", "granted", "customers", "granted", "products", "granted").Replace(l.SQL))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		// Some long statements take DuckDB's parser minutes, such as a chain of
		// plus signs under PIVOT. A worker is killed for that; a fuzzer is not.
		if len(text) > 600 {
			return
		}
		// The file's place differs between runs; its name does not.
		text = strings.ReplaceAll(text, "hidden.parquet", scope.file)
		if err := check(text, granted); err != nil {
			if strings.Contains(err.Error(), scope.secret) {
				t.Fatalf("the refusal shows another table's value: %v", err)
			}
			return
		}
		if bulk.MatchString(text) || strings.Count(text, "granted") > 5 {
			return
		}
		got, ended := scope.answer(text)
		if !ended {
			return
		}
		if strings.Contains(got, scope.secret) {
			t.Fatalf("accepted and read another table:\n%s\n%.300s", text, got)
		}
		if strings.Contains(got, scope.dir) && !strings.Contains(text, scope.dir) {
			t.Fatalf("accepted and showed where the files lie:\n%s\n%.300s", text, got)
		}
	})
}
