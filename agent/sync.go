package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// jobs holds the running job's live state and who watches it. The durable
// record in system.duckdb is written at each transition; between them, progress
// lives here only.
type jobs struct {
	ctx context.Context //nolint:containedctx // of the instance's life: a sync outlives the request that starts it

	mu       sync.Mutex
	live     *state.Job
	unsaved  bool                     // live differs from its record: the last write failed
	watchers map[chan struct{}]string // -> job id
}

func (j *jobs) init(ctx context.Context) {
	j.ctx, j.watchers = ctx, make(map[chan struct{}]string)
}

// notify wakes those who watch a job; the caller holds mu.
func (j *jobs) notify(id string) {
	for ch, watched := range j.watchers {
		if watched == id {
			select {
			case ch <- struct{}{}:
			default: // it has a wake-up waiting already
			}
		}
	}
}

// WatchJob returns a channel that receives whenever the job may have changed.
func (i *Instance) WatchJob(id string) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	i.jobs.mu.Lock()
	defer i.jobs.mu.Unlock()
	i.jobs.watchers[ch] = id
	return ch, func() {
		i.jobs.mu.Lock()
		defer i.jobs.mu.Unlock()
		delete(i.jobs.watchers, ch)
	}
}

// Progress marks within a job: extraction takes most of it, then publishing.
const extracted = 0.9

// TriggerSync starts a sync of all or some tables of the configured source.
// While one runs, a second is refused with problem.Conflict; so is every one
// while the instance drains.
func (i *Instance) TriggerSync(ctx context.Context, caller Caller, req api.SyncRequest) (api.SyncTriggered, error) {
	job, err := i.startSync(ctx, caller.by(), req)
	if err != nil {
		return api.SyncTriggered{}, err
	}
	ids := []string{}
	for _, t := range job.Tables {
		ids = append(ids, t.ID)
	}
	return api.SyncTriggered{
		Status: "triggered", JobID: job.ID, Tables: ids,
		Message: fmt.Sprintf("Syncing %d tables. Follow it with GET /api/sync/jobs/%s.", len(ids), job.ID),
	}, nil
}

// SyncOnStart starts the first sync of an instance whose source the environment
// gives, so that its tables are there without any call. It waits for the end of
// a drain.
func (i *Instance) SyncOnStart(ctx context.Context) error {
	if _, fixed := i.Settings().Value(settings.DataSource).Fixed(); !fixed {
		return nil
	}
	if generation, published := i.analytics.Acquire(); published {
		generation.Release()
		return nil
	}
	first := state.By{Actor: "first start"}
	_, err := i.startSync(ctx, first, api.SyncRequest{})
	if !isDraining(err) {
		return err
	}
	i.running.Go(func() {
		for isDraining(err) && i.drain.wait(i.jobs.ctx) == nil {
			_, err = i.startSync(i.jobs.ctx, first, api.SyncRequest{})
		}
		if err != nil && !isDraining(err) {
			i.log.Warn("The first sync could not start.", "error", err, "hint", problem.As(err).Hint)
		}
	})
	return nil
}

func isDraining(err error) bool {
	p, ok := errors.AsType[*problem.Error](err)
	return ok && p.Code == "draining"
}

