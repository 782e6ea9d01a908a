package query_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// The published suite of escape attempts: testdata/escapes/<class>.yaml, the
// classes in the order in which people broke out of comparable systems, then
// our own. An attempt is judged by what it brings about, never by the text of
// its refusal; an answer that gives nothing away is no escape.

type escape struct {
	ID     string `yaml:"id"`
	Tried  string `yaml:"tried"` // what it is after
	SQL    string `yaml:"sql"`   // a text/template over stage.funcs
	Params []any  `yaml:"params"`
}

const (
	attemptTime = 2 * time.Second
	attemptLate = 3 * time.Second // how much later than its deadline an attempt may end on a busy machine
	hiddenRows  = 70141           // a count that no other answer contains
	denial      = "15-denial"     // the class that costs time
	breached    = "BREACHED"      // what an attempt spells in two halves where it can only see yes or no
)

// attempt runs one attempt between other users' queries and returns what it
// brought about.
func (s *stage) attempt(t testing.TB, class string, e escape) (found []string, answered bool) {
	t.Helper()
	said, params := s.text(t, e)
	for _, views := range [][]query.View{{s.granted}, {s.granted, s.hidden}} {
		if _, err := s.ask(views, "SELECT v, '"+s.others+"' AS other FROM "+views[len(views)-1].Name+" LIMIT 1"); err != nil {
			t.Fatalf("another user's query before %s: %v", e.ID, err)
		}
	}
	start := time.Now()
	res, err := s.ask([]query.View{s.granted}, said[0], params...)
	if took := time.Since(start); took > attemptTime+attemptLate {
		found = append(found, fmt.Sprintf("ran for %s past a deadline of %s", took.Round(time.Millisecond), attemptTime))
	}
	if p := problem.As(err); err != nil && (p.Kind == problem.Internal || p.Hint == "") {
		found = append(found, fmt.Sprintf("was refused without an explanation and a next step: %v", err))
	}
	found = append(found, s.leaks(shown(res, err), said...)...)
	// Parquet leaves by another way: DuckDB writes it, around the statement's text.
	if class != denial {
		var body bytes.Buffer
		_, err := s.engine.Run(context.Background(), query.Request{
			Generation: 1, Views: []query.View{s.granted}, SQL: said[0], Params: params, Format: query.Parquet, Timeout: attemptTime,
		}, func(query.Columns) (io.Writer, error) { return &body, nil })
		found = append(found, s.leaks(body.String()+shown(nil, err), said...)...)
	}
	return append(found, s.aftermath(t)...), err == nil
}

// corpus reads testdata/<dir>/*.yaml by class.
func corpus[T any](t testing.TB, dir string) (classes []string, entries map[string][]T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/%s holds no corpus (%v)", dir, err)
	}
	entries = make(map[string][]T)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var list []T
		if err := yaml.UnmarshalWithOptions(data, &list, yaml.DisallowUnknownField()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		class := strings.TrimSuffix(filepath.Base(file), ".yaml")
		classes = append(classes, class)
		entries[class] = list
	}
	return classes, entries
}

func TestNoEscapeSucceeds(t *testing.T) {
	classes, entries := corpus[escape](t, "escapes")
	s := newStage(t)
	for _, class := range classes {
		t.Run(class, func(t *testing.T) {
			start, answered, succeeded := time.Now(), 0, 0
			for _, e := range entries[class] {
				found, ok := s.attempt(t, class, e)
				if ok {
					answered++
				}
				if len(found) > 0 {
					succeeded++
					t.Errorf("%s (%s)\n%.300s\n  %s", e.ID, e.Tried, e.SQL, strings.Join(found, "\n  "))
				}
			}
			t.Logf("%3d attempts, %d succeeded, %d answered with nothing of interest, %s",
				len(entries[class]), succeeded, answered, time.Since(start).Round(time.Millisecond))
		})
	}
}

// Without the gate, an attempt may still not leave the worker: it may learn how
// the worker is set up, for itself, and spoil it. Each attempt therefore has a
// worker of its own, and only what lies outside of it counts.
func TestTheSecondWallHoldsWithoutTheGate(t *testing.T) {
	classes, entries := corpus[escape](t, "escapes")
	s := newStage(t)
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler), Command: query.UngatedCommand(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	ask := func(sqlText string, params []any) (*query.Result, error) {
		s.generation++
		return e.Query(context.Background(), query.Request{
			Generation: s.generation, Views: []query.View{s.granted}, SQL: sqlText, Params: params, Limit: 200000, Timeout: attemptTime,
		})
	}
	if res, err := ask("SET VARIABLE x = 'not gated'", nil); err != nil {
		t.Fatalf("the worker is gated after all: %v, %v", res, err)
	}
	if res, err := ask("SELECT v FROM granted", nil); err != nil || fmt.Sprint(res.Rows) != "[[seen]]" {
		t.Fatalf("SELECT v FROM granted = %v, %v", res, err)
	}
	t.Logf("isolation: %s", e.Isolation())
	outside := slices.DeleteFunc(slices.Clone(s.secrets), func(m string) bool { return m == s.others || m == breached })
	n, passed := 0, 0
	for _, class := range classes {
		if class == denial {
			continue
		}
		for _, a := range entries[class] {
			said, params := s.text(t, a)
			res, err := ask(said[0], params)
			n++
			if err == nil {
				passed++
			}
			found := s.changed(t)
			if calls := s.calls.Swap(0); calls > 0 {
				found = append(found, fmt.Sprintf("opened %d connections", calls))
			}
			found = append(found, leaks(shown(res, err), outside)...)
			if len(found) > 0 {
				t.Errorf("%s/%s (%s)\n%.300s\n  %s", class, a.ID, a.Tried, a.SQL, strings.Join(found, "\n  "))
			}
		}
	}
	t.Logf("%d attempts without the gate, of which DuckDB ran %d", n, passed)
}

