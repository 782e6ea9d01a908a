package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// pulled is an instance on a host that reads what it shall run from the fleet's
// repository, whenever somebody asks it how it is.
type pulled struct {
	mu         sync.Mutex
	repo, name string
	runs       string
	status     string
	stuck      bool // its host's timer does not run
	sick       string
}

func (p *pulled) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := exec.CommandContext(r.Context(), "git", "--git-dir", p.repo, "show", "main:desired/"+p.name+".json").Output()
	var d deploy.Desired
	if err == nil && json.Unmarshal(text, &d) == nil && !p.stuck {
		_, p.runs, _ = strings.Cut(d.Tag, "-")
	}
	p.status = api.Healthy
	if p.sick == p.runs {
		p.status = api.Unhealthy
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.Health{Status: p.status, Version: p.runs, Channel: "stable", Warnings: []string{}, Services: map[string]api.ServiceHealth{}, Phase: "serving"})
}

type pulledKey struct{}

// TestRolloutScripts runs rollouts over three instances that come by themselves.
func TestRolloutScripts(t *testing.T) {
	t.Parallel()
	registry := ocitest.New(t)
	for version, tag := range map[string]string{"2026.04.2": "stable-2026.04.2", "2026.04.3": "stable", "2026.04.4": "next"} {
		m := registry.Push(t, ocitest.Image{Text: version, Labels: map[string]string{"org.opencontainers.image.version": version, "io.agnes.channel": "stable"}})
		registry.SetTag(t, m, tag)
		if version == "2026.04.2" {
			registry.SetTag(t, m, "deprecated-"+version)
		}
	}
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/rollout",
		Programs: map[string]golden.Program{"agnesctl": run},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"host":  turnHost,
			"crash": crash,
			"deprecate": func(_ *testscript.TestScript, neg bool, args []string) { // `deprecate VERSION TAG`; with ! no more
				at := map[bool]string{false: args[1], true: "stable"}[neg]
				registry.SetTag(t, registry.Manifest(t, at), "deprecated-"+args[0])
			},
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
			bare, work := filepath.Join(env.WorkDir, "fleet.git"), filepath.Join(env.WorkDir, "fleet")
			hosts := map[string]*pulled{}
			text := "image: " + registry.Repository() + "\nwaves:\n  - {name: canary, match: {tier: canary}}\n  - {name: rest, max_unavailable: 2}\ninstances:\n"
			for _, name := range []string{"acme", "bolt", "cube"} {
				p := &pulled{repo: bare, name: name, runs: "2026.04.1"}
				server := httptest.NewServer(p)
				env.Defer(server.Close)
				hosts[name] = p
				tier := map[bool]string{true: "canary", false: "other"}[name == "acme"]
				text += fmt.Sprintf("  - {name: %s, url: %q, labels: {tier: %s}}\n", name, server.URL, tier)
			}
			env.Values[pulledKey{}] = hosts
			for _, args := range [][]string{
				{"init", "-q", "--bare", "-b", "main", bare},
				{"init", "-q", "-b", "main", work},
				{"-C", work, "remote", "add", "origin", bare},
				{"-C", work, "add", "."},
				{"-C", work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "the fleet"},
				{"-C", work, "push", "-q", "origin", "main"},
			} {
				if args[0] == "-C" && args[2] == "add" {
					if err := os.WriteFile(filepath.Join(work, "fleet.yaml"), []byte(text), 0o600); err != nil {
						return err
					}
				}
				if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
					return fmt.Errorf("git %v: %w\n%s", args, err, out)
				}
			}
			return nil
		},
	})
}

func TestAFailedRolloutSaysWhoIsAstray(t *testing.T) {
	t.Parallel()
	r := rollout.Rollout{ID: "r1", State: rollout.Failed, Reason: "smoke", Waves: []rollout.WaveState{{Members: []rollout.Member{{State: rollout.Astray}, {State: rollout.Reverted}}}}}
	if err := rolloutError(t.Context(), r); !strings.Contains(err.Error(), "but 1 of it could not be") {
		t.Errorf("it says %v", err)
	}
	r.Waves[0].Members = r.Waves[0].Members[1:]
	if err := rolloutError(t.Context(), r); strings.Contains(err.Error(), "astray") {
		t.Errorf("nobody is astray, and it says %v", err)
	}
}

func TestAMemberThatLostItsHostIsNotTakenForThisMachine(t *testing.T) {
	t.Parallel()
	f := &rolloutFlags{deployFlags: deployFlags{profile: "full", schema: "restore", lease: time.Minute}, state: t.TempDir}
	o, err := f.engine(nil, &fleet.Inventory{}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.Deliver[fleet.Push].(*rollout.Push).Open(fleet.Instance{Name: "acme"}); !problem.Is(err, problem.Refused) {
		t.Errorf("it opens with %v", err)
	}
}

func TestTheLeaseIsInTheInventorysRepositoryForAll(t *testing.T) {
	t.Parallel()
	const inventory, other = "https://git.example.com/fleet.git", "https://git.example.com/desired.git"
	for _, c := range []struct {
		git, desiredGit, desired, lock string
	}{
		{inventory, "", inventory, inventory},
		{inventory, other, other, inventory},
		{"", other, other, other},
	} {
		f := &rolloutFlags{fleetFlags: fleetFlags{git: c.git, file: filepath.Join(t.TempDir(), "fleet.yaml")}, desiredGit: c.desiredGit}
		f.env.Getenv = func(string) string { return "" }
		desired, lock, _, err := f.repositories(&fleet.Inventory{})
		if err != nil {
			t.Fatal(err)
		}
		if desired.String() != c.desired || lock.String() != c.lock {
			t.Errorf("with --git %q and --desired-git %q the desired states are in %s and the lease in %s", c.git, c.desiredGit, desired, lock)
		}
	}
}

// crash is the script command `crash DIR`: the last rollout there is as a kill in its
// midst leaves it.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: crash DIR")
	}
	ctx := context.Background()
	s, err := store.Open(ctx, ts.MkAbs(args[0]))
	ts.Check(err)
	defer func() { _ = s.Close() }()
	list, err := rollout.List(ctx, s, 1)
	ts.Check(err)
	r := list[0]
	r.State = rollout.Running
	doc, err := json.Marshal(r)
	ts.Check(err)
	now := time.Now()
	lease, err := s.TakeLease(ctx, store.Lease{Name: "rollout", Nonce: "crash", Expires: now}, now, func(string) bool { return true })
	ts.Check(err)
	ts.Check(s.SaveRollout(ctx, store.Rollout{ID: r.ID, Started: r.Started, State: string(r.State), Doc: doc}, lease))
	ts.Check(s.DropLease(ctx, lease))
}

// turnHost is the script command `host NAME stuck|well|sick VERSION`.
func turnHost(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: host NAME stuck|well|sick [VERSION]")
	}
	p := ts.Value(pulledKey{}).(map[string]*pulled)[args[0]]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck, p.sick = args[1] == "stuck", ""
	if args[1] == "sick" {
		p.sick = args[2]
	}
}
