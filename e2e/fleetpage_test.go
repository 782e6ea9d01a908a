//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	_ "modernc.org/sqlite"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
)

// fleetPage is agnesctl fleet serve over a simulated fleet.
type fleetPage struct {
	sim   *sim.Sim
	dir   string
	url   string
	state string
}

const pagePassword = "correct horse battery"

// serveFleet starts the page over n instances; the one called quick is asked
// every other second.
func serveFleet(t *testing.T, n int, quick string) *fleetPage {
	t.Helper()
	mix := map[sim.Fault]float64{sim.Hole: 0.004, sim.Expired: 0.003, sim.SaysDegraded: 0.012, sim.SaysUnhealthy: 0.006, sim.Expiring: 0.01, sim.Page: 0.002}
	s, err := sim.Start(context.WithoutCancel(t.Context()), sim.Options{N: n, Seed: 7, Mix: mix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Warm(); err != nil {
		t.Fatal(err)
	}
	p := &fleetPage{sim: s, dir: t.TempDir()}
	p.state = filepath.Join(p.dir, ".agnes-fleet")
	if err := s.WriteInventory(p.dir); err != nil {
		t.Fatal(err)
	}
	p.edit(t, "{name: "+quick+",", "{name: "+quick+", interval: 2s, timeout: 2s,")
	logins := filepath.Join(p.dir, "logins")
	if _, said, code := command(t, pagePassword+"\n", nil, "agnesctl", "fleet", "passwd", "anna", "--auth-file", logins, "--password-stdin"); code != 0 {
		t.Fatal(said)
	}
	cmd := exec.Command(filepath.Join(bin, "agnesctl"), "fleet", "serve", "-f", filepath.Join(p.dir, "fleet.yaml"), "--addr", "127.0.0.1:0", "--auth-file", logins)
	out, trouble := &buffer{}, &buffer{}
	cmd.Stdout, cmd.Stderr = out, trouble
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the page did not end well: %v\n%s", err, trouble)
			}
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("the page did not end\n%s", trouble)
		}
	})
	address := regexp.MustCompile(`http://[0-9.:]+`)
	within(t, time.Minute, "the page's address", func() bool { p.url = address.FindString(out.String()); return p.url != "" })
	return p
}

