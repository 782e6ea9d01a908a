package fleet_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// simulated starts a fleet and returns it as an inventory.
func simulated(t testing.TB, o sim.Options) (*sim.Sim, []fleet.Instance) {
	t.Helper()
	s, err := sim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	all := make([]fleet.Instance, s.N())
	for i := range all {
		all[i] = fleet.Instance{Name: s.Name(i), URL: s.URL(i), Channel: "stable", TLS: fleet.TLS{PEM: string(s.CA())}}
	}
	return s, all
}

func prober(t testing.TB, o fleet.ProbeOptions) *fleet.Prober {
	t.Helper()
	p := fleet.NewProber(o)
	t.Cleanup(p.Close)
	return p
}

// must sweeps and returns the results by name.
func must(t testing.TB, p *fleet.Prober, all []fleet.Instance) (map[string]fleet.Result, fleet.Sweep) {
	t.Helper()
	got := map[string]fleet.Result{}
	s, err := p.Sweep(t.Context(), all, func(r fleet.Result) {
		if _, twice := got[r.Name]; twice {
			t.Errorf("%s was reported twice", r.Name)
		}
		got[r.Name] = r
	})
	if err != nil || len(got) != len(all) || s.Probed != len(all) {
		t.Fatalf("%d of %d results: %v", len(got), len(all), err)
	}
	return got, s
}

func TestEachFaultIsFoundAndNamed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fault  sim.Fault
		health fleet.Health
		kind   fleet.Fault
		says   string // in the error or, of a healthy one, in the notes
	}{
		{sim.None, fleet.Healthy, "", ""},
		{sim.Hole, fleet.Unreachable, fleet.FaultTimeout, "TLS handshake"},
		{sim.Drop, fleet.Unreachable, fleet.FaultTimeout, "Expected a connection"},
		{sim.Refuse, fleet.Unreachable, fleet.FaultConnect, "connection refused"},
		{sim.Reset, fleet.Unreachable, fleet.FaultTLS, "closed the connection"},
		{sim.Plain, fleet.Unreachable, fleet.FaultTLS, "plain HTTP"},
		{sim.Garbage, fleet.Unreachable, fleet.FaultTLS, "not TLS"},
		{sim.Hangup, fleet.Unreachable, fleet.FaultTLS, "closed the connection"},
		{sim.Expired, fleet.Unreachable, fleet.FaultTLS, "one that expired at"},
		{sim.NotYet, fleet.Unreachable, fleet.FaultTLS, "valid from"},
		{sim.Stranger, fleet.Unreachable, fleet.FaultTLS, "unknown authority: CN=Somebody else"},
		{sim.WrongName, fleet.Unreachable, fleet.FaultTLS, "one for elsewhere.example.com"},
		{sim.Expiring, fleet.Healthy, "", "The certificate is valid until"},
		{sim.Silent, fleet.Unreachable, fleet.FaultTimeout, "Expected an answer"},
		{sim.SlowStart, fleet.Healthy, "", ""},
		{sim.Trickle, fleet.Unhealthy, fleet.FaultTimeout, "bytes and no end"},
		{sim.Cut, fleet.Unhealthy, fleet.FaultBody, "breaks off after 36 bytes"},
		{sim.Huge, fleet.Unhealthy, fleet.FaultBody, "at most 1048576 bytes"},
		{sim.Page, fleet.Unhealthy, fleet.FaultBody, "found text/html"},
		{sim.BadGate, fleet.Unhealthy, fleet.FaultHTTP, "found 502"},
		{sim.Redirect, fleet.Unhealthy, fleet.FaultHTTP, "found 302 to https://login.example.com/start."},
		{sim.MediaType, fleet.Unhealthy, fleet.FaultBody, "found text/plain"},
		{sim.NotJSON, fleet.Unhealthy, fleet.FaultBody, "{status: healthy}"},
		{sim.List, fleet.Unhealthy, fleet.FaultBody, "a JSON object"},
		{sim.NoStatus, fleet.Unhealthy, fleet.FaultBody, "without a status"},
		{sim.OddStatus, fleet.Unhealthy, fleet.FaultBody, `the status "fine"`},
		{sim.NoVersion, fleet.Unhealthy, fleet.FaultBody, "without a version"},
		{sim.SaysDegraded, fleet.Degraded, "", ""},
		{sim.SaysUnhealthy, fleet.Unhealthy, "", "disk: 11 MB are free."},
		{sim.SkewedClock, fleet.Healthy, "", "is off by -1h0m0s"},
	} {
		t.Run(string(tt.fault)+"_", func(t *testing.T) {
			t.Parallel()
			_, all := simulated(t, sim.Options{N: 1, Mix: map[sim.Fault]float64{tt.fault: 1}})
			p := prober(t, fleet.ProbeOptions{Connect: 700 * time.Millisecond, Timeout: 1500 * time.Millisecond})
			r := p.One(t.Context(), all[0])
			if r.Health != tt.health || r.Fault != tt.kind || r.SelfTrouble {
				t.Errorf("found %s (%s, our fault: %v), want %s (%s): %v", r.Health, r.Fault, r.SelfTrouble, tt.health, tt.kind, r.Err)
			}
			said := strings.Join(r.Notes, " ")
			if r.Err != nil {
				said = r.Err.Message
				if r.Err.Hint == "" || tt.kind != "" && r.Err.Code != string(tt.kind) {
					t.Errorf("no hint or another code: %+v", r.Err)
				}
			}
			if !strings.Contains(said, tt.says) || (tt.says == "") != (said == "") || strings.Contains(said, "secret") {
				t.Errorf("it says %q, want %q", said, tt.says)
			}
			if r.Good() && (r.Version == "" || r.SchemaVersion != 7 || r.CertNotAfter.IsZero() || r.Timing.TLS == 0 || r.Timing.Total < r.Timing.TLS) {
				t.Errorf("a good result lacks something: %+v", r)
			}
		})
	}
}

