package smoke

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	callLimit      = 10 * time.Second // of one request
	longCallLimit  = 30 * time.Second // of the catalog's and the query's
	connectTimeout = 5 * time.Second
	maxBody        = 16 << 20 // bytes; a catalog of 10,000 tables is 4 MB
)

// finding is why a step is not OK.
type finding struct {
	verdict Verdict
	detail  string
	hint    string
	code    string // of the instance's problem details, where it sent some
}

func failing(hint, format string, args ...any) *finding {
	return &finding{verdict: Fail, detail: fmt.Sprintf(format, args...), hint: hint}
}

func undecided(hint, format string, args ...any) *finding {
	return &finding{verdict: Inconclusive, detail: fmt.Sprintf(format, args...), hint: hint}
}

// caller makes requests. It is no api.Client: that one retries, and turns an
// answer into a value or an error, while here the answer itself is the evidence.
type caller struct {
	base    *url.URL
	invalid error // why base is nil
	http    *http.Client
	secrets []redact.Secret
}

func newCaller(o Options) *caller {
	base, err := api.ParseURL(o.URL)
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	transport := &http.Transport{
		// net/http does not end a dial when the request that wanted it ends.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return dial(ctx, network, address)
		},
		TLSClientConfig: o.TLS, TLSHandshakeTimeout: connectTimeout,
		DisableKeepAlives: true, // each request shows anew that the instance can be reached
	}
	if o.Dial == nil {
		transport.Proxy = http.ProxyFromEnvironment
	}
	return &caller{
		base: base, invalid: err, secrets: []redact.Secret{o.Account.Password, o.AdminToken},
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // following one would carry the token on
		}},
	}
}

// exchange is one request.
type exchange struct {
	method, path string
	body         any // as it goes over the wire, secrets as plain strings
	token        redact.Secret
	given        bool          // it carries credentials that Run's caller gave
	limit        time.Duration // callLimit when zero
	want         int           // status; 200 when zero
}

// answer is what came back.
type answer struct {
	request string // method, path and body, for the report
	status  int    // 0: none
	header  http.Header
	body    []byte
}

// do makes a request. The finding is nil if an answer with the wanted status
// came; what its body says is the step's to judge.
func (c *caller) do(ctx context.Context, e exchange) (answer, *finding) {
	a := answer{request: e.method + " " + e.path}
	if c.invalid != nil {
		return a, undecided("Give it as http://127.0.0.1:8000 or https://data.example.com.", "The instance's address cannot be used: %s", c.invalid)
	}
	var body []byte
	if e.body != nil {
		var err error
		if body, err = json.Marshal(e.body); err != nil {
			return a, undecided("Report this as a bug.", "The request cannot be written as JSON: %s", err)
		}
		a.request += " " + string(body)
	}
	if e.limit == 0 {
		e.limit = callLimit
	}
	limited, cancel := context.WithTimeout(ctx, e.limit)
	defer cancel()
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(limited, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(traced, e.method, c.base.JoinPath(e.path).String(), bytes.NewReader(body))
	if err != nil {
		return a, undecided("Report this as a bug.", "The request cannot be made: %s", err)
	}
	req.Header.Set("User-Agent", "agnes-smoke")
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if e.token != "" {
		req.Header.Set("Authorization", "Bearer "+e.token.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, c.unanswered(ctx, e, connected.Load(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return a, c.unanswered(ctx, e, true, err)
	case len(a.body) > maxBody:
		return a, failing("", "The answer of %s %s is larger than %d MiB.", e.method, e.path, maxBody>>20)
	case a.status != max(e.want, http.StatusOK):
		return a, c.otherStatus(e, a)
	}
	return a, nil
}

// unanswered says why no whole answer came, and whether the instance is to
// blame.
func (c *caller) unanswered(ctx context.Context, e exchange, connected bool, err error) *finding {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	silent := errors.Is(err, context.DeadlineExceeded)
	what := e.method + " " + e.path
	switch {
	case ctx.Err() != nil:
		return undecided("Run the smoke test again.", "The smoke test was ended before %s was answered: %s.", what, ctx.Err())
	case refused(err):
		return failing("Read the instance's log.", "Nothing listens at %s: connection refused.", c.base)
	case connected && silent:
		return failing("Read the instance's log.", "Expected an answer to %s within %s, found none.", what, e.limit)
	case connected:
		return failing("Read the instance's log.", "The connection broke before %s was answered: %s.", what, err)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return undecided("Check the address and this machine's network.", "The name %s cannot be resolved: %s.", dns.Name, dns.Err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return undecided("Trust the authority that issued it, or use the name that it was issued for.", "The certificate of %s is not trusted: %s.", c.base, err)
	}
	if silent {
		return undecided("Check the network, the tunnel and the firewall between.", "No connection to %s within %s.", c.base, connectTimeout)
	}
	return undecided("Check the network, the tunnel and the firewall between.", "No connection to %s: %s.", c.base, err)
}

// refused reports whether the host said that nothing listens. Through a tunnel
// that word comes as text from its far end.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(strings.ToLower(err.Error()), "connection refused")
}

// otherStatus judges an answer whose status is not the one that the step needs.
func (c *caller) otherStatus(e exchange, a answer) *finding {
	said := problemOf(a)
	f := failing(said.Hint, "Expected %d from %s %s, found %d%s", max(e.want, http.StatusOK), e.method, e.path, a.status, said.tail())
	f.code = said.Code
	switch {
	case a.status == http.StatusTooManyRequests:
		f.verdict = Inconclusive
	case e.given && (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden):
		f.verdict, f.hint = Inconclusive, "Give credentials that work at this instance."
	case a.status == http.StatusConflict && said.Code == "draining":
		f.verdict = Inconclusive
	case a.status >= 300 && a.status < 400 && c.leavesOrigin(a.header.Get("Location")):
		f.verdict, f.hint = Inconclusive, "Use the address that it points to."
		f.detail = fmt.Sprintf("%s points to another address: %s.", c.base, a.header.Get("Location"))
	}
	return f
}

func (c *caller) leavesOrigin(location string) bool {
	u, err := c.base.Parse(location)
	return location != "" && err == nil && (u.Scheme != c.base.Scheme || u.Host != c.base.Host)
}

// said is what the instance's problem details say; empty where it sent none.
type said struct{ api.Problem }

func problemOf(a answer) said {
	var p said
	if json.Unmarshal(a.body, &p.Problem) != nil {
		return said{}
	}
	return p
}

func (s said) tail() string {
	if s.Detail == "" {
		return "."
	}
	return ": " + s.Detail
}

// decode reads an answer's body; what it holds is not judged yet.
func decode[T any](e exchange, a answer) (T, *finding) {
	var out T
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.UseNumber()
	err := dec.Decode(&out)
	if _, trailing := dec.Token(); err == nil && !errors.Is(trailing, io.EOF) {
		err = errors.New("more follows after it")
	}
	if err != nil {
		return out, failing("Check any proxy before the instance.", "Expected the JSON of %s %s, found %s: %s.",
			e.method, e.path, contentType(a), err)
	}
	return out, nil
}

func contentType(a answer) string {
	if media := a.header.Get("Content-Type"); media != "" {
		return media
	}
	return "an unknown media type"
}
