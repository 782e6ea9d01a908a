package query_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func formats() []query.Format {
	return []query.Format{query.JSON, query.NDJSON, query.CSV, query.Arrow, query.Parquet}
}

// fetch returns an answer's bytes; JSON is completed.
func fetch(e *query.Engine, req query.Request) ([]byte, query.Summary, error) {
	if req.Timeout == 0 {
		req.Timeout = 30 * time.Second
	}
	var body bytes.Buffer
	sum, err := e.Run(context.Background(), req, func(query.Columns) (io.Writer, error) { return &body, nil })
	if err == nil && (req.Format == query.JSON || req.Format == "") {
		body.WriteByte('}')
	}
	return body.Bytes(), sum, err
}

type rawAnswer struct {
	Columns []string
	Types   []string
	Rows    [][]json.RawMessage
}

func fetchJSON(t *testing.T, e *query.Engine, req query.Request) rawAnswer {
	t.Helper()
	req.Format = query.JSON
	body, _, err := fetch(e, req)
	if err != nil {
		t.Fatalf("%s: %v", req.SQL, err)
	}
	var out rawAnswer
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("%s: %v in %.300s", req.SQL, err, body)
	}
	return out
}

// everyType is a value of each type and its extremes. back casts the text of
// the JSON and CSV cell to the value again, where DuckDB can read it; text is
// the cell where it cannot.
func everyType() []struct{ value, back, text string } {
	type row = struct{ value, back, text string }
	rows := []row{
		{value: "''::BLOB", text: ""},
		{value: `'\x00\xFFab'::BLOB`, text: "AP9hYg=="},
		{value: "INTERVAL '14 months -3 days 1.5 seconds'", text: "P1Y2M-3DT1.5S"},
		{value: "INTERVAL '-1 hour'", text: "PT-1H"},
		{value: "INTERVAL '0 days'", text: "PT0S"},
		{value: "TIMETZ '01:02:03.5+05:30'", text: "01:02:03.5+05:30"},
		{value: "TIMETZ '01:02:03-15:59:59'", text: "01:02:03-15:59:59"},
		{value: "DATE '-infinity'", text: "-infinity"},
		{value: "TIMESTAMP 'infinity'", text: "infinity"},
		{value: "TIMESTAMPTZ '-infinity'", text: "-infinity"},
		{value: "DATE '0044-03-15 (BC)'", text: "-0043-03-15"},
		{value: "DATE '12345-01-02'", text: "+12345-01-02"},
		{value: "'NaN'::FLOAT", text: "NaN"},
		{value: "'-inf'::DOUBLE", text: "-Infinity"},
	}
	for typ, values := range map[string][]string{
		"BOOLEAN": {"true", "false"}, "TINYINT": {"-128", "127"}, "SMALLINT": {"-32768"}, "INTEGER": {"-2147483648"},
		"BIGINT": {"-9223372036854775808", "9007199254740993"}, "UTINYINT": {"255"}, "USMALLINT": {"65535"}, "UINTEGER": {"4294967295"},
		"UBIGINT": {"18446744073709551615"}, "HUGEINT": {"-170141183460469231731687303715884105728", "1"},
		"UHUGEINT": {"340282366920938463463374607431768211455", "0"},
		"BIGNUM":   {"123456789012345678901234567890123456789012345678901234567890", "-98765432109876543210987654321", "0", "-1", "255", "256"},
		"FLOAT":    {"0.1", "-3.4028235e38", "1e-45"}, "DOUBLE": {"0.1", "1.7976931348623157e308", "5e-324", "-0.0", "123456789.123456789"},
		"DECIMAL(4,2)": {"-99.99", "0.05", "-0.05", "0"}, "DECIMAL(9,9)": {"0.123456789", "-0.000000001"}, "DECIMAL(18,3)": {"999999999999999.999"},
		"DECIMAL(38,10)": {"-1234567890123456789012345678.0123456789"}, "DECIMAL(38,38)": {"0.00000000000000000000000000000000000001"}, "DECIMAL(10,0)": {"-1234567890"},
		"VARCHAR":   {"plain", "", " spaced ", "NULL", "comma,quote\" line\nbreak\r\ntab\t", "Zoë 🐘 日本", "\u2028", "back\\slash", "a'b", "-", "null"},
		"UUID":      {"ffffffff-ffff-ffff-ffff-ffffffffffff", "00000000-0000-0000-0000-000000000001", "80000000-0000-4000-8000-0123456789ab"},
		"BIT":       {"1", "0101010", "11111111", "000000001"},
		"DATE":      {"2026-04-09", "0001-01-01", "1969-12-31", "9999-12-31"},
		"TIME":      {"00:00:00", "23:59:59.999999", "24:00:00"},
		"TIMESTAMP": {"2026-04-09 01:02:03.000001", "1969-12-31 23:59:59.999999", "0001-01-01 00:00:00"}, "TIMESTAMP_S": {"1969-12-31 23:59:59"},
		"TIMESTAMP_MS": {"2026-04-09 01:02:03.004"}, "TIMESTAMP_NS": {"2026-04-09 01:02:03.000000004", "1969-12-31 23:59:59.999999999"},
		"TIMESTAMPTZ":                {"2026-04-09 01:02:03.5+02"},
		"ENUM('x', 'y z', '', '\"')": {"x", "y z", "", "\""},
	} {
		for _, v := range values {
			rows = append(rows, row{value: duck.Literal(v) + "::" + typ, back: typ})
		}
	}
	return rows
}

