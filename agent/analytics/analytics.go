// Package analytics turns extracts into published generations of views.
//
// A generation is an immutable folder: one view per registered table in a
// DuckDB database, the parquet files that the views read, and a manifest.
//
//	analytics/server.duckdb -> generations/00000012/server.duckdb   (the pointer)
//	analytics/generations/00000012/server.duckdb     views with absolute paths
//	analytics/generations/00000012/manifest.json     written last: it makes the folder complete
//	analytics/generations/00000012/data/<source>/<table>.parquet
//	analytics/generations/00000012/data/<source>/<table>/part-00000.parquet ...
//
// Publish builds the next folder in its final place, because views hold final
// paths, and proves each view by binding it. The manifest follows, then one
// rename moves the pointer. A folder without a manifest is half-written; Open
// removes it. So a crash at any moment leaves the old generation or the new one.
//
// # Whose files
//
// A generation must never change, yet extracts are written by others.
//
//   - An extract that keeps a _source_state table was committed by
//     connectors.Writer, which replaces files and never rewrites them. Its files
//     are hardlinked: publishing costs neither time nor space.
//   - Any other extract may be rewritten in place (pandas and pyarrow truncate
//     and write). Its files are copied. A copy is made again only when the
//     original's inode, size, mtime or ctime changed.
//   - Where hardlinks are impossible (other file system, no rights) files are copied.
//
// A source is looked at before and after its files are taken. When its folder or
// its extract.duckdb changed meanwhile, it is taken again. Hashes, copies and
// the contents of _meta are reused as long as their file has not changed, so a
// publish costs what changed, plus one bind for each view.
//
// What publishing does not do: decode every page. Footers, schemas and (for
// foreign extracts) row counts are checked here; connectors.Verify reads all.
//
// # Last good
//
// A table that cannot be published fresh keeps the files of the generation
// before, marked stale with the reason: its source cannot be read, its file is
// broken, or the extract no longer has it. Only a table that is no longer bound
// disappears.
//
// # Readers
//
// Acquire pins the current generation. Once a generation is neither current nor
// pinned it is retired: its OnRetire callbacks run, once. Retired generations
// are deleted beyond the newest Options.Keep old ones, which stay for programs
// outside this process that opened analytics/server.duckdb by its path.
package analytics

import (
	"log/slog"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

// Binding is a registered, enabled table.
type Binding struct {
	ID          string // name of the view; unique over all sources, case-insensitively
	Source      string // folder below the extracts
	SourceTable string // name in the source's _meta
	Description string // empty: the description in _meta
	QueryMode   connectors.QueryMode
}

// Options configure a Store.
type Options struct {
	Dir         string // DATA_DIR/analytics; made when missing
	ExtractsDir string // DATA_DIR/extracts
	Keep        int    // old generations kept though nobody pins them; 0 means 2, below 0 none
	Threads     int    // workers for reading, hashing and binding; 0 means 2
	Log         *slog.Logger
}

// Column is one column of a table, with its DuckDB type.
type Column struct{ Name, Type string }

// TableInfo describes one table of a generation. It is not to be modified.
type TableInfo struct {
	ID          string               `json:"id"`
	Source      string               `json:"source"`
	SourceTable string               `json:"source_table"`
	Description string               `json:"description,omitempty"`
	QueryMode   connectors.QueryMode `json:"query_mode"`
	Rows        int64                `json:"rows"`
	SizeBytes   int64                `json:"size_bytes"`

	// Files are the table's parquet files, absolute and inside the generation,
	// in the order in which the view reads them. Empty for a remote table.
	Files []string `json:"-"`
	// FileHashes are the SHA-256 (hex) of Files, one each.
	FileHashes []string `json:"-"`
	// ContentHash is the table's ETag: the one file's hash, or, of several, the
	// SHA-256 (hex) over their hex hashes in order. Empty for a remote table.
	ContentHash string `json:"-"`

	Columns     []Column  `json:"-"`
	ExtractedAt time.Time `json:"extracted_at"`

	// Stale says that these are the last good data and not those of the newest
	// extract; StaleReason says why, in a sentence; StaleSince is the first
	// publish that could do no better.
	Stale       bool      `json:"stale,omitempty"`
	StaleReason string    `json:"stale_reason,omitempty"`
	StaleSince  time.Time `json:"stale_since,omitzero"`

	// Remote is how a remote table's source is attached. It is nil for a local
	// table, and where the source declares several attachments, since _meta does
	// not say which one serves a table: see Generation.Remotes.
	Remote *connectors.RemoteAttach `json:"remote,omitempty"`

	parts []part
}

// Published is the outcome of a publish.
type Published struct {
	// Generation is the current one. It is not pinned: to read its files, Acquire.
	Generation *Generation
	// Unchanged says that nothing differed, so the generation before stays.
	Unchanged bool
	// Warnings are for people: published, but worth a look.
	Warnings []string
	// Failed holds, by table id, why a bound table is not fresh. The table is
	// either served stale or, when it was never published, absent.
	Failed map[string]error
}
