package csv_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// place is a directory of files and the extracts made of it.
type place struct {
	t        *testing.T
	dir      string
	extracts string
	opt      csv.Options
	log      bytes.Buffer
}

func newPlace(t *testing.T, files map[string]string) *place {
	t.Helper()
	p := &place{t: t, dir: filepath.Join(t.TempDir(), "in [1] *?"), extracts: t.TempDir()}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.write(files)
	p.opt = csv.Options{Dir: p.dir, Threads: 2, Log: slog.New(slog.NewTextHandler(&p.log, nil))}
	return p
}

func (p *place) write(files map[string]string) {
	p.t.Helper()
	for name, content := range files {
		path := filepath.Join(p.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *place) run(tables ...string) (*connectors.Extract, connectors.Result) {
	p.t.Helper()
	e, res, err := connectors.Run(p.t.Context(), csv.New(p.opt), connectors.Request{Tables: tables}, p.extracts, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if e != nil {
		if r, err := connectors.Verify(p.t.Context(), e.Dir); err != nil || !r.OK {
			p.t.Fatalf("the extract breaks the contract: %+v, %v", r, err)
		}
	}
	return e, res
}

// table returns a table as text: its columns with types, then its rows.
func (p *place) table(name string) string {
	p.t.Helper()
	db, err := duck.Open(p.t.Context(), duck.Memory, duck.Options{Threads: 1, Init: []string{"SET TimeZone = 'UTC'"}})
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	from := "read_parquet(" + duck.Literal(filepath.Join(p.extracts, "csv/data", name+".parquet")) + ")"
	var out []string
	for _, query := range []string{
		"SELECT string_agg(column_name || ' ' || column_type, ', ') FROM (DESCRIBE FROM " + from + ")",
		"SELECT COLUMNS(*)::VARCHAR FROM " + from,
	} {
		rows, err := db.QueryContext(p.t.Context(), query)
		if err != nil {
			p.t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			p.t.Fatal(err)
		}
		for rows.Next() {
			values := make([]sql.NullString, len(columns))
			targets := make([]any, len(columns))
			for i := range values {
				targets[i] = &values[i]
			}
			if err := rows.Scan(targets...); err != nil {
				p.t.Fatal(err)
			}
			line := make([]string, len(columns))
			for i, v := range values {
				line[i] = v.String
				if !v.Valid {
					line[i] = "∅"
				}
			}
			out = append(out, strings.Join(line, "|"))
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			p.t.Fatal(err)
		}
	}
	return strings.Join(out, "\n")
}

func gz(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

func zst(s string) string {
	w, _ := zstd.NewWriter(nil)
	return string(w.EncodeAll([]byte(s), nil))
}

func utf16of(s string, order binary.AppendByteOrder) string {
	var b []byte
	for _, u := range utf16.Encode([]rune("\ufeff" + s)) {
		b = order.AppendUint16(b, u)
	}
	return string(b)
}

// many returns n plain rows, more than the sample that types are taken from.
func many(header, format string, n int) string {
	var b strings.Builder
	b.WriteString(header)
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestReadsWhatRealExportsLookLike(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, file, content string
		want                string // of the table t
	}{
		{"comma", "t.csv", "a,b\n1,x\n2,y\n", "a BIGINT, b VARCHAR\n1|x\n2|y"},
		{"semicolon", "t.csv", "a;b\n1;x\n2;y\n", "a BIGINT, b VARCHAR\n1|x\n2|y"},
		{"tab in .tsv", "t.tsv", "a\tb\n1\tx, y\n", "a BIGINT, b VARCHAR\n1|x, y"},
		{"comma in .tsv", "t.tsv", "a,b\n1,x\n2,y\n", "a BIGINT, b VARCHAR\n1|x\n2|y"},
		{"no header", "t.csv", "1,2\n3,4\n", "column0 BIGINT, column1 BIGINT\n1|2\n3|4"},
		{"CRLF and no end of line at the end", "t.csv", "a,b\r\n1,x\r\n2,y", "a BIGINT, b VARCHAR\n1|x\n2|y"},
		{"a BOM", "t.csv", "\xef\xbb\xbfa,b\n1,x\n", "a BIGINT, b VARCHAR\n1|x"},
		{"quoted newlines and quotes", "t.csv", "a,b\n1,\"x\ny\"\n2,\"he said \"\"no\"\"\"\n", "a BIGINT, b VARCHAR\n1|x\ny\n2|he said \"no\""},
		{"single quotes", "t.csv", "a,b\n'x, y',1\n'z',2\n", "a VARCHAR, b BIGINT\nx, y|1\nz|2"},
		{"one column names twice", "t.csv", "a,a,A,\n1,2,3,4\n", "a BIGINT, a_1 BIGINT, A_2 BIGINT, column3 BIGINT\n1|2|3|4"},
		{"a header and no rows", "t.csv", "a,b\n", "a VARCHAR, b VARCHAR"},
		{"columns without values", "t.csv", "a,b\n1,\n2,\n", "a BIGINT, b VARCHAR\n1|∅\n2|∅"},
		{"one column", "t.csv", "name\nal\nbo, jr\n", "name VARCHAR\nal\nbo, jr"},
		{"leading zeros stay", "t.csv", "zip,n\n00123,1\n04567,2\n", "zip VARCHAR, n BIGINT\n00123|1\n04567|2"},
		{"long identifiers stay", "t.csv", "id,n\n12345678901234567890,1.5\n2,2\n", "id VARCHAR, n DOUBLE\n12345678901234567890|1.5\n2|2.0"},
		{"lines that begin with # are data", "t.csv", "tag,n\n#a,1\n#b,2\n", "tag VARCHAR, n BIGINT\n#a|1\n#b|2"},
		{"dates and times", "t.csv", "d,t\n2024-01-02,2024-01-02 03:04:05\n", "d DATE, t TIMESTAMP\n2024-01-02|2024-01-02 03:04:05"},
		{"German dates", "t.csv", "d\n31.12.2024\n01.02.2025\n", "d DATE\n2024-12-31\n2025-02-01"},
		{"mixed forms of dates stay text", "t.csv", "d,n\n2024-01-02,1\n12/31/2024,2\nsoon,3\n", "d VARCHAR, n BIGINT\n2024-01-02|1\n12/31/2024|2\nsoon|3"},
		{"UTF-16, little end first", "t.csv", utf16of("a,b\n1,žluť\n", binary.LittleEndian), "a BIGINT, b VARCHAR\n1|žluť"},
		{"UTF-16, big end first", "t.csv", utf16of("a,b\n1,žluť\n", binary.BigEndian), "a BIGINT, b VARCHAR\n1|žluť"},
		{"gzip", "t.csv.gz", gz("a,b\n1,x\n"), "a BIGINT, b VARCHAR\n1|x"},
		{"gzip in two members", "t.csv.gz", gz("a,b\n1,x\n") + gz("2,y\n"), "a BIGINT, b VARCHAR\n1|x\n2|y"},
		{"gzip without the ending", "t.csv", gz("a,b\n1,x\n"), "a BIGINT, b VARCHAR\n1|x"},
		{"plain with the ending of gzip", "t.csv.gz", "a,b\n1,x\n", "a BIGINT, b VARCHAR\n1|x"},
		{"zstd", "t.csv.zst", zst("a,b\n1,x\n"), "a BIGINT, b VARCHAR\n1|x"},
		{"JSON array", "t.json", `[{"a":1,"b":"x"},{"a":2,"b":null}]`, "a BIGINT, b VARCHAR\n1|x\n2|∅"},
		{"NDJSON with a BOM and a blank line", "t.ndjson", "\xef\xbb\xbf{\"a\":1}\n\n{\"a\":2,\"b\":[1]}\n", "a BIGINT, b BIGINT[]\n1|∅\n2|[1]"},
		{"JSONL in zstd", "t.jsonl.zst", zst("{\"a\":1}\n"), "a BIGINT\n1"},
		{"JSON in gzip", "t.json.gz", gz("[{\"a\":1}]"), "a BIGINT\n1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{tt.file: tt.content})
			_, res := p.run()
			if len(res.Failed) > 0 || len(res.Warnings) > 0 || len(res.Tables) != 1 {
				t.Fatalf("Extract = %+v", res)
			}
			if diff := cmp.Diff(tt.want, p.table("t")); diff != "" {
				t.Errorf("the table differs (-want +got):\n%s", diff)
			}
		})
	}
}

// After the sample anything may come: nothing of it may be lost in silence.
func TestReadsWhatComesAfterTheSample(t *testing.T) {
	t.Parallel()
	const n = 30000
	tests := []struct{ name, file, content, schema, last string }{
		{"a fraction", "t.csv", many("a,b\n", "%d,x\n", n) + "1.5,y\n", "a DOUBLE, b VARCHAR", "1.5|y"},
		{"a fraction beside long identifiers", "t.csv", many("a,b\n", "1234567890123%05d,x\n", n) + "1.5,y\n", "a VARCHAR, b VARCHAR", "1.5|y"},
		{"long identifiers and nothing else", "t.csv", many("a,b\n", "1234567890123%05d,x\n", n) + "123456789012345678,y\n", "a BIGINT, b VARCHAR", "123456789012345678|y"},
		{"a time in a column of dates", "t.csv", many("a,b\n", "2024-01-01,%d\n", n) + "2024-01-01 10:11:12,1\n", "a TIMESTAMP, b BIGINT", "2024-01-01 10:11:12|1"},
		{"no number", "t.csv", many("a,b\n", "%d,x\n", n) + ",y\n", "a BIGINT, b VARCHAR", "∅|y"},
		{"text", "t.csv", many("a,b\n", "%d,x\n", n) + "none,y\n", "a VARCHAR, b VARCHAR", "none|y"},
		{"a long identifier", "t.csv", many("a,b\n", "%d,x\n", n) + "12345678901234567890,y\n", "a VARCHAR, b VARCHAR", "12345678901234567890|y"},
		{"quotes", "t.csv", many("a,b\n", "%d,x\n", n) + "1,\"quoted\"\n", "a BIGINT, b VARCHAR", "1|quoted"},
		{"quoted delimiters and newlines", "t.csv", many("a,b\n", "%d,x\n", n) + "1,\"x, y\nz\"\n", "a BIGINT, b VARCHAR", "1|x, y\nz"},
		{"another type in NDJSON", "t.ndjson", many("", "{\"a\":%d}\n", n) + "{\"a\":\"x\"}\n", "a JSON", `"x"`},
		{"another field in NDJSON", "t.ndjson", many("", "{\"a\":%d}\n", n) + "{\"a\":1,\"b\":2}\n", "a BIGINT, b BIGINT", "1|2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{tt.file: tt.content})
			e, res := p.run()
			if len(res.Failed) > 0 || len(res.Warnings) > 0 || e.Tables[0].Rows != n+1 {
				t.Fatalf("Extract = %+v", res)
			}
			got := p.table("t")
			schema, rows, _ := strings.Cut(got, "\n")
			if schema != tt.schema || !strings.HasSuffix(rows, "\n"+tt.last) {
				t.Errorf("schema %q, end %q; want %q, %q", schema, rows[max(0, len(rows)-40):], tt.schema, tt.last)
			}
		})
	}
}

func TestBadRowsAreNamedByFileAndLine(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	const n = 30000
	tests := []struct {
		name, file, content string
		rows                int64
		warnings            []string // each must be part of a warning
	}{
		{"too many columns", "t.csv", "a,b\n1,2\n3,4," + secret + "\n6,7\n", 2, []string{"t.csv line 3: too many columns; the row was left out"}},
		{"too few columns", "t.csv", "a,b,c\n1,2,3\n" + secret + ",5\n6,7,8\n", 2, []string{"t.csv line 3: ", "too few columns; the row was left out"}},
		{"lines and not rows are counted", "t.csv", "a,b\n1,\"x\ny\nz\"\n3,4," + secret + "\n6,7\n7,8\n", 3, []string{"t.csv line 5: too many columns"}},
		{"with a BOM and CRLF", "t.csv", "\xef\xbb\xbfa,b\r\n1,2\r\n3,4," + secret + "\r\n6,7\r\n", 2, []string{"t.csv line 3: too many columns"}},
		{"in gzip", "t.csv.gz", gz("a,b\n1,2\n3,4," + secret + "\n6,7\n"), 2, []string{"t.csv.gz line 3: too many columns"}},
		{"in UTF-16", "t.csv", utf16of("a,b\n1,2\n3,4,"+secret+"\n6,7\n", binary.LittleEndian), 2, []string{"t.csv line 3: too many columns"}},
		{"bytes that are not UTF-8", "t.csv", "a,b\n1,x\n2," + secret + "\xe9\n3,z\n", 2, []string{"t.csv line 3: bytes that are not UTF-8 (column b)", "iconv -f WINDOWS-1252 -t UTF-8 't.csv'"}},
		{"after the sample", "t.csv", many("a,b\n", "%d,x\n", n) + "1,2," + secret + "\n" + many("", "%d,y\n", 10), n + 10, []string{"t.csv line 30002: too many columns"}},
		{"with a wider type after the sample", "t.csv", many("a,b\n", "%d,x\n", n) + "1,2," + secret + "\n1.5,z\n", n + 1, []string{"t.csv line 30002"}},
		{"a quote that never closes", "t.csv", many("a,b\n", "%d,x\n", n) + "1,\"" + secret + "\n" + many("", "%d,y\n", n), 2*n + 1, []string{"t.csv line 30002: a quote that is not closed", "read as plain text"}},
		{"lines before the header", "t.csv", "Report " + secret + "\n\na,b,c\n1,2,3\n4,5,6\n", 2, []string{"t.csv lines 1 to 2: left out"}},
		{"more than can be named", "t.csv", "a,b\n" + strings.Repeat("1,2\n", 100) + strings.Repeat("1,2,"+secret+"\n", 30), 100, []string{"line 102:", "line 121:", "and 10 more rows of t.csv were left out"}},
		{"NDJSON", "t.ndjson", "{\"a\":1}\n{\"a\":\n\n" + secret + "\n{\"a\":2}\n", 2, []string{"t.ndjson line 2: no JSON", "t.ndjson line 4: no JSON"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{tt.file: tt.content})
			e, res := p.run()
			if len(res.Failed) > 0 || e == nil || e.Tables[0].Rows != tt.rows {
				t.Fatalf("Extract = %+v, want %d rows", res, tt.rows)
			}
			checkWarnings(t, res, tt.warnings)
			text := fmt.Sprint(res.Warnings) + p.log.String()
			if strings.Contains(text, secret) {
				t.Errorf("a cell's value was shown:\n%s", text)
			}

			// The policy that refuses keeps nothing and names the same place.
			strict := newPlace(t, map[string]string{tt.file: tt.content})
			strict.opt.OnBadRow = csv.FailTable
			e, res = strict.run()
			if strings.HasPrefix(tt.name, "a quote that never closes") {
				return // no row is bad once quotes are text
			}
			err := res.Failed["t"]
			if err == nil || e != nil || problem.As(err).WireCode() != "bad_rows" || !strings.Contains(err.Error(), "line") || problem.As(err).Hint == "" {
				t.Errorf("with OnBadRow=fail: %v, %+v", err, res)
			}
			if text := fmt.Sprint(err) + strict.log.String(); strings.Contains(text, secret) {
				t.Errorf("a cell's value was shown:\n%s", text)
			}
		})
	}
}

func checkWarnings(t *testing.T, res connectors.Result, want []string) {
	t.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(res.Warnings, func(got connectors.Warning) bool { return strings.Contains(got.Message, w) }) {
			t.Errorf("no warning holds %q: %q", w, res.Warnings)
		}
	}
}

