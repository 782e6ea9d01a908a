// Package gcstest is a small, stateful Google Cloud Storage for tests.
//
// It speaks the part of the JSON API that the adapter uses and keeps its rules:
// tokens from a signed assertion that expire, resumable uploads whose pieces
// are multiples of 256 KiB, of which it may keep less than it was sent, a
// session that dies, preconditions at begin and end, paged listings, errors in
// Google's form. Faults can be put before its answers.
package gcstest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Quantum is what every piece but the last must be a multiple of.
const Quantum = 256 << 10

// Server is the service with one bucket.
type Server struct {
	URL     string
	Bucket  string
	Account redact.Secret // JSON of a service account that it knows
	Page    int           // objects in a page of a listing; 1000

	// Fault is asked first for each request to the storage API; true means that
	// it has answered.
	Fault func(w http.ResponseWriter, r *http.Request) bool
	// Keep decides how many bytes of a piece are kept; all when nil.
	Keep func(sent int) int
	// Lose is asked after a request was carried out; true cuts the connection
	// instead of answering, at most once.
	Lose func(r *http.Request) bool
	// Damage changes an object as it is stored.
	Damage func([]byte)

	t   testing.TB
	key *rsa.PrivateKey

	mu       sync.Mutex
	objects  map[string]object
	sessions map[string]*session
	tokens   map[string]time.Time
	issued   int
	lost     int
}

type object struct {
	data       []byte
	generation int
	updated    time.Time
}

type session struct {
	name string
	data []byte
	done *object
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, Bucket: "agnes-backups", key: key, objects: map[string]object{}, sessions: map[string]*session{}, tokens: map[string]time.Time{}, Page: 1000}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.token)
	mux.HandleFunc("POST /upload/storage/v1/b/{bucket}/o", s.guarded(s.begin))
	mux.HandleFunc("PUT /session/{id}", s.guarded(s.piece))
	mux.HandleFunc("DELETE /session/{id}", s.guarded(s.forget))
	mux.HandleFunc("GET /storage/v1/b/{bucket}/o", s.guarded(s.list))
	mux.HandleFunc("GET /storage/v1/b/{bucket}/o/{name}", s.guarded(s.get))
	mux.HandleFunc("DELETE /storage/v1/b/{bucket}/o/{name}", s.guarded(s.remove))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.URL = server.URL
	s.Account = account(t, key, s.URL+"/token")
	return s
}

// Stranger returns the JSON of an account that the server does not know.
func (s *Server) Stranger() redact.Secret {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	return account(s.t, key, s.URL+"/token")
}

func account(t testing.TB, key *rsa.PrivateKey, tokens string) redact.Secret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "backup@project.iam.gserviceaccount.com", "private_key_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": tokens,
	})
	if err != nil {
		t.Fatal(err)
	}
	return redact.Secret(doc)
}

// Names returns the names of all objects.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n := range s.objects {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Sessions is how many uploads have begun and not ended.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Expire ends all tokens, as an hour does.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// LoseSessions forgets all uploads that are under way.
func (s *Server) LoseSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

// token serves RFC 7523: a signed assertion for a token.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	_, err := jwt.Parse(r.FormValue("assertion"), func(*jwt.Token) (any, error) { return &s.key.PublicKey, nil },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithAudience(s.URL+"/token"), jwt.WithIssuedAt())
	w.Header().Set("Content-Type", "application/json")
	if err != nil || r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	token := rand.Text()
	s.tokens[token] = time.Now().Add(time.Hour)
	fmt.Fprintf(w, `{"access_token":%q,"expires_in":3600,"token_type":"Bearer"}`, token)
}

// Lost is how many answers Lose has kept back.
func (s *Server) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// loses reports whether the answer to r is to be kept back.
func (s *Server) loses(r *http.Request) bool {
	if s.Lose == nil || s.Lost() > 0 || !s.Lose(r) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost++
	return true
}

