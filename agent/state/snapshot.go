package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// keepSnapshots is how many snapshots taken before migrations are kept.
const keepSnapshots = 5

// Snapshot writes a consistent copy of the state to dest, which must not
// exist, while reading and writing go on. The copy is made by DuckDB from one
// transaction, reopened, compared with what was read, made durable and only
// then given its name. Its `instance` table says when, by which version and at
// which schema it was taken.
func (s *Store) Snapshot(ctx context.Context, dest string) error {
	dest, err := filepath.Abs(dest)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dest); err == nil {
		return problem.New(problem.Conflict, fmt.Sprintf("The snapshot %s exists already.", dest), "Choose another name; a snapshot is never overwritten.")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return orSystemProblem(err, filepath.Dir(dest))
	}
	return s.use(ctx, func(db *sql.DB) error {
		if err := s.copyDatabase(ctx, db, dest); err != nil {
			return orSystemProblem(fmt.Errorf("snapshot %s: %w", dest, err), filepath.Dir(dest))
		}
		return nil
	})
}

func (s *Store) copyDatabase(ctx context.Context, db *sql.DB, dest string) (err error) {
	id := newID()
	temp := filepath.Join(filepath.Dir(dest), "."+filepath.Base(dest)+"."+id)
	defer func() {
		for _, p := range append(walFiles(temp), temp) {
			if rerr := os.Remove(p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	want, err := s.copyInto(ctx, db, temp, duck.Ident("snapshot_"+id))
	if err != nil {
		return err
	}
	if err := verifySnapshot(ctx, temp, want); err != nil {
		return err
	}
	return publish(temp, dest, 0o600)
}

// copyInto copies the database into a new file attached as alias and returns
// the fingerprint of each table as it was read.
func (s *Store) copyInto(ctx context.Context, db *sql.DB, path, alias string) (prints map[string]string, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s (STORAGE_VERSION %s)", duck.Literal(path), alias, duck.Literal(storageVersion))); err != nil {
		return nil, err
	}
	attached := true
	detach := func() error { // checkpoints and closes the file
		if !attached {
			return nil
		}
		attached = false
		_, err := conn.ExecContext(context.WithoutCancel(ctx), "DETACH "+alias)
		return err
	}
	defer func() { err = errors.Join(err, detach()) }()

	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	prints, err = s.copyWithin(ctx, tx, alias)
	if err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, "CHECKPOINT "+alias); err != nil {
		return nil, err
	}
	return prints, detach()
}

func (s *Store) copyWithin(ctx context.Context, tx *sql.Tx, alias string) (map[string]string, error) {
	var name string
	if err := tx.QueryRowContext(ctx, "SELECT current_database()").Scan(&name); err != nil {
		return nil, err
	}
	names, err := tableNames(ctx, tx)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("COPY FROM DATABASE %s TO %s", duck.Ident(name), alias)); err != nil {
		return nil, err
	}
	prints := map[string]string{}
	for _, t := range names {
		if prints[t], err = fingerprint(ctx, tx, t); err != nil {
			return nil, err
		}
	}
	// The notes are not part of what is compared; verifySnapshot skips them.
	for key, value := range map[string]string{
		"snapshot_taken_at": now().Format(time.RFC3339Nano),
		"snapshot_version":  s.opt.Version,
		"snapshot_schema":   strconv.Itoa(s.version),
	} {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT OR REPLACE INTO %s.instance VALUES (?, ?)", alias), key, value); err != nil {
			return nil, err
		}
	}
	return prints, nil
}

// fingerprint reads every value of a table and returns its row count with an
// order-independent hash. The snapshot's own notes do not count.
func fingerprint(ctx context.Context, q querier, table string) (string, error) {
	where := ""
	if table == "instance" {
		where = ` WHERE NOT starts_with(t.key, 'snapshot_')`
	}
	var sum string
	err := q.QueryRowContext(ctx, fmt.Sprintf("SELECT count(*) || '/' || coalesce(bit_xor(hash(t)), 0) FROM %s t%s", duck.Ident(table), where)).Scan(&sum)
	return sum, err
}

// verifySnapshot opens a snapshot as a restore would and reads all of it.
func verifySnapshot(ctx context.Context, path string, want map[string]string) (err error) {
	db, err := duck.Open(ctx, path, duck.Options{ReadOnly: true, Threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, table := range slices.Sorted(maps.Keys(want)) {
		got, err := fingerprint(ctx, db, table)
		if err != nil {
			return err
		}
		if got != want[table] {
			return fmt.Errorf("table %s: expected rows/hash %s, found %s", table, want[table], got)
		}
	}
	return nil
}

var snapshotName = regexp.MustCompile(`^system-schema(\d+)-[0-9TZ.]+\.duckdb$`)

func (s *Store) snapshots() string { return filepath.Join(s.opt.Dir, snapshotsDir) }

// snapshotBeforeMigration keeps the state as it is at version.
func (s *Store) snapshotBeforeMigration(ctx context.Context, version int) (string, error) {
	if err := os.MkdirAll(s.snapshots(), 0o700); err != nil {
		return "", err
	}
	if strays, err := filepath.Glob(filepath.Join(s.snapshots(), ".system-schema*")); err == nil { // of a killed process
		for _, stray := range strays {
			_ = os.Remove(stray)
		}
	}
	path := filepath.Join(s.snapshots(), fmt.Sprintf("system-schema%04d-%s.duckdb", version, time.Now().UTC().Format(stampLayout)))
	if err := s.copyDatabase(ctx, s.db, path); err != nil {
		return "", err
	}
	names := s.listSnapshots()
	for _, old := range names[:max(0, len(names)-keepSnapshots)] {
		if err := os.Remove(filepath.Join(s.snapshots(), old)); err != nil {
			s.log.Warn("an old snapshot could not be removed", "name", old, "error", err)
		}
	}
	return path, nil
}

// listSnapshots returns the names of migration snapshots, oldest first.
func (s *Store) listSnapshots() []string {
	entries, err := os.ReadDir(s.snapshots())
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if snapshotName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	stamp := func(name string) string { return name[strings.LastIndex(name, "-")+1:] }
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(stamp(a), stamp(b)) })
	return names
}

// newestSnapshot returns the newest snapshot with a schema of at most version.
func (s *Store) newestSnapshot(version int) (string, bool) {
	for _, name := range slices.Backward(s.listSnapshots()) {
		if v, err := strconv.Atoi(snapshotName.FindStringSubmatch(name)[1]); err == nil && v <= version {
			return filepath.Join(s.snapshots(), name), true
		}
	}
	return "", false
}
