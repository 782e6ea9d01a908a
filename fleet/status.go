package fleet

import (
	"cmp"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
)

// Status is a fleet at one moment, in the shape that `agnesctl fleet status -o
// json` prints and `release-bot prune --in-use` reads.
type Status struct {
	Summary   StatusSummary    `json:"summary"`
	Instances []InstanceStatus `json:"instances"` // the worst first
}

// StatusSummary counts.
type StatusSummary struct {
	At    time.Time `json:"at"`
	Total int       `json:"total"`

	Healthy     int `json:"healthy"`
	Degraded    int `json:"degraded"`
	Unhealthy   int `json:"unhealthy"`
	Unreachable int `json:"unreachable"`

	Faults map[Fault]int `json:"faults"` // of those that are unhealthy or unreachable

	Drifted      int            `json:"drifted"`
	DriftUnknown int            `json:"drift_unknown"`
	Deprecated   int            `json:"deprecated"`
	Warnings     int            `json:"warnings"` // instances with some
	CertExpiring int            `json:"cert_expiring"`
	Versions     map[string]int `json:"versions"`

	// SelfTrouble says, where it is not empty, that this machine and not the fleet
	// has the trouble, for SelfTroubled of the unreachable instances.
	SelfTrouble  string `json:"self_trouble,omitempty"`
	SelfTroubled int    `json:"self_troubled"`

	Smoke map[smoke.Verdict]int `json:"smoke,omitempty"` // absent where none was asked for
}

// InstanceStatus is one line of it.
type InstanceStatus struct {
	Name    string `json:"name"`
	URL     string `json:"url"`
	Status  Health `json:"status"`
	Version string `json:"version"`
	Channel string `json:"channel"`
	Wanted  string `json:"wanted"`

	Drift        *bool        `json:"drift"`         // null: unknown
	DriftReason  string       `json:"drift_reason"`  // all reasons in a line, or why it is unknown
	DriftReasons []Divergence `json:"drift_reasons"` // each by itself

	Digest        string `json:"digest"`
	WantedDigest  string `json:"wanted_digest"` // empty where the registry was not asked, or did not say
	BundleVersion string `json:"bundle_version"`
	ConfigHash    string `json:"config_hash"`
	DataAgeS      *int64 `json:"data_age_s"` // seconds since the sync of the source that was synced the longest ago; null: unknown
	LatencyMS     *int64 `json:"latency_ms"` // of the whole probe; null: no answer
	DNSMS         int64  `json:"dns_ms"`     // of it; these three are 0 on a connection that was kept
	ConnectMS     int64  `json:"connect_ms"`
	TLSMS         int64  `json:"tls_ms"`

	Warnings []string `json:"warnings"`
	Error    string   `json:"error"`
	Fault    Fault    `json:"fault"` // dns, connect, tls, timeout, http, body, config, self or empty
	Hint     string   `json:"hint"`

	SchemaVersion int       `json:"schema_version"`
	Commit        string    `json:"commit"`
	Phase         string    `json:"phase"`
	SetupRequired bool      `json:"setup_required"`
	Deprecated    bool      `json:"deprecated"`
	Latest        string    `json:"latest"`
	StaleTables   int       `json:"stale_tables"`
	CertNotAfter  time.Time `json:"cert_not_after,omitzero"`
	CertDaysLeft  *int      `json:"cert_days_left"` // whole days, negative where it has ended; null: none was seen
	SkewMS        int64     `json:"skew_ms"`
	SelfTrouble   bool      `json:"self_trouble"`
	ProbedAt      time.Time `json:"probed_at"`

	Smoke *SmokeStatus `json:"smoke,omitempty"` // absent where none was asked for
}

// SmokeStatus is what a smoke test said of an instance.
type SmokeStatus struct {
	Verdict   smoke.Verdict `json:"verdict"`
	Step      string        `json:"step,omitempty"` // that was not answered well
	Detail    string        `json:"detail,omitempty"`
	Hint      string        `json:"hint,omitempty"`
	ElapsedMS int64         `json:"elapsed_ms"`
}

// NewStatus puts a sweep's results beside what the inventory wants, at a moment.
// An instance without a result is unreachable by our fault: it was not asked.
func NewStatus(at time.Time, instances []Instance, results []Result) Status {
	return Facts{}.Status(at, instances, results)
}

// Status is NewStatus with what else is known.
func (f Facts) Status(at time.Time, instances []Instance, results []Result) Status {
	byName := make(map[string]Result, len(results))
	for _, r := range results {
		byName[r.Name] = r
	}
	s := Status{Instances: make([]InstanceStatus, 0, len(instances))}
	for _, in := range instances {
		r, asked := byName[in.Name]
		if !asked {
			r = Result{Name: in.Name, URL: in.URL, Health: Unreachable, Fault: FaultSelf, SelfTrouble: true, At: at}
		}
		s.Instances = append(s.Instances, f.Line(at, in, r))
	}
	slices.SortStableFunc(s.Instances, func(a, b InstanceStatus) int {
		return cmp.Or(cmp.Compare(b.Badness(), a.Badness()), strings.Compare(a.Name, b.Name))
	})
	s.Summary = Summarize(at, s.Instances)
	return s
}

