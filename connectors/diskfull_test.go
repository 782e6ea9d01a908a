package connectors

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// smallDisk mounts a file system of 4 MiB, which only root may do.
func smallDisk(t *testing.T) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		return "", false
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, true
}

func TestFullDiskIsNamedAndChangesNothing(t *testing.T) {
	t.Parallel()
	disk, ok := smallDisk(t)
	if !ok {
		if os.Geteuid() == 0 && os.Getenv("CI") != "" {
			t.Fatal("root could not mount a tmpfs")
		}
		t.Log("no tmpfs here: only the error's translation is tested")
		if err := WriteError(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, "write x"); !problem.Is(err, problem.NoSpace) {
			t.Errorf("WriteError = %v", err)
		}
		return
	}
	extracts := filepath.Join(disk, "extracts")
	if err := build(t.Context(), extracts, 1, nil); err != nil {
		t.Fatal(err)
	}
	// How much is free decides which step meets the full disk.
	for _, free := range []int{0, 20, 100, 300} {
		filler := filepath.Join(disk, "filler")
		fill(t, filler, free<<10)
		err := build(t.Context(), extracts, 2, nil)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		// put is DuckDB's own COPY: what it says must be understood as well.
		if err = WriteError(err, "write"); !problem.Is(err, problem.NoSpace) || problem.As(err).Hint == "" {
			t.Errorf("%d KiB free: %v, want no space", free, err)
		}
		if left := leftovers(t, extracts); left != nil {
			t.Errorf("%d KiB free: the staging folder holds %v", free, left)
		}
		if got := version(t, extracts); got != "1" {
			t.Errorf("%d KiB free: version = %s", free, got)
		}
	}
	if err := build(t.Context(), extracts, 2, nil); err != nil || version(t, extracts) != "2" {
		t.Errorf("with space again: %v", err)
	}
}

// fill writes a file until only free bytes are left.
func fill(t *testing.T, path string, free int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := []byte(strings.Repeat("x", 4096))
	var size int64
	for err == nil {
		_, err = f.Write(block)
		size += int64(len(block))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, size-int64(len(block))-int64(free))); err != nil {
		t.Fatal(err)
	}
}

func TestWriteErrorKeepsWhatItKnows(t *testing.T) {
	t.Parallel()
	if WriteError(nil, "x") != nil {
		t.Error("nil became an error")
	}
	if err := WriteError(context.Canceled, "x"); !errors.Is(err, context.Canceled) || problem.Is(err, problem.NoSpace) {
		t.Errorf("a canceled context became %v", err)
	}
	for err, kind := range map[error]problem.Kind{
		errors.New("IO Error: Could not write file: No space left on device"): problem.NoSpace,
		&os.PathError{Op: "open", Err: syscall.EROFS}:                         problem.Unavailable,
		problem.New(problem.Conflict, "m", "h"):                               problem.Conflict,
	} {
		if got := WriteError(err, "write x"); !problem.Is(got, kind) {
			t.Errorf("WriteError(%v) = %v, want %s", err, got, kind)
		}
	}
}
