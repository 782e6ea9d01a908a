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
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// viewsPerTransaction bounds what one broken view costs: an error ends a DuckDB
// transaction, so its other views are made again.
const viewsPerTransaction = 64

// createDatabase writes server.duckdb: one view for each local table, each
// proved by binding it to its files. Tables whose files cannot be bound fall
// back to their last good version.
func (b *build) createDatabase(ctx context.Context) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(b.dir, databaseFile)
	db, err := duck.Open(ctx, path, duck.Options{Threads: 1, Settings: map[string]string{
		"memory_limit": "512MB", "temp_directory": "",
	}})
	if err != nil {
		return err
	}
	err = b.createViews(ctx, db)
	if err == nil {
		err = b.readColumns(ctx, db)
	}
	if err == nil {
		_, err = db.ExecContext(ctx, "CHECKPOINT")
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if exists(path + ".wal") {
		return fmt.Errorf("DuckDB left a write-ahead log beside %s", path)
	}
	if err := b.proveDatabase(ctx, path); err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o444), syncPath(path))
}

// proveDatabase opens the finished database as any outside program would.
func (b *build) proveDatabase(ctx context.Context, path string) error {
	db, err := duck.Open(ctx, path, duck.Options{ReadOnly: true, Threads: 1})
	if err != nil {
		return err
	}
	want, got := 0, 0
	for _, t := range b.tables {
		if t.hasView() {
			want++
		}
	}
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM duckdb_views() WHERE NOT internal").Scan(&got)
	if err == nil && got != want {
		err = fmt.Errorf("expected %d views in %s, found %d", want, path, got)
	}
	return errors.Join(err, db.Close())
}

func (t *table) hasView() bool { return !t.absent && t.info.QueryMode != connectors.Remote }

func (b *build) createViews(ctx context.Context, db *sql.DB) error {
	todo := slices.DeleteFunc(slices.Clone(b.tables), func(t *table) bool { return !t.hasView() })
	broken, err := b.createBatches(ctx, db, todo)
	if err != nil || len(broken) == 0 {
		return err
	}

	// Second round: the last good versions of what is broken.
	again, err := b.replaceBroken(broken)
	if err != nil {
		return err
	}
	broken, err = b.createBatches(ctx, db, again)
	if err != nil {
		return err
	}
	for t, err := range broken {
		t.absent = true
		t.err = fmt.Errorf("%w; and its last good version cannot be used: %w", t.err, err)
	}
	return nil
}

// replaceBroken puts the last good files in the place of broken ones and
// returns the tables that need a view again. Tables over the same files go
// together.
func (b *build) replaceBroken(broken map[*table]error) ([]*table, error) {
	causes := map[*staged]error{}
	for t, err := range broken {
		if t.info.Stale { // already the last good version
			t.absent = true
			t.err = fmt.Errorf("%w; and its last good version cannot be used: %w", t.err, err)
			continue
		}
		causes[t.staged] = err
	}
	for st, err := range causes {
		for _, p := range st.parts {
			if err := removeIfThere(filepath.Join(b.dir, filepath.FromSlash(p.File))); err != nil {
				return nil, err
			}
		}
		st.err = err
	}
	var again []*table
	for _, t := range b.tables {
		err, ok := causes[t.staged]
		if !ok {
			continue
		}
		key := t.bind.Source + "." + t.bind.SourceTable
		origins := make([]identity, len(t.staged.parts))
		for i, p := range t.staged.parts {
			origins[i] = p.Origin
		}
		b.rejected[key] = rejection{origins, err}
		if b.fallBack(t, err); !t.absent {
			again = append(again, t)
		}
	}
	return again, b.place(again)
}

// createBatches creates the views of tables, several transactions at a time,
// and returns the tables that cannot be bound.
func (b *build) createBatches(ctx context.Context, db *sql.DB, tables []*table) (map[*table]error, error) {
	var mu sync.Mutex
	broken := map[*table]error{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.threads)
	for batch := range slices.Chunk(tables, viewsPerTransaction) {
		g.Go(func() error {
			conn, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			for batch := slices.Clone(batch); ; {
				failed, cause, err := b.createBatch(ctx, conn, batch)
				if err != nil {
					return err
				}
				if cause == nil {
					return nil
				}
				mu.Lock()
				broken[batch[failed]] = cause
				mu.Unlock()
				batch = slices.Delete(batch, failed, failed+1)
			}
		})
	}
	return broken, g.Wait()
}

