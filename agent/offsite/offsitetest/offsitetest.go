// Package offsitetest is the contract of offsite.Target as tests.
//
// Each adapter runs Conform against the real thing or a server that keeps its
// rules. What holds for one target holds for all, so that a Vault need not know
// where its backups lie.
package offsitetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Harness gives the suite its targets. Each is closed by the suite.
type Harness struct {
	Open        func(t *testing.T) offsite.Target // over an empty space of its own
	Missing     func(t *testing.T) offsite.Target // whose bucket or folder does not exist
	Refused     func(t *testing.T) offsite.Target // whose credentials are wrong; nil where there are none
	Unreachable func(t *testing.T) offsite.Target // where nobody answers; nil where there is no network
	Piece       int                               // how much the target sends at once
	Unguarded   bool                              // the service itself lets a second writer replace a name at the same moment
}

// Bytes returns n bytes that look like a sealed backup: nothing repeats.
func Bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1, byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

const name = "0193-instance/agnes-20260401T020000Z-aabbcc.tar.zst.age"

// Conform runs the suite.
func Conform(t *testing.T, h Harness) {
	t.Run("what is put comes back", func(t *testing.T) { t.Parallel(); comesBack(t, h) })
	t.Run("a name is never replaced", func(t *testing.T) { t.Parallel(); neverReplaced(t, h) })
	if !h.Unguarded {
		t.Run("of two at once one wins", func(t *testing.T) { t.Parallel(); race(t, h) })
	}
	t.Run("an upload that fails leaves nothing", func(t *testing.T) { t.Parallel(); leavesNothing(t, h) })
	t.Run("reading begins anywhere", func(t *testing.T) { t.Parallel(); anywhere(t, h) })
	t.Run("lists by prefix and in order", func(t *testing.T) { t.Parallel(); lists(t, h) })
	t.Run("deletes once", func(t *testing.T) { t.Parallel(); deletes(t, h) })
	t.Run("says that the place is missing", func(t *testing.T) { t.Parallel(); says(t, h.Missing, offsite.CodeMissing) })
	if h.Refused != nil {
		t.Run("says that it is refused", func(t *testing.T) { t.Parallel(); says(t, h.Refused, offsite.CodeCredentials) })
	}
	if h.Unreachable != nil {
		t.Run("says that nobody answers", func(t *testing.T) { t.Parallel(); says(t, h.Unreachable, offsite.CodeUnreachable) })
	}
}

