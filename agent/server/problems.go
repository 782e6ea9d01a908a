package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/labstack/echo/v4"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const problemType = "application/problem+json"

// problemError is api.Problem as an error that huma can send.
type problemError struct {
	api.Problem
}

func (p *problemError) Error() string { return p.Detail }

// GetStatus serves huma.StatusError.
func (p *problemError) GetStatus() int { return p.Status }

// ContentType serves huma.ContentTypeFilter.
func (p *problemError) ContentType(string) string { return problemType }

// toWire turns any error into what a caller may see.
func toWire(err error) *problemError {
	p := problem.As(err)
	status := p.Kind.Status()
	return &problemError{api.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: p.Message, Code: p.WireCode(), Hint: p.Hint,
	}}
}

// adjustHuma gives huma's own failures (validation, negotiation, bodies) the
// shape of all others, and says in the API description that lists are never
// null. huma keeps both in package variables, so this is done once for the
// process.
//
//nolint:gochecknoglobals // guards a package variable of huma's
var adjustHuma = sync.OnceFunc(func() {
	huma.DefaultArrayNullable = false
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		if len(errs) == 1 {
			if p, ok := errors.AsType[*problem.Error](errs[0]); ok {
				return toWire(p)
			}
		}
		kind := problem.FromStatus(status)
		p := &problemError{api.Problem{
			Type: "about:blank", Title: http.StatusText(status), Status: status,
			Detail: sentence(msg), Code: string(kind), Hint: hintFor(status),
		}}
		for _, err := range errs {
			if err == nil {
				continue
			}
			item := api.ProblemItem{Message: err.Error()}
			if d, ok := err.(huma.ErrorDetailer); ok {
				// The value is left out: it may be a password.
				detail := d.ErrorDetail()
				item = api.ProblemItem{Location: detail.Location, Message: detail.Message}
			}
			p.Errors = append(p.Errors, item)
		}
		if len(p.Errors) > 0 {
			p.Detail = sentence(msg) + " " + joinItems(p.Errors)
		}
		return p
	}
})

func joinItems(items []api.ProblemItem) string {
	var parts []string
	for _, it := range items[:min(len(items), 5)] {
		parts = append(parts, strings.TrimSpace(it.Location+": "+it.Message))
	}
	return strings.Join(parts, "; ") + "."
}

func sentence(msg string) string {
	msg = strings.TrimSuffix(strings.TrimSpace(msg), ".")
	if msg == "" {
		return ""
	}
	return strings.ToUpper(msg[:1]) + msg[1:] + "."
}

func hintFor(status int) string {
	switch status {
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
		return "Compare the request with GET /openapi.json (for people: /docs)."
	case http.StatusUnsupportedMediaType:
		return "Send JSON with the header Content-Type: application/json."
	case http.StatusRequestEntityTooLarge:
		return "Send a body of at most 1 MiB."
	case http.StatusNotAcceptable:
		return "Send Accept: application/json."
	default:
		return ""
	}
}

// handleError serves what never reached a handler: unmatched routes, wrong
// methods, panics.
func (s *Server) handleError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	if he, ok := errors.AsType[*echo.HTTPError](err); ok {
		err = routeProblem(he, c)
	}
	p := toWire(err)
	s.logProblem(c, err)
	body, failed := json.Marshal(p)
	if failed != nil {
		body = []byte(`{}`)
	}
	if c.Request().Method == http.MethodHead {
		body = nil
	}
	if wait := retryAfter(err); wait != "" {
		c.Response().Header().Set(echo.HeaderRetryAfter, wait)
	}
	if err := c.Blob(p.Status, problemType, body); err != nil {
		s.opt.Log.Debug("A problem could not be sent.", "error", err)
	}
}

func routeProblem(he *echo.HTTPError, c echo.Context) error {
	req := c.Request()
	switch he.Code {
	case http.StatusNotFound:
		return problem.New(problem.NotFound, fmt.Sprintf("There is no %s %s here.", req.Method, req.URL.Path),
			"GET /openapi.json lists every call (for people: /docs).").WithCode("no_such_route")
	case http.StatusMethodNotAllowed:
		return problem.New(problem.NotAllowed,
			fmt.Sprintf("%s %s is not available; the path answers %s.", req.Method, req.URL.Path, c.Response().Header().Get(echo.HeaderAllow)),
			"GET /openapi.json lists every call (for people: /docs).")
	}
	return problem.New(problem.FromStatus(he.Code), sentence(fmt.Sprint(he.Message)), hintFor(he.Code))
}

// logProblem records what the instance has to answer for. It names the route,
// not the path: people put secrets into paths.
func (s *Server) logProblem(c echo.Context, err error) {
	p := problem.As(err)
	if p.Kind != problem.Internal {
		return
	}
	s.opt.Log.Error("A request failed.", "method", c.Request().Method, "route", c.Path(),
		"request_id", c.Response().Header().Get(echo.HeaderXRequestID), "message", p.Message, "error", p.Err)
}

func (s *Server) logPanic(c echo.Context, err error, stack []byte) error {
	s.opt.Log.Error("A handler panicked.", "path", c.Path(), "error", err, "stack", string(stack))
	return err
}

// asResponse turns a handler's error into one that huma sends, with the headers
// that its kind asks for.
func asResponse(err error) error {
	p := toWire(err)
	if wait := retryAfter(err); wait != "" {
		return huma.ErrorWithHeaders(p, http.Header{echo.HeaderRetryAfter: {wait}})
	}
	return p
}

// retryAfter is the header's value in whole seconds, or empty.
func retryAfter(err error) string {
	if wait := problem.As(err).RetryAfter; wait > 0 {
		return strconv.Itoa(int(math.Ceil(wait.Seconds())))
	}
	return ""
}

// formats are the body formats: strict JSON, without HTML escaping. Go's
// decoder would silently replace broken UTF-8, which would change a password or
// a statement, so it is refused here.
func formats() map[string]huma.Format {
	f := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			return enc.Encode(v)
		},
		Unmarshal: func(data []byte, v any) error {
			if !utf8.Valid(data) {
				return errors.New("the body is not valid UTF-8")
			}
			dec := json.NewDecoder(bytes.NewReader(data))
			if err := dec.Decode(v); err != nil {
				return err
			}
			if _, err := dec.Token(); !errors.Is(err, io.EOF) {
				return errors.New("the body holds something after the JSON value")
			}
			return nil
		},
	}
	return map[string]huma.Format{"application/json": f, "json": f}
}
