package gcs_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/gcs"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/gcs/gcstest"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/offsitetest"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	name  = "instance/agnes-1.tar.zst.age"
	piece = 4 * gcstest.Quantum
)

func options(t *testing.T, s *gcstest.Server, bucket string) gcs.Options {
	t.Helper()
	u, err := offsite.ParseURL("gs://" + bucket + "/some/prefix?endpoint=" + s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return gcs.Options{
		URL: u, Account: s.Account, Piece: piece,
		Backoff: offsite.Backoff{Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }},
	}
}

func open(t *testing.T, opt gcs.Options) *gcs.Target {
	t.Helper()
	target, err := gcs.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target
}

func TestGCSConforms(t *testing.T) {
	t.Parallel()
	offsitetest.Conform(t, offsitetest.Harness{
		Piece: piece,
		Open: func(t *testing.T) offsite.Target {
			s := gcstest.New(t)
			s.Page = 2
			t.Cleanup(func() {
				for _, n := range s.Names() {
					if !strings.HasPrefix(n, "some/prefix/") {
						t.Errorf("%s is outside of the prefix", n)
					}
				}
			})
			return open(t, options(t, s, s.Bucket))
		},
		Missing: func(t *testing.T) offsite.Target { return open(t, options(t, gcstest.New(t), "none")) },
		Refused: func(t *testing.T) offsite.Target {
			s := gcstest.New(t)
			opt := options(t, s, s.Bucket)
			opt.Account = s.Stranger()
			return open(t, opt)
		},
		Unreachable: func(t *testing.T) offsite.Target {
			s := gcstest.New(t)
			s.Fault = func(w http.ResponseWriter, _ *http.Request) bool {
				gcstest.Error(w, http.StatusServiceUnavailable, "backendError", "Backend Error")
				return true
			}
			return open(t, options(t, s, s.Bucket))
		},
	})
}

// every lets one of n storage requests fail.
func every(n int64, fail func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	var count atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) bool {
		if count.Add(1)%n != 0 {
			return false
		}
		fail(w, r)
		return true
	}
}

func hangUp(w http.ResponseWriter, r *http.Request) {
	_, _ = r.Body.Read(make([]byte, 100_000)) // in the middle of a piece
	c, _, _ := w.(http.Hijacker).Hijack()     //nolint:forcetypeassert // net/http's own
	_ = c.Close()
}

func TestAnUploadSurvivesWhatTheNetworkDoes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what string
		set  func(*gcstest.Server)
	}{
		{"every third request fails with 503", func(s *gcstest.Server) {
			s.Fault = every(3, func(w http.ResponseWriter, _ *http.Request) {
				gcstest.Error(w, http.StatusServiceUnavailable, "backendError", "Backend Error")
			})
		}},
		{"every fourth is too much", func(s *gcstest.Server) {
			s.Fault = every(4, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "1")
				gcstest.Error(w, http.StatusTooManyRequests, "rateLimitExceeded", "Slow down")
			})
		}},
		{"every third connection is cut", func(s *gcstest.Server) { s.Fault = every(3, hangUp) }},
		{"less is kept than was sent", func(s *gcstest.Server) { s.Keep = func(sent int) int { return sent/2 + gcstest.Quantum } }},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			s := gcstest.New(t)
			tc.set(s)
			target := open(t, options(t, s, s.Bucket))
			data := offsitetest.Bytes(3*piece + 4321)
			offsitetest.Put(t, target, name, data)
			offsitetest.Holds(t, target, name, data)
		})
	}
}

func TestAnAnswerThatWasLostCountsOnce(t *testing.T) {
	t.Parallel()
	s := gcstest.New(t)
	s.Lose = func(r *http.Request) bool { return r.Method == http.MethodPut && len(s.Names()) > 0 }
	target := open(t, options(t, s, s.Bucket))
	data := offsitetest.Bytes(piece + 5)
	offsitetest.Put(t, target, name, data)
	offsitetest.Holds(t, target, name, data)
	if s.Lose != nil && s.Lost() != 1 {
		t.Errorf("%d answers were lost, want 1", s.Lost())
	}
}

