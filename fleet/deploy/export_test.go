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

// TakeAs takes it once in somebody else's name, and lets nobody renew it.
func (l *Lease) TakeAs(owner string) (Output, error) {
	return l.t.host.script(context.Background(), nil, takeLease, l.t.id, strconv.Itoa(seconds(l.t.opt.Lease)), owner, "")
}
