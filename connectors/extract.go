package connectors

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Extract is a committed extract: what its extract.duckdb says of it. It holds
// nothing open. A later commit of the same source replaces the folder as a
// whole, so whoever uses the files while sources are synced links them first.
type Extract struct {
	Dir    string // absolute
	Source string // the folder's name
	Tables []Meta // in the order of _meta
	Remote []RemoteAttach
	State  map[string]string // opaque fingerprint by table, empty for foreign extracts
}

// ReadExtract reads what the extract in dir says of itself. It changes nothing,
// replays no WAL and reaches nothing outside the file. Names, modes and the
// shape of the contract's tables are checked, so a returned Extract can be
// trusted with them; the data files are not looked at (see Files and Verify).
// The error's code is "extract_missing", "extract_open_elsewhere" or
// "extract_invalid".
func ReadExtract(ctx context.Context, dir string) (*Extract, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, ExtractFile)
	if f := checkFile(file); f != nil {
		return nil, f.asError(file)
	}
	db, f := openExtract(ctx, file)
	if f != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, f.asError(file)
	}
	ext, err := readContract(ctx, db, dir)
	return ext, errors.Join(err, db.Close())
}

// Meta returns the row of _meta for table, and whether there is one.
func (e *Extract) Meta(table string) (Meta, bool) {
	i := slices.IndexFunc(e.Tables, func(m Meta) bool { return m.Table == table })
	if i < 0 {
		return Meta{}, false
	}
	return e.Tables[i], true
}

// Files returns the absolute paths of a local table's parquet files, sorted.
// They are regular files: a symbolic link is refused, because its target lies
// outside what the extract's owner may hand over. The files' content is not
// looked at.
func (e *Extract) Files(table string) ([]string, error) {
	m, ok := e.Meta(table)
	if !ok {
		return nil, problem.New(problem.NotFound,
			fmt.Sprintf("The extract %s has no table %q in _meta.", e.Dir, table),
			"List its tables: agnes contract verify "+e.Dir)
	}
	if m.QueryMode == Remote {
		return nil, problem.New(problem.Unprocessable,
			fmt.Sprintf("The table %q of %s is remote and has no files.", table, e.Source),
			"Query it through its _remote_attach row.")
	}
	files, f := tableFiles(e.Dir, table)
	if f != nil {
		return nil, f.asError(filepath.Join(e.Dir, DataDir))
	}
	return files, nil
}

// tableFiles finds the parquet files of a table.
func tableFiles(dir, table string) ([]string, *fault) {
	data := filepath.Join(dir, DataDir)
	one := filepath.Join(data, table+".parquet")
	many := filepath.Join(data, table)
	if f := noSymlink(data); f != nil {
		return nil, f
	}
	oneInfo, oneErr := os.Lstat(one)
	manyInfo, manyErr := os.Lstat(many)
	missing := func(found string) *fault {
		return &fault{
			"data.exists", fmt.Sprintf("data/%s.parquet, or parquet files in data/%s/", table, table), found,
			fmt.Sprintf("Write it: COPY (SELECT …) TO '%s' (FORMAT parquet); or take the table out: DELETE FROM _meta WHERE table_name = %s;", one, duck.Literal(table)),
		}
	}
	switch {
	case oneErr == nil && manyErr == nil && manyInfo.IsDir():
		return nil, missing("both of them")
	case oneErr == nil:
		if f := noSymlink(one); f != nil {
			return nil, f
		}
		if !oneInfo.Mode().IsRegular() {
			return nil, missing("something at data/" + table + ".parquet that is no regular file")
		}
		return []string{one}, nil
	case !errors.Is(oneErr, fs.ErrNotExist):
		return nil, missing(pathErr(oneErr))
	case manyErr != nil || !manyInfo.IsDir():
		if manyErr == nil {
			if f := noSymlink(many); f != nil {
				return nil, f
			}
		}
		return nil, missing("neither")
	}
	entries, err := os.ReadDir(many)
	if err != nil {
		return nil, missing(pathErr(err))
	}
	var files []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") || !strings.HasSuffix(entry.Name(), ".parquet") {
			continue
		}
		path := filepath.Join(many, entry.Name())
		if f := noSymlink(path); f != nil {
			return nil, f
		}
		if !entry.Type().IsRegular() {
			return nil, missing("data/" + table + "/" + entry.Name() + ", which is no regular file")
		}
		files = append(files, path)
	}
	if len(files) == 0 {
		return nil, missing("data/" + table + "/ without a parquet file")
	}
	return files, nil
}

func noSymlink(path string) *fault {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return nil
	}
	target, _ := os.Readlink(path)
	return &fault{
		"data.no_symlinks", "regular files and folders", path + " is a symbolic link to " + target,
		fmt.Sprintf("Put the file itself in its place: cp --remove-destination '%s' '%s'", target, path),
	}
}

// readContract reads the contract's tables out of an open extract.duckdb and
// returns the first fault as an error.
func readContract(ctx context.Context, db *sql.DB, dir string) (*Extract, error) {
	c, err := loadContract(ctx, db, dir)
	if err != nil {
		return nil, err
	}
	if len(c.faults) > 0 {
		return nil, c.faults[0].asError(filepath.Join(dir, ExtractFile))
	}
	c.extract.State, err = readState(ctx, db)
	return c.extract, err
}

// readState reads the fingerprints. A foreign extract has none, or a table of
// its own by that name: both are no state.
func readState(ctx context.Context, db *sql.DB) (map[string]string, error) {
	kind, columns, err := describe(ctx, db, StateTable)
	if err != nil || kind != "BASE TABLE" || len(columns) != 2 || columns[0].Name != "table_name" || columns[1].Name != "state" {
		return nil, err
	}
	rows, err := db.QueryContext(ctx, "SELECT table_name::VARCHAR, state::VARCHAR FROM main."+StateTable+" WHERE table_name IS NOT NULL AND state IS NOT NULL")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	state := map[string]string{}
	for rows.Next() {
		var table, s string
		if err := rows.Scan(&table, &s); err != nil {
			return nil, err
		}
		state[table] = s
	}
	return state, rows.Err()
}
