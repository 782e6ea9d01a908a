package query_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// A randTable's cells are marked, so that any of them is recognized wherever
// it shows up.
type randTable struct {
	view    query.View
	granted bool
	columns []string
	cells   []string
}

// Names that are easy to get wrong: keywords, functions, system views.
var oddNames = []string{
	"order", "select", "Group", "table", "MixedCase", "_x", "UPPER", "sqlite_master", "pg_settings", "duckdb_views",
	"query", "range", "information_schema", "main", "memory", "read_text", "copy", "values", "a", "unnest",
}

// grantsWorld draws tables with grants and writes their files.
func grantsWorld(t *rapid.T, db *sql.DB, dir string, serial int) []randTable {
	n := rapid.IntRange(2, 4).Draw(t, "tables")
	names := rapid.SliceOfNDistinct(rapid.OneOf(rapid.SampledFrom(oddNames), rapid.StringMatching(`[a-zA-Z_][a-zA-Z0-9_]{1,11}`)), n, n, strings.ToLower).Draw(t, "names")
	granted := rapid.SliceOfN(rapid.Bool(), n, n).Draw(t, "granted")
	granted[0], granted[1] = true, false
	var tables []randTable
	for i, name := range names {
		r := randTable{granted: granted[i]}
		text, number := fmt.Sprintf("cell%dq%dq", serial, i), 7_000_000_000+int64(serial)*10_000+int64(i)*1000
		r.columns = []string{fmt.Sprintf("text%dq%dq", serial, i), fmt.Sprintf("num%dq%dq", serial, i)}
		r.cells = []string{text, fmt.Sprint(number)[:len(fmt.Sprint(number))-2]} // all rows of a table share a prefix
		file := filepath.Join(dir, fmt.Sprintf("t%d_%d.parquet", serial, i))
		_, err := db.Exec(fmt.Sprintf(`COPY (SELECT '%s' || range AS %s, %d + range AS %s, range AS id FROM range(3)) TO %s (FORMAT parquet)`,
			text, r.columns[0], number, r.columns[1], duck.Literal(file)))
		if err != nil {
			t.Fatal(err)
		}
		r.view = query.View{Name: name, Files: []string{file}}
		tables = append(tables, r)
	}
	return tables
}

func viewsOf(tables []randTable, all bool) (views []query.View) {
	for _, r := range tables {
		if all || r.granted {
			views = append(views, r.view)
		}
	}
	return views
}

// sqlGen writes statements over granted and other tables alike.
type sqlGen struct {
	t      *rapid.T
	tables []randTable
	focus  randTable // most of a statement is about one table, so that many statements make sense
	ctes   []string
}

func (g *sqlGen) pick(choices ...string) string { return rapid.SampledFrom(choices).Draw(g.t, "pick") }