func bare(t *testing.T, cell json.RawMessage) string {
	t.Helper()
	if len(cell) > 0 && cell[0] == '"' {
		var s string
		if err := json.Unmarshal(cell, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	return string(cell)
}

func TestEveryTypeKeepsItsValueInEveryTextFormat(t *testing.T) {
	t.Parallel()
	e := engine(t)
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Exec("SET TimeZone = 'UTC'"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range everyType() {
		sqlText := "SELECT " + tc.value + " AS v, NULL AS n, 7 AS k"
		cell := fetchJSON(t, e, query.Request{SQL: sqlText}).Rows[0]
		text := bare(t, cell[0])
		if string(cell[1]) != "null" {
			t.Errorf("%s: NULL = %s in JSON", tc.value, cell[1])
		}
		if tc.back == "" && text != tc.text {
			t.Errorf("%s = %q in JSON, want %q", tc.value, text, tc.text)
		}
		if tc.back != "" {
			var same bool
			if err := db.QueryRow(fmt.Sprintf("SELECT ?::%s IS NOT DISTINCT FROM %s", tc.back, tc.value), text).Scan(&same); err != nil || !same {
				t.Errorf("%s = %q in JSON, which DuckDB does not read as the same value: %v", tc.value, text, err)
			}
		}
		line, _, err := fetch(e, query.Request{SQL: sqlText, Format: query.NDJSON})
		if err != nil {
			t.Errorf("%s as NDJSON: %v", tc.value, err)
			continue
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(line, &object); err != nil || string(object["v"]) != string(cell[0]) || string(object["n"]) != "null" {
			t.Errorf("%s: NDJSON %s, %v; JSON has %s", tc.value, line, err, cell[0])
		}
		file, _, err := fetch(e, query.Request{SQL: sqlText, Format: query.CSV})
		if err != nil {
			t.Errorf("%s as CSV: %v", tc.value, err)
			continue
		}
		// Go's reader turns \r\n in a field into \n, as it says.
		records, err := csv.NewReader(bytes.NewReader(file)).ReadAll()
		if err != nil || len(records) != 2 || records[1][0] != strings.ReplaceAll(text, "\r\n", "\n") || records[1][1] != "" || records[1][2] != "7" {
			t.Errorf("%s: CSV %q (%v) = %q; JSON has %q", tc.value, file, err, records, text)
		}
		if text == "" && !bytes.Contains(file, []byte("\"\",,7")) {
			t.Errorf("%s: CSV %q does not tell an empty value from NULL", tc.value, file)
		}
	}
}

// A chunk's vectors come in several shapes (flat, constant, dictionary); inside
// nested values DuckDB may leave any of them.
func TestNestedValuesAreRightInEveryRow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := engine(t)
	view := parquet(t, dir, "n", `SELECT range AS id, CASE WHEN range % 3 = 0 THEN NULL ELSE 'v' || (range % 5) END AS word,
		[range, NULL, range * 2] AS list, {'a': range, 'b': {'c': 'x' || range, 'd': NULL::INTEGER}} AS s, [[], [range], NULL] AS deep FROM range(5000)`)
	for _, expr := range []string{
		`{'const': 1, 'v': id}`, `{'v': word, 'none': NULL::VARCHAR}`, `[1, id]`, `['const', word]`, `[{'k': 1, 'v': id}, {'k': 2, 'v': NULL}]`,
		`list`, `s`, `deep`, `s.b`, `[s, s]`, `{'l': list, 's': s}`, `list_filter(list, lambda x: x > 10)`, `list_transform([1, 2, 3], lambda x: {'x': x, 'id': id})`,
		`CASE WHEN id % 2 = 0 THEN list END`, `CASE WHEN id % 2 = 0 THEN s ELSE NULL END`, `[id, id + 1]::BIGINT[2]`, `[[id], [1]]::BIGINT[1][2]`,
		`{'arr': [word, 'x']::VARCHAR[2]}`, `list_slice(list, 2, 3)`, `list_concat(list, [7])`, `repeat([word], 3)`, `[]::INTEGER[]`, `[NULL]`, `NULL::INTEGER[]`,
	} {
		for _, order := range []string{"", " ORDER BY id DESC", " WHERE id % 7 = 1"} {
			got := fetchJSON(t, e, query.Request{Generation: 1, Views: []query.View{view}, SQL: fmt.Sprintf("SELECT %s AS v, to_json(%s)::VARCHAR AS want FROM n%s", expr, expr, order)})
			for i, row := range got.Rows {
				want := bare(t, row[1])
				if string(row[0]) != want {
					t.Errorf("%s%s: row %d = %s, want %s", expr, order, i, row[0], want)
					break
				}
			}
			if len(got.Rows) < 700 {
				t.Errorf("%s%s: %d rows", expr, order, len(got.Rows))
			}
		}
	}
	for value, want := range map[string]string{
		`union_value(num := 2)`:                            `{"num":2}`,
		`MAP {'a': [1, 2], 'b': NULL}`:                     `[{"key":"a","value":[1,2]},{"key":"b","value":null}]`,
		`[union_value(k := 'x'), NULL]`:                    `[{"k":"x"},null]`,
		`MAP {}`:                                           `[]`,
		`{'d': DATE '2026-01-01', 'f': 'nan'::DOUBLE}`:     `{"d":"2026-01-01","f":"NaN"}`,
		`'{"j": [1, "x"]}'::JSON`:                          `"{\"j\": [1, \"x\"]}"`,
		`[18446744073709551615::UBIGINT]`:                  `[18446744073709551615]`,
		`{'big': 170141183460469231731687303715884105727}`: `{"big":170141183460469231731687303715884105727}`,
	} {
		if got := string(fetchJSON(t, e, query.Request{SQL: "SELECT " + value}).Rows[0][0]); got != want {
			t.Errorf("%s = %s, want %s", value, got, want)
		}
	}
}

// count reads how many rows an answer holds, and whether its ids are 0, 1, 2 …
func count(t *testing.T, format query.Format, body []byte) int {
	t.Helper()
	switch format {
	case query.JSON:
		var a rawAnswer
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatal(err)
		}
		for i, row := range a.Rows {
			if string(row[0]) != fmt.Sprint(i) {
				t.Fatalf("row %d = %s", i, row[0])
			}
		}
		return len(a.Rows)
	case query.NDJSON:
		return bytes.Count(body, []byte("\n"))
	case query.CSV:
		return bytes.Count(body, []byte("\r\n")) - 1
	case query.Arrow:
		r, err := ipc.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Release()
		n := 0
		for r.Next() {
			n += int(r.RecordBatch().NumRows())
		}
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		return n
	}
	n, _, sum := parquetRows(t, body)
	if want := int64(n) * int64(n-1) / 2; sum != want {
		t.Fatalf("the ids of %d Parquet rows add up to %d, want %d", n, sum, want)
	}
	return n
}

// parquetRows has DuckDB read a Parquet answer: rows, columns, sum of column id.
func parquetRows(t *testing.T, body []byte) (rows int, columns string, sum int64) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "answer.parquet")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow(fmt.Sprintf("SELECT count(*), coalesce(sum(id), 0)::BIGINT FROM read_parquet(%s)", duck.Literal(file))).Scan(&rows, &sum); err != nil {
		t.Fatal(err)
	}
	err = db.QueryRow(fmt.Sprintf("SELECT string_agg(column_name, ',') FROM (DESCRIBE FROM read_parquet(%s))", duck.Literal(file))).Scan(&columns)
	if err != nil {
		t.Fatal(err)
	}
	return rows, columns, sum
}

