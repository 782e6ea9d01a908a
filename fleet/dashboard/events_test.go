package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// listen opens a page's stream and returns what it is told.
func (g *rig) listen(t *testing.T, path string) <-chan told {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, kind)
	}
	news := make(chan told, 64)
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 8<<20)
	lines.Scan() // retry: the stream is open
	go func() {
		defer close(news)
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var one told
				if json.Unmarshal([]byte(text), &one) == nil {
					news <- one
				}
			}
		}
	}()
	return news
}

// nextNews is what is told next of everything but rows.
func nextNews(t *testing.T, stream <-chan told) news {
	t.Helper()
	for {
		select {
		case one := <-stream:
			if one.News != nil {
				return *one.News
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no news were told")
		}
	}
}

func next(t *testing.T, news <-chan told) told {
	t.Helper()
	for {
		select {
		case one, ok := <-news:
			if !ok {
				t.Fatal("the stream has ended")
			}
			if len(one.Rows)+len(one.Cells) > 0 || one.Summary != "" || one.Stale || one.Reload {
				return one
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nothing was told")
		}
	}
}

// eventsOf is the address of a page's changes.
func (g *rig) eventsOf(t *testing.T, path string) string {
	t.Helper()
	_, body := g.get(t, path)
	found := regexp.MustCompile(`data-events="([^"]+)"`).FindStringSubmatch(body)
	if found == nil {
		t.Fatalf("%s has no changes", path)
	}
	return strings.ReplaceAll(found[1], "&amp;", "&")
}

func TestAChangeIsToldToThePagesThatShowIt(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"), healthy("bolt", "2026.04.3"))
	all, canary, bolt := g.listen(t, g.eventsOf(t, "/")), g.listen(t, g.eventsOf(t, "/?l=tier%3Dcanary")), g.listen(t, g.eventsOf(t, "/i/bolt"))
	healthyOnes := g.listen(t, g.eventsOf(t, "/?state=healthy"))
	r := healthy("bolt", "2026.04.4")
	r.Health = fleet.Degraded
	g.see(r)
	news := next(t, all)
	if !strings.Contains(news.Rows["bolt"], "2026.04.4") || !strings.Contains(news.Cells["bolt"], `class="c degraded"`) || !strings.Contains(news.Summary, `class="tile degraded"`) || news.Rows["acme"] != "" || news.Stale {
		t.Errorf("%+v", news)
	}
	if news := next(t, bolt); !news.Reload {
		t.Errorf("%+v", news)
	}
	if news := next(t, healthyOnes); !news.Stale {
		t.Errorf("%+v", news)
	}
	if news := next(t, canary); len(news.Rows)+len(news.Cells) > 0 || news.Summary == "" {
		t.Errorf("a page was told of an instance that it does not show: %+v", news)
	}
}

func TestAPageIsToldWhatItMissedBeforeItListened(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"), healthy("bolt", "2026.04.3"))
	before := g.eventsOf(t, "/")
	r := healthy("bolt", "2026.04.4")
	witness := g.listen(t, g.eventsOf(t, "/i/bolt"))
	g.see(r)
	next(t, witness) // it was taken in
	if news := next(t, g.listen(t, before)); news.Reload || !strings.Contains(news.Rows["bolt"], "2026.04.4") || !strings.Contains(news.Cells["bolt"], "2026.04.4") || news.Summary == "" || len(news.Cells) != 1 {
		t.Errorf("%+v", news)
	}
	joined := g.in[0]
	joined.Name = "core"
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := g.follow(ctx, append(slices.Clone(g.in), joined))
	defer func() { cancel(); <-done }()
	if news := next(t, g.listen(t, before)); !news.Reload {
		t.Errorf("%+v", news)
	}
}

func TestAPageThatComesBackIsToldThatWhatItShowsHasRecovered(t *testing.T) {
	t.Parallel()
	bad := healthy("bolt", "2026.04.3")
	bad.Health = fleet.Unhealthy
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"), bad)
	before, witness := g.eventsOf(t, "/?state=unhealthy"), g.listen(t, g.eventsOf(t, "/i/bolt"))
	g.see(healthy("bolt", "2026.04.3")) // the filter does not select it any more
	next(t, witness)
	if news := next(t, g.listen(t, before)); !news.Reload {
		t.Errorf("%+v", news)
	}
	// A latency alone is no reason to make the page anew.
	before = g.eventsOf(t, "/?state=healthy")
	slow := healthy("bolt", "2026.04.3")
	slow.Timing.Total = time.Second
	g.see(slow)
	next(t, witness)
	if news := next(t, g.listen(t, before)); news.Reload || !strings.Contains(news.Rows["bolt"], "1000 ms") {
		t.Errorf("%+v", news)
	}
}

func TestAnInstanceThatJoinsTheInventoryComesAliveOnAnOpenPage(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"))
	open := g.listen(t, g.eventsOf(t, "/"))
	joined := g.in[0]
	joined.Name, joined.URL = "bolt", "https://bolt.example.com"
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := g.follow(ctx, []fleet.Instance{g.in[0], joined})
	defer func() { cancel(); <-done }()
	if news := next(t, open); !news.Reload {
		t.Fatalf("%+v", news)
	}
	was, is := g.server.model.update(fleet.InstanceStatus{Name: "bolt", Status: fleet.Healthy, Version: "2026.04.3"}, g.seen)
	g.server.hub.changed(was, is)
	if news := next(t, open); !strings.Contains(news.Rows["bolt"], "2026.04.3") || !strings.Contains(news.Cells["bolt"], "healthy") || news.Stale {
		t.Errorf("%+v", news)
	}
}

func TestWarningsAreCountedOnAnOpenPage(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"))
	all, warned, disk := g.listen(t, g.eventsOf(t, "/")), g.listen(t, g.eventsOf(t, "/?warn=1")), g.listen(t, g.eventsOf(t, "/?q=disk"))
	r := healthy("acme", "2026.04.3")
	r.Warnings = []string{"The disk has 4% left."}
	g.see(r)
	if news := next(t, all); !strings.Contains(news.Summary, `<span class="n">1</span><span class="what"><span class="glyph" aria-hidden="true">!</span>warn`) {
		t.Errorf("%+v", news)
	}
	if !next(t, warned).Stale || !next(t, disk).Stale {
		t.Error("a page is not told that it selects another instance")
	}
}

func TestAReaderThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	var results []fleet.Result
	for i := range 200 {
		results = append(results, healthy(fmt.Sprintf("i%03d", i), "2026.04.3"))
	}
	g := newRig(t, Access{}, results...)
	// It asks for the stream and never reads.
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(1)
	}
	if _, err := fmt.Fprintf(conn, "GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	quick := g.listen(t, g.eventsOf(t, "/?q=i199"))
	lines := g.Status().Instances
	for round := range 50 {
		for _, line := range lines {
			line.Version = fmt.Sprintf("2026.05.%d", round+1)
			if was, is := g.server.model.update(line, g.seen); is != nil {
				g.server.hub.changed(was, is)
			}
		}
	}
	for !strings.Contains(next(t, quick).Rows["i199"], "2026.05.50") {
		continue
	}
	g.server.hub.mu.Lock()
	defer g.server.hub.mu.Unlock()
	for r := range g.server.hub.readers {
		r.mu.Lock()
		if n := len(r.rows) + len(r.cells); n > 400 {
			t.Errorf("%d changes wait for a reader that shows 200", n)
		}
		r.mu.Unlock()
	}
}

func TestARolloutsPageIsToldOfEachStep(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{})
	run := rollout.Rollout{ID: "r1", Tag: "stable", State: rollout.Running, Started: time.Now()}
	g.roll(t, run)
	one, list := g.listen(t, g.eventsOf(t, "/rollouts/r1")), g.listen(t, g.eventsOf(t, "/rollouts"))
	run.State = rollout.Paused
	g.roll(t, run)
	if !next(t, one).Reload || !next(t, list).Reload {
		t.Error("nobody was told")
	}
}