// createBatch creates the views in one transaction. When one cannot be bound,
// nothing is created, and that table's index and the cause are returned.
func (b *build) createBatch(ctx context.Context, conn *sql.Conn, batch []*table) (int, error, error) {
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return 0, nil, err
	}
	for i, t := range batch {
		err := b.createView(ctx, conn, t)
		if err == nil {
			continue
		}
		if _, rollbackErr := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); rollbackErr != nil {
			return 0, nil, errors.Join(err, rollbackErr)
		}
		if ctx.Err() != nil || isNoSpace(err) || isFatal(err, t.info.Stale) {
			return 0, nil, errors.Join(err, ctx.Err())
		}
		return i, b.unbindable(t, err), nil
	}
	_, err := conn.ExecContext(ctx, "COMMIT")
	return 0, nil, err
}

// isFatal reports failures of the build rather than of a table. A file whose
// footer eats the memory is the table's own fault, unless it was good before.
func isFatal(err error, wasGood bool) bool {
	text := err.Error()
	return strings.Contains(text, "database has been invalidated") || strings.Contains(text, "Too many open files") ||
		wasGood && strings.Contains(text, "Out of Memory Error")
}

func (b *build) createView(ctx context.Context, conn *sql.Conn, t *table) error {
	stmt := "CREATE OR REPLACE VIEW " + duck.Ident(t.info.ID) + " AS SELECT * FROM " + scan(t.info.Files...)
	if _, err := conn.ExecContext(ctx, stmt); err != nil {
		return err
	}
	if fresh := t.staged.fresh && t.err == nil; !fresh {
		return nil // it was looked at when it was
	}
	if err := sameSchema(ctx, conn, t.info.Files); err != nil {
		return err
	}
	if t.staged.trust {
		return nil
	}
	return conn.QueryRowContext(ctx, "SELECT count(*) FROM "+scan(t.info.Files...)).Scan(&t.info.Rows)
}

// scan reads files by list, and takes no columns from folder names such as a=1.
func scan(files ...string) string {
	return "read_parquet(" + duck.List(files) + ", hive_partitioning = false)"
}

// sameSchema compares every file of a table with the first, since the view's
// binding looks at that one alone and would fail, or drop columns, later.
func sameSchema(ctx context.Context, conn *sql.Conn, files []string) error {
	if len(files) < 2 {
		return nil
	}
	first, err := describe(ctx, conn, files[0])
	if err != nil {
		return err
	}
	for _, file := range files[1:] {
		columns, err := describe(ctx, conn, file)
		if err != nil {
			return err
		}
		for name, kind := range first {
			if columns[name] != kind {
				return schemaError(name, kind, columns[name], file)
			}
		}
		for name, kind := range columns {
			if first[name] != kind {
				return schemaError(name, first[name], kind, file)
			}
		}
	}
	return nil
}

func schemaError(column, want, got, file string) error {
	or := func(kind string) string {
		if kind == "" {
			return "no such column"
		}
		return kind
	}
	return fmt.Errorf("all files of a table must have one schema; column %q is %s in the first file and %s in %s",
		column, or(want), or(got), filepath.Base(file))
}

// describe returns the types of a file's columns by name.
func describe(ctx context.Context, conn *sql.Conn, file string) (map[string]string, error) {
	rows, err := conn.QueryContext(ctx, "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM "+scan(file)+")")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			return nil, err
		}
		out[strings.ToLower(name)] = kind
	}
	return out, rows.Err()
}

// unbindable says in one sentence why a table's files cannot be served.
func (b *build) unbindable(t *table, err error) error {
	cause, _, _ := strings.Cut(err.Error(), "\n")
	return problem.Wrap(err, problem.Unprocessable,
		fmt.Sprintf("the files of table %q (%s.%s) cannot be served: %s", t.bind.ID, t.bind.Source, t.bind.SourceTable,
			strings.ReplaceAll(cause, b.dir+string(filepath.Separator), "")),
		"See what is wrong with them: agnes contract verify "+filepath.Join(b.extracts, t.bind.Source)+
			"; then sync again: POST /api/sync/trigger.").WithCode("table_unreadable")
}

// readColumns fills in the columns as the views have them.
func (b *build) readColumns(ctx context.Context, db *sql.DB) error {
	rows, err := db.QueryContext(ctx, `SELECT table_name, column_name, data_type FROM duckdb_columns()
		WHERE NOT internal ORDER BY table_name, column_index`)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns := map[string][]Column{}
	for rows.Next() {
		var table string
		var c Column
		if err := rows.Scan(&table, &c.Name, &c.Type); err != nil {
			return err
		}
		columns[table] = append(columns[table], c)
	}
	for _, t := range b.tables {
		if t.hasView() {
			t.info.Columns = columns[t.info.ID]
		}
	}
	return rows.Err()
}
