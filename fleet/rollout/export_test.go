package rollout

import (
	"context"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
)

// Kill takes the lease away from its holder as a kill of its process does: it is
// not given back, and nothing renews it.
func Kill(l *Lease) {
	l.lose(killedError{})
	l.kept.Wait()
}

type killedError struct{}

func (killedError) Error() string { return "killed" }

// MayGoOn is what the engine answers the job of a member.
func MayGoOn(r Rollout, member string) bool { return r.mayGoOn(member) }

// AfterFail is what a failed deploy means for a rollout.
func AfterFail(ctx context.Context, p *Push, j Job, got deploy.Outcome, err error) Outcome {
	return p.broke(ctx, j, got, err)
}

// Fresh counts the objects that a change pushes.
func Fresh(ctx context.Context, r *Repository, files map[string][]byte) (int, error) {
	at, err := r.fetch(ctx)
	if err != nil {
		return 0, err
	}
	_, fresh, err := r.commit(at, files, "x")
	return len(fresh.Objects), err
}

// Nonce is that of the lease.
func Nonce(l *Lease) string { return l.local.Nonce }
