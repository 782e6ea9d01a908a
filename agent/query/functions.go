package query

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

//go:embed functions.txt
var functionsText string

// functions is the reviewed list of the driver's functions. It answers for two
// name spaces, since a name may be harmless in an expression and not in FROM.
// What is not in the list is refused, so a new driver or an extension widens
// nothing by itself.
type functions struct {
	expressions map[string]*functionGroup
	tables      map[string]*functionGroup
}

// functionGroup holds what was decided about some functions together, and why.
type functionGroup struct {
	name    string
	allowed bool
	table   bool
	reason  string
	names   int
}

// loadFunctions reads the list that is built into the program.
func loadFunctions() (*functions, error) { return parseFunctions(functionsText) }

// verdict says whether SQL may call a function, by its name as the syntax tree
// gives it, without catalog and schema. Set table for what stands in FROM. An
// unknown name is not allowed and has no group: DuckDB has no such function, or
// nobody has reviewed it.
func (f *functions) verdict(name string, table bool) (allowed bool, group, reason string, known bool) {
	g := f.space(table)[foldName(name)]
	if g == nil {
		return false, "", "", false
	}
	return g.allowed, g.name, g.reason, true
}

func (f *functions) space(table bool) map[string]*functionGroup {
	if table {
		return f.tables
	}
	return f.expressions
}

// foldName lowers ASCII letters only, as DuckDB does when it looks a name up.
// Unicode's rules would make a K of the Kelvin sign and so judge another name
// than the one that runs.
func foldName(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
}

// parseFunctions reads a list in the format that functions.txt describes. It
// insists on what makes the list fit for review: a reason for each group, names
// in order, and no name twice in a name space.
func parseFunctions(text string) (*functions, error) {
	f := &functions{expressions: make(map[string]*functionGroup), tables: make(map[string]*functionGroup)}
	var group *functionGroup
	var last string
	closed := func() error {
		if group != nil && group.names == 0 {
			return fmt.Errorf("the group %q has no names", group.name)
		}
		return nil
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		names, indented := strings.CutPrefix(line, "\t")
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case !indented:
			next, err := parseGroup(line)
			if err != nil {
				return nil, fmt.Errorf("functions.txt, line %d: %w", n, err)
			}
			if err := closed(); err != nil {
				return nil, fmt.Errorf("functions.txt, before line %d: %w", n, err)
			}
			group, last = next, ""
		case group == nil:
			return nil, fmt.Errorf("functions.txt, line %d: names without a group above them", n)
		default:
			for _, name := range strings.Fields(names) {
				if err := f.add(group, name, last); err != nil {
					return nil, fmt.Errorf("functions.txt, line %d: %w", n, err)
				}
				last = name
			}
		}
	}
	if err := closed(); err != nil {
		return nil, fmt.Errorf("functions.txt, at its end: %w", err)
	}
	if len(f.expressions) == 0 || len(f.tables) == 0 {
		return nil, fmt.Errorf("functions.txt reviews %d functions of expressions and %d of FROM; expected some of both",
			len(f.expressions), len(f.tables))
	}
	return f, nil
}

// parseGroup reads a line like "deny table files: They open files."
func parseGroup(line string) (*functionGroup, error) {
	head, reason, _ := strings.Cut(line, ":")
	words := strings.Fields(head)
	if len(words) != 3 || !slices.Contains([]string{"allow", "deny"}, words[0]) || !slices.Contains([]string{"expression", "table"}, words[1]) {
		return nil, fmt.Errorf(`expected "allow|deny expression|table name: reason", found %q`, line)
	}
	g := &functionGroup{
		allowed: words[0] == "allow", table: words[1] == "table", name: words[2],
		reason: strings.TrimSpace(reason),
	}
	if g.reason == "" {
		return nil, fmt.Errorf("the group %q has no reason", g.name)
	}
	return g, nil
}

func (f *functions) add(group *functionGroup, name, last string) error {
	space := f.space(group.table)
	if other := space[name]; other != nil {
		return fmt.Errorf("%q is listed twice, in %q and %q", name, other.name, group.name)
	}
	if name != foldName(name) {
		return fmt.Errorf("%q has capital letters; expected %q", name, foldName(name))
	}
	if name < last {
		return fmt.Errorf("%q stands after %q; expected the names of %q in order", name, last, group.name)
	}
	space[name] = group
	group.names++
	return nil
}

// typesInText is the group of the functions whose second argument is a type
// as text, like {"a": "INTEGER"}. A statement may call them only with a
// constant there that plainTypes accepts.
const typesInText = "types_in_text"

// plainTypes reports whether the JSON text names no VARIANT among its types, and
// none of another schema: a database elsewhere has types of its own.
// Keys are the caller's own field names and may be anything. What is not JSON
// is not plain.
func plainTypes(spec string) bool {
	if !json.Valid([]byte(spec)) {
		return false
	}
	// Tokens, not a map: of two equal keys a map would keep the second only.
	dec := json.NewDecoder(strings.NewReader(spec))
	type level struct{ object, value bool }
	levels := []level{{}}
	for {
		token, err := dec.Token()
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		top := &levels[len(levels)-1]
		key := top.object && !top.value
		switch v := token.(type) {
		case json.Delim:
			if v == '}' || v == ']' {
				levels = levels[:len(levels)-1]
				continue
			}
			top.value = false
			levels = append(levels, level{object: v == '{'})
			continue
		case string:
			if !key && (strings.Contains(strings.ToLower(v), "variant") || strings.Contains(v, ".")) {
				return false
			}
		}
		top.value = key
	}
}
