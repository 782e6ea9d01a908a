package query

import "testing"

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
