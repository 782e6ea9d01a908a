package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// simFleet writes an inventory of a simulated fleet; entry adds to each instance.
func simFleet(t *testing.T, s *sim.Sim, image, waves string, entry func(i int) string) (file string) {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	fmt.Fprintf(&b, "image: %s\ndefaults: {channel: stable, tls: {ca: ca.pem}}\n%sinstances:\n", image, waves)
	for i := range s.N() {
		fmt.Fprintf(&b, "  - {name: %s, url: %q%s}\n", s.Name(i), s.URL(i), entry(i))
	}
	file = filepath.Join(dir, "fleet.yaml")
	for name, content := range map[string]string{file: b.String(), filepath.Join(dir, "ca.pem"): string(s.CA())} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestFleetPlanShowsWantedAgainstActualByWave(t *testing.T) {
	t.Parallel()
	s, err := sim.Start(t.Context(), sim.Options{N: 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.N() {
		state := sim.State{Version: "2026.04.7", Channel: "stable"}
		if i == 1 {
			state.Version = "2026.04.6"
		}
		if err := s.Set(i, state); err != nil {
			t.Fatal(err)
		}
	}
	registry := ocitest.New(t)
	stable := registry.Push(t, ocitest.Image{Text: "7", Labels: map[string]string{"org.opencontainers.image.version": "2026.04.7"}})
	registry.SetTag(t, stable, "stable")
	file := simFleet(t, s, registry.Repository(), "waves:\n  - {name: canary, match: {tier: canary}, soak: 10m}\n  - {name: rest, max_unavailable: 10%}\n", func(i int) string {
		switch i {
		case 0:
			return ", labels: {tier: canary}"
		case 2:
			return ", pin: stable-2026.04.6"
		}
		return ""
	})
	env := map[string]string{"SIM_TOKEN": sim.Token}
	plan := func(args ...string) (string, string, int) {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"fleet", "plan", "-f", file}, args...), func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	out, errs, code := plan()
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	for _, want := range []string{
		"  stable            2026.04.7 " + stable.Digest,
		"(digest unknown: " + registry.Repository() + " has no tag stable-2026.04.6)",
		"wave canary: 1 instance, 1 at a time, soak 10m0s\n= sim-00000  2026.04.7 (stable)",
		"~ sim-00001  2026.04.6 -> 2026.04.7 (stable)",
		"because runs 2026.04.6, stable is at 2026.04.7",
		"~ sim-00002  2026.04.7 -> 2026.04.6 (stable-2026.04.6)",
		"= and 7 more that are what is wanted (--all)",
		"30 instances: 2 to change, 28 as wanted, 0 cannot be told. Nothing was changed. To do it:",
		"  agnesctl fleet rollout -f " + file + " --tag stable    # 1 instance\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	asked := 0
	for _, r := range registry.Requests() {
		if r.Path == "/manifests/stable" {
			asked++
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			t.Errorf("the registry got %s %s", r.Method, r.Path)
		}
	}
	if asked != 1 {
		t.Errorf("the registry was asked %d times what stable is", asked)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("there are colors where there is no terminal")
	}
	if out, _, _ := plan("--all"); strings.Contains(out, "more that are") || strings.Count(out, "\n= ") != 28 {
		t.Errorf("--all:\n%s", out)
	}
	if _, errs, code := plan("--fail-on", "drift"); code != 3 || !strings.Contains(errs, "2 instances of 30: drift") {
		t.Errorf("--fail-on drift: exit %d, %s", code, errs)
	}
	if _, errs, code := plan("--fail-on", "degraded"); code != 2 || !strings.Contains(errs, "expected drift") {
		t.Errorf("--fail-on degraded: exit %d, %s", code, errs)
	}
	if _, _, code := plan("-l", "name=sim-00000", "--fail-on", "drift"); code != 0 {
		t.Errorf("nothing to do: exit %d", code)
	}
	var got fleet.Plan
	out, _, _ = plan("-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Summary.Change != 2 || got.Waves[1].Instances[0].Steps[0].Command == "" {
		t.Errorf("%v %s", err, out)
	}
	if out, _, _ := plan("-o", "markdown"); !strings.Contains(out, "| ~ | sim-00001 | 2026.04.6 -> 2026.04.7 (stable) | pull |") || !strings.Contains(out, "```sh\nagnesctl fleet rollout") {
		t.Errorf("markdown:\n%s", out)
	}
	if out, _, code := plan("-o", "yaml"); code != 0 || !strings.Contains(out, "waves:") {
		t.Errorf("yaml: exit %d\n%s", code, out)
	}
	registry.Requests() // forgets what was asked so far
	if out, _, code := plan("--no-registry"); code != 0 || !strings.Contains(out, "1 to change, 29 as wanted") || !strings.Contains(out, "= sim-00000  2026.04.7 (stable)") || len(registry.Requests()) > 0 {
		t.Errorf("--no-registry: exit %d\n%s", code, out)
	}
}

func TestFleetPlanSaysWhatItCannotTellWithoutTheRegistry(t *testing.T) {
	t.Parallel()
	s, err := sim.Start(t.Context(), sim.Options{N: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.N() {
		if err := s.Set(i, sim.State{Version: "2026.04.7", Channel: "stable"}); err != nil {
			t.Fatal(err)
		}
	}
	registry := ocitest.New(t) // has no tag at all
	file := simFleet(t, s, registry.Repository(), "", func(i int) string {
		return []string{"", ", pin: stable-2026.04.7"}[i]
	})
	var out, errs strings.Builder
	code := run(t.Context(), []string{"fleet", "plan", "-f", file}, func(string) string { return "" }, strings.NewReader(""), &out, &errs)
	if code != 0 || !strings.Contains(out.String(), "! sim-00000  2026.04.7 -> ? (stable)") || !strings.Contains(out.String(), "cannot tell: where stable is: "+registry.Repository()+" has no tag stable") ||
		!strings.Contains(out.String(), "= sim-00001  2026.04.7 (stable-2026.04.7)") {
		t.Errorf("exit %d\n%s%s", code, out.String(), errs.String())
	}
}

func TestColorsFollowTheMarks(t *testing.T) {
	t.Parallel()
	got := planColors("wave a\n~ x\n= y\n! z\n")
	if want := "wave a\n\x1b[33m~ x\x1b[0m\n\x1b[2m= y\x1b[0m\n\x1b[31m! z\x1b[0m\n"; got != want {
		t.Errorf("%q", got)
	}
}
