package analytics

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// preloadBatch bounds the extracts that are open at once.
const preloadBatch = 64

// preload reads what plain, faultless extracts say of themselves through one
// in-memory DuckDB that attaches them: about a tenth of the time of
// connectors.ReadExtract, which opens a DuckDB for each. It only ever saves
// time. An extract that is missing here, because it has a fault, remote tables
// or anything else out of the ordinary, is read by ReadExtract, whose judgement
// and errors count.
func (b *build) preload(ctx context.Context, sources []string) map[string]cachedExtract {
	loaded := map[string]cachedExtract{}
	for batch := range slices.Chunk(sources, preloadBatch) {
		var found []*candidate
		for _, source := range batch {
			c := &candidate{source: source, dir: filepath.Join(b.extracts, source)}
			if c.look(b.extract[source].state) {
				c.alias = fmt.Sprintf("e%d", len(found))
				found = append(found, c)
			}
		}
		if len(found) < 3 {
			continue
		}
		if err := b.preloadAll(ctx, found); err != nil {
			b.log.Debug("extracts are read one by one", "error", err)
		}
		for _, c := range found {
			if c.extract != nil {
				loaded[c.source] = cachedExtract{c.state, c.extract}
			}
		}
	}
	return loaded
}

// candidate is an extract that preload tries to read.
type candidate struct {
	source, dir, alias string
	state              sourceState
	attached           bool
	tables             map[string]string // base tables of main, with their columns
	extract            *connectors.Extract
}

// look reports whether the extract needs to be read and has nothing odd about
// its file. A write-ahead log must be seen before DuckDB opens the file.
func (c *candidate) look(known sourceState) bool {
	var err error
	c.state, err = stateOf(c.dir)
	if err != nil || c.state.wal || c.state == known {
		return false
	}
	info, err := os.Lstat(filepath.Join(c.dir, connectors.ExtractFile))
	return err == nil && info.Mode().IsRegular()
}

func (b *build) preloadAll(ctx context.Context, found []*candidate) (err error) {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1, Settings: map[string]string{
		"memory_limit": "512MB", "temp_directory": "",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	byAlias := map[string]*candidate{}
	for _, c := range found {
		file := filepath.Join(c.dir, connectors.ExtractFile)
		_, err := db.ExecContext(ctx, "ATTACH "+duck.Literal(file)+" AS "+c.alias+" (READ_ONLY)")
		c.attached = err == nil
		byAlias[c.alias] = c
	}
	// From here on nothing in a foreign file can reach anything outside of it.
	if _, err := db.ExecContext(ctx, "SET enable_external_access = false"); err != nil {
		return err
	}
	if err := describeAll(ctx, db, byAlias); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(b.threads)
	for _, c := range found {
		if !c.plain() {
			continue
		}
		g.Go(func() error {
			ext, err := c.read(ctx, db)
			if err == nil {
				c.extract = ext
			}
			return nil // ReadExtract says it better
		})
	}
	return g.Wait()
}

// describeAll lists the contract's tables of all attached extracts.
func describeAll(ctx context.Context, db *sql.DB, byAlias map[string]*candidate) error {
	rows, err := db.QueryContext(ctx, `SELECT t.database_name, lower(t.table_name), string_agg(lower(c.column_name) || ' ' || c.data_type, ', ' ORDER BY c.column_index)
		FROM duckdb_tables() t JOIN duckdb_columns() c
		  ON c.database_name = t.database_name AND c.table_oid = t.table_oid AND c.table_name = t.table_name AND c.schema_name = t.schema_name
		WHERE t.schema_name = 'main' AND lower(t.table_name) IN (`+contractTables()+`) GROUP BY ALL`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var alias, table, columns string
		if err := rows.Scan(&alias, &table, &columns); err != nil {
			return err
		}
		if c := byAlias[alias]; c != nil {
			if c.tables == nil {
				c.tables = map[string]string{}
			}
			c.tables[table] = columns
		}
	}
	return rows.Err()
}

func contractTables() string {
	return duck.Literal(connectors.MetaTable) + ", " + duck.Literal(connectors.RemoteAttachTable) + ", " + duck.Literal(connectors.StateTable)
}

// plain reports whether the extract has the contract's tables in their right
// shape and no remote ones.
func (c *candidate) plain() bool {
	columns := connectors.MetaColumns()
	want := make([]string, len(columns))
	for i, column := range columns {
		want[i] = column.Name + " " + column.Type
	}
	_, remote := c.tables[connectors.RemoteAttachTable]
	return c.attached && !remote && c.tables[connectors.MetaTable] == strings.Join(want, ", ")
}

var errOdd = errors.New("out of the ordinary")

// read reads _meta. State is told apart from none and not read: nobody here
// asks for more.
func (c *candidate) read(ctx context.Context, db *sql.DB) (*connectors.Extract, error) {
	ext := &connectors.Extract{Dir: c.dir, Source: c.source}
	if c.tables[connectors.StateTable] == "table_name VARCHAR, state VARCHAR" {
		ext.State = map[string]string{}
	}
	rows, err := db.QueryContext(ctx, "SELECT table_name, description, rows, size_bytes, extracted_at, query_mode FROM "+c.alias+".main."+connectors.MetaTable)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	seen := map[string]bool{}
	for rows.Next() {
		var name, mode string
		var description sql.NullString
		var count, size sql.NullInt64
		var at sql.Null[time.Time]
		if err := rows.Scan(&name, &description, &count, &size, &at, &mode); err != nil {
			return nil, err
		}
		lower := strings.ToLower(name)
		if connectors.ValidName(name) != nil || seen[lower] || strings.Contains(contractTables(), "'"+lower+"'") ||
			connectors.QueryMode(mode) != connectors.Local || !count.Valid || !size.Valid || !at.Valid {
			return nil, errOdd
		}
		seen[lower] = true
		ext.Tables = append(ext.Tables, connectors.Meta{
			Table: name, Description: description.String, Rows: count.Int64, SizeBytes: size.Int64,
			ExtractedAt: at.V.UTC(), QueryMode: connectors.Local,
		})
	}
	return ext, rows.Err()
}
