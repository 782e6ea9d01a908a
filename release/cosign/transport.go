package cosign

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// oneScheme keeps credentials off plain HTTP, which go-containerregistry falls
// back to for private addresses, and asks the machine itself in nothing else.
type oneScheme struct {
	inner http.RoundTripper
	plain bool
	host  string
}

// RoundTrip sends a call by the one scheme that its host is to be spoken to in.
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

// tokenKeychain adds GitHub's token to a keychain that knows nothing of ghcr.io.
type tokenKeychain struct {
	inner authn.Keychain
	token redact.Secret
}

// Resolve implements authn.Keychain.
func (k tokenKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (k tokenKeychain) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	inner := k.inner
	if inner == nil {
		inner = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, inner, r)
	if err == nil && auth == authn.Anonymous && k.token != "" && r.RegistryStr() == "ghcr.io" {
		auth = &authn.Basic{Username: "x-access-token", Password: k.token.Reveal()} // any name will do
	}
	return auth, err
}
