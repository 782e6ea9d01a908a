package fleet

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	healthPath  = "/api/health"
	detailsPath = "/api/health/details"
	maxBody     = 1 << 20 // bytes of an answer
	maxText     = 500     // bytes of a warning, a version and the like
	maxWarnings = 50
	certWarning = 14 // days before its end from which a certificate is warned of
)

// attempt collects what happens while a connection is made. The dial and the
// handshake end before NewClientConn returns, so that nothing here is shared.
type attempt struct {
	began, asked, dialed, secured time.Time
	dns                           time.Duration
	proxy                         *url.URL // between us and the other host
	handshakes                    int      // that were begun
	connected                     bool     // with the other host
	remote                        string
}

type attemptKey struct{}

// reach says how far a probe came.
type reach bool

const (
	unreached reach = false
	reached   reach = true // the other host, or one on its behalf, gave a sign of life
)

// target is what a probe goes to.
type target struct {
	in      Instance
	base    *url.URL
	address string // host:port
	via     *route
	total   time.Duration
}

// ask makes the probe; whether our own network is to blame is judged later.
func (p *Prober) ask(ctx context.Context, in Instance) (Result, reach) {
	r := Result{Name: in.Name, URL: in.URL, At: time.Now(), Health: Unreachable}
	t := target{in: in, total: cmp.Or(in.Timeout, p.o.Timeout)}
	var wrong *problem.Error
	if t.base, wrong = parseBase(in.URL); wrong == nil {
		t.address = hostPort(t.base)
		t.via, wrong = p.route(in)
	}
	if wrong != nil {
		r.fail(FaultConfig, wrong)
		return r, unreached
	}
	limited, cancel := context.WithTimeout(ctx, t.total)
	defer cancel()
	x := &exchange{p: p, t: t, r: &r, outer: ctx, ctx: limited}
	how := x.run()
	r.Timing.Total, r.Reached = time.Since(r.At), bool(how)
	if how == reached && x.seen != nil {
		x.seen.name = in.Name
		p.self.saw(in, *x.seen)
	}
	p.remember(in.Name, r.Fault == FaultTimeout)
	return r, how
}

// remember keeps which names make a sweep wait.
func (p *Prober) remember(name string, waited bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if waited {
		p.slow[name] = true
	} else if len(p.slow) > 0 {
		delete(p.slow, name)
	}
}

func parseBase(raw string) (*url.URL, *problem.Error) {
	base, err := api.ParseURL(raw)
	if err != nil {
		return nil, problem.As(err)
	}
	return base, nil
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// exchange is one probe under way.
type exchange struct {
	p     *Prober
	t     target
	r     *Result
	outer context.Context //nolint:containedctx // of the caller: tells its end from our limit
	ctx   context.Context //nolint:containedctx // lives as long as this value: one call of ask

	conn  *http.ClientConn
	seen  *witness  // how to try again whether the other host can be reached
	until time.Time // end of the connection's life
}

func (r *Result) fail(f Fault, err *problem.Error) {
	r.Fault, r.Err = f, err.WithCode(string(f))
}

func (x *exchange) run() reach {
	if kept, ok := x.p.idle.get(x.t.address+" "+x.t.in.Name, x.t.via); ok {
		x.conn, x.seen, x.until = kept.conn, kept.seen, kept.until
		x.r.Timing.Reused = true
		// The host may have closed it just now, or a box between forgotten it: that
		// says nothing about its health, so there is time left for another one.
		ctx, cancel := context.WithCancel(x.ctx)
		defer cancel()
		early := time.AfterFunc(min(x.p.o.Connect, x.t.total/2), cancel)
		resp, err := x.get(ctx, healthPath, "")
		if early.Stop() && err == nil {
			x.health(resp)
			return reached
		}
		if err == nil {
			_ = resp.Body.Close()
		}
		_ = x.conn.Close()
		x.r.Timing.Reused = false
	}
	if how, ok := x.connect(); !ok {
		return how
	}
	resp, err := x.get(x.ctx, healthPath, "") //nolint:bodyclose // health closes it
	if err != nil {
		_ = x.conn.Close()
		x.r.fail(x.unanswered(err, healthPath))
		return reached
	}
	x.health(resp)
	return reached
}

// connect makes x.conn, or says why not.
func (x *exchange) connect() (reach, bool) {
	a := &attempt{began: time.Now()}
	if x.p.o.Proxy != nil {
		a.proxy, _ = x.p.o.Proxy(&http.Request{URL: x.t.base}) // an error of it comes again below
	}
	ctx := context.WithValue(x.ctx, attemptKey{}, a)
	if net.ParseIP(x.t.base.Hostname()) == nil || x.t.base.Scheme == "https" {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			DNSStart: func(httptrace.DNSStartInfo) { a.asked = time.Now() },
			DNSDone:  func(httptrace.DNSDoneInfo) { a.dns = time.Since(a.asked) },
			TLSHandshakeStart: func() {
				// A proxy's own handshake comes first; the next one has come through it.
				if a.handshakes++; a.proxy != nil && (a.proxy.Scheme != "https" || a.handshakes > 1) {
					a.connected = true
				}
			},
			TLSHandshakeDone: func(tls.ConnectionState, error) { a.secured = time.Now() },
		})
	}
	ctx, cancel := context.WithTimeout(ctx, x.p.o.Connect)
	defer cancel()
	conn, err := x.t.via.transport.NewClientConn(ctx, x.t.base.Scheme, x.t.address)
	timing := &x.r.Timing
	timing.DNS = a.dns
	if !a.dialed.IsZero() {
		timing.Connect = max(0, a.dialed.Sub(a.began)-a.dns)
		if !a.secured.IsZero() {
			timing.TLS = a.secured.Sub(a.dialed)
		}
	}
	switch {
	case a.proxy != nil:
		x.seen = &witness{via: x.t.via, scheme: x.t.base.Scheme, address: x.t.address}
	case a.remote != "":
		x.seen = &witness{address: a.remote}
	}
	if err != nil {
		f, reason := x.unconnected(ctx, a, err)
		x.r.fail(f, reason)
		return reach(a.connected || a.proxy == nil && alive(err)), false
	}
	x.conn, x.until = conn, endOfLife(x.p.life)
	return reached, true
}

