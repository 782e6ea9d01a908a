package state

import (
	"bytes"
	"context"
	"encoding/binary"
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

const inMain, inWAL = 5, 20

// crashed is a state directory as kill -9 leaves it: users u00..u04 are in the
// main file, u05..u24 in the write-ahead log only.
type crashed struct{ main, wal []byte }

func crash(t testing.TB) crashed {
	t.Helper()
	dir := t.TempDir()
	s := mustOpen(t, dir)
	for i := range inMain + inWAL {
		mustUser(t, s, fmt.Sprintf("u%02d@b.c", i), RoleAnalyst)
		if i == inMain-1 {
			if err := s.Checkpoint(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return readCrashed(t, dir)
}

func readCrashed(t testing.TB, dir string) crashed {
	t.Helper()
	main, err := os.ReadFile(filepath.Join(dir, databaseFile))
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(filepath.Join(dir, databaseFile+".wal"))
	if err != nil {
		t.Fatal(err)
	}
	return crashed{main, wal}
}

func (c crashed) writeTo(t testing.TB, dir string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, databaseFile), c.main, 0o600); err != nil {
		t.Fatal(err)
	}
	if c.wal != nil {
		if err := os.WriteFile(filepath.Join(dir, databaseFile+".wal"), c.wal, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func flip(data []byte, at, n int) []byte {
	out := bytes.Clone(data)
	for i := at; i < min(at+n, len(out)); i++ {
		out[i] ^= 0xff
	}
	return out
}

// checkRecovered opens a damaged directory and asserts what must hold for any
// damage of the log: it opens, nothing of the main file is missing, what came
// back is everything up to some point, a loss of whole commits is told, the
// log is in quarantine, and what is written from then on survives a crash.
func checkRecovered(t *testing.T, name string, c crashed, torn bool) {
	t.Helper()
	dir := c.writeTo(t, t.TempDir())
	s, err := Open(context.Background(), testOptions(dir))
	if err != nil {
		t.Errorf("%s: the start failed: %v", name, err)
		return
	}
	got := emails(t, s)
	for i, e := range got {
		if e != fmt.Sprintf("u%02d@b.c", i) {
			t.Errorf("%s: user %d is %s: not everything up to a point", name, i, e)
		}
	}
	if len(got) < inMain {
		t.Errorf("%s: %d users of %d in the main file are left", name, len(got), inMain)
	}
	kept, _ := filepath.Glob(filepath.Join(dir, quarantineDir, databaseFile+".wal-*"))
	if len(got) < inMain+inWAL && !torn {
		if len(s.Warnings()) == 0 {
			t.Errorf("%s: %d of %d users, and no warning", name, len(got), inMain+inWAL)
		}
		if len(kept) != 1 {
			t.Errorf("%s: in quarantine: %v", name, kept)
		}
	}
	if len(s.Warnings()) > 0 {
		if len(kept) != 1 || !strings.Contains(s.Warnings()[0], kept[0]) {
			t.Errorf("%s: warning %q does not name %v", name, s.Warnings(), kept)
		} else if data, _ := os.ReadFile(kept[0]); !bytes.Equal(data, c.wal) {
			t.Errorf("%s: the log in quarantine is not the damaged one", name)
		}
	}
	mustUser(t, s, "later@b.c", RoleAnalyst)
	again := readCrashed(t, dir)
	if err := s.Close(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	s = mustOpen(t, again.writeTo(t, t.TempDir()))
	if after := emails(t, s); !slices.Equal(after, append([]string{"later@b.c"}, got...)) {
		t.Errorf("%s: after another crash: %v, before it %v", name, after, got)
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("%s: the second start warns: %v", name, w)
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func TestIntactLogIsReplayedWithoutAWarning(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, crash(t).writeTo(t, t.TempDir()))
	if got := emails(t, s); len(got) != inMain+inWAL {
		t.Errorf("%d users", len(got))
	}
	if len(s.Warnings()) > 0 || s.WALBytes() != 0 {
		t.Errorf("warnings %v, log of %d bytes", s.Warnings(), s.WALBytes())
	}
}

func TestDamagedLogNeverStopsTheStart(t *testing.T) {
	t.Parallel()
	good, other := crash(t), crash(t)
	with := func(wal []byte) crashed { return crashed{good.main, wal} }
	n := len(good.wal)

	for _, cut := range []int{1, 2, 37, n / 3, n / 2, n - 1, n - 20, n} {
		checkRecovered(t, fmt.Sprintf("truncated by %d", cut), with(good.wal[:n-cut]), true)
	}
	for i := range 10 {
		at := i * n / 10
		checkRecovered(t, fmt.Sprintf("byte %d of %d flipped", at, n), with(flip(good.wal, at, 1)), false)
	}
	for i := range 6 { // the low bytes of a size field, where DuckDB is mostly silent
		head, _ := walHead(good.wal)
		checkRecovered(t, fmt.Sprintf("byte %d flipped", head+i), with(flip(good.wal, head+i, 1)), false)
	}
	checkRecovered(t, "64 bytes in the middle flipped", with(flip(good.wal, n/2, 64)), false)
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(i*7 + i/3)
	}
	checkRecovered(t, "garbage", with(noise), false)
	checkRecovered(t, "zeros", with(make([]byte, 5000)), false)
	checkRecovered(t, "garbage after the log", with(append(bytes.Clone(good.wal), noise...)), false)
	checkRecovered(t, "zeros after the log", with(append(bytes.Clone(good.wal), make([]byte, 500)...)), false)
	checkRecovered(t, "the log of another database", with(other.wal), false)
}

func TestDamagedMainFileIsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	good := crash(t)
	for name, main := range map[string][]byte{
		"first header":  flip(good.main, 40, 8),
		"both headers":  flip(flip(good.main, 4096+10, 8), 8192+10, 8),
		"no database":   []byte("hello, this is a text\n"),
		"empty":         {},
		"cut in a half": good.main[:len(good.main)/2],
		"cut to 100":    good.main[:100],
		"all blocks":    flip(good.main, 12288, len(good.main)),
	} {
		for _, wal := range [][]byte{nil, good.wal} {
			bad := crashed{main, wal}
			dir := bad.writeTo(t, t.TempDir())
			snap := filepath.Join(dir, snapshotsDir, "system-schema0001-20260401T120000.000000Z.duckdb")
			copyTestFile(t, filepath.Join(dir, databaseFile), snap)
			_, err := Open(context.Background(), testOptions(dir))
			if err == nil {
				t.Errorf("%s: opened", name)
				continue
			}
			p := wantProblem(t, err, problem.Internal, filepath.Join(dir, databaseFile), snap)
			if p.WireCode() != "state_damaged" {
				t.Errorf("%s: code %s (%v)", name, p.WireCode(), err)
			}
			after, _ := os.ReadFile(filepath.Join(dir, databaseFile))
			log, _ := os.ReadFile(filepath.Join(dir, databaseFile+".wal"))
			if wal == nil && !bytes.Equal(after, main) {
				t.Errorf("%s: the damaged file was changed", name)
			}
			if len(wal) > 0 && len(log) == 0 && bytes.Equal(after, main) {
				t.Errorf("%s: the log is gone though it was not replayed", name)
			}
		}
	}
}

func TestDamageThatShowsLaterIsNamed(t *testing.T) {
	t.Parallel()
	ctx, dir := context.Background(), t.TempDir()
	s := mustOpen(t, dir)
	err := s.failed(fmt.Errorf("IO Error: Corrupt database file: computed checksum 1 does not match"))
	wantProblem(t, err, problem.Internal, s.path)
	if err := s.Canary(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFileOfANewerDuckDBIsRefused(t *testing.T) {
	t.Parallel()
	c := crash(t)
	c.main[12] = 99 // storage version; the block's checksum is over what follows it
	sum := uint64(5381)
	for i := 8; i < 4096; i += 8 {
		sum ^= binary.LittleEndian.Uint64(c.main[i:]) * 0xbf58476d1ce4e5b9
	}
	binary.LittleEndian.PutUint64(c.main, sum)
	dir := c.writeTo(t, t.TempDir())
	_, err := Open(context.Background(), testOptions(dir))
	if p := wantProblem(t, err, problem.Refused, "newer DuckDB"); p.WireCode() != "state_format_newer" {
		t.Errorf("code %s", p.WireCode())
	}
	if after := readCrashed(t, dir); !bytes.Equal(after.main, c.main) || !bytes.Equal(after.wal, c.wal) {
		t.Error("the refused files were changed")
	}
}

func TestDatabaseHeldByAnotherProgramIsRefused(t *testing.T) {
	t.Parallel()
	dir := crash(t).writeTo(t, t.TempDir())
	cmd, _, line := startHelper(t, "hold", filepath.Join(dir, databaseFile))
	if line != "open" {
		t.Fatal(line)
	}
	_, err := Open(context.Background(), testOptions(dir))
	wantProblem(t, err, problem.Refused, fmt.Sprintf("kill %d", cmd.Process.Pid))
}

func TestLostMainFileIsNotReplacedByAnEmptyOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := crash(t)
	if err := os.WriteFile(filepath.Join(dir, databaseFile+".wal"), c.wal, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), testOptions(dir))
	wantProblem(t, err, problem.Refused, databaseFile+".wal")

	dir = t.TempDir()
	c.wal = nil
	c.writeTo(t, dir)
	snap := filepath.Join(dir, snapshotsDir, "system-schema0001-20260401T120000.000000Z.duckdb")
	copyTestFile(t, filepath.Join(dir, databaseFile), snap)
	if err := os.Remove(filepath.Join(dir, databaseFile)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), testOptions(dir))
	p := wantProblem(t, err, problem.Refused, snap)
	runHint(t, p.Hint)
	if got := emails(t, mustOpen(t, dir)); len(got) != inMain {
		t.Errorf("after the hint: %v", got)
	}
}

func TestHalfMadeDatabaseOfAKilledFirstStartIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{".new", ".new.wal"} {
		if err := os.WriteFile(filepath.Join(dir, databaseFile+name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustUser(t, mustOpen(t, dir), "a@b.c", RoleAdmin)
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestStateIsClosedToOtherUsers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, databaseFile): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, fi.Mode(), err, want)
		}
	}
}

// runHint runs the first command between backquotes, as a person would.
func runHint(t *testing.T, hint string) {
	t.Helper()
	parts := strings.Split(hint, "`")
	if len(parts) < 3 {
		t.Fatalf("no command in %q", hint)
	}
	if out, err := exec.Command("sh", "-c", parts[1]).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", parts[1], err, out)
	}
}

// mountTmpfs mounts a small file system, or says that the test did not run.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no tmpfs can be mounted: %v", err)
		}
		t.Skipf("DID NOT RUN: no tmpfs can be mounted (%v); run as root", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestFullDiskIsNamedAndNothingIsLost(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	mount := mountTmpfs(t, "size=4m")
	dir := filepath.Join(mount, "state")
	s := mustOpen(t, dir)
	ballast := filepath.Join(mount, "ballast")
	fill := func() {
		t.Helper()
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}
	stored := 0
	store := func() error {
		u := newUser(fmt.Sprintf("u%02d@b.c", stored), RoleAnalyst)
		u.Name = strings.Repeat("long ", 2000)
		_, err := s.CreateUser(ctx, u, By{})
		if err == nil {
			stored++
		}
		return err
	}
	for range 3 {
		if err := store(); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	for range 5 {
		var err error
		for range 10 { // the log's last page has room for a little
			if err = store(); err != nil {
				break
			}
		}
		wantProblem(t, err, problem.NoSpace, "df -h "+dir)
		wantProblem(t, s.Checkpoint(ctx), problem.NoSpace)
		if got := emails(t, s); len(got) != stored {
			t.Errorf("%d users are read, %d were stored", len(got), stored)
		}
	}
	// Make DuckDB itself meet the full disk in a checkpoint, which invalidates
	// the open database, and see it come back by itself.
	s.gate.RLock()
	_, err := s.db.Exec("CHECKPOINT")
	s.gate.RUnlock()
	if err == nil {
		t.Fatal("a checkpoint on a full disk worked: the test shows nothing")
	}
	wantProblem(t, s.failed(err), problem.NoSpace)
	if got := emails(t, s); len(got) != stored {
		t.Errorf("after a failed checkpoint %d users are read, %d were stored", len(got), stored)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := store(); err != nil {
		t.Fatalf("after space was made: %v", err)
	}
	if err := s.Checkpoint(ctx); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fill() // a start with a full disk says so, or works
	if s2, err := Open(ctx, testOptions(dir)); err != nil {
		wantProblem(t, err, problem.NoSpace)
	} else {
		_ = s2.Close()
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir)
	if got := emails(t, s); len(got) != stored {
		t.Errorf("after a restart %d users are read, %d were stored", len(got), stored)
	}
	if len(s.Warnings()) > 0 {
		t.Errorf("warnings: %v", s.Warnings())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFirstStartOnAFullDiskLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(mountTmpfs(t, "size=96k"), "state")
	_, err := Open(context.Background(), testOptions(dir))
	wantProblem(t, err, problem.NoSpace, "df -h")
	if _, err := os.Stat(filepath.Join(dir, databaseFile)); err == nil {
		t.Error("half a database is in place")
	}
}

func TestReadOnlyFileSystemIsNamed(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, "size=1m")
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "state")} {
		_, err := Open(context.Background(), testOptions(d))
		wantProblem(t, err, problem.Unavailable, "read-only", "findmnt")
		_, err = Lock(d)
		wantProblem(t, err, problem.Unavailable, "read-only")
		_, err = EnsureSecret(quiet(), filepath.Join(d, ".jwt_secret"))
		wantProblem(t, err, problem.Unavailable, "read-only")
	}
}

func TestDirectoryOfAnotherUserIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	state := filepath.Join(dir, "state")
	_, _, line := startHelper(t, "open-as-nobody", state)
	for _, want := range []string{"error unavailable", "user id", "chown -R", state} {
		if !strings.Contains(line, want) {
			t.Errorf("%q does not hold %q", line, want)
		}
	}
}

func TestFileInPlaceOfTheDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), testOptions(file))
	wantProblem(t, err, problem.Unavailable, file)
}
