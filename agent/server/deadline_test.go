package server_test

import (
	"log/slog"
	"net"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
)

// readDeadline is a listener that remembers the last read deadline of its
// connections.
type readDeadline struct {
	net.Listener
	last atomic.Pointer[time.Time]
}

// Accept serves net.Listener.
func (l *readDeadline) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watched{conn, l}, nil
}

type watched struct {
	net.Conn
	by *readDeadline
}

// SetReadDeadline serves net.Conn.
func (c *watched) SetReadDeadline(t time.Time) error {
	c.by.last.Store(&t)
	return c.Conn.SetReadDeadline(t)
}

// A connection is read while its request is served, to notice when the caller
// goes away. A deadline there would end the request.
func TestACallWithoutABodyMayTakeItsTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files"}).into(t, &api.ConfigureResponse{})
	ts := httptest.NewUnstartedServer(server.New(server.Options{Instance: w.instance, Log: slog.New(slog.DiscardHandler)}).Handler())
	l := &readDeadline{Listener: ts.Listener}
	ts.Listener = l
	ts.Start()
	t.Cleanup(ts.Close)
	w.url = ts.URL
	looked := 0
	w.source.asked = func() {
		looked++
		if last := l.last.Load(); last == nil || !last.IsZero() {
			t.Errorf("while the source is asked what it offers, the request has to end by %v; want no deadline", last)
		}
	}
	for _, path := range []string{"/api/sync/trigger", "/api/admin/discover-and-register"} {
		if r := w.call("POST", path, admin, nil); r.status != 200 {
			t.Errorf("POST %s = %d %s", path, r.status, r.body)
		}
	}
	if looked != 2 {
		t.Errorf("the source was asked %d times, want by both calls", looked)
	}
}
