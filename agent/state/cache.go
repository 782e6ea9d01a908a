package state

import (
	"context"
	"database/sql"
)

// lookups are the records that every request needs, held in memory. They are
// as of one count of writes: any commit makes them stale, and the next reader
// loads them anew.
type lookups struct {
	writes uint64
	tables []Table // sorted by id, without case
	users  map[string]User
	tokens map[string]Token // by hash
}

// Version changes with every commit. What was derived from the store's records
// is current as long as it stays the same.
func (s *Store) Version() uint64 { return s.writes.Load() }

func (s *Store) lookups(ctx context.Context) (*lookups, error) {
	if l := s.cached.Load(); l != nil && l.writes == s.writes.Load() {
		return l, nil
	}
	s.loading.Lock() // one reader loads, the others wait for it
	defer s.loading.Unlock()
	if l := s.cached.Load(); l != nil && l.writes == s.writes.Load() {
		return l, nil
	}
	// Counted before reading: a commit meanwhile makes the result stale.
	l := &lookups{writes: s.writes.Load(), users: make(map[string]User), tokens: make(map[string]Token)}
	err := s.use(ctx, func(db *sql.DB) (err error) {
		if l.tables, err = collect(ctx, db, scanTable, "SELECT * FROM table_registry ORDER BY lower(id)"); err != nil {
			return err
		}
		users, err := collect(ctx, db, scanUser, "SELECT * FROM users")
		if err != nil {
			return err
		}
		for _, u := range users {
			l.users[u.ID] = u
		}
		tokens, err := collect(ctx, db, scanToken, "SELECT * FROM tokens")
		for _, t := range tokens {
			l.tokens[t.Hash] = t
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.cached.Store(l)
	return l, nil
}
