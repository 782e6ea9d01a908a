package connectors

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Check is one finding of Verify.
type Check struct {
	ID       string `json:"id"`
	OK       bool   `json:"ok"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Hint     string `json:"hint"`
}

// Report is what Verify found. A check that passed is listed once; one that
// failed is listed once for each fault; one that could not be made, because
// what it needs is missing, is not listed.
type Report struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// CheckIDs lists the ids of all checks in the order in which they are made.
func CheckIDs() []string {
	return []string{
		"extract.exists", "extract.no_wal", "extract.readable", "extract.storage_version", "extract.not_in_use",
		"meta.exists", "meta.columns", "meta.names", "meta.unique", "meta.query_mode",
		"remote.exists", "remote.columns", "remote.alias", "remote.extension", "remote.token_env", "remote.no_secret",
		"data.no_symlinks", "data.exists", "data.readable", "data.no_strays", "meta.rows",
	}
}

// Policy says what remote attachments may use.
type Policy struct {
	Extensions []string // DuckDB extensions
	TokenEnvs  []string // names of environment variables
}

// DefaultPolicy returns what an instance allows when its configuration
// (AGNES_REMOTE_ATTACH_EXTENSIONS, AGNES_REMOTE_ATTACH_TOKEN_ENVS) says nothing.
func DefaultPolicy() Policy {
	return Policy{
		Extensions: []string{"keboola", "bigquery", "postgres", "mysql", "sqlite", "motherduck"},
		TokenEnvs:  []string{"KEBOOLA_STORAGE_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "PGPASSWORD", "MYSQL_PWD", "MOTHERDUCK_TOKEN"},
	}
}

// Verify examines the extract at path, its folder or its extract.duckdb, under
// DefaultPolicy.
func Verify(ctx context.Context, path string) (*Report, error) {
	return DefaultPolicy().Verify(ctx, path)
}

// Verify makes every check that it can and reads every row of every local
// table. It changes nothing and locks nobody out: the database is examined as a
// copy. The error is not nil only when nothing could be looked at.
func (p Policy) Verify(ctx context.Context, path string) (*Report, error) {
	dir, err := extractDir(path)
	if err != nil {
		return nil, err
	}
	v := &verifier{ctx: ctx, policy: p, dir: dir, file: filepath.Join(dir, ExtractFile)}
	if err := v.run(); err != nil {
		return nil, err
	}
	return v.report(), nil
}

func extractDir(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(abs)
	switch {
	case err == nil && info.IsDir():
		return abs, nil
	case filepath.Base(abs) == ExtractFile:
		if parent, err := os.Stat(filepath.Dir(abs)); err == nil && parent.IsDir() {
			return filepath.Dir(abs), nil
		}
	case err == nil:
		return "", problem.New(problem.Invalid,
			fmt.Sprintf("Expected an extract's folder or its %s, found the file %s.", ExtractFile, abs),
			"Name the folder: agnes contract verify "+filepath.Dir(abs))
	}
	return "", problem.Wrap(err, problem.NotFound,
		fmt.Sprintf("Expected an extract's folder at %s, found nothing there.", abs),
		"Check the path: ls "+filepath.Dir(abs))
}

type verifier struct {
	ctx    context.Context //nolint:containedctx // of one call of Verify, which is all that a verifier lives for
	policy Policy
	dir    string
	file   string
	ran    []string // ids of the checks made, in order
	faults []fault
}

func (v *verifier) made(ids ...string) { v.ran = append(v.ran, ids...) }

func (v *verifier) fail(id, expected, found, hint string) {
	v.faults = append(v.faults, fault{id, expected, found, hint})
}

func (v *verifier) report() *Report {
	r := &Report{OK: len(v.faults) == 0, Checks: []Check{}}
	for _, id := range CheckIDs() {
		failed := false
		for _, f := range v.faults {
			if f.id == id {
				r.Checks = append(r.Checks, Check{ID: id, Expected: f.expected, Found: f.found, Hint: f.hint})
				failed = true
			}
		}
		if !failed && slices.Contains(v.ran, id) {
			r.Checks = append(r.Checks, Check{ID: id, OK: true, Expected: passed[id], Found: "as expected"})
		}
	}
	return r
}

// passed says in a few words what each check expects.
//
//nolint:gochecknoglobals // a constant table
var passed = map[string]string{
	"extract.exists":          "extract.duckdb in the folder",
	"extract.no_wal":          "no extract.duckdb.wal",
	"extract.readable":        "a DuckDB database file",
	"extract.storage_version": "a storage version that this DuckDB can read",
	"meta.exists":             "a table _meta",
	"meta.columns":            "the six columns of _meta, in order",
	"meta.names":              "valid table names",
	"meta.unique":             "one row a table",
	"meta.query_mode":         "'local' or 'remote'",
	"meta.rows":               "the row counts that the files hold",
	"remote.exists":           "_remote_attach where a table is remote",
	"remote.columns":          "the four columns of _remote_attach, in order",
	"remote.alias":            "valid aliases, each once",
	"remote.extension":        "allowed extensions",
	"remote.token_env":        "allowed names of environment variables",
	"remote.no_secret":        "no secret in the extract",
	"data.no_symlinks":        "no symbolic links",
	"data.exists":             "parquet files for every local table",
	"data.readable":           "files that can be read to the last row",
	"data.no_strays":          "no files that _meta does not name",
}

func (v *verifier) run() error {
	v.made("extract.exists", "data.no_symlinks")
	v.faults = append(v.faults, fileFaults(v.file)...)
	for _, f := range v.faults {
		if f.id == "extract.exists" || f.id == "data.no_symlinks" {
			return v.ctx.Err()
		}
	}
	v.made("extract.no_wal", "extract.readable")
	if slices.ContainsFunc(v.faults, func(f fault) bool { return f.id == "extract.readable" }) {
		return v.ctx.Err()
	}
	return v.openCopy(func(db *sql.DB) error {
		v.made("extract.storage_version")
		c, err := loadContract(v.ctx, db, v.dir)
		if err != nil {
			return err
		}
		v.faults = append(v.faults, c.faults...)
		v.made("meta.exists")
		if c.hasMeta {
			v.made("meta.columns", "meta.names", "meta.unique", "meta.query_mode", "remote.exists", "remote.columns", "remote.alias")
		}
		if c.hasRemote {
			v.made("remote.extension", "remote.token_env", "remote.no_secret")
			for _, r := range c.extract.Remote {
				v.remote(r)
			}
		}
		if !c.hasMeta {
			return nil
		}
		return v.data(c.extract)
	})
}

// copyLimit is the size up to which extract.duckdb is examined as a copy. A
// larger one, which holds more than the contract asks for, is opened read-only
// under another name, where no WAL lies.
const copyLimit = 256 << 20

func (v *verifier) openCopy(use func(*sql.DB) error) error {
	tmp, err := os.MkdirTemp("", "agnes-verify-")
	if err != nil {
		return WriteError(err, "make a temporary folder")
	}
	defer os.RemoveAll(tmp)
	twin := filepath.Join(tmp, ExtractFile)
	if err := copyOrLink(v.file, twin); err != nil {
		return WriteError(err, "copy "+v.file+" for its examination")
	}
	db, f := openExtract(v.ctx, twin)
	if f != nil {
		f.hint = strings.ReplaceAll(f.hint, twin, v.file)
		f.found = strings.ReplaceAll(f.found, twin, v.file)
		v.faults = append(v.faults, *f)
		return v.ctx.Err()
	}
	return errors.Join(use(db), db.Close())
}

func copyOrLink(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() > copyLimit {
		return os.Symlink(from, to)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

var (
	envName    = regexp.MustCompile(`^[A-Z_][A-Z0-9_]{0,127}$`)
	urlSecret  = regexp.MustCompile(`(?i)(password|passwd|pwd|token|secret|api_?key|access_?key)\s*=\s*[^\s&;]+`)
	urlUserPwd = regexp.MustCompile(`://[^/\s:@]*:[^/\s@]+@`)
)

