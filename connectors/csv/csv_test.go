package csv_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestEmptyFilesAreSkippedWithAWarning(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"nothing": "", "space": " \n\n\t", "a BOM": "\xef\xbb\xbf\n", "gzip of nothing": gz(""), "much space": strings.Repeat("\n", 200_000), "UTF-16 of nothing": "\xff\xfe"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{"t.csv": "a\n1\n"})
			p.run()
			fresh := newPlace(t, map[string]string{"t.csv": content, "u.parquet": "", "v.json": "", "good.csv": "a\n1\n"})
			_, res := fresh.run()
			if len(res.Failed) > 0 || len(res.Tables) != 1 {
				t.Fatalf("Extract = %+v", res)
			}
			checkWarnings(t, res, []string{"t.csv is empty and was skipped", "u.parquet is empty", "v.json is empty"})

			// A file that became empty does not empty its table.
			p.write(map[string]string{"t.csv": content})
			e, res := p.run()
			checkWarnings(t, res, []string{"t.csv is empty and was skipped; the table keeps its last good data"})
			if e.Tables[0].Rows != 1 || !slices.Equal(res.Kept, []string{"t"}) {
				t.Errorf("Extract = %+v", res)
			}
		})
	}
}

func TestNamesOfTables(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 80)
	p := newPlace(t, map[string]string{
		"order.tsv": "a\n1\n", "packed.csv.gz": gz("a\n1\n"), "UPPER.CSV.GZ": gz("a\n1\n"), "my-data v2.1.csv": "a\n1\n", "2024.csv": "a\n1\n",
		"žluť.csv": "a\n1\n", long + ".csv": "a\n1\n", "it's \"q\".csv": "a\n1\n", "a[1].csv": "a\nright\n", "a1.csv": "a\nwrong\n", "select.json": "[{\"a\":1}]",
		".hidden.csv": "a\n1\n", "notes.txt": "hello", "data.xlsx": "x", "noending": "x", "Dup.csv": "a\n1\n", "dup.json": "[]", "same.csv": "a\n1\n", "same.tsv": "a\n1\n",
		"folder/one.csv": "a\n1\n", "folder/two.csv": "a\n2\n", "mixed/one.csv": "a\n1\n", "mixed/two.json": "[]", "none/notes.txt": "x", "deep/er/x.csv": "a\n1\n",
		"_meta.csv": "a\n1\n",
	})
	tables, warnings, err := csv.New(p.opt).Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tt := range tables {
		names = append(names, tt.Name)
	}
	slices.Sort(names)
	want := []string{"UPPER", "_2024", "_lu_", "a1", "a_1_", "folder", "it_s__q_", "my_data_v2_1", "order", "packed", "select", long[:64]}
	slices.Sort(want)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
	wanted := []string{
		"notes.txt was ignored", "data.xlsx was ignored", "noending was ignored", "Dup.csv, dup.json would all be the table dup", "same.csv, same.tsv would all be the table same",
		"mixed mixes kinds", "none was ignored", "deep/er was ignored: folders are read one level deep", "_meta.csv",
	}
	checkWarnings(t, connectors.Result{Warnings: warnings}, wanted)
	for _, w := range warnings {
		if strings.Contains(w.Message, "hidden") {
			t.Errorf("a warning names a hidden file: %s", w.Message)
		}
	}
	_, res := p.run()
	if got := slices.Sorted(maps.Keys(res.Failed)); !slices.Equal(got, []string{"Dup", "_meta", "dup", "mixed", "same"}) {
		t.Errorf("Failed = %v", got)
	}
	if got := p.table("a_1_"); got != "a VARCHAR\nright" {
		t.Errorf("a[1].csv was read as %q", got)
	}
	if got := p.table("folder"); got != "a BIGINT\n1\n2" {
		t.Errorf("folder = %q", got)
	}
}

