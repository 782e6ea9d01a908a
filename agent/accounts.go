package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/mail"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/auth"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Caller is who makes a call. The zero Caller is a stranger.
type Caller struct {
	UserID string
	Email  string
	Role   string // the account's role, or the lower one of its access token
	Remote string // address, for the audit log

	sees    func(table string) bool
	version uint64       // of the state when the account was read, or earlier
	session auth.Session // set when signed in by session token
	tokenID string       // set when signed in by personal access token
}

// SignedIn reports whether the caller is known.
func (c Caller) SignedIn() bool { return c.UserID != "" }

// Admin reports whether the caller may change the instance.
func (c Caller) Admin() bool { return c.Role == api.RoleAdmin }

// Sees reports whether the caller may see a table.
func (c Caller) Sees(table string) bool { return c.sees != nil && c.sees(table) }

func (c Caller) by() state.By { return state.By{Actor: c.Email, ActorID: c.UserID, Remote: c.Remote} }

// SetupRequired reports whether the first admin is still to be created.
func (i *Instance) SetupRequired() bool { return i.setupNeeded.Load() }

// SetupProof is what entitles a stranger to create the first admin.
type SetupProof struct {
	Token   string // the one-time token of the log
	Trusted bool   // the request can only have come from this machine's own user
}

// Bootstrap creates the first admin and signs it in. It works once: afterwards,
// and for a caller without proof, it is refused with problem.Forbidden.
func (i *Instance) Bootstrap(ctx context.Context, proof SetupProof, remote string, req api.BootstrapRequest) (api.TokenResponse, error) {
	if !i.SetupRequired() {
		return api.TokenResponse{}, setupComplete()
	}
	if err := i.limit(i.addressLimit, remote); err != nil {
		return api.TokenResponse{}, err
	}
	if err := i.checkSetupProof(proof); err != nil {
		return api.TokenResponse{}, err
	}
	email, err := parseEmail(req.Email)
	if err != nil {
		return api.TokenResponse{}, err
	}
	hash, err := i.passwords.Hash(ctx, req.Password)
	if err != nil {
		return api.TokenResponse{}, err
	}
	var user state.User
	if err := i.drain.do(func() error {
		user, err = i.state.BootstrapAdmin(ctx, state.User{
			Email: email, Name: req.Name, PasswordHash: hash, Grants: []string{api.AllTables},
		}, state.By{Actor: email, Remote: remote})
		return err
	}); err != nil {
		return api.TokenResponse{}, err
	}
	i.setupNeeded.Store(false)
	// Into the main file at once: should the log be lost, setup must not open
	// again to whoever comes first.
	if err := i.state.Checkpoint(ctx); err != nil {
		i.log.Warn("The first admin is stored in the write-ahead log only, until the next checkpoint.", "error", err)
	}
	if err := i.removeSetupToken(); err != nil {
		i.log.Warn("The used setup token could not be removed; it no longer opens anything.", "error", err)
	}
	i.log.Info("The first admin was created; setup is complete.", "email", email)
	return i.signed(user)
}

func setupComplete() error {
	return problem.New(problem.Forbidden, "This instance has an admin already; setup is complete.",
		`Sign in: POST /auth/token {"email":"…","password":"…"}. If no admin can sign in, stop agnes and run: agnes admin create --email you@company.com`).
		WithCode("setup_complete")
}

func (i *Instance) checkSetupProof(proof SetupProof) error {
	where := "Copy the token from the log of the first start or from " + i.layout.SetupToken() +
		" on the instance's machine, and send it in the header X-Setup-Token."
	if proof.Token == "" {
		if proof.Trusted {
			return nil
		}
		return problem.New(problem.Forbidden, "Creating the first admin from another machine, or through a proxy, needs the setup token.", where).
			WithCode("setup_token_required")
	}
	want, err := os.ReadFile(i.layout.SetupToken())
	if err != nil {
		return problem.Wrap(err, problem.Internal, "The setup token cannot be read.", "Restart agnes; it writes the token again.")
	}
	if subtle.ConstantTimeCompare([]byte(strings.TrimSpace(proof.Token)), []byte(strings.TrimSpace(string(want)))) != 1 {
		return problem.New(problem.Forbidden, "The setup token is not the one of this instance.", where).WithCode("setup_token_wrong")
	}
	return nil
}

