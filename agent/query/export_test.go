package query

import (
	"context"
	"database/sql"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// TestGate is the gate over a DuckDB of its own, without a worker around it.
type TestGate struct {
	db   *sql.DB
	gate *Gate
}

// NewGate opens a gate.
func NewGate(ctx context.Context) (*TestGate, error) {
	db, err := duck.Open(ctx, duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	gate, err := newGate(func(text string) (tree string, err error) {
		err = db.QueryRow("SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)::VARCHAR", text).Scan(&tree)
		return tree, err
	})
	return &TestGate{db, gate}, err
}

// Check judges a statement; names holds the granted tables in lower case.
func (g *TestGate) Check(_ context.Context, text string, names map[string]bool) error {
	if err := checkText(text); err != nil {
		return err
	}
	_, err := g.gate.check(text, func(name string) bool { return names[foldName(name)] })
	return err
}

// Close closes the gate.
func (g *TestGate) Close() error { return g.db.Close() }
