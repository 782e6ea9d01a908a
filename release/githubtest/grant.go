package githubtest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Access is how much of something a token may do.
type Access int

// The levels. Deleting a package's versions takes Admin.
const (
	None Access = iota
	Read
	Write
	Admin
)

// Grant is what a token may do.
type Grant struct {
	Login                                       string // whose it is; empty: github-actions[bot]
	Contents, Issues, Pulls, Statuses, Packages Access
	Scopes                                      []string // of a classic token; nil: a workflow's
}

// All is every right, of a workflow's token.
func All() Grant {
	return Grant{Contents: Admin, Issues: Admin, Pulls: Admin, Statuses: Admin, Packages: Admin}
}

// Grant makes a token known, or changes what it may do. A token that is not known
// is answered 401; no token reads what is public.
func (s *Server) Grant(token string, g Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = g
}

// authenticate finds out who calls.
func (s *Server) authenticate(c *call) *answer {
	header := c.r.Header.Get("Authorization")
	if header == "" {
		c.login = "ghost"
		return nil
	}
	_, token, _ := strings.Cut(header, " ")
	grant, known := s.tokens[token]
	if !known {
		a := refusal(http.StatusUnauthorized, "Bad credentials")
		return &a
	}
	c.grant, c.login = grant, grant.Login
	if c.login == "" {
		c.login = "github-actions[bot]"
	}
	return nil
}

// need is the right of a route.
type need struct {
	of    func(Grant) Access
	level Access
}

func contents(l Access) need { return need{func(g Grant) Access { return g.Contents }, l} }
func issues(l Access) need   { return need{func(g Grant) Access { return g.Issues }, l} }
func pulls(l Access) need    { return need{func(g Grant) Access { return g.Pulls }, l} }
func statuses(l Access) need { return need{func(g Grant) Access { return g.Statuses }, l} }

// check answers a call without the right. Everybody reads what is public. A
// workflow's token without a right is told so by 403; a classic one gets 404,
// as if there were nothing
// (docs.github.com/rest/using-the-rest-api/troubleshooting-the-rest-api).
func (n need) check(c *call) *answer {
	if n.of == nil || n.level <= Read && c.repo != nil && !c.repo.Private || n.of(c.grant) >= n.level {
		return nil
	}
	var a answer
	switch {
	case c.r.Header.Get("Authorization") == "":
		a = refusal(http.StatusUnauthorized, "Requires authentication")
	case c.grant.Scopes != nil:
		a = notFound
	default:
		a = refusal(http.StatusForbidden, "Resource not accessible by integration")
	}
	return &a
}

// limit counts a call, and answers one beyond a limit.
func (s *Server) limit(c *call) answer {
	l := &s.limits
	now := s.now()
	a := answer{header: http.Header{}}
	if l.PerHour > 0 {
		if !now.Before(l.reset) {
			l.used, l.reset = 0, now.Add(time.Hour).Truncate(time.Second)
		}
		l.used++
		a.header.Set("X-RateLimit-Limit", strconv.Itoa(l.PerHour))
		a.header.Set("X-RateLimit-Remaining", strconv.Itoa(max(l.PerHour-l.used, 0)))
		a.header.Set("X-RateLimit-Reset", strconv.FormatInt(l.reset.Unix(), 10))
		if l.used > l.PerHour {
			over := refusal(http.StatusForbidden, fmt.Sprintf("API rate limit exceeded for %s.", c.login))
			over.header = a.header
			return over
		}
	}
	if l.WritesPerMinute > 0 && c.r.Method != http.MethodGet {
		l.writes = slices.DeleteFunc(l.writes, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
		if len(l.writes) >= l.WritesPerMinute {
			status := http.StatusTooManyRequests
			if l.Forbid {
				status = http.StatusForbidden
			}
			over := refusal(status, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.")
			over.header = a.header
			wait := time.Minute - now.Sub(l.writes[0])
			over.header.Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			return over
		}
		l.writes = append(l.writes, now)
	}
	return a
}
