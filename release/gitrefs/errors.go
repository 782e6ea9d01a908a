package gitrefs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// explain says what a failed conversation means and what mends it. No error
// here is a release.ErrNotFound: that a repository is not there, or not for us,
// says nothing about its refs.
func (r *Refs) explain(ctx context.Context, err error) error {
	err = reveal(err)
	if already, ok := errors.AsType[*problem.Error](err); ok {
		return already
	}
	cause := r.scrub(err)
	where := r.at.shown
	host := r.at.endpoint.Host
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired), strings.Contains(err.Error(), "unable to authenticate"):
		return problem.Wrap(cause, problem.Unauthenticated, "expected credentials that "+where+" accepts", r.loginHint())
	case errors.Is(err, transport.ErrAuthorizationFailed):
		return problem.Wrap(cause, problem.Forbidden, "expected the right to read and to push tags at "+where, r.loginHint())
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return problem.Wrap(cause, problem.NotFound, fmt.Sprintf("expected a git repository at %s, found none, or none that these credentials may see", where),
			"git ls-remote "+where)
	case errors.Is(err, exec.ErrNotFound):
		return problem.Wrap(cause, problem.Unprocessable, "expected the program git, which serves repositories in folders; found none on PATH", "apt-get install git")
	case strings.Contains(err.Error(), "dubious ownership"):
		return problem.Wrap(cause, problem.Forbidden, "expected a repository of this user at "+where, "git config --global --add safe.directory "+where)
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return problem.Wrap(fmt.Errorf("%w (%w)", ctx.Err(), cause), problem.Unavailable, "expected an answer of "+where+" in time", "git ls-remote "+where)
		}
		return fmt.Errorf("talk to %s: %w", where, ctx.Err())
	}
	if key, ok := errors.AsType[*knownhosts.KeyError](err); ok {
		hint := (&agentAuth{endpoint: r.at.endpoint}).hostHint()
		if len(key.Want) == 0 {
			return problem.Wrap(cause, problem.Unauthenticated, "expected a known host, found "+host+" in no known_hosts file", hint)
		}
		return problem.Wrap(cause, problem.Unauthenticated,
			"expected the host key of "+host+" that known_hosts has, found another: somebody may be in between, or the host has a new key", hint)
	}
	if answer, ok := errors.AsType[*http.Err](err); ok && answer.StatusCode() == 429 {
		p := problem.Wrap(cause, problem.RateLimited, where+" asks to slow down", "repeat the command later")
		if s, err := strconv.Atoi(answer.Response.Header.Get("Retry-After")); err == nil {
			p.RetryAfter = time.Duration(s) * time.Second
		}
		return p
	}
	return problem.Wrap(cause, problem.Unavailable, "expected an answer of the git repository "+where, "git ls-remote "+where)
}

// reveal unpacks the wrapper that hides its cause from errors.Is.
func reveal(err error) error {
	if hidden, ok := errors.AsType[*plumbing.UnexpectedError](err); ok {
		return hidden.Err
	}
	return err
}

// denied reports whether a server refused before it did anything.
func denied(err error) bool {
	err = reveal(err)
	if answer, ok := errors.AsType[*http.Err](err); ok && answer.StatusCode() == 429 {
		return true
	}
	return errors.Is(err, transport.ErrAuthenticationRequired) || errors.Is(err, transport.ErrAuthorizationFailed) ||
		errors.Is(err, transport.ErrRepositoryNotFound)
}

func (r *Refs) uncertain(ctx context.Context, err error) error {
	return problem.Wrap(errors.Join(release.ErrUncertain, r.explain(ctx, err)), problem.Unavailable,
		"expected "+r.at.shown+" to say whether it took the push, found the connection's end", "repeat the command: it finds out what was done")
}

// refusal reads a report's statuses, which are free text.
func (r *Refs) refusal(report *packp.ReportStatus, said, commit string, refs []string) error {
	status := report.UnpackStatus
	for _, c := range report.CommandStatuses {
		// Of an atomic push one ref has the reason, the others only "atomic push failure".
		if c.Error() != nil && (status == "ok" || strings.HasPrefix(status, "atomic")) {
			status = c.Status
		}
	}
	cause := r.scrub(errors.New(strings.TrimPrefix(strings.Join([]string{status, said}, ": "), ": ")))
	all := strings.ToLower(status + " " + said)
	has := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(all, t) {
				return true
			}
		}
		return false
	}
	names := strings.Join(refs, " and ")
	switch {
	case has("missing necessary objects", "nonexistent object", "did not receive expected object", "missing object", "bad object"):
		return problem.Wrap(errors.Join(release.ErrNotFound, cause), problem.NotFound,
			fmt.Sprintf("expected commit %s at %s, found it missing there", commit, r.at.shown),
			fmt.Sprintf("push the commit first: git push %s %s:refs/heads/BRANCH", r.at.shown, commit))
	case has("hook declined", "protected", "deny", "denied", "not allowed", "prohibited", "permission", "read-only", "unable to create temporary"):
		return problem.Wrap(cause, problem.Forbidden,
			fmt.Sprintf("expected the right to create %s at %s; the server says: %s", names, r.at.shown, cause),
			"let this account create refs/tags/* and refs/agnes/* there: see the host's rules for tags and its hooks")
	case has("failed to update ref", "cannot lock ref", "unable to lock", "atomic transaction failed", "transaction failed", "failed to lock", "unable to create"):
		return problem.Wrap(cause, problem.Unavailable,
			fmt.Sprintf("expected to create %s at %s, found another writer at work", names, r.at.shown), "repeat the command")
	default:
		return problem.Wrap(cause, problem.Refused,
			fmt.Sprintf("expected %s to create %s; it says: %s", r.at.shown, names, cause),
			fmt.Sprintf("try it by hand: git push %s %s:refs/tags/probe", r.at.shown, commit))
	}
}

// loginHint depends on how one logs in there.
func (r *Refs) loginHint() string {
	switch r.at.endpoint.Protocol {
	case "ssh":
		return "ssh-add a key that the host knows, then try: ssh -T " + r.at.endpoint.User + "@" + r.at.endpoint.Host
	case "http", "https":
		return "set GITHUB_TOKEN to a token with contents: write for github.com; for another host put it into the location: https://USER:TOKEN@" +
			r.at.endpoint.Host + r.at.endpoint.Path
	default:
		return "git ls-remote " + r.at.shown
	}
}

// scrub keeps credentials out of an error's text; its identity stays.
func (r *Refs) scrub(err error) error {
	text := err.Error()
	for _, secret := range r.at.secrets() {
		text = strings.ReplaceAll(text, secret, redact.Placeholder)
	}
	if text == err.Error() {
		return err
	}
	return &scrubbed{text: text, err: err}
}

type scrubbed struct {
	text string
	err  error
}

// Error is the text without secrets.
func (e *scrubbed) Error() string { return e.text }

// Unwrap serves errors.Is.
func (e *scrubbed) Unwrap() error { return e.err }
