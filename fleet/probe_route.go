package fleet

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// A route makes connections that trust one set of authorities and expect one
// server name. Connections and sessions of one are never used by another.
type route struct {
	transport *http.Transport
}

type routeKey struct {
	tls   TLS
	token bool
}

const maxHeader = 64 << 10

// route returns the way that an instance's TLS settings ask for.
func (p *Prober) route(in Instance) (*route, *problem.Error) {
	t := in.TLS
	key := routeKey{t, !in.Token.IsZero()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.routes[key]; known != nil {
		return known, nil
	}
	config, wrong := t.config()
	if wrong != nil {
		return nil, wrong
	}
	config.ClientSessionCache = newSessions(p.o.MaxSessions, p.life)
	if !key.token {
		// What is read is public and nothing is sent, so nobody gains from keeping the
		// traffic until a quantum computer can read it. Without the hybrid exchange a
		// handshake costs a third less on both sides.
		config.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // one call a connection: HTTP/2 would cost memory and give nothing
	r := &route{transport: &http.Transport{
		Proxy: p.o.Proxy, TLSClientConfig: config, Protocols: protocols, DisableCompression: true,
		MaxResponseHeaderBytes: maxHeader, ReadBufferSize: 2 << 10, WriteBufferSize: 1 << 10,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := p.o.Dial(ctx, network, address)
			if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
				a.dialed = time.Now()
				if err == nil && a.proxy == nil {
					a.connected, a.remote = true, c.RemoteAddr().String()
				}
			}
			return c, err
		},
	}}
	p.routes[key] = r
	return r, nil
}

// connectionLife is how long about a connection is used, and a TLS session is
// resumed. Both show the certificate and the address of their first handshake: who
// kept them for ever would never see that a certificate was renewed, or is wrong.
const connectionLife = 15 * time.Minute

// endOfLife is spread by a third to both sides, lest all that were made at the
// monitor's begin end together.
func endOfLife(life time.Duration) time.Time {
	return time.Now().Add(life*2/3 + rand.N(life*2/3+1)) //nolint:gosec // spreads load; nothing to guess
}

// sessions keeps TLS sessions by server. When it is full it takes no new servers,
// for the reason that idlePool gives.
type sessions struct {
	mu    sync.Mutex
	known map[string]session
	max   int
	life  time.Duration
}

type session struct {
	state *tls.ClientSessionState
	until time.Time // however often it is renewed: it goes on with the first handshake's certificates
}

// newSessions returns nil, which crypto/tls knows as no cache, for no sessions.
func newSessions(limit int, life time.Duration) tls.ClientSessionCache {
	if limit < 0 {
		return nil
	}
	return &sessions{known: map[string]session{}, max: limit, life: life}
}

// Get serves crypto/tls.
func (s *sessions) Get(server string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[server]
	if ok && time.Now().After(known.until) {
		delete(s.known, server)
		return nil, false
	}
	return known.state, ok
}

// Put serves crypto/tls; nil means that a session is of no use anymore.
func (s *sessions) Put(server string, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[server]
	switch {
	case state == nil:
		delete(s.known, server)
	case ok:
		s.known[server] = session{state, known.until}
	case len(s.known) < s.max:
		s.known[server] = session{state, endOfLife(s.life)}
	}
}

// idlePool keeps connections between probes of the same instance. When it is
// full it takes no more but in the place of those that have ended: a fleet is asked
// in circles, so that throwing out the oldest would throw out just the one that is
// needed next.
type idlePool struct {
	mu      sync.Mutex
	conns   map[string]idleConn
	max     int
	cleaned time.Time
	closed  bool
}

type idleConn struct {
	conn  *http.ClientConn
	route *route
	seen  *witness
	since time.Time // it waits
	until time.Time // end of its life
}

// over reports whether nothing can, or should, be asked on it any more.
func (c idleConn) over(now time.Time) bool {
	return c.conn.Available() == 0 || now.Sub(c.since) > idleLimit || now.After(c.until)
}

// idleLimit is below what servers and the boxes between commonly allow.
const idleLimit = 110 * time.Second

func newIdlePool(limit int) *idlePool { return &idlePool{conns: map[string]idleConn{}, max: limit} }

// get takes the connection that is kept for key, if it still can be used.
func (p *idlePool) get(key string, via *route) (idleConn, bool) {
	p.mu.Lock()
	c, ok := p.conns[key]
	delete(p.conns, key)
	p.mu.Unlock()
	if !ok || c.route != via || c.over(time.Now()) {
		if ok {
			_ = c.conn.Close()
		}
		return idleConn{}, false
	}
	return c, true
}

// put keeps a connection or closes it.
func (p *idlePool) put(key string, c idleConn) {
	c.since = time.Now()
	p.mu.Lock()
	if len(p.conns) >= p.max {
		p.clean(c.since)
	}
	_, taken := p.conns[key]
	keep := !p.closed && !taken && len(p.conns) < p.max && !c.over(c.since)
	if keep {
		p.conns[key] = c
	}
	p.mu.Unlock()
	if !keep {
		_ = c.conn.Close()
	}
}

// sweep closes what nobody came for in time.
func (p *idlePool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clean(time.Now())
}

// clean closes, under the lock, what has ended.
func (p *idlePool) clean(now time.Time) {
	if now.Sub(p.cleaned) < time.Second {
		return // a pool that is full of what is in use
	}
	p.cleaned = now
	for key, c := range p.conns {
		if c.over(now) {
			_ = c.conn.Close()
			delete(p.conns, key)
		}
	}
}

func (p *idlePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for key, c := range p.conns {
		_ = c.conn.Close()
		delete(p.conns, key)
	}
}