// edit changes the inventory in one step, as editors do.
func (p *fleetPage) edit(t *testing.T, old, replacement string) {
	t.Helper()
	file := filepath.Join(p.dir, "fleet.yaml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(content, []byte(old)) {
		t.Fatalf("the inventory has no %q", old)
	}
	if err := os.WriteFile(file+".new", bytes.Replace(content, []byte(old), []byte(replacement), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func (p *fleetPage) get(t *testing.T, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// within waits until something holds.
func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come within %s", what, limit)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// roll writes a rollout that an operator's command drives somewhere else.
func (p *fleetPage) roll(t *testing.T, id string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(p.state, "fleet.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	now := time.Now().UTC()
	member := func(i int, state, detail string) map[string]any {
		return map[string]any{"name": p.sim.Name(i), "delivery": "pull", "state": state, "from": "2026.04.7", "to": "2026.05.1", "detail": detail, "since": now.Add(-time.Duration(i) * time.Second)}
	}
	wave := func(name, state string, members ...map[string]any) map[string]any {
		w := map[string]any{"name": name, "state": state, "soak": "10m0s", "max_unavailable": 3, "members": members}
		if state != "waiting" {
			w["began"] = now.Add(-20 * time.Minute)
		}
		return w
	}
	many := func(from, to int, state string) (all []map[string]any) {
		for i := from; i < to; i++ {
			all = append(all, member(i, state, ""))
		}
		return all
	}
	early := append(many(10, 48, "taken"), member(48, "unreachable", "Its host has not fetched what is wanted for 15 minutes."),
		member(49, "taking", "It is being deployed: waiting until it is healthy."), member(50, "taking", "It is being deployed: pulling the image."))
	doc, err := json.Marshal(map[string]any{
		"id": id, "image": "ghcr.io/keboola/agnes-the-ai-analyst", "tag": "stable-2026.05.1", "digest": "sha256:" + strings.Repeat("3f", 32), "version": "2026.05.1", "channel": "stable",
		"state": "running", "started": now.Add(-25 * time.Minute), "by": "anna@acme.com",
		"waves": []any{wave("canary", "passed", many(0, 10, "taken")...), wave("early", "taking", append(early, many(51, 71, "waiting")...)...), wave("rest", "waiting", many(71, 600, "waiting")...)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "INSERT INTO rollout (id, started, state, doc) VALUES (?, ?, 'running', ?)", id, now.Add(-25*time.Minute).UnixMicro(), doc); err != nil {
		t.Fatal(err)
	}
	return db
}

// browser is a Chromium whose page's faults are the test's.
type browser struct {
	t      *testing.T
	ctx    context.Context
	mu     sync.Mutex
	faults []string
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithAllocatorOptions(
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(2*time.Minute),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", true),
	))
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := ev.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Level == "error" || e.Entry.Source == "security" {
				b.faults = append(b.faults, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			b.faults = append(b.faults, e.ExceptionDetails.Text)
		}
	}); err != nil {
		t.Fatalf("Chromium does not start: %v\nNext: make deps-test", err)
	}
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// is evaluates JavaScript.
func is[T any](b *browser, script string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
	return v
}

// until waits for JavaScript to hold, over a navigation too.
func (b *browser) until(script string) {
	b.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		var holds bool
		if holds, err = chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!!("+script+")")); err == nil && holds {
			return
		}
	}
	b.t.Fatalf("%s does not come true: %v", script, err)
}

// scheme makes the system dark or light.
func (b *browser) scheme(name string) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
}

func call[P, R any](b *browser, c cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, c, params); err != nil {
		b.t.Fatal(err)
	}
}

// shot keeps a picture of what is seen.
func (b *browser) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("AGNES_SCREENSHOTS")
	if dir == "" {
		dir = b.t.ArtifactDir()
	}
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644))
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// illegible lists texts whose contrast is below WCAG's AA.
const illegible = `(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
  const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const bad = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(), i = 0; n && i < 4000; n = walk.nextNode(), i++) {
    const e = n.parentElement, s = getComputedStyle(e);
    if (!n.data.trim() || s.visibility === 'hidden' || e.closest('[hidden], .unseen, script, option, svg, .c') || !e.getClientRects().length) continue;
    let under = e;
    while (under && rgba(getComputedStyle(under).backgroundColor)[3] < 255) under = under.parentElement;
    const back = light(rgba(under ? getComputedStyle(under).backgroundColor : 'white')), text = light(rgba(s.color));
    const ratio = (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05);
    const large = parseFloat(s.fontSize) >= 24 || parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) bad.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2) + ' ' + n.data.trim().slice(0, 30));
  }
  return [...bad];
})()`

// unnamed lists controls without a name, and landmarks that are missing.
const unnamed = `(() => {
  const bad = [];
  for (const e of document.querySelectorAll('input:not([type=hidden]), select, button, a')) {
    const name = e.getAttribute('aria-label') || e.textContent.trim() || e.title || [...(e.labels || [])].map((l) => l.textContent.trim()).join('');
    if (!name) bad.push(e.outerHTML.slice(0, 80));
  }
  for (const s of ['main', 'header', 'nav[aria-label]', 'h1', 'html[lang]', '[aria-live]']) if (!document.querySelector(s)) bad.push('no ' + s);
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) bad.push('wider than the window by ' + wide + ': ' + [...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.versions')).slice(0, 6).map((e) => e.tagName + '.' + e.className).join(', '));
  return bad;
})()`

