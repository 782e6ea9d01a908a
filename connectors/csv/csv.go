// Package csv is the source that reads a directory of files: CSV, TSV, NDJSON
// (JSONL), JSON and Parquet, plain or compressed by gzip or Zstandard.
//
// A file is a table, and so is a sub-folder with all of its files. list.go
// finds them and gives them names; inspect.go looks into a file before DuckDB
// does; dialect.go and delimited.go read delimited text, other.go the rest; and
// this file runs one extraction over all tables.
//
// What DuckDB would lose in silence is caught here: rows that its detection
// skips, quotes that begin after its sample, compressed files that end early,
// fractions that come after its sample and would be rounded, line numbers that
// count rows. Not caught, since only a second reading could: zeros in front of
// numbers and offsets of time zones, where the first 20480 rows have none. A row that cannot be read is left out and named
// by file and line, or refuses its table (OnBadRow). Warnings and errors name
// places and kinds of faults, never cell values.
package csv

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// SourceName is the source's folder below extracts/.
const SourceName = "csv"

// BadRowPolicy says what becomes of a table with rows that cannot be read.
type BadRowPolicy string

// The policies.
const (
	SkipBadRows BadRowPolicy = "skip" // leave the rows out, warn with file and line
	FailTable   BadRowPolicy = "fail" // refuse the table; its last good data stays
)

// Options say where the files are and how they are read.
type Options struct {
	Dir         string       // the directory of the files
	OnBadRow    BadRowPolicy // SkipBadRows when empty
	Threads     int          // 0: one per core
	MemoryLimit string       // DuckDB's memory_limit; 1GB when empty
	Log         *slog.Logger // nil: nothing is logged
}

// Source reads a directory. It implements connectors.Source.
type Source struct {
	opt Options
	log *slog.Logger
}

var _ connectors.Source = (*Source)(nil)

