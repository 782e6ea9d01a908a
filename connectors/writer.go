package connectors

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Writer builds the next extract of a source in a staging folder. Nothing of it
// can be seen before Commit, which swaps the whole folder in at once. There is
// one Writer for a source at a time, over all processes. A Writer is used by
// one goroutine; files may be written by many.
type Writer struct {
	extracts string // absolute extracts/
	source   string
	staging  string // extracts/.staging/<source>.next
	lock     *os.File
	previous *Extract
	tables   []staged
	remote   []RemoteAttach
	reader   *sql.DB // reads parquet footers; opened when first needed
	done     bool
	step     func(name string) // tests stop the process between the steps of Commit
}

type staged struct {
	meta  Meta
	state string
	files []string // paths in staging
	kept  bool
}

// NewWriter takes the source's lock, finishes what an interrupted commit left
// and starts an empty staging folder. The error is a problem.Conflict when
// another Writer has the source.
func NewWriter(ctx context.Context, extractsDir, source string) (*Writer, error) {
	if err := ValidName(source); err != nil {
		return nil, err
	}
	extracts, err := filepath.Abs(extractsDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(extracts, stagingDir), 0o755); err != nil {
		return nil, WriteError(err, "make the staging folder")
	}
	lock, err := lockSource(extracts, source)
	if err != nil {
		return nil, err
	}
	w := &Writer{extracts: extracts, source: source, lock: lock, staging: nextDir(extracts, source), step: func(string) {}}
	if err := w.open(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(w.staging), unlockSource(lock))
	}
	return w, nil
}

func (w *Writer) open(ctx context.Context) error {
	if err := recoverSource(w.extracts, w.source); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(w.staging, DataDir), 0o755); err != nil {
		return WriteError(err, "make the staging folder")
	}
	previous, err := ReadExtract(ctx, filepath.Join(w.extracts, w.source))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// An extract that cannot be read is replaced: there is nothing to carry over.
	if err == nil {
		w.previous = previous
	}
	return nil
}

// Previous returns the extract that this one will replace, nil when there is
// none that can be read.
func (w *Writer) Previous() *Extract { return w.previous }

// Path returns where the caller writes the parquet file of a table.
func (w *Writer) Path(table string) string {
	return filepath.Join(w.staging, DataDir, table+".parquet")
}

// PartPath returns where the caller writes part n of a table in several parts,
// and makes the folder for it. A table has either a Path or parts.
func (w *Writer) PartPath(table string, n int) (string, error) {
	dir := filepath.Join(w.staging, DataDir, table)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", WriteError(err, "make the folder of "+table)
	}
	return filepath.Join(dir, fmt.Sprintf("part-%05d.parquet", n)), nil
}

// Scratch returns a folder for temporary files; it is gone after Commit or Abort.
func (w *Writer) Scratch() (string, error) {
	dir := filepath.Join(w.staging, scratchDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", WriteError(err, "make the scratch folder")
	}
	return dir, nil
}

// Add declares a table whose files are in staging (a local one) or nowhere (a
// remote one). Rows below 0 are counted at Commit, SizeBytes is always
// measured, a zero ExtractedAt becomes now. state is an opaque fingerprint that
// the next run finds in Previous().State.
func (w *Writer) Add(m Meta, state string) error {
	if err := w.free(m.Table); err != nil {
		return err
	}
	if m.QueryMode == "" {
		m.QueryMode = Local
	}
	if m.ExtractedAt.IsZero() {
		m.ExtractedAt = time.Now()
	}
	m.ExtractedAt = m.ExtractedAt.UTC().Truncate(time.Microsecond)
	t := staged{meta: m, state: state}
	if m.QueryMode == Local {
		files, f := tableFiles(w.staging, m.Table)
		if f != nil {
			return f.asError(w.staging)
		}
		t.files = files
		// The pages begin their way to the disk while the next table is read.
		for _, file := range files {
			startWriteback(file)
		}
	}
	w.tables = append(w.tables, t)
	return nil
}

// free checks that a table's name is valid and not declared yet.
func (w *Writer) free(table string) error {
	if err := ValidName(table); err != nil {
		return err
	}
	if ReservedName(table) {
		return problem.New(problem.Invalid, fmt.Sprintf("The table name %q belongs to the extract contract itself.", table),
			"Give the table another name at its source.").WithCode("invalid_name")
	}
	for _, t := range w.tables {
		if strings.EqualFold(t.meta.Table, table) {
			return problem.New(problem.Conflict, fmt.Sprintf("The tables %q and %q of the source %s have the same name; DuckDB does not tell upper from lower case.", t.meta.Table, table, w.source),
				"Give one of them another name at its source.").WithCode("duplicate_table")
		}
	}
	return nil
}