// SignIn checks a password and returns a session token. Accounts that do not
// exist, are disabled or have no password all fail alike.
func (i *Instance) SignIn(ctx context.Context, remote string, req api.TokenRequest) (api.TokenResponse, error) {
	email := strings.ToLower(strings.TrimSpace(req.Email))
	for _, err := range []error{i.limit(i.addressLimit, remote), i.limit(i.accountLimit, email)} {
		if err != nil {
			return api.TokenResponse{}, err
		}
	}
	user, err := i.state.UserByEmail(ctx, email)
	if err != nil && !problem.Is(err, problem.NotFound) && !problem.Is(err, problem.Unprocessable) {
		return api.TokenResponse{}, err
	}
	ok, err := i.passwords.Matches(ctx, user.PasswordHash, req.Password)
	if err != nil {
		return api.TokenResponse{}, err
	}
	if !ok || user.Disabled {
		i.audit(ctx, state.AuditEntry{Actor: email, Action: "session.create", Outcome: state.OutcomeDenied, Remote: remote})
		return api.TokenResponse{}, problem.New(problem.Unauthenticated, "The e-mail address or the password is wrong.",
			"Check both, or ask an admin for a new password: PATCH /api/users/{id}.").WithCode("invalid_credentials")
	}
	i.accountLimit.Reset(email)
	i.audit(ctx, state.AuditEntry{Actor: user.Email, ActorID: user.ID, Action: "session.create", Target: user.ID, Remote: remote})
	return i.signed(user)
}

func (i *Instance) signed(user state.User) (api.TokenResponse, error) {
	token, session, err := i.sessions.Sign(user.ID, user.TokenEpoch, time.Now())
	return api.TokenResponse{
		AccessToken: token, TokenType: "bearer", UserID: user.ID, Email: user.Email, Role: user.Role, ExpiresAt: session.Expires,
	}, err
}

func (i *Instance) limit(l *auth.Limiter, key string) error {
	if ok, wait := l.Allow(key, time.Now()); !ok {
		p := problem.New(problem.RateLimited, "Too many attempts.", fmt.Sprintf("Try again in %s.", wait.Round(time.Second)))
		p.RetryAfter = wait
		return p
	}
	return nil
}

// audit records something that changes no state of its own. A log that cannot
// be written does not stop what it describes, for locking people out of a full
// disk helps nobody; health says that writes fail.
func (i *Instance) audit(ctx context.Context, e state.AuditEntry) {
	if err := i.state.Append(ctx, e); err != nil {
		i.log.Error("An audit entry could not be stored.", "action", e.Action, "actor", e.Actor, "outcome", e.Outcome, "error", err)
	}
}

// SignOut revokes the token that the caller used.
func (i *Instance) SignOut(ctx context.Context, caller Caller) error {
	if err := caller.hasAccount("it cannot sign out; it ends with the instance's process"); err != nil {
		return err
	}
	if caller.tokenID != "" {
		return i.state.RevokeToken(ctx, caller.tokenID, caller.UserID, caller.by())
	}
	return i.state.RevokeSession(ctx, caller.session.ID, caller.session.Expires, caller.by())
}

// Authenticate finds the caller behind a bearer token.
func (i *Instance) Authenticate(ctx context.Context, token string) (Caller, error) {
	version := i.state.Version()
	authenticate := i.authenticateSession
	switch {
	case auth.IsAccessToken(token):
		authenticate = i.authenticateAccessToken
	case auth.IsOperatorToken(token):
		authenticate = i.authenticateOperator
	}
	caller, err := authenticate(ctx, redact.Secret(token))
	caller.version = version
	return caller, err
}

func (i *Instance) authenticateSession(ctx context.Context, token redact.Secret) (Caller, error) {
	session, err := i.sessions.Verify(token.Reveal(), time.Now())
	if err != nil {
		return Caller{}, err
	}
	if i.state.IsRevoked(session.ID) {
		return Caller{}, auth.InvalidToken(errors.New("revoked"))
	}
	user, err := i.activeUser(ctx, session.UserID)
	if err != nil {
		return Caller{}, err
	}
	if user.TokenEpoch != session.Epoch {
		return Caller{}, auth.InvalidToken(errors.New("signed before the password changed"))
	}
	caller := callerFor(user, user.Role)
	caller.session = session
	return caller, nil
}

func (i *Instance) authenticateAccessToken(ctx context.Context, token redact.Secret) (Caller, error) {
	record, err := i.state.TokenByHash(ctx, auth.HashToken(token))
	if problem.Is(err, problem.NotFound) {
		return Caller{}, auth.InvalidToken(err)
	}
	if err != nil {
		return Caller{}, err
	}
	if !record.ExpiresAt.IsZero() && !time.Now().Before(record.ExpiresAt) {
		return Caller{}, auth.InvalidToken(errors.New("expired"))
	}
	user, err := i.activeUser(ctx, record.UserID)
	if err != nil {
		return Caller{}, err
	}
	role := user.Role
	if record.Role == api.RoleAnalyst {
		role = api.RoleAnalyst
	}
	i.state.TouchToken(record.ID)
	caller := callerFor(user, role)
	caller.tokenID = record.ID
	return caller, nil
}

