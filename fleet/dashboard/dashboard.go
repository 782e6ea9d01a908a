// Package dashboard is the fleet's web page, and what other programs read of the
// fleet over HTTP: Prometheus metrics and service discovery.
//
// It shows and never probes. A Server follows what a monitor sees, keeps one
// immutable row for each instance whose HTML is made once for each change, and
// answers every page from these rows, so that a click costs the same at ten
// instances and at ten thousand. History, incidents and rollouts come from the
// store. Browsers are told of changes by server-sent events; every
// page works without them and without JavaScript.
//
// Reading is open or needs a login, as Access says. The one thing that the page can
// change, the course of a rollout, always needs a login.
package dashboard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// Options are what a Server needs.
type Options struct {
	Store  *store.Store
	Access Access
	Title  string       // of the page; "Agnes fleet" when empty
	Log    *slog.Logger // of refused logins and of orders; discarded when nil
}

// Live is what is seen of the fleet now: a *monitor.Monitor.
type Live interface {
	Status() fleet.Status
	Result(name string) (fleet.Result, fleet.Record, bool)
	Subscribe() (events <-chan monitor.Event, stop func())
	Condition() monitor.Condition
}

// Inventory is what the page knows of what is wanted.
type Inventory struct {
	Name      string // as people call it: fleet.yaml
	Instances []fleet.Instance
	Loaded    time.Time
}

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed assets
var assetFiles embed.FS

// Server is the page, an http.Handler. It shows what the monitor sees that it is
// told to Follow.
type Server struct {
	o        Options
	log      *slog.Logger
	pages    map[string]*template.Template
	assets   map[string]asset
	handler  http.Handler
	door     *door
	model    *model
	hub      *hub
	registry *prometheus.Registry
	streams  chan struct{} // one element for each open stream
	newsroom newsroom

	mu        sync.RWMutex
	inventory Inventory
	live      Live  // nil before the first Follow
	trouble   error // why a newer inventory could not be taken
	ended     map[string]rollout.Rollout
}

// maxStreams bounds the browsers that are told of changes; others reload.
const maxStreams = 256

// New returns a Server.
func New(o Options) (*Server, error) {
	o.Title = cmp.Or(o.Title, "Agnes fleet")
	s := &Server{o: o, log: o.Log, hub: newHub(), ended: map[string]rollout.Rollout{}, streams: make(chan struct{}, maxStreams)}
	s.model = newModel(func(r *row) template.HTML { return s.draw("row", r) })
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.door, err = newDoor(o.Access, s.log); err != nil {
		return nil, err
	}
	if s.assets, err = loadAssets(); err != nil {
		return nil, err
	}
	if s.pages, err = s.loadTemplates(); err != nil {
		return nil, err
	}
	if s.registry, err = s.newRegistry(); err != nil {
		return nil, err
	}
	s.handler = s.routes()
	return s, nil
}

// Report says what became of a newer inventory: why it could not be taken, or nil.
// The one that is followed goes on.
func (s *Server) Report(trouble error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = trouble
}

func (s *Server) current() (v Inventory, live Live, trouble error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.inventory, s.live, s.trouble
}

// refreshEvery is how old latencies and times may be, on an open page and in the
// metrics; what people look at, such as a state, is pushed at once.
const refreshEvery = 5 * time.Second

// Follow shows an inventory as a monitor sees it, until ctx ends. It can be called
// again with another inventory and its monitor: what was seen of an instance stays
// until the new monitor has seen it.
func (s *Server) Follow(ctx context.Context, v Inventory, live Live) {
	events, stop := live.Subscribe()
	defer stop()
	s.mu.Lock()
	s.inventory, s.live = v, live
	s.mu.Unlock()
	resync := func() {
		s.model.replace(v.Instances, live)
		s.hub.reload()
	}
	resync()
	refresh := time.NewTicker(refreshEvery)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-refresh.C:
			s.refresh(live)
		case e := <-events:
			if e.Reload {
				resync()
			} else if was, is := s.model.update(e.Line, live); is != nil {
				s.hub.changed(was, is)
			}
		}
	}
}

// refresh takes in what changed without an event: latencies, ages, times.
func (s *Server) refresh(live Live) {
	for _, line := range live.Status().Instances {
		if was, is := s.model.refresh(line, live); is != nil {
			s.hub.changed(was, is)
		}
	}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

func (s *Server) routes() http.Handler {
	pages := http.NewServeMux()
	read := func(pattern string, h http.HandlerFunc) { pages.Handle(pattern, s.door.reading(h)) }
	read("GET /{$}", s.overview)
	read("GET /i/{name}", s.instancePage)
	read("GET /rollouts", s.rolloutsPage)
	read("GET /rollouts/{id}", s.rolloutPage)
	read("GET /incidents", s.incidentsPage)
	pages.HandleFunc("POST /rollouts/{id}/orders", s.giveOrder)
	pages.HandleFunc("GET /login", s.loginPage)
	pages.HandleFunc("POST /login", s.login)
	pages.HandleFunc("POST /logout", s.logout)
	pages.HandleFunc("POST /theme", s.theme)
	pages.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.fail(w, r, notFound(r)) })

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /assets/{file}", s.asset)
	mux.Handle("GET /events", s.door.reading(http.HandlerFunc(s.events)))
	mux.Handle("GET /metrics", s.door.scraping(s.metricsHandler()))
	mux.Handle("GET /sd", s.door.scraping(gzhttp.GzipHandler(http.HandlerFunc(s.discovery))))
	mux.Handle("/", gzhttp.GzipHandler(pages))

	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.fail(w, r, foreignOrigin()) }))
	return s.secure(s.door.enter(s.onlyOurHost(origin.Handler(mux))))
}

// secure sets the headers that every answer has.
func (s *Server) secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Now().Add(answerLimit)) // not every writer has one
		if r.Method == http.MethodPost {
			_ = control.SetReadDeadline(time.Now().Add(writeLimit))
		}
		next.ServeHTTP(w, r)
	})
}

// answerLimit is how long the reader of an answer may take. A stream has a limit for
// each event.
const answerLimit = time.Minute

// healthz says that the page is served; whether the monitor works is in /metrics.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

// asset is a file that browsers keep for ever: its name changes with its content.
type asset struct {
	name, kind string
	content    []byte
}

func loadAssets() (map[string]asset, error) {
	kinds := map[string]string{"app.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}
	all := map[string]asset{}
	for name, kind := range kinds {
		content, err := fs.ReadFile(assetFiles, "assets/"+name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(content)
		a := asset{hex.EncodeToString(sum[:6]) + "-" + name, kind, content}
		all[name], all[a.name] = a, a
	}
	return all, nil
}

func (s *Server) asset(w http.ResponseWriter, r *http.Request) {
	a, ok := s.assets[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	if a.name == r.PathValue("file") {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	_, _ = w.Write(a.content)
}