func (v *verifier) remote(r RemoteAttach) {
	where := " WHERE alias = " + duck.Literal(r.Alias) + ";"
	if !slices.ContainsFunc(v.policy.Extensions, func(e string) bool { return strings.EqualFold(e, r.Extension) }) {
		v.fail("remote.extension", "one of "+strings.Join(v.policy.Extensions, ", "), fmt.Sprintf("%.40q for %s", r.Extension, r.Alias),
			"UPDATE _remote_attach SET extension = '"+slices.Concat(v.policy.Extensions, []string{"postgres"})[0]+"'"+where+" or allow it on the instance: AGNES_REMOTE_ATTACH_EXTENSIONS")
	}
	switch {
	case r.TokenEnv == "" || slices.Contains(v.policy.TokenEnvs, r.TokenEnv):
	case !envName.MatchString(r.TokenEnv):
		// The text may be the token itself, so it is not shown.
		v.fail("remote.no_secret", "the name of an environment variable in token_env, never the token", fmt.Sprintf("%d characters for %s that are no variable's name", len(r.TokenEnv), r.Alias),
			"UPDATE _remote_attach SET token_env = 'PGPASSWORD'"+where+" and put the token into that variable. If it was a token, revoke it: it has been written to disk.")
	case looksRandom(r.TokenEnv):
		v.fail("remote.no_secret", "the name of an environment variable in token_env, never the token", fmt.Sprintf("%d characters for %s that look like a token", len(r.TokenEnv), r.Alias),
			"UPDATE _remote_attach SET token_env = 'PGPASSWORD'"+where+" and put the token into that variable. If it was a token, revoke it: it has been written to disk.")
	default:
		v.fail("remote.token_env", "one of "+strings.Join(v.policy.TokenEnvs, ", ")+", or nothing", r.TokenEnv+" for "+r.Alias,
			"UPDATE _remote_attach SET token_env = 'PGPASSWORD'"+where+" or allow it on the instance: AGNES_REMOTE_ATTACH_TOKEN_ENVS")
	}
	if urlUserPwd.MatchString(r.URL) || urlSecret.MatchString(r.URL) {
		v.fail("remote.no_secret", "a url without a password or token", "one with it for "+r.Alias,
			"UPDATE _remote_attach SET url = 'host=… dbname=…', token_env = 'PGPASSWORD'"+where+" and change the password: it has been written to disk.")
	}
}

