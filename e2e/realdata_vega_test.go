//go:build realdata

package e2e

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// TestVegaDatasets serves the 73 files that the examples of Vega use: CSV, TSV,
// Parquet, JSON, among it maps and trees that are no tables, and pictures. Each
// file is a table whose content Go's own readers confirm, or there is a warning
// or an error that names it.
func TestVegaDatasets(t *testing.T) {
	parallel(t)
	files := publicData(t, "vega-datasets")
	in, job := serveFolder(t, t.TempDir(), files)
	synced := map[string]api.JobTable{}
	for _, table := range job.Tables {
		synced[table.ID] = table
	}
	entries, err := os.ReadDir(files)
	if err != nil {
		t.Fatal(err)
	}
	confirmed := 0
	for _, entry := range entries {
		name := entry.Name()
		stem, ending, _ := strings.Cut(name, ".")
		table, isTable := synced[strings.ReplaceAll(stem, "-", "_")]
		warned := slices.ContainsFunc(job.Warnings, func(w string) bool { return strings.Contains(w, name) })
		switch {
		case isTable && table.Status == "succeeded":
			answersInFull(t, in, table.ID)
			if content := readContent(t, filepath.Join(files, name), ending); content != nil {
				content.confirm(t, in, name, table.ID)
				confirmed++
			}
		case isTable && table.Error != "" && table.Hint != "":
			t.Logf("%s is no table: %s", name, table.Error)
		case !warned:
			t.Errorf("%s is neither a table nor named by a warning (%+v)", name, table)
		}
	}
	if confirmed < 60 {
		t.Errorf("the content of %d files was confirmed, want at least 60", confirmed)
	}
	t.Logf("%d files, %d tables, %d confirmed by other readers; sync %s; warnings: %q", len(entries), len(job.Tables), confirmed, took(job), job.Warnings)

	// What people know of these files.
	for sql, want := range map[string]string{
		"SELECT count(*) FROM cars":                                                                   "406",
		"SELECT count(*) FROM seattle_weather":                                                        "1461",
		"SELECT count(*) FROM airports":                                                               "3376",
		"SELECT count(*) FROM movies":                                                                 "3201",
		"SELECT count(*) FROM unemployment":                                                           "3218",
		"SELECT count(*) FROM flights_3m":                                                             "3000000",
		"SELECT Name FROM cars ORDER BY Horsepower DESC, Name LIMIT 1":                                "pontiac grand prix",
		"SELECT count(*) FROM (SELECT unnest(features) FROM earthquakes)":                             strconv.Itoa(earthquakes(t, files)),
		"SELECT count(*) FROM flights_5k f JOIN airports a ON f.origin = a.iata WHERE a.state = 'CA'": strconv.Itoa(fromCalifornia(t, files)),
	} {
		if got := fmt.Sprint(in.query(t, sql).Rows[0][0]); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}

	const delays = "SELECT strftime(date, '%Y-%m') AS month, origin, count(*) AS n, sum(delay) AS delay, max(distance) AS longest FROM flights_3m GROUP BY ALL ORDER BY ALL"
	r := newReference(t)
	r.run("CREATE VIEW flights_3m AS FROM " + duck.Literal(filepath.Join(files, "flights-3m.parquet")) + ";")
	if err := compare(in.query(t, delays), r.answers(map[string]string{"delays": delays})["delays"]); err != nil {
		t.Errorf("flights-3m.parquet: %v", err)
	}

	again := in.sync(t)
	for _, table := range again.Tables {
		if synced[table.ID].Status == "succeeded" && table.Status != "unchanged" {
			t.Errorf("%s: %s by a second sync of the same files, want unchanged", table.ID, table.Status)
		}
	}
}

// answersInFull asks for whole rows, nested values and all.
func answersInFull(t *testing.T, in *instance, table string) {
	t.Helper()
	if got := in.query(t, "SELECT * FROM "+duck.Ident(table)+" LIMIT 3"); len(got.Rows) == 0 || len(got.Rows[0]) != len(got.Columns) {
		t.Errorf("%s: %d rows", table, len(got.Rows))
	}
}

// content is what a reader of Go's library finds in a file.
type content struct {
	rows    int64
	columns []string
	cells   map[string]*cells
}

// cells sums up one column.
type cells struct {
	filled int64   // neither null nor empty
	texts  int64   // filled that are text
	bytes  int64   // of the texts
	sum    float64 // of those that are numbers or read as such

	// The first and the last text, cut to the length of a date. All dates in
	// these files begin with the year, so their order is that of time.
	first, last string
}

func (c *cells) add(text string) {
	if text == "" {
		return
	}
	c.filled++
	c.texts++
	c.bytes += int64(len(text))
	if f, err := strconv.ParseFloat(strings.TrimSpace(text), 64); err == nil {
		c.sum += f
	}
	day := strings.ReplaceAll(text[:min(len(text), len(time.DateOnly))], "/", "-")
	if c.first == "" || day < c.first {
		c.first = day
	}
	c.last = max(c.last, day)
}

func (c *content) column(name string) *cells {
	if c.cells[name] == nil {
		c.cells[name] = &cells{}
		c.columns = append(c.columns, name)
	}
	return c.cells[name]
}

