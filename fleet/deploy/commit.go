package deploy

import (
	"context"
	"slices"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
)

// tidy removes the bundles and copies of deploys before this one.
const tidy = `find .agnes/releases .agnes/previous -mindepth 1 -maxdepth 1 ! -path "$1" ! -path "$2" ! -path "$3" -exec rm -rf {} +`

// commit makes the new image what the host goes back to from now on.
func (t *transaction) commit(ctx context.Context) (string, error) {
	if err := t.enter(ctx, committing, "commit"); err != nil {
		return "", err
	}
	now := t.opt.Now().UTC()
	current := Current{Image: t.j.To, Previous: t.j.From, Backup: t.j.Backup, Schema: t.j.Schema, Since: now, Back: t.j.Back}
	if t.again() {
		last, found, err := readJSON[Current](ctx, &t.host, currentFile)
		if err != nil {
			return "", err
		}
		if found && last.Image.Digest == t.j.To.Digest {
			current.Previous, current.Backup, current.Schema, current.Back = last.Previous, last.Backup, last.Schema, last.Back
		}
	}
	if err := t.writeJSON(ctx, currentFile, current); err != nil {
		return "", err
	}
	previous := "-"
	if current.Previous.Digest != "" {
		previous = releaseDir(current.Previous)
	}
	if _, err := t.host.script(ctx, nil, tidy, releaseDir(t.j.To), t.stashDir(), previous); err != nil {
		t.opt.Log.Warn("Old bundles on the host could not be removed.", "error", err)
	}
	t.sweep(ctx, current.Previous)
	t.out.Verdict, t.out.Running = smoke.Pass, t.j.To
	t.out.Message = t.j.To.Name() + " runs"
	return "", t.close(ctx, t.record(smoke.Pass, now))
}

// again reports a deploy of the image that stands there already, such as of one
// that was stopped. The way back stays the one that it had.
func (t *transaction) again() bool {
	return t.j.To.Digest != "" && t.j.From.Digest == t.j.To.Digest
}

// sweep removes the images of earlier deploys from the host: all but the one
// that runs and the one to go back to. What somebody else put there stays.
func (t *transaction) sweep(ctx context.Context, previous Image) {
	records, err := history(ctx, &t.host)
	if err != nil {
		return // close says so
	}
	kept := []string{t.j.To.Digest, previous.Digest, ""}
	for _, r := range records {
		if slices.Contains(kept, r.To.Digest) {
			continue
		}
		kept = append(kept, r.To.Digest)
		ref := r.To.Repository + "@" + r.To.Digest
		if _, found, err := t.host.image(ctx, ref); err != nil || !found {
			continue
		}
		if _, err := t.host.docker(ctx, true, "image", "rm", ref); err != nil {
			t.opt.Log.Debug("An old image stays on the host.", "image", ref, "error", err)
		}
	}
}
