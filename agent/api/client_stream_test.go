package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func event(t *testing.T, w http.ResponseWriter, status string, progress float64) {
	t.Helper()
	data, err := json.Marshal(api.Job{ID: "j1", Status: status, Progress: progress})
	if err != nil {
		t.Error(err)
	}
	fmt.Fprintf(w, "id: 1\nevent: job\ndata: %s\n\n", data)
	w.(http.Flusher).Flush()
}

func TestFollowJobReadsEvents(t *testing.T) {
	t.Parallel()
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/sync/jobs/j1/events" || r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("unexpected %s", r.URL.Path)
		}
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		fmt.Fprint(w, ": hello\r\n\r\nretry: 5\n\nevent: other\ndata: {}\n\nevent: job\ndata: {\"id\":\"j1\",\ndata: \"status\":\"running\"}\n\n")
		event(t, w, api.JobRunning, 0.5)
		event(t, w, api.JobFailed, 1)
		<-r.Context().Done() // a server that does not end the stream
	}))
	var seen []string
	job, err := c.FollowJob(t.Context(), "j1", func(j api.Job) { seen = append(seen, j.Status) })
	if err != nil || job.Status != api.JobFailed || strings.Join(seen, " ") != "running running failed" {
		t.Errorf("got %+v, %v after %v", job, err, seen)
	}
}

func TestFollowJobPollsWhenEventsBreak(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]http.HandlerFunc{
		"the stream breaks": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			event(t, w, api.JobRunning, 0.1)
			panic(http.ErrAbortHandler)
		},
		"the stream ends early": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
		},
		"the stream is silent": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"a proxy has no streams": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 502, api.Problem{Status: 502, Detail: "no"})
		},
		"another type": func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, api.Job{}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var polls atomic.Int32
			mux := http.NewServeMux()
			mux.HandleFunc("GET /api/sync/jobs/j1/events", events)
			mux.HandleFunc("GET /api/sync/jobs/j1", func(w http.ResponseWriter, _ *http.Request) {
				switch n := polls.Add(1); {
				case n == 2: // the instance restarts
					writeJSON(w, 503, api.Problem{Status: 503, Detail: "Starting."})
				case n < 4:
					writeJSON(w, 200, api.Job{ID: "j1", Status: api.JobRunning})
				default:
					writeJSON(w, 200, api.Job{ID: "j1", Status: api.JobSucceeded})
				}
			})
			c := newClient(t, mux, api.WithoutPauses(nil), api.WithIdleAfter(50*time.Millisecond))
			job, err := c.FollowJob(t.Context(), "j1", nil)
			if err != nil || job.Status != api.JobSucceeded || polls.Load() != 4 {
				t.Errorf("got %+v, %v after %d polls", job, err, polls.Load())
			}
		})
	}
}

func TestFollowJobGivesUp(t *testing.T) {
	t.Parallel()
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, 404, api.Problem{Status: 404, Code: "job_not_found", Detail: "No such job."})
	}))
	if _, err := c.FollowJob(t.Context(), "j1", nil); !problem.Is(err, problem.NotFound) {
		t.Errorf("got %v, want not_found", err)
	}

	var polls atomic.Int32
	c = newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		polls.Add(1)
		writeJSON(w, 503, api.Problem{Status: 503, Detail: "Away."})
	}), api.WithoutPauses(nil))
	if _, err := c.FollowJob(t.Context(), "j1", nil); !problem.Is(err, problem.Unavailable) || polls.Load() != 31 {
		t.Errorf("got %v after %d calls, want unavailable after the stream and 30 polls", err, polls.Load())
	}

	ctx, cancel := context.WithCancel(t.Context())
	c = newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		event(t, w, api.JobRunning, 0)
		<-r.Context().Done()
	}))
	if _, err := c.FollowJob(ctx, "j1", func(api.Job) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// parquet serves data as an instance does: ETag, conditions, ranges. Each call
// up to breakups hangs up after half of what it should send.
func parquet(data func() (body []byte, etag string), breakups int32) http.HandlerFunc {
	var calls atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		body, etag := data()
		w.Header().Set("Content-Type", api.MediaParquet)
		w.Header().Set("ETag", etag)
		if r.URL.Path != "/api/data/orders/download" {
			writeJSON(w, 404, api.Problem{Status: 404, Detail: "No such table."})
			return
		}
		if calls.Add(1) <= breakups {
			at := 0
			status := http.StatusOK
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at); err == nil {
				status = http.StatusPartialContent
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(body)-1, len(body)))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)-at))
			w.WriteHeader(status)
			_, _ = w.Write(body[at : at+(len(body)-at)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}
}

