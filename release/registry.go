package release

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Registry is one repository of an OCI registry. A reference is a tag or a
// digest ("sha256:…").
type Registry interface {
	// Digest returns what a tag points at (one HEAD), or ErrNotFound.
	Digest(ctx context.Context, tag string) (string, error)
	// Manifest reads a manifest or index, byte for byte, or ErrNotFound.
	Manifest(ctx context.Context, reference string) (Manifest, error)
	// Tag points a tag at a manifest by writing the very bytes that were read
	// (one PUT): platforms, attestations and the digest stay as they are.
	Tag(ctx context.Context, m Manifest, tag string) error
	// Tags lists all tags, every page.
	Tags(ctx context.Context) ([]string, error)
	// Labels reads the labels of an image's configuration, of an index the first
	// platform's. It reads a blob: only for the rare questions that digests
	// cannot answer.
	Labels(ctx context.Context, m Manifest) (map[string]string, error)
	// String names the repository: ghcr.io/owner/name.
	String() string
}

// Manifest is a manifest or an index as the registry holds it.
type Manifest struct {
	Digest    string
	MediaType string
	Raw       []byte
}

// Links are the manifests that a manifest names.
type Links struct {
	Children []string // manifests of an index, attestations among them
	Subject  string   // what this manifest is about, or nothing
}

// Links reads the manifest's references to other manifests. Layers and
// configurations are blobs, which the registry collects by itself.
func (m Manifest) Links() (Links, error) {
	var doc struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
		Subject *struct {
			Digest string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return Links{}, problem.Wrap(err, problem.Inconclusive,
			fmt.Sprintf("expected a manifest in JSON, found something else at %s", m.Digest), "")
	}
	var l Links
	for _, child := range doc.Manifests {
		l.Children = append(l.Children, child.Digest)
	}
	if doc.Subject != nil {
		l.Subject = doc.Subject.Digest
	}
	return l, nil
}
