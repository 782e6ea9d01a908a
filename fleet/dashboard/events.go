package dashboard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// How a browser is told of changes.
const (
	gatherFor    = 300 * time.Millisecond // changes of this time go together
	sayAlive     = 20 * time.Second
	writeLimit   = 10 * time.Second // a browser that does not read for so long is let go
	streamLasts  = 30 * time.Minute // then the browser asks again, with a session that may have ended
	lookAtStore  = time.Second      // which other processes write, too
	retryAfterMS = 2000

	maxIncidents = 300
	maxRollouts  = 30
)

// hub tells open pages which rows have changed.
type hub struct {
	mu      sync.Mutex
	readers map[*reader]bool
}

func newHub() *hub { return &hub{readers: map[*reader]bool{}} }

// reader is an open page. What it has not been told yet is bounded by what it
// shows: a row that changes twice is told once.
type reader struct {
	mu     sync.Mutex
	filter filter
	table  map[string]bool // names of the rows on its page
	grid   map[string]bool // names of the cells
	only   string          // the one instance that it shows, or empty
	rows   map[string]*row
	cells  map[string]*row
	counts bool // the summary has changed
	stale  bool // what the filter selects has changed
	said   bool // that it is stale
	reload bool
	wake   chan struct{}
}

func (h *hub) join(r *reader) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readers[r] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.readers, r)
	}
}

// changed tells of one row.
func (h *hub) changed(was, is *row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		r.note(was, is)
	}
}

// reload tells that everything may be different.
func (h *hub) reload() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		r.mu.Lock()
		r.reload = true
		r.mu.Unlock()
		r.poke()
	}
}

func (r *reader) note(was, is *row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.only != "" {
		if r.only == is.Name {
			r.reload = true
			r.poke()
		}
		return
	}
	if r.table[is.Name] {
		r.rows[is.Name] = is
	}
	if was.looks() != is.looks() {
		r.counts = true
		if r.grid[is.Name] {
			r.cells[is.Name] = is
		}
	}
	r.stale = r.stale || r.filter.matches(is) != r.grid[is.Name]
	if r.counts || len(r.rows) > 0 || r.stale && !r.said {
		r.poke()
	}
}

// begin notes what a page shows that was made of the rows up to since, and what of it
// has changed after that. Where a filter may select other rows by now, or the
// inventory has others, the page has to be made anew.
func (r *reader) begin(rows []*row, replaced, since int64) {
	r.table, r.grid, r.stale, r.said = map[string]bool{}, map[string]bool{}, false, false
	turned := func(one *row) bool { return one.turned > since }
	r.reload = replaced > since || r.filter.Active() && slices.ContainsFunc(rows, turned)
	shown := r.filter.apply(rows)
	page, _, _ := r.filter.slice(shown)
	for _, one := range page {
		r.table[one.Name] = true
		if one.seq > since {
			r.rows[one.Name] = one
		}
	}
	for _, one := range shown {
		r.grid[one.Name] = true
		if turned(one) {
			r.cells[one.Name], r.counts = one, true
		}
	}
}

// poke wakes the stream; it never waits.
func (r *reader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// told is one message to a page.
type told struct {
	Rows    map[string]string `json:"rows,omitempty"`
	Cells   map[string]string `json:"cells,omitempty"`
	Summary string            `json:"summary,omitempty"`
	News    *news             `json:"news,omitempty"`
	Stale   bool              `json:"stale,omitempty"`
	Reload  bool              `json:"reload,omitempty"`
}

// take returns what the page has not been told yet.
func (r *reader) take() (t told, counts bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Stale, t.Reload, counts = r.stale && !r.said, r.reload, r.counts
	if !t.Reload {
		t.Rows, t.Cells = make(map[string]string, len(r.rows)), make(map[string]string, len(r.cells))
		for name, row := range r.rows {
			t.Rows[name] = string(row.HTML())
		}
		for name, row := range r.cells {
			t.Cells[name] = string(row.Cell())
		}
	}
	clear(r.rows)
	clear(r.cells)
	r.counts, r.said, r.reload = false, r.stale, false
	return t, counts
}

// events is the stream of a page's changes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "30")
		http.Error(w, "Too many pages are open; this one is not told of changes.", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamLasts)
	defer cancel()
	out := &stream{w: w, c: http.NewResponseController(w)}
	q := r.URL.Query()
	switch {
	case q.Has("rollout") || q.Has("rollouts") || q.Has("incidents"):
		s.tellOfStore(ctx, out, q)
	default:
		s.tellOfRows(ctx, out, r)
	}
}

