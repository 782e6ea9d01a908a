// Package rollout takes a fleet to another version, wave by wave, and stops
// itself when anything is wrong.
//
// It has three layers. NewPlan is pure: from the inventory, what was seen of its
// instances and a target it makes a Rollout, a document with every wave, its
// members and who is left out. Next is pure, too: it takes the document, what
// happened since and what people ordered, and returns the document as it is now
// with all that has to be under way. Engine is the loop around Next: it holds the
// lease, writes the document to the store before it begins anything, does what
// Next wants through a Deliverer, and asks instances how they are. What is under
// way follows from the document alone, so an engine that is killed at any moment
// is replaced by another one that reads it.
//
// There are two Deliverers: Push deploys over SSH, Pull commits to the fleet's
// git repository, where hosts read what they shall run. Other programs look with
// List and Get, and order with Give.
package rollout

import (
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
)

// State is how far a rollout is.
type State string

// The states. Paused and Stopped can be resumed; Done, Failed and Aborted are
// the end.
const (
	Planned   State = "planned" // nothing has begun
	Running   State = "running"
	Pausing   State = "pausing"   // somebody wants a pause; what is under way is finished
	Paused    State = "paused"    // nothing begins until somebody resumes
	Stopping  State = "stopping"  // something is inconclusive; what is under way is finished
	Stopped   State = "stopped"   // a person has to look; nothing was taken back
	Reverting State = "reverting" // a member failed; its wave is taken back
	Aborting  State = "aborting"  // somebody wants an end; what is under way is finished or called back
	Done      State = "done"      // every wave passed
	Failed    State = "failed"    // a member failed and its wave was taken back
	Aborted   State = "aborted"
)

// Ended reports whether nothing can change a rollout any more.
func (s State) Ended() bool { return s == Done || s == Failed || s == Aborted }

// Resting reports whether nothing happens by itself: an order is needed, or it
// has ended.
func (s State) Resting() bool { return s.Ended() || s == Paused || s == Stopped }

// WaveStage is how far a wave is.
type WaveStage string

// The stages of a wave.
const (
	WaveWaiting  WaveStage = "waiting"
	WaveTaking   WaveStage = "taking"
	WaveSoaking  WaveStage = "soaking"
	WavePassed   WaveStage = "passed"
	WaveFailed   WaveStage = "failed"
	WaveLeftOver WaveStage = "left" // the rollout ended before or within it
)

// MemberState is how far a member is.
type MemberState string

// The states of a member.
const (
	Waiting    MemberState = "waiting"     // untouched
	Taking     MemberState = "taking"      // on its way: deploying, or expected to arrive
	Taken      MemberState = "taken"       // runs the target and is well
	Bad        MemberState = "bad"         // runs the target and is not well; its way back follows
	FailedBack MemberState = "failed"      // failed, and its host went back by itself
	Unreached  MemberState = "unreachable" // could not be reached, or did not arrive in time
	Unclear    MemberState = "unclear"     // neither pass nor fail could be shown
	TakingBack MemberState = "reverting"   // on its way back
	Reverted   MemberState = "reverted"    // is where it was before, or its desired state is
	Astray     MemberState = "astray"      // could not be taken back: a person has to look
)

// Rollout is the whole document. Its JSON is a contract: fields may be added.
type Rollout struct {
	ID      string `json:"id"`
	Image   string `json:"image"` // repository
	Tag     string `json:"tag"`   // what was asked for; it may have moved since
	Digest  string `json:"digest"`
	Version string `json:"version"`
	Channel string `json:"channel"`

	State   State     `json:"state"`
	Reason  string    `json:"reason"` // why it is in this state
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	By      string    `json:"by"`

	Waves   []WaveState `json:"waves"`
	Skipped []Skipped   `json:"skipped"`
	CatchUp []string    `json:"catch_up"` // unreachable members, for --catch-up
	Of      string      `json:"catch_up_of,omitempty"`

	MaxUnreachable int  `json:"max_unreachable"`
	ArriveWithin   Span `json:"arrive_within"`
	ErrorBudget    int  `json:"error_budget_percent"` // of the probes of a wave while it soaks

	Flags map[string][]string `json:"flags,omitempty"` // of the program that drives it; the next one goes on with them

	Order  int64   `json:"last_order"` // sequence number of the last order that was taken in
	Events int64   `json:"events"`     // that were made so far
	Unsaid []Event `json:"unsaid,omitempty"`
}