func (i *Instance) activeUser(ctx context.Context, id string) (state.User, error) {
	user, err := i.state.UserByID(ctx, id)
	if problem.Is(err, problem.NotFound) || (err == nil && user.Disabled) {
		return state.User{}, auth.InvalidToken(errors.New("the account is gone or disabled"))
	}
	return user, err
}

func callerFor(user state.User, role string) Caller {
	return Caller{
		UserID: user.ID, Email: user.Email, Role: role, sees: user.CanSee,
	}
}

// AccessTokens lists the caller's personal access tokens, newest first.
func (i *Instance) AccessTokens(ctx context.Context, caller Caller) (api.AccessTokens, error) {
	records, err := i.state.ListTokens(ctx, caller.UserID)
	out := api.AccessTokens{Tokens: []api.AccessToken{}, Count: len(records)}
	for _, r := range records {
		out.Tokens = append(out.Tokens, accessToken(r))
	}
	return out, err
}

const defaultTokenDays = 90

// CreateAccessToken makes a personal access token with at most the caller's own
// role. Its value is in the answer and nowhere else.
func (i *Instance) CreateAccessToken(ctx context.Context, caller Caller, req api.CreateTokenRequest) (api.CreatedToken, error) {
	if err := caller.hasAccount("no access token can be made for it"); err != nil {
		return api.CreatedToken{}, err
	}
	role := caller.Role
	if req.Role != "" {
		if req.Role == api.RoleAdmin && !caller.Admin() {
			return api.CreatedToken{}, problem.New(problem.Forbidden, "A token cannot have a higher role than the one that makes it.",
				"Leave role out, or ask an admin.").WithCode("admin_required")
		}
		role = req.Role
	}
	days := req.ExpiresInDays
	if days == 0 {
		days = defaultTokenDays
	}
	token := auth.NewAccessToken()
	var record state.Token
	if err := i.drain.do(func() (err error) {
		record, err = i.state.CreateToken(ctx, state.Token{
			UserID: caller.UserID, Name: req.Name, Role: role, Hash: auth.HashToken(token),
			Prefix: token.Reveal()[:len(auth.AccessTokenPrefix)+4], ExpiresAt: time.Now().UTC().AddDate(0, 0, days),
		}, caller.by())
		return err
	}); err != nil {
		return api.CreatedToken{}, err
	}
	return api.CreatedToken{AccessToken: accessToken(record), Token: token.Reveal()}, nil
}

// RevokeAccessToken ends one of the caller's tokens; an admin may end anyone's.
func (i *Instance) RevokeAccessToken(ctx context.Context, caller Caller, id string) error {
	owner := caller.UserID
	if caller.Admin() {
		owner = ""
	}
	return i.drain.do(func() error { return i.state.RevokeToken(ctx, id, owner, caller.by()) })
}

