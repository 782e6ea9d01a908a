// Package golden holds the two test harnesses of the repository: Compare, for
// output that is kept in a file and reviewed as a diff, and Scripts, which runs
// testscript files against a program in the test's own process.
//
// It is imported by tests only.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//nolint:gochecknoglobals // a flag of the test binary has to be registered before its main runs
var update = flag.Bool("update", false, "rewrite golden files and the files inside test scripts with what the test got")

// Compare fails the test when got differs from the file at path, and shows how.
// With `go test -update` it writes the file instead.
func Compare(t testing.TB, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatalf("make the golden file's folder: %v", err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatalf("write the golden file: %v", err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read the golden file: %v\nNext: go test -run '^%s$' . -update, then review the new file", err, t.Name())
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("the output differs from %s (-want +got):\n%s\nNext: if that is right, go test -run '^%s$' . -update", path, diff, t.Name())
	}
}