// readContent returns nil for a kind of file that Go's library does not read.
func readContent(t *testing.T, path, ending string) *content {
	t.Helper()
	c := &content{cells: map[string]*cells{}}
	switch ending {
	case "csv":
		c.delimited(t, path, ',')
	case "tsv":
		c.delimited(t, path, '\t')
	case "json":
		c.json(t, path)
	default:
		return nil
	}
	return c
}

func (c *content) delimited(t *testing.T, path string, comma rune) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\ufeff"))))
	r.Comma = comma
	header, err := r.Read()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for {
		record, err := r.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		c.rows++
		for i, name := range header {
			c.column(name).add(record[i])
		}
	}
}

// json reads an array of objects, or one object as one row.
func (c *content) json(t *testing.T, path string) {
	t.Helper()
	var document any
	readJSON(t, path, &document)
	list, ok := document.([]any)
	if !ok {
		list = []any{document}
	}
	for _, element := range list {
		c.rows++
		object, ok := element.(map[string]any)
		if !ok {
			t.Fatalf("%s holds a %T among its objects", path, element)
		}
		for name, value := range object {
			cell := c.column(name)
			switch value := value.(type) {
			case nil:
			case string:
				cell.add(value)
			case json.Number:
				f, err := value.Float64()
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				cell.filled++
				cell.sum += f
			default:
				cell.filled++
			}
		}
	}
}

// confirm compares a table with its file: rows, columns, and of each column the
// filled cells and the sum of its numbers, the length of its texts or the range
// of its days.
func (c *content) confirm(t *testing.T, in *instance, file, table string) {
	t.Helper()
	info, err := in.CatalogTable(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	exprs := []string{"count(*)"}
	var names []string
	for _, column := range info.Columns {
		names = append(names, column.Name)
		id := duck.Ident(column.Name)
		measure := "NULL"
		switch column.Type {
		case "VARCHAR":
			measure = "sum(strlen(" + id + "))"
		case "BIGINT", "DOUBLE":
			measure = "sum(" + id + ")"
		case "DATE", "TIMESTAMP":
			measure = fmt.Sprintf("min(%s)::DATE || ' to ' || max(%s)::DATE", id, id)
		}
		exprs = append(exprs, "count(nullif("+id+"::VARCHAR, ''))", measure)
	}
	wantNames := slices.Sorted(slices.Values(c.columns))
	if gotNames := slices.Sorted(slices.Values(names)); !slices.Equal(gotNames, wantNames) {
		t.Errorf("%s: columns %q, want %q", file, gotNames, wantNames)
		return
	}
	row := in.query(t, "SELECT "+strings.Join(exprs, ", ")+" FROM "+duck.Ident(table)).Rows[0]
	if !equal(row[0], count(c.rows)) || info.Rows != c.rows {
		t.Errorf("%s: %v rows, %d by the catalog, want %d", file, row[0], info.Rows, c.rows)
	}
	for i, column := range info.Columns {
		want := c.cells[column.Name]
		filled, measure := row[1+2*i], row[2+2*i]
		if !equal(filled, count(want.filled)) {
			t.Errorf("%s, column %s (%s): %v filled cells, want %d", file, column.Name, column.Type, filled, want.filled)
		}
		if expected := want.measure(column.Type); expected != nil && !equal(measure, expected) {
			t.Errorf("%s, column %s (%s): %v, want %v", file, column.Name, column.Type, measure, expected)
		}
	}
}

// measure is what confirm's query computes of a column of that type, or nil
// where there is nothing to compare.
func (c *cells) measure(columnType string) any {
	switch {
	case c.filled == 0:
		return nil
	case columnType == "BIGINT", columnType == "DOUBLE":
		return json.Number(strconv.FormatFloat(c.sum, 'g', -1, 64))
	case c.texts < c.filled: // a text column in which JSON has numbers too
		return nil
	case columnType == "VARCHAR":
		return count(c.bytes)
	case columnType == "DATE", columnType == "TIMESTAMP":
		return c.first + " to " + c.last
	}
	return nil
}

func count(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }

func earthquakes(t *testing.T, files string) int {
	t.Helper()
	var collection struct {
		Features []any `json:"features"`
	}
	readJSON(t, filepath.Join(files, "earthquakes.json"), &collection)
	return len(collection.Features)
}

// fromCalifornia counts the flights of flights-5k.json that start there.
func fromCalifornia(t *testing.T, files string) int {
	t.Helper()
	f, err := os.Open(filepath.Join(files, "airports.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	airports, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	iata, state := slices.Index(airports[0], "iata"), slices.Index(airports[0], "state")
	californian := map[string]bool{}
	for _, a := range airports[1:] {
		if a[state] == "CA" {
			californian[a[iata]] = true
		}
	}
	var flights []struct {
		Origin string `json:"origin"`
	}
	readJSON(t, filepath.Join(files, "flights-5k.json"), &flights)
	n := 0
	for _, f := range flights {
		if californian[f.Origin] {
			n++
		}
	}
	if n == 0 {
		t.Fatal("no flight starts in California")
	}
	return n
}
