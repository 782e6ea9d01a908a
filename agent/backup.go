package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// BackupDirs are the places that a backup or a restore of the instance reads
// and writes.
func (l Layout) BackupDirs() backup.Dirs {
	return backup.Dirs{Root: l.Root, State: l.State(), Extracts: l.Extracts(), Backups: l.Backups(), Work: l.restoring()}
}

// backups is what the instance knows of its backups besides the files.
type backups struct {
	making sync.Mutex // held while one is made; see Backup
	seed   string     // the instance's ID
	since  time.Time  // when there was nothing to back up yet
	opened time.Time

	mu     sync.Mutex
	last   time.Time // of the newest good one; zero where there is none
	failed error     // of the newest attempt
}

func (b *backups) note(last time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = err
	if err == nil {
		b.last = last
	}
}

// state returns the newest good backup's time, the failure since, and the time
// from which the next one is due. That is ahead of now only where nothing else
// is known: the clock was wrong when it was taken.
func (b *backups) state(now time.Time) (last, base time.Time, failed error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	base = b.last
	if base.IsZero() || base.Before(b.since) && !backup.Ahead(b.since, now) {
		base = b.since
	}
	return b.last, base, b.failed
}

// newest returns when the newest of list, newest first, was made. What is ahead
// of now counts only where there is nothing else.
func newest(list []backup.Info, now time.Time) (at time.Time) {
	for _, b := range list {
		if at.IsZero() || backup.Ahead(at, now) {
			at = b.CreatedAt
		}
	}
	return at
}

// longestStep is how far the clock may have gone since the backup before, for
// what is old by it to be deleted.
const longestStep = 7 * 24 * time.Hour

// trusted returns the time to delete by: now, or not much later than the backup
// before, since a clock that has jumped ahead makes everything old at once.
func trusted(before, now time.Time) time.Time {
	if limit := before.Add(longestStep); !before.IsZero() && limit.Before(now) {
		return limit
	}
	return now
}

// openBackups finds out when the last backup was made and checks the settings.
func (i *Instance) openBackups(ctx context.Context) error {
	identity, err := i.state.Instance(ctx)
	if err != nil {
		return err
	}
	i.backups.seed, i.backups.since, i.backups.opened = identity.ID, identity.CreatedAt, time.Now()
	if err := checkBackupSettings(i.Settings()); err != nil {
		return err
	}
	list, broken, err := backup.List(i.layout.BackupDirs())
	if err != nil {
		return err
	}
	for path, err := range broken {
		i.log.Warn("A backup cannot be read.", "path", path, "error", err)
	}
	i.backups.last = newest(list, time.Now())
	if err := backup.Sweep(i.layout.BackupDirs()); err != nil {
		i.log.Warn("What a killed backup or restore left could not all be removed; it may hold secrets.", "error", err)
	}
	return i.openMirror()
}

func checkBackupSettings(s *settings.Resolved) error {
	if _, err := backup.ParseSchedule(s.Get(settings.BackupSchedule), ""); err != nil {
		return err
	}
	_, err := backupKeep(s)
	return err
}

func backupKeep(s *settings.Resolved) (int, error) {
	v := s.Value(settings.BackupKeep)
	keep, err := strconv.Atoi(v.Text)
	if err != nil || keep < 1 || keep > 3650 {
		return 0, problem.New(problem.Usage, fmt.Sprintf("%s from %s is %q; expected a number of days from 1 to 3650.", v.Env, v.Source, v.Text),
			fmt.Sprintf("Set %s to such a number, or leave it out.", v.Env))
	}
	return keep, nil
}

// backupSchedule returns the current schedule; settings were checked when they
// were taken.
func (i *Instance) backupSchedule() backup.Schedule {
	s, err := backup.ParseSchedule(i.Settings().Get(settings.BackupSchedule), i.backups.seed)
	if err != nil {
		i.log.Error("The backup schedule cannot be read; no backups are made.", "error", err)
	}
	return s
}

