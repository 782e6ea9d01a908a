package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func rawRequest(ctx huma.Context) *http.Request { return humaecho.Unwrap(ctx).Request() }

func (s *Server) syncRoutes() {
	in := s.opt.Instance
	op := func(method, id, path, summary string, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Sync"},
			Errors: append([]int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}, errs...),
		}
	}
	type triggerInput struct {
		Body *syncBody `required:"false"`
	}
	register(s, admin, op(http.MethodPost, "trigger-sync", "/api/sync/trigger", "Start a sync of all or some tables", http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *triggerInput) (*body[api.SyncTriggered], error) {
			var req api.SyncRequest
			if i.Body != nil {
				req = i.Body.SyncRequest
			}
			return answer(in.TriggerSync(ctx, caller, req))
		})
	register(s, user, op(http.MethodGet, "sync-status", "/api/sync/status", "The running and the latest syncs"),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.SyncStatus], error) {
			return answer(in.SyncStatus(ctx, caller))
		})
	register(s, user, op(http.MethodGet, "sync-job", "/api/sync/jobs/{id}", "One sync", http.StatusNotFound),
		func(ctx context.Context, caller agent.Caller, i *byID) (*body[api.Job], error) {
			return answer(in.Job(ctx, caller, i.ID))
		})

	events := op(http.MethodGet, "sync-events", "/api/sync/jobs/{id}/events", "Follow one sync as server-sent events named job, each a Job", http.StatusNotFound)
	events.Responses = map[string]*huma.Response{"200": {
		Description: "Events named job; the stream ends when the job has ended.",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
	register(s, user, events, func(ctx context.Context, caller agent.Caller, i *byID) (*huma.StreamResponse, error) {
		if _, err := in.Job(ctx, caller, i.ID); err != nil {
			return nil, err
		}
		return &huma.StreamResponse{Body: func(hctx huma.Context) { s.streamJob(hctx, caller, i.ID) }}, nil
	})
	register(s, user, op(http.MethodGet, "manifest", "/api/sync/manifest", "Content hashes of the tables that you may see"),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Manifest], error) {
			return answer(in.Manifest(ctx, caller))
		})
}

// streamKeepAlive is how often a silent stream sends a comment, so that proxies
// keep it open and a client that has gone away is noticed.
const streamKeepAlive = 15 * time.Second

func (s *Server) streamJob(hctx huma.Context, caller agent.Caller, id string) {
	c := humaecho.Unwrap(hctx)
	ctx := c.Request().Context()
	w := c.Response()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)

	changed, stop := s.opt.Instance.WatchJob(id)
	defer stop()
	tick := time.NewTicker(streamKeepAlive)
	defer tick.Stop()
	for {
		job, err := s.opt.Instance.Job(ctx, caller, id)
		if err != nil {
			return
		}
		data, err := json.Marshal(job)
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "event: job\ndata: %s\n\n", data); err != nil {
			return
		}
		w.Flush()
		if job.Done() {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return
			}
			w.Flush()
		case <-s.closing:
			return
		case <-ctx.Done():
			return
		}
	}
}

// syncBody is a sync request as an object or as a plain list of table ids.
type syncBody struct {
	api.SyncRequest
}

// UnmarshalJSON accepts both forms.
func (b *syncBody) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		return json.Unmarshal(data, &b.Tables)
	}
	return json.Unmarshal(data, &b.SyncRequest)
}

// Schema documents both forms.
func (syncBody) Schema(huma.Registry) *huma.Schema {
	ids := &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}, Description: "Table ids; all tables when empty."}
	object := &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: false,
		Properties: map[string]*huma.Schema{"tables": ids, "source": {Type: huma.TypeString, Description: "Only tables of this source."}},
	}
	object.PrecomputeMessages()
	ids.PrecomputeMessages()
	return &huma.Schema{OneOf: []*huma.Schema{ids, object}}
}

func (s *Server) dataRoutes() {
	in := s.opt.Instance
	op := func(method, id, path, summary string, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Data"},
			Errors: append([]int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}, errs...),
		}
	}
	register(s, user, op(http.MethodGet, "list-tables", "/api/catalog/tables", "Tables that you may query"),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Catalog], error) {
			return answer(in.Catalog(ctx, caller))
		})
	register(s, user, op(http.MethodGet, "get-table", "/api/catalog/tables/{id}", "One table with its columns", http.StatusNotFound),
		func(ctx context.Context, caller agent.Caller, i *byID) (*body[api.CatalogTable], error) {
			return answer(in.CatalogTable(ctx, caller, i.ID))
		})
	register(s, user, s.queryOperation(op(http.MethodPost, "query", "/api/query", "Answer one SELECT statement, as JSON, NDJSON, CSV, Parquet or Arrow by Accept",
		http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusTooManyRequests)), s.answerQuery)

	type downloadInput struct {
		Table string `path:"table" maxLength:"64"`
		Part  int    `query:"part" minimum:"1" default:"1" doc:"Which file, of a table that has several; X-Parts says how many."`
	}
	download := op(http.MethodGet, "download", "/api/data/{table}/download", "A table as Parquet, with ETag, If-None-Match and Range", http.StatusNotFound)
	content := map[string]*huma.MediaType{"application/vnd.apache.parquet": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
	download.Responses = map[string]*huma.Response{
		"200": {Description: "The whole file.", Content: content},
		"206": {Description: "The range that was asked for.", Content: content},
		"304": {Description: "The table is what If-None-Match names."},
		"416": {Description: "The range lies outside the file."},
	}
	register(s, user, download, func(ctx context.Context, caller agent.Caller, i *downloadInput) (*huma.StreamResponse, error) {
		d, err := in.Download(ctx, caller, i.Table, i.Part)
		if err != nil {
			return nil, err
		}
		file, err := os.Open(d.Path)
		if err != nil {
			d.Release()
			return nil, problem.Wrap(err, problem.Internal, "The table's file cannot be read.", "Publish the tables again: POST /api/sync/trigger.")
		}
		return &huma.StreamResponse{Body: func(hctx huma.Context) {
			defer d.Release()
			defer func() { _ = file.Close() }()
			c := humaecho.Unwrap(hctx)
			h := c.Response().Header()
			h.Set("Content-Type", "application/vnd.apache.parquet")
			h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", d.FileName))
			h.Set("ETag", `"`+d.ETag+`"`)
			h.Set("Cache-Control", "private, no-cache")
			h.Set("X-Parts", fmt.Sprint(d.Parts))
			http.ServeContent(c.Response(), c.Request(), "", d.Modified, file)
		}}, nil
	})
}
