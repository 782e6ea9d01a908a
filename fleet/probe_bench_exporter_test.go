//go:build bench

package fleet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// exporterModule is how Debian's prometheus-blackbox-exporter is told to do what
// the Prober does: IPv4, TLS against the fleet's authority, the same limit, and a
// body that is judged, not a code alone.
const exporterModule = `modules:
  agnes:
    prober: http
    timeout: 5s
    http:
      preferred_ip_protocol: ip4
      ip_protocol_fallback: false
      follow_redirects: false
      fail_if_not_ssl: true
      valid_status_codes: [200]
      fail_if_body_not_matches_regexp: ['"status":"healthy"']
      headers: {Accept: application/json}
      tls_config: {ca_file: %s}
`

// exporter is a running one.
type exporter struct {
	version string // its first line
	address string // of its HTTP
	pid     int
}

// benchExporter starts one for a simulator; it ends with the test.
func benchExporter(t *testing.T, s simulator) exporter {
	t.Helper()
	const program = "prometheus-blackbox-exporter"
	said, err := exec.CommandContext(t.Context(), program, "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("expected %s to compare with: make deps-test (%v)", program, err)
	}
	e := exporter{version: strings.SplitN(string(said), "\n", 2)[0], address: freeAddress(t)}
	var f benchFleet
	if err := json.Unmarshal(s.fleet, &f); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, config := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "blackbox.yml")
	for file, content := range map[string]string{ca: f.CA, config: fmt.Sprintf(exporterModule, ca)} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.CommandContext(t.Context(), program, "--config.file="+config, "--web.listen-address="+e.address, "--log.level=error")
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	e.pid = c.Process.Pid
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for limit := time.After(30 * time.Second); ; {
		if resp, err := http.Get("http://" + e.address + "/-/healthy"); err == nil {
			_ = resp.Body.Close()
			return e
		}
		select {
		case <-every.C:
		case <-limit:
			t.Fatalf("%s does not listen at %s", program, e.address)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// exporterSweep asks the exporter for every instance, as Prometheus would, at the
// concurrency of the others. What this asking costs is not the exporter's CPU.
func exporterSweep(f benchFleet) benchFigures {
	base := "http://" + os.Getenv("AGNES_BENCH_EXPORTER") + "/probe?module=agnes&target="
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchConcurrency, DisableCompression: true}}
	var good, bad, next atomic.Int64
	var workers sync.WaitGroup
	for range benchConcurrency {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(f.URLs); i = int(next.Add(1)) - 1 {
				if askExporter(client, base+url.QueryEscape(f.URLs[i]+"/api/health")) {
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

func askExporter(client *http.Client, probe string) bool {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, probe, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && bytes.Contains(body, []byte("\nprobe_success 1\n"))
}

// peakRSS is the most memory that a process has had, in bytes.
func peakRSS(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	var kB int64
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		t.Fatal(err)
	}
	return kB << 10
}
