package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// TestMixedQueriesDuringPublishesLeaveNothingBehind is the short form of
// TestBenchSoak.
func TestMixedQueriesDuringPublishesLeaveNothingBehind(t *testing.T) { soak(t, 300, 900) }

const soakClients = 32

// soak sends queries of every kind and end while tables are published without
// a pause. Each answer has to be right and of one generation that was current
// meanwhile; and once all is over, the server has to hold no more than after a
// first part of the same load.
func soak(t *testing.T, warmUp, queries int) {
	t.Helper()
	s := &soaker{played: play(t, tablesOf(0)), tokens: map[string]string{}, read: newReader(t), seen: map[string]int{}}
	s.admin = s.synced()
	for user, grants := range soakUsers() {
		s.tokens[user], _ = s.analyst(s.admin, user+"@company.com", grants...)
	}
	began := time.Now()
	s.load(warmUp, 1)
	s.drain()
	before := s.settled(func(usage) []string { return nil })
	clear(s.seen)

	took := time.Now()
	s.load(queries, 2)
	elapsed := time.Since(took)
	s.drain()
	after := s.settled(func(u usage) []string { return u.beyond(before, queries) })
	t.Logf("%d queries of %d clients in %.1f s (%.0f/s) during %d publishes; with the warm-up %.1f s", queries, soakClients,
		elapsed.Seconds(), float64(queries)/elapsed.Seconds(), s.published.Load(), time.Since(began).Seconds())
	t.Logf("ends: %v", s.seen)
	t.Logf("before: %s", before)
	t.Logf("after:  %s", after)
	for _, fault := range after.beyond(before, queries) {
		t.Errorf("after %d queries: %s", queries, fault)
	}
	if t.Failed() && after.Goroutines > before.Goroutines {
		t.Logf("goroutines:\n%s", after.Stacks)
	}
	for _, end := range []string{"200", "400", "403", "408", "broken off", "gone halfway", "gone early"} {
		if s.seen[end] == 0 {
			t.Errorf("no query ended with %q; the load is not what it claims to be", end)
		}
	}
}

// beyond says what a server at rest holds more than it did so many queries ago,
// or more than the product promises.
func (u usage) beyond(before usage, queries int) (faults []string) {
	held := func(what string, now, then, slack int64) {
		if now > then+slack {
			faults = append(faults, fmt.Sprintf("%d %s, %d before", now, what, then))
		}
	}
	// A worker costs three descriptors (control, stream, process) and the
	// goroutine that waits for its end.
	held("descriptors besides the workers'", int64(u.Descriptors-3*u.Workers), int64(before.Descriptors-3*before.Workers), 3)
	held("goroutines besides the workers'", int64(u.Goroutines-u.Workers), int64(before.Goroutines-before.Workers), 3)
	held("bytes of heap", u.Heap, before.Heap, 1<<20)
	// DuckDB holds the audit log's newest rows until its next checkpoint, and
	// its allocator keeps what many publishes at once have used.
	held("bytes of RSS", u.RSS, before.RSS, 32<<20+2<<10*int64(queries))
	held("workers", int64(u.Workers), int64(len(soakUsers())+2), 0) // one idle for each user's tables, two spares
	held("processes that nobody reaped", int64(u.Zombies), 0, 0)
	held("generations on disk", int64(u.Generations), 3, 0) // the current one and two before it
	return faults
}

// soakUsers are the analysts with their grants.
func soakUsers() map[string][]string {
	return map[string][]string{"ana": {"orders", "customers"}, "ben": {"orders"}, "eva": {"*"}, "zoe": {"events"}}
}

// tablesOf is the source's content: every row of every table carries the stamp.
func tablesOf(stamp int64) map[string]string {
	return map[string]string{
		"orders":    fmt.Sprintf("SELECT %d::BIGINT AS stamp, range AS id, range %% 10 AS customer_id, (range * 1.25)::DECIMAL(10, 2) AS amount FROM range(1000)", stamp),
		"customers": fmt.Sprintf("SELECT %d::BIGINT AS stamp, range AS id, 'customer ' || range AS name FROM range(10)", stamp),
		"events":    fmt.Sprintf("SELECT %d::BIGINT AS stamp, range AS id, 'event ' || range AS note FROM range(5000)", stamp),
	}
}

// soaker is a load on a played server.
type soaker struct {
	*played
	admin  string
	tokens map[string]string // by user
	read   *reader

	coming    atomic.Int64 // newest stamp that may be published
	published atomic.Int64 // newest stamp that is

	mu   sync.Mutex
	seen map[string]int // ends of queries
}

func (s *soaker) count(end string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[end]++
}

// fault is a failed test, unless it only follows from another.
func (s *soaker) fault(format string, args ...any) {
	s.t.Helper()
	if s.t.Context().Err() == nil {
		s.t.Errorf(format, args...)
	}
}

