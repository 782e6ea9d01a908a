package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
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
	if _, errs, code := status("--fail-on", "sad"); code != 2 || !strings.Contains(errs, "expected unhealthy, degraded, drift or smoke") {
		t.Errorf("--fail-on sad: exit %d, %s", code, errs)
	}
	if out, _, code := status("-l", "name=gone", "-o", "markdown"); code == 2 || !strings.Contains(out, "| gone | unreachable (connect) |") {
		t.Errorf("markdown: exit %d\n%s", code, out)
	}
	if out, _, _ := status("-o", "wide"); !strings.Contains(out, "DIGEST") || !strings.Contains(out, "41 instances:") {
		t.Errorf("wide:\n%s", out)
	}
}

func TestFleetStatusMakesASmokeTestThatOnlyReads(t *testing.T) {
	t.Parallel()
	good, empty := smoketest.New(), smoketest.New()
	empty.Empty()
	dir := t.TempDir()
	var b strings.Builder
	b.WriteString("instances:\n")
	for name, i := range map[string]*smoketest.Instance{"good": good, "empty": empty, "blind": smoketest.New()} {
		server := httptest.NewServer(i)
		defer server.Close()
		token := ", token: \"${env:FLEET_TOKEN}\""
		if name == "blind" {
			token = ""
		}
		fmt.Fprintf(&b, "  - {name: %s, url: %q%s}\n", name, server.URL, token)
	}
	file := filepath.Join(dir, "fleet.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"FLEET_TOKEN": smoketest.AdminToken.Reveal()}
	status := func(args ...string) (string, string, int) {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"fleet", "status", "-f", file}, args...), func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	out, errs, code := status("--smoke", "-o", "json")
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	var got fleet.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, i := range got.Instances {
		verdicts[i.Name] = string(i.Smoke.Verdict) + " " + i.Smoke.Step
	}
	if verdicts["good"] != "pass " || verdicts["empty"] != "fail catalog" || verdicts["blind"] != "inconclusive token" {
		t.Errorf("%v", verdicts)
	}
	for _, i := range []*smoketest.Instance{good, empty} {
		for _, call := range i.Requests() {
			if !strings.HasPrefix(call, "GET ") && call != "POST /api/query" {
				t.Errorf("it made the call %s", call)
			}
		}
	}
	if strings.Contains(out, smoketest.AdminToken.Reveal()) {
		t.Error("the token is shown")
	}
	if out, _, _ := status("--smoke"); !strings.Contains(out, "fail at catalog") || !strings.Contains(out, "Smoke tests: 1 passed, 1 failed, 1 inconclusive.") {
		t.Errorf("%s", out)
	}
	if out, _, _ := status(); strings.Contains(out, "SMOKE") {
		t.Errorf("a column for what was not asked:\n%s", out)
	}
	for args, want := range map[string]int{
		"--smoke --fail-on smoke": 3, "--smoke --fail-on smoke -l name=blind": 5, "--smoke --fail-on smoke -l name=good": 0,
		"--fail-on smoke": 2, "--watch --smoke": 2, "--watch -o json": 2, "--watch --fail-on drift": 2,
	} {
		if _, errs, code := status(strings.Fields(args)...); code != want {
			t.Errorf("%s: exit %d, want %d: %s", args, code, want, errs)
		}
	}
}
