package dashboard

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// visitor is who a request comes from.
type visitor struct {
	User  string // empty: nobody signed in
	Nonce string // of the session
	Proxy bool   // a reverse proxy says so
	Until time.Time
}

type visitorKey struct{}

func visitorOf(r *http.Request) visitor {
	v, _ := r.Context().Value(visitorKey{}).(visitor)
	return v
}

// door knows who comes in.
type door struct {
	*keys
	log   *slog.Logger
	hosts []string
}

func newDoor(a Access, log *slog.Logger) (*door, error) {
	if a.Header != "" && len(a.Trusted) == 0 {
		return nil, problem.New(problem.Usage, "Expected the addresses of the reverse proxy that signs people in, found none.",
			"Give both: --auth-header X-Forwarded-User --trusted-proxy 127.0.0.1/32")
	}
	if len(a.Trusted) > 0 && !a.Orders() {
		return nil, problem.New(problem.Usage, "A reverse proxy is trusted, but nobody can sign in.", "Give --auth-file FILE, or --auth-header X-Forwarded-User where the proxy signs people in.")
	}
	if a.Closed && !a.Orders() {
		return nil, problem.New(problem.Usage, "Reading needs a login, but nobody can sign in.", "Give --auth-file FILE, or --auth-header with --trusted-proxy. Or let everybody read who reaches the page: --login-to-read=false")
	}
	k, err := newKeys(a)
	if err != nil {
		return nil, err
	}
	d := &door{keys: k, log: log}
	for _, h := range a.Hosts {
		d.hosts = append(d.hosts, strings.ToLower(h))
	}
	return d, nil
}

// Check says what is wrong with an Access, before anything is started.
func (a Access) Check() error {
	_, err := newDoor(a, slog.New(slog.DiscardHandler))
	return err
}

// enter finds out who a request is from.
func (d *door) enter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v visitor
		if d.access.Header != "" && d.access.trusts(peer(r.RemoteAddr)) {
			if names := r.Header.Values(d.access.Header); len(names) == 1 && d.names.MatchString(names[0]) {
				v = visitor{User: names[0], Nonce: "proxy", Proxy: true}
			}
		}
		if c, err := r.Cookie(sessionCookie); err == nil && v.User == "" {
			if s, ok := d.read(c.Value, time.Now()); ok {
				v = visitor{User: s.User, Nonce: s.Nonce, Until: s.Until}
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitorKey{}, v)))
	})
}

// reading lets those pass who may see the page; others are sent to the login.
func (d *door) reading(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.access.Closed || visitorOf(r).User != "" {
			next.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/events" || !d.forms() {
			http.Error(w, "Sign in first.", http.StatusUnauthorized)
			return
		}
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") == "navigate" {
			// A link on another site brings no SameSite=Strict cookie; the page asking
			// itself again does.
			w.Header().Set("Refresh", "0; url="+r.URL.RequestURI())
			return
		}
		http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
	})
}

// from returns the address that a request comes from: behind a trusted proxy the one
// that it names last.
func (d *door) from(r *http.Request) netip.Addr {
	addr := peer(r.RemoteAddr)
	if d.access.trusts(addr) {
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if via, err := netip.ParseAddr(strings.TrimSpace(hops[len(hops)-1])); err == nil {
			addr = via.Unmap()
		}
	}
	return addr
}

// forms reports whether the page has a login of its own.
func (d *door) forms() bool { return d.access.File != "" || d.access.Once != "" }

