// Package api is an instance's HTTP surface as Go types, and a typed client for
// it.
//
// The server's handlers and the client share these types, so they cannot drift
// apart. The package needs no DuckDB and imports nothing of the instance:
// agnesctl reaches every instance through it alone.
//
// Every failure is a problem.Error on both sides; on the wire it is a Problem,
// RFC 9457 problem details with a code and a hint.
package api

import (
	"encoding/json"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Roles of a user.
const (
	RoleAdmin   = "admin"   // everything
	RoleAnalyst = "analyst" // the tables in its grants
)

// AllTables is the grant that stands for every table, present and future.
const AllTables = "*"

// Problem is the body of every failed call (RFC 9457, media type
// application/problem+json).
type Problem struct {
	Type   string        `json:"type" doc:"Address of the error's documentation, or about:blank."`
	Title  string        `json:"title" doc:"The HTTP status in words."`
	Status int           `json:"status" doc:"The HTTP status code."`
	Detail string        `json:"detail" doc:"What was expected, what was found, and where."`
	Code   string        `json:"code" doc:"Stable identifier for programs." example:"setup_required"`
	Hint   string        `json:"hint,omitempty" doc:"The exact next command or call."`
	Errors []ProblemItem `json:"errors,omitempty" doc:"One entry a field that is wrong."`
}

// ProblemItem names one wrong field of a request.
type ProblemItem struct {
	Location string `json:"location,omitempty" doc:"Where in the request, such as body.email."`
	Message  string `json:"message"`
}

// Health states.
const (
	Healthy   = "healthy"
	Degraded  = "degraded"  // answers, but something needs attention
	Unhealthy = "unhealthy" // cannot do its work
)

// Health is the public answer of GET /api/health. It holds no table name and no
// secret, and comes with status 200 whatever it says.
type Health struct {
	Status        string                   `json:"status" enum:"healthy,degraded,unhealthy"`
	Version       string                   `json:"version" doc:"CalVer YYYY.MM.N, or dev."`
	Channel       string                   `json:"channel" doc:"Release channel, dev or stable."`
	SchemaVersion int                      `json:"schema_version" doc:"Version of system.duckdb's schema."`
	Commit        string                   `json:"commit"`
	Timestamp     time.Time                `json:"timestamp"`
	SetupRequired bool                     `json:"setup_required" doc:"True until an admin exists."`
	Phase         string                   `json:"phase" enum:"setup,serving,syncing,draining" doc:"What the instance is doing."`
	Warnings      []string                 `json:"warnings"`
	Update        Update                   `json:"update"`
	Services      map[string]ServiceHealth `json:"services" doc:"One entry a part of the instance."`
}

// Update says whether the running version is deprecated and what is newest.
type Update struct {
	Deprecated bool   `json:"deprecated" doc:"Whether the registry marks the running version as deprecated; warnings says so too."`
	Latest     string `json:"latest,omitempty" doc:"A newer version of the channel that is not deprecated, where one is known."`
	Failed     string `json:"failed,omitempty" doc:"Digest of an image that a deploy tried here and took back, because it failed."`
}

// ServiceHealth is the state of one part, with the way to mend it.
type ServiceHealth struct {
	Status string `json:"status" enum:"healthy,degraded,unhealthy"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty" doc:"How to mend it."`
}

// HealthDetails is GET /api/health/details, for signed-in users.
type HealthDetails struct {
	Health
	Tables        int               `json:"tables" doc:"Tables that the caller may see."`
	StaleTables   []StaleTable      `json:"stale_tables"`
	Sources       []SourceHealth    `json:"sources"`
	Disk          Disk              `json:"disk"`
	WALBytes      int64             `json:"wal_bytes" doc:"Size of system.duckdb's write-ahead log."`
	Generation    int64             `json:"generation" doc:"Number of the published generation; 0 before the first."`
	Isolation     string            `json:"isolation" doc:"What keeps a query away from the rest of the instance."`
	Limits        map[string]Limits `json:"limits" doc:"Query limits by role."`
	ImageDigest   string            `json:"image_digest,omitempty" doc:"AGNES_IMAGE_DIGEST, as the deploy recorded it."`
	ConfigHash    string            `json:"config_hash" doc:"Of all settings but secrets and what a deploy records; equal hashes are equal settings."`
	BundleVersion string            `json:"bundle_version,omitempty" doc:"AGNES_BUNDLE_VERSION, as the deploy recorded it."`
}

// StaleTable is a table that serves older data than its source should have.
type StaleTable struct {
	ID       string    `json:"id"`
	Reason   string    `json:"reason"`
	LastSync time.Time `json:"last_sync"`
}

// SourceHealth is the last sync of one source.
type SourceHealth struct {
	Name     string     `json:"name"`
	LastSync *time.Time `json:"last_sync,omitempty"`
	Status   string     `json:"status" doc:"Status of the last job that touched it."`
	Error    string     `json:"error,omitempty"`
}

// Disk is the space of the file system that holds the data directory.
type Disk struct {
	TotalBytes int64 `json:"total_bytes"`
	FreeBytes  int64 `json:"free_bytes"`
}

// Limits bound one role's queries.
type Limits struct {
	Rows        int   `json:"rows" doc:"Rows of one JSON answer; other formats have no such limit."`
	Bytes       int64 `json:"bytes" doc:"Bytes of one JSON answer."`
	StreamBytes int64 `json:"stream_bytes" doc:"Bytes of one answer in another format."`
	Seconds     int   `json:"seconds" doc:"Running time of one query."`
	MemoryBytes int64 `json:"memory_bytes" doc:"Memory of one query."`
	Concurrent  int   `json:"concurrent" doc:"Queries of one user at once; further ones wait their turn."`
}

// Version is GET /api/version.
type Version struct {
	Version string `json:"version"`
	Channel string `json:"channel"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	DuckDB  string `json:"duckdb"`
}

// BootstrapRequest creates the first admin.
type BootstrapRequest struct {
	Email    string        `json:"email" minLength:"3" maxLength:"254" example:"admin@company.com"`
	Password redact.Secret `json:"password" minLength:"10" maxLength:"1024" doc:"At least 10 characters."`
	Name     string        `json:"name,omitempty" maxLength:"200"`
}

// TokenRequest signs a user in.
type TokenRequest struct {
	Email    string        `json:"email" minLength:"1" maxLength:"254"`
	Password redact.Secret `json:"password" minLength:"1" maxLength:"1024"`
}

// TokenResponse carries an access token; it is shown once.
type TokenResponse struct {
	AccessToken string    `json:"access_token" doc:"Send it as Authorization: Bearer TOKEN."`
	TokenType   string    `json:"token_type" enum:"bearer"`
	UserID      string    `json:"user_id"`
	Email       string    `json:"email"`
	Role        string    `json:"role"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// AccessToken is a personal access token without its value.
type AccessToken struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Role       string     `json:"role"`
	Prefix     string     `json:"prefix" doc:"First characters, to tell tokens apart."`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

// AccessTokens is GET /auth/tokens.
type AccessTokens struct {
	Tokens []AccessToken `json:"tokens"`
	Count  int           `json:"count"`
}

// CreateTokenRequest is POST /auth/tokens.
type CreateTokenRequest struct {
	Name          string `json:"name" minLength:"1" maxLength:"100"`
	Role          string `json:"role,omitempty" enum:"admin,analyst" doc:"At most the caller's own role, which is the default."`
	ExpiresInDays int    `json:"expires_in_days,omitempty" minimum:"1" maximum:"3650" doc:"90 when left out."`
}

// CreatedToken is the answer to CreateTokenRequest; Token is shown once.
type CreatedToken struct {
	AccessToken
	Token string `json:"token"`
}

// User is one account.
type User struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	Name      string    `json:"name"`
	Role      string    `json:"role" enum:"admin,analyst"`
	Disabled  bool      `json:"disabled"`
	Grants    []string  `json:"grants" doc:"Table ids, or * for all. An admin sees all tables."`
	CreatedAt time.Time `json:"created_at"`
}

// Users is GET /api/users.
type Users struct {
	Users []User `json:"users"`
	Count int    `json:"count"`
}

// CreateUserRequest is POST /api/users.
type CreateUserRequest struct {
	Email    string        `json:"email" minLength:"3" maxLength:"254"`
	Role     string        `json:"role" enum:"admin,analyst"`
	Password redact.Secret `json:"password,omitempty" minLength:"10" maxLength:"1024" doc:"Without one the user cannot sign in by password."`
	Name     string        `json:"name,omitempty" maxLength:"200"`
	Grants   []string      `json:"grants,omitempty" maxItems:"10000" doc:"Table ids, or * for all."`
}

// UpdateUserRequest is PATCH /api/users/{id}; what is left out stays.
type UpdateUserRequest struct {
	Role     *string        `json:"role,omitempty" enum:"admin,analyst"`
	Password *redact.Secret `json:"password,omitempty" minLength:"10" maxLength:"1024"`
	Name     *string        `json:"name,omitempty" maxLength:"200"`
	Disabled *bool          `json:"disabled,omitempty"`
	Grants   *[]string      `json:"grants,omitempty" maxItems:"10000"`
}

// ConfigureRequest is POST /api/admin/configure. What is left out stays.
type ConfigureRequest struct {
	DataSource        string         `json:"data_source" enum:"csv,keboola,bigquery,jira,custom,local"`
	CSVDir            *string        `json:"csv_dir,omitempty" maxLength:"4096" doc:"Directory on the instance's machine with CSV, TSV, JSON or Parquet files."`
	CSVOnBadRow       *string        `json:"csv_on_bad_row,omitempty" enum:"skip,fail" doc:"skip keeps the rest of a table and reports each bad row; fail keeps the table's last good data."`
	KeboolaToken      *redact.Secret `json:"keboola_token,omitempty" maxLength:"1024"`
	KeboolaURL        *string        `json:"keboola_url,omitempty" maxLength:"2048"`
	BigQueryProject   *string        `json:"bigquery_project,omitempty" maxLength:"200"`
	BigQueryLocation  *string        `json:"bigquery_location,omitempty" maxLength:"100"`
	JiraDomain        *string        `json:"jira_domain,omitempty" maxLength:"253"`
	JiraEmail         *string        `json:"jira_email,omitempty" maxLength:"254"`
	JiraAPIToken      *redact.Secret `json:"jira_api_token,omitempty" maxLength:"1024"`
	JiraWebhookSecret *redact.Secret `json:"jira_webhook_secret,omitempty" maxLength:"1024"`
	InstanceName      *string        `json:"instance_name,omitempty" maxLength:"200"`
	AllowedDomain     *string        `json:"allowed_domain,omitempty" maxLength:"253" doc:"E-mail domain that new users must have."`
}

// ConfigureResponse says what was stored.
type ConfigureResponse struct {
	Status     string `json:"status" enum:"configured"`
	DataSource string `json:"data_source"`
	Connection string `json:"connection" enum:"verified,local" doc:"verified: a credential was proved against the source; local: there is none to prove."`
}

// Discovery is the answer of discover-and-register.
type Discovery struct {
	Registered int               `json:"registered" doc:"Tables registered now, or that would be with dry_run."`
	Skipped    int               `json:"skipped" doc:"Tables that were registered before."`
	Errors     []DiscoveryError  `json:"errors"`
	Tables     []RegisteredTable `json:"tables" doc:"Every table of the source that is registered, or would be."`
	Source     string            `json:"source"`
	DryRun     bool              `json:"dry_run"`
	Warnings   []string          `json:"warnings"`
}

// DiscoveryError is a table that could not be registered.
type DiscoveryError struct {
	Table   string `json:"table"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// RegisteredTable is a row of the table registry. Its id is the name under
// which people query it.
type RegisteredTable struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Source       string    `json:"source"`
	SourceTable  string    `json:"source_table"`
	Description  string    `json:"description"`
	SyncStrategy string    `json:"sync_strategy" enum:"full_refresh"`
	QueryMode    string    `json:"query_mode" enum:"local,remote"`
	Enabled      bool      `json:"enabled"`
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

// Registry is GET /api/admin/registry.
type Registry struct {
	Tables []RegisteredTable `json:"tables"`
	Count  int               `json:"count"`
}

// RegisterTableRequest is POST /api/admin/register-table.
type RegisterTableRequest struct {
	ID          string `json:"id,omitempty" maxLength:"64" doc:"Name to query it by; source_table when left out."`
	Source      string `json:"source" minLength:"1" maxLength:"64"`
	SourceTable string `json:"source_table" minLength:"1" maxLength:"64"`
	Description string `json:"description,omitempty" maxLength:"4000"`
	QueryMode   string `json:"query_mode,omitempty" enum:"local,remote"`
}

// UpdateTableRequest is PUT /api/admin/registry/{id}; what is left out stays.
type UpdateTableRequest struct {
	Description *string `json:"description,omitempty" maxLength:"4000"`
	Enabled     *bool   `json:"enabled,omitempty" doc:"A disabled table is not synced and cannot be queried."`
}

// SyncRequest narrows a sync; the zero value means everything. On the wire it
// may also be a plain list of table ids.
type SyncRequest struct {
	Tables []string `json:"tables,omitempty"`
	Source string   `json:"source,omitempty"`
}

// SyncTriggered is the answer of POST /api/sync/trigger.
type SyncTriggered struct {
	Status  string   `json:"status" enum:"triggered"`
	JobID   string   `json:"job_id"`
	Tables  []string `json:"tables" doc:"Table ids that the job will sync."`
	Message string   `json:"message"`
}

// Job states.
const (
	JobQueued    = "queued"
	JobRunning   = "running"
	JobSucceeded = "succeeded"
	JobFailed    = "failed"
)

// Job is the durable record of one sync.
type Job struct {
	ID          string      `json:"id"`
	Status      string      `json:"status" enum:"queued,running,succeeded,failed"`
	Progress    float64     `json:"progress" minimum:"0" maximum:"1"`
	Sources     []JobSource `json:"sources"`
	Tables      []JobTable  `json:"tables"`
	Warnings    []string    `json:"warnings"`
	Error       string      `json:"error,omitempty"`
	Hint        string      `json:"hint,omitempty"`
	RequestedBy string      `json:"requested_by"`
	CreatedAt   time.Time   `json:"created_at"`
	StartedAt   *time.Time  `json:"started_at,omitempty"`
	EndedAt     *time.Time  `json:"ended_at,omitempty"`
}

// Done reports whether the job has ended.
func (j Job) Done() bool { return j.Status == JobSucceeded || j.Status == JobFailed }

// JobSource is one source's part of a job.
type JobSource struct {
	Name   string `json:"name"`
	Status string `json:"status" enum:"queued,running,succeeded,failed"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// JobTable is one table's part of a job.
type JobTable struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Status string `json:"status" enum:"queued,succeeded,unchanged,failed"`
	Rows   int64  `json:"rows"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// SyncStatus is GET /api/sync/status.
type SyncStatus struct {
	Running *Job  `json:"running,omitempty"`
	Last    *Job  `json:"last,omitempty" doc:"The job that ended last."`
	Jobs    []Job `json:"jobs" doc:"Newest first, at most 20."`
}

// Manifest is GET /api/sync/manifest: what a client compares to decide what to
// download.
type Manifest struct {
	Generation int64           `json:"generation"`
	Tables     []ManifestTable `json:"tables"`
	Count      int             `json:"count"`
}

// ManifestTable is one table of a manifest.
type ManifestTable struct {
	ID          string    `json:"id"`
	ContentHash string    `json:"content_hash" doc:"SHA-256 of the data, hexadecimal; the download's ETag."`
	Rows        int64     `json:"rows"`
	SizeBytes   int64     `json:"size_bytes"`
	LastSync    time.Time `json:"last_sync"`
	Download    string    `json:"download" doc:"Path of the download."`
}

// Catalog is GET /api/catalog/tables.
type Catalog struct {
	Tables []CatalogTable `json:"tables"`
	Count  int            `json:"count"`
}

// CatalogTable describes a table that the caller may query.
type CatalogTable struct {
	ID           string     `json:"id"`
	Name         string     `json:"name"`
	Description  string     `json:"description"`
	SourceType   string     `json:"source_type"`
	SyncStrategy string     `json:"sync_strategy"`
	QueryMode    string     `json:"query_mode"`
	Rows         int64      `json:"rows"`
	SizeBytes    int64      `json:"size_bytes"`
	LastSync     *time.Time `json:"last_sync" doc:"When its data was extracted; null before the first sync."`
	Stale        bool       `json:"stale"`
	StaleReason  string     `json:"stale_reason,omitempty"`
	Columns      []Column   `json:"columns,omitempty" doc:"Only for a single table."`
}

// Column is a column of a table.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type" doc:"DuckDB type."`
}

// QueryRequest is POST /api/query.
type QueryRequest struct {
	SQL    string            `json:"sql" minLength:"1" maxLength:"65536" example:"SELECT 1"`
	Limit  *int              `json:"limit,omitempty" minimum:"1" maximum:"100000" doc:"Most rows in the answer; in JSON 1000 when left out, otherwise all."`
	Params []json.RawMessage `json:"params,omitempty" maxItems:"1000" doc:"Values for ? or $1, bound and never pasted."`

	BigIntStrings bool `json:"bigint_strings,omitempty" doc:"JSON and NDJSON: write integers beyond 2^53 as text, for readers that would round them."`
}

// QueryResponse is the JSON answer of POST /api/query.
type QueryResponse struct {
	Columns   []string `json:"columns"`
	Types     []string `json:"types" doc:"DuckDB types, one a column."`
	Rows      [][]any  `json:"rows"`
	RowCount  int      `json:"row_count"`
	Truncated bool     `json:"truncated" doc:"True when the limit cut rows off."`
	ElapsedMS float64  `json:"elapsed_ms"`
}

// AuditEntry is one recorded change.
type AuditEntry struct {
	ID      string         `json:"id"`
	At      time.Time      `json:"at"`
	Actor   string         `json:"actor"`
	Action  string         `json:"action"`
	Target  string         `json:"target"`
	Outcome string         `json:"outcome"`
	Detail  map[string]any `json:"detail,omitempty"`
	Remote  string         `json:"remote,omitempty"`
}

// AuditLog is GET /api/admin/audit.
type AuditLog struct {
	Entries []AuditEntry `json:"entries"`
	Count   int          `json:"count"`
}
