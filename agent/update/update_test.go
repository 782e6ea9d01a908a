package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const running = "2026.04.3"

// hub is a registry that counts what it is asked, and can be made to fail.
type hub struct {
	inner http.Handler

	mu     sync.Mutex
	asked  []string
	times  []time.Time // when a check began: what it asks first
	status int         // to answer everything with
	only   string      // with status: only what has this in its path
}

func newHub() *hub {
	return &hub{inner: registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))}
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.asked = append(h.asked, r.Method+" "+r.URL.Path)
	if r.URL.Path == "/v2/" {
		h.times = append(h.times, time.Now())
	}
	status := h.status
	if !strings.Contains(r.URL.Path, h.only) {
		status = 0
	}
	h.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	h.inner.ServeHTTP(w, r)
}

// RoundTrip answers without a socket, for tests in which time is the subject.
func (h *hub) RoundTrip(req *http.Request) (*http.Response, error) {
	h.mu.Lock()
	down := h.status == -1
	if down && req.URL.Path == "/v2/" {
		h.times = append(h.times, time.Now())
	}
	h.mu.Unlock()
	if down {
		return nil, errors.New("no route to host")
	}
	asked := req.Clone(req.Context())
	if asked.Body == nil {
		asked.Body = http.NoBody // as a server sees it
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, asked)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

func (h *hub) fail(status int, only string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status, h.only = status, only
}

func (h *hub) requests() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.asked
	h.asked = nil
	return asked
}

func (h *hub) began() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]time.Time{}, h.times...)
}

// images writes to and deletes from a repository.
type images struct {
	t    *testing.T
	repo name.Repository
	opts []remote.Option
}

// image is of several platforms, each with the version in its label.
func image(t *testing.T, version string) v1.ImageIndex {
	t.Helper()
	var index v1.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64", runtime.GOARCH} {
		img, err := mutate.Config(empty.Image, v1.Config{Labels: map[string]string{"org.opencontainers.image.version": version, "arch": arch}})
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return index
}

func (i images) push(version string, tags ...string) {
	i.t.Helper()
	index := image(i.t, version)
	for _, tag := range tags {
		if err := remote.WriteIndex(i.repo.Tag(tag), index, i.opts...); err != nil {
			i.t.Fatal(err)
		}
	}
}

func (i images) untag(tags ...string) {
	i.t.Helper()
	for _, tag := range tags {
		if err := remote.Delete(i.repo.Tag(tag), i.opts...); err != nil {
			i.t.Fatal(err)
		}
	}
}

// socket serves a hub at 127.0.0.1.
func socket(t *testing.T, h http.Handler) images {
	t.Helper()
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	return imagesAt(t, strings.TrimPrefix(ts.URL, "http://")+"/owner/agnes")
}

// stocked returns a hub that has the running version at a repository.
func stocked(t *testing.T, repository string) *hub {
	t.Helper()
	h := newHub()
	imagesAt(t, repository, remote.WithTransport(h)).push(running, "stable")
	h.asked, h.times = nil, nil
	return h
}

func imagesAt(t *testing.T, repository string, opts ...remote.Option) images {
	t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	return images{t, repo, opts}
}

// watch returns a Checker, and what it logs.
func watch(t *testing.T, change func(*Options), repo name.Repository) (*Checker, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	opt := Options{
		Image: repo.Name(), Version: running, Channel: "stable", File: filepath.Join(t.TempDir(), "update.json"),
		Log: slog.New(slog.NewTextHandler(&log, nil)), Jitter: func(upTo time.Duration) time.Duration { return upTo / 2 },
	}
	if change != nil {
		change(&opt)
	}
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c, &log
}

func check(t *testing.T, c *Checker, want Status) {
	t.Helper()
	if err := c.check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
	if got := c.Status(); got != want {
		t.Errorf("status = %+v, want %+v", got, want)
	}
}

func unanswered(t *testing.T, c *Checker, want Status) {
	t.Helper()
	if err := c.check(t.Context()); err == nil {
		t.Error("a check without an answer counts as one with an answer")
	}
	if got := c.Status(); got != want {
		t.Errorf("status = %+v, want what was known, %+v", got, want)
	}
}

