// Package agent is one Agnes instance.
//
// Instance is the whole of it: accounts, configuration, the table registry,
// sync, the catalog, queries and health. The HTTP server, the command line and
// later doors are thin callers of its methods; each method checks nothing but
// its own rules and takes the Caller that the door has found.
//
//	state/      system.duckdb: what the instance knows about itself
//	settings/   configuration and where each value came from
//	auth/       passwords, tokens, rate limits
//	analytics/  extracts -> a published generation of views
//	backup/     backups of all of this, and the way back
//	offsite/    encrypted copies of backups, away from this host
//	update/     whether the running version is deprecated
//	query/      one untrusted statement against a pinned generation
//	server/     HTTP
//	api/        the wire types and the typed client
//
// A sync runs as one job at a time: the source extracts into a new extract, the
// extract is committed, and all registered tables are published as the next
// generation. Whatever fails on the way leaves the generation before in place.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/auth"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/agent/update"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Layout names everything below DATA_DIR. It is the one place that does.
type Layout struct{ Root string }

// State is where system.duckdb, secrets and instance.yaml are.
func (l Layout) State() string { return filepath.Join(l.Root, "state") }

// Config is the stored configuration.
func (l Layout) Config() string { return filepath.Join(l.State(), settings.FileName) }

// Database is the instance's own database.
func (l Layout) Database() string { return filepath.Join(l.State(), "system.duckdb") }

// Extracts is where each source has its folder.
func (l Layout) Extracts() string { return filepath.Join(l.Root, "extracts") }

// Analytics is where generations are.
func (l Layout) Analytics() string { return filepath.Join(l.Root, "analytics") }

// Backups is where backups are.
func (l Layout) Backups() string { return filepath.Join(l.Root, "backups") }

// updates is what was found out about newer versions.
func (l Layout) updates() string { return filepath.Join(l.State(), "update.json") }

// restoring is where a restore that is under way has its files.
func (l Layout) restoring() string { return filepath.Join(l.Root, ".restore") }

func (l Layout) jwtSecret() string     { return filepath.Join(l.State(), ".jwt_secret") }
func (l Layout) sessionSecret() string { return filepath.Join(l.State(), ".session_secret") }

// SetupToken is the one-time token of a fresh instance.
func (l Layout) SetupToken() string { return filepath.Join(l.State(), ".setup_token") }

// OpenSource makes the source that a configuration describes. A missing or
// wrong setting is a problem.Unprocessable that names it.
type OpenSource func(*settings.Resolved) (connectors.Source, error)

// Options are what an instance is made of.
type Options struct {
	Inputs  settings.Inputs       // flags and environment; what is stored is read from DATA_DIR
	Sources map[string]OpenSource // by data_source; cmd/agnes lists what is wired
	Build   buildinfo.Info
	Log     *slog.Logger

	QueryWorker []string                                          // command of a query worker; this program's own when empty
	QueryLimits func(role string, standard api.Limits) api.Limits // what a role's queries may use; the standard when nil

	AfterBackup func(context.Context, backup.Info) // told of each new backup, which is verified; it returns soon

	Targets map[string]OpenTarget // of backups off this host, by the scheme of their URL; cmd/agnes lists what is wired
}

// Instance is a running instance. It is safe for concurrent use.
type Instance struct {
	opt    Options
	layout Layout
	log    *slog.Logger

	lock      *state.DirLock
	state     *state.Store
	database  os.FileInfo // of system.duckdb as it was opened
	analytics *analytics.Store
	query     *query.Engine
	queries   queryLog
	scopes    scopes

	passwords    *auth.Passwords
	sessions     *auth.Sessions
	accountLimit *auth.Limiter
	addressLimit *auth.Limiter
	setupNeeded  atomic.Bool
	operator     redact.Secret // the operator token; empty where it could not be written

	config     atomic.Pointer[settings.Resolved]
	configure  sync.Mutex // serializes changes of the stored configuration
	publishing sync.Mutex // bindings are read and published as one step

	jobs    jobs
	drain   drain
	backups backups
	mirror  *offsite.Mirror // of the backups; nil where no target is set
	target  offsite.Target
	updates *update.Checker // nil where nobody asks
	health  healthState

	stop    context.CancelFunc // ends background work
	running sync.WaitGroup
	closed  sync.Once
}

// LoadConfig resolves the configuration of the instance whose DATA_DIR the
// inputs name, reading what is stored there.
func LoadConfig(in settings.Inputs) (*settings.Resolved, Layout, error) {
	first, err := settings.Resolve(in)
	if err != nil {
		return nil, Layout{}, err
	}
	root, err := filepath.Abs(first.Get(settings.DataDir))
	if err != nil {
		return nil, Layout{}, err
	}
	layout := Layout{root}
	if in.Stored, err = settings.Load(layout.Config()); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrPermission) {
			err = unusable(root, err)
		}
		return nil, Layout{}, err
	}
	resolved, err := settings.Resolve(in)
	return resolved, layout, err
}

