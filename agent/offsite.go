package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// OpenTarget makes the target that a URL names, with the credentials of a
// configuration. It connects to nothing yet.
type OpenTarget func(offsite.URL, *settings.Resolved) (offsite.Target, error)

// OpenVault opens the target of a URL. targets has one OpenTarget for each
// scheme that the program knows.
func OpenVault(targets map[string]OpenTarget, url string, config *settings.Resolved) (offsite.Vault, error) {
	u, err := offsite.ParseURL(url)
	if err != nil {
		return offsite.Vault{}, err
	}
	open, ok := targets[u.Scheme]
	if !ok {
		return offsite.Vault{}, problem.New(problem.Usage, fmt.Sprintf("This program keeps no backups at %s: URLs.", u.Scheme), "Choose another target.")
	}
	target, err := open(u, config)
	if err != nil {
		return offsite.Vault{}, err
	}
	return offsite.Vault{Target: target, URL: u}, nil
}

// NewMirror returns what keeps the target of a configuration in step with the
// backups of a data directory, or nil where no target is set. Settings that
// contradict each other are a problem.Usage. Close the vault's target.
func NewMirror(targets map[string]OpenTarget, config *settings.Resolved, opt offsite.MirrorOptions, dirs backup.Dirs) (*offsite.Mirror, offsite.Target, error) {
	url := config.Get(settings.BackupTarget)
	if url == "" {
		return nil, nil, nil
	}
	var err error
	if opt.Recipients, err = offsite.ParseRecipients(config.Get(settings.BackupRecipients)); err != nil {
		return nil, nil, err
	}
	if opt.Keep, err = offsite.ParseKeep(config.Get(settings.BackupOffsiteKeep)); err != nil {
		return nil, nil, err
	}
	if opt.Vault, err = OpenVault(targets, url, config); err != nil {
		return nil, nil, err
	}
	opt.Local = func() ([]offsite.Local, error) {
		list, _, err := backup.List(dirs)
		var local []offsite.Local
		for _, b := range list {
			if b.Database.Instance != "" && b.Database.Instance != opt.Instance {
				continue // of another instance, brought here for a restore
			}
			local = append(local, offsite.Local{Dated: offsite.Dated{ID: b.ID, Made: b.CreatedAt}, Path: b.Path})
		}
		return local, err
	}
	opt.Prove = func(ctx context.Context, l offsite.Local) error {
		_, err := backup.Verify(ctx, l.Path, dirs.Backups)
		return err
	}
	return offsite.NewMirror(opt), opt.Vault.Target, nil
}

// openMirror sets up the copies off this host, where a target is set.
func (i *Instance) openMirror() (err error) {
	if len(i.opt.Targets) == 0 {
		return nil // a command that works beside the data for a moment
	}
	i.mirror, i.target, err = NewMirror(i.opt.Targets, i.Settings(), offsite.MirrorOptions{
		Instance: i.backups.seed, Log: i.log,
		Uploaded: func(ctx context.Context, c offsite.Copy) {
			i.audit(ctx, state.AuditEntry{
				Actor: "schedule", Action: "backup.upload", Target: c.ID, Outcome: state.OutcomeOK,
				Detail: map[string]any{"target": i.mirror.URL().String(), "size_bytes": c.Size},
			})
		},
		Forgotten: func(ctx context.Context, copies []offsite.Copy) {
			for _, c := range copies {
				i.audit(ctx, state.AuditEntry{
					Actor: "schedule", Action: "backup.delete_copy", Target: c.ID, Outcome: state.OutcomeOK,
					Detail: map[string]any{"target": i.mirror.URL().String()},
				})
			}
		},
	}, i.layout.BackupDirs())
	return err
}

// isOffsite tells retention which backups have a copy elsewhere; nil where
// none are made.
func (i *Instance) isOffsite() func(id string) bool {
	if i.mirror == nil {
		return nil
	}
	return i.mirror.Has
}

// showOffsite says how the copies off this host are doing.
func (i *Instance) showOffsite(list *api.Backups) {
	if i.mirror == nil {
		return
	}
	s := i.mirror.Status()
	out := &api.Offsite{Target: i.mirror.URL().String(), InStep: timeOrNil(s.InStep), Waiting: s.Waiting, TriedAt: timeOrNil(s.Tried)}
	if s.Failed != nil {
		p := problem.As(s.Failed)
		out.Error, out.Hint, out.FailingSince = p.Message, p.Hint, timeOrNil(s.Since)
	}
	list.Offsite = out
	for n := range list.Backups {
		b := &list.Backups[n]
		b.Offsite, b.OffsiteTried = i.mirror.Has(b.ID), s.Knew[b.ID]
	}
}

// offsiteHealth adds to the health of backups how the copies off this host are
// doing. Health is public, so it names no place.
func (i *Instance) offsiteHealth(h api.ServiceHealth) api.ServiceHealth {
	if i.mirror == nil {
		return h
	}
	s := i.mirror.Status()
	if s.Late(time.Now()) {
		h.Status = api.Degraded
		h.Detail += fmt.Sprintf(" The copies off this host are late; %d wait.", s.Waiting)
		if !s.Began.IsZero() {
			h.Detail += fmt.Sprintf(" Copying began at %s.", s.Began.UTC().Format(time.RFC3339))
		}
		h.Hint = "A large first copy takes its time. Otherwise check the target and the network to it; GET /api/admin/backups says which wait."
	}
	if s.Failed == nil {
		if !s.InStep.IsZero() {
			h.Detail += fmt.Sprintf(" The copies off this host were in step at %s.", s.InStep.UTC().Format(time.RFC3339))
		}
		return h
	}
	h.Status = api.Degraded
	h.Detail += fmt.Sprintf(" Copies off this host fail since %s (%s); %d wait.", s.Since.UTC().Format(time.RFC3339), reason(s.Failed), s.Waiting)
	h.Hint = "GET /api/admin/backups says why. Try at once: agnes backup create --upload"
	return h
}

// reason is the code of a failure in words.
func reason(err error) string {
	code := strings.TrimPrefix(problem.As(err).WireCode(), "backup_")
	return strings.ReplaceAll(code, "_", " ")
}
