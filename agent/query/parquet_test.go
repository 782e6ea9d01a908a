package query_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
)

// A worker for Parquet does not keep the order of rows; others must never get
// it, whatever became of the statement that it was bound for.
func TestAWorkerBoundForParquetServesNothingElse(t *testing.T) {
	t.Parallel()
	view := parquet(t, t.TempDir(), "big", "SELECT range AS id FROM range(2000000)")
	e := engine(t)
	for _, sqlText := range []string{"SELECT nothing FROM big", "SELECT * FROM other", "SELECT id FROM big ORDER BY id DESC"} {
		_, err := e.Run(context.Background(), query.Request{
			Generation: 1, Views: []query.View{view}, SQL: sqlText, Format: query.Parquet, Timeout: time.Minute,
		}, func(query.Columns) (io.Writer, error) { return io.Discard, nil })
		if ended := err == nil; ended != (sqlText == "SELECT id FROM big ORDER BY id DESC") {
			t.Fatalf("%s: %v", sqlText, err)
		}
		res, err := e.Query(t.Context(), query.Request{Generation: 1, Views: []query.View{view}, SQL: "SELECT id FROM big", Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Rows) != 2000000 {
			t.Fatalf("%d rows", len(res.Rows))
		}
		for i, row := range res.Rows {
			if n, ok := row[0].(json.Number); !ok || n.String() != strconv.Itoa(i) {
				t.Fatalf("after %s as Parquet, row %d of JSON = %v, want the table's order", sqlText, i, row[0])
			}
		}
	}
}

func TestParquetKeepsTheOrderThatAStatementAsksFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	view := parquet(t, dir, "big", "SELECT range AS id, md5(range::VARCHAR) AS v FROM range(1000000)")
	e := engine(t)
	for name, sqlText := range map[string]string{
		"ordered":  "SELECT v, id FROM big ORDER BY v",
		"limited":  "SELECT v, id FROM big ORDER BY v LIMIT 600000",
		"subquery": "WITH o AS (SELECT v, id FROM big ORDER BY v) SELECT v, id FROM o",
	} {
		file := filepath.Join(dir, name+".parquet")
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := e.Run(t.Context(), query.Request{
			Generation: 1, Views: []query.View{view}, SQL: sqlText, Format: query.Parquet, Limit: 500_000, Timeout: time.Minute,
		}, func(query.Columns) (io.Writer, error) { return out, nil })
		if err := errors.Join(err, out.Close()); err != nil || sum.Rows != 500_000 {
			t.Fatalf("%s: %d rows, %v", sqlText, sum.Rows, err)
		}
		// The same values from a single thread, in the order of the text.
		res, err := ask(e, []query.View{view, {Name: "answer", Files: []string{file}}}, `WITH
			want AS (SELECT id, row_number() OVER (ORDER BY v) AS place FROM big),
			got AS (SELECT id, row_number() OVER () AS place FROM answer)
			SELECT count(*), count(*) FILTER (WHERE want.id = got.id) FROM want JOIN got USING (place)`)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(res.Rows); got != "[[500000 500000]]" {
			t.Errorf("%s: rows and those of them in their place = %s, want all 500000", sqlText, got)
		}
	}
}
