package csv_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

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
		{"a fraction by its exponent", "t.csv", many("a,b\n", "%d,x\n", n) + "15e-1,y\n", "a DOUBLE, b VARCHAR", "1.5|y"},
		{"a fraction in gzip", "t.csv.gz", gz(many("a,b\n", "%d,x\n", n) + "1.5,y\n"), "a DOUBLE, b VARCHAR", "1.5|y"},
		{"a fraction beside long identifiers", "t.csv", many("a,b\n", "1234567890123%05d,x\n", n) + "1.5,y\n", "a VARCHAR, b VARCHAR", "1.5|y"},
		{"long identifiers and nothing else", "t.csv", many("a,b\n", "1234567890123%05d,x\n", n) + "123456789012345678,y\n", "a BIGINT, b VARCHAR", "123456789012345678|y"},
		{"a time in a column of dates", "t.csv", many("a,b\n", "2024-01-01,%d\n", n) + "2024-01-01 10:11:12,1\n", "a TIMESTAMP, b BIGINT", "2024-01-01 10:11:12|1"},
		{"no number", "t.csv", many("a,b\n", "%d,x\n", n) + ",y\n", "a BIGINT, b VARCHAR", "∅|y"},
		{"text", "t.csv", many("a,b\n", "%d,x\n", n) + "none,y\n", "a VARCHAR, b VARCHAR", "none|y"},
		{"a long identifier", "t.csv", many("a,b\n", "%d,x\n", n) + "12345678901234567890,y\n", "a VARCHAR, b VARCHAR", "12345678901234567890|y"},
		{"quotes", "t.csv", many("a,b\n", "%d,x\n", n) + "1,\"quoted\"\n", "a BIGINT, b VARCHAR", "1|quoted"},
		{"quoted delimiters and newlines", "t.csv", many("a,b\n", "%d,x\n", n) + "1,\"x, y\nz\"\n", "a BIGINT, b VARCHAR", "1|x, y\nz"},
		{"another type in NDJSON", "t.ndjson", many("", "{\"a\":%d}\n", n) + "{\"a\":\"x\"}\n", "a VARCHAR", "x"},
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
