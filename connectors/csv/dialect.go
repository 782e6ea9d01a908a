package csv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// sampleRows is how many rows DuckDB looks at to find the dialect and types.
const sampleRows = 20480

type column struct {
	Name, Type string
	Long       bool `json:"-"` // a BIGINT whose values may not fit a DOUBLE's 53 bits
}

// dialect is how one file of delimited text is read: everything is said to
// DuckDB, so that what was looked at here is what is read.
type dialect struct {
	delim, quote, escape, newline string
	skip                          int
	header                        bool
	dateFormat, timestampFormat   string
	columns                       []column
}

// source returns the table function that reads a file under d.
func (d dialect) source(in input, extra ...string) string {
	return readCSV("read_csv", duck.Literal(globEscape(in.read)), append(d.full(in.codec), extra...)...)
}

// full says all of d to DuckDB.
func (d dialect) full(c codec) []string {
	cols := make([]string, len(d.columns))
	for i, c := range d.columns {
		cols[i] = duck.Literal(c.Name) + ": " + duck.Literal(c.Type)
	}
	return append(d.args(), "compression = "+duck.Literal(string(c)), "columns = {"+strings.Join(cols, ", ")+"}", "auto_detect = false")
}

// args fixes all but the columns.
func (d dialect) args() []string {
	args := []string{
		"delim = " + duck.Literal(d.delim), "quote = " + duck.Literal(d.quote), "escape = " + duck.Literal(d.escape),
		fmt.Sprintf("skip = %d", d.skip), fmt.Sprintf("header = %t", d.header),
	}
	if strings.HasPrefix(d.newline, `\`) {
		args = append(args, "new_line = "+duck.Literal(d.newline))
	}
	if d.dateFormat != "" {
		args = append(args, "dateformat = "+duck.Literal(d.dateFormat))
	}
	if d.timestampFormat != "" {
		args = append(args, "timestampformat = "+duck.Literal(d.timestampFormat))
	}
	return args
}

// guarded returns d as the first attempt reads it, and the select list that
// makes of it what d says. DuckDB turns 1.5 into 2 where a column is BIGINT, and
// the types come from a sample: whole numbers are read in a form that shows a
// fraction, and one that is met fails the query.
func (d dialect) guarded() (dialect, string) {
	const notWhole = "error('a fraction in a column of whole numbers')"
	d.columns = slices.Clone(d.columns)
	list := make([]string, len(d.columns))
	for i, c := range d.columns {
		name := duck.Ident(c.Name)
		list[i] = name
		switch {
		case c.Type != "BIGINT":
		case c.Long:
			d.columns[i].Type = "VARCHAR"
			list[i] = "CAST(CASE WHEN contains(" + name + ", '.') THEN " + notWhole + " ELSE " + name + " END AS BIGINT) AS " + name
		default:
			d.columns[i].Type = "DOUBLE"
			list[i] = "CAST(CASE WHEN " + name + " <> trunc(" + name + ") OR abs(" + name + ") > 9007199254740991 THEN " + notWhole + " ELSE " + name + " END AS BIGINT) AS " + name
		}
	}
	return d, strings.Join(list, ", ")
}

// asText returns d with every column as text.
func (d dialect) asText() dialect {
	d.columns = slices.Clone(d.columns)
	for i := range d.columns {
		d.columns[i].Type = "VARCHAR"
	}
	return d
}

// readCSV calls one of DuckDB's functions without a comment character: a line
// that begins with # is data, or a bad row that is named, and is never dropped
// in silence.
func readCSV(function, files string, args ...string) string {
	if function == "read_csv" {
		args = append(args, "hive_partitioning = false")
	}
	return function + "(" + strings.Join(append([]string{files, "comment = ''"}, args...), ", ") + ")"
}

// globEscape keeps DuckDB from reading a path as a pattern: a file named
// a[1].csv would stand for a1.csv.
func globEscape(path string) string {
	return strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]").Replace(path)
}

// sniff asks DuckDB for a dialect.
func (l *load) sniff(ctx context.Context, in input, args ...string) (dialect, error) {
	var d dialect
	var columns string
	err := l.conn.QueryRowContext(ctx, `SELECT Delimiter, Quote, Escape, NewLineDelimiter, SkipRows, HasHeader,
		to_json(Columns)::VARCHAR, coalesce(DateFormat, ''), coalesce(TimestampFormat, '') FROM `+
		readCSV("sniff_csv", duck.Literal(globEscape(in.read)), append(args, "compression = "+duck.Literal(string(in.codec)))...)).
		Scan(&d.delim, &d.quote, &d.escape, &d.newline, &d.skip, &d.header, &columns, &d.dateFormat, &d.timestampFormat)
	if err != nil {
		return d, err
	}
	for _, s := range []*string{&d.delim, &d.quote, &d.escape} {
		if *s == "(empty)" {
			*s = ""
		}
	}
	return d, json.Unmarshal([]byte(columns), &d.columns)
}

// detect finds a file's dialect. DuckDB's own detection alone would lose data:
// with one bad row in the sample it takes the whole line for one column or
// leaves the lines before the longest run of equal rows out, header included.
func (l *load) detect(ctx context.Context, in input) (dialect, error) {
	var args []string
	if in.ext == ".tsv" && bytes.IndexByte(firstLine(in.head), '\t') >= 0 {
		args = append(args, `delim = '\t'`)
	}
	d, err := l.sniff(ctx, in, args...)
	if err != nil {
		// Bytes that are not UTF-8 in the sample, say.
		if d, err = l.sniff(ctx, in, append(args, "ignore_errors = true")...); err != nil {
			return d, err
		}
	}
	if d.skip > 0 || len(d.columns) == 1 && bytes.ContainsAny(firstLine(in.head), ",;\t|") {
		if d, err = l.decide(ctx, in, d, args); err != nil {
			return d, err
		}
	}
	if d.quote == "" {
		// No quotes in the sample: those that come later must still count.
		quoted, err := l.sniff(ctx, in, "quote = '\"'", "delim = "+duck.Literal(d.delim), fmt.Sprintf("skip = %d", d.skip), fmt.Sprintf("header = %t", d.header))
		if err == nil && len(quoted.columns) == len(d.columns) {
			d.quote, d.escape = `"`, `"`
		}
	}
	if d.quote != "" && d.escape == "" {
		d.escape = d.quote
	}
	return d, l.keepDigits(ctx, in, &d, true)
}

// decide chooses between what DuckDB detects when every row must fit and what
// it detects when rows may be bad, by how many rows each of them keeps.
func (l *load) decide(ctx context.Context, in input, strict dialect, args []string) (dialect, error) {
	tolerant, err := l.sniff(ctx, in, append(args, "ignore_errors = true")...)
	if err != nil || tolerant.skip > 0 {
		return strict, nil //nolint:nilerr // what strict detection found is then all there is
	}
	strictRows, err := l.goodRows(ctx, in, strict)
	if err != nil {
		return strict, err
	}
	if len(tolerant.columns) == 1 {
		// Lines of a report's head, or values of a single column, some of them
		// with a delimiter in them: the larger part decides.
		if strict.skip > 0 && strictRows+1 < int64(strict.skip) {
			tolerant.delim = noDelimiter
			return tolerant, nil
		}
		return strict, nil
	}
	tolerantRows, err := l.goodRows(ctx, in, tolerant)
	// A line as one column always fits, so half of its rows are enough there.
	if tolerantRows >= strictRows || len(strict.columns) == 1 && 2*tolerantRows >= strictRows {
		return tolerant, err
	}
	return strict, err
}

// noDelimiter is a control character that text does not hold.
const noDelimiter = "\x1f"

func (l *load) goodRows(ctx context.Context, in input, d dialect) (n int64, err error) {
	err = l.conn.QueryRowContext(ctx, "SELECT count(*) FROM "+d.asText().source(in, "ignore_errors = true")).Scan(&n)
	return n, err
}

// firstLine returns the first line that is not blank.
func firstLine(head []byte) []byte {
	for line := range bytes.Lines(bytes.TrimPrefix(head, bom8)) {
		if len(bytes.TrimSpace(line)) > 0 {
			return line
		}
	}
	return nil
}

// keepDigits looks for whole numbers of 16 digits and more. A DOUBLE would round
// them, so where DuckDB sees one the column becomes text: they are identifiers.
func (l *load) keepDigits(ctx context.Context, in input, d *dialect, sample bool) error {
	var tests []string
	var at []int
	for i, c := range d.columns {
		if c.Type == "DOUBLE" || c.Type == "BIGINT" {
			tests = append(tests, "coalesce(bool_or(regexp_full_match(trim("+duck.Ident(c.Name)+"), '[+-]?\\d{16,}')), false)")
			at = append(at, i)
		}
	}
	if len(tests) == 0 {
		return nil
	}
	limit := ""
	if sample {
		limit = fmt.Sprintf(" LIMIT %d", sampleRows)
	}
	long := make([]bool, len(tests))
	targets := make([]any, len(tests))
	for i := range long {
		targets[i] = &long[i]
	}
	err := l.conn.QueryRowContext(ctx, "SELECT "+strings.Join(tests, ", ")+" FROM (FROM "+d.asText().source(in, "ignore_errors = true")+limit+")").Scan(targets...)
	if err != nil {
		return err
	}
	for i, yes := range long {
		c := &d.columns[at[i]]
		if c.Long = yes; yes && c.Type == "DOUBLE" {
			c.Type = "VARCHAR"
		}
	}
	return nil
}

// widen finds the columns' types over all rows of a file, under its dialect.
func (l *load) widen(ctx context.Context, in input, d *dialect) error {
	fixed := *d
	fixed.dateFormat, fixed.timestampFormat = "", ""
	all, err := l.sniff(ctx, in, append(fixed.args(), "sample_size = -1", "ignore_errors = true")...)
	if err != nil {
		return err
	}
	if len(all.columns) != len(d.columns) {
		// The dialect is fixed, so this is DuckDB's mind changing: text is safe.
		*d = d.asText()
		return nil
	}
	for i := range d.columns {
		d.columns[i].Type = all.columns[i].Type
	}
	d.dateFormat, d.timestampFormat = all.dateFormat, all.timestampFormat
	return l.keepDigits(ctx, in, d, false)
}

// unify gives the columns of one name the same type in all files. A file in
// which a column is empty has no say.
func (l *load) unify(ctx context.Context, inputs []input, dialects []dialect) error {
	types := map[string][]string{}
	clash := func() bool {
		for _, t := range types {
			if len(t) > 1 {
				return true
			}
		}
		return false
	}
	vote := func(d dialect, empty []bool) {
		for i, c := range d.columns {
			name := strings.ToLower(c.Name)
			if empty != nil && empty[i] || slices.Contains(types[name], c.Type) {
				continue
			}
			types[name] = append(types[name], c.Type)
		}
	}
	for _, d := range dialects {
		vote(d, nil)
	}
	if !clash() {
		return nil
	}
	clear(types)
	for i, d := range dialects {
		empty, err := l.emptyColumns(ctx, inputs[i], d)
		if err != nil {
			return err
		}
		vote(d, empty)
	}
	for i := range dialects {
		for j, c := range dialects[i].columns {
			dialects[i].columns[j].Type = common(types[strings.ToLower(c.Name)])
		}
	}
	return nil
}

func (l *load) emptyColumns(ctx context.Context, in input, d dialect) ([]bool, error) {
	counts := make([]string, len(d.columns))
	values := make([]int64, len(d.columns))
	targets := make([]any, len(d.columns))
	for i, c := range d.columns {
		counts[i] = "count(" + duck.Ident(c.Name) + ")"
		targets[i] = &values[i]
	}
	err := l.conn.QueryRowContext(ctx, "SELECT "+strings.Join(counts, ", ")+" FROM "+d.asText().source(in, "ignore_errors = true")).Scan(targets...)
	empty := make([]bool, len(values))
	for i, n := range values {
		empty[i] = n == 0
	}
	return empty, err
}

// common returns the type that holds the values of all types as they were
// written. No types at all: text.
func common(types []string) string {
	slices.Sort(types)
	switch {
	case len(types) == 1:
		return types[0]
	case slices.Equal(types, []string{"BIGINT", "DOUBLE"}):
		return "DOUBLE"
	case slices.Equal(types, []string{"DATE", "TIMESTAMP"}):
		return "TIMESTAMP"
	default:
		return "VARCHAR"
	}
}
