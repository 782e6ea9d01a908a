package cosign_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release/cosign"
	"github.com/keboola/agnes-the-ai-analyst/release/cosign/cosigntest"
)

const repository = "keboola/agnes"

type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// server is a registry whose every answer a test can replace.
type server struct {
	host    string
	replace atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func serve(t *testing.T, referrers bool) *server {
	t.Helper()
	s := &server{}
	inner := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), registry.WithReferrersSupport(referrers))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.replace.Load(); f != nil && (*f)(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	s.host = strings.TrimPrefix(web.URL, "http://")
	return s
}

func (s *server) repository() string { return s.host + "/" + repository }

func (s *server) intercept(f func(http.ResponseWriter, *http.Request) bool) { s.replace.Store(&f) }

// put writes a manifest or a blob and returns its digest.
func (s *server) put(t *testing.T, reference, mediaType string, body []byte) string {
	t.Helper()
	sum := sha256.Sum256(body)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	url, method := "http://"+s.host+"/v2/"+repository+"/blobs/uploads/?digest="+digest, http.MethodPost
	if reference != "" {
		url, method = "http://"+s.host+"/v2/"+repository+"/manifests/"+reference, http.MethodPut
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, url, resp.StatusCode, text)
	}
	return digest
}

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s *server) verifier(t *testing.T, keys ...[]byte) *cosign.Verifier {
	t.Helper()
	v, err := cosign.New(s.repository(), cosign.Options{Keys: keys, Keychain: anonymous{}, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// refused holds an error to its code, and to a next command for people.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	if !problem.Is(err, problem.Refused) || problem.As(err).Code != code || problem.As(err).Hint == "" {
		t.Errorf("%v, want a refusal with the code %s", err, code)
	}
}

// classic puts what cosign wrote into a registry.
func (s *server) classic(t *testing.T) (digest string) {
	t.Helper()
	sum := sha256.Sum256(file(t, "classic/image.json"))
	digest = "sha256:" + hex.EncodeToString(sum[:])
	s.put(t, "", "application/octet-stream", file(t, "classic/payload.json"))
	s.put(t, strings.Replace(digest, ":", "-", 1)+".sig", mediaManifest, file(t, "classic/signature.json"))
	return digest
}

func (s *server) bundle(t *testing.T, referrers bool) (digest string) {
	t.Helper()
	sum := sha256.Sum256(file(t, "bundle/image.json"))
	digest = "sha256:" + hex.EncodeToString(sum[:])
	s.put(t, "", "application/octet-stream", file(t, "bundle/bundle.json"))
	manifest := file(t, "bundle/signature.json")
	of := sha256.Sum256(manifest)
	s.put(t, "sha256:"+hex.EncodeToString(of[:]), mediaManifest, manifest)
	if !referrers {
		s.put(t, strings.Replace(digest, ":", "-", 1), mediaIndex, file(t, "bundle/referrers.json"))
	}
	return digest
}

func TestWhatCosignSignedIsGood(t *testing.T) {
	t.Parallel()
	public := file(t, "cosign.pub")
	stranger := cosigntest.NewKey(t, "stranger")
	for name, put := range map[string]func(*testing.T) (*server, string){
		"classic":                      func(t *testing.T) (*server, string) { t.Helper(); s := serve(t, true); return s, s.classic(t) },
		"bundle, referrers API":        func(t *testing.T) (*server, string) { t.Helper(); s := serve(t, true); return s, s.bundle(t, true) },
		"bundle, referrers in a tag":   func(t *testing.T) (*server, string) { t.Helper(); s := serve(t, false); return s, s.bundle(t, false) },
		"classic in an older registry": func(t *testing.T) (*server, string) { t.Helper(); s := serve(t, false); return s, s.classic(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, digest := put(t)
			if err := s.verifier(t, public).Verify(t.Context(), digest); err != nil {
				t.Error(err)
			}
			if err := s.verifier(t, stranger.Public, public).Verify(t.Context(), digest); err != nil {
				t.Errorf("with a second key: %v", err)
			}
			if err := s.verifier(t, append(stranger.Public, public...)).Verify(t.Context(), digest); err != nil {
				t.Errorf("with two keys in a file: %v", err)
			}
			refused(t, s.verifier(t, stranger.Public).Verify(t.Context(), digest), "signature_invalid")
			refused(t, s.verifier(t, public).Verify(t.Context(), "sha256:"+strings.Repeat("ab", 32)), "signature_missing")
		})
	}
}

func TestASignatureIsOfOneImageAndWhole(t *testing.T) {
	t.Parallel()
	image, other := "sha256:"+strings.Repeat("a1", 32), "sha256:"+strings.Repeat("b2", 32)
	ours, theirs := cosigntest.NewKey(t, "ours"), cosigntest.NewKey(t, "theirs")
	payload := func(digest string) []byte { return cosigntest.Payload(t, repository, digest) }
	good := payload(image)
	for name, c := range map[string]struct {
		payload   []byte
		signature string
	}{
		"another key":                {good, theirs.Signature(t, good)},
		"another image, replayed":    {payload(other), ours.Signature(t, payload(other))},
		"another image's signature":  {good, ours.Signature(t, payload(other))},
		"a space more":               {append([]byte(" "), good...), ours.Signature(t, good)},
		"no signature":               {good, ""},
		"no base64":                  {good, "!"},
		"no ASN.1":                   {good, "AAAA"},
		"another type":               {bytes.Replace(good, []byte("cosign container image signature"), []byte("attestation"), 1), ""},
		"no JSON, but signed":        {[]byte("x"), ours.Signature(t, []byte("x"))},
		"nothing, but signed":        {[]byte("{}"), ours.Signature(t, []byte("{}"))},
		"the digest in another case": {bytes.ReplaceAll(good, []byte("a1"), []byte("A1")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.signature == "" && name != "no signature" {
				c.signature = ours.Signature(t, c.payload)
			}
			s := serve(t, true)
			cosigntest.Push(t, s.repository(), image, c.payload, c.signature)
			v := s.verifier(t, ours.Public)
			refused(t, v.Verify(t.Context(), image), "signature_invalid")
			cosigntest.Sign(t, s.repository(), image, ours)
			if err := v.Verify(t.Context(), image); err != nil {
				t.Errorf("with a good one after it: %v", err)
			}
			refused(t, v.Verify(t.Context(), other), "signature_missing")
		})
	}
}

// The same key may sign what is known against an
// image.
func TestABundleIsOfOneImageAndSaysThatItIsGood(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	image, other := "sha256:"+strings.Repeat("a1", 32), "sha256:"+strings.Repeat("b2", 32)
	const sign, inToto, v1 = "https://sigstore.dev/cosign/sign/v1", "application/vnd.in-toto+json", "https://in-toto.io/Statement/v1"
	for name, c := range map[string]struct {
		statement, predicate, digest, payloadType, signedType, code string
	}{
		"good":                           {v1, sign, image, inToto, inToto, ""},
		"an attestation":                 {v1, "https://slsa.dev/provenance/v1", image, inToto, inToto, "signature_missing"},
		"of another image":               {v1, sign, other, inToto, inToto, "signature_invalid"},
		"no statement":                   {"https://example.org/Statement", sign, image, inToto, inToto, "signature_invalid"},
		"its type changed after signing": {v1, sign, image, inToto, "text/plain", "signature_invalid"},
		"of another type":                {v1, sign, image, "text/plain", "text/plain", "signature_missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			payload := fmt.Appendf(nil, `{"_type":%q,"subject":[{"digest":{"sha512":"00","sha256":%q}}],"predicateType":%q}`, c.statement, strings.TrimPrefix(c.digest, "sha256:"), c.predicate)
			signature := ed25519.Sign(private, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(c.signedType), c.signedType, len(payload), payload))
			bundle, err := json.Marshal(map[string]any{"dsseEnvelope": map[string]any{
				"payload": payload, "payloadType": c.payloadType, "signatures": []any{map[string]any{"sig": []byte("no")}, map[string]any{"sig": signature}},
			}})
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, true)
			blob := s.put(t, "", "application/octet-stream", bundle)
			const media = "application/vnd.dev.sigstore.bundle.v0.3+json"
			manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%064d","size":2},
				"layers":[{"mediaType":%q,"digest":%q,"size":%d}],"subject":{"mediaType":%q,"digest":%q,"size":1}}`, mediaManifest, media, 0, media, blob, len(bundle), mediaManifest, image)
			s.put(t, "signature", mediaManifest, manifest)
			err = s.verifier(t, public(t, private.Public())).Verify(t.Context(), image)
			if c.code != "" {
				refused(t, err, c.code)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func public(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func TestOtherKindsOfKeysVerify(t *testing.T) {
	t.Parallel()
	image := "sha256:" + strings.Repeat("a1", 32)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	payload := cosigntest.Payload(t, repository, image)
	sum := sha256.Sum256(payload)
	for name, c := range map[string]struct {
		key     crypto.Signer
		message []byte
		hash    crypto.Hash
	}{
		"RSA":         {rsaKey, sum[:], crypto.SHA256},
		"Ed25519":     {edKey, payload, 0},
		"ECDSA P-384": {ecKey, sum[:], crypto.SHA256},
	} {
		signature, err := c.key.Sign(rand.Reader, c.message, c.hash)
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, true)
		cosigntest.Push(t, s.repository(), image, payload, base64.StdEncoding.EncodeToString(signature))
		if err := s.verifier(t, public(t, c.key.Public())).Verify(t.Context(), image); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARegistryThatDoesNotAnswerSaysNothingOfTheImage(t *testing.T) {
	t.Parallel()
	image := "sha256:" + strings.Repeat("a1", 32)
	key := cosigntest.NewKey(t, "ours")
	status := func(code int, where string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, where) {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	for name, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		kind  problem.Kind
	}{
		"503 for the tag":          {status(http.StatusServiceUnavailable, "/manifests/"), problem.Inconclusive},
		"401":                      {status(http.StatusUnauthorized, "/manifests/"), problem.Unauthenticated},
		"403":                      {status(http.StatusForbidden, "/manifests/"), problem.Forbidden},
		"500 for the payload":      {status(http.StatusInternalServerError, "/blobs/"), problem.Inconclusive},
		"a payload that is gone":   {status(http.StatusNotFound, "/blobs/"), problem.Inconclusive},
		"500 for the referrers":    {status(http.StatusInternalServerError, "/referrers/"), problem.Inconclusive},
		"a connection that is cut": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, problem.Inconclusive},
		"a page instead of a manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			_, _ = io.WriteString(w, "<html>")
			return true
		}, problem.Inconclusive},
		"another payload": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			_, _ = w.Write(bytes.ReplaceAll(cosigntest.Payload(t, repository, image), []byte("a1"), []byte("a2")))
			return true
		}, problem.Inconclusive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, true)
			cosigntest.Push(t, s.repository(), image, cosigntest.Payload(t, repository, image), "AAAA") // a bad one: it cannot end well
			s.intercept(c.fault)
			err := s.verifier(t, key.Public).Verify(t.Context(), image)
			if !problem.Is(err, c.kind) || problem.As(err).Hint == "" {
				t.Errorf("%v, want %s", err, c.kind)
			}
		})
	}
	s := serve(t, true)
	s.intercept(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	v, err := cosign.New(s.repository(), cosign.Options{Keys: [][]byte{key.Public}, Keychain: anonymous{}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(t.Context(), image); !problem.Is(err, problem.Inconclusive) {
		t.Errorf("no answer in time: %v", err)
	}
}

func TestWhatCannotVerifyIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	key := cosigntest.NewKey(t, "ours")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: []byte("x")})
	for name, c := range map[string]struct {
		repository string
		keys       [][]byte
	}{
		"no key":           {"ghcr.io/keboola/agnes", nil},
		"an empty file":    {"ghcr.io/keboola/agnes", [][]byte{nil}},
		"no PEM":           {"ghcr.io/keboola/agnes", [][]byte{[]byte("x")}},
		"a private key":    {"ghcr.io/keboola/agnes", [][]byte{secret}},
		"a short RSA key":  {"ghcr.io/keboola/agnes", [][]byte{public(t, small.Public())}},
		"one bad of two":   {"ghcr.io/keboola/agnes", [][]byte{key.Public, secret}},
		"a tag":            {"ghcr.io/keboola/agnes@sha256:00", [][]byte{key.Public}},
		"a URL":            {"https://ghcr.io/keboola/agnes", [][]byte{key.Public}},
		"no host but name": {"", [][]byte{key.Public}},
	} {
		if _, err := cosign.New(c.repository, cosign.Options{Keys: c.keys}); !problem.Is(err, problem.Usage) {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
	v, err := cosign.New("ghcr.io/keboola/agnes", cosign.Options{Keys: [][]byte{key.Public}})
	if err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"", "stable", "sha256:AB", "sha512:" + strings.Repeat("ab", 64)} {
		if err := v.Verify(t.Context(), digest); !problem.Is(err, problem.Internal) {
			t.Errorf("%q: %v", digest, err)
		}
	}
}

func TestKeysForTestsAreTheSameInEveryRun(t *testing.T) {
	t.Parallel()
	a, b := cosigntest.NewKey(t, "x"), cosigntest.NewKey(t, "x")
	if !bytes.Equal(a.Public, b.Public) || a.Signature(t, []byte("m")) != b.Signature(t, []byte("m")) {
		t.Error("two keys of one name differ")
	}
	if bytes.Equal(a.Public, cosigntest.NewKey(t, "y").Public) {
		t.Error("two names have one key")
	}
}