func TestLimitsAreExactAtTheEdgesOfChunks(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, format := range formats() {
		for _, rows := range []int{0, 1, 2047, 2048, 2049, 4096} {
			for _, limit := range []int{0, 1, 2047, 2048, 2049, 4095, 4096, 4097} {
				body, sum, err := fetch(e, query.Request{SQL: fmt.Sprintf("SELECT range AS id FROM range(%d)", rows), Format: format, Limit: int64(limit)})
				if err != nil {
					t.Fatalf("%s, %d rows, limit %d: %v", format, rows, limit, err)
				}
				want, cut := rows, false
				if limit > 0 && limit < rows {
					want, cut = limit, true
				}
				if got := count(t, format, body); got != want || sum.Rows != int64(want) {
					t.Errorf("%s, %d rows, limit %d: %d rows, the summary says %d; want %d", format, rows, limit, got, sum.Rows, want)
				}
				if format != query.Parquet && sum.Truncated != cut { // DuckDB itself cuts Parquet off
					t.Errorf("%s, %d rows, limit %d: truncated = %t, want %t", format, rows, limit, sum.Truncated, cut)
				}
				if sum.Bytes == 0 && format != query.NDJSON {
					t.Errorf("%s: the summary says 0 bytes", format)
				}
			}
			if format == query.Parquet {
				break // each answer costs a process
			}
		}
	}
}

