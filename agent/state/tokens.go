package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Token is a personal access token. The token itself is never stored.
type Token struct {
	ID         string // UUIDv7; set by CreateToken
	UserID     string
	Name       string
	Role       string // what the token may do at most
	Hash       string // sha256 of the token, lower-case hex; unique
	Prefix     string // first characters, for people to recognize it
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	LastUsedAt time.Time // zero: never; exact to about a checkpoint interval after a crash
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CreateToken adds a token of an existing user. The id and CreatedAt are set here.
func (s *Store) CreateToken(ctx context.Context, t Token, by By) (Token, error) {
	if !sha256Hex.MatchString(t.Hash) {
		return Token{}, fmt.Errorf("create token: expected a sha256 in hex as its hash, found %d characters", len(t.Hash))
	}
	if strings.TrimSpace(t.Name) == "" {
		return Token{}, problem.New(problem.Unprocessable, "Expected a name for the token, found none.", `Send "name": "what the token is for".`)
	}
	if err := checkRole(t.Role); err != nil {
		return Token{}, err
	}
	t.ID, t.CreatedAt, t.LastUsedAt = newID(), now(), time.Time{}
	if !t.ExpiresAt.IsZero() {
		t.ExpiresAt = t.ExpiresAt.UTC().Truncate(time.Microsecond)
		if !t.ExpiresAt.After(t.CreatedAt) {
			return Token{}, problem.New(problem.Unprocessable, fmt.Sprintf("Expected an expiry in the future, found %s.", t.ExpiresAt.Format(time.RFC3339)), "Send a later `expires_at`.")
		}
	}
	err := s.update(ctx, func(tx *writeTx) error {
		if _, err := userByID(ctx, tx, t.UserID); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM tokens WHERE hash = ?", t.Hash).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return problem.New(problem.Conflict, "This token exists already.", "Create a new one with POST /auth/tokens.")
		}
		if _, err := tx.exec("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", t.ID, t.UserID, t.Name, t.Role, t.Hash, t.Prefix,
			t.CreatedAt, timeOrNil(t.ExpiresAt), nil); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("token.create", t.ID, map[string]any{"user": t.UserID, "name": t.Name, "role": t.Role, "prefix": t.Prefix}))
	})
	if err != nil {
		return Token{}, err
	}
	return t, nil
}

// TokenByHash returns the token with this hash. An unknown, revoked or expired
// one is problem.Unauthenticated. It does not look at the user: a caller
// checks UserByID(t.UserID).Disabled.
func (s *Store) TokenByHash(ctx context.Context, hash string) (Token, error) {
	l, err := s.lookups(ctx)
	if err != nil {
		return Token{}, err
	}
	t, known := l.tokens[hash]
	const again = "Create a new token with POST /auth/tokens."
	switch {
	case !known:
		return Token{}, problem.New(problem.Unauthenticated, "The access token is unknown or was revoked.", again)
	case !t.ExpiresAt.IsZero() && !time.Now().Before(t.ExpiresAt):
		return Token{}, problem.New(problem.Unauthenticated, fmt.Sprintf("The access token expired on %s.", t.ExpiresAt.Format(time.RFC3339)), again)
	}
	return t, nil
}

// ListTokens returns a user's tokens, newest first, expired ones too.
func (s *Store) ListTokens(ctx context.Context, userID string) ([]Token, error) {
	tokens, err := query(ctx, s, scanToken, "SELECT * FROM tokens WHERE user_id = ? ORDER BY id DESC", userID)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, t := range tokens {
		if at, ok := s.touched[t.ID]; ok && at.After(t.LastUsedAt) {
			tokens[i].LastUsedAt = at
		}
	}
	return tokens, err
}

// RevokeToken removes a token. userID limits it to that user's tokens; empty
// means any user's. A token that is not there is problem.NotFound.
func (s *Store) RevokeToken(ctx context.Context, id, userID string, by By) error {
	return s.update(ctx, func(tx *writeTx) error {
		t, err := scanToken(tx.QueryRowContext(ctx, "SELECT * FROM tokens WHERE id = ? AND (? = '' OR user_id = ?)", id, userID, userID).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return problem.New(problem.NotFound, fmt.Sprintf("There is no access token %q.", id), "List your tokens with GET /auth/tokens.")
		}
		if err != nil {
			return err
		}
		if _, err := tx.exec("DELETE FROM tokens WHERE id = ?", id); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("token.revoke", id, map[string]any{"user": t.UserID, "name": t.Name, "prefix": t.Prefix}))
	})
}

// TouchToken notes that a token was used now. It costs no write: uses are
// stored together at the next checkpoint and on Close.
func (s *Store) TouchToken(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touched[id] = now()
}

func (s *Store) flushTouched(ctx context.Context) error {
	s.mu.Lock()
	pending := s.touched
	s.touched = map[string]time.Time{}
	s.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	err := s.update(ctx, func(tx *writeTx) error {
		for id, at := range pending {
			if _, err := tx.exec("UPDATE tokens SET last_used_at = ? WHERE id = ?", at, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil { // keep them for the next time, newer uses winning
		s.mu.Lock()
		defer s.mu.Unlock()
		maps.Copy(pending, s.touched)
		s.touched = pending
	}
	return err
}

func scanToken(scan func(...any) error) (t Token, err error) {
	var expires, used sql.NullTime
	err = scan(&t.ID, &t.UserID, &t.Name, &t.Role, &t.Hash, &t.Prefix, &t.CreatedAt, &expires, &used)
	t.ExpiresAt, t.LastUsedAt = expires.Time, used.Time
	return t, err
}

// RevokeSession voids the session with this JWT id until it would have expired.
// It is idempotent.
func (s *Store) RevokeSession(ctx context.Context, jti string, expires time.Time, by By) error {
	if s.IsRevoked(jti) {
		return nil
	}
	expires = expires.UTC().Truncate(time.Microsecond)
	err := s.update(ctx, func(tx *writeTx) error {
		if _, err := tx.exec("INSERT INTO revoked_sessions VALUES (?, ?)", jti, expires); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("session.revoke", jti, nil))
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked[jti] = expires
	return nil
}

// IsRevoked reports whether a session was voided. It is answered from memory.
func (s *Store) IsRevoked(jti string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.revoked[jti]
	return ok
}

// loadRevoked runs before the store is shared.
func (s *Store) loadRevoked(ctx context.Context) error {
	rows, err := collect(ctx, s.db, func(scan func(...any) error) (e struct {
		jti string
		at  time.Time
	}, err error,
	) {
		return e, scan(&e.jti, &e.at)
	}, "SELECT jti, expires_at FROM revoked_sessions")
	for _, r := range rows {
		s.revoked[r.jti] = r.at
	}
	return err
}

// purgeRevoked forgets sessions that expired before t.
func (s *Store) purgeRevoked(ctx context.Context, t time.Time) error {
	s.mu.Lock()
	var expired []string
	for jti, at := range s.revoked {
		if at.Before(t) {
			expired = append(expired, jti)
		}
	}
	s.mu.Unlock()
	if len(expired) == 0 {
		return nil
	}
	err := s.update(ctx, func(tx *writeTx) error {
		_, err := tx.exec("DELETE FROM revoked_sessions WHERE expires_at < ?", t.UTC())
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, jti := range expired {
		delete(s.revoked, jti)
	}
	return nil
}