// scraping lets programs pass: those that may read, or sign in with each request.
func (d *door) scraping(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := !d.access.Closed || visitorOf(r).User != ""
		if user, password, ok := r.BasicAuth(); !allowed && ok {
			allowed = d.basic(user, password, d.from(r))
		}
		if !allowed {
			w.Header().Set("WWW-Authenticate", `Basic realm="Agnes fleet"`)
			http.Error(w, "Sign in with a login of the page: basic_auth in prometheus.yml.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// onlyOurHost refuses requests under a name that is not ours. A page of another
// site could otherwise point a name of its own at this machine and read along.
func (s *Server) onlyOurHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r)
		_, err := netip.ParseAddr(host)
		if err != nil && host != "localhost" && !slices.Contains(s.door.hosts, host) {
			http.Error(w, fmt.Sprintf("Expected this page under its own name, found %q.\nStart it with the address that people use: --public-url https://HOST", host), http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostOf is the name that a request is sent to.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

func foreignOrigin() error {
	return problem.New(problem.Forbidden, "This order came from a page of another site.", "Open the fleet's own page and give it there.")
}

func notFound(r *http.Request) error {
	return problem.New(problem.NotFound, "There is no page "+r.URL.Path+".", "Go to the overview.")
}

// ordered checks that a form was sent by a signed-in user from this page.
func (s *Server) ordered(r *http.Request) (visitor, error) {
	v := visitorOf(r)
	if v.User == "" {
		return v, problem.New(problem.Unauthenticated, "Orders need a login.", "Sign in, then give the order again.")
	}
	if subtle.ConstantTimeCompare([]byte(r.PostFormValue("token")), []byte(s.door.form(v))) != 1 {
		return v, problem.New(problem.Forbidden, "This form is of another session.", "Open the page again and repeat the order.")
	}
	return v, nil
}

// localPath keeps a redirect on this page.
func localPath(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(raw, "//") || strings.ContainsAny(raw, "\\\r\n\t") {
		return "/"
	}
	return u.RequestURI()
}

type loginView struct {
	Next    string
	Once    bool
	Problem *problem.Error
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	next := localPath(r.URL.Query().Get("next"))
	if visitorOf(r).User != "" {
		http.Redirect(w, r, next, http.StatusSeeOther) //nolint:gosec // localPath lets paths of this page through alone
		return
	}
	if !s.door.forms() {
		s.fail(w, r, problem.New(problem.NotFound, "Nobody can sign in here: the page is read-only.", "Start it with logins: agnesctl fleet serve --auth-file FILE"))
		return
	}
	s.render(w, r, http.StatusOK, "login", "Sign in", loginView{Next: next, Once: s.door.access.Once != "" && s.door.access.File == ""})
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	if !s.door.forms() {
		s.loginPage(w, r)
		return
	}
	view := loginView{Next: localPath(r.PostFormValue("next")), Once: s.door.access.Once != "" && s.door.access.File == ""}
	refuse := func(status int, p *problem.Error) {
		view.Problem = p
		s.render(w, r, status, "login", "Sign in", view)
	}
	address := s.door.from(r)
	if wait := s.door.wait(counted(address), time.Now()); wait > 0 {
		seconds := int(math.Ceil(wait.Seconds()))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		s.log.Warn("a login was put off", "address", address)
		refuse(http.StatusTooManyRequests, problem.New(problem.RateLimited, "There were too many attempts.", fmt.Sprintf("Try again in %d seconds.", seconds)))
		return
	}
	user, password := r.PostFormValue("user"), r.PostFormValue("password")
	if view.Once && user == "" {
		user = Operator
	}
	cookie := ""
	err := s.door.check(user, password)
	if err == nil {
		cookie, err = s.door.open(user, time.Now())
	}
	if err != nil && !errors.Is(err, errLogin) {
		s.log.Error("nobody can sign in", "error", err) // its words are not for strangers
		refuse(http.StatusServiceUnavailable, problem.New(problem.Unavailable, "The logins cannot be read now.", "The log of agnesctl fleet serve says why."))
		return
	}
	if err != nil {
		s.log.Warn("a login was refused", "address", address, "error", err)
		refuse(http.StatusUnauthorized, problem.New(problem.Unauthenticated, "The name or the password is wrong.", "Try again. agnesctl fleet passwd NAME sets another password."))
		return
	}
	s.log.Info("signed in", "user", user, "address", address)
	s.setCookie(w, r, sessionCookie, cookie, sessionLasts)
	http.Redirect(w, r, view.Next, http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	if _, err := s.ordered(r); err != nil {
		s.fail(w, r, err)
		return
	}
	s.door.end(visitorOf(r))
	s.setCookie(w, r, sessionCookie, "", -1)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) setCookie(w http.ResponseWriter, r *http.Request, name, value string, lasts time.Duration) {
	age := int(lasts.Seconds())
	if lasts < 0 {
		age = -1
	}
	secure := s.door.access.Secure && slices.Contains(s.door.hosts, hostOf(r)) || s.door.access.trusts(peer(r.RemoteAddr)) && r.Header.Get("X-Forwarded-Proto") == "https"
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure wherever the page is reached by https; on loopback it is not
		Name: name, Value: value, Path: "/", MaxAge: age, HttpOnly: true, Secure: secure, SameSite: http.SameSiteStrictMode,
	})
}

// theme chooses dark or light without JavaScript; with it, the page sets the same
// cookie by itself.
func (s *Server) theme(w http.ResponseWriter, r *http.Request) {
	to := r.PostFormValue("to")
	if to == "dark" || to == "light" {
		http.SetCookie(w, &http.Cookie{Name: "theme", Value: to, Path: "/", MaxAge: 365 * 24 * 3600, SameSite: http.SameSiteStrictMode}) //nolint:gosec // no secret, and the page's script sets it too
	}
	http.Redirect(w, r, localPath(r.PostFormValue("next")), http.StatusSeeOther) //nolint:gosec // localPath lets paths of this page through alone
}
