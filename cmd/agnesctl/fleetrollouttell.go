package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
)

// rolloutTeller sends the steps of a rollout through the inventory's channels,
// beside the rollout and each by itself: a channel that is slow or away holds up
// neither the rollout nor another channel.
type rolloutTeller struct {
	version string
	queues  []*tellQueue
	wait    time.Duration // between two attempts
	failed  func(channel string, err error)

	giveUp context.CancelFunc
	told   sync.WaitGroup
	mu     sync.Mutex // of failed
}

// tellQueue is what a channel has still to be told.
type tellQueue struct {
	alert.Channel
	news chan alert.Message
	lost int // oldest ones that made room
}

const (
	tellAttempts = 4
	tellFarewell = 20 * time.Second // for what is left to be sent when the rollout rests
)

// newRolloutTeller begins to send. Close it.
func newRolloutTeller(ctx context.Context, channels []alert.Channel, version string, wait time.Duration, failed func(string, error)) *rolloutTeller {
	t := &rolloutTeller{version: version, failed: failed, wait: wait}
	ctx, t.giveUp = context.WithCancel(context.WithoutCancel(ctx)) // Ctrl-C is news, too
	for _, c := range channels {
		if c.Wants(fleet.KindRollout, nil) {
			q := &tellQueue{Channel: c, news: make(chan alert.Message, 1024)}
			t.queues = append(t.queues, q)
			t.told.Go(func() { t.run(ctx, q) })
		}
	}
	return t
}

// tell takes an event over and returns at once. Call it from one goroutine.
func (t *rolloutTeller) tell(e rollout.Event) {
	for _, m := range t.messages(e) {
		for _, q := range t.queues {
			if len(m.Items) > 0 && m.Items[0].Event == alert.Closed && !q.Threads() {
				continue // the news say it
			}
			q.add(m)
		}
	}
}

// add makes room where there is none: so much behind, the oldest matters least.
func (q *tellQueue) add(m alert.Message) {
	for {
		select {
		case q.news <- m:
			return
		default:
		}
		select {
		case <-q.news:
			q.lost++
		default:
		}
	}
}

// close waits for what is still to be sent, for a while.
func (t *rolloutTeller) close() {
	for _, q := range t.queues {
		close(q.news)
	}
	defer time.AfterFunc(tellFarewell, t.giveUp).Stop()
	t.told.Wait()
	t.giveUp()
}

func (t *rolloutTeller) run(ctx context.Context, q *tellQueue) {
	unsent := 0
	for m := range q.news {
		err := ctx.Err()
		if err == nil {
			err = t.send(ctx, q.Channel, m)
		}
		switch {
		case ctx.Err() != nil && err != nil:
			unsent++
		case err != nil:
			t.trouble(q.Name, err)
		}
	}
	if unsent += q.lost; unsent > 0 {
		t.trouble(q.Name, fmt.Errorf("%s not sent", plural(unsent, "message")))
	}
}

func (t *rolloutTeller) trouble(channel string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed(channel, err)
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
		m.News = fmt.Sprintf("%s, wave %s: %s%s", what, e.Wave, strings.TrimPrefix(e.Event, "wave "), detail)
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
