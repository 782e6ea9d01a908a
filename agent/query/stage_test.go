package query_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"text/template"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// stage is an instance's file tree with one granted and one hidden table, and
// everything that an attempt could reach for.
type stage struct {
	dir, data    string
	granted      query.View
	hidden       query.View
	out          string // must not come into being
	env          string // name of a variable that holds a secret
	hiddenColumn string
	canary       string   // what the canary query answers
	others       string   // marks what other users send
	secrets      []string // must never appear in an answer
	telling      []string // must not appear unless the attempt itself said it
	baseline     map[string]string
	contents     map[string][]byte
	listener     net.Listener
	calls        atomic.Int64
	seen         map[string]bool // random numbers handed out so far
	templates    template.FuncMap
	generation   int64 // for attempts that need a worker of their own
	engine       *query.Engine
}

// mark returns text that occurs nowhere else.
func mark(t *testing.T, prefix string) string {
	t.Helper()
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return prefix + hex.EncodeToString(b)
}

func newStage(t *testing.T) *stage {
	t.Helper()
	place := mark(t, "place")
	s := &stage{
		dir: filepath.Join(t.TempDir(), place), env: strings.ToUpper(mark(t, "AGNES_TEST_")),
		hiddenColumn: mark(t, "salary_"), others: mark(t, "others_"), seen: make(map[string]bool),
	}
	s.data = filepath.Join(s.dir, "data")
	s.out = filepath.Join(s.dir, "out", "made")
	cwd := filepath.Join(s.dir, "cwd")
	for _, d := range []string{s.data, cwd, filepath.Dir(s.out), filepath.Join(s.dir, "state"), filepath.Join(s.dir, "home")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	value, state, key, env := mark(t, "hidden_"), mark(t, "state_"), mark(t, "key_"), mark(t, "env_")
	s.secrets = []string{value, state, key, env, s.others, breached, fmt.Sprint(hiddenRows)}
	s.telling = []string{place, s.hiddenColumn}
	t.Setenv(s.env, env)
	t.Setenv("HOME", filepath.Join(s.dir, "home"))

	s.granted = writeTable(t, s.data, "granted", `SELECT 'seen' AS v`)
	s.hidden = writeTable(t, s.data, "hidden", fmt.Sprintf(`SELECT range %% 50 AS id, '%s' || range %% 50 AS v, 1 AS %s FROM range(%d)`,
		value, s.hiddenColumn, hiddenRows))
	stateFile := filepath.Join(s.dir, "state", "system.duckdb")
	db, err := duck.Open(t.Context(), stateFile, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE users AS SELECT 'admin@example.com' AS email, '"+state+"' AS secret"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	secretFile, csvFile, jsonFile := filepath.Join(s.dir, "state", ".jwt_secret"), filepath.Join(s.dir, "raw.csv"), filepath.Join(s.dir, "raw.json")
	link := filepath.Join(s.data, "link.parquet")
	for name, text := range map[string]string{
		secretFile: key + "\n", csvFile: "a,b\n1," + key + "\n", jsonFile: `{"a":"` + key + "\"}\n",
		filepath.Join(s.dir, "home", "secret.csv"): key + "\n", filepath.Join(s.dir, "home", ".duckdb_history"): key + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(s.hidden.Files[0], link); err != nil {
		t.Fatal(err)
	}

	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.calls.Add(1)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = s.listener.Close(); <-done })
	host, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	text := func(v string) func() string { return func() string { return v } }
	s.templates = template.FuncMap{
		"granted_file": text(s.granted.Files[0]), "hidden_file": text(s.hidden.Files[0]), "hidden_column": text(s.hiddenColumn),
		"dir": text(s.dir), "data": text(s.data), "out": text(s.out), "link": text(link),
		"state_file": text(stateFile), "secret_file": text(secretFile), "csv_file": text(csvFile), "json_file": text(jsonFile),
		"env_name": text(s.env), "url": text("http://" + s.listener.Addr().String()), "host": text(host), "port": text(port),
		"repeat": func(n int, v string) string { return strings.Repeat(v, n) },
		"rune":   func(r rune) string { return string(r) },
		"byte":   func(b int) string { return string([]byte{byte(b)}) },
	}
	if s.engine, err = query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.engine.Close() })
	t.Chdir(cwd) // a relative path lands in the watched tree
	s.baseline, s.contents = s.tree(t)
	if s.canary = s.rows(canary); !strings.HasPrefix(s.canary, `[["seen","a,b,null",3.5,false,"`) {
		t.Fatalf("the canary is dead from the start: %s", s.canary)
	}
	return s
}

// writeTable writes an uncompressed table, so that a value in its file is
// recognized in whatever shape it leaves.
func writeTable(t testing.TB, dir, name, sqlText string) query.View {
	t.Helper()
	db, err := duck.Open(context.Background(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	file := filepath.Join(dir, name+".parquet")
	if _, err := db.Exec(fmt.Sprintf("COPY (%s) TO %s (FORMAT parquet, COMPRESSION uncompressed)", sqlText, duck.Literal(file))); err != nil {
		t.Fatal(err)
	}
	return query.View{Name: name, Files: []string{file}}
}

// tree describes every file and directory, times included: a file that came
// and went still shows.
func (s *stage) tree(t testing.TB) (state map[string]string, contents map[string][]byte) {
	t.Helper()
	state, contents = make(map[string]string), make(map[string][]byte)
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			contents[path] = data
			h := sha256.Sum256(data)
			sum = hex.EncodeToString(h[:])
		}
		state[path] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime().UnixNano(), sum)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return state, contents
}

