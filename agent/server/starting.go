package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// How long a call that comes early waits for the instance, and when one that
// waited in vain may come again.
const (
	startPatience = 30 * time.Second
	startRetry    = 5 * time.Second
)

// Serve answers on ln from the first moment on, and runs the server that open
// returns until ctx ends. While open still runs (a migration may take minutes),
// /livez says that the process lives, /readyz that it is starting, and every
// other call waits. An error of open ends it.
func Serve(ctx context.Context, ln net.Listener, log *slog.Logger, open func(context.Context) (*Server, error)) error {
	front := &front{ready: make(chan struct{})}
	srv := &http.Server{
		Handler:           front,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	s, err := open(ctx)
	if err != nil {
		err = errors.Join(err, srv.Close())
		if stopped := <-served; !errors.Is(stopped, http.ErrServerClosed) {
			err = errors.Join(err, stopped)
		}
		return err
	}
	srv.RegisterOnShutdown(func() { close(s.closing) })
	front.handler = s.echo
	close(front.ready)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Info("Stopping: no new requests, running ones may finish.", "grace", s.opt.ShutdownGrace)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opt.ShutdownGrace)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		log.Warn("Some requests did not finish in time and were cut off.", "error", err)
		return srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// front stands before a server that is not there yet.
type front struct {
	ready   chan struct{} // closed once handler is set
	handler http.Handler
}

// ServeHTTP serves http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-f.ready:
		f.handler.ServeHTTP(w, r)
		return
	default:
	}
	patience := startPatience
	switch r.URL.Path {
	case "/livez":
		send(w, http.StatusOK, "application/json", map[string]string{"status": "alive"})
		return
	case "/readyz":
		patience = 0
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-f.ready:
		f.handler.ServeHTTP(w, r)
	case <-r.Context().Done():
	case <-timer.C:
		p := toWire(problem.New(problem.Unavailable, "The instance is starting: it opens its data, and migrates it where a new version runs.",
			"Ask GET /readyz until it answers 200, then call again. The instance's log says what it does.").WithCode("starting"))
		w.Header().Set("Retry-After", strconv.Itoa(int(startRetry/time.Second)))
		send(w, p.Status, problemType, p)
	}
}

func send(w http.ResponseWriter, status int, mediaType string, body any) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller may be gone
}
