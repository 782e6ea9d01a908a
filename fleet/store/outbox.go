package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Message is what a channel is sent at once. It is written down before it is sent
// and keeps its ID until it is known to have arrived, so that a receiver that
// remembers IDs hears everything exactly once.
type Message struct {
	ID       string
	Channel  string
	Thread   string // ID of the message that opened what this one is about; empty where the channel has no threads
	Attempts int    // that failed
	Made     time.Time
	Next     time.Time // not before
	Items    []Item

	// Open is how many incidents of the thread are still open.
	Open int
}

// Item is one thing that a message says.
type Item struct {
	Incident
	Event string // opened or closed
}

// Grouping says how what is said at about the same time becomes messages.
type Grouping struct {
	Wait    time.Duration // how long the first one waits for others; while these come in, up to three times as long
	Threads bool          // an incident's end goes where its beginning went, as in an issue
	Alone   int           // of a channel with threads: so many beginnings have a thread each; more have one together
}

// Compose makes messages of what has waited long enough for others. It returns
// when to ask again; zero where nothing waits.
func (s *Store) Compose(ctx context.Context, channel string, now time.Time, g Grouping) (next time.Time, err error) {
	var oldest, newest sql.NullInt64
	waiting, err := s.statement(ctx, "SELECT MIN(made), MAX(made) FROM outbox WHERE channel = ? AND message IS NULL") //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return next, err
	}
	if err := waiting.QueryRowContext(ctx, channel).Scan(&oldest, &newest); err != nil {
		return next, unusable(err, s.path)
	}
	if !oldest.Valid {
		return next, nil
	}
	// While more comes in, as where a whole site is lost, it is worth some more time.
	due := latest(timeOf(oldest.Int64).Add(g.Wait), timeOf(newest.Int64).Add(g.Wait/3))
	if due = earliest(due, timeOf(oldest.Int64).Add(3*g.Wait)); due.After(now) {
		return due, nil
	}
	return next, s.change(ctx, func(tx *sql.Tx) error {
		c := composer{w: writer{ctx: ctx, s: s, tx: tx, prepared: map[string]*sql.Stmt{}}, channel: channel, now: now, g: g}
		return c.run()
	})
}

// mostItems is how many things one message says: the biggest of troubles must not
// make one that its receiver refuses for its size, as many do above 1 MB.
const mostItems = 500

type composer struct {
	w       writer
	channel string
	now     time.Time
	g       Grouping
}

func (c *composer) run() error {
	opened, err := c.waiting(EventOpened)
	if err != nil {
		return err
	}
	closed, err := c.waiting(EventClosed)
	if err != nil {
		return err
	}
	if !c.g.Threads {
		for part := range slices.Chunk(append(opened, closed...), mostItems) {
			err = errors.Join(err, c.message("", part))
		}
		return err
	}
	if len(opened) > c.g.Alone {
		err = c.message("", opened)
	} else {
		for _, one := range opened {
			err = errors.Join(err, c.message("", []int64{one}))
		}
	}
	if err != nil {
		return err
	}
	// Beginnings have their message by now, so each end finds its thread.
	threads := map[string][]int64{}
	var order []string
	for _, seq := range closed {
		var thread string
		if err := c.w.tx.QueryRowContext(c.w.ctx, `SELECT m.thread FROM outbox o JOIN outbox b ON b.incident = o.incident AND b.channel = o.channel AND b.event = 'opened'
			JOIN message m ON m.id = b.message WHERE o.seq = ?`, seq).Scan(&thread); err != nil {
			return fmt.Errorf("find the thread: %w", err)
		}
		if threads[thread] == nil {
			order = append(order, thread)
		}
		threads[thread] = append(threads[thread], seq)
	}
	for _, thread := range order {
		if err := c.message(thread, threads[thread]); err != nil {
			return err
		}
	}
	return nil
}

func (c *composer) waiting(event string) (all []int64, err error) {
	stmt, err := c.w.s.statement(c.w.ctx, "SELECT seq FROM outbox WHERE channel = ? AND message IS NULL AND event = ? ORDER BY seq")
	if err != nil {
		return nil, err
	}
	rows, err := c.w.tx.StmtContext(c.w.ctx, stmt).QueryContext(c.w.ctx, c.channel, event) //nolint:sqlclosecheck // the statement ends with its transaction
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return nil, err
		}
		all = append(all, seq)
	}
	return all, rows.Err()
}

// message makes one; without a thread it begins its own.
func (c *composer) message(thread string, seqs []int64) error {
	if len(seqs) == 0 {
		return nil
	}
	id := strings.ToLower(rand.Text())
	if thread == "" && c.g.Threads {
		thread = id
	}
	c.w.run("INSERT INTO message (id, channel, made, thread, next) VALUES (?, ?, ?, ?, ?)", id, c.channel, micros(c.now), thread, micros(c.now))
	for _, seq := range seqs {
		c.w.run("UPDATE outbox SET message = ? WHERE seq = ?", id, seq)
	}
	return c.w.err
}

