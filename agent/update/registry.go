package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	registryerr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// ask returns what is known after asking. What could not be answered stays as
// it was, and err says why.
func (c *Checker) ask(ctx context.Context, was answers) (now answers, err error) {
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(authn.DefaultKeychain), // of `docker login`: DOCKER_CONFIG, ~/.docker/config.json
		remote.WithTransport(c.transport),
		remote.WithUserAgent("agnes/"+c.opt.Version),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithRetryStatusCodes(), // none: Run repeats
		remote.WithPageSize(1),        // of the list of tags, which is asked for its status
	)
	if err != nil {
		return was, err
	}
	r := &asking{Checker: c, puller: puller}
	now = was
	if now.Deprecated, err = r.deprecated(ctx, was); err != nil {
		return was, err
	}
	if err := r.floating(ctx, &now); err != nil {
		now.Digest, now.Label, now.Latest = was.Digest, was.Label, was.Latest
		return now, err
	}
	if !r.found {
		if err := r.known(ctx); err != nil {
			return was, err
		}
	}
	return now, nil
}

// asking is the checker's image repository, signed in for one check.
type asking struct {
	*Checker

	puller *remote.Puller
	found  bool // a tag
}

// digest returns what a tag points at, or nothing where there is no such tag.
func (r *asking) digest(ctx context.Context, tag string) (string, error) {
	head, err := r.puller.Head(ctx, r.repository.Tag(tag))
	if absent(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", r.repository.Tag(tag), err)
	}
	r.found = true
	return head.Digest.String(), nil
}

// absent tells the answer that a manifest is not there from any other error,
// that of signing in with 404 among them.
func absent(err error) bool {
	e, ok := errors.AsType[*registryerr.Error](err)
	return ok && e.StatusCode == http.StatusNotFound && e.Request != nil && strings.Contains(e.Request.URL.Path, "/manifests/")
}

// known is asked where no tag was found. Every tag is absent in a repository
// that does not exist, or no longer under this name: that says nothing of the
// version. Registries tell it apart where they are asked for a list of the tags.
func (r *asking) known(ctx context.Context) error {
	if _, err := r.puller.Lister(ctx, r.repository); err != nil {
		return fmt.Errorf("expected tags in %s, found none, nor that the registry knows this repository: %w", r.repository, err)
	}
	return nil
}

// deprecated reports whether the running version is deprecated. Thirty days
// after that its image is deleted with all tags, deprecated-VERSION among them:
// a deprecation that was seen is taken back only while the version itself is
// still there.
func (r *asking) deprecated(ctx context.Context, was answers) (bool, error) {
	marked, err := r.digest(ctx, "deprecated-"+r.opt.Version)
	if err != nil || marked != "" || !was.Deprecated {
		return marked != "", err
	}
	own, err := r.digest(ctx, r.opt.Channel+"-"+r.opt.Version)
	return own == "", err
}

// floating finds out which version the channel's floating tag has. The image is
// looked at only where the tag has moved.
func (r *asking) floating(ctx context.Context, a *answers) error {
	digest, err := r.digest(ctx, r.opt.Channel)
	if err != nil {
		return err
	}
	if digest != a.Digest {
		a.Digest, a.Label = digest, ""
		if digest != "" {
			if a.Label, err = r.label(ctx, digest); err != nil {
				return err
			}
		}
	}
	a.Latest = ""
	newest, ok := parseVersion(a.Label)
	if !ok || newest.compare(r.running) <= 0 {
		return nil
	}
	marked, err := r.digest(ctx, "deprecated-"+a.Label)
	if err == nil && marked == "" {
		a.Latest = a.Label
	}
	return err
}

// label returns the version that an image says it is.
func (r *asking) label(ctx context.Context, digest string) (string, error) {
	at := r.repository.Digest(digest)
	described, err := r.puller.Get(ctx, at)
	if err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	image, err := described.Image()
	if err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return "", fmt.Errorf("the configuration of %s: %w", at, err)
	}
	return config.Config.Labels["org.opencontainers.image.version"], nil
}

// maxAnswer bounds what is read of one answer: manifests and configurations
// have at most a few kilobytes.
const maxAnswer = 8 << 20

// transport returns inner, or one with the timeouts of a question that nobody
// waits for.
func transport(inner http.RoundTripper) http.RoundTripper {
	if inner == nil {
		inner = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 20 * time.Second,
			DisableKeepAlives:     true, // the next question comes in hours
			ForceAttemptHTTP2:     true,
		}
	}
	return guard{inner}
}

// guard keeps credentials off plain HTTP, which go-containerregistry falls back
// to for private addresses; only this machine is spoken to so.
type guard struct{ inner http.RoundTripper }

// RoundTrip serves http.RoundTripper.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch here := loopback(req.URL.Host); {
	case here && req.URL.Scheme == "https":
		req = req.Clone(req.Context()) // a RoundTripper must not change its request
		req.URL.Scheme = "http"
	case !here && req.URL.Scheme != "https":
		return nil, fmt.Errorf("%s is spoken to by https only", req.URL.Host)
	}
	resp, err := g.inner.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = bounded{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

type bounded struct {
	io.Reader
	io.Closer
}

// loopback reports whether a host with or without a port is this machine.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