func (g *sqlGen) table() randTable {
	if rapid.IntRange(0, 9).Draw(g.t, "focus") < 8 {
		return g.focus
	}
	return rapid.SampledFrom(g.tables).Draw(g.t, "table")
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

// name spells a table in one of the ways that people and attackers use.
func (g *sqlGen) name() string {
	r := g.table()
	n := r.view.Name
	q := duck.Ident(n)
	if rapid.IntRange(0, 9).Draw(g.t, "plain") < 7 {
		return q
	}
	return g.pick(n, swapCase(n), duck.Ident(swapCase(n)), "main."+q, "memory.main."+q, `"memory"."main".`+n,
		duck.Literal(r.view.Files[0]), duck.Ident(r.view.Files[0]), duck.Literal(n), "main/**/."+q, "temp.main."+q, "system.main."+q, n+"()",
		"read_parquet("+duck.Literal(r.view.Files[0])+")", "query_table("+duck.Literal(n)+")", "query("+duck.Literal("FROM "+q)+")")
}

func (g *sqlGen) source(depth int) string {
	if depth > 0 {
		switch g.pick("name", "name", "name", "sub", "join", "lateral", "cte", "pivot", "values") {
		case "sub":
			return "(" + g.query(depth-1) + ") " + duck.Ident(g.pick("s", "t", g.table().view.Name))
		case "join":
			return g.source(depth-1) + g.pick(" CROSS JOIN ", ", ", " NATURAL JOIN ", " POSITIONAL JOIN ", " SEMI JOIN ") + g.source(depth-1)
		case "lateral":
			return g.source(depth-1) + ", LATERAL (" + g.query(depth-1) + ") l"
		case "cte":
			if len(g.ctes) > 0 {
				return duck.Ident(rapid.SampledFrom(g.ctes).Draw(g.t, "cte"))
			}
		case "pivot":
			return "(UNPIVOT " + g.name() + " ON id INTO NAME n VALUE x)"
		case "values":
			return "(VALUES (" + g.value(depth-1) + ")) v"
		}
	}
	return g.name() + g.pick("", "", "", " AS "+duck.Ident(g.table().view.Name), " x")
}

func (g *sqlGen) value(depth int) string {
	r := g.table()
	column := g.pick(r.columns[0], r.columns[1], "id", "id", "id", duck.Ident(r.view.Name)+"."+r.columns[0], "nope", duck.Ident(r.view.Name))
	if depth > 0 {
		switch g.pick("column", "column", "column", "column", "sub", "exists", "array", "case", "lambda") {
		case "sub":
			return "(" + g.query(depth-1) + ")"
		case "exists":
			return "EXISTS (" + g.query(depth-1) + ")"
		case "array":
			return "ARRAY(" + g.query(depth-1) + ")"
		case "case":
			return "CASE WHEN " + g.value(depth-1) + " IS NULL THEN 1 ELSE " + g.value(depth-1) + " END"
		case "lambda":
			return "list_transform([1], lambda x: " + g.value(depth-1) + ")"
		}
	}
	return g.pick("id", "id", "1", column, column, "*", "count(*)", "max("+column+")", column+"::INTEGER", "CAST("+column+" AS DATE)", "1 / 0", "error("+column+"::VARCHAR)",
		"sum("+column+")", "to_json("+duck.Ident(r.view.Name)+")", "COLUMNS(*)", "strptime("+column+", '%Y')", duck.Ident(r.view.Name)+".*", column+"::ENUM('x')")
}

func (g *sqlGen) query(depth int) string {
	var b strings.Builder
	outer := len(g.ctes)
	if depth > 0 && g.pick("plain", "plain", "with") == "with" {
		// CTEs take the names of tables; the body may mean the table.
		name := g.pick("c", g.table().view.Name, g.table().view.Name)
		body := g.query(depth - 1)
		g.ctes = append(g.ctes, name)
		fmt.Fprintf(&b, "WITH %s%s AS (%s) ", g.pick("", "", "RECURSIVE "), duck.Ident(name), body)
	}
	fmt.Fprintf(&b, "SELECT %s FROM %s", g.value(depth), g.source(depth))
	switch g.pick("", "", "where", "order", "limit", "group") {
	case "where":
		b.WriteString(" WHERE " + g.value(depth))
	case "order":
		b.WriteString(" ORDER BY " + g.value(depth))
	case "limit":
		b.WriteString(" LIMIT " + g.pick("5", "("+g.query(0)+")"))
	case "group":
		b.WriteString(" GROUP BY ALL")
	}
	g.ctes = g.ctes[:outer]
	if depth > 0 && g.pick("one", "one", "set") == "set" {
		return "(" + b.String() + ")" + g.pick(" UNION ALL ", " EXCEPT ", " UNION BY NAME ") + "(" + g.query(depth-1) + ")"
	}
	return b.String()
}

func (g *sqlGen) statement() string {
	q := g.query(rapid.IntRange(0, 3).Draw(g.t, "depth"))
	return g.pick("", "", "", "", "", "", "DESCRIBE ", "SUMMARIZE ", "EXPLAIN ", "SELECT 1; ") + q
}

func TestAnAnalystNeverReceivesACellOfAnUngrantedTable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })

	serial, sent, answered := 0, 0, 0
	run := func(views []query.View, text string) (*query.Result, error) {
		return e.Query(context.Background(), query.Request{Generation: int64(serial), Views: views, SQL: text, Limit: 100, Timeout: 10 * time.Second})
	}
	property := func(t *rapid.T) {
		serial++
		tables := grantsWorld(t, db, dir, serial)
		mine, all := viewsOf(tables, false), viewsOf(tables, true)

		// Both users' own tables are answered in full, in either order.
		for _, user := range []struct {
			views []query.View
			all   bool
		}{{all, true}, {mine, false}} {
			for _, r := range tables {
				if !r.granted && !user.all {
					continue
				}
				q := duck.Ident(r.view.Name)
				text := rapid.SampledFrom([]string{
					"SELECT %[2]s FROM %[1]s ORDER BY ALL", "WITH c AS (SELECT * FROM %[1]s) SELECT %[2]s FROM c ORDER BY 1",
					"WITH %[1]s AS (SELECT * FROM %[1]s) SELECT %[2]s FROM %[1]s ORDER BY ALL;", "SELECT x.%[2]s FROM main.%[1]s AS x ORDER BY id -- done",
					"SELECT %[1]s.%[2]s FROM %[1]s, (SELECT max(id) AS m FROM %[1]s) s WHERE %[1]s.id <= m ORDER BY 1",
				}).Draw(t, "own")
				text = fmt.Sprintf(text, q, r.columns[0])
				res, err := run(user.views, text)
				if err != nil {
					t.Fatalf("%s: %v, want an answer", text, err)
				}
				var got []string
				for _, row := range res.Rows {
					got = append(got, fmt.Sprint(row...))
				}
				if want := []string{r.cells[0] + "0", r.cells[0] + "1", r.cells[0] + "2"}; !slices.Equal(got, want) {
					t.Fatalf("%s = %v, want %v", text, got, want)
				}
			}
		}
		for range 8 {
			g := &sqlGen{t: t, tables: tables, focus: rapid.SampledFrom(tables).Draw(t, "focus")}
			text := g.statement()
			sent++
			res, err := run(mine, text)
			if err == nil {
				answered++
			}
			answer := shown(res, err)
			for _, r := range tables {
				if r.granted {
					continue
				}
				for _, cell := range r.cells {
					if strings.Contains(answer, cell) {
						t.Fatalf("%s\nshows a cell of %s, which is not granted:\n%s", text, r.view.Name, answer)
					}
				}
				for _, column := range r.columns {
					if strings.Contains(answer, column) && !strings.Contains(text, column) {
						t.Fatalf("%s\nshows a column of %s, which is not granted:\n%s", text, r.view.Name, answer)
					}
				}
			}
			if strings.Contains(answer, dir) && !strings.Contains(text, dir) {
				t.Fatalf("%s\nshows where files lie:\n%s", text, answer)
			}
			if err != nil && problem.As(err).Kind == problem.Internal {
				t.Fatalf("%s\nmeets an error without an explanation: %v", text, err)
			}
		}
	}
	t.Run("schemas", func(t *testing.T) { rapid.Check(t, property) })
	t.Run("more schemas", func(t *testing.T) { rapid.Check(t, property) })
	if answered*20 < sent {
		t.Errorf("only %d of %d random statements were answered; the grammar proves little", answered, sent)
	}
	t.Logf("%d schemas, %d statements, %d answered", serial, sent, answered)
}