func TestTheFleetsPageInABrowser(t *testing.T) {
	const quick = 7
	p := serveFleet(t, 1000, "sim-00007")
	if err := p.sim.Set(quick, sim.State{Version: "2026.04.7", Channel: "stable"}); err != nil {
		t.Fatal(err)
	}
	within(t, 3*time.Minute, "an answer of every instance", func() bool {
		return strings.Contains(p.get(t, "/metrics"), `agnes_fleet_instances{state="unknown"} 0`)
	})
	b := openBrowser(t)
	cells := func() int { return is[int](b, `document.querySelectorAll('.grid .c').length`) }
	legible := func(where string) {
		t.Helper()
		for _, wrong := range append(is[[]string](b, illegible), is[[]string](b, unnamed)...) {
			t.Errorf("%s: %s", where, wrong)
		}
	}

	// It loads.
	b.scheme("light")
	b.do(chromedp.Navigate(p.url + "/"))
	b.until(`document.querySelector('.live')?.textContent === 'live'`)
	// The best of three, for the machine may be busy with something else.
	best := 0.0
	for range 3 {
		b.do(chromedp.Navigate(p.url + "/"))
		b.until(`document.querySelector('.live')?.textContent === 'live'`)
		took := is[[]float64](b, `(({requestStart: a, responseEnd: b, loadEventEnd: c, transferSize: d}) => [b - a, c, d / 1024])(performance.getEntriesByType('navigation')[0])`)
		t.Logf("1,000 instances: loaded in %.0f ms, of which the answer took %.0f ms; %.0f KB on the wire", took[1], took[0], took[2])
		if best == 0 || took[1] < best {
			best = took[1]
		}
	}
	if best > 10_000 { // a second is the promise; this is for a machine that does ten other things
		t.Errorf("loading takes %.0f ms", best)
	}
	if n := cells(); n != 1000 {
		t.Errorf("%d cells", n)
	}
	legible("overview, light")

	// A change is seen.
	b.until(`document.getElementById('c-sim-00007').classList.contains('healthy')`)
	if err := p.sim.Set(quick, sim.State{Fault: sim.SaysUnhealthy, Version: "2026.04.7", Channel: "stable"}); err != nil {
		t.Fatal(err)
	}
	// What an empty answer takes meanwhile says how busy this machine is.
	is[bool](b, `(() => { window.lag = 0; (async () => { for (;;) { const t = performance.now(); await fetch('/healthz'); window.lag = Math.max(window.lag, performance.now() - t); await new Promise((r) => setTimeout(r, 50)); } })(); return true; })()`)
	changed := time.Now()
	known := make(chan time.Time, 1)
	go func() { // when the monitor has it
		for !strings.Contains(p.get(t, "/i/sim-00007"), `class="badge unhealthy"`) {
			<-time.After(20 * time.Millisecond)
		}
		known <- time.Now()
	}()
	b.until(`document.getElementById('c-sim-00007').classList.contains('unhealthy')`)
	seen := time.Now()
	probed := <-known
	lag := time.Duration(is[float64](b, `window.lag`) * float64(time.Millisecond))
	t.Logf("a change was seen in the browser %s after the probe that found it, which came %s after the change; an empty answer took up to %s then",
		seen.Sub(probed).Round(time.Millisecond), probed.Sub(changed).Round(time.Millisecond), lag.Round(time.Millisecond))
	if since := seen.Sub(probed); since > 2*time.Second+5*lag {
		t.Errorf("a change was seen %s after its probe", since)
	}
	b.until(`/sim-|instances/.test(document.getElementById('said').textContent)`) // screen readers hear it

	// The filter works while one types, and the address can be shared.
	b.do(chromedp.SendKeys(`#filter input[name=q]`, "sim-0000"))
	b.until(`document.querySelectorAll('.grid .c').length === 10`)
	if at := is[string](b, `location.search`); at != "?q=sim-0000" {
		t.Errorf("the address is %s", at)
	}
	b.do(chromedp.Navigate(p.url + "/?state=unhealthy&l=tier%3Drest&sort=name"))
	if n := cells(); n == 0 || n > 100 || is[int](b, `document.querySelectorAll('tbody tr').length`) != n {
		t.Errorf("%d cells", n)
	}
	b.do(chromedp.Navigate(p.url+"/?group=tier&page=2"), chromedp.Click(`a[rel=next]`))
	b.until(`document.querySelector('.pages [aria-current]')?.textContent === '3'`)
	b.do(chromedp.Navigate(p.url+"/"), chromedp.Focus(`.grid .c`), chromedp.KeyEvent(kb.ArrowRight))
	if at := is[string](b, `document.activeElement.id`); at != "c-sim-00001" {
		t.Errorf("the arrow key leads to %q", at)
	}

	// An instance, and pictures.
	db := p.roll(t, "20261129-061500")
	b.do(chromedp.Navigate(p.url + "/i/sim-00007"))
	b.until(`document.querySelector('.says')?.textContent.includes('unhealthy')`)
	legible("instance, light")
	if err := p.sim.Set(quick, sim.State{Version: "2026.04.9", Channel: "stable"}); err != nil {
		t.Fatal(err)
	}
	b.until(`document.querySelector('.facts dd').textContent.includes('2026.04.9')`) // by itself
	b.shot("instance-light")
	for _, scheme := range []string{"light", "dark"} {
		b.scheme(scheme)
		b.do(chromedp.Navigate(p.url + "/"))
		b.until(`document.querySelector('.live')?.textContent === 'live'`)
		b.shot("overview-" + scheme)
		b.do(chromedp.EmulateViewport(390, 844), chromedp.Navigate(p.url+"/"))
		b.until(`document.querySelector('.live')?.textContent === 'live'`)
		legible("overview on a phone, " + scheme)
		b.shot("phone-" + scheme)
		b.do(chromedp.Navigate(p.url + "/#instances"))
		b.shot("phone-table-" + scheme)
		b.do(chromedp.EmulateViewport(1280, 900))
	}
	for path, name := range map[string]string{"/": "overview", "/rollouts/20261129-061500": "rollout", "/incidents": "incidents", "/rollouts": "rollouts", "/i/sim-00007": "instance", "/login": "login"} {
		b.do(chromedp.Navigate(p.url + path))
		legible(name + ", dark")
		if name != "overview" {
			b.shot(name + "-dark")
		}
	}
	b.do(chromedp.Navigate(p.url+"/"), chromedp.Click(`#theme button`))
	b.until(`getComputedStyle(document.documentElement).colorScheme === 'light'`)

	// A rollout is aborted by somebody who has signed in.
	b.do(chromedp.Navigate(p.url + "/rollouts/20261129-061500"))
	if is[bool](b, `!!document.getElementById('abort')`) {
		t.Error("anybody may abort a rollout")
	}
	b.do(
		chromedp.Click(`.orders a[href^="/login"]`), chromedp.WaitVisible(`input[name=user]`),
		chromedp.SendKeys(`input[name=user]`, "anna"), chromedp.SendKeys(`input[name=password]`, pagePassword), chromedp.Click(`.login button`),
		chromedp.WaitVisible(`#abort`), chromedp.Click(`#abort`), chromedp.WaitVisible(`#abort-now`),
	)
	b.shot("rollout-abort")
	b.do(chromedp.Click(`#abort-now`), chromedp.WaitVisible(`.given`))
	var verb, by string
	if err := db.QueryRowContext(t.Context(), "SELECT verb, by FROM rollout_order WHERE rollout = '20261129-061500'").Scan(&verb, &by); err != nil || verb != "abort" || by != "anna" {
		t.Errorf("the order is %q by %q: %v", verb, by, err)
	}
	// What its driver writes is seen on the page.
	if _, err := db.ExecContext(t.Context(), `UPDATE rollout SET state = 'aborted', doc = CAST(json_set(CAST(doc AS TEXT), '$.state', 'aborted', '$.reason', 'anna ordered an abort.') AS BLOB)`); err != nil {
		t.Fatal(err)
	}
	b.until(`document.querySelector('#rollout .tag.big')?.textContent === 'aborted'`)

	// Without JavaScript it is the same page.
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.do(
		chromedp.Navigate(p.url+"/"), chromedp.SendKeys(`#filter input[name=q]`, "sim-00007"), chromedp.Click(`#filter button`),
		chromedp.WaitVisible(`#r-sim-00007`), chromedp.WaitNotPresent(`#r-sim-00008`),
	)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{})
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fault := range b.faults {
		t.Errorf("the browser says: %s", fault)
	}
}