func TestFilesThatCannotBeReadFailTheirTableAlone(t *testing.T) {
	t.Parallel()
	half := func(s string) string { return s[:len(s)/2] }
	whole := many("a,b\n", "%d,x\n", 5000)
	tests := []struct{ name, file, content, says string }{
		{"gzip cut off", "t.csv.gz", half(gz(whole)), "damaged or cut off"},
		{"gzip cut off at its last row", "t.csv.gz", gz("a,b\n1,2\n3,4\n")[:24], "damaged or cut off"},
		{"gzip with a wrong checksum", "t.csv.gz", gz(whole)[:len(gz(whole))-8] + "12345678", "damaged or cut off"},
		{"zstd cut off", "t.csv.zst", half(zst(whole)), "damaged or cut off"},
		{"a spreadsheet", "t.csv", "PK\x03\x04\x00\x00\x00stuff", "bytes that are none"},
		{"UTF-16 without a mark", "t.csv", utf16of("a,b\n", binary.LittleEndian)[2:], "bytes that are none"},
		{"JSON cut off", "t.json", `{"rows":[{"a":1}`, "cannot read"},
		{"JSON with a key twice", "t.json", `[{"a":1,"a":2}]`, "same key twice"},
		{"NDJSON without a good line", "t.ndjson", "no\njson\n", "no row is good"},
		{"no Parquet", "t.parquet", "hello, this is no parquet", "cannot read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{tt.file: tt.content, "good.csv": "a\n1\n", "zz.csv": "a\n1\n"})
			e, res := p.run()
			err := res.Failed["t"]
			if err == nil || !strings.Contains(err.Error(), tt.says) || problem.As(err).Hint == "" || problem.As(err).Kind == problem.Internal {
				t.Fatalf("Failed[t] = %v, want %q", err, tt.says)
			}
			if len(res.Tables) != 2 || len(e.Tables) != 2 {
				t.Errorf("the others: %+v", res.Tables)
			}
		})
	}
}