func (i *Instance) startSync(ctx context.Context, by state.By, req api.SyncRequest) (state.Job, error) {
	if err := i.drain.do(func() error { return nil }); err != nil {
		return state.Job{}, err
	}
	source, err := i.openSource(i.Settings())
	if err != nil {
		return state.Job{}, err
	}
	if req.Source != "" && req.Source != source.Name() {
		return state.Job{}, problem.New(problem.Unprocessable,
			fmt.Sprintf("There is no source %q; the configured one is %q.", req.Source, source.Name()),
			"Leave source out, or configure another: POST /api/admin/configure.").WithCode("unknown_source")
	}
	tables, err := i.tablesToSync(ctx, source, by, req.Tables)
	if err != nil {
		return state.Job{}, err
	}
	job := state.Job{
		Request: state.JobRequest{Source: req.Source, Tables: req.Tables},
		Sources: []state.JobSource{{Name: source.Name(), Status: state.JobQueued}},
	}
	for _, t := range tables {
		job.Tables = append(job.Tables, state.JobTable{ID: t.ID, Source: t.Source, Status: string(state.JobQueued)})
	}
	if err := i.saveEnded(ctx); err != nil {
		return state.Job{}, err
	}
	err = i.drain.do(func() error {
		if job, err = i.state.CreateJob(ctx, job, by); err != nil {
			return err
		}
		live := job
		i.jobs.mu.Lock()
		i.jobs.live = &live
		i.jobs.mu.Unlock()
		i.running.Go(func() { i.runSync(i.jobs.ctx, source, tables) })
		return nil
	})
	return job, err
}

// saveEnded stores the end of a job whose record could not be written when it
// ended, as on a full disk. Left alone, that record would block every new sync.
func (i *Instance) saveEnded(ctx context.Context) error {
	i.jobs.mu.Lock()
	defer i.jobs.mu.Unlock()
	if !i.jobs.unsaved || !i.jobs.live.Status.Ended() {
		return nil
	}
	if err := i.state.UpdateJob(ctx, *i.jobs.live); err != nil {
		return err
	}
	i.jobs.unsaved = false
	return nil
}

// tablesToSync resolves what was asked for. A source without any registered
// table is discovered first: a first sync needs no step before it.
func (i *Instance) tablesToSync(ctx context.Context, source connectors.Source, by state.By, ids []string) ([]state.Table, error) {
	registered, err := i.state.ListTables(ctx)
	if err != nil {
		return nil, err
	}
	ofSource := func(t state.Table) bool { return t.Source == source.Name() }
	if !slices.ContainsFunc(registered, ofSource) {
		if _, err := i.discover(ctx, source, by, false); err != nil {
			return nil, err
		}
		if registered, err = i.state.ListTables(ctx); err != nil {
			return nil, err
		}
	}
	var tables []state.Table
	var unknown []string
	for _, id := range ids {
		at := slices.IndexFunc(registered, func(t state.Table) bool { return strings.EqualFold(t.ID, id) && ofSource(t) && t.Enabled })
		if at < 0 {
			unknown = append(unknown, id)
			continue
		}
		tables = append(tables, registered[at])
	}
	if len(unknown) > 0 {
		return nil, problem.New(problem.Unprocessable,
			fmt.Sprintf("No enabled tables of the source %s are registered as %s.", source.Name(), strings.Join(unknown, ", ")),
			"GET /api/admin/registry lists the table ids.").WithCode("unknown_table")
	}
	if len(ids) == 0 {
		for _, t := range registered {
			if ofSource(t) && t.Enabled {
				tables = append(tables, t)
			}
		}
	}
	if len(tables) == 0 {
		return nil, problem.New(problem.Unprocessable, fmt.Sprintf("The source %s has no tables to sync.", source.Name()),
			"Check what it offers: POST /api/admin/discover-and-register?dry_run=true").WithCode("no_tables")
	}
	return tables, nil
}

// runSync is the whole life of a job.
func (i *Instance) runSync(ctx context.Context, source connectors.Source, tables []state.Table) {
	i.updateJob(true, func(j *state.Job) { j.Status, j.Sources[0].Status = state.JobRunning, state.JobRunning })

	var req connectors.Request
	for _, t := range tables {
		req.Tables = append(req.Tables, t.SourceTable)
	}
	_, res, err := connectors.Run(ctx, source, req, i.layout.Extracts(), i.progress())
	i.recordExtraction(tables, res, err)
	if err != nil {
		i.failJob(ctx, err)
		return
	}
	published, err := i.publish(ctx)
	if err != nil {
		i.failJob(ctx, err)
		return
	}
	i.health.setPublished(nil)
	i.finishJob(published)
}