func TestParquetTakesWhatTheOthersTake(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, tc := range []struct {
		sql     string
		params  []any
		rows    int
		columns string
	}{
		{"SELECT range AS id FROM range(3) ORDER BY id DESC", nil, 3, "id"},
		{"WITH c AS (SELECT ?::BIGINT AS id) SELECT id, $1 AS again FROM c", []any{5}, 1, "id,again"},
		{"SELECT 1 AS id;", nil, 1, "id"},
		{"SELECT 1 AS id -- the end", nil, 1, "id"},
		{"SELECT 1 AS id; -- the end; really", nil, 1, "id"},
		{"SELECT 1 AS id, ';--' AS x ;; /* ; */", nil, 1, "id,x"},
		{"FROM range(4) t(id)", nil, 4, "id"},
		{"SELECT 1 AS id UNION ALL SELECT 2", nil, 2, "id"},
		{"(SELECT 1 AS id) LIMIT 1", nil, 1, "id"},
		{"VALUES (1), (2)", nil, 2, "col0"},
	} {
		if tc.columns == "col0" {
			tc.sql = "SELECT col0 AS id FROM (" + tc.sql + ")"
			tc.columns = "id"
		}
		body, sum, err := fetch(e, query.Request{SQL: tc.sql, Params: tc.params, Format: query.Parquet})
		if err != nil {
			t.Errorf("%s: %v", tc.sql, err)
			continue
		}
		if rows, columns, _ := parquetRows(t, body); rows != tc.rows || columns != tc.columns || sum.Rows != int64(tc.rows) {
			t.Errorf("%s: %d rows of %s, the summary says %d; want %d of %s", tc.sql, rows, columns, sum.Rows, tc.rows, tc.columns)
		}
	}
}

