package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

const committed = "../shop"

func TestRegeneratingGivesTheCommittedFiles(t *testing.T) {
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := write(dir); err != nil {
			t.Fatal(err)
		}
	}
	names, err := os.ReadDir(first)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 5 {
		t.Errorf("wrote %d files, want 5", len(names))
	}
	for _, entry := range names {
		name := entry.Name()
		made := read(t, filepath.Join(first, name))
		if !bytes.Equal(made, read(t, filepath.Join(second, name))) {
			t.Errorf("%s: two runs wrote different bytes", name)
		}
		// A newer Go may compress otherwise: of a gzip file the content counts.
		if got, want := plain(t, name, made), plain(t, name, read(t, filepath.Join(committed, name))); !bytes.Equal(got, want) {
			t.Errorf("%s differs from the committed file; next: go generate ./examples/shopgen", name)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func plain(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	if !strings.HasSuffix(name, ".gz") {
		return data
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// An answered question in the README: a statement, then the table it returns.
var question = regexp.MustCompile("(?s)```sql\n(.*?)```\n\n((?:\\|[^\n]*\n)+)")

func TestReadmeAnswersAreTrue(t *testing.T) {
	t.Parallel()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for table, file := range map[string]string{
		"customers": "customers.csv", "products": "products.tsv", "orders": "orders.csv",
		"order_items": "order_items.csv.gz", "events": "events.ndjson",
	} {
		path := duck.Literal(filepath.Join(committed, file))
		if _, err := db.ExecContext(t.Context(), "CREATE TABLE "+duck.Ident(table)+" AS FROM "+path); err != nil {
			t.Fatal(err)
		}
		var rows int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+duck.Ident(table)).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		if line := fmt.Sprintf("| `%s` | `%s` | %d |", table, file, rows); !strings.Contains(string(read(t, filepath.Join(committed, "README.md"))), line) {
			t.Errorf("README.md lacks the line %q", line)
		}
	}

	questions := question.FindAllStringSubmatch(string(read(t, filepath.Join(committed, "README.md"))), -1)
	if len(questions) != 3 {
		t.Fatalf("found %d answered questions in README.md, want 3", len(questions))
	}
	for _, q := range questions {
		rows, err := db.QueryContext(t.Context(), q[1])
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		got := [][]string{columns}
		for rows.Next() {
			values, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				into[i] = &values[i]
			}
			if err := rows.Scan(into...); err != nil {
				t.Fatal(err)
			}
			row := make([]string, len(columns))
			for i, v := range values {
				row[i] = fmt.Sprint(v)
			}
			got = append(got, row)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(markdownTable(q[2]), got); diff != "" {
			t.Errorf("README.md says otherwise (-README +DuckDB):\n%s\n%s", q[1], diff)
		}
	}
}

func markdownTable(text string) [][]string {
	var table [][]string
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if i == 1 {
			continue // the rule below the header
		}
		cells := strings.Split(strings.Trim(line, "| "), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		table = append(table, cells)
	}
	return table
}
