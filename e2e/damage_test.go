//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// tear damages one file for a test.
type tear func(t *testing.T, path string)

func flip(offset int64) tear {
	return func(t *testing.T, path string) {
		t.Helper()
		edit(t, path, func(b []byte) []byte {
			for i := offset; i < min(offset+64, int64(len(b))); i++ {
				b[i] ^= 0xa5
			}
			return b
		})
	}
}

func halve(t *testing.T, path string) {
	t.Helper()
	edit(t, path, func(b []byte) []byte { return b[:len(b)/2] })
}

// fromTheFuture gives a DuckDB file a storage version that does not exist yet,
// with the checksum of the header put right.
func fromTheFuture(t *testing.T, path string) {
	t.Helper()
	edit(t, path, func(b []byte) []byte {
		binary.LittleEndian.PutUint64(b[12:], 200)
		sum := uint64(5381)
		for i := 8; i < 4096; i += 8 {
			sum ^= binary.LittleEndian.Uint64(b[i:]) * 0xbf58476d1ce4e5b9
		}
		binary.LittleEndian.PutUint64(b, sum)
		return b
	})
}

// edit replaces a file by a changed copy of it. It is a new file, as a program
// writes one: links to the old one keep the old content.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedStateIsRefusedOrRecoveredButNeverReplaced(t *testing.T) {
	parallel(t)
	made := settled(t, filepath.Join(t.TempDir(), "data"), shop(t))
	made.stop() // which checkpoints: the log begins behind it
	made.start()
	if err := made.createUser("late@company.com"); err != nil {
		t.Fatal(err)
	}
	made.kill() // which leaves the log

	database := func(data string) string { return filepath.Join(data, "state", "system.duckdb") }
	for name, tc := range map[string]struct {
		damage tear
		code   int
		words  []string
	}{
		"its header is damaged":                     {flip(100), 1, []string{"is damaged or no DuckDB database"}},
		"its middle is damaged":                     {flip(20_000), 1, []string{"is damaged or no DuckDB database"}},
		"its end is missing":                        {halve, 1, []string{"is damaged or no DuckDB database"}},
		"it is of a DuckDB that does not exist yet": {fromTheFuture, 4, []string{"newer DuckDB"}},
		"only its log is left":                      {remove, 4, []string{"only its write-ahead log"}},
	} {
		t.Run("refused when "+name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			copyTree(t, made.data, data)
			tc.damage(t, database(data))
			before, _ := os.ReadFile(database(data))
			out := refused(t, 0, data, tc.code)
			for _, w := range append(tc.words, database(data)) {
				if !strings.Contains(out, w) {
					t.Errorf("expected %q in:\n%s", w, out)
				}
			}
			keepsSecrets(t, out, made.secrets)
			if after, _ := os.ReadFile(database(data)); string(after) != string(before) {
				t.Error("the refused database was changed")
			}
		})
	}

	for name, damage := range map[string]tear{"its log is no log": flip(0), "its log is cut": halve} {
		t.Run("recovered when "+name, func(t *testing.T) {
			in := &world{process: made.process, data: filepath.Join(t.TempDir(), "data"), secrets: made.secrets, setupToken: made.setupToken}
			copyTree(t, made.data, in.data)
			damage(t, database(in.data)+".wal")
			torn, err := os.ReadFile(database(in.data) + ".wal")
			if err != nil {
				t.Fatal(err)
			}
			in.start()
			users, err := in.client.Users(t.Context())
			if err != nil || users.Users[0].Email != adminEmail {
				t.Errorf("users = %+v, %v; the admin was checkpointed", users, err)
			}
			if n := in.count("orders"); n < 2000 {
				t.Errorf("%d orders after the recovery", n)
			}
			if name == "its log is cut" {
				return // as a crash cuts it: nothing that was confirmed is lost, so there is nothing to tell
			}
			h := in.health()
			kept, _ := filepath.Glob(filepath.Join(in.data, "state", "quarantine", "*"))
			if h.Status != api.Degraded || len(kept) != 1 || !strings.Contains(strings.Join(h.Warnings, "\n"), kept[0]) {
				t.Fatalf("health = %s %q, want degraded and a warning that names the log's copy %q", h.Status, h.Warnings, kept)
			}
			if copied, err := os.ReadFile(kept[0]); err != nil || string(copied) != string(torn) {
				t.Errorf("the damaged log was not kept as it was: %v", err)
			}
		})
	}
}