func TestTheEscapeSuiteIsWhatItClaims(t *testing.T) {
	t.Parallel()
	_, entries := corpus[escape](t, "escapes")
	ids, texts, n := make(map[string]bool), make(map[string]string), 0
	for class, list := range entries {
		for _, e := range list {
			n++
			if e.ID == "" || e.Tried == "" || e.SQL == "" {
				t.Errorf("%s: an entry lacks its id, what it tried or its SQL: %+v", class, e)
			}
			if ids[e.ID] {
				t.Errorf("%s: the id %s is taken", class, e.ID)
			}
			ids[e.ID] = true
			key := strings.Join(strings.Fields(e.SQL), " ") + fmt.Sprint(e.Params)
			if other, taken := texts[key]; taken {
				t.Errorf("%s: %s sends what %s sends", class, e.ID, other)
			}
			texts[key] = e.ID
		}
	}
	if n < 250 {
		t.Errorf("the suite holds %d attempts, want at least 250", n)
	}
	t.Logf("%d attempts in %d classes", n, len(entries))
}

// The judge has to see each effect; otherwise the suite proves nothing.
func TestTheJudgeSeesEachEffect(t *testing.T) {
	s := newStage(t)
	if found := s.aftermath(t); found != nil {
		t.Fatalf("before anything happened the judge sees %v", found)
	}
	value := s.secrets[0]
	for name, answer := range map[string]*query.Result{
		"a value":            {Rows: [][]any{{value + "7"}}},
		"a value in a blob":  {Rows: [][]any{{base64.StdEncoding.EncodeToString([]byte("PAR1" + value))}}},
		"a value in hex":     {Rows: [][]any{{hex.EncodeToString([]byte(value))}}},
		"a value in a list":  {Rows: [][]any{{[]any{map[string]any{"x": value}}}}},
		"a column's name":    {Columns: []string{s.hiddenColumn}},
		"a number of rows":   {Rows: [][]any{{int64(hiddenRows)}}},
		"a path":             {Rows: [][]any{{s.granted.Files[0]}}},
		"others' statements": {Rows: [][]any{{"SELECT '" + s.others + "'"}}},
	} {
		if s.leaks(shown(answer, nil), "SELECT 1") == nil {
			t.Errorf("the judge does not see %s", name)
		}
	}
	if s.leaks(shown(nil, problem.New(problem.Invalid, "cannot cast "+value, "")), "") == nil {
		t.Error("the judge does not see a value in an error")
	}
	if found := s.leaks(shown(&query.Result{Rows: [][]any{{s.dir}}}, nil), "SELECT '"+s.dir+"'"); found != nil {
		t.Errorf("the judge calls an echo a leak: %v", found)
	}
	for name, effect := range map[string]func() error{
		"a new file":     func() error { return os.WriteFile(s.out, nil, 0o600) },
		"a file in cwd":  func() error { return os.WriteFile("made.csv", nil, 0o600) },
		"a changed file": func() error { return os.WriteFile(s.granted.Files[0], []byte("PAR1"), 0o600) },
		"a removed file": func() error { return os.Remove(s.hidden.Files[0]) },
		"a file that came and went": func() error {
			return os.Remove(must(os.CreateTemp(s.data, "x")).Name())
		},
	} {
		if err := effect(); err != nil {
			t.Fatal(err)
		}
		if s.changed(t) == nil {
			t.Errorf("the judge does not see %s", name)
		}
		if found := s.changed(t); found != nil {
			t.Errorf("after %s the tree is not mended: %v", name, found)
		}
	}
	c, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	for deadline := time.Now().Add(5 * time.Second); s.calls.Load() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the judge does not see a connection")
		}
	}
	// What the canary says has to depend on the settings that it stands for.
	before := canaryAfter(t, "SELECT 1")
	if got := canaryAfter(t, "SELECT 2"); !cmp.Equal(got, before) {
		t.Errorf("the canary says %v and then %v", before, got)
	}
	for _, change := range []string{
		"SET default_null_order = 'nulls_first'", "SET default_order = 'desc'", "SET integer_division = true",
		"SET TimeZone = 'Asia/Tokyo'", "SET default_collation = 'nocase'", "SET ieee_floating_point_ops = false",
		"CREATE MACRO lower(x) AS 'forged'", "CREATE OR REPLACE VIEW granted AS SELECT 'forged' AS v",
	} {
		if got := canaryAfter(t, change); cmp.Equal(got, before) {
			t.Errorf("after %s the canary is the same: %v", change, got)
		}
	}
}

// canaryAfter runs the canary in a database where change came first.
func canaryAfter(t *testing.T, change string) (row []sql.NullString) {
	t.Helper()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1) // some settings belong to a connection
	for _, stmt := range []string{"CREATE VIEW granted AS SELECT 'seen' AS v", change} {
		if _, err := db.ExecContext(t.Context(), stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	rows, err := db.QueryContext(t.Context(), "SELECT COLUMNS(*)::VARCHAR FROM ("+canary+")")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	names, err := rows.Columns()
	if err != nil || !rows.Next() {
		t.Fatalf("after %s the canary has no row: %v, %v", change, err, rows.Err())
	}
	row = make([]sql.NullString, len(names))
	targets := make([]any, len(row))
	for i := range row {
		targets[i] = &row[i]
	}
	if err := rows.Scan(targets...); err != nil {
		t.Fatal(err)
	}
	return row
}

func must(f *os.File, err error) *os.File {
	if err != nil {
		panic(err)
	}
	_ = f.Close()
	return f
}
