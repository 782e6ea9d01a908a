package query_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// TestPlayWorker is no test: processes that engineOf starts run it.
func TestPlayWorker(t *testing.T) {
	if flag.NArg() < 2 || flag.Arg(0) != "play" {
		return
	}
	var err error
	switch role := flag.Arg(1); role {
	case "probe":
		err = query.ProbeWorker(probe)
	case "probe without Landlock":
		if err = query.WithoutLandlock(); err == nil {
			err = query.ProbeWorker(probe)
		}
	default:
		err = query.LyingWorker(role)
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// engineOf is an engine whose workers play a role of TestPlayWorker.
func engineOf(t *testing.T, role string) *query.Engine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	e, err := query.New(t.Context(), query.Options{Command: []string{self, "-test.run=^TestPlayWorker$", "--", "play", role}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// probed is what a worker says of itself.
type probed struct {
	Reached []string // what it could do and must not
	Granted string   // first bytes of the granted file
	Env     []string
	Dir     string
	Limits  map[string]uint64
	Nice    int
}

// probing says what to try.
type probing struct {
	Granted, Hidden, Dir, TCP, Binary string
	Parent                            int
	Attempts                          bool // without a sandbox, some would succeed: tracing stops the server
}

// probe tries, from inside a bound worker and on several of its threads, what
// no statement may reach even when it runs native code there.
func probe(statement string) any {
	var in probing
	if err := json.Unmarshal([]byte(statement), &in); err != nil {
		return err.Error()
	}
	out := probed{Env: os.Environ(), Limits: map[string]uint64{}}
	out.Dir, _ = os.Getwd()
	for name, resource := range map[string]int{"data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE, "core": unix.RLIMIT_CORE, "nofile": unix.RLIMIT_NOFILE} {
		var l unix.Rlimit
		if unix.Getrlimit(resource, &l) == nil && l.Cur == l.Max {
			out.Limits[name] = l.Max
		}
	}
	nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	out.Nice = 20 - nice // getpriority(2), the raw system call
	if data, err := os.ReadFile(in.Granted); err == nil {
		out.Granted = string(data[:4])
	}
	if !in.Attempts {
		return out
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread() // a thread of its own
			reached := attempts(in)
			mu.Lock()
			defer mu.Unlock()
			out.Reached = append(out.Reached, reached...)
		})
	}
	wg.Wait()
	slices.Sort(out.Reached)
	out.Reached = slices.Compact(out.Reached)
	return out
}

// attempts returns what succeeded.
func attempts(in probing) (reached []string) {
	try := func(what string, f func() error) {
		if err := f(); err == nil {
			reached = append(reached, what)
		}
	}
	open := func(path string, flags int) func() error {
		return func() error {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
			if err == nil {
				_ = unix.Close(fd)
			}
			return err
		}
	}
	parent := fmt.Sprintf("/proc/%d/", in.Parent)
	for _, path := range []string{
		in.Hidden, in.Binary, filepath.Dir(in.Granted), in.Dir, "/", "/proc", "/tmp",
		"/etc/passwd", "/etc/hosts", "/proc/self/environ", "/proc/self/maps", "/proc/self/mem", "/proc/self/exe", "/proc/self/fd",
		"/proc/1/environ", parent + "environ", parent + "mem", parent + "maps", parent + "fd", parent + "cwd", "/dev/mem", "/dev/zero",
		filepath.Join(filepath.Dir(in.Granted), "..", filepath.Base(filepath.Dir(in.Granted)), filepath.Base(in.Hidden)),
	} {
		try("read "+path, open(path, unix.O_RDONLY))
	}
	for name, flags := range map[string]int{"write-only": unix.O_WRONLY, "read-write": unix.O_RDWR, "truncate": unix.O_WRONLY | unix.O_TRUNC, "append": unix.O_WRONLY | unix.O_APPEND} {
		try("open the granted file "+name, open(in.Granted, flags))
	}
	made := filepath.Join(in.Dir, "made")
	for _, path := range []string{made, "/tmp/agnes-probe-made", "/dev/shm/agnes-probe-made"} {
		try("create "+path, open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL))
	}
	try("temporary file", open("/tmp", unix.O_TMPFILE|unix.O_RDWR))
	try("truncate the granted file", func() error { return unix.Truncate(in.Granted, 0) })
	try("unlink the granted file", func() error { return unix.Unlink(in.Granted) })
	try("rename the granted file", func() error { return unix.Rename(in.Granted, made) })
	try("rename over the granted file", func() error { return unix.Rename(in.Hidden, in.Granted) })
	try("hard link", func() error { return unix.Link(in.Granted, made) })
	try("symbolic link", func() error { return unix.Symlink("/etc/passwd", made) })
	try("folder", func() error { return unix.Mkdir(made, 0o700) })
	try("named pipe", func() error { return unix.Mkfifo(made, 0o600) })
	try("mount", func() error { return unix.Mount("none", in.Dir, "tmpfs", 0, "") })
	try("run its own binary", func() error {
		pid, err := unix.Open(in.Binary, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(pid) }()
		_, err = os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		return err
	})
	try("TCP connect", func() error {
		c, err := net.DialTimeout("tcp", in.TCP, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	try("TCP listen", func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			_ = l.Close()
		}
		return err
	})
	try("signal the server", func() error { return unix.Kill(in.Parent, 0) })
	try("trace the server", func() error { return unix.PtraceAttach(in.Parent) })
	try("read the server's memory", func() error {
		buf := make([]byte, 8)
		local := []unix.Iovec{{Base: &buf[0], Len: 8}}
		_, err := unix.ProcessVMReadv(in.Parent, local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		return err
	})
	for name, resource := range map[string]int{"data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE} {
		try("lift a limit as an ordinary user: "+name, func() error {
			if os.Geteuid() == 0 {
				return errors.New("root may lift limits; the bar is for others")
			}
			return unix.Setrlimit(resource, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
		})
	}
	return reached
}

// children are the processes that this one has started, zombies included.
func children(t *testing.T) []int {
	t.Helper()
	var pids []int
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		data, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if fields[1] == strconv.Itoa(os.Getpid()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func runProbe(t *testing.T, role string) (*query.Engine, probing, probed) {
	t.Helper()
	dir := t.TempDir()
	granted := parquet(t, dir, "granted", "SELECT 1 AS v")
	hidden := filepath.Join(dir, "state", "system.duckdb")
	if err := errors.Join(os.Mkdir(filepath.Dir(hidden), 0o700), os.WriteFile(hidden, []byte("secret"), 0o600)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in := probing{Granted: granted.Files[0], Hidden: hidden, Dir: dir, TCP: ln.Addr().String(), Binary: self, Parent: os.Getpid(), Attempts: role == "probe"}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	e := engineOf(t, role)
	var body bytes.Buffer
	_, err = e.Run(t.Context(), query.Request{Generation: 1, Views: []query.View{granted}, SQL: string(text), Timeout: 30 * time.Second},
		func(query.Columns) (io.Writer, error) { return &body, nil })
	if err != nil {
		t.Fatal(err)
	}
	var out probed
	if err := json.Unmarshal(body.Bytes(), &out); err != nil {
		t.Fatalf("%v in %s", err, body.Bytes())
	}
	return e, in, out
}

func TestABoundWorkerReachesNothingButTheGrantedFiles(t *testing.T) {
	t.Setenv("AGNES_PROBE_SECRET", "s3cr3t") // must not be inherited
	leaked, err := os.Open("/etc/hostname")  // must not be inherited either
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leaked.Close() }()
	e, in, out := runProbe(t, "probe")
	if !strings.Contains(e.Isolation(), "Landlock ABI") {
		if os.Getenv("CI") != "" {
			t.Fatalf("NOT RUN: isolation %q; expected a kernel with Landlock", e.Isolation())
		}
		t.Skipf("NOT RUN: isolation %q; needs a kernel with Landlock", e.Isolation())
	}
	if out.Granted != "PAR1" {
		t.Errorf("the granted file starts with %q, want PAR1", out.Granted)
	}
	for _, reached := range out.Reached {
		t.Errorf("a bound worker could: %s", reached)
	}
	if want := []string{"GLIBC_TUNABLES=glibc.malloc.tcache_count=1000", "GOMAXPROCS=2", "GOMEMLIMIT=64MiB", "TZ=UTC"}; !slices.Equal(slices.Sorted(slices.Values(out.Env)), want) {
		t.Errorf("environment = %q, want %q", out.Env, want)
	}
	if out.Dir != "/" {
		t.Errorf("directory = %q, want /", out.Dir)
	}
	for name, most := range map[string]uint64{"data": 1<<30 + 512<<20, "fsize": 0, "core": 0, "nofile": 1024} {
		if got, ok := out.Limits[name]; !ok || got > most {
			t.Errorf("limit %s = %d (set: %t), want at most %d, soft and hard", name, got, ok, most)
		}
	}
	if out.Nice < 5 {
		t.Errorf("nice = %d, want at least 5", out.Nice)
	}
	for path, want := range map[string]string{in.Hidden: "secret"} {
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			t.Errorf("%s = %q, %v after the probe, want %q", path, data, err, want)
		}
	}
	checkOutside(t)
}

// checkOutside looks at this process's children from the outside: descriptors
// and threads.
func checkOutside(t *testing.T) {
	t.Helper()
	seen := 0
	for _, pid := range children(t) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, pid))
		if err != nil || !bytes.Contains(status, []byte("NoNewPrivs:\t1")) {
			continue // a spare that is not bound yet, or another test's
		}
		seen++
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if status, err := os.ReadFile(thread); err == nil && !bytes.Contains(status, []byte("NoNewPrivs:\t1")) {
				t.Errorf("%s is outside of the sandbox that its process is in", thread)
			}
		}
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			n, _ := strconv.Atoi(filepath.Base(fd))
			// epoll, eventfd and CPU limits of Go's runtime
			own := strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/sys/fs/cgroup/")
			std := n <= 2 && target == "/dev/null"
			control := n == 3 && strings.HasPrefix(target, "socket:")
			stream := n == 4 && strings.HasPrefix(target, "pipe:")
			if !own && !std && !control && !stream {
				t.Errorf("worker %d has descriptor %d -> %s", pid, n, target)
			}
		}
	}
	if seen == 0 {
		t.Error("no bound worker was found to look at")
	}
}

