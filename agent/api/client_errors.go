package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	maxRetries    = 2
	maxRetryAfter = 5 * time.Second // a longer wish is the caller's to grant
)

// retryDelay decides whether a GET is tried again, and when.
func retryDelay(k call, resp *http.Response, err error, attempt int) (time.Duration, bool) {
	if k.method != http.MethodGet || attempt >= maxRetries {
		return 0, false
	}
	if err != nil {
		return 200 * time.Millisecond << attempt, connectionLost(err)
	}
	if resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	seconds, parseErr := strconv.Atoi(resp.Header.Get("Retry-After"))
	delay := time.Duration(seconds) * time.Second
	return delay, parseErr == nil && seconds >= 0 && delay <= maxRetryAfter
}

func connectionLost(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// unreachable explains why no answer came. The *url.Error around err is taken
// off, since it holds the whole URL.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	at := c.base.String()
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return problem.Wrap(context.Canceled, problem.Unavailable, fmt.Sprintf("The call to %s was cut short.", at), "")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return problem.Wrap(context.DeadlineExceeded, problem.Timeout, fmt.Sprintf("%s did not answer in time.", at),
			"See whether the instance is busy: curl "+at+"/api/health")
	case errors.Is(err, syscall.ECONNREFUSED):
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Nothing listens at %s.", at),
			"Start the instance, or name its address with --url or AGNES_URL.")
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The name %s cannot be resolved.", dns.Name),
			"Check the address and this machine's network.")
	}
	if hint := tlsHint(err); hint != "" {
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("No trusted connection to %s.", at), hint)
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("%s cannot be reached.", at),
		"Try it by hand: curl "+at+"/api/health")
}

func tlsHint(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "The port answers plain HTTP; use an address that begins with http://."
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
			return "The certificate's authority is not known here; add it to the system's roots, or name its file in SSL_CERT_FILE."
		}
		return "The certificate does not fit the address; use the name that it was issued for."
	}
	return ""
}

// broken explains an answer that ended or garbled in the middle.
func (c *Client) broken(ctx context.Context, k call, err error) error {
	if ctx.Err() != nil || connectionLost(err) {
		return c.unreachable(ctx, err)
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The answer of %s is not the JSON that was expected.", c.where(k)),
		"Compare the versions: agnesctl version, and curl "+c.base.String()+"/api/version")
}

// failure turns a response of status 300 or more into an error.
func (c *Client) failure(resp *http.Response, k call) error {
	if resp.StatusCode < 400 {
		return c.redirected(resp)
	}
	body := c.head(resp)
	var p Problem
	if !isJSON(resp) || json.Unmarshal(body, &p) != nil || p.Status == 0 && p.Detail == "" && p.Title == "" {
		return c.notAgnes(resp, body)
	}
	e := &problem.Error{Kind: problem.FromStatus(resp.StatusCode), Code: p.Code, Message: p.Detail, Hint: p.Hint}
	if e.Message == "" {
		e.Message = fmt.Sprintf("%s answered %d %s.", c.where(k), resp.StatusCode, p.Title)
	}
	for _, item := range p.Errors {
		e.Message += "\n" + strings.TrimPrefix(item.Location+": "+item.Message, ": ")
	}
	if after := resp.Header.Get("Retry-After"); e.Hint == "" && after != "" {
		e.Hint = "Try again in " + after + " seconds."
	}
	return e
}

func (c *Client) redirected(resp *http.Response) error {
	target := "another address"
	if u, err := resp.Location(); err == nil {
		target = bare(u)
	}
	return problem.New(problem.Unavailable,
		fmt.Sprintf("%s answered %d and points to %s; the client does not follow, so that no token travels on.", c.base, resp.StatusCode, target),
		"If that is the instance, use its address: --url or AGNES_URL.").WithCode("redirected")
}

var tags = regexp.MustCompile(`(?s)<(script|style).*?</(script|style)>|<[^>]*>`)

// notAgnes describes an answer that no instance gives, such as a proxy's page.
func (c *Client) notAgnes(resp *http.Response, body []byte) error {
	words := strings.Fields(tags.ReplaceAllString(string(body), " "))
	text := strings.Join(words[:min(len(words), 12)], " ")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	if len(text) > 120 {
		text = strings.ToValidUTF8(text[:120], "") + "…"
	}
	kind := problem.FromStatus(resp.StatusCode)
	if resp.StatusCode < 400 || resp.StatusCode >= 500 {
		kind = problem.Unavailable
	}
	media := resp.Header.Get("Content-Type")
	if media == "" {
		media = "an unknown type"
	}
	return problem.New(kind,
		fmt.Sprintf("Expected an Agnes instance at %s, found an answer %d of %s: %q.", c.base, resp.StatusCode, media, text),
		"Check the address, and any proxy before it: curl -i "+c.base.String()+"/api/health").WithCode("not_agnes")
}

// scrub takes the call's secrets out of an error: a server could send them back
// in its message.
func (c *Client) scrub(err error, secrets []redact.Secret) error {
	e, ok := errors.AsType[*problem.Error](err)
	if !ok {
		return err
	}
	clean := *e
	for _, s := range append([]redact.Secret{c.token}, secrets...) {
		if len(s) < 4 {
			continue
		}
		clean.Message = strings.ReplaceAll(clean.Message, s.Reveal(), redact.Placeholder)
		clean.Hint = strings.ReplaceAll(clean.Hint, s.Reveal(), redact.Placeholder)
		clean.Code = strings.ReplaceAll(clean.Code, s.Reveal(), redact.Placeholder)
	}
	return &clean
}
