package oci_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// noKeychain keeps the developer's own credentials out.
type noKeychain struct{}

func (noKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// waits records the pauses between attempts and makes none.
type waits struct{ all []time.Duration }

func (w *waits) wait(ctx context.Context, d time.Duration) error {
	w.all = append(w.all, d)
	return ctx.Err()
}

func open(t *testing.T, s *ocitest.Server, o oci.Options) (*oci.Registry, *waits) {
	t.Helper()
	w := &waits{}
	o.Keychain, o.Wait = noKeychain{}, w.wait
	r, err := oci.New(s.Repository(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

func TestTagKeepsBytesOfIndexesAndOfUnknownTypes(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	r, _ := open(t, s, oci.Options{})
	odd := release.Manifest{MediaType: "application/vnd.example.thing+json", Raw: []byte("{ \"a\" :1 }\n ")}
	s.SetTag(t, odd, "odd")
	for name, m := range map[string]release.Manifest{
		"index":   s.Push(t, ocitest.Image{Text: "a"}),
		"image":   s.Push(t, ocitest.Image{Text: "b", Single: true}),
		"unknown": s.Manifest(t, "odd"),
	} {
		got, err := r.Manifest(t.Context(), m.Digest)
		if name == "unknown" {
			got, err = r.Manifest(t.Context(), "odd")
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := r.Tag(t.Context(), got, "copy-"+name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		after := s.Manifest(t, "copy-"+name)
		if string(after.Raw) != string(m.Raw) || after.Digest != m.Digest || after.MediaType != m.MediaType {
			t.Errorf("%s: the copy is %q of %s, want %q of %s", name, after.Raw, after.MediaType, m.Raw, m.MediaType)
		}
		if digest, err := r.Digest(t.Context(), "copy-"+name); err != nil || digest != m.Digest {
			t.Errorf("%s: the tag is at %s, %v, want %s", name, digest, err, m.Digest)
		}
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	r, _ := open(t, s, oci.Options{})
	absent := "sha256:" + strings.Repeat("a", 64)
	for round := range 2 { // in an empty repository, and in one with an image
		_, tag := r.Digest(t.Context(), "stable")
		_, digest := r.Manifest(t.Context(), absent)
		for name, err := range map[string]error{"tag": tag, "digest": digest} {
			if !errors.Is(err, release.ErrNotFound) || problem.ExitCode(err) != 1 {
				t.Errorf("round %d: %s: %v, want release.ErrNotFound", round, name, err)
			}
		}
		s.Push(t, ocitest.Image{Text: "a"})
	}
}

func TestLabelsComeFromTheFirstPlatform(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	r, _ := open(t, s, oci.Options{})
	for _, single := range []bool{false, true} {
		m := s.Push(t, ocitest.Image{Text: "a", Labels: map[string]string{"k": "v"}, Single: single})
		if got, err := r.Labels(t.Context(), m); err != nil || got["k"] != "v" {
			t.Errorf("single %t: %v, %v", single, got, err)
		}
	}
}

func TestTagsReadsEveryPage(t *testing.T) {
	t.Parallel()
	const count = 2500
	var all []string
	for i := range count {
		all = append(all, fmt.Sprintf("dev-2026.04.%d", i+1))
	}
	slices.Sort(all)
	for name, linked := range map[string]bool{"with Link": true, "cut without a word": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v2/" {
					return
				}
				from := 0
				if last := r.URL.Query().Get("last"); last != "" {
					from, _ = slices.BinarySearch(all, last)
					from++
				}
				size := 1000
				if linked {
					size = 100 // smaller than asked for, as GHCR does it
				}
				to := min(from+size, count)
				if linked && to < count {
					w.Header().Set("Link", fmt.Sprintf(`</v2/keboola/agnes/tags/list?last=%s&n=100>; rel="next"`, all[to-1]))
				}
				_ = json.NewEncoder(w).Encode(map[string]any{"tags": all[from:to]})
			}))
			t.Cleanup(web.Close)
			r, err := oci.New(strings.TrimPrefix(web.URL, "http://")+"/keboola/agnes", oci.Options{Keychain: noKeychain{}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Tags(t.Context())
			if err != nil || !slices.Equal(got, all) {
				t.Errorf("%d tags, %v, want %d", len(got), err, count)
			}
		})
	}
}

func TestALyingRegistryIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	m, other := s.Push(t, ocitest.Image{Text: "a"}), s.Push(t, ocitest.Image{Text: "b"})
	s.SetTag(t, m, "stable")
	r, _ := open(t, s, oci.Options{})
	s.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
		if after || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", other.MediaType)
		if strings.HasSuffix(r.URL.Path, "stable") { // by tag: header and body differ
			w.Header().Set("Docker-Content-Digest", m.Digest)
		}
		if r.Method == http.MethodPut {
			w.Header().Set("Docker-Content-Digest", other.Digest)
		}
		_, _ = w.Write(other.Raw)
		return true
	})
	_, byDigest := r.Manifest(t.Context(), m.Digest)
	_, byTag := r.Manifest(t.Context(), "stable")
	for name, err := range map[string]error{"by digest": byDigest, "by tag": byTag, "stored": r.Tag(t.Context(), m, "stable")} {
		if problem.ExitCode(err) != 5 || errors.Is(err, release.ErrNotFound) {
			t.Errorf("%s: %v, want inconclusive", name, err)
		}
	}
}

