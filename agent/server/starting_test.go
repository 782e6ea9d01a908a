package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
)

func listen(t *testing.T) (ln net.Listener, url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln, "http://" + ln.Addr().String()
}

func fetch(t *testing.T, url string) (status int, header http.Header, body []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Error(err)
		return 0, nil, nil
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, body
}

func TestWhileAnInstanceOpensProbesAreAnsweredAndTheRestWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	log := slog.New(slog.DiscardHandler)
	ln, url := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	opened, served := make(chan struct{}), make(chan error, 1)
	go func() {
		served <- server.Serve(ctx, ln, log, func(context.Context) (*server.Server, error) {
			<-opened
			return server.New(server.Options{Instance: w.instance, Log: log}), nil
		})
	}()
	if status, _, body := fetch(t, url+"/livez"); status != http.StatusOK || string(body) != `{"status":"alive"}`+"\n" {
		t.Errorf("/livez = %d %s, want 200 as ever", status, body)
	}
	status, header, body := fetch(t, url+"/readyz")
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || status != http.StatusServiceUnavailable || p.Code != "starting" || p.Hint == "" ||
		header.Get("Retry-After") != "5" || header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("/readyz = %d %v %s, want the problem starting", status, header, body)
	}
	type answer struct {
		status int
		body   []byte
	}
	early := make(chan answer, 1)
	go func() {
		status, _, body := fetch(t, url+"/api/health")
		early <- answer{status, body}
	}()
	fetch(t, url+"/livez") // the early call is under way or will come after; both have to work
	select {
	case a := <-early:
		t.Errorf("a call before the instance is there = %d %s, want it to wait", a.status, a.body)
	default:
	}
	close(opened)
	a := <-early
	var h api.Health
	if err := json.Unmarshal(a.body, &h); err != nil || a.status != http.StatusOK || !h.SetupRequired || h.Phase != api.PhaseSetup {
		t.Errorf("the call that waited = %d %s, want the instance's answer", a.status, a.body)
	}
	if status, _, body := fetch(t, url+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz = %d %s, want 200", status, body)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v", err)
	}
}

func TestAnInstanceThatCannotOpenEndsItsServer(t *testing.T) {
	t.Parallel()
	ln, url := listen(t)
	cannot := errors.New("the schema is newer")
	err := server.Serve(t.Context(), ln, slog.New(slog.DiscardHandler), func(context.Context) (*server.Server, error) {
		if status, _, _ := fetch(t, url+"/livez"); status != http.StatusOK {
			t.Errorf("/livez = %d", status)
		}
		return nil, cannot
	})
	if !errors.Is(err, cannot) {
		t.Errorf("Serve() = %v, want why it could not open", err)
	}
	if resp, err := http.Get(url + "/livez"); err == nil {
		resp.Body.Close()
		t.Error("the port still answers")
	}
}
