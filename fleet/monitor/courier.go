package monitor

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

const (
	sendLimit   = 2 * time.Minute // for one attempt; a code host may ask to wait
	firstResend = 5 * time.Second // doubled each time
	lastResend  = 10 * time.Minute
	longestWait = time.Hour // that a receiver may ask for
	giveUpAfter = 72 * time.Hour
	finalTries  = 3         // of a message that the receiver says is wrong
	groupAlone  = 5         // incidents at once that have an issue each
	idleLook    = time.Hour // what waits wakes a courier; this is for what nobody thought of
)

// courier brings a channel what has to be said there, in its order, until ctx
// ends. A message that is under way then is brought to its end.
func (m *Monitor) courier(ctx context.Context, c alert.Channel, wake <-chan struct{}) {
	var no refusals
	for ctx.Err() == nil {
		next, err := m.bring(ctx, c, &no)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			m.log.LogAttrs(ctx, slog.LevelWarn, "what has to be said cannot be read or noted", slog.String("channel", c.Name), slog.Any("error", err))
			next = time.Now().Add(lastRetry)
		}
		if next.IsZero() {
			next = time.Now().Add(idleLook)
		}
		waitUntil(ctx, next, wake)
	}
}

// refusals counts how often on end a message was said to be wrong: a gateway that is
// just being restarted says so, too.
type refusals struct {
	message string
	times   int
}

func (r *refusals) count(message string, final bool) int {
	if r.message != message || !final {
		*r = refusals{message: message}
	}
	if final {
		r.times++
	}
	return r.times
}

// bring sends what is due and returns when there may be more; zero where nothing
// waits.
func (m *Monitor) bring(ctx context.Context, c alert.Channel, no *refusals) (time.Time, error) {
	grouping := store.Grouping{Wait: m.rules.watch.GroupWait, Threads: c.Threads(), Alone: groupAlone}
	for ctx.Err() == nil {
		message, ok, err := m.o.Store.Pending(ctx, c.Name)
		if err != nil {
			return time.Time{}, err
		}
		if !ok {
			next, err := m.o.Store.Compose(ctx, c.Name, time.Now(), grouping)
			if err != nil || !next.IsZero() {
				return next, err
			}
			if message, ok, err = m.o.Store.Pending(ctx, c.Name); err != nil || !ok {
				return time.Time{}, err
			}
		}
		// One that is farther off than anybody may ask for is of a clock that was wrong.
		if wait := time.Until(message.Next); wait > 0 && wait <= longestWait {
			return message.Next, nil
		}
		if err := m.send(ctx, c, message, no); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, nil
}

// send makes one attempt and notes what came of it.
func (m *Monitor) send(ctx context.Context, c alert.Channel, message store.Message, no *refusals) error {
	// To cut it off would leave open whether it has arrived.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendLimit)
	defer cancel()
	link, err := c.Sink.Send(limited, m.messageOf(message))
	now := time.Now()
	if err == nil {
		return m.note(ctx, func(ctx context.Context) error { return m.o.Store.Sent(ctx, message.ID, now, link) })
	}
	wait := min(firstResend<<min(message.Attempts, 20), lastResend)
	final := false
	if known, ok := errors.AsType[*alert.Error](err); ok {
		wait, final = max(wait, min(known.After, longestWait)), known.Final
	}
	next := now.Add(wait)
	if no.count(message.ID, final) >= finalTries || now.Sub(message.Made) >= giveUpAfter {
		next = time.Time{}
		m.log.LogAttrs(ctx, slog.LevelError, "a message is given up", slog.String("channel", c.Name), slog.String("message", message.ID), slog.Int("things", len(message.Items)), slog.Any("error", err))
	} else {
		m.log.LogAttrs(ctx, slog.LevelWarn, "a message did not arrive and will be sent again", slog.String("channel", c.Name), slog.Time("next", next), slog.Any("error", err))
	}
	return m.note(ctx, func(ctx context.Context) error { return m.o.Store.Failed(ctx, message.ID, now, next, err.Error()) })
}

// note writes down what became of a message. Until that is done no other is sent:
// this one would come again.
func (m *Monitor) note(ctx context.Context, write func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
		err := write(limited)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.storeFails(ctx, err)
		waitUntil(ctx, time.Now().Add(firstRetry), nil)
	}
}

func (m *Monitor) messageOf(message store.Message) alert.Message {
	out := alert.Message{ID: message.ID, Thread: message.Thread, Open: message.Open, Attempts: message.Attempts}
	for _, i := range message.Items {
		item := alert.Item{
			Incident: i.ID, Name: i.Name, Kind: fleet.Kind(i.Kind), Event: alert.Event(i.Event), Opened: i.Opened,
			Summary: i.Summary, Hint: i.Hint,
		}
		if item.Event == alert.Closed {
			item.Closed, item.Ending = i.Closed, i.Ending
		}
		if m.o.Link != nil && i.Name != "" {
			item.Link = m.o.Link(i.Name)
		}
		out.Items = append(out.Items, item)
	}
	return out
}