func TestAFolderIsOneTable(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"columns by name", map[string]string{"t/1.csv": "a,b\n1,x\n", "t/2.csv": "b,a,c\ny,2,true\n"}, "a BIGINT, b VARCHAR, c BOOLEAN\n1|x|∅\n2|y|true"},
		{"each file with its own dialect", map[string]string{"t/1.csv": "a;b\n1;x\n", "t/2.tsv": "a\tb\n2\ty\n", "t/3.csv.gz": gz("a,b\n3,\"z, z\"\n")}, "a BIGINT, b VARCHAR\n1|x\n2|y\n3|z, z"},
		{"types that fit all, digits kept", map[string]string{"t/1.csv": "a,b\n1,1\n", "t/2.csv": "a,b\n1.5,007\n"}, "a DOUBLE, b VARCHAR\n1.0|1\n1.5|007"},
		{"files without rows have no say", map[string]string{"t/1.csv": "a,b\n1,2024-01-01\n", "t/2.csv": "a,b\n", "t/3.csv": "a,b\n2,\n"}, "a BIGINT, b DATE\n1|2024-01-01\n2|∅"},
		{"dates and numbers", map[string]string{"t/1.csv": "a,b\n2024-01-01,1\n", "t/2.csv": "a,b\n5,2\n"}, "a VARCHAR, b BIGINT\n2024-01-01|1\n5|2"},
		{"an empty file beside", map[string]string{"t/1.csv": "a\n1\n", "t/2.csv": ""}, "a BIGINT\n1"},
		{"NDJSON", map[string]string{"t/1.ndjson": "{\"a\":1}\n", "t/2.jsonl.gz": gz("{\"b\":2}\n")}, "a BIGINT, b BIGINT\n1|∅\n∅|2"},
		{"hive-like names add no columns", map[string]string{"day=1/1.csv": "a\n1\n"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, tt.files)
			_, res := p.run()
			if len(res.Failed) > 0 || len(res.Tables) != 1 {
				t.Fatalf("Extract = %+v", res)
			}
			if tt.want == "" {
				tt.want = "a BIGINT\n1"
			}
			if diff := cmp.Diff(tt.want, p.table(res.Tables[0].Table)); diff != "" {
				t.Errorf("the table differs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a bad row names its file", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t, map[string]string{"t/1.csv": "a,b\n1,x\n", "t/2.csv": "a,b\n2,y\n3,y,z\n", "t/3.csv": "a;b\n1;x\n1;x;y\n1;x\n"})
		_, res := p.run()
		checkWarnings(t, res, []string{"t/2.csv line 3: too many", "t/3.csv line 3: too many"})
		if res.Tables[0].Rows != 4 {
			t.Errorf("Extract = %+v", res)
		}
	})
}

