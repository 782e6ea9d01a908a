package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// What a Change is about.
const (
	ChangeHealth  = "health"
	ChangeVersion = "version"
)

// Change is one that was seen of an instance, after it was judged by several
// probes: a lost packet is none.
type Change struct {
	At      time.Time `json:"at"`
	Name    string    `json:"name"`
	What    string    `json:"what"` // health or version
	From    string    `json:"from"` // a fleet.Health, or a version; empty where it was not known
	To      string    `json:"to"`   // the same; empty where it is not known any more
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
}

// Incident is something about an instance that people should look at. The
// monitor's own trouble has no Name.
type Incident struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Opened   time.Time `json:"opened"`
	Closed   time.Time `json:"closed,omitzero"`
	Summary  string    `json:"summary"`
	Hint     string    `json:"hint"`
	Ending   string    `json:"ending"`   // why it was closed
	Silenced string    `json:"silenced"` // why nobody was told of it
	Link     string    `json:"link"`     // of its issue, where a channel made one
}

// LatencyHour is how long an instance's probes took in an hour.
type LatencyHour struct {
	Hour  time.Time     `json:"hour"`
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P95   time.Duration `json:"p95"`
	Max   time.Duration `json:"max"`
}

// NamedLatency is an hour of one instance.
type NamedLatency struct {
	Name string
	LatencyHour
}

// Batch is what a monitor has learned since it last wrote. It is kept whole or not
// at all, so that a monitor that dies at any moment leaves a state from which the
// next one decides the same.
type Batch struct {
	Seen    time.Time         // of the newest observation in it
	Minds   map[string][]byte // what is known of an instance, in the monitor's own form; nil: forget it
	Changes []Change
	Opened  []Opening
	Told    []Opening // incidents of before that were silenced until now; ID and To count
	Closed  []Closing
	Latency []NamedLatency

	// WatchedFrom and WatchedUntil are the span in which the monitor was at work.
	WatchedFrom, WatchedUntil time.Time
}

// Opening is an incident that begins, with the channels that must hear of it.
type Opening struct {
	Incident
	At time.Time // when it is told; Opened where zero
	To []string
}

// Closing is an incident that ends. The channels that had to hear of its beginning
// have to hear of this.
type Closing struct {
	ID     string
	At     time.Time
	Ending string
}

// Empty reports whether there is nothing to write.
func (b *Batch) Empty() bool { return b.Rows() == 0 && b.WatchedUntil.IsZero() }

// Rows returns how much there is to write.
func (b *Batch) Rows() int {
	return len(b.Minds) + len(b.Changes) + len(b.Opened) + len(b.Told) + len(b.Closed) + len(b.Latency)
}

// Add appends what was learned later.
func (b *Batch) Add(later Batch) {
	if later.Seen.After(b.Seen) {
		b.Seen = later.Seen
	}
	if b.Minds == nil {
		b.Minds = later.Minds
	} else {
		for name, doc := range later.Minds {
			b.Minds[name] = doc
		}
	}
	b.Changes = append(b.Changes, later.Changes...)
	b.Opened = append(b.Opened, later.Opened...)
	b.Told = append(b.Told, later.Told...)
	b.Closed = append(b.Closed, later.Closed...)
	b.Latency = append(b.Latency, later.Latency...)
	if !later.WatchedUntil.IsZero() {
		b.WatchedFrom, b.WatchedUntil = later.WatchedFrom, later.WatchedUntil
	}
}

// What is said of an incident.
const (
	EventOpened = "opened"
	EventClosed = "closed"
)

