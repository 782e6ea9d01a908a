package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// JobStatus is the state of a job. Succeeded and failed are final.
type JobStatus string

// The states of a job.
const (
	JobQueued    JobStatus = "queued"
	JobRunning   JobStatus = "running"
	JobSucceeded JobStatus = "succeeded"
	JobFailed    JobStatus = "failed"
)

// Ended reports whether the status is final.
func (s JobStatus) Ended() bool { return s == JobSucceeded || s == JobFailed }

// JobSync is the kind of a sync.
const JobSync = "sync"

// keepJobs is how many jobs the history holds.
const keepJobs = 1000

// Job is a durable record of long work.
type Job struct {
	ID          string // UUIDv7; set by CreateJob
	Kind        string // JobSync when empty
	Status      JobStatus
	RequestedBy string // e-mail of the user, or what started it
	Request     JobRequest
	Progress    float64 // 0..1
	Sources     []JobSource
	Tables      []JobTable
	Warnings    []string
	Error       string // why it failed
	Hint        string // what to do about it
	CreatedAt   time.Time
	StartedAt   time.Time // zero: not yet
	EndedAt     time.Time // zero: not yet
}

// JobRequest is what was asked for; empty means everything.
type JobRequest struct {
	Source string   `json:"source,omitempty"`
	Tables []string `json:"tables,omitempty"`
}

// JobSource is how far one source is.
type JobSource struct {
	Name      string    `json:"name"`
	Status    JobStatus `json:"status"`
	Tables    int       `json:"tables"` // tables extracted or kept
	Done      int64     `json:"done"`   // in Unit
	Total     int64     `json:"total"`  // 0: unknown
	Unit      string    `json:"unit,omitempty"`
	ElapsedMS int64     `json:"elapsed_ms"`
	Error     string    `json:"error,omitempty"`
	Hint      string    `json:"hint,omitempty"`
}

