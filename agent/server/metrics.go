package server

import (
	"log/slog"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keboola/agnes-the-ai-analyst/agent"
)

type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(in *agent.Instance) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agnes_http_requests_total", Help: "HTTP requests by route, method and status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "agnes_http_request_duration_seconds", Help: "Time to answer by route.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"route"}),
	}
	v := in.Version()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agnes_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": v.Version, "channel": v.Channel, "commit": v.Commit, "duckdb": v.DuckDB},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.seconds, build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, g := range in.Gauges() {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "agnes_" + g.Name, Help: g.Help}, g.Value))
	}
	return m
}

// aborted is the status, in metrics and log, of a request whose connection was
// cut instead of answered to the end.
const aborted = "aborted"

// observe counts and logs every request, by route and never by address or body.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start, status := time.Now(), aborted
		defer func() { s.record(c, status, time.Since(start)) }() // also when http.ErrAbortHandler passes
		if err := next(c); err != nil {
			c.Error(err)
		}
		status = strconv.Itoa(c.Response().Status)
		return nil
	}
}

func (s *Server) record(c echo.Context, status string, took time.Duration) {
	route := c.Path()
	if route == "" {
		route = "unmatched"
	}
	s.metrics.requests.WithLabelValues(route, c.Request().Method, status).Inc()
	s.metrics.seconds.WithLabelValues(route).Observe(took.Seconds())
	level := slog.LevelDebug
	if status >= "500" && status != aborted {
		level = slog.LevelWarn
	}
	s.opt.Log.Log(c.Request().Context(), level, "request", "method", c.Request().Method, "route", route, "status", status,
		"took", took, "request_id", c.Response().Header().Get(echo.HeaderXRequestID))
}

// serveMetrics answers signed-in users and this machine itself.
func (s *Server) serveMetrics(c echo.Context) error {
	req := c.Request()
	if local := peerOf(req).IsLoopback() && !forwarded(req); !local {
		if err := allow(req.Context(), user); err != nil {
			return err
		}
	}
	promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(c.Response(), req)
	return nil
}
