package deploy_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/local"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("HOLD_LEASE"); dir != "" {
		hold(dir)
	}
	os.Exit(m.Run())
}

// hold is another process that takes the lease of a directory and keeps it.
func hold(dir string) {
	l := deploy.NewLease(local.New(), dir, "child", 3*time.Second)
	if _, _, err := l.Take(context.Background(), 0); err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
	fmt.Println("held")
	select {}
}

func child(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HOLD_LEASE="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "held\n" {
		t.Fatalf("the other process said %q, %v", line, err)
	}
	return cmd
}

func TestALeaseThatIsTakenIsRefusedAndNamesItsOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child(t, dir)
	_, _, err := deploy.NewLease(local.New(), dir, "second", 3*time.Second).Take(t.Context(), 0)
	if !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "child") {
		t.Fatalf("expected a refusal that names the owner, found %v", err)
	}
}

func TestALeaseIsKeptPastItsTermWhileItsOwnerLives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child(t, dir)
	began := time.Now()
	_, _, err := deploy.NewLease(local.New(), dir, "second", 3*time.Second).Take(t.Context(), 5*time.Second)
	if !problem.Is(err, problem.Refused) {
		t.Fatalf("after %s: expected a refusal, found %v", time.Since(began), err)
	}
}

func TestTheLeaseOfAKilledProcessIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := child(t, dir)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	_, release, err := deploy.NewLease(local.New(), dir, "second", time.Hour).Take(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := os.Stat(filepath.Join(dir, ".agnes/lease")); !os.IsNotExist(err) {
		t.Errorf("the lease is left after its release: %v", err)
	}
}

func TestTheLeaseOfAnotherMachineEndsByItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := deploy.NewLease(local.New(), dir, "first", 3*time.Second)
	if out, err := first.TakeAs("elsewhere [other-boot 1 1]"); err != nil {
		t.Fatal(out, err)
	}
	_, release, err := deploy.NewLease(local.New(), dir, "second", 3*time.Second).Take(t.Context(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestOfManyAtOnceOneHoldsTheLease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var holding, most atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			l := deploy.NewLease(local.New(), dir, fmt.Sprint("operator ", i), 30*time.Second)
			_, release, err := l.Take(t.Context(), time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			most.Store(max(most.Load(), holding.Add(1)))
			holding.Add(-1)
			release()
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held the lease at once", most.Load())
	}
}

func TestALostLeaseEndsItsWork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	work, release, err := deploy.NewLease(local.New(), dir, "first", 3*time.Second).Take(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := os.WriteFile(filepath.Join(dir, ".agnes/lease"), []byte("another\n9999999999\nsomebody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-work.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the work goes on although the lease is lost")
	}
}

func TestACommandThatHasWaitedLooksAtTheLeaseWhenItsTurnHasCome(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := deploy.NewLease(local.New(), dir, "first", time.Hour)
	if _, release, err := l.Take(t.Context(), 0); err != nil {
		t.Fatal(err)
	} else {
		defer release()
	}
	// A command that a lost connection left behind.
	left := exec.Command("flock", filepath.Join(dir, ".agnes/command.lock"), "sh", "-c", "echo held; read -r end")
	end, err := left.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := left.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Change(t.Context(), "touch", "changed")
		done <- err
	}()
	waits(t, filepath.Join(dir, ".agnes/command.lock"))
	if err := os.WriteFile(filepath.Join(dir, ".agnes/lease"), []byte("another\n9999999999\nsomebody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = end.Close()
	_ = left.Wait() // sh ends with 1: nothing was to be read
	if err := <-done; !problem.Is(err, problem.Refused) {
		t.Errorf("the command of a lost lease: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "changed")); err == nil {
		t.Error("it ran although the host is another's")
	}
}

// waits returns when a process waits for the lock of a file.
func waits(t *testing.T, file string) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(file, &stat); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "->") && strings.Contains(line, fmt.Sprintf(":%d ", stat.Ino)) {
				return
			}
		}
	}
	t.Fatal("nobody waits for the lock")
}

func TestADigestThatWasSeenByAWrongClockIsSeenAnew(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Now().UTC().Truncate(time.Second)
	see := func(at time.Time) time.Time {
		t.Helper()
		seen, err := deploy.FirstSeen(t.Context(), local.New(), dir, "sha256:a", at)
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	see(now.AddDate(10, 0, 0))
	for _, later := range []time.Duration{0, time.Hour} {
		if seen := see(now.Add(later)); !seen.Equal(now) {
			t.Errorf("%s after the clock was set right it was first seen at %s, want %s", later, seen, now)
		}
	}
}
