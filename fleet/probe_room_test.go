package fleet

import (
	"testing"
	"time"
)

func TestARoomShrinksWhenHandshakesQueueAndGrowsBack(t *testing.T) {
	t.Parallel()
	r := newRoom(256, 1600*time.Millisecond)
	far := Timing{Connect: 300 * time.Millisecond, TLS: 310 * time.Millisecond}
	for range 1000 {
		r.saw(far)
	}
	if r.limit != 256 {
		t.Errorf("hosts that are far made it %d", r.limit)
	}
	for range 3000 {
		r.saw(Timing{Connect: 20 * time.Millisecond, TLS: 700 * time.Millisecond})
	}
	if r.limit != leastRoom {
		t.Errorf("a queue of our own left it at %d", r.limit)
	}
	for range 2000 {
		r.saw(far)
	}
	if r.limit != 256 {
		t.Errorf("it grew back to %d only", r.limit)
	}
}
