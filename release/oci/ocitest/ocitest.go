// Package ocitest is an OCI registry for tests: go-containerregistry's, behind a
// real socket, with a log of every request, faults on demand, and images of
// several platforms with attestations.
//
// Server is the registry and Image what Push puts there. Faults and kills are one
// function, Server.Intercept, which sees each request before and after it is
// carried out. Setup and inspection go past the socket, so they are neither
// logged nor intercepted.
package ocitest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Repository is the name that Push and Server.Repository use.
const Repository = "keboola/agnes"

// Request is one logged request.
type Request struct {
	Method string
	Path   string // below /v2/keboola/agnes: /manifests/stable, /tags/list; elsewhere the whole path
	Status int
}

// Server is a registry at 127.0.0.1.
type Server struct {
	URL  string
	Host string

	inner http.Handler
	mu    sync.Mutex
	log   []*Request
	// intercept is called twice for each request.
	intercept func(w http.ResponseWriter, r *http.Request, after bool) (handled bool)
	states    map[string][]string // of each tag, every digest that it had
	blobs     []Blob
	pushed    []release.Manifest
}

// Blob is one blob that Push put there.
type Blob struct {
	Digest string
	Raw    []byte
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		inner:  registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), registry.WithReferrersSupport(true)),
		states: map[string][]string{},
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	s.URL, s.Host = web.URL, strings.TrimPrefix(web.URL, "http://")
	return s
}

// Repository is what --registry is given.
func (s *Server) Repository() string { return s.Host + "/" + Repository }

// Intercept calls f before each request and, where f did not handle it then,
// again after it was carried out and before its answer is sent. Handled means
// that f wrote the answer, or cut the connection by panicking with
// http.ErrAbortHandler. Nil intercepts nothing.
func (s *Server) Intercept(f func(w http.ResponseWriter, r *http.Request, after bool) (handled bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = f
}

// ServeHTTP is the socket's side.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.intercept
	entry := &Request{Method: r.Method, Path: strings.TrimPrefix(r.URL.Path, "/v2/"+Repository)}
	s.log = append(s.log, entry)
	s.mu.Unlock()
	if f != nil && f(w, r, false) {
		return
	}
	got := s.carry(r, entry)
	if f != nil && f(w, r, true) {
		return
	}
	for k, v := range got.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(got.Code)
	_, _ = w.Write(got.Body.Bytes())
}

// carry hands a request to the registry: one at a time, so that the recorded
// states are in the order of the writes.
func (s *Server) carry(r *http.Request, entry *Request) *httptest.ResponseRecorder {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := httptest.NewRecorder()
	s.inner.ServeHTTP(got, r)
	entry.Status = got.Code
	if tag, ok := strings.CutPrefix(entry.Path, "/manifests/"); ok && got.Code == http.StatusCreated {
		s.states[tag] = append(s.states[tag], got.Header().Get("Docker-Content-Digest"))
	}
	return got
}

// Requests returns what was asked since the last call, without the /v2/ of
// signing in.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var asked []Request
	for _, r := range s.log {
		if r.Path != "/v2/" {
			asked = append(asked, *r)
		}
	}
	s.log = nil
	return asked
}

// Writes returns the requests among asked that change something.
func Writes(asked []Request) []Request {
	var writes []Request
	for _, r := range asked {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			writes = append(writes, r)
		}
	}
	return writes
}

// States returns every digest that a tag was set to over the socket, in order.
func (s *Server) States(tag string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.states[tag]...)
}

// direct carries a request out past the socket.
func (s *Server) direct(t testing.TB, method, path, contentType string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/v2/"+Repository+path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inner.ServeHTTP(w, r)
	return w
}

// Digest returns what a tag points at, or "".
func (s *Server) Digest(t testing.TB, tag string) string {
	t.Helper()
	return s.direct(t, http.MethodHead, "/manifests/"+tag, "", nil).Header().Get("Docker-Content-Digest")
}

// Tags returns every tag with its digest.
func (s *Server) Tags(t testing.TB) map[string]string {
	t.Helper()
	var list struct {
		Tags []string `json:"tags"`
	}
	got := s.direct(t, http.MethodGet, "/tags/list", "", nil)
	if got.Code == http.StatusOK {
		if err := json.Unmarshal(got.Body.Bytes(), &list); err != nil {
			t.Fatalf("read the list of tags: %v", err)
		}
	}
	tags := map[string]string{}
	for _, tag := range list.Tags {
		tags[tag] = s.Digest(t, tag)
	}
	return tags
}

