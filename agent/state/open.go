package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	// storageVersion is the first of DuckDB's file formats in which a WAL
	// names the database that it belongs to. With an older one the log of
	// another database is replayed into this one without a word.
	storageVersion = "v1.4.0"
	stampLayout    = "20060102T150405.000000Z"
)

// openDatabase opens one database file with the settings of the state.
func openDatabase(ctx context.Context, path string) (*sql.DB, error) {
	db, err := duck.Open(ctx, path, duck.Options{
		Threads: 2,
		Init:    []string{"PRAGMA disable_checkpoint_on_shutdown"}, // checkpoints are made by Store.checkpoint alone
		Settings: map[string]string{
			"storage_compatibility_version": storageVersion,
			"checkpoint_threshold":          "4GB", // see walSoftLimit
			"memory_limit":                  "1GB",
		},
	})
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(8)
	return db, nil
}

// prepareDir makes dir, keeps others out of it and proves that it is writable.
func prepareDir(dir string, log *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if fi, serr := os.Stat(dir); serr == nil && !fi.IsDir() {
			return notADirectory(dir, err)
		}
		if errors.Is(err, syscall.ENOTDIR) {
			return notADirectory(filepath.Dir(dir), err)
		}
		return orSystemProblem(err, dir)
	}
	if fi, err := os.Stat(dir); err != nil {
		return orSystemProblem(err, dir)
	} else if fi.Mode().Perm()&0o077 != 0 {
		// Password hashes and signing secrets live here, and DuckDB creates
		// its files with the process's umask.
		if err := os.Chmod(dir, 0o700); err != nil {
			log.Warn("the state directory is open to other users and could not be closed", "dir", dir, "error", err)
		} else {
			log.Warn("the state directory was open to other users; its mode is now 0700", "dir", dir)
		}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return orSystemProblem(err, dir)
	}
	return nil
}

func notADirectory(path string, err error) error {
	return problem.Wrap(err, problem.Unavailable,
		fmt.Sprintf("Expected a directory for the state at %s, found a file.", path),
		fmt.Sprintf("Move the file away (`mv %s %s.old`) or set DATA_DIR to another directory.", shellQuote(path), shellQuote(path)))
}

// createIfMissing makes a new database under another name and renames it into
// place once it is complete, so that a crash at first start leaves no half of one.
func (s *Store) createIfMissing(ctx context.Context) error {
	if _, err := os.Lstat(s.path); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return orSystemProblem(err, s.opt.Dir)
	}
	// Where something is left of an older database, a fresh one would hide a
	// loss and open the setup to whoever comes first.
	if logs := walFiles(s.path); len(logs) > 0 {
		return problem.New(problem.Refused,
			fmt.Sprintf("Expected the database %s, found only its write-ahead log %s.", s.path, filepath.Base(logs[0])),
			s.restoreHint(latest(s.migrations), fmt.Sprintf("Put %s back, or begin anew with `rm %s*`.", databaseFile, shellQuote(s.path+".wal"))))
	}
	if snap, ok := s.newestSnapshot(latest(s.migrations)); ok {
		return problem.New(problem.Refused,
			fmt.Sprintf("Expected the database %s, found none, but there are snapshots of one.", s.path),
			fmt.Sprintf("With agnes stopped, restore the newest with `cp %s %s`, or begin anew with `mv %s %s.old`.",
				shellQuote(snap), shellQuote(s.path), shellQuote(filepath.Dir(snap)), shellQuote(filepath.Dir(snap))))
	}

	temp := s.path + ".new"
	for _, p := range append(walFiles(temp), temp) {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return orSystemProblem(err, s.opt.Dir)
		}
	}
	if err := s.build(ctx, temp); err != nil {
		return orSystemProblem(fmt.Errorf("create %s: %w", s.path, err), s.opt.Dir)
	}
	if err := publish(temp, s.path, 0o600); err != nil {
		return orSystemProblem(err, s.opt.Dir)
	}
	s.log.Info("created the state", "path", s.path, "schema", latest(s.migrations))
	return nil
}

