package query

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"testing"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// GateCheck returns a worker's gate as a function, without the process around
// it: nil where sql may run for somebody with those tables.
func GateCheck(t testing.TB) func(sql string, granted func(name string) bool) error {
	t.Helper()
	w := &worker{}
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	gate, err := newGate(w.tree)
	if err != nil {
		t.Fatal(err)
	}
	return func(sql string, granted func(string) bool) error {
		if err := checkText(sql); err != nil {
			return err
		}
		_, err := gate.check(sql, granted)
		return err
	}
}

const ungated = "ungated"

// UngatedCommand starts a worker whose gate lets everything pass: what then
// still holds is the second wall alone. Its requests need a table "granted".
func UngatedCommand(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "-test.run=^TestPlaysAWorkerWithoutAGate$", ungated}
}

// blind stands in for json_serialize_sql: whatever the statement is, it looks
// like one that reads the granted table.
const blind = `SELECT CASE WHEN ?::VARCHAR IS NULL THEN '' ELSE
	'{"statements":[{"node":{"type":"SELECT_NODE","from_table":{"type":"BASE_TABLE","table_name":"granted"}}}]}' END`

func TestPlaysAWorkerWithoutAGate(t *testing.T) {
	if flag.Arg(0) != ungated {
		t.Skip("it is the worker of another test")
	}
	err := func() error {
		control := os.NewFile(controlFD, "control")
		w := &worker{in: bufio.NewReader(control), out: bufio.NewWriter(control)}
		if err := w.open(); err != nil {
			return err
		}
		duckdb.DestroyPrepare(&w.ast)
		if duckdb.Prepare(w.conn, blind, &w.ast) == duckdb.StateError {
			return fmt.Errorf("prepare: %s", duckdb.PrepareError(w.ast))
		}
		return w.serve()
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
