package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	gh "github.com/google/go-github/v62/github"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// fail makes the error that people see of what a call returned. what completes
// "expected GitHub to …"; right is what the call needs.
//
// A write without a certain outcome wraps release.ErrUncertain: the reply was lost,
// the host answered 5xx, or 409, which it also gives for a write that it carries
// out later. No error here wraps release.ErrNotFound: whether 404 says so, the
// caller knows.
func (c *Client) fail(err error, what string, right Right) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, context.Canceled)
	}
	if p := (*problem.Error)(nil); errors.As(err, &p) {
		return p // a limit, without the URL that net/http puts before it
	}
	answer := (*gh.ErrorResponse)(nil)
	if !errors.As(err, &answer) || answer.Response == nil {
		return c.failLost(err, what)
	}
	status, method := answer.Response.StatusCode, answer.Response.Request.Method
	write := method != http.MethodGet && method != http.MethodHead
	message := fmt.Sprintf("expected GitHub to %s, found %d (%s %s): %s", what, status, method, answer.Response.Request.URL.Redacted(), messages(answer))
	switch {
	case status == http.StatusUnauthorized:
		return problem.New(problem.Unauthenticated, message, "set GITHUB_TOKEN to a token that is still valid")
	case status == http.StatusForbidden:
		return problem.New(problem.Forbidden, message, right.hint(c.Repo()))
	case status == http.StatusNotFound:
		return problem.New(problem.NotFound, message, "GitHub also answers 404 where a right is missing. "+right.hint(c.Repo()))
	case status >= 300 && status < 400:
		return problem.New(problem.NotFound, message+"; it moved to "+answer.Response.Header.Get("Location"),
			"pass the repository's present name: release-bot … --repo OWNER/NAME")
	case ruled(answer):
		return problem.New(problem.Refused, message,
			fmt.Sprintf("allow this bot in the rules of %s: Settings, Rules, Rulesets, Bypass list", c.Repo()))
	case empty(answer):
		return problem.New(problem.Unprocessable, message, "push a commit first: git push origin HEAD:main")
	case write && (status == http.StatusConflict || status >= 500 || status == http.StatusUnprocessableEntity && strings.Contains(messages(answer), "update failed")):
		return problem.Wrap(release.ErrUncertain, problem.Unavailable, message, "run the command again; it reads before it writes")
	case status >= 500:
		return problem.New(problem.Unavailable, message, "run the command again; see https://www.githubstatus.com")
	default:
		return problem.New(problem.FromStatus(status), message, "read what GitHub says there; the request was understood and not accepted")
	}
}

// failLost is fail for a call without an answer.
func (c *Client) failLost(err error, what string) error {
	lost := (*lostError)(nil)
	if !errors.As(err, &lost) {
		return problem.Wrap(err, problem.Unavailable, "expected GitHub to "+what+" and to answer in JSON", "check --api-url: it must be the API's address")
	}
	message := fmt.Sprintf("expected GitHub to %s, found no answer from %s: %v", what, c.api.Host, lost.err)
	if lost.unsent || !lost.write {
		return problem.New(problem.Unavailable, message, "check the network and --api-url, then run the command again")
	}
	return problem.Wrap(release.ErrUncertain, problem.Unavailable, message, "run the command again; it reads before it writes")
}

// says reports whether err is an answer of this status, and what its body says.
func says(err error, status int) (string, bool) {
	answer := (*gh.ErrorResponse)(nil)
	if errors.As(err, &answer) && answer.Response != nil && answer.Response.StatusCode == status {
		return messages(answer), true
	}
	return "", false
}

// ruled: a ruleset or a protection of tags stands against it.
func ruled(e *gh.ErrorResponse) bool {
	text := strings.ToLower(messages(e))
	return strings.Contains(text, "rule violation") || strings.Contains(text, "protected tag") || strings.Contains(text, "creations being restricted")
}

// empty: a repository without a commit answers 409 to everything about git.
func empty(e *gh.ErrorResponse) bool {
	return e.Response.StatusCode == http.StatusConflict && strings.Contains(e.Message, "Repository is empty")
}

// isEmpty is empty for an error.
func isEmpty(err error) bool {
	answer := (*gh.ErrorResponse)(nil)
	return errors.As(err, &answer) && answer.Response != nil && empty(answer)
}

// absent is the error of what GitHub says it does not have.
func absent(message, hint string) error {
	return problem.Wrap(release.ErrNotFound, problem.NotFound, message, hint)
}
