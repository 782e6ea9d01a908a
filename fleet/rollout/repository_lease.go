package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// LeaseRef is the lease of a fleet's rollouts in its repository: a commit of its
// own, without files, whose message says who and until when.
const LeaseRef = "refs/agnes/rollout"

const (
	remoteTerm = 10 * time.Minute // of the lease in git: longer than clocks differ
	remoteBeat = 2 * time.Minute
	clockSkew  = time.Minute
)

// Lock takes the lease in the repository, or is a problem.Refused that names who
// has it. A ref is created only where there is none, and moved only from where it
// was read: of two who come at once, one gets it.
func (r *Repository) Lock(ctx context.Context, l store.Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for range 3 {
		var at plumbing.Hash
		var commit *object.Commit
		if at, commit, err = r.fetchRef(ctx, LeaseRef); err != nil {
			return unlockable(err)
		}
		if commit != nil {
			other := readLease(commit.Message)
			switch {
			case other.Nonce == l.Nonce:
				r.lease = at
				return nil
			case time.Now().Before(other.Expires.Add(clockSkew)) && !dead(other.Owner):
				return taken(ownerOf(other.Owner), other.Since)
			}
		}
		if err = r.move(ctx, at, l); err == nil {
			return nil
		}
	}
	return unlockable(err)
}

// unlockable says how to do without the lease in git.
func unlockable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return problem.Wrap(err, problem.Refused, "expected to hold the lease of the fleet's rollouts in its git repository, so that nobody begins another one elsewhere",
		"Let AGNES_GIT_TOKEN write to it; or hold the lease in the folder of --state only: --local-lease")
}

// move points the ref at a lease whose term begins now.
func (r *Repository) move(ctx context.Context, from plumbing.Hash, l store.Lease) error {
	objects := memory.NewStorage()
	tree, err := encode(objects, memory.NewStorage(), &object.Tree{})
	if err != nil {
		return err
	}
	who := object.Signature{Name: r.author, Email: authorEmail, When: time.Now().UTC()}
	id, err := encode(objects, memory.NewStorage(), &object.Commit{
		Author: who, Committer: who, TreeHash: tree, Message: writeLease(l, time.Now().Add(remoteTerm)),
	})
	if err != nil {
		return err
	}
	if err := r.push(ctx, LeaseRef, from, id, objects); err != nil {
		return err
	}
	r.lease = id
	return nil
}

// Renew begins the lease's term anew, or is store.ErrLeaseLost.
func (r *Repository) Renew(ctx context.Context, l store.Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := r.move(ctx, r.lease, l)
	if failed == nil {
		return nil
	}
	at, commit, err := r.fetchRef(ctx, LeaseRef)
	switch {
	case err != nil:
		return err
	case commit == nil || readLease(commit.Message).Nonce != l.Nonce:
		return store.ErrLeaseLost
	}
	r.lease = at // ours all the same: its answer was lost
	return failed
}

// Unlock gives the lease back.
func (r *Repository) Unlock(ctx context.Context, l store.Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, commit, err := r.fetchRef(ctx, LeaseRef)
	if err != nil || commit == nil || readLease(commit.Message).Nonce != l.Nonce {
		return err
	}
	return r.push(ctx, LeaseRef, at, plumbing.ZeroHash, nil)
}

func writeLease(l store.Lease, expires time.Time) string {
	return fmt.Sprintf("Lease of the fleet's rollouts\n\nOwner: %s\nNonce: %s\nSince: %s\nExpires: %s\n",
		l.Owner, l.Nonce, l.Since.UTC().Format(time.RFC3339), expires.UTC().Format(time.RFC3339))
}

// readLease reads what writeLease wrote; what it cannot read has ended.
func readLease(message string) (l store.Lease) {
	for line := range strings.Lines(message) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Owner":
			l.Owner = value
		case "Nonce":
			l.Nonce = value
		case "Since":
			l.Since, _ = time.Parse(time.RFC3339, value)
		case "Expires":
			l.Expires, _ = time.Parse(time.RFC3339, value)
		}
	}
	return l
}
