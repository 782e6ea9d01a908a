// Command faultd stands in front of a real instance and answers some calls
// wrongly, as a bad release would. It is the entry point of the bad images that
// the tests of deploys build: everything else about them is real.
//
// FAULT says what is wrong:
//
//	query   POST /api/query answers 500
//	stale   GET /api/catalog/tables goes on with its first answer, so data seems never to be refreshed
//
// Any command but serve is the instance's own.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "faultd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	agnes, err := exec.LookPath("agnes")
	if err != nil {
		return err
	}
	if len(args) == 0 || args[0] != "serve" {
		return syscall.Exec(agnes, append([]string{"agnes"}, args...), os.Environ()) //nolint:gosec // handing over is what this does
	}
	const inside = "127.0.0.1:8001"
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	cmd := exec.CommandContext(ctx, agnes, append(args, "--addr", inside)...) //nolint:gosec // as above
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	server := &http.Server{Addr: "0.0.0.0:8000", Handler: faulty(os.Getenv("FAULT"), inside), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.ListenAndServe() }() // a taken port shows in the health check
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func faulty(fault, inside string) http.Handler {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: inside})
	var first recorder
	var once sync.Once
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case fault == "query" && r.URL.Path == "/api/query":
			http.Error(w, `{"title":"Internal Server Error","status":500,"detail":"no query works in this build"}`, http.StatusInternalServerError)
		case fault == "stale" && r.URL.Path == "/api/catalog/tables":
			once.Do(func() { proxy.ServeHTTP(&first, r) })
			w.Header().Set("Content-Type", first.Header().Get("Content-Type"))
			w.WriteHeader(first.status)
			_, _ = io.Copy(w, bytes.NewReader(first.body.Bytes()))
		default:
			proxy.ServeHTTP(w, r)
		}
	})
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.body.Write(p)
}
