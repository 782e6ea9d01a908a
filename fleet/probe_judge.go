package fleet

import (
	"fmt"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Standing is what a Judge holds an instance for.
type Standing string

// The standings.
const (
	Undecided Standing = "undecided" // not enough was seen yet
	Up        Standing = "up"
	Down      Standing = "down"
)

// Observation is what one probe says about an instance's work.
type Observation byte

// The observations. A probe that failed by our own fault, or by the inventory's,
// is Nothing and moves nothing.
const (
	Nothing Observation = '-'
	Good    Observation = 'g'
	Bad     Observation = 'b'
)

// Observe turns a result into an observation.
func Observe(r Result) Observation {
	switch {
	case r.SelfTrouble || r.Fault == FaultConfig:
		return Nothing
	case r.Good():
		return Good
	default:
		return Bad
	}
}

// A Judge decides whether an instance is up or down from many probes, so that
// one lost packet alerts nobody: it is down once M of the last N observations
// since the standing last changed are bad, and up once M of them are good. It has
// no clock and does no work of its own. A Record that was saved, handed to a new
// Judge, goes on as if nothing had happened.
type Judge struct{ m, n int }

// Record is what a Judge knows of one instance; the zero value is of one that
// was never seen.
type Record struct {
	Standing Standing  `json:"standing"`
	Since    time.Time `json:"since,omitzero"` // of the observation that decided
	Window   string    `json:"window"`         // the last observations, 'g' and 'b', oldest first
	Last     time.Time `json:"last,omitzero"`  // of the last observation that counted
}

// NewJudge returns a Judge for M of N. M must be more than half of N, so that
// no window speaks for both sides.
func NewJudge(m, n int) (Judge, error) {
	if m < 1 || n < m || 2*m <= n || n > 64 {
		return Judge{}, problem.New(problem.Usage, fmt.Sprintf("Expected M of N with N/2 < M <= N <= 64, found %d of %d.", m, n), "Take 2 of 3, which fits most fleets.")
	}
	return Judge{m, n}, nil
}

// Decide takes an observation into a record and reports whether the standing
// changed between Up and Down, or was found for the first time. An observation that
// is not younger than the last one is known already and changes nothing.
func (j Judge) Decide(r Record, at time.Time, o Observation) (Record, bool) {
	if r.Standing == "" {
		r.Standing = Undecided
	}
	if o == Nothing || !r.Last.IsZero() && !at.After(r.Last) {
		return r, false
	}
	r.Last = at
	r.Window += string(rune(o))
	if extra := len(r.Window) - j.n; extra > 0 {
		r.Window = r.Window[extra:]
	}
	verdict := r.Standing
	if r.Standing != Down && strings.Count(r.Window, string(rune(Bad))) >= j.m {
		verdict = Down
	}
	if r.Standing != Up && strings.Count(r.Window, string(rune(Good))) >= j.m {
		verdict = Up
	}
	if verdict == r.Standing {
		return r, false
	}
	r.Standing, r.Since, r.Window = verdict, at, ""
	return r, true
}