func TestBigIntegersAreTextWhereAskedFor(t *testing.T) {
	t.Parallel()
	e := engine(t)
	const sqlText = `SELECT 9007199254740991, 9007199254740992, -9007199254740992, 18446744073709551615::UBIGINT, 170141183460469231731687303715884105727::HUGEINT,
		[9007199254740993], {'a': 9007199254740993}, 5::HUGEINT`
	for _, tc := range []struct {
		asked bool
		want  string
	}{
		{true, `[9007199254740991,"9007199254740992","-9007199254740992","18446744073709551615","170141183460469231731687303715884105727",["9007199254740993"],{"a":"9007199254740993"},5]`},
		{false, `[9007199254740991,9007199254740992,-9007199254740992,18446744073709551615,170141183460469231731687303715884105727,[9007199254740993],{"a":9007199254740993},5]`},
	} {
		got := fetchJSON(t, e, query.Request{SQL: sqlText, BigIntStrings: tc.asked})
		line, err := json.Marshal(got.Rows[0])
		if err != nil || string(line) != tc.want {
			t.Errorf("bigint_strings %t: %s, %v; want %s", tc.asked, line, err, tc.want)
		}
	}
}

func TestParametersOfEachKind(t *testing.T) {
	t.Parallel()
	e := engine(t)
	res, err := ask(e, nil, `SELECT ?, ?, ?, ?, ?, ?, typeof(?)`, nil, true, "'; DROP TABLE x --", json.Number("9223372036854775807"), 1.5, json.Number("1e3"), 7)
	if want := `[[<nil> true '; DROP TABLE x -- 9223372036854775807 1.5 1000 BIGINT]]`; err != nil || fmt.Sprint(res.Rows) != want {
		t.Errorf("parameters = %v, %v; want %s", res, err, want)
	}
	for _, tc := range []struct {
		sql    string
		params []any
	}{
		{"SELECT ?", nil},
		{"SELECT 1", []any{1}},
		{"SELECT ?, ?", []any{1}},
		{"SELECT ?", []any{[]int{1}}},
		{"SELECT ?", []any{map[string]int{}}},
		{"SELECT ?", []any{json.Number("1e999")}},
		{"SELECT * FROM ?", []any{"x"}},
	} {
		_, err := ask(e, nil, tc.sql, tc.params...)
		if p := problem.As(err); err == nil || p.Kind.Status() >= 500 || p.Hint == "" {
			t.Errorf("%s with %v = %v, want a refusal with a hint", tc.sql, tc.params, err)
		}
	}
}

// late fails after many rows have gone out.
const late = `SELECT CASE WHEN range = 400000 THEN error('late') ELSE range::VARCHAR || 'some text to fill frames' END AS v FROM range(500000)`

func TestAFailureHalfwayIsNeverACleanEnd(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, format := range formats() {
		t.Run(string(format), func(t *testing.T) {
			body, _, err := fetch(e, query.Request{SQL: late, Format: format})
			if err == nil {
				t.Fatal("the failed statement was answered")
			}
			if p := problem.As(err); p.Kind != problem.Invalid {
				t.Errorf("error = %v (%s), want problem.Invalid", err, p.Kind)
			}
			if len(body) == 0 {
				t.Error("nothing was sent before the failure; the test needs some")
			}
		})
	}
}

// over serves an engine as the server does.
func over(t *testing.T, e *query.Engine, req query.Request) (url string, ended <-chan error) {
	t.Helper()
	out := make(chan error, 10)
	url = listen(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := e.Run(r.Context(), req, func(query.Columns) (io.Writer, error) {
			w.WriteHeader(http.StatusOK)
			return w, nil
		})
		out <- err
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	})
	return url, out
}