func TestEmptyFilesAreSkippedWithAWarning(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"nothing": "", "space": " \n\n\t", "a BOM": "\xef\xbb\xbf\n", "gzip of nothing": gz(""), "much space": strings.Repeat("\n", 200_000), "UTF-16 of nothing": "\xff\xfe"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{"t.csv": "a\n1\n"})
			p.run()
			fresh := newPlace(t, map[string]string{"t.csv": content, "u.parquet": "", "v.json": "", "good.csv": "a\n1\n"})
			_, res := fresh.run()
			if len(res.Failed) > 0 || len(res.Tables) != 1 {
				t.Fatalf("Extract = %+v", res)
			}
			checkWarnings(t, res, []string{"t.csv is empty and was skipped", "u.parquet is empty", "v.json is empty"})

			// A file that became empty does not empty its table.
			p.write(map[string]string{"t.csv": content})
			e, res := p.run()
			checkWarnings(t, res, []string{"t.csv is empty and was skipped; the table keeps its last good data"})
			if e.Tables[0].Rows != 1 || !slices.Equal(res.Kept, []string{"t"}) {
				t.Errorf("Extract = %+v", res)
			}
		})
	}
}

func TestNamesOfTables(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 80)
	p := newPlace(t, map[string]string{
		"order.tsv": "a\n1\n", "packed.csv.gz": gz("a\n1\n"), "UPPER.CSV.GZ": gz("a\n1\n"), "my-data v2.1.csv": "a\n1\n", "2024.csv": "a\n1\n",
		"žluť.csv": "a\n1\n", long + ".csv": "a\n1\n", "it's \"q\".csv": "a\n1\n", "a[1].csv": "a\nright\n", "a1.csv": "a\nwrong\n", "select.json": "[{\"a\":1}]",
		".hidden.csv": "a\n1\n", "notes.txt": "hello", "data.xlsx": "x", "noending": "x", "Dup.csv": "a\n1\n", "dup.json": "[]", "same.csv": "a\n1\n", "same.tsv": "a\n1\n",
		"folder/one.csv": "a\n1\n", "folder/two.csv": "a\n2\n", "mixed/one.csv": "a\n1\n", "mixed/two.json": "[]", "none/notes.txt": "x", "deep/er/x.csv": "a\n1\n",
		"_meta.csv": "a\n1\n",
	})
	tables, warnings, err := csv.New(p.opt).Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tt := range tables {
		names = append(names, tt.Name)
	}
	slices.Sort(names)
	want := []string{"UPPER", "_2024", "_lu_", "a1", "a_1_", "folder", "it_s__q_", "my_data_v2_1", "order", "packed", "select", long[:64]}
	slices.Sort(want)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
	wanted := []string{
		"notes.txt was ignored", "data.xlsx was ignored", "noending was ignored", "Dup.csv, dup.json would all be the table dup", "same.csv, same.tsv would all be the table same",
		"mixed mixes kinds", "none was ignored", "deep/er was ignored: folders are read one level deep", "_meta.csv",
	}
	checkWarnings(t, connectors.Result{Warnings: warnings}, wanted)
	for _, w := range warnings {
		if strings.Contains(w.Message, "hidden") {
			t.Errorf("a warning names a hidden file: %s", w.Message)
		}
	}
	_, res := p.run()
	if got := slices.Sorted(maps.Keys(res.Failed)); !slices.Equal(got, []string{"Dup", "_meta", "dup", "mixed", "same"}) {
		t.Errorf("Failed = %v", got)
	}
	if got := p.table("a_1_"); got != "a VARCHAR\nright" {
		t.Errorf("a[1].csv was read as %q", got)
	}
	if got := p.table("folder"); got != "a BIGINT\n1\n2" {
		t.Errorf("folder = %q", got)
	}
}

