package s3_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/offsitetest"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/s3"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	name = "instance/agnes-1.tar.zst.age"
	part = 5 << 20
)

func options(t *testing.T, s *service, bucket string) s3.Options {
	t.Helper()
	u, err := offsite.ParseURL("s3://" + bucket + "/some/prefix?region=us-east-1&endpoint=" + s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return s3.Options{URL: u, AccessKeyID: keyID, SecretKey: secretKey, PartSize: part, Backoff: offsite.Backoff{Wait: never}}
}

func open(t *testing.T, opt s3.Options) *s3.Target {
	t.Helper()
	target, err := s3.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestS3Conforms(t *testing.T) {
	t.Parallel()
	for what, noIfMatch := range map[string]bool{"conditional writes": false, "no conditional writes": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := offsitetest.Harness{
				Piece: part,
				Open: func(t *testing.T) offsite.Target {
					s := newService(t)
					s.noIfMatch = noIfMatch
					t.Cleanup(func() {
						if n := s.uploads(); n > 0 {
							t.Errorf("%d uploads were neither completed nor aborted", n)
						}
					})
					return open(t, options(t, s, bucket))
				},
				Missing: func(t *testing.T) offsite.Target { return open(t, options(t, newService(t), "none")) },
				Refused: func(t *testing.T) offsite.Target {
					opt := options(t, newService(t), bucket)
					opt.SecretKey = "wrong"
					return open(t, opt)
				},
				Unreachable: func(t *testing.T) offsite.Target {
					s := newService(t)
					s.Close()
					return open(t, options(t, s, bucket))
				},
				Unguarded: noIfMatch,
			}
			offsitetest.Conform(t, h)
		})
	}
}

// every lets one of n requests fail.
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

// firstOfEach lets the first request with each body's checksum fail.
func firstOfEach(fail func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	var seen sync.Map
	return func(w http.ResponseWriter, r *http.Request) bool {
		if sum := r.Header.Get("Content-Md5"); sum != "" {
			if _, again := seen.LoadOrStore(sum, true); !again {
				fail(w, r)
				return true
			}
		}
		return false
	}
}

func answers(status int, code string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { s3Error(w, status, code) }
}

func TestAnUploadSurvivesWhatTheNetworkDoes(t *testing.T) {
	t.Parallel()
	for what, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"every second request is too much": every(2, answers(http.StatusServiceUnavailable, "SlowDown")),
		"every second fails inside":        every(2, answers(http.StatusInternalServerError, "InternalError")),
		"every third gets 429":             every(3, answers(http.StatusTooManyRequests, "")),
		"every second connection is cut": every(2, func(w http.ResponseWriter, r *http.Request) {
			_, _ = r.Body.Read(make([]byte, 100_000))
			panic(http.ErrAbortHandler)
		}),
		"every body is damaged once": firstOfEach(answers(http.StatusBadRequest, "XAmzContentSHA256Mismatch")),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.fault = fault
			target := open(t, options(t, s, bucket))
			data := offsitetest.Bytes(2*part + 4321)
			offsitetest.Put(t, target, name, data)
			offsitetest.Holds(t, target, name, data)
			small := offsitetest.Bytes(4321)
			offsitetest.Put(t, target, name+"2", small)
			offsitetest.Holds(t, target, name+"2", small)
		})
	}
}

func TestAnAnswerThatWasLostCountsOnce(t *testing.T) {
	t.Parallel()
	for what, size := range map[string]int{"one request": 1000, "parts": 2*part + 1} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.lose = func(r *http.Request) bool {
				final := r.Method == http.MethodPut && !r.URL.Query().Has("uploadId") || r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
				return final && s.lost.Load() == 0
			}
			target := open(t, options(t, s, bucket))
			data := offsitetest.Bytes(size)
			offsitetest.Put(t, target, name, data)
			offsitetest.Holds(t, target, name, data)
			if s.lost.Load() != 1 {
				t.Errorf("%d answers were lost, want 1", s.lost.Load())
			}
		})
	}
}

func TestRefusalsAreNamed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status     int
		code, want string
	}{
		{http.StatusForbidden, "InvalidAccessKeyId", offsite.CodeCredentials},
		{http.StatusForbidden, "SignatureDoesNotMatch", offsite.CodeCredentials},
		{http.StatusForbidden, "AccessDenied", offsite.CodeCredentials},
		{http.StatusBadRequest, "ExpiredToken", offsite.CodeCredentials},
		{http.StatusNotFound, "NoSuchBucket", offsite.CodeMissing},
		{http.StatusMovedPermanently, "PermanentRedirect", offsite.CodeMissing},
		{http.StatusInsufficientStorage, "XMinioStorageFull", offsite.CodeNoSpace},
		{http.StatusForbidden, "QuotaExceeded", offsite.CodeNoSpace},
		{http.StatusServiceUnavailable, "SlowDown", offsite.CodeUnreachable},
		{http.StatusBadGateway, "", offsite.CodeUnreachable},
	} {
		s := newService(t)
		s.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			s3Error(w, tc.status, tc.code)
			return true
		}
		_, err := open(t, options(t, s, bucket)).List(t.Context(), "")
		if !offsite.HasCode(err, tc.want) || problem.As(err).Hint == "" {
			t.Errorf("%d %s: %v, want %s", tc.status, tc.code, err, tc.want)
		}
	}
}

