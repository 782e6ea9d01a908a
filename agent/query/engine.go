// Package query answers SQL that nobody has reviewed.
//
// Two walls stand behind one another. The Gate reads DuckDB's own syntax tree
// of the statement and lets only one statement pass that reads granted tables
// through known doors. Behind it the statement runs in a database that holds
// nothing but views of the granted tables, may open exactly their files, cannot
// reach anything else outside itself, and has its configuration locked. So a
// gap in the first wall still shows only what the caller may see.
//
// Databases are kept per (generation, granted tables) and reused; a published
// generation never changes, so neither does such a database.
package query

import (
	"container/list"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// View is a table as a query sees it: a name over immutable Parquet files.
type View struct {
	Name  string
	Files []string // absolute paths
}

// Request is one statement with what it may see.
type Request struct {
	Generation int64  // together with Views, identifies the data
	Views      []View // the only tables that the statement can name
	SQL        string
	Params     []any // bound to ? and $1, never pasted
	Limit      int   // most rows in the answer
	Timeout    time.Duration
}

// Result is a complete answer. Values are ready for encoding/json: numbers keep
// all their digits, dates and times are ISO 8601 text, blobs are base64.
type Result struct {
	Columns   []string
	Types     []string
	Rows      [][]any
	Truncated bool
	Elapsed   time.Duration
}

// Options bound an Engine.
type Options struct {
	Databases   int   // databases kept open at most; 0: 16
	MemoryBytes int64 // memory of each database; 0: 1 GiB
	Log         *slog.Logger
}

// Engine answers requests. It is safe for concurrent use.
type Engine struct {
	opt  Options
	gate *Gate

	mu    sync.Mutex
	open  map[string]*list.Element // of *database
	order *list.List               // most recently used first
}

// database is one locked DuckDB instance. It is closed when it has left the
// cache and its last query has ended.
type database struct {
	key        string
	generation int64
	ready      chan struct{} // closed when db or err is set
	db         *sql.DB
	err        error
	users      int
	evicted    bool
}

// New returns an engine; Close it.
func New(ctx context.Context, opt Options) (*Engine, error) {
	if opt.Databases == 0 {
		opt.Databases = 16
	}
	if opt.MemoryBytes == 0 {
		opt.MemoryBytes = 1 << 30
	}
	gate, err := NewGate(ctx)
	if err != nil {
		return nil, err
	}
	return &Engine{opt: opt, gate: gate, open: make(map[string]*list.Element), order: list.New()}, nil
}

// Close ends the engine. Running queries end first.
func (e *Engine) Close() error {
	e.mu.Lock()
	for e.order.Len() > 0 {
		e.evict(e.order.Back())
	}
	e.mu.Unlock()
	return e.gate.Close()
}

// Isolation says what keeps a query away from the rest of the instance.
func (e *Engine) Isolation() string {
	return "in-process database per grant set: granted files only, external access off, configuration locked"
}

// MemoryBytes is the memory that the queries of one grant set share.
func (e *Engine) MemoryBytes() int64 { return e.opt.MemoryBytes }

// Version returns DuckDB's own version.
func (e *Engine) Version(ctx context.Context) (version string, err error) {
	err = e.gate.db.QueryRowContext(ctx, "SELECT version()").Scan(&version)
	return version, err
}

// Query answers one request. Refusals and SQL faults are problem.Errors of kind
// Invalid (with DuckDB's message), Forbidden, Timeout or TooLarge.
func (e *Engine) Query(ctx context.Context, req Request) (*Result, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, req.Timeout, errDeadline)
	defer cancel()

	names := make(map[string]bool, len(req.Views))
	for _, v := range req.Views {
		names[strings.ToLower(v.Name)] = true
	}
	if err := e.gate.Check(ctx, req.SQL, names); err != nil {
		return nil, explain(ctx, req, err)
	}
	d, err := e.acquire(ctx, req)
	if err != nil {
		return nil, explain(ctx, req, err)
	}
	res, err := run(ctx, d.db, req)
	e.release(d, broken(err))
	if err != nil {
		return nil, explain(ctx, req, err)
	}
	res.Elapsed = time.Since(start)
	return res, nil
}

var errDeadline = errors.New("the query's time is up")

func (e *Engine) acquire(ctx context.Context, req Request) (*database, error) {
	key := scopeKey(req)
	e.mu.Lock()
	if el, ok := e.open[key]; ok {
		d := el.Value.(*database)
		d.users++
		e.order.MoveToFront(el)
		e.mu.Unlock()
		return e.await(ctx, d)
	}
	d := &database{key: key, generation: req.Generation, ready: make(chan struct{}), users: 1}
	e.open[key] = e.order.PushFront(d)
	e.dropOld(req.Generation)
	e.mu.Unlock()

	// The database outlives this request, so the request's deadline must not
	// end its opening for those who wait for the same one.
	d.db, d.err = openScope(context.WithoutCancel(ctx), req, e.opt)
	close(d.ready)
	return e.await(ctx, d)
}

