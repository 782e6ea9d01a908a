// Package gcs keeps backups in a bucket of Google Cloud Storage, by its JSON
// API (docs.cloud.google.com/storage/docs/json_api).
//
// A backup is sent as a resumable upload: pieces with their place, of which
// the service may keep less than was sent; after a failure it is asked how far
// it came. The upload began under the condition that the name is free, and the
// object appears with the last piece. The service then says the CRC32C of what
// it has; where that differs from what was sent, the object is removed.
//
// It is a client of its own because Google's links over a hundred packages for
// six calls; who the host is, Google's own library finds out.
package gcs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Options are what a target is made of.
type Options struct {
	URL     offsite.URL   // gs://BUCKET/PREFIX
	Account redact.Secret // a service account's JSON; where empty, what Google's own tools would use
	Piece   int           // 8 MiB; a multiple of 256 KiB
	Backoff offsite.Backoff
}

// Target is the bucket. It implements offsite.Target.
type Target struct {
	opt      Options
	bucket   string
	endpoint string
	http     *http.Client

	mu     sync.Mutex
	tokens oauth2.TokenSource
}

const (
	standardEndpoint = "https://storage.googleapis.com"
	standardPiece    = 8 << 20
	scope            = "https://www.googleapis.com/auth/devstorage.read_write"

	statusResume = 308 // "Resume Incomplete", which is no redirect here
)

// New returns the target. It connects to nothing yet.
func New(opt Options) (*Target, error) {
	t := &Target{opt: opt, bucket: opt.URL.Host, endpoint: standardEndpoint}
	if e := opt.URL.Param("endpoint"); e != "" {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
			return nil, problem.New(problem.Usage, "The endpoint of the GCS target cannot be used; expected https://HOST, for every request carries a token.", "Mend it in AGNES_BACKUP_TARGET, or leave it out.")
		}
		t.endpoint = strings.TrimRight(e, "/")
	}
	if t.opt.Piece == 0 {
		t.opt.Piece = standardPiece
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // documented to be one
	transport.ResponseHeaderTimeout = 2 * time.Minute
	t.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return t, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close implements offsite.Target.
func (t *Target) Close() error {
	t.http.CloseIdleConnections()
	return nil
}

// token returns a valid token of whoever this host is.
func (t *Target) token(ctx context.Context) (*oauth2.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tokens == nil {
		// The source keeps its context: it must not end with this call.
		lasting := context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, &http.Client{Timeout: 30 * time.Second})
		var found *google.Credentials
		var err error
		if t.opt.Account != "" {
			found, err = google.CredentialsFromJSONWithType(lasting, []byte(t.opt.Account.Reveal()), google.ServiceAccount, scope)
		} else {
			found, err = google.FindDefaultCredentials(lasting, scope)
		}
		if err != nil {
			return nil, offsite.Fault(offsite.CodeCredentials, err, "No credentials for Google Cloud Storage were found",
				"Set GOOGLE_APPLICATION_CREDENTIALS to a service account's JSON file, or give the machine a service account.")
		}
		t.tokens = found.TokenSource
	}
	token, err := t.tokens.Token()
	if err != nil {
		return nil, t.tokenFault(err)
	}
	return token, nil
}

