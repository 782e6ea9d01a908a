package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Rows of a JSON answer.
const (
	defaultRows = 1000
	maxRows     = 100_000
)

// limits are what one role's queries may use. They are shown by
// GET /api/health/details.
func (i *Instance) limits(role string) api.Limits {
	l := api.Limits{
		Rows: maxRows, Bytes: 64 << 20, StreamBytes: 16 << 30, Seconds: 120,
		MemoryBytes: i.query.MemoryBytes(), Concurrent: max(1, i.query.Workers()/2),
	}
	if role == api.RoleAdmin {
		l.Seconds, l.Concurrent = 300, max(1, i.query.Workers()-1)
	}
	if adjust := i.opt.QueryLimits; adjust != nil {
		l = adjust(role, l)
	}
	return l
}

// QueryDeadline is how long a query of the caller may take in all.
func (i *Instance) QueryDeadline(caller Caller) time.Duration {
	return time.Duration(i.limits(caller.Role).Seconds) * time.Second
}

// QueryFormat is the encoding of a query's answer.
type QueryFormat = query.Format

// The encodings.
const (
	FormatJSON    = query.JSON
	FormatNDJSON  = query.NDJSON
	FormatCSV     = query.CSV
	FormatArrow   = query.Arrow
	FormatParquet = query.Parquet
)

// Query answers one statement over the tables that the caller may see. start is
// called when the answer is certain to begin, and returns where its bytes go.
// An error before that is to be reported; an error after it means that what was
// written is not a whole answer. JSON is written without its last members, which
// come from the returned summary. Every query leaves an audit entry that says
// who asked for which tables, and never what came out.
func (i *Instance) Query(ctx context.Context, caller Caller, req api.QueryRequest, format QueryFormat, start func() (io.Writer, error)) (query.Summary, error) {
	limits := i.limits(caller.Role)
	q := query.Request{
		User: caller.UserID, SQL: req.SQL, Format: format, BigIntStrings: req.BigIntStrings,
		Timeout: time.Duration(limits.Seconds) * time.Second, MaxBytes: limits.StreamBytes, Concurrent: limits.Concurrent,
	}
	for _, p := range req.Params {
		q.Params = append(q.Params, p)
	}
	if format == FormatJSON {
		q.Limit, q.MaxBytes = defaultRows, limits.Bytes
	}
	if req.Limit != nil {
		q.Limit = int64(*req.Limit)
		if q.Limit == 0 {
			return query.Summary{}, problem.New(problem.Unprocessable, "limit is 0; expected at least 1.", "Leave limit out, or use DESCRIBE to see a query's columns.")
		}
	}
	s, err := i.scope(ctx, caller)
	if err != nil {
		return query.Summary{}, err
	}
	defer s.release()
	q.Generation, q.Views, q.Key = s.number, s.views, s.key
	q.Attach = func(key string) (*query.Attachment, error) { return i.attachment(s.remotes[key]) }
	tables := []string{}
	began := time.Now()
	sum, err := i.query.Run(ctx, q, func(head query.Columns) (io.Writer, error) {
		tables = append(tables, head.Tables...)
		return start()
	})
	err = s.explain(err)
	i.queries.add(queryEntry(caller, req.SQL, format, tables, sum, time.Since(began), err))
	return sum, err
}

// explain tells a table that is registered and has no data yet from one that
// is not there.
func (s *scoped) explain(err error) error {
	p, ok := errors.AsType[*problem.Error](err)
	if !ok || p.Code != "table_not_available" {
		return err
	}
	for _, id := range s.pending {
		if strings.Contains(strings.ToLower(p.Message), strings.ToLower(fmt.Sprintf("%q", id))) {
			return problem.New(problem.Unavailable, fmt.Sprintf("The table %q has no data yet.", id),
				"Wait for the running sync (GET /api/sync/status), or ask an admin to start one: POST /api/sync/trigger.").WithCode("not_synced")
		}
	}
	return err
}

