package query

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Gate decides whether a statement may run, from DuckDB's own syntax tree. It
// matches no text: a column named drop, a table named order or a string that
// holds SQL are what they are.
//
// Everything is an allow-list. A kind of node that is not listed is refused
// wherever it stands, so syntax that a later DuckDB brings stays shut until
// somebody has looked at it; so are functions that functions.txt does not allow.
type Gate struct {
	tree      func(sql string) (string, error) // json_serialize_sql of a DuckDB
	functions *functions
}

// checked is what an accepted statement does.
type checked struct {
	names       []string // granted tables that it reads, as it spells them
	listsTables bool     // SHOW TABLES
}

func newGate(tree func(string) (string, error)) (*Gate, error) {
	f, err := loadFunctions()
	return &Gate{tree: tree, functions: f}, err
}

// serialized is what json_serialize_sql returns.
type serialized struct {
	Error      bool             `json:"error"`
	Type       string           `json:"error_type"`
	Message    string           `json:"error_message"`
	Position   string           `json:"position"`
	Statements []map[string]any `json:"statements"`
}

// check returns what sql reads where it is exactly one statement that only
// reads granted tables, or a problem.Error that names the rule, the place, and
// what to do instead.
func (g *Gate) check(sql string, granted func(name string) bool) (checked, error) {
	text, err := g.tree(sql)
	if err != nil {
		return checked{}, err
	}
	var parsed serialized
	if err := json.Unmarshal(bareNumbers(text), &parsed); err != nil {
		return checked{}, fmt.Errorf("read the syntax tree: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "not implemented":
		return checked{}, problem.New(problem.Forbidden, "The statement is not a query.",
			"Send one SELECT, WITH, FROM, VALUES, DESCRIBE, SUMMARIZE or SHOW TABLES statement; give PIVOT its values: PIVOT t ON col IN ('a', 'b') USING …. "+
				"Data changes only by a sync: POST /api/sync/trigger.").WithCode("not_a_query")
	case parsed.Error:
		return checked{}, syntaxError(sql, parsed)
	case len(parsed.Statements) != 1:
		return checked{}, problem.New(problem.Invalid, fmt.Sprintf("The text holds %d statements; expected exactly one.", len(parsed.Statements)),
			"Send each statement in a call of its own.").WithCode("invalid_sql")
	}
	w := walker{sql: sql, granted: granted, functions: g.functions}
	w.walk(parsed.Statements[0], nil)
	if len(w.refusals) > 0 {
		first := slices.MinFunc(w.refusals, func(a, b refusal) int {
			return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(a.message, b.message))
		})
		return checked{}, problem.New(problem.Forbidden, first.message+place(sql, first.at), first.hint).WithCode(first.code)
	}
	slices.Sort(w.reads)
	return checked{slices.Compact(w.reads), w.listsTables}, nil
}

// bareNumbers makes the tree the JSON that it should be: DuckDB writes an
// infinite constant as a bare word. What a constant holds does not matter here.
func bareNumbers(tree string) []byte {
	out := make([]byte, 0, len(tree))
	quoted := false
	for i := 0; i < len(tree); i++ {
		switch b := tree[i]; {
		case quoted && b == '\\':
			out = append(out, b, tree[i+1])
			i++
			continue
		case b == '"':
			quoted = !quoted
		case quoted:
		case b == 'I' && strings.HasPrefix(tree[i:], "Infinity"):
			out = append(out, '0')
			i += len("Infinity") - 1
			continue
		case b == 'N' && strings.HasPrefix(tree[i:], "NaN"):
			out = append(out, '0')
			i += len("NaN") - 1
			continue
		}
		out = append(out, tree[i])
	}
	return out
}

func syntaxError(sql string, s serialized) error {
	msg := "Parser Error: " + s.Message
	var at int
	if _, err := fmt.Sscan(s.Position, &at); err == nil {
		msg += place(sql, at)
	}
	return problem.New(problem.Invalid, msg, "Mend the statement and send it again.").WithCode("invalid_sql")
}

// nowhere is the place of what DuckDB gives none.
const nowhere = 1 << 62

// place says where in the text a byte offset is.
func place(sql string, at int) string {
	if at < 0 || at > len(sql) {
		return ""
	}
	before := sql[:at]
	line := strings.Count(before, "\n") + 1
	column := utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Sprintf(" (line %d, column %d)", line, column)
}

type refusal struct {
	at                  int
	code, message, hint string
}

// scope is the common table expressions that can be named at one place.
type scope struct {
	name  string
	outer *scope
}

func (s *scope) has(name string) bool {
	for ; s != nil; s = s.outer {
		if foldName(s.name) == foldName(name) {
			return true
		}
	}
	return false
}

type walker struct {
	sql         string
	granted     func(name string) bool
	functions   *functions
	reads       []string
	listsTables bool
	refusals    []refusal
}

func (w *walker) refuse(n map[string]any, code, message, hint string) {
	w.refusals = append(w.refusals, refusal{location(n), code, message, hint})
}

// walk visits everything below a node. Nothing is passed over but constants,
// which are data.
func (w *walker) walk(node any, s *scope) {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			w.walk(child, s)
		}
	case map[string]any:
		w.node(n, s)
	}
}

