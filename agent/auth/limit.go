package auth

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds a Limiter's memory. When it is reached, the keys that have
// regained their full allowance are dropped, for they carry no information.
const maxKeys = 10_000

// Limiter allows each key a burst of attempts and then a steady trickle.
type Limiter struct {
	mu    sync.Mutex
	keys  map[string]*rate.Limiter
	every time.Duration
	burst int
}

// NewLimiter allows burst attempts a key at once and one more every interval.
func NewLimiter(burst int, every time.Duration) *Limiter {
	return &Limiter{keys: make(map[string]*rate.Limiter), every: every, burst: burst}
}

// Allow takes one attempt of key. When none is left, it says how long to wait.
func (l *Limiter) Allow(key string, now time.Time) (ok bool, retryAfter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim, known := l.keys[key]
	if !known {
		if len(l.keys) >= maxKeys {
			l.dropIdle(now)
		}
		if len(l.keys) >= maxKeys {
			return false, l.every
		}
		lim = rate.NewLimiter(rate.Every(l.every), l.burst)
		l.keys[key] = lim
	}
	r := lim.ReserveN(now, 1)
	if wait := r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return false, wait
	}
	return true, 0
}

// Reset gives a key its full allowance back, after a success.
func (l *Limiter) Reset(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.keys, key)
}

func (l *Limiter) dropIdle(now time.Time) {
	for key, lim := range l.keys {
		if lim.TokensAt(now) >= float64(l.burst) {
			delete(l.keys, key)
		}
	}
}