func TestTroubleIsRepeatedThenInconclusive(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault    func(w http.ResponseWriter)
		times    int32
		wantExit int
		wantCode string
		waits    int
		atLeast  time.Duration // of the first wait
	}{
		"500 once":               {status(500, ""), 1, 0, "", 1, 0},
		"502 for ever":           {status(502, ""), 99, 5, "registry_unavailable", 3, 0},
		"503 with Retry-After":   {status(503, "7"), 1, 0, "", 1, 7 * time.Second},
		"429 for ever":           {status(429, "3"), 99, 5, "rate_limited", 3, 3 * time.Second},
		"429 that asks too much": {status(429, "3600"), 99, 5, "rate_limited", 0, 0},
		"cut once":               {cut, 1, 0, "", 1, 0},
		"cut for ever":           {cut, 99, 5, "registry_unavailable", 3, 0},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut} {
			t.Run(name+" "+method, func(t *testing.T) {
				t.Parallel()
				s := ocitest.New(t)
				m := s.Push(t, ocitest.Image{Text: "a"})
				s.SetTag(t, m, "stable")
				r, w := open(t, s, oci.Options{})
				var left atomic.Int32
				left.Store(c.times)
				s.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
					if after || !strings.Contains(r.URL.Path, "/manifests/") || left.Add(-1) < 0 {
						return false
					}
					c.fault(w)
					return true
				})
				var err error
				switch method {
				case http.MethodGet:
					_, err = r.Manifest(t.Context(), "stable")
				case http.MethodHead:
					_, err = r.Digest(t.Context(), "stable")
				default:
					err = r.Tag(t.Context(), m, "stable")
				}
				if got := problem.ExitCode(err); got != c.wantExit {
					t.Errorf("exit %d, want %d: %v", got, c.wantExit, err)
				}
				if err != nil && problem.As(err).WireCode() != c.wantCode {
					t.Errorf("code %q, want %q", problem.As(err).WireCode(), c.wantCode)
				}
				// A cut GET or HEAD on a kept connection is repeated by net/http itself.
				if len(w.all) > c.waits || len(w.all) < c.waits-1 || c.atLeast > 0 && w.all[0] < c.atLeast {
					t.Errorf("waited %v, want %d times, at least %s first", w.all, c.waits, c.atLeast)
				}
			})
		}
	}
}

func status(code int, retryAfter string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(code)
	}
}