func (e *Engine) await(ctx context.Context, d *database) (*database, error) {
	select {
	case <-d.ready:
	case <-ctx.Done():
		e.release(d, false)
		return nil, ctx.Err()
	}
	if d.err != nil {
		e.release(d, true)
		return nil, problem.Wrap(d.err, problem.Internal, "The published tables cannot be opened for queries.",
			"Publish them again: POST /api/sync/trigger, then look at GET /api/health/details.")
	}
	return d, nil
}

// dropOld makes room: databases of older generations go first, for no new
// query will ask for them.
func (e *Engine) dropOld(current int64) {
	for el := e.order.Back(); el != nil; {
		prev := el.Prev()
		d := el.Value.(*database)
		if d.generation < current || e.order.Len() > e.opt.Databases {
			e.evict(el)
		}
		el = prev
	}
}

// evict takes a database out of the cache; the caller holds mu.
func (e *Engine) evict(el *list.Element) {
	d := el.Value.(*database)
	e.order.Remove(el)
	delete(e.open, d.key)
	d.evicted = true
	if d.users == 0 {
		e.closeDatabase(d)
	}
}

func (e *Engine) release(d *database, drop bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d.users--
	if el, ok := e.open[d.key]; drop && ok && el.Value.(*database) == d {
		e.evict(el)
		return
	}
	if d.evicted && d.users == 0 {
		e.closeDatabase(d)
	}
}

func (e *Engine) closeDatabase(d *database) {
	if d.db == nil {
		return
	}
	db := d.db
	d.db = nil
	go func() {
		if err := db.Close(); err != nil {
			e.opt.Log.Warn("A query database did not close cleanly.", "error", err)
		}
	}()
}

func scopeKey(req Request) string {
	h := sha256.New()
	fmt.Fprintln(h, req.Generation)
	for _, v := range req.Views {
		fmt.Fprintf(h, "%q %q\n", v.Name, v.Files)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// openScope opens a database that can see the request's views and nothing else.
func openScope(ctx context.Context, req Request, opt Options) (_ *sql.DB, err error) {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{
		Threads: runtime.NumCPU(),
		Settings: map[string]string{
			"memory_limit":                 fmt.Sprintf("%dB", opt.MemoryBytes),
			"allow_community_extensions":   "false",
			"temp_directory":               "",              // nothing spills to disk
			"validate_external_file_cache": "NO_VALIDATION", // published files never change
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	var files []string
	var script strings.Builder
	for _, v := range req.Views {
		files = append(files, v.Files...)
		fmt.Fprintf(&script, "CREATE VIEW %s AS SELECT * FROM read_parquet(%s);\n", duck.Ident(v.Name), duck.List(v.Files))
	}
	fmt.Fprintf(&script, "SET allowed_paths = %s;\n", duck.List(files))
	script.WriteString("SET enable_external_access = false;\nSET lock_configuration = true;\n")
	_, err = db.ExecContext(ctx, script.String())
	return db, err
}

func run(ctx context.Context, db *sql.DB, req Request) (*Result, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	// The driver materialises what a statement yields, so the limit has to
	// stand in the statement. The gate has proved that it is one SELECT; the
	// line breaks keep a trailing comment from swallowing the bracket.
	text := fmt.Sprintf("SELECT * FROM (\n%s\n) LIMIT %d", strings.TrimRight(req.SQL, "; \t\r\n"), req.Limit+1)
	rows, err := conn.QueryContext(ctx, text, req.Params...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()

	res := &Result{Rows: [][]any{}}
	if res.Columns, err = rows.Columns(); err != nil {
		return nil, err
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	for _, t := range types {
		res.Types = append(res.Types, t.DatabaseTypeName())
	}
	for rows.Next() {
		if len(res.Rows) == req.Limit {
			res.Truncated = true
			break
		}
		values := make([]any, len(res.Columns))
		targets := make([]any, len(values))
		for i := range values {
			targets[i] = &values[i]
		}
		if err := rows.Scan(targets...); err != nil {
			return nil, err
		}
		for i := range values {
			values[i] = jsonValue(values[i], res.Types[i])
		}
		res.Rows = append(res.Rows, values)
	}
	if res.Truncated {
		return res, nil
	}
	return res, rows.Err()
}

// MaxSQL is the longest statement that is read, in bytes: parsing time grows
// with the square of some statements' length.
const MaxSQL = 64 << 10

func tooLong(n int) error {
	return problem.New(problem.TooLarge,
		fmt.Sprintf("The statement has %d bytes; expected at most %d.", n, MaxSQL),
		"Pass long lists of values as params, or split the statement.")
}
