package analytics

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// A full disk is a tmpfs in a mount namespace of a child process, which needs
// no rights where users may make namespaces.
func TestAFullDiskKeepsTheGenerationThatIsServed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	child := f.helper("full-disk", f.dir, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
	})
	if err := child.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, child.Stderr)
	}
	t.Log(child.Stdout)
}

func publishToFullDisk(dir string) (err error) {
	defer asError(&err)
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	f := fixtureAt(standalone{}, dir)
	f.foreign("far", tbl("w", "SELECT 1 AS v"))
	f.commit("own", tbl("t", "SELECT 1 AS v"))
	s := f.open()
	tables := append(bind("own.t"), bind("far.w")...)
	first := f.publish(s, tables...)

	f.commit("own", tbl("t", "SELECT 2 AS v"))
	// A foreign table of 2 MB, which has to be copied.
	f.foreign("far", tbl("w", "SELECT 2 AS v, repeat(md5(range::VARCHAR), 8) AS noise FROM range(60000)"))
	filler := filepath.Join(dir, "filler")
	free := func() int64 {
		var st syscall.Statfs_t
		f.must(syscall.Statfs(dir, &st))
		return int64(st.Bavail) * st.Bsize
	}
	for _, left := range []int64{0, 4 << 10, 64 << 10, 1 << 20, 2<<20 + 64<<10} {
		_ = os.Remove(filler)
		total := free()
		if total < left {
			return fmt.Errorf("only %d bytes free at the start", total)
		}
		out, err := os.Create(filler)
		f.must(err)
		f.must(syscall.Fallocate(int(out.Fd()), 0, 0, total-left))
		f.must(out.Close())

		_, err = s.Publish(context.Background(), tables)
		var p *problem.Error
		if !errors.As(err, &p) || p.Kind != problem.NoSpace || p.Hint == "" {
			return fmt.Errorf("with %d bytes free: expected a lack of space, found %w", left, err)
		}
		if got := f.onDisk(); !slices.Equal(got, []string{"00000001"}) {
			return fmt.Errorf("with %d bytes free: expected one generation, found %v", left, got)
		}
		if now := free(); now < left-(8<<10) {
			return fmt.Errorf("with %d bytes free: %d afterwards, so something was left", left, now)
		}
		g, ok := s.Acquire()
		if !ok || g.ID != first.Generation.ID {
			return fmt.Errorf("with %d bytes free: the generation before is not served", left)
		}
		if got := f.one(filepath.Join(f.analytics(), databaseFile), "SELECT t.v + w.v FROM t, w"); got != "2" {
			return fmt.Errorf("with %d bytes free: expected 2, found %s", left, got)
		}
		g.Release()
	}
	f.must(os.Remove(filler))
	p := f.publish(s, tables...)
	if len(p.Failed) > 0 {
		return fmt.Errorf("with space again: %v", p.Failed)
	}
	entries, err := os.ReadDir(f.analytics())
	f.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != "generations server.duckdb" {
		return fmt.Errorf("rubbish was left: %v", names)
	}
	fmt.Print("refused at every size, published when there was space")
	return nil
}
