//go:build bench

package monitor_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

const simulatorRole = "AGNES_MONITOR_SIMULATOR" // of this binary: how many instances it is

// benchRole plays the fleet where this process is to be it.
func benchRole() bool {
	n, err := strconv.Atoi(os.Getenv(simulatorRole))
	if err != nil {
		return false
	}
	s, err := sim.Start(context.Background(), sim.Options{N: n, Seed: 3})
	if err != nil {
		panic(err)
	}
	if err := s.Warm(); err != nil {
		panic(err)
	}
	p := process{CA: string(s.CA())}
	for i := range s.N() {
		p.Names, p.URLs = append(p.Names, s.Name(i)), append(p.URLs, s.URL(i))
	}
	if err := json.NewEncoder(os.Stdout).Encode(p); err != nil {
		panic(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Close()
	return true
}

// simulated starts a fleet in a process of its own.
func simulated(t *testing.T, n int) (p process) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%d", simulatorRole, n))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Wait()
	})
	line, err := bufio.NewReaderSize(out, 16<<20).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBenchWatchingTenThousand watches 10,000 instances over TLS, each every 30
// seconds, with everything that the monitor does beside the probes. The first
// minute, in which connections and sessions are made, is not measured.
// AGNES_BENCH_SOAK says how long the rest is (2m), AGNES_BENCH_IDLE how many
// connections are kept.
func TestBenchWatchingTenThousand(t *testing.T) {
	const instances, bar, growth, sample = 10_000, 0.30, 1.10, 10 * time.Second
	soak := 2 * time.Minute
	if text := os.Getenv("AGNES_BENCH_SOAK"); text != "" {
		var err error
		if soak, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	p := simulated(t, instances)
	p.State, p.Interval, p.GroupWait = t.TempDir(), 30*time.Second, 30*time.Second
	p.MaxIdle, _ = strconv.Atoi(os.Getenv("AGNES_BENCH_IDLE"))
	c, end := p.begin(t)
	waitFor(time.Minute)
	before, began := processCPU(t, c.Process.Pid), time.Now()
	var sizes []int64
	for time.Since(began) < soak {
		waitFor(min(sample, soak))
		sizes = append(sizes, processRSS(t, c.Process.Pid))
	}
	share := (processCPU(t, c.Process.Pid) - before).Seconds() / time.Since(began).Seconds()
	condition := end()

	third := max(1, len(sizes)/3)
	first, last := mean(sizes[:third]), mean(sizes[len(sizes)-third:])
	probes := float64(instances) * time.Since(began).Seconds() / 30
	t.Logf("%s: %.1f%% of one core (bar %.0f%%), %.2f ms a probe; RSS %d MB at first, %d MB at last; %d probes, %d rounds left out",
		soak, share*100, bar*100, share*time.Since(began).Seconds()*1000/probes, first>>20, last>>20, condition.Rounds, condition.Missed)
	if share > bar {
		t.Errorf("it takes %.1f%% of a core", share*100)
	}
	if soak >= 10*time.Minute && float64(last) > growth*float64(first) {
		t.Errorf("it grows: %d MB, then %d MB", first>>20, last>>20)
	}
	if condition.Missed > 0 || condition.Store != "" || float64(condition.Rounds) < probes {
		t.Errorf("it did not keep up: %+v", condition)
	}
	s, err := store.Open(t.Context(), p.State)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	i, err := s.Incidents(t.Context(), store.IncidentQuery{Limit: 1 << 20})
	// Some of the simulator's versions are deprecated, which is right to say.
	i = slices.DeleteFunc(i, func(one store.Incident) bool { return one.Kind == string(fleet.KindDeprecated) })
	if err != nil || len(i) > 0 {
		kinds := map[string]int{}
		for _, one := range i {
			kinds[one.Kind+": "+one.Summary[:min(len(one.Summary), 40)]]++
		}
		t.Errorf("%d incidents of a fleet that is well: %v %v", len(i), kinds, err)
	}
	info, err := os.Stat(filepath.Join(p.State, store.File))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the store has %d KB", info.Size()>>10)
}

func mean(all []int64) int64 {
	var sum int64
	for _, n := range all {
		sum += n
	}
	return sum / int64(len(all))
}

func processCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// The name, in parentheses, may hold spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

func processRSS(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}
