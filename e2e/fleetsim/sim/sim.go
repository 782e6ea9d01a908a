// Package sim is a fleet for tests: thousands of instances of Agnes that answer
// GET /api/health over TLS, each on a loopback address of its own, in one process
// and on one port. Some of them are old, some warn, some lie, some are black
// holes, by a mix that a seed decides, so that two runs see the same fleet. What
// an instance is can be changed while it runs.
//
// Nothing leaves the machine: the listener is bound to the loopback interface.
// It needs Linux, where all of 127.0.0.0/8 is this machine.
package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what is wrong with an instance.
type Fault string

// The faults. None answers as an instance does.
const (
	None Fault = ""

	Hole    Fault = "hole"    // takes connections and never says a word
	Drop    Fault = "drop"    // its SYNs are dropped; only from the start, for it changes the port
	Refuse  Fault = "refuse"  // nothing listens; only from the start, for it changes the port
	Reset   Fault = "reset"   // resets each connection once it was spoken to, as a proxy does whose program restarts
	Plain   Fault = "plain"   // speaks plain HTTP where TLS is expected
	Garbage Fault = "garbage" // speaks something else
	Hangup  Fault = "hangup"  // closes in the middle of the handshake

	Expired   Fault = "expired"    // certificate
	NotYet    Fault = "not-yet"    // certificate
	Stranger  Fault = "stranger"   // certificate of another authority
	WrongName Fault = "wrong-name" // certificate for another host
	Expiring  Fault = "expiring"   // certificate that ends in three days; healthy otherwise

	Silent    Fault = "silent"     // TLS works, the request is never answered
	SlowStart Fault = "slow-start" // answers after 300 ms; healthy otherwise
	Trickle   Fault = "trickle"    // the body comes byte by byte, without an end
	Cut       Fault = "cut"        // the body breaks off
	Huge      Fault = "huge"       // the body has 2 MiB

	Page      Fault = "page"       // 200 with a proxy's page
	BadGate   Fault = "bad-gate"   // 502 with a proxy's page
	Redirect  Fault = "redirect"   // to a login
	MediaType Fault = "media-type" // the right JSON as text/plain
	NotJSON   Fault = "not-json"   // application/json that is none
	List      Fault = "list"       // a JSON list
	NoStatus  Fault = "no-status"  // 200, and no status
	OddStatus Fault = "odd-status" // 200, and a status that does not exist
	NoVersion Fault = "no-version" // 200, and no version: another program

	SaysDegraded  Fault = "degraded"
	SaysUnhealthy Fault = "unhealthy"
	SkewedClock   Fault = "skew" // an hour behind; healthy otherwise
)

// Faults returns all of them but None.
func Faults() []Fault {
	return []Fault{
		Hole, Drop, Refuse, Reset, Plain, Garbage, Hangup, Expired, NotYet, Stranger, WrongName, Expiring, Silent, SlowStart, Trickle, Cut, Huge,
		Page, BadGate, Redirect, MediaType, NotJSON, List, NoStatus, OddStatus, NoVersion, SaysDegraded, SaysUnhealthy, SkewedClock,
	}
}

// State is what an instance is.
type State struct {
	Fault      Fault    `json:"fault"`
	Version    string   `json:"version"`
	Channel    string   `json:"channel"`
	Deprecated bool     `json:"deprecated"`
	Warnings   []string `json:"warnings,omitempty"`
}

// Token opens the details of every instance.
const Token = "simulated-token"

// Options say what fleet there is.
type Options struct {
	N    int               // instances, 1 to 60,000
	Seed uint64            // decides who gets which fault and version
	Mix  map[Fault]float64 // share of the instances that have a fault, 0 to 1; exact, rounded down
	Port int               // of the instances; 0 for a free one
}

const maxInstances = 60_000

// Sim is a running fleet.
type Sim struct {
	n     int
	port  int
	certs *authority
	dead  *deadPorts

	listener net.Listener
	server   *http.Server
	handed   chan net.Conn // connections that speak HTTP over TLS
	done     chan struct{}
	once     sync.Once
	busy     sync.WaitGroup

	mu    sync.Mutex
	state []State
	conns map[int]map[net.Conn]bool // open ones by instance

	accepted, probes atomic.Int64
}

