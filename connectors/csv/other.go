package csv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

func paths(inputs []input) string {
	out := make([]string, len(inputs))
	for i, in := range inputs {
		out[i] = globEscape(in.read)
	}
	return duck.List(out)
}

// parquet copies Parquet files into one, with their types.
func (l *load) parquet(ctx context.Context, inputs []input) (int64, error) {
	rows, err := l.write(ctx, "FROM read_parquet("+paths(inputs)+", union_by_name = true, hive_partitioning = false)")
	if err != nil {
		return 0, l.readError(l.table.from, err)
	}
	return rows, nil
}

// json reads JSON and NDJSON, the latter without the lines that are no JSON if
// there are any. The types come from all rows: with those of a sample, DuckDB
// drops fields that appear later without a word.
func (l *load) json(ctx context.Context, inputs []input) (int64, error) {
	rows, err := l.readJSON(ctx, inputs)
	if err == nil {
		return rows, nil
	}
	if l.table.kind != ndjson || !isDataError(err) {
		return 0, l.maybe(err)
	}
	var bad badRows
	inputs = slices.Clone(inputs) // the files themselves are still being checked
	for i := range inputs {
		if err := l.withoutBadLines(ctx, &inputs[i], &bad); err != nil {
			return 0, err
		}
	}
	if rows, err = l.readJSON(ctx, inputs); err != nil {
		return 0, l.maybe(err)
	}
	return rows, l.judge(rows, bad)
}

func (l *load) maybe(err error) error {
	if err == nil {
		return nil
	}
	return l.readError(l.table.from, err)
}

func (l *load) readJSON(ctx context.Context, inputs []input) (int64, error) {
	format := "auto"
	if l.table.kind == ndjson {
		format = "newline_delimited"
	}
	// DuckDB takes the compression of all files from one argument, and from
	// their endings without it.
	compression := "auto_detect"
	if sameCodec(inputs) {
		compression = string(inputs[0].codec)
	}
	if compression == string(plain) {
		compression = "uncompressed" // read_json's word for read_csv's "none"
	}
	rows, err := l.write(ctx, fmt.Sprintf("FROM read_json(%s, format = '%s', compression = '%s', sample_size = -1, union_by_name = true, hive_partitioning = false, maximum_object_size = %d)",
		paths(inputs), format, compression, 16<<20))
	if err != nil {
		return 0, err
	}
	return rows, l.plainText(ctx)
}

// plainText makes text of the columns that DuckDB calls JSON only because their
// values are of several kinds, such as names among which one is a number: as
// JSON they could not be compared with text. Columns that hold an object or a
// list stay JSON.
func (l *load) plainText(ctx context.Context) error {
	written := "read_parquet([" + duck.Literal(globEscape(l.out)) + "])"
	columns, err := l.jsonColumns(ctx, written)
	if err != nil || len(columns) == 0 {
		return err
	}
	tests, nested := make([]string, len(columns)), make([]bool, len(columns))
	targets := make([]any, len(columns))
	for i, c := range columns {
		tests[i] = fmt.Sprintf("coalesce(bool_or(json_type(%s) IN ('OBJECT', 'ARRAY')), false)", duck.Ident(c))
		targets[i] = &nested[i]
	}
	if err := l.conn.QueryRowContext(ctx, "SELECT "+strings.Join(tests, ", ")+" FROM "+written).Scan(targets...); err != nil {
		return err
	}
	var replace []string
	for i, c := range columns {
		if !nested[i] {
			replace = append(replace, fmt.Sprintf("%[1]s ->> '$' AS %[1]s", duck.Ident(c)))
		}
	}
	if len(replace) == 0 {
		return nil
	}
	mixed := l.out + ".mixed"
	if err := os.Rename(l.out, mixed); err != nil {
		return err
	}
	_, err = l.write(ctx, fmt.Sprintf("SELECT * REPLACE (%s) FROM read_parquet([%s])", strings.Join(replace, ", "), duck.Literal(globEscape(mixed))))
	return errors.Join(err, os.Remove(mixed))
}

func (l *load) jsonColumns(ctx context.Context, from string) ([]string, error) {
	rows, err := l.conn.QueryContext(ctx, "SELECT column_name FROM (DESCRIBE FROM "+from+") WHERE column_type = 'JSON'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

func sameCodec(inputs []input) bool {
	for _, in := range inputs {
		if in.codec != inputs[0].codec {
			return false
		}
	}
	return true
}

// withoutBadLines puts a copy without the lines that are no JSON in the place
// of an NDJSON file.
func (l *load) withoutBadLines(ctx context.Context, in *input, bad *badRows) error {
	r, err := in.open()
	if err != nil {
		return cannotRead(in.dataFile, err)
	}
	defer r.Close()
	out, err := os.CreateTemp(l.scratch, "ndjson-*")
	if err != nil {
		return connectors.WriteError(err, "mend "+in.rel)
	}
	l.copies = append(l.copies, out.Name())
	w := bufio.NewWriterSize(out, 1<<20)
	err = goodLines(&stoppable{ctx, r}, w, func(line int64) {
		bad.total++
		if len(bad.first) < namedRows {
			bad.first = append(bad.first, badRow{file: in.rel, line: line, what: "no JSON"})
		}
	})
	if err = errors.Join(err, w.Flush(), out.Close()); err != nil {
		return connectors.WriteError(err, "mend "+in.rel)
	}
	in.read, in.codec = out.Name(), plain
	return nil
}

// goodLines copies the lines that are JSON and reports the numbers of the
// others.
func goodLines(r io.Reader, w *bufio.Writer, bad func(line int64)) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for n := int64(1); ; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		text := bytes.TrimSpace(line)
		if n == 1 {
			text = bytes.TrimSpace(bytes.TrimPrefix(text, bom8))
		}
		switch {
		case len(text) == 0:
		case json.Valid(text):
			if _, err := w.Write(append(text, '\n')); err != nil {
				return err
			}
		default:
			bad(n)
		}
		if err != nil {
			return nil //nolint:nilerr // the only error left here is the end of the file
		}
	}
}
