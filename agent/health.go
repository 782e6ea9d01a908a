package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// How health is watched. A write is tried in the background, so that asking for
// health writes nothing and a hanging disk cannot hang the answer.
const (
	canaryEvery   = 10 * time.Second
	canaryTimeout = 5 * time.Second
	canaryValid   = 45 * time.Second // older than this, the last success says nothing
	lowDiskBytes  = 1 << 30
	fullDiskBytes = 64 << 20
	longWALBytes  = 256 << 20
)

type healthState struct {
	mu         sync.Mutex
	written    time.Time // last successful canary
	canaryErr  error
	publishErr error // the last publish outside a sync
}

func (h *healthState) setPublished(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.publishErr = err
}

func (h *healthState) read() (written time.Time, canary, publish error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.written, h.canaryErr, h.publishErr
}

func (i *Instance) watchHealth(ctx context.Context) {
	tick := time.NewTicker(canaryEvery)
	defer tick.Stop()
	for {
		i.canary(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (i *Instance) canary(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	err := i.inPlace()
	if err == nil {
		err = i.state.Canary(ctx)
	}
	if errors.Is(err, context.Canceled) {
		return // the instance is closing
	}
	i.health.mu.Lock()
	defer i.health.mu.Unlock()
	if err != nil && i.health.canaryErr == nil {
		i.log.Error("The instance cannot write its state.", "error", err)
	}
	i.health.canaryErr = err
	if err == nil {
		i.health.written = time.Now()
	}
}

// inPlace proves that system.duckdb still is the file that was opened. Where
// DATA_DIR was moved, replaced or unmounted, writes go on succeeding in a file
// that no start will ever find again.
func (i *Instance) inPlace() error {
	now, err := os.Stat(i.layout.Database())
	if err == nil && os.SameFile(now, i.database) {
		return nil
	}
	return problem.Wrap(err, problem.Unavailable,
		fmt.Sprintf("Expected %s to be the database that the instance opened, found that it was moved, replaced or unmounted.", i.layout.Database()),
		fmt.Sprintf("Put %s back while the instance still runs; what it stores meanwhile is in the file that was moved away.", i.layout.State()))
}

// Ready reports whether a recent write succeeded.
func (i *Instance) Ready() bool {
	written, err, _ := i.health.read()
	return err == nil && time.Since(written) < canaryValid
}

// Version says what runs.
func (i *Instance) Version() api.Version {
	b := i.opt.Build
	return api.Version{Version: b.Version, Channel: b.Channel, Commit: b.Commit, Go: b.Go, DuckDB: query.Version()}
}

// Health is the public state of the instance: no table names, no secrets. It
// never fails; what cannot be found out is itself unhealthy.
func (i *Instance) Health(ctx context.Context) api.Health {
	v := i.Version()
	h := api.Health{
		Status: api.Healthy, Version: v.Version, Channel: v.Channel, Commit: v.Commit,
		SchemaVersion: i.state.SchemaVersion(), Timestamp: time.Now().UTC(), SetupRequired: i.SetupRequired(), Phase: i.phase(),
		Warnings: []string{},
		Services: map[string]api.ServiceHealth{
			"state": i.stateHealth(), "disk": i.diskHealth(), "tables": i.tablesHealth(), "sync": i.syncHealth(ctx), "source": i.sourceHealth(),
			"remote": i.remoteHealth(), "backup": i.backupHealth(),
		},
	}
	h.Warnings = append(h.Warnings, i.state.Warnings()...)
	if h.Update = i.update(); h.Update.Deprecated {
		// No service is the worse for it, so the status stays: what watches over an
		// instance during an upgrade must not mistake the old version for a sick one.
		h.Warnings = append(h.Warnings, fmt.Sprintf("Running deprecated version %s. Update to stable.", h.Version))
	}
	for _, name := range slices.Sorted(maps.Keys(h.Services)) {
		s := h.Services[name]
		if s.Status != api.Healthy && h.Status != api.Unhealthy {
			h.Status = s.Status
		}
		if s.Status != api.Healthy {
			h.Warnings = append(h.Warnings, s.Detail)
		}
	}
	if len(i.state.Warnings()) > 0 && h.Status == api.Healthy {
		h.Status = api.Degraded
	}
	return h
}

func (i *Instance) stateHealth() api.ServiceHealth {
	written, err, _ := i.health.read()
	switch {
	case err != nil:
		hint := "Look for this error in the instance's log."
		if p, ok := errors.AsType[*problem.Error](err); ok && p.Hint != "" {
			hint = p.Hint
		}
		return api.ServiceHealth{Status: api.Unhealthy, Detail: "The instance cannot write its state.", Hint: hint}
	case written.IsZero():
		return api.ServiceHealth{Status: api.Healthy, Detail: "Starting; the first write is on its way."}
	case time.Since(written) > canaryValid:
		return api.ServiceHealth{
			Status: api.Unhealthy, Detail: fmt.Sprintf("No write has succeeded for %s.", time.Since(written).Round(time.Second)),
			Hint: "Check the disk under DATA_DIR for input/output errors, then restart the instance.",
		}
	case i.state.WALBytes() > longWALBytes:
		return api.ServiceHealth{
			Status: api.Degraded, Detail: fmt.Sprintf("The write-ahead log has grown to %d MB.", i.state.WALBytes()>>20),
			Hint: "Restart the instance in a quiet moment; it checkpoints on the way down.",
		}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: "Writes succeed."}
}

func (i *Instance) disk() (api.Disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(i.layout.Root, &fs); err != nil {
		return api.Disk{}, err
	}
	return api.Disk{TotalBytes: int64(fs.Blocks) * fs.Bsize, FreeBytes: int64(fs.Bavail) * fs.Bsize}, nil
}

func (i *Instance) diskHealth() api.ServiceHealth {
	d, err := i.disk()
	const hint = "Free space on the file system of DATA_DIR, or move DATA_DIR to a larger one."
	switch {
	case err != nil:
		return api.ServiceHealth{Status: api.Unhealthy, Detail: "The data directory cannot be examined.", Hint: "Check that DATA_DIR is mounted."}
	case d.FreeBytes < fullDiskBytes:
		return api.ServiceHealth{Status: api.Unhealthy, Detail: fmt.Sprintf("The disk is full: %d MB free.", d.FreeBytes>>20), Hint: hint}
	case d.FreeBytes < lowDiskBytes:
		return api.ServiceHealth{Status: api.Degraded, Detail: fmt.Sprintf("The disk is nearly full: %d MB free.", d.FreeBytes>>20), Hint: hint}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: fmt.Sprintf("%d GB free.", d.FreeBytes>>30)}
}

func (i *Instance) tablesHealth() api.ServiceHealth {
	if _, _, err := i.health.read(); err != nil {
		return api.ServiceHealth{
			Status: api.Degraded, Detail: "The last change of the table registry is not published yet.",
			Hint: "Publish again with a sync: POST /api/sync/trigger.",
		}
	}
	g, ok := i.analytics.Acquire()
	if !ok {
		return api.ServiceHealth{Status: api.Healthy, Detail: "Nothing is published yet."}
	}
	defer g.Release()
	stale := 0
	for _, t := range g.Tables {
		if t.Stale {
			stale++
		}
	}
	if stale > 0 {
		return api.ServiceHealth{
			Status: api.Degraded, Detail: fmt.Sprintf("%d of %d tables serve their last good data.", stale, len(g.Tables)),
			Hint: "GET /api/health/details names them with the reason; mend that, then POST /api/sync/trigger.",
		}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: fmt.Sprintf("%d tables are published.", len(g.Tables))}
}

func (i *Instance) syncHealth(ctx context.Context) api.ServiceHealth {
	list, err := i.state.ListJobs(ctx, 2, "")
	if err != nil {
		return api.ServiceHealth{Status: api.Unhealthy, Detail: "The sync history cannot be read.", Hint: "Look for the error in the instance's log."}
	}
	for _, j := range list {
		switch j.Status {
		case state.JobFailed:
			return api.ServiceHealth{
				Status: api.Degraded, Detail: fmt.Sprintf("The sync of %s failed, at least in part.", j.CreatedAt.Format(time.RFC3339)),
				Hint: "GET /api/sync/jobs/" + j.ID + " says why; mend that, then POST /api/sync/trigger.",
			}
		case state.JobSucceeded:
			return api.ServiceHealth{Status: api.Healthy, Detail: "The last sync succeeded at " + j.EndedAt.Format(time.RFC3339) + "."}
		}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: "No sync has ended yet."}
}

func (i *Instance) sourceHealth() api.ServiceHealth {
	if i.Settings().Get(settings.DataSource) == "" {
		return api.ServiceHealth{
			Status: api.Healthy, Detail: "No data source is configured yet.",
			Hint: `POST /api/admin/configure {"data_source":"csv","csv_dir":"/path/to/files"}`,
		}
	}
	if _, err := i.openSource(i.Settings()); err != nil {
		return api.ServiceHealth{Status: api.Degraded, Detail: "The configured data source cannot be used.", Hint: problem.As(err).Hint}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: "A data source is configured."}
}

// HealthDetails adds what only signed-in users may know.
func (i *Instance) HealthDetails(ctx context.Context, caller Caller) (api.HealthDetails, error) {
	v, err := i.visible(ctx, caller)
	if err != nil {
		return api.HealthDetails{}, err
	}
	defer v.release()
	jobs, err := i.state.ListJobs(ctx, 100, "")
	if err != nil {
		return api.HealthDetails{}, err
	}
	disk, err := i.disk()
	if err != nil {
		return api.HealthDetails{}, err
	}
	out := api.HealthDetails{
		Health: i.Health(ctx), Tables: len(v.tables), StaleTables: []api.StaleTable{}, Sources: []api.SourceHealth{},
		Disk: disk, WALBytes: i.state.WALBytes(), Generation: v.number(), Isolation: i.query.Isolation(),
		Limits:      map[string]api.Limits{},
		ImageDigest: i.Settings().Get(settings.ImageDigest), ConfigHash: i.Settings().Hash(), BundleVersion: i.Settings().Get(settings.BundleVersion),
	}
	out.Services["remote"] = i.remoteHealthOf(v)
	for _, role := range []string{api.RoleAdmin, api.RoleAnalyst} {
		out.Limits[role] = i.limits(role)
	}
	for _, t := range v.tables {
		if info, ok := v.published(t.ID); ok && info.Stale {
			out.StaleTables = append(out.StaleTables, api.StaleTable{ID: t.ID, Reason: info.StaleReason, LastSync: info.ExtractedAt})
		}
	}
	for _, name := range sourcesOf(v.tables) {
		out.Sources = append(out.Sources, lastSync(name, jobs, caller))
	}
	return out, nil
}

func lastSync(source string, jobs []state.Job, caller Caller) api.SourceHealth {
	out := api.SourceHealth{Name: source, Status: "never"}
	for _, j := range jobs {
		at := slices.IndexFunc(j.Sources, func(s state.JobSource) bool { return s.Name == source })
		if at < 0 {
			continue
		}
		if out.Status == "never" {
			out.Status = string(j.Status)
			if caller.Admin() {
				out.Error = j.Sources[at].Error
			}
		}
		if j.Status == state.JobSucceeded {
			out.LastSync = timeOrNil(j.EndedAt)
			break
		}
	}
	return out
}

// Gauge is a number about the instance for monitoring.
type Gauge struct {
	Name, Help string
	Value      func() float64
}

// Gauges lists the instance's numbers; each Value is cheap.
func (i *Instance) Gauges() []Gauge {
	generation := func(f func(tables, stale int, id int64) float64) func() float64 {
		return func() float64 {
			g, ok := i.analytics.Acquire()
			if !ok {
				return f(0, 0, 0)
			}
			defer g.Release()
			stale := 0
			for _, t := range g.Tables {
				if t.Stale {
					stale++
				}
			}
			return f(len(g.Tables), stale, g.ID)
		}
	}
	return []Gauge{
		{"ready", "1 while a recent background write succeeded.", func() float64 {
			if i.Ready() {
				return 1
			}
			return 0
		}},
		{"generation", "Number of the published generation.", generation(func(_, _ int, id int64) float64 { return float64(id) })},
		{"tables", "Published tables.", generation(func(tables, _ int, _ int64) float64 { return float64(tables) })},
		{"stale_tables", "Tables that serve their last good data.", generation(func(_, stale int, _ int64) float64 { return float64(stale) })},
		{"wal_bytes", "Size of system.duckdb's write-ahead log.", func() float64 { return float64(i.state.WALBytes()) }},
		{"disk_free_bytes", "Free space under DATA_DIR.", func() float64 {
			d, err := i.disk()
			if err != nil {
				return -1
			}
			return float64(d.FreeBytes)
		}},
		{"deprecated", "1 while the running version is known to be deprecated.", func() float64 {
			if i.update().Deprecated {
				return 1
			}
			return 0
		}},
		{"queries_running", "Queries that run now.", func() float64 { return float64(i.query.Running()) }},
	}
}
