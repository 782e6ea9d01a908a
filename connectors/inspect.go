package connectors

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// fault is one way in which an extract breaks the contract.
type fault struct{ id, expected, found, hint string }

func (f *fault) asError(where string) error {
	code := "extract_invalid"
	switch f.id {
	case "extract.exists":
		code = "extract_missing"
	case "extract.not_in_use":
		code = "extract_open_elsewhere"
	}
	return problem.New(problem.Unprocessable,
		fmt.Sprintf("%s breaks the extract contract (%s): expected %s, found %s.", where, f.id, f.expected, f.found),
		f.hint).WithCode(code)
}

// pathErr says what the operating system said, without the path that the
// message around it names already.
func pathErr(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// checkFile looks at extract.duckdb from outside and returns the first fault.
func checkFile(file string) *fault {
	faults := fileFaults(file)
	if len(faults) == 0 {
		return nil
	}
	return &faults[0]
}

// fileFaults looks at extract.duckdb without DuckDB: a stray WAL must be seen
// before anything opens the file and replays it.
func fileFaults(file string) []fault {
	info, err := os.Lstat(file)
	if err != nil {
		return []fault{{
			"extract.exists", "a DuckDB database at " + file, pathErr(err),
			fmt.Sprintf("Make it: duckdb '%s' \"%s\"", file, strings.ReplaceAll(MetaDDL(), "\n", " ")),
		}}
	}
	if f := noSymlink(file); f != nil {
		return []fault{*f}
	}
	if !info.Mode().IsRegular() {
		return []fault{{"extract.exists", "a DuckDB database at " + file, "something that is no regular file", "Move it away and let the connector write a database there."}}
	}
	var faults []fault
	if wal, err := os.Lstat(file + ".wal"); err == nil {
		faults = append(faults, fault{
			"extract.no_wal", "no " + ExtractFile + ".wal: a finished extract is checkpointed and closed",
			fmt.Sprintf("%s.wal of %d bytes", ExtractFile, wal.Size()),
			fmt.Sprintf("End the connector with CHECKPOINT; and close the connection. If the WAL belongs to this file: duckdb '%s' 'CHECKPOINT;'. If it is left over from another one: rm '%s.wal'", file, file),
		})
	}
	if f := headerFault(file); f != nil {
		faults = append(faults, *f)
	}
	return faults
}

// DuckDB's main header: 8 bytes checksum, "DUCK", then the storage version
// (https://duckdb.org/docs/stable/internals/storage).
const duckMagic = "DUCK"

func headerFault(file string) *fault {
	bad := func(found string) *fault {
		return &fault{
			"extract.readable", "a DuckDB database file", found,
			"Delete the file and run the connector again; it must write the file with DuckDB: ATTACH '" + file + "' AS e;",
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return bad(pathErr(err))
	}
	defer f.Close()
	var head [20]byte
	if n, err := f.Read(head[:]); err != nil || n < len(head) {
		return bad(fmt.Sprintf("a file of %d bytes", n))
	}
	if string(head[8:12]) != duckMagic {
		return bad("a file that does not begin like one")
	}
	return nil
}

func storageVersion(file string) uint64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	var v [8]byte
	if _, err := f.ReadAt(v[:], 12); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(v[:])
}

// openExtract opens extract.duckdb read-only and shut off from everything
// outside it, so that nothing in a foreign file can read the instance's files.
func openExtract(ctx context.Context, file string) (*sql.DB, *fault) {
	db, err := duck.Open(ctx, file, duck.Options{
		ReadOnly: true,
		Threads:  1,
		Settings: map[string]string{"enable_external_access": "false", "memory_limit": "512MB"},
	})
	if err == nil {
		return db, nil
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "version number"):
		return nil, &fault{
			"extract.storage_version", "a storage version that this instance's DuckDB can read",
			fmt.Sprintf("storage version %d", storageVersion(file)),
			"Write it for older readers: ATTACH '" + file + "' AS e (STORAGE_VERSION 'v1.0.0'); or upgrade the instance.",
		}
	case strings.Contains(text, "Could not set lock"):
		return nil, &fault{
			"extract.not_in_use", "a file that no process holds open for writing", "a lock on it",
			"Close the connection that writes it (CHECKPOINT; then exit), then try again.",
		}
	default:
		return nil, &fault{
			"extract.readable", "a DuckDB database file", "what DuckDB answers: " + firstLine(text),
			"Delete the file and run the connector again; copies of a DuckDB file must be made while nobody writes it.",
		}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// describe returns what a name in main is ("BASE TABLE", "VIEW", "" for
// nothing) and its columns in order.
func describe(ctx context.Context, db *sql.DB, name string) (kind string, columns []Column, err error) {
	rows, err := db.QueryContext(ctx, `
		SELECT t.kind, c.column_name, c.data_type
		FROM (SELECT table_oid AS oid, table_name AS name, 'BASE TABLE' AS kind FROM duckdb_tables() WHERE schema_name = 'main' AND database_name = current_database() AND NOT temporary
		      UNION ALL SELECT view_oid, view_name, 'VIEW' FROM duckdb_views() WHERE schema_name = 'main' AND database_name = current_database() AND NOT temporary) t
		LEFT JOIN duckdb_columns() c ON c.table_oid = t.oid AND c.table_name = t.name AND c.database_name = current_database() AND c.schema_name = 'main'
		WHERE lower(t.name) = ? ORDER BY c.column_index`, name)
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var column, typ sql.NullString
		if err := rows.Scan(&kind, &column, &typ); err != nil {
			return "", nil, err
		}
		if column.Valid {
			columns = append(columns, Column{Name: column.String, Type: typ.String})
		}
	}
	return kind, columns, rows.Err()
}

// shape checks that a contract table has exactly its columns and returns the
// fault, if any.
func shape(check, table, kind string, have, want []Column, ddl string) *fault {
	if kind != "BASE TABLE" {
		found := "no such table"
		if kind == "VIEW" {
			found = "a view"
		}
		return &fault{check + ".exists", "a table " + table, found, ddl}
	}
	same := len(have) == len(want)
	for i := 0; same && i < len(want); i++ {
		same = strings.EqualFold(have[i].Name, want[i].Name) && have[i].Type == want[i].Type
	}
	if same {
		return nil
	}
	byName := map[string]bool{}
	for _, c := range have {
		byName[strings.ToLower(c.Name)] = true
	}
	selected := make([]string, len(want))
	for i, c := range want {
		selected[i] = "NULL::" + c.Type + " AS " + c.Name
		if byName[c.Name] {
			selected[i] = c.Name + "::" + c.Type + " AS " + c.Name
		}
	}
	old := table + "_old"
	return &fault{
		check + ".columns", columnList(want), columnList(have),
		fmt.Sprintf("ALTER TABLE %s RENAME TO %s; %s INSERT INTO %s SELECT %s FROM %s; DROP TABLE %s;",
			table, old, strings.ReplaceAll(ddl, "\n", " "), table, strings.Join(selected, ", "), old, old),
	}
}

func columnList(columns []Column) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = c.Name + " " + c.Type
	}
	if len(parts) == 0 {
		return "no columns"
	}
	return strings.Join(parts, ", ")
}

