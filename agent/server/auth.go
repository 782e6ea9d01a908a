package server

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/labstack/echo/v4"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/auth"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

type access int

const (
	public access = iota // anyone
	user                 // any signed-in user
	admin                // users with the role admin
)

type identityKey struct{}

// identity is who calls, or why the token that was sent does not say so.
type identity struct {
	caller agent.Caller
	err    error
}

// authenticate finds out who calls. A token that does not work is a failure
// only where one is needed: health must answer a monitor with an old token.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := identity{caller: agent.Caller{Remote: c.RealIP()}}
		if header := c.Request().Header.Get(echo.HeaderAuthorization); header != "" {
			id.caller, id.err = s.identify(c.Request().Context(), header)
			id.caller.Remote = c.RealIP()
		}
		ctx := context.WithValue(c.Request().Context(), identityKey{}, id)
		c.SetRequest(c.Request().WithContext(ctx))
		return next(c)
	}
}

func (s *Server) identify(ctx context.Context, header string) (agent.Caller, error) {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return agent.Caller{}, auth.InvalidToken(nil)
	}
	return s.opt.Instance.Authenticate(ctx, strings.TrimSpace(token))
}

func callerOf(ctx context.Context) agent.Caller {
	id, _ := ctx.Value(identityKey{}).(identity)
	return id.caller
}

// allow is the one place that compares a caller with what a call asks for.
func allow(ctx context.Context, need access) error {
	id, _ := ctx.Value(identityKey{}).(identity)
	switch {
	case need == public:
		return nil
	case id.err != nil:
		return id.err
	case !id.caller.SignedIn():
		return problem.New(problem.Unauthenticated, "This call needs an access token.",
			`Sign in: POST /auth/token {"email":"…","password":"…"}, then send Authorization: Bearer TOKEN.`).WithCode("token_required")
	case need == admin && !id.caller.Admin():
		return problem.New(problem.Forbidden, "This call needs the role admin; yours is "+id.caller.Role+".",
			"Ask an admin of this instance to make the call or to change your role.").WithCode("admin_required")
	}
	return nil
}

// register declares one call: huma documents and validates it, allow guards
// it, and errors take the shape of all others.
func register[I, O any](s *Server, need access, op huma.Operation, handler func(context.Context, agent.Caller, *I) (*O, error)) {
	if need != public {
		op.Security = []map[string][]string{{"token": {}}}
	}
	if op.Errors == nil {
		op.Errors = []int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}
	}
	if need != public {
		op.Errors = append(op.Errors, http.StatusUnauthorized, http.StatusForbidden)
	}
	op.Errors = append(op.Errors, http.StatusServiceUnavailable)
	op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		if humaecho.Unwrap(ctx).Request().Body == http.NoBody {
			ctx = bodiless{ctx}
		}
		next(ctx)
	})
	if need > public {
		// Checked before the body is read, so that a stranger learns nothing
		// from validation.
		op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
			if err := allow(ctx.Context(), need); err != nil {
				if problem.Is(err, problem.Unauthenticated) {
					ctx.SetHeader(echo.HeaderWWWAuthenticate, "Bearer")
				}
				_ = huma.WriteErr(s.api, ctx, problem.As(err).Kind.Status(), "", err)
				return
			}
			next(ctx)
		})
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, callerOf(ctx), in)
		if err != nil {
			if problem.As(err).Kind == problem.Internal {
				p := problem.As(err)
				s.opt.Log.Error("A request failed.", "operation", op.OperationID, "message", p.Message, "error", p.Err)
			}
			return nil, asResponse(err)
		}
		return out, nil
	})
}

// bodiless is a request without a body. huma bounds the time to read one by a
// deadline on the connection; without one to read it would end the request
// itself after five seconds, for net/http reads on to notice a caller who goes
// away, and takes the deadline for that.
type bodiless struct{ humaContext }

type humaContext = huma.Context // whose own method Context a field of that name would hide

// SetReadDeadline does nothing.
func (bodiless) SetReadDeadline(time.Time) error { return nil }

// Unwrap serves humaecho.Unwrap.
func (b bodiless) Unwrap() huma.Context { return b.humaContext }

// clientAddress is the address that rate limits and the audit log use. The
// proxy's word counts only where a proxy is configured and the peer is near.
func (s *Server) clientAddress(req *http.Request) string {
	peer := peerOf(req)
	if s.opt.Domain != "" && (peer.IsLoopback() || peer.IsPrivate()) {
		list := strings.Split(req.Header.Get(echo.HeaderXForwardedFor), ",")
		if addr, err := netip.ParseAddr(strings.TrimSpace(list[len(list)-1])); err == nil {
			return addr.String()
		}
	}
	return peer.String()
}

func peerOf(req *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// forwarded reports whether a proxy passed the request on.
func forwarded(req *http.Request) bool {
	for _, h := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip"} {
		if req.Header.Get(h) != "" {
			return true
		}
	}
	return false
}

// trustedForSetup reports whether nobody but the machine's own user can have
// sent this request, so that the first admin may be created without the setup
// token. A page in that user's browser can send requests too: its address must
// be this machine's.
func (s *Server) trustedForSetup(req *http.Request) bool {
	if forwarded(req) || s.opt.Domain != "" {
		return false
	}
	if origin := req.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !loopbackHost(u.Host) || !loopbackHost(req.Host) {
			return false
		}
	}
	if site := req.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return false
	}
	return peerOf(req).IsLoopback() || s.opt.LocalOnly
}

func loopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
