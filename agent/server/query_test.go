package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

func TestTheAnswerHasTheTypeThatAcceptLikesBest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, read := w.synced(), newReader(t)
	for accept, want := range map[string]string{
		"":                                typeJSON,
		"*/*":                             typeJSON,
		"application/*":                   typeJSON,
		"text/*":                          typeCSV,
		"TEXT/CSV":                        typeCSV,
		"text/csv; charset=utf-8":         typeCSV,
		"text/csv;header=present;q=0.1":   typeCSV,
		typeNDJSON:                        typeNDJSON,
		typeArrow:                         typeArrow,
		typeParquet:                       typeParquet,
		"text/html":                       typeJSON, // nothing fits: JSON, as the header may be ignored
		"application/parquet, text/html":  typeJSON,
		"not a type at all":               typeJSON,
		";;,,;q=1":                        typeJSON,
		"text/html, text/csv;q=0.1":       typeCSV,
		"text/csv, application/json":      typeCSV, // liked alike: the first
		"application/json, text/csv":      typeJSON,
		"text/csv, */*":                   typeCSV, // named rather than taken in
		"*/*, text/csv":                   typeCSV,
		"text/csv;q=0.5, */*;q=0.4":       typeCSV,
		"text/csv;q=0.5, */*;q=0.6":       typeJSON,
		"text/csv;q=0.5,application/json": typeJSON,
		"text/csv;q=0.2, application/x-ndjson;q=0.9, application/vnd.apache.parquet;q=0.3": typeNDJSON,
		"application/json;q=0, */*":                                        typeCSV,
		"application/json;q=0.0, text/csv;q=0":                             typeJSON,
		"application/json;q=0.000, */*;q=0.1":                              typeCSV,
		"application/*;q=0, */*":                                           typeCSV,
		"text/csv;q=0":                                                     typeJSON,
		"text/csv;q=high, application/x-ndjson;q=0.1":                      typeNDJSON,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8":  typeJSON, // a browser
		"application/vnd.apache.arrow.stream;q=1.0, application/json;q=.9": typeArrow,
	} {
		r := w.call("POST", "/api/query", admin, map[string]string{"sql": "SELECT 1::BIGINT AS n"}, "Accept", accept)
		if got := r.header.Get("Content-Type"); r.status != http.StatusOK || got != want {
			t.Errorf("Accept: %s = %d %s, want %s", accept, r.status, got, want)
			continue
		}
		if rows, err := read.cells(want, r.body); err != nil || !reflect.DeepEqual(rows, [][]int64{{1}}) {
			t.Errorf("Accept: %s: the answer %q reads as %v, %v", accept, r.body, rows, err)
		}
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/api/query", strings.NewReader(`{"sql":"SELECT 1"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + admin}, "Content-Type": {typeJSON}, "Accept": {"application/json;q=0.1", "text/csv"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if got := resp.Header.Get("Content-Type"); got != typeCSV {
		t.Errorf("Accept on two lines = %s, want what the second line likes better", got)
	}
}

func TestAnAnalystGetsTheirRowsInEveryFormatAndNobodyElses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ana, _ := w.analyst(w.synced(), "ana@company.com", "orders")
	read := newReader(t)
	for _, typ := range mediaTypes() {
		ask := func(body any) reply { return w.call("POST", "/api/query", ana, body, "Accept", typ) }
		r := ask(map[string]any{"sql": "SELECT id, customer_id FROM orders WHERE id < ? ORDER BY id DESC", "params": []any{3}})
		rows, err := read.cells(typ, r.body)
		if want := [][]int64{{2, 2}, {1, 1}, {0, 0}}; err != nil || r.status != http.StatusOK || !reflect.DeepEqual(rows, want) {
			t.Errorf("%s: orders = %d %v %v, want %v", typ, r.status, rows, err, want)
		}
		// The limit on rows that holds for JSON does not hold for streams, but
		// one that the caller sets does.
		r = ask(map[string]any{"sql": "SELECT range FROM range(5000)"})
		rows, err = read.cells(typ, r.body)
		if want := map[bool]int{true: 1000, false: 5000}[typ == typeJSON]; err != nil || len(rows) != want {
			t.Errorf("%s: %d of 5000 rows, %v, want %d", typ, len(rows), err, want)
		}
		r = ask(map[string]any{"sql": "SELECT range FROM range(5000)", "limit": 2500})
		if rows, err = read.cells(typ, r.body); err != nil || len(rows) != 2500 {
			t.Errorf("%s: %d rows, %v, want 2500", typ, len(rows), err)
		}
		if r = ask(map[string]any{"sql": "SELECT id, customer_id FROM orders WHERE false"}); r.status != http.StatusOK {
			t.Errorf("%s: no rows = %d %s", typ, r.status, r.body)
		}
		for sqlText, want := range map[string]int{"SELECT * FROM customers": 403, "SELECT o.id FROM orders o JOIN customers USING (id)": 403, "SELECT nope FROM orders": 400} {
			r = ask(map[string]any{"sql": sqlText})
			if p := r.problem(t); r.status != want || r.header.Get("Content-Type") != "application/problem+json" || p.Code == "" || p.Hint == "" {
				t.Errorf("%s: %s = %d %s %s, want a problem of status %d", typ, sqlText, r.status, r.header.Get("Content-Type"), r.body, want)
			}
		}
	}
}

