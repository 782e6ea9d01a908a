package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// SetupTokenHeader carries the one-time setup token to POST /auth/bootstrap.
const SetupTokenHeader = "X-Setup-Token" //nolint:gosec // the name of a header, not a token

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	return send[T](ctx, c, call{method: http.MethodGet, path: path, query: query, timeout: callTimeout})
}

func send[T any](ctx context.Context, c *Client, k call) (*T, error) {
	out := new(T)
	if err := c.json(ctx, k, out); err != nil {
		return nil, err
	}
	return out, nil
}

func post[T any](ctx context.Context, c *Client, path string, body any, timeout time.Duration) (*T, error) {
	return send[T](ctx, c, call{method: http.MethodPost, path: path, body: body, timeout: timeout})
}

// Health returns GET /api/health, whatever state it tells of.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	return get[Health](ctx, c, "/api/health", nil)
}

// HealthDetails returns GET /api/health/details.
func (c *Client) HealthDetails(ctx context.Context) (*HealthDetails, error) {
	return get[HealthDetails](ctx, c, "/api/health/details", nil)
}

// Version returns GET /api/version.
func (c *Client) Version(ctx context.Context) (*Version, error) {
	return get[Version](ctx, c, "/api/version", nil)
}

// Bootstrap creates the first admin. The setup token may be empty where the
// instance does not ask for one. Once an admin exists it fails as Forbidden.
func (c *Client) Bootstrap(ctx context.Context, req BootstrapRequest, setupToken redact.Secret) (*TokenResponse, error) {
	k := call{method: http.MethodPost, path: "/auth/bootstrap", body: req, timeout: callTimeout}
	if setupToken != "" {
		k.header = http.Header{SetupTokenHeader: {setupToken.Reveal()}}
		k.secrets = []redact.Secret{setupToken}
	}
	return send[TokenResponse](ctx, c, k)
}

// Token signs in with a password.
func (c *Client) Token(ctx context.Context, req TokenRequest) (*TokenResponse, error) {
	return post[TokenResponse](ctx, c, "/auth/token", req, callTimeout)
}

// AccessTokens lists the caller's personal access tokens.
func (c *Client) AccessTokens(ctx context.Context) (*AccessTokens, error) {
	return get[AccessTokens](ctx, c, "/auth/tokens", nil)
}

// CreateAccessToken makes a personal access token; its value is shown once.
func (c *Client) CreateAccessToken(ctx context.Context, req CreateTokenRequest) (*CreatedToken, error) {
	return post[CreatedToken](ctx, c, "/auth/tokens", req, callTimeout)
}

// RevokeAccessToken ends a personal access token.
func (c *Client) RevokeAccessToken(ctx context.Context, id string) error {
	return c.json(ctx, call{method: http.MethodDelete, path: "/auth/tokens/{id}", id: id, timeout: callTimeout}, nil)
}

// Users lists the accounts.
func (c *Client) Users(ctx context.Context) (*Users, error) {
	return get[Users](ctx, c, "/api/users", nil)
}

// User returns one account.
func (c *Client) User(ctx context.Context, id string) (*User, error) {
	return send[User](ctx, c, call{method: http.MethodGet, path: "/api/users/{id}", id: id, timeout: callTimeout})
}

// CreateUser adds an account.
func (c *Client) CreateUser(ctx context.Context, req CreateUserRequest) (*User, error) {
	return post[User](ctx, c, "/api/users", req, callTimeout)
}

// UpdateUser changes an account; nil fields stay.
func (c *Client) UpdateUser(ctx context.Context, id string, req UpdateUserRequest) (*User, error) {
	return send[User](ctx, c, call{method: http.MethodPatch, path: "/api/users/{id}", id: id, body: req, timeout: callTimeout})
}

// DeleteUser removes an account.
func (c *Client) DeleteUser(ctx context.Context, id string) error {
	return c.json(ctx, call{method: http.MethodDelete, path: "/api/users/{id}", id: id, timeout: callTimeout}, nil)
}

// Config returns the instance's settings and where each comes from.
func (c *Client) Config(ctx context.Context) (*Config, error) {
	return get[Config](ctx, c, "/api/admin/config", nil)
}

// Configure verifies and stores settings; nil fields stay. A value that the
// environment fixes is a Conflict.
func (c *Client) Configure(ctx context.Context, req ConfigureRequest) (*ConfigureResponse, error) {
	return post[ConfigureResponse](ctx, c, "/api/admin/configure", req, workTimeout)
}