func (s *Server) guarded(next func(http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.Fault != nil && s.Fault(w, r) {
			return
		}
		answer := httptest.NewRecorder()
		s.serve(answer, r, next)
		if s.loses(r) {
			panic(http.ErrAbortHandler)
		}
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, next func(http.ResponseWriter, *http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if until := s.tokens[token]; time.Now().After(until) {
		Error(w, http.StatusUnauthorized, "authError", "Invalid Credentials")
		return
	}
	if b := r.PathValue("bucket"); b != "" && b != s.Bucket {
		Error(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	next(w, r)
}

// Error answers as Google does.
func Error(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": status, "message": message, "errors": []map[string]string{{"message": message, "domain": "global", "reason": reason}},
	}})
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if r.URL.Query().Get("uploadType") != "resumable" || name == "" {
		Error(w, http.StatusBadRequest, "required", "Required parameter: name")
		return
	}
	if _, taken := s.objects[name]; taken && r.URL.Query().Get("ifGenerationMatch") == "0" {
		Error(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	id := rand.Text()
	s.sessions[id] = &session{name: name}
	w.Header().Set("Location", s.URL+"/session/"+id)
}

func (s *Server) piece(w http.ResponseWriter, r *http.Request) {
	up, ok := s.sessions[r.PathValue("id")]
	if !ok {
		w.WriteHeader(http.StatusGone)
		return
	}
	if up.done != nil {
		s.describe(w, up.name, *up.done)
		return
	}
	place, isRange := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes ")
	span, total, _ := strings.Cut(place, "/")
	body, err := io.ReadAll(r.Body)
	if !isRange || err != nil {
		Error(w, http.StatusBadRequest, "badRequest", "Failed to parse Content-Range header.")
		return
	}
	if span != "*" && !s.take(w, up, span, total, body) {
		return
	}
	if size, err := strconv.Atoi(total); err == nil && len(up.data) == size {
		s.finish(w, up)
		return
	}
	if len(up.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(up.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// take keeps bytes; false means that it has answered.
func (s *Server) take(w http.ResponseWriter, up *session, span, total string, body []byte) bool {
	from, to, _ := strings.Cut(span, "-")
	a, err1 := strconv.Atoi(from)
	b, err2 := strconv.Atoi(to)
	if err1 != nil || err2 != nil || b-a+1 != len(body) || a > len(up.data) {
		Error(w, http.StatusBadRequest, "badRequest", "Invalid request. The number of bytes does not match, or there is a gap.")
		return false
	}
	if total == "*" && len(body)%Quantum != 0 {
		Error(w, http.StatusBadRequest, "badRequest", "Invalid request. The chunk is no multiple of 256 KiB.")
		return false
	}
	if n := len(body); s.Keep != nil {
		n = min(n, s.Keep(n))
		if a+n != size(total) {
			n -= n % Quantum
		}
		body = body[:n]
	}
	if end := a + len(body); end > len(up.data) {
		up.data = append(up.data, body[len(up.data)-a:]...)
	}
	return true
}

func size(total string) int {
	n, err := strconv.Atoi(total)
	if err != nil {
		return -1
	}
	return n
}

func (s *Server) finish(w http.ResponseWriter, up *session) {
	if _, taken := s.objects[up.name]; taken {
		Error(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	if s.Damage != nil {
		s.Damage(up.data)
	}
	s.issued++
	o := object{data: up.data, generation: s.issued, updated: time.Now()}
	s.objects[up.name] = o
	up.done = &o
	up.data = nil
	s.describe(w, up.name, o)
}

func (s *Server) describe(w http.ResponseWriter, name string, o object) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(resource(name, o))
}

func resource(name string, o object) map[string]any {
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(o.data, crc32.MakeTable(crc32.Castagnoli)))
	return map[string]any{
		"kind": "storage#object", "name": name, "size": strconv.Itoa(len(o.data)), "generation": strconv.Itoa(o.generation),
		"crc32c": base64.StdEncoding.EncodeToString(sum), "updated": o.updated.UTC().Format(time.RFC3339Nano),
	}
}

func (s *Server) forget(w http.ResponseWriter, r *http.Request) {
	delete(s.sessions, r.PathValue("id"))
	w.WriteHeader(499) // "Client Closed Request", which is Google's yes
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var names []string
	for n := range s.objects {
		if strings.HasPrefix(n, q.Get("prefix")) && n > q.Get("pageToken") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	most, _ := strconv.Atoi(q.Get("maxResults"))
	most = min(most, s.Page)
	answer := map[string]any{"kind": "storage#objects"}
	if len(names) > most {
		names = names[:most]
		answer["nextPageToken"] = names[most-1]
	}
	var items []map[string]any
	for _, n := range names {
		items = append(items, resource(n, s.objects[n]))
	}
	if items != nil {
		answer["items"] = items
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	o, ok := s.objects[r.PathValue("name")]
	if !ok {
		w.WriteHeader(http.StatusNotFound) // a media download's error is plain text
		fmt.Fprintf(w, "No such object: %s/%s", s.Bucket, r.PathValue("name"))
		return
	}
	if r.URL.Query().Get("alt") != "media" {
		s.describe(w, r.PathValue("name"), o)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		at, err := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err != nil || at >= len(o.data) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(o.data)-1, len(o.data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(o.data[at:])
		return
	}
	_, _ = w.Write(o.data)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	o, ok := s.objects[r.PathValue("name")]
	if !ok {
		Error(w, http.StatusNotFound, "notFound", "No such object: "+s.Bucket+"/"+r.PathValue("name"))
		return
	}
	if want := r.URL.Query().Get("ifGenerationMatch"); want != "" && want != strconv.Itoa(o.generation) {
		Error(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	delete(s.objects, r.PathValue("name"))
	w.WriteHeader(http.StatusNoContent)
}
