package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Rollout is the document of one rollout; fleet/rollout knows what it means.
type Rollout struct {
	ID      string
	Started time.Time
	State   string
	Doc     []byte
}

// Order is what somebody wants of a rollout.
type Order struct {
	Seq     int64 // grows with each order of any rollout
	Rollout string
	At      time.Time
	By      string
	Verb    string
}

// Lease lets one program at a time do something.
type Lease struct {
	Name    string
	Owner   string // for people and for Dead
	Nonce   string // of this holder
	Since   time.Time
	Expires time.Time
}

// ErrLeaseLost says that somebody else holds the lease by now.
var ErrLeaseLost = errors.New("the lease was lost to somebody else")

// SaveRollout writes a document, new or not, while the lease is held.
func (s *Store) SaveRollout(ctx context.Context, r Rollout, l Lease) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		var nonce string
		err := tx.QueryRowContext(ctx, "SELECT nonce FROM lease WHERE name = ?", l.Name).Scan(&nonce)
		if errors.Is(err, sql.ErrNoRows) || err == nil && nonce != l.Nonce {
			return problem.Wrap(ErrLeaseLost, problem.Refused, "The rollout goes on elsewhere", "See who has it: agnesctl fleet rollout --status "+r.ID)
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO rollout (id, started, state, doc) VALUES (?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET state = excluded.state, doc = excluded.doc`, r.ID, r.Started.UnixMicro(), r.State, r.Doc)
		return err
	})
}

const rolloutColumns = "SELECT id, started, state, doc FROM rollout "

// Rollout returns one, or a problem.NotFound.
func (s *Store) Rollout(ctx context.Context, id string) (Rollout, error) {
	r, err := scanRollout(s.db.QueryRowContext(ctx, rolloutColumns+"WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return r, problem.New(problem.NotFound, fmt.Sprintf("expected a rollout of this fleet, found none with the id %q", id), "agnesctl fleet rollout --list")
	}
	return r, unusable(err, s.path)
}

// Rollouts returns the last ones, newest first.
func (s *Store) Rollouts(ctx context.Context, limit int) ([]Rollout, error) {
	rows, err := s.db.QueryContext(ctx, rolloutColumns+"ORDER BY started DESC, id DESC LIMIT ?", limit)
	if err != nil {
		return nil, unusable(err, s.path)
	}
	defer rows.Close()
	var list []Rollout
	for rows.Next() {
		r, err := scanRollout(rows)
		if err != nil {
			return nil, unusable(err, s.path)
		}
		list = append(list, r)
	}
	return list, unusable(rows.Err(), s.path)
}

func scanRollout(row interface{ Scan(...any) error }) (r Rollout, err error) {
	var started int64
	err = row.Scan(&r.ID, &started, &r.State, &r.Doc)
	r.Started = time.UnixMicro(started).UTC()
	return r, err
}

// GiveOrder adds an order. The rollout has to be there.
func (s *Store) GiveOrder(ctx context.Context, o Order) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO rollout_order (rollout, at, by, verb) VALUES (?, ?, ?, ?)", o.Rollout, o.At.UnixMicro(), o.By, o.Verb)
		return err
	})
}

// Orders returns those of a rollout after a sequence number, oldest first.
func (s *Store) Orders(ctx context.Context, rollout string, after int64) ([]Order, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT seq, rollout, at, by, verb FROM rollout_order WHERE rollout = ? AND seq > ? ORDER BY seq", rollout, after)
	if err != nil {
		return nil, unusable(err, s.path)
	}
	defer rows.Close()
	var list []Order
	for rows.Next() {
		var o Order
		var at int64
		if err := rows.Scan(&o.Seq, &o.Rollout, &at, &o.By, &o.Verb); err != nil {
			return nil, unusable(err, s.path)
		}
		o.At = time.UnixMicro(at).UTC()
		list = append(list, o)
	}
	return list, unusable(rows.Err(), s.path)
}

// TakeLease takes a lease that is free, has ended by now, or whose owner is dead.
// It returns the lease that is held afterwards: l itself, or somebody else's.
func (s *Store) TakeLease(ctx context.Context, l Lease, now time.Time, dead func(owner string) bool) (Lease, error) {
	held := l
	err := s.change(ctx, func(tx *sql.Tx) error {
		other, err := scanLease(tx.QueryRowContext(ctx, leaseColumns, l.Name))
		switch {
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		case err == nil && other.Nonce != l.Nonce && now.Before(other.Expires) && !dead(other.Owner):
			held = other
			return nil
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO lease (name, owner, nonce, since, expires) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, nonce = excluded.nonce, since = excluded.since, expires = excluded.expires`,
			l.Name, l.Owner, l.Nonce, l.Since.UnixMicro(), l.Expires.UnixMicro())
		return err
	})
	return held, err
}

// RenewLease moves the end of a lease, or is ErrLeaseLost.
func (s *Store) RenewLease(ctx context.Context, l Lease, expires time.Time) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, "UPDATE lease SET expires = ? WHERE name = ? AND nonce = ?", expires.UnixMicro(), l.Name, l.Nonce)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrLeaseLost)
		}
		return nil
	})
}

// DropLease gives a lease back. Somebody else's stays.
func (s *Store) DropLease(ctx context.Context, l Lease) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM lease WHERE name = ? AND nonce = ?", l.Name, l.Nonce)
		return err
	})
}

// HeldLease returns the lease of a name, and whether there is one.
func (s *Store) HeldLease(ctx context.Context, name string) (Lease, bool, error) {
	l, err := scanLease(s.db.QueryRowContext(ctx, leaseColumns, name))
	if errors.Is(err, sql.ErrNoRows) {
		return l, false, nil
	}
	return l, err == nil, unusable(err, s.path)
}

const leaseColumns = "SELECT name, owner, nonce, since, expires FROM lease WHERE name = ?"

func scanLease(row interface{ Scan(...any) error }) (l Lease, err error) {
	var since, expires int64
	err = row.Scan(&l.Name, &l.Owner, &l.Nonce, &since, &expires)
	l.Since, l.Expires = time.UnixMicro(since).UTC(), time.UnixMicro(expires).UTC()
	return l, err
}
