package analytics

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestASourceThatIsReplacedMeanwhileIsTakenAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("s", tbl("t", "SELECT 1 AS v"), tbl("u", "SELECT 1 AS v"))
	s := f.open()
	f.publish(s, bind("s.t", "s.u")...)

	stamp := 1
	replace := func(times int) {
		s.staged = func(string) {
			if times--; times >= 0 {
				stamp++
				f.commit("s", tbl("t", fmt.Sprintf("SELECT %d AS v", stamp)), tbl("u", fmt.Sprintf("SELECT %d AS v", stamp)))
			}
		}
	}
	f.commit("s", tbl("t", "SELECT 0 AS v"), tbl("u", "SELECT 0 AS v"))
	replace(maxTakes - 1)
	p := f.publish(s, bind("s.t", "s.u")...)
	if got, want := f.one(p.Generation.DatabasePath, "SELECT t.v || '-' || u.v FROM t, u"), fmt.Sprintf("%d-%d", stamp, stamp); got != want || len(p.Failed) > 0 {
		t.Errorf("expected the last version %s, found %s, %v", want, got, p.Failed)
	}
	last := stamp
	replace(1000)
	p = f.publish(s, bind("s.t", "s.u")...)
	if e := problem.As(p.Failed["t"]); e.Kind != problem.Conflict || !p.Generation.Tables["t"].Stale {
		t.Errorf("expected the last good version of a source that never rests, found %#v", e)
	}
	if got, want := f.one(p.Generation.DatabasePath, "SELECT t.v || '-' || u.v FROM t, u"), fmt.Sprintf("%d-%d", last, last); got != want {
		t.Errorf("expected %s, found %s", want, got)
	}
	// In-place writers change extract.duckdb without replacing the folder.
	f.foreign("far", tbl("w", "SELECT 1 AS v"))
	s.staged = func(string) {
		s.staged = func(string) {}
		f.foreign("far", tbl("w", "SELECT 2 AS v"))
	}
	p = f.publish(s, bind("far.w")...)
	if got := f.one(p.Generation.DatabasePath, "SELECT v FROM w"); got != "2" {
		t.Errorf("expected 2, found %s", got)
	}
}

// Several plain extracts are read together; the odd ones among them are left to
// connectors.ReadExtract, and nothing in them reaches a file of the instance.
func TestPreloadTakesPlainExtractsOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	secret := filepath.Join(f.dir, "secret.csv")
	f.must(os.WriteFile(secret, []byte("s3cret\n"), 0o600))
	var bindings []Binding
	for i, name := range []string{"own", "far", "view", "name", "twice", "mode", "columns", "wal", "corrupt", "remote"} {
		table := "t_" + name
		bindings = append(bindings, Binding{ID: table, Source: name, SourceTable: table})
		if i == 0 {
			f.commit(name, tbl(table, "SELECT 1 AS v"))
			continue
		}
		f.foreign(name, tbl(table, "SELECT 1 AS v"))
	}
	f.meta("view", "DROP TABLE _meta; CREATE VIEW _meta AS SELECT 't_view' AS table_name, content AS description, 1::BIGINT AS rows, 1::BIGINT AS size_bytes, now()::TIMESTAMP AS extracted_at, 'local' AS query_mode FROM read_text('"+secret+"')")
	f.meta("name", "INSERT INTO _meta VALUES ('../x', '', 1, 1, now()::TIMESTAMP, 'local')")
	f.meta("twice", "INSERT INTO _meta VALUES ('T_TWICE', '', 1, 1, now()::TIMESTAMP, 'local')")
	f.meta("mode", "UPDATE _meta SET query_mode = 'elsewhere'")
	f.meta("columns", "ALTER TABLE _meta DROP COLUMN description")
	f.meta("remote", connectors.RemoteAttachDDL()+" INSERT INTO _remote_attach VALUES ('pg', 'postgres', '', '')")
	f.must(os.WriteFile(filepath.Join(f.extracts(), "wal", connectors.ExtractFile+".wal"), []byte("x"), 0o644))
	f.must(os.WriteFile(filepath.Join(f.extracts(), "corrupt", connectors.ExtractFile), []byte(strings.Repeat("x", 4096)), 0o644))

	s := f.open()
	var sources []string
	for _, b := range bindings {
		sources = append(sources, b.Source)
	}
	loaded := s.newBuild(nil).preload(context.Background(), sources)
	if len(loaded) != 2 || loaded["own"].extract == nil || loaded["far"].extract == nil {
		t.Errorf("expected own and far, found %v", loaded)
	}
	for name, got := range loaded {
		want, err := connectors.ReadExtract(context.Background(), filepath.Join(f.extracts(), name))
		f.must(err)
		if diff := cmp.Diff(want, got.extract); diff != "" {
			t.Errorf("%s differs from ReadExtract (-want +got):\n%s", name, diff)
		}
	}
	p := f.publish(s, bindings...)
	if len(p.Generation.Tables) != 3 || len(p.Failed) != 7 { // own, far and remote's local table
		t.Errorf("expected three tables and seven failures, found %d and %v", len(p.Generation.Tables), p.Failed)
	}
	for id, info := range p.Generation.Tables {
		if strings.Contains(info.Description, "s3cret") {
			t.Errorf("%s read a file of the instance", id)
		}
	}
}
