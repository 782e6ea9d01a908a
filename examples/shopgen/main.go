// Shopgen writes the sample shop in examples/shop.
//
// The shop is made up, but its files are as untidy as real exports: a byte
// order mark, names in many alphabets, fields that are empty in two ways, dates
// in three forms, notes with line breaks, orphans, a gzip file and nested JSON.
// Three stories are planted in the numbers; examples/shop/README.md asks the
// questions that find them.
//
// The random source is seeded and no clock is read, so every run writes the
// same files. tables.go makes the rows, this file writes them out.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

//go:generate go run . -o ../shop

func main() {
	out := flag.String("o", ".", "folder to write the five files to")
	flag.Parse()
	if err := write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "shopgen:", err)
		os.Exit(1)
	}
}

// write makes the shop and writes its files into dir, which must exist.
func write(dir string) error {
	files, err := render(newShop())
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// render returns the shop's files by name.
func render(s *shop) (map[string][]byte, error) {
	items, err := gzipped(delimited(s.items, ','))
	if err != nil {
		return nil, err
	}
	events, err := ndjson(s.events)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"customers.csv":      append([]byte("\ufeff"), customersCSV(s.customers)...),
		"products.tsv":       delimited(s.products, '\t'),
		"orders.csv":         delimited(s.orders, ','),
		"order_items.csv.gz": items,
		"events.ndjson":      events,
	}, nil
}

func delimited(rows [][]string, comma rune) []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Comma = comma
	_ = w.WriteAll(rows) // a bytes.Buffer takes every write
	return b.Bytes()
}

// customersCSV quotes as a CRM does: a phone number that was deleted is "",
// one that never was is nothing. Lines end as on Windows.
func customersCSV(rows [][]string) []byte {
	var b strings.Builder
	for i, row := range rows {
		for j, field := range row {
			if j > 0 {
				b.WriteByte(',')
			}
			switch {
			case field == deleted:
				b.WriteString(`""`)
			case i > 0 && strings.ContainsAny(field, `,"`):
				b.WriteString(`"` + strings.ReplaceAll(field, `"`, `""`) + `"`)
			default:
				b.WriteString(field)
			}
		}
		b.WriteString("\r\n")
	}
	return []byte(b.String())
}

// gzipped leaves name and time out of the header: they would differ by run.
func gzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func ndjson(events []event) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, e := range events {
		if err := enc.Encode(e); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