// request makes one request. The answer's body is the caller's to close; an
// answer that allowed does not list is an error.
func (t *Target) request(ctx context.Context, method, address string, header http.Header, body []byte, allowed ...int) (*http.Response, error) {
	token, err := t.token(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	token.SetAuthHeader(req)
	resp, err := t.http.Do(req)
	if err != nil {
		return nil, t.fault(err)
	}
	if !slices.Contains(allowed, resp.StatusCode) {
		defer func() { _ = resp.Body.Close() }()
		return nil, t.answer(resp)
	}
	return resp, nil
}

func (t *Target) retry(ctx context.Context, f func() error) error {
	return t.opt.Backoff.Retry(ctx, func() error {
		err := f()
		if cause := ctx.Err(); cause != nil && err != nil {
			return cause
		}
		return err
	})
}

func (t *Target) objectURL(name string) string {
	return t.endpoint + "/storage/v1/b/" + url.PathEscape(t.bucket) + "/o/" + url.PathEscape(t.opt.URL.Join(name))
}

// resource is what the API says of an object.
type resource struct {
	Name       string    `json:"name"`
	Size       string    `json:"size"`
	CRC32C     string    `json:"crc32c"`
	Generation string    `json:"generation"`
	Updated    time.Time `json:"updated"`
}

func (r resource) bytes() int64 {
	n, err := strconv.ParseInt(r.Size, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// upload is a resumable upload.
type upload struct {
	session string // its URL, which is a right to write by itself
	done    *resource
	size    int64
	sum     hash.Hash32
}

// Put implements offsite.Target.
func (t *Target) Put(ctx context.Context, name string, size int64, r io.Reader) error {
	up := &upload{size: size, sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	if err := t.retry(ctx, func() error { return t.begin(ctx, up, name) }); err != nil {
		return err
	}
	err := offsite.Chunks(r, size, t.opt.Piece, func(offset int64, data []byte, last bool) error {
		up.sum.Write(data)
		sent, unsure := 0, false // of data; whether the service is to be asked
		return t.retry(ctx, func() error {
			if unsure {
				at, err := t.reached(ctx, up)
				if err != nil || up.done != nil {
					return err
				}
				if at < offset || at > offset+int64(len(data)) {
					return t.lost(nil)
				}
				sent, unsure = int(at-offset), false
			}
			for sent < len(data) || last && up.done == nil {
				at, err := t.send(ctx, up, offset+int64(sent), data[sent:], last, offset+int64(len(data)))
				if err != nil {
					unsure = true
					return err
				}
				if up.done != nil {
					return nil
				}
				if at <= offset+int64(sent) && len(data) > 0 {
					unsure = true
					return t.unreachable(fmt.Errorf("the service kept nothing of %d bytes", len(data)-sent))
				}
				sent = int(at - offset)
			}
			return nil
		})
	})
	if err != nil {
		t.forget(ctx, up)
		return err
	}
	return t.verify(ctx, up, name)
}

func (t *Target) begin(ctx context.Context, up *upload, name string) error {
	address := t.endpoint + "/upload/storage/v1/b/" + url.PathEscape(t.bucket) + "/o?uploadType=resumable&ifGenerationMatch=0&name=" + url.QueryEscape(t.opt.URL.Join(name))
	header := http.Header{"X-Upload-Content-Type": {"application/octet-stream"}, "X-Upload-Content-Length": {strconv.FormatInt(up.size, 10)}, "Content-Type": {"application/json; charset=UTF-8"}}
	resp, err := t.request(ctx, http.MethodPost, address, header, []byte("{}"), http.StatusOK)
	if err != nil {
		if offsite.HasCode(err, offsite.CodeExists) {
			return t.taken(name)
		}
		return err
	}
	_ = resp.Body.Close()
	if up.session = resp.Header.Get("Location"); up.session == "" {
		return t.unreachable(fmt.Errorf("no Location in the answer"))
	}
	return nil
}

// send puts bytes at an offset and returns how far the service now is.
func (t *Target) send(ctx context.Context, up *upload, offset int64, data []byte, last bool, end int64) (int64, error) {
	total := "*"
	if last {
		total = strconv.FormatInt(end, 10)
	}
	place := fmt.Sprintf("bytes %d-%d/%s", offset, offset+int64(len(data))-1, total)
	if len(data) == 0 {
		place = "bytes */" + total
	}
	return t.progress(ctx, up, place, data)
}

// reached asks how far the service is.
func (t *Target) reached(ctx context.Context, up *upload) (int64, error) {
	return t.progress(ctx, up, "bytes */"+strconv.FormatInt(up.size, 10), nil)
}

func (t *Target) progress(ctx context.Context, up *upload, place string, data []byte) (int64, error) {
	resp, err := t.request(ctx, http.MethodPut, up.session, http.Header{"Content-Range": {place}}, data, http.StatusOK, http.StatusCreated, statusResume)
	if err != nil {
		if offsite.HasCode(err, offsite.CodeNoObject) || offsite.HasCode(err, offsite.CodeMissing) {
			return 0, t.lost(err)
		}
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != statusResume {
		var done resource
		if err := json.NewDecoder(resp.Body).Decode(&done); err != nil {
			return 0, t.unreachable(err)
		}
		up.done = &done
		return up.size, nil
	}
	_, end, ok := strings.Cut(resp.Header.Get("Range"), "-")
	if !ok {
		return 0, nil // it has nothing yet
	}
	at, err := strconv.ParseInt(end, 10, 64)
	if err != nil {
		return 0, t.unreachable(err)
	}
	return at + 1, nil
}

// lost is an upload of which the service knows nothing anymore. What was sent
// is gone from memory, so the caller has to begin again.
func (t *Target) lost(err error) error {
	return problem.Wrap(err, problem.Internal, fmt.Sprintf("The service lost the upload to gs://%s", t.bucket), "Nothing has to be done: the upload begins anew by itself; by hand: agnes backup create --upload").WithCode(offsite.CodeUnreachable)
}

// forget tells the service that an upload will not be finished.
func (t *Target) forget(ctx context.Context, up *upload) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if resp, err := t.request(ctx, http.MethodDelete, up.session, nil, nil, http.StatusNoContent, 499); err == nil {
		_ = resp.Body.Close()
	}
}

// verify compares what the service says of the object with what was sent.
func (t *Target) verify(ctx context.Context, up *upload, name string) error {
	want := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, up.sum.Sum32()))
	if up.done.bytes() == up.size && up.done.CRC32C == want {
		return nil
	}
	err := t.retry(ctx, func() error {
		resp, err := t.request(ctx, http.MethodDelete, t.objectURL(name)+"?ifGenerationMatch="+url.QueryEscape(up.done.Generation), nil, nil, http.StatusNoContent, http.StatusNotFound)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	})
	return offsite.Fault(offsite.CodeDamaged, err, fmt.Sprintf("Expected %d bytes with the CRC32C %s in gs://%s, found %s with %s; the object was removed.", up.size, want, t.bucket, up.done.Size, up.done.CRC32C),
		"It is tried again; if it stays so, check this host's memory.")
}

// Get implements offsite.Target.
func (t *Target) Get(ctx context.Context, name string, offset int64) (r io.ReadCloser, err error) {
	err = t.retry(ctx, func() error {
		header := http.Header{"Accept-Encoding": {"gzip"}} // as it is stored
		if offset > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		}
		resp, err := t.request(ctx, http.MethodGet, t.objectURL(name)+"?alt=media", header, nil, http.StatusOK, http.StatusPartialContent)
		if err != nil {
			return t.withBucket(ctx, err)
		}
		if offset > 0 && resp.StatusCode != http.StatusPartialContent {
			_ = resp.Body.Close()
			return t.unreachable(fmt.Errorf("asked for bytes from %d on, got all", offset))
		}
		r = resp.Body
		return nil
	})
	return r, err
}

// withBucket finds out whether it is the bucket that is missing.
func (t *Target) withBucket(ctx context.Context, err error) error {
	if !offsite.HasCode(err, offsite.CodeNoObject) {
		return err
	}
	if _, _, berr := t.page(ctx, "", "", 1); offsite.HasCode(berr, offsite.CodeMissing) {
		return berr
	}
	return err
}

// List implements offsite.Target.
func (t *Target) List(ctx context.Context, prefix string) (list []offsite.Object, err error) {
	for next := ""; ; {
		var items []resource
		err := t.retry(ctx, func() (err error) {
			items, next, err = t.page(ctx, t.opt.URL.Join(prefix), next, 1000)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, o := range items {
			list = append(list, offsite.Object{Name: t.opt.URL.Below(o.Name), Size: o.bytes(), Stored: o.Updated})
		}
		if next == "" {
			return list, nil
		}
	}
}

// page reads one page of a listing. Where it fails, next is the same page.
func (t *Target) page(ctx context.Context, prefix, token string, most int) (items []resource, next string, err error) {
	q := url.Values{"prefix": {prefix}, "maxResults": {strconv.Itoa(most)}, "fields": {"nextPageToken,items(name,size,updated)"}}
	if token != "" {
		q.Set("pageToken", token)
	}
	resp, err := t.request(ctx, http.MethodGet, t.endpoint+"/storage/v1/b/"+url.PathEscape(t.bucket)+"/o?"+q.Encode(), nil, nil, http.StatusOK)
	if err != nil {
		if offsite.HasCode(err, offsite.CodeNoObject) {
			err = t.missing(err)
		}
		return nil, token, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Items []resource `json:"items"`
		Next  string     `json:"nextPageToken"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, token, t.unreachable(err)
	}
	return answer.Items, answer.Next, nil
}

// Delete implements offsite.Target.
func (t *Target) Delete(ctx context.Context, name string) error {
	err := t.retry(ctx, func() error {
		resp, err := t.request(ctx, http.MethodDelete, t.objectURL(name), nil, nil, http.StatusNoContent)
		if err != nil {
			return t.withBucket(ctx, err)
		}
		return resp.Body.Close()
	})
	if offsite.HasCode(err, offsite.CodeNoObject) {
		return nil
	}
	return err
}
