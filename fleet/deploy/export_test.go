package deploy

import (
	"context"
	"strconv"
	"time"
)

// Lease is a lease alone, without a deploy.
type Lease struct{ t *transaction }

func NewLease(shell Shell, dir, owner string, term time.Duration) *Lease {
	o := Options{Shell: shell, Dir: dir, Owner: owner, Lease: term}.withDefaults()
	return &Lease{&transaction{opt: o, host: host{shell: shell, dir: dir, log: o.Log}, id: newID(time.Now())}}
}

// Take waits that long for another's lease.
func (l *Lease) Take(ctx context.Context, wait time.Duration) (context.Context, func(), error) {
	l.t.opt.LeaseWait = wait
	return l.t.lease(ctx)
}

// Change runs a command that changes the host under the lease.
func (l *Lease) Change(ctx context.Context, args ...string) (Output, error) {
	return l.t.host.patient(ctx, l.t.host.locked(true, Command{Args: args, Dir: l.t.host.dir}), args[0])
}

// FirstSeen says since when a digest has been on offer to a host.
func FirstSeen(ctx context.Context, shell Shell, dir, digest string, now time.Time) (time.Time, error) {
	return firstSeen(ctx, &host{shell: shell, dir: dir}, digest, now, false)
}

// TakeAs takes it once in somebody else's name, and lets nobody renew it.
func (l *Lease) TakeAs(owner string) (Output, error) {
	return l.t.host.script(context.Background(), nil, takeLease, l.t.id, strconv.Itoa(seconds(l.t.opt.Lease)), owner, "")
}
