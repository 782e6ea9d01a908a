package query

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Gate decides whether a statement may run, from DuckDB's own syntax tree. It
// matches no text: a column named drop, a table named order or a string that
// holds SQL are what they are.
type Gate struct {
	db *sql.DB // holds no data and reaches no file
}

// NewGate returns a gate; Close it.
func NewGate(ctx context.Context) (*Gate, error) {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1, Settings: map[string]string{
		"enable_external_access": "false",
		"memory_limit":           "256MB",
		"lock_configuration":     "true",
	}})
	if err != nil {
		return nil, err
	}
	return &Gate{db: db}, nil
}

// Close releases the gate's database.
func (g *Gate) Close() error { return g.db.Close() }

// Check returns nil where sql is exactly one statement that only reads the
// tables in names (lower case), or a problem.Error that says what to do
// instead.
func (g *Gate) Check(ctx context.Context, text string, names map[string]bool) error {
	if len(text) > MaxSQL {
		return tooLong(len(text))
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return problem.New(problem.Invalid, "The statement is not valid UTF-8 text.", "Send the SQL as UTF-8 without NUL characters.").WithCode("invalid_sql")
	}
	var tree string
	err := g.db.QueryRowContext(ctx,
		"SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)::VARCHAR", text).Scan(&tree)
	if err != nil {
		return err
	}
	var parsed struct {
		Error      bool             `json:"error"`
		Type       string           `json:"error_type"`
		Message    string           `json:"error_message"`
		Position   string           `json:"position"`
		Statements []map[string]any `json:"statements"`
	}
	if err := json.Unmarshal([]byte(tree), &parsed); err != nil {
		return fmt.Errorf("read the syntax tree: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "not implemented":
		return refuse("not_a_select", "The statement is not a SELECT.", "",
			"Send one SELECT, WITH, FROM, VALUES, DESCRIBE, SUMMARIZE or SHOW TABLES statement. Data changes only by a sync: POST /api/sync/trigger.")
	case parsed.Error:
		msg := "Parser Error: " + parsed.Message
		if parsed.Position != "" {
			msg += " (at byte " + parsed.Position + ")"
		}
		return problem.New(problem.Invalid, msg, "Mend the statement and send it again.").WithCode("invalid_sql")
	case len(parsed.Statements) != 1:
		return problem.New(problem.Invalid,
			fmt.Sprintf("The text holds %d statements; expected exactly one.", len(parsed.Statements)),
			"Send each statement in a call of its own.").WithCode("invalid_sql")
	}
	w := walker{tables: names, ctes: make(map[string]bool)}
	w.collectCTEs(parsed.Statements[0])
	return w.walk(parsed.Statements[0])
}

// tableFunctions are the table functions that neither read a file nor describe
// the engine.
func tableFunction(name string) bool {
	switch name {
	case "range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree":
		return true
	}
	return false
}

// describesEngine names the scalar functions that would show or change the
// engine's own state.
func describesEngine(name string) bool {
	switch name {
	case "current_setting", "getvariable", "getenv", "nextval", "currval", "write_log", "set_config",
		"query", "query_table", "parse_duckdb_log_message", "force_checkpoint", "checkpoint":
		return true
	}
	return strings.HasPrefix(name, "duckdb_") || strings.HasPrefix(name, "pragma_") || strings.HasPrefix(name, "pg_")
}

type walker struct {
	tables map[string]bool
	ctes   map[string]bool
}

func (w *walker) collectCTEs(node any) {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			w.collectCTEs(child)
		}
	case map[string]any:
		if m, ok := n["cte_map"].(map[string]any); ok {
			entries, _ := m["map"].([]any)
			for _, e := range entries {
				if entry, ok := e.(map[string]any); ok {
					w.ctes[strings.ToLower(str(entry, "key"))] = true
				}
			}
		}
		if name := str(n, "cte_name"); name != "" {
			w.ctes[strings.ToLower(name)] = true
		}
		for _, child := range n {
			w.collectCTEs(child)
		}
	}
}

func (w *walker) walk(node any) error {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			if err := w.walk(child); err != nil {
				return err
			}
		}
	case map[string]any:
		if err := w.node(n); err != nil {
			return err
		}
		for key, child := range n {
			if key == "value" && str(n, "type") == "VALUE_CONSTANT" {
				continue // what a constant holds is data
			}
			if err := w.walk(child); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) node(n map[string]any) error {
	switch str(n, "type") {
	case "BASE_TABLE":
		return w.table(n)
	case "TABLE_FUNCTION":
		f, _ := n["function"].(map[string]any)
		if name := strings.ToLower(str(f, "function_name")); !tableFunction(name) {
			return refuse("function_not_allowed", fmt.Sprintf("The table function %q is not available here.", name), at(n),
				"Query the tables of GET /api/catalog/tables; range, generate_series and unnest are available.")
		}
	case "SHOW_REF":
		if str(n, "table_name") != "" && str(n, "table_name") != `"tables"` {
			return refuse("show_not_allowed", "Only SHOW TABLES is available.", at(n), "Use SHOW TABLES, DESCRIBE table or SUMMARIZE table.")
		}
	case "FUNCTION":
		if name := strings.ToLower(str(n, "function_name")); describesEngine(name) {
			return refuse("function_not_allowed", fmt.Sprintf("The function %q is not available here.", name), at(n),
				"Leave it out; GET /api/version and GET /api/health/details describe the instance.")
		}
	}
	return nil
}

func (w *walker) table(n map[string]any) error {
	name := str(n, "table_name")
	catalog, schema := strings.ToLower(str(n, "catalog_name")), strings.ToLower(str(n, "schema_name"))
	plain := (catalog == "" || catalog == "memory") && (schema == "" || schema == "main")
	if plain && (w.tables[strings.ToLower(name)] || (schema == "" && w.ctes[strings.ToLower(name)])) {
		return nil
	}
	full := name
	if schema != "" {
		full = str(n, "schema_name") + "." + full
	}
	if catalog != "" {
		full = str(n, "catalog_name") + "." + full
	}
	return refuse("table_not_available", fmt.Sprintf("There is no table %q that you may query.", full), at(n),
		"GET /api/catalog/tables lists your tables; an admin can grant more with PATCH /api/users/{id}.")
}

func refuse(code, message, where, hint string) error {
	return problem.New(problem.Forbidden, message+where, hint).WithCode(code)
}

func str(n map[string]any, key string) string {
	s, _ := n[key].(string)
	return s
}

// at says where in the statement a node stands, counted in bytes from 0 as
// DuckDB does.
func at(n map[string]any) string {
	if pos, ok := n["query_location"].(float64); ok {
		return fmt.Sprintf(" (at byte %d)", int64(pos))
	}
	return ""
}
