package store

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestAStoreOfANewerProgramIsLeftAsItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), dir)
	if !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "99") {
		t.Fatalf("a newer store was opened: %v", err)
	}
}

func TestAStoreIsOpenedByTwoProgramsAtATime(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		s, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
	}
}

func TestAStoreThatCannotBeUsedSaysWhichAndWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, File)
	if err := os.WriteFile(file, []byte(strings.Repeat("not a database at all ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir)
	says(t, "garbage", err, file, "mv "+file+" "+file+".bad")

	_, err = Open(t.Context(), filepath.Join(file, "below"))
	says(t, "no folder", err, "not a directory", "--state DIR")

	s, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	fill := func() error {
		return s.change(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), "CREATE TABLE filler AS SELECT zeroblob(1 << 20)")
			return err
		})
	}
	for _, pragma := range []string{"max_page_count = 1", "busy_timeout = 0"} {
		s.db.SetMaxOpenConns(1) // for it is of a connection
		if _, err := s.db.ExecContext(t.Context(), "PRAGMA "+pragma); err != nil {
			t.Fatal(err)
		}
	}
	says(t, "full", fill(), "full", "free space")

	other, err := Open(t.Context(), filepath.Dir(s.path)) // writes nothing, so that it can be read beside a writer
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	err = other.change(t.Context(), func(*sql.Tx) error { return fill() })
	says(t, "busy", err, "SQLITE_BUSY", "Another agnesctl is writing")
	if err := s.change(t.Context(), func(*sql.Tx) error { return ErrLeaseLost }); !errors.Is(err, ErrLeaseLost) || err.Error() != ErrLeaseLost.Error() {
		t.Errorf("a lost lease became %v", err)
	}
}

func says(t *testing.T, when string, err error, texts ...string) {
	t.Helper()
	said, ok := errors.AsType[*problem.Error](err)
	for _, text := range texts {
		if !ok || !strings.Contains(err.Error()+" "+said.Hint, text) {
			t.Errorf("%s: no %q in %v", when, text, err)
		}
	}
}
