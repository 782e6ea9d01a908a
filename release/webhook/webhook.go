// Package webhook sends short messages to a chat room or an automation: a POST
// of {"text": "…"}, which Slack and those that copied it show as it is.
//
// With a secret the body is signed: X-Agnes-Signature-256 is "sha256=" and the
// HMAC-SHA256 of the body in hexadecimal, so a receiver can tell that it comes
// from here. X-Agnes-Event names the incident; a message that is sent again,
// because a run was repeated, has the same one.
package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Headers of a message.
const (
	SignatureHeader = "X-Agnes-Signature-256"
	EventHeader     = "X-Agnes-Event"
)

const attempts = 3

// Options are where messages go and how.
type Options struct {
	URL    redact.Secret // https, or http on this machine; the path is often a credential
	Secret redact.Secret // signs the body; empty: not signed
	Client *http.Client  // nil: one with a time-out of 15 s
	Wait   func(context.Context, time.Duration) error
}

// Hook sends messages to one address.
type Hook struct {
	o    Options
	host string
}

// New checks the address.
func New(o Options) (*Hook, error) {
	u, err := url.Parse(o.URL.Reveal())
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !local(u.Hostname())) {
		return nil, problem.New(problem.Usage, "expected a webhook at https://…, found another address; it is not shown, because such addresses hold credentials",
			"release-bot … --webhook-url https://hooks.slack.com/services/…")
	}
	o.Client = cmp.Or(o.Client, &http.Client{Timeout: 15 * time.Second})
	if o.Wait == nil {
		o.Wait = pause.For
	}
	return &Hook{o: o, host: u.Host}, nil
}

func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Send delivers a notice at least once: an answer that got lost is asked for
// again. It fits release.Publisher's Notify.
func (h *Hook) Send(ctx context.Context, n release.Notice) error {
	body, err := json.Marshal(map[string]string{"text": n.Text})
	if err != nil {
		return fmt.Errorf("encode the message: %w", err)
	}
	var last error
	for try := range attempts {
		again, err := h.once(ctx, n.Event, body)
		if err == nil {
			return nil
		}
		last = err
		if !again || ctx.Err() != nil || try == attempts-1 || h.o.Wait(ctx, time.Second<<(2*try)) != nil {
			break
		}
	}
	return problem.Wrap(last, problem.Inconclusive, "expected "+h.host+" to take the message", "run the same command again, or tell people by hand")
}

func (h *Hook) once(ctx context.Context, event string, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.o.URL.Reveal(), bytes.NewReader(body))
	if err != nil {
		return false, errors.New("the address cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(EventHeader, event)
	if h.o.Secret != "" {
		req.Header.Set(SignatureHeader, Sign(h.o.Secret, body))
	}
	resp, err := h.o.Client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the address
		}
		return true, err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // for the message only
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return false, nil
	}
	return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500, fmt.Errorf("it answered %d: %s", resp.StatusCode, bytes.TrimSpace(text))
}

// Sign returns the value of SignatureHeader for a body.
func Sign(secret redact.Secret, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}