func TestTheFaultsOfTheTableAreAllThatTheSimulatorHas(t *testing.T) {
	t.Parallel()
	if n := len(sim.Faults()); n != 29 {
		t.Errorf("the simulator has %d faults; the table above knows 29 and none", n)
	}
}

func TestATokenOpensTheDetails(t *testing.T) {
	t.Parallel()
	_, all := simulated(t, sim.Options{N: 61})
	in := all[60]
	in.Token = fleet.EnvToken("TOKEN", sim.Token)
	p := prober(t, fleet.ProbeOptions{})
	r := p.One(t.Context(), in)
	age := time.Since(r.LastSync)
	if !r.Details || !strings.HasPrefix(r.Digest, "sha256:") || r.ConfigHash == "" || r.BundleVersion != r.Version || age < time.Minute || age > 2*time.Minute {
		t.Errorf("details: %+v", r)
	}
	in.Token = fleet.EnvToken("TOKEN", "wrong")
	r = p.One(t.Context(), in)
	if r.Details || r.Health != fleet.Healthy || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "refused with 401") || strings.Contains(r.Notes[0], "wrong") {
		t.Errorf("a token that is refused: %+v", r)
	}
}

func TestConnectionsAndSessionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	s, all := simulated(t, sim.Options{N: 20})
	p := prober(t, fleet.ProbeOptions{MaxIdle: 10})
	must(t, p, all)
	got, _ := must(t, p, all)
	reused, resumed := 0, 0
	for _, r := range got {
		if r.Timing.Reused {
			reused++
		}
		if r.Timing.Resumed {
			resumed++
		}
		if !r.Good() || r.CertNotAfter.IsZero() {
			t.Errorf("%+v", r)
		}
	}
	if reused != 10 || resumed != 10 {
		t.Errorf("%d connections and %d sessions were used again, want 10 and 10", reused, resumed)
	}
	// The server closes what was kept; that is no fault.
	for i := range all {
		if err := s.Set(i, s.State(i)); err != nil {
			t.Fatal(err)
		}
	}
	got, _ = must(t, p, all)
	for _, r := range got {
		if !r.Good() {
			t.Errorf("after its connection was closed: %+v", r)
		}
	}
	// What breaks on a kept connection is found.
	for i := range all {
		if err := s.Set(i, sim.State{Fault: sim.Reset}); err != nil {
			t.Fatal(err)
		}
	}
	got, sweep := must(t, p, all)
	for _, r := range got {
		if r.Fault != fleet.FaultTLS {
			t.Errorf("after it broke: %+v", r)
		}
	}
	if sweep.SelfTrouble != nil {
		t.Errorf("hosts that reset a connection can be reached: %v", sweep.SelfTrouble)
	}
}

