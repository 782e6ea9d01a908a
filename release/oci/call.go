package oci

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	attempts  = 4
	firstWait = 100 * time.Millisecond // then four times as long each time
	// longestWait is the most that a registry's Retry-After can make a call wait;
	// what asks for more fails at once and says so.
	longestWait = 45 * time.Second
	maxError    = 4 << 10
)

// request is one HTTP call. Every one that is made here can be repeated: PUT of
// a manifest writes the same bytes again.
type request struct {
	method, path string
	header       http.Header
	body         []byte
	limit        int64  // of the answer's body; 0 reads none of it
	what         string // for messages: host/name:tag
}

// answer is a successful one, its body read.
type answer struct {
	header http.Header
	body   []byte
}

// caller carries calls to one repository out.
type caller struct {
	repo     name.Repository
	keychain authn.Keychain
	token    redact.Secret
	inner    http.RoundTripper
	timeout  time.Duration
	wait     func(context.Context, time.Duration) error
	log      *slog.Logger

	signIn sync.Mutex // guards client while it is made
	client *http.Client
}

func newCaller(repo name.Repository, o Options) *caller {
	c := &caller{
		repo: repo, keychain: o.Keychain, token: o.Token, inner: o.Transport,
		timeout: cmp.Or(o.Timeout, 30*time.Second), wait: o.Wait, log: o.Log,
	}
	if c.keychain == nil {
		c.keychain = authn.DefaultKeychain
	}
	if c.inner == nil {
		c.inner = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: c.timeout,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       90 * time.Second,
			ForceAttemptHTTP2:     true,
		}
	}
	if c.wait == nil {
		c.wait = pause.For
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.inner = &oneScheme{inner: c.inner, plain: loopback(repo.RegistryStr()), host: repo.RegistryStr()}
	return c
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// oneScheme keeps credentials off plain HTTP, which go-containerregistry falls
// back to for private addresses. The machine itself is asked in plain HTTP
// only, which spares a vain TLS handshake.
type oneScheme struct {
	inner http.RoundTripper
	plain bool
	host  string
}

// RoundTrip sends what is for this machine's registry in plain HTTP and refuses
// to send anything else so.
func (s *oneScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	plain := s.plain && req.URL.Host == s.host
	switch {
	case plain && req.URL.Scheme == "https":
		req = req.Clone(req.Context()) // a RoundTripper must not change its request
		req.URL.Scheme = "http"
	case !plain && req.URL.Scheme == "http":
		return nil, fmt.Errorf("%s is spoken to by https only", req.URL.Host)
	}
	return s.inner.RoundTrip(req)
}

// signedIn returns the client that carries credentials. The first call asks the
// registry how to sign in and fetches a token; a failure is not remembered.
func (c *caller) signedIn(ctx context.Context) (*http.Client, error) {
	c.signIn.Lock()
	defer c.signIn.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	auth, err := authn.Resolve(ctx, c.keychain, c.repo)
	if err != nil {
		return nil, c.unreadableCredentials(err)
	}
	if auth == authn.Anonymous && c.token != "" && c.repo.RegistryStr() == "ghcr.io" {
		// GHCR takes any user name with a token.
		auth = &authn.Basic{Username: "x-access-token", Password: c.token.Reveal()}
	}
	rt, err := transport.NewWithContext(ctx, c.repo.Registry, auth, c.inner, []string{c.repo.Scope(transport.PushScope)})
	if err != nil {
		return nil, err
	}
	c.client = &http.Client{Transport: rt}
	return c.client, nil
}

// do carries a call out and repeats it while that can help.
func (c *caller) do(ctx context.Context, r request) (answer, error) {
	var last *failure
	for try := range attempts {
		got, failed := c.once(ctx, r)
		if failed == nil {
			return got, nil
		}
		last = failed
		if ctx.Err() != nil {
			return answer{}, c.ended(ctx, r, last)
		}
		if !last.again || last.after > longestWait || try == attempts-1 {
			break
		}
		delay := max(last.after, jitter(firstWait<<(2*try)))
		c.log.WarnContext(ctx, "registry call repeated", "call", r.method+" "+r.what, "after", delay.String(), "reason", last.text)
		if c.wait(ctx, delay) != nil {
			return answer{}, c.ended(ctx, r, last)
		}
	}
	return answer{}, c.explain(r, last)
}

// jitter keeps parallel calls from coming back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) } //nolint:gosec // a delay is no secret

func (c *caller) once(ctx context.Context, r request) (answer, *failure) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	client, err := c.signedIn(ctx)
	if err != nil {
		return answer{}, failedSignIn(err)
	}
	scheme := "https"
	if loopback(c.repo.RegistryStr()) {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, scheme+"://"+c.repo.RegistryStr()+r.path, bytes.NewReader(r.body))
	if err != nil {
		return answer{}, &failure{text: err.Error(), err: err}
	}
	if r.header != nil {
		req.Header = r.header.Clone()
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, failedCall(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return answer{}, failedStatus(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.limit+1))
	if err != nil {
		return answer{}, failedCall(err)
	}
	if r.limit > 0 && int64(len(body)) > r.limit {
		err := fmt.Errorf("the answer is larger than %d bytes", r.limit)
		return answer{}, &failure{text: err.Error(), err: err}
	}
	return answer{header: resp.Header, body: body}, nil
}
