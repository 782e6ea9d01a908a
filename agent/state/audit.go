package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"time"
)

// By says who asks for a change. The zero By is the instance itself.
type By struct {
	Actor   string // e-mail or name, for people to read
	ActorID string // user id
	Remote  string // address that the request came from
}

// Outcomes of audit entries.
const (
	OutcomeOK     = "ok"
	OutcomeDenied = "denied"
	OutcomeFailed = "failed"
)

// AuditEntry is one line of the audit log. Entries are never changed.
type AuditEntry struct {
	ID      string // UUIDv7; set by the store
	At      time.Time
	Actor   string
	ActorID string
	Action  string // noun.verb, e.g. user.create
	Target  string // id of what was changed
	Outcome string
	Detail  map[string]any // JSON; a redact.Secret in it is stored redacted
	Remote  string
}

// entry is the audit line of a change that succeeds with its transaction.
func (by By) entry(action, target string, detail map[string]any) AuditEntry {
	return AuditEntry{Actor: by.Actor, ActorID: by.ActorID, Remote: by.Remote, Action: action, Target: target, Outcome: OutcomeOK, Detail: detail}
}

// Append adds an entry for something that changes no state of its own here: a
// login, a denied request, a configuration. ID and At are set when empty.
func (s *Store) Append(ctx context.Context, e AuditEntry) error {
	return s.update(ctx, func(tx *writeTx) error { return appendAudit(tx, e) })
}

// AppendAll adds entries in one transaction and drops those of the same action
// that are older than keep (0: none). It suits entries that come by the
// hundred, such as queries.
func (s *Store) AppendAll(ctx context.Context, entries []AuditEntry, keep time.Duration) error {
	return s.update(ctx, func(tx *writeTx) error {
		actions := make(map[string]bool)
		rows := make([][]driver.Value, len(entries))
		for i, e := range entries {
			actions[e.Action] = true
			row, err := auditRow(e)
			if err != nil {
				return err
			}
			rows[i] = row
		}
		if err := tx.insert("audit", rows); err != nil {
			return err
		}
		for action := range actions {
			if keep == 0 {
				continue
			}
			if _, err := tx.exec("DELETE FROM audit WHERE action = ? AND happened_at < ?", action, now().Add(-keep)); err != nil {
				return err
			}
		}
		return nil
	})
}

func appendAudit(tx *writeTx, e AuditEntry) error {
	row, err := auditRow(e)
	if err != nil {
		return err
	}
	return tx.insert("audit", [][]driver.Value{row})
}

// auditRow returns the columns of an entry, with what it leaves out filled in.
func auditRow(e AuditEntry) ([]driver.Value, error) {
	if e.ID == "" {
		e.ID = newID()
	}
	if e.At.IsZero() {
		e.At = now()
	}
	if e.Outcome == "" {
		e.Outcome = OutcomeOK
	}
	if e.Actor == "" {
		e.Actor = "agnes"
	}
	if e.Detail == nil {
		e.Detail = map[string]any{}
	}
	detail, err := toJSON(e.Detail)
	if err != nil {
		return nil, err
	}
	return []driver.Value{e.ID, e.At.UTC(), e.Actor, e.ActorID, e.Action, e.Target, e.Outcome, detail, e.Remote}, nil
}

// ListAudit returns up to limit entries, newest first, older than the entry
// with id before (empty: from the newest). A limit of 0 means 100.
func (s *Store) ListAudit(ctx context.Context, limit int, before string) ([]AuditEntry, error) {
	return query(ctx, s, func(scan func(...any) error) (e AuditEntry, err error) {
		var detail string
		if err := scan(&e.ID, &e.At, &e.Actor, &e.ActorID, &e.Action, &e.Target, &e.Outcome, &detail, &e.Remote); err != nil {
			return e, err
		}
		return e, fromJSON(detail, &e.Detail)
	}, "SELECT * FROM audit WHERE ? = '' OR id < ? ORDER BY id DESC LIMIT ?", before, before, pageSize(limit))
}

func pageSize(limit int) int {
	if limit <= 0 {
		return 100
	}
	return limit
}

// query runs a reading query on the store and collects its rows.
func query[T any](ctx context.Context, s *Store, fn func(scan func(...any) error) (T, error), text string, args ...any) (all []T, err error) {
	err = s.use(ctx, func(db *sql.DB) error {
		all, err = collect(ctx, db, fn, text, args...)
		return err
	})
	return all, err
}

// toJSON writes v as it is stored in a *_json column. Nil slices become [].
func toJSON(v any) (string, error) {
	data, err := json.Marshal(v)
	if string(data) == "null" {
		return "[]", err
	}
	return string(data), err
}

func fromJSON(text string, v any) error { return json.Unmarshal([]byte(text), v) }
