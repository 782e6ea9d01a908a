package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// SystemSchema describes the tables of system.duckdb, sorted by name.
type SystemSchema struct {
	Version int           `json:"version"`
	Tables  []SchemaTable `json:"tables"`
}

// SchemaTable is one table; its columns are in their order.
type SchemaTable struct {
	Name       string         `json:"name"`
	Columns    []SchemaColumn `json:"columns"`
	PrimaryKey []string       `json:"primary_key"` // empty, never null, when it has none
}

// SchemaColumn is one column. Default is an SQL expression, empty for none.
type SchemaColumn struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Nullable bool   `json:"nullable"`
	Default  string `json:"default"`
}

// Schema returns the schema that this binary's migrations make, built
// in memory. It needs no data directory and its result is the same every time.
func Schema(ctx context.Context) (*SystemSchema, error) {
	ms, err := embeddedMigrations()
	if err != nil {
		return nil, err
	}
	all, err := describeMigrations(ctx, ms, latest(ms))
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// describeMigrations applies ms to a database in memory and describes the
// schema after version from, after from+1, and so on to the last.
func describeMigrations(ctx context.Context, ms []migration, from int) (all []*SystemSchema, err error) {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, m := range ms {
		if err := applyMigration(ctx, db, m, "", nil); err != nil {
			return nil, fmt.Errorf("migration %s: %w", m.name, err)
		}
		if m.version < from {
			continue
		}
		d, err := describe(ctx, db)
		if err != nil {
			return nil, err
		}
		d.Version = m.version
		all = append(all, d)
	}
	return all, nil
}

// querier is what *sql.DB, *sql.Conn and *sql.Tx share for reading.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// collect runs a query and reads each of its rows with fn.
func collect[T any](ctx context.Context, q querier, fn func(scan func(...any) error) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		v, err := fn(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

func scanOne[T any](scan func(...any) error) (v T, err error) { return v, scan(&v) }

// tableNames lists the tables of the connection's own database, sorted.
func tableNames(ctx context.Context, q querier) ([]string, error) {
	return collect(ctx, q, scanOne[string],
		"SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT internal ORDER BY 1")
}

// describe reads the schema of an open database. Version is left 0.
func describe(ctx context.Context, q querier) (*SystemSchema, error) {
	type row struct {
		table string
		SchemaColumn
	}
	rows, err := collect(ctx, q, func(scan func(...any) error) (r row, err error) {
		return r, scan(&r.table, &r.Name, &r.Type, &r.Nullable, &r.Default)
	}, `SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, '')
		FROM duckdb_columns() WHERE database_name = current_database() AND NOT internal
		ORDER BY table_name, column_index`)
	if err != nil {
		return nil, err
	}
	type key struct{ table, columns string }
	keys, err := collect(ctx, q, func(scan func(...any) error) (k key, err error) {
		return k, scan(&k.table, &k.columns)
	}, `SELECT table_name, array_to_string(constraint_column_names, ',') FROM duckdb_constraints()
		WHERE database_name = current_database() AND constraint_type = 'PRIMARY KEY'`)
	if err != nil {
		return nil, err
	}
	d := &SystemSchema{Tables: []SchemaTable{}}
	for _, r := range rows {
		if n := len(d.Tables); n == 0 || d.Tables[n-1].Name != r.table {
			d.Tables = append(d.Tables, SchemaTable{Name: r.table, PrimaryKey: []string{}})
		}
		t := &d.Tables[len(d.Tables)-1]
		t.Columns = append(t.Columns, r.SchemaColumn)
	}
	for _, k := range keys {
		for i := range d.Tables {
			if d.Tables[i].Name == k.table {
				d.Tables[i].PrimaryKey = strings.Split(k.columns, ",")
			}
		}
	}
	return d, nil
}

// differs returns every difference between want and got as one error.
func (want *SystemSchema) differs(got *SystemSchema) error {
	var diffs []string
	note := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	index := func(s *SystemSchema) map[string]SchemaTable {
		m := map[string]SchemaTable{}
		for _, t := range s.Tables {
			m[t.Name] = t
		}
		return m
	}
	gotTables, wantTables := index(got), index(want)
	for _, w := range want.Tables {
		g, ok := gotTables[w.Name]
		if !ok {
			note("table %s is missing", w.Name)
			continue
		}
		for i := range max(len(w.Columns), len(g.Columns)) {
			switch {
			case i >= len(g.Columns):
				note("column %s.%s is missing", w.Name, w.Columns[i].Name)
			case i >= len(w.Columns):
				note("column %s.%s is not expected", w.Name, g.Columns[i].Name)
			case w.Columns[i] != g.Columns[i]:
				note("column %d of %s: expected %s, found %s", i+1, w.Name, w.Columns[i], g.Columns[i])
			}
		}
		if !slices.Equal(w.PrimaryKey, g.PrimaryKey) {
			note("primary key of %s: expected %v, found %v", w.Name, w.PrimaryKey, g.PrimaryKey)
		}
	}
	for _, g := range got.Tables {
		if _, ok := wantTables[g.Name]; !ok {
			note("table %s is not expected", g.Name)
		}
	}
	if len(diffs) == 0 {
		return nil
	}
	return errors.New(strings.Join(diffs, "; "))
}

// String returns the column as SQL would declare it.
func (c SchemaColumn) String() string {
	text := c.Name + " " + c.Type
	if !c.Nullable {
		text += " NOT NULL"
	}
	if c.Default != "" {
		text += " DEFAULT " + c.Default
	}
	return text
}