// Summarize counts lines.
func Summarize(at time.Time, lines []InstanceStatus) StatusSummary {
	s := StatusSummary{At: at.UTC(), Total: len(lines), Versions: map[string]int{}, Faults: map[Fault]int{}}
	for i := range lines {
		s.count(&lines[i])
	}
	if s.SelfTroubled > 0 {
		s.SelfTrouble = "This machine or its network kept some instances from being asked: nothing is known of them."
	}
	return s
}

// Line is what a result says of an instance at a moment.
func (f Facts) Line(at time.Time, in Instance, r Result) InstanceStatus {
	line := InstanceStatus{
		Name: in.Name, URL: in.URL, Status: r.Health, Version: r.Version, Channel: r.Channel, Wanted: in.Wanted(),
		Digest: r.Digest, WantedDigest: f.Tags[in.Wanted()].Digest, BundleVersion: r.BundleVersion, ConfigHash: r.ConfigHash,
		Warnings: append(append([]string{}, r.Warnings...), r.Notes...), Fault: r.Fault,
		SchemaVersion: r.SchemaVersion, Commit: r.Commit, Phase: r.Phase, SetupRequired: r.SetupRequired,
		Deprecated: r.Deprecated, Latest: r.Latest, StaleTables: r.StaleTables,
		CertNotAfter: r.CertNotAfter.UTC(), SkewMS: r.Skew.Milliseconds(), SelfTrouble: r.SelfTrouble, ProbedAt: r.At.UTC(),
		DNSMS: r.Timing.DNS.Milliseconds(), ConnectMS: r.Timing.Connect.Milliseconds(), TLSMS: r.Timing.TLS.Milliseconds(),
	}
	if !r.CertNotAfter.IsZero() {
		days := int(math.Floor(r.CertNotAfter.Sub(at).Hours() / 24))
		line.CertDaysLeft = &days
	}
	if r.Err != nil {
		line.Error, line.Hint = r.Err.Message, r.Err.Hint
	} else if r.SelfTrouble {
		line.Error, line.Hint = "It was not asked.", "Ask again."
	}
	if !r.LastSync.IsZero() {
		age := max(0, int64(at.Sub(r.LastSync)/time.Second))
		line.DataAgeS = &age
	}
	if r.Health != Unreachable {
		ms := (r.Timing.Total + time.Millisecond - 1).Milliseconds()
		line.LatencyMS = &ms
	}
	d := f.Drift(in, r)
	line.DriftReason, line.DriftReasons = d.Reason, append([]Divergence{}, d.Reasons...)
	if d.Known {
		line.Drift = &d.Drifted
	}
	if f.Smoke != nil {
		line.Smoke = smokeStatus(f.Smoke[in.Name])
	}
	return line
}

// smokeStatus is a report in short. One that is not there was not made: that is no
// pass.
func smokeStatus(r smoke.Report) *SmokeStatus {
	s := &SmokeStatus{Verdict: cmp.Or(r.Verdict, smoke.Inconclusive), ElapsedMS: r.ElapsedMS}
	if failed := r.Failed(); failed != nil {
		s.Step, s.Detail, s.Hint = failed.Name, clip(failed.Detail), clip(failed.Hint)
	} else if r.Verdict == "" {
		s.Detail = "It was not made."
	}
	return s
}

// Badness orders lines: more is worse, 0 is an instance of which nothing is to be
// said. Of two alike the one that drifted is worse.
func (l InstanceStatus) Badness() int {
	b := 0
	switch l.Status {
	case Unreachable:
		b = 40
	case Unhealthy:
		b = 30
	case Degraded:
		b = 20
	case Healthy:
	}
	if l.Drift != nil && *l.Drift {
		b += 4
	}
	if l.Deprecated {
		b += 2
	}
	if len(l.Warnings) > 0 {
		b++
	}
	if l.Smoke != nil && l.Smoke.Verdict == smoke.Fail {
		b += 8
	}
	return b
}

func (s *StatusSummary) count(l *InstanceStatus) {
	switch l.Status {
	case Healthy:
		s.Healthy++
	case Degraded:
		s.Degraded++
	case Unhealthy:
		s.Unhealthy++
	case Unreachable:
		s.Unreachable++
	}
	switch {
	case l.Drift == nil:
		s.DriftUnknown++
	case *l.Drift:
		s.Drifted++
	}
	if l.Deprecated {
		s.Deprecated++
	}
	if len(l.Warnings) > 0 {
		s.Warnings++
	}
	if l.Version != "" {
		s.Versions[l.Version]++
	}
	if l.SelfTrouble {
		s.SelfTroubled++
	}
	if l.Fault != NoFault {
		s.Faults[l.Fault]++
	}
	if l.CertDaysLeft != nil && *l.CertDaysLeft < certWarning {
		s.CertExpiring++
	}
	if l.Smoke != nil {
		if s.Smoke == nil {
			s.Smoke = map[smoke.Verdict]int{}
		}
		s.Smoke[l.Smoke.Verdict]++
	}
}

// isLoopback reports whether an address is on this machine.
func isLoopback(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil {
		return false
	}
	host := u.Hostname()
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
