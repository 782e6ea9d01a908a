//go:build bench

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

const (
	coldTables = 500
	coldStarts = 15
	coldBar    = 300 * time.Millisecond // what the documentation promises
	shopSetups = 5
)

// TestBenchColdStart measures the time from starting agnes serve on an existing
// data directory with 500 tables to the first 200 of GET /api/health. The bare
// start of the same binary, agnes version, is measured in turns with it: it is
// the machine's and the loader's share of the result.
func TestBenchColdStart(t *testing.T) {
	data, files := t.TempDir(), t.TempDir()
	for n := range coldTables {
		writeFile(t, filepath.Join(files, fmt.Sprintf("table_%03d.csv", n)), fmt.Sprintf("id,name,amount\n1,first,%d.5\n2,second,2\n3,third,\n", n))
	}
	in, job := serveFolder(t, data, files)
	if job.Status != api.JobSucceeded || len(job.Tables) != coldTables {
		t.Fatalf("the sync of %d tables: %s, %d tables: %s", coldTables, job.Status, len(job.Tables), job.Error)
	}
	t.Logf("first sync of %d tables: %s", coldTables, job.EndedAt.Sub(*job.StartedAt).Round(time.Millisecond))
	in.stop()

	var bare, cold []time.Duration
	for range coldStarts {
		began := time.Now()
		if _, stderr, code := command(t, "", nil, "agnes", "version"); code != 0 {
			t.Fatalf("agnes version ended with %d: %s", code, stderr)
		}
		bare = append(bare, time.Since(began))

		began = time.Now()
		p := launch(t, data)
		health := p.firstHealth()
		cold = append(cold, time.Since(began))
		if health.SetupRequired || health.Services["tables"].Detail != fmt.Sprintf("%d tables are published.", coldTables) {
			t.Fatalf("health right after a start: %+v", health)
		}
		p.stop()
	}
	report(t, "agnes version", bare)
	report(t, "cold start", cold)
	verdict := "met"
	if median(cold) >= coldBar {
		verdict = "missed"
	}
	t.Logf("cold start is %.1fx of agnes version; bar %d ms: %s", float64(median(cold))/float64(median(bare)), coldBar.Milliseconds(), verdict)
}

// firstHealth asks for health until there is an answer. The instance listens
// before it is ready, so that all but the first moments are one waiting call.
func (p *process) firstHealth() api.Health {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		var health api.Health
		if p.call(ctx, "GET", "/api/health", "", nil, &health) == nil {
			return health
		}
		select {
		case <-poll.C:
		case <-p.done:
			p.t.Fatalf("agnes serve ended: %v\n%s", p.err, p.out)
		case <-ctx.Done():
			p.t.Fatalf("no health after 30 s\n%s", p.out)
		}
	}
}

// TestBenchSyncShop measures the story of the first five minutes: agnesctl
// instance setup on a fresh instance over the sample shop, from its start to
// synced tables.
func TestBenchSyncShop(t *testing.T) {
	shop, err := filepath.Abs("../examples/shop")
	if err != nil {
		t.Fatal(err)
	}
	var setup, sync []time.Duration
	for range shopSetups {
		p := start(t, t.TempDir())
		env := []string{"HOME=" + t.TempDir(), "XDG_CONFIG_HOME="}
		began := time.Now()
		stdout, stderr, code := command(t, adminPassword+"\n", env, "agnesctl", "instance", "setup",
			"--url", p.url, "--email", adminEmail, "--password-stdin", "--source", "csv", "--csv-dir", shop, "-o", "json")
		setup = append(setup, time.Since(began))
		if code != 0 {
			t.Fatalf("agnesctl instance setup ended with %d: %s", code, stderr)
		}
		var result struct {
			Changed bool               `json:"changed"`
			Tables  []api.CatalogTable `json:"tables"`
		}
		if err := json.Unmarshal([]byte(stdout), &result); err != nil {
			t.Fatalf("%v: %s", err, stdout)
		}
		if !result.Changed || len(result.Tables) != 5 {
			t.Fatalf("setup left %d tables, changed=%v; want 5 new ones", len(result.Tables), result.Changed)
		}
		status := shopSync(t, p)
		sync = append(sync, status.EndedAt.Sub(*status.StartedAt))
		p.stop()
	}
	report(t, "agnesctl instance setup on examples/shop", setup)
	report(t, "- of which the sync job", sync)
}

// shopSync returns the only sync of an instance.
func shopSync(t *testing.T, p *process) api.Job {
	t.Helper()
	var token api.TokenResponse
	p.must("POST", "/auth/token", "", map[string]string{"email": adminEmail, "password": adminPassword}, &token)
	var status api.SyncStatus
	p.must("GET", "/api/sync/status", token.AccessToken, nil, &status)
	if len(status.Jobs) != 1 || status.Jobs[0].Status != api.JobSucceeded {
		t.Fatalf("syncs: %+v", status.Jobs)
	}
	return status.Jobs[0]
}

func report(t *testing.T, what string, times []time.Duration) {
	t.Helper()
	t.Logf("%-42s min %6.1f ms  median %6.1f ms  max %6.1f ms  (%d runs)",
		what, ms(slices.Min(times)), ms(median(times)), ms(slices.Max(times)), len(times))
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