func TestWithoutLandlockTheIsolationSaysSo(t *testing.T) {
	e, _, out := runProbe(t, "probe without Landlock")
	if got := e.Isolation(); !strings.Contains(got, "no Landlock") || strings.Contains(got, "ABI") {
		t.Errorf("Isolation = %q, want it to say that Landlock is missing", got)
	}
	if out.Limits["fsize"] != 0 || out.Limits["data"] == 0 {
		t.Errorf("limits = %v, want them set even so", out.Limits)
	}
}

// A worker that breaks the protocol costs the statement that it ran, in time,
// and nothing else.
func TestALyingWorkerCostsOneQuery(t *testing.T) {
	t.Parallel()
	for _, lie := range []string{
		"dies at once", "never answers the bind", "answers the bind with garbage", "answers the bind with another frame",
		"answers the bind with broken JSON", "dies in the middle of the bind's answer", "announces a frame of 4 GB", "never answers the query",
		"answers with an unknown frame", "starts with broken JSON", "ends with broken JSON", "fails with broken JSON",
		"dies in the middle of a frame", "dies after some rows", "kills itself",
	} {
		t.Run(lie, func(t *testing.T) {
			t.Parallel()
			e := engineOf(t, lie)
			for range 2 {
				began := time.Now()
				_, err := e.Run(context.Background(), query.Request{SQL: "SELECT 1", Timeout: 2 * time.Second},
					func(query.Columns) (io.Writer, error) { return io.Discard, nil })
				if err == nil {
					t.Fatal("a lie was taken for an answer")
				}
				if p := problem.As(err); p.Kind == problem.Internal || p.Hint == "" {
					t.Errorf("error = %v (kind %s, hint %q), want a problem with a hint", err, p.Kind, p.Hint)
				}
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("it took %s, want at most the deadline of 2 s and a bit", took)
				}
			}
		})
	}
}