// TestABrokenExtractKeepsTheLastGoodTables damages the extract of a program
// that is not ours in every way that happens, while the instance runs.
func TestABrokenExtractKeepsTheLastGoodTables(t *testing.T) {
	parallel(t)
	files, out := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(files, "parts.csv"), "id,name\n1,bolt\n2,nut\n3,pin\n")
	writeFile(t, filepath.Join(files, "items.csv"), "id,part\n1,1\n2,3\n")
	if _, errs, code := command(t, "", nil, "agnes", "extract", "csv", "--csv-dir", files, "--out", out); code != 0 {
		t.Fatalf("extract: exit %d\n%s", code, errs)
	}
	in := settled(t, t.TempDir(), shop(t))
	foreign := filepath.Join(in.data, "extracts", "foreign")
	deliver := func() { // as a connector does: whole, by a rename
		t.Helper()
		next := filepath.Join(in.data, "extracts", ".staging", "next")
		copyTree(t, filepath.Join(out, "csv"), next)
		if err := os.RemoveAll(foreign); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, foreign); err != nil {
			t.Fatal(err)
		}
	}
	subdir(t, in.data, "extracts", ".staging")
	deliver()
	for _, table := range []string{"parts", "items"} {
		if _, err := in.client.RegisterTable(t.Context(), api.RegisterTableRequest{Source: "foreign", SourceTable: table}); err != nil {
			t.Fatal(err)
		}
	}
	if got := in.table("parts"); got.Rows != 3 || got.Stale {
		t.Fatalf("parts = %+v", got)
	}

	type broken struct {
		damage func(t *testing.T, dir string)
		check  string // of contract verify
		both   bool   // the whole extract is out, not parts alone
	}
	parts := func(dir string) string { return filepath.Join(dir, "data", "parts.parquet") }
	main := func(damage tear) func(*testing.T, string) {
		return func(t *testing.T, dir string) { t.Helper(); damage(t, filepath.Join(dir, "extract.duckdb")) }
	}
	round := 0
	for name, tc := range map[string]broken{
		"extract.duckdb is cut":                 {main(halve), "extract.readable", true},
		"extract.duckdb's header is damaged":    {main(flip(0)), "extract.readable", true},
		"extract.duckdb is gone":                {main(remove), "extract.exists", true},
		"extract.duckdb is of a DuckDB to come": {main(fromTheFuture), "extract.storage_version", true},
		"a log lies beside extract.duckdb": {func(t *testing.T, dir string) {
			t.Helper()
			writeFile(t, filepath.Join(dir, "extract.duckdb.wal"), "left over")
		}, "extract.no_wal", true},
		"a parquet file is gone": {func(t *testing.T, dir string) { t.Helper(); remove(t, parts(dir)) }, "data.exists", false},
		"a parquet file is cut":  {func(t *testing.T, dir string) { t.Helper(); halve(t, parts(dir)) }, "data.readable", false},
		"a parquet file is a link to the secrets": {func(t *testing.T, dir string) {
			t.Helper()
			remove(t, parts(dir))
			link(t, filepath.Join(in.data, "state", ".jwt_secret"), parts(dir))
		}, "data.no_symlinks", false},
		"a parquet file is a link to another's table": {func(t *testing.T, dir string) {
			t.Helper()
			remove(t, parts(dir))
			link(t, filepath.Join(in.data, "extracts", "csv", "data", "orders.parquet"), parts(dir))
		}, "data.no_symlinks", false},
	} {
		t.Run(name, func(t *testing.T) {
			round++
			deliver()
			tc.damage(t, foreign)
			wantFault(t, foreign, tc.check)

			// Any change of the registry publishes.
			note := name
			if _, err := in.client.UpdateTable(t.Context(), "orders", api.UpdateTableRequest{Description: &note}); err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"parts", "items"} {
				got := in.table(table)
				stale := tc.both || table == "parts"
				if got.Stale != stale || stale && (got.StaleReason == "" || !strings.Contains(got.StaleReason, "foreign") && !strings.Contains(got.StaleReason, "parts")) {
					t.Errorf("%s: stale = %v because of %q, want %v with the place", table, got.Stale, got.StaleReason, stale)
				}
			}
			if p, i, o := in.count("parts"), in.count("items"), in.count("orders"); p != 3 || i != 2 || o < 2000 {
				t.Errorf("parts, items, orders have %d, %d, %d rows; want 3, 2 and the shop's", p, i, o)
			}
			h := in.health().Services["tables"]
			if h.Status != api.Degraded || h.Hint == "" {
				t.Errorf("health of tables = %+v, want degraded with a hint", h)
			}

			deliver()
			in.sync(api.JobSucceeded)
			if got := in.table("parts"); got.Stale {
				t.Errorf("parts is stale after it was mended: %q", got.StaleReason)
			}
		})
	}
	if round == 0 {
		t.Error("nothing was damaged")
	}

	// The whole folder goes, and the instance restarts without it.
	if err := os.RemoveAll(foreign); err != nil {
		t.Fatal(err)
	}
	in.sync(api.JobSucceeded)
	in.stop()
	in.start()
	if got := in.table("parts"); !got.Stale || in.count("parts") != 3 {
		t.Errorf("parts without its extract = %+v, want the last good data, stale", got)
	}
	in.stop()
}

// wantFault asks contract verify for a fault and for the way to mend it.
func wantFault(t *testing.T, dir, id string) {
	t.Helper()
	stdout, stderr, code := command(t, "", nil, "agnes", "contract", "verify", dir, "-o", "json")
	var report struct {
		OK     bool `json:"ok"`
		Checks []struct {
			ID, Expected, Found, Hint string
			OK                        bool
		} `json:"checks"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("contract verify: %v\n%s%s", err, stdout, stderr)
	}
	if code != 3 || report.OK || !strings.Contains(stderr, "Next:  ") {
		t.Errorf("contract verify: exit %d, ok %v\n%s", code, report.OK, stderr)
	}
	found := false
	for _, c := range report.Checks {
		if c.OK {
			continue
		}
		found = found || c.ID == id
		if c.Expected == "" || c.Found == "" || c.Hint == "" {
			t.Errorf("the fault %+v does not say expected, found and how to mend it", c)
		}
	}
	if !found {
		t.Errorf("contract verify does not name %s:\n%s", id, stdout)
	}
	keepsSecrets(t, stdout+stderr, nil)
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}
