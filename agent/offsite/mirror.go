package offsite

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Local is a backup on this host's disk.
type Local struct {
	Dated

	Path string
}

// MirrorOptions are what a Mirror is made of.
type MirrorOptions struct {
	Vault      Vault
	Instance   string // the instance's ID
	Recipients *Recipients
	Keep       Keep
	Local      func() ([]Local, error)                  // what is on disk, in any order
	Prove      func(ctx context.Context, l Local) error // whether a backup is whole; it is asked right before an upload
	Uploaded   func(ctx context.Context, c Copy)        // told of each new copy
	Forgotten  func(ctx context.Context, copies []Copy) // told what was deleted at the target
	Log        *slog.Logger
}

// Mirror keeps a target in step with the backups on disk: what is there and
// would stay by the policy is uploaded, newest first; then the target's own
// copies that the policy lets go are deleted. It looks again after each new
// backup (Wake), hourly, and after a failure sooner; since it compares what is
// where, it goes on after a restart by itself. A failure never touches the
// backups on disk.
type Mirror struct {
	opt  MirrorOptions
	wake chan struct{}

	mu     sync.Mutex
	status MirrorStatus
	at     map[string]bool // IDs at the target, as of the last look
}

// MirrorStatus is how far a Mirror is.
type MirrorStatus struct {
	InStep  time.Time // when everything was last where it should be; zero for never
	Waiting int       // backups that are not at the target yet
	Failed  error     // of the newest attempt; nil where it succeeded or none was made
	Since   time.Time // of the first failure in a row
	Tried   time.Time // end of the newest attempt
	Began   time.Time // of the attempt that is under way; zero between two

	// Knew has the IDs of the backups that were on disk when the newest attempt
	// that has ended began: what it says is said of these.
	Knew map[string]bool
}

// late is how long an attempt may take, and how old InStep may be, before
// somebody should look.
const late = 6 * time.Hour

// Late reports whether the copies are not kept in step though no attempt has
// failed: one takes very long, or does not end.
func (s MirrorStatus) Late(now time.Time) bool {
	old := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) > late }
	return s.Failed == nil && (old(s.Began) || old(s.InStep))
}

const (
	lookEvery  = time.Hour
	retryFirst = time.Minute
	retryMost  = time.Hour
)

// NewMirror returns a Mirror; Run makes it work.
func NewMirror(opt MirrorOptions) *Mirror {
	return &Mirror{opt: opt, wake: make(chan struct{}, 1), at: map[string]bool{}}
}

// Wake makes the Mirror look at once. It never waits.
func (m *Mirror) Wake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Status returns how far the Mirror is.
func (m *Mirror) Status() MirrorStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// Has reports whether a backup was at the target when it was last looked at.
func (m *Mirror) Has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at[id]
}

// URL is where the copies are.
func (m *Mirror) URL() URL { return m.opt.Vault.URL }

// Run works until ctx ends.
func (m *Mirror) Run(ctx context.Context) {
	pause := retryFirst
	for {
		next := lookEvery
		if err := m.Step(ctx); err != nil {
			next, pause = pause, min(2*pause, retryMost)
		} else {
			pause = retryFirst
		}
		timer := time.NewTimer(next)
		select {
		case <-m.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// Step brings the target in step once.
func (m *Mirror) Step(ctx context.Context) error {
	m.begin(time.Now())
	local, err := m.opt.Local()
	if err == nil {
		err = m.step(ctx, local)
	}
	m.begin(time.Time{})
	if ctx.Err() != nil {
		return ctx.Err() // the instance is closing, which is no failure
	}
	knew := map[string]bool{}
	for _, l := range local {
		knew[l.ID] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		now := time.Now()
		m.status = MirrorStatus{InStep: now, Tried: now, Knew: knew}
		return nil
	}
	if m.status.Failed == nil {
		m.status.Since = time.Now()
	}
	m.status.Failed, m.status.Tried, m.status.Knew = err, time.Now(), knew
	m.opt.Log.Error("The backups could not all be copied off this host; the ones on its disk stay, and it is tried again.",
		"target", m.opt.Vault.URL.String(), "waiting", m.status.Waiting, "error", err, "hint", problem.As(err).Hint)
	return err
}

func (m *Mirror) begin(at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Began = at
}

func (m *Mirror) step(ctx context.Context, local []Local) error {
	copies, err := m.opt.Vault.Copies(ctx, m.opt.Instance)
	if err != nil {
		m.count(local)
		return err
	}
	m.seen(copies)
	missing := m.missing(local, copies)
	m.waits(len(missing))
	var failed error
	for _, l := range missing {
		err := m.upload(ctx, l)
		if _, serr := os.Lstat(l.Path); err != nil && errors.Is(serr, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil && !problem.Is(err, problem.Found) {
			return err
		}
		if err != nil && failed == nil {
			failed = err // a damaged backup stops no other
		}
	}
	// Only a target that has the newest backup forgets older ones.
	if failed != nil {
		return failed
	}
	gone, err := m.opt.Vault.Prune(ctx, m.opt.Instance, m.opt.Keep)
	if len(gone) > 0 {
		m.forgot(gone)
		m.opt.Log.Info("Old copies of backups were deleted.", "target", m.opt.Vault.URL.String(), "count", len(gone))
		if m.opt.Forgotten != nil {
			m.opt.Forgotten(ctx, gone)
		}
	}
	return err
}

// count sets how many wait where the target cannot be asked.
func (m *Mirror) count(local []Local) {
	waiting := 0
	for _, l := range local {
		if !m.Has(l.ID) {
			waiting++
		}
	}
	m.waits(waiting)
}

// missing returns what has to be uploaded, newest first: what the policy would
// keep among all that is here and there.
func (m *Mirror) missing(local []Local, copies []Copy) []Local {
	there := map[string]bool{}
	var all []Dated
	for _, c := range copies {
		there[c.ID] = true
		all = append(all, Dated{c.ID, c.Made()})
	}
	var missing []Local
	for _, l := range local {
		if !there[l.ID] {
			all = append(all, l.Dated)
			missing = append(missing, l)
		}
	}
	newestFirst := func(a, b Dated) int { return b.Made.Compare(a.Made) }
	slices.SortFunc(all, newestFirst)
	stays := m.opt.Keep.Stays(all, time.Now())
	missing = slices.DeleteFunc(missing, func(l Local) bool { return !stays[l.ID] })
	slices.SortFunc(missing, func(a, b Local) int { return newestFirst(a.Dated, b.Dated) })
	return missing
}

func (m *Mirror) upload(ctx context.Context, l Local) error {
	if err := m.opt.Prove(ctx, l); err != nil {
		return err
	}
	began := time.Now()
	c, err := m.opt.Vault.Upload(ctx, m.opt.Recipients, Copy{Instance: m.opt.Instance, ID: l.ID}, l.Path)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.at[l.ID] = true
	m.status.Waiting--
	m.mu.Unlock()
	m.opt.Log.Info("A backup was copied off this host.", "id", l.ID, "target", m.opt.Vault.URL.String(), "bytes", c.Size, "seconds", time.Since(began).Seconds())
	if m.opt.Uploaded != nil {
		m.opt.Uploaded(ctx, c)
	}
	return nil
}

func (m *Mirror) seen(copies []Copy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.at)
	for _, c := range copies {
		m.at[c.ID] = true
	}
}

func (m *Mirror) forgot(copies []Copy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range copies {
		delete(m.at, c.ID)
	}
}

func (m *Mirror) waits(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Waiting = n
}
