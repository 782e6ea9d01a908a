package deploy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// resume ends what an interrupted deploy has begun. It reports true where
// nothing is left to do.
func (t *transaction) resume(ctx context.Context) (done bool, err error) {
	j, found, err := readJSON[journal](ctx, &t.host, journalFile)
	if err != nil || !found {
		return false, err
	}
	t.out.Resumed = j.ID
	t.opt.Log.Info("An interrupted deploy is ended first.", "deploy", j.ID, "phase", j.Phase, "step", j.Step, "to", j.To.Name())
	same := t.wants(j)
	now := t.j
	t.j = j
	switch {
	case t.opt.Back && !j.Back && j.Phase != committing: // going back is what ending it means
		t.out.From, t.out.To, t.j.Left = j.From, j.To, true
		left := problem.New(problem.Unavailable, "The deploy was interrupted, and somebody went back.", "")
		if j.Phase == preparing {
			t.undo(ctx)
			t.out.Verdict, t.out.Running = smoke.Pass, j.From
			t.out.Message = "the interrupted deploy of " + j.To.Name() + " had touched nothing and is ended; " + j.From.Name() + " runs"
			t.j.Reason = left.Message
			if err := t.stay(ctx); err != nil {
				return true, err
			}
			return true, t.close(ctx, t.record(smoke.Inconclusive, t.opt.Now().UTC()))
		}
		err := t.goBack(left)
		if t.out.Reverted {
			t.out.Verdict, t.out.Message = smoke.Pass, j.From.Name()+" runs again"
			err = nil
		}
		return true, err
	case j.Phase == preparing:
		t.undo(ctx)
		if err := t.forget(ctx); err != nil {
			return false, err
		}
		t.j = now
		return false, nil
	case j.Phase == committing:
		t.out.From, t.out.To = j.From, j.To
		if err := t.step(ctx, step{"commit", false, "", t.commit}); err != nil || same {
			return same, err
		}
	case j.Phase == reverting:
		t.out.From, t.out.To = j.From, j.To
		t.onward = !same && !t.opt.Finish
		why := error(problem.New(problem.Unavailable, j.Reason, ""))
		if j.Verdict == smoke.Fail {
			why = against(why)
		}
		err := t.goBack(why)
		if same || !t.out.Reverted {
			return true, err
		}
	case same: // the new image may be fine: it is started again and judged
		t.resumed = true
		t.out.From, t.out.To, t.out.Backup, t.out.Running = j.From, j.To, j.Backup, j.From
		return false, nil
	case j.Phase == judging: // people may have worked with it for days: what is good stays
		t.out.From, t.out.To, t.out.Backup = j.From, j.To, j.Backup
		err := t.steps(ctx, t.after()[1:])
		if err == nil {
			err = t.step(ctx, step{"commit", false, "", t.commit})
		} else if err = t.goBack(err); t.out.Reverted {
			err = nil
		}
		if err != nil {
			return true, err
		}
	default:
		t.out.From, t.out.To = j.From, j.To
		err := t.goBack(problem.New(problem.Unavailable, "The deploy was interrupted, and another one was asked for.", ""))
		if !t.out.Reverted {
			return true, err
		}
	}
	t.onward = false
	t.out = Outcome{ID: t.id, Host: t.out.Host, Verdict: smoke.Inconclusive, Resumed: j.ID, Steps: t.out.Steps}
	t.j = journal{}
	return false, nil
}

// wants reports whether a deploy is the one that is asked for.
func (t *transaction) wants(j journal) bool {
	i := j.To
	if t.opt.Back || j.Back && t.opt.Finish {
		return j.Back
	}
	if t.opt.Image == "" {
		i.Repository = ""
	}
	if t.opt.Digest != "" {
		return i.Digest == t.opt.Digest && i.Repository == t.opt.Image
	}
	return i.Tag == t.opt.Tag && i.Repository == t.opt.Image
}

// goBack takes the host back to where it was, and returns why: always an error,
// of the deploy's verdict. It is idempotent and goes on as long as the lease is held,
// for an operator's Ctrl-C must not leave a host in between.
func (t *transaction) goBack(why error) error {
	if errors.Is(why, errLost) || errors.Is(context.Cause(t.held), errLost) {
		return why // the host is another's now
	}
	ctx, cancel := context.WithTimeout(t.held, 30*time.Minute)
	defer cancel()
	if t.j.Phase != reverting { // else it is known what it goes back for
		t.j.Verdict, t.j.Reason = verdictOf(why), why.Error()
	}
	if !t.j.Down && t.age() > restorable { // once it is down, nobody can have worked with it
		t.j.Policy = HaltOnSchema
	}
	t.out.Running = Image{} // until it is seen
	steps := []step{
		{"halt", false, "", t.halt},
		{"restore", false, "", t.restore},
		{"return", false, "", t.back},
	}
	if t.j.Returning { // what ran before may only need time: it is not stopped again
		steps, t.out.Restored = steps[2:], t.j.Restored
	}
	if err := t.enter(ctx, reverting, "revert"); err != nil {
		return t.stuck(why, err)
	}
	for _, s := range steps {
		if t.out.Halted {
			break
		}
		if err := t.step(ctx, s); err != nil {
			return t.stuck(why, err)
		}
	}
	if err := t.close(ctx, t.record(t.j.Verdict, t.opt.Now().UTC())); err != nil {
		return t.stuck(why, err)
	}
	return why
}

