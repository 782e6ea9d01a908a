package csv_test

import (
	"bytes"
	"compress/gzip"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
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
		if err := errors.Join(rows.Err(), rows.Close()); err != nil { //nolint:sqlclosecheck // in a loop
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
