package connectors_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// foreign writes an extract the way another program would, with DuckDB alone.
func foreign(t *testing.T, statements ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, filepath.Join(dir, connectors.ExtractFile), dir, statements...)
	return dir
}

// run executes statements on a database file; $DIR in them is dir.
func run(t *testing.T, file, dir string, statements ...string) {
	t.Helper()
	db, err := duck.Open(t.Context(), file, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), strings.ReplaceAll(s, "$DIR", dir)); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

const (
	goodMeta    = "INSERT INTO _meta VALUES ('orders', 'All orders', 1000, 1, now()::TIMESTAMP, 'local')"
	goodOrders  = "COPY (SELECT i AS id, 'order ' || i AS name FROM range(1000) t(i)) TO '$DIR/data/orders.parquet' (FORMAT parquet)"
	remoteMeta  = "INSERT INTO _meta VALUES ('far', '', NULL, NULL, now()::TIMESTAMP, 'remote')"
	goodAttach  = "INSERT INTO _remote_attach VALUES ('pg', 'postgres', 'host=db dbname=shop', 'PGPASSWORD')"
	secretToken = "xoxb-1234567890-Secret"
)

// clobber rewrites a file after it was made.
func clobber(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// withVersion sets the storage version in a DuckDB header and mends its
// checksum, which covers the first block after the checksum itself.
func withVersion(version uint64) func([]byte) []byte {
	return func(b []byte) []byte {
		binary.LittleEndian.PutUint64(b[12:], version)
		sum := uint64(5381)
		for i := 8; i < 4096; i += 8 {
			sum ^= binary.LittleEndian.Uint64(b[i:]) * 0xbf58476d1ce4e5b9
		}
		binary.LittleEndian.PutUint64(b, sum)
		return b
	}
}

type fixture struct {
	name  string
	make  func(t *testing.T) string
	fails []string // ids of the checks that must fail, and no others
	says  []string // texts that found and hint must hold
	mend  string   // SQL for extract.duckdb after which all is well; "hint" takes the hint's
}

func sqlFixture(name string, fails, says []string, mend string, statements ...string) fixture {
	return fixture{name, func(t *testing.T) string { return foreign(t, statements...) }, fails, says, mend}
}

func ids(s ...string) []string { return s }

func fixtures() []fixture {
	meta, attach := connectors.MetaDDL(), connectors.RemoteAttachDDL()
	file := func(change func(t *testing.T, dir string)) func(*testing.T) string {
		return func(t *testing.T) string {
			dir := foreign(t, meta, goodMeta, goodOrders)
			change(t, dir)
			return dir
		}
	}
	duckFile := func(change func([]byte) []byte) func(*testing.T) string {
		return file(func(t *testing.T, dir string) { clobber(t, filepath.Join(dir, connectors.ExtractFile), change) })
	}
	parquet := func(change func([]byte) []byte) func(*testing.T) string {
		return file(func(t *testing.T, dir string) { clobber(t, filepath.Join(dir, "data/orders.parquet"), change) })
	}
	return []fixture{
		sqlFixture("a whole extract", nil, nil, "", meta, goodMeta, goodOrders),
		sqlFixture("a whole extract with remote tables", nil, nil, "", meta, goodMeta, goodOrders, remoteMeta, attach, goodAttach),
		sqlFixture("an attachment that needs no token", nil, nil, "", meta, attach, remoteMeta, "INSERT INTO _remote_attach VALUES ('lite', 'sqlite', '/data/x.db', NULL)"),
		sqlFixture("no tables at all", nil, nil, "", meta),
		{"a table in parts", func(t *testing.T) string {
			dir := foreign(t, meta, "INSERT INTO _meta VALUES ('orders', '', 5, 1, NULL, 'local')")
			if err := os.Mkdir(filepath.Join(dir, "data/orders"), 0o755); err != nil {
				t.Fatal(err)
			}
			run(t, duck.Memory, dir, "COPY (FROM range(2)) TO '$DIR/data/orders/a.parquet'", "COPY (FROM range(3)) TO '$DIR/data/orders/b.parquet'")
			return dir
		}, nil, nil, ""},

		{"no extract.duckdb", func(t *testing.T) string { return t.TempDir() }, ids("extract.exists"), []string{"no such file", "CREATE TABLE _meta"}, ""},
		{"an empty file", duckFile(func([]byte) []byte { return nil }), ids("extract.readable"), []string{"0 bytes"}, ""},
		{"no DuckDB file", duckFile(func([]byte) []byte { return []byte(strings.Repeat("hello ", 3000)) }), ids("extract.readable"), nil, ""},
		{"a truncated DuckDB file", duckFile(func(b []byte) []byte { return b[:9000] }), ids("extract.readable"), nil, ""},
		{"a broken checksum in the header", duckFile(func(b []byte) []byte { b[100] ^= 0xff; return b }), ids("extract.readable"), nil, ""},
		{"a storage version of the future", duckFile(withVersion(255)), ids("extract.storage_version"), []string{"storage version 255", "STORAGE_VERSION 'v1.0.0'"}, ""},
		{"a WAL beside the file", file(func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "extract.duckdb.wal"), []byte("stray"), 0o644); err != nil {
				t.Fatal(err)
			}
		}), ids("extract.no_wal"), []string{"5 bytes", "CHECKPOINT"}, ""},
		{"extract.duckdb is a link", file(func(t *testing.T, dir string) {
			link(t, filepath.Join(dir, connectors.ExtractFile), filepath.Join(t.TempDir(), "elsewhere.duckdb"))
		}), ids("data.no_symlinks"), []string{"symbolic link"}, ""},

		sqlFixture("no _meta", ids("meta.exists"), []string{"no such table", "CREATE TABLE _meta"}, "hint", "CREATE TABLE orders (id INT)"),
		sqlFixture("_meta is a view, which could read any file", ids("meta.exists"), []string{"a view"}, "", "CREATE VIEW _meta AS SELECT 'orders' AS table_name"),
		sqlFixture("a column of _meta is missing", ids("meta.columns"), []string{"table_name VARCHAR, rows BIGINT", "ALTER TABLE _meta RENAME"}, "", "CREATE TABLE _meta (table_name VARCHAR, rows BIGINT)"),
		sqlFixture("the columns of _meta are out of order", ids("meta.columns"), nil, "hint",
			"CREATE TABLE _meta (description VARCHAR, table_name VARCHAR, rows BIGINT, size_bytes BIGINT, extracted_at TIMESTAMP, query_mode VARCHAR)",
			"INSERT INTO _meta VALUES ('', 'orders', 1000, 1, NULL, 'local')", goodOrders),
		sqlFixture("a column of _meta has another type", ids("meta.columns"), []string{"rows INTEGER"}, "hint",
			"CREATE TABLE _meta (table_name VARCHAR, description VARCHAR, rows INTEGER, size_bytes BIGINT, extracted_at TIMESTAMP, query_mode VARCHAR)",
			"INSERT INTO _meta VALUES ('orders', '', 1000, 1, NULL, 'local')", goodOrders),
		sqlFixture("a column too many in _meta", ids("meta.columns"), nil, "hint",
			"CREATE TABLE _meta (table_name VARCHAR, description VARCHAR, rows BIGINT, size_bytes BIGINT, extracted_at TIMESTAMP, query_mode VARCHAR, owner VARCHAR)"),
		sqlFixture("a name with a path in it", ids("meta.names"), []string{"../orders"}, "", meta, "INSERT INTO _meta VALUES ('../orders', '', 1, 1, NULL, 'local')"),
		sqlFixture("a name that the contract uses itself", ids("meta.names"), []string{"_META"}, "", meta, "INSERT INTO _meta VALUES ('_META', '', 1, 1, NULL, 'local')"),
		sqlFixture("a row without a name", ids("meta.names"), []string{"NULL"}, "hint",
			"CREATE TABLE _meta (table_name VARCHAR, description VARCHAR, rows BIGINT, size_bytes BIGINT, extracted_at TIMESTAMP, query_mode VARCHAR)", "INSERT INTO _meta VALUES (NULL, '', 1, 1, NULL, 'local')"),
		sqlFixture("one name twice, but for its case", ids("meta.unique"), []string{"Orders"}, "",
			meta, goodMeta, goodOrders, "INSERT INTO _meta VALUES ('Orders', '', 1000, 1, NULL, 'local')"),
		sqlFixture("one name twice", ids("meta.unique"), nil, "hint", meta, goodMeta, goodMeta, goodOrders),
		sqlFixture("a query mode that does not exist", ids("meta.query_mode", "data.no_strays"), []string{"cloud"}, "hint",
			meta, "INSERT INTO _meta VALUES ('orders', '', 1000, 1, NULL, 'cloud')", goodOrders),
		sqlFixture("no query mode", ids("meta.query_mode", "data.no_strays"), []string{"NULL for orders"}, "hint",
			meta, "INSERT INTO _meta VALUES ('orders', '', 1000, 1, NULL, NULL)", goodOrders),
		sqlFixture("a wrong row count", ids("meta.rows"), []string{"999", "SET rows = 1000"}, "hint",
			meta, "INSERT INTO _meta VALUES ('orders', '', 999, 1, NULL, 'local')", goodOrders),
		sqlFixture("no row count", ids("meta.rows"), []string{"no count"}, "hint",
			meta, "INSERT INTO _meta VALUES ('orders', '', NULL, 1, NULL, 'local')", goodOrders),

		sqlFixture("no parquet file", ids("data.exists"), []string{"neither", "DELETE FROM _meta"}, "", meta, goodMeta),
		{"a file and a folder for one table", file(func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "data/orders"), 0o755); err != nil {
				t.Fatal(err)
			}
		}), ids("data.exists"), []string{"both"}, ""},
		{"a folder without parts", func(t *testing.T) string {
			dir := foreign(t, meta, goodMeta)
			if err := os.Mkdir(filepath.Join(dir, "data/orders"), 0o755); err != nil {
				t.Fatal(err)
			}
			return dir
		}, ids("data.exists"), []string{"without a parquet file"}, ""},
		{"an empty parquet file", parquet(func([]byte) []byte { return nil }), ids("data.readable"), nil, ""},
		{"a truncated parquet file", parquet(func(b []byte) []byte { return b[:len(b)/2] }), ids("data.readable"), []string{"data/orders.parquet"}, ""},
		{"a parquet file with a damaged page and a whole footer", parquet(func(b []byte) []byte {
			for i := 4; i < len(b)/2; i++ {
				b[i] = 0xff
			}
			return b
		}), ids("data.readable"), nil, ""},
		{"a file that _meta does not name", file(func(t *testing.T, dir string) {
			clobberNew(t, filepath.Join(dir, "data/orders.parquet.tmp"))
			clobberNew(t, filepath.Join(dir, "data/.gitkeep"))
		}), ids("data.no_strays"), []string{"orders.parquet.tmp"}, ""},
		{"a parquet file that is a link out of the folder", file(func(t *testing.T, dir string) {
			link(t, filepath.Join(dir, "data/orders.parquet"), filepath.Join(t.TempDir(), "orders.parquet"))
		}), ids("data.no_symlinks"), []string{"cp --remove-destination"}, ""},
		{"a data folder that is a link", file(func(t *testing.T, dir string) {
			link(t, filepath.Join(dir, "data"), filepath.Join(t.TempDir(), "data"))
		}), ids("data.no_symlinks"), nil, ""},

		sqlFixture("remote tables without _remote_attach", ids("remote.exists"), []string{"far", "CREATE TABLE _remote_attach"}, "", meta, remoteMeta),
		sqlFixture("remote tables with an empty _remote_attach", ids("remote.exists"), []string{"INSERT INTO _remote_attach"}, "", meta, remoteMeta, attach),
		sqlFixture("the columns of _remote_attach are out of order", ids("remote.columns"), nil, "hint",
			meta, remoteMeta, "CREATE TABLE _remote_attach (extension VARCHAR, alias VARCHAR, url VARCHAR, token_env VARCHAR)", "INSERT INTO _remote_attach VALUES ('postgres', 'pg', 'host=x', '')"),
		sqlFixture("an alias with a quote", ids("remote.alias", "remote.exists"), nil, "hint",
			meta, remoteMeta, attach, `INSERT INTO _remote_attach VALUES ('p"g', 'postgres', '', '')`),
		sqlFixture("an alias that DuckDB uses", ids("remote.alias", "remote.exists"), []string{"system"}, "hint",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('system', 'postgres', '', '')"),
		sqlFixture("an alias twice", ids("remote.alias"), []string{"twice"}, "hint", meta, remoteMeta, attach, goodAttach, goodAttach),
		sqlFixture("an extension that is not allowed", ids("remote.extension"), []string{"shellfs", "AGNES_REMOTE_ATTACH_EXTENSIONS"}, "",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('sh', 'shellfs', '', '')"),
		sqlFixture("a variable that is not allowed", ids("remote.token_env"), []string{"JWT_SECRET_KEY", "AGNES_REMOTE_ATTACH_TOKEN_ENVS"}, "hint-first",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('pg', 'postgres', '', 'JWT_SECRET_KEY')"),
		sqlFixture("a token in token_env", ids("remote.no_secret"), []string{"22 characters"}, "",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('pg', 'postgres', '', '"+secretToken+"')"),
		sqlFixture("a token of capitals in token_env", ids("remote.no_secret"), []string{"20 characters"}, "",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('pg', 'postgres', '', 'AKIAIOSFODNN7EXAMPL3')"),
		sqlFixture("a password in the url", ids("remote.no_secret"), nil, "",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('pg', 'postgres', 'postgres://me:"+secretToken+"@db/shop', '')"),
		sqlFixture("a password in a connection string", ids("remote.no_secret"), nil, "",
			meta, remoteMeta, attach, "INSERT INTO _remote_attach VALUES ('pg', 'postgres', 'host=db password="+secretToken+"', '')"),
	}
}

func link(t *testing.T, path, elsewhere string) {
	t.Helper()
	if err := os.Rename(path, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
}

func clobberNew(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func failed(r *connectors.Report) []string {
	var out []string
	for _, c := range r.Checks {
		if !c.OK && !slices.Contains(out, c.ID) {
			out = append(out, c.ID)
		}
	}
	slices.Sort(out)
	return out
}

func TestVerifyNamesEachFault(t *testing.T) {
	t.Parallel()
	for _, f := range fixtures() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			dir := f.make(t)
			before := snapshot(t, dir)
			r, err := connectors.Verify(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(f.fails)
			if got := failed(r); !slices.Equal(got, f.fails) || r.OK != (len(f.fails) == 0) {
				t.Fatalf("failed checks = %v (ok %v), want %v\n%+v", got, r.OK, f.fails, r.Checks)
			}
			text := ""
			for _, c := range r.Checks {
				if c.OK {
					continue
				}
				if c.Expected == "" || c.Found == "" || c.Hint == "" {
					t.Errorf("%s says too little: %+v", c.ID, c)
				}
				text += c.Expected + "\n" + c.Found + "\n" + c.Hint + "\n"
			}
			for _, want := range f.says {
				if !strings.Contains(text, want) {
					t.Errorf("the report does not hold %q:\n%s", want, text)
				}
			}
			if strings.Contains(text, secretToken) || strings.Contains(text, "AKIA") {
				t.Errorf("the report shows the secret:\n%s", text)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("Verify changed the extract:\n%s\n%s", before, after)
			}
			mend(t, f, dir, r)
		})
	}
}

// mend applies the hint's SQL and expects a report without fault.
func mend(t *testing.T, f fixture, dir string, r *connectors.Report) {
	t.Helper()
	if !strings.HasPrefix(f.mend, "hint") {
		return
	}
	for _, c := range r.Checks {
		if c.OK || c.ID == "data.no_strays" || c.ID == "remote.exists" {
			continue
		}
		statement, _, _ := strings.Cut(c.Hint, " or allow it")
		run(t, filepath.Join(dir, connectors.ExtractFile), dir, statement)
	}
	again, err := connectors.Verify(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if !again.OK {
		t.Errorf("the hint's SQL did not mend it: %v", failed(again))
	}
}

// snapshot is every file's name, mode and content.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			fmt.Fprintf(&out, "%s -> %s\n", path, target)
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&out, "%s %v %x\n", path, d.Type(), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestEveryCheckHasAFixtureThatFails(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{"extract.not_in_use": true} // TestVerifyLooksPastALock, TestReadExtractRefuses
	for _, f := range fixtures() {
		for _, id := range f.fails {
			covered[id] = true
		}
	}
	for _, id := range connectors.CheckIDs() {
		if !covered[id] {
			t.Errorf("no fixture fails the check %s", id)
		}
		delete(covered, id)
	}
	for id := range covered {
		t.Errorf("the fixtures name the check %s, which CheckIDs does not list", id)
	}
}

func TestVerifyTakesTheFolderOrTheFile(t *testing.T) {
	t.Parallel()
	dir := foreign(t, connectors.MetaDDL(), goodMeta, goodOrders)
	for _, path := range []string{dir, filepath.Join(dir, connectors.ExtractFile)} {
		r, err := connectors.Verify(t.Context(), path)
		if err != nil || !r.OK {
			t.Errorf("Verify(%s) = %+v, %v", path, r, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "nothing"), filepath.Join(dir, "data/orders.parquet")} {
		_, err := connectors.Verify(t.Context(), path)
		if problem.As(err).Hint == "" || problem.Is(err, problem.Internal) {
			t.Errorf("Verify(%s) = %v, want an error with a hint", path, err)
		}
	}
}

// Damage at any place must be reported or harmless, never a crash.
func TestVerifySurvivesDamage(t *testing.T) {
	t.Parallel()
	whole := foreign(t, connectors.MetaDDL(), goodMeta, goodOrders, remoteMeta, connectors.RemoteAttachDDL(), goodAttach)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, name := range []string{connectors.ExtractFile, "data/orders.parquet"} {
		data, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		reported := 0
		for range 15 {
			damaged := slices.Clone(data)
			for range 1 + rng.IntN(20) {
				damaged[rng.IntN(len(damaged))] ^= byte(1 + rng.IntN(255))
			}
			if rng.IntN(3) == 0 {
				damaged = damaged[:rng.IntN(len(damaged))]
			}
			if err := os.WriteFile(filepath.Join(whole, name), damaged, 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := connectors.Verify(t.Context(), whole)
			if err != nil {
				t.Fatalf("Verify: %v", err)
			}
			if !r.OK {
				reported++
			}
			if _, err := connectors.ReadExtract(t.Context(), whole); err != nil && problem.As(err).Hint == "" {
				t.Errorf("ReadExtract: %v has no hint", err)
			}
		}
		if reported == 0 {
			t.Errorf("no damage of %s was reported", name)
		}
		if err := os.WriteFile(filepath.Join(whole, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadExtract(t *testing.T) {
	t.Parallel()
	dir := foreign(t, connectors.MetaDDL(), goodMeta, goodOrders, remoteMeta, connectors.RemoteAttachDDL(), goodAttach)
	e, err := connectors.ReadExtract(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if e.Source != "shop" || len(e.Tables) != 2 || e.Tables[0].Rows != 1000 || e.Tables[0].ExtractedAt.IsZero() || e.Tables[1].Rows != -1 || len(e.Remote) != 1 {
		t.Errorf("ReadExtract = %+v", e)
	}
	files, err := e.Files("orders")
	if err != nil || len(files) != 1 || files[0] != filepath.Join(dir, "data/orders.parquet") {
		t.Errorf("Files(orders) = %v, %v", files, err)
	}
	for _, table := range []string{"far", "nothing"} {
		if _, err := e.Files(table); err == nil {
			t.Errorf("Files(%s) has no error", table)
		}
	}
}

// What makes an extract unusable for the orchestrator must be an error with a
// code and a hint. Faults of the files are those of one table (Files) and the
// allow lists belong to whoever attaches.
func TestReadExtractRefuses(t *testing.T) {
	t.Parallel()
	for _, f := range fixtures() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			_, err := connectors.ReadExtract(t.Context(), f.make(t))
			tolerated := []string{"data.exists", "data.readable", "data.no_strays", "meta.rows", "remote.extension", "remote.token_env", "remote.no_secret"}
			refuse := slices.ContainsFunc(f.fails, func(id string) bool { return !slices.Contains(tolerated, id) }) && !strings.HasPrefix(f.name, "a parquet file that is a link") && f.name != "a data folder that is a link"
			if (err != nil) != refuse {
				t.Fatalf("ReadExtract: %v, want an error: %v", err, refuse)
			}
			if err != nil && (problem.As(err).Hint == "" || !strings.HasPrefix(problem.As(err).WireCode(), "extract_")) {
				t.Errorf("the error %v has the code %q and the hint %q", err, problem.As(err).WireCode(), problem.As(err).Hint)
			}
		})
	}
}
