package dashboard

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// fleetCollector reads the rows at each scrape. Each instance has a fixed number of
// series: what it says of itself becomes a label in one of them alone, and only
// where it is a version that can exist, so that no instance can make many.
type fleetCollector struct {
	s *Server

	up, health, info, duration, probed, synced, cert, drift, deprecated, warnings, stale, skew *prometheus.Desc
	instances, drifted, old, self, incidents, inventoryOK, inventoryLoaded, streams            *prometheus.Desc
	probes, skipped, storeOK, overdue                                                          *prometheus.Desc
}

func newFleetCollector(s *Server) *fleetCollector {
	of := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("agnes_fleet_"+name, help, labels, nil)
	}
	one := func(name, help string, labels ...string) *prometheus.Desc {
		return of("instance_"+name, help, append([]string{"name"}, labels...)...)
	}
	return &fleetCollector{
		s:          s,
		up:         one("up", "Whether the last probe found the instance at work: healthy or degraded. Absent where nothing is known."),
		health:     one("health", "State set: 1 for the state that the last probe found, 0 for the others.", "state"),
		info:       one("info", "Always 1; the labels say what runs and what is wanted.", "version", "channel", "wanted", "delivery", "cloud", "url"),
		duration:   one("probe_duration_seconds", "Time that the last probe took. Absent without an answer."),
		probed:     one("last_probe_timestamp_seconds", "When the last probe began."),
		synced:     one("last_sync_timestamp_seconds", "When the source that was synced the longest ago was synced. Needs a token in the inventory."),
		cert:       one("certificate_not_after_timestamp_seconds", "When the first certificate of its chain ends."),
		drift:      one("drift", "Whether it runs something else than the inventory wants. Absent where that is unknown."),
		deprecated: one("deprecated", "Whether it runs a deprecated version."),
		warnings:   one("warnings", "Warnings that it gives, and that the probe has."),
		stale:      one("stale_tables", "Tables that are stale. Needs a token in the inventory."),
		skew:       one("clock_skew_seconds", "How far its clock is ahead of this machine's."),

		instances:       of("instances", "Instances of the inventory by the state that the last probe found.", "state"),
		drifted:         of("instances_drifted", "Instances that run something else than the inventory wants."),
		old:             of("instances_deprecated", "Instances that run a deprecated version."),
		self:            of("instances_not_asked", "Instances that could not be asked because of this machine or its network."),
		incidents:       of("incidents_open", "Incidents that are open."),
		inventoryOK:     of("inventory_valid", "Whether the inventory could be taken when it last changed; 0: the last good one is watched."),
		inventoryLoaded: of("inventory_load_timestamp_seconds", "When the inventory that is watched was read."),
		streams:         of("page_streams", "Open pages that are told of changes."),

		probes:  of("probes_total", "Probes that the monitor has made."),
		skipped: of("probe_rounds_skipped_total", "Rounds of instances that were left out, since the monitor did not keep up."),
		storeOK: of("store_writable", "Whether the store takes what the monitor learns."),
		overdue: of("probe_overdue_seconds", "How long the instance that waits the longest has been due for its next probe."),
	}
}

// Describe sends nothing that depends on the fleet.
func (c *fleetCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.up, c.health, c.info, c.duration, c.probed, c.synced, c.cert, c.drift, c.deprecated, c.warnings, c.stale, c.skew,
		c.instances, c.drifted, c.old, c.self, c.incidents, c.inventoryOK, c.inventoryLoaded, c.streams, c.probes, c.skipped, c.storeOK, c.overdue,
	} {
		out <- d
	}
}

// Collect sends the fleet as it is.
func (c *fleetCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	moment := func(d *prometheus.Desc, at time.Time, labels ...string) {
		if !at.IsZero() {
			gauge(d, float64(at.UnixMilli())/1000, labels...)
		}
	}
	rows := c.s.model.all()
	for _, r := range rows {
		for _, s := range states() {
			gauge(c.health, truth(s == r.State), r.Name, s)
		}
		gauge(c.info, 1, r.Name, labelVersion(r.Version), labelChannel(r.Channel), r.Wanted, r.In.Delivery(), r.In.Cloud, r.URL)
		if r.State == stateUnknown {
			continue // what was seen before says nothing of now
		}
		gauge(c.up, truth(r.State == "healthy" || r.State == "degraded"), r.Name)
		moment(c.probed, r.ProbedAt, r.Name)
		moment(c.cert, r.CertNotAfter, r.Name)
		gauge(c.warnings, float64(len(r.Warnings)), r.Name)
		if r.LatencyMS != nil {
			gauge(c.duration, r.Timing.Total.Seconds(), r.Name)
			gauge(c.deprecated, truth(r.Deprecated), r.Name)
			gauge(c.skew, float64(r.SkewMS)/1000, r.Name)
		}
		if r.Drift != nil {
			gauge(c.drift, truth(*r.Drift), r.Name)
		}
		if r.result.Details {
			moment(c.synced, r.result.LastSync, r.Name)
			gauge(c.stale, float64(r.StaleTables), r.Name)
		}
	}
	all := count(rows)
	for _, s := range states() {
		gauge(c.instances, float64(all.By[s]), s)
	}
	gauge(c.drifted, float64(all.Drifted))
	gauge(c.old, float64(all.Deprecated))
	gauge(c.self, float64(all.SelfTroubled))
	gauge(c.streams, float64(len(c.s.streams)))
	v, live, trouble := c.s.current()
	gauge(c.inventoryOK, truth(trouble == nil))
	moment(c.inventoryLoaded, v.Loaded)
	if live != nil {
		condition := live.Condition()
		out <- prometheus.MustNewConstMetric(c.probes, prometheus.CounterValue, float64(condition.Rounds))
		out <- prometheus.MustNewConstMetric(c.skipped, prometheus.CounterValue, float64(condition.Missed))
		gauge(c.storeOK, truth(condition.Store == ""))
	}
	gauge(c.overdue, overdue(rows, time.Now()).Seconds())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	open, err := c.s.o.Store.OpenIncidents(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(c.incidents, err)
		return
	}
	gauge(c.incidents, float64(open))
}

// overdue is how much longer than its interval, and a tenth of it for the jitter,
// the instance that waits the longest has not been asked.
func overdue(rows []*row, now time.Time) (most time.Duration) {
	for _, r := range rows {
		if !r.result.At.IsZero() {
			most = max(most, now.Sub(r.result.At)-r.In.Interval-r.In.Interval/10)
		}
	}
	return most
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// labelVersion lets through what a release could be called.
func labelVersion(v string) string {
	if _, err := release.ParseVersion(v); err == nil || v == "" || v == "dev" {
		return v
	}
	return "other"
}

func labelChannel(c string) string {
	if c == "" || c == string(release.Stable) || c == string(release.Dev) {
		return c
	}
	return "other"
}

func (s *Server) newRegistry() (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		newFleetCollector(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return r, nil
}

func (s *Server) metricsHandler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true, MaxRequestsInFlight: 2, ErrorHandling: promhttp.ContinueOnError,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelError),
	})
}
