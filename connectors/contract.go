// Package connectors is the contract between the places that data comes from
// and the instance that serves it.
//
// What a connector makes is an extract: a folder named after its source,
//
//	<source>/extract.duckdb      _meta: one row a table; _remote_attach, only where remote tables exist
//	<source>/data/<table>.parquet, or data/<table>/*.parquet for a table in several parts
//
// in any language and by any program. A Source is a connector inside this
// process: it fills a Writer, which builds the next extract in a staging folder
// and swaps it in as a whole, so that a reader or a crash never meets half of
// one. ReadExtract says what an extract holds. Verify examines an extract that
// somebody else made and names, for each fault, what was expected, what was
// found and the SQL that mends it.
//
// The columns of _meta and _remote_attach are frozen: MetaColumns and
// RemoteAttachColumns are their one definition.
package connectors

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Names inside an extract.
const (
	MetaTable         = "_meta"
	RemoteAttachTable = "_remote_attach"
	StateTable        = "_source_state" // private to this package: fingerprints of what was read
	ExtractFile       = "extract.duckdb"
	DataDir           = "data"
)

// Column is one column of a contract table.
type Column struct {
	Name string
	Type string // DuckDB's name of the type
	Rest string // constraint or default, as in the DDL
}

// MetaColumns returns the columns of _meta in their order. rows and size_bytes
// count what the table's files hold (-1 or NULL for a remote table whose size
// is not known); extracted_at is UTC.
func MetaColumns() []Column {
	return []Column{
		{"table_name", "VARCHAR", "NOT NULL"},
		{"description", "VARCHAR", ""},
		{"rows", "BIGINT", ""},
		{"size_bytes", "BIGINT", ""},
		{"extracted_at", "TIMESTAMP", ""},
		{"query_mode", "VARCHAR", "DEFAULT 'local'"},
	}
}

// RemoteAttachColumns returns the columns of _remote_attach in their order.
// token_env is the name of an environment variable, never a token; empty means
// that the extension authenticates by itself.
func RemoteAttachColumns() []Column {
	return []Column{
		{"alias", "VARCHAR", ""},
		{"extension", "VARCHAR", ""},
		{"url", "VARCHAR", ""},
		{"token_env", "VARCHAR", ""},
	}
}

// MetaDDL returns the statement that creates _meta.
func MetaDDL() string { return createTable(MetaTable, MetaColumns()) }

// RemoteAttachDDL returns the statement that creates _remote_attach.
func RemoteAttachDDL() string { return createTable(RemoteAttachTable, RemoteAttachColumns()) }

func stateDDL() string {
	return createTable(StateTable, []Column{{"table_name", "VARCHAR", "NOT NULL"}, {"state", "VARCHAR", ""}})
}

func createTable(name string, columns []Column) string {
	lines := make([]string, len(columns))
	for i, c := range columns {
		lines[i] = strings.TrimRight("  "+c.Name+" "+c.Type+" "+c.Rest, " ")
	}
	return "CREATE TABLE " + name + " (\n" + strings.Join(lines, ",\n") + "\n);"
}

// QueryMode says where a table's rows are.
type QueryMode string

// The query modes.
const (
	Local  QueryMode = "local"  // in parquet files of the extract
	Remote QueryMode = "remote" // in another system, reached through _remote_attach
)

// Meta is a row of _meta.
type Meta struct {
	Table       string
	Description string
	Rows        int64     // -1: unknown (remote tables only)
	SizeBytes   int64     // bytes of the parquet files; -1: unknown (remote tables only)
	ExtractedAt time.Time // UTC, microseconds; zero when the extract does not say
	QueryMode   QueryMode
}

// RemoteAttach is a row of _remote_attach: a database that an extension
// attaches under Alias at query time.
type RemoteAttach struct {
	Alias     string
	Extension string
	URL       string
	TokenEnv  string // name of the environment variable that holds the token; empty: none
}

var namePattern = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,63}$`)

// ValidName reports why name cannot be a source or table name, nil when it can.
// Names differ by more than case: DuckDB compares identifiers without it.
func ValidName(name string) error {
	if namePattern.MatchString(name) {
		return nil
	}
	shown := name
	if len(shown) > 80 {
		shown = shown[:80] + "…"
	}
	return problem.New(problem.Invalid,
		fmt.Sprintf("The name %q cannot be used: expected a letter or underscore, then up to 63 letters, digits or underscores.", shown),
		"Choose a name that matches ^[a-zA-Z_][a-zA-Z0-9_]{0,63}$ and try again.").WithCode("invalid_name")
}

// ReservedName reports whether a table name belongs to the contract itself.
func ReservedName(name string) bool {
	return slices.Contains([]string{MetaTable, RemoteAttachTable, StateTable}, strings.ToLower(name))
}

// Table is a table that a source offers.
type Table struct {
	Name        string
	Description string
	Rows        int64 // -1: unknown without reading it
	SizeBytes   int64 // at the source; -1: unknown
	QueryMode   QueryMode
}

// Request says what to extract.
type Request struct {
	Tables []string // empty: all that the source offers
}

// Progress is a step of an extraction. Done never decreases within one Extract.
type Progress struct {
	Table string
	Done  int64
	Total int64
	Unit  string // "bytes", "rows" or "tables"
}

// Warning is something that a person should know and that stopped nothing. It
// holds no cell values: warnings are logged and shown to every user.
type Warning struct {
	Table   string // empty: about the source as a whole
	Message string
}

// Result is what one extraction did, table by table. Names are those of the
// tables inside the source.
type Result struct {
	Tables    []Meta           // extracted anew
	Unchanged []string         // carried over, since nothing changed at the source
	Failed    map[string]error // could not be extracted; all others were
	Kept      []string         // the failed and skipped ones whose last good data was carried over
	Warnings  []Warning
}

// Source is one place that data comes from.
type Source interface {
	// Name is the source's folder below extracts/.
	Name() string
	// Check proves that the configured source can be read.
	Check(ctx context.Context) error
	// Discover lists what the source offers, without reading the data.
	Discover(ctx context.Context) ([]Table, []Warning, error)
	// Extract fills w with the requested tables and carries every other table
	// of the previous extract over. A table that cannot be had is named in
	// Result.Failed and fails no other; an error means that the source as a
	// whole could not be read and that nothing may be committed. progress may
	// be nil; it is called from any goroutine, one call at a time.
	Extract(ctx context.Context, req Request, w *Writer, progress func(Progress)) (Result, error)
}

// Run extracts from src into extractsDir and commits the new extract. When it
// returns an error, the extract of before is in place and whole. A run in which
// every table failed and nothing could be carried over commits nothing and
// returns a nil Extract with the Result.
func Run(ctx context.Context, src Source, req Request, extractsDir string, progress func(Progress)) (*Extract, Result, error) {
	w, err := NewWriter(ctx, extractsDir, src.Name())
	if err != nil {
		return nil, Result{}, err
	}
	res, err := src.Extract(ctx, req, w, progress)
	if err != nil {
		return nil, res, joinAbort(err, w)
	}
	if len(res.Failed) > 0 && len(w.tables) == 0 {
		return nil, res, w.Abort()
	}
	ext, err := w.Commit(ctx)
	return ext, res, err
}