// stream writes events with a deadline each.
type stream struct {
	w http.ResponseWriter
	c *http.ResponseController
}

// begin lets the browser know that it is told of what happens from now on.
func (o *stream) begin() error {
	o.w.Header().Set("Content-Type", "text/event-stream")
	o.w.Header().Set("X-Accel-Buffering", "no") // nginx would keep it back
	return o.send(fmt.Sprintf("retry: %d\n\n", retryAfterMS))
}

func (o *stream) send(text string) error {
	_ = o.c.SetWriteDeadline(time.Now().Add(writeLimit)) // not every writer has one
	if _, err := o.w.Write([]byte(text)); err != nil {
		return err
	}
	return o.c.Flush()
}

func (o *stream) tell(t told) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return o.send("data: " + string(text) + "\n\n")
}

func (s *Server) tellOfRows(ctx context.Context, out *stream, r *http.Request) {
	q := r.URL.Query()
	me := &reader{
		filter: parseFilter(q), only: q.Get("i"),
		rows: map[string]*row{}, cells: map[string]*row{}, wake: make(chan struct{}, 1),
	}
	// What changed between the page and its stream is told at once.
	me.mu.Lock()
	leave := s.hub.join(me)
	defer leave()
	since, _ := strconv.ParseInt(q.Get("since"), 10, 64)
	if me.only != "" {
		one := s.model.get(me.only)
		me.reload = one == nil || one.seq > since
	} else {
		me.begin(s.model.all(), s.model.replacedAt(), since)
	}
	me.mu.Unlock()
	me.poke()
	if out.begin() != nil {
		return
	}
	alive, look := time.NewTicker(sayAlive), time.NewTicker(lookAtStore)
	defer alive.Stop()
	defer look.Stop()
	have := q.Get("news")
	for {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
			if out.send(": alive\n\n") != nil {
				return
			}
		case <-look.C:
			var err error
			if have, err = s.tellNews(ctx, out, have); err != nil {
				return
			}
		case <-me.wake:
			t, counts := me.take()
			if t.Reload && me.only == "" { // from here on it shows the rows of now
				me.mu.Lock()
				me.begin(s.model.all(), 0, math.MaxInt64)
				me.mu.Unlock()
			}
			if counts && !t.Reload {
				t.Summary = s.summary(me.filter)
			}
			if out.tell(t) != nil {
				return
			}
			select { // gather
			case <-ctx.Done():
				return
			case <-time.After(gatherFor):
			}
		}
	}
}

// summary draws the head of the overview.
func (s *Server) summary(f filter) string {
	var b bytes.Buffer
	if err := s.pages[""].ExecuteTemplate(&b, "summary", struct {
		All    counts
		Filter filter
	}{count(s.model.all()), f}); err != nil {
		s.log.Error("the summary cannot be drawn", "error", err)
	}
	return b.String()
}

// tellOfStore tells a page to look again when what it shows was changed in the
// store, by whichever process.
func (s *Server) tellOfStore(ctx context.Context, out *stream, q url.Values) {
	id, incidents, have, news := q.Get("rollout"), q.Has("incidents"), q.Get("have"), q.Get("news")
	if out.begin() != nil {
		return
	}
	look := time.NewTicker(lookAtStore)
	defer look.Stop()
	quiet := 0
	for {
		is, err := s.storeDigest(ctx, id, incidents)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("the store cannot be read", "error", err)
			}
			is = have
		}
		quiet++
		switch {
		case is != have:
			if out.tell(told{Reload: true}) != nil {
				return
			}
			quiet = 0
		case quiet >= int(sayAlive/lookAtStore):
			if out.send(": alive\n\n") != nil {
				return
			}
			quiet = 0
		}
		have = is
		if news, err = s.tellNews(ctx, out, news); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// storeDigest is what a change of a page's records is seen by. A rollout of a large
// fleet is a large document: it is not decoded for this.
func (s *Server) storeDigest(ctx context.Context, id string, incidents bool) (string, error) {
	switch {
	case incidents:
		all, err := s.o.Store.Incidents(ctx, store.IncidentQuery{Limit: maxIncidents})
		return digest(all), err
	case id != "":
		one, err := s.o.Store.Rollout(ctx, id)
		if err != nil {
			return "", err
		}
		owner, _, _, err := rollout.Driver(ctx, s.o.Store)
		return digest([]any{one, owner}), err
	}
	all, err := s.o.Store.Rollouts(ctx, 5)
	return digest(all), err
}

// digest is the same for the same records.
func digest(records any) string {
	text, err := json.Marshal(records)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
