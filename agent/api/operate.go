package api

import "time"

// Phases of an instance's life, in Health.Phase.
const (
	PhaseSetup    = "setup"    // no admin exists yet
	PhaseServing  = "serving"  // answers, and no sync runs
	PhaseSyncing  = "syncing"  // answers, and a sync runs
	PhaseDraining = "draining" // answers, and starts no new sync: an upgrade or a restart is near
)

// DrainRequest begins or ends a drain (POST /api/admin/drain). While an instance
// drains it answers queries as before, but starts no sync and refuses changes of
// its configuration, so that nothing is lost between a backup and a restart.
type DrainRequest struct {
	Drain   bool `json:"drain" doc:"true begins a drain or extends it, false ends it."`
	Seconds int  `json:"seconds,omitempty" minimum:"1" maximum:"86400" doc:"After this long the drain ends by itself; 900 when left out. Whoever asked for it may be gone."`
}

// Drain is the state after a DrainRequest. The caller asks again until
// SyncRunning is false: then nothing is left to wait for.
type Drain struct {
	Draining    bool       `json:"draining"`
	Until       *time.Time `json:"until,omitempty" doc:"When the drain ends by itself."`
	SyncRunning bool       `json:"sync_running"`
	JobID       string     `json:"job_id,omitempty" doc:"The sync that still runs."`
}

// BackupRequest asks for a backup (POST /api/admin/backup).
type BackupRequest struct {
	Extracts bool   `json:"extracts,omitempty" doc:"Also the tables' data. It can be fetched again from its sources, and it is large."`
	Reason   string `json:"reason,omitempty" maxLength:"200" doc:"Why it is made; shown in the list."`
}

// Backup is one backup of an instance: its state, configuration and secrets,
// and its tables' data where that was asked for. It was verified by opening it
// before the answer was sent.
type Backup struct {
	ID            string    `json:"id" doc:"Names it in agnes backup restore ID."`
	CreatedAt     time.Time `json:"created_at"`
	Reason        string    `json:"reason,omitempty"`
	Version       string    `json:"version" doc:"Of the instance that made it."`
	SchemaVersion int       `json:"schema_version"`
	Extracts      bool      `json:"extracts"`
	LeftOut       []string  `json:"left_out,omitempty" doc:"Sources whose data could not be taken, each with the reason."`
	SizeBytes     int64     `json:"size_bytes"`
	SHA256        string    `json:"sha256,omitempty" doc:"Of the whole file; in the answer of the call that makes it."`
	Path          string    `json:"path" doc:"Where the instance sees it."`
	Offsite       bool      `json:"offsite,omitempty" doc:"Whether an encrypted copy is at the backup target."`
	OffsiteTried  bool      `json:"offsite_tried,omitempty" doc:"Whether the newest attempt to copy backups there began after this one was made: its error holds for this one too."`
}

// Backups is GET /api/admin/backups, newest first.
type Backups struct {
	Backups []Backup `json:"backups"`
	Count   int      `json:"count"`
	Offsite *Offsite `json:"offsite,omitempty" doc:"Where copies off this host are kept; absent where no target is set."`
}

// Offsite says how the copies of backups off this host are doing.
type Offsite struct {
	Target       string     `json:"target"`
	InStep       *time.Time `json:"in_step_at,omitempty" doc:"When every backup was last where it should be."`
	Waiting      int        `json:"waiting" doc:"Backups that have no copy yet."`
	Error        string     `json:"error,omitempty" doc:"Why the newest attempt failed; it is tried again."`
	Hint         string     `json:"hint,omitempty"`
	FailingSince *time.Time `json:"failing_since,omitempty"`
	TriedAt      *time.Time `json:"tried_at,omitempty" doc:"When the newest attempt ended."`
}
