package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Roles of users and tokens.
const (
	RoleAdmin   = "admin"   // sees and manages everything
	RoleAnalyst = "analyst" // sees the tables that were granted
)

// AllTables is the grant of every table, future ones too.
const AllTables = "*"

// User is a person or program that signs in.
type User struct {
	ID           string // UUIDv7; set by CreateUser
	Email        string // lower case, NFC; unique
	Name         string
	Role         string        // RoleAdmin or RoleAnalyst
	PasswordHash redact.Secret // as the caller encoded it; empty: no password sign-in
	Disabled     bool
	Grants       []string // table ids or AllTables; never nil when read
	TokenEpoch   int64    // sessions of an older epoch are void
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// CanSee reports whether the user may read the table with this id. Ids are
// compared without case, as DuckDB compares names.
func (u User) CanSee(table string) bool {
	return u.Role == RoleAdmin || slices.ContainsFunc(u.Grants, func(g string) bool {
		return g == AllTables || strings.EqualFold(g, table)
	})
}

// UserPatch changes the fields that are not nil.
type UserPatch struct {
	Email    *string
	Name     *string
	Role     *string
	Disabled *bool
	Grants   *[]string

	PasswordHash *redact.Secret // ends the user's sessions
}

// NormalizeEmail returns the form in which e-mails are stored and compared:
// trimmed, NFC, lower case. What is no address is problem.Unprocessable.
func NormalizeEmail(email string) (string, error) {
	e := strings.ToLower(norm.NFC.String(strings.TrimSpace(email)))
	at := strings.LastIndexByte(e, '@')
	if at < 1 || at == len(e)-1 || len(e) > 254 || strings.ContainsFunc(e, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' }) {
		return "", problem.New(problem.Unprocessable, fmt.Sprintf("Expected an e-mail address, found %.64q.", email), "Send an address like name@company.com in `email`.")
	}
	return e, nil
}

// BootstrapAdmin creates the first admin. It fails with problem.Forbidden,
// code setup_complete, once any admin exists; of concurrent calls one wins.
func (s *Store) BootstrapAdmin(ctx context.Context, u User, by By) (User, error) {
	u.Role = RoleAdmin
	return s.createUser(ctx, u, by, "user.bootstrap", func(tx *writeTx) error {
		total, _, err := countAdmins(ctx, tx)
		if err != nil {
			return err
		}
		if total > 0 {
			return problem.New(problem.Forbidden, "Setup is complete: an admin exists already.",
				"Sign in with POST /auth/token, or ask an admin for an account.").WithCode("setup_complete")
		}
		return nil
	})
}

// CreateUser adds a user. The id and the times are set here. An e-mail that is
// taken is problem.Conflict, code email_exists.
func (s *Store) CreateUser(ctx context.Context, u User, by By) (User, error) {
	return s.createUser(ctx, u, by, "user.create", func(*writeTx) error { return nil })
}

func (s *Store) createUser(ctx context.Context, u User, by By, action string, allowed func(*writeTx) error) (User, error) {
	email, err := NormalizeEmail(u.Email)
	if err != nil {
		return User{}, err
	}
	u.ID, u.Email, u.CreatedAt = newID(), email, now()
	u.UpdatedAt = u.CreatedAt
	if u.Grants, err = checkGrants(u.Grants); err != nil {
		return User{}, err
	}
	if err := checkRole(u.Role); err != nil {
		return User{}, err
	}
	grants, err := toJSON(u.Grants)
	if err != nil {
		return User{}, err
	}
	err = s.update(ctx, func(tx *writeTx) error {
		if err := allowed(tx); err != nil {
			return err
		}
		if err := emailFree(ctx, tx, email, u.ID); err != nil {
			return err
		}
		if _, err := tx.exec("INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", u.ID, u.Email, u.Name, u.Role,
			u.PasswordHash.Reveal(), u.Disabled, grants, u.TokenEpoch, u.CreatedAt, u.UpdatedAt); err != nil {
			return err
		}
		if by.ActorID == "" && by.Actor == "" && action == "user.bootstrap" {
			by.Actor, by.ActorID = u.Email, u.ID
		}
		return appendAudit(tx, by.entry(action, u.ID, map[string]any{"email": u.Email, "role": u.Role, "grants": u.Grants}))
	})
	if err != nil {
		return User{}, err
	}
	return u, nil
}

// UserByID returns a user or problem.NotFound.
func (s *Store) UserByID(ctx context.Context, id string) (User, error) {
	l, err := s.lookups(ctx)
	if err != nil {
		return User{}, err
	}
	u, known := l.users[id]
	if !known {
		return User{}, userNotFound(sql.ErrNoRows, id)
	}
	return u, nil
}

// UserByEmail returns a user or problem.NotFound; any spelling of the e-mail
// that NormalizeEmail makes equal will do.
func (s *Store) UserByEmail(ctx context.Context, email string) (User, error) {
	e, err := NormalizeEmail(email)
	if err != nil {
		return User{}, err
	}
	l, err := s.lookups(ctx)
	if err != nil {
		return User{}, err
	}
	for _, u := range l.users {
		if u.Email == e {
			return u, nil
		}
	}
	return User{}, userNotFound(sql.ErrNoRows, e)
}

// ListUsers returns all users, sorted by e-mail.
func (s *Store) ListUsers(ctx context.Context) ([]User, error) {
	return query(ctx, s, scanUser, "SELECT * FROM users ORDER BY email")
}

// CountAdmins returns how many admins exist, and how many of them are enabled.
// Setup is required while total is 0.
func (s *Store) CountAdmins(ctx context.Context) (total, enabled int, err error) {
	err = s.use(ctx, func(db *sql.DB) error {
		total, enabled, err = countAdmins(ctx, db)
		return err
	})
	return total, enabled, err
}

// UpdateUser changes the fields of p that are set and returns the user. A new
// role, and disabling, end the user's sessions. The last enabled admin can be
// neither demoted nor disabled: problem.Conflict, code last_admin.
func (s *Store) UpdateUser(ctx context.Context, id string, p UserPatch, by By) (User, error) {
	return s.changeUser(ctx, id, by, "user.update", func(tx *writeTx, u *User) (map[string]any, error) {
		detail := map[string]any{}
		if p.Email != nil {
			email, err := NormalizeEmail(*p.Email)
			if err != nil {
				return nil, err
			}
			if err := emailFree(ctx, tx, email, id); err != nil {
				return nil, err
			}
			u.Email, detail["email"] = email, email
		}
		if p.Name != nil {
			u.Name, detail["name"] = *p.Name, *p.Name
		}
		if p.Grants != nil {
			grants, err := checkGrants(*p.Grants)
			if err != nil {
				return nil, err
			}
			u.Grants, detail["grants"] = grants, grants
		}
		if p.PasswordHash != nil {
			u.PasswordHash, detail["password"] = *p.PasswordHash, "changed"
			u.TokenEpoch++
		}
		wasAdmin := u.Role == RoleAdmin && !u.Disabled
		if p.Role != nil && *p.Role != u.Role {
			if err := checkRole(*p.Role); err != nil {
				return nil, err
			}
			u.Role, detail["role"] = *p.Role, *p.Role
			u.TokenEpoch++
		}
		if p.Disabled != nil && *p.Disabled != u.Disabled {
			u.Disabled, detail["disabled"] = *p.Disabled, *p.Disabled
			if u.Disabled {
				u.TokenEpoch++
			}
		}
		if wasAdmin && (u.Role != RoleAdmin || u.Disabled) {
			return detail, notLastAdmin(ctx, tx)
		}
		return detail, nil
	})
}

// SetPassword stores a new password hash and ends all sessions of the user.
func (s *Store) SetPassword(ctx context.Context, id string, hash redact.Secret, by By) (User, error) {
	return s.changeUser(ctx, id, by, "user.set_password", func(_ *writeTx, u *User) (map[string]any, error) {
		u.PasswordHash = hash
		u.TokenEpoch++
		return nil, nil
	})
}

// DeleteUser removes a user with all access tokens. The last enabled admin
// stays: problem.Conflict, code last_admin.
func (s *Store) DeleteUser(ctx context.Context, id string, by By) error {
	return s.update(ctx, func(tx *writeTx) error {
		u, err := userByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if u.Role == RoleAdmin && !u.Disabled {
			if err := notLastAdmin(ctx, tx); err != nil {
				return err
			}
		}
		if _, err := tx.exec("DELETE FROM tokens WHERE user_id = ?", id); err != nil {
			return err
		}
		if _, err := tx.exec("DELETE FROM users WHERE id = ?", id); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("user.delete", id, map[string]any{"email": u.Email}))
	})
}

