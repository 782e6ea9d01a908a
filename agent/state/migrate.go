package state

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one step of the schema. Its file is never edited once released.
type migration struct {
	version  int
	name     string // file name
	sql      string
	checksum string // sha256 of the file, hex
}

var migrationName = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)

// loadMigrations reads NNNN_name.sql files, numbered from 1 without a gap.
func loadMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []migration
	for i, name := range names {
		m := migrationName.FindStringSubmatch(path.Base(name))
		if m == nil {
			return nil, fmt.Errorf("migration %s: expected a name like 0001_init.sql", name)
		}
		if n, _ := strconv.Atoi(m[1]); n != i+1 {
			return nil, fmt.Errorf("migration %s: expected number %04d", name, i+1)
		}
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		all = append(all, migration{version: i + 1, name: name, sql: string(data), checksum: hex.EncodeToString(sum[:])})
	}
	if len(all) == 0 {
		return nil, errors.New("no migrations")
	}
	return all, nil
}

func embeddedMigrations() ([]migration, error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	return loadMigrations(files)
}

func latest(ms []migration) int { return ms[len(ms)-1].version }

// LatestSchemaVersion returns the schema version that this binary works with.
func LatestSchemaVersion() int {
	ms, err := embeddedMigrations()
	if err != nil {
		panic(err) // the embedded files are part of the binary; a test loads them
	}
	return latest(ms)
}

const migrationsTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version        INTEGER PRIMARY KEY,
	name           VARCHAR NOT NULL,
	checksum       VARCHAR NOT NULL,
	applied_at     TIMESTAMP NOT NULL,
	binary_version VARCHAR NOT NULL
)`

// applyMigration runs m and its row in schema_migrations in one transaction.
// The resulting schema must equal want (nil: not compared), or all of it is
// rolled back.
func applyMigration(ctx context.Context, db *sql.DB, m migration, binary string, want *SystemSchema) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	err = func() error {
		if _, err := tx.ExecContext(ctx, migrationsTable); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, m.sql); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO schema_migrations VALUES (?, ?, ?, ?, ?)", m.version, m.name, m.checksum, now(), binary); err != nil {
			return err
		}
		if want == nil {
			return nil
		}
		got, err := describe(ctx, tx)
		if err != nil {
			return err
		}
		return want.differs(got)
	}()
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// migrate brings the open database to the latest schema, after a verified
// snapshot, and proves that the schema is the one that this binary expects.
func (s *Store) migrate(ctx context.Context, expected *expectation) error {
	applied, err := appliedMigrations(ctx, s.db)
	if err != nil {
		return err
	}
	target := latest(s.migrations)
	current := len(applied)
	if current == 0 {
		return problem.New(problem.Refused,
			fmt.Sprintf("Expected %s to be a state of agnes, found a DuckDB database without schema_migrations.", s.path),
			s.restoreHint(target, fmt.Sprintf("Move it away: `mv %s %s.old`.", shellQuote(s.path), shellQuote(s.path))))
	}
	if newest := applied[current-1]; newest.version > target {
		return problem.New(problem.Refused,
			fmt.Sprintf("%s has schema version %d, written by agnes %s; this agnes (%s) knows versions up to %d.",
				s.path, newest.version, newest.binary, s.opt.Version, target),
			s.restoreHint(target, fmt.Sprintf("Start agnes %s again; there is no snapshot that this version can read.", newest.binary))).
			WithCode("schema_newer")
	}
	for i, a := range applied {
		if want := s.migrations[i]; a.version != want.version || a.checksum != want.checksum {
			return problem.New(problem.Refused,
				fmt.Sprintf("Migration %d of %s was applied as %s (sha256 %.12s), this agnes has %s (sha256 %.12s).",
					a.version, s.path, a.name, a.checksum, want.name, want.checksum),
				fmt.Sprintf("Start the agnes that wrote it (%s). A released migration must not be edited: add a new one.", a.binary)).
				WithCode("schema_mismatch")
		}
	}
	versions, err := expected.from(ctx, current)
	if err != nil {
		return err
	}
	got, err := describe(ctx, s.db)
	if err != nil {
		return err
	}
	if err := versions[0].differs(got); err != nil {
		return s.schemaProblem(err, current)
	}
	s.version = current
	if current == target {
		return nil
	}

	snap, err := s.snapshotBeforeMigration(ctx, current)
	if err != nil {
		return problem.Wrap(err, problem.As(orSystemProblem(err, s.opt.Dir)).Kind,
			fmt.Sprintf("No snapshot of %s could be taken, so it was not migrated from schema %d to %d.", s.path, current, target),
			fmt.Sprintf("Make %s writable with room for a copy of %s (`df -h %s`), then start agnes again.", s.snapshots(), databaseFile, shellQuote(s.opt.Dir)))
	}
	for i, m := range s.migrations[current:] {
		if err := applyMigration(ctx, s.db, m, s.opt.Version, versions[i+1]); err != nil {
			if p := systemProblem(err, s.opt.Dir); p != nil {
				return p
			}
			return problem.Wrap(err, problem.Internal,
				fmt.Sprintf("Migration %s of %s failed and was rolled back; the schema is at version %d.", m.name, s.path, s.version),
				"Report this with the log line. To go back to the version before: "+s.restoreCommand(snap)).WithCode("migration_failed")
		}
		s.version = m.version
		s.log.Info("migrated the state", "version", m.version, "name", m.name, "snapshot", snap)
	}
	return s.checkpoint(ctx, s.db)
}

// expectation computes the latest schema while the database file is opened.
type expectation struct {
	migrations []migration
	stop       context.CancelFunc
	done       chan struct{}
	latest     []*SystemSchema
	err        error
}

func (s *Store) expectSchema(ctx context.Context) *expectation {
	ctx, cancel := context.WithCancel(ctx)
	e := &expectation{migrations: s.migrations, done: make(chan struct{})}
	e.stop = func() { cancel(); <-e.done }
	go func() {
		defer close(e.done)
		e.latest, e.err = describeMigrations(ctx, e.migrations, latest(e.migrations))
	}()
	return e
}

// from returns the schema at version and at each one after it.
func (e *expectation) from(ctx context.Context, version int) ([]*SystemSchema, error) {
	if version != latest(e.migrations) {
		return describeMigrations(ctx, e.migrations, version)
	}
	<-e.done
	return e.latest, e.err
}

func (s *Store) schemaProblem(diff error, version int) error {
	return problem.Wrap(diff, problem.Refused,
		fmt.Sprintf("The tables of %s are not those of schema version %d: %v", s.path, version, diff),
		s.restoreHint(version, "Undo the change that was made by hand, or restore the volume's last backup.")).
		WithCode("schema_mismatch")
}

type appliedMigration struct {
	version                int
	name, checksum, binary string
}

// appliedMigrations lists what a database was migrated with, oldest first;
// none when it has no schema_migrations.
func appliedMigrations(ctx context.Context, db *sql.DB) ([]appliedMigration, error) {
	names, err := tableNames(ctx, db)
	if err != nil {
		return nil, err
	}
	known := false
	for _, n := range names {
		known = known || n == "schema_migrations"
	}
	if !known {
		return nil, nil
	}
	return collect(ctx, db, func(scan func(...any) error) (a appliedMigration, err error) {
		return a, scan(&a.version, &a.name, &a.checksum, &a.binary)
	}, "SELECT version, name, checksum, binary_version FROM schema_migrations ORDER BY version")
}

// restoreHint names the command that restores the newest snapshot whose schema
// is at most version; otherwise is the hint when there is none.
func (s *Store) restoreHint(version int, otherwise string) string {
	snap, ok := s.newestSnapshot(version)
	if !ok {
		return otherwise
	}
	return "With agnes stopped, go back to the newest snapshot that fits: " + s.restoreCommand(snap)
}

func (s *Store) restoreCommand(snap string) string {
	aside := shellQuote(filepath.Join(s.opt.Dir, quarantineDir, time.Now().UTC().Format(stampLayout)))
	return fmt.Sprintf("`mkdir -p %s && mv %s* %s/ && cp %s %s`. Changes made after the snapshot stay in that folder.",
		aside, shellQuote(s.path), aside, shellQuote(snap), shellQuote(s.path))
}