// build writes a complete, closed database to path.
func (s *Store) build(ctx context.Context, path string) (err error) {
	db, err := openDatabase(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, m := range s.migrations {
		if err := applyMigration(ctx, db, m, s.opt.Version, nil); err != nil {
			return err
		}
	}
	for key, value := range map[string]string{"instance_id": newID(), "created_at": now().Format(time.RFC3339Nano), "canary": ""} {
		if _, err := db.ExecContext(ctx, "INSERT INTO instance VALUES (?, ?)", key, value); err != nil {
			return err
		}
	}
	_, err = db.ExecContext(ctx, "CHECKPOINT")
	return err
}

// publish makes a closed file durable and moves it to its name.
func publish(temp, path string, mode fs.FileMode) error {
	if logs := walFiles(temp); len(logs) > 0 {
		return fmt.Errorf("%s was not closed cleanly: %s is left", temp, logs[0])
	}
	if err := os.Chmod(temp, mode); err != nil {
		return err
	}
	if err := syncPath(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// openRecovering opens the database and replays its log. A log that cannot be
// replayed never stops the start: it is kept in quarantine, what precedes the
// damage is recovered where DuckDB can say where that is, and the main file is
// opened as it stands otherwise. Snapshots are never used.
func (s *Store) openRecovering(ctx context.Context) (*sql.DB, error) {
	if err := errors.Join(s.closeMain(), s.undoCheckpoint()); err != nil {
		return nil, orSystemProblem(err, s.opt.Dir)
	}
	logs := walFiles(s.path)
	var found walDamage
	var kept []string // copies of logs, once there is damage
	for _, p := range logs {
		var err error
		if found, err = inspectWAL(p); err != nil {
			return nil, orSystemProblem(err, s.opt.Dir)
		}
		if found.text != "" {
			if kept, err = s.quarantine(logs); err != nil {
				return nil, orSystemProblem(err, s.opt.Dir)
			}
			break
		}
	}

	db, err := openDatabase(ctx, s.path)
	switch {
	case err == nil && kept != nil:
		s.warn(fmt.Sprintf("The write-ahead log of %s was damaged: %s. What precedes the damage was recovered; the log was set aside at %s. Check the newest users, tables and jobs.",
			databaseFile, found.text, kept[0]))
	case err == nil:
	case systemProblem(err, s.opt.Dir) != nil:
		return nil, systemProblem(err, s.opt.Dir)
	case s.formatProblem(err) != nil:
		return nil, s.formatProblem(err)
	case len(logs) == 0 || isMainDamage(err):
		return nil, s.damaged(err)
	default:
		if kept == nil {
			var qerr error
			if kept, qerr = s.quarantine(logs); qerr != nil {
				return nil, orSystemProblem(qerr, s.opt.Dir)
			}
		}
		if db, err = s.openWithoutDamage(ctx, logs, kept, found.stop, err); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(s.path, 0o600); err != nil {
		s.log.Warn("the mode of system.duckdb could not be set to 0600", "error", err)
	}
	if err := s.openMain(); err != nil {
		return nil, errors.Join(orSystemProblem(err, s.opt.Dir), db.Close())
	}
	if len(logs) > 0 {
		if db, err = s.checkpointRecovered(ctx, db); err != nil {
			return nil, err
		}
		s.log.Info("system.duckdb was recovered from its write-ahead log", "files", len(logs))
	}
	return db, nil
}

// checkpointRecovered moves a replayed log into the main file, so that it need
// not be replayed again. Where that fails, on a full disk say, the start goes on
// without it: a failed checkpoint invalidates db, so db is opened once more.
func (s *Store) checkpointRecovered(ctx context.Context, db *sql.DB) (*sql.DB, error) {
	err := s.roomFor(s.WALBytes() + 1<<20)
	if err == nil {
		if err = s.checkpoint(ctx, db); err == nil {
			return db, nil
		}
		if cerr := errors.Join(db.Close(), s.closeMain()); cerr != nil {
			s.log.Warn("closing the invalidated system.duckdb failed", "error", cerr)
		}
		cerr := s.undoCheckpoint()
		if cerr == nil {
			db, cerr = openDatabase(ctx, s.path)
		}
		if cerr == nil {
			cerr = s.openMain()
		}
		if cerr != nil {
			return nil, orSystemProblem(errors.Join(cerr, err), s.opt.Dir)
		}
		s.log.Warn("the replayed log could not be checkpointed", "error", err)
		return db, nil
	}
	s.log.Warn("the replayed log could not be checkpointed", "error", err)
	return db, nil
}

var (
	walPosition = regexp.MustCompile(`entry at byte position (\d+)`)
	lockHolder  = regexp.MustCompile(`\(PID (\d+)\)`)
)

// openWithoutDamage is for a log that DuckDB refuses with cause. First the log
// is cut before the entry that DuckDB names, or at stop, where our own reading
// ends (0: unknown), so that all commits before it are replayed; then it is
// left out. If not even that helps, the logs are put back as they were.
func (s *Store) openWithoutDamage(ctx context.Context, logs, kept []string, stop int64, cause error) (*sql.DB, error) {
	for refusal := cause; ; {
		position := stop
		stop = 0
		if at := walPosition.FindStringSubmatch(refusal.Error()); at != nil && strings.Contains(refusal.Error(), `"`+logs[0]+`"`) {
			position, _ = strconv.ParseInt(at[1], 10, 64) // digits by the pattern
		}
		// Each round cuts off more than the one before, so this ends.
		if fi, err := os.Stat(logs[0]); err != nil || position <= 0 || position >= fi.Size() || os.Truncate(logs[0], position) != nil {
			break
		}
		for _, later := range logs[1:] { // these continue what was just cut off
			_ = os.Remove(later)
		}
		db, err := openDatabase(ctx, s.path)
		if err == nil {
			s.warn(fmt.Sprintf("A damaged write-ahead log was set aside at %s (%v). Changes before byte %d of it were recovered; check the newest users, tables and jobs.",
				kept[0], firstLine(cause), position))
			return db, nil
		}
		refusal = err
	}
	for _, p := range logs {
		_ = os.Remove(p)
	}
	db, err := openDatabase(ctx, s.path)
	if err != nil {
		for i, p := range logs {
			if cerr := copyFile(kept[i], p); cerr != nil {
				s.log.Error("a write-ahead log could not be put back", "from", kept[i], "to", p, "error", cerr)
			}
		}
		return nil, s.damaged(errors.Join(err, cause))
	}
	s.warn(fmt.Sprintf("A damaged write-ahead log was set aside at %s (%v). system.duckdb holds everything up to its last checkpoint; check the newest users, tables and jobs.",
		kept[0], firstLine(cause)))
	return db, nil
}

// quarantine copies files to quarantine/ and returns the copies' paths.
func (s *Store) quarantine(files []string) ([]string, error) {
	dir := filepath.Join(s.opt.Dir, quarantineDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	stamp := time.Now().UTC().Format(stampLayout)
	var kept []string
	for _, p := range files {
		to := filepath.Join(dir, filepath.Base(p)+"-"+stamp)
		if err := copyFile(p, to); err != nil {
			return nil, err
		}
		kept = append(kept, to)
	}
	return kept, nil
}

// readAll reads every block of the tables that the instance cannot work
// without, because DuckDB finds a damaged block only when it reads it. The
// audit log, which grows, is left out.
func (s *Store) readAll(ctx context.Context, db *sql.DB) error {
	tables, err := tableNames(ctx, db)
	if err != nil {
		return s.damaged(err)
	}
	for _, t := range tables {
		if t == "audit" {
			continue
		}
		if _, err := fingerprint(ctx, db, t); err != nil {
			return s.damaged(err)
		}
	}
	return nil
}

// damaged reports a main file that cannot be read.
func (s *Store) damaged(err error) error {
	return problem.Wrap(err, problem.Internal,
		fmt.Sprintf("The database %s is damaged or no DuckDB database; it was left as it is.", s.path),
		s.restoreHint(latest(s.migrations), "There is no snapshot to go back to. Restore the volume's last backup.")).
		WithCode("state_damaged")
}

func isMainDamage(err error) bool {
	text := err.Error()
	return strings.Contains(text, "not a valid DuckDB database") ||
		strings.Contains(text, "Corrupt database file") || strings.Contains(text, "Could not read enough bytes")
}

// formatProblem reports a file that a newer DuckDB wrote.
func (s *Store) formatProblem(err error) error {
	text := err.Error()
	if !strings.Contains(text, "Trying to read a database file with version number") &&
		!strings.Contains(text, "storage version greater than") {
		return nil
	}
	return problem.Wrap(err, problem.Refused,
		fmt.Sprintf("The database %s was written by a newer DuckDB than this agnes (%s) carries.", s.path, s.opt.Version),
		s.restoreHint(latest(s.migrations), "Start the newer agnes again; there is no snapshot that this one can read.")).
		WithCode("state_format_newer")
}

// systemProblem recognizes what the system, not the database, refuses: no
// space, no permission, a read-only file system, a file held elsewhere. It
// returns nil for anything else.
func systemProblem(err error, dir string) error {
	text := err.Error()
	is := func(errno syscall.Errno, words string) bool {
		return errors.Is(err, errno) || strings.Contains(text, words)
	}
	quoted := shellQuote(dir)
	switch {
	case strings.Contains(text, "Could not set lock on file"):
		holder, kill := "another process", "Close the program that has it open"
		if m := lockHolder.FindStringSubmatch(text); m != nil {
			holder, kill = "process "+m[1], "End it with `kill "+m[1]+"`"
		}
		return problem.Wrap(err, problem.Refused,
			fmt.Sprintf("%s in %s is held open by %s.", databaseFile, dir, holder),
			kill+", then start agnes again. To look into a running instance use its API.")
	case is(syscall.ENOSPC, "No space left on device"), is(syscall.EDQUOT, "Disk quota exceeded"):
		return problem.Wrap(err, problem.NoSpace,
			fmt.Sprintf("The disk that holds %s is full; the change was not stored.", dir),
			fmt.Sprintf("Free space there (`df -h %s` shows how much is left), then try again.", quoted))
	case is(syscall.EROFS, "Read-only file system"):
		return problem.Wrap(err, problem.Unavailable,
			fmt.Sprintf("Expected %s to be writable, found a read-only file system.", dir),
			fmt.Sprintf("Mount it read-write (`findmnt -T %s` shows the mount), or set DATA_DIR to another directory.", quoted))
	case is(syscall.EACCES, "Permission denied"), is(syscall.EPERM, "Operation not permitted"):
		return problem.Wrap(err, problem.Unavailable,
			fmt.Sprintf("Expected %s to be readable and writable for user id %d, found that it is not.", dir, os.Getuid()),
			fmt.Sprintf("Give it to that user: `sudo chown -R %d:%d %s`.", os.Getuid(), os.Getgid(), quoted))
	}
	return nil
}

func orSystemProblem(err error, dir string) error {
	if p := systemProblem(err, dir); p != nil {
		return p
	}
	return err
}

// roomFor reports problem.NoSpace unless n bytes are free where the state is.
func (s *Store) roomFor(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opt.Dir, &st); err != nil {
		return nil //nolint:nilerr // not every file system can say; the write itself will tell
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < n { //nolint:unconvert // not an int64 on every system
		return systemProblem(fmt.Errorf("%d bytes are free, %d are needed: %w", free, n, syscall.ENOSPC), s.opt.Dir)
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// shellQuote quotes text for sh where it needs quotes.
func shellQuote(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		plain := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,", r)
		return !plain
	}) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