func TestTheFleetsPageStaysTrueWhileItIsOpen(t *testing.T) {
	p := serveFleet(t, 3, "sim-00000")
	b := openBrowser(t)
	open := func(path string) {
		t.Helper()
		b.do(chromedp.Navigate(p.url + path))
		b.until(`document.querySelector('.live')?.textContent === 'live'`)
	}
	set := func(fault sim.Fault) {
		t.Helper()
		if err := p.sim.Set(0, sim.State{Fault: fault, Version: "2026.04.7", Channel: "stable"}); err != nil {
			t.Fatal(err)
		}
	}
	open("/")
	set(sim.SaysUnhealthy)
	b.until(`document.querySelector('#now')?.textContent.includes('sim-00000')`) // an incident
	b.until(`/[1-9]/.test(document.querySelector('#open').textContent)`)

	// A tab that was hidden meanwhile.
	open("/?state=unhealthy")
	b.until(`document.getElementById('c-sim-00000')`)
	hide := func(hidden bool) {
		t.Helper()
		is[bool](b, fmt.Sprintf(`(() => { Object.defineProperty(document, 'hidden', {configurable: true, get: () => %v}); return document.dispatchEvent(new Event('visibilitychange')); })()`, hidden))
	}
	hide(true)
	set(sim.None)
	within(t, time.Minute, "the recovery", func() bool { return strings.Contains(p.get(t, "/"), `id="c-sim-00000" class="c healthy`) })
	if !is[bool](b, `!!document.getElementById('c-sim-00000')`) {
		t.Fatal("a hidden tab is told")
	}
	hide(false)
	b.until(`!document.getElementById('c-sim-00000')`)

	// The inventory changes.
	open("/")
	const added = "  - {name: added, url: \"https://127.0.0.1:1\"}\n"
	p.edit(t, "instances:\n", "instances:\n"+added)
	b.until(`document.getElementById('c-added')?.classList.contains('unreachable')`)
	p.edit(t, added, added+"  - {name: BROKEN}\n")
	b.until(`document.getElementById('trouble').textContent.includes('cannot be taken')`)
	p.edit(t, "  - {name: BROKEN}\n", "")
	b.until(`!document.getElementById('trouble').textContent`)
	open("/i/added")
	p.edit(t, added, "")
	b.until(`document.body.textContent.includes('The inventory has no instance')`)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fault := range b.faults {
		if !strings.Contains(fault, "404") { // the page that is gone
			t.Errorf("the browser says: %s", fault)
		}
	}
}