// contract is what extract.duckdb says, with the faults met on the way. The
// extract holds the rows that could be understood.
type contract struct {
	extract   *Extract
	faults    []fault
	hasMeta   bool // _meta could be read
	hasRemote bool // _remote_attach could be read
}

func (c *contract) add(id, expected, found, hint string) {
	c.faults = append(c.faults, fault{id, expected, found, hint})
}

func loadContract(ctx context.Context, db *sql.DB, dir string) (*contract, error) {
	c := &contract{extract: &Extract{Dir: dir, Source: filepath.Base(dir)}}
	if err := c.loadMeta(ctx, db); err != nil {
		return nil, err
	}
	return c, c.loadRemote(ctx, db)
}

func (c *contract) loadMeta(ctx context.Context, db *sql.DB) error {
	kind, columns, err := describe(ctx, db, MetaTable)
	if err != nil {
		return err
	}
	if f := shape("meta", MetaTable, kind, columns, MetaColumns(), MetaDDL()); f != nil {
		c.faults = append(c.faults, *f)
		return nil
	}
	rows, err := db.QueryContext(ctx, "SELECT table_name, description, rows, size_bytes, extracted_at, query_mode FROM main."+MetaTable)
	if err != nil {
		c.add("extract.readable", "rows of "+MetaTable, "what DuckDB answers: "+firstLine(err.Error()), "Delete the file and run the connector again.")
		return nil
	}
	defer rows.Close()
	seen := map[string]string{}
	for rows.Next() {
		var name, description, mode sql.NullString
		var count, size sql.NullInt64
		var at sql.Null[time.Time]
		if err := rows.Scan(&name, &description, &count, &size, &at, &mode); err != nil {
			return err
		}
		if !name.Valid {
			c.add("meta.names", "a name in every row's table_name", "NULL", "DELETE FROM _meta WHERE table_name IS NULL;")
			continue
		}
		if ValidName(name.String) != nil || ReservedName(name.String) {
			shown := fmt.Sprintf("%.80q", name.String)
			c.add("meta.names", "table names that match ^[a-zA-Z_][a-zA-Z0-9_]{0,63}$ and are not the contract's own", shown,
				"UPDATE _meta SET table_name = 'a_valid_name' WHERE table_name = "+duck.Literal(name.String)+"; and name its file data/a_valid_name.parquet")
			continue
		}
		if before, dup := seen[strings.ToLower(name.String)]; dup {
			c.add("meta.unique", "one row a table; DuckDB's names do not tell upper from lower case", fmt.Sprintf("%q and %q", before, name.String),
				"DELETE FROM _meta WHERE rowid NOT IN (SELECT max(rowid) FROM _meta GROUP BY lower(table_name));")
			continue
		}
		seen[strings.ToLower(name.String)] = name.String
		if mode.String != string(Local) && mode.String != string(Remote) {
			found := fmt.Sprintf("%.40q for %s", mode.String, name.String)
			if !mode.Valid {
				found = "NULL for " + name.String
			}
			c.add("meta.query_mode", "'local' or 'remote'", found,
				"UPDATE _meta SET query_mode = 'local' WHERE table_name = "+duck.Literal(name.String)+";")
			continue
		}
		m := Meta{Table: name.String, Description: description.String, Rows: -1, SizeBytes: -1, QueryMode: QueryMode(mode.String)}
		if count.Valid {
			m.Rows = count.Int64
		}
		if size.Valid {
			m.SizeBytes = size.Int64
		}
		if at.Valid {
			m.ExtractedAt = at.V.UTC()
		}
		c.extract.Tables = append(c.extract.Tables, m)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	c.hasMeta = true
	return nil
}

func (c *contract) loadRemote(ctx context.Context, db *sql.DB) error {
	kind, columns, err := describe(ctx, db, RemoteAttachTable)
	if err != nil {
		return err
	}
	needed := ""
	for _, m := range c.extract.Tables {
		if m.QueryMode == Remote {
			needed = m.Table
			break
		}
	}
	if kind == "" && needed == "" {
		return nil
	}
	if f := shape("remote", RemoteAttachTable, kind, columns, RemoteAttachColumns(), RemoteAttachDDL()); f != nil {
		if needed != "" {
			f.expected += ", since " + needed + " is remote"
		}
		c.faults = append(c.faults, *f)
		return nil
	}
	rows, err := db.QueryContext(ctx, "SELECT coalesce(alias, ''), coalesce(extension, ''), coalesce(url, ''), coalesce(token_env, '') FROM main."+RemoteAttachTable)
	if err != nil {
		c.add("extract.readable", "rows of "+RemoteAttachTable, "what DuckDB answers: "+firstLine(err.Error()), "Delete the file and run the connector again.")
		return nil
	}
	defer rows.Close()
	seen := map[string]bool{}
	for rows.Next() {
		var r RemoteAttach
		if err := rows.Scan(&r.Alias, &r.Extension, &r.URL, &r.TokenEnv); err != nil {
			return err
		}
		if f := aliasFault(r.Alias, seen); f != nil {
			c.faults = append(c.faults, *f)
			continue
		}
		seen[strings.ToLower(r.Alias)] = true
		c.extract.Remote = append(c.extract.Remote, r)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	c.hasRemote = true
	if needed != "" && len(seen) == 0 {
		c.add("remote.exists", "a row in "+RemoteAttachTable+", since "+needed+" is remote", "none that can be used",
			"INSERT INTO _remote_attach VALUES ('alias', 'postgres', 'host=db.example.com dbname=shop', 'PGPASSWORD');")
	}
	return nil
}

func aliasFault(alias string, seen map[string]bool) *fault {
	lower := strings.ToLower(alias)
	hint := "UPDATE _remote_attach SET alias = 'a_valid_name' WHERE alias = " + duck.Literal(alias) + ";"
	expected := "aliases that match ^[a-zA-Z_][a-zA-Z0-9_]{0,63}$, each once, none of DuckDB's own"
	switch {
	case ValidName(alias) != nil:
		return &fault{"remote.alias", expected, fmt.Sprintf("%.80q", alias), hint}
	case lower == "memory" || lower == "system" || lower == "temp" || lower == "main":
		return &fault{"remote.alias", expected, alias + ", which DuckDB uses itself", hint}
	case seen[lower]:
		return &fault{"remote.alias", expected, alias + " twice", "DELETE FROM _remote_attach WHERE rowid NOT IN (SELECT max(rowid) FROM _remote_attach GROUP BY lower(alias));"}
	}
	return nil
}