// quick gives analysts one second and one query at a time.
func quick(o *worldOptions) {
	o.limits = func(role string, l api.Limits) api.Limits {
		if role == api.RoleAnalyst {
			l.Seconds, l.Concurrent = 1, 1
		}
		return l
	}
}

func TestAQueryIsRefusedWithItsReasonAndTheNextStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	admin := w.synced()
	ana, _ := w.analyst(admin, "ana@company.com", "orders")
	const endless = "SELECT count(*) FROM range(1000000) a, range(1000000) b"
	for _, tc := range []struct {
		token  string
		body   map[string]any
		status int
		code   string
		says   []string
	}{
		{ana, map[string]any{"sql": "SELECT 1 +\n FROM orders o"}, 400, "invalid_sql", []string{"syntax error", `"FROM"`, "line 2, column 2"}},
		{ana, map[string]any{"sql": "SELECT id,\n  nope\nFROM orders"}, 400, "invalid_sql", []string{"Binder Error", `"nope"`, "LINE 2", "^"}},
		{ana, map[string]any{"sql": "SELECT 'x'::INTEGER"}, 400, "invalid_sql", []string{"Conversion Error", "LINE 1", "^"}},
		{ana, map[string]any{"sql": "SELECT 1; SELECT 2"}, 400, "invalid_sql", []string{"2 statements"}},
		{ana, map[string]any{"sql": "SELECT ?"}, 400, "invalid_param", []string{"1 parameters", "0 values"}},
		{ana, map[string]any{"sql": "SELECT *\nFROM customers"}, 403, "table_not_available", []string{`"customers"`, "line 2, column 6"}},
		{ana, map[string]any{"sql": "SELECT *\nFROM nowhere_s"}, 403, "table_not_available", []string{`"nowhere_s"`, "line 2, column 6"}},
		{ana, map[string]any{"sql": "SELECT * FROM read_text('/etc/passwd')"}, 403, "function_not_allowed", []string{`"read_text"`}},
		{ana, map[string]any{"sql": "DROP TABLE orders"}, 403, "not_a_query", nil},
		{ana, map[string]any{"sql": endless}, 408, "query_timeout", []string{"1s"}},
		{admin, map[string]any{"sql": "SELECT list(range) FROM range(10000000000)"}, 413, "query_too_large", []string{"memory"}},
		{admin, map[string]any{"sql": "SELECT '" + strings.Repeat("ž", 40_000) + "'"}, 413, "sql_too_long", []string{"80009", "65536"}},
		{admin, map[string]any{"sql": "SELECT 1", "limit": 0}, 422, "unprocessable", []string{"limit"}},
		{admin, map[string]any{"sql": "SELECT 1", "limit": 100_001}, 422, "unprocessable", []string{"limit"}},
	} {
		name := fmt.Sprintf("%.60s", tc.body["sql"])
		r := w.call("POST", "/api/query", tc.token, tc.body)
		p := r.problem(t)
		if r.status != tc.status || p.Status != tc.status || p.Code != tc.code || r.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s = %d %s, want %d %s", name, r.status, r.body, tc.status, tc.code)
		}
		if p.Type == "" || p.Title == "" || p.Hint == "" {
			t.Errorf("%s = %s, want every member filled", name, r.body)
		}
		for _, word := range tc.says {
			if !strings.Contains(p.Detail, word) {
				t.Errorf("%s = %q, want it to say %q", name, p.Detail, word)
			}
		}
		if tc.token == ana && !strings.Contains(name, "customers") && strings.Contains(string(r.body), "customers") {
			t.Errorf("%s: the refusal names a table that the caller may not see: %s", name, r.body)
		}
	}
}