// progress reports at most every tenth of a second, for a connector may call it
// for each block that it reads.
func (i *Instance) progress() func(connectors.Progress) {
	var last time.Time
	return func(p connectors.Progress) {
		if time.Since(last) < 100*time.Millisecond {
			return
		}
		last = time.Now()
		i.updateJob(false, func(j *state.Job) {
			s := &j.Sources[0]
			s.Done, s.Total, s.Unit = p.Done, p.Total, p.Unit
			if p.Total > 0 {
				j.Progress = max(j.Progress, extracted*float64(p.Done)/float64(p.Total))
			}
		})
	}
}

func (i *Instance) recordExtraction(tables []state.Table, res connectors.Result, err error) {
	rows := map[string]int64{}
	for _, m := range res.Tables {
		rows[m.Table] = m.Rows
	}
	i.updateJob(true, func(j *state.Job) {
		s := &j.Sources[0]
		s.ElapsedMS = time.Since(j.StartedAt).Milliseconds()
		s.Tables = len(res.Tables) + len(res.Unchanged)
		if err != nil {
			p := problem.As(err)
			s.Status, s.Error, s.Hint = state.JobFailed, p.Message, p.Hint
			return
		}
		s.Status = state.JobSucceeded
		j.Progress = extracted
		for n, t := range tables {
			out := &j.Tables[n]
			out.Status = "succeeded"
			if slices.Contains(res.Unchanged, t.SourceTable) {
				out.Status = "unchanged"
			}
			if failure, failed := res.Failed[t.SourceTable]; failed {
				p := problem.As(failure)
				out.Status, out.Error, out.Hint = string(state.JobFailed), p.Message, p.Hint
			}
			out.Rows = rows[t.SourceTable]
		}
		for _, w := range res.Warnings {
			j.Warnings = append(j.Warnings, warningText(w))
		}
	})
}

// finishJob ends a job whose tables were published. Tables that could not be
// refreshed make it failed, though all others are served.
func (i *Instance) finishJob(published *analytics.Published) {
	i.updateJob(true, func(j *state.Job) {
		j.Warnings = append(j.Warnings, published.Warnings...)
		failed := 0
		for n := range j.Tables {
			t := &j.Tables[n]
			if err, ok := published.Failed[t.ID]; ok && t.Status != string(state.JobFailed) {
				p := problem.As(err)
				t.Status, t.Error, t.Hint = string(state.JobFailed), p.Message, p.Hint
			}
			if info, ok := published.Generation.Tables[t.ID]; ok && t.Status != string(state.JobFailed) {
				t.Rows = info.Rows
			}
			if t.Status == string(state.JobFailed) {
				failed++
			}
		}
		j.Progress, j.Status = 1, state.JobSucceeded
		if failed > 0 {
			j.Status = state.JobFailed
			j.Error = fmt.Sprintf("%d of %d tables could not be refreshed; they serve their last good data, where they have any.", failed, len(j.Tables))
			j.Hint = fmt.Sprintf("See error and hint of each failed table in GET /api/sync/jobs/%s, then POST /api/sync/trigger.", j.ID)
		}
	})
}

func (i *Instance) failJob(ctx context.Context, err error) {
	p := problem.As(err)
	if ctx.Err() != nil {
		p = problem.Wrap(err, problem.Unavailable, "The instance was stopped while this sync ran; the tables of before are served.", "Start it again: POST /api/sync/trigger")
	}
	i.log.Error("A sync failed; the tables of before stay.", "message", p.Message, "error", err)
	i.updateJob(true, func(j *state.Job) {
		j.Status, j.Error, j.Hint = state.JobFailed, p.Message, p.Hint
		for n := range j.Sources {
			if !j.Sources[n].Status.Ended() {
				j.Sources[n].Status = state.JobFailed
			}
		}
		for n := range j.Tables {
			if j.Tables[n].Status == string(state.JobQueued) {
				j.Tables[n].Status = string(state.JobFailed)
			}
		}
	})
}