func TestAProbeOnlyReadsAndKeepsAPath(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.Method != http.MethodGet || r.URL.Path != "/agnes/api/health" || r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "application/problem+json")
		_, _ = w.Write([]byte(`{"status":"healthy","version":"dev","new":{"field":1}}`))
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	p := prober(t, fleet.ProbeOptions{})
	r := p.One(t.Context(), fleet.Instance{Name: "one", URL: "http://" + l.Addr().String() + "/agnes"})
	if r.Health != fleet.Healthy || r.Version != "dev" || calls.Load() != 1 {
		t.Errorf("%d calls: %+v", calls.Load(), r)
	}
}

func TestWhatTheInventoryHasWrongIsNotTheInstances(t *testing.T) {
	t.Parallel()
	p := prober(t, fleet.ProbeOptions{})
	for name, in := range map[string]fleet.Instance{
		"no URL":         {Name: "a", URL: "ftp://somewhere"},
		"no certificate": {Name: "a", URL: "https://127.0.0.1:1", TLS: fleet.TLS{CAFile: "ca.pem", PEM: "none"}},
	} {
		r := p.One(t.Context(), in)
		if r.Health != fleet.Unreachable || r.Fault != fleet.FaultConfig || r.Err == nil || r.SelfTrouble || fleet.Observe(r) != fleet.Nothing {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// network is a dialer whose network can be down.
type network struct {
	down  atomic.Bool
	error error
}

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.down.Load() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: n.error}
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func TestWhenNothingAnswersItIsUs(t *testing.T) {
	t.Parallel()
	s, all := simulated(t, sim.Options{N: 50})
	n := &network{error: syscall.ENETUNREACH}
	n.down.Store(true)
	p := prober(t, fleet.ProbeOptions{Dial: n.dial, MaxIdle: -1})

	got, sweep := must(t, p, all)
	if sweep.SelfTrouble == nil {
		t.Fatal("a first sweep without any answer did not blame us")
	}
	for _, r := range got {
		if !r.SelfTrouble || fleet.Observe(r) != fleet.Nothing || r.Health != fleet.Unreachable {
			t.Fatalf("reported as down: %+v", r)
		}
	}
	if status := fleet.NewStatus(time.Now(), all, mapValues(got)); status.Summary.SelfTrouble == "" || status.Summary.SelfTroubled != len(all) {
		t.Errorf("the status does not say so: %+v", status.Summary)
	}

	n.down.Store(false)
	if _, sweep = must(t, p, all); sweep.SelfTrouble != nil {
		t.Fatal(sweep.SelfTrouble)
	}
	if err := s.Set(7, sim.State{Fault: sim.Reset}); err != nil {
		t.Fatal(err)
	}
	if r := p.One(t.Context(), all[7]); r.SelfTrouble || r.Good() {
		t.Errorf("one that breaks while others answer: %+v", r)
	}
	n.down.Store(true)
	eventually(t, func() bool { return p.One(t.Context(), all[3]).SelfTrouble })
}

func TestOneSilentInstanceOfOneIsDown(t *testing.T) {
	t.Parallel()
	n := &network{error: syscall.EHOSTUNREACH}
	n.down.Store(true)
	p := prober(t, fleet.ProbeOptions{Dial: n.dial})
	got, sweep := must(t, p, []fleet.Instance{{Name: "only", URL: "http://192.0.2.1"}})
	if r := got["only"]; sweep.SelfTrouble != nil || fleet.Observe(r) != fleet.Bad || r.Fault != fleet.FaultConnect {
		t.Errorf("%v: %+v", sweep.SelfTrouble, r)
	}
}

func TestABeaconTellsAFleetThatIsDownFromANetworkThatIs(t *testing.T) {
	t.Parallel()
	dead := []fleet.Instance{{Name: "a", URL: "http://192.0.2.1"}, {Name: "b", URL: "http://192.0.2.2"}}
	beaconUp := true
	p := prober(t, fleet.ProbeOptions{Beacons: []string{"192.0.2.9:443"}, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
		if address == "192.0.2.9:443" && beaconUp {
			a, b := net.Pipe()
			_ = b.Close()
			return a, nil
		}
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EHOSTUNREACH}
	}})
	if got, sweep := must(t, p, dead); sweep.SelfTrouble != nil || got["a"].SelfTrouble || got["b"].SelfTrouble {
		t.Errorf("the beacon shines, the fleet is down: %v", got)
	}
}