// New returns the source of opt.Dir. Nothing is looked at before Check.
func New(opt Options) *Source {
	if opt.OnBadRow == "" {
		opt.OnBadRow = SkipBadRows
	}
	if opt.MemoryLimit == "" {
		opt.MemoryLimit = "1GB"
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{opt: opt, log: opt.Log.With("source", SourceName)}
}

// Name returns SourceName.
func (s *Source) Name() string { return SourceName }

// Check proves that the directory can be listed and the options make sense.
func (s *Source) Check(context.Context) error {
	if s.opt.OnBadRow != SkipBadRows && s.opt.OnBadRow != FailTable {
		return problem.New(problem.Invalid, fmt.Sprintf("Expected skip or fail as the policy for bad rows, found %q.", s.opt.OnBadRow),
			"Set it to skip (leave bad rows out) or fail (refuse their table).")
	}
	_, err := readDir(s.opt.Dir)
	return err
}

// Discover lists the tables by the names and sizes of their files.
func (s *Source) Discover(ctx context.Context) ([]connectors.Table, []connectors.Warning, error) {
	if err := s.Check(ctx); err != nil {
		return nil, nil, err
	}
	tables, warnings, err := list(s.opt.Dir)
	if err != nil {
		return nil, nil, err
	}
	found := []connectors.Table{}
	for _, t := range tables {
		if t.err != nil {
			warnings = append(warnings, connectors.Warning{Table: t.name, Message: problem.As(t.err).Message})
			continue
		}
		found = append(found, connectors.Table{Name: t.name, Description: t.description(), Rows: -1, SizeBytes: t.size(), QueryMode: connectors.Local})
	}
	return found, warnings, nil
}

// state is what is kept of a table from one run to the next. The warnings are
// kept so that rows which were left out stay visible while nothing changes.
type state struct {
	Fingerprint string   `json:"fingerprint"`
	Warnings    []string `json:"warnings,omitempty"`
}

// Extract reads the tables that changed since the last extract. A table whose
// files are unchanged is carried over without being read; a table that fails,
// or whose files have become empty, keeps its last good data (Result.Kept).
func (s *Source) Extract(ctx context.Context, req connectors.Request, w *connectors.Writer, progress func(connectors.Progress)) (connectors.Result, error) {
	res := connectors.Result{Failed: map[string]error{}}
	if err := s.Check(ctx); err != nil {
		return res, err
	}
	tables, warnings, err := list(s.opt.Dir)
	if err != nil {
		return res, err
	}
	res.Warnings = warnings
	run := &extraction{source: s, w: w, res: &res, meter: newMeter(progress), kept: map[string]bool{}}
	defer run.close()
	return res, run.all(ctx, tables, req)
}

// extraction is one call of Extract.
type extraction struct {
	source  *Source
	w       *connectors.Writer
	res     *connectors.Result
	meter   *meter
	db      *sql.DB // opened for the first table that is read
	engine  *sql.Conn
	scratch string
	kept    map[string]bool // lower-case names carried over
}

func (x *extraction) close() {
	if x.engine != nil {
		_ = x.engine.Close()
	}
	if x.db != nil {
		_ = x.db.Close()
	}
}

func (x *extraction) all(ctx context.Context, tables []table, req connectors.Request) error {
	wanted := func(name string) bool {
		return len(req.Tables) == 0 || slices.ContainsFunc(req.Tables, func(r string) bool { return strings.EqualFold(r, name) })
	}
	here := map[string]bool{}
	for _, t := range tables {
		here[strings.ToLower(t.name)] = true
		if wanted(t.name) {
			x.meter.total += t.size()
		}
	}
	for _, t := range tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !wanted(t.name) {
			if _, err := x.keep(t.name); err != nil {
				return err
			}
			continue
		}
		x.meter.begin(t)
		if err := x.one(ctx, t); err != nil {
			return err
		}
		x.meter.end(t)
	}
	for _, name := range req.Tables {
		if here[strings.ToLower(name)] {
			continue
		}
		here[strings.ToLower(name)] = true
		x.res.Failed[name] = problem.New(problem.NotFound,
			fmt.Sprintf("Expected a file or folder for the table %s in %s, found none.", name, x.source.opt.Dir),
			"Put the file back, or unregister the table: DELETE /api/admin/registry/{id}")
		if err := x.keepFailed(name); err != nil {
			return err
		}
	}
	return x.gone(req, here)
}

// gone deals with the tables of the last extract whose files are no longer
// there. A full run lets them go, with a warning; a partial one carries them.
func (x *extraction) gone(req connectors.Request, here map[string]bool) error {
	if x.w.Previous() == nil {
		return nil
	}
	for _, m := range x.w.Previous().Tables {
		if here[strings.ToLower(m.Table)] {
			continue
		}
		if len(req.Tables) > 0 {
			if _, err := x.keep(m.Table); err != nil {
				return err
			}
			continue
		}
		x.warn(m.Table, "its file is no longer in the directory; the extract no longer holds the table")
	}
	return nil
}

func (x *extraction) warn(table, message string) {
	x.res.Warnings = append(x.res.Warnings, connectors.Warning{Table: table, Message: message})
}

// keep carries a table over where the last extract has it.
func (x *extraction) keep(name string) (bool, error) {
	prev := x.w.Previous()
	if prev == nil {
		return false, nil
	}
	i := slices.IndexFunc(prev.Tables, func(m connectors.Meta) bool { return strings.EqualFold(m.Table, name) })
	if i < 0 || x.kept[strings.ToLower(name)] {
		return false, nil
	}
	x.kept[strings.ToLower(name)] = true
	err := x.w.Keep(prev.Tables[i].Table)
	if problem.Is(err, problem.NotFound) {
		return false, nil // damaged since: as good as not there
	}
	return err == nil, err
}

func (x *extraction) keepFailed(name string) error {
	kept, err := x.keep(name)
	if kept {
		x.res.Kept = append(x.res.Kept, name)
	}
	return err
}

