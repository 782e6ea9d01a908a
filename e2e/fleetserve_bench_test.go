//go:build bench

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBenchServingTenThousand watches 10,000 instances over TLS, each every 30
// seconds, by agnesctl fleet serve with all that it does beside the probes: its
// store, the page and its metrics. The first minute, in which connections and
// sessions are made, is not measured. AGNES_BENCH_SOAK says how long the rest is (2m).
func TestBenchServingTenThousand(t *testing.T) {
	const instances, bar, growth, sample = 10_000, 0.30, 1.10, 10 * time.Second
	soak := 2 * time.Minute
	if text := os.Getenv("AGNES_BENCH_SOAK"); text != "" {
		var err error
		if soak, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	simulate(t, instances, dir)
	serve := exec.CommandContext(t.Context(), filepath.Join(bin, "agnesctl"), "fleet", "serve", "-f", filepath.Join(dir, "fleet.yaml"), "--interval", "30s", "--addr", "127.0.0.1:0")
	var log bytes.Buffer
	serve.Stderr = &log
	serve.Cancel = func() error { return serve.Process.Signal(os.Interrupt) }
	page := regexp.MustCompile(`http://[0-9.:]+`).FindString(firstLine(t, serve))
	<-time.After(time.Minute)

	cpu, began, asked := processCPU(t, serve.Process.Pid), time.Now(), scrape(t, page, "agnes_fleet_probes_total")
	var sizes []int64
	for time.Since(began) < soak {
		<-time.After(min(sample, soak))
		sizes = append(sizes, processRSS(t, serve.Process.Pid))
	}
	took := time.Since(began)
	share := (processCPU(t, serve.Process.Pid) - cpu).Seconds() / took.Seconds()
	probes := scrape(t, page, "agnes_fleet_probes_total") - asked
	skipped := scrape(t, page, "agnes_fleet_probe_rounds_skipped_total")
	third := max(1, len(sizes)/3)
	first, last := mean(sizes[:third]), mean(sizes[len(sizes)-third:])
	t.Logf("%s: %.1f%% of one core (bar %.0f%%), %.2f ms a probe; RSS %d MB at first, %d MB at last; %.0f probes, %.0f rounds left out",
		soak, share*100, bar*100, share*took.Seconds()*1000/probes, first>>20, last>>20, probes, skipped)
	if share > bar {
		t.Errorf("it takes %.1f%% of a core", share*100)
	}
	if soak >= 10*time.Minute && float64(last) > growth*float64(first) {
		t.Errorf("it grows: %d MB, then %d MB", first>>20, last>>20)
	}
	// A round may begin a tenth of its interval later than the one before.
	if want := instances * took.Seconds() / 30; skipped > 0 || probes < want-instances/10 {
		t.Errorf("it did not keep up: %.0f probes of %.0f, %.0f rounds left out", probes, want, skipped)
	}
	if err := serve.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("it did not end well: %v\n%s", err, log.String())
	}
	var history struct {
		Incidents []struct{ Kind, Name, Summary string }
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "agnesctl"), "fleet", "history", "-f", filepath.Join(dir, "fleet.yaml"), "--limit", "20000", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &history)
	}
	if err != nil {
		t.Fatal(err)
	}
	deprecated := 0
	for _, i := range history.Incidents {
		if i.Kind == "deprecated" { // some of the simulator's versions are
			deprecated++
			continue
		}
		t.Errorf("the fleet is well, and %s is %s: %s", i.Name, i.Kind, i.Summary)
	}
	if deprecated == 0 {
		t.Error("no deprecated version was told of")
	}
}

// simulate runs a fleet in a process of its own, with its inventory in dir.
func simulate(t *testing.T, n int, dir string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "fleetsim")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./fleetsim").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	firstLine(t, exec.CommandContext(t.Context(), program, "-n", strconv.Itoa(n), "-seed", "3", "-dir", dir))
}

// firstLine starts a program and returns the first line that it prints.
func firstLine(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("%s said nothing: %v", c, err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	return line
}

// scrape returns a metric of the page.
func scrape(t *testing.T, page, name string) (value float64) {
	t.Helper()
	resp, err := http.Get(page + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if text, is := strings.CutPrefix(lines.Text(), name+" "); is {
			if value, err = strconv.ParseFloat(text, 64); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no %s in %s/metrics: %v", name, page, lines.Err())
	return 0
}

func mean(all []int64) (sum int64) {
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
	statm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}
