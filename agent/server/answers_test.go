package server_test

import (
	"bytes"
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

const (
	typeJSON    = "application/json"
	typeNDJSON  = "application/x-ndjson"
	typeCSV     = "text/csv"
	typeArrow   = "application/vnd.apache.arrow.stream"
	typeParquet = "application/vnd.apache.parquet"
)

func mediaTypes() []string { return []string{typeJSON, typeNDJSON, typeCSV, typeArrow, typeParquet} }

// reader reads answers of integer columns in every format. It is safe for
// concurrent use.
type reader struct {
	db  *sql.DB // for Parquet
	dir string
}

func newReader(t *testing.T) *reader {
	t.Helper()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return &reader{db, t.TempDir()}
}

// cells returns an answer's rows.
func (r *reader) cells(mediaType string, body []byte) (rows [][]int64, err error) {
	switch mediaType {
	case typeJSON:
		var out struct{ Rows [][]int64 }
		err = json.Unmarshal(body, &out)
		return out.Rows, err
	case typeNDJSON:
		return ndjsonCells(body)
	case typeCSV:
		return csvCells(body)
	case typeArrow:
		return arrowCells(body)
	case typeParquet:
		return r.parquetCells(body)
	}
	return nil, fmt.Errorf("an answer of type %q", mediaType)
}

func ndjsonCells(body []byte) (rows [][]int64, err error) {
	for line := range bytes.Lines(body) {
		var row []int64
		for dec := json.NewDecoder(bytes.NewReader(line)); ; { // by token: a map would forget the order
			token, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			if n, ok := token.(float64); ok {
				row = append(row, int64(n))
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func csvCells(body []byte) (rows [][]int64, err error) {
	records, err := csv.NewReader(bytes.NewReader(body)).ReadAll()
	if err != nil || len(records) == 0 {
		return nil, fmt.Errorf("%d records of CSV: %w", len(records), err)
	}
	for _, record := range records[1:] {
		row := make([]int64, len(record))
		for i, cell := range record {
			if _, err := fmt.Sscan(cell, &row[i]); err != nil {
				return nil, err
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func arrowCells(body []byte) (rows [][]int64, err error) {
	r, err := ipc.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer r.Release()
	for r.Next() {
		batch := r.RecordBatch()
		for i := range int(batch.NumRows()) {
			var row []int64
			for _, column := range batch.Columns() {
				ints, ok := column.(*array.Int64)
				if !ok {
					return nil, fmt.Errorf("a column of type %s", column.DataType())
				}
				row = append(row, ints.Value(i))
			}
			rows = append(rows, row)
		}
	}
	return rows, r.Err()
}

func (r *reader) parquetCells(body []byte) (rows [][]int64, err error) {
	file, err := os.CreateTemp(r.dir, "*.parquet")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	_, err = file.Write(body)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	found, err := r.db.Query("SELECT * FROM read_parquet(" + duck.Literal(file.Name()) + ")")
	if err != nil {
		return nil, err
	}
	defer found.Close()
	columns, err := found.Columns()
	if err != nil {
		return nil, err
	}
	for found.Next() {
		row, into := make([]int64, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := found.Scan(into...); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, found.Err()
}

// eventually polls until ok, for at most ten seconds.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Errorf("waited 10 s in vain: %s", what)
			return
		}
	}
}

// metric returns the value of a metric, with its labels as they are written.
func (w *world) metric(name string) string {
	w.t.Helper()
	for line := range strings.Lines(string(w.call("GET", "/metrics", "", nil).body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// logged is what the instance has logged so far.
func (w *world) logged() string {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	return w.log.String()
}
