package query

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	duckdb "github.com/duckdb/duckdb-go-bindings"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Options bound an Engine.
type Options struct {
	Command     []string // starts a worker; the running program with WorkerCommand when empty
	Workers     int      // statements at once; 0: four a core
	MemoryBytes int64    // of one statement; 0: 1 GiB
	Log         *slog.Logger
}

// Engine answers requests. It is safe for concurrent use.
type Engine struct {
	opt   Options
	queue *queue

	mu        sync.Mutex
	closed    bool
	idle      []*process // bound, least recently used first
	blank     []*process // not bound yet
	starting  int        // of the next blank ones
	newest    int64      // generation
	isolation string
	spawning  sync.WaitGroup
}

// New returns an engine; Close it.
func New(_ context.Context, opt Options) (*Engine, error) {
	if len(opt.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		opt.Command = []string{self, WorkerCommand}
	}
	opt.Workers = cmp.Or(opt.Workers, 4*runtime.NumCPU())
	opt.MemoryBytes = cmp.Or(opt.MemoryBytes, 1<<30)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	// A descriptor that some library left inheritable must not reach a worker.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 cannot
	return &Engine{opt: opt, queue: newQueue(opt.Workers), isolation: "no query has run yet"}, nil
}

// Warm starts spare workers, so that the first statement does not wait for one.
func (e *Engine) Warm() { e.refill() }

// Close ends the workers that wait. Those that run a statement end with it, so
// the caller lets requests finish first.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	all := append(e.idle, e.blank...)
	e.idle, e.blank = nil, nil
	e.mu.Unlock()
	e.spawning.Wait()
	for _, p := range all {
		p.kill()
		<-p.done
	}
	return nil
}

// Isolation says what keeps a statement away from the rest of the machine.
func (e *Engine) Isolation() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.isolation
}

// Workers is how many statements run at once.
func (e *Engine) Workers() int { return e.opt.Workers }

// MemoryBytes is the memory of one statement.
func (e *Engine) MemoryBytes() int64 { return e.opt.MemoryBytes }

// Version is DuckDB's own.
func Version() string { return duckdb.LibraryVersion() }

// Running is how many statements run now.
func (e *Engine) Running() int { return e.queue.inUse() }

// Run answers one request. start is called once the answer is certain to
// begin, and returns where its bytes go. An error before that call is a refusal
// or failure to report: a problem.Error of kind Invalid, Forbidden, Timeout,
// TooLarge, RateLimited or Unprocessable. An error after it means that the
// bytes so far are not a whole answer. A caller that goes away (ctx) ends its
// statement.
func (e *Engine) Run(ctx context.Context, req Request, start func(Columns) (io.Writer, error)) (Summary, error) {
	began := time.Now()
	if err := checkText(req.SQL); err != nil {
		return Summary{}, err
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Timeout, errDeadline)
		defer cancel()
	}
	leave, err := e.queue.enter(ctx, req.User, req.Concurrent)
	if err != nil {
		return Summary{}, explainWait(ctx, req, err)
	}
	defer leave()
	waited := time.Since(began)
	p, err := e.worker(ctx, req)
	if err != nil {
		return Summary{}, explain(ctx, req, err)
	}
	a := &answer{start: start}
	m := queryMessage{
		SQL: req.SQL, Params: req.Params, Format: cmp.Or(req.Format, JSON), Limit: req.Limit, MaxBytes: req.MaxBytes, BigIntStrings: req.BigIntStrings,
	}
	end, err := p.query(ctx, m, a)
	e.put(p, err)
	if elsewhere := needsRemote(err); elsewhere != nil {
		end, err = e.runRemote(ctx, req, elsewhere, m, a)
	}
	if err != nil {
		return Summary{}, explain(ctx, req, err)
	}
	return Summary{Columns: a.head, Rows: end.Rows, Bytes: a.bytes, Truncated: end.Truncated, Waited: waited, Elapsed: time.Since(began)}, nil
}

// Query answers one request in memory.
func (e *Engine) Query(ctx context.Context, req Request) (*Result, error) {
	var body bytes.Buffer
	req.Format = JSON
	sum, err := e.Run(ctx, req, func(Columns) (io.Writer, error) { return &body, nil })
	if err != nil {
		return nil, err
	}
	body.WriteByte('}') // Run leaves the object open for the caller's own members
	res := &Result{Truncated: sum.Truncated, Elapsed: sum.Elapsed}
	dec := json.NewDecoder(&body)
	dec.UseNumber()
	return res, dec.Decode(res)
}