func TestParquetKeepsItsTypes(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"x.csv": "a\n1\n"})
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := os.Mkdir(filepath.Join(p.dir, "parts"), 0o755); err != nil {
		t.Fatal(err)
	}
	row := "SELECT 1::TINYINT a, 1.50::DECIMAL(9,2) b, {'x': [1]} c, uuid() d, NULL::INT e, TIMESTAMPTZ '2024-01-01 00:00:00+00' f"
	for _, q := range []string{
		"COPY (" + row + ") TO " + duck.Literal(filepath.Join(p.dir, "t.parquet")),
		"COPY (SELECT 1 a) TO " + duck.Literal(filepath.Join(p.dir, "parts/1.parquet")),
		"COPY (SELECT 2 a, 3 b) TO " + duck.Literal(filepath.Join(p.dir, "parts/2.parquet")),
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	_, res := p.run()
	if len(res.Failed) > 0 {
		t.Fatalf("Extract = %+v", res)
	}
	if got := p.table("t"); !strings.HasPrefix(got, "a TINYINT, b DECIMAL(9,2), c STRUCT(x INTEGER[]), d UUID, e INTEGER, f TIMESTAMP WITH TIME ZONE\n1|1.50|") {
		t.Errorf("t = %s", got)
	}
	if got := p.table("parts"); got != "a INTEGER, b INTEGER\n1|∅\n2|3" {
		t.Errorf("parts = %s", got)
	}
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a,b\n1,2\n1,2,3\n", "b.csv": "a\n1\n", "f/1.csv": "a\n1\n"})
	before, res := p.run()
	if len(res.Tables) != 3 {
		t.Fatalf("Extract = %+v", res)
	}
	stat := func(name string) os.FileInfo {
		info, err := os.Stat(filepath.Join(p.extracts, "csv/data", name+".parquet"))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	a := stat("a")
	after, res := p.run()
	if !slices.Equal(res.Unchanged, []string{"a", "b", "f"}) || len(res.Tables) != 0 || !slices.Equal(before.Tables, after.Tables) {
		t.Errorf("the second run: %+v", res)
	}
	if !os.SameFile(a, stat("a")) {
		t.Error("the file was written again")
	}
	// What was left out stays visible.
	checkWarnings(t, res, []string{"a.csv line 3: too many columns"})

	changes := []struct {
		name string
		do   func() error
		want []string
	}{
		{"content of the same size and time", func() error {
			info, err := os.Stat(filepath.Join(p.dir, "b.csv"))
			if err != nil {
				return err
			}
			p.write(map[string]string{"b.csv": "a\n2\n"})
			return os.Chtimes(filepath.Join(p.dir, "b.csv"), info.ModTime(), info.ModTime())
		}, []string{"b"}},
		{"another file in a folder", func() error { p.write(map[string]string{"f/2.csv": "a\n2\n"}); return nil }, []string{"f"}},
		{"another policy", func() error { p.opt.OnBadRow = csv.FailTable; return nil }, []string{"b", "f"}},
		{"damage to what was written", func() error {
			return os.Truncate(filepath.Join(p.extracts, "csv/data/b.parquet"), 20)
		}, []string{"b"}},
	}
	for _, c := range changes {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		_, res := p.run()
		var got []string
		for _, m := range res.Tables {
			got = append(got, m.Table)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: read %v, want %v", c.name, got, c.want)
		}
	}
	if got := p.table("b"); got != "a BIGINT\n2" {
		t.Errorf("b = %q", got)
	}
}

func TestAFailedTableKeepsItsLastGoodData(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n", "b.csv": "b\n1\n", "c.csv": "c\n1\n"})
	p.run()
	p.write(map[string]string{"a.csv": "PK\x00\x00", "b.csv": "b\n2\n"})
	if err := os.Remove(filepath.Join(p.dir, "c.csv")); err != nil {
		t.Fatal(err)
	}
	e, res := p.run()
	if res.Failed["a"] == nil || !slices.Equal(res.Kept, []string{"a"}) || len(e.Tables) != 2 {
		t.Fatalf("Extract = %+v", res)
	}
	if p.table("a") != "a BIGINT\n1" || p.table("b") != "b BIGINT\n2" {
		t.Errorf("a = %q, b = %q", p.table("a"), p.table("b"))
	}
	checkWarnings(t, res, []string{"its file is no longer in the directory"})
	// It is tried again, also when nothing else changed.
	_, res = p.run()
	if res.Failed["a"] == nil {
		t.Error("the bad file was taken for unchanged")
	}
	p.write(map[string]string{"a.csv": "a\n3\n"})
	_, res = p.run()
	if len(res.Failed) > 0 || p.table("a") != "a BIGINT\n3" {
		t.Errorf("after mending: %+v", res)
	}
}

func TestARequestForOneTableCarriesTheOthers(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n", "b.csv": "b\n1\n"})
	p.run()
	p.write(map[string]string{"a.csv": "a\n2\n", "b.csv": "b\n2\n"})
	e, res := p.run("A", "nothing")
	if len(e.Tables) != 2 || p.table("a") != "a BIGINT\n2" || p.table("b") != "b BIGINT\n1" {
		t.Errorf("Extract = %+v", res)
	}
	if !problem.Is(res.Failed["nothing"], problem.NotFound) {
		t.Errorf("Failed = %v", res.Failed)
	}
	// b is read when its turn comes.
	p.run()
	if got := p.table("b"); got != "b BIGINT\n2" {
		t.Errorf("b = %q", got)
	}
}

func TestLinksAreFollowedInsideTheDirectoryOnly(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"real/x.csv": "a\n1\n"})
	outside := filepath.Join(t.TempDir(), "secret.csv")
	if err := os.WriteFile(outside, []byte("a\n1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"inside.csv": "real/x.csv", "out.csv": outside, "up.csv": "../../secret.csv", "gone.csv": "missing.csv", "self": ".", "outdir": filepath.Dir(outside), "real/out.csv": outside,
	} {
		if err := os.Symlink(target, filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, res := p.run()
	var got []string
	for _, m := range res.Tables {
		got = append(got, m.Table)
	}
	if !slices.Equal(got, []string{"inside", "real"}) || len(res.Failed) > 0 {
		t.Errorf("Extract = %+v", res)
	}
	checkWarnings(t, res, []string{"out.csv was ignored: it is a link that leaves", "gone.csv was ignored", "self was ignored", "outdir was ignored", "real/out.csv was ignored"})
	if got := p.table("real"); got != "a BIGINT\n1" {
		t.Errorf("real = %q", got)
	}
}

func TestADirectoryThatCannotBeReadIsAnErrorWithAHint(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": "a\n1\n"})
	before, _ := p.run()
	for name, dir := range map[string]string{"missing": filepath.Join(p.dir, "missing"), "a file": filepath.Join(p.dir, "a.csv"), "unset": ""} {
		src := csv.New(csv.Options{Dir: dir})
		_, _, discoverErr := src.Discover(t.Context())
		_, _, extractErr := connectors.Run(t.Context(), src, connectors.Request{}, p.extracts, nil)
		for _, err := range []error{src.Check(t.Context()), discoverErr, extractErr} {
			if problem.As(err).WireCode() != "csv_dir_unreadable" || problem.As(err).Hint == "" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	after, err := connectors.ReadExtract(t.Context(), before.Dir)
	if err != nil || len(after.Tables) != 1 {
		t.Errorf("the extract of before: %+v, %v", after, err)
	}
	if err := csv.New(csv.Options{Dir: p.dir, OnBadRow: "maybe"}).Check(t.Context()); !problem.Is(err, problem.Invalid) {
		t.Errorf("a policy that does not exist: %v", err)
	}
}

func TestProgressIsInBytesAndNeverGoesBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": many("a,b\n", "%d,x\n", 1000), "b.csv": "a\n1\n", "c.csv": ""})
	var steps []connectors.Progress
	if _, _, err := connectors.Run(t.Context(), csv.New(p.opt), connectors.Request{}, p.extracts, func(s connectors.Progress) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	var total, done int64
	for _, name := range []string{"a.csv", "b.csv"} {
		info, err := os.Stat(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	for _, s := range steps {
		if s.Unit != "bytes" || s.Total != total || s.Done < done || s.Done > total || s.Table == "" {
			t.Errorf("step %+v after %d of %d", s, done, total)
		}
		done = s.Done
	}
	if done != total {
		t.Errorf("ended at %d of %d", done, total)
	}
}

func TestCancelEndsWithoutATrace(t *testing.T) {
	t.Parallel()
	p := newPlace(t, map[string]string{"a.csv": many("a,b\n", "%d,x\n", 200_000), "b.csv": "a\n1\n"})
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	_, _, err := connectors.Run(ctx, csv.New(p.opt), connectors.Request{}, p.extracts, func(connectors.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || time.Since(began) > 5*time.Second {
		t.Errorf("Run: %v after %v", err, time.Since(began))
	}
	if left, _ := filepath.Glob(filepath.Join(p.extracts, ".staging/*.next")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
