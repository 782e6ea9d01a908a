package webhook_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/webhook"
)

func TestSendIsSignedAndRepeated(t *testing.T) {
	t.Parallel()
	var calls int
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if calls == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(r.Body)
		if got, want := r.Header.Get(webhook.SignatureHeader), webhook.Sign("s3cret", body); got != want {
			t.Errorf("signature %q, want %q", got, want)
		}
		if r.Header.Get(webhook.EventHeader) != "rollback/2026.04.3" {
			t.Errorf("event %q", r.Header.Get(webhook.EventHeader))
		}
		var got map[string]string
		if err := json.Unmarshal(body, &got); err != nil || len(got) != 1 || got["text"] != "it <failed> & more" {
			t.Errorf("body %s, %v", body, err)
		}
	}))
	t.Cleanup(web.Close)
	h, err := webhook.New(webhook.Options{URL: redact.Secret(web.URL + "/services/T0/token"), Secret: "s3cret", Wait: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Send(t.Context(), release.Notice{Event: "rollback/2026.04.3", Text: "it <failed> & more"}); err != nil || calls != 2 {
		t.Errorf("%v after %d calls, want none after 2", err, calls)
	}
}

func TestFailuresDoNotShowTheAddress(t *testing.T) {
	t.Parallel()
	web := httptest.NewServer(http.NotFoundHandler())
	address := redact.Secret(web.URL + "/services/T0/token")
	h, err := webhook.New(webhook.Options{URL: address, Wait: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	refused := h.Send(t.Context(), release.Notice{})
	web.Close()
	cut := h.Send(t.Context(), release.Notice{})
	_, plain := webhook.New(webhook.Options{URL: "http://example.com/services/T0/token"})
	for name, err := range map[string]error{"refused": refused, "cut": cut, "plain": plain} {
		if err == nil || strings.Contains(err.Error(), "token") || strings.Contains(problem.As(err).Hint, "T0") {
			t.Errorf("%s: %v, want an error without the path", name, err)
		}
	}
}

// The value was computed apart: printf '%s' '{"text":"a"}' | openssl dgst -sha256 -hmac key.
func TestSignIsHMACSHA256OfTheBody(t *testing.T) {
	t.Parallel()
	if got := webhook.Sign("key", []byte(`{"text":"a"}`)); got != "sha256=1142f16b037f4dae2acf275efb31a7976b987653a89166b56d8ec00b45bc37af" {
		t.Error(got)
	}
}
