package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// Format is the shape of an answer.
type Format string

// The formats that every command with a table has.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// OutputFlag adds -o/--output to a command, with completion. f holds the
// default when it is called; more lists formats besides table, json and yaml.
func OutputFlag(c *cobra.Command, f *Format, more ...Format) {
	if *f == "" {
		*f = Table
	}
	allowed := append([]Format{Table, JSON, YAML}, more...)
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	c.Flags().VarP(&formatValue{f: f, names: names}, "output", "o", "output format: "+strings.Join(names, ", "))
	// The error is "flag does not exist" only.
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

type formatValue struct {
	f     *Format
	names []string
}

// String, Type and Set make it a flag's value.
func (v *formatValue) String() string { return string(*v.f) }

// Type names the kind of value in help texts.
func (v *formatValue) Type() string { return "format" }

// Set takes one of the allowed names.
func (v *formatValue) Set(s string) error {
	for _, name := range v.names {
		if s == name {
			*v.f = Format(s)
			return nil
		}
	}
	return fmt.Errorf("expected %s", strings.Join(v.names, ", "))
}

// Print writes an answer: value as indented JSON or as YAML with the same
// names, or what table draws. All three are safe to show on a terminal,
// whatever the value holds.
func Print(w io.Writer, f Format, value any, table func(*Grid)) error {
	var out []byte
	switch f {
	case JSON, YAML:
		encoded, err := encodeJSON(value)
		if err != nil {
			return fmt.Errorf("encode the answer as JSON: %w", err)
		}
		out = encoded
		if f == YAML {
			if out, err = yamlFromJSON(encoded); err != nil {
				return fmt.Errorf("encode the answer as YAML: %w", err)
			}
		}
	default:
		g := &Grid{}
		table(g)
		out = g.bytes()
	}
	if _, err := w.Write(out); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// encodeJSON returns v as indented JSON in which no character can drive a
// terminal. encoding/json escapes only what lies below the space.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if clean(strings.ReplaceAll(b.String(), "\n", "")) {
		return b.Bytes(), nil
	}
	out := make([]byte, 0, b.Len()+64)
	for _, r := range b.String() {
		// Outside strings there is nothing but ASCII, so this escapes inside them.
		switch {
		case r == '\n' || !dangerous(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out, nil
}

// Grid is a table in the making. Its columns are aligned, its text sanitized,
// and its lines have no trailing spaces.
type Grid struct {
	out  bytes.Buffer
	rows [][]string
}

// Row adds a line of cells; the first one is the heading by convention. Cells
// are formatted with fmt.Sprint.
func (g *Grid) Row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = Sanitize(fmt.Sprint(c))
	}
	g.rows = append(g.rows, row)
}

// Line ends the aligned block so far and adds a line of plain text.
func (g *Grid) Line(format string, args ...any) {
	g.flush()
	g.out.WriteString(Sanitize(fmt.Sprintf(format, args...)))
	g.out.WriteByte('\n')
}

func (g *Grid) flush() {
	var block bytes.Buffer
	tw := tabwriter.NewWriter(&block, 0, 0, 2, ' ', 0)
	for _, row := range g.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t")) // a bytes.Buffer takes every write
	}
	_ = tw.Flush()
	g.rows = nil
	for line := range strings.Lines(block.String()) {
		g.out.WriteString(strings.TrimRight(line, " \n"))
		g.out.WriteByte('\n')
	}
}

func (g *Grid) bytes() []byte {
	g.flush()
	return g.out.Bytes()
}