// JobTable is the result for one table.
type JobTable struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Status string `json:"status"` // e.g. synced, unchanged, stale, skipped, failed
	Rows   int64  `json:"rows"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// CreateJob adds a queued job. While one is queued or running it fails with
// problem.Conflict, code sync_already_in_progress. The oldest jobs beyond the
// newest 1000 are dropped.
func (s *Store) CreateJob(ctx context.Context, j Job, by By) (Job, error) {
	j.ID, j.Status, j.CreatedAt = newID(), JobQueued, now()
	j.StartedAt, j.EndedAt, j.Progress = time.Time{}, time.Time{}, 0
	if j.Kind == "" {
		j.Kind = JobSync
	}
	if j.RequestedBy == "" {
		j.RequestedBy = by.Actor
	}
	err := s.update(ctx, func(tx *writeTx) error {
		var active string
		err := tx.QueryRowContext(ctx, "SELECT id FROM jobs WHERE status IN (?, ?) LIMIT 1", string(JobQueued), string(JobRunning)).Scan(&active)
		if err == nil {
			return problem.New(problem.Conflict, fmt.Sprintf("A %s is in progress: job %s.", j.Kind, active),
				"Wait for it: GET /api/sync/jobs/"+active+".").WithCode("sync_already_in_progress")
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if _, err := tx.exec("DELETE FROM jobs WHERE id NOT IN (SELECT id FROM jobs ORDER BY id DESC LIMIT ?)", keepJobs-1); err != nil {
			return err
		}
		row, err := j.columns()
		if err != nil {
			return err
		}
		if err := tx.insert("jobs", [][]driver.Value{row}); err != nil {
			return err
		}
		return appendAudit(tx, by.entry(j.Kind+".trigger", j.ID, map[string]any{"source": j.Request.Source, "tables": j.Request.Tables}))
	})
	if err != nil {
		return Job{}, err
	}
	return s.JobByID(ctx, j.ID)
}

// UpdateJob stores everything of j that can change after its creation. The
// times are kept as given, except that StartedAt and EndedAt are set when the
// status calls for them. A job that has ended is not changed: problem.Conflict.
func (s *Store) UpdateJob(ctx context.Context, j Job) error {
	if math.IsNaN(j.Progress) {
		j.Progress = 0
	}
	j.Progress = min(max(j.Progress, 0), 1)
	if j.StartedAt.IsZero() && j.Status != JobQueued {
		j.StartedAt = now()
	}
	if j.EndedAt.IsZero() && j.Status.Ended() {
		j.EndedAt = now()
	}
	return s.update(ctx, func(tx *writeTx) error {
		var status JobStatus
		if err := jobNotFound(tx.QueryRowContext(ctx, "SELECT status FROM jobs WHERE id = ?", j.ID).Scan(&status), j.ID); err != nil {
			return err
		}
		if status.Ended() {
			return problem.New(problem.Conflict, fmt.Sprintf("Job %s has ended (%s) and is not changed.", j.ID, status), "Start a new one with POST /api/sync/trigger.")
		}
		c, err := j.columns()
		if err != nil {
			return err
		}
		// c is in the table's order: id, kind, status, requested_by, request, progress, ...
		_, err = tx.exec(`UPDATE jobs SET status = ?, progress = ?, sources_json = ?, tables_json = ?, warnings_json = ?,
			error = ?, hint = ?, started_at = ?, ended_at = ? WHERE id = ?`,
			c[2], c[5], c[6], c[7], c[8], c[9], c[10], c[12], c[13], j.ID)
		return err
	})
}

// JobByID returns a job or problem.NotFound.
func (s *Store) JobByID(ctx context.Context, id string) (j Job, err error) {
	err = s.use(ctx, func(db *sql.DB) error {
		j, err = scanJob(db.QueryRowContext(ctx, "SELECT * FROM jobs WHERE id = ?", id).Scan)
		return jobNotFound(err, id)
	})
	return j, err
}

// ListJobs returns up to limit jobs, newest first, older than the job with id
// before (empty: from the newest). A limit of 0 means 100.
func (s *Store) ListJobs(ctx context.Context, limit int, before string) ([]Job, error) {
	return query(ctx, s, scanJob, "SELECT * FROM jobs WHERE ? = '' OR id < ? ORDER BY id DESC LIMIT ?", before, before, pageSize(limit))
}

// FailOrphans marks jobs that a former process left queued or running as
// failed with this reason, and returns how many there were. Call it at start.
func (s *Store) FailOrphans(ctx context.Context, reason string) (int, error) {
	var n int64
	err := s.update(ctx, func(tx *writeTx) error {
		r, err := tx.exec("UPDATE jobs SET status = ?, error = ?, hint = ?, ended_at = ? WHERE status IN (?, ?)", string(JobFailed), reason,
			"Start it again with POST /api/sync/trigger.", now(), string(JobQueued), string(JobRunning))
		if err != nil {
			return err
		}
		if n, err = r.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return appendAudit(tx, AuditEntry{Action: "job.orphaned", Outcome: OutcomeFailed, Detail: map[string]any{"count": n, "reason": reason}})
	})
	return int(n), err
}

// columns returns the job in the order of the table's columns.
func (j Job) columns() ([]driver.Value, error) {
	var text [4]string
	for i, v := range []any{j.Request, j.Sources, j.Tables, j.Warnings} {
		var err error
		if text[i], err = toJSON(v); err != nil {
			return nil, err
		}
	}
	return []driver.Value{
		j.ID, j.Kind, string(j.Status), j.RequestedBy, text[0], j.Progress, text[1], text[2], text[3], j.Error, j.Hint,
		j.CreatedAt.UTC(), timeOrNil(j.StartedAt), timeOrNil(j.EndedAt),
	}, nil
}

func scanJob(scan func(...any) error) (j Job, err error) {
	var request, sources, tables, warnings string
	var started, ended sql.NullTime
	if err := scan(&j.ID, &j.Kind, &j.Status, &j.RequestedBy, &request, &j.Progress, &sources, &tables, &warnings,
		&j.Error, &j.Hint, &j.CreatedAt, &started, &ended); err != nil {
		return j, err
	}
	j.StartedAt, j.EndedAt = started.Time, ended.Time
	return j, errors.Join(fromJSON(request, &j.Request), fromJSON(sources, &j.Sources), fromJSON(tables, &j.Tables), fromJSON(warnings, &j.Warnings))
}

func jobNotFound(err error, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.NotFound, fmt.Sprintf("There is no job %.64q.", id), "List the jobs with GET /api/sync/status.")
	}
	return err
}