// Backup makes a backup of the running instance and returns once it is proved.
// While one is made, a second is refused with problem.Conflict. A caller that
// goes away does not stop it.
func (i *Instance) Backup(ctx context.Context, caller Caller, req api.BackupRequest) (api.Backup, error) {
	if !i.backups.making.TryLock() {
		return api.Backup{}, problem.New(problem.Conflict, "A backup is being made already.",
			"Wait for it, then see it in GET /api/admin/backups, or try again.").WithCode("backup_in_progress")
	}
	type result struct {
		info backup.Info
		err  error
	}
	done := make(chan result, 1)
	i.running.Go(func() {
		defer i.backups.making.Unlock()
		info, err := i.makeBackup(i.jobs.ctx, caller.by(), backup.Request{Reason: req.Reason, Extracts: req.Extracts})
		done <- result{info, err}
	})
	select {
	case r := <-done:
		if r.err != nil {
			return api.Backup{}, r.err
		}
		return ShowBackup(r.info), nil
	case <-ctx.Done():
		return api.Backup{}, ctx.Err()
	}
}

// makeBackup makes one backup, audits it and deletes those that may go. The
// caller holds backups.making.
func (i *Instance) makeBackup(ctx context.Context, by state.By, req backup.Request) (backup.Info, error) {
	req.Version, req.Snapshot = i.opt.Build.Version, i.state.Snapshot
	began := time.Now()
	_, before, _ := i.backups.state(began)
	info, err := backup.Create(ctx, i.layout.BackupDirs(), req)
	if err != nil && ctx.Err() != nil {
		return backup.Info{}, problem.Wrap(err, problem.Unavailable, "The instance was stopped while a backup was made; there is none.", "Make it again once the instance runs: agnes backup create")
	}
	i.backups.note(info.CreatedAt, err)
	entry := state.AuditEntry{
		Actor: by.Actor, ActorID: by.ActorID, Remote: by.Remote, Action: "backup.create", Target: info.ID, Outcome: state.OutcomeOK,
		Detail: map[string]any{"reason": req.Reason, "extracts": req.Extracts, "size_bytes": info.SizeBytes},
	}
	if err != nil {
		i.log.Error("A backup failed; the ones of before stay.", "error", err)
		entry.Outcome, entry.Detail = state.OutcomeFailed, map[string]any{"reason": req.Reason, "error": problem.As(err).Message}
		i.audit(ctx, entry)
		return backup.Info{}, err
	}
	i.audit(ctx, entry)
	i.log.Info("A backup was made and verified.", "id", info.ID, "bytes", info.SizeBytes, "seconds", time.Since(began).Seconds())
	for _, source := range info.LeftOut {
		i.log.Warn("An extract was left out of the backup.", "id", info.ID, "source", source)
	}
	if i.opt.AfterBackup != nil {
		i.opt.AfterBackup(ctx, info)
	}
	if i.mirror != nil {
		i.mirror.Wake()
	}
	i.pruneBackups(trusted(before, time.Now()))
	return info, nil
}

func (i *Instance) pruneBackups(now time.Time) {
	keep, err := backupKeep(i.Settings())
	if err != nil {
		i.log.Error("Old backups are not deleted.", "error", err)
		return
	}
	gone, err := backup.Prune(i.layout.BackupDirs(), backup.Retention{Keep: keep, Offsite: i.isOffsite()}, now)
	if err != nil {
		i.log.Warn("Some old backups could not be deleted.", "error", err)
	}
	if len(gone) > 0 {
		i.log.Info("Old backups were deleted.", "ids", gone)
	}
}

// keepBackups makes the scheduled backups.
func (i *Instance) keepBackups(ctx context.Context) {
	backup.Scheduler{
		Schedule: i.backupSchedule,
		Last:     func() time.Time { _, base, _ := i.backups.state(time.Now()); return base },
		Make: func(ctx context.Context) error {
			i.backups.making.Lock()
			defer i.backups.making.Unlock()
			_, err := i.makeBackup(ctx, state.By{Actor: "schedule"}, backup.Request{
				Scheduled: true, Reason: "schedule", Extracts: i.Settings().Get(settings.BackupExtracts) == "true",
			})
			return err
		},
	}.Run(ctx)
}

// Backups lists the backups on the instance's disk, newest first.
func (i *Instance) Backups(context.Context, Caller) (api.Backups, error) {
	list, _, err := backup.List(i.layout.BackupDirs())
	if err != nil {
		return api.Backups{}, err
	}
	out := ShowBackups(list)
	i.showOffsite(&out)
	return out, nil
}

