package smoketest

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// running returns the job that has not ended, or nil.
func (i *Instance) running() *api.Job {
	if n := len(i.jobs); n > 0 && !i.jobs[n-1].Done() {
		return &i.jobs[n-1]
	}
	return nil
}

func (i *Instance) trigger(w http.ResponseWriter, r *http.Request) {
	var req api.SyncRequest
	if !decode(w, r, &req) {
		return
	}
	if i.running() != nil {
		fail(w, 409, "sync_already_in_progress", "A sync runs already.")
		return
	}
	send(w, 200, api.SyncTriggered{Status: "triggered", JobID: i.start(), Message: "Syncing."})
}

func (i *Instance) start() string {
	now := time.Now().UTC()
	job := api.Job{ID: fmt.Sprintf("job-%d", len(i.jobs)+1), Status: api.JobRunning, CreatedAt: now, StartedAt: &now}
	for _, t := range i.tables {
		job.Tables = append(job.Tables, api.JobTable{ID: t.ID, Source: "csv", Status: api.JobQueued})
	}
	i.jobs = append(i.jobs, job)
	return job.ID
}

// advance brings the running job to where it is by now.
func (i *Instance) advance() {
	job := i.running()
	if job == nil || i.knobs.SyncHangs {
		return
	}
	elapsed := time.Since(*job.StartedAt)
	if elapsed < i.knobs.SyncTakes {
		job.Progress = float64(elapsed) / float64(i.knobs.SyncTakes)
		return
	}
	i.end(job)
	if after := i.knobs.AfterSync; after != nil {
		after(&i.knobs)
	}
}

func (i *Instance) end(job *api.Job) {
	k, now := i.knobs, time.Now().UTC()
	job.Status, job.Progress, job.EndedAt = api.JobSucceeded, 1, &now
	if k.SyncFails {
		job.Status, job.Error, job.Hint = api.JobFailed, "The folder cannot be read.", "Make the folder readable."
	}
	for n := range job.Tables {
		done := &job.Tables[n]
		table := &i.tables[slices.IndexFunc(i.tables, func(t api.CatalogTable) bool { return t.ID == done.ID })]
		switch {
		case k.SyncFails:
			done.Status, done.Error = api.JobFailed, "cannot be read"
		case k.SyncUnchanged:
			done.Status = "unchanged"
		case k.SyncStale:
			done.Status, table.Stale, table.StaleReason = api.JobSucceeded, true, "Its Parquet file is damaged."
		case k.SyncLies:
			done.Status = api.JobSucceeded
		default:
			done.Status, table.LastSync = api.JobSucceeded, &now
		}
	}
}

func (i *Instance) syncStatus() api.SyncStatus {
	var s api.SyncStatus
	for n := range i.jobs {
		if i.jobs[n].Done() {
			s.Last = &i.jobs[n]
		} else {
			s.Running = &i.jobs[n]
		}
	}
	return s
}

func (i *Instance) job(w http.ResponseWriter, id string) {
	for _, j := range i.jobs {
		if j.ID == id {
			send(w, 200, j)
			return
		}
	}
	fail(w, 404, "not_found", "There is no job "+id+".")
}