func TestAWrongClockIsNamed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.clock = time.Hour
	_, err := open(t, options(t, s, bucket)).List(t.Context(), "")
	if !offsite.HasCode(err, offsite.CodeClock) || !strings.Contains(problem.As(err).Hint, "clock") {
		t.Errorf("list: %v", err)
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("%d requests; a wrong clock stays wrong", n)
	}
}

func TestAPartThatFailsForGoodIsAborted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("partNumber") != "2" {
			return false
		}
		s3Error(w, http.StatusForbidden, "QuotaExceeded")
		return true
	}
	target := open(t, options(t, s, bucket))
	data := offsitetest.Bytes(2*part + 1)
	if err := target.Put(t.Context(), name, int64(len(data)), bytes.NewReader(data)); !offsite.HasCode(err, offsite.CodeNoSpace) {
		t.Errorf("put: %v", err)
	}
	if n := s.uploads(); n > 0 {
		t.Errorf("%d uploads stay open", n)
	}
}

// What a killed process has begun to upload is aborted a day later.
func TestAnUploadThatWasAbandonedIsAborted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		killed := r.URL.Query().Get("partNumber") == "2" || r.Method == http.MethodDelete
		if killed {
			s3Error(w, http.StatusForbidden, "QuotaExceeded")
		}
		return killed
	}
	target := open(t, options(t, s, bucket))
	data := offsitetest.Bytes(2*part + 1)
	for key, age := range map[string]time.Duration{"instance/old": 25 * time.Hour, "instance/young": 0, "other/old": 25 * time.Hour} {
		s.keeps.behind.Store(int64(age))
		if err := target.Put(t.Context(), key, int64(len(data)), bytes.NewReader(data)); err == nil {
			t.Fatal("the upload was to fail")
		}
	}
	s.keeps.behind.Store(0)
	s.fault = nil
	if n := s.uploads(); n != 3 {
		t.Fatalf("%d uploads are open, want 3", n)
	}
	offsitetest.Put(t, target, name, []byte("small"))
	if n := s.uploads(); n != 2 {
		t.Errorf("%d uploads are open, want the young one and that of the other instance", n)
	}
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("uploads") && r.Method == http.MethodGet {
			s3Error(w, http.StatusForbidden, "AccessDenied")
			return true
		}
		return false
	}
	offsitetest.Put(t, target, name+"2", []byte("small"))
}

// A write that meets another of the same name has neither failed for good nor
// shown that a copy is there.
func TestAConflictIsTriedAgain(t *testing.T) {
	t.Parallel()
	for what, size := range map[string]int{"one request": 1000, "parts": 2*part + 1} {
		for _, always := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, always %t", what, always), func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				var conflicts atomic.Int64
				s.fault = func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("If-None-Match") == "" || !always && conflicts.Load() > 1 {
						return false
					}
					conflicts.Add(1)
					s3Error(w, http.StatusConflict, "ConditionalRequestConflict")
					return true
				}
				target := open(t, options(t, s, bucket))
				data := offsitetest.Bytes(size)
				err := target.Put(t.Context(), name, int64(size), bytes.NewReader(data))
				if always {
					if !offsite.HasCode(err, offsite.CodeUnreachable) || conflicts.Load() < 3 {
						t.Errorf("put: %v after %d conflicts", err, conflicts.Load())
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				offsitetest.Holds(t, target, name, data)
			})
		}
	}
	// The other write has won.
	s := newService(t)
	target := open(t, options(t, s, bucket))
	var other atomic.Bool
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !other.CompareAndSwap(false, true) {
			return false
		}
		offsitetest.Put(t, target, name, []byte("another"))
		s3Error(w, http.StatusConflict, "ConditionalRequestConflict")
		return true
	}
	if err := target.Put(t.Context(), name, 4, strings.NewReader("mine")); !offsite.HasCode(err, offsite.CodeExists) {
		t.Errorf("put beside another: %v", err)
	}
	offsitetest.Holds(t, target, name, []byte("another"))
}

func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.clock = time.Hour
	opt := options(t, s, bucket)
	_, err := open(t, opt).List(t.Context(), "")
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", err, err, err), fmt.Sprintf("%v %+v %#v", opt, opt, opt)} {
		if strings.Contains(text, secretKey) || strings.Contains(text, "Signature=") {
			t.Errorf("a secret is in: %s", text)
		}
	}
	opt.AccessKeyID = ""
	if _, err := s3.New(opt); !problem.Is(err, problem.Usage) {
		t.Errorf("half a key: %v", err)
	}
}
