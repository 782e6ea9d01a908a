// Package state keeps an instance's own records in DATA_DIR/state/system.duckdb:
// users, access tokens, the table registry, jobs
// and the audit log. It also holds the lock on DATA_DIR (Lock) and the secrets
// that are generated on first start (EnsureSecret).
//
// How the parts fit. One process holds the flock on DATA_DIR and opens
// system.duckdb once (Open). Store hands out typed methods and no SQL. Reads
// run on a pool; every write runs in one transaction under one mutex, so rules
// such as "the last admin stays" or "one sync at a time" are plain checks
// inside that transaction. A method that changes something people care about
// takes a By (who asked) and commits its audit entry together with the change.
//
// Durability. A commit is in the write-ahead log (WAL) and fsynced before a
// method returns. A background checkpoint keeps the WAL short. After a crash
// the WAL is replayed; where it is damaged, everything before the damage is
// recovered, the log is kept in quarantine/ and Warnings says so (open.go).
// The schema only moves forward by the embedded migrations; a verified
// snapshot is taken before a migration touches anything (migrate.go), and a
// schema that is newer than the binary is refused with the command that
// restores the snapshot that fits.
package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duckdb/duckdb-go/v2"
	"github.com/google/uuid"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	databaseFile  = "system.duckdb"
	snapshotsDir  = "snapshots"
	quarantineDir = "quarantine"

	defaultCheckpointEvery = time.Minute
	// walSoftLimit asks for a checkpoint ahead of time. DuckDB's own
	// checkpoint at commit is switched off, because when it fails on a full
	// disk it invalidates the open database in the middle of a commit.
	walSoftLimit = 16 << 20
)

// Options say where the state lives. Dir is required.
type Options struct {
	Dir             string        // DATA_DIR/state; created with mode 0700
	Log             *slog.Logger  // nil discards
	CheckpointEvery time.Duration // 0: one minute
	Version         string        // this binary's version, noted in migrations and snapshots
}

// Store is the open system.duckdb. It is safe for concurrent use.
type Store struct {
	opt        Options
	path       string
	log        *slog.Logger
	migrations []migration

	write sync.Mutex   // one writer; also held by Checkpoint. Taken before gate.
	gate  sync.RWMutex // users of db hold it for reading; replacing db holds it for writing
	db    *sql.DB      // nil once closed
	main  *os.File     // the file of db, to read from; changes with it

	mu       sync.Mutex // guards the fields below; never held across a query
	broken   bool       // DuckDB invalidated the open database; reopen before the next use
	warnings []string
	touched  map[string]time.Time // token id -> last use that is not stored yet
	revoked  map[string]time.Time // session id -> expiry; the whole of revoked_sessions

	writes  atomic.Uint64 // commits so far; see lookups
	cached  atomic.Pointer[lookups]
	loading sync.Mutex

	version int
	wake    chan struct{}
	stop    chan struct{}
	stopped chan struct{}
	closing sync.Once
	closed  error
}

// Open opens or creates the state, recovers it after a crash, migrates it to
// LatestSchemaVersion and starts the background checkpoint. The caller holds
// the DATA_DIR lock (Lock) for as long as the Store is open.
//
// Errors are problem.Error with the command that mends them: an unusable
// directory, a file held by another program, a damaged main file, a storage
// format or schema that is newer than this binary.
func Open(ctx context.Context, opt Options) (*Store, error) {
	migrations, err := embeddedMigrations()
	if err != nil {
		return nil, err
	}
	return open(ctx, opt, migrations)
}

func open(ctx context.Context, opt Options, migrations []migration) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.CheckpointEvery <= 0 {
		opt.CheckpointEvery = defaultCheckpointEvery
	}
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, err
	}
	opt.Dir = dir
	if err := prepareDir(dir, opt.Log); err != nil {
		return nil, err
	}
	s := &Store{
		opt:        opt,
		path:       filepath.Join(dir, databaseFile),
		log:        opt.Log,
		migrations: migrations,
		touched:    map[string]time.Time{},
		revoked:    map[string]time.Time{},
		wake:       make(chan struct{}, 1),
		stop:       make(chan struct{}),
		stopped:    make(chan struct{}),
	}
	expected := s.expectSchema(ctx)
	defer expected.stop()
	if err := s.createIfMissing(ctx); err != nil {
		return nil, err
	}
	if s.db, err = s.openRecovering(ctx); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx, expected); err != nil {
		return nil, errors.Join(err, s.db.Close(), s.closeMain())
	}
	go s.background() //nolint:gosec // it lives until Close, not as long as ctx
	return s, nil
}