// publish gives all tables the next stamp.
func (s *soaker) publish() {
	s.t.Helper()
	next := s.coming.Add(1)
	var url string
	s.ask(order{Tables: tablesOf(next)}, &url)
	if job := s.sync(s.admin); job.Status != api.JobSucceeded {
		s.t.Fatalf("publish %d = %+v", next, job)
	}
	s.published.Store(next)
}

// load sends queries from all clients while it publishes.
func (s *soaker) load(queries int, seed uint64) {
	var left atomic.Int64
	left.Store(int64(queries))
	users := slices.Sorted(maps.Keys(soakUsers()))
	var clients sync.WaitGroup
	for n := range soakClients {
		c := &soakClient{
			soaker: s, user: users[n%len(users)], rng: rand.New(rand.NewPCG(seed, uint64(n))),
			http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}},
		}
		clients.Go(func() {
			defer c.http.CloseIdleConnections()
			for left.Add(-1) >= 0 && !s.t.Failed() {
				c.one()
			}
		})
	}
	// Whom the deadline ends: the admin's queries have one second.
	for range 3 {
		c := &soakClient{soaker: s, user: "admin", http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
		clients.Go(func() {
			if r, err := c.post(s.t.Context(), endless, typeJSON); err != nil || r.status != http.StatusRequestTimeout || r.problem(s.t).Code != "query_timeout" {
				s.fault("an endless query = %d %.200s, %v, want 408", r.status, r.body, err)
			}
			s.count("408")
		})
	}
	done := make(chan struct{})
	go func() {
		clients.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			return
		default:
			s.publish()
		}
	}
}

