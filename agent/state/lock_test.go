package state

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// startHelper runs this test binary as another process. Its first line of
// output is returned; closing stdin ends it.
func startHelper(t *testing.T, role string, args ...string) (*exec.Cmd, *bufio.Reader, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("helper %s said nothing: %v", role, err)
	}
	return cmd, r, strings.TrimSpace(line)
}

func TestLockRefusesASecondProcessAndEndsWithTheFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, _, line := startHelper(t, "lock", dir)
	if !strings.HasPrefix(line, "locked") {
		t.Fatal(line)
	}
	_, err := Lock(dir)
	pid := fmt.Sprint(first.Process.Pid)
	wantProblem(t, err, problem.Refused, "pid "+pid, "kill "+pid)

	if err := first.Process.Kill(); err != nil { // kill -9: nothing can clean up
		t.Fatal(err)
	}
	_ = first.Wait()
	l, err := Lock(dir)
	if err != nil {
		t.Fatalf("after kill -9 of the holder: %v", err)
	}
	if _, err := Lock(dir); err == nil {
		t.Error("the same process locked twice")
	}
	_, _, line = startHelper(t, "lock", dir)
	if !strings.HasPrefix(line, "error refused") || !strings.Contains(line, fmt.Sprint(os.Getpid())) {
		t.Errorf("another process got %q", line)
	}
	if err := l.Close(); err != nil || l.Close() != nil {
		t.Errorf("Close: %v", err)
	}
	if l, err = Lock(dir); err != nil {
		t.Fatalf("after Close: %v", err)
	}
	_ = l.Close()
}

func TestLockOnSomethingThatIsNoDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		_, err := Lock(dir)
		wantProblem(t, err, problem.Unavailable, file)
	}
}

func TestSecretIsCreatedExactlyOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state", ".jwt_secret")
	const threads, processes = 16, 4
	got := make([]string, threads+processes)
	var wg sync.WaitGroup
	for i := range processes {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], path)
			cmd.Env = append(os.Environ(), helperEnv+"=secret")
			out, err := cmd.Output()
			got[threads+i] = fmt.Sprint(strings.TrimSpace(string(out)), err)
		})
	}
	for i := range threads {
		wg.Go(func() {
			s, err := EnsureSecret(quiet(), path)
			got[i] = fmt.Sprint(s.Reveal(), err)
		})
	}
	wg.Wait()
	for _, g := range got {
		if g != got[0] || !strings.HasSuffix(g, "<nil>") || len(g) < 43 {
			t.Errorf("got %q and %q", got[0], g)
		}
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestSecretThatIsThereWinsOrIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	own := strings.Repeat("own secret ", 5)
	open := write("open", own+"\n", 0o644)
	if got, err := EnsureSecret(quiet(), open); err != nil || got != redact.Secret(strings.TrimSpace(own)) {
		t.Errorf("got %q, %v", got.Reveal(), err)
	}
	if fi, _ := os.Stat(open); fi.Mode() != 0o600 {
		t.Errorf("mode %v after EnsureSecret", fi.Mode())
	}
	for name, content := range map[string]string{"empty": "", "short": "0123456789", "blank": strings.Repeat(" \n", 40)} {
		p := write(name, content, 0o600)
		_, err := EnsureSecret(quiet(), p)
		wantProblem(t, err, problem.Unavailable, p, "rm "+p)
		if strings.TrimSpace(content) != "" && strings.Contains(err.Error(), content) {
			t.Errorf("the error shows the secret: %v", err)
		}
		if after, _ := os.ReadFile(p); string(after) != content {
			t.Errorf("%s was changed", name)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := EnsureSecret(quiet(), filepath.Join(dir, "folder"))
	wantProblem(t, err, problem.Unavailable, "folder")
}

func TestWriteFileAtomicReplacesContentAndMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := filepath.Join(dir, "instance.yaml")
	if err := os.WriteFile(p, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteFileAtomic(p, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(p)
	fi, serr := os.Stat(p)
	if err != nil || serr != nil || string(data) != "new" || fi.Mode() != 0o600 {
		t.Errorf("%q %v %v %v", data, fi.Mode(), err, serr)
	}
	if err := WriteFileAtomic(filepath.Join(dir, "no", "such"), nil, 0o600); err == nil {
		t.Error("no error without a directory")
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Errorf("left over: %v", left)
	}
}

func TestCloseIsIdempotentAndTellsLaterCallers(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, t.TempDir())
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantProblem(t, s.Canary(context.Background()), problem.Unavailable)
	_, err := s.ListUsers(context.Background())
	wantProblem(t, err, problem.Unavailable)
	if s.WALBytes() != 0 {
		t.Error("Close left a write-ahead log")
	}
}

func TestALongLogIsCheckpointedAheadOfTime(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := mustOpen(t, t.TempDir()) // the regular checkpoint is an hour away
	grown := int64(0)
	for i := 0; grown <= walSoftLimit; i++ {
		u := newUser(fmt.Sprintf("u%d@b.c", i), RoleAnalyst)
		u.Name = strings.Repeat("long", 1<<18)
		if _, err := s.CreateUser(ctx, u, By{}); err != nil {
			t.Fatal(err)
		}
		grown += 1 << 20
	}
	for deadline := time.Now().Add(30 * time.Second); s.WALBytes() > walSoftLimit/2; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log still has %d bytes", s.WALBytes())
		}
	}
}
