package csv

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

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
