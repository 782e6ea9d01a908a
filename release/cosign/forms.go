package cosign

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	// cosign's specs/SIGNATURE_SPEC.md.
	mediaSimple   = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotation    = "dev.cosignproject.cosign/signature"
	typeSimple    = "cosign container image signature"
	mediaBundle   = "application/vnd.dev.sigstore.bundle." // v0.3+json and what follows
	mediaInToto   = "application/vnd.in-toto+json"
	typeStatement = "https://in-toto.io/Statement/" // v0.1, v1
	// A statement with another predicate says something else of the image, such as
	// how it was built or what is known against it.
	predicateSign = "https://sigstore.dev/cosign/sign/v1"
)

// manifest is what matters here of an OCI manifest.
type manifest struct {
	ArtifactType string `json:"artifactType"`
	Layers       []struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Annotations map[string]string `json:"annotations"`
	} `json:"layers"`
	Subject struct {
		Digest string `json:"digest"`
	} `json:"subject"`
}

// classic judges the signatures at the tag sha256-….sig: one layer each.
func (r *round) classic() error {
	tag := strings.Replace(r.image.DigestStr(), ":", "-", 1) + ".sig"
	got, err := remote.Get(r.repo.Tag(tag), r.remote()...)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(got.Manifest, &m); err != nil {
		return fmt.Errorf("expected a manifest at %s: %w", tag, err)
	}
	if len(m.Layers) > maxSignatures {
		return fmt.Errorf("expected at most %d signatures at %s, found %d", maxSignatures, tag, len(m.Layers))
	}
	var trouble []error
	for _, layer := range m.Layers {
		if layer.MediaType != mediaSimple {
			continue
		}
		payload, err := r.blob(layer.Digest)
		if err != nil {
			trouble = append(trouble, err)
			continue
		}
		r.judge(r.simple(payload, layer.Annotations[annotation]))
		if r.good {
			return nil
		}
	}
	return errors.Join(trouble...)
}

// simple judges one payload. The signature comes first: what nobody signed is
// not worth reading.
func (r *round) simple(payload []byte, encoded string) error {
	if err := r.signed(payload, encoded); err != nil {
		return err
	}
	var claim struct {
		Critical struct {
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &claim); err != nil {
		return fmt.Errorf("signed with a known key, but no payload in JSON: %w", err)
	}
	switch c := claim.Critical; {
	case c.Type != typeSimple:
		return fmt.Errorf("signed with a known key, but as %.80q instead of %q", c.Type, typeSimple)
	case c.Image.Digest != r.image.DigestStr():
		return fmt.Errorf("signed with a known key, but for %.80q", c.Image.Digest)
	}
	return nil
}

// bundles judges the bundles that refer to the image.
func (r *round) bundles() error {
	index, err := remote.Referrers(r.image, r.remote()...)
	if err != nil {
		return err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}
	var trouble []error
	looked := 0
	for _, d := range list.Manifests {
		// cosign 2.6 lists its bundles under the type of their empty configuration.
		if d.ArtifactType != "" && !strings.HasPrefix(d.ArtifactType, mediaBundle) && d.ArtifactType != "application/vnd.oci.empty.v1+json" {
			continue
		}
		if looked++; looked > maxSignatures {
			return fmt.Errorf("expected at most %d bundles that refer to %s, found more", maxSignatures, r.image.DigestStr())
		}
		if err := r.referrer(d.Digest.String()); err != nil {
			trouble = append(trouble, err)
		}
		if r.good {
			return nil
		}
	}
	return errors.Join(trouble...)
}

// referrer judges one manifest that may hold a bundle.
func (r *round) referrer(digest string) error {
	got, err := remote.Get(r.repo.Digest(digest), r.remote()...)
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(got.Manifest, &m); err != nil {
		return fmt.Errorf("expected a manifest at %s: %w", digest, err)
	}
	if m.Subject.Digest != r.image.DigestStr() || len(m.Layers) != 1 || !strings.HasPrefix(m.Layers[0].MediaType, mediaBundle) {
		return nil
	}
	text, err := r.blob(m.Layers[0].Digest)
	if err != nil {
		return err
	}
	is, err := r.bundle(text)
	if is {
		r.judge(err)
	}
	return nil
}

// bundle judges one bundle, and reports whether it is a signature at all: an
// attestation of a build or a list of parts is none.
func (r *round) bundle(text []byte) (is bool, err error) {
	var b struct {
		Envelope struct {
			Payload    []byte `json:"payload"`
			Type       string `json:"payloadType"`
			Signatures []struct {
				Sig string `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return true, fmt.Errorf("no bundle in JSON: %w", err)
	}
	e := b.Envelope
	if e.Type != mediaInToto || len(e.Signatures) == 0 {
		return false, nil
	}
	var s struct {
		Type    string `json:"_type"`
		Subject []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		Predicate string `json:"predicateType"`
	}
	if err := json.Unmarshal(e.Payload, &s); err != nil {
		return true, fmt.Errorf("no statement in JSON: %w", err)
	}
	if s.Predicate != predicateSign {
		return false, nil
	}
	// Pre-authentication encoding, DSSE v1.0: the type is signed, too.
	message := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.Type), e.Type, len(e.Payload), e.Payload)
	var last error
	if !slices.ContainsFunc(e.Signatures[:min(len(e.Signatures), maxSignatures)], func(sig struct {
		Sig string `json:"sig"`
	},
	) bool {
		last = r.signed(message, sig.Sig)
		return last == nil
	}) {
		return true, last
	}
	if !strings.HasPrefix(s.Type, typeStatement) {
		return true, fmt.Errorf("signed with a known key, but as %.80q", s.Type)
	}
	for _, subject := range s.Subject {
		if "sha256:"+subject.Digest["sha256"] == r.image.DigestStr() {
			return true, nil
		}
	}
	return true, errors.New("signed with a known key, but for another image")
}

// signed says why none of the keys signed the message.
func (r *round) signed(message []byte, encoded string) error {
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(signature) == 0 {
		return errors.New("a signature that is not base64")
	}
	if !slices.ContainsFunc(r.keys, func(k key) bool { return k.verify(message, signature) }) {
		return errors.New("not signed with a known key, or tampered with")
	}
	return nil
}
