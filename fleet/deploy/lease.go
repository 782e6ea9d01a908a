package deploy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/proc"
)

// A lease is a file on the host: id, end by the host's own clock, owner. All
// that reads and changes it holds a flock while it does, so that two who come
// at once cannot both take it.
const takeLease = `set -eu
[ -d .agnes ] || mkdir -m 700 .agnes || [ -d .agnes ]
exec 9>.agnes/lease.lock
flock -w 10 9
now=$(date +%s)
if [ -s .agnes/lease ]; then
  { read -r id; read -r end; read -r owner; } <.agnes/lease
  if [ "$id" != "$1" ] && [ "$id" != "$4" ] && [ "$end" -gt "$now" ]; then
    printf '%s\n%s\n%s\n' "$id" "$((end - now))" "$owner"
    exit 75
  fi
fi
printf '%s\n%s\n%s\n' "$1" "$((now + $2))" "$3" >.agnes/lease.new
mv .agnes/lease.new .agnes/lease`

const renewLease = `set -eu
exec 9>.agnes/lease.lock
flock -w 10 9
read -r id <.agnes/lease || exit 76
[ "$id" = "$1" ] || exit 76
printf '%s\n%s\n%s\n' "$1" "$(($(date +%s) + $2))" "$3" >.agnes/lease.new
mv .agnes/lease.new .agnes/lease`

const dropLease = `exec 9>.agnes/lease.lock
flock -w 10 9
read -r id <.agnes/lease && [ "$id" = "$1" ] && rm -f .agnes/lease
exit 0`

// hostLocked is the code of a refusal because another deploy has the host.
const hostLocked = "host_locked"

const (
	leaseTaken = 75
	leaseLost  = 76
)

// errLost says that somebody else took the lease over: whatever this
// transaction does next could undo what they do.
var errLost = errors.New("the lease on the host was lost to another deploy")

func lostLease() error {
	return problem.Wrap(errLost, problem.Refused, "The deploy stopped", "Look at the other one: agnesctl host status")
}

// lease takes the host for this transaction and keeps it until the returned
// function is called. The returned context ends with ctx and when the lease is
// lost; t.held ends when the lease is lost only, for the way back must be
// possible after a Ctrl-C.
func (t *transaction) lease(ctx context.Context) (context.Context, func(), error) {
	if err := t.takeLease(ctx); err != nil {
		return ctx, nil, err
	}
	t.host.owner = t.id
	held, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	t.held = held
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		t.keepLease(held, lose)
	}()
	work, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(held, func() { cancel(context.Cause(held)) })
	return work, func() {
		lose(nil)
		<-stopped
		quick, done := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer done()
		if _, err := t.host.script(quick, nil, dropLease, t.id); err != nil {
			t.opt.Log.Warn("The lease on the host could not be given back; it ends by itself.", "error", err)
		}
	}, nil
}

func (t *transaction) takeLease(ctx context.Context) error {
	until := t.opt.Now().Add(t.opt.LeaseWait)
	dead := ""
	for {
		out, err := t.host.script(ctx, nil, takeLease, t.id, strconv.Itoa(seconds(t.opt.Lease)), proc.Name(t.opt.Owner), dead)
		if err != nil {
			return err
		}
		if out.Code == 0 {
			return nil
		}
		lines := strings.Split(strings.TrimSpace(string(out.Stdout)), "\n")
		if out.Code != leaseTaken || len(lines) != 3 {
			return problem.New(problem.Unavailable,
				fmt.Sprintf("The directory %s on %s cannot be prepared: %s", t.opt.Dir, t.opt.Shell, strings.TrimSpace(string(out.Stderr))),
				fmt.Sprintf("Make it once, for the user that deploys: sudo install -d -o USER %s", t.opt.Dir))
		}
		if id := lines[0]; id != dead && proc.Ended(lines[2]) {
			dead = id // its process was of this machine and is no more
			continue
		}
		if !t.opt.Now().Before(until) {
			return problem.New(problem.Refused,
				fmt.Sprintf("Another deploy works on %s: %s (%s). Its lease ends in %s s unless it is renewed.", t.opt.Shell, proc.Owner(lines[2]), lines[0], lines[1]),
				"Let it finish, then run this again; agnesctl host status shows how far it is.").WithCode(hostLocked)
		}
		if err := pause.For(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (t *transaction) keepLease(ctx context.Context, lose context.CancelCauseFunc) {
	tick := time.NewTicker(t.opt.Lease / 3)
	defer tick.Stop()
	good := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		beat, done := context.WithTimeout(ctx, t.opt.Lease/3)
		out, err := t.host.script(beat, nil, renewLease, t.id, strconv.Itoa(seconds(t.opt.Lease)), proc.Name(t.opt.Owner))
		done()
		switch {
		case err == nil && out.Code == 0:
			good = time.Now()
		case err == nil && out.Code == leaseLost, time.Since(good) > t.opt.Lease:
			lose(errLost)
			return
		default: // the host may be slow or rebooting: the lease is still ours for a while
			t.opt.Log.Debug("A heartbeat failed.", "error", err, "code", out.Code)
		}
	}
}

func seconds(d time.Duration) int { return max(1, int(d/time.Second)) }