func TestMissingDescriptorsAreOurTrouble(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"dial":     &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)},
		"resolver": &net.DNSError{Err: "dial udp 192.0.2.53:53: socket: too many open files", Name: "acme.example.com"},
		"ports":    &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)},
	} {
		p := prober(t, fleet.ProbeOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, err }})
		if r := p.One(t.Context(), fleet.Instance{Name: "a", URL: "https://acme.example.com"}); r.Fault != fleet.FaultSelf || !r.SelfTrouble {
			t.Errorf("%s: %+v", name, r)
		}
	}
	p := prober(t, fleet.ProbeOptions{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "acme.example.com", IsNotFound: true}
	}})
	if r := p.One(t.Context(), fleet.Instance{Name: "a", URL: "https://acme.example.com"}); r.Fault != fleet.FaultDNS || !strings.Contains(r.Err.Message, "acme.example.com, found that the name does not exist") {
		t.Errorf("%+v", r)
	}
}

func TestASweepOfTwoThousandLeavesNothingBehind(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	func() {
		s, all := simulated(t, sim.Options{N: 2000, Seed: 5, Mix: map[sim.Fault]float64{
			sim.Hole: 0.002, sim.Drop: 0.002, sim.Expired: 0.01, sim.Page: 0.01, sim.Cut: 0.01, sim.Reset: 0.01, sim.Redirect: 0.01, sim.Huge: 0.002, sim.Silent: 0.001,
		}})
		defer s.Close()
		p := fleet.NewProber(fleet.ProbeOptions{Concurrency: 64, Connect: 4 * time.Second, Timeout: 5 * time.Second})
		defer p.Close()
		got, sweep := must(t, p, all)
		bad := 0
		for _, r := range got {
			if !r.Good() {
				bad++
			}
		}
		if bad != 114 || sweep.SelfTrouble != nil {
			t.Errorf("%d are bad, want 114; our fault: %v", bad, sweep.SelfTrouble)
		}
		t.Logf("2,000 instances in %s", sweep.Took.Round(time.Millisecond))
	}()
	eventually(t, func() bool { return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines })
}

func TestASweepThatIsCanceledEndsWithinASecond(t *testing.T) {
	t.Parallel()
	_, all := simulated(t, sim.Options{N: 300, Mix: map[sim.Fault]float64{sim.Hole: 0.5, sim.Silent: 0.2}})
	p := prober(t, fleet.ProbeOptions{Connect: time.Minute, Timeout: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	var canceled time.Time
	s, err := p.Sweep(ctx, all, func(r fleet.Result) {
		if seen++; seen == 20 {
			canceled = time.Now()
			cancel()
		}
		if !r.Good() {
			t.Errorf("reported as bad because it was canceled: %+v", r)
		}
	})
	if took := time.Since(canceled); !errors.Is(err, context.Canceled) || took > time.Second || s.Probed != seen || seen >= 90 {
		t.Errorf("ended after %s with %d results: %v", took, seen, err)
	}
	if r := p.One(ctx, all[0]); r.Fault != fleet.FaultSelf || !r.SelfTrouble {
		t.Errorf("a probe after the end: %+v", r)
	}
}

func TestWaitingInstancesComeFirstTheNextTime(t *testing.T) {
	t.Parallel()
	_, all := simulated(t, sim.Options{N: 40, Mix: map[sim.Fault]float64{sim.Hole: 0.05}})
	p := prober(t, fleet.ProbeOptions{Connect: 4 * time.Second, Concurrency: 2})
	must(t, p, all)
	var began []time.Time
	var slow []time.Time
	if _, err := p.Sweep(t.Context(), all, func(r fleet.Result) {
		if r.Good() {
			began = append(began, r.At)
		} else {
			slow = append(slow, r.At)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range slow {
		for _, b := range began {
			if b.Before(s) {
				t.Fatal("an instance that makes the sweep wait was asked after one that does not")
			}
		}
	}
	if len(slow) != 2 {
		t.Errorf("%d are slow, want 2", len(slow))
	}
}

func mapValues(m map[string]fleet.Result) (all []fleet.Result) {
	for _, r := range m {
		all = append(all, r)
	}
	return all
}

// eventually waits for what happens in other goroutines.
func eventually(t testing.TB, what func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(10 * time.Second); !what(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it did not happen within 10 s")
		}
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