// Discover registers the tables that the source has. With dryRun it only tells.
func (c *Client) Discover(ctx context.Context, dryRun bool) (*Discovery, error) {
	k := call{method: http.MethodPost, path: "/api/admin/discover-and-register", timeout: workTimeout}
	if dryRun {
		k.query = url.Values{"dry_run": {"true"}}
	}
	return send[Discovery](ctx, c, k)
}

// Registry lists the registered tables.
func (c *Client) Registry(ctx context.Context) (*Registry, error) {
	return get[Registry](ctx, c, "/api/admin/registry", nil)
}

// RegisterTable adds a table. A name that is taken is a Conflict.
func (c *Client) RegisterTable(ctx context.Context, req RegisterTableRequest) (*RegisteredTable, error) {
	return post[RegisteredTable](ctx, c, "/api/admin/register-table", req, callTimeout)
}

// UpdateTable changes a registered table; nil fields stay.
func (c *Client) UpdateTable(ctx context.Context, id string, req UpdateTableRequest) (*RegisteredTable, error) {
	return send[RegisteredTable](ctx, c, call{method: http.MethodPut, path: "/api/admin/registry/{id}", id: id, body: req, timeout: callTimeout})
}

// UnregisterTable removes a table from the registry.
func (c *Client) UnregisterTable(ctx context.Context, id string) error {
	return c.json(ctx, call{method: http.MethodDelete, path: "/api/admin/registry/{id}", id: id, timeout: callTimeout}, nil)
}

// TriggerSync starts a sync. It is a Conflict while one runs.
func (c *Client) TriggerSync(ctx context.Context, req SyncRequest) (*SyncTriggered, error) {
	return post[SyncTriggered](ctx, c, "/api/sync/trigger", req, callTimeout)
}

// SyncStatus returns the running job, the last one and the newest ones.
func (c *Client) SyncStatus(ctx context.Context) (*SyncStatus, error) {
	return get[SyncStatus](ctx, c, "/api/sync/status", nil)
}

// Job returns one sync job.
func (c *Client) Job(ctx context.Context, id string) (*Job, error) {
	return send[Job](ctx, c, call{method: http.MethodGet, path: "/api/sync/jobs/{id}", id: id, timeout: callTimeout})
}

// Manifest lists the content hashes of the tables that the caller may see.
func (c *Client) Manifest(ctx context.Context) (*Manifest, error) {
	return get[Manifest](ctx, c, "/api/sync/manifest", nil)
}

// Catalog lists the tables that the caller may query.
func (c *Client) Catalog(ctx context.Context) (*Catalog, error) {
	return get[Catalog](ctx, c, "/api/catalog/tables", nil)
}

// CatalogTable describes one table with its columns.
func (c *Client) CatalogTable(ctx context.Context, id string) (*CatalogTable, error) {
	return send[CatalogTable](ctx, c, call{method: http.MethodGet, path: "/api/catalog/tables/{id}", id: id, timeout: callTimeout})
}

// Query runs one statement. Numbers in rows are json.Number, with all digits.
func (c *Client) Query(ctx context.Context, req QueryRequest) (*QueryResponse, error) {
	return post[QueryResponse](ctx, c, "/api/query", req, 0)
}

// Audit lists recorded changes, newest first. A limit of 0 is the server's.
func (c *Client) Audit(ctx context.Context, limit int) (*AuditLog, error) {
	var query url.Values
	if limit > 0 {
		query = url.Values{"limit": {strconv.Itoa(limit)}}
	}
	return get[AuditLog](ctx, c, "/api/admin/audit", query)
}

// Drain begins, extends or ends a drain.
func (c *Client) Drain(ctx context.Context, req DrainRequest) (*Drain, error) {
	return post[Drain](ctx, c, "/api/admin/drain", req, callTimeout)
}

// Backup makes a backup and returns when it is verified.
func (c *Client) Backup(ctx context.Context, req BackupRequest) (*Backup, error) {
	return post[Backup](ctx, c, "/api/admin/backup", req, 0)
}

// Backups lists the backups on the instance's own disk, newest first.
func (c *Client) Backups(ctx context.Context) (*Backups, error) {
	return get[Backups](ctx, c, "/api/admin/backups", nil)
}
