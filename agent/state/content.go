package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Content is what a closed system.duckdb holds, so that a copy of it can be
// compared with the original.
type Content struct {
	Schema   int               `json:"schema"`   // version of the schema; 0 where it is no state of agnes
	Version  string            `json:"version"`  // of the agnes that wrote the newest migration
	Instance string            `json:"instance"` // ID of the instance; empty where it is no state of agnes
	DuckDB   string            `json:"duckdb"`   // that computed the hashes
	Tables   map[string]string `json:"tables"`   // table -> rows/hash, independent of the rows' order
}

// ReadContent reads all of the closed database at path and changes nothing. A
// database with a write-ahead log beside it was not closed cleanly and is
// refused.
func ReadContent(ctx context.Context, path string) (c Content, err error) {
	if logs := walFiles(path); len(logs) > 0 {
		return Content{}, fmt.Errorf("%s was not closed cleanly: %s is left", path, logs[0])
	}
	db, err := duck.Open(ctx, path, duck.Options{ReadOnly: true, Threads: 2})
	if err != nil {
		return Content{}, orSystemProblem(err, filepath.Dir(path))
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	applied, err := appliedMigrations(ctx, db)
	if err != nil {
		return Content{}, err
	}
	if n := len(applied); n > 0 {
		c.Schema, c.Version = applied[n-1].version, applied[n-1].binary
		if err := db.QueryRowContext(ctx, "SELECT value FROM instance WHERE key = 'instance_id'").Scan(&c.Instance); err != nil {
			return Content{}, err
		}
	}
	if err := db.QueryRowContext(ctx, "SELECT version()").Scan(&c.DuckDB); err != nil {
		return Content{}, err
	}
	names, err := tableNames(ctx, db)
	if err != nil {
		return Content{}, err
	}
	c.Tables = make(map[string]string, len(names))
	for _, t := range names {
		if c.Tables[t], err = fingerprint(ctx, db, t); err != nil {
			return Content{}, err
		}
	}
	return c, nil
}

// Differs returns what got has otherwise than c, nil where they are the same.
// Hashes of two releases of DuckDB cannot be compared; row counts always are.
func (c Content) Differs(got Content) error {
	var diffs []string
	if c.Schema != got.Schema {
		diffs = append(diffs, fmt.Sprintf("expected schema version %d, found %d", c.Schema, got.Schema))
	}
	if c.Instance != got.Instance {
		diffs = append(diffs, fmt.Sprintf("expected the instance %q, found %q", c.Instance, got.Instance))
	}
	comparable := func(sum string) string {
		if c.DuckDB == got.DuckDB {
			return sum
		}
		rows, _, _ := strings.Cut(sum, "/")
		return rows
	}
	for _, t := range slices.Sorted(maps.Keys(c.Tables)) {
		switch found, ok := got.Tables[t]; {
		case !ok:
			diffs = append(diffs, fmt.Sprintf("table %s is missing", t))
		case comparable(found) != comparable(c.Tables[t]):
			diffs = append(diffs, fmt.Sprintf("table %s: expected rows/hash %s, found %s", t, comparable(c.Tables[t]), comparable(found)))
		}
	}
	for _, t := range slices.Sorted(maps.Keys(got.Tables)) {
		if _, ok := c.Tables[t]; !ok {
			diffs = append(diffs, fmt.Sprintf("table %s is not expected", t))
		}
	}
	if len(diffs) == 0 {
		return nil
	}
	return errors.New(strings.Join(diffs, "; "))
}

// SnapshotClosed writes a consistent copy of the database in opt.Dir to dest,
// as Store.Snapshot does, and does not migrate it: a schema of any version is
// copied. The caller holds the DATA_DIR lock and has no Store open. A
// write-ahead log that a crash left is recovered first, as a start would.
func SnapshotClosed(ctx context.Context, opt Options, dest string) (err error) {
	s, err := closedStore(opt)
	if err != nil {
		return err
	}
	if s.db, err = s.openRecovering(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.db.Close(), s.closeMain()) }()
	applied, err := appliedMigrations(ctx, s.db)
	if err != nil {
		return err
	}
	if len(applied) == 0 {
		return problem.New(problem.Refused, fmt.Sprintf("Expected %s to be a state of agnes, found a DuckDB database without schema_migrations.", s.path),
			"Check that DATA_DIR names the data directory of an instance.")
	}
	s.version = applied[len(applied)-1].version
	return s.Snapshot(ctx, dest)
}

// StoredSchemaVersion returns the schema version of the database in dir, 0
// where there is none. The database is not migrated and none of its bytes is
// changed, whatever version it has. The caller holds the DATA_DIR lock and has
// no Store open.
func StoredSchemaVersion(ctx context.Context, dir string) (version int, err error) {
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, orSystemProblem(err, dir)
	}
	files := walFiles(path)
	if _, err := os.Lstat(path + undoSuffix); err == nil {
		files = append(files, path+undoSuffix)
	}
	if len(files) == 0 {
		version, err := readSchema(ctx, path)
		if err == nil {
			return version, nil
		}
		s, serr := closedStore(Options{Dir: dir})
		if serr != nil {
			return 0, errors.Join(err, serr)
		}
		if p := s.formatProblem(err); p != nil {
			return 0, p
		}
		return 0, s.failed(err)
	}
	// Replaying a log writes, as does undoing a checkpoint, so that is done to a copy.
	copied, err := os.MkdirTemp("", "agnes-schema-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(copied)) }()
	for _, p := range append(files, path) {
		if err := copyFile(p, filepath.Join(copied, filepath.Base(p))); err != nil {
			return 0, orSystemProblem(err, copied)
		}
	}
	s, err := closedStore(Options{Dir: copied})
	if err != nil {
		return 0, err
	}
	if s.db, err = s.openRecovering(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.db.Close(), s.closeMain()) }()
	return schemaOf(ctx, s.db)
}

func readSchema(ctx context.Context, path string) (version int, err error) {
	db, err := duck.Open(ctx, path, duck.Options{ReadOnly: true, Threads: 1})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return schemaOf(ctx, db)
}

func schemaOf(ctx context.Context, db *sql.DB) (int, error) {
	applied, err := appliedMigrations(ctx, db)
	if err != nil || len(applied) == 0 {
		return 0, err
	}
	return applied[len(applied)-1].version, nil
}

// closedStore is a Store whose database is not open yet.
func closedStore(opt Options) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	migrations, err := embeddedMigrations()
	if err != nil {
		return nil, err
	}
	if opt.Dir, err = filepath.Abs(opt.Dir); err != nil {
		return nil, err
	}
	return &Store{opt: opt, path: filepath.Join(opt.Dir, databaseFile), log: opt.Log, migrations: migrations}, nil
}
