package server

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/labstack/echo/v4"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// media are the types of a query's answer, by preference where several are
// accepted alike.
func media() []mediaType {
	return []mediaType{
		{"application/json", agent.FormatJSON},
		{"text/csv", agent.FormatCSV},
		{"application/x-ndjson", agent.FormatNDJSON},
		{"application/vnd.apache.parquet", agent.FormatParquet},
		{"application/vnd.apache.arrow.stream", agent.FormatArrow},
	}
}

type mediaType struct {
	name   string
	format agent.QueryFormat
}

// negotiate picks the type that an Accept header likes best (RFC 9110, 12.5.1).
// Of several that it likes alike, the one it names wins over those that its
// wildcards take in, and then the one it names first. Where it likes none that
// can be served, JSON.
func negotiate(accept string) mediaType {
	best, top := media()[0], liking{}
	for _, m := range media() {
		if l := likingOf(accept, m.name); l.q > 0 && l.exceeds(top) {
			best, top = m, l
		}
	}
	return best
}

// liking is how much an Accept header likes a type.
type liking struct {
	q     float64 // 0 to 1
	close int     // how closely it names the type: 0 any, 1 the group, 2 the type itself
	at    int     // position in the header
}

func (l liking) exceeds(other liking) bool {
	return cmp.Or(cmp.Compare(l.q, other.q), cmp.Compare(l.close, other.close), cmp.Compare(other.at, l.at)) > 0
}

// likingOf is what the closest entry of an Accept header says of a type.
func likingOf(accept, name string) liking {
	group, _, _ := strings.Cut(name, "/")
	l := liking{close: -1}
	for at, part := range strings.Split(accept, ",") {
		pattern, params, err := mime.ParseMediaType(part)
		fit := slices.Index([]string{"*/*", group + "/*", name}, pattern)
		if err != nil || fit <= l.close {
			continue
		}
		l = liking{q: 1, close: fit, at: at}
		if text, ok := params["q"]; ok {
			l.q, _ = strconv.ParseFloat(text, 64) // 0 for what is no number
		}
	}
	return l
}

type queryInput struct {
	Accept string `header:"Accept" doc:"text/csv, application/x-ndjson, application/vnd.apache.parquet and application/vnd.apache.arrow.stream stream without a row limit. Rows of Parquet come in no certain order unless the statement has ORDER BY."`
	Body   api.QueryRequest
}

func (s *Server) queryOperation(op huma.Operation) huma.Operation {
	answer := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.QueryResponse](), true, "QueryResponse")
	content := map[string]*huma.MediaType{}
	for _, m := range media() {
		schema := &huma.Schema{Type: huma.TypeString, Format: "binary"}
		if m.format == agent.FormatJSON {
			schema = answer
		}
		content[m.name] = &huma.MediaType{Schema: schema}
	}
	op.Responses = map[string]*huma.Response{"200": {Description: "The rows.", Content: content}}
	return op
}

func (s *Server) answerQuery(_ context.Context, caller agent.Caller, in *queryInput) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		c := humaecho.Unwrap(hctx)
		s.streamQuery(c, caller, in.Body, negotiate(strings.Join(c.Request().Header.Values("Accept"), ",")))
	}}, nil
}

// streamQuery writes an answer as it comes. Until its first byte a failure is
// an ordinary problem; after that the connection is cut, so that nobody takes
// half an answer for a whole one.
func (s *Server) streamQuery(c echo.Context, caller agent.Caller, req api.QueryRequest, m mediaType) {
	began := time.Now()
	w := c.Response()
	// A caller who stops reading is cut off soon after the query's own deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(began.Add(s.opt.Instance.QueryDeadline(caller) + 5*time.Second))
	started := false
	sum, err := s.opt.Instance.Query(c.Request().Context(), caller, req, m.format, func() (io.Writer, error) {
		started = true
		w.Header().Set(echo.HeaderContentType, m.name)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		return w, nil
	})
	gone := c.Request().Context().Err() != nil
	switch {
	case err != nil && (started || gone):
		level := slog.LevelWarn
		if gone {
			level = slog.LevelDebug // the caller's own doing
		}
		s.opt.Log.Log(c.Request().Context(), level, "An answer broke off.", "format", m.format, "caller_gone", gone, "error", err)
		panic(http.ErrAbortHandler)
	case err != nil:
		s.handleError(err, c)
	case m.format == agent.FormatJSON:
		elapsed := float64(time.Since(began).Microseconds()) / 1000
		if _, err := fmt.Fprintf(w, `,"row_count":%d,"truncated":%t,"elapsed_ms":%.3f}`, sum.Rows, sum.Truncated, elapsed); err != nil {
			s.opt.Log.Debug("An answer's end could not be sent.", "error", err)
		}
	}
}
