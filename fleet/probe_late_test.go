package fleet_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// slowRead is a connection whose first answer comes late, as on a machine that is
// busy with itself.
type slowRead struct {
	net.Conn
	once sync.Once
	wait time.Duration
}

func (c *slowRead) Read(p []byte) (int, error) {
	c.once.Do(func() { <-time.After(c.wait) })
	return c.Conn.Read(p)
}

// pipes is a listener in memory.
type pipes struct {
	made chan net.Conn
	done chan struct{}
}

func (l *pipes) dial() net.Conn {
	here, there := net.Pipe()
	l.made <- there
	return here
}

// Accept, Close and Addr serve net.Listener.
func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.made:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { close(l.done); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// lateFleet is 300 instances in memory.
type lateFleet struct {
	listener *pipes
	all      []fleet.Instance
}

// serve lives in a bubble of synctest.
func (f *lateFleet) serve(issuer *httptest.Server) (stop func()) {
	f.listener = &pipes{made: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"status":"healthy","version":"2026.04.7","channel":"stable"}`)
	})}
	go func() {
		_ = server.Serve(tls.NewListener(f.listener, &tls.Config{Certificates: issuer.TLS.Certificates, NextProtos: []string{"http/1.1"}}))
	}()
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Certificate().Raw}))
	f.all = nil
	for i := range 300 {
		f.all = append(f.all, fleet.Instance{Name: fmt.Sprintf("sim-%05d", i), URL: fmt.Sprintf("https://example.com:%d", 8000+i), TLS: fleet.TLS{PEM: authority}})
	}
	return func() { _ = server.Close() }
}

// silent takes what is said, and never speaks.
func silent() net.Conn {
	here, there := net.Pipe()
	go func() {
		for err := error(nil); err == nil; {
			_, err = there.Read(make([]byte, 4096))
		}
	}()
	return here
}

func TestWhoWaitedWhileThisMachineWasBehindIsAskedOnceMore(t *testing.T) {
	t.Parallel()
	issuer := httptest.NewUnstartedServer(nil) // for its certificate, of example.com
	issuer.StartTLS()
	defer issuer.Close()
	for name, tt := range map[string]struct {
		wait  time.Duration // of each handshake for the processor
		dials int           // to the one whose first handshake is lost
		want  fleet.Health
	}{
		"a machine that is behind": {400 * time.Millisecond, 2, fleet.Healthy},
		"one that is not":          {0, 1, fleet.Unreachable},
	} {
		synctest.Test(t, func(t *testing.T) {
			var f lateFleet
			defer f.serve(issuer)()
			var mu sync.Mutex
			dials := 0
			p := fleet.NewProber(fleet.ProbeOptions{Concurrency: 64, Connect: 2 * time.Second, MaxIdle: -1, MaxSessions: -1, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
				if address == "example.com:8000" {
					mu.Lock()
					dials++
					first := dials == 1
					mu.Unlock()
					if first {
						return silent(), nil
					}
				}
				return &slowRead{Conn: f.listener.dial(), wait: tt.wait}, nil
			}})
			defer p.Close()
			got, _ := must(t, p, f.all)
			if r := got["sim-00000"]; r.Health != tt.want || dials != tt.dials {
				t.Errorf("%s: %s after %d dials, want %s after %d: %v", name, r.Health, dials, tt.want, tt.dials, r.Err)
			}
			for _, r := range got {
				if r.Name != "sim-00000" && !r.Good() {
					t.Fatalf("%s: %+v", name, r)
				}
			}
		})
	}
}

// Two hosts are silent: the first one while the machine is behind, so that it is asked
// once more, the last one when it is not any more. Both waits are one.
func TestTheSecondAskingOverlapsWithTheFirst(t *testing.T) {
	t.Parallel()
	issuer := httptest.NewUnstartedServer(nil)
	issuer.StartTLS()
	defer issuer.Close()
	synctest.Test(t, func(t *testing.T) {
		var f lateFleet
		defer f.serve(issuer)()
		const limit, behind = 2 * time.Second, 64 // handshakes
		began := time.Now()
		var mu sync.Mutex
		dials := map[string][]time.Duration{}
		p := fleet.NewProber(fleet.ProbeOptions{Concurrency: 64, Connect: limit, MaxIdle: -1, MaxSessions: -1, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dials[address] = append(dials[address], time.Since(began))
			if address == "example.com:8000" || address == "example.com:8299" {
				return silent(), nil
			}
			wait := 100 * time.Millisecond
			if len(dials) <= behind {
				wait = 400 * time.Millisecond
			}
			return &slowRead{Conn: f.listener.dial(), wait: wait}, nil
		}})
		defer p.Close()
		got, s := must(t, p, f.all)
		first, last := dials["example.com:8000"], dials["example.com:8299"]
		if len(first) != 2 || len(last) != 1 {
			t.Fatalf("the first one was asked at %v, the last one at %v; want twice and once", first, last)
		}
		if first[1] >= last[0]+limit || s.Took > first[1]+limit {
			t.Errorf("the last one was asked at %v, the first one again at %v, and the sweep took %v", last[0], first[1], s.Took)
		}
		for name, r := range got {
			if want := name != "sim-00000" && name != "sim-00299"; r.Good() != want {
				t.Fatalf("%+v", r)
			}
		}
	})
}
