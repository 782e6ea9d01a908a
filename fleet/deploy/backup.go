package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// drain lets no sync begin and waits for one that runs.
func (t *transaction) drain(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	client, health, err := t.hello(ctx)
	if err != nil {
		return "the instance does not answer: " + problem.As(err).Message, nil
	}
	t.j.Baseline, t.j.Schema = health, health.SchemaVersion
	if health.SetupRequired {
		return "in setup mode: there is nothing to drain", nil
	}
	t.j.Drained = true
	if err := t.enter(ctx, preparing, "drain"); err != nil {
		return "", err
	}
	return t.quiet(ctx, client)
}

// hello asks the instance for its health, more than once where it or the way
// there is in trouble for a moment.
func (t *transaction) hello(ctx context.Context) (*api.Client, *api.Health, error) {
	const most = 3
	for again := 1; ; again++ {
		client, err := t.client(ctx)
		var health *api.Health
		if err == nil {
			health, err = client.Health(ctx)
		}
		if err == nil || again == most || pause.For(ctx, 2*time.Second) != nil {
			return client, health, err
		}
	}
}

// quiet begins or extends a drain and returns when no sync runs.
func (t *transaction) quiet(ctx context.Context, client *api.Client) (string, error) {
	until := t.opt.Now().Add(t.opt.DrainWait)
	waited := false
	for {
		d, err := client.Drain(ctx, api.DrainRequest{Drain: true, Seconds: seconds(drainFor)})
		switch {
		case err != nil:
			return "", err
		case !d.SyncRunning && waited:
			return "a sync ended", nil
		case !d.SyncRunning:
			return "no sync runs", nil
		case !t.opt.Now().Before(until):
			return "", problem.New(problem.Conflict, fmt.Sprintf("A sync (%s) still runs after %s.", d.JobID, t.opt.DrainWait),
				"Run this again when it has ended: agnesctl instance sync --follow shows it.").WithCode("deferred")
		}
		waited = true
		if err := pause.For(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// drainFor is how long a drain lasts when nobody ends it.
const drainFor = 15 * time.Minute

// backup makes the backup that a way back with a moved schema restores.
func (t *transaction) backup(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	backup, err := t.makeBackup(ctx)
	if passing(err) {
		return "", err
	}
	if err != nil && t.opt.WithoutBackup {
		return "none, as asked for: " + err.Error(), t.chooseOlder(ctx)
	}
	if err != nil {
		return "", problem.Wrap(err, problem.Refused, "The state could not be backed up, so there would be no way back for it",
			"Mend that first. Where the data may be lost: --without-backup").WithCode("no_backup")
	}
	t.j.Backup, t.j.Schema, t.out.Backup = backup.ID, backup.SchemaVersion, backup.ID
	if err := t.chooseOlder(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, schema %d, %d KB, verified", backup.ID, backup.SchemaVersion, backup.SizeBytes>>10), t.enter(ctx, preparing, "backup")
}

// passing reports whether an error of a backup says nothing about backups: a
// sync runs, the connection broke, somebody pressed Ctrl-C.
func passing(err error) bool {
	if err == nil {
		return false
	}
	switch p := problem.As(err); {
	case p.Kind == problem.Conflict, p.Kind == problem.Timeout:
		return true
	case p.Kind == problem.Unavailable && p.Code == "": // nobody answered: neither the host nor the instance
		return true
	}
	return errors.Is(err, errLost) || errors.Is(err, context.Canceled) || errors.Is(err, errUnheard)
}

// chooseOlder finds the backup that a version with an older schema can read,
// where the deploy goes to such a one.
func (t *transaction) chooseOlder(ctx context.Context) error {
	if t.j.To.Schema == 0 || t.j.To.Schema >= t.j.Schema {
		return nil
	}
	if t.j.Policy == HaltOnSchema {
		return problem.New(problem.Refused,
			fmt.Sprintf("%s has schema %d and cannot read the state, whose schema is %d.", t.j.To.Name(), t.j.To.Schema, t.j.Schema),
			"Go forward to a newer version, or lose what changed since the last backup of the older schema: --schema restore").WithCode("schema_newer")
	}
	list, err := t.backups(ctx)
	if err != nil {
		return err
	}
	t.j.Older, err = t.older(list.Backups)
	return err
}

// older returns the id of the backup, of a list with the newest first, that the
// wanted version can read.
func (t *transaction) older(backups []api.Backup) (string, error) {
	at := slices.IndexFunc(backups, func(b api.Backup) bool { return b.SchemaVersion <= t.j.To.Schema })
	if at < 0 {
		return "", problem.New(problem.Refused,
			fmt.Sprintf("%s has schema %d and cannot read the state, whose schema is %d; no backup on the instance has an older schema.", t.j.To.Name(), t.j.To.Schema, t.j.Schema),
			"Fetch one from off the host, with the instance stopped: docker compose run --rm app backup restore --help").WithCode("schema_newer")
	}
	b := backups[at]
	if t.opt.Unasked && t.opt.Now().Sub(b.CreatedAt) > restorable {
		return "", problem.New(problem.Refused,
			fmt.Sprintf("%s has schema %d and cannot read the state, whose schema is %d; what changed since the backup %s would be lost, and nobody has asked for that.", t.j.To.Name(), t.j.To.Schema, t.j.Schema, b.ID),
			fmt.Sprintf("Decide: stay, go forward to a newer version, or lose it: agnesctl host deploy --dir %s --tag %s --schema restore", t.host.dir, cmp.Or(t.j.To.Tag, "stable"))).WithCode("schema_newer")
	}
	return b.ID, nil
}

// readable refuses beforehand, while nothing is touched, what chooseOlder would
// refuse after a drain and a backup. The instance may not answer: then that decides.
func (t *transaction) readable(ctx context.Context) error {
	if t.runs || !t.j.WasUp {
		return nil
	}
	err := t.chooseOlder(ctx)
	t.j.Older = ""
	if problem.Is(err, problem.Refused) {
		return err
	}
	return nil
}

func (t *transaction) backups(ctx context.Context) (*api.Backups, error) {
	if t.j.Stopped {
		return oneOff[api.Backups](ctx, t, t.j.Live, askTimeout, "backup", "list", "-o", "json")
	}
	client, err := t.client(ctx)
	if err != nil {
		return nil, err
	}
	return client.Backups(ctx)
}

func (t *transaction) makeBackup(ctx context.Context) (*api.Backup, error) {
	reason := fmt.Sprintf("before the deploy %s of %s", t.j.ID, t.j.To.Name())
	if t.j.Baseline != nil {
		// The host may have restarted it since, and a drain ends with the process.
		if _, err := t.settled(ctx); err != nil {
			return nil, err
		}
		if _, err := t.ready(ctx); err != nil {
			return nil, judged{smoke.Inconclusive, err} // of what ran before
		}
		client, err := t.client(ctx)
		if err != nil {
			return nil, err
		}
		if t.j.Drained {
			if _, err := t.quiet(ctx, client); err != nil {
				return nil, err
			}
		}
		return client.Backup(ctx, api.BackupRequest{Reason: reason})
	}
	// It does not answer, which may be why it is deployed to: it is stopped and
	// its own program makes the backup.
	if c, err := t.running(ctx); err == nil && t.isReady(ctx, c) {
		return nil, problem.Wrap(errUnheard, problem.Unavailable, "The instance is ready, but could not be asked", "Run this again: nothing was touched.")
	}
	t.j.Stopped = true
	if err := t.enter(ctx, preparing, "backup"); err != nil {
		return nil, err
	}
	if err := t.stop(ctx, grace); err != nil {
		return nil, err
	}
	return oneOff[api.Backup](ctx, t, t.j.Live, backupTimeout, "backup", "create", "--reason", reason, "-o", "json")
}

// keep tags the image that runs and copies the files it runs with.
func (t *transaction) keep(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	if !t.again() { // else what it went back to is kept already
		if _, err := t.host.docker(ctx, true, "tag", t.j.From.ID, t.rollbackTag()); err != nil {
			return "", err
		}
	}
	if t.j.Drained { // a backup can take longer than a drain lasts
		client, err := t.client(ctx)
		if err != nil {
			return "", err
		}
		if _, err := t.quiet(ctx, client); err != nil {
			return "", err
		}
	}
	return t.rollbackTag(), nil
}

// rollbackName is the repository of images that are kept for the way back.
const rollbackName = "agnes-rollback"

func (t *transaction) rollbackTag() string { return rollbackName + ":" + t.j.Project }
