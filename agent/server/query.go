package server

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
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

// negotiate picks the first type in Accept that can be served; JSON where
// nothing in it can.
func negotiate(accept string) mediaType {
	for part := range strings.SplitSeq(accept, ",") {
		name, params, err := mime.ParseMediaType(part)
		if q := strings.Trim(params["q"], "0."); err != nil || (params["q"] != "" && q == "") {
			continue
		}
		for _, m := range media() {
			if m.name == name {
				return m
			}
		}
	}
	return media()[0]
}

type queryInput struct {
	Accept string `header:"Accept" doc:"text/csv, application/x-ndjson, application/vnd.apache.parquet and application/vnd.apache.arrow.stream stream without a row limit."`
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
	m := negotiate(in.Accept)
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		s.streamQuery(humaecho.Unwrap(hctx), caller, in.Body, m)
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
	switch {
	case err != nil && started:
		s.opt.Log.Warn("An answer broke off.", "format", m.format, "error", err)
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