// TestALineThatIsTooLongIsRefused has one user queue hundreds of statements
// behind one that runs, and then go away with all of them.
func TestALineThatIsTooLongIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *worldOptions) {
		o.limits = func(role string, l api.Limits) api.Limits {
			if role == api.RoleAnalyst {
				l.Concurrent = 1
			}
			return l
		}
	})
	admin := w.synced()
	ana, _ := w.analyst(admin, "ana@company.com", "orders")
	ctx, goAway := context.WithCancel(t.Context())
	defer goAway()
	client := &http.Client{Transport: &http.Transport{}}
	refused := make(chan reply, 1000)
	var clients sync.WaitGroup
	for range 600 {
		clients.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/api/query",
				strings.NewReader(`{"sql":"SELECT count(*) FROM range(1000000) a, range(1000000) b"}`))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header = http.Header{"Authorization": {"Bearer " + ana}, "Content-Type": {typeJSON}}
			resp, err := client.Do(req)
			if err != nil {
				return // it went away
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Error(err)
			}
			refused <- reply{resp.StatusCode, resp.Header, body}
		})
	}
	select {
	case r := <-refused:
		p := r.problem(t)
		if r.status != http.StatusTooManyRequests || p.Code != "too_many_queries" || p.Hint == "" || r.header.Get("Retry-After") != "5" {
			t.Errorf("one statement too many = %d %v %s, want 429 with Retry-After", r.status, r.header, r.body)
		}
	case <-time.After(20 * time.Second):
		t.Error("600 statements of one user wait, none was refused")
	}
	if out, r := w.query(admin, "SELECT 42"); fmt.Sprint(out.Rows) != "[[42]]" {
		t.Errorf("another user meanwhile = %d %s", r.status, r.body)
	}
	goAway()
	clients.Wait()
	w.eventually("no query runs", func() bool { return w.metric("agnes_queries_running") == "0" })
	if out, r := w.query(ana, "SELECT 43"); fmt.Sprint(out.Rows) != "[[43]]" {
		t.Errorf("the same user afterwards = %d %s", r.status, r.body)
	}
	if strings.Contains(w.logged(), "level=ERROR") {
		t.Errorf("callers that went away are logged as errors:\n%.2000s", w.logged())
	}
}

func TestAJSONAnswerSaysWhatItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	ask := func(body string) (out struct {
		Columns, Types []string
		Rows           [][]json.RawMessage
		RowCount       *int     `json:"row_count"`
		Truncated      *bool    `json:"truncated"`
		ElapsedMS      *float64 `json:"elapsed_ms"`
	},
	) {
		t.Helper()
		began := time.Now()
		w.call("POST", "/api/query", admin, body).into(t, &out)
		if out.RowCount == nil || *out.RowCount != len(out.Rows) || out.Truncated == nil {
			t.Errorf("%s: row_count or truncated are missing or wrong: %+v", body, out)
		}
		if took := float64(time.Since(began).Microseconds()) / 1000; out.ElapsedMS == nil || *out.ElapsedMS <= 0 || *out.ElapsedMS > took {
			t.Errorf("%s: elapsed_ms = %v, the call took %v", body, out.ElapsedMS, took)
		}
		return out
	}
	line := func(cells []json.RawMessage) string { return string(bytes.Join(toBytes(cells), []byte(" "))) }

	out := ask(`{"sql":"SELECT ? AS a, $2 AS b, ? AS c, ?, ?","params":["'; DROP TABLE orders --",9223372036854775807,null,true,0.1]}`)
	if got, want := line(out.Rows[0]), `"'; DROP TABLE orders --" 9223372036854775807 null true 0.1`; got != want {
		t.Errorf("params = %s, want %s", got, want)
	}
	if fmt.Sprint(out.Columns[:3], out.Types[:2]) != "[a b c] [VARCHAR BIGINT]" {
		t.Errorf("columns %v of types %v", out.Columns, out.Types)
	}
	for body, want := range map[string]string{
		`{"sql":"SELECT range FROM range(5)"}`:              "5 false",
		`{"sql":"SELECT range FROM range(5)","limit":5}`:    "5 false",
		`{"sql":"SELECT range FROM range(5)","limit":4}`:    "4 true",
		`{"sql":"SELECT range FROM range(1001)"}`:           "1000 true",
		`{"sql":"SELECT range FROM range(5) WHERE false"}`:  "0 false",
		`{"sql":"SELECT range FROM range(9000) LIMIT 999"}`: "999 false",
	} {
		if out := ask(body); fmt.Sprint(*out.RowCount, *out.Truncated) != want {
			t.Errorf("%s = %d rows, truncated %t, want %s", body, *out.RowCount, *out.Truncated, want)
		}
	}
	const big = `"sql":"SELECT 9007199254740991, 9007199254740993, [9007199254740993], 5"`
	if got, want := line(ask(`{` + big + `}`).Rows[0]), `9007199254740991 9007199254740993 [9007199254740993] 5`; got != want {
		t.Errorf("integers = %s, want %s", got, want)
	}
	if got, want := line(ask(`{` + big + `,"bigint_strings":true}`).Rows[0]), `9007199254740991 "9007199254740993" ["9007199254740993"] 5`; got != want {
		t.Errorf("integers with bigint_strings = %s, want %s", got, want)
	}
}

