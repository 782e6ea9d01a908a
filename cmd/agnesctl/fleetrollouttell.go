package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
)

// rolloutTeller sends the steps of a rollout through the inventory's channels,
// beside the rollout: a channel that is slow or away does not hold it up.
type rolloutTeller struct {
	version  string
	channels []alert.Channel
	news     chan rollout.Event
	told     chan struct{} // closed when the last message was sent
	failed   func(channel string, err error)
	wait     time.Duration // between two attempts
}

const (
	tellAttempts = 4
	tellFarewell = 20 * time.Second // for what is left to be sent when the rollout rests
)

// newRolloutTeller begins to send. Close it.
func newRolloutTeller(ctx context.Context, channels []alert.Channel, version string, wait time.Duration, failed func(string, error)) *rolloutTeller {
	t := &rolloutTeller{
		version: version, news: make(chan rollout.Event, 1024), told: make(chan struct{}), failed: failed, wait: wait,
		channels: slices.DeleteFunc(slices.Clone(channels), func(c alert.Channel) bool { return !c.Wants(fleet.KindRollout, nil) }),
	}
	go t.run(context.WithoutCancel(ctx)) // Ctrl-C is news, too
	return t
}

// tell takes an event over and returns at once.
func (t *rolloutTeller) tell(e rollout.Event) {
	select {
	case t.news <- e:
	default: // so much behind, the newest is not what matters; the audit has all
	}
}

// close waits for what is still to be sent, for a while.
func (t *rolloutTeller) close() {
	close(t.news)
	select {
	case <-t.told:
	case <-time.After(tellFarewell):
	}
}

func (t *rolloutTeller) run(ctx context.Context) {
	defer close(t.told)
	for e := range t.news {
		messages := t.messages(e)
		for _, c := range t.channels {
			for _, m := range messages {
				if len(m.Items) > 0 && m.Items[0].Event == alert.Closed && !c.Threads() {
					continue // the news say it
				}
				if err := t.send(ctx, c, m); err != nil {
					t.failed(c.Name, err)
				}
			}
		}
	}
}

func (t *rolloutTeller) send(ctx context.Context, c alert.Channel, m alert.Message) error {
	for attempt := 1; ; attempt++ {
		_, err := c.Sink.Send(ctx, m)
		after := t.wait
		if e, ok := errors.AsType[*alert.Error](err); ok {
			after = max(after, e.After)
			if e.Final {
				return err
			}
		}
		if err == nil || attempt == tellAttempts || after > tellFarewell {
			return err
		}
		if pause.For(ctx, after) != nil {
			return err
		}
	}
}

// messages are what people are told of an event: each state of the rollout, the
// begin and the end of a wave, and a member that is in trouble. A rollout that
// failed or stopped is an incident too, which is over when it goes on to its end.
func (t *rolloutTeller) messages(e rollout.Event) []alert.Message {
	what := "Rollout of " + t.version
	m := alert.Message{ID: fmt.Sprintf("%s-%d", e.Rollout, e.Seq), Thread: e.Rollout}
	detail := ""
	if e.Detail != "" {
		detail = ": " + e.Detail
	}
	switch {
	case e.Member != "":
		trouble := []rollout.MemberState{rollout.Bad, rollout.FailedBack, rollout.Unreached, rollout.Unclear, rollout.Astray}
		if !slices.Contains(trouble, rollout.MemberState(e.Event)) {
			return nil
		}
		m.News = fmt.Sprintf("%s, wave %s: %s is %s%s", what, e.Wave, e.Member, e.Event, detail)
		return []alert.Message{m}
	case e.Wave != "":
		if rollout.WaveStage(e.Event) == rollout.WaveLeftOver {
			return nil // what the rollout's own end says
		}
		m.News = fmt.Sprintf("%s, wave %s: %s%s", what, e.Wave, e.Event, detail)
		return []alert.Message{m}
	}
	item := alert.Item{
		Incident: e.Rollout, Name: what, Kind: fleet.KindRollout, Event: alert.Opened, Opened: e.At,
		Summary: e.Detail, Hint: "agnesctl fleet rollout --status " + e.Rollout,
	}
	switch rollout.State(e.Event) {
	case rollout.Failed, rollout.Stopped:
		m.Open, m.Items = 1, []alert.Item{item}
		return []alert.Message{m}
	case rollout.Done, rollout.Aborted:
		item.Event, item.Closed, item.Ending = alert.Closed, e.At, "It is "+e.Event+"."
		over := m
		over.ID, over.Items = m.ID+"-over", []alert.Item{item}
		m.News = what + ": " + e.Event + detail
		return []alert.Message{m, over}
	}
	m.News = what + ": " + e.Event + detail
	return []alert.Message{m}
}