// A refusal must not say whether the table that was asked for exists.
func TestARefusalDoesNotTellWhetherATableExists(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	granted := writeTable(t, dir, "granted", `SELECT 1 AS v`)
	hidden := writeTable(t, dir, "hidden_a", `SELECT 1 AS v`)
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if _, err := e.Query(t.Context(), query.Request{Generation: 1, Views: []query.View{granted, hidden}, SQL: "FROM hidden_a", Limit: 1, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"SELECT * FROM NAME", "SELECT * FROM granted, NAME", "SELECT v FROM main.NAME", "DESCRIBE NAME", "SUMMARIZE NAME", "SELECT (SELECT v FROM NAME)",
		"SELECT NAME.v FROM granted", "WITH c AS (FROM NAME) SELECT 1", "FROM '" + dir + "/NAME.parquet'", "FROM read_parquet('" + dir + "/NAME.parquet')",
		"SELECT * FROM granted WHERE v IN (FROM NAME)", "SELECT NAME FROM granted", "SHOW NAME", "FROM glob('" + dir + "/NAME.parquet')", "SELECT 'NAME'::regclass",
	} {
		var said [2]string
		for i, name := range []string{"hidden_a", "hidden_b"} {
			_, err := e.Query(t.Context(), query.Request{
				Generation: 1, Views: []query.View{granted}, SQL: strings.ReplaceAll(text, "NAME", name), Limit: 1, Timeout: time.Minute,
			})
			if err == nil {
				t.Errorf("%s with %s: answered, want a refusal", text, name)
				continue
			}
			p := problem.As(err)
			said[i] = strings.ReplaceAll(fmt.Sprint(p.Kind, p.Code, p.Message, p.Hint), name, "NAME")
		}
		if said[0] != said[1] {
			t.Errorf("%s tells whether the table exists:\n%s\n%s", text, said[0], said[1])
		}
	}
}
