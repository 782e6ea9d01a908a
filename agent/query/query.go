// Package query answers SQL that nobody has reviewed.
//
// A statement passes two walls, both inside a worker: a process of its own that
// holds no secret, has dropped what rights it could, and is killed when its time
// is up. The Gate reads DuckDB's own syntax tree and lets only one statement
// pass that reads granted tables through reviewed functions. Behind it, the
// worker's DuckDB knows only those tables, may open exactly their files, has
// external access off and its configuration locked; the process itself can
// read those files and write none (sandbox_linux.go). So a gap in one wall
// still shows no more than the caller may see, and costs one worker.
//
//	engine.go    who may run how much at once; warm workers by (generation, grants)
//	process.go   the server's end of a worker: spawn, speak, kill
//	protocol.go  what they say
//	worker.go    the worker's end: bind once, then one statement at a time
//	gate.go      the first wall; functions.txt is its reviewed list
//	remote.go    tables that stay in a database elsewhere: a worker for each statement
//	stream.go    a statement's rows, as they come, in each format
//	rows.go      DuckDB's vectors -> JSON and CSV; nested.go lists, structs and their kin; arrow.go Arrow
//
// A worker runs one statement at a time, and a statement that writes Parquet
// has a worker of its own, which ends with it. A published generation never
// changes, so a worker serves one (generation, grants) for life.
package query

import "time"

// Format is the encoding of an answer.
type Format string

// The formats. Numbers keep every digit, dates and times are ISO 8601.
const (
	JSON    Format = "json"    // {"columns":[…],"types":[…],"rows":[[…]]}: see Summary for the rest
	NDJSON  Format = "ndjson"  // one object a row
	CSV     Format = "csv"     // RFC 4180 with a header
	Arrow   Format = "arrow"   // Arrow IPC stream
	Parquet Format = "parquet" // one file, Zstandard; rows in no certain order without ORDER BY
)

// View is a table as a query sees it: a name over immutable Parquet files, or
// over a table of a database elsewhere.
type View struct {
	Name  string
	Files []string // absolute paths; none of a remote table

	Attachment string // of a remote table: what Request.Attach knows its database by
	Table      string // of a remote table: its name in that database
}

// Request is one statement with what it may see and use.
type Request struct {
	User       string                                       // queries of one user wait for each other before others wait for them
	Generation int64                                        // together with Views, identifies the data
	Views      []View                                       // the only tables that the statement can name
	Key        string                                       // ScopeKey of the two, for callers that keep it; computed when empty
	Attach     func(attachment string) (*Attachment, error) // called where a statement reads a remote table
	SQL        string
	Params     []any  // bound to ? and $1, never pasted: what encoding/json writes as text, number, boolean or null
	Format     Format // JSON when empty
	Limit      int64  // most rows; 0: all

	Timeout       time.Duration // of the whole: waiting, running and writing
	MaxBytes      int64         // of the answer; 0: no bound
	Concurrent    int           // queries of this user at once; 0: no bound of its own
	BigIntStrings bool          // JSON and NDJSON: integers beyond 2^53 as text
}

// Columns describe an answer before its first row.
type Columns struct {
	Names  []string
	Types  []string // DuckDB types
	Tables []string // that the statement reads
}

// Summary describes an answer after its last row.
type Summary struct {
	Columns
	Rows      int64
	Bytes     int64
	Truncated bool // the limit cut rows off
	Waited    time.Duration
	Elapsed   time.Duration // in all
}

// Result is a complete answer in memory, for callers that want values.
type Result struct {
	Columns   []string
	Types     []string
	Rows      [][]any // as encoding/json decodes them, numbers as json.Number
	Truncated bool
	Elapsed   time.Duration
}

// MaxSQL is the longest statement that is read, in bytes: parsing time grows
// with the square of some statements' length.
const MaxSQL = 64 << 10
