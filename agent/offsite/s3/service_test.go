package s3_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

const (
	bucket    = "agnes-backups"
	keyID     = "AKIAIOSFODNN7EXAMPLE"
	secretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// service is an S3 service: gofakes3 keeps the objects; before it stand the
// rules that it does not know: signatures (AWS's version 4), checksums,
// conditional completion, the clock, and faults.
type service struct {
	*httptest.Server
	backend http.Handler

	// fault is asked first for each request; true means that it has answered.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// lose is asked after a request was carried out; true keeps the answer back.
	lose      func(r *http.Request) bool
	noIfMatch bool          // knows no conditional writes
	clock     time.Duration // how far its clock is ahead
	keeps     keeperClock

	mu       sync.Mutex // of writes: a condition and its write are one step
	lost     atomic.Int64
	open     sync.Map // multipart uploads under way
	requests atomic.Int64
}

func newService(t *testing.T) *service {
	t.Helper()
	keeper := s3mem.New()
	if err := keeper.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	s := &service{}
	s.backend = gofakes3.New(keeper, gofakes3.WithLogger(gofakes3.DiscardLog()), gofakes3.WithTimeSource(&s.keeps), gofakes3.WithTimeSkewLimit(0)).Server()
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// keeperClock is the time that is written to what is kept.
type keeperClock struct{ behind atomic.Int64 }

// Now implements gofakes3.TimeSource.
func (c *keeperClock) Now() time.Time { return time.Now().Add(-time.Duration(c.behind.Load())) }

// Since implements gofakes3.TimeSource.
func (c *keeperClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

func s3Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>test</Message><RequestId>1</RequestId></Error>`, code)
}

// ServeHTTP implements http.Handler.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if s.fault != nil && s.fault(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s3Error(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if status, code := s.admits(r, body); code != "" {
		s3Error(w, status, code)
		return
	}
	answer := httptest.NewRecorder()
	s.carryOut(answer, r)
	if s.lose != nil && s.lose(r) {
		s.lost.Add(1)
		panic(http.ErrAbortHandler)
	}
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func (s *service) carryOut(w *httptest.ResponseRecorder, r *http.Request) {
	q := r.URL.Query()
	if r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodDelete {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	if r.Header.Get("If-None-Match") != "" && r.Method != http.MethodGet && r.Method != http.MethodHead {
		if s.noIfMatch {
			s3Error(w, http.StatusNotImplemented, "NotImplemented")
			return
		}
		if s.has(r) {
			s3Error(w, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
	}
	s.backend.ServeHTTP(w, r)
	switch {
	case w.Code >= 300:
	case r.Method == http.MethodPost && q.Has("uploads"):
		_, id, _ := strings.Cut(w.Body.String(), "<UploadId>")
		id, _, _ = strings.Cut(id, "<")
		s.open.Store(id, true)
	case q.Has("uploadId") && (r.Method == http.MethodPost || r.Method == http.MethodDelete):
		s.open.Delete(q.Get("uploadId"))
	}
}

func (s *service) has(r *http.Request) bool {
	w := httptest.NewRecorder()
	s.backend.ServeHTTP(w, httptest.NewRequestWithContext(r.Context(), http.MethodHead, r.URL.EscapedPath(), nil))
	return w.Code == http.StatusOK
}

// uploads is how many multipart uploads are neither completed nor aborted.
func (s *service) uploads() (n int) {
	s.open.Range(func(any, any) bool { n++; return true })
	return n
}

// admits checks who asks, when, and whether the body is what was signed.
func (s *service) admits(r *http.Request, body []byte) (status int, code string) {
	auth, isV4 := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !isV4 {
		return http.StatusForbidden, "AccessDenied"
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(auth, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[k] = v
	}
	id, scope, _ := strings.Cut(fields["Credential"], "/")
	if id != keyID {
		return http.StatusForbidden, "InvalidAccessKeyId"
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if skew := time.Now().Add(s.clock).Sub(at); err != nil || skew.Abs() > 15*time.Minute {
		return http.StatusForbidden, "RequestTimeTooSkewed"
	}
	if fields["Signature"] != sign(r, scope, strings.Split(fields["SignedHeaders"], ";")) {
		return http.StatusForbidden, "SignatureDoesNotMatch"
	}
	sum := sha256.Sum256(body)
	if want := r.Header.Get("X-Amz-Content-Sha256"); want != "UNSIGNED-PAYLOAD" && want != hex.EncodeToString(sum[:]) {
		return http.StatusBadRequest, "XAmzContentSHA256Mismatch"
	}
	if r.Method == http.MethodPut && r.Header.Get("X-Amz-Content-Sha256") == "UNSIGNED-PAYLOAD" {
		return http.StatusBadRequest, "MissingSecurityHeader" // what is put has to be checked
	}
	old := md5.Sum(body)
	if want := r.Header.Get("Content-Md5"); want != "" && want != base64.StdEncoding.EncodeToString(old[:]) {
		return http.StatusBadRequest, "BadDigest"
	}
	return 0, ""
}

// sign computes a signature by docs.aws.amazon.com/IAM, "Create a signed AWS
// API request".
func sign(r *http.Request, scope string, signed []string) string {
	var headers strings.Builder
	for _, h := range signed {
		value := strings.Join(r.Header.Values(h), ",")
		if h == "host" {
			value = r.Host
		}
		if h == "content-length" {
			value = fmt.Sprint(r.ContentLength)
		}
		headers.WriteString(h + ":" + strings.TrimSpace(value) + "\n")
	}
	var query []string
	for k, vs := range r.URL.Query() {
		for _, v := range vs {
			query = append(query, strings.ReplaceAll(url.QueryEscape(k)+"="+url.QueryEscape(v), "+", "%20"))
		}
	}
	slices.Sort(query)
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), strings.Join(query, "&"), headers.String(), strings.Join(signed, ";"), r.Header.Get("X-Amz-Content-Sha256")}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + r.Header.Get("X-Amz-Date") + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + secretKey)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, text))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// never waits between attempts.
func never(ctx context.Context, _ time.Duration) error { return ctx.Err() }
