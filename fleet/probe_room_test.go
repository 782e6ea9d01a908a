package fleet

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestARoomShrinksWhenHandshakesQueueAndGrowsBack(t *testing.T) {
	t.Parallel()
	r := newRoom(256, 1600*time.Millisecond)
	far := Result{Timing: Timing{Connect: 300 * time.Millisecond, TLS: 310 * time.Millisecond}}
	for range 1000 {
		r.saw(far)
	}
	if r.limit != 256 {
		t.Errorf("hosts that are far made it %d", r.limit)
	}
	silent := Result{At: time.Now(), Fault: FaultTimeout, Timing: Timing{Connect: 20 * time.Millisecond, TLS: 1600 * time.Millisecond}}
	r.saw(far)
	for range 1000 {
		r.saw(silent)
	}
	if r.limit != 256 || !r.behind.IsZero() {
		t.Errorf("silent hosts made it %d", r.limit)
	}
	for range 3000 {
		r.saw(Result{Timing: Timing{Connect: 20 * time.Millisecond, TLS: 700 * time.Millisecond}})
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

// A wait in vain is only in doubt where the machine was behind in the meantime.
func TestAWaitInVainIsInDoubtWhereTheMachineWasBehindMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		r := newRoom(256, 1600*time.Millisecond)
		for range 3000 {
			r.saw(Result{Timing: Timing{Connect: 20 * time.Millisecond, TLS: 700 * time.Millisecond}})
		}
		p := &pulse{began: began, tolerable: 200 * time.Millisecond}
		p.due.Store(int64(pulseEvery))
		<-time.After(time.Second) // and no beat came
		if !r.squeezed(began.Add(-time.Millisecond)) || !p.weak(time.Now()) {
			t.Error("it was behind, and is taken for swift")
		}
		p.late.Store(int64(time.Second))
		p.due.Store(int64(time.Second + pulseEvery))
		if !p.weak(began) {
			t.Error("a late beat is forgotten")
		}
		<-time.After(pulseEvery)
		if now := time.Now(); r.squeezed(now) || p.weak(now) {
			t.Errorf("it is behind no more, and is taken for it: limit %d", r.limit)
		}
	})
}

func TestAFleetOfTenThousandIsKeptInTwentyThousandDescriptors(t *testing.T) {
	for descriptors, want := range map[int][2]int{
		1 << 20: {256, 16_384},
		20_000:  {256, 16_384},
		1024:    {128, 512},
		64:      {8, 32},
		4:       {1, 1},
	} {
		o := ProbeOptions{Concurrency: defaultConcurrency, MaxIdle: defaultIdle}
		o.fit(descriptors)
		if got := [2]int{o.Concurrency, o.MaxIdle}; got != want {
			t.Errorf("%d descriptors: %v at once and kept, want %v", descriptors, got, want)
		}
	}
}

func TestAWitnessIsAskedAtTheAddressThatItHasNow(t *testing.T) {
	t.Parallel()
	s := newSelfCheck(ProbeOptions{Dial: func(_ context.Context, network, address string) (net.Conn, error) {
		if !strings.HasPrefix(address, "new-") {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EHOSTUNREACH}
		}
		here, there := net.Pipe()
		_ = there.Close()
		return here, nil
	}})
	for _, age := range []string{"old-", "new-"} {
		for _, name := range []string{"a", "b", "c", "d"} {
			s.saw(Instance{URL: "https://" + name + ".example.com"}, witness{name: name, address: age + name})
		}
	}
	if got := s.check(t.Context(), Instance{Name: "a", URL: "https://a.example.com"}, time.Now().Add(time.Hour)); got != online {
		t.Errorf("our network is taken for %d", got)
	}
}