// Manifest reads a manifest.
func (s *Server) Manifest(t testing.TB, reference string) release.Manifest {
	t.Helper()
	got := s.direct(t, http.MethodGet, "/manifests/"+reference, "", nil)
	if got.Code != http.StatusOK {
		t.Fatalf("read %s: %d %s", reference, got.Code, got.Body)
	}
	return release.Manifest{Digest: got.Header().Get("Docker-Content-Digest"), MediaType: got.Header().Get("Content-Type"), Raw: got.Body.Bytes()}
}

// SetTag points a tag at a manifest.
func (s *Server) SetTag(t testing.TB, m release.Manifest, tag string) {
	t.Helper()
	if got := s.direct(t, http.MethodPut, "/manifests/"+tag, m.MediaType, m.Raw); got.Code != http.StatusCreated {
		t.Fatalf("set %s: %d %s", tag, got.Code, got.Body)
	}
}

// Remove removes a tag or, by its digest, a manifest.
func (s *Server) Remove(t testing.TB, reference string) {
	t.Helper()
	if got := s.direct(t, http.MethodDelete, "/manifests/"+reference, "", nil); got.Code != http.StatusAccepted {
		t.Fatalf("remove %s: %d %s", reference, got.Code, got.Body)
	}
}

// Blobs returns what the images that Push made consist of, for copying them.
func (s *Server) Blobs() []Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Blob{}, s.blobs...)
}

// Manifests returns what Push made, children first.
func (s *Server) Manifests() []release.Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]release.Manifest{}, s.pushed...)
}

// Image describes what Push makes.
type Image struct {
	Text        string            // what tells images apart
	Labels      map[string]string // of each platform's configuration
	Annotations map[string]string // of the index
	Single      bool              // one platform's manifest instead of an index
}

const (
	index    = "application/vnd.oci.image.index.v1+json"
	manifest = "application/vnd.oci.image.manifest.v1+json"
)

// Push puts an image there without a tag: an index over two platforms, each
// with an attestation beside it, as buildx writes it. Its JSON is spaced oddly on
// purpose, so that only the very same bytes have its digest.
func (s *Server) Push(t testing.TB, i Image) release.Manifest {
	t.Helper()
	child := func(arch, config string) release.Manifest {
		layer := s.blob(t, "layer of "+i.Text+" for "+arch)
		raw := fmt.Sprintf("{ \"schemaVersion\" : 2,\n \"mediaType\":%q, \"config\":%s,\n\t\"layers\": [%s]}  ", manifest,
			s.describe("application/vnd.oci.image.config.v1+json", s.blob(t, config), config), s.describe("application/vnd.oci.image.layer.v1.tar", layer, "layer of "+i.Text+" for "+arch))
		return s.put(t, manifest, raw)
	}
	labels, err := json.Marshal(map[string]any{"config": map[string]any{"Labels": i.Labels}, "text": i.Text})
	if err != nil {
		t.Fatal(err)
	}
	if i.Single {
		return child("amd64", string(labels))
	}
	var children []string
	for _, arch := range []string{"amd64", "arm64"} {
		m := child(arch, string(labels)+strings.Repeat(" ", len(children)))
		children = append(children, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"architecture":%q,"os":"linux"}}`, manifest, m.Digest, len(m.Raw), arch))
		a := child("attestation of "+arch, "{}")
		children = append(children, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"architecture":"unknown","os":"unknown"},"annotations":{"vnd.docker.reference.type":"attestation-manifest"}}`,
			manifest, a.Digest, len(a.Raw)))
	}
	notes, err := json.Marshal(i.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	return s.put(t, index, fmt.Sprintf("{\"schemaVersion\": 2,\n\n\"annotations\": %s, \"mediaType\":%q,\n  \"manifests\":[%s]\n}\n\n", notes, index, strings.Join(children, " ,\n")))
}

func (s *Server) put(t testing.TB, mediaType, raw string) release.Manifest {
	t.Helper()
	m := release.Manifest{Digest: digest(raw), MediaType: mediaType, Raw: []byte(raw)}
	s.SetTag(t, m, m.Digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pushed = append(s.pushed, m)
	return m
}

func (s *Server) blob(t testing.TB, text string) string {
	t.Helper()
	d := digest(text)
	if got := s.direct(t, http.MethodPost, "/blobs/uploads/?digest="+d, "application/octet-stream", []byte(text)); got.Code != http.StatusCreated {
		t.Fatalf("upload a blob: %d %s", got.Code, got.Body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs = append(s.blobs, Blob{Digest: d, Raw: []byte(text)})
	return d
}

func (s *Server) describe(mediaType, digest, text string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest, len(text))
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}