// drain leaves the server with one idle worker for each user, on the newest
// generation.
func (s *soaker) drain() {
	s.t.Helper()
	s.publish()
	for _, token := range s.tokens {
		if _, r := s.query(token, "SELECT 1"); r.status != http.StatusOK {
			s.t.Errorf("after the load: %d %s", r.status, r.body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// settled measures until the server has come to rest and nothing is wrong with
// it, or five seconds have passed.
func (s *soaker) settled(wrong func(usage) []string) usage {
	s.t.Helper()
	last := s.measure()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(5 * time.Second); ; {
		select {
		case <-deadline:
			return last
		case <-tick.C:
		}
		now := s.measure()
		still := now.Workers == last.Workers && now.Descriptors == last.Descriptors && now.Goroutines == last.Goroutines
		if last = now; still && now.Generations <= 3 && len(wrong(now)) == 0 {
			return now
		}
	}
}

// soakClient is one client of one user.
type soakClient struct {
	*soaker
	user string
	rng  *rand.Rand
	http *http.Client
}

const (
	endless = `SELECT count(*) FROM range(1000000) a, range(1000000) b`
	flood   = `SELECT range, range * 2 FROM range(10000000000)`
	late    = `SELECT CASE WHEN range = 200000 THEN error('late')::BIGINT ELSE range END, range FROM range(200001)`
)

// post sends a query. An error means that the answer is not whole.
func (c *soakClient) post(ctx context.Context, sqlText, accept string, params ...any) (reply, error) {
	resp, err := c.open(ctx, sqlText, accept, params...)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, body}, err
}

func (c *soakClient) open(ctx context.Context, sqlText, accept string, params ...any) (*http.Response, error) {
	ask := map[string]any{"sql": sqlText, "params": append([]any{}, params...)}
	if accept == typeJSON {
		ask["limit"] = 100_000 // the others have none
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/api/query", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	token := c.tokens[c.user]
	if c.user == "admin" {
		token = c.admin
	}
	req.Header = http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {typeJSON}, "Accept": {accept}}
	return c.http.Do(req)
}

// one sends one query of a random kind and judges its end.
func (c *soakClient) one() {
	types := mediaTypes()
	typ := types[c.rng.IntN(len(types))]
	switch n := c.rng.IntN(100); {
	case n < 20:
		value := c.rng.Int64()
		c.answered("SELECT ?::BIGINT", typeJSON, []any{value}, nil, func(rows [][]int64) bool { return rows[0][0] == value })
	case n < 35:
		c.answered("SELECT min(o.stamp), max(o.stamp), min(c.stamp), max(c.stamp), count(*) FROM orders o JOIN customers c ON c.id = o.customer_id",
			typeJSON, nil, []string{"orders", "customers"}, func(rows [][]int64) bool {
				r := rows[0]
				return r[0] == r[1] && r[0] == r[2] && r[0] == r[3] && r[4] == 1000
			})
	case n < 50:
		c.answered("SELECT min(stamp), max(stamp), customer_id, count(*) FROM orders GROUP BY 3 ORDER BY 3", typeJSON, nil, []string{"orders"}, func(rows [][]int64) bool {
			for i, r := range rows {
				if r[0] != rows[0][0] || r[1] != r[0] || r[2] != int64(i) || r[3] != 100 {
					return false
				}
			}
			return len(rows) == 10
		})
	case n < 65:
		c.answered(`WITH ranked AS (SELECT stamp, id, row_number() OVER (PARTITION BY customer_id ORDER BY amount DESC) AS place FROM orders)
			SELECT stamp, id FROM ranked WHERE place <= ? ORDER BY id`, typ, []any{2}, []string{"orders"}, stampedIDs(980, 20))
	case n < 75:
		c.answered("SELECT stamp, id FROM events", typ, nil, []string{"events"}, stampedIDs(0, 5000))
	case n < 83:
		c.refused([]string{"SELEC 1", "SELECT nope FROM range(3)", "SELECT 'x'::INTEGER", "SELECT 1; SELECT 2", "SELECT ?", "SELECT (1"}[c.rng.IntN(6)], typ, http.StatusBadRequest)
	case n < 91:
		c.refused([]string{"SELECT * FROM nowhere", "DROP TABLE orders", "SELECT getenv('PATH')", "FROM read_text('/etc/passwd')"}[c.rng.IntN(4)], typ, http.StatusForbidden)
	case n < 94:
		c.brokenOff(typ)
	case n < 97:
		c.goneHalfway(typ)
	default:
		c.goneEarly(typ)
	}
}

// stampedIDs holds that rows are of one stamp and have the ids from first on,
// in any order.
func stampedIDs(first, n int64) func([][]int64) bool {
	return func(rows [][]int64) bool {
		sum := int64(0)
		for _, r := range rows {
			if r[0] != rows[0][0] || r[1] < first || r[1] >= first+n {
				return false
			}
			sum += r[1]
		}
		return int64(len(rows)) == n && sum == n*first+n*(n-1)/2
	}
}

// answered sends a query over tables. Who may see them gets what right takes
// for right, with a stamp in the first column that was current meanwhile.
func (c *soakClient) answered(sqlText, accept string, params []any, tables []string, right func([][]int64) bool) {
	for _, table := range tables {
		if grants := soakUsers()[c.user]; !slices.Contains(grants, table) && !slices.Contains(grants, "*") {
			c.refused(sqlText, accept, http.StatusForbidden, params...)
			return
		}
	}
	least := c.published.Load()
	r, err := c.post(c.t.Context(), sqlText, accept, params...)
	most := c.coming.Load()
	if err != nil || r.status != http.StatusOK {
		c.fault("%s asks %s as %s: %d %.300s, %v", c.user, sqlText, accept, r.status, r.body, err)
		return
	}
	rows, err := c.read.cells(accept, r.body)
	if err != nil || len(rows) == 0 || !right(rows) {
		c.fault("%s asks %s as %s: %d rows, %v: %.300s", c.user, sqlText, accept, len(rows), err, r.body)
		return
	}
	if stamp := rows[0][0]; len(tables) > 0 && (stamp < least || stamp > most) {
		c.fault("%s asks %s: the answer is of publish %d; between %d and %d were current", c.user, sqlText, stamp, least, most)
	}
	c.count("200")
}

func (c *soakClient) refused(sqlText, accept string, status int, params ...any) {
	r, err := c.post(c.t.Context(), sqlText, accept, params...)
	if err != nil || r.status != status || r.problem(c.t).Hint == "" {
		c.fault("%s asks %s as %s: %d %.300s, %v, want %d with a hint", c.user, sqlText, accept, r.status, r.body, err, status)
		return
	}
	c.count(fmt.Sprint(status))
}

// brokenOff has a statement fail after its first rows.
func (c *soakClient) brokenOff(accept string) {
	if accept == typeJSON { // which stops at its limit
		accept = typeCSV
	}
	r, err := c.post(c.t.Context(), late, accept)
	switch {
	case err == nil && r.status == http.StatusBadRequest:
		c.count("400")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		c.count("broken off")
	default:
		c.fault("a statement that fails halfway, as %s: %d with %d bytes, %v", accept, r.status, len(r.body), err)
	}
}

// goneHalfway leaves in the middle of an answer without end.
func (c *soakClient) goneHalfway(accept string) {
	if accept == typeJSON {
		accept = typeNDJSON
	}
	ctx, leave := context.WithCancel(c.t.Context())
	defer leave()
	resp, err := c.open(ctx, flood, accept)
	if err != nil {
		c.fault("%s: %v", flood, err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if n, err := io.CopyN(io.Discard, resp.Body, 1+c.rng.Int64N(300_000)); err != nil || resp.StatusCode != http.StatusOK {
		c.fault("%s as %s: %d after %d bytes, %v", flood, accept, resp.StatusCode, n, err)
	}
	c.count("gone halfway")
}

// goneEarly leaves before there is an answer: in the queue, while a worker is
// made ready, or while the statement runs.
func (c *soakClient) goneEarly(accept string) {
	ctx, leave := context.WithTimeout(c.t.Context(), time.Duration(c.rng.Int64N(int64(80*time.Millisecond))))
	defer leave()
	if r, err := c.post(ctx, endless, accept); !errors.Is(err, context.DeadlineExceeded) {
		c.fault("a query that was given up = %d %.200s, %v", r.status, r.body, err)
	}
	c.count("gone early")
}
