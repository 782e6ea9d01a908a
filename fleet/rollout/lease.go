package rollout

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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

	held    context.Context //nolint:containedctx // its end is the loss of the lease
	lose    context.CancelCauseFunc
	stopped chan struct{}
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
	l := &Lease{owner: owner, local: mine, s: s, repo: repo, stopped: make(chan struct{})}
	if repo != nil {
		if err := repo.Lock(ctx, mine); err != nil {
			return nil, errors.Join(err, s.DropLease(ctx, mine))
		}
	}
	l.held, l.lose = context.WithCancelCause(context.WithoutCancel(ctx))
	go l.keep()
	return l, nil
}

// taken is the refusal of a second operator.
func taken(owner string, since time.Time) error {
	return problem.New(problem.Refused, fmt.Sprintf("%s drives a rollout of this fleet since %s.", owner, since.UTC().Format(time.RFC3339)),
		"Look at it: agnesctl fleet rollout --status; stop it: agnesctl fleet rollout --pause, or --abort").WithCode("rollout_locked")
}

// keep renews the lease until it is given back or lost.
func (l *Lease) keep() {
	defer close(l.stopped)
	tick := time.NewTicker(leaseBeat)
	defer tick.Stop()
	renewed, remote := time.Now(), time.Now()
	for {
		select {
		case <-l.held.Done():
			return
		case <-tick.C:
		}
		err := l.s.RenewLease(l.held, l.local, time.Now().Add(leaseTerm))
		if err == nil {
			renewed = time.Now()
		}
		if errors.Is(err, store.ErrLeaseLost) || time.Since(renewed) > leaseTerm {
			l.lose(lost(store.ErrLeaseLost))
			return
		}
		if l.repo == nil || time.Since(remote) < remoteBeat {
			continue
		}
		err = l.repo.Renew(l.held, l.local)
		if err == nil {
			remote = time.Now()
		}
		if errors.Is(err, store.ErrLeaseLost) || time.Since(remote) > remoteTerm {
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
	<-l.stopped
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var err error
	if l.repo != nil {
		err = l.repo.Unlock(ctx, l.local)
	}
	return errors.Join(err, l.s.DropLease(ctx, l.local))
}
