package githubtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// newBlobs is where layers and configurations go: another project's registry,
// of which the manifests' half is not used, because here they are versions.
func newBlobs() http.Handler {
	return registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
}

// serveRegistry is the registry half: the OCI distribution API with GHCR's rules.
func (s *Server) serveRegistry(w http.ResponseWriter, req *http.Request) {
	entry := Request{Method: req.Method, Path: req.URL.EscapedPath(), Query: req.URL.RawQuery}
	s.watched(before, entry)
	fault := s.fault(entry)
	if fault != nil && !fault.Carry {
		s.finish(w, entry, fault, fault.answer())
		return
	}
	if strings.Contains(req.URL.Path, "/blobs/") && s.allowed(req) == nil {
		if fault == nil {
			recorder := &recorder{ResponseWriter: w}
			s.blobs.ServeHTTP(recorder, req)
			entry.Status = recorder.status
			s.mu.Lock()
			s.requests = append(s.requests, entry)
			s.mu.Unlock()
			s.watched(after, entry)
			return
		}
		s.blobs.ServeHTTP(httptest.NewRecorder(), req) // which nobody reads
		s.finish(w, entry, fault, fault.answer())
		return
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, 10<<20))
	if err != nil {
		return // the caller went away
	}
	s.mu.Lock()
	a := s.distribute(req, body)
	s.mu.Unlock()
	if fault != nil {
		a = fault.answer()
	}
	if req.Method == http.MethodHead {
		if raw, some := a.body.([]byte); some {
			a.header.Set("Content-Length", strconv.Itoa(len(raw)))
		}
		a.body = nil
	}
	s.finish(w, entry, fault, a)
}

// recorder notes an answer's status.
type recorder struct {
	http.ResponseWriter

	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// denied is an error in the registry's form.
func denied(status int, code, message string) answer {
	return answer{status: status, body: object{"errors": []object{{"code": code, "message": message}}}, header: http.Header{}}
}

// distribute answers everything but blobs.
func (s *Server) distribute(req *http.Request, body []byte) answer {
	if a := s.allowedLocked(req); a != nil {
		return *a
	}
	path := strings.Trim(strings.TrimPrefix(req.URL.Path, "/v2"), "/")
	if path == "" {
		return answer{status: http.StatusOK, body: object{}, header: http.Header{"Docker-Distribution-Api-Version": {"registry/2.0"}}}
	}
	if name, found := strings.CutSuffix(path, "/tags/list"); found {
		return s.tagList(req, name)
	}
	i := strings.LastIndex(path, "/manifests/")
	if i < 0 {
		// Referrers among them: clients fall back to the tag sha256-… (observed).
		return denied(http.StatusNotFound, "NOT_FOUND", "page not found")
	}
	name, reference := path[:i], path[i+len("/manifests/"):]
	owner, short, found := strings.Cut(name, "/")
	if !found {
		return denied(http.StatusBadRequest, "NAME_INVALID", "expected OWNER/NAME")
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		return s.getManifest(s.packages[strings.ToLower(name)], req, reference)
	case http.MethodPut:
		return putManifest(s.pkg(owner, short), req, reference, body)
	default:
		// Only the packages API deletes (observed).
		return denied(http.StatusMethodNotAllowed, "UNSUPPORTED", "The operation is unsupported.")
	}
}

func (s *Server) getManifest(p *Package, req *http.Request, reference string) answer {
	if p == nil {
		return denied(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
	}
	v := p.digests[reference]
	if v == nil {
		v = p.tags[reference]
	}
	if v == nil {
		return denied(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
	}
	if accept := strings.Join(req.Header.Values("Accept"), ","); accept != "" && !strings.Contains(accept, v.media) && !strings.Contains(accept, "*/*") {
		// Not 406, and not another form of it (observed).
		return denied(http.StatusNotFound, "MANIFEST_UNKNOWN", v.media+" found, but accept header does not support it")
	}
	return answer{status: http.StatusOK, body: slices.Clone(v.raw), header: http.Header{
		"Content-Type": {v.media}, "Docker-Content-Digest": {v.digest}, "Etag": {strconv.Quote(v.digest)},
	}}
}

func putManifest(p *Package, req *http.Request, reference string, body []byte) answer {
	var doc struct {
		MediaType string `json:"mediaType"`
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	media := req.Header.Get("Content-Type")
	if err := json.Unmarshal(body, &doc); err != nil || doc.MediaType != "" && doc.MediaType != media {
		return denied(http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid")
	}
	for _, child := range doc.Manifests {
		if p.digests[child.Digest] == nil {
			return denied(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "manifest blob unknown: "+child.Digest)
		}
	}
	byDigest := strings.HasPrefix(reference, "sha256:")
	v := p.push(media, body)
	if byDigest && v.digest != reference {
		return denied(http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
	}
	if !byDigest {
		p.point(reference, v)
	}
	return answer{status: http.StatusCreated, header: http.Header{
		"Docker-Content-Digest": {v.digest}, "Location": {req.URL.Path},
	}}
}

// tagList sends at most 100 tags a page unless n says less or more.
func (s *Server) tagList(req *http.Request, name string) answer {
	p := s.packages[strings.ToLower(name)]
	if p == nil {
		return denied(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
	}
	size := 100
	if n, err := strconv.Atoi(req.URL.Query().Get("n")); err == nil && n > 0 {
		size = min(n, 1000)
	}
	tags := slices.Sorted(maps.Keys(p.tags))
	if last := req.URL.Query().Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	a := answer{status: http.StatusOK, header: http.Header{}}
	if len(tags) > size {
		tags = tags[:size]
		a.header.Set("Link", fmt.Sprintf(`</v2/%s/tags/list?last=%s&n=%d>; rel="next"`, name, url.QueryEscape(tags[size-1]), size))
	}
	if tags == nil {
		tags = []string{}
	}
	a.body = object{"name": name, "tags": tags}
	return a
}

func (s *Server) allowed(req *http.Request) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allowedLocked(req)
}

// allowedLocked answers who may not do this. With WithRegistryLogin everybody needs
// a bearer token, which /token gives for a name and a token of GitHub's, or to
// anybody for what is public.
func (s *Server) allowedLocked(req *http.Request) *answer {
	if !s.login {
		return nil
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	name := path
	for _, part := range []string{"/manifests/", "/blobs/", "/tags/"} {
		name, _, _ = strings.Cut(name, part)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "))
	grant, known := s.tokens[string(raw)]
	if err != nil || len(raw) == 0 || !known && string(raw) != "anonymous" {
		a := denied(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		a.header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="%s",scope="repository:%s:pull"`, s.URL, s.Host, name))
		return &a
	}
	level, p := Write, s.packages[strings.ToLower(name)]
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		if level = Read; p == nil || !p.Private {
			level = None
		}
	}
	if grant.Packages < level {
		a := denied(http.StatusForbidden, "DENIED", "permission_denied: The token provided does not match expected scopes.")
		return &a
	}
	return nil
}

// serveToken gives bearer tokens of the registry.
func (s *Server) serveToken(w http.ResponseWriter, req *http.Request) {
	entry := Request{Method: req.Method, Path: req.URL.EscapedPath(), Query: req.URL.RawQuery}
	token := "anonymous"
	if _, password, some := req.BasicAuth(); some {
		s.mu.Lock()
		_, known := s.tokens[password]
		s.mu.Unlock()
		if token = password; !known {
			s.finish(w, entry, nil, denied(http.StatusForbidden, "DENIED", "invalid token"))
			return
		}
	}
	s.finish(w, entry, nil, ok(object{"token": base64.StdEncoding.EncodeToString([]byte(token))}))
}