const oldestPending = `SELECT id, thread, attempts, made, next, (SELECT COUNT(*) FROM outbox o JOIN message t ON t.id = o.message JOIN incident i ON i.id = o.incident
		WHERE message.thread <> '' AND t.thread = message.thread AND t.channel = message.channel AND o.event = 'opened' AND i.closed IS NULL)
		FROM message WHERE channel = ? AND state = 'pending' ORDER BY made, rowid LIMIT 1`

// Pending returns the oldest message of a channel that has not arrived, whether
// its time has come or not; ok is false where there is none.
func (s *Store) Pending(ctx context.Context, channel string) (m Message, ok bool, err error) {
	var made, next int64
	oldest, err := s.statement(ctx, oldestPending) //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return m, false, err
	}
	err = oldest.QueryRowContext(ctx, channel).Scan(&m.ID, &m.Thread, &m.Attempts, &made, &next, &m.Open)
	if errors.Is(err, sql.ErrNoRows) {
		return m, false, nil
	}
	if err != nil {
		return m, false, unusable(err, s.path)
	}
	m.Channel, m.Made, m.Next = channel, timeOf(made), timeOf(next)
	return m, true, s.rows(ctx, func(rows *sql.Rows) error {
		var item Item
		var err error
		item.Incident, err = scanIncident(rows, &item.Event)
		m.Items = append(m.Items, item)
		return err
	}, "SELECT "+incidentColumns+", w.event FROM outbox w JOIN incident i ON i.id = w.incident WHERE w.message = ? ORDER BY w.seq", m.ID)
}

// Sent notes that a message has arrived; link is where people find it.
func (s *Store) Sent(ctx context.Context, id string, at time.Time, link string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		w := writer{ctx: ctx, s: s, tx: tx, prepared: map[string]*sql.Stmt{}}
		w.run("UPDATE message SET state = 'sent', ended = ?, link = ?, error = '' WHERE id = ?", micros(at), link, id)
		return w.err
	})
}

// Failed notes that a message did not arrive and when it is tried again, or, where
// next is zero, that it is given up.
func (s *Store) Failed(ctx context.Context, id string, at, next time.Time, why string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		if next.IsZero() {
			_, err := tx.ExecContext(ctx, "UPDATE message SET state = 'refused', ended = ?, attempts = attempts + 1, error = ? WHERE id = ?", micros(at), why, id)
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE message SET next = ?, attempts = attempts + 1, error = ? WHERE id = ?", micros(next), why, id)
		return err
	})
}

// Abandon gives up what waits for channels that are not there any more, and
// reports how many things nobody will hear of.
func (s *Store) Abandon(ctx context.Context, channels []string, at time.Time) (lost int, err error) {
	const why = "the channel is not in the inventory any more"
	there, args := "''", []any{}
	for _, c := range channels {
		there += ", ?"
		args = append(args, c)
	}
	return lost, s.change(ctx, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM outbox o LEFT JOIN message m ON m.id = o.message WHERE (m.id IS NULL OR m.state = 'pending')
			AND o.channel NOT IN (`+there+")", args...).Scan(&lost)
		if err != nil || lost == 0 {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM outbox WHERE message IS NULL AND channel NOT IN ("+there+")", args...); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE message SET state = 'refused', ended = ?, error = '"+why+"' WHERE state = 'pending' AND channel NOT IN ("+there+")", append([]any{micros(at)}, args...)...)
		return err
	})
}

// Unsaid is what a channel has not taken yet.
type Unsaid struct {
	Channel string    `json:"channel"`
	Waiting int       `json:"waiting"` // things to say
	Since   time.Time `json:"since"`
	Error   string    `json:"error"` // of the last attempt
}

// Unsaid returns the channels that people do not hear through as they should: what
// waits there, and why.
func (s *Store) Unsaid(ctx context.Context) ([]Unsaid, error) {
	found := []Unsaid{}
	return found, s.rows(ctx, func(rows *sql.Rows) error {
		var u Unsaid
		var since int64
		err := rows.Scan(&u.Channel, &u.Waiting, &since, &u.Error)
		u.Since = timeOf(since)
		found = append(found, u)
		return err
	}, `SELECT o.channel, COUNT(*), MIN(o.made), COALESCE(MAX(m.error), '') FROM outbox o LEFT JOIN message m ON m.id = o.message
		WHERE m.id IS NULL OR m.state = 'pending' GROUP BY o.channel ORDER BY o.channel`)
}