// changed lists what differs in the tree since the last look, and mends it for
// the next attempt.
func (s *stage) changed(t testing.TB) []string {
	t.Helper()
	now, _ := s.tree(t)
	if maps.Equal(now, s.baseline) {
		return nil
	}
	var diff []string
	for _, path := range slices.Sorted(maps.Keys(now)) {
		before, known := s.baseline[path]
		switch {
		case !known:
			diff = append(diff, "made "+path)
			_ = os.RemoveAll(path)
		case before != now[path]:
			diff = append(diff, "changed "+path)
		}
	}
	for path, data := range s.contents {
		if now[path] == s.baseline[path] {
			continue
		}
		if now[path] == "" {
			diff = append(diff, "removed "+path)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.baseline, s.contents = s.tree(t)
	return diff
}

func (s *stage) render(t testing.TB, text string) string {
	t.Helper()
	tmpl, err := template.New("").Funcs(s.templates).Parse(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, nil); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return b.String()
}

func (s *stage) ask(views []query.View, sqlText string, params ...any) (*query.Result, error) {
	return s.engine.Query(context.Background(), query.Request{
		Generation: 1, Views: views, SQL: sqlText, Params: params, Limit: 200000, Timeout: attemptTime,
	})
}

// shown is everything that a caller would read.
func shown(res *query.Result, err error) string {
	var b strings.Builder
	if err != nil {
		p := problem.As(err)
		fmt.Fprintln(&b, p.Code, p.Message, p.Hint)
	}
	if res == nil {
		return b.String()
	}
	data, err := json.Marshal(res)
	if err != nil {
		fmt.Fprintf(&b, "%+v", res)
	}
	b.Write(data)
	var look func(v any)
	look = func(v any) {
		switch v := v.(type) {
		case string:
			b.WriteString("\n" + v)
			if raw, err := base64.StdEncoding.DecodeString(v); err == nil {
				b.WriteString("\n" + string(raw))
			}
			if raw, err := hex.DecodeString(strings.ReplaceAll(v, `\x`, "")); err == nil {
				b.WriteString("\n" + string(raw))
			}
		case []any:
			for _, child := range v {
				look(child)
			}
		case map[string]any:
			for key, child := range v {
				look(key)
				look(child)
			}
		}
	}
	var plain any
	if json.Unmarshal(data, &plain) == nil {
		look(plain)
	}
	return b.String()
}

// leaks lists what an answer gives away. What the attempt said itself is no
// news to it, unless it is a secret.
func (s *stage) leaks(answer string, said ...string) []string {
	news := slices.DeleteFunc(slices.Clone(s.telling), func(m string) bool {
		return strings.Contains(strings.ToLower(strings.Join(said, "\n")), strings.ToLower(m))
	})
	return leaks(answer, append(news, s.secrets...))
}

func leaks(answer string, marks []string) (found []string) {
	answer = strings.ToLower(answer)
	for _, m := range marks {
		if strings.Contains(answer, strings.ToLower(m)) {
			found = append(found, "shows "+m)
		}
	}
	return found
}

// canary differs as soon as a setting, a macro, a view or the seed of random
// numbers has changed for whoever comes next.
const canary = `SELECT
	(SELECT string_agg(v, ',') FROM granted),
	(SELECT string_agg(coalesce(x, 'null'), ',') FROM (SELECT x FROM (VALUES ('b'), (NULL), ('a')) t(x) ORDER BY x)),
	7 / 2, 'a' = 'A', (1::DOUBLE / 0)::VARCHAR, TIMESTAMPTZ '2026-01-01 00:00:00+00'::VARCHAR,
	lower('ABC'), (SELECT sum(x) FROM (VALUES (1), (2)) t(x)), list_transform([1], lambda x: x + 1), 1::BIGINT::VARCHAR`

// aftermath lists what an attempt has left behind.
func (s *stage) aftermath(t testing.TB) []string {
	t.Helper()
	var found []string
	found = append(found, s.changed(t)...)
	if n := s.calls.Swap(0); n > 0 {
		found = append(found, fmt.Sprintf("opened %d connections", n))
	}
	views := []query.View{s.granted}
	for _, probe := range [][2]string{{canary, s.canary}, {"SHOW TABLES", `[["granted"]]`}} {
		if got := s.rows(probe[0]); got != probe[1] {
			found = append(found, fmt.Sprintf("the next query = %s, want %s", got, probe[1]))
		}
	}
	if _, err := s.ask(views, "SELECT nope FROM granted"); err == nil || strings.HasPrefix(problem.As(err).Message, "{") {
		found = append(found, fmt.Sprintf("the next query's fault reads %v", err))
	}
	res, err := s.ask(views, "SELECT random()")
	if err != nil {
		return append(found, fmt.Sprintf("the next query fails: %v", err))
	}
	number := fmt.Sprint(res.Rows)
	if s.seen[number] {
		found = append(found, "the next user's random number is one that was handed out before")
	}
	s.seen[number] = true
	return found
}

// rows is a granted query's answer, or its fault.
func (s *stage) rows(sqlText string) string {
	res, err := s.ask([]query.View{s.granted}, sqlText)
	if err != nil {
		return err.Error()
	}
	got, err := json.Marshal(res.Rows)
	if err != nil {
		return err.Error()
	}
	return string(got)
}

// text is what an attempt says: its SQL, and then its parameters.
func (s *stage) text(t testing.TB, e escape) (said []string, params []any) {
	t.Helper()
	said = []string{s.render(t, e.SQL)}
	for _, p := range e.Params {
		if text, ok := p.(string); ok {
			p = s.render(t, text)
			said = append(said, p.(string))
		}
		params = append(params, p)
	}
	return said, params
}