// ShowBackups is a list of backups as people see it.
func ShowBackups(list []backup.Info) api.Backups {
	out := api.Backups{Backups: []api.Backup{}, Count: len(list)}
	for _, b := range list {
		out.Backups = append(out.Backups, ShowBackup(b))
	}
	return out
}

// ShowBackup is one backup as people see it.
func ShowBackup(b backup.Info) api.Backup {
	return api.Backup{
		ID: b.ID, CreatedAt: b.CreatedAt, Reason: b.Reason, Version: b.Version, SchemaVersion: b.Database.Schema,
		Extracts: b.Extracts, LeftOut: b.LeftOut, SizeBytes: b.SizeBytes, SHA256: b.SHA256, Path: b.Path,
	}
}

// finishRestore finishes or undoes a restore that was killed in the middle.
// Until then nothing below DATA_DIR can be relied on, the configuration
// included, so it comes before everything else.
func (i *Instance) finishRestore(ctx context.Context) (err error) {
	dirs := i.layout.BackupDirs()
	if pending, err := backup.Pending(dirs); err != nil || !pending {
		return nil //nolint:nilerr // a directory that cannot be read is reported by what follows
	}
	if i.lock, err = state.Lock(i.layout.Root); err != nil {
		return err
	}
	if _, err := backup.Recover(ctx, dirs, i.log); err != nil {
		return err
	}
	config, _, err := LoadConfig(i.opt.Inputs)
	if err != nil {
		return err
	}
	i.config.Store(config)
	return nil
}

// seeRestore follows up on a restore at the first start after it: it is
// audited, and the tables are published anew from what is there now.
func (i *Instance) seeRestore(ctx context.Context) {
	note, done, err := backup.TakeNote(i.layout.BackupDirs())
	if err != nil {
		i.log.Warn("The note of a restore cannot be read.", "error", err)
	}
	if err != nil || note == nil {
		return
	}
	i.audit(ctx, state.AuditEntry{
		Actor: "command line", Action: "backup.restore", Target: note.ID, Outcome: state.OutcomeOK,
		Detail: map[string]any{"restored_at": note.At, "extracts": note.Extracts},
	})
	generation, published := i.analytics.Acquire()
	if published {
		generation.Release()
	}
	if published || note.Extracts {
		i.republish(ctx)
	}
	if err := done(); err != nil {
		i.log.Warn("The note of a restore could not be removed.", "error", err)
	}
}

// makeUpTime is how long after a start backups that were missed meanwhile may
// take to be made up for, before health complains.
const makeUpTime = 15 * time.Minute

func (i *Instance) backupHealth() api.ServiceHealth {
	schedule, now := i.backupSchedule(), time.Now()
	last, base, failed := i.backups.state(now)
	detail := "No backup was made yet."
	if !last.IsZero() {
		detail = fmt.Sprintf("The last backup was made at %s.", last.Format(time.RFC3339))
	}
	if schedule.Off() {
		return i.offsiteHealth(api.ServiceHealth{Status: api.Healthy, Detail: "Scheduled backups are off. " + detail, Hint: "Switch them on with AGNES_BACKUP_SCHEDULE, or make one: agnes backup create"})
	}
	out := api.ServiceHealth{Status: api.Healthy, Detail: detail}
	if backup.Ahead(base, now) {
		out.Status = api.Degraded
		out.Detail += fmt.Sprintf(" The next is due at once, since %s is later than now: the clock was or is wrong.", base.UTC().Format(time.RFC3339))
		out.Hint = "Check this host's clock: timedatectl"
	}
	if missed := schedule.Missed(base, now); missed >= 2 && (failed != nil || time.Since(i.backups.opened) > makeUpTime) {
		out.Status = api.Degraded
		out.Detail += fmt.Sprintf(" %d were missed since.", missed)
		out.Hint = "The instance's log says why. Make one now: agnes backup create"
	}
	if failed != nil {
		out.Detail += " The newest attempt failed."
		out.Hint = "The instance's log says why. Try again: agnes backup create"
		if p, ok := errors.AsType[*problem.Error](failed); ok && p.Hint != "" {
			out.Hint = p.Hint
		}
	}
	return i.offsiteHealth(out)
}
