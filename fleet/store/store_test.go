package store

import (
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
