package rollout

// Kill takes the lease away from its holder as a kill of its process does: it is
// not given back, and nothing renews it.
func Kill(l *Lease) {
	l.lose(killedError{})
	<-l.stopped
}

type killedError struct{}

func (killedError) Error() string { return "killed" }

// MayGoOn is what the engine answers the job of a member.
func MayGoOn(r Rollout, member string) bool { return r.mayGoOn(member) }

// Nonce is that of the lease.
func Nonce(l *Lease) string { return l.local.Nonce }
