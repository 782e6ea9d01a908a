package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	connectTimeout = 5 * time.Second
	callTimeout    = 60 * time.Second // of calls that do no long work
	workTimeout    = 10 * time.Minute // of calls that read a source
	maxAnswer      = 64 << 20         // bytes of a JSON answer
	maxProblem     = 64 << 10         // bytes of an error's body
)

// Client calls one instance. It is safe for concurrent use.
//
// Every error is a problem.Error: the instance's own, or one that says how the
// instance could not be reached. None holds a secret that the client was given.
type Client struct {
	base  *url.URL
	http  *http.Client
	token redact.Secret
	agent string
	log   *slog.Logger

	maxAnswer int64
	pause     func(ctx context.Context, d time.Duration) error
	pollEvery time.Duration
	idleAfter time.Duration // silence after which an event stream is given up
}

// Option changes a new Client.
type Option func(*Client)

// WithToken sends an access token with every call.
func WithToken(token redact.Secret) Option { return func(c *Client) { c.token = token } }

// WithUserAgent names the calling program.
func WithUserAgent(agent string) Option { return func(c *Client) { c.agent = agent } }

// WithLogger logs each call at debug level: method, path, status, duration.
func WithLogger(log *slog.Logger) Option { return func(c *Client) { c.log = log } }

// WithTLS sets the roots or certificates of TLS.
func WithTLS(config *tls.Config) Option {
	return func(c *Client) {
		c.http.Transport.(*http.Transport).TLSClientConfig = config
	}
}

// WithDial makes connections in another way, such as through a tunnel to the
// host that the instance runs on. No proxy is used then.
func WithDial(dial func(ctx context.Context, network, address string) (net.Conn, error)) Option {
	return func(c *Client) {
		t := c.http.Transport.(*http.Transport)
		t.DialContext, t.Proxy = dial, nil
	}
}

// NewClient returns a client for the instance at an address such as
// https://data.example.com or http://127.0.0.1:8000/path.
func NewClient(baseURL string, opts ...Option) (*Client, error) {
	base, err := ParseURL(baseURL)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}).DialContext
	transport.TLSHandshakeTimeout = 2 * connectTimeout
	transport.MaxIdleConns = 8
	c := &Client{
		base: base,
		// A redirect would carry the token or a password on; it is reported instead.
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		agent:     "agnes-client",
		log:       slog.New(slog.DiscardHandler),
		maxAnswer: maxAnswer,
		pause:     pause.For,
		pollEvery: time.Second,
		idleAfter: time.Minute,
	}
	for _, o := range opts {
		o(c)
	}
	return c, nil
}

// ParseURL checks an instance's address and returns its normal form: lower-case
// host, no default port, no trailing slash. It may not hold credentials, which
// would end up in logs.
func ParseURL(raw string) (*url.URL, error) {
	const hint = "Give the instance's address as http://127.0.0.1:8000 or https://data.example.com."
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case err != nil:
		// url.Parse quotes its input, which may hold a password.
		return nil, problem.New(problem.Usage, "The instance's address is not a URL.", hint)
	case u.User != nil:
		return nil, problem.New(problem.Usage, "The instance's address holds a user or password.", hint+" Sign in with a token.")
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, problem.New(problem.Usage, fmt.Sprintf("Expected an http or https address of an instance, found %q.", bare(u)), hint)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, problem.New(problem.Usage, fmt.Sprintf("The instance's address %s goes on with a query or fragment.", bare(u)), hint)
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":80")
	} else {
		host = strings.TrimSuffix(host, ":443")
	}
	return &url.URL{Scheme: u.Scheme, Host: host, Path: strings.TrimRight(u.Path, "/")}, nil
}

// URL returns the instance's address in its normal form.
func (c *Client) URL() string { return c.base.String() }