// stuck is the error of a way back that failed: the journal stays.
func (t *transaction) stuck(why, err error) error {
	p := problem.Wrap(err, problem.Unavailable,
		fmt.Sprintf("%s And the way back on %s failed", sentence(why), t.opt.Shell),
		"Run this again: it goes on with the way back. Until then: agnesctl host status")
	return judged{verdictOf(why), p} // not that of the old version, which may be slow
}

// sentence returns an error's text with a full stop.
func sentence(err error) string { return strings.TrimRight(err.Error(), ".") + "." }

// restorable is how old a deploy may be for its backup to be restored without
// asking: one that was interrupted and found days later would take away all that
// people did since.
const restorable = 2 * time.Hour

// age is how long ago the deploy began.
func (t *transaction) age() time.Duration { return t.opt.Now().Sub(t.j.StartedAt) }

// halt stops the new version and finds out whether it has moved the schema.
func (t *transaction) halt(ctx context.Context) (string, error) {
	within := grace
	if !t.j.Ready {
		within = shortGrace
	}
	if list, err := t.host.app(ctx, t.j.Project); err == nil && len(list) == 1 && list[0].Image == t.j.From.ID {
		within = grace // it was cut off before the switch: the old one has something to finish
	}
	if err := t.stop(ctx, within); err != nil {
		return "", err
	}
	if !t.j.Down && t.j.Policy != HaltOnSchema {
		t.j.Down = true
		if err := t.enter(ctx, reverting, "halt"); err != nil {
			return "", err
		}
	}
	if !t.j.WasUp || t.j.Policy != HaltOnSchema {
		return "stopped", nil
	}
	moved, err := t.moved(ctx)
	if err != nil || !moved {
		return "stopped", err
	}
	if err := t.up(ctx); err != nil {
		return "", err
	}
	t.out.Halted, t.out.Running = true, t.j.To
	t.out.Hint = fmt.Sprintf("Decide: mend it forward, or go back and lose what changed since the backup %s: agnesctl host deploy --image %s --tag %s --digest %s --schema restore",
		t.j.Backup, t.j.From.Repository, t.j.From.Tag, t.j.From.Digest)
	current := Current{Image: t.j.To, Previous: t.j.From, Backup: t.j.Backup, Schema: t.j.Schema, Since: t.opt.Now().UTC()}
	if err := t.writeJSON(ctx, currentFile, current); err != nil {
		return "", err
	}
	if age := t.age(); age > restorable {
		return fmt.Sprintf("the schema moved, and people may have worked with it for %s: %s is left running", age.Round(time.Minute), t.j.To.Name()), nil
	}
	return fmt.Sprintf("the schema moved and the policy is %s: %s is left running", HaltOnSchema, t.j.To.Name()), nil
}

// restore puts the files back and, where the schema moved, the state.
func (t *transaction) restore(ctx context.Context) (string, error) {
	stashed, err := t.host.script(ctx, nil, `[ -d "$1" ] || exit 44`, t.stashDir())
	if err != nil {
		return "", err
	}
	if stashed.Code == 0 { // else the switch had not come so far
		out, err := t.host.script(ctx, nil, install, t.id, t.stashDir(), t.host.dir)
		if err == nil {
			err = out.Failed(Command{Args: []string{"install", "files", "from", t.stashDir()}})
		}
		if err != nil {
			return "", err
		}
	}
	env, _, err := t.host.read(ctx, ".env")
	if err != nil {
		return "", err
	}
	if text := editEnv(env, t.envBefore()); len(text) > 0 || t.j.HadEnv {
		if err := t.host.write(ctx, ".env", text); err != nil {
			return "", err
		}
	} else if _, err := t.host.run(ctx, "rm", "-f", ".env"); err != nil {
		return "", err
	}
	if !t.j.WasUp {
		return "files are as they were", nil
	}
	moved, err := t.moved(ctx)
	if err != nil || !moved {
		return "files are as they were; the schema has not moved", err
	}
	if t.j.Backup == "" {
		return "", problem.New(problem.Unavailable, "The schema moved and there is no backup from before.",
			"Restore one by hand: docker compose run --rm app backup list, then backup restore ID")
	}
	if _, err := oneOff[struct{}](ctx, t, t.j.Live, backupTimeout, "backup", "restore", t.j.Backup, "-o", "json"); err != nil {
		return "", err
	}
	t.j.Restored, t.out.Restored = t.j.Backup, t.j.Backup
	return "files are as they were; the state is that of the backup " + t.j.Backup, nil
}