func toBytes(cells []json.RawMessage) (out [][]byte) {
	for _, c := range cells {
		out = append(out, c)
	}
	return out
}

func TestTheAuditLogHoldsWhatAQueryTouchedAndNeverItsTextOrData(t *testing.T) {
	t.Parallel()
	const value = "4111-secret-cell"
	w := newWorld(t, quick)
	w.source.set("orders", "SELECT range AS id, '"+value+"' AS note FROM range(100)")
	admin := w.synced()
	ana, _ := w.analyst(admin, "ana@company.com", "orders")
	type want struct {
		sql, accept, outcome, code string
		rows, status               int
		tables                     string
		leastMS                    float64
	}
	cases := []want{
		{sql: "SELECT note FROM orders WHERE note = 'word-in-text' OR id < 7", outcome: "ok", rows: 7, status: 200, tables: "[orders]"},
		{sql: "SELECT note FROM orders LIMIT 11 -- word-in-text", accept: typeCSV, outcome: "ok", rows: 11, status: 200, tables: "[orders]"},
		{sql: "SELECT note, 'word-in-text' FROM orders LIMIT 3", accept: typeParquet, outcome: "ok", rows: 3, status: 200, tables: "[orders]"},
		{sql: "SELECT 'word-in-text'", outcome: "ok", rows: 1, status: 200, tables: "[]"},
		{sql: "SELECT 'word-in-text' FROM customers", outcome: "denied", code: "table_not_available", status: 403, tables: "[]"},
		{sql: "SELECT word-in-text FROM orders", outcome: "failed", code: "invalid_sql", status: 400, tables: "[]"},
		{sql: "SELECT 'word-in-text', count(*) FROM range(1000000) a, range(1000000) b", outcome: "failed", code: "query_timeout", status: 408, tables: "[]", leastMS: 1000},
	}
	for _, c := range cases {
		if r := w.call("POST", "/api/query", ana, map[string]string{"sql": c.sql}, "Accept", c.accept); r.status != c.status {
			t.Fatalf("%s = %d %s", c.sql, r.status, r.body)
		}
	}
	entries := map[string]api.AuditEntry{}
	var log reply
	w.eventually("every query is in the audit log", func() bool {
		var audit api.AuditLog
		log = w.call("GET", "/api/admin/audit?limit=1000", admin, nil)
		log.into(t, &audit)
		clear(entries)
		for _, e := range audit.Entries {
			if e.Action == "query.run" {
				entries[e.Target] = e
			}
		}
		return len(entries) == len(cases)
	})
	for _, c := range cases {
		sum := sha256.Sum256([]byte(c.sql))
		e, ok := entries[hex.EncodeToString(sum[:])]
		if !ok {
			t.Errorf("%s left no entry under its hash", c.sql)
			continue
		}
		if e.Actor != "ana@company.com" || e.Remote != "127.0.0.1" || e.Outcome != c.outcome || time.Since(e.At) > time.Minute {
			t.Errorf("%s: entry %+v, want actor, address, time and outcome %s", c.sql, e, c.outcome)
		}
		format := map[string]string{"": "json", typeCSV: "csv", typeParquet: "parquet"}[c.accept]
		code, _ := e.Detail["code"].(string)
		if fmt.Sprint(e.Detail["tables"]) != c.tables || e.Detail["rows"] != float64(c.rows) || e.Detail["format"] != format || code != c.code {
			t.Errorf("%s: detail %v, want %d rows of %s as %s, code %q", c.sql, e.Detail, c.rows, c.tables, format, c.code)
		}
		if ms, ok := e.Detail["ms"].(float64); !ok || ms < c.leastMS || ms > 60_000 {
			t.Errorf("%s: ms = %v, want at least %v", c.sql, e.Detail["ms"], c.leastMS)
		}
		if size, ok := e.Detail["bytes"].(float64); !ok || (size > 0) != (c.outcome == "ok") {
			t.Errorf("%s: bytes = %v", c.sql, e.Detail["bytes"])
		}
	}
	for _, secret := range []string{value, "word-in-text", "SELECT"} {
		if strings.Contains(string(log.body), secret) {
			t.Errorf("the audit log holds %q", secret)
		}
		if strings.Contains(w.logged(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

func TestLimitsAreVisibleToThoseWhomTheyBind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	ana, _ := w.analyst(w.synced(), "ana@company.com", "orders")
	var h api.HealthDetails
	w.call("GET", "/api/health/details", ana, nil).into(t, &h)
	for _, role := range []string{api.RoleAdmin, api.RoleAnalyst} {
		l, ok := h.Limits[role]
		if !ok || l.Rows <= 0 || l.Bytes <= 0 || l.StreamBytes <= 0 || l.Seconds <= 0 || l.MemoryBytes <= 0 || l.Concurrent <= 0 {
			t.Errorf("limits of %s = %+v, want all of them", role, l)
		}
	}
	if l := h.Limits[api.RoleAnalyst]; l.Seconds != 1 || l.Concurrent != 1 || h.Limits[api.RoleAdmin].Seconds <= 1 {
		t.Errorf("limits = %+v, want those that hold", h.Limits)
	}
}

func TestAnAnswerThatFailsHalfwayIsCutOffAndCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	const late = `SELECT CASE WHEN range = 2000000 THEN error('late')::BIGINT ELSE range END AS v FROM range(2000100)`
	cut := 0
	for _, typ := range mediaTypes() {
		body, err := json.Marshal(map[string]any{"sql": late})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/api/query", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer " + admin}, "Content-Type": {typeJSON}, "Accept": {typ}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			cut++ // before the headers were out: as good
			continue
		}
		answer, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		switch {
		case typ == typeJSON && err == nil && resp.StatusCode == http.StatusOK:
			// The limit of 1000 rows was reached before the failure.
		case resp.StatusCode == http.StatusBadRequest && err == nil:
			// It failed before anything was sent, and says so.
		case resp.StatusCode == http.StatusOK && errors.Is(err, io.ErrUnexpectedEOF):
			cut++
		default:
			t.Errorf("%s: %d with %d bytes ended with %v, want a connection that breaks", typ, resp.StatusCode, len(answer), err)
		}
	}
	if cut < 3 {
		t.Errorf("%d answers broke off; the test needs some that were on their way", cut)
	}
	w.eventually("answers that broke off are counted", func() bool {
		return w.metric(`agnes_http_requests_total{method="POST",route="/api/query",status="aborted"}`) == fmt.Sprint(cut)
	})
}