// bare formats a URL without credentials, query and fragment.
func bare(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// call describes one request.
type call struct {
	method  string
	path    string // may hold {id}
	id      string // one segment of the path, in place of {id}
	query   url.Values
	body    any // a request struct, encoded by encodeRequest
	header  http.Header
	secrets []redact.Secret // further ones than the body's
	timeout time.Duration   // 0: the context's alone
}

// target returns the call's URL. An id is escaped; one that would change the
// path's meaning is refused.
func (c *Client) target(k call) (*url.URL, error) {
	if strings.Contains(k.path, "{id}") {
		if k.id == "" || k.id == "." || k.id == ".." {
			return nil, problem.New(problem.Usage, fmt.Sprintf("%s %s needs an id, found %q.", k.method, k.path, k.id), "List the ids first.")
		}
		k.path = strings.Replace(k.path, "{id}", url.PathEscape(k.id), 1)
	}
	target := c.base.JoinPath(k.path)
	target.RawQuery = k.query.Encode()
	return target, nil
}

// json makes a call and decodes its answer into out, which may be nil.
func (c *Client) json(ctx context.Context, k call, out any) error {
	err := c.exchange(ctx, k, out)
	if err != nil {
		return c.scrub(err, append(secretsOf(k.body), k.secrets...))
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, k call, out any) error {
	if k.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.timeout)
		defer cancel()
	}
	resp, err := c.do(ctx, k)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProblem)) // so that the connection can be used again
		return nil
	}
	if !isJSON(resp) {
		return c.notAgnes(resp, c.head(resp))
	}
	limited := &io.LimitedReader{R: resp.Body, N: c.maxAnswer + 1}
	dec := json.NewDecoder(limited)
	dec.UseNumber() // rows keep every digit
	if err := dec.Decode(out); err != nil {
		if limited.N <= 0 {
			return problem.New(problem.TooLarge,
				fmt.Sprintf("The answer of %s is larger than %d MiB.", c.where(k), c.maxAnswer>>20),
				"Ask for fewer rows, or for CSV or Parquet, which are streamed.")
		}
		return c.broken(ctx, k, err)
	}
	return nil
}

// do makes a call and returns its successful response; a status of 300 or more
// becomes an error. GET calls are tried again after a lost connection and after
// 503 with a short Retry-After.
func (c *Client) do(ctx context.Context, k call) (*http.Response, error) {
	var body []byte
	if k.body != nil {
		var err error
		if body, err = encodeRequest(k.body); err != nil {
			return nil, problem.Wrap(err, problem.Internal, "The request cannot be written as JSON.", "Report this as a bug.")
		}
		k.secrets = append(k.secrets, secretsOf(k.body)...)
	}
	for attempt := 0; ; attempt++ {
		resp, err := c.once(ctx, k, body)
		delay, again := retryDelay(k, resp, err, attempt)
		if resp != nil && (again || resp.StatusCode >= 300 && resp.StatusCode != http.StatusNotModified) {
			err = c.failure(resp, k)
			_ = resp.Body.Close() // what was wanted of it is read
			again = again && !setupRequired(err)
		}
		if !again {
			if err != nil {
				return nil, c.scrub(err, k.secrets)
			}
			return resp, nil
		}
		if c.pause(ctx, delay) != nil {
			return nil, c.scrub(err, k.secrets)
		}
	}
}

func (c *Client) once(ctx context.Context, k call, body []byte) (*http.Response, error) {
	target, err := c.target(k)
	if err != nil {
		return nil, err
	}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, target.String(), reader)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "The request cannot be made.", "Report this as a bug.")
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	start := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		c.log.DebugContext(ctx, "call failed", "method", k.method, "path", k.path, "elapsed", time.Since(start))
		return nil, c.unreachable(ctx, err)
	}
	c.log.DebugContext(ctx, "call", "method", k.method, "path", k.path, "status", resp.StatusCode, "elapsed", time.Since(start))
	return resp, nil
}

func (c *Client) where(k call) string {
	return k.method + " " + c.base.JoinPath(k.path).String()
}

func isJSON(resp *http.Response) bool {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// head returns the beginning of a body.
func (c *Client) head(resp *http.Response) []byte {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem)) // a part is enough
	return data
}

func setupRequired(err error) bool {
	e, ok := errors.AsType[*problem.Error](err)
	return ok && e.Code == "setup_required"
}