// Start starts a fleet; Close ends it.
func Start(ctx context.Context, o Options) (*Sim, error) {
	if o.N < 1 || o.N > maxInstances {
		return nil, fmt.Errorf("expected 1 to %d instances, found %d", maxInstances, o.N)
	}
	certs, err := newAuthority()
	if err != nil {
		return nil, err
	}
	state, err := mix(o)
	if err != nil {
		return nil, err
	}
	s := &Sim{
		n: o.N, certs: certs, state: state, conns: map[int]map[net.Conn]bool{},
		handed: make(chan net.Conn), done: make(chan struct{}),
	}
	if s.listener, err = listen(ctx, o.Port); err != nil {
		return nil, err
	}
	s.port = s.listener.Addr().(*net.TCPAddr).Port
	if s.dead, err = newDeadPorts(); err != nil {
		_ = s.listener.Close()
		return nil, err
	}
	s.server = &http.Server{
		Handler: http.HandlerFunc(s.answer), ReadHeaderTimeout: time.Minute, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, indexKey{}, indexOf(c))
		},
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		i := indexOf(hello.Conn)
		return s.certs.leaf(i, s.State(i).Fault)
	}}
	s.busy.Go(s.accept)
	s.busy.Go(func() { _ = s.server.Serve(tls.NewListener(&handedListener{s}, config)) })
	return s, nil
}

// mix gives out faults and versions.
func mix(o Options) ([]State, error) {
	random := rand.New(rand.NewPCG(o.Seed, 1)) //nolint:gosec // a simulation
	state := make([]State, o.N)
	order := random.Perm(o.N)
	for _, f := range Faults() { // a fixed order: maps have none
		share := o.Mix[f]
		n := int(share*float64(o.N) + 1e-9)
		if share < 0 || n > len(order) {
			return nil, fmt.Errorf("expected shares that sum up to at most 1, found %v of %s", share, f)
		}
		for _, i := range order[:n] {
			state[i].Fault = f
		}
		order = order[n:]
	}
	for i := range state {
		s := &state[i]
		s.Version, s.Channel = fmt.Sprintf("2026.04.%d", 7-min(6, int(random.ExpFloat64()))), "stable"
		switch random.IntN(20) {
		case 0:
			s.Channel = "dev"
		case 1:
			s.Deprecated = true
		case 2:
			s.Warnings = []string{"The disk has 4% left."}
		}
	}
	return state, nil
}

// Close ends the fleet and waits until it is gone.
func (s *Sim) Close() {
	s.once.Do(s.close)
}

func (s *Sim) close() {
	close(s.done)
	_ = s.listener.Close()
	s.dead.close()
	s.mu.Lock()
	for _, of := range s.conns {
		for c := range of {
			_ = c.Close()
		}
	}
	s.mu.Unlock()
	_ = s.server.Close()
	s.busy.Wait()
}

// N returns the number of instances; they count from 0.
func (s *Sim) N() int { return s.n }

// Name returns an instance's name.
func (s *Sim) Name(i int) string { return fmt.Sprintf("sim-%05d", i) }

// URL returns an instance's address.
func (s *Sim) URL(i int) string {
	port := s.port
	switch s.State(i).Fault {
	case Drop:
		port = s.dead.full
	case Refuse:
		port = s.dead.closed
	}
	return fmt.Sprintf("https://%s:%d", address(i), port)
}

// State returns what an instance is.
func (s *Sim) State(i int) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i < 0 || i >= s.n {
		return State{Fault: Reset}
	}
	return s.state[i]
}

// Set changes what an instance is and breaks its connections.
func (s *Sim) Set(i int, to State) error {
	if i < 0 || i >= s.n {
		return fmt.Errorf("expected an instance from 0 to %d, found %d", s.n-1, i)
	}
	if to.Fault != None && !slices.Contains(Faults(), to.Fault) {
		return fmt.Errorf("expected one of the faults %v, found %q", Faults(), to.Fault)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	moves := func(f Fault) bool { return f == Drop || f == Refuse }
	if was := s.state[i].Fault; was != to.Fault && (moves(was) || moves(to.Fault)) {
		return errors.New("drop and refuse have ports of their own and cannot be set or left while the fleet runs; use hole or reset")
	}
	s.state[i] = to
	for c := range s.conns[i] {
		_ = c.Close()
	}
	return nil
}

// CA returns the certificate of the authority, in PEM.
func (s *Sim) CA() []byte { return s.certs.pem }

// Warm makes the certificates of all instances now instead of at their first
// handshake.
func (s *Sim) Warm() error {
	for i := range s.n {
		if _, err := s.certs.leaf(i, s.State(i).Fault); err != nil {
			return err
		}
	}
	return nil
}

// Counts returns how many connections were taken and how many requests answered.
func (s *Sim) Counts() (connections, requests int64) { return s.accepted.Load(), s.probes.Load() }

// Open returns how many connections are open.
func (s *Sim) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, of := range s.conns {
		n += len(of)
	}
	return n
}

