package csv

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// load reads one table.
type load struct {
	conn     *sql.Conn
	table    table
	policy   BadRowPolicy
	scratch  string
	out      string
	watch    func(paths []string) (stop func())
	warnings []string
	copies   []string // mended copies to remove
}

// namedRows is how many bad rows are named, one by one, for a table.
const namedRows = 20

func (l *load) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

func (l *load) cleanUp() {
	for _, path := range l.copies {
		_ = os.Remove(path) // the scratch folder goes as a whole in the end
	}
}

// run writes the table's parquet file and returns its rows.
func (l *load) run(ctx context.Context) (int64, error) {
	var inputs []input
	for _, f := range l.table.files {
		in, err := inspect(ctx, f, l.scratch)
		if in.read != f.path {
			l.copies = append(l.copies, in.read)
		}
		if errors.Is(err, errEmpty) {
			if len(l.table.files) > 1 {
				l.warn("%s is empty and was skipped", f.rel)
			}
			continue
		}
		if err != nil {
			return 0, err
		}
		inputs = append(inputs, in)
	}
	if len(inputs) == 0 {
		return 0, errEmpty
	}
	var rows int64
	group, ctx := errgroup.WithContext(ctx)
	// Whether compressed files are whole is found out while DuckDB reads them.
	group.Go(func() error {
		for _, in := range inputs {
			if err := in.whole(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() (err error) {
		rows, err = l.kind(ctx, inputs)
		return err
	})
	return rows, group.Wait()
}

func (l *load) kind(ctx context.Context, inputs []input) (int64, error) {
	paths := make([]string, len(inputs))
	for i, in := range inputs {
		paths[i] = in.path
	}
	defer l.watch(paths)()
	switch l.table.kind {
	case parquet:
		return l.parquet(ctx, inputs)
	case ndjson, jsonFile:
		return l.json(ctx, inputs)
	default:
		return l.delimited(ctx, inputs)
	}
}

// write runs a query into the table's parquet file. Zstandard at its lowest
// level costs no more time than DuckDB's default and makes a file a third smaller.
func (l *load) write(ctx context.Context, query string) (int64, error) {
	res, err := l.conn.ExecContext(ctx, "COPY ("+query+") TO "+duck.Literal(l.out)+" (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, USE_TMP_FILE false)")
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// delimited reads CSV and TSV: first as if every row were good, which is nearly
// always so and fast; and if not, with types that fit all rows and the bad rows
// set aside.
func (l *load) delimited(ctx context.Context, inputs []input) (int64, error) {
	dialects := make([]dialect, len(inputs))
	for i, in := range inputs {
		d, err := l.detect(ctx, in)
		if err != nil {
			return 0, l.readError(in.rel, err)
		}
		if d.skip > 0 {
			if err := l.preamble(in, d); err != nil {
				return 0, err
			}
		}
		dialects[i] = d
	}
	if err := l.unify(ctx, inputs, dialects); err != nil {
		return 0, l.readError(l.table.from, err)
	}
	guard, err := needGuard(ctx, inputs, dialects)
	if err != nil {
		return 0, err
	}
	rows, err := l.write(ctx, union(inputs, dialects, guard))
	if err == nil {
		return rows, nil
	}
	if !isDataError(err) {
		return 0, l.readError(l.table.from, err)
	}
	for i, in := range inputs {
		if err := l.widen(ctx, in, &dialects[i]); err != nil {
			return 0, l.readError(in.rel, err)
		}
	}
	if err := l.unify(ctx, inputs, dialects); err != nil {
		return 0, l.readError(l.table.from, err)
	}
	rows, bad, err := l.setAside(ctx, inputs, dialects)
	if err == nil && slices.ContainsFunc(bad.first, func(b badRow) bool { return b.unclosed }) {
		rows, bad, err = l.literalQuotes(ctx, inputs, dialects, rows, bad)
	}
	if err != nil {
		return 0, l.readError(l.table.from, err)
	}
	return rows, l.judge(rows, bad)
}

// needGuard reports whether a column of whole numbers may meet a fraction.
func needGuard(ctx context.Context, inputs []input, dialects []dialect) (bool, error) {
	for i, in := range inputs {
		if !slices.ContainsFunc(dialects[i].columns, func(c column) bool { return c.Type == "BIGINT" }) {
			continue
		}
		if yes, err := in.fractions(ctx); yes || err != nil {
			return yes, err
		}
	}
	return false, nil
}

// preamble deals with lines before the header that DuckDB leaves out.
func (l *load) preamble(in input, d dialect) error {
	where := fmt.Sprintf("%s line 1", in.rel)
	if d.skip > 1 {
		where = fmt.Sprintf("%s lines 1 to %d", in.rel, d.skip)
	}
	if l.policy == FailTable {
		return problem.New(problem.Unprocessable, where+": no row of the table that follows; the table was refused.",
			"Take the lines out of the file, or allow bad rows to be skipped.").WithCode("bad_rows")
	}
	l.warn("%s: left out, since they are no rows of the table that follows", where)
	return nil
}

// union reads all files as one table. Neighbors that are read alike share a
// scan.
func union(inputs []input, dialects []dialect, guard bool, extra ...string) string {
	var parts []string
	for i := 0; i < len(inputs); {
		d, list := dialects[i], "*"
		if guard {
			d, list = d.guarded()
		}
		args := dialects[i].full(inputs[i].codec)
		j := i + 1
		for j < len(inputs) && slices.Equal(args, dialects[j].full(inputs[j].codec)) {
			j++
		}
		parts = append(parts, "SELECT "+list+" FROM "+readCSV("read_csv", paths(inputs[i:j]), append(d.full(inputs[i].codec), extra...)...))
		i = j
	}
	return strings.Join(parts, " UNION ALL BY NAME ")
}

// badRow is a row that was left out.
type badRow struct {
	file     string
	line     int64
	what     string
	unclosed bool // a quote that may have swallowed the rows after it
	encoding bool
}

type badRows struct {
	total int64
	first []badRow
}

// setAside reads the files and leaves the bad rows out.
func (l *load) setAside(ctx context.Context, inputs []input, dialects []dialect) (int64, badRows, error) {
	for _, name := range []string{"reject_errors", "reject_scans"} {
		if _, err := l.conn.ExecContext(ctx, "DROP TABLE IF EXISTS "+name); err != nil {
			return 0, badRows{}, err
		}
	}
	rows, err := l.write(ctx, union(inputs, dialects, false, "store_rejects = true", "rejects_limit = 0"))
	if err != nil {
		return 0, badRows{}, err
	}
	bad, err := l.rejects(ctx, inputs, dialects)
	return rows, bad, err
}

func (l *load) rejects(ctx context.Context, inputs []input, dialects []dialect) (badRows, error) {
	var bad badRows
	if err := l.conn.QueryRowContext(ctx, "SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors").Scan(&bad.total); err != nil || bad.total == 0 {
		return bad, err
	}
	// DuckDB's line counts rows, so the line is counted here, up to where the
	// row begins.
	rows, err := l.conn.QueryContext(ctx, fmt.Sprintf(`
		SELECT s.file_path, min(e.line_byte_position), string_agg(DISTINCT e.error_type::VARCHAR, ',' ORDER BY e.error_type::VARCHAR), coalesce(min(e.column_name), '')
		FROM reject_errors e JOIN reject_scans s USING (scan_id, file_id)
		GROUP BY s.file_path, e.scan_id, e.file_id, e.line ORDER BY 1, 2 LIMIT %d`, namedRows))
	if err != nil {
		return bad, err
	}
	defer rows.Close()
	offsets := map[string][]int64{}
	for rows.Next() {
		var path, types, column string
		var at int64
		if err := rows.Scan(&path, &at, &types, &column); err != nil {
			return bad, err
		}
		offsets[path] = append(offsets[path], at-1)
		bad.first = append(bad.first, badRow{
			file: path, what: explain(types, column),
			unclosed: strings.Contains(types, "UNQUOTED") || strings.Contains(types, "LINE SIZE"),
			encoding: strings.Contains(types, "ENCODING"),
		})
	}
	if err := rows.Err(); err != nil {
		return bad, err
	}
	return bad, name(bad.first, offsets, inputs, dialects)
}

// name puts the files' own names and the lines into rows, which are sorted by
// file and place as the offsets are.
func name(rows []badRow, offsets map[string][]int64, inputs []input, dialects []dialect) error {
	next := map[string]int{}
	lines := map[string][]int64{}
	for i, in := range inputs {
		if len(offsets[in.read]) == 0 {
			continue
		}
		at := offsets[in.read]
		if bytes.HasPrefix(in.head, bom8) {
			for j := range at { // DuckDB counts from behind the mark
				at[j] += int64(len(bom8))
			}
		}
		got, err := linesAt(in, at, dialects[i].newline == `\r`)
		if err != nil {
			return err
		}
		lines[in.read] = got
	}
	for i := range rows {
		path := rows[i].file
		if at := slices.IndexFunc(inputs, func(in input) bool { return in.read == path }); at >= 0 {
			rows[i].file = inputs[at].rel
			rows[i].line = lines[path][next[path]]
			next[path]++
		}
	}
	return nil
}

// linesAt returns the line of each byte offset; both ascend.
func linesAt(in input, offsets []int64, carriage bool) ([]int64, error) {
	r, err := in.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	end := []byte{'\n'}
	if carriage {
		end = []byte{'\r'}
	}
	var out []int64
	var pos, line int64 = 0, 1
	buf := make([]byte, headSize)
	for len(out) < len(offsets) {
		n, err := r.Read(buf)
		chunk := buf[:n]
		for len(out) < len(offsets) && offsets[len(out)] <= pos+int64(len(chunk)) {
			upTo := max(0, offsets[len(out)]-pos)
			line += int64(bytes.Count(chunk[:upTo], end))
			chunk, pos = chunk[upTo:], pos+upTo
			out = append(out, line)
		}
		line += int64(bytes.Count(chunk, end))
		pos += int64(len(chunk))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	for len(out) < len(offsets) {
		out = append(out, line)
	}
	return out, nil
}

// explain says what is wrong with a row, without its values.
func explain(types, column string) string {
	of := ""
	if column != "" {
		of = " (column " + column + ")"
	}
	var says []string
	for _, t := range strings.Split(types, ",") {
		switch {
		case strings.Contains(t, "TOO MANY"):
			says = append(says, "too many columns")
		case strings.Contains(t, "MISSING"):
			says = append(says, "too few columns")
		case strings.Contains(t, "ENCODING"):
			says = append(says, "bytes that are not UTF-8"+of)
		case strings.Contains(t, "UNQUOTED"):
			says = append(says, "a quote that is not closed, or closed too early"+of)
		case strings.Contains(t, "LINE SIZE"):
			says = append(says, "longer than 2 MB, perhaps by a quote that is not closed")
		case strings.Contains(t, "CAST"):
			says = append(says, "a value that does not fit its column's type"+of)
		default:
			says = append(says, strings.ToLower(t))
		}
	}
	return strings.Join(says, ", ")
}

// literalQuotes tries the files again with quotes as plain text, because an
// unclosed one swallows the rows after it, and takes what keeps more rows.
func (l *load) literalQuotes(ctx context.Context, inputs []input, dialects []dialect, rows int64, bad badRows) (int64, badRows, error) {
	literal := slices.Clone(dialects)
	for i := range literal {
		for _, b := range bad.first {
			if b.unclosed && b.file == inputs[i].rel {
				literal[i].quote, literal[i].escape = "", ""
			}
		}
		if literal[i].quote == dialects[i].quote {
			continue
		}
		if err := l.widen(ctx, inputs[i], &literal[i]); err != nil {
			return 0, bad, err
		}
	}
	if err := l.unify(ctx, inputs, literal); err != nil {
		return 0, bad, err
	}
	rows2, bad2, err := l.setAside(ctx, inputs, literal)
	if err != nil {
		return 0, bad, err
	}
	if rows2 > rows {
		for _, b := range bad.first {
			if b.unclosed {
				l.warn("%s line %d: %s; quotes in this file were read as plain text, which keeps %d more rows", b.file, b.line, b.what, rows2-rows)
				break
			}
		}
		return rows2, bad2, nil
	}
	return l.setAside(ctx, inputs, dialects)
}

// judge turns bad rows into warnings, or into the table's refusal.
func (l *load) judge(rows int64, bad badRows) error {
	if bad.total == 0 {
		return nil
	}
	lines := make([]string, 0, len(bad.first)+1)
	encoding := false
	for _, b := range bad.first {
		lines = append(lines, fmt.Sprintf("%s line %d: %s", b.file, b.line, b.what))
		encoding = encoding || b.encoding
	}
	hint := "Mend these lines in the file"
	if encoding {
		hint = fmt.Sprintf("Convert the file to UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 '%s')", bad.first[0].file)
	}
	if l.policy == FailTable || rows == 0 {
		shown := lines[:min(len(lines), 3)]
		text := strings.Join(shown, "; ")
		if more := bad.total - int64(len(shown)); more > 0 {
			text += fmt.Sprintf("; and %d more", more)
		}
		why := "and bad rows are not allowed"
		if rows == 0 {
			why = "and no row is good"
		}
		return problem.New(problem.Unprocessable, fmt.Sprintf("%s has rows that cannot be read, %s: %s.", l.table.from, why, text),
			hint+", then POST /api/sync/trigger").WithCode("bad_rows")
	}
	for _, line := range lines {
		l.warn("%s; the row was left out", line)
	}
	if more := bad.total - int64(len(lines)); more > 0 {
		l.warn("and %d more rows of %s were left out", more, l.table.from)
	}
	if encoding {
		l.warn("%s; the rows with other bytes were left out", hint)
	}
	return nil
}

// isDataError tells rows that do not fit from everything else that can fail.
func isDataError(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "Conversion Error") || strings.HasPrefix(text, "Invalid Input Error")
}

var (
	errorClass = regexp.MustCompile(`^([A-Z][A-Za-z ]{2,30} Error)`)
	errorLine  = regexp.MustCompile(`(?:on Line: |in line )(\d+)`)
)

// readError says that DuckDB could not read something. DuckDB's own text quotes
// the line that it met, so only its class and place go on.
func (l *load) readError(from string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*problem.Error](err); ok {
		return err
	}
	if e := connectors.WriteError(err, "write the table "+l.table.name); problem.Is(e, problem.NoSpace) {
		return problem.New(problem.NoSpace, problem.As(e).Message, problem.As(e).Hint)
	}
	text := err.Error()
	class := "unknown error"
	if m := errorClass.FindStringSubmatch(text); m != nil {
		class = m[1]
	}
	where := ""
	if m := errorLine.FindStringSubmatch(text); m != nil {
		where = " near row " + m[1]
	}
	hint := "Look at the file there, mend or export it again, then POST /api/sync/trigger"
	switch {
	case strings.HasPrefix(class, "Out of Memory"):
		hint = "Give the instance more memory, or split the file: several files in one sub-folder are one table."
	case strings.Contains(text, "duplicate key"):
		where += ": an object has the same key twice"
	case strings.Contains(text, "maximum_object_size"):
		where += ": an object is larger than 16 MB"
	}
	return problem.New(problem.Unprocessable, fmt.Sprintf("Expected %s in %s, found something that DuckDB cannot read (%s%s).", l.table.kind, from, class, where), hint).
		WithCode("file_unreadable")
}