// updateJob changes the live job and tells its watchers; durable changes are
// stored first.
func (i *Instance) updateJob(durable bool, change func(*state.Job)) {
	i.jobs.mu.Lock()
	job := cloneJob(*i.jobs.live)
	i.jobs.mu.Unlock()
	if job.StartedAt.IsZero() {
		job.StartedAt = time.Now().UTC()
	}
	change(&job)
	if job.Status.Ended() {
		job.EndedAt = time.Now().UTC()
	}
	unsaved := false
	if durable {
		// The job's end has to be stored even while the instance is stopping.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(i.jobs.ctx), 30*time.Second)
		defer cancel()
		if err := i.state.UpdateJob(ctx, job); err != nil {
			i.log.Error("A sync's record could not be stored; after a restart it reads as failed.", "job", job.ID, "status", job.Status, "error", err)
			unsaved = true
		}
	}
	i.jobs.mu.Lock()
	defer i.jobs.mu.Unlock()
	i.jobs.live, i.jobs.unsaved = &job, unsaved
	i.jobs.notify(job.ID)
}

func cloneJob(j state.Job) state.Job {
	j.Sources, j.Tables, j.Warnings = slices.Clone(j.Sources), slices.Clone(j.Tables), slices.Clone(j.Warnings)
	return j
}

// Job returns one sync. Tables that the caller may not see are left out.
func (i *Instance) Job(ctx context.Context, caller Caller, id string) (api.Job, error) {
	if live, ok := i.liveJob(); ok && live.ID == id {
		return shownJob(live, caller), nil
	}
	job, err := i.state.JobByID(ctx, id)
	if err != nil {
		return api.Job{}, err
	}
	return shownJob(job, caller), nil
}

func (i *Instance) liveJob() (state.Job, bool) {
	i.jobs.mu.Lock()
	defer i.jobs.mu.Unlock()
	if i.jobs.live == nil {
		return state.Job{}, false
	}
	return cloneJob(*i.jobs.live), true
}

// SyncStatus returns the running sync and the latest ones.
func (i *Instance) SyncStatus(ctx context.Context, caller Caller) (api.SyncStatus, error) {
	list, err := i.state.ListJobs(ctx, 20, "")
	out := api.SyncStatus{Jobs: []api.Job{}}
	live, running := i.liveJob()
	for _, j := range list {
		if running && live.ID == j.ID {
			j = live
		}
		shown := shownJob(j, caller)
		out.Jobs = append(out.Jobs, shown)
		switch {
		case !shown.Done() && out.Running == nil:
			out.Running = &shown
		case shown.Done() && out.Last == nil:
			out.Last = &shown
		}
	}
	return out, err
}

func shownJob(j state.Job, caller Caller) api.Job {
	out := api.Job{
		ID: j.ID, Status: string(j.Status), Progress: j.Progress, Sources: []api.JobSource{}, Tables: []api.JobTable{}, Warnings: []string{},
		Error: j.Error, Hint: j.Hint, RequestedBy: j.RequestedBy, CreatedAt: j.CreatedAt, StartedAt: timeOrNil(j.StartedAt), EndedAt: timeOrNil(j.EndedAt),
	}
	for _, s := range j.Sources {
		out.Sources = append(out.Sources, api.JobSource{Name: s.Name, Status: string(s.Status), Error: s.Error, Hint: s.Hint})
	}
	for _, t := range j.Tables {
		if caller.Sees(t.ID) {
			out.Tables = append(out.Tables, api.JobTable{ID: t.ID, Source: t.Source, Status: t.Status, Rows: t.Rows, Error: t.Error, Hint: t.Hint})
		}
	}
	if caller.Admin() {
		out.Warnings = append(out.Warnings, j.Warnings...)
		return out
	}
	// Messages may name any table or file of the source.
	if out.Error != "" {
		out.Error, out.Hint = "The sync failed, at least in part.", "Ask an admin of this instance."
	}
	out.RequestedBy = ""
	for n := range out.Sources {
		out.Sources[n].Error, out.Sources[n].Hint = "", ""
	}
	return out
}
