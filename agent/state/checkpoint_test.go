package state

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A SIGKILL ends a large write between two pages, so these are the files that
// one leaves which meets a checkpoint in a block that it writes in its place.
func TestACheckpointThatIsTornInABlockOfMetadataIsUndone(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, t.TempDir())
	torn, users := 0, 0
	for range 3 {
		for range 5 {
			mustUser(t, s, numbered(users), RoleAdmin)
			users++
		}
		if err := s.writeUndo(ctx, s.db); err != nil { // as it is while the checkpoint runs
			t.Fatal(err)
		}
		before, wal, undo := readFile(t, s.path), readFile(t, s.path+".wal"), readFile(t, s.path+undoSuffix)
		blocks, size, err := metadataBlocks(ctx, s.db)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
		after := readFile(t, s.path)
		for _, b := range blocks {
			at := headersSize + b*size
			if bytes.Equal(before[at:at+size], after[at:at+size]) {
				continue
			}
			for _, written := range []int64{4096, size / 2} {
				files := map[string][]byte{"": slices.Clone(before), ".wal": wal}
				copy(files[""][at:at+written], after[at:])
				if x, err := Open(ctx, testOptions(scene(t, files))); err == nil {
					_ = x.Close()
					continue // torn where it does not matter
				}
				torn++
				files[undoSuffix] = undo
				dir := scene(t, files)
				if version, err := StoredSchemaVersion(ctx, dir); err != nil || version != s.SchemaVersion() {
					t.Errorf("block %d torn after %d bytes: schema %d (%v)", b, written, version, err)
				}
				x := mustOpen(t, dir)
				if got := len(emails(t, x)); got != users {
					t.Errorf("block %d torn after %d bytes: %d of %d users are left", b, written, got, users)
				}
				if w := x.Warnings(); len(w) > 0 {
					t.Errorf("block %d torn after %d bytes: it warns of a loss: %v", b, written, w)
				}
				if _, err := os.Stat(x.path + undoSuffix); err == nil {
					t.Errorf("block %d torn after %d bytes: the copy of the blocks was left", b, written)
				}
			}
		}
	}
	if torn == 0 {
		t.Error("no checkpoint wrote a block in its place: the test shows nothing")
	}
	t.Logf("%d torn databases opened with all %d users", torn, users)
}

func TestACheckpointThatIsInForceIsNotUndone(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, t.TempDir())
	mustUser(t, s, numbered(0), RoleAdmin)
	if err := s.writeUndo(ctx, s.db); err != nil {
		t.Fatal(err)
	}
	undo := readFile(t, s.path+undoSuffix)
	mustUser(t, s, numbered(1), RoleAdmin)
	if err := s.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	main := readFile(t, s.path) // killed before the copy was removed, and so it is of a database put here by hand
	dir := scene(t, map[string][]byte{"": main, undoSuffix: undo})
	x := mustOpen(t, dir)
	if got := emails(t, x); len(got) != 2 {
		t.Errorf("expected both users, found %v", got)
	}
	if _, err := os.Stat(x.path + undoSuffix); err == nil {
		t.Error("the copy of the blocks was left")
	}
}

func TestOnlyOurOwnCheckpointsWriteTheMainFile(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	before := readFile(t, s.path)
	mustUser(t, s, numbered(0), RoleAdmin)
	if err := s.db.Close(); err != nil { // DuckDB would make a checkpoint here
		t.Fatal(err)
	}
	if !bytes.Equal(before, readFile(t, s.path)) {
		t.Error("DuckDB wrote the main file when it was closed")
	}
}

// scene writes the files of a database, by what follows its name.
func scene(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for suffix, data := range files {
		if err := os.WriteFile(filepath.Join(dir, databaseFile+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// readFile reads a file that DuckDB may have open. Closing it drops a lock that
// nothing here relies on.
func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