// get makes one call on the connection.
func (x *exchange) get(ctx context.Context, path string, token redact.Secret) (*http.Response, error) {
	// A path below the address is kept: some instances live there.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.t.base.JoinPath(path).String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("User-Agent", "agnes-fleet")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache") // the state of now, not a proxy's copy
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	return x.conn.RoundTrip(req)
}

// health judges the answer, asks for details where it was an instance's, and
// keeps the connection where it can be used again.
func (x *exchange) health(resp *http.Response) {
	if resp.TLS != nil && !x.r.Timing.Reused {
		x.r.Timing.Resumed = resp.TLS.DidResume
	}
	x.certificate(resp.TLS)
	x.r.Health = Unhealthy // something answers; now its words count
	h, f, wrong := readAnswer[api.Health](x, resp, healthPath)
	if wrong == nil {
		f, wrong = FaultBody, x.judge(h)
	}
	if wrong != nil {
		_ = x.conn.Close()
		x.r.fail(f, wrong)
		return
	}
	if !x.t.in.Token.IsZero() && !x.details() {
		_ = x.conn.Close()
		return
	}
	x.p.idle.put(x.t.address+" "+x.t.in.Name, idleConn{conn: x.conn, route: x.t.via, seen: x.seen, until: x.until})
}

// certificate notes how long the chain is valid.
func (x *exchange) certificate(state *tls.ConnectionState) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return
	}
	first := state.PeerCertificates[0].NotAfter
	if len(state.VerifiedChains) > 0 {
		for _, c := range state.VerifiedChains[0] {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
	}
	x.r.CertNotAfter = first
	if left := first.Sub(x.r.At); left < certWarning*24*time.Hour {
		x.note("The certificate is valid until %s only.", first.UTC().Format(time.RFC3339))
	}
}

func (x *exchange) note(format string, args ...any) {
	x.r.Notes = append(x.r.Notes, fmt.Sprintf(format, args...))
}

const maxSkew = time.Minute