// WaveState is a wave with its members. Membership does not change.
type WaveState struct {
	Name           string    `json:"name"`
	State          WaveStage `json:"state"`
	Soak           Span      `json:"soak"`
	MaxUnavailable int       `json:"max_unavailable"`
	Began          time.Time `json:"began,omitzero"`
	Settled        time.Time `json:"settled,omitzero"` // begin of the soak
	Ended          time.Time `json:"ended,omitzero"`
	Members        []Member  `json:"members"`
}

// Member is one instance of a rollout.
type Member struct {
	Name     string      `json:"name"`
	Delivery string      `json:"delivery"` // push or pull
	State    MemberState `json:"state"`
	From     string      `json:"from"` // version before; empty where it is not known
	To       string      `json:"to"`   // version to take it to
	Runs     string      `json:"runs"` // version that it was last seen with
	Detail   string      `json:"detail"`
	Failed   bool        `json:"failed"` // it is a reason why the rollout failed
	Since    time.Time   `json:"since,omitzero"`

	Before  Before `json:"before"`  // how it was before it was touched
	Sent    bool   `json:"sent"`    // delivery may have begun
	Arrived bool   `json:"arrived"` // it was seen with the target, and well
	Recall  bool   `json:"recall"`  // only its desired state has to go back
}

// Before is what a member was before it was touched: what gates compare with, and
// the way back.
type Before struct {
	At      time.Time       `json:"at,omitzero"` // zero: not looked yet
	Health  fleet.Health    `json:"health"`
	Image   deploy.Image    `json:"image"`
	Desired *deploy.Desired `json:"desired,omitempty"` // content of its file; pull
	Synced  time.Time       `json:"last_sync,omitzero"`
	Stale   int             `json:"stale_tables"`
	Details bool            `json:"details"` // Synced and Stale are known
}

// Skipped is an instance that the rollout leaves alone.
type Skipped struct {
	Name   string `json:"name"`
	Wave   string `json:"wave"`
	Reason string `json:"reason"`
}

// Event is one line of the audit.
type Event struct {
	Seq     int64     `json:"seq"` // within the rollout, from 1, without gaps
	At      time.Time `json:"at"`
	Rollout string    `json:"rollout"`
	Who     string    `json:"who"`
	Wave    string    `json:"wave,omitempty"`
	Member  string    `json:"member,omitempty"`
	Event   string    `json:"event"` // the state that the rollout, wave or member is in now
	From    string    `json:"from,omitempty"`
	To      string    `json:"to"`
	Digest  string    `json:"digest"`
	Detail  string    `json:"detail,omitempty"`
}

// Verb is what people can order.
type Verb string

// The orders.
const (
	Pause  Verb = "pause"
	Resume Verb = "resume"
	Abort  Verb = "abort"
)

// Span is a duration that is text in JSON: 10m0s.
type Span time.Duration

// MarshalText writes it as time.Duration does.
func (s Span) MarshalText() ([]byte, error) { return []byte(time.Duration(s).String()), nil }

// UnmarshalText reads it.
func (s *Span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*s = Span(d)
	return err
}

// clone copies what Next changes.
func (r Rollout) clone() Rollout {
	r.Waves = slices.Clone(r.Waves)
	for i := range r.Waves {
		r.Waves[i].Members = slices.Clone(r.Waves[i].Members)
	}
	r.Unsaid = nil
	return r
}

// member returns a member and its wave, or nothing.
func (r *Rollout) member(name string) (*WaveState, *Member) {
	for i := range r.Waves {
		for n := range r.Waves[i].Members {
			if r.Waves[i].Members[n].Name == name {
				return &r.Waves[i], &r.Waves[i].Members[n]
			}
		}
	}
	return nil, nil
}