func TestAFolderIsOneTable(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"columns by name", map[string]string{"t/1.csv": "a,b\n1,x\n", "t/2.csv": "b,a,c\ny,2,true\n"}, "a BIGINT, b VARCHAR, c BOOLEAN\n1|x|∅\n2|y|true"},
		{"each file with its own dialect", map[string]string{"t/1.csv": "a;b\n1;x\n", "t/2.tsv": "a\tb\n2\ty\n", "t/3.csv.gz": gz("a,b\n3,\"z, z\"\n")}, "a BIGINT, b VARCHAR\n1|x\n2|y\n3|z, z"},
		{"types that fit all, digits kept", map[string]string{"t/1.csv": "a,b\n1,1\n", "t/2.csv": "a,b\n1.5,007\n"}, "a DOUBLE, b VARCHAR\n1.0|1\n1.5|007"},
		{"files without rows have no say", map[string]string{"t/1.csv": "a,b\n1,2024-01-01\n", "t/2.csv": "a,b\n", "t/3.csv": "a,b\n2,\n"}, "a BIGINT, b DATE\n1|2024-01-01\n2|∅"},
		{"dates and numbers", map[string]string{"t/1.csv": "a,b\n2024-01-01,1\n", "t/2.csv": "a,b\n5,2\n"}, "a VARCHAR, b BIGINT\n2024-01-01|1\n5|2"},
		{"an empty file beside", map[string]string{"t/1.csv": "a\n1\n", "t/2.csv": ""}, "a BIGINT\n1"},
		{"NDJSON", map[string]string{"t/1.ndjson": "{\"a\":1}\n", "t/2.jsonl.gz": gz("{\"b\":2}\n")}, "a BIGINT, b BIGINT\n1|∅\n∅|2"},
		{"hive-like names add no columns", map[string]string{"day=1/1.csv": "a\n1\n"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, tt.files)
			_, res := p.run()
			if len(res.Failed) > 0 || len(res.Tables) != 1 {
				t.Fatalf("Extract = %+v", res)
			}
			if tt.want == "" {
				tt.want = "a BIGINT\n1"
			}
			if diff := cmp.Diff(tt.want, p.table(res.Tables[0].Table)); diff != "" {
				t.Errorf("the table differs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a bad row names its file", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t, map[string]string{"t/1.csv": "a,b\n1,x\n", "t/2.csv": "a,b\n2,y\n3,y,z\n", "t/3.csv": "a;b\n1;x\n1;x;y\n1;x\n"})
		_, res := p.run()
		checkWarnings(t, res, []string{"t/2.csv line 3: too many", "t/3.csv line 3: too many"})
		if res.Tables[0].Rows != 4 {
			t.Errorf("Extract = %+v", res)
		}
	})
}