func TestIncidentsRolloutsAndFaultsAppearOnOpenPages(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"))
	pages := map[string]<-chan told{}
	for _, path := range []string{"/", "/i/acme", "/incidents", "/rollouts"} {
		pages[path] = g.listen(t, g.eventsOf(t, path))
	}
	opened := store.Incident{ID: "1", Name: "acme", Kind: "unreachable", Opened: time.Now(), Summary: "It is silent."}
	if err := g.store.Remember(t.Context(), store.Batch{Opened: []store.Opening{{Incident: opened}}}); err != nil {
		t.Fatal(err)
	}
	for path, stream := range pages {
		if n := nextNews(t, stream); !strings.Contains(string(n.Now), "It is silent.") || !strings.Contains(string(n.Open), ">1<") || n.Self != "" || n.Trouble != "" {
			t.Errorf("%s: %+v", path, n)
		}
	}
	before := g.eventsOf(t, "/")
	g.roll(t, rollout.Rollout{ID: "r1", Tag: "stable-2026.05.1", State: rollout.Running})
	g.server.Report(problem.New(problem.Usage, "fleet.yaml:3:1: expected an instance.", "Mend it."))
	for path, stream := range map[string]<-chan told{"/": pages["/"], "a page that comes back": g.listen(t, before)} {
		n := nextNews(t, stream)
		for !strings.Contains(string(n.Trouble), "fleet.yaml:3:1") {
			n = nextNews(t, stream)
		}
		if !strings.Contains(string(n.Now), "stable-2026.05.1") {
			t.Errorf("%s: %+v", path, n)
		}
	}
	g.server.Report(nil)
	if n := nextNews(t, pages["/"]); n.Trouble != "" {
		t.Errorf("%+v", n)
	}
}

func TestOnlySoManyPagesListen(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{})
	for range maxStreams {
		g.server.streams <- struct{}{}
	}
	if status, body := g.get(t, "/events"); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, body)
	}
}