func TestADeprecationIsATagAndTheNewestVersionALabel(t *testing.T) {
	t.Parallel()
	h := newHub()
	hub := socket(t, h)
	c, log := watch(t, nil, hub.repo)
	unanswered(t, c, Status{}) // nothing is there at all

	hub.push(running, "stable", "stable-"+running, running)
	check(t, c, Status{})

	hub.push("2026.04.10", "stable", "stable-2026.04.10")
	check(t, c, Status{Latest: "2026.04.10"})

	hub.push(running, "deprecated-"+running)
	check(t, c, Status{Deprecated: true, Latest: "2026.04.10"})
	check(t, c, Status{Deprecated: true, Latest: "2026.04.10"})
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "This version is deprecated.") {
		t.Errorf("the log warns %d times, want once:\n%s", n, log)
	}

	hub.push("2026.04.10", "deprecated-2026.04.10")
	check(t, c, Status{Deprecated: true}) // the newest is no better
	hub.push("2026.05.1", "stable")
	check(t, c, Status{Deprecated: true, Latest: "2026.05.1"})

	hub.untag("deprecated-" + running)
	check(t, c, Status{Latest: "2026.05.1"})
	hub.untag("stable")
	check(t, c, Status{})
}

func TestADeprecationOutlivesItsPrunedImage(t *testing.T) {
	t.Parallel()
	hub := socket(t, newHub())
	hub.push(running, "stable-"+running, running, "deprecated-"+running)
	c, _ := watch(t, nil, hub.repo)
	check(t, c, Status{Deprecated: true})
	hub.untag("stable-"+running, running, "deprecated-"+running)
	check(t, c, Status{Deprecated: true})
}

func TestOnlyANewerReleaseIsLatest(t *testing.T) {
	t.Parallel()
	for label, newer := range map[string]bool{
		"2026.04.4": true, "2026.04.10": true, "2026.05.1": true, "2027.01.1": true,
		running: false, "2026.04.2": false, "2026.03.99": false, "2025.12.100": false, "dev": false, "": false, "v2026.05.1": false, "2026.5.1": false,
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			hub := socket(t, newHub())
			hub.push(label, "stable")
			c, _ := watch(t, nil, hub.repo)
			want := Status{}
			if newer {
				want.Latest = label
			}
			check(t, c, want)
		})
	}
}

func TestTheFloatingTagIsTheChannels(t *testing.T) {
	t.Parallel()
	hub := socket(t, newHub())
	hub.push("2026.04.8", "stable")
	hub.push("2026.04.9", "dev")
	c, _ := watch(t, func(o *Options) { o.Channel = "dev" }, hub.repo)
	check(t, c, Status{Latest: "2026.04.9"})
}

