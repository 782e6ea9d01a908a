package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// failure is an attempt that did not succeed.
type failure struct {
	status int           // of the answer; 0: there was none
	code   string        // the registry's own word, such as MANIFEST_UNKNOWN
	text   string        // what was found, for people
	after  time.Duration // when the registry wants to be asked again
	again  bool          // another attempt may succeed
	signIn bool          // it failed before the call itself was made
	err    error
}

func temporary(status int) bool {
	return slices.Contains([]int{
		http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}, status)
}

// failedCall is a call without an answer. The URL is left out of the text: a
// signed address of a redirect is a secret, and the caller knows what it asked.
func failedCall(err error) *failure {
	if terr, ok := errors.AsType[*transport.Error](err); ok { // a token that could not be renewed
		return failedSignIn(terr)
	}
	inner := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		inner = u.Err
	}
	text := "no answer: " + inner.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		text = "no answer in time"
	}
	return &failure{text: text, again: true, err: errors.Join(inner, release.ErrUncertain)}
}

func failedStatus(resp *http.Response) *failure {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // for the message only
	terr := transport.CheckError(&http.Response{StatusCode: resp.StatusCode, Body: io.NopCloser(strings.NewReader(string(body)))})
	f := &failure{
		status: resp.StatusCode, again: temporary(resp.StatusCode), after: retryAfter(resp.Header, time.Now()),
		text: fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)),
	}
	if e, ok := errors.AsType[*transport.Error](terr); ok && len(e.Errors) > 0 {
		f.code = string(e.Errors[0].Code)
		f.text += ": " + strings.TrimSpace(string(e.Errors[0].Code)+" "+e.Errors[0].Message)
	} else if text := strings.TrimSpace(string(body)); text != "" {
		f.text += ": " + text[:min(len(text), 300)]
	}
	if resp.StatusCode >= 500 {
		f.err = release.ErrUncertain
	}
	return f
}

// failedSignIn is a registry that could not be asked how to sign in, or one that
// gave no token.
func failedSignIn(err error) *failure {
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return &failure{text: e.Message, err: e, signIn: true}
	}
	f := &failure{signIn: true, err: err, again: true}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		f.status, f.again = e.StatusCode, temporary(e.StatusCode)
		f.text = fmt.Sprintf("%d %s while signing in", e.StatusCode, http.StatusText(e.StatusCode))
		f.err = nil // its text may quote what was sent
		return f
	}
	inner := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		inner = u.Err
	}
	f.text = "no answer while signing in: " + inner.Error()
	return f
}

// retryAfter reads seconds or a date, RFC 9110 section 10.2.3.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// explain turns the last failure into what a person reads.
func (c *caller) explain(r request, f *failure) error {
	if e, ok := errors.AsType[*problem.Error](f.err); ok {
		return e
	}
	host := c.repo.RegistryStr()
	found := fmt.Sprintf("%s %s: found %s", r.method, r.what, f.text)
	switch {
	case f.status == http.StatusNotFound && !f.signIn:
		return problem.Wrap(release.ErrNotFound, problem.NotFound, "expected "+r.what+" in the registry",
			"list what is there: crane ls "+c.repo.Name()+"; without a sign-in a private repository looks empty")
	case f.status == http.StatusUnauthorized:
		return problem.Wrap(f.err, problem.Unauthenticated, found, "sign in: docker login "+host+c.tokenHint())
	case f.status == http.StatusForbidden:
		right := "read"
		if r.method == http.MethodPut {
			right = "write"
		}
		hint := fmt.Sprintf("give the account the right to %s %s", right, c.repo.Name())
		if host == "ghcr.io" {
			hint = fmt.Sprintf("in the workflow: permissions: packages: %s; and in the package's settings, Manage Actions access: this repository with the role %s", right, right)
		}
		return problem.Wrap(f.err, problem.Forbidden, found, hint)
	case f.status == http.StatusTooManyRequests:
		e := problem.Wrap(f.err, problem.Inconclusive, found, "wait, then run the same command again: it continues where it ended")
		e.RetryAfter = f.after
		if f.after > 0 {
			e.Hint = fmt.Sprintf("run the same command again in %s: it continues where it ended", f.after.Round(time.Second))
		}
		return e.WithCode(string(problem.RateLimited))
	case f.again:
		e := problem.Wrap(f.err, problem.Inconclusive, fmt.Sprintf("%s, %d times", found, attempts),
			"run the same command again when "+host+" answers: it continues where it ended")
		e.RetryAfter = f.after
		return e.WithCode("registry_unavailable")
	default:
		return problem.Wrap(f.err, problem.Invalid, found, "see whether --registry and the digest are right: crane manifest "+c.repo.Name()+"@sha256:…")
	}
}

// ended is a call that its own context ended: a person's Ctrl-C or a deadline.
func (c *caller) ended(ctx context.Context, r request, f *failure) error {
	return problem.Wrap(errors.Join(ctx.Err(), f.err), problem.Inconclusive,
		fmt.Sprintf("%s %s was left before an answer came", r.method, r.what), "run the same command again: it continues where it ended")
}

func (c *caller) tokenHint() string {
	if c.repo.RegistryStr() == "ghcr.io" {
		return "; or set GITHUB_TOKEN"
	}
	return ""
}

func (c *caller) unreadableCredentials(err error) error {
	return problem.Wrap(err, problem.Unauthenticated, "expected readable credentials of docker or podman for "+c.repo.RegistryStr(),
		"docker login "+c.repo.RegistryStr())
}
