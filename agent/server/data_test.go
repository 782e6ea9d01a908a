package server_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

func TestFromConfigureToAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	if r := w.call("POST", "/api/sync/trigger", admin, nil); r.status != http.StatusUnprocessableEntity || r.problem(t).Code != "no_data_source" {
		t.Errorf("a sync before a source = %d %s, want 422 no_data_source", r.status, r.body)
	}
	var conf api.ConfigureResponse
	w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files"}).into(t, &conf)
	if conf.Status != "configured" || conf.DataSource != "csv" || conf.Connection != "local" {
		t.Errorf("configure = %+v", conf)
	}
	var d api.Discovery
	w.call("POST", "/api/admin/discover-and-register?dry_run=true", admin, nil).into(t, &d)
	if d.Registered != 2 || !d.DryRun {
		t.Errorf("dry run = %+v", d)
	}
	var reg api.Registry
	w.call("GET", "/api/admin/registry", admin, nil).into(t, &reg)
	if reg.Count != 0 {
		t.Errorf("a dry run registered %+v", reg)
	}
	w.call("POST", "/api/admin/discover-and-register", admin, nil).into(t, &d)
	w.call("POST", "/api/admin/discover-and-register", admin, nil).into(t, &d)
	if d.Registered != 0 || d.Skipped != 2 {
		t.Errorf("a second discovery = %+v, want everything skipped", d)
	}
	var trig api.SyncTriggered
	w.call("POST", "/api/sync/trigger", admin, `["orders"]`).into(t, &trig)
	if trig.Status != "triggered" || fmt.Sprint(trig.Tables) != "[orders]" {
		t.Errorf("trigger = %+v", trig)
	}
	if job := w.wait(admin, trig.JobID); job.Status != api.JobSucceeded || job.Progress != 1 || job.Tables[0].Rows != 100 {
		t.Errorf("job = %+v", job)
	}
	w.call("POST", "/api/sync/trigger", admin, map[string]any{"tables": []string{"customers"}, "source": "csv"}).into(t, &trig)
	w.wait(admin, trig.JobID)
	out, r := w.query(admin, `SELECT c.name, count(*) AS n FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY 1 ORDER BY 1 LIMIT 2`)
	if fmt.Sprint(out.Rows) != "[[customer 0 10] [customer 1 10]]" || fmt.Sprint(out.Columns) != "[name n]" || out.RowCount != 2 || out.Truncated {
		t.Errorf("query = %s", r.body)
	}
	var table api.CatalogTable
	w.call("GET", "/api/catalog/tables/orders", admin, nil).into(t, &table)
	if len(table.Columns) != 2 || table.Columns[0].Name != "id" || table.SourceType != "csv" || table.LastSync == nil {
		t.Errorf("table = %+v", table)
	}
	var cfg api.Config
	w.call("GET", "/api/admin/config", admin, nil).into(t, &cfg)
	if v, _ := cfg.Value("csv_dir"); v != "/files" {
		t.Errorf("config = %+v", cfg)
	}
}

func TestConfigureRefusesWhatItCannotKeep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *worldOptions) { o.env["AGNES_INSTANCE_NAME"] = "Fixed" })
	admin := w.bootstrap()
	for name, tc := range map[string]struct {
		body   any
		status int
		code   string
	}{
		"a connector of a later version":     {map[string]string{"data_source": "keboola", "keboola_token": "tok-123456"}, 422, "connector_not_available"},
		"a credential of another source":     {map[string]string{"data_source": "csv", "keboola_token": "tok-123456"}, 422, "connector_not_available"},
		"a value that the environment fixes": {map[string]string{"data_source": "csv", "csv_dir": "/files", "instance_name": "Other"}, 409, "fixed_by_environment"},
		"the instance's own files":           {map[string]string{"data_source": "csv", "csv_dir": w.dir}, 422, "csv_dir_overlaps"},
		"an unknown field":                   {map[string]string{"data_source": "csv", "csv_dirr": "/x"}, 422, "unprocessable"},
		"an unknown source":                  {map[string]string{"data_source": "oracle"}, 422, "unprocessable"},
	} {
		r := w.call("POST", "/api/admin/configure", admin, tc.body)
		if p := r.problem(t); r.status != tc.status || p.Code != tc.code || p.Hint == "" || strings.Contains(string(r.body), "tok-123456") {
			t.Errorf("%s = %d %s, want %d %s", name, r.status, r.body, tc.status, tc.code)
		}
	}
	w.source.err = errSource
	if r := w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files"}); r.status < 400 {
		t.Errorf("a source that cannot be read was configured: %s", r.body)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "state", "instance.yaml")); err == nil {
		t.Error("a refused configuration was stored")
	}
}

func TestASecondSyncIsRefusedWhileOneRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	hold := make(chan struct{})
	w.source.mu.Lock()
	w.source.hold = hold
	w.source.mu.Unlock()
	var trig api.SyncTriggered
	w.call("POST", "/api/sync/trigger", admin, nil).into(t, &trig)
	r := w.call("POST", "/api/sync/trigger", admin, nil)
	if p := r.problem(t); r.status != http.StatusConflict || p.Code != "sync_already_in_progress" || !strings.Contains(p.Hint, trig.JobID) {
		t.Errorf("a second sync = %d %+v", r.status, p)
	}
	var status api.SyncStatus
	w.call("GET", "/api/sync/status", admin, nil).into(t, &status)
	if status.Running == nil || status.Running.ID != trig.JobID || status.Last == nil {
		t.Errorf("status = %+v", status)
	}
	if out, _ := w.query(admin, "SELECT count(*) FROM orders"); fmt.Sprint(out.Rows) != "[[100]]" {
		t.Errorf("queries during a sync = %+v", out)
	}
	w.call("POST", "/api/admin/register-table", admin, map[string]string{"source": "csv", "source_table": "later"}).into(t, &api.RegisteredTable{})
	if _, r := w.query(admin, `SELECT * FROM "Later"`); r.status != http.StatusServiceUnavailable || r.problem(t).Code != "not_synced" {
		t.Errorf("a table without data yet = %d %s, want 503 not_synced", r.status, r.body)
	}
	close(hold)
	if job := w.wait(admin, trig.JobID); job.Status != api.JobSucceeded {
		t.Errorf("job = %+v", job)
	}
}

func TestASourceThatFailsKeepsItsLastGoodTables(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	w.source.set("orders", "SELECT 1 AS id FROM nowhere")
	job := w.sync(admin)
	if job.Status != api.JobFailed || job.Hint == "" {
		t.Errorf("job = %+v, want failed with a hint", job)
	}
	if out, r := w.query(admin, "SELECT count(*) FROM orders"); fmt.Sprint(out.Rows) != "[[100]]" {
		t.Errorf("after a failed table orders = %d %s, want the last good rows", r.status, r.body)
	}
	var h api.HealthDetails
	w.call("GET", "/api/health/details", admin, nil).into(t, &h)
	if h.Status != api.Degraded || len(h.StaleTables) != 1 || h.StaleTables[0].ID != "orders" || h.StaleTables[0].Reason == "" {
		t.Errorf("health = %+v, want degraded with orders stale", h)
	}
	for name, s := range h.Services {
		if s.Status != api.Healthy && s.Hint == "" {
			t.Errorf("the service %s is %s without a hint", name, s.Status)
		}
	}
	public := w.call("GET", "/api/health", "", nil)
	if strings.Contains(string(public.body), "orders") {
		t.Errorf("public health names a table: %s", public.body)
	}
	w.source.set("orders", "SELECT 7 AS id")
	if job := w.sync(admin); job.Status != api.JobSucceeded {
		t.Errorf("job = %+v", job)
	}
	var after api.HealthDetails
	w.call("GET", "/api/health/details", admin, nil).into(t, &after)
	if after.Status != api.Healthy || len(after.StaleTables) != 0 {
		t.Errorf("health after the mend = %+v", after)
	}
}

func TestUnregisteredTablesAreGoneAtOnceAndComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	if r := w.call("DELETE", "/api/admin/registry/orders", admin, nil); r.status != http.StatusNoContent {
		t.Fatalf("unregister = %d %s", r.status, r.body)
	}
	if _, r := w.query(admin, "SELECT * FROM orders"); r.status != http.StatusForbidden {
		t.Errorf("an unregistered table = %d, want 403", r.status)
	}
	if r := w.call("DELETE", "/api/admin/registry/orders", admin, nil); r.status != http.StatusNotFound {
		t.Errorf("unregistering twice = %d, want 404", r.status)
	}
	r := w.call("POST", "/api/admin/register-table", admin, map[string]string{"id": "sales", "source": "csv", "source_table": "orders"})
	if r.status != http.StatusCreated {
		t.Fatalf("register = %d %s", r.status, r.body)
	}
	if out, r := w.query(admin, "SELECT count(*) FROM sales"); fmt.Sprint(out.Rows) != "[[100]]" {
		t.Errorf("a table registered over an extract that is there = %d %s, want its rows at once", r.status, r.body)
	}
	if r := w.call("POST", "/api/admin/register-table", admin, map[string]string{"id": "SALES", "source": "csv", "source_table": "x"}); r.status != http.StatusConflict {
		t.Errorf("a taken id = %d, want 409", r.status)
	}
	if r := w.call("POST", "/api/admin/register-table", admin, map[string]string{"id": "no-way", "source": "csv", "source_table": "x"}); r.status != http.StatusUnprocessableEntity {
		t.Errorf("a bad id = %d, want 422", r.status)
	}
	w.call("PUT", "/api/admin/registry/sales", admin, map[string]any{"enabled": false, "description": "All sales"}).into(t, &api.RegisteredTable{})
	if _, r := w.query(admin, "SELECT * FROM sales"); r.status != http.StatusForbidden {
		t.Errorf("a disabled table = %d, want 403", r.status)
	}
}

func TestDownloadsAreWholeCachedAndResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	var m api.Manifest
	w.call("GET", "/api/sync/manifest", admin, nil).into(t, &m)
	var orders api.ManifestTable
	for _, table := range m.Tables {
		if table.ID == "orders" {
			orders = table
		}
	}
	whole := w.call("GET", orders.Download, admin, nil)
	sum := sha256.Sum256(whole.body)
	if whole.status != http.StatusOK || hex.EncodeToString(sum[:]) != orders.ContentHash || int64(len(whole.body)) != orders.SizeBytes {
		t.Fatalf("download = %d, %d bytes; the manifest says %+v", whole.status, len(whole.body), orders)
	}
	etag := whole.header.Get("ETag")
	if etag != `"`+orders.ContentHash+`"` {
		t.Errorf("ETag = %s, want the content hash", etag)
	}
	if r := w.call("GET", orders.Download, admin, nil, "If-None-Match", etag); r.status != http.StatusNotModified || len(r.body) != 0 {
		t.Errorf("If-None-Match = %d, want 304", r.status)
	}
	r := w.call("GET", orders.Download, admin, nil, "Range", "bytes=100-199", "If-Range", etag)
	if r.status != http.StatusPartialContent || !bytes.Equal(r.body, whole.body[100:200]) {
		t.Errorf("Range = %d, %d bytes", r.status, len(r.body))
	}
	if r := w.call("GET", orders.Download, admin, nil, "Range", "bytes=99999999-"); r.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range outside = %d, want 416", r.status)
	}
	if r := w.call("GET", orders.Download+"?part=2", admin, nil); r.status != http.StatusNotFound {
		t.Errorf("part 2 of 1 = %d, want 404", r.status)
	}
}

// TestQueriesDuringPublishesSeeOneGenerationEach joins two tables that carry
// the same stamp in every generation.
func TestQueriesDuringPublishesSeeOneGenerationEach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stamp := func(n int) {
		w.source.set("orders", fmt.Sprintf("SELECT %d AS stamp, range AS id FROM range(1000)", n))
		w.source.set("customers", fmt.Sprintf("SELECT %d AS stamp, range AS id FROM range(1000)", n))
	}
	stamp(0)
	admin := w.synced()
	const publishes, clients = 50, 20
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers, seen := 0, map[string]bool{}
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				r := w.call("POST", "/api/query", admin, map[string]string{
					"sql": "SELECT min(o.stamp), max(o.stamp), min(c.stamp), max(c.stamp), count(*) FROM orders o JOIN customers c USING (id)",
				})
				var out api.QueryResponse
				if err := json.Unmarshal(r.body, &out); r.status != http.StatusOK || err != nil {
					t.Errorf("a query failed: %d %s", r.status, r.body)
					return
				}
				row := out.Rows[0]
				if row[0] != row[1] || row[0] != row[2] || row[0] != row[3] || fmt.Sprint(row[4]) != "1000" {
					t.Errorf("an answer mixes generations: %v", row)
					return
				}
				mu.Lock()
				answers++
				seen[fmt.Sprint(row[0])] = true
				mu.Unlock()
			}
		})
	}
	for n := 1; n <= publishes; n++ {
		stamp(n)
		if job := w.sync(admin); job.Status != api.JobSucceeded {
			t.Fatalf("sync %d = %+v", n, job)
		}
	}
	close(done)
	wg.Wait()
	if answers < publishes || len(seen) < publishes/2 {
		t.Errorf("%d answers over %d generations; the clients hardly ran", answers, len(seen))
	}
	t.Logf("%d publishes, %d answers by %d clients, %d generations seen, none mixed", publishes, answers, clients, len(seen))
}
