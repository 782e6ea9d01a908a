//go:build bench

package fleet_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

const (
	benchN           = 10_000
	benchConcurrency = 256
	benchRounds      = 3
	benchRole        = "AGNES_BENCH_SWEEP" // of this binary as a child
)

// benchFleet is what a simulator tells its clients.
type benchFleet struct {
	CA   string   `json:"ca"`
	URLs []string `json:"urls"`
}

// benchFigures is what a client tells of a sweep.
type benchFigures struct {
	Wall   time.Duration `json:"wall"`
	CPU    time.Duration `json:"cpu"` // of the client
	RSS    int64         `json:"rss"` // bytes at most
	Good   int           `json:"good"`
	Bad    int           `json:"bad"`
	Faults map[fleet.Fault]int
}

func TestMain(m *testing.M) {
	switch os.Getenv(benchRole) {
	case "":
		os.Exit(m.Run())
	case "simulator":
		benchSimulator()
	case "prober":
		benchClient(proberSweep)
	case "steady":
		benchSteady()
	case "bare":
		benchClient(bareSweep)
	case "exporter":
		benchClient(exporterSweep)
	}
}

func benchSimulator() {
	mix, err := sim.ParseMix(os.Getenv("AGNES_BENCH_MIX"))
	if err != nil {
		panic(err)
	}
	n, _ := strconv.Atoi(os.Getenv("AGNES_BENCH_N"))
	s, err := sim.Start(context.Background(), sim.Options{N: n, Seed: 3, Mix: mix})
	if err != nil {
		panic(err)
	}
	if err := s.Warm(); err != nil {
		panic(err)
	}
	f := benchFleet{CA: string(s.CA())}
	for i := range s.N() {
		f.URLs = append(f.URLs, s.URL(i))
	}
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		panic(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Close()
}

// benchClient reads the fleet, sweeps once and prints the figures.
func benchClient(sweep func(benchFleet) benchFigures) {
	var f benchFleet
	if err := json.NewDecoder(os.Stdin).Decode(&f); err != nil {
		panic(err)
	}
	before := usage(syscall.RUSAGE_SELF)
	began := time.Now()
	figures := sweep(f)
	figures.Wall = time.Since(began)
	figures.print(before)
}

func (f benchFigures) print(before time.Duration) {
	f.CPU = usage(syscall.RUSAGE_SELF) - before
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	f.RSS = r.Maxrss << 10
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		panic(err)
	}
}

func usage(who int) time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(who, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func benchInstances(f benchFleet) []fleet.Instance {
	all := make([]fleet.Instance, len(f.URLs))
	for i, u := range f.URLs {
		all[i] = fleet.Instance{Name: fmt.Sprintf("sim-%05d", i), URL: u, Channel: "stable", TLS: fleet.TLS{PEM: f.CA}}
	}
	return all
}

func proberSweep(f benchFleet) benchFigures {
	all := benchInstances(f)
	p := fleet.NewProber(fleet.ProbeOptions{Concurrency: benchConcurrency, MaxIdle: -1, MaxSessions: -1}) // as for one sweep
	defer p.Close()
	figures := benchFigures{Faults: map[fleet.Fault]int{}}
	results := make([]fleet.Result, 0, len(all)) // as a status command keeps them
	if _, err := p.Sweep(context.Background(), all, func(r fleet.Result) {
		results = append(results, r)
		if r.Good() {
			figures.Good++
		} else {
			figures.Bad++
			figures.Faults[r.Fault]++
		}
	}); err != nil {
		panic(err)
	}
	fleet.NewStatus(time.Now(), all, results)
	return figures
}

// benchSteady sweeps three times: what a monitor pays once it is warm.
func benchSteady() {
	var f benchFleet
	if err := json.NewDecoder(os.Stdin).Decode(&f); err != nil {
		panic(err)
	}
	all := benchInstances(f)
	o := fleet.ProbeOptions{Concurrency: benchConcurrency}
	o.MaxIdle, _ = strconv.Atoi(os.Getenv("AGNES_BENCH_IDLE"))
	p := fleet.NewProber(o)
	defer p.Close()
	for range 3 {
		before, began, figures := usage(syscall.RUSAGE_SELF), time.Now(), benchFigures{}
		if _, err := p.Sweep(context.Background(), all, func(r fleet.Result) {
			if r.Good() {
				figures.Good++
			} else {
				figures.Bad++
			}
		}); err != nil {
			panic(err)
		}
		figures.Wall = time.Since(began)
		figures.print(before)
	}
}

// bareSweep is what a few lines of Go do.
func bareSweep(f benchFleet) benchFigures {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(f.CA))
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: (&net.Dialer{Timeout: 1500 * time.Millisecond}).DialContext,
		TLSHandshakeTimeout: 1500 * time.Millisecond, MaxIdleConns: 512,
	}}
	var good, bad, next atomic.Int64
	var workers sync.WaitGroup
	for range benchConcurrency {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(f.URLs) {
					return
				}
				if bareProbe(client, f.URLs[i]) == nil {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		})
	}
	workers.Wait()
	return benchFigures{Good: int(good.Load()), Bad: int(bad.Load())}
}

