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

func TestWhoWaitedWhileThisMachineWasBehindIsAskedOnceMore(t *testing.T) {
	t.Parallel()
	issuer := httptest.NewUnstartedServer(nil) // for its certificate, of example.com
	issuer.StartTLS()
	defer issuer.Close()
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Certificate().Raw}))
	for name, tt := range map[string]struct {
		wait  time.Duration // of each handshake for the processor
		dials int           // to the one whose first handshake is lost
		want  fleet.Health
	}{
		"a machine that is behind": {400 * time.Millisecond, 2, fleet.Healthy},
		"one that is not":          {0, 1, fleet.Unreachable},
	} {
		synctest.Test(t, func(t *testing.T) {
			listener := &pipes{made: make(chan net.Conn), done: make(chan struct{})}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, `{"status":"healthy","version":"2026.04.7","channel":"stable"}`)
			})}
			go func() {
				_ = server.Serve(tls.NewListener(listener, &tls.Config{Certificates: issuer.TLS.Certificates, NextProtos: []string{"http/1.1"}}))
			}()
			defer server.Close()
			var all []fleet.Instance
			for i := range 300 {
				all = append(all, fleet.Instance{Name: fmt.Sprintf("sim-%05d", i), URL: fmt.Sprintf("https://example.com:%d", 8000+i), TLS: fleet.TLS{PEM: authority}})
			}
			var mu sync.Mutex
			dials := 0
			p := fleet.NewProber(fleet.ProbeOptions{Concurrency: 64, Connect: 2 * time.Second, MaxIdle: -1, MaxSessions: -1, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
				if address == "example.com:8000" {
					mu.Lock()
					dials++
					first := dials == 1
					mu.Unlock()
					if first {
						silent, other := net.Pipe()
						go func() { // takes what is said, and never speaks
							for err := error(nil); err == nil; {
								_, err = other.Read(make([]byte, 4096))
							}
						}()
						return silent, nil
					}
				}
				return &slowRead{Conn: listener.dial(), wait: tt.wait}, nil
			}})
			defer p.Close()
			got, _ := must(t, p, all)
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
