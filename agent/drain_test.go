package agent

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (d *drain) beginNow(lasts time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begin(lasts)
}

func (d *drain) endNow() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.end()
}

func refused(t *testing.T, d *drain) *problem.Error {
	t.Helper()
	err := d.do(func() error { t.Error("a drain let something through"); return nil })
	p, ok := errors.AsType[*problem.Error](err)
	if !ok || p.Kind != problem.Conflict || p.Code != "draining" || p.Hint == "" {
		t.Fatalf("do() = %v, want the conflict draining with a hint", err)
	}
	return p
}

func TestADrainEndsByItselfWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d drain
		if !d.beginNow(time.Minute) {
			t.Error("begin() did not begin")
		}
		<-time.After(time.Minute - 1)
		if p := refused(t, &d); p.RetryAfter != 1 {
			t.Errorf("RetryAfter = %s, want what is left of the drain", p.RetryAfter)
		}
		<-time.After(1)
		ran := false
		if err := d.do(func() error { ran = true; return nil }); err != nil || !ran {
			t.Errorf("after its time do() = %v, ran: %t", err, ran)
		}
		if d.endNow() || !d.beginNow(time.Minute) {
			t.Error("a drain that is over counts as one that is on")
		}
	})
}

func TestARepeatedDrainExtendsAndNeverShortens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d drain
		began := time.Now()
		d.beginNow(time.Minute)
		<-time.After(30 * time.Second)
		if d.beginNow(time.Minute) {
			t.Error("a repeated call began another drain")
		}
		d.beginNow(time.Second)
		if err := d.wait(t.Context()); err != nil || time.Since(began) != 90*time.Second {
			t.Errorf("the drain ended after %s (%v), want 90 s: the longest wish wins", time.Since(began), err)
		}
	})
}

// What was let through before a drain begins is done before it is answered.
func TestADrainBeginsAfterTheChangesThatItLetThrough(t *testing.T) {
	t.Parallel()
	var d drain
	under, finish := make(chan struct{}), make(chan struct{})
	stored := false
	changed := make(chan error, 1)
	go func() {
		changed <- d.do(func() error {
			close(under)
			<-finish
			stored = true
			return nil
		})
	}()
	<-under
	began := make(chan bool, 1)
	go func() {
		d.beginNow(time.Minute)
		began <- stored
	}()
	for range 10_000 {
		runtime.Gosched()
		select {
		case <-began:
			t.Fatal("the drain began while a change was being stored")
		default:
		}
	}
	close(finish)
	if err := <-changed; err != nil {
		t.Error(err)
	}
	if !<-began {
		t.Error("the drain began before the change was stored")
	}
}

func TestWhoWaitsForADrainGoesOnWhenItIsEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d drain
		if err := d.wait(t.Context()); err != nil {
			t.Errorf("without a drain wait() = %v", err)
		}
		d.beginNow(time.Hour)
		began := time.Now()
		waited := make(chan error, 1)
		go func() { waited <- d.wait(t.Context()) }()
		<-time.After(time.Minute)
		if !d.endNow() {
			t.Error("end() did not end the drain")
		}
		if err := <-waited; err != nil || time.Since(began) != time.Minute {
			t.Errorf("wait() = %v after %s, want at the end after a minute", err, time.Since(began))
		}
		d.beginNow(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait() = %v, want the context's end", err)
		}
	})
}
