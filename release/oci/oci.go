// Package oci speaks to one repository of an OCI registry over HTTP: GHCR,
// Debian's docker-registry and whatever else keeps the distribution
// specification. It is a release.Registry.
//
// Registry holds the verbs: a tag is written by sending the very bytes that were
// read, so that indexes, attestations and media types that nobody here knows stay
// as they are, and every manifest is held against its digest before it is
// believed. Below it, caller carries one HTTP call out: it signs in once, repeats
// what can be repeated, waits as the registry asks, and turns answers into errors
// that say what a person can do. Sign-in and credentials are go-containerregistry's.
package oci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Options are what New can be told. The zero value works.
type Options struct {
	// Keychain gives credentials; nil: those of `docker login` and podman.
	Keychain authn.Keychain
	// Token is GITHUB_TOKEN: used at ghcr.io where the keychain has nothing for it.
	Token redact.Secret
	// Transport carries the calls; nil: an http.Transport of its own.
	Transport http.RoundTripper
	// Timeout bounds one attempt of one call; 0: 30 s.
	Timeout time.Duration
	// Wait pauses between attempts; nil: a timer.
	Wait func(context.Context, time.Duration) error
	// Log gets one line for each repeated call; nil: none.
	Log *slog.Logger
}

// Registry is one repository of a registry. It is safe for concurrent use and
// makes no call before the first verb.
type Registry struct {
	repo name.Repository
	call *caller
}

var _ release.Registry = (*Registry)(nil)

// New returns the repository HOST/NAME, such as ghcr.io/owner/name or
// 127.0.0.1:5000/agnes. The machine itself (127.0.0.1, ::1, localhost) is spoken to in
// plain HTTP, everything else in HTTPS.
func New(repository string, o Options) (*Registry, error) {
	repo, err := name.NewRepository(strings.TrimSuffix(repository, "/"), name.StrictValidation)
	if err != nil || strings.ContainsAny(repository, "@ ") || strings.Contains(repository, "://") {
		return nil, problem.New(problem.Usage,
			fmt.Sprintf("expected an image repository HOST/NAME in lower case, without tag or digest, found %q", repository),
			"release-bot … --registry ghcr.io/OWNER/NAME")
	}
	return &Registry{repo: repo, call: newCaller(repo, o)}, nil
}

// String names the repository.
func (r *Registry) String() string { return r.repo.Name() }

const (
	mediaOCIIndex    = "application/vnd.oci.image.index.v1+json"
	mediaOCIManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaDockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaDocker      = "application/vnd.docker.distribution.manifest.v2+json"

	// maxManifest is twice what the distribution specification asks registries to take.
	maxManifest = 8 << 20
	maxConfig   = 8 << 20
	maxTagList  = 16 << 20
	pageSize    = 1000
)

// accept names both kinds of index first: a registry that is not asked for an
// index may answer with one platform's manifest instead.
func accept() http.Header {
	return http.Header{"Accept": {strings.Join([]string{mediaOCIIndex, mediaDockerList, mediaOCIManifest, mediaDocker, "*/*;q=0.1"}, ", ")}}
}

var digestText = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (r *Registry) manifestPath(reference string) string {
	return "/v2/" + r.repo.RepositoryStr() + "/manifests/" + reference
}

// Digest implements release.Registry. A registry that answers HEAD without a
// digest is asked by GET.
func (r *Registry) Digest(ctx context.Context, reference string) (string, error) {
	got, err := r.call.do(ctx, request{method: http.MethodHead, path: r.manifestPath(reference), header: accept(), what: r.what(reference)})
	if err != nil {
		return "", err
	}
	if digest := got.header.Get("Docker-Content-Digest"); digestText.MatchString(digest) {
		if digestText.MatchString(reference) && digest != reference {
			return "", r.liar(reference, reference, digest)
		}
		return digest, nil
	}
	m, err := r.Manifest(ctx, reference)
	return m.Digest, err
}

// Manifest implements release.Registry.
func (r *Registry) Manifest(ctx context.Context, reference string) (release.Manifest, error) {
	got, err := r.call.do(ctx, request{method: http.MethodGet, path: r.manifestPath(reference), header: accept(), limit: maxManifest, what: r.what(reference)})
	if err != nil {
		return release.Manifest{}, err
	}
	m := release.Manifest{Digest: digestOf(got.body), MediaType: mediaType(got), Raw: got.body}
	want := got.header.Get("Docker-Content-Digest")
	if digestText.MatchString(reference) {
		want = reference
	}
	if digestText.MatchString(want) && want != m.Digest {
		return release.Manifest{}, r.liar(reference, want, m.Digest)
	}
	return m, nil
}

// mediaType is what the registry says that the bytes are, or what they say of
// themselves where it says nothing: sending them back needs one.
func mediaType(a answer) string {
	declared, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	declared = strings.TrimSpace(declared)
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if declared == "" || declared == "application/octet-stream" || strings.HasPrefix(declared, "text/") {
		_ = json.Unmarshal(a.body, &doc) // what is no JSON has no name for itself
		return cmp.Or(doc.MediaType, mediaOCIManifest)
	}
	return declared
}