// Remember writes a batch in one transaction. A batch that is written twice, since
// the answer to the first time was lost, is as one.
func (s *Store) Remember(ctx context.Context, b Batch) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		w := &writer{ctx: ctx, s: s, tx: tx, prepared: map[string]*sql.Stmt{}}
		for name, doc := range b.Minds {
			if doc == nil {
				w.run("DELETE FROM instance WHERE name = ?", name)
				continue
			}
			w.run("INSERT INTO instance (name, seen, doc) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, doc = excluded.doc", name, micros(b.Seen), doc)
		}
		for _, c := range b.Changes {
			w.run("INSERT OR IGNORE INTO change (name, at, what, was, is_now, version, reason) VALUES (?, ?, ?, ?, ?, ?, ?)", c.Name, micros(c.At), c.What, c.From, c.To, c.Version, c.Reason)
		}
		for _, o := range b.Opened {
			w.run("INSERT OR IGNORE INTO incident (id, name, kind, opened, summary, hint, silenced) VALUES (?, ?, ?, ?, ?, ?, ?)", o.ID, o.Name, o.Kind, micros(o.Opened), o.Summary, o.Hint, o.Silenced)
			w.tell(o)
		}
		for _, o := range b.Told {
			w.run("UPDATE incident SET silenced = '' WHERE id = ?", o.ID)
			w.tell(o)
		}
		for _, c := range b.Closed {
			w.run("UPDATE incident SET closed = ?, ending = ? WHERE id = ? AND closed IS NULL", micros(c.At), c.Ending, c.ID)
			w.run("INSERT OR IGNORE INTO outbox (incident, event, channel, made) SELECT incident, 'closed', channel, ? FROM outbox WHERE incident = ? AND event = 'opened' ORDER BY seq", micros(c.At), c.ID)
		}
		for _, l := range b.Latency {
			// The part of an hour before a restart and the one after it: the figures in
			// between are the mean of both, which is near enough.
			w.run(`INSERT INTO latency (hour, name, count, p50, p95, max) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hour, name) DO UPDATE SET
				p50 = (p50 * count + excluded.p50 * excluded.count) / (count + excluded.count), p95 = (p95 * count + excluded.p95 * excluded.count) / (count + excluded.count),
				max = MAX(max, excluded.max), count = count + excluded.count`,
				micros(l.Hour), l.Name, l.Count, l.P50.Microseconds(), l.P95.Microseconds(), l.Max.Microseconds())
		}
		if !b.WatchedUntil.IsZero() {
			w.run("INSERT INTO life (began, until) VALUES (?, ?) ON CONFLICT (began) DO UPDATE SET until = MAX(until, excluded.until)", micros(b.WatchedFrom), micros(b.WatchedUntil))
		}
		return w.err
	})
}

// writer runs statements, each prepared once, until one fails.
type writer struct {
	ctx      context.Context //nolint:containedctx // lives as long as one transaction
	s        *Store
	tx       *sql.Tx
	prepared map[string]*sql.Stmt
	err      error
}

func (w *writer) run(query string, args ...any) {
	if w.err != nil {
		return
	}
	stmt := w.prepared[query]
	if stmt == nil {
		of, err := w.s.statement(w.ctx, query)
		if w.err = err; err != nil {
			return
		}
		stmt = w.tx.StmtContext(w.ctx, of) //nolint:sqlclosecheck // ends with its transaction
		w.prepared[query] = stmt
	}
	_, w.err = stmt.ExecContext(w.ctx, args...)
}

func (w *writer) tell(o Opening) {
	at := o.At
	if at.IsZero() {
		at = o.Opened
	}
	for _, channel := range o.To {
		w.run("INSERT OR IGNORE INTO outbox (incident, event, channel, made) VALUES (?, 'opened', ?, ?)", o.ID, channel, micros(at))
	}
}

// micros is a time as the tables have it.
func micros(t time.Time) int64 { return t.UnixMicro() }

// timeOf reads it.
func timeOf(micros int64) time.Time { return time.UnixMicro(micros).UTC() }

// Minds returns what the last monitor knew of each instance.
func (s *Store) Minds(ctx context.Context) (map[string][]byte, error) {
	minds := map[string][]byte{}
	return minds, s.rows(ctx, func(rows *sql.Rows) error {
		var name string
		var doc []byte
		err := rows.Scan(&name, &doc)
		minds[name] = doc
		return err
	}, "SELECT name, doc FROM instance")
}

// rows hands each row of an answer to f.
func (s *Store) rows(ctx context.Context, f func(*sql.Rows) error, query string, args ...any) error {
	stmt, err := s.statement(ctx, query) //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return unusable(err, s.path)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := f(rows); err != nil {
			return unusable(err, s.path)
		}
	}
	return unusable(rows.Err(), s.path)
}

// Watch makes the caller the one monitor of this store until it calls the function
// that is returned, or its process ends. Two would tell everything twice.
func (s *Store) Watch() (func(), error) {
	path := filepath.Join(filepath.Dir(s.path), "monitor.lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, unusable(err, s.path)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, problem.New(problem.Refused, "Another monitor is at work on "+filepath.Dir(s.path)+".",
				"End it first. Pollers that share a fleet (--shard) have a folder each: --state DIR")
		}
		return nil, unusable(err, s.path)
	}
	return func() { _ = file.Close() }, nil
}

