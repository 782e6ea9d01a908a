package smoketest

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
)

// Answer is a fault that sends this status and body.
func Answer(status int, mediaType, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Problem is a fault that sends problem details.
func Problem(status int, code, detail string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) { fail(w, status, code, detail) }
}

// Page is a fault that answers 200 with a web page, as a proxy does that knows
// nothing of an instance.
func Page() Fault {
	return Answer(200, "text/html", "<!doctype html><title>Welcome</title><h1>It works!</h1>")
}

// Redirect is a fault that points to another address.
func Redirect(location string) Fault {
	return func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, location, http.StatusPermanentRedirect)
	}
}

// Silent is a fault that never answers.
func Silent() Fault {
	return func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server see that the caller has left
		<-r.Context().Done()
	}
}

// Cut is a fault that ends the connection in the middle of an answer.
func Cut() Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"status":"healthy","access_token":"half-of-a-tok`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Pipe serves a handler in memory and returns the way to it. Any address leads
// there. close ends it.
func Pipe(h http.Handler) (dial func(ctx context.Context, network, address string) (net.Conn, error), closeServer func()) {
	l := &listener{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: h} //nolint:gosec // its callers are tests
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	return l.dial, func() {
		_ = server.Close()
		served.Wait()
	}
}

type listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept serves net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close serves net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr serves net.Listener.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