// Tag implements release.Registry.
func (r *Registry) Tag(ctx context.Context, m release.Manifest, tag string) error {
	if got := digestOf(m.Raw); got != m.Digest {
		return problem.New(problem.Internal, fmt.Sprintf("expected the bytes of %s, found those of %s; nothing was written", m.Digest, got), "read the manifest again")
	}
	got, err := r.call.do(ctx, request{
		method: http.MethodPut, path: r.manifestPath(tag), header: http.Header{"Content-Type": {m.MediaType}}, body: m.Raw, what: r.what(tag),
	})
	if err != nil {
		return err
	}
	if stored := got.header.Get("Docker-Content-Digest"); digestText.MatchString(stored) && stored != m.Digest {
		return r.liar(tag, m.Digest, stored)
	}
	return nil
}

func (r *Registry) liar(reference, want, got string) error {
	return problem.New(problem.Inconclusive,
		fmt.Sprintf("expected %s at %s, found other bytes: %s", want, r.what(reference), got),
		"read it twice more by hand: crane manifest "+r.what(reference)+" | sha256sum; a cache between here and the registry may be at fault")
}

// what names a reference as people write it.
func (r *Registry) what(reference string) string {
	if strings.Contains(reference, ":") {
		return r.repo.Name() + "@" + reference
	}
	return r.repo.Name() + ":" + reference
}

// Tags implements release.Registry. A registry that cuts a full page without
// saying that there is more is asked for what follows.
func (r *Registry) Tags(ctx context.Context) ([]string, error) {
	base := "/v2/" + r.repo.RepositoryStr() + "/tags/list"
	var all []string
	seen := map[string]bool{}
	for next := fmt.Sprintf("%s?n=%d", base, pageSize); next != ""; {
		got, err := r.call.do(ctx, request{method: http.MethodGet, path: next, limit: maxTagList, what: "the tags of " + r.repo.Name()})
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(got.body, &page); err != nil {
			return nil, problem.Wrap(err, problem.Inconclusive, "expected a list of tags in JSON from "+r.repo.RegistryStr()+next, "see whether --registry names an image repository")
		}
		fresh := 0
		for _, tag := range page.Tags {
			if !seen[tag] {
				seen[tag] = true
				all = append(all, tag)
				fresh++
			}
		}
		switch link := nextPage(got.header, base); {
		case fresh == 0:
			next = ""
		case link != "":
			next = link
		case len(page.Tags) == pageSize:
			next = fmt.Sprintf("%s?n=%d&last=%s", base, pageSize, page.Tags[pageSize-1])
		default:
			next = ""
		}
	}
	return all, nil
}

var nextLink = regexp.MustCompile(`<([^>]+)>\s*;\s*rel="?next"?`)

// nextPage returns the path and query of the next page, which has to be of the
// same list: a registry cannot send the credentials elsewhere.
func nextPage(h http.Header, base string) string {
	m := nextLink.FindStringSubmatch(h.Get("Link"))
	if m == nil {
		return ""
	}
	_, query, ok := strings.Cut(m[1], "?")
	if !ok {
		return ""
	}
	return base + "?" + query
}

// Labels implements release.Registry.
func (r *Registry) Labels(ctx context.Context, m release.Manifest) (map[string]string, error) {
	var doc struct {
		Config struct {
			Digest string `json:"digest"`
		} `json:"config"`
		Manifests []struct {
			Digest   string `json:"digest"`
			Platform struct {
				OS string `json:"os"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return nil, problem.Wrap(err, problem.Inconclusive, "expected a manifest in JSON at "+r.what(m.Digest), "")
	}
	for _, child := range doc.Manifests {
		if child.Platform.OS == "unknown" || !digestText.MatchString(child.Digest) { // an attestation
			continue
		}
		image, err := r.Manifest(ctx, child.Digest)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(image.Raw, m.Raw) {
			break
		}
		return r.Labels(ctx, image)
	}
	if !digestText.MatchString(doc.Config.Digest) {
		return map[string]string{}, nil
	}
	what := r.what(doc.Config.Digest)
	got, err := r.call.do(ctx, request{method: http.MethodGet, path: "/v2/" + r.repo.RepositoryStr() + "/blobs/" + doc.Config.Digest, limit: maxConfig, what: what})
	if err != nil {
		return nil, err
	}
	if digest := digestOf(got.body); digest != doc.Config.Digest {
		return nil, r.liar(doc.Config.Digest, doc.Config.Digest, digest)
	}
	var config struct {
		Config struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if err := json.Unmarshal(got.body, &config); err != nil {
		return map[string]string{}, nil //nolint:nilerr // an artifact's configuration may be anything; it has no labels then
	}
	return config.Config.Labels, nil
}