func cut(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func TestASilentRegistryIsInconclusive(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	r, _ := open(t, s, oci.Options{Timeout: 30 * time.Millisecond})
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ bool) bool {
		<-r.Context().Done()
		return true
	})
	_, err := r.Digest(t.Context(), "stable")
	if problem.ExitCode(err) != 5 || errors.Is(err, release.ErrNotFound) {
		t.Errorf("%v, want inconclusive", err)
	}
}

func TestAClosedPortIsInconclusive(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	w := &waits{}
	r, err := oci.New(host+"/a/b", oci.Options{Keychain: noKeychain{}, Wait: w.wait})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.Digest(t.Context(), "stable"); problem.ExitCode(err) != 5 || len(w.all) != 3 {
		t.Errorf("%v after %d waits, want inconclusive after 3", err, len(w.all))
	}
}

func TestMissingRightsSayWhichOne(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	m := s.Push(t, ocitest.Image{Text: "a"})
	r, w := open(t, s, oci.Options{})
	s.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
		if after || r.URL.Path == "/v2/" {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"permission_denied: write_package"}]}`))
		return true
	})
	err := r.Tag(t.Context(), m, "stable")
	e := problem.As(err)
	if e.Kind != problem.Forbidden || !strings.Contains(e.Message, "write_package") || !strings.Contains(e.Hint, "write") || len(w.all) > 0 {
		t.Errorf("%v (hint %q), want forbidden with the right's name, at once", err, e.Hint)
	}
}

func TestBasicCredentialsOfTheKeychainAreUsed(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	s.SetTag(t, s.Push(t, ocitest.Image{Text: "a"}), "stable")
	s.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
		if user, password, ok := r.BasicAuth(); after || ok && user == "u" && password == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	good, err := oci.New(s.Repository(), oci.Options{Keychain: keychain{"u", "p"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := good.Digest(t.Context(), "stable"); err != nil {
		t.Error(err)
	}
	bad, _ := open(t, s, oci.Options{})
	if _, err := bad.Digest(t.Context(), "stable"); !problem.Is(err, problem.Unauthenticated) || !strings.Contains(problem.As(err).Hint, "docker login") {
		t.Errorf("%v, want unauthenticated", err)
	}
}

type keychain struct{ user, password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.user, Password: k.password}, nil
}

// seen is a transport that records where calls would go and answers none.
type seen struct{ urls []string }

func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	s.urls = append(s.urls, r.URL.Scheme+"://"+r.URL.Host)
	return nil, errors.New("unreachable")
}

func TestOnlyThisMachineIsSpokenToInPlainHTTP(t *testing.T) {
	t.Parallel()
	for repository, want := range map[string]string{
		"ghcr.io/o/n": "https://ghcr.io", "10.0.0.7:5000/o/n": "https://10.0.0.7:5000", "registry.local/o/n": "https://registry.local",
		"127.0.0.1:5000/o/n": "http://127.0.0.1:5000", "localhost:5000/o/n": "http://localhost:5000",
	} {
		s := &seen{}
		w := &waits{}
		r, err := oci.New(repository, oci.Options{Keychain: noKeychain{}, Transport: s, Wait: w.wait})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Digest(t.Context(), "stable"); problem.ExitCode(err) != 5 {
			t.Errorf("%s: %v, want inconclusive", repository, err)
		}
		if got := slices.Compact(s.urls); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: asked %v, want %s only", repository, got, want)
		}
	}
}

func TestNamesThatAreNoRepository(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "ghcr.io", "ghcr.io/Owner/name", "ghcr.io/o/n:tag", "ghcr.io/o/n@sha256:" + strings.Repeat("a", 64), "https://ghcr.io/o/n", "o/n"} {
		if r, err := oci.New(name, oci.Options{}); !problem.Is(err, problem.Usage) {
			t.Errorf("%q: %v, %v, want a usage error", name, r, err)
		}
	}
}

func TestAPersonCanInterrupt(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	r, _ := open(t, s, oci.Options{})
	ctx, stop := context.WithCancel(t.Context())
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ bool) bool {
		stop()
		<-r.Context().Done()
		return true
	})
	if _, err := r.Digest(ctx, "stable"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled in its chain", err)
	}
}