// Keep carries a table of Previous over, with its row of _meta, its state and
// its files, which are linked and not copied where the file system can.
func (w *Writer) Keep(table string) error {
	missing := func(err error) error {
		return problem.Wrap(err, problem.NotFound, fmt.Sprintf("The last extract of %s has no usable table %q to carry over.", w.source, table),
			"Extract the table anew.")
	}
	if w.previous == nil {
		return missing(nil)
	}
	m, ok := w.previous.Meta(table)
	if !ok {
		return missing(nil)
	}
	if err := w.free(table); err != nil {
		return err
	}
	t := staged{meta: m, state: w.previous.State[table], kept: true}
	if m.QueryMode == Local {
		files, err := w.previous.Files(table)
		if err != nil {
			return missing(err)
		}
		// A file that was damaged since must not come along, or it would stay
		// for as long as its source does not change.
		if rows, err := w.rows(context.Background(), files); err != nil || rows != m.Rows {
			return missing(err)
		}
		if t.files, err = w.linkAll(table, files); err != nil {
			return errors.Join(WriteError(err, "carry "+table+" over"), w.discard(table))
		}
	}
	w.tables = append(w.tables, t)
	return nil
}

// discard removes what staging holds for a table that was not declared.
func (w *Writer) discard(table string) error {
	return errors.Join(
		os.RemoveAll(filepath.Join(w.staging, DataDir, table)),
		os.RemoveAll(filepath.Join(w.staging, DataDir, table+".parquet")),
	)
}

// Discard removes the files that were begun for a table which will not be
// added, so that Keep can put the last good ones in their place.
func (w *Writer) Discard(table string) error {
	if err := ValidName(table); err != nil {
		return err
	}
	for _, t := range w.tables {
		if strings.EqualFold(t.meta.Table, table) {
			return fmt.Errorf("discard %s: it is declared already", table)
		}
	}
	return w.discard(table)
}

func (w *Writer) linkAll(table string, files []string) ([]string, error) {
	// What an abandoned attempt at this table left would be a stray.
	if err := w.discard(table); err != nil {
		return nil, err
	}
	single := filepath.Join(w.previous.Dir, DataDir, table+".parquet")
	var out []string
	for _, from := range files {
		to := w.Path(table)
		if from != single {
			dir := filepath.Join(w.staging, DataDir, table)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
			to = filepath.Join(dir, filepath.Base(from))
		}
		if err := linkOrCopy(from, to); err != nil {
			return nil, err
		}
		out = append(out, to)
	}
	return out, nil
}

// Remote declares a row of _remote_attach.
func (w *Writer) Remote(r RemoteAttach) error {
	seen := map[string]bool{}
	for _, have := range w.remote {
		seen[strings.ToLower(have.Alias)] = true
	}
	if f := aliasFault(r.Alias, seen); f != nil {
		return f.asError(w.staging)
	}
	if r.TokenEnv != "" && !envName.MatchString(r.TokenEnv) {
		return problem.New(problem.Invalid,
			fmt.Sprintf("Expected the name of an environment variable as token_env of %s, found %d characters that are none.", r.Alias, len(r.TokenEnv)),
			"Name the variable that holds the token, never the token itself.")
	}
	w.remote = append(w.remote, r)
	return nil
}

// Commit proves the staged files, writes extract.duckdb, makes everything
// durable and swaps the new extract in. Afterwards the new extract is in place,
// or an error was returned and the old one is untouched (if the disk fails in
// the flush of the swap itself, one of the two is in place, whole). Commit ends
// the Writer either way. The files' footers are read, their pages are not:
// whoever wrote them has just done so.
func (w *Writer) Commit(ctx context.Context) (*Extract, error) {
	if w.done {
		return nil, errors.New("commit: this Writer has ended already")
	}
	ext, err := w.commit(ctx)
	if err != nil {
		return nil, joinAbort(err, w)
	}
	w.done = true
	// The new extract is in place and durable, so nothing below fails the
	// commit: the next Writer or Recover removes what is left of the old one.
	_ = recoverSource(w.extracts, w.source)
	_ = w.close()
	return ext, nil
}

func (w *Writer) commit(ctx context.Context) (*Extract, error) {
	w.step("begin")
	if err := os.RemoveAll(filepath.Join(w.staging, scratchDir)); err != nil {
		return nil, err
	}
	if err := w.prove(ctx); err != nil {
		return nil, err
	}
	w.step("proved")
	if err := w.writeDatabase(ctx); err != nil {
		return nil, err
	}
	w.step("database")
	if err := w.sync(); err != nil {
		return nil, err
	}
	w.step("synced")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := swapIn(w.extracts, w.source, w.step); err != nil {
		return nil, err
	}
	w.step("swapped")
	ext := &Extract{Dir: filepath.Join(w.extracts, w.source), Source: w.source, Remote: w.remote, State: map[string]string{}}
	for _, t := range w.tables {
		ext.Tables = append(ext.Tables, t.meta)
		ext.State[t.meta.Table] = t.state
	}
	return ext, nil
}

