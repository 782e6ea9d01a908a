//go:build realdata || bench

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// instance is a running instance that serves a folder of files, with a client
// that is signed in as its admin.
type instance struct {
	*process
	*api.Client
}

// serveFolder takes a fresh instance to synced tables by the typed client, and
// returns it with the sync's job, which has ended but may have failed.
func serveFolder(t *testing.T, dataDir, csvDir string) (*instance, *api.Job) {
	t.Helper()
	dir, err := filepath.Abs(csvDir)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, dataDir)
	fresh, err := api.NewClient(p.url)
	if err != nil {
		t.Fatal(err)
	}
	token, err := fresh.Bootstrap(t.Context(), api.BootstrapRequest{Email: adminEmail, Password: adminPassword}, "")
	if err != nil {
		t.Fatalf("bootstrap: %v\n%s", err, p.out)
	}
	in := &instance{process: p}
	if in.Client, err = api.NewClient(p.url, api.WithToken(redact.Secret(token.AccessToken))); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Configure(t.Context(), api.ConfigureRequest{DataSource: "csv", CSVDir: &dir}); err != nil {
		t.Fatalf("configure: %v\n%s", err, p.out)
	}
	if _, err := in.Discover(t.Context(), false); err != nil {
		t.Fatalf("discover: %v\n%s", err, p.out)
	}
	return in, in.sync(t)
}

// sync runs one sync of everything to its end.
func (in *instance) sync(t *testing.T) *api.Job {
	t.Helper()
	triggered, err := in.TriggerSync(t.Context(), api.SyncRequest{})
	if err != nil {
		t.Fatalf("trigger: %v\n%s", err, in.out)
	}
	job, err := in.FollowJob(t.Context(), triggered.JobID, nil)
	if err != nil {
		t.Fatalf("follow: %v\n%s", err, in.out)
	}
	return job
}

// query answers one statement with up to 100,000 rows and fails the test when
// that is refused.
func (in *instance) query(t *testing.T, sql string) *api.QueryResponse {
	t.Helper()
	limit := 100_000
	answer, err := in.Query(t.Context(), api.QueryRequest{SQL: sql, Limit: &limit})
	if err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
	return answer
}
