// Package server puts an instance on HTTP.
//
// Handlers are thin: each turns a typed request into one call of agent.Instance
// and back. What is common to all calls lives in a few places: routes.go names
// every call with who may make it, auth.go finds the caller, problems.go gives
// every failure one shape, gate.go keeps a fresh instance in setup mode, and
// starting.go answers while the instance still opens.
// The OpenAPI document is generated from the same declarations.
package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/swaggest/swgui/v5emb"

	"github.com/keboola/agnes-the-ai-analyst/agent"
)

// Options are what a server needs.
type Options struct {
	Instance      *agent.Instance
	Log           *slog.Logger
	Domain        string        // public host name; its proxy's X-Forwarded-For is then believed
	LocalOnly     bool          // the port is published on loopback only, so AGNES_BOOTSTRAP=open is safe
	ShutdownGrace time.Duration // how long running requests may take to finish; 0: 20 s
}

// Server is an instance's HTTP side.
type Server struct {
	opt     Options
	echo    *echo.Echo
	api     huma.API
	metrics *metrics
	closing chan struct{} // closed when streams have to end
}

// New returns a server for an instance.
func New(opt Options) *Server {
	s := &Server{opt: opt, echo: echo.New(), closing: make(chan struct{})}
	if s.opt.ShutdownGrace == 0 {
		s.opt.ShutdownGrace = 20 * time.Second
	}
	s.metrics = newMetrics(opt.Instance)
	s.echo.HideBanner, s.echo.HidePort = true, true
	s.echo.HTTPErrorHandler = s.handleError
	s.echo.IPExtractor = s.clientAddress
	s.echo.Use(
		middleware.RequestID(),
		s.observe,
		middleware.RecoverWithConfig(middleware.RecoverConfig{LogErrorFunc: s.logPanic}),
		s.headers,
		s.authenticate,
		s.setupGate,
	)
	s.api = humaecho.New(s.echo, describe(opt.Instance.Version().Version))
	s.routes()
	s.echo.GET("/metrics", s.serveMetrics)
	s.echo.GET("/setup", s.setupPage)
	s.echo.GET("/", func(c echo.Context) error { return c.Redirect(http.StatusSeeOther, "/docs/") })
	s.echo.Any("/docs*", echo.WrapHandler(v5emb.New("Agnes API", "/openapi.json", "/docs/")))
	return s
}

// Handler returns the server's root handler.
func (s *Server) Handler() http.Handler { return s.echo }

// OpenAPI returns the document that /openapi.json serves.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.api.OpenAPI() }

// Run serves on ln until ctx ends. It then accepts nothing new, ends streams,
// and lets running requests finish within the grace time.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	return Serve(ctx, ln, s.opt.Log, func(context.Context) (*Server, error) { return s, nil })
}

func describe(version string) huma.Config {
	adjustHuma()
	config := huma.DefaultConfig("Agnes", version)
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", func(t reflect.Type, hint string) string {
		if t == reflect.TypeFor[problemError]() {
			return "Problem"
		}
		return huma.DefaultSchemaNamer(t, hint)
	})
	config.Info.Description = "A self-hosted data-analyst instance: tables from your sources, answered in SQL, for people and AI agents. " +
		"Every failure is an RFC 9457 problem with a code and, in hint, the exact next call."
	config.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	config.DocsPath = "" // served offline, without a CDN
	config.SchemasPath = ""
	config.CreateHooks = nil // no $schema links in bodies
	config.Formats = formats()
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "A session token of POST /auth/token, a personal access token of POST /auth/tokens, or, on the instance's own machine, the operator token in DATA_DIR/state/.operator_token."},
	}
	return config
}

func (s *Server) headers(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cache-Control", "no-store")
		return next(c)
	}
}