// worker returns a worker that is bound to what the request may see.
func (e *Engine) worker(ctx context.Context, req Request) (*process, error) {
	key := cmp.Or(req.Key, ScopeKey(req.Generation, req.Views))
	e.mu.Lock()
	if req.Generation > e.newest {
		e.newest = req.Generation
		e.dropOld()
	}
	var p *process
	if req.Format == Parquet { // ends its worker: the warm ones are for others
		p = e.takeBlank()
	} else {
		p = e.take(key)
	}
	e.mu.Unlock()
	if p != nil && p.key == key {
		return p, nil
	}
	defer e.refill()
	if p == nil {
		var err error
		if p, err = spawn(e.opt.Command); err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, "No process could be started for the query.",
				"Try again in a moment; the instance's machine may be short of memory or processes.").WithCode("no_worker")
		}
	}
	m := bindMessage{Views: req.Views, MemoryBytes: e.opt.MemoryBytes, Sandbox: true}
	if req.Format == Parquet {
		m.Threads = parquetThreads
		p.spent = true // for others, whatever becomes of the statement
	}
	if err := p.bind(ctx, m); err != nil {
		p.kill()
		return nil, err
	}
	p.key, p.generation = key, req.Generation
	e.mu.Lock()
	e.isolation = p.isolation
	e.mu.Unlock()
	return p, nil
}

// take finds an idle worker for key, or one that is not bound, or nil. The
// caller holds mu.
func (e *Engine) take(key string) *process {
	for i := len(e.idle) - 1; i >= 0; i-- {
		if p := e.idle[i]; p.key == key {
			e.idle = slices.Delete(e.idle, i, i+1)
			if !p.ended() {
				return p
			}
		}
	}
	return e.takeBlank()
}

// takeBlank finds a worker that is not bound, or nil. The caller holds mu.
func (e *Engine) takeBlank() *process {
	for n := len(e.blank); n > 0; n-- {
		p := e.blank[n-1]
		e.blank = e.blank[:n-1]
		if !p.ended() {
			return p
		}
	}
	return nil
}

// dropOld ends idle workers of earlier generations; nobody will ask for them.
// The caller holds mu.
func (e *Engine) dropOld() {
	e.idle = slices.DeleteFunc(e.idle, func(p *process) bool {
		old := p.generation < e.newest
		if old {
			p.kill()
		}
		return old
	})
}

// put takes a worker back after a statement.
func (e *Engine) put(p *process, err error) {
	var refused *workerError
	if err != nil && !errors.As(err, &refused) {
		p.spent = true
	}
	if refused != nil && refused.fatal() {
		p.spent = true
	}
	p.refresh()
	e.mu.Lock()
	if p.spent || e.closed || p.generation < e.newest {
		e.mu.Unlock()
		p.kill()
		e.refill()
		return
	}
	e.idle = append(e.idle, p)
	if len(e.idle) > e.opt.Workers {
		e.idle[0].kill()
		e.idle = slices.Delete(e.idle, 0, 1)
	}
	e.mu.Unlock()
}

// spares is how many workers wait unbound, so that a kill or a new generation
// costs the next caller no process start.
const spares = 2

// refill starts workers in the background until the spares are there.
func (e *Engine) refill() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.blank)+e.starting >= spares {
		return
	}
	e.starting++
	e.spawning.Go(func() {
		p, err := spawn(e.opt.Command)
		defer func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.starting--
		}()
		if err != nil {
			e.opt.Log.Error("A query worker could not be started.", "error", err)
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed {
			p.kill()
			return
		}
		e.blank = append(e.blank, p)
	})
}

// ScopeKey identifies what a request may see.
func ScopeKey(generation int64, views []View) string {
	h := sha256.New()
	fmt.Fprintln(h, generation)
	for _, v := range views {
		_, _ = io.WriteString(h, v.Name)
		_, _ = h.Write([]byte{0})
		_, _ = io.WriteString(h, strings.Join(v.Files, "\x00"))
		_, _ = io.WriteString(h, "\x02"+v.Attachment+"\x00"+v.Table)
		_, _ = h.Write([]byte{1})
	}
	return hex.EncodeToString(h.Sum(nil))
}