// judge takes the words of an instance into the result.
func (x *exchange) judge(h api.Health) *problem.Error {
	r := x.r
	expected := fmt.Sprintf("Expected the health of an Agnes instance from GET %s%s", x.t.base, healthPath)
	switch Health(h.Status) {
	case Healthy, Degraded, Unhealthy:
	case "":
		return problem.New(problem.Unavailable, expected+", found JSON without a status.", "Check that the address is an instance's: agnesctl instance health --url "+x.t.base.String())
	default:
		return problem.New(problem.Unavailable, fmt.Sprintf("%s, found the status %q.", expected, clip(h.Status)), "Check the address, or use a newer agnesctl, which may know this status.")
	}
	if h.Version == "" {
		return problem.New(problem.Unavailable, expected+", found JSON without a version.", "Check that the address is an instance's: agnesctl instance health --url "+x.t.base.String())
	}
	r.Health = Health(h.Status)
	r.Version, r.Channel, r.Commit, r.Phase = clip(h.Version), clip(h.Channel), clip(h.Commit), clip(h.Phase)
	r.SchemaVersion, r.SetupRequired = h.SchemaVersion, h.SetupRequired
	r.Deprecated, r.Latest, r.UpdateFailed = h.Update.Deprecated, clip(h.Update.Latest), digestOf(h.Update.Failed)
	for _, w := range h.Warnings[:min(len(h.Warnings), maxWarnings)] {
		r.Warnings = append(r.Warnings, clip(w))
	}
	if extra := len(h.Warnings) - maxWarnings; extra > 0 {
		x.note("%d more warnings are not shown.", extra)
	}
	if !h.Timestamp.IsZero() {
		// It was written between begin and end of the call.
		now := time.Now()
		switch {
		case h.Timestamp.Before(r.At):
			r.Skew = h.Timestamp.Sub(r.At)
		case h.Timestamp.After(now):
			r.Skew = h.Timestamp.Sub(now)
		}
		if r.Skew.Abs() > maxSkew {
			x.note("Its clock, or a copy of its answer in a cache, is off by %s.", r.Skew.Round(time.Second))
		}
	}
	if r.Health == Unhealthy {
		r.Err = worst(h).WithCode(string(Unhealthy))
	}
	return nil
}

// worst says what makes an instance unhealthy, in its own words.
func worst(h api.Health) *problem.Error {
	names := make([]string, 0, len(h.Services))
	for name, s := range h.Services {
		if s.Status == string(Unhealthy) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return problem.New(problem.Unavailable, "The instance says that it is unhealthy.", "Read the instance's log.")
	}
	s := h.Services[names[0]]
	return problem.New(problem.Unavailable, clip(fmt.Sprintf("The instance is unhealthy: %s: %s", names[0], s.Detail)),
		clip(cmp.Or(s.Hint, "Read the instance's log.")))
}

// details reports whether the connection can still be used. What it cannot
// learn is a note: the health is known already.
func (x *exchange) details() bool {
	token, err := x.t.in.Token.Read()
	if err != nil {
		x.note("No details: %s", problem.As(err).Message)
		return true
	}
	resp, err := x.get(x.ctx, detailsPath, token)
	if err != nil {
		_, wrong := x.unanswered(err, detailsPath)
		x.note("No details: %s", wrong.Message)
		return false
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		_ = resp.Body.Close()
		x.note("No details: the token of the inventory is refused with %d.", resp.StatusCode)
		return false
	}
	d, _, wrong := readAnswer[api.HealthDetails](x, resp, detailsPath)
	if wrong != nil {
		x.note("No details: %s", wrong.Message)
		return false
	}
	r := x.r
	r.Details, r.BundleVersion, r.ConfigHash = true, clip(d.BundleVersion), clip(d.ConfigHash)
	r.Digest = digestOf(d.ImageDigest)
	if r.Digest == "" && d.ImageDigest != "" {
		x.note("Expected an image digest sha256:…, found %q.", clip(d.ImageDigest))
	}
	r.StaleTables = len(d.StaleTables)
	if r.StaleTables > 0 {
		x.note("%d tables are stale.", r.StaleTables)
	}
	for _, s := range d.Sources {
		if s.LastSync != nil && (r.LastSync.IsZero() || s.LastSync.Before(r.LastSync)) {
			r.LastSync = *s.LastSync
		}
	}
	return true
}

// clip bounds what an instance can make us keep and print.
func clip(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// readBody reads at most maxBody bytes.
func (x *exchange) readBody(resp *http.Response, path string) ([]byte, Fault, *problem.Error) {
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		f, wrong := x.broken(err, path, len(body))
		return nil, f, wrong
	case len(body) > maxBody:
		return nil, FaultBody, problem.New(problem.Unavailable,
			fmt.Sprintf("Expected at most %d bytes from GET %s%s, found more.", maxBody, x.t.base, path), "Check any proxy before the instance.")
	}
	return body, NoFault, nil
}