func (w *walker) node(n map[string]any, s *scope) {
	kind := str(n, "type")
	if kind != "" && !knownKind(kind) {
		w.refuse(n, "syntax_not_allowed", fmt.Sprintf("This kind of syntax (%s) is not available here.", kind), "Write it with plain joins, subqueries and functions.")
		return
	}
	if str(n, "id") == "VARIANT" {
		w.refuse(n, "type_not_allowed", "The type VARIANT is not available here.", "Use JSON instead.") // it corrupts memory in DuckDB 1.5.5
		return
	}
	switch kind {
	case "UNBOUND_TYPE_INFO", "USER_TYPE_INFO":
		if catalog := foldName(str(n, "catalog")); catalog != "" && catalog != "memory" && catalog != "system" || !own(str(n, "schema"), "main") {
			w.refuse(n, "type_not_allowed", "A type of another schema is not available here.", "Use DuckDB's own types, such as VARCHAR.") // it shows an enumeration's values
			return
		}
	case "VALUE_CONSTANT":
		if value, _ := n["value"].(map[string]any); value != nil {
			w.walk(value["type"], s)
		}
		return
	case "BASE_TABLE":
		w.table(n, s)
	case "TABLE_FUNCTION":
		w.tableFunction(n, s)
		return
	case "SHOW_REF":
		w.show(n)
	case "FUNCTION":
		w.function(n)
	case "RECURSIVE_CTE_NODE":
		w.recursive(n, s)
		return
	case "CTE_NODE":
		w.walk(n["query"], s)
		w.children(n, &scope{str(n, "cte_name"), s}, "query")
		return
	case "PIVOT":
		w.pivot(n)
	}
	if strings.HasPrefix(kind, "WINDOW_") {
		w.function(n)
	}
	w.children(n, w.commonTables(n, s), "cte_map")
}

// children visits the members of a node, but for those named in except.
func (w *walker) children(n map[string]any, s *scope, except string) {
	for key, child := range n {
		if key != except {
			w.walk(child, s)
		}
	}
}

// commonTables visits a node's WITH clause and returns the scope of the node's
// body. Each expression sees those before it, and not itself.
func (w *walker) commonTables(n map[string]any, s *scope) *scope {
	m, _ := n["cte_map"].(map[string]any)
	entries, _ := m["map"].([]any)
	for _, e := range entries {
		entry, _ := e.(map[string]any)
		w.walk(entry["value"], s)
		s = &scope{str(entry, "key"), s}
	}
	return s
}

// recursive visits WITH RECURSIVE: only its second half sees its own name.
func (w *walker) recursive(n map[string]any, s *scope) {
	s = w.commonTables(n, s)
	inner := &scope{str(n, "cte_name"), s}
	for key, child := range n {
		switch key {
		case "cte_map":
		case "left":
			w.walk(child, s)
		default:
			w.walk(child, inner)
		}
	}
}

func (w *walker) table(n map[string]any, s *scope) {
	name, schema, catalog := str(n, "table_name"), str(n, "schema_name"), str(n, "catalog_name")
	if n["at_clause"] != nil {
		w.refuse(n, "syntax_not_allowed", "AT is not available here.", "Query the table without AT; a published table has one state.")
	}
	switch {
	case catalog == "" && schema == "" && s.has(name):
		return
	case catalog == "" && foldName(schema) == "recurring" && s.has(name):
		return // the whole of a recursive expression's rows
	case own(catalog, "memory") && own(schema, "main") && w.granted(name):
		w.reads = append(w.reads, name)
		return
	}
	full := name
	for _, outer := range []string{schema, catalog} {
		if outer != "" {
			full = outer + "." + full
		}
	}
	w.refuse(n, "table_not_available", fmt.Sprintf("There is no table %q that you may query.", full),
		"GET /api/catalog/tables lists your tables; an admin can grant more with PATCH /api/users/{id}.")
}

func own(given, name string) bool { return given == "" || foldName(given) == name }

func (w *walker) function(n map[string]any) {
	name := foldName(str(n, "function_name"))
	if name == "" {
		return // a window function with syntax of its own, such as row_number
	}
	w.judge(n, name, false)
	if export, _ := n["export_state"].(bool); export {
		w.refuse(n, "function_not_allowed", "EXPORT_STATE is not available here.", "Leave it out.")
	}
}

func (w *walker) tableFunction(n map[string]any, s *scope) {
	f, ok := n["function"].(map[string]any)
	if !ok || str(f, "type") != "FUNCTION" {
		w.refuse(n, "syntax_not_allowed", "This table function cannot be read.", "Query the tables of GET /api/catalog/tables.")
		return
	}
	w.judge(f, foldName(str(f, "function_name")), true)
	w.children(f, s, "")
	w.children(n, s, "function")
}

