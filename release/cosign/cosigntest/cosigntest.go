// Package cosigntest signs images for tests as `cosign sign --key` does.
//
// Key makes keys that are the same in every run, Sign writes a signature in the
// classic form next to those that an image has. cosign itself verifies it.
package cosigntest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Key is a key pair on P-256, cosign's default.
type Key struct {
	private *ecdsa.PrivateKey
	// Public is cosign.pub.
	Public []byte
}

// NewKey derives a key from a name. It is worth nothing outside of tests.
func NewKey(t testing.TB, seed string) Key {
	t.Helper()
	scalar := sha256.Sum256([]byte(seed)) // below the curve's order for all but one in 2^32
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return Key{private: private, Public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

// Payload is what cosign signs to say that an image is good.
func Payload(t testing.TB, repository, digest string) []byte {
	t.Helper()
	type object = map[string]any
	text, err := json.Marshal(object{
		"critical": object{
			"identity": object{"docker-reference": repository},
			"image":    object{"docker-manifest-digest": digest},
			"type":     "cosign container image signature",
		},
		"optional": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Signature signs bytes: ASN.1 in base64, the same in every run.
func (k Key) Signature(t testing.TB, payload []byte) string {
	t.Helper()
	sum := sha256.Sum256(payload)
	signature, err := k.private.Sign(nil, sum[:], crypto.SHA256) // RFC 6979
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(signature)
}

// Sign adds a signature of an image to a registry on this machine
// (127.0.0.1:PORT/NAME, sha256:…).
func Sign(t testing.TB, repository, digest string, k Key) {
	t.Helper()
	payload := Payload(t, repository, digest)
	Push(t, repository, digest, payload, k.Signature(t, payload))
}

// Push adds any payload with any signature.
func Push(t testing.TB, repository, digest string, payload []byte, signature string) {
	t.Helper()
	repo, err := name.NewRepository(repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	anonymous := remote.WithAuth(authn.Anonymous)
	tag := repo.Tag(strings.Replace(digest, ":", "-", 1) + ".sig")
	var image v1.Image
	image, err = remote.Image(tag, anonymous, remote.WithContext(t.Context()))
	if e, ok := errors.AsType[*transport.Error](err); ok && e.StatusCode == http.StatusNotFound {
		image, err = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:       static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": signature},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image, anonymous, remote.WithContext(t.Context())); err != nil {
		t.Fatalf("sign %s@%s: %v", repository, digest, err)
	}
}
