package fleet_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const plannedFleet = `image: 127.0.0.1:5000/acme/agnes
waves:
  - {name: canary, match: {tier: canary}, soak: 10m}
  - {name: rest, max_unavailable: 10%}
instances:
  - {name: acme, url: "https://acme.example.com", pin: stable-2026.04.3, host: "ssh://agnes@acme.example.com/opt/agnes"}
  - {name: bolt, url: "https://bolt.example.com", labels: {tier: canary}}
  - {name: core, url: "https://core.example.com", config_hash: 5f1d7a84db00d2fc}
  - {name: dune, url: "https://dune.example.com"}
  - {name: echo, url: "https://echo.example.com", channel: dev}
  - {name: fern, url: "https://fern.example.com"}
`

func loadText(t *testing.T, text string) *fleet.Inventory {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inventory, err := fleet.Load(file, fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return inventory
}

func TestAPlanSaysWhatWouldBeDoneAndWhy(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)
	inventory := loadText(t, plannedFleet)
	runs := func(name, version, channel string, more ...func(*fleet.Result)) fleet.Result {
		r := fleet.Result{Name: name, At: at, Health: fleet.Healthy, Version: version, Channel: channel}
		for _, f := range more {
			f(&r)
		}
		return r
	}
	q := fleet.PlanRequest{
		At: at, Inventory: inventory, Instances: inventory.Instances, Flags: []string{"-f", "ops/fleet.yaml"},
		Results: []fleet.Result{
			runs("acme", "2026.04.2", "stable", func(r *fleet.Result) { r.BundleVersion = "2026.04.1" }),
			runs("bolt", "2026.04.2", "stable"),
			runs("core", "2026.04.3", "stable", func(r *fleet.Result) { r.ConfigHash = "0000000000000000" }),
			runs("dune", "2026.04.3", "stable"),
			runs("echo", "2026.04.4", "dev"),
			{Name: "fern", At: at, Health: fleet.Unreachable, Fault: fleet.FaultDNS, Err: problem.New(problem.Unavailable, "It has no address.", "Check the zone.")},
		},
		Facts: fleet.Facts{
			Tags: map[string]fleet.Tagged{
				"stable": {Digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Version: "2026.04.3"},
				"dev":    {Trouble: "the registry has no tag dev", Hint: "release-bot version list"},
			},
			Hosts: map[string]fleet.HostFacts{"acme": {Foreign: []string{"tower"}}},
		},
	}
	plan, err := fleet.NewPlan(q)
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/plan.json.golden", append(j, '\n'))
	if s := plan.Summary; s.Total != 6 || s.Change != 3 || s.Same != 1 || s.Unknown != 2 {
		t.Errorf("the summary is %+v", s)
	}
	again, err := fleet.NewPlan(q)
	if err != nil {
		t.Fatal(err)
	}
	if k, _ := json.MarshalIndent(again, "", "  "); string(k) != string(j) {
		t.Error("the same facts give another plan")
	}
}

func TestAPlanPromisesNoRolloutWhereOneChangesNothing(t *testing.T) {
	t.Parallel()
	inventory := loadText(t, plannedFleet)
	plan, err := fleet.NewPlan(fleet.PlanRequest{
		At: time.Now(), Inventory: inventory, Instances: inventory.Instances[:1],
		Results: []fleet.Result{{Name: "acme", At: time.Now(), Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable", BundleVersion: "2026.04.1"}},
		Facts:   fleet.Facts{Hosts: map[string]fleet.HostFacts{"acme": {Pinned: "sha256:1", Running: "sha256:2"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if plan.Tags[0].Changes != 0 || plan.Tags[0].Rollout != "" {
		t.Errorf("a rollout would leave it alone, and is promised: %+v", plan.Tags[0])
	}
	var commands []string
	for _, s := range plan.Waves[0].Instances[0].Steps {
		commands = append(commands, s.Command)
	}
	want := "agnesctl host status --host ssh://agnes@acme.example.com/opt/agnes\n" +
		"agnesctl host deploy --host ssh://agnes@acme.example.com/opt/agnes --image 127.0.0.1:5000/acme/agnes --tag stable-2026.04.3"
	if got := strings.Join(commands, "\n"); got != want {
		t.Errorf("the steps are\n%s\nwant\n%s", got, want)
	}
}

func TestAPlanIsOfThoseThatAreMeant(t *testing.T) {
	t.Parallel()
	inventory := loadText(t, plannedFleet)
	selector, err := fleet.ParseSelector("tier=canary")
	if err != nil {
		t.Fatal(err)
	}
	q := fleet.PlanRequest{At: time.Now(), Inventory: inventory, Instances: inventory.Select(selector), Selector: "tier=canary,!beta"}
	plan, err := fleet.NewPlan(q)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Waves) != 1 || plan.Waves[0].Name != "canary" || plan.Summary.Total != 1 || plan.Summary.Unknown != 1 || plan.Summary.SelfTrouble == "" {
		t.Errorf("%+v", plan)
	}
	q.Results = []fleet.Result{{Name: "bolt", At: q.At, Health: fleet.Healthy, Version: "2026.04.2", Channel: "dev"}}
	behind, err := fleet.NewPlan(q)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := behind.Tags[0].Rollout, "agnesctl fleet rollout --tag stable -l 'tier=canary,!beta'"; got != want {
		t.Errorf("its rollout is %s, want %s", got, want)
	}
	// Of who was not asked nothing is known, whatever the inventory wants.
	if got := plan.Waves[0].Instances[0]; got.Action != fleet.PlanUnknown || len(got.Steps) != 0 || !strings.Contains(strings.Join(got.Because, " "), "not asked") {
		t.Errorf("%+v", got)
	}
}