// WriteInventory writes ca.pem and fleet.yaml into a folder.
func (s *Sim) WriteInventory(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), s.CA(), 0o600); err != nil {
		return fmt.Errorf("write the authority: %w", err)
	}
	var b strings.Builder
	b.WriteString("image: ghcr.io/keboola/agnes-the-ai-analyst\ndefaults: {channel: stable, interval: 30s, timeout: 5s, tls: {ca: ca.pem}}\ninstances:\n")
	for i := range s.n {
		tier := "rest"
		if i%100 == 0 {
			tier = "canary"
		}
		fmt.Fprintf(&b, "  - {name: %s, url: %q, cloud: host, labels: {tier: %s}}\n", s.Name(i), s.URL(i), tier)
	}
	if err := os.WriteFile(filepath.Join(dir, "fleet.yaml"), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write the inventory: %w", err)
	}
	return nil
}

// address is an instance's own, from 127.1.0.1 on.
func address(i int) net.IP {
	i++
	return net.IPv4(127, byte(1+i>>16), byte(i>>8), byte(i))
}

type indexKey struct{}

// indexOf returns which instance a connection is to.
func indexOf(c net.Conn) int {
	a, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return -1
	}
	ip := a.IP.To4()
	return int(ip[1]-1)<<16 + int(ip[2])<<8 + int(ip[3]) - 1
}

// accept sorts connections: what breaks before TLS breaks here.
func (s *Sim) accept() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			select {
			case <-s.done:
				return
			default:
				continue // out of descriptors, for a moment
			}
		}
		if !raw.RemoteAddr().(*net.TCPAddr).IP.IsLoopback() {
			_ = raw.Close()
			continue
		}
		s.accepted.Add(1)
		i := indexOf(raw)
		c := s.track(i, raw)
		switch s.State(i).Fault {
		case Hole:
			s.busy.Go(func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
		case Reset:
			_ = raw.(*net.TCPConn).SetLinger(0)
			s.say(c, "")
		case Plain:
			s.say(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		case Garbage:
			s.say(c, "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
		case Hangup:
			s.say(c, "")
		default:
			select {
			case s.handed <- c:
			case <-s.done:
				_ = c.Close()
				return
			}
		}
	}
}

// say reads a little, so that the client has spoken, then answers and closes.
func (s *Sim) say(c net.Conn, words string) {
	s.busy.Go(func() {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, words)
		_ = c.Close()
	})
}

// tracked is a connection that Set and Close can break.
type tracked struct {
	net.Conn
	once sync.Once
	gone func()
}

// Close forgets the connection, too.
func (t *tracked) Close() error {
	t.once.Do(t.gone)
	return t.Conn.Close()
}

func (s *Sim) track(i int, raw net.Conn) net.Conn {
	t := &tracked{Conn: raw}
	t.gone = func() {
		// Set closes while it holds the lock.
		go func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.conns[i], t)
			if len(s.conns[i]) == 0 {
				delete(s.conns, i)
			}
		}()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[i] == nil {
		s.conns[i] = map[net.Conn]bool{}
	}
	s.conns[i][t] = true
	return t
}

// handedListener gives the server what accept has sorted.
type handedListener struct{ s *Sim }

// Accept returns what accept has handed on.
func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.handed:
		return c, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

// Close does nothing: the real listener is the Sim's.
func (l *handedListener) Close() error { return nil }

// Addr returns the real listener's.
func (l *handedListener) Addr() net.Addr { return l.s.listener.Addr() }

// ParseMix reads a mix such as "hole=0.01,trickle=0.005".
func ParseMix(text string) (map[Fault]float64, error) {
	out := map[Fault]float64{}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, share, _ := strings.Cut(part, "=")
		var value float64
		if _, err := fmt.Sscan(share, &value); err != nil || value < 0 || value > 1 || !slices.Contains(Faults(), Fault(name)) {
			return nil, fmt.Errorf("expected FAULT=SHARE such as hole=0.01, found %q; the faults are %v", part, Faults())
		}
		out[Fault(name)] = value
	}
	return out, nil
}