func TestDownload(t *testing.T) {
	t.Parallel()
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	fixed := func() ([]byte, string) { return body, `"v1"` }
	ctx := t.Context()

	var out bytes.Buffer
	got, err := newClient(t, parquet(fixed, 0)).Download(ctx, "orders", api.DownloadOptions{}, &out)
	if err != nil || !bytes.Equal(out.Bytes(), body) || *got != (api.DownloadResult{ETag: `"v1"`, Bytes: int64(len(body))}) {
		t.Errorf("a plain download gives %+v, %v and %d bytes", got, err, out.Len())
	}

	out.Reset()
	got, err = newClient(t, parquet(fixed, 0)).Download(ctx, "orders", api.DownloadOptions{ETag: `"v1"`}, &out)
	if err != nil || !got.NotModified || out.Len() != 0 {
		t.Errorf("a current copy gives %+v, %v and %d bytes", got, err, out.Len())
	}

	out.Reset()
	got, err = newClient(t, parquet(fixed, 0)).Download(ctx, "orders", api.DownloadOptions{ETag: `"v1"`, Offset: 123_456}, &out)
	if err != nil || !bytes.Equal(out.Bytes(), body[123_456:]) || got.Bytes != int64(len(body)-123_456) {
		t.Errorf("going on gives %+v, %v and %d bytes", got, err, out.Len())
	}

	out.Reset()
	_, err = newClient(t, parquet(fixed, 0)).Download(ctx, "orders", api.DownloadOptions{ETag: `"v0"`, Offset: 5}, &out)
	if e := problem.As(err); e.Code != "changed_meanwhile" || out.Len() != 0 {
		t.Errorf("going on with changed data gives %v and %d bytes", err, out.Len())
	}

	out.Reset()
	got, err = newClient(t, parquet(fixed, 2)).Download(ctx, "orders", api.DownloadOptions{}, &out)
	if err != nil || !bytes.Equal(out.Bytes(), body) || got.Bytes != int64(len(body)) {
		t.Errorf("two broken connections give %+v, %v and %d bytes", got, err, out.Len())
	}

	out.Reset()
	got, err = newClient(t, parquet(fixed, 9)).Download(ctx, "orders", api.DownloadOptions{}, &out)
	if !problem.Is(err, problem.Unavailable) || got.Bytes != int64(out.Len()) || !bytes.HasPrefix(body, out.Bytes()) || out.Len() == 0 {
		t.Errorf("broken connections without end give %+v, %v and %d bytes; want the part that came", got, err, out.Len())
	}

	var calls atomic.Int32
	changing := func() ([]byte, string) { return body, fmt.Sprintf(`"v%d"`, calls.Add(1)) }
	out.Reset()
	if _, err = newClient(t, parquet(changing, 1)).Download(ctx, "orders", api.DownloadOptions{}, &out); problem.As(err).Code != "changed_meanwhile" {
		t.Errorf("data that changes on the way gives %v", err)
	}

	if _, err = newClient(t, parquet(fixed, 0)).Download(ctx, "nope", api.DownloadOptions{}, &out); !problem.Is(err, problem.NotFound) {
		t.Errorf("an unknown table gives %v", err)
	}
}

func TestQueryStream(t *testing.T) {
	t.Parallel()
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Accept")+"; charset=utf-8")
		fmt.Fprint(w, "id\n1\n")
	}))
	var out bytes.Buffer
	n, err := c.QueryStream(t.Context(), api.QueryRequest{SQL: "SELECT 1"}, api.MediaCSV, &out)
	if err != nil || out.String() != "id\n1\n" || n != 5 {
		t.Errorf("got %q, %d, %v", out.String(), n, err)
	}

	c = newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", api.MediaCSV)
		fmt.Fprint(w, "id\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	if _, err := c.QueryStream(t.Context(), api.QueryRequest{SQL: "SELECT 1"}, api.MediaCSV, &out); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("a broken stream gives %v, want an error that says incomplete", err)
	}

	c = newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, api.QueryResponse{}) }))
	out.Reset()
	if _, err := c.QueryStream(t.Context(), api.QueryRequest{SQL: "SELECT 1"}, api.MediaArrow, &out); err == nil || out.Len() > 0 {
		t.Errorf("JSON instead of Arrow gives %v and %q", err, out.String())
	}
}