// looksRandom tells an all-capitals token (an AWS key id, say) from a variable's
// name: names are words with underscores and few digits.
func looksRandom(name string) bool {
	digits := strings.Count(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '0'
		}
		return r
	}, name), "0")
	return len(name) >= 16 && !strings.Contains(name, "_") && digits >= 2
}

// data checks the files: those that _meta names, and that there are no others.
func (v *verifier) data(e *Extract) error {
	v.made("data.exists", "data.readable", "data.no_strays", "meta.rows")
	db, err := duck.Open(v.ctx, duck.Memory, duck.Options{Settings: map[string]string{"memory_limit": "1GB"}})
	if err != nil {
		return err
	}
	defer db.Close()
	known := map[string]bool{}
	for _, m := range e.Tables {
		if m.QueryMode != Local {
			continue
		}
		known[m.Table+".parquet"], known[m.Table] = true, true
		files, f := tableFiles(v.dir, m.Table)
		if f != nil {
			v.faults = append(v.faults, *f)
			continue
		}
		if err := v.table(db, m, files); err != nil {
			return err
		}
	}
	return v.strays(known)
}

// table reads every value of a table's files and compares the count.
func (v *verifier) table(db *sql.DB, m Meta, files []string) error {
	var total int64
	for _, file := range files {
		rows, err := scanParquet(v.ctx, db, file)
		if v.ctx.Err() != nil {
			return v.ctx.Err()
		}
		if err != nil {
			v.fail("data.readable", "a parquet file that can be read to its last row", relative(v.dir, file)+": "+strings.ReplaceAll(firstLine(err.Error()), v.dir+"/", ""),
				fmt.Sprintf("Write it again under a temporary name and rename it: COPY (SELECT …) TO '%s.tmp' (FORMAT parquet); mv '%s.tmp' '%s'", file, file, file))
			return nil
		}
		total += rows
	}
	if m.Rows != total {
		found := fmt.Sprintf("%d in _meta for %s", m.Rows, m.Table)
		if m.Rows < 0 {
			found = "no count in _meta for " + m.Table
		}
		v.fail("meta.rows", fmt.Sprintf("%d rows, as the files of %s hold", total, m.Table), found,
			fmt.Sprintf("UPDATE _meta SET rows = %d WHERE table_name = %s;", total, duck.Literal(m.Table)))
	}
	return nil
}

