package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// List returns the last rollouts of a fleet, newest first.
func List(ctx context.Context, s *store.Store, limit int) ([]Rollout, error) {
	records, err := s.Rollouts(ctx, limit)
	if err != nil {
		return nil, err
	}
	list := make([]Rollout, 0, len(records))
	for _, record := range records {
		r, err := Decode(record)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// Get returns one rollout, or a problem.NotFound.
func Get(ctx context.Context, s *store.Store, id string) (Rollout, error) {
	record, err := s.Rollout(ctx, id)
	if err != nil {
		return Rollout{}, err
	}
	return Decode(record)
}

// Decode reads the document of a record.
func Decode(record store.Rollout) (r Rollout, err error) {
	if err := json.Unmarshal(record.Doc, &r); err != nil {
		return r, problem.Wrap(err, problem.Internal, fmt.Sprintf("The rollout %s in the fleet's database cannot be read.", record.ID), "Use the agnesctl that wrote it, or a newer one.")
	}
	return r, nil
}

// Give orders a pause, a resumption or an abort in somebody's name. The engine
// that drives the rollout takes the order in within a second; where none does,
// the next one. A rollout that has ended takes no orders: problem.Refused.
func Give(ctx context.Context, s *store.Store, id string, verb Verb, by string) error {
	if verb != Pause && verb != Resume && verb != Abort {
		return problem.New(problem.Usage, fmt.Sprintf("expected pause, resume or abort, found %q", verb), "")
	}
	r, err := Get(ctx, s, id)
	if err != nil {
		return err
	}
	if r.State.Ended() {
		return problem.New(problem.Refused, fmt.Sprintf("The rollout %s has ended: it is %s.", id, r.State), "Begin another one: agnesctl fleet rollout --tag TAG").WithCode("rollout_ended")
	}
	return s.GiveOrder(ctx, store.Order{Rollout: id, At: time.Now(), By: by, Verb: string(verb)})
}

// Driver says who drives the rollouts of a fleet and since when, and whether
// anybody does.
func Driver(ctx context.Context, s *store.Store) (owner string, since time.Time, driven bool, err error) {
	l, held, err := s.HeldLease(ctx, leaseName)
	if err != nil || !held || dead(l.Owner) || time.Now().After(l.Expires) {
		return "", time.Time{}, false, err
	}
	return ownerOf(l.Owner), l.Since, true, nil
}
