package githubtest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

func imageRef(t *testing.T, s *Server, text string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s.Host+"/"+text, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func statusOf(err error) int {
	if e := (*transport.Error)(nil); errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}

func TestTheRegistryAndThePackagesApiAreOne(t *testing.T) {
	t.Parallel()
	s := New(t)
	index, err := random.Index(100, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(imageRef(t, s, "acme/agnes:dev"), index); err != nil {
		t.Fatal(err)
	}
	p := s.Package("acme", "agnes")
	versions := p.Versions()
	if len(versions) != 3 || p.Tag("dev") != digest.String() {
		t.Fatalf("%d versions and dev at %s, want 3 (an index, two images) and %s", len(versions), p.Tag("dev"), digest)
	}
	if n := s.Count("PUT", "/v2/acme/agnes/manifests/*"); n != 3 {
		t.Errorf("%d manifests were written, want 3", n)
	}
	if n := s.Count("", "/v2/acme/agnes/blobs/*"); n == 0 {
		t.Error("no request for blobs is in the log")
	}
	// A second tag is a second name for the same bytes.
	desc, err := remote.Get(imageRef(t, s, "acme/agnes:dev"))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Tag(imageRef(t, s, "acme/agnes:dev-2026.04.1").(name.Tag), desc); err != nil {
		t.Fatal(err)
	}
	other, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(imageRef(t, s, "acme/agnes:stable"), other); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(imageRef(t, s, "acme/agnes:dev-2026.04.1"))
	if err != nil {
		t.Fatal(err)
	}
	walk(t, got)
	// The registry deletes nothing; the API deletes a manifest with all its tags.
	if err := remote.Delete(imageRef(t, s, "acme/agnes@"+digest.String())); statusOf(err) != http.StatusMethodNotAllowed {
		t.Errorf("DELETE of a manifest: %v, want 405", err)
	}
	var id int64
	for _, v := range p.Versions() {
		if v.Digest == digest.String() {
			id = v.ID
		}
	}
	one := fmt.Sprintf("/orgs/acme/packages/container/agnes/versions/%d", id)
	if got, _, _ := s.send(t, Token, "DELETE", one, nil); got != http.StatusNoContent {
		t.Fatalf("DELETE of the version: %d", got)
	}
	for _, text := range []string{"acme/agnes:dev", "acme/agnes:dev-2026.04.1", "acme/agnes@" + digest.String()} {
		if _, err := remote.Head(imageRef(t, s, text)); statusOf(err) != http.StatusNotFound {
			t.Errorf("HEAD %s after the deletion: %v, want 404", text, err)
		}
	}
	if got, _, _ := s.send(t, Token, "POST", one+"/restore", nil); got != http.StatusNoContent {
		t.Fatalf("restore: %d", got)
	}
	got, err = remote.Index(imageRef(t, s, "acme/agnes:dev"))
	if err != nil {
		t.Fatal(err)
	}
	walk(t, got)
}

// walk reads everything that an index names.
func walk(t *testing.T, index v1.ImageIndex) {
	t.Helper()
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range manifest.Manifests {
		image, err := index.Image(child.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers {
			content, err := layer.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			_ = content.Close()
		}
	}
}

func TestTagsComeInPages(t *testing.T) {
	t.Parallel()
	s := New(t)
	p := s.Package("acme", "agnes")
	var want []string
	for i := range 250 {
		want = append(want, fmt.Sprintf("tag-%03d", i))
	}
	p.Push("application/json", []byte(`{}`), want...)
	got, err := remote.List(imageRef(t, s, "acme/agnes:x").Context(), remote.WithPageSize(100))
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d tags, %v, want 250", len(got), err)
	}
	if n := s.Count("GET", "/v2/acme/agnes/tags/list"); n != 3 {
		t.Errorf("%d lists, want 3", n)
	}
}

func TestAnotherFormOfAManifestIsNotThere(t *testing.T) {
	t.Parallel()
	s := New(t)
	s.Package("acme", "agnes").Push("application/vnd.oci.image.index.v1+json", []byte(`{"manifests":[]}`), "dev")
	for accept, want := range map[string]int{
		"application/vnd.oci.image.index.v1+json":              200,
		"application/vnd.docker.distribution.manifest.v2+json": 404,
		"*/*": 200,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v2/acme/agnes/manifests/dev", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Accept %s: %d, want %d", accept, resp.StatusCode, want)
		}
	}
}

func TestTheRegistryAsksForALogin(t *testing.T) {
	t.Parallel()
	s := New(t, WithRegistryLogin())
	s.Grant("reader", Grant{Packages: Read})
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	as := func(token string) remote.Option {
		return remote.WithAuth(&authn.Basic{Username: "bot", Password: token})
	}
	if err := remote.Write(imageRef(t, s, "acme/agnes:dev"), image); statusOf(err) != http.StatusForbidden {
		t.Errorf("push by anybody: %v, want 403", err)
	}
	if err := remote.Write(imageRef(t, s, "acme/agnes:dev"), image, as("reader")); statusOf(err) != http.StatusForbidden {
		t.Errorf("push by a reader: %v, want 403", err)
	}
	if err := remote.Write(imageRef(t, s, "acme/agnes:dev"), image, as(Token)); err != nil {
		t.Errorf("push by a writer: %v", err)
	}
	if _, err := remote.Image(imageRef(t, s, "acme/agnes:dev")); err != nil {
		t.Errorf("pull of what is public by anybody: %v", err)
	}
	s.Package("acme", "agnes").Private = true
	if _, err := remote.Image(imageRef(t, s, "acme/agnes:dev")); statusOf(err) != http.StatusForbidden {
		t.Errorf("pull of what is private by anybody: %v, want 403", err)
	}
	if _, err := remote.Image(imageRef(t, s, "acme/agnes:dev"), as("reader")); err != nil {
		t.Errorf("pull of what is private by a reader: %v", err)
	}
}

func TestFaultsOfTheRegistry(t *testing.T) {
	t.Parallel()
	s := New(t)
	s.Package("acme", "agnes").Push("application/vnd.oci.image.manifest.v1+json", []byte(`{}`), "dev")
	s.Inject(Fault{Method: "HEAD", Path: "/v2/*", Status: 429, Times: 1})
	if _, err := remote.Head(imageRef(t, s, "acme/agnes:dev"), remote.WithRetryStatusCodes()); statusOf(err) != http.StatusTooManyRequests {
		t.Errorf("HEAD: %v, want 429", err)
	}
	if _, err := remote.Head(imageRef(t, s, "acme/agnes:dev")); err != nil {
		t.Error(err)
	}
	var before, after []string
	s.Watch(func(r Request) { before = append(before, r.Method) }, func(r Request) { after = append(after, fmt.Sprint(r.Method, r.Status)) })
	if _, err := remote.Head(imageRef(t, s, "acme/agnes:dev")); err != nil {
		t.Error(err)
	}
	s.Watch(nil, nil)
	if !slices.Contains(before, "HEAD") || !slices.Contains(after, "HEAD200") {
		t.Errorf("watched %v and %v", before, after)
	}
}