func TestParquetKeepsItsTypes(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"x.csv": "a\n1\n"})
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := os.Mkdir(filepath.Join(p.dir, "parts"), 0o755); err != nil {
		t.Fatal(err)
	}
	row := "SELECT 1::TINYINT a, 1.50::DECIMAL(9,2) b, {'x': [1]} c, uuid() d, NULL::INT e, TIMESTAMPTZ '2024-01-01 00:00:00+00' f"
	for _, q := range []string{
		"COPY (" + row + ") TO " + duck.Literal(filepath.Join(p.dir, "t.parquet")),
		"COPY (SELECT 1 a) TO " + duck.Literal(filepath.Join(p.dir, "parts/1.parquet")),
		"COPY (SELECT 2 a, 3 b) TO " + duck.Literal(filepath.Join(p.dir, "parts/2.parquet")),
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	_, res := p.run()
	if len(res.Failed) > 0 {
		t.Fatalf("Extract = %+v", res)
	}
	if got := p.table("t"); !strings.HasPrefix(got, "a TINYINT, b DECIMAL(9,2), c STRUCT(x INTEGER[]), d UUID, e INTEGER, f TIMESTAMP WITH TIME ZONE\n1|1.50|") {
		t.Errorf("t = %s", got)
	}
	if got := p.table("parts"); got != "a INTEGER, b INTEGER\n1|∅\n2|3" {
		t.Errorf("parts = %s", got)
	}
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a,b\n1,2\n1,2,3\n", "b.csv": "a\n1\n", "f/1.csv": "a\n1\n"})
	before, res := p.run()
	if len(res.Tables) != 3 {
		t.Fatalf("Extract = %+v", res)
	}
	stat := func(name string) os.FileInfo {
		info, err := os.Stat(filepath.Join(p.extracts, "csv/data", name+".parquet"))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	a := stat("a")
	after, res := p.run()
	if !slices.Equal(res.Unchanged, []string{"a", "b", "f"}) || len(res.Tables) != 0 || !slices.Equal(before.Tables, after.Tables) {
		t.Errorf("the second run: %+v", res)
	}
	if !os.SameFile(a, stat("a")) {
		t.Error("the file was written again")
	}
	// What was left out stays visible.
	checkWarnings(t, res, []string{"a.csv line 3: too many columns"})

	changes := []struct {
		name string
		do   func() error
		want []string
	}{
		{"content of the same size and time", func() error {
			info, err := os.Stat(filepath.Join(p.dir, "b.csv"))
			if err != nil {
				return err
			}
			p.write(map[string]string{"b.csv": "a\n2\n"})
			return os.Chtimes(filepath.Join(p.dir, "b.csv"), info.ModTime(), info.ModTime())
		}, []string{"b"}},
		{"another file in a folder", func() error { p.write(map[string]string{"f/2.csv": "a\n2\n"}); return nil }, []string{"f"}},
		{"another policy", func() error { p.opt.OnBadRow = csv.FailTable; return nil }, []string{"b", "f"}},
		{"damage to what was written", func() error {
			return os.Truncate(filepath.Join(p.extracts, "csv/data/b.parquet"), 20)
		}, []string{"b"}},
	}
	for _, c := range changes {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		_, res := p.run()
		var got []string
		for _, m := range res.Tables {
			got = append(got, m.Table)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: read %v, want %v", c.name, got, c.want)
		}
	}
	if got := p.table("b"); got != "a BIGINT\n2" {
		t.Errorf("b = %q", got)
	}
}

func TestAFailedTableKeepsItsLastGoodData(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n", "b.csv": "b\n1\n", "c.csv": "c\n1\n"})
	p.run()
	p.write(map[string]string{"a.csv": "PK\x00\x00", "b.csv": "b\n2\n"})
	if err := os.Remove(filepath.Join(p.dir, "c.csv")); err != nil {
		t.Fatal(err)
	}
	e, res := p.run()
	if res.Failed["a"] == nil || !slices.Equal(res.Kept, []string{"a"}) || len(e.Tables) != 2 {
		t.Fatalf("Extract = %+v", res)
	}
	if p.table("a") != "a BIGINT\n1" || p.table("b") != "b BIGINT\n2" {
		t.Errorf("a = %q, b = %q", p.table("a"), p.table("b"))
	}
	checkWarnings(t, res, []string{"its file is no longer in the directory"})
	// It is tried again, also when nothing else changed.
	_, res = p.run()
	if res.Failed["a"] == nil {
		t.Error("the bad file was taken for unchanged")
	}
	p.write(map[string]string{"a.csv": "a\n3\n"})
	_, res = p.run()
	if len(res.Failed) > 0 || p.table("a") != "a BIGINT\n3" {
		t.Errorf("after mending: %+v", res)
	}
}

func TestARequestForOneTableCarriesTheOthers(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n", "b.csv": "b\n1\n"})
	p.run()
	p.write(map[string]string{"a.csv": "a\n2\n", "b.csv": "b\n2\n"})
	e, res := p.run("A", "nothing")
	if len(e.Tables) != 2 || p.table("a") != "a BIGINT\n2" || p.table("b") != "b BIGINT\n1" {
		t.Errorf("Extract = %+v", res)
	}
	if !problem.Is(res.Failed["nothing"], problem.NotFound) {
		t.Errorf("Failed = %v", res.Failed)
	}
	// b is read when its turn comes.
	p.run()
	if got := p.table("b"); got != "b BIGINT\n2" {
		t.Errorf("b = %q", got)
	}
}

func TestLinksAreFollowedInsideTheDirectoryOnly(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"real/x.csv": "a\n1\n"})
	outside := filepath.Join(t.TempDir(), "secret.csv")
	if err := os.WriteFile(outside, []byte("a\n1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"inside.csv": "real/x.csv", "out.csv": outside, "up.csv": "../../secret.csv", "gone.csv": "missing.csv", "self": ".", "outdir": filepath.Dir(outside), "real/out.csv": outside,
	} {
		if err := os.Symlink(target, filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, res := p.run()
	var got []string
	for _, m := range res.Tables {
		got = append(got, m.Table)
	}
	if !slices.Equal(got, []string{"inside", "real"}) || len(res.Failed) > 0 {
		t.Errorf("Extract = %+v", res)
	}
	checkWarnings(t, res, []string{"out.csv was ignored: it is a link that leaves", "gone.csv was ignored", "self was ignored", "outdir was ignored", "real/out.csv was ignored"})
	if got := p.table("real"); got != "a BIGINT\n1" {
		t.Errorf("real = %q", got)
	}
}

func TestADirectoryThatCannotBeReadIsAnErrorWithAHint(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n"})
	before, _ := p.run()
	for name, dir := range map[string]string{"missing": filepath.Join(p.dir, "missing"), "a file": filepath.Join(p.dir, "a.csv"), "unset": ""} {
		src := csv.New(csv.Options{Dir: dir})
		_, _, discoverErr := src.Discover(t.Context())
		_, _, extractErr := connectors.Run(t.Context(), src, connectors.Request{}, p.extracts, nil)
		for _, err := range []error{src.Check(t.Context()), discoverErr, extractErr} {
			if problem.As(err).WireCode() != "csv_dir_unreadable" || problem.As(err).Hint == "" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	after, err := connectors.ReadExtract(t.Context(), before.Dir)
	if err != nil || len(after.Tables) != 1 {
		t.Errorf("the extract of before: %+v, %v", after, err)
	}
	if err := csv.New(csv.Options{Dir: p.dir, OnBadRow: "maybe"}).Check(t.Context()); !problem.Is(err, problem.Invalid) {
		t.Errorf("a policy that does not exist: %v", err)
	}
}

func TestProgressIsInBytesAndNeverGoesBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": many("a,b\n", "%d,x\n", 1000), "b.csv": "a\n1\n", "c.csv": ""})
	var steps []connectors.Progress
	if _, _, err := connectors.Run(t.Context(), csv.New(p.opt), connectors.Request{}, p.extracts, func(s connectors.Progress) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	var total, done int64
	for _, name := range []string{"a.csv", "b.csv"} {
		info, err := os.Stat(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	for _, s := range steps {
		if s.Unit != "bytes" || s.Total != total || s.Done < done || s.Done > total || s.Table == "" {
			t.Errorf("step %+v after %d of %d", s, done, total)
		}
		done = s.Done
	}
	if done != total {
		t.Errorf("ended at %d of %d", done, total)
	}
}

func TestCancelEndsWithoutATrace(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": many("a,b\n", "%d,x\n", 200_000), "b.csv": "a\n1\n"})
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	_, _, err := connectors.Run(ctx, csv.New(p.opt), connectors.Request{}, p.extracts, func(connectors.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || time.Since(began) > 5*time.Second {
		t.Errorf("Run: %v after %v", err, time.Since(began))
	}
	if left, _ := filepath.Glob(filepath.Join(p.extracts, ".staging/*.next")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