func (s *Store) changeUser(ctx context.Context, id string, by By, action string, change func(*writeTx, *User) (map[string]any, error)) (u User, err error) {
	err = s.update(ctx, func(tx *writeTx) error {
		if u, err = userByID(ctx, tx, id); err != nil {
			return err
		}
		detail, err := change(tx, &u)
		if err != nil {
			return err
		}
		u.UpdatedAt = now()
		if err := saveUser(tx, u); err != nil {
			return err
		}
		return appendAudit(tx, by.entry(action, id, detail))
	})
	if err != nil {
		return User{}, err
	}
	return u, nil
}

func saveUser(tx *writeTx, u User) error {
	grants, err := toJSON(u.Grants)
	if err != nil {
		return err
	}
	_, err = tx.exec(`UPDATE users SET email = ?, name = ?, role = ?, password_hash = ?, disabled = ?, grants_json = ?,
		token_epoch = ?, updated_at = ? WHERE id = ?`, u.Email, u.Name, u.Role, u.PasswordHash.Reveal(), u.Disabled, grants,
		u.TokenEpoch, u.UpdatedAt, u.ID)
	return err
}

func userByID(ctx context.Context, tx *writeTx, id string) (User, error) {
	u, err := scanUser(tx.QueryRowContext(ctx, "SELECT * FROM users WHERE id = ?", id).Scan)
	return u, userNotFound(err, id)
}

