package rollout

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/proc"
)

// leaseName is the one lease of a fleet: one rollout at a time.
const leaseName = "rollout"

const (
	leaseTerm = 30 * time.Second // of the local one, without a heartbeat
	leaseBeat = 10 * time.Second
)

// Lease is the right to drive the fleet's rollouts. It is held in the store,
// against others of this folder, and where the fleet has a git repository also
// there, against other machines.
type Lease struct {
	owner string
	local store.Lease
	s     *store.Store
	repo  *Repository

	held context.Context //nolint:containedctx // its end is the loss of the lease
	lose context.CancelCauseFunc
	kept sync.WaitGroup
}

func ownerOf(text string) string { return proc.Owner(text) }

func dead(owner string) bool { return proc.Ended(owner) }

// Acquire takes the lease for an owner, or is a problem.Refused that names who
// has it. repo may be nil. Give it back with Release.
func Acquire(ctx context.Context, s *store.Store, repo *Repository, owner string) (*Lease, error) {
	now := time.Now()
	mine := store.Lease{Name: leaseName, Owner: proc.Name(owner), Nonce: rand.Text(), Since: now, Expires: now.Add(leaseTerm)}
	held, err := s.TakeLease(ctx, mine, now, dead)
	if err != nil {
		return nil, err
	}
	if held.Nonce != mine.Nonce {
		return nil, taken(ownerOf(held.Owner), held.Since)
	}
	l := &Lease{owner: owner, local: mine, s: s, repo: repo}
	if repo != nil {
		if err := repo.Lock(ctx, mine); err != nil {
			return nil, errors.Join(err, s.DropLease(ctx, mine))
		}
	}
	l.held, l.lose = context.WithCancelCause(context.WithoutCancel(ctx))
	l.kept.Go(func() {
		l.keep(0, leaseTerm, func(ctx context.Context) error { return s.RenewLease(ctx, mine, time.Now().Add(leaseTerm)) })
	})
	if repo != nil { // apart: a slow git server must not cost the local one
		l.kept.Go(func() {
			l.keep(remoteBeat, remoteTerm, func(ctx context.Context) error { return repo.Renew(ctx, mine) })
		})
	}
	return l, nil
}

// taken is the refusal of a second operator.
func taken(owner string, since time.Time) error {
	return problem.New(problem.Refused, fmt.Sprintf("%s drives a rollout of this fleet since %s.", owner, since.UTC().Format(time.RFC3339)),
		"Look at it: agnesctl fleet rollout --status; stop it: agnesctl fleet rollout --pause, or --abort").WithCode("rollout_locked")
}

// keep renews one side of the lease until it is given back or lost. It goes by
// the clock on the wall, which goes on while this machine sleeps.
func (l *Lease) keep(beat, term time.Duration, renew func(context.Context) error) {
	tick := time.NewTicker(leaseBeat)
	defer tick.Stop()
	renewed := time.Now().Round(0)
	for {
		select {
		case <-l.held.Done():
			return
		case <-tick.C:
		}
		now := time.Now().Round(0)
		age := now.Sub(renewed)
		if age >= 0 && age < beat {
			continue
		}
		ctx, cancel := context.WithTimeout(l.held, max(term-age, leaseBeat)) // one that hangs does not outlive its term
		err := renew(ctx)
		cancel()
		if err == nil {
			renewed = now
		}
		if errors.Is(err, store.ErrLeaseLost) || time.Now().Round(0).Sub(renewed) > term {
			l.lose(lost(errors.Join(store.ErrLeaseLost, err)))
			return
		}
	}
}

func lost(err error) error {
	return problem.Wrap(err, problem.Refused, "The lease of the fleet's rollouts was lost", "See who has it: agnesctl fleet rollout --status; then: agnesctl fleet rollout --resume")
}

// Release gives the lease back.
func (l *Lease) Release(ctx context.Context) error {
	l.lose(nil)
	l.kept.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var err error
	if l.repo != nil {
		err = l.repo.Unlock(ctx, l.local)
	}
	return errors.Join(err, l.s.DropLease(ctx, l.local))
}