func TestCallersThatGoAwayAreNoErrorsOfTheInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	for n, typ := range mediaTypes() {
		ctx, goAway := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/api/query",
			strings.NewReader(`{"sql":"SELECT count(*) FROM range(1000000) a, range(1000000) b"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer " + admin}, "Content-Type": {typeJSON}, "Accept": {typ}}
		gone := make(chan error, 1)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			gone <- err
		}()
		w.eventually("the query runs", func() bool { return w.metric("agnes_queries_running") == "1" })
		goAway()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the caller got %v", typ, err)
		}
		w.eventually("the query has ended with its caller", func() bool { return w.metric("agnes_queries_running") == "0" })
		w.eventually("it is counted", func() bool {
			return w.metric(`agnes_http_requests_total{method="POST",route="/api/query",status="aborted"}`) == fmt.Sprint(n+1)
		})
	}
	if log := w.logged(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
		t.Errorf("the log takes it for a fault:\n%s", log)
	}
	w.eventually("the audit log says what happened", func() bool {
		var audit api.AuditLog
		w.call("GET", "/api/admin/audit?limit=1000", admin, nil).into(t, &audit)
		gone := 0
		for _, e := range audit.Entries {
			if e.Detail["code"] == "caller_gone" && e.Outcome == "failed" {
				gone++
			}
		}
		return gone == len(mediaTypes())
	})
}