// judge decides by the name alone: a method call puts its object where a schema
// would stand, and the verdicts cover every schema.
func (w *walker) judge(n map[string]any, name string, table bool) {
	allowed, group, reason, known := w.functions.verdict(name, table)
	switch {
	case !known:
		w.refuse(n, "function_not_allowed", fmt.Sprintf("There is no function %q here: DuckDB has none by that name, or it was not reviewed.", name),
			"Check its spelling, or use another function.")
	case !allowed:
		w.refuse(n, "function_not_allowed", fmt.Sprintf("The function %q is not available here (%s: %s).", name, group, strings.TrimSuffix(reason, ".")),
			"Use another function, or query the tables of GET /api/catalog/tables.")
	case group == typesInText && !plainTypeArgument(n):
		w.refuse(n, "function_not_allowed", fmt.Sprintf("The types in the second argument of %q must be one plain text with known types.", name),
			"Write them as a literal, such as '{\"a\": \"INTEGER\"}'.")
	}
}

func plainTypeArgument(n map[string]any) bool {
	children, _ := n["children"].([]any)
	if len(children) != 2 {
		return false
	}
	constant, _ := children[1].(map[string]any)
	value, _ := constant["value"].(map[string]any)
	text, ok := value["value"].(string)
	return ok && str(constant, "type") == "VALUE_CONSTANT" && plainTypes(text)
}

func (w *walker) show(n map[string]any) {
	switch kind, name := str(n, "show_type"), foldName(strings.Trim(str(n, "table_name"), `"`)); {
	case n["query"] != nil: // DESCRIBE and SUMMARIZE; what they describe is visited like any query
	case kind == "SHOW_UNQUALIFIED" && name == "tables" && str(n, "catalog_name") == "" && str(n, "schema_name") == "":
		w.listsTables = true
	default:
		w.refuse(n, "show_not_allowed", "Only SHOW TABLES is available.", "Use SHOW TABLES, DESCRIBE table or SUMMARIZE table.")
	}
}

func (w *walker) pivot(n map[string]any) {
	pivots, _ := n["pivots"].([]any)
	for _, p := range pivots {
		if pivot, _ := p.(map[string]any); str(pivot, "pivot_enum") != "" {
			w.refuse(n, "syntax_not_allowed", "PIVOT by a named type is not available here.", "List the values: PIVOT t ON col IN ('a', 'b') USING ….")
		}
	}
}

// knownKind reports whether a kind of node was looked at and found to be
// harmless, or is handled by the walker.
func knownKind(kind string) bool {
	switch kind {
	// queries and their modifiers
	case "SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE",
		"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER", "DISTINCT_MODIFIER",
		"ORDER_DEFAULT", "ASCENDING", "DESCENDING", "ORDER_ASCENDING", "ORDER_DESCENDING", "INVALID":
		return true
	// what stands behind FROM
	case "EMPTY", "BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "PIVOT", "SHOW_REF":
		return true
	// expressions
	case "VALUE_CONSTANT", "VALUE_PARAMETER", "COLUMN_REF", "FUNCTION", "STAR", "LAMBDA", "COLLATE", "POSITIONAL_REFERENCE",
		"CASE_EXPR", "OPERATOR_CAST", "COMPARE_BETWEEN", "COMPARE_NOT_BETWEEN", "CONJUNCTION_AND", "CONJUNCTION_OR",
		"ARRAY_EXTRACT", "ARRAY_SLICE", "STRUCT_EXTRACT", "ARRAY_CONSTRUCTOR", "GROUPING_FUNCTION", "CAST",
		"OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "OPERATOR_NULLIF", "OPERATOR_UNPACK", "OPERATOR_TRY",
		"COMPARE_EQUAL", "COMPARE_NOTEQUAL", "COMPARE_LESSTHAN", "COMPARE_GREATERTHAN", "COMPARE_LESSTHANOREQUALTO",
		"COMPARE_GREATERTHANOREQUALTO", "COMPARE_IN", "COMPARE_NOT_IN", "COMPARE_DISTINCT_FROM", "COMPARE_NOT_DISTINCT_FROM":
		return true
	// window functions
	case "WINDOW_AGGREGATE", "WINDOW_RANK", "WINDOW_RANK_DENSE", "WINDOW_NTILE", "WINDOW_PERCENT_RANK", "WINDOW_CUME_DIST",
		"WINDOW_ROW_NUMBER", "WINDOW_FIRST_VALUE", "WINDOW_LAST_VALUE", "WINDOW_LEAD", "WINDOW_LAG", "WINDOW_NTH_VALUE", "WINDOW_FILL":
		return true
	// details of types
	case "DECIMAL_TYPE_INFO", "STRING_TYPE_INFO", "LIST_TYPE_INFO", "STRUCT_TYPE_INFO", "ARRAY_TYPE_INFO", "ENUM_TYPE_INFO",
		"USER_TYPE_INFO", "ANY_TYPE_INFO", "INTEGER_LITERAL_TYPE_INFO", "UNBOUND_TYPE_INFO", "GENERIC_TYPE_INFO", "EXTENSION_TYPE_INFO", "TYPE":
		return true
	}
	return false
}

func str(n map[string]any, key string) string {
	s, _ := n[key].(string)
	return s
}

func location(n map[string]any) int {
	if at, ok := n["query_location"].(float64); ok && at < nowhere {
		return int(at)
	}
	return nowhere
}
