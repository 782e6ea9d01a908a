package fleet

import (
	"cmp"
	"context"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Health is what a probe found. The first three are the instance's own words;
// an answer that is none of an instance's makes it unhealthy, no answer makes it
// unreachable.
type Health string

// The states, as `agnesctl fleet status` prints them.
const (
	Healthy     Health = "healthy"
	Degraded    Health = "degraded"
	Unhealthy   Health = "unhealthy"
	Unreachable Health = "unreachable"
)

// Fault is what kept a probe from an instance's own words.
type Fault string

// The faults. A name that cannot be resolved in time is FaultDNS; every other
// wait that ended without an answer is FaultTimeout, and its message says for what.
const (
	NoFault      Fault = ""
	FaultDNS     Fault = "dns"
	FaultConnect Fault = "connect"
	FaultTLS     Fault = "tls"
	FaultTimeout Fault = "timeout"
	FaultHTTP    Fault = "http"   // an answer with another status, or none that is HTTP
	FaultBody    Fault = "body"   // 200 with a body that is no instance's health
	FaultConfig  Fault = "config" // the inventory: an address or a file of authorities that cannot be used
	FaultSelf    Fault = "self"   // our machine: no descriptors or ports left, the probe was ended
)

// Result is what one probe found.
type Result struct {
	Name, URL string
	At        time.Time // begin of the probe
	Health    Health
	Reached   bool // something answered, if only to refuse

	// The instance's own words; empty where it did not say them.
	Version, Channel, Commit, Phase string
	SchemaVersion                   int
	SetupRequired                   bool
	Warnings                        []string
	Deprecated                      bool
	Latest                          string // a newer version of its channel, where it knows one
	UpdateFailed                    string // digest of an image that its host took back because it failed

	// Of GET /api/health/details, where the inventory has a token.
	Details                           bool // they were read
	Digest, BundleVersion, ConfigHash string
	LastSync                          time.Time // of the source that was synced the longest ago; zero where none was
	StaleTables                       int

	Timing       Timing
	CertNotAfter time.Time     // the first moment at which the certificate or one of its issuers is not valid
	Skew         time.Duration // of the instance's clock against ours, less what the network explains
	Notes        []string      // what the probe wants to be known: a certificate that ends soon, a clock that is off

	Fault Fault
	Err   *problem.Error // why it is unhealthy or unreachable

	// SelfTrouble means that the failure says nothing about the instance: others,
	// that answered before, cannot be reached either.
	SelfTrouble bool
}

// Timing says where the time of a probe went. On a connection that was kept,
// DNS, Connect and TLS are zero.
type Timing struct {
	DNS, Connect, TLS time.Duration
	Total             time.Duration
	Reused            bool // the connection of an earlier probe
	Resumed           bool // the TLS session of an earlier probe
}

// Good is what a Judge wants to know of a result: does the instance do its work?
func (r Result) Good() bool { return r.Health == Healthy || r.Health == Degraded }

// ProbeOptions tune a Prober. The zero value is good for a fleet of any size that is
// asked again and again; who asks once has no use for MaxIdle and MaxSessions.
type ProbeOptions struct {
	Concurrency int           // probes at once in a sweep; 256 when zero; fewer where descriptors are scarce
	Connect     time.Duration // limit of name, connection and TLS together; 1.5 s when zero
	Timeout     time.Duration // limit of a probe whose instance has none; 5 s when zero
	MaxIdle     int           // connections kept between sweeps, each some 25 KB; 16,384 when zero, none when negative
	MaxSessions int           // TLS sessions kept for each authority, each some 5 KB; 16,384 when zero, none when negative
	Seed        uint64        // of the jitter; give pollers of one fleet the same one
	Beacons     []string      // host:port outside the fleet that are up whenever our network is

	Proxy func(*http.Request) (*url.URL, error)                                // http.ProxyFromEnvironment, or nil for none
	Dial  func(ctx context.Context, network, address string) (net.Conn, error) // net.Dialer's when nil
}

const (
	defaultConcurrency = 256
	defaultConnect     = 1500 * time.Millisecond // a lost SYN is sent again after one second, and the next time after three
	defaultTimeout     = 5 * time.Second
	defaultInterval    = 30 * time.Second
	defaultIdle        = 16_384
	defaultSessions    = 16_384
)

// Prober asks instances how they are. It only reads. It keeps connections and
// TLS sessions for the next time, in bounded number. It is safe for concurrent
// use; Close it at the end.
type Prober struct {
	o    ProbeOptions
	idle *idlePool
	life time.Duration // of connections and sessions
	self *selfCheck
	room *room // of those who take turns by themselves

	mu     sync.Mutex
	routes map[routeKey]*route
	slow   map[string]bool // names whose last probe waited in vain: a sweep begins with them
}

// NewProber returns a Prober.
func NewProber(o ProbeOptions) *Prober {
	o.Concurrency = cmp.Or(o.Concurrency, defaultConcurrency)
	o.Connect = cmp.Or(o.Connect, defaultConnect)
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	o.MaxIdle = cmp.Or(o.MaxIdle, defaultIdle)
	o.MaxSessions = cmp.Or(o.MaxSessions, defaultSessions)
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if limit := fileLimit(); limit > 0 {
		o.fit(int(limit))
	}
	return &Prober{
		o: o, idle: newIdlePool(o.MaxIdle), life: connectionLife, self: newSelfCheck(o), room: newRoom(o.Concurrency, o.Connect),
		routes: map[routeKey]*route{}, slow: map[string]bool{},
	}
}

// fit stays below a limit of descriptors, without which Go says "no such host" of a
// name. A probe has one, and two more while its name is resolved; an eighth of all is
// left for the rest of the program, and connections that are kept have what remains.
func (o *ProbeOptions) fit(descriptors int) {
	o.Concurrency = max(1, min(o.Concurrency, descriptors/8))
	o.MaxIdle = min(o.MaxIdle, descriptors-3*o.Concurrency-descriptors/8)
}

// Close closes the connections that were kept.
func (p *Prober) Close() { p.idle.close() }

// One probes one instance. It always returns a Result; a context that ends first
// is a FaultSelf.
func (p *Prober) One(ctx context.Context, in Instance) Result {
	r, reach := p.ask(ctx, in)
	switch {
	case r.Fault == FaultSelf:
		r.SelfTrouble = true
	case reach == unreached && r.Fault != FaultConfig && p.self.check(ctx, in, r.At.Add(r.Timing.Total)) == offline:
		r.blame()
	}
	return r
}

// Turn waits until one more probe does not make this machine too slow for those
// that it makes already, as a Sweep does by itself: a probe that waits for a
// processor of ours would be taken for an instance that is silent. What it returns
// must be called with the result. It reports false when ctx has ended.
func (p *Prober) Turn(ctx context.Context) (leave func(Result), ok bool) {
	defer context.AfterFunc(ctx, p.room.wake)()
	if ok := p.room.enter(ctx); !ok {
		p.room.leave()
		return nil, false
	}
	// Who only waits for a silent host takes no processor from others.
	left := sync.OnceFunc(p.room.leave)
	silent := time.AfterFunc(p.o.Connect/2, left)
	return func(r Result) {
		silent.Stop()
		left()
		p.room.saw(r)
	}, true
}

// blame marks a failure as ours.
func (r *Result) blame() {
	r.SelfTrouble = true
	if r.Err != nil {
		err := *r.Err
		err.Hint = "Check this machine's own network first: nothing else of the fleet answers either."
		r.Err = &err
	}
}

// Schedule returns the next moment after now at which an instance is due. Each
// has its own phase in its interval, by its name, and a jitter of up to a tenth
// of it that differs from round to round: neither restarts nor more pollers move
// it, and a fleet is never asked all at once.
func (p *Prober) Schedule(now time.Time, in Instance) time.Time {
	every := int64(cmp.Or(in.Interval, defaultInterval))
	h := fnv.New64a()
	_, _ = h.Write([]byte(in.Name))
	id := h.Sum64()
	spread := rand.New(rand.NewPCG(id, 0)) //nolint:gosec // spreads load; nothing to guess
	phase := spread.Int64N(every)
	due := func(round int64) time.Time {
		at := round*every + phase
		if tenth := every / 10; tenth > 0 {
			jitter := rand.New(rand.NewPCG(p.o.Seed^id, uint64(round))) //nolint:gosec // the same
			at += jitter.Int64N(tenth)
		}
		return time.Unix(0, at)
	}
	round := (now.UnixNano()-phase)/every - 1
	for {
		if at := due(round); at.After(now) {
			return at
		}
		round++
	}
}
