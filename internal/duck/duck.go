// Package duck opens DuckDB databases and writes SQL text safely.
//
// It knows the driver and nothing of the product. Everything that is opened
// here has extension downloads switched off: an instance never fetches code.
package duck

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/duckdb/duckdb-go/v2"
)

// Memory is the path of a database that lives in memory only.
const Memory = ""

// Options say how a database is opened. The zero value is a read-write
// database with DuckDB's own defaults.
type Options struct {
	ReadOnly bool
	Threads  int               // 0: one per core
	Settings map[string]string // further DuckDB settings, applied at open
	Init     []string          // statements run on every new connection
}

// Open opens the database at path and proves that it can be used. The caller
// closes it. One process may hold a file open once: a second Open of the same
// file in this process returns the same underlying database while the first
// is open.
func Open(ctx context.Context, path string, opt Options) (*sql.DB, error) {
	settings := url.Values{
		"autoinstall_known_extensions": {"false"},
		"autoload_known_extensions":    {"false"},
	}
	if opt.ReadOnly {
		settings.Set("access_mode", "READ_ONLY")
	}
	if opt.Threads > 0 {
		settings.Set("threads", fmt.Sprint(opt.Threads))
	}
	for _, k := range slices.Sorted(maps.Keys(opt.Settings)) {
		settings.Set(k, opt.Settings[k])
	}
	if strings.Contains(path, "?") {
		return nil, fmt.Errorf("open DuckDB database: the path %q holds a question mark, which the driver reads as settings", path)
	}
	connector, err := duckdb.NewConnector(path+"?"+settings.Encode(), func(execer driver.ExecerContext) error {
		for _, stmt := range opt.Init {
			if _, err := execer.ExecContext(context.Background(), stmt, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Ident quotes a name as an SQL identifier.
func Ident(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Literal quotes text as an SQL string.
func Literal(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }

// List quotes texts as an SQL list of strings.
func List(texts []string) string {
	quoted := make([]string, len(texts))
	for i, t := range texts {
		quoted[i] = Literal(t)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
