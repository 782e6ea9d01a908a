package cosign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// key verifies signatures of one public key, over SHA-256 where the key's kind
// leaves that open, as cosign does.
type key struct {
	verify      func(message, signature []byte) bool
	fingerprint string // for people: SHA256:… of its DER
}

// parseKeys reads every public key of a PEM file.
func parseKeys(text []byte) ([]key, error) {
	bad := func(found string) error {
		return problem.New(problem.Usage, "expected public keys in PEM (BEGIN PUBLIC KEY): ECDSA P-256, P-384 or P-521, Ed25519, or RSA of 2048 bits or more; found "+found,
			"cosign public-key --key cosign.key >cosign.pub")
	}
	var keys []key
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "PUBLIC KEY" {
			return nil, bad(fmt.Sprintf("%q", block.Type))
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, bad(err.Error())
		}
		verify := verifier(public)
		if verify == nil {
			return nil, bad(fmt.Sprintf("a %T that is none of these", public))
		}
		sum := sha256.Sum256(block.Bytes)
		keys = append(keys, key{verify, "SHA256:" + hex.EncodeToString(sum[:8])})
	}
	if len(keys) == 0 {
		return nil, bad("none")
	}
	return keys, nil
}

// verifier returns nil for a key that is not to be trusted or not known.
func verifier(public any) func(message, signature []byte) bool {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() && p.Curve != elliptic.P384() && p.Curve != elliptic.P521() {
			return nil
		}
		return func(message, signature []byte) bool {
			sum := sha256.Sum256(message)
			return ecdsa.VerifyASN1(p, sum[:], signature)
		}
	case ed25519.PublicKey:
		return func(message, signature []byte) bool { return ed25519.Verify(p, message, signature) }
	case *rsa.PublicKey:
		if p.N.BitLen() < 2048 {
			return nil
		}
		return func(message, signature []byte) bool {
			sum := sha256.Sum256(message)
			return rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], signature) == nil
		}
	}
	return nil
}