func open(t *testing.T, f func(*testing.T) offsite.Target) offsite.Target {
	t.Helper()
	target := f(t)
	t.Cleanup(func() {
		if err := target.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return target
}

// Put puts data or fails the test.
func Put(t *testing.T, target offsite.Target, name string, data []byte) {
	t.Helper()
	if err := target.Put(t.Context(), name, int64(len(data)), onlyReader{bytes.NewReader(data)}); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// onlyReader hides Seek and ReadAt: what is sealed has neither.
type onlyReader struct{ io.Reader }

// Holds fails the test unless the target has exactly data under name.
func Holds(t *testing.T, target offsite.Target, name string, data []byte) {
	t.Helper()
	r, err := target.Get(t.Context(), name, 0)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("get %s: %d bytes, %v; want the %d that were put", name, len(got), err, len(data))
	}
}

func isEmpty(t *testing.T, target offsite.Target) {
	t.Helper()
	if list, err := target.List(t.Context(), ""); err != nil || len(list) > 0 {
		t.Errorf("list = %v, %v; want nothing", list, err)
	}
}

// code fails the test unless err has a code, a next step and no secret.
func code(t *testing.T, err error, want, doing string) {
	t.Helper()
	p, ok := errors.AsType[*problem.Error](err)
	if !ok || p.Code != want || p.Hint == "" || p.Message == "" {
		t.Errorf("%s: %#v (%v); want the code %s with a hint", doing, err, err, want)
	}
}

func comesBack(t *testing.T, h Harness) {
	target := open(t, h.Open)
	for _, size := range []int{0, 1, h.Piece - 1, h.Piece, h.Piece + 1, 2*h.Piece + 12345} {
		data := Bytes(size)
		at := strings.Replace(name, "aabbcc", "size"+time.Duration(size).String(), 1)
		Put(t, target, at, data)
		Holds(t, target, at, data)
		if list, err := target.List(t.Context(), at); err != nil || len(list) != 1 || list[0].Size != int64(size) {
			t.Errorf("list %s = %v, %v", at, list, err)
		} else if age := time.Since(list[0].Stored); age < -time.Hour || age > time.Hour {
			t.Errorf("stored %s ago", age)
		}
	}
}

func neverReplaced(t *testing.T, h Harness) {
	target := open(t, h.Open)
	first := Bytes(2*h.Piece + 1)
	Put(t, target, name, first)
	for _, size := range []int{10, 2*h.Piece + 1} {
		err := target.Put(t.Context(), name, int64(size), bytes.NewReader(make([]byte, size)))
		code(t, err, offsite.CodeExists, "put a second time")
	}
	Holds(t, target, name, first)
}

func race(t *testing.T, h Harness) {
	target := open(t, h.Open)
	versions := [][]byte{Bytes(2*h.Piece + 7), Bytes(2*h.Piece + 8)}
	errs := make([]error, len(versions))
	var wg sync.WaitGroup
	for i, data := range versions {
		wg.Go(func() { errs[i] = target.Put(t.Context(), name, int64(len(data)), onlyReader{bytes.NewReader(data)}) })
	}
	wg.Wait()
	winner := 0
	if errs[0] != nil {
		winner = 1
	}
	if errs[winner] != nil || !offsite.HasCode(errs[1-winner], offsite.CodeExists) {
		t.Fatalf("put at once: %v; want one success and one %s", errs, offsite.CodeExists)
	}
	Holds(t, target, name, versions[winner])
}

func leavesNothing(t *testing.T, h Harness) {
	target := open(t, h.Open)
	size := int64(2*h.Piece + 100)
	broken := io.MultiReader(bytes.NewReader(Bytes(h.Piece+10)), iotest.ErrReader(errors.New("the disk is gone")))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	canceled := io.MultiReader(bytes.NewReader(Bytes(h.Piece+10)), readerFunc(func([]byte) (int, error) { cancel(); return 0, ctx.Err() }))
	for _, tc := range []struct {
		what string
		ctx  context.Context //nolint:containedctx // a table's column
		r    io.Reader
	}{
		{"a reader that fails", t.Context(), broken},
		{"a reader that is short", t.Context(), bytes.NewReader(Bytes(h.Piece + 10))},
		{"a reader that is long", t.Context(), bytes.NewReader(Bytes(int(size) + 1))},
		{"a caller who leaves", ctx, canceled},
	} {
		if err := target.Put(tc.ctx, name, size, tc.r); err == nil {
			t.Errorf("%s: no error", tc.what)
		}
		isEmpty(t, target)
	}
	data := Bytes(100)
	Put(t, target, name, data)
	Holds(t, target, name, data)
}

type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func anywhere(t *testing.T, h Harness) {
	target := open(t, h.Open)
	data := Bytes(h.Piece + 1000)
	Put(t, target, name, data)
	for _, offset := range []int{1, h.Piece, len(data) - 1} {
		r, err := target.Get(t.Context(), name, int64(offset))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data[offset:]) {
			t.Errorf("from %d: %d bytes, %v; want %d", offset, len(got), err, len(data)-offset)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	// Who stops reading early leaves the target usable.
	r, err := target.Get(t.Context(), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	Holds(t, target, name, data)
	_, err = target.Get(t.Context(), "0193-instance/none", 0)
	code(t, err, offsite.CodeNoObject, "get what is not there")
}

func lists(t *testing.T, h Harness) {
	target := open(t, h.Open)
	isEmpty(t, target)
	names := []string{"a/agnes-1", "a/agnes-2", "ab/agnes-1", "b/agnes-1"}
	for _, n := range []string{names[3], names[1], names[2], names[0]} {
		Put(t, target, n, []byte(n))
	}
	for prefix, want := range map[string][]string{"": names, "a/": names[:2], "a": names[:3], "a/agnes-2": names[1:2], "c/": nil} {
		list, err := target.List(t.Context(), prefix)
		var got []string
		for _, o := range list {
			got = append(got, o.Name)
		}
		if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("list %q = %v, %v; want %v", prefix, got, err, want)
		}
	}
}

func deletes(t *testing.T, h Harness) {
	target := open(t, h.Open)
	Put(t, target, name, []byte("x"))
	Put(t, target, name+".other", []byte("y"))
	for range 2 {
		if err := target.Delete(t.Context(), name); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := target.Get(t.Context(), name, 0); !offsite.HasCode(err, offsite.CodeNoObject) {
		t.Errorf("get what was deleted: %v", err)
	}
	Holds(t, target, name+".other", []byte("y"))
}

func says(t *testing.T, f func(*testing.T) offsite.Target, want string) {
	target := open(t, f)
	_, err := target.List(t.Context(), "")
	code(t, err, want, "list")
	_, err = target.Get(t.Context(), name, 0)
	code(t, err, want, "get")
	code(t, target.Put(t.Context(), name, 1, strings.NewReader("x")), want, "put")
	code(t, target.Delete(t.Context(), name), want, "delete")
}
