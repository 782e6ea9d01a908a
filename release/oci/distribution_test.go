package oci_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/registrytest"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// copyTo sends everything that from has to another registry, over HTTP.
func copyTo(t *testing.T, host string, from *ocitest.Server) {
	t.Helper()
	base := "http://" + host + "/v2/" + ocitest.Repository
	send := func(method, url, contentType string, body []byte) (location string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode > 299 {
			text, _ := io.ReadAll(resp.Body)
			t.Fatalf("%s %s: %d %s", method, url, resp.StatusCode, text)
		}
		at, err := resp.Location() // which may be relative
		if err != nil {
			return ""
		}
		return at.String()
	}
	for _, b := range from.Blobs() {
		at := send(http.MethodPost, base+"/blobs/uploads/", "", nil)
		send(http.MethodPut, at+"&digest="+b.Digest, "application/octet-stream", b.Raw)
	}
	for _, m := range from.Manifests() {
		send(http.MethodPut, base+"/manifests/"+m.Digest, m.MediaType, m.Raw)
	}
}

func TestDistributionKeepsBytesAndAnswersAsExpected(t *testing.T) {
	t.Parallel()
	host := registrytest.Start(t)
	source := ocitest.New(t)
	index := source.Push(t, ocitest.Image{Text: "a", Labels: map[string]string{"k": "v"}})
	copyTo(t, host, source)
	r, err := oci.New(host+"/"+ocitest.Repository, oci.Options{Keychain: noKeychain{}})
	if err != nil {
		t.Fatal(err)
	}
	// A repository without a tag does not exist for it.
	if tags, err := r.Tags(t.Context()); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("%v, %v, want not found", tags, err)
	}
	m, err := r.Manifest(t.Context(), index.Digest)
	if err != nil || !bytes.Equal(m.Raw, index.Raw) || m.MediaType != index.MediaType {
		t.Fatalf("%+v, %v, want %+v", m, err, index)
	}
	for _, tag := range []string{"stable", "stable-2026.04.3", "2026.04.3", "sha-abc1234"} {
		if err := r.Tag(t.Context(), m, tag); err != nil {
			t.Fatal(err)
		}
		got, err := r.Manifest(t.Context(), tag)
		if err != nil || !bytes.Equal(got.Raw, index.Raw) || got.Digest != index.Digest {
			t.Errorf("%s: %+v, %v", tag, got, err)
		}
		if digest, err := r.Digest(t.Context(), tag); err != nil || digest != index.Digest {
			t.Errorf("%s: %s, %v", tag, digest, err)
		}
	}
	if tags, err := r.Tags(t.Context()); err != nil || len(tags) != 4 {
		t.Errorf("%v, %v, want four tags", tags, err)
	}
	if labels, err := r.Labels(t.Context(), m); err != nil || labels["k"] != "v" {
		t.Errorf("%v, %v", labels, err)
	}
	if _, err := r.Digest(t.Context(), "absent"); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("%v, want not found", err)
	}
	odd := release.Manifest{Digest: "sha256:" + strings.Repeat("0", 64), MediaType: "application/vnd.example+json", Raw: []byte("{}")}
	if err := r.Tag(t.Context(), odd, "odd"); !problem.Is(err, problem.Internal) {
		t.Errorf("%v, want a refusal to send bytes under a digest that is not theirs", err)
	}
}
