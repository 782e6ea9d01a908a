package agent

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// defaultDrain is how long a drain lasts unless it is extended or ended.
const defaultDrain = 15 * time.Minute

// drain holds back what a restart would interrupt or a restored backup would
// undo. It is in memory only: the next process does not drain.
type drain struct {
	// mu is held for reading while a change is stored or a sync begins, so that
	// none is under way any more once a drain was answered.
	mu     sync.RWMutex
	until  time.Time
	lifted chan struct{} // closed when the drain is ended by request
}

// begin starts a drain or extends it; it never shortens one, for somebody else
// may rely on it. The caller holds mu.
func (d *drain) begin(lasts time.Duration) (began bool) {
	if began = !d.active(); began {
		d.lifted, d.until = make(chan struct{}), time.Time{}
	}
	if until := time.Now().Add(lasts); until.After(d.until) {
		d.until = until
	}
	return began
}

// end ends a drain. The caller holds mu.
func (d *drain) end() (ended bool) {
	if ended = d.active(); ended {
		close(d.lifted)
	}
	d.until = time.Time{}
	return ended
}

// active reports whether a drain is on. The caller holds mu.
func (d *drain) active() bool { return time.Now().Before(d.until) }

// do runs what a drain holds back, or refuses it. fn is short.
func (d *drain) do(fn func() error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.active() {
		return fn()
	}
	p := problem.New(problem.Conflict,
		fmt.Sprintf("The instance is draining until %s: an upgrade or a restart is near, and a change made now could be lost.", d.until.UTC().Format(time.RFC3339)),
		`Try again later. An admin ends the drain at once with POST /api/admin/drain {"drain":false}.`).WithCode("draining")
	p.RetryAfter = time.Until(d.until)
	return p
}

// wait returns nil when no drain is on, or the context's error.
func (d *drain) wait(ctx context.Context) error {
	for {
		d.mu.RLock()
		on, left, lifted := d.active(), time.Until(d.until), d.lifted
		d.mu.RUnlock()
		if !on {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C: // unless it was extended
		case <-lifted:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Drain begins, extends or ends a drain, and says whether a sync still runs.
// Once it has answered that the instance drains and no sync runs, none begins
// and nothing is changed until the drain ends.
func (i *Instance) Drain(ctx context.Context, caller Caller, req api.DrainRequest) (api.Drain, error) {
	seconds := cmp.Or(req.Seconds, int(defaultDrain/time.Second))
	i.drain.mu.Lock()
	var out api.Drain
	var began, ended bool
	if req.Drain {
		began = i.drain.begin(time.Duration(seconds) * time.Second)
		out.Draining, out.Until = true, timeOrNil(i.drain.until.UTC())
	} else {
		ended = i.drain.end()
	}
	if job, ok := i.liveJob(); ok && !job.Status.Ended() {
		out.SyncRunning, out.JobID = true, job.ID
	}
	i.drain.mu.Unlock()

	entry := state.AuditEntry{Actor: caller.Email, ActorID: caller.UserID, Remote: caller.Remote, Outcome: state.OutcomeOK}
	switch {
	case began:
		entry.Action, entry.Detail = "drain.begin", map[string]any{"seconds": seconds}
		i.audit(ctx, entry)
		i.log.Info("The instance drains: no sync begins and nothing is changed.", "by", caller.Email, "until", out.Until.Format(time.RFC3339))
		i.running.Go(func() {
			if i.drain.wait(i.jobs.ctx) == nil {
				i.log.Info("The drain is over.")
			}
		})
	case ended:
		entry.Action = "drain.end"
		i.audit(ctx, entry)
	}
	return out, nil
}

// phase says what the instance is doing. A drain comes first: whoever asked for
// it looks for it, and setup_required says the rest.
func (i *Instance) phase() string {
	i.drain.mu.RLock()
	draining := i.drain.active()
	i.drain.mu.RUnlock()
	job, known := i.liveJob()
	switch {
	case draining:
		return api.PhaseDraining
	case i.SetupRequired():
		return api.PhaseSetup
	case known && !job.Status.Ended():
		return api.PhaseSyncing
	}
	return api.PhaseServing
}