// prepare brings a freshly opened database into the state that methods rely on.
func (s *Store) prepare(ctx context.Context, expected *expectation) error {
	if err := s.readAll(ctx, s.db); err != nil {
		return err
	}
	if err := s.migrate(ctx, expected); err != nil {
		return err
	}
	return s.loadRevoked(ctx)
}

// Close stores what is pending, checkpoints and closes. It is idempotent.
// An error of the checkpoint is logged only: the commits are safe in the WAL.
func (s *Store) Close() error {
	s.closing.Do(func() {
		close(s.stop)
		<-s.stopped
		ctx := context.Background()
		if err := s.flushTouched(ctx); err != nil {
			s.log.Warn("the last use of access tokens was not stored", "error", err)
		}
		if err := s.Checkpoint(ctx); err != nil {
			s.log.Warn("system.duckdb was closed without a checkpoint; the next start replays its log", "error", err)
		}
		s.write.Lock()
		defer s.write.Unlock()
		s.gate.Lock()
		defer s.gate.Unlock()
		if s.db != nil {
			s.closed = errors.Join(s.db.Close(), s.closeMain())
			s.db = nil
		}
	})
	return s.closed
}

// Checkpoint moves the WAL's content into the main file. Where the disk has no
// room for that it does nothing and returns problem.NoSpace.
func (s *Store) Checkpoint(ctx context.Context) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.checkpointLocked(ctx)
}

func (s *Store) checkpointLocked(ctx context.Context) error {
	if err := s.roomFor(s.WALBytes() + 1<<20); err != nil {
		return err
	}
	return s.use(ctx, func(db *sql.DB) error { return s.checkpoint(ctx, db) })
}

// SchemaVersion returns the version of the open database's schema.
func (s *Store) SchemaVersion() int { return s.version }

// Warnings returns what an operator must know about this start, such as a
// write-ahead log that was set aside. Empty when all is well.
func (s *Store) Warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.warnings)
}

func (s *Store) warn(text string) {
	s.log.Warn("the state was recovered with a loss", "warning", text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, text)
}

// Canary proves that the state can be written, by one commit. It is as long as
// a block of the file system: a shorter one could still fit into the log's last
// block when the disk has no room for any other.
func (s *Store) Canary(ctx context.Context) error {
	return s.update(ctx, func(tx *writeTx) error {
		_, err := tx.exec("UPDATE instance SET value = ? WHERE key = 'canary'", fmt.Sprintf("%-4000s", now().Format(time.RFC3339Nano)))
		return err
	})
}

// WALBytes returns the size of the write-ahead log, 0 when there is none.
func (s *Store) WALBytes() int64 {
	var sum int64
	for _, p := range walFiles(s.path) {
		if fi, err := os.Stat(p); err == nil {
			sum += fi.Size()
		}
	}
	return sum
}

// Instance identifies this installation.
type Instance struct {
	ID        string // UUID, made once with the database
	CreatedAt time.Time
}

// Instance returns the identity that was made with the database.
func (s *Store) Instance(ctx context.Context) (Instance, error) {
	var in Instance
	err := s.use(ctx, func(db *sql.DB) error {
		var created string
		err := db.QueryRowContext(ctx, `SELECT
			(SELECT value FROM instance WHERE key = 'instance_id'),
			(SELECT value FROM instance WHERE key = 'created_at')`).Scan(&in.ID, &created)
		if err != nil {
			return err
		}
		in.CreatedAt, err = time.Parse(time.RFC3339Nano, created)
		return err
	})
	return in, err
}

