package rollout

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// heldLease is a lease that git and the store would renew as told.
func heldLease(ctx context.Context, local, remote func(context.Context) error) *Lease {
	l := &Lease{}
	l.held, l.lose = context.WithCancelCause(ctx)
	l.kept.Go(func() { l.keep(0, leaseTerm, local) })
	l.kept.Go(func() { l.keep(remoteBeat, remoteTerm, remote) })
	return l
}

func TestAGitServerThatHangsCostsTheLocalLeaseNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		tries := 0
		l := heldLease(t.Context(), func(context.Context) error {
			if gap := time.Since(last); !last.IsZero() && gap >= leaseTerm {
				t.Errorf("the local lease was not renewed for %s", gap)
			}
			last = time.Now()
			return nil
		}, func(ctx context.Context) error {
			if tries++; tries == 1 {
				<-time.After(4 * time.Minute)
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})
		began := time.Now()
		<-l.held.Done()
		l.kept.Wait()
		if held := time.Since(began); !errors.Is(context.Cause(l.held), store.ErrLeaseLost) || held > remoteBeat+remoteTerm+clockSkew {
			t.Errorf("after %s it ended with %v; in git it had ended after %s", held, context.Cause(l.held), remoteBeat+remoteTerm)
		}
		if tries < 2 {
			t.Errorf("git was asked %d times", tries)
		}
	})
}
