package rollout

import (
	"context"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
)

// Deliverer brings one member at a time to an image and back: Push and Pull.
// Every call is idempotent, for an engine that was killed makes it again, and is
// safe for concurrent use.
type Deliverer interface {
	// Look returns where the member is now, so that Back can take it there. A
	// member that cannot be reached is an error for which isAway is true.
	Look(ctx context.Context, j Job) (image deploy.Image, desired *deploy.Desired, err error)
	// Take sends the member to the target.
	Take(ctx context.Context, j Job) Outcome
	// Settle finishes what Take has begun there and begins nothing.
	Settle(ctx context.Context, j Job) Outcome
	// Back sends the member to where Look found it. Doubtful is worth another try.
	Back(ctx context.Context, j Job) Outcome
}

// Job is one member with all that reaching it needs.
type Job struct {
	Rollout  string // id
	Wave     string
	Instance fleet.Instance
	Target   deploy.Image
	Before   Before
	Asked    time.Time // when the member was sent for
	Recall   bool      // of Back: the member has not arrived
}

// Delivered is the Outcome of what was sent: the engine looks whether the member
// shows it. All others are final.
const Delivered What = "delivered"

// Outcome is what came of a delivery.
type Outcome struct {
	What   What
	Detail string
	Runs   string // version, where it is known
}
