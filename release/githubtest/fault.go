package githubtest

import (
	"net/http"
	"path"
	"strings"
	"time"
)

// Fault is a rule for calls that go wrong. The zero Fault's answer is a 500 to
// everything, forever, with nothing carried out.
type Fault struct {
	Method string // empty: every method
	Path   string // a pattern in which * stands for anything; empty: every path
	// Skip lets so many matching calls pass, Times ends the fault after so many (0:
	// never), and Probability is the chance of each in between (0: certain).
	Skip, Times int
	Probability float64

	Carry  bool        // the call is carried out, then answered like this
	Cut    bool        // the connection is cut instead of any answer
	Status int         // 500 when zero
	Body   any         // sent as JSON, []byte as it is; GitHub's form of an error when nil
	Header http.Header // e.g. Retry-After

	seen, hit int
}

// Inject adds a fault. Of several that match a call, the first one injected
// counts.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// Heal removes all faults.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// LoseReply makes the next such call be carried out and its answer be lost.
func (s *Server) LoseReply(method, path string) {
	s.Inject(Fault{Method: method, Path: path, Times: 1, Carry: true, Cut: true})
}

// Watch calls before ahead of every call, and after when it was carried out and
// not yet answered: what a test does there, such as killing the caller, happens
// between two calls. Either may be nil. They run on the server's goroutines.
func (s *Server) Watch(before, after func(Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

// watched calls one of the two functions of Watch.
func (s *Server) watched(which func(*Server) func(Request), r Request) {
	s.mu.Lock()
	f := which(s)
	s.mu.Unlock()
	if f != nil {
		f(r) // without the lock: it may ask the server things
	}
}

func before(s *Server) func(Request) { return s.before }
func after(s *Server) func(Request)  { return s.after }

// fault returns the fault of a call, or nil.
func (s *Server) fault(r Request) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.Method != "" && f.Method != r.Method || f.Path != "" && !match(f.Path, r.Path) {
			continue
		}
		if f.Times > 0 && f.hit >= f.Times {
			continue
		}
		if f.seen++; f.seen <= f.Skip {
			continue
		}
		if f.Probability > 0 && s.rand.Float64() >= f.Probability {
			continue
		}
		f.hit++
		return f
	}
	return nil
}

func (f *Fault) answer() answer {
	status := f.Status
	if status == 0 {
		status = http.StatusInternalServerError
	}
	a := refusal(status, http.StatusText(status))
	switch {
	case f.Body != nil:
		a.body = f.Body
	case status == http.StatusBadGateway:
		a.body = []byte("<html><title>502 Bad Gateway</title></html>") // a proxy's, not the API's
	}
	a.header = f.Header
	return a
}

// match reports whether a path fits a pattern. A * also stands for slashes, so
// that one pattern covers refs and packages of any name.
func match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return path.Clean(pattern) == path.Clean(s)
	}
	if !strings.HasPrefix(s, parts[0]) || !strings.HasSuffix(s[len(parts[0]):], parts[len(parts)-1]) {
		return false
	}
	s = strings.TrimSuffix(s[len(parts[0]):], parts[len(parts)-1])
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// Limits are the rate limits of every token, switched off when zero.
// docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api.
type Limits struct {
	// PerHour is the primary limit: 5,000 for a person, 1,000 for a workflow's token
	// and repository. Beyond it calls answer 403 with X-RateLimit-Remaining 0.
	PerHour int
	// WritesPerMinute is a secondary limit: 80 on github.com. Beyond it writes answer
	// 429 with Retry-After.
	WritesPerMinute int
	// Forbid answers secondary limits by 403, as github.com also does.
	Forbid bool
}

type limits struct {
	Limits

	used   int
	reset  time.Time
	writes []time.Time
}

// Limit switches rate limits on.
func (s *Server) Limit(l Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = limits{Limits: l}
}