// queryEntry describes a query for the audit log by what it touched and cost.
func queryEntry(caller Caller, sql string, format QueryFormat, tables []string, sum query.Summary, took time.Duration, err error) state.AuditEntry {
	hash := sha256.Sum256([]byte(sql))
	e := state.AuditEntry{
		At: time.Now(), Actor: caller.Email, ActorID: caller.UserID, Remote: caller.Remote, Action: "query.run", Target: hex.EncodeToString(hash[:]),
		Outcome: state.OutcomeOK,
		Detail:  map[string]any{"tables": tables, "rows": sum.Rows, "bytes": sum.Bytes, "ms": took.Milliseconds(), "format": string(format)},
	}
	if err != nil {
		e.Outcome = state.OutcomeFailed
		p, known := errors.AsType[*problem.Error](err)
		if known {
			e.Detail["code"] = p.WireCode()
		}
		if known && p.Kind == problem.Forbidden {
			e.Outcome = state.OutcomeDenied
		}
		if errors.Is(err, context.Canceled) {
			e.Detail["code"] = "caller_gone"
		}
	}
	return e
}

// scoped is what one user's queries see: views for the query engine, over a
// pinned generation.
type scoped struct {
	number  int64
	views   []query.View
	remotes map[string]remote // by what views know them by
	pending []string          // tables without data yet
	key     string
	release func()
}

// scopes remembers, by user, the views that were worked out last. They stay
// right until something is stored or published.
type scopes struct {
	mu sync.Mutex
	of map[string]rememberedScope
}

type rememberedScope struct {
	version    uint64 // of the state
	generation int64
	views      []query.View
	remotes    map[string]remote
	pending    []string
	key        string
}

func (i *Instance) scope(ctx context.Context, caller Caller) (*scoped, error) {
	version := i.state.Version() // before reading: a change meanwhile makes this stale
	g, published := i.analytics.Acquire()
	s := &scoped{release: func() {}}
	if published {
		s.number, s.release = g.ID, g.Release
	}
	i.scopes.mu.Lock()
	known, ok := i.scopes.of[caller.UserID]
	i.scopes.mu.Unlock()
	if ok && known.version == version && known.generation == s.number {
		s.views, s.remotes, s.pending, s.key = known.views, known.remotes, known.pending, known.key
		return s, nil
	}
	registered, err := i.state.ListTables(ctx)
	if err != nil {
		s.release()
		return nil, err
	}
	for _, t := range registered {
		if !t.Enabled || !caller.Sees(t.ID) {
			continue
		}
		var info analytics.TableInfo
		served := false
		if published {
			info, served = g.Tables[t.ID]
		}
		if !served {
			s.pending = append(s.pending, t.ID)
			continue
		}
		v := query.View{Name: t.ID, Files: info.Files}
		if info.QueryMode == connectors.Remote {
			r := remoteOf(info)
			v.Files, v.Attachment, v.Table = nil, r.key(), info.SourceTable
			if s.remotes == nil {
				s.remotes = make(map[string]remote)
			}
			s.remotes[v.Attachment] = r
		}
		s.views = append(s.views, v)
	}
	s.key = query.ScopeKey(s.number, s.views)
	if caller.version != version {
		// The caller's grants may be those of before a change, which must not
		// outlive this query.
		return s, nil
	}
	i.scopes.mu.Lock()
	defer i.scopes.mu.Unlock()
	if i.scopes.of == nil || len(i.scopes.of) > maxScopes {
		i.scopes.of = make(map[string]rememberedScope)
	}
	i.scopes.of[caller.UserID] = rememberedScope{version, s.number, s.views, s.remotes, s.pending, s.key}
	return s, nil
}

// maxScopes bounds what scopes remembers.
const maxScopes = 1000

// queryLog collects the audit entries of queries and stores them together: a
// transaction for each would cost more than most queries do.
type queryLog struct {
	mu      sync.Mutex
	entries []state.AuditEntry
	full    chan struct{}
}

const (
	queryLogEvery = 2 * time.Second // what a crash can lose
	queryLogSize  = 2000            // stored at once from here on
	queryLogKeep  = 90 * 24 * time.Hour
)

func (l *queryLog) add(e state.AuditEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	if len(l.entries) >= queryLogSize {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

func (l *queryLog) take() []state.AuditEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := l.entries
	l.entries = nil
	return entries
}

// storeQueryLog stores what queries leave behind until ctx ends, and once more
// then.
func (i *Instance) storeQueryLog(ctx context.Context) {
	tick := time.NewTicker(queryLogEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-i.queries.full:
		case <-ctx.Done():
			last = true
		}
		entries := i.queries.take()
		if len(entries) == 0 {
			continue
		}
		if err := i.state.AppendAll(context.WithoutCancel(ctx), entries, queryLogKeep); err != nil {
			i.log.Error("The audit entries of queries could not be stored.", "queries", len(entries), "error", err)
		}
	}
}
