package connectors

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// The staging folder of a source S, all on the same file system as the extracts:
//
//	extracts/.staging/S.lock   held (flock) by the Writer
//	extracts/.staging/S.next   the extract that is being built; after an exchange, the replaced one
//	extracts/.staging/S.old    the replaced one, where two folders cannot be exchanged in one step
const (
	stagingDir = ".staging"
	scratchDir = "scratch"
)

func lockPath(extracts, source string) string {
	return filepath.Join(extracts, stagingDir, source+".lock")
}

func nextDir(extracts, source string) string {
	return filepath.Join(extracts, stagingDir, source+".next")
}

func oldDir(extracts, source string) string {
	return filepath.Join(extracts, stagingDir, source+".old")
}

// lockSource takes the source's lock. The kernel drops it with the process.
func lockSource(extracts, source string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(extracts, source), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, WriteError(err, "lock the source "+source)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, problem.New(problem.Conflict, fmt.Sprintf("Another extraction of the source %s is running.", source),
				"Wait for it: GET /api/sync/status; then try again.").WithCode("extract_in_progress")
		}
		return nil, fmt.Errorf("lock the source %s: %w", source, err)
	}
	return f, nil
}

// unlockSource gives the lock back. It says so before closing: a child process
// that is being started may hold the descriptor for a moment longer.
func unlockSource(lock *os.File) error {
	return errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close())
}

// swapIn puts the staged extract in the place of the current one.
func swapIn(extracts, source string, step func(string)) error {
	next, target := nextDir(extracts, source), filepath.Join(extracts, source)
	_, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = os.Rename(next, target)
	case err == nil:
		err = exchange(next, target)
		if errors.Is(err, errors.ErrUnsupported) {
			err = swapInTwoSteps(extracts, source, step)
		}
	}
	if err != nil {
		return WriteError(err, "swap the new extract of "+source+" in")
	}
	step("exchanged")
	return errors.Join(syncPath(extracts), syncPath(filepath.Join(extracts, stagingDir)))
}

// swapInTwoSteps serves file systems that cannot exchange two folders. Between
// the steps the source has no folder; recoverSource puts the old one back.
func swapInTwoSteps(extracts, source string, step func(string)) error {
	next, old, target := nextDir(extracts, source), oldDir(extracts, source), filepath.Join(extracts, source)
	if err := os.Rename(target, old); err != nil {
		return err
	}
	step("set aside")
	if err := os.Rename(next, target); err != nil {
		return errors.Join(err, os.Rename(old, target))
	}
	return nil
}

// recoverSource brings a source back to one whole extract and no rubbish. The
// caller holds the source's lock.
func recoverSource(extracts, source string) error {
	target, old := filepath.Join(extracts, source), oldDir(extracts, source)
	_, targetErr := os.Lstat(target)
	_, oldErr := os.Lstat(old)
	if errors.Is(targetErr, fs.ErrNotExist) && oldErr == nil {
		if err := os.Rename(old, target); err != nil {
			return WriteError(err, "put the last extract of "+source+" back")
		}
		if err := syncPath(extracts); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(old), os.RemoveAll(nextDir(extracts, source)))
}

// Recover finishes or undoes what killed processes left in extractsDir: every
// source has its old or its new extract, whole, and nothing else is left in the
// staging folder. Sources with a live Writer are left alone. A folder that does
// not exist needs no recovery.
func Recover(ctx context.Context, extractsDir string) error {
	extracts, err := filepath.Abs(extractsDir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(extracts, stagingDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	done := map[string]bool{}
	var errs []error
	for _, entry := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		source, _, _ := strings.Cut(entry.Name(), ".")
		if ValidName(source) != nil {
			errs = append(errs, os.RemoveAll(filepath.Join(extracts, stagingDir, entry.Name())))
			continue
		}
		if done[source] {
			continue
		}
		done[source] = true
		lock, err := lockSource(extracts, source)
		if problem.Is(err, problem.Conflict) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, recoverSource(extracts, source), unlockSource(lock))
	}
	return errors.Join(errs...)
}

// sync makes the staged extract durable: files before the folders that name them.
func (w *Writer) sync() error {
	data := filepath.Join(w.staging, DataDir)
	paths := []string{filepath.Join(w.staging, ExtractFile)}
	var parts []string
	for _, t := range w.tables {
		paths = append(paths, t.files...)
		if len(t.files) > 0 && filepath.Dir(t.files[0]) != data {
			parts = append(parts, filepath.Dir(t.files[0]))
		}
	}
	for _, path := range append(append(paths, parts...), data, w.staging) {
		if err := syncPath(path); err != nil {
			return WriteError(err, "write "+relative(w.staging, path)+" to the disk")
		}
	}
	return nil
}

// syncPath flushes a file or a folder.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fill writes the contract's tables and checkpoints.
func (w *Writer) fill(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, MetaDDL()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, stateDDL()); err != nil {
		return err
	}
	for _, t := range w.tables {
		if _, err := tx.ExecContext(ctx, "INSERT INTO "+MetaTable+" VALUES (?, ?, ?, ?, ?, ?)",
			t.meta.Table, t.meta.Description, t.meta.Rows, t.meta.SizeBytes, t.meta.ExtractedAt.Truncate(time.Microsecond), string(t.meta.QueryMode)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO "+StateTable+" VALUES (?, ?)", t.meta.Table, t.state); err != nil {
			return err
		}
	}
	if len(w.remote) > 0 {
		if _, err := tx.ExecContext(ctx, RemoteAttachDDL()); err != nil {
			return err
		}
		for _, r := range w.remote {
			if _, err := tx.ExecContext(ctx, "INSERT INTO "+RemoteAttachTable+" VALUES (?, ?, ?, ?)", r.Alias, r.Extension, r.URL, r.TokenEnv); err != nil {
				return err
			}
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "CHECKPOINT")
	return err
}

// footers reads the row count of each parquet file.
func footers(ctx context.Context, db *sql.DB, files []string, each func(file string, rows int64)) error {
	escaped := make([]string, len(files))
	for i, f := range files {
		escaped[i] = globEscape(f)
	}
	rows, err := db.QueryContext(ctx, "SELECT file_name, num_rows FROM parquet_file_metadata("+duck.List(escaped)+")")
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var file string
		var count int64
		if err := rows.Scan(&file, &count); err != nil {
			return err
		}
		each(file, count)
		n++
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if n != len(files) {
		return fmt.Errorf("expected the footers of %d files, found %d", len(files), n)
	}
	return nil
}

// linkOrCopy gives a file a second name, or copies it where that cannot be.
func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
