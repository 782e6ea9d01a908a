// Package store is what is remembered of a fleet between two commands: how each
// instance was and since when, the incidents and what was said of them, and the
// rollouts with their orders. It is one SQLite file, fleet.db, in a folder that
// the operator's commands share; several programs may have it open at a time.
//
// Each kind of record has a file here, and its tables one in migrations. What a
// record means is decided by the package that writes it, fleet/monitor or
// fleet/rollout.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // the driver

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// File is the name of the database in its folder.
const File = "fleet.db"

// Store is the open database. It is safe for concurrent use, also by other
// processes: a writer waits for another one for five seconds.
type Store struct {
	db   *sql.DB
	path string

	mu       sync.Mutex
	prepared map[string]*sql.Stmt // statements that come again and again
}

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens the database in dir, and makes both where they are missing. A
// database of a newer program is left as it is and is a problem.Refused.
func Open(ctx context.Context, dir string) (*Store, error) {
	path := filepath.Join(dir, File)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, unusable(err, path)
	}
	// An immediate transaction takes the writer's place at its begin, so that none
	// fails half way for another's sake.
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(5000)", "journal_mode(wal)", "synchronous(full)", "foreign_keys(on)", "journal_size_limit(16777216)",
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: options.Encode()}).String())
	if err != nil {
		return nil, unusable(err, path)
	}
	db.SetMaxIdleConns(8) // to open one takes longer than most of what is done with it
	s := &Store{db: db, path: path, prepared: map[string]*sql.Stmt{}}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// Close closes the database. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.prepared) // they end with the database
	return s.db.Close()
}

// migrate takes the database to the schema of this program. The number of steps
// that were taken is SQLite's user_version.
func (s *Store) migrate(ctx context.Context) error {
	steps, err := fs.Glob(migrations, "migrations/*.sql") // in the order of their names
	if err != nil {
		return err
	}
	var at int
	version := func(row *sql.Row) error { return unusable(row.Scan(&at), s.path) }
	// Where nothing is to be done nothing is written: what is remembered can be read
	// on a full disk, too.
	if err := version(s.db.QueryRowContext(ctx, "PRAGMA user_version")); err != nil || at == len(steps) {
		return err
	}
	return s.change(ctx, func(tx *sql.Tx) error {
		if err := version(tx.QueryRowContext(ctx, "PRAGMA user_version")); err != nil {
			return err
		}
		if at > len(steps) {
			return problem.New(problem.Refused, fmt.Sprintf("%s was written by a newer agnesctl: its schema is %d, and this one knows %d.", s.path, at, len(steps)),
				"Install that agnesctl, or name another folder: --state DIR")
		}
		for _, step := range steps[at:] {
			text, err := migrations.ReadFile(step)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return fmt.Errorf("%s: %w", step, err)
			}
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", len(steps)))
		return err
	})
}

// change runs f in one transaction, which is kept whole or not at all.
func (s *Store) change(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return unusable(err, s.path)
	}
	if err := f(tx); err != nil {
		return errors.Join(unusable(err, s.path), tx.Rollback())
	}
	return unusable(tx.Commit(), s.path)
}

// statement returns a statement that is prepared once.
func (s *Store) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.prepared[query]; known != nil {
		return known, nil
	}
	made, err := s.db.PrepareContext(ctx, query) //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return nil, unusable(err, s.path)
	}
	s.prepared[query] = made
	return made, nil
}

// unusable names the file in an error of the database, and says what to do.
func unusable(err error, path string) error {
	if _, said := errors.AsType[*problem.Error](err); err == nil || said {
		return err
	}
	for _, known := range []error{ErrLeaseLost, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return err
		}
	}
	hint := "Check the folder's permissions and free space, or name another one: --state DIR"
	switch text := err.Error(); {
	case strings.Contains(text, "malformed"), strings.Contains(text, "not a database"):
		hint = "Move the file away; what it remembers is lost, and no instance is touched: mv " + path + " " + path + ".bad"
	case strings.Contains(text, "SQLITE_BUSY"):
		hint = "Another agnesctl is writing: wait a moment, and run the same command again."
	}
	return problem.Wrap(err, problem.Internal, "The fleet's database "+path+" cannot be used", hint)
}
