package github

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	attempts  = 4                // of what can be repeated without harm
	bodyLimit = 64 << 20         // bytes of one answer
	blindWait = time.Minute      // for a limit that names no time, doubled each time
	backoff   = time.Second / 2  // before the second attempt, doubled each time
	maxPause  = 30 * time.Second // between attempts at a server in trouble
)

// transport is one call's manners: the token, the limits, the repetitions.
//
// go-github keeps count of limits too, but takes 429 for a plain failure, knows
// no other clock than the real one and does not wait; so the headers that it
// counts by end here.
type transport struct {
	base             http.RoundTripper
	host             string // which the token is for
	token            redact.Secret
	log              *slog.Logger
	now              func() time.Time
	sleep            func(context.Context, time.Duration) error
	maxWait, timeout time.Duration
	jitter           func() float64
}

// lostError is a request whose answer never came. A write may have been carried
// out, unless it was never sent.
type lostError struct {
	write, unsent bool
	err           error
}

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// RoundTrip makes the call, as often as that is harmless.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	var waited time.Duration
	limits := 0
	for attempt := 1; ; {
		resp, body, err := t.once(req)
		if err == nil {
			if wait, limited := t.limit(resp, body, limits); limited {
				limits++
				if waited += wait; waited > t.maxWait {
					return nil, limitError(req, resp, body, wait)
				}
				t.log.LogAttrs(ctx, slog.LevelWarn, "GitHub asks to wait", slog.Duration("wait", wait), slog.Int("status", resp.StatusCode), slog.String("path", req.URL.Path))
				if err := t.sleep(ctx, wait); err != nil {
					return nil, err
				}
				continue // a limited call was not carried out, whatever its method
			}
		}
		again := repeatable(req)
		if lost := (*lostError)(nil); errors.As(err, &lost) && lost.unsent {
			again = true
		}
		trouble := err != nil || resp.StatusCode >= 500
		if !trouble || !again || attempt >= attempts || ctx.Err() != nil {
			if err != nil {
				return nil, err
			}
			for _, h := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"} {
				resp.Header.Del(h)
			}
			return resp, nil
		}
		pause := min(backoff<<(attempt-1), maxPause)
		pause += time.Duration(t.jitter() * float64(pause))
		if resp != nil {
			if asked, ok := retryAfter(resp); ok {
				pause = max(pause, min(asked, maxPause))
			}
		}
		t.log.LogAttrs(ctx, slog.LevelInfo, "repeat a call to GitHub", slog.Int("attempt", attempt), slog.String("method", req.Method), slog.String("path", req.URL.Path))
		if err := t.sleep(ctx, pause); err != nil {
			return nil, err
		}
		attempt++
	}
}

// once makes the request and reads the whole answer, so that one cut in the
// middle counts as lost and the time limit covers it.
func (t *transport) once(req *http.Request) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(req.Context(), t.timeout)
	defer cancel()
	r := req.Clone(ctx)
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, nil, err
		}
		r.Body = body
	}
	if t.token != "" && r.URL.Host == t.host {
		r.Header.Set("Authorization", "Bearer "+t.token.Reveal())
	}
	write := req.Method != http.MethodGet && req.Method != http.MethodHead
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		if parent := req.Context().Err(); parent != nil {
			// The caller gave up; whether the host heard of it is unknown.
			return nil, nil, &lostError{write: write, err: parent}
		}
		dial := (*net.OpError)(nil)
		return nil, nil, &lostError{write: write, unsent: errors.As(err, &dial) && dial.Op == "dial", err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit+1))
	if err == nil && len(body) > bodyLimit {
		err = fmt.Errorf("the answer is longer than %d bytes", bodyLimit)
	}
	if err != nil {
		return nil, nil, &lostError{write: write, err: err}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, body, nil
}

// repeatable reports whether a second call does no harm after a first whose
// outcome is unknown. A tag object's id is made of its content, so writing it
// twice writes it once.
func repeatable(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPatch:
		return true
	case http.MethodPost:
		return strings.HasSuffix(req.URL.Path, "/git/tags")
	default:
		return false
	}
}

// limit reports whether an answer says "too much", and how long to wait.
//
// Both kinds of limit come as 403 or 429. Which header names the time, and what
// to do when none does, is written at
// docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api,
// "Exceeding the rate limit".
func (t *transport) limit(resp *http.Response, body []byte, before int) (time.Duration, bool) {
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
	case resp.StatusCode != http.StatusForbidden:
		return 0, false
	case resp.Header.Get("X-RateLimit-Remaining") == "0", resp.Header.Get("Retry-After") != "":
	default:
		e := readError(body)
		text := strings.ToLower(e.Message + " " + e.Docs)
		if !strings.Contains(text, "rate limit") && !strings.Contains(text, "rate-limit") && !strings.Contains(text, "abuse") {
			return 0, false
		}
	}
	if wait, ok := retryAfter(resp); ok {
		return max(wait, time.Second), true
	}
	if resp.Header.Get("X-RateLimit-Remaining") == "0" {
		if at, err := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64); err == nil {
			// A second more: the two clocks differ.
			return max(time.Unix(at, 0).Sub(t.now())+time.Second, time.Second), true
		}
	}
	return blindWait << min(before, 4), true
}

// retryAfter reads the header of that name, which GitHub writes in seconds.
func retryAfter(resp *http.Response) (time.Duration, bool) {
	s, err := strconv.ParseInt(resp.Header.Get("Retry-After"), 10, 32)
	return time.Duration(s) * time.Second, err == nil && s >= 0
}

// limitError is what a call says that would have to wait for too long.
func limitError(req *http.Request, resp *http.Response, body []byte, wait time.Duration) error {
	e := problem.New(problem.RateLimited,
		fmt.Sprintf("expected GitHub to answer %s %s, found its rate limit (%d): %s", req.Method, req.URL.Redacted(), resp.StatusCode, readError(body).Message),
		fmt.Sprintf("run the command again in %s; it goes on where it stopped", wait.Round(time.Second)))
	e.RetryAfter = wait
	return e
}