// background checkpoints, stores coalesced writes and purges what expired.
func (s *Store) background() {
	defer close(s.stopped)
	tick := time.NewTicker(s.opt.CheckpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-tick.C:
		}
		ctx := context.Background()
		if err := s.flushTouched(ctx); err != nil {
			s.log.Warn("the last use of access tokens was not stored", "error", err)
		}
		if err := s.purgeRevoked(ctx, time.Now()); err != nil {
			s.log.Warn("expired sessions were not purged", "error", err)
		}
		if s.WALBytes() == 0 {
			continue
		}
		if err := s.Checkpoint(ctx); err != nil {
			s.log.Warn("system.duckdb was not checkpointed", "error", err)
		}
	}
}

// use runs fn with the open database. fn consumes its rows before it returns.
func (s *Store) use(ctx context.Context, fn func(*sql.DB) error) error {
	if s.isBroken() {
		if err := s.reopen(ctx); err != nil {
			return err
		}
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.db == nil {
		return problem.New(problem.Unavailable, "The state is closed: the instance is shutting down.", "Try again once the instance is up: GET /readyz.")
	}
	return s.failed(fn(s.db))
}

// update runs fn in the one write transaction and commits. An error of fn
// rolls everything back. Once begun a transaction is not canceled by ctx: it
// takes milliseconds, and a rollback that outlives the mutex could collide
// with the next writer.
func (s *Store) update(ctx context.Context, fn func(*writeTx) error) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.use(ctx, func(db *sql.DB) (err error) {
		ctx := context.WithoutCancel(ctx)
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		begun, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		tx := &writeTx{Tx: begun, conn: conn}
		if err := fn(tx); err != nil {
			if rerr := tx.Rollback(); rerr != nil {
				return errors.Join(err, rerr)
			}
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		s.writes.Add(1)
		return nil
	})
	if err == nil && s.WALBytes() > walSoftLimit {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return err
}

// writeTx is the open write transaction with the connection it runs on, which
// bulk inserts need.
type writeTx struct {
	*sql.Tx
	conn *sql.Conn
}

// exec runs a statement that is not canceled; see update.
func (tx *writeTx) exec(statement string, args ...any) (sql.Result, error) {
	return tx.ExecContext(context.Background(), statement, args...)
}

// insert appends rows, each with all columns of table in their order.
func (tx *writeTx) insert(table string, rows [][]driver.Value) error {
	return tx.conn.Raw(func(c any) error {
		app, err := duckdb.NewAppenderFromConn(c.(driver.Conn), "", table)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := app.AppendRow(r...); err != nil {
				return errors.Join(err, app.Clear(), app.Close())
			}
		}
		return app.Close() // flushes into the transaction
	})
}

// failed turns an error of the database into one that says what to do.
func (s *Store) failed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*problem.Error](err); ok {
		return err
	}
	if text := err.Error(); strings.Contains(text, "FATAL Error") || strings.Contains(text, "has been invalidated") {
		s.mu.Lock()
		s.broken = true
		s.mu.Unlock()
		s.log.Error("DuckDB invalidated the open system.duckdb; it is reopened before its next use", "error", err)
	}
	if p := systemProblem(err, s.opt.Dir); p != nil {
		return p
	}
	if isMainDamage(err) {
		return s.damaged(err)
	}
	return fmt.Errorf("system.duckdb: %w", err)
}

func (s *Store) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// reopen replaces a database that DuckDB has invalidated (a checkpoint that
// met a full disk does that). All commits are in the WAL and are replayed.
func (s *Store) reopen(ctx context.Context) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if !s.isBroken() || s.db == nil {
		return nil
	}
	if err := s.db.Close(); err != nil {
		s.log.Warn("closing the invalidated system.duckdb failed", "error", err)
	}
	db, err := s.openRecovering(context.WithoutCancel(ctx))
	if err != nil {
		// The old handle is closed; it stays in place so that the next use
		// comes here again.
		return err
	}
	s.db = db
	s.mu.Lock()
	s.broken = false
	s.mu.Unlock()
	s.log.Info("system.duckdb was reopened")
	return nil
}

// newID returns a UUIDv7: unique, and sorted by the time it was made.
func newID() string {
	return uuid.Must(uuid.NewV7()).String()
}

// now returns the present in the precision that TIMESTAMP keeps.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// timeOrNil stores the zero time as NULL.
func timeOrNil(t time.Time) driver.Value {
	if t.IsZero() {
		return nil
	}
	return t.UTC()
}
