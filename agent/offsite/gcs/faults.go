package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/oauth2"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (t *Target) missing(err error) error {
	return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The bucket gs://%s does not exist", t.bucket),
		fmt.Sprintf("Make it (gcloud storage buckets create gs://%s), or mend the name in AGNES_BACKUP_TARGET.", t.bucket))
}

func (t *Target) taken(name string) error {
	return offsite.Fault(offsite.CodeExists, nil, fmt.Sprintf("%s is at %s already.", name, t.opt.URL), "Nothing has to be done: a backup appears there whole or not at all.")
}

func (t *Target) unreachable(err error) *problem.Error {
	return offsite.Fault(offsite.CodeUnreachable, err, fmt.Sprintf("Google Cloud Storage at %s does not answer as it should", t.endpoint),
		fmt.Sprintf("Try from this host: curl -sI %s", t.endpoint))
}

func (t *Target) refused(err error) error {
	return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("Google refuses this host's account for gs://%s", t.bucket),
		fmt.Sprintf("Give it the role: gcloud storage buckets add-iam-policy-binding gs://%s --member serviceAccount:ACCOUNT --role roles/storage.objectUser", t.bucket))
}

// fault says what an error without an answer means.
func (t *Target) fault(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return t.unreachable(err)
}

// tokenFault says why there is no token.
func (t *Target) tokenFault(err error) error {
	if r, ok := errors.AsType[*oauth2.RetrieveError](err); ok && r.Response != nil && r.Response.StatusCode < 500 && r.Response.StatusCode != http.StatusTooManyRequests {
		return offsite.Fault(offsite.CodeCredentials, fmt.Errorf("status %d, %s", r.Response.StatusCode, r.ErrorCode), "Google does not accept the service account's key",
			"Make a new key (gcloud iam service-accounts keys create FILE --iam-account ACCOUNT), and check this host's clock; GOOGLE_APPLICATION_CREDENTIALS names the file.")
	}
	return t.fault(err)
}

// answer says what an unexpected answer means, by
// docs.cloud.google.com/storage/docs/json_api/v1/status-codes.
func (t *Target) answer(resp *http.Response) error {
	var body struct {
		Error struct {
			Message string `json:"message"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	_ = json.Unmarshal(data, &body) // without a body the status has to do
	reason := ""
	if len(body.Error.Errors) > 0 {
		reason = body.Error.Errors[0].Reason
	}
	err := fmt.Errorf("status %d, reason %q: %s", resp.StatusCode, reason, body.Error.Message)
	switch status := resp.StatusCode; {
	case reason == "quotaExceeded" || status == http.StatusInsufficientStorage:
		return offsite.Fault(offsite.CodeNoSpace, err, fmt.Sprintf("The quota of gs://%s is used up", t.bucket), "Raise it, or keep fewer backups: AGNES_BACKUP_OFFSITE_KEEP")
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500, reason == "rateLimitExceeded", reason == "userRateLimitExceeded":
		p := t.unreachable(err)
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			p.RetryAfter = time.Duration(s) * time.Second
		}
		return p
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return t.refused(err)
	case status == http.StatusPreconditionFailed:
		return offsite.Fault(offsite.CodeExists, err, "The name is taken", "Nothing has to be done.")
	case status == http.StatusGone:
		return offsite.Fault(offsite.CodeNoObject, err, "It is gone", "Begin again.")
	case status == http.StatusNotFound:
		return t.notFound(err, body.Error.Message)
	}
	return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("Google Cloud Storage refuses what a backup needs of gs://%s", t.bucket), "Check the bucket's name and its settings.")
}

// notFound tells a missing bucket from a missing object by Google's words, the
// only place that says.
func (t *Target) notFound(err error, message string) error {
	if message == "The specified bucket does not exist." {
		return t.missing(err)
	}
	return offsite.Fault(offsite.CodeNoObject, err, fmt.Sprintf("There is no such backup at %s", t.opt.URL), "See what is there: agnes backup list --target '"+t.opt.URL.String()+"'")
}
