package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
)

// listener is a channel's other end; it does not hear the first attempts.
type listener struct {
	mu    sync.Mutex
	deaf  int
	heard []string
}

func (l *listener) Send(_ context.Context, m alert.Message) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deaf > 0 {
		l.deaf--
		return "", &alert.Error{Why: "it is away"}
	}
	l.heard = append(l.heard, m.ID+" "+m.Text())
	return "", nil
}

func TestARolloutTellsItsStepsToEachChannelOnce(t *testing.T) {
	chat, list, other := &listener{deaf: 2}, &listener{}, &listener{}
	channels := []alert.Channel{
		{Alert: fleet.Alert{Name: "chat", Type: fleet.AlertSlack}, Sink: chat},
		{Alert: fleet.Alert{Name: "list", Type: fleet.AlertGitHub}, Sink: list},
		{Alert: fleet.Alert{Name: "other", Type: fleet.AlertSlack, Kinds: []fleet.Kind{fleet.KindStale}}, Sink: other},
	}
	tell := newRolloutTeller(t.Context(), channels, "2026.04.3", time.Millisecond, func(channel string, err error) { t.Errorf("%s: %v", channel, err) })
	at := time.Date(2026, 4, 3, 10, 0, 0, 0, time.UTC)
	for n, e := range []rollout.Event{
		{Event: string(rollout.Running)},
		{Wave: "canary", Event: "wave " + string(rollout.WaveTaking)},
		{Wave: "canary", Member: "acme", Event: string(rollout.Taken)},
		{Wave: "canary", Member: "bolt", Event: string(rollout.Unclear), Detail: "it was not reached"},
		{Event: string(rollout.Stopped), Detail: "bolt is unclear"},
		{Event: string(rollout.Running)},
		{Event: string(rollout.Done)},
	} {
		e.Rollout, e.Seq, e.At = "r1", int64(n+1), at
		tell.tell(e)
	}
	tell.close()
	stopped := "r1-5 Rollout of 2026.04.3: rollout since 2026-04-03 10:00:00 UTC. bolt is unclear agnesctl fleet rollout --status r1"
	news := []string{
		"r1-1 Rollout of 2026.04.3: running",
		"r1-2 Rollout of 2026.04.3, wave canary: taking",
		"r1-4 Rollout of 2026.04.3, wave canary: bolt is unclear: it was not reached",
		stopped,
		"r1-6 Rollout of 2026.04.3: running",
		"r1-7 Rollout of 2026.04.3: done",
	}
	over := "r1-7-over Rollout of 2026.04.3: rollout is over after 0s. It is done."
	plain := func(all []string) (out []string) {
		for _, s := range all {
			out = append(out, string(slices.DeleteFunc([]rune(s), func(r rune) bool { return r == '\n' })))
		}
		return out
	}
	if diff := cmp.Diff(news, plain(chat.heard)); diff != "" {
		t.Errorf("the chat (- want, + heard):\n%s", diff)
	}
	if all := plain(list.heard); !slices.Contains(all, stopped) || !slices.Contains(all, over) {
		t.Errorf("the list of issues heard %q", all)
	}
	if len(other.heard) > 0 {
		t.Errorf("a channel for stale data heard %q", other.heard)
	}
}

func TestAChannelThatIsAwayIsSaidAndHoldsNothingUp(t *testing.T) {
	gone := &listener{deaf: 1000}
	failed := 0
	tell := newRolloutTeller(t.Context(), []alert.Channel{{Alert: fleet.Alert{Name: "gone", Type: fleet.AlertSlack}, Sink: gone}}, "2026.04.3", 0, func(string, error) { failed++ })
	tell.tell(rollout.Event{Event: string(rollout.Failed), Rollout: "r1"})
	tell.close()
	if failed != 1 {
		t.Errorf("it was said %d times, want once", failed)
	}
}

func TestAChannelThatIsAwayKeepsNoOtherFromTheLastWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gone, chat := &listener{deaf: 1 << 20}, &listener{}
		channels := []alert.Channel{
			{Alert: fleet.Alert{Name: "gone", Type: fleet.AlertSlack}, Sink: gone},
			{Alert: fleet.Alert{Name: "chat", Type: fleet.AlertSlack}, Sink: chat},
		}
		var said []string
		tell := newRolloutTeller(t.Context(), channels, "2026.04.3", 3*time.Second, func(channel string, err error) { said = append(said, channel+": "+err.Error()) })
		for range 1500 {
			tell.tell(rollout.Event{Event: string(rollout.Running), Rollout: "r1"})
		}
		tell.tell(rollout.Event{Event: string(rollout.Failed), Rollout: "r1", Detail: "smoke"})
		tell.close()
		if len(chat.heard) == 0 || !strings.Contains(chat.heard[len(chat.heard)-1], "smoke") {
			t.Error("the chat did not hear the end")
		}
		if last := said[len(said)-1]; !strings.HasPrefix(last, "gone: 1") || !strings.HasSuffix(last, " messages not sent") {
			t.Errorf("of what gone has not heard it is said %q", said)
		}
	})
}