func TestALostSessionAsksForANewUpload(t *testing.T) {
	t.Parallel()
	s := gcstest.New(t)
	target := open(t, options(t, s, s.Bucket))
	data := offsitetest.Bytes(2*piece + 5)
	var once atomic.Bool
	s.Keep = func(sent int) int {
		if !once.Swap(true) {
			go s.LoseSessions()
		}
		return sent
	}
	reader := &gate{r: bytes.NewReader(data), after: piece, wait: func() {
		for s.Sessions() > 0 {
			<-time.After(time.Millisecond)
		}
	}}
	err := target.Put(t.Context(), name, int64(len(data)), reader)
	if !offsite.HasCode(err, offsite.CodeUnreachable) {
		t.Errorf("put: %v", err)
	}
	s.Keep = nil
	offsitetest.Put(t, target, name, data)
	offsitetest.Holds(t, target, name, data)
}

// gate waits once before it gives what lies behind a place.
type gate struct {
	r     *bytes.Reader
	after int64
	wait  func()
}

// Read implements io.Reader.
func (g *gate) Read(p []byte) (int, error) {
	if g.wait != nil && g.r.Size()-int64(g.r.Len()) >= g.after {
		g.wait()
		g.wait = nil
	}
	return g.r.Read(p)
}

func TestDamageOnTheWayIsSeenAndRemoved(t *testing.T) {
	t.Parallel()
	s := gcstest.New(t)
	s.Damage = func(b []byte) { b[len(b)/2] ^= 1 }
	target := open(t, options(t, s, s.Bucket))
	data := offsitetest.Bytes(piece + 5)
	if err := target.Put(t.Context(), name, int64(len(data)), bytes.NewReader(data)); !offsite.HasCode(err, offsite.CodeDamaged) {
		t.Errorf("put: %v", err)
	}
	if n := s.Names(); len(n) > 0 {
		t.Errorf("the damaged object stays: %v", n)
	}
}

func TestRefusalsAreNamed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status                int
		reason, message, code string
	}{
		{http.StatusForbidden, "forbidden", "backup@project does not have storage.objects.create access", offsite.CodeCredentials},
		{http.StatusUnauthorized, "authError", "Invalid Credentials", offsite.CodeCredentials},
		{http.StatusForbidden, "quotaExceeded", "The project has exceeded its quota", offsite.CodeNoSpace},
		{http.StatusForbidden, "rateLimitExceeded", "Slow down", offsite.CodeUnreachable},
		{http.StatusNotFound, "notFound", "The specified bucket does not exist.", offsite.CodeMissing},
		{http.StatusBadGateway, "", "", offsite.CodeUnreachable},
	} {
		s := gcstest.New(t)
		s.Fault = func(w http.ResponseWriter, _ *http.Request) bool {
			gcstest.Error(w, tc.status, tc.reason, tc.message)
			return true
		}
		err := open(t, options(t, s, s.Bucket)).Put(t.Context(), name, 1, strings.NewReader("x"))
		if !offsite.HasCode(err, tc.code) || problem.As(err).Hint == "" {
			t.Errorf("%d %s: %v, want %s", tc.status, tc.reason, err, tc.code)
		}
	}
}

func TestNoTokenAndNoSessionIsShown(t *testing.T) {
	t.Parallel()
	s := gcstest.New(t)
	var seen atomic.Value
	s.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		seen.Store(strings.TrimPrefix(r.URL.Path, "/session/"))
		hangUp(w, r)
		return true
	}
	err := open(t, options(t, s, s.Bucket)).Put(t.Context(), name, 1, strings.NewReader("x"))
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	id, _ := seen.Load().(string)
	if err == nil || id == "" || strings.Contains(text, id) || strings.Contains(text, "PRIVATE KEY") {
		t.Errorf("the session %q is in: %s", id, text)
	}
}

func TestTheEndpointIsSafe(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"http://storage.example.com", "ftp://x", "https://", "https://user:pw@x"} {
		u, err := offsite.ParseURL("gs://bucket?endpoint=" + bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gcs.New(gcs.Options{URL: u}); !problem.Is(err, problem.Usage) {
			t.Errorf("endpoint %s: %v", bad, err)
		}
	}
}
