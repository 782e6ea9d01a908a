package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"
)

// Column is one column of a published table.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// TableState is what the last publish serves of a table.
type TableState struct {
	TableID     string
	Source      string
	Rows        int64 // -1 unknown
	SizeBytes   int64 // -1 unknown
	ContentHash string
	Columns     []Column
	LastSync    time.Time // zero: never
	Stale       bool
	StaleReason string
	Generation  int64
}

// ReplaceTableStates makes states the whole of what is served, in one
// transaction. Each TableID occurs once.
func (s *Store) ReplaceTableStates(ctx context.Context, states []TableState) error {
	rows := make([][]driver.Value, len(states))
	for i, t := range states {
		columns, err := toJSON(t.Columns)
		if err != nil {
			return err
		}
		rows[i] = []driver.Value{t.TableID, t.Source, t.Rows, t.SizeBytes, t.ContentHash, columns, timeOrNil(t.LastSync), t.Stale, t.StaleReason, t.Generation}
	}
	return s.update(ctx, func(tx *writeTx) error {
		if _, err := tx.exec("DELETE FROM table_state"); err != nil {
			return err
		}
		return tx.insert("table_state", rows)
	})
}

// ListTableStates returns what the last publish serves, sorted by table id.
func (s *Store) ListTableStates(ctx context.Context) ([]TableState, error) {
	return query(ctx, s, func(scan func(...any) error) (t TableState, err error) {
		var columns string
		var synced sql.NullTime
		if err := scan(&t.TableID, &t.Source, &t.Rows, &t.SizeBytes, &t.ContentHash, &columns, &synced, &t.Stale, &t.StaleReason, &t.Generation); err != nil {
			return t, err
		}
		t.LastSync = synced.Time
		return t, fromJSON(columns, &t.Columns)
	}, "SELECT * FROM table_state ORDER BY lower(table_id)")
}