// Open starts the instance whose DATA_DIR the inputs name: it takes the lock on
// the directory, recovers what a crash left, and starts background work. Close
// it.
func Open(ctx context.Context, opt Options) (_ *Instance, err error) {
	config, layout, err := LoadConfig(opt.Inputs)
	if err != nil {
		return nil, err
	}
	i := &Instance{opt: opt, layout: layout, log: opt.Log, stop: func() {}}
	i.config.Store(config)
	defer func() {
		if err != nil {
			if cerr := i.Close(); cerr != nil {
				i.log.Warn("What was open could not all be closed.", "error", cerr)
			}
		}
	}()

	if err := i.finishRestore(ctx); err != nil {
		return nil, err
	}
	if err := i.prepareDirectories(); err != nil {
		return nil, err
	}
	if i.lock == nil {
		if i.lock, err = state.Lock(layout.Root); err != nil {
			return nil, err
		}
	}
	if i.state, err = state.Open(ctx, state.Options{Dir: layout.State(), Log: opt.Log, Version: opt.Build.Version}); err != nil {
		return nil, err
	}
	if i.database, err = os.Stat(layout.Database()); err != nil {
		return nil, err
	}
	if err := connectors.Recover(ctx, layout.Extracts()); err != nil {
		return nil, err
	}
	if i.analytics, err = analytics.Open(ctx, analytics.Options{Dir: layout.Analytics(), ExtractsDir: layout.Extracts(), Log: opt.Log}); err != nil {
		return nil, err
	}
	if i.query, err = query.New(ctx, query.Options{Log: opt.Log, Command: opt.QueryWorker}); err != nil {
		return nil, err
	}
	i.queries.full = make(chan struct{}, 1)
	if err := i.openAccounts(ctx); err != nil {
		return nil, err
	}
	if err := i.openBackups(ctx); err != nil {
		return nil, err
	}
	if _, err := i.state.FailOrphans(ctx, "The instance stopped while this sync ran."); err != nil {
		return nil, err
	}

	i.openOperator()

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	i.stop = stop
	i.jobs.init(background)
	i.running.Go(func() { i.watchHealth(background) })
	i.running.Go(func() { i.storeQueryLog(background) })
	i.running.Go(func() { i.keepBackups(background) })
	if i.mirror != nil {
		i.running.Go(func() { i.mirror.Run(background) })
	}
	i.running.Go(func() { i.seeRestore(background) })
	return i, nil
}

func (i *Instance) prepareDirectories() error {
	unreadable := func(r rune) bool { return strings.ContainsRune("*?[", r) || unicode.IsControl(r) }
	if at := strings.IndexFunc(i.layout.Root, unreadable); at >= 0 {
		return problem.New(problem.Usage,
			fmt.Sprintf("The path of the data directory, %q, holds %q, which DuckDB does not take as a part of a name.", i.layout.Root, i.layout.Root[at]),
			"Choose a directory without *, ?, [ and control characters in its path with --data-dir or DATA_DIR.")
	}
	for _, dir := range []string{i.layout.State(), i.layout.Extracts(), i.layout.Analytics(), i.layout.Backups()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return unusable(i.layout.Root, err)
		}
	}
	probe, err := os.CreateTemp(i.layout.State(), ".probe-*")
	if err != nil {
		return unusable(i.layout.Root, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// unusable says why root cannot be the data directory.
func unusable(root string, err error) error {
	const other = "or choose another directory with --data-dir or DATA_DIR."
	switch uid := os.Geteuid(); {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrExist):
		at := blocker(root, err)
		return problem.Wrap(err, problem.Refused,
			fmt.Sprintf("Expected the data directory %s, found that %s is no directory.", root, at),
			fmt.Sprintf("Move it away (mv %s %s.old), %s", at, at, other))
	case errors.Is(err, unix.EROFS):
		return problem.Wrap(err, problem.Refused,
			fmt.Sprintf("The data directory %s is on a read-only file system.", root),
			fmt.Sprintf("Mount it read-write (findmnt -T %s shows the mount), %s", root, other))
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return problem.Wrap(err, problem.NoSpace,
			fmt.Sprintf("The disk that holds the data directory %s is full.", root),
			fmt.Sprintf("Free space there (df -h %s shows how much is left), then start again.", root))
	default:
		own := fmt.Sprintf("sudo chown -R %d:%d %s", uid, os.Getegid(), root)
		if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
			own = fmt.Sprintf("sudo install -d -m 0700 -o %d -g %d %s", uid, os.Getegid(), root)
		}
		return problem.Wrap(err, problem.Refused,
			fmt.Sprintf("The data directory %s cannot be read and written by the user with id %d.", root, uid),
			fmt.Sprintf("Give it to that user (%s), %s", own, other))
	}
}