func accessToken(t state.Token) api.AccessToken {
	return api.AccessToken{
		ID: t.ID, Name: t.Name, Role: t.Role, Prefix: t.Prefix, CreatedAt: t.CreatedAt,
		ExpiresAt: timeOrNil(t.ExpiresAt), LastUsedAt: timeOrNil(t.LastUsedAt),
	}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Users lists all users, oldest first.
func (i *Instance) Users(ctx context.Context, _ Caller) (api.Users, error) {
	users, err := i.state.ListUsers(ctx)
	out := api.Users{Users: []api.User{}, Count: len(users)}
	for _, u := range users {
		out.Users = append(out.Users, apiUser(u))
	}
	return out, err
}

// User returns one user.
func (i *Instance) User(ctx context.Context, _ Caller, id string) (api.User, error) {
	u, err := i.state.UserByID(ctx, id)
	return apiUser(u), err
}

func apiUser(u state.User) api.User {
	return api.User{ID: u.ID, Email: u.Email, Name: u.Name, Role: u.Role, Disabled: u.Disabled, Grants: u.Grants, CreatedAt: u.CreatedAt}
}

// CreateUser adds an account. Grants must name registered tables, or be "*".
func (i *Instance) CreateUser(ctx context.Context, caller Caller, req api.CreateUserRequest) (api.User, error) {
	user, err := i.newUser(ctx, req)
	if err != nil {
		return api.User{}, err
	}
	if domain := i.Settings().Get(settings.AllowedDomain); domain != "" && !strings.HasSuffix(user.Email, "@"+strings.ToLower(domain)) {
		return api.User{}, problem.New(problem.Unprocessable,
			fmt.Sprintf("The e-mail address %s is not of the domain %s.", user.Email, domain),
			"Use an address of that domain, or change allowed_domain with POST /api/admin/configure.").WithCode("domain_not_allowed")
	}
	if err := i.checkGrants(ctx, req.Grants); err != nil {
		return api.User{}, err
	}
	err = i.drain.do(func() error {
		user, err = i.state.CreateUser(ctx, user, caller.by())
		return err
	})
	return apiUser(user), err
}

// newUser checks and hashes what a new account needs, without storing it.
func (i *Instance) newUser(ctx context.Context, req api.CreateUserRequest) (state.User, error) {
	email, err := parseEmail(req.Email)
	if err != nil {
		return state.User{}, err
	}
	user := state.User{Email: email, Name: req.Name, Role: req.Role, Grants: req.Grants}
	if req.Password != "" {
		user.PasswordHash, err = i.passwords.Hash(ctx, req.Password)
	}
	return user, err
}

// UpdateUser changes what the request names. A new password or role ends the
// account's sessions.
func (i *Instance) UpdateUser(ctx context.Context, caller Caller, id string, req api.UpdateUserRequest) (api.User, error) {
	patch := state.UserPatch{Role: req.Role, Name: req.Name, Disabled: req.Disabled, Grants: req.Grants}
	if req.Grants != nil {
		if err := i.checkGrants(ctx, *req.Grants); err != nil {
			return api.User{}, err
		}
	}
	if req.Password != nil {
		hash, err := i.passwords.Hash(ctx, *req.Password)
		if err != nil {
			return api.User{}, err
		}
		patch.PasswordHash = &hash
	}
	var user state.User
	err := i.drain.do(func() (err error) {
		user, err = i.state.UpdateUser(ctx, id, patch, caller.by())
		return err
	})
	return apiUser(user), err
}

// DeleteUser removes an account with its tokens.
func (i *Instance) DeleteUser(ctx context.Context, caller Caller, id string) error {
	return i.drain.do(func() error { return i.state.DeleteUser(ctx, id, caller.by()) })
}

func (i *Instance) checkGrants(ctx context.Context, grants []string) error {
	if len(grants) == 0 {
		return nil
	}
	tables, err := i.state.ListTables(ctx)
	if err != nil {
		return err
	}
	var unknown []string
	for _, g := range grants {
		if g != api.AllTables && !slices.ContainsFunc(tables, func(t state.Table) bool { return t.ID == g }) {
			unknown = append(unknown, g)
		}
	}
	if len(unknown) > 0 {
		return problem.New(problem.Unprocessable, fmt.Sprintf("No tables are registered as %s.", strings.Join(unknown, ", ")),
			"GET /api/admin/registry lists the table ids; * grants all.").WithCode("unknown_table")
	}
	return nil
}

// Audit returns the newest entries of the audit log.
func (i *Instance) Audit(ctx context.Context, _ Caller, limit int) (api.AuditLog, error) {
	entries, err := i.state.ListAudit(ctx, limit, "")
	out := api.AuditLog{Entries: []api.AuditEntry{}, Count: len(entries)}
	for _, e := range entries {
		out.Entries = append(out.Entries, api.AuditEntry{
			ID: e.ID, At: e.At, Actor: e.Actor, Action: e.Action, Target: e.Target, Outcome: e.Outcome, Detail: e.Detail, Remote: e.Remote,
		})
	}
	return out, err
}

// parseEmail accepts a plain address and returns it as it is stored.
func parseEmail(text string) (string, error) {
	email, err := state.NormalizeEmail(text)
	if err != nil {
		return "", err
	}
	if addr, err := mail.ParseAddress(email); err != nil || addr.Address != email {
		return "", problem.New(problem.Unprocessable, "The e-mail address cannot be read.", "Send a plain address such as admin@company.com.").WithCode("invalid_email")
	}
	return email, nil
}

// CreateAdmin makes an admin for a person who works beside the data. It also
// completes setup.
func (i *Instance) CreateAdmin(ctx context.Context, req api.CreateUserRequest) (api.User, error) {
	req.Role, req.Grants = api.RoleAdmin, []string{api.AllTables}
	user, err := i.newUser(ctx, req)
	if err != nil {
		return api.User{}, err
	}
	if user, err = i.state.CreateUser(ctx, user, state.By{Actor: "command line"}); err != nil {
		return api.User{}, err
	}
	i.setupNeeded.Store(false)
	return apiUser(user), i.removeSetupToken()
}

// IssueAccessToken makes a token for an account, for a person who works beside
// the data.
func (i *Instance) IssueAccessToken(ctx context.Context, email string, req api.CreateTokenRequest) (api.CreatedToken, error) {
	user, err := i.state.UserByEmail(ctx, email)
	if err != nil {
		return api.CreatedToken{}, err
	}
	caller := callerFor(user, user.Role)
	return i.CreateAccessToken(ctx, caller, req)
}
