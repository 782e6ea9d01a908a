package fleet_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// FuzzInventory holds for any text: it is an inventory of which every promise
// holds, or an error of this package, and what the decoder takes the schema takes.
func FuzzInventory(f *testing.F) {
	good, err := filepath.Glob("testdata/inventory/good/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range good {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(content))
	}
	for _, c := range bad {
		f.Add(c.file)
	}
	s := schemaFor(f, fleet.Schema)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content string) {
		path := filepath.Join(dir, "fleet.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := fleet.Load(path, fleet.LoadOptions{})
		if err != nil {
			if !strings.Contains(err.Error(), "fleet.yaml") && !strings.Contains(err.Error(), "faults") {
				t.Errorf("the error names no file: %v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, i := range v.Instances {
			if i.Name == "" || seen[i.Name] || i.URL == "" || i.Wanted() == "" || i.Timeout <= 0 || i.Timeout > i.Interval || (i.Pin != "") == (i.Channel != "") {
				t.Errorf("an instance that should not pass: %+v", i)
			}
			seen[i.Name] = true
		}
		if _, err := v.Assign(v.Waves); err != nil {
			t.Error(err)
		}
		if doc, err := asJSON(content); err == nil {
			if err := s.Validate(doc); err != nil {
				t.Errorf("the schema refuses what the decoder takes: %v", err)
			}
		}
	})
}