// scanParquet returns a file's rows after it has read all of its values; the
// footer alone says nothing of a damaged page.
func scanParquet(ctx context.Context, db *sql.DB, file string) (int64, error) {
	source := "read_parquet(" + duck.List([]string{globEscape(file)}) + ", hive_partitioning = false)"
	var footer, read int64
	if err := db.QueryRowContext(ctx, "SELECT num_rows FROM parquet_file_metadata("+duck.List([]string{globEscape(file)})+")").Scan(&footer); err != nil {
		return 0, err
	}
	var ignored any
	if err := db.QueryRowContext(ctx, "SELECT count(*), bit_xor(hash(t)) FROM "+source+" t").Scan(&read, &ignored); err != nil {
		return 0, err
	}
	if read != footer {
		return 0, fmt.Errorf("the footer names %d rows, the pages hold %d", footer, read)
	}
	return read, nil
}

// globEscape keeps DuckDB from reading a path as a pattern.
func globEscape(path string) string {
	return strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]").Replace(path)
}

func relative(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil {
		return rel
	}
	return path
}

// strays looks for files that nobody will ever read, and for links.
func (v *verifier) strays(known map[string]bool) error {
	data := filepath.Join(v.dir, DataDir)
	if f := noSymlink(data); f != nil {
		if !slices.Contains(v.faults, *f) {
			v.faults = append(v.faults, *f)
		}
		return nil
	}
	return filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				v.fail("data.readable", "a folder that can be listed", relative(v.dir, path)+": "+pathErr(err), "chmod -R u+rX '"+data+"'")
			}
			return nil
		}
		rel, _ := filepath.Rel(data, path)
		first, rest, nested := strings.Cut(rel, string(filepath.Separator))
		hidden := strings.HasPrefix(d.Name(), ".")
		switch {
		case rel == ".":
		case hidden && d.IsDir():
			return fs.SkipDir
		case hidden:
		case d.Type()&fs.ModeSymlink != 0:
			f := noSymlink(path)
			if f != nil && !slices.Contains(v.faults, *f) {
				v.faults = append(v.faults, *f)
			}
		case !nested && known[first] && d.IsDir() != strings.HasSuffix(first, ".parquet"):
		case nested && known[first] && !strings.Contains(rest, string(filepath.Separator)) && strings.HasSuffix(rest, ".parquet") && !d.IsDir():
		default:
			v.fail("data.no_strays", "only files that _meta names", relative(v.dir, path),
				fmt.Sprintf("Take it away: rm -r '%s'; or declare it: INSERT INTO _meta VALUES ('name', '', (SELECT count(*) FROM '%s'), 0, now()::TIMESTAMP, 'local');", path, path))
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
}