// prove reads the footer of every file that was written, compares the rows with
// what was declared and refuses files that nobody declared. Keep has proved the
// ones that were carried over.
func (w *Writer) prove(ctx context.Context) error {
	declared := map[string]bool{}
	for i := range w.tables {
		t := &w.tables[i]
		if t.meta.QueryMode != Local {
			continue
		}
		t.meta.SizeBytes = 0
		for _, f := range t.files {
			info, err := os.Stat(f)
			if err != nil {
				return err
			}
			t.meta.SizeBytes += info.Size()
			declared[f] = true
		}
		if t.kept {
			continue
		}
		rows, err := w.rows(ctx, t.files)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return problem.Wrap(err, problem.Internal,
				fmt.Sprintf("Expected whole parquet files for the table %s of the source %s, found one that cannot be read.", t.meta.Table, w.source),
				"Sync the source again; if it happens twice, look at the disk (dmesg) and at the connector's log.")
		}
		if t.meta.Rows >= 0 && t.meta.Rows != rows {
			return problem.New(problem.Internal,
				fmt.Sprintf("Expected %d rows in the files of %s/%s, found %d.", t.meta.Rows, w.source, t.meta.Table, rows),
				"Sync the source again; if it happens twice, report it with the connector's log.")
		}
		t.meta.Rows = rows
	}
	return w.noStrays(declared)
}

// rows sums the row counts in the files' footers.
func (w *Writer) rows(ctx context.Context, files []string) (int64, error) {
	if w.reader == nil {
		db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1})
		if err != nil {
			return 0, err
		}
		w.reader = db
	}
	var total int64
	err := footers(ctx, w.reader, files, func(_ string, rows int64) { total += rows })
	return total, err
}

func (w *Writer) noStrays(declared map[string]bool) error {
	return filepath.WalkDir(filepath.Join(w.staging, DataDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !declared[path] {
			return fmt.Errorf("commit %s: %s was written and not declared: call Add or Discard", w.source, relative(w.staging, path))
		}
		return nil
	})
}

// writeDatabase writes extract.duckdb and leaves it checkpointed and closed.
func (w *Writer) writeDatabase(ctx context.Context) error {
	file := filepath.Join(w.staging, ExtractFile)
	// The oldest storage version, so that any DuckDB in use can read the file.
	db, err := duck.Open(ctx, file, duck.Options{Threads: 1, Settings: map[string]string{"storage_compatibility_version": "v1.0.0"}})
	if err != nil {
		return WriteError(err, "write "+ExtractFile)
	}
	err = w.fill(ctx, db)
	if err = errors.Join(err, db.Close()); err != nil {
		return WriteError(err, "write "+ExtractFile)
	}
	if _, err := os.Lstat(file + ".wal"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("commit %s: a WAL is left after the checkpoint", w.source)
	}
	return nil
}

// Abort ends the Writer without a trace. After Commit, or a second time, it
// does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(os.RemoveAll(w.staging), w.close())
}

func (w *Writer) close() error {
	var err error
	if w.reader != nil {
		err = w.reader.Close()
	}
	return errors.Join(err, unlockSource(w.lock))
}

func joinAbort(err error, w *Writer) error {
	if abortErr := w.Abort(); abortErr != nil {
		return fmt.Errorf("%w (and the staging folder could not be removed: %w)", err, abortErr)
	}
	return err
}

// WriteError turns a failed write into a problem.Error: NoSpace when the disk
// is full, also when it was DuckDB that met the full disk. what says what was
// attempted ("write extract.duckdb"). A nil err stays nil, a problem.Error
// stays itself.
func WriteError(err error, what string) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*problem.Error](err); ok {
		return err
	}
	text := err.Error()
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) ||
		strings.Contains(text, "No space left on device") || strings.Contains(text, "Disk quota exceeded") || strings.Contains(text, "File too large")
	switch {
	case full:
		return problem.Wrap(err, problem.NoSpace, "The disk is full: could not "+what+". The data of before is in place.",
			"Free space or enlarge the disk (df -h DATA_DIR), then sync again.")
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS):
		return problem.Wrap(err, problem.Unavailable, "Could not "+what+": DATA_DIR cannot be written.",
			"Give the instance's user write access: chown -R and chmod -R u+rwX on DATA_DIR, or mount it read-write; then sync again.")
	default:
		return fmt.Errorf("could not %s: %w", what, err)
	}
}