// blocker finds what stands where a directory should be.
func blocker(root string, err error) string {
	at := root
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		at = p.Path
	}
	for {
		if _, err := os.Lstat(at); err == nil || at == filepath.Dir(at) {
			return at
		}
		at = filepath.Dir(at)
	}
}

// openAccounts loads the secrets, generating those that the environment does
// not give, and finds out whether setup is still to be done.
func (i *Instance) openAccounts(ctx context.Context) error {
	identity, err := i.state.Instance(ctx)
	if err != nil {
		return err
	}
	key, err := i.secret(settings.JWTSecretKey, i.layout.jwtSecret())
	if err != nil {
		return err
	}
	if _, err := i.secret(settings.SessionSecret, i.layout.sessionSecret()); err != nil {
		return err
	}
	i.sessions = auth.NewSessions(key, identity.ID)
	i.passwords = auth.NewPasswords(max(1, runtime.NumCPU()/2))
	i.accountLimit = auth.NewLimiter(20, 6*time.Second)
	i.addressLimit = auth.NewLimiter(60, 2*time.Second)

	admins, _, err := i.state.CountAdmins(ctx)
	if err != nil {
		return err
	}
	i.setupNeeded.Store(admins == 0)
	if admins > 0 {
		return i.removeSetupToken()
	}
	_, err = state.EnsureSecret(i.log, i.layout.SetupToken())
	return err
}

// minSecret is the least length of a key that the environment gives.
const minSecret = 32

func (i *Instance) secret(key, path string) (redact.Secret, error) {
	v := i.config.Load().Value(key)
	if v.Text == "" {
		return state.EnsureSecret(i.log, path)
	}
	if len(v.Text) < minSecret {
		return "", problem.New(problem.Usage,
			fmt.Sprintf("%s from %s has %d characters; expected at least %d.", v.Env, v.Source, len(v.Text), minSecret),
			fmt.Sprintf("Unset %s to have one generated, or make one: openssl rand -hex 32", v.Env))
	}
	return redact.Secret(v.Text), nil
}

func (i *Instance) removeSetupToken() error {
	if err := os.Remove(i.layout.SetupToken()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Warm prepares for queries; only a server does.
func (i *Instance) Warm() { i.query.Warm() }

// WatchUpdates asks from now on whether the running version is deprecated,
// unless that is switched off or a build of no release runs. Only a server does,
// before it serves.
func (i *Instance) WatchUpdates() (err error) {
	config := i.Settings()
	if config.Get(settings.UpdateCheck) == "off" || !update.Watchable(i.opt.Build.Version) {
		return nil
	}
	i.updates, err = update.New(update.Options{
		Image: config.Get(settings.Image), Version: i.opt.Build.Version, Channel: i.opt.Build.Channel, File: i.layout.updates(), Log: i.log,
	})
	if err != nil {
		return err
	}
	i.running.Go(func() { i.updates.Run(i.jobs.ctx) })
	return nil
}

// update returns what is known of the running version.
func (i *Instance) update() api.Update {
	var u api.Update
	if failed := i.Settings().Get(settings.UpdateFailed); failed != i.Settings().Get(settings.ImageDigest) {
		u.Failed = failed
	}
	if i.updates != nil {
		s := i.updates.Status()
		u.Deprecated, u.Latest = s.Deprecated, s.Latest
	}
	return u
}

// Layout returns where the instance keeps its files.
func (i *Instance) Layout() Layout { return i.layout }

// Settings returns the current configuration.
func (i *Instance) Settings() *settings.Resolved { return i.config.Load() }

// Close stops background work, lets the running sync stop at the next safe
// point, checkpoints and closes everything. It is idempotent.
func (i *Instance) Close() error {
	var errs []error
	i.closed.Do(func() {
		i.stop()
		i.running.Wait()
		if i.query != nil {
			errs = append(errs, i.query.Close())
		}
		if i.target != nil {
			errs = append(errs, i.target.Close())
		}
		if i.analytics != nil {
			errs = append(errs, i.analytics.Close())
		}
		if i.state != nil {
			errs = append(errs, i.state.Close())
		}
		errs = append(errs, i.closeOperator())
		if i.lock != nil {
			errs = append(errs, i.lock.Close())
		}
	})
	return errors.Join(errs...)
}