func TestAnImageOfOnePlatformHasALabelToo(t *testing.T) {
	t.Parallel()
	hub := socket(t, newHub())
	img, err := mutate.Config(empty.Image, v1.Config{Labels: map[string]string{"org.opencontainers.image.version": "2026.04.9"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(hub.repo.Tag("stable"), img); err != nil {
		t.Fatal(err)
	}
	c, _ := watch(t, func(o *Options) { o.Image += ":stable" }, hub.repo)
	check(t, c, Status{Latest: "2026.04.9"})
}

func TestAnImageIsReadOnlyWhenTheTagHasMoved(t *testing.T) {
	t.Parallel()
	h := newHub()
	hub := socket(t, h)
	hub.push("2026.04.9", "stable")
	c, _ := watch(t, nil, hub.repo)
	check(t, c, Status{Latest: "2026.04.9"})
	h.requests()
	check(t, c, Status{Latest: "2026.04.9"})
	for _, asked := range h.requests() {
		if asked != "GET /v2/" && !strings.HasPrefix(asked, "HEAD /v2/owner/agnes/manifests/") {
			t.Errorf("a check without news asked %s", asked)
		}
	}
}

func TestWhatCannotBeAskedStaysAsItWas(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway} {
		for _, only := range []string{"", "/manifests/deprecated-" + running, "/manifests/stable", "/manifests/deprecated-2026.04.9", "/blobs/"} {
			t.Run(fmt.Sprintf("%d for %s", status, only), func(t *testing.T) {
				t.Parallel()
				h := newHub()
				hub := socket(t, h)
				hub.push("2026.04.9", "stable")
				hub.push(running, "deprecated-"+running, "stable-"+running)
				c, log := watch(t, nil, hub.repo)
				known := Status{Deprecated: true, Latest: "2026.04.9"}
				check(t, c, known)
				if only == "/blobs/" {
					hub.push("2026.04.10", "stable") // something to read
				}
				h.fail(status, only)
				if err := c.check(t.Context()); err == nil {
					t.Error("a check without an answer counts as one with an answer")
				}
				if got := c.Status(); got != known {
					t.Errorf("status = %+v, want what was known, %+v", got, known)
				}
				if n := strings.Count(log.String(), "level=WARN"); n != 1 {
					t.Errorf("the log warns %d times, want once", n)
				}
				h.fail(0, "")
				if only == "/blobs/" {
					known.Latest = "2026.04.10"
				}
				check(t, c, known) // and is found out later
			})
		}
	}
}

// A repository that was moved, or whose name was mistyped, has no tag, and so
// none that says that a version is well.
func TestARepositoryThatIsNotThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	h := newHub()
	hub := socket(t, h)
	elsewhere := imagesAt(t, hub.repo.RegistryStr()+"/owner/other")
	elsewhere.push("2026.04.9", "stable")
	c, _ := watch(t, nil, hub.repo)
	unanswered(t, c, Status{})
	hub.push("2026.04.9", "stable")
	known := Status{Latest: "2026.04.9"}
	check(t, c, known)
	for _, only := range []string{"", "/owner/agnes/"} { // with "", signing in is not found either
		h.fail(http.StatusNotFound, only)
		unanswered(t, c, known)
	}
	h.fail(0, "")
	check(t, c, known)
	hub.untag("stable")
	check(t, c, Status{}) // there is no such tag, says a registry that knows the repository
}

func TestARestartWithoutARegistryStillWarns(t *testing.T) {
	t.Parallel()
	h := newHub()
	hub := socket(t, h)
	hub.push("2026.04.9", "stable")
	hub.push(running, "deprecated-"+running)
	file := filepath.Join(t.TempDir(), "update.json")
	at := func(change func(*Options)) (*Checker, *bytes.Buffer) {
		return watch(t, func(o *Options) {
			o.File = file
			if change != nil {
				change(o)
			}
		}, hub.repo)
	}
	c, _ := at(nil)
	known := Status{Deprecated: true, Latest: "2026.04.9"}
	check(t, c, known)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	h.fail(http.StatusServiceUnavailable, "")
	again, log := at(nil)
	if got := again.Status(); got != known || !strings.Contains(log.String(), "This version is deprecated.") {
		t.Errorf("after a restart status = %+v, want %+v and a warning in the log:\n%s", got, known, log)
	}
	for what, change := range map[string]func(*Options){
		"version": func(o *Options) { o.Version = "2026.04.9" },
		"image":   func(o *Options) { o.Image = "ghcr.io/owner/other" },
		"channel": func(o *Options) { o.Channel = "dev" },
	} {
		if c, _ := at(change); c.Status() != (Status{}) {
			t.Errorf("another %s takes over %+v", what, c.Status())
		}
	}
	if err := os.WriteFile(file, []byte(`{"version":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, _ := at(nil); c.Status() != (Status{}) {
		t.Errorf("a broken file says %+v", c.Status())
	}
	h.fail(0, "")
	c, _ = at(nil)
	check(t, c, known) // and is replaced
	if c, _ := at(nil); c.Status() != known {
		t.Errorf("status = %+v, want %+v", c.Status(), known)
	}
}

func TestAFileThatCannotBeWrittenCostsTheMemoryOnly(t *testing.T) {
	t.Parallel()
	hub := socket(t, newHub())
	hub.push(running, "deprecated-"+running)
	c, log := watch(t, func(o *Options) { o.File = filepath.Join(t.TempDir(), "nowhere", "update.json") }, hub.repo)
	check(t, c, Status{Deprecated: true})
	if !strings.Contains(log.String(), "could not be stored") {
		t.Errorf("the log does not say so:\n%s", log)
	}
}

func TestTheRegistryIsAskedEverySixHours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := stocked(t, "registry.example/owner/agnes")
		start := time.Now()
		repo := imagesAt(t, "registry.example/owner/agnes").repo
		c, _ := watch(t, func(o *Options) { o.Transport = h }, repo)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		<-time.After(24 * time.Hour)
		cancel()
		<-done
		wants(t, h.began(), start, 30*time.Second, 6*time.Hour+15*time.Minute, 6*time.Hour+15*time.Minute, 6*time.Hour+15*time.Minute)
	})
}

func TestAFailureIsRepeatedEverMoreSlowlyAndLoggedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := stocked(t, "registry.example/owner/agnes")
		h.fail(-1, "")
		start := time.Now()
		c, log := watch(t, func(o *Options) { o.Transport = h }, imagesAt(t, "registry.example/owner/agnes").repo)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		<-time.After(36 * time.Hour)
		synctest.Wait()
		pauses := []time.Duration{30 * time.Second}
		for wait := time.Minute; wait < every; wait *= 2 {
			pauses = append(pauses, wait+wait/4)
		}
		pauses = append(pauses, every+every/4, every+every/4, every+every/4)
		wants(t, h.began(), start, pauses...)
		if n := strings.Count(log.String(), "could not be asked"); n != 1 || strings.Contains(log.String(), "level=WARN") {
			t.Errorf("the log says so %d times, want once and no warning:\n%s", n, log)
		}
		h.fail(0, "") // it comes back, and with it the usual pace
		seen := len(h.began())
		<-time.After(3 * every)
		cancel()
		<-done
		times := h.began()[seen:]
		if len(times) < 2 || times[1].Sub(times[0]) != every+15*time.Minute {
			t.Errorf("after the failure it is asked at %v", times)
		}
	})
}

func wants(t *testing.T, times []time.Time, start time.Time, pauses ...time.Duration) {
	t.Helper()
	var got []time.Duration
	for _, at := range times {
		got, start = append(got, at.Sub(start)), at
	}
	if fmt.Sprint(got) != fmt.Sprint(pauses) {
		t.Errorf("asked after pauses of %v, want %v", got, pauses)
	}
}

// A fleet that is restarted at once asks over a minute, then over half an hour.
func TestJitterSpreadsAFleet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		first, second := map[time.Duration]bool{}, map[time.Duration]bool{}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		hubs := make([]*hub, 50)
		for n := range hubs {
			hubs[n] = stocked(t, "registry.example/owner/agnes")
			c, _ := watch(t, func(o *Options) { o.Transport, o.Jitter = hubs[n], nil }, imagesAt(t, "registry.example/owner/agnes").repo)
			running.Go(func() { c.Run(ctx) })
		}
		<-time.After(7 * time.Hour)
		cancel()
		running.Wait()
		for _, h := range hubs {
			at := h.began()
			if len(at) != 2 || at[0].Sub(start) >= time.Minute || at[1].Sub(at[0]) < every || at[1].Sub(at[0]) >= every+spread {
				t.Fatalf("asked at %v", at)
			}
			first[at[0].Sub(start).Truncate(10*time.Second)] = true
			second[at[1].Sub(at[0]).Truncate(5*time.Minute)] = true
		}
		if len(first) < 4 || len(second) < 4 {
			t.Errorf("50 instances asked in %d of 6 parts of a minute and %d of 6 parts of half an hour", len(first), len(second))
		}
	})
}

func TestARegistryOnThisMachineIsAskedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		start := time.Now()
		c, _ := watch(t, func(o *Options) { o.Transport = h }, imagesAt(t, "127.0.0.1:5000/owner/agnes").repo)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.Run(ctx)
		if at := h.began(); len(at) == 0 || at[0] != start {
			t.Errorf("asked at %v, want %v", at, start)
		}
	})
}

func TestAHangingRegistryEndsACheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, _ := watch(t, func(o *Options) { o.Transport = hanging{} }, imagesAt(t, "registry.example/owner/agnes").repo)
		if err := c.check(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != checkTime {
			t.Errorf("check = %v after %s, want the deadline after %s", err, time.Since(start), checkTime)
		}
	})
}

type hanging struct{}

func (hanging) RoundTrip(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// Plain HTTP is for this machine; go-containerregistry would fall back to it for
// private addresses, credentials and all.
func TestPlainHTTPStaysOnThisMachine(t *testing.T) {
	t.Parallel()
	for repository, scheme := range map[string]string{
		"127.0.0.1:5000/a": "http", "localhost:5000/a": "http", "registry.example/a": "https", "10.0.0.7:5000/a": "https", "192.168.1.2/a": "https",
	} {
		seen := &schemes{inner: stocked(t, repository), refuse: scheme == "https" && strings.HasPrefix(repository, "1")}
		c, _ := watch(t, func(o *Options) { o.Transport = seen }, imagesAt(t, repository).repo)
		err := c.check(t.Context())
		if seen.refuse != (err != nil) {
			t.Errorf("%s: check = %v", repository, err)
		}
		if len(seen.of) != 1 || !seen.of[scheme] {
			t.Errorf("%s was spoken to by %v, want %s only", repository, seen.of, scheme)
		}
	}
}

// schemes notes how it was spoken to; it may refuse TLS, as a registry without does.
type schemes struct {
	inner  http.RoundTripper
	refuse bool

	mu sync.Mutex
	of map[string]bool
}

func (s *schemes) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]bool{}
	}
	s.of[req.URL.Scheme] = true
	if s.refuse && req.URL.Scheme == "https" {
		return nil, errors.New("server gave HTTP response to HTTPS client")
	}
	return s.inner.RoundTrip(req)
}

func TestWhatCannotBeWatchedIsRefusedByName(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "dev", "v2026.04.3", "2026.4.3", "2026.04.0", "2026.13.1", "2026.04.3-dirty", "2026.04.03"} {
		if Watchable(version) {
			t.Errorf("%q is watchable", version)
		}
		if _, err := New(Options{Version: version, Image: "ghcr.io/a/b"}); !problem.Is(err, problem.Usage) {
			t.Errorf("%q: %v", version, err)
		}
	}
	for _, image := range []string{"", "ghcr.io/Owner/Name", "https://ghcr.io/a/b", "a b"} {
		_, err := New(Options{Version: running, Image: image})
		if !problem.Is(err, problem.Usage) || !strings.Contains(problem.As(err).Hint, "AGNES_IMAGE") {
			t.Errorf("%q: %v", image, err)
		}
	}
}
