package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Media types of a query's streamed answer.
const (
	MediaCSV     = "text/csv"
	MediaNDJSON  = "application/x-ndjson"
	MediaParquet = "application/vnd.apache.parquet"
	MediaArrow   = "application/vnd.apache.arrow.stream"
)

// QueryStream runs one statement and copies the whole answer, without the row
// limit, to w in one of the Media types. After an error w may hold a part; the
// count says how much.
func (c *Client) QueryStream(ctx context.Context, req QueryRequest, media string, w io.Writer) (int64, error) {
	k := call{method: http.MethodPost, path: "/api/query", body: req, header: http.Header{"Accept": {media}}}
	resp, err := c.do(ctx, k)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if got, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); got != media {
		return 0, problem.New(problem.Unavailable,
			fmt.Sprintf("Asked %s for %s, got %q.", c.where(k), media, got),
			"Ask for another format; this instance may not have this one.")
	}
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return n, c.cutShort(ctx, err, fmt.Sprintf("The answer broke off after %d bytes and is incomplete.", n), "Run the query again.")
	}
	return n, nil
}

// cutShort explains a stream that ended early. What its reader or its writer
// said stays as the cause, a canceled context included.
func (c *Client) cutShort(ctx context.Context, err error, message, hint string) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return problem.Wrap(err, problem.Unavailable, message, hint)
}

// DownloadOptions say what the caller has already.
type DownloadOptions struct {
	ETag   string // of an earlier download, as DownloadResult gave it
	Offset int64  // bytes of that download which the caller has; needs ETag
}

// DownloadResult tells what a download brought.
type DownloadResult struct {
	ETag        string
	NotModified bool  // the caller's copy is current; nothing was written
	Bytes       int64 // written by this call
}

// Download copies a table's Parquet data to w.
//
// With an ETag alone it asks for the data only if it changed. With an ETag and
// an Offset it goes on where the caller stopped; when the data has changed
// since, it writes nothing and fails as Conflict with code changed_meanwhile. A
// connection lost on the way is taken up again, twice, at the byte where it
// broke.
func (c *Client) Download(ctx context.Context, table string, o DownloadOptions, w io.Writer) (*DownloadResult, error) {
	result := &DownloadResult{ETag: o.ETag}
	k := call{method: http.MethodGet, path: "/api/data/{id}/download", id: table}
	for attempt := 0; ; attempt++ {
		k.header = http.Header{"Accept": {MediaParquet}}
		at := o.Offset + result.Bytes
		switch {
		case at > 0:
			k.header.Set("Range", fmt.Sprintf("bytes=%d-", at))
			k.header.Set("If-Range", result.ETag)
		case o.ETag != "":
			k.header.Set("If-None-Match", o.ETag)
		}
		n, err := c.downloadPart(ctx, k, at, result, w)
		result.Bytes += n
		if err == nil {
			return result, nil
		}
		if attempt >= maxRetries || result.ETag == "" || !connectionLost(err) || ctx.Err() != nil {
			return result, err
		}
	}
}

func (c *Client) downloadPart(ctx context.Context, k call, at int64, result *DownloadResult, w io.Writer) (int64, error) {
	resp, err := c.do(ctx, k)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusNotModified {
		result.NotModified = true
		return 0, nil
	}
	if at > 0 && (resp.StatusCode != http.StatusPartialContent ||
		!strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", at))) {
		return 0, problem.New(problem.Conflict,
			fmt.Sprintf("The table's data has changed since the first %d bytes were downloaded.", at),
			"Discard them and download from the beginning.").WithCode("changed_meanwhile")
	}
	result.ETag = resp.Header.Get("ETag")
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return n, c.cutShort(ctx, err, fmt.Sprintf("The download broke off after %d bytes.", at+n), "Start it again; it goes on where it stopped.")
	}
	return n, nil
}

// FollowJob calls seen with every state of a sync job until it is done, and
// returns the last one. A failed job is no error: see its Status. It reads the
// job's event stream and, when that breaks or stays silent, asks again each
// second; an instance that is away for less than half a minute is waited for.
func (c *Client) FollowJob(ctx context.Context, id string, seen func(Job)) (*Job, error) {
	if seen == nil {
		seen = func(Job) {}
	}
	job, err := c.jobEvents(ctx, id, seen)
	if err != nil || job != nil {
		return job, err
	}
	const patience = 30
	for misses := 0; ; {
		job, err := c.Job(ctx, id)
		switch {
		case err == nil:
			misses = 0
			seen(*job)
			if job.Done() {
				return job, nil
			}
		case ctx.Err() != nil, !problem.Is(err, problem.Unavailable) && !problem.Is(err, problem.Timeout):
			return nil, err
		default:
			if misses++; misses >= patience {
				return nil, err
			}
		}
		if err := c.pause(ctx, c.pollEvery); err != nil {
			return nil, c.unreachable(ctx, err)
		}
	}
}

// jobEvents reads the event stream of a job. It returns the job when it was
// seen to end, an error that polling would meet too, and otherwise neither.
func (c *Client) jobEvents(ctx context.Context, id string, seen func(Job)) (*Job, error) {
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(c.idleAfter, cancel)
	defer silence.Stop()

	k := call{method: http.MethodGet, path: "/api/sync/jobs/{id}/events", id: id, header: http.Header{"Accept": {"text/event-stream"}}}
	resp, err := c.do(streamCtx, k)
	if err != nil {
		if ctx.Err() != nil {
			return nil, c.unreachable(ctx, ctx.Err())
		}
		if e, ok := errors.AsType[*problem.Error](err); ok {
			switch e.Kind {
			case problem.Unauthenticated, problem.Forbidden, problem.NotFound:
				return nil, err
			}
		}
		return nil, nil
	}
	defer func() { _ = resp.Body.Close() }()
	if media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); media != "text/event-stream" {
		return nil, nil
	}
	var last *Job
	_ = readEvents(resp.Body, func(event, data string) bool { // whatever ended it, polling goes on
		silence.Reset(c.idleAfter)
		var job Job
		if event != "job" || json.Unmarshal([]byte(data), &job) != nil {
			return true
		}
		seen(job)
		if job.Done() {
			last = &job
			return false
		}
		return true
	})
	if last == nil && ctx.Err() != nil {
		return nil, c.unreachable(ctx, ctx.Err())
	}
	return last, nil
}

// maxEvent bounds one line of an event stream; a job of thousands of tables is
// one line.
const maxEvent = 16 << 20

// readEvents parses an event stream (WHATWG HTML, "Server-sent events") and
// calls handle for each event, and with an empty name for each comment, until
// handle returns false.
func readEvents(r io.Reader, handle func(event, data string) bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	event, data, some := "message", []string(nil), false
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if some && !handle(event, strings.Join(data, "\n")) {
				return nil
			}
			event, data, some = "message", nil, false
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "":
			if !handle("", value) {
				return nil
			}
		case "event":
			event = value
		case "data":
			data, some = append(data, value), true
		}
	}
	return lines.Err()
}
