package csv

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// The mark of a fraction may lie anywhere, also across two reads.
func TestFractionsAreFoundAnywhere(t *testing.T) {
	t.Parallel()
	for mark, want := range map[string]bool{".": true, "e-": true, "E-": true, "-": false, "e": false} {
		for _, at := range []int{0, 1<<20 - 2, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 - 2, 2<<20 - 3, 3<<20 - 2} {
			content := bytes.Repeat([]byte("7"), 3<<20)
			copy(content[at:], mark)
			path := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
			if got, err := (input{read: path, codec: plain}).fractions(t.Context()); got != want || err != nil {
				t.Errorf("%q at %d: %v, %v, want %v", mark, at, got, err, want)
			}
		}
	}
}

func TestReadPositionsFollowsAnOpenFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("not run: only Linux says how far a descriptor has been read")
	}
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, make([]byte, 5000), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 3000)); err != nil {
		t.Fatal(err)
	}
	furthest := map[string]int64{}
	readPositions([]string{path, "/nothing"}, furthest)
	if furthest[path] != 3000 || len(furthest) != 1 {
		t.Errorf("readPositions = %v, want 3000 for the file", furthest)
	}
}