// Changes returns the changes of an instance, or of all where name is empty, since
// a moment, the newest first; 100 where limit is 0.
func (s *Store) Changes(ctx context.Context, name string, since time.Time, limit int) ([]Change, error) {
	found := []Change{}
	where, args := "at >= ?", []any{sinceMicros(since)}
	if name != "" {
		where, args = "name = ? AND at >= ?", []any{name, sinceMicros(since)}
	}
	return found, s.rows(ctx, func(rows *sql.Rows) error {
		var c Change
		var at int64
		err := rows.Scan(&at, &c.Name, &c.What, &c.From, &c.To, &c.Version, &c.Reason)
		c.At = timeOf(at)
		found = append(found, c)
		return err
	}, "SELECT at, name, what, was, is_now, version, reason FROM change WHERE "+where+" ORDER BY at DESC, seq DESC LIMIT ?", append(args, orHundred(limit))...)
}

func orHundred(limit int) int {
	if limit <= 0 {
		return 100
	}
	return limit
}

// sinceMicros takes the zero time for the beginning of all.
func sinceMicros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return micros(t)
}

// IncidentQuery selects incidents.
type IncidentQuery struct {
	Name     string // of one instance; all where empty
	OpenOnly bool
	Since    time.Time // open then or later; of all time where zero
	Limit    int       // 100 where zero
}

const incidentColumns = `i.id, i.name, i.kind, i.opened, i.closed, i.summary, i.hint, i.ending, i.silenced,
	COALESCE((SELECT m.link FROM outbox o JOIN message m ON m.id = o.message WHERE o.incident = i.id AND m.link <> '' LIMIT 1), '')`

func scanIncident(rows *sql.Rows, more ...any) (Incident, error) {
	var i Incident
	var opened int64
	var closed sql.NullInt64
	err := rows.Scan(append([]any{&i.ID, &i.Name, &i.Kind, &opened, &closed, &i.Summary, &i.Hint, &i.Ending, &i.Silenced, &i.Link}, more...)...)
	i.Opened = timeOf(opened)
	if closed.Valid {
		i.Closed = timeOf(closed.Int64)
	}
	return i, err
}

// Incidents returns what q selects, the newest first.
func (s *Store) Incidents(ctx context.Context, q IncidentQuery) ([]Incident, error) {
	found := []Incident{}
	where, args := "1", []any{}
	if q.Name != "" {
		where, args = where+" AND i.name = ?", append(args, q.Name)
	}
	if q.OpenOnly {
		where += " AND i.closed IS NULL"
	}
	if !q.Since.IsZero() {
		where, args = where+" AND (i.closed IS NULL OR i.closed >= ?)", append(args, micros(q.Since))
	}
	return found, s.rows(ctx, func(rows *sql.Rows) error {
		i, err := scanIncident(rows)
		found = append(found, i)
		return err
	}, "SELECT "+incidentColumns+" FROM incident i WHERE "+where+" ORDER BY i.opened DESC, i.id LIMIT ?", append(args, orHundred(q.Limit))...)
}

// OpenIncidents returns how many incidents are open.
func (s *Store) OpenIncidents(ctx context.Context) (n int, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM incident WHERE closed IS NULL").Scan(&n)
	if err != nil {
		err = fmt.Errorf("count the open incidents: %w", unusable(err, s.path))
	}
	return n, err
}

// Latency returns the hours of an instance since a moment, oldest first.
func (s *Store) Latency(ctx context.Context, name string, since time.Time) ([]LatencyHour, error) {
	var first, last sql.NullInt64
	if err := s.db.QueryRowContext(ctx, "SELECT MIN(hour), MAX(hour) FROM latency").Scan(&first, &last); err != nil {
		return nil, unusable(err, s.path)
	}
	found := []LatencyHour{}
	if !first.Valid {
		return found, nil
	}
	stmt, err := s.db.PrepareContext(ctx, "SELECT count, p50, p95, max FROM latency WHERE hour = ? AND name = ?")
	if err != nil {
		return nil, unusable(err, s.path)
	}
	defer func() { _ = stmt.Close() }()
	// Hours come first in the table, so that a monitor writes at its end: an
	// instance's own are found one by one.
	hour := timeOf(max(first.Int64, sinceMicros(since))).Truncate(time.Hour)
	for ; micros(hour) <= last.Int64; hour = hour.Add(time.Hour) {
		l := LatencyHour{Hour: hour}
		var p50, p95, most int64
		switch err := stmt.QueryRowContext(ctx, micros(hour), name).Scan(&l.Count, &p50, &p95, &most); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, unusable(err, s.path)
		default:
			l.P50, l.P95, l.Max = time.Duration(p50)*time.Microsecond, time.Duration(p95)*time.Microsecond, time.Duration(most)*time.Microsecond
			found = append(found, l)
		}
	}
	return found, nil
}