func TestOverHTTPAFailureHalfwayBreaksTheAnswerOff(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, format := range formats() {
		url, _ := over(t, e, query.Request{SQL: late, Format: format, Timeout: 20 * time.Second})
		resp, err := http.Get(url)
		if err != nil {
			continue // cut before the headers were out: as good
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: the client read to %v, want an unexpected EOF", format, err)
		}
	}
}

func TestAClientThatGoesAwayEndsItsQuery(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, format := range formats() {
		url, ended := over(t, e, query.Request{SQL: "SELECT range, 'text ' || range AS v FROM range(10000000000)", Format: format, Timeout: time.Minute})
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			t.Logf("%s: the statement ended with: %v", format, err)
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the statement still runs 5 s after its client has gone", format)
		}
	}
	if n := e.Running(); n != 0 {
		t.Errorf("%d statements run, want none", n)
	}
}

// stuck is a reader that takes one write and then nothing until it is let go.
type stuck struct {
	once sync.Once
	in   chan struct{}
	free chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.in) })
	<-s.free
	return len(p), nil
}

func TestADeadlineEndsAnAnswerThatNobodyReads(t *testing.T) {
	e := engine(t)
	for _, format := range formats() {
		w := &stuck{in: make(chan struct{}), free: make(chan struct{})}
		ended := make(chan error, 1)
		before := memory(t)
		go func() {
			_, err := e.Run(context.Background(), query.Request{SQL: "SELECT range, repeat('x', 1000) AS v FROM range(10000000000)", Format: format, Timeout: 2 * time.Second},
				func(query.Columns) (io.Writer, error) { return w, nil })
			ended <- err
		}()
		<-w.in
		time.AfterFunc(2500*time.Millisecond, func() { close(w.free) })
		err := <-ended
		if !problem.Is(err, problem.Timeout) {
			t.Errorf("%s: an answer that nobody reads ended with %v, want problem.Timeout", format, err)
		}
		if grew := memory(t) - before; grew > 80<<20 {
			t.Errorf("%s: the server grew by %d MB for a reader that stands still", format, grew>>20)
		}
	}
}

func TestAnAnswerOfTooManyBytesIsCutOff(t *testing.T) {
	t.Parallel()
	e := engine(t)
	for _, format := range formats() {
		body, _, err := fetch(e, query.Request{SQL: "SELECT md5(range::VARCHAR) AS v FROM range(1000000)", Format: format, MaxBytes: 1 << 20})
		if !problem.Is(err, problem.TooLarge) || problem.As(err).WireCode() != "answer_too_large" {
			t.Errorf("%s: %v, want answer_too_large", format, err)
		}
		if len(body) > 1<<20 {
			t.Errorf("%s: %d bytes were sent, want at most 1 MiB", format, len(body))
		}
	}
}

// One value may be larger than any frame.
func TestLargeValuesComeThrough(t *testing.T) {
	t.Parallel()
	e := engine(t)
	const size = 20_000_000
	for _, format := range formats() {
		body, _, err := fetch(e, query.Request{SQL: fmt.Sprintf("SELECT 1 AS id, repeat('x', %d) AS v", size), Format: format})
		if err != nil {
			t.Errorf("%s: a value of 20 MB: %v", format, err)
		} else if format != query.Parquet && bytes.Count(body, []byte("x")) < size {
			t.Errorf("%s: %d bytes, want the value of 20 MB in it", format, len(body))
		}
	}
	_, err := ask(e, nil, "SELECT error(repeat('x', 20000000))")
	if p := problem.As(err); p.Kind != problem.Invalid || len(p.Message) > 64<<10 {
		t.Errorf("a message of 20 MB = %s of %d bytes, want it shortened", p.Kind, len(p.Message))
	}
	if res, err := ask(e, nil, "SELECT 1"); err != nil || len(res.Rows) != 1 {
		t.Errorf("afterwards SELECT 1 = %v, %v", res, err)
	}
}