// envBefore returns our lines of .env for the image that ran. It is pinned even
// where a floating tag was followed: that tag may mean the failed image now.
func (t *transaction) envBefore() map[string]string {
	from := t.j.From
	if !t.j.WasUp {
		return t.envLines()
	}
	if from.Digest == "" { // built on the host
		from.Repository, from.Tag = rollbackName, t.j.Project
	}
	if from.Tag == "" {
		from.Tag = "stable"
	}
	if t.j.Left && from.Digest != "" {
		from = from.pinned()
	}
	env := envOf(from)
	env[envBundle] = envValue(t.j.Env, envBundle)
	env[envFailed] = envValue(t.j.Env, envFailed)
	if t.j.Verdict == smoke.Fail {
		env[envFailed] = t.j.To.Digest
	}
	return env
}

// envLines returns our lines of .env as they were.
func (t *transaction) envLines() map[string]string {
	lines := map[string]string{}
	for _, name := range []string{envImage, envTag, envDigest, envBundle, envFailed} {
		lines[name] = envValue(t.j.Env, name)
	}
	return lines
}

// moved asks the old version whether the schema of the data is another than it
// left.
func (t *transaction) moved(ctx context.Context) (bool, error) {
	if t.j.Schema == 0 {
		return false, nil // it did not answer before; what it has now is what it had
	}
	old, err := t.oldFiles(ctx)
	if err != nil {
		return false, err
	}
	found, err := oneOff[struct {
		Database int `json:"database"`
	}](ctx, t, old, askTimeout, "schema", "-o", "json")
	if err != nil {
		return false, err
	}
	return found.Database != t.j.Schema, nil
}

// which prints the copy in $1 of each further file that the switch replaced, and
// else the file itself.
const which = `at=$1; shift; for f in "$@"; do if [ -e "$at/$f" ]; then echo "$at/$f"; else echo "$f"; fi; done`

// oldFiles returns the compose files by which the old version runs, whether they
// have been put back yet or not.
func (t *transaction) oldFiles(ctx context.Context) (files, error) {
	out, err := t.host.script(ctx, nil, which, append([]string{t.stashDir()}, t.j.Live.Names...)...)
	if err != nil {
		return files{}, err
	}
	env, _, err := t.host.read(ctx, ".env")
	if err != nil {
		return files{}, err
	}
	return files{Names: strings.Fields(string(out.Stdout)), Env: beforeEnv}, t.host.write(ctx, beforeEnv, editEnv(env, t.envBefore()))
}

// back starts what ran before and waits for it.
func (t *transaction) back(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		list, err := t.host.app(ctx, t.j.Project)
		if err != nil {
			return "", err
		}
		for _, c := range list {
			if _, err := t.host.docker(ctx, true, "rm", "-f", c.ID); err != nil {
				return "", err
			}
		}
		t.out.Reverted, t.out.Running = true, Image{}
		return "nothing runs, as before", nil
	}
	t.j.Returning = true
	if err := t.enter(ctx, reverting, "return"); err != nil {
		return "", err
	}
	if err := t.up(ctx); err != nil {
		return "", err
	}
	list, err := t.host.app(ctx, t.j.Project)
	if err != nil {
		return "", err
	}
	if len(list) != 1 || list[0].Image != t.j.From.ID {
		return "", problem.New(problem.Unavailable, fmt.Sprintf("Expected one container of %s, found %s.", t.j.From.Name(), imagesOf(list)),
			"Look for somebody else who updates this host: agnesctl host status").WithCode("image_mismatch")
	}
	t.out.Running = t.j.From
	detail := t.j.From.Name() + " runs again"
	switch _, err := t.ready(ctx); {
	case err == nil:
	case verdictOf(err) == smoke.Fail && (t.j.Baseline == nil || t.onward):
		// As it was before, or on the way to one that may mend it: the host is where
		// it was, and must not stay in between for good.
		detail += ", and is not ready: " + problem.As(err).Message
	default:
		return "", err
	}
	if t.j.From.Digest == "" { // built here: its customer's own lines name it, too
		env, _, err := t.host.read(ctx, ".env")
		if err != nil {
			return "", err
		}
		if err := t.host.write(ctx, ".env", editEnv(env, t.envLines())); err != nil {
			return "", err
		}
	}
	t.out.Reverted = true
	return detail, nil
}

// stay pins what runs in .env, so that the host's own updates leave it there.
func (t *transaction) stay(ctx context.Context) error {
	if !t.j.WasUp || t.j.From.Digest == "" {
		return nil
	}
	env, _, err := t.host.read(ctx, ".env")
	if err != nil {
		return err
	}
	return t.host.write(ctx, ".env", editEnv(env, map[string]string{envTag: t.j.From.pinned().Tag}))
}