// Uptime is how an instance was in the time before now. What nobody watched is
// not known.
type Uptime struct {
	Window time.Duration `json:"window"`
	Known  time.Duration `json:"known"`
	Up     time.Duration `json:"up"` // of Known: healthy or degraded
}

// span is a time from begin to end.
type span struct{ from, to time.Time }

// Uptime returns an instance's uptime in the windows before now, from the changes
// of its health and the times at which a monitor watched.
func (s *Store) Uptime(ctx context.Context, name string, now time.Time, windows ...time.Duration) ([]Uptime, error) {
	if len(windows) == 0 {
		return nil, nil
	}
	begin := now.Add(-slices.Max(windows))
	var watched []span
	if err := s.rows(ctx, func(rows *sql.Rows) error {
		var from, to int64
		err := rows.Scan(&from, &to)
		watched = append(watched, span{timeOf(from), timeOf(to)})
		return err
	}, "SELECT began, until FROM life WHERE until > ? AND began < ? ORDER BY began", micros(begin), micros(now)); err != nil {
		return nil, err
	}
	// The last change before the windows says how they begin.
	var known, up []span
	state, since := "", time.Time{}
	step := func(to string, at time.Time) {
		if state != "" {
			known = append(known, span{since, at})
		}
		if state == "healthy" || state == "degraded" {
			up = append(up, span{since, at})
		}
		state, since = to, at
	}
	if err := s.rows(ctx, func(rows *sql.Rows) error {
		var at int64
		var to string
		if err := rows.Scan(&at, &to); err != nil {
			return err
		}
		step(to, timeOf(at))
		return nil
	}, `SELECT at, is_now FROM change WHERE name = ?1 AND what = 'health' AND at <= ?3
		AND at >= COALESCE((SELECT MAX(at) FROM change WHERE name = ?1 AND what = 'health' AND at <= ?2), ?2) ORDER BY at, seq`, name, micros(begin), micros(now)); err != nil {
		return nil, err
	}
	step("", now)
	out := make([]Uptime, len(windows))
	for i, w := range windows {
		from := now.Add(-w)
		out[i] = Uptime{Window: w, Known: common(watched, known, from, now), Up: common(watched, up, from, now)}
	}
	return out, nil
}

// common is how long spans of a and of b, each in their order, overlap between two
// moments. Spans of a may overlap each other: their common time counts once.
func common(a, b []span, from, to time.Time) (sum time.Duration) {
	for _, y := range b {
		done := latest(y.from, from)
		end := earliest(y.to, to)
		for _, x := range a {
			begin := latest(x.from, done)
			if until := earliest(x.to, end); until.After(begin) {
				sum += until.Sub(begin)
				done = until
			}
		}
	}
	return sum
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Prune removes at most some thousand rows that are older than the two moments:
// changes, incidents with what was said of them, and times of watching; latencies.
// It reports whether there may be more. What an instance last changed to stays, and
// so does what is open or still has to be said.
func (s *Store) Prune(ctx context.Context, history, latency time.Time) (more bool, err error) {
	const step = 1000
	return more, s.change(ctx, func(tx *sql.Tx) error {
		more = false
		for _, q := range []struct {
			query string
			until time.Time
		}{
			{`DELETE FROM latency WHERE (hour, name) IN (SELECT hour, name FROM latency WHERE hour < ? LIMIT ?)`, latency},
			{`DELETE FROM change WHERE seq IN (SELECT seq FROM change c WHERE at < ?
				AND EXISTS (SELECT 1 FROM change n WHERE n.name = c.name AND n.what = c.what AND n.at > c.at) LIMIT ?)`, history},
			{`DELETE FROM incident WHERE id IN (SELECT id FROM incident i WHERE closed < ?
				AND NOT EXISTS (SELECT 1 FROM outbox o LEFT JOIN message m ON m.id = o.message WHERE o.incident = i.id AND (o.message IS NULL OR m.state = 'pending')) LIMIT ?)`, history},
			{`DELETE FROM message WHERE id IN (SELECT id FROM message m WHERE ended < ? AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.message = m.id) LIMIT ?)`, history},
			{`DELETE FROM life WHERE began IN (SELECT began FROM life WHERE until < ? LIMIT ?)`, history},
		} {
			result, err := tx.ExecContext(ctx, q.query, micros(q.until), step)
			if err != nil {
				return fmt.Errorf("prune: %w", err)
			}
			if n, err := result.RowsAffected(); err != nil {
				return err
			} else if n == step {
				more = true
			}
		}
		return nil
	})
}