func userNotFound(err error, key string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.NotFound, fmt.Sprintf("There is no user %q.", key), "List the users with GET /api/users.")
	}
	return err
}

func scanUser(scan func(...any) error) (u User, err error) {
	var hash, grants string
	if err := scan(&u.ID, &u.Email, &u.Name, &u.Role, &hash, &u.Disabled, &grants, &u.TokenEpoch, &u.CreatedAt, &u.UpdatedAt); err != nil {
		return u, err
	}
	u.PasswordHash = redact.Secret(hash)
	return u, fromJSON(grants, &u.Grants)
}

func countAdmins(ctx context.Context, q querier) (total, enabled int, err error) {
	err = q.QueryRowContext(ctx, "SELECT count(*), count(*) FILTER (NOT disabled) FROM users WHERE role = ?", RoleAdmin).Scan(&total, &enabled)
	return total, enabled, err
}

// notLastAdmin refuses a change that takes one enabled admin away when there
// is no other.
func notLastAdmin(ctx context.Context, tx *writeTx) error {
	_, enabled, err := countAdmins(ctx, tx)
	if err != nil || enabled > 1 {
		return err
	}
	return problem.New(problem.Conflict, "This is the last enabled admin; without one nobody can manage the instance.",
		`Make another user an admin first: PATCH /api/users/{id} with {"role":"admin"}.`).WithCode("last_admin")
}

func emailFree(ctx context.Context, tx *writeTx, email, self string) error {
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM users WHERE email = ? AND id <> ?", email, self).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return problem.New(problem.Conflict, fmt.Sprintf("A user with the e-mail %s exists already.", email),
			"Change that user with PATCH /api/users/{id}, or choose another e-mail.").WithCode("email_exists")
	}
	return nil
}

func checkRole(role string) error {
	if role == RoleAdmin || role == RoleAnalyst {
		return nil
	}
	return problem.New(problem.Unprocessable, fmt.Sprintf("Expected the role admin or analyst, found %.64q.", role), `Send "role": "admin" or "role": "analyst".`)
}

// checkGrants returns grants without repeats. Tables need not exist yet.
func checkGrants(grants []string) ([]string, error) {
	out := []string{}
	for _, g := range grants {
		if g != AllTables && !tableID.MatchString(g) {
			return nil, problem.New(problem.Unprocessable, fmt.Sprintf("Expected a table id or * as a grant, found %.64q.", g),
				"List the table ids with GET /api/admin/registry.")
		}
		if !slices.ContainsFunc(out, func(o string) bool { return strings.EqualFold(o, g) }) {
			out = append(out, g)
		}
	}
	return out, nil
}
