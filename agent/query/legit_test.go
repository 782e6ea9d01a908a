package query_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Statements that a filter of keywords refuses and that people need:
// testdata/legitimate/<group>.yaml, over the tables of testdata/shop.yaml.
type legitimate struct {
	SQL    string `yaml:"sql"`
	Params []any  `yaml:"params"`
	Want   string `yaml:"want"` // the rows as JSON
}

// shop writes the tables of testdata/shop.yaml.
func shop(t testing.TB) []query.View {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tables yaml.MapSlice
	if err := yaml.Unmarshal(data, &tables); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var views []query.View
	for i, item := range tables {
		v := writeTable(t, dir, fmt.Sprint("t", i), item.Value.(string))
		v.Name = item.Key.(string)
		views = append(views, v)
	}
	return views
}

func TestEveryLegitimateStatementIsAnswered(t *testing.T) {
	t.Parallel()
	views := shop(t)
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	groups, entries := corpus[legitimate](t, "legitimate")
	n, seen := 0, make(map[string]bool)
	for _, group := range groups {
		for _, l := range entries[group] {
			n++
			key := fmt.Sprint(l.SQL, l.Params)
			if seen[key] {
				t.Errorf("%s: listed twice: %s", group, l.SQL)
			}
			seen[key] = true
			res, err := e.Query(context.Background(), query.Request{
				Generation: 1, Views: views, SQL: l.SQL, Params: l.Params, Limit: 1000, Timeout: 20 * time.Second,
			})
			if err != nil {
				t.Errorf("%s: %s\n  %v", group, l.SQL, err)
				continue
			}
			got, err := json.Marshal(res.Rows)
			if err != nil {
				t.Errorf("%s: %s: %v", group, l.SQL, err)
				continue
			}
			if diff := cmp.Diff(exact(t, l.Want), exact(t, string(got))); diff != "" {
				t.Errorf("%s: %s\n  got  %s\n  want %s", group, l.SQL, got, l.Want)
			}
		}
	}
	if n < 200 {
		t.Errorf("the corpus holds %d statements, want at least 200", n)
	}
	t.Logf("%d statements in %d groups", n, len(groups))
}

// What is answered in JSON is answered in every format.
func TestEveryLegitimateStatementIsAnsweredInEveryFormat(t *testing.T) {
	t.Parallel()
	views := shop(t)
	e, err := query.New(t.Context(), query.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	groups, entries := corpus[legitimate](t, "legitimate")
	for _, format := range []query.Format{query.NDJSON, query.CSV, query.Parquet, query.Arrow} {
		for _, group := range groups {
			for _, l := range entries[group] {
				var body bytes.Buffer
				sum, err := e.Run(context.Background(), query.Request{
					Generation: 1, Views: views, SQL: l.SQL, Params: l.Params, Format: format, Timeout: 20 * time.Second,
				}, func(query.Columns) (io.Writer, error) { return &body, nil })
				if format == query.Arrow && err != nil && problem.As(err).Code == "no_arrow" {
					t.Skip("this build cannot write Arrow: test with -tags duckdb_arrow")
				}
				if err != nil {
					t.Errorf("%s: %s: %s\n  %v", format, group, l.SQL, err)
					continue
				}
				if want := len(exact(t, l.Want).([]any)); int(sum.Rows) != want || (body.Len() == 0 && format != query.NDJSON) {
					t.Errorf("%s: %s: %s: %d rows in %d bytes, want %d rows", format, group, l.SQL, sum.Rows, body.Len(), want)
				}
			}
		}
	}
}

// exact decodes JSON so that equal numbers are equal, however they are written.
func exact(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case json.Number:
			r, ok := new(big.Rat).SetString(v.String())
			if !ok {
				t.Fatalf("%s is no number", v)
			}
			return "number " + r.RatString()
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case map[string]any:
			for k := range v {
				v[k] = walk(v[k])
			}
		}
		return v
	}
	return walk(v)
}
