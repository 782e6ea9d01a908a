package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func TestFleetStatusPutsWhatInstancesSayBesideWhatIsWanted(t *testing.T) {
	t.Parallel()
	s, err := sim.Start(t.Context(), sim.Options{N: 40})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), s.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("defaults: {channel: stable, tls: {ca: ca.pem}}\ninstances:\n")
	for i := range s.N() {
		fmt.Fprintf(&b, "  - {name: %s, url: %q}\n", s.Name(i), s.URL(i))
	}
	fmt.Fprintf(&b, "  - {name: gone, url: \"https://127.0.0.1:1\", pin: stable-2026.04.3}\n")
	file := filepath.Join(dir, "fleet.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	status := func(args ...string) (string, string, int) {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"fleet", "status", "-f", file}, args...), func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	out, errs, code := status("-o", "json")
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	var got fleet.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if n := got.Summary; n.Total != 41 || n.Unreachable != 1 || n.Healthy+n.Degraded+n.Unhealthy != 40 {
		t.Errorf("the summary is %+v", n)
	}
	if first := got.Instances[0]; first.Name != "gone" || first.Status != fleet.Unreachable || first.Wanted != "stable-2026.04.3" || first.Error == "" || first.Hint == "" {
		t.Errorf("the worst is %+v", first)
	}
	if _, errs, code := status("--fail-on", "unhealthy"); code != 3 || !strings.Contains(errs, "1 instance of 41: unhealthy") {
		t.Errorf("--fail-on unhealthy: exit %d, %s", code, errs)
	}
	if _, errs, code := status("--fail-on", "sad"); code != 2 || !strings.Contains(errs, "expected unhealthy, degraded or drift") {
		t.Errorf("--fail-on sad: exit %d, %s", code, errs)
	}
	if out, _, code := status("-l", "name=gone", "-o", "markdown"); code == 2 || !strings.Contains(out, "| gone | unreachable |") {
		t.Errorf("markdown: exit %d\n%s", code, out)
	}
	if out, _, _ := status("-o", "wide"); !strings.Contains(out, "DIGEST") || !strings.Contains(out, "41 instances:") {
		t.Errorf("wide:\n%s", out)
	}
}