// one extracts a table. The error is one of the whole source.
func (x *extraction) one(ctx context.Context, t table) error {
	fingerprint := t.fingerprint(x.source.opt.OnBadRow)
	if prev := x.w.Previous(); prev != nil && t.err == nil {
		var before state
		if json.Unmarshal([]byte(prev.State[t.name]), &before) == nil && before.Fingerprint == fingerprint {
			kept, err := x.keep(t.name)
			if err != nil {
				return err
			}
			if kept {
				x.res.Unchanged = append(x.res.Unchanged, t.name)
				for _, message := range before.Warnings {
					x.warn(t.name, message)
				}
				return nil
			}
		}
	}
	if err := x.start(ctx); err != nil {
		return err
	}
	began := time.Now()
	rows, warnings, err := x.read(ctx, t)
	if err == nil {
		err = t.unchanged()
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return x.add(t, rows, state{fingerprint, warnings}, began)
	case errors.Is(err, errEmpty):
		if err := x.w.Discard(t.name); err != nil {
			return err
		}
		kept, err := x.keep(t.name)
		message := t.from + " is empty and was skipped"
		if kept {
			x.res.Kept = append(x.res.Kept, t.name)
			message += "; the table keeps its last good data"
		}
		x.warn(t.name, message)
		return err
	}
	if err = connectors.WriteError(err, "read "+t.from); problem.Is(err, problem.NoSpace) || problem.Is(err, problem.Unavailable) {
		return err
	}
	x.res.Failed[t.name] = err
	x.source.log.WarnContext(ctx, "table failed", "table", t.name, "error", err)
	if err := x.w.Discard(t.name); err != nil {
		return err
	}
	return x.keepFailed(t.name)
}

func (x *extraction) add(t table, rows int64, st state, began time.Time) error {
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	meta := connectors.Meta{Table: t.name, Description: t.description(), Rows: rows, ExtractedAt: time.Now().UTC().Truncate(time.Microsecond), QueryMode: connectors.Local}
	if err := x.w.Add(meta, string(text)); err != nil {
		return err
	}
	if info, err := os.Stat(x.w.Path(t.name)); err == nil {
		meta.SizeBytes = info.Size()
	}
	x.res.Tables = append(x.res.Tables, meta)
	for _, message := range st.Warnings {
		x.warn(t.name, message)
	}
	x.source.log.Info("table extracted", "table", t.name, "rows", rows, "bytes_in", t.size(), "bytes_out", meta.SizeBytes,
		"warnings", len(st.Warnings), "elapsed_ms", time.Since(began).Milliseconds())
	return nil
}

// errEmpty says that none of a table's files holds anything.
var errEmpty = errors.New("empty")

// read writes a table's parquet file and returns its rows, with a warning for
// each thing that a person should know.
func (x *extraction) read(ctx context.Context, t table) (int64, []string, error) {
	if t.err != nil {
		return 0, nil, t.err
	}
	if err := t.settle(ctx); err != nil {
		return 0, nil, err
	}
	l := &load{conn: x.engine, table: t, policy: x.source.opt.OnBadRow, scratch: x.scratch, out: x.w.Path(t.name), watch: x.meter.watch}
	defer l.cleanUp()
	rows, err := l.run(ctx)
	return rows, l.warnings, err
}

// start opens the DuckDB that reads the files. It has one connection: rejected
// rows are in temporary tables, which only their connection sees.
func (x *extraction) start(ctx context.Context) error {
	if x.engine != nil {
		return nil
	}
	var err error
	if x.scratch, err = x.w.Scratch(); err != nil {
		return err
	}
	x.db, err = duck.Open(ctx, duck.Memory, duck.Options{
		Threads: x.source.opt.Threads,
		Settings: map[string]string{
			"memory_limit":   x.source.opt.MemoryLimit,
			"temp_directory": filepath.Join(x.scratch, "spill"),
		},
		Init: []string{"SET TimeZone = 'UTC'"},
	})
	if err != nil {
		return err
	}
	x.engine, err = x.db.Conn(ctx)
	return err
}
