package folder_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/folder"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/offsitetest"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const name = "instance/agnes-1.tar.zst.age"

func target(t *testing.T, dir, query, apart string) *folder.Target {
	t.Helper()
	u, err := offsite.ParseURL("file://" + dir + query)
	if err != nil {
		t.Fatal(err)
	}
	return folder.New(folder.Options{URL: u, Apart: apart})
}

func TestFolderConforms(t *testing.T) {
	t.Parallel()
	offsitetest.Conform(t, offsitetest.Harness{
		Piece:   1 << 20,
		Open:    func(t *testing.T) offsite.Target { return target(t, t.TempDir(), "", "") },
		Missing: func(t *testing.T) offsite.Target { return target(t, filepath.Join(t.TempDir(), "none"), "", "") },
	})
}

// mount mounts a tmpfs, which only root may.
func mount(t *testing.T, flags uintptr, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=755,size="+size); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("NOT RUN: a disk of its own cannot be mounted: %v", err)
		}
		t.Skipf("NOT RUN: a disk of its own cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAFullDiskIsNamedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := mount(t, 0, "4m")
	at := target(t, dir, "", "")
	offsitetest.Put(t, at, name, offsitetest.Bytes(1<<20))

	// Seen before the first byte.
	big := offsitetest.Bytes(6 << 20)
	if err := at.Put(t.Context(), name+"2", int64(len(big)), bytes.NewReader(big)); !offsite.HasCode(err, offsite.CodeNoSpace) || problem.As(err).Hint == "" {
		t.Errorf("put of more than is free: %v", err)
	}
	// Met on the way: somebody else fills the disk meanwhile.
	half := offsitetest.Bytes(2 << 20)
	greedy := &fillsAt{r: bytes.NewReader(half), after: 1 << 20, path: filepath.Join(dir, "ballast")}
	if err := at.Put(t.Context(), name+"3", int64(len(half)), greedy); !offsite.HasCode(err, offsite.CodeNoSpace) {
		t.Errorf("put while the disk fills: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "instance", "*")); len(files) != 1 {
		t.Errorf("in the folder: %v; want the first backup alone", files)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "instance", ".*")); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
	offsitetest.Put(t, at, name+"3", half)
	offsitetest.Holds(t, at, name+"3", half)
}

// fillsAt fills the disk once the reader has given some bytes.
type fillsAt struct {
	r     *bytes.Reader
	after int64
	path  string
}

// Read implements io.Reader.
func (f *fillsAt) Read(p []byte) (int, error) {
	if f.r.Size()-int64(f.r.Len()) >= f.after && f.path != "" {
		_ = os.WriteFile(f.path, make([]byte, 8<<20), 0o600) // until it is full
		f.path = ""
	}
	return f.r.Read(p)
}

func TestAReadOnlyDiskIsARefusal(t *testing.T) {
	t.Parallel()
	at := target(t, mount(t, unix.MS_RDONLY, "1m"), "", "")
	if err := at.Put(t.Context(), name, 1, bytes.NewReader([]byte("x"))); !offsite.HasCode(err, offsite.CodeCredentials) || problem.As(err).Hint == "" {
		t.Errorf("put: %v", err)
	}
}

func TestTheDiskOfTheDataIsNoTarget(t *testing.T) {
	t.Parallel()
	data, other := t.TempDir(), mount(t, 0, "1m")
	one := []byte("x")
	// An unmounted disk leaves an empty folder on the first one.
	same := filepath.Join(data, "..")
	err := target(t, same, "", data).Put(t.Context(), name, 1, bytes.NewReader(one))
	if !offsite.HasCode(err, offsite.CodeMissing) || problem.As(err).Hint == "" {
		t.Errorf("put on the same disk: %v", err)
	}
	offsitetest.Put(t, target(t, t.TempDir(), "?same_disk=yes", data), name, one)
	offsitetest.Put(t, target(t, other, "", data), name, one)
}

func TestLeftoversOfACrashGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old, young := filepath.Join(dir, "instance", ".partial-old"), filepath.Join(dir, "instance", ".partial-young")
	if err := os.Mkdir(filepath.Dir(old), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{old, young} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	yesterday := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(old, yesterday, yesterday); err != nil {
		t.Fatal(err)
	}
	at := target(t, dir, "", "")
	offsitetest.Put(t, at, name, []byte("x"))
	if _, err := os.Stat(old); err == nil {
		t.Error("a leftover of yesterday stays")
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("an upload that may still run was removed: %v", err)
	}
	if list, err := at.List(t.Context(), ""); err != nil || len(list) != 1 {
		t.Errorf("list = %v, %v; want the backup alone", list, err)
	}
}