func bareProbe(client *http.Client, url string) error {
	resp, err := client.Get(url + "/api/health")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var health struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(body, &health) != nil || resp.StatusCode != http.StatusOK || health.Status != "healthy" {
		return errors.New("it is not healthy")
	}
	return nil
}

// benchChild is this binary in a role.
func benchChild(t *testing.T, role string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), append(env, benchRole+"="+role)...)
	c.Stderr = os.Stderr
	return c
}

type simulator struct {
	fleet []byte // line of JSON
	pid   int
}

func benchSim(t *testing.T, n int, mix string) simulator {
	t.Helper()
	c := benchChild(t, "simulator", "AGNES_BENCH_MIX="+mix, fmt.Sprintf("AGNES_BENCH_N=%d", n))
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
	line, err := bufio.NewReaderSize(out, 4<<20).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	return simulator{line, c.Process.Pid}
}

// cpuOf is what a process has used so far.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	var user, system int64
	// The name, in parentheses, may hold spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if _, err := fmt.Sscan(fields[11], &user); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(fields[12], &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

func sweepIn(t *testing.T, role string, s simulator, env ...string) (all []benchFigures) {
	t.Helper()
	c := benchChild(t, role, env...)
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
	if _, err := in.Write(s.fleet); err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(out); ; {
		var f benchFigures
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	if err := c.Wait(); err != nil || len(all) == 0 {
		t.Fatalf("%s: %v", role, err)
	}
	return all
}

// lane is one of the ways to sweep that are compared, and what it took.
type lane struct {
	name, role string
	fleet      simulator
	holes      int
	exporter   exporter // whose CPU and memory count in place of the client's

	walls, cpus, clients, fleets []time.Duration
	rss                          int64
	late                         int // healthy ones that were taken for silent
}

func (l *lane) run(t *testing.T, round int) {
	t.Helper()
	fleetBefore := cpuOf(t, l.fleet.pid)
	var exporterBefore time.Duration
	if l.exporter.pid != 0 {
		exporterBefore = cpuOf(t, l.exporter.pid)
	}
	f := sweepIn(t, l.role, l.fleet, "AGNES_BENCH_EXPORTER="+l.exporter.address)[0]
	// A machine with other things to do lets some wait too long, whoever asks.
	late := f.Bad - l.holes
	if f.Good+f.Bad != benchN || late < 0 || l.role == "prober" && (f.Faults[fleet.FaultTimeout] != f.Bad || late > benchN/100) {
		t.Errorf("%s found %d good and %d bad, want %d bad: %v", l.name, f.Good, f.Bad, l.holes, f.Faults)
	}
	cpu, rss := f.CPU, f.RSS
	if l.exporter.pid != 0 {
		cpu, rss = cpuOf(t, l.exporter.pid)-exporterBefore, peakRSS(t, l.exporter.pid)
	}
	ofFleet := cpuOf(t, l.fleet.pid) - fleetBefore
	l.walls, l.cpus, l.clients, l.fleets = append(l.walls, f.Wall), append(l.cpus, cpu), append(l.clients, f.CPU), append(l.fleets, ofFleet)
	l.rss = max(l.rss, rss)
	l.late += late
	t.Logf("round %d: %-24s %6.2f s, CPU %6.2f s (asking %.2f s), of the fleet %6.2f s, RSS %d MB, %d too late", round, l.name,
		f.Wall.Seconds(), cpu.Seconds(), f.CPU.Seconds(), ofFleet.Seconds(), rss>>20, late)
}

// perProbe is a median in milliseconds.
func perProbe(all []time.Duration) float64 { return middle(all).Seconds() * 1000 / benchN }

// ratio compares two medians.
func ratio(a, b []time.Duration) float64 { return middle(a).Seconds() / middle(b).Seconds() }

// TestBenchSweepAgainstItsPeers takes turns between a cold sweep of 10,000
// instances over TLS, the same with one black hole in a hundred, the same by a bare
// http.Client, and the same by prometheus-blackbox-exporter, at one concurrency. Each
// client is a process of its own, and so are the fleets. Turns begin elsewhere each
// round, and medians are compared, so that what else the machine does hits all alike.
//
// Wrong answers fail it, more than one in a hundred that come too late, and a bar that
// is missed: measure on a machine that has nothing else to do.
func TestBenchSweepAgainstItsPeers(t *testing.T) {
	whole, holed := benchSim(t, benchN, ""), benchSim(t, benchN, "hole=0.01")
	e := benchExporter(t, whole)
	t.Logf("%s, one process for all rounds, at %d of its probes at once, with\n%s", e.version, benchConcurrency, exporterModule)
	lanes := []*lane{
		{name: "prober", role: "prober", fleet: whole},
		{name: "prober, 1% black holes", role: "prober", fleet: holed, holes: benchN / 100},
		{name: "bare client", role: "bare", fleet: whole},
		{name: "blackbox exporter", role: "exporter", fleet: whole, exporter: e},
	}
	for round := range benchRounds {
		for k := range lanes {
			lanes[(k+round)%len(lanes)].run(t, round+1)
		}
	}
	for _, l := range lanes {
		t.Logf("%-24s median wall %6.2f s, CPU %.2f ms a probe (client %.2f ms), of the fleet %.2f ms, RSS at most %d MB, %d of %d too late", l.name,
			middle(l.walls).Seconds(), perProbe(l.cpus), perProbe(l.clients), perProbe(l.fleets), l.rss>>20, l.late, benchN*len(l.walls))
	}
	ours, holes, bare, other := lanes[0], lanes[1], lanes[2], lanes[3]
	bars := []struct {
		what      string
		found, at float64
	}{
		{"wall of a cold sweep against a bare client", ratio(ours.walls, bare.walls), 1.15},
		{"wall against the blackbox exporter", ratio(ours.walls, other.walls), 1},
		{"CPU against the blackbox exporter", ratio(ours.cpus, other.cpus), 1},
		{"wall with 1% black holes against without", ratio(holes.walls, ours.walls), 1.20},
		{"answers too late, against the bare client", float64(ours.late) / float64(max(1, bare.late)), 1},
		{"RSS in MB", float64(max(ours.rss, holes.rss)) / (1 << 20), 100},
	}
	for _, b := range bars {
		verdict, say := "PASS", t.Logf
		if b.found > b.at {
			verdict, say = "MISS", t.Errorf
		}
		say("%s %-45s %6.2f (bar %.2f)", verdict, b.what, b.found, b.at)
	}
}

// TestBenchSweepWarm shows what a probe costs once TLS sessions and connections
// are there to be used again, against the first sweep of the same process, by how
// many connections are kept.
func TestBenchSweepWarm(t *testing.T) {
	const bar = 0.9 // of the first sweep's CPU
	s := benchSim(t, benchN, "")
	for _, idle := range []int{512, 4000} {
		all := sweepIn(t, "steady", s, fmt.Sprintf("AGNES_BENCH_IDLE=%d", idle))
		warmSweeps(t, idle, all)
		if warm := all[len(all)-1]; warm.CPU.Seconds() > bar*all[0].CPU.Seconds() {
			t.Errorf("with %d connections a warm sweep takes %s of CPU, the first one took %s; the bar is %.1fx", idle, warm.CPU, all[0].CPU, bar)
		}
	}
}

func warmSweeps(t *testing.T, idle int, all []benchFigures) {
	t.Helper()
	for i, f := range all {
		t.Logf("%d kept, sweep %d: %6.2f s, CPU %.2f ms a probe (10,000 each 30 s: %.0f%% of one core), RSS %d MB, %d bad", idle, i+1, f.Wall.Seconds(),
			f.CPU.Seconds()*1000/benchN, f.CPU.Seconds()/30*100, f.RSS>>20, f.Bad)
	}
}

func middle(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
