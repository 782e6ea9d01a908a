package depcheck

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the lists of modules that each binary may link")

func TestTheRepositoryKeepsItsRules(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: "../..", Tags: "duckdb_arrow,e2e,realdata,bench", Binaries: []Binary{
		{Package: "cmd/agnes", Modules: "testdata/agnes.txt"},
		{Package: "cmd/agnesctl", Static: true, Modules: "testdata/agnesctl.txt"},
		{Package: "cmd/release-bot", Static: true, Modules: "testdata/release-bot.txt"},
	}}
	notice(t, cfg.Dir)
	r, err := Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		for _, b := range cfg.Binaries {
			if r.Linked[b.Package] == nil {
				continue
			}
			lines := strings.Join(r.Modules(b.Package), "\n") + "\n"
			if err := os.WriteFile(b.Modules, []byte(strings.TrimLeft(lines, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range Check(r) {
		t.Error(f)
	}
}

func TestAModuleThatKeepsTheRulesHasNoFindings(t *testing.T) {
	t.Parallel()
	r, _ := fixture(t, "testdata/clean.txtar",
		Binary{Package: "cmd/agnes", Modules: "modules/agnes.txt"},
		Binary{Package: "cmd/agnesctl", Static: true, Modules: "modules/agnesctl.txt"},
	)
	for _, f := range Check(r) {
		t.Error(f)
	}
	if len(r.Packages) < 20 {
		t.Errorf("looked at %d packages; the fixture has more", len(r.Packages))
	}
}

func TestEachRuleFires(t *testing.T) {
	t.Parallel()
	r, want := fixture(t, "testdata/broken.txtar",
		Binary{Package: "cmd/agnesctl", Static: true, Modules: "modules/agnesctl.txt"},
		Binary{Package: "cmd/release-bot", Static: true, Modules: "modules/release-bot.txt"},
	)
	var got []string
	fired := map[string]bool{}
	for _, f := range Check(r) {
		fired[f.Rule] = true
		if f.Why == "" {
			t.Errorf("no reason given: %v", f)
		}
		what, _, _ := strings.Cut(f.What, "; ") // without the next step
		what = strings.ReplaceAll(what, r.Config.Dir+"/", "")
		if f.Rule == "loads" {
			got = append(got, f.Rule+": "+f.Where) // the rest is the Go release's wording
			continue
		}
		got = append(got, f.Rule+": "+f.Where+" "+what)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	for _, rule := range Rules() {
		if !fired[rule.ID] {
			t.Errorf("no fixture breaks the rule %q", rule.ID)
		}
	}
	for _, l := range layers() {
		if l.root == "cmd" {
			continue // its breach is the rule "cmd" too
		}
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "layers: "+l.root) }) {
			t.Errorf("no fixture breaks the layer %q", l.root)
		}
	}
}

// notice reads all folders of source code. The go command keeps a test's result
// until something changes that the test itself read; it does not see what `go
// list` reads.
func notice(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fixture unpacks an archive into a module and loads it. What the file "want"
// of the archive says comes back by line.
func fixture(t *testing.T, archive string, binaries ...Binary) (r *Repo, want []string) {
	t.Helper()
	a, err := txtar.ParseFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range a.Files {
		if f.Name == "want" {
			want = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
			continue
		}
		name := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range binaries {
		binaries[i].Modules = filepath.Join(dir, binaries[i].Modules)
	}
	r, err = Load(t.Context(), Config{Dir: dir, Tags: "e2e", Binaries: binaries})
	if err != nil {
		t.Fatal(err)
	}
	return r, want
}
