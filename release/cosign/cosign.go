// Package cosign verifies that an image was signed with one of our keys, from
// what `cosign sign --key` leaves in the image's own repository.
//
// Verifier looks for both forms that cosign knows: the classic one, a payload
// with a signature in the manifest at the tag sha256-….sig, and the bundle that
// cosign 3 writes by default, a signed in-toto statement in a manifest that
// refers to the image. One good signature is enough. Neither certificates nor the
// transparency log play a part: whoever has the private key can sign, and nobody
// else. It is what `cosign verify --key --insecure-ignore-tlog` proves.
//
// Refused means that the registry answered and there is no good signature;
// everything else that it could not be asked, which says nothing of the image.
package cosign

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Options are what New can be told. Keys is required.
type Options struct {
	// Keys are PEM files with public keys, as cosign.pub is. A signature by any of
	// them is good: two at a time let a key be changed.
	Keys [][]byte
	// Keychain gives credentials; nil: those of `docker login` and podman.
	Keychain authn.Keychain
	// Token is GITHUB_TOKEN: used at ghcr.io where the keychain has nothing for it.
	Token redact.Secret
	// Transport carries the calls; nil: go-containerregistry's.
	Transport http.RoundTripper
	// Timeout bounds one Verify; 0: 60 s.
	Timeout time.Duration
}

// Verifier verifies images of one repository. It is safe for concurrent use.
type Verifier struct {
	repo    name.Repository
	keys    []key
	options []remote.Option
	timeout time.Duration
}

const (
	maxSignatures = 50      // of one image; more is somebody's joke
	maxBlob       = 1 << 20 // a payload or a bundle has some kilobytes
)

// New returns a verifier for the images of HOST/NAME. The machine itself
// (127.0.0.1, ::1, localhost) is spoken to in plain HTTP, everything else in
// HTTPS.
func New(repository string, o Options) (*Verifier, error) {
	repo, err := name.NewRepository(strings.TrimSuffix(repository, "/"), name.StrictValidation)
	if err != nil || strings.ContainsAny(repository, "@ ") || strings.Contains(repository, "://") {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected an image repository HOST/NAME in lower case, without tag or digest, found %q", repository),
			"name it as in docker pull: ghcr.io/OWNER/NAME")
	}
	v := &Verifier{repo: repo, timeout: cmp.Or(o.Timeout, time.Minute)}
	for _, text := range o.Keys {
		keys, err := parseKeys(text)
		if err != nil {
			return nil, err
		}
		v.keys = append(v.keys, keys...)
	}
	if len(v.keys) == 0 {
		return nil, problem.New(problem.Usage, "expected a public key to verify signatures with, found none", "cosign public-key --key cosign.key >cosign.pub, and name that file")
	}
	inner := o.Transport
	if inner == nil {
		inner = remote.DefaultTransport
	}
	v.options = []remote.Option{
		remote.WithTransport(&oneScheme{inner: inner, plain: loopback(repo.RegistryStr()), host: repo.RegistryStr()}),
		remote.WithAuthFromKeychain(tokenKeychain{o.Keychain, o.Token}),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 4, Jitter: 0.5, Steps: 3}),
	}
	return v, nil
}

// String names the repository.
func (v *Verifier) String() string { return v.repo.Name() }

var digestText = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Verify returns nil when one of the keys signed the image or index with this
// digest (sha256:…). problem.Refused says that nobody did: its code is
// signature_missing, or signature_invalid where there are signatures, but by
// other keys, of other images or tampered with.
func (v *Verifier) Verify(ctx context.Context, digest string) error {
	if !digestText.MatchString(digest) {
		return problem.New(problem.Internal, fmt.Sprintf("expected a digest sha256:…, found %q", digest), "")
	}
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	r := &round{Verifier: v, ctx: ctx, image: v.repo.Digest(digest)}
	for _, look := range []func() error{r.classic, r.bundles} {
		if err := look(); err != nil {
			r.trouble = append(r.trouble, err)
		}
		if r.good {
			return nil
		}
	}
	switch {
	case len(r.trouble) > 0: // what could not be read may have been the good one
		return v.unknown(digest, errors.Join(r.trouble...))
	case r.found == 0:
		return problem.New(problem.Refused, fmt.Sprintf("expected a signature of %s@%s, found none", v.repo.Name(), digest),
			fmt.Sprintf("cosign sign --key cosign.key %s@%s", v.repo.Name(), digest)).WithCode("signature_missing")
	default:
		return problem.New(problem.Refused, fmt.Sprintf("expected %s@%s to be signed with a known key (%s), found %d signature(s), none of them good: %s",
			v.repo.Name(), digest, v.fingerprints(), r.found, strings.Join(r.bad, "; ")),
			fmt.Sprintf("do not run this image; see who signed it: cosign verify --insecure-ignore-tlog --key cosign.pub %s@%s", v.repo.Name(), digest)).
			WithCode("signature_invalid")
	}
}

func (v *Verifier) fingerprints() string {
	var all []string
	for _, k := range v.keys {
		all = append(all, k.fingerprint)
	}
	return strings.Join(all, ", ")
}

// unknown is an answer that did not come.
func (v *Verifier) unknown(digest string, err error) error {
	host := v.repo.RegistryStr()
	what := fmt.Sprintf("expected to read the signatures of %s@%s", v.repo.Name(), digest)
	if e, ok := errors.AsType[*transport.Error](err); ok {
		switch e.StatusCode {
		case http.StatusUnauthorized:
			return problem.Wrap(err, problem.Unauthenticated, what, "sign in: docker login "+host)
		case http.StatusForbidden:
			return problem.Wrap(err, problem.Forbidden, what, "give the account the right to read "+v.repo.Name())
		}
	}
	return problem.Wrap(err, problem.Inconclusive, what, "run the same command again when "+host+" answers").WithCode("registry_unavailable")
}

// round is one verification.
type round struct {
	*Verifier
	ctx   context.Context //nolint:containedctx // one call's
	image name.Digest

	good    bool
	found   int
	bad     []string // why each one found is not good
	trouble []error  // what could not be read
}

// judge takes one signature.
func (r *round) judge(err error) {
	r.found++
	if err == nil {
		r.good = true
		return
	}
	r.bad = append(r.bad, err.Error())
}

func (r *round) remote() []remote.Option {
	return append([]remote.Option{remote.WithContext(r.ctx)}, r.options...)
}

// missing reports a registry's word that something is not there.
func missing(err error) bool {
	e, ok := errors.AsType[*transport.Error](err)
	return ok && e.StatusCode == http.StatusNotFound
}

// blob reads a layer, which is held against its digest.
func (r *round) blob(digest string) ([]byte, error) {
	if !digestText.MatchString(digest) {
		return nil, fmt.Errorf("a layer has the digest %.80q", digest)
	}
	layer, err := remote.Layer(r.repo.Digest(digest), r.remote()...)
	if err != nil {
		return nil, err
	}
	body, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxBlob+1))
	if err == nil && len(text) > maxBlob {
		err = fmt.Errorf("%s is larger than %d bytes", digest, maxBlob)
	}
	return text, err
}