func TestTheFleetsPageTakesAChangedInventory(t *testing.T) {
	p := serveFleet(t, 3, "sim-00000")
	within(t, time.Minute, "the first instance", func() bool { return strings.Contains(p.get(t, "/"), `id="c-sim-00000" class="c healthy`) })
	p.edit(t, "instances:\n", "instances:\n  - {name: added, url: \"https://127.0.0.1:1\"}\n")
	within(t, time.Minute, "the added instance", func() bool { return strings.Contains(p.get(t, "/"), `id="c-added"`) })
	if body := p.get(t, "/"); !strings.Contains(body, `id="c-sim-00000" class="c healthy`) {
		t.Error("what was seen is forgotten")
	}
	p.edit(t, "instances:\n", "instances:\n  - {name: BROKEN}\n")
	within(t, time.Minute, "the fault", func() bool {
		return strings.Contains(p.get(t, "/"), "fleet.yaml:") && strings.Contains(p.get(t, "/"), "as it was last good")
	})
	if body := p.get(t, "/"); !strings.Contains(body, `id="c-added"`) || !strings.Contains(p.get(t, "/metrics"), "agnes_fleet_inventory_valid 0") {
		t.Error("the last good inventory does not go on")
	}
	p.edit(t, "  - {name: BROKEN}\n", "")
	within(t, time.Minute, "the mended inventory", func() bool { return strings.Contains(p.get(t, "/metrics"), "agnes_fleet_inventory_valid 1") })
}

func TestWhatPrometheusIsGivenPassesItsOwnChecks(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is missing; next: make deps-test")
	}
	check := func(stdin string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	folder := filepath.Join("..", "infra", "monitoring")
	check("", "check", "rules", filepath.Join(folder, "rules.yml"))
	check("", "check", "config", "--syntax-only", filepath.Join(folder, "prometheus.yml"))
	p := serveFleet(t, 20, "sim-00000")
	within(t, time.Minute, "an answer", func() bool {
		return strings.Contains(p.get(t, "/metrics"), `agnes_fleet_instance_up{name="sim-00000"} 1`)
	})
	check(p.get(t, "/metrics"), "check", "metrics")
	served := p.get(t, "/sd?for=health&"+url.Values{"l": {"tier=canary"}}.Encode())
	file := filepath.Join(t.TempDir(), "targets.json")
	if _, said, code := command(t, "", nil, "agnesctl", "fleet", "sd", "-f", filepath.Join(p.dir, "fleet.yaml"), "--for", "health", "-l", "tier=canary", "--output", file); code != 0 {
		t.Fatal(said)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var one, other []any
	if json.Unmarshal([]byte(served), &one) != nil || json.Unmarshal(written, &other) != nil || len(one) != 1 || fmt.Sprint(one) != fmt.Sprint(other) {
		t.Errorf("%s\n%s", served, written)
	}
}
