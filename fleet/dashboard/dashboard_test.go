package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// seen is a fleet as a monitor would have seen it.
type seen struct {
	mu      sync.Mutex
	in      []fleet.Instance
	results map[string]fleet.Result
	events  chan monitor.Event
}

func (l *seen) Status() fleet.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []fleet.Result
	for _, r := range l.results {
		all = append(all, r)
	}
	return fleet.NewStatus(time.Now(), l.in, all)
}

func (l *seen) Result(name string) (fleet.Result, fleet.Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.results[name]
	return r, fleet.Record{Standing: fleet.Up, Since: r.At}, ok
}

func (l *seen) Subscribe() (<-chan monitor.Event, func()) { return l.events, func() {} }

func (l *seen) Condition() monitor.Condition { return monitor.Condition{Rounds: 7, Missed: 2} }

// see is a probe that found something else.
func (l *seen) see(r fleet.Result) {
	l.mu.Lock()
	if r.At.IsZero() {
		r.At = time.Now()
	}
	l.results[r.Name] = r
	l.mu.Unlock()
	for _, line := range l.Status().Instances {
		if line.Name == r.Name {
			l.events <- monitor.Event{Name: r.Name, Line: line}
		}
	}
}

// roll writes a rollout into the store, as its engine does.
func (g *rig) roll(t *testing.T, r rollout.Rollout) {
	t.Helper()
	if r.Started.IsZero() {
		r.Started = time.Now()
	}
	doc, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	lease := store.Lease{Name: "test", Nonce: "n", Since: time.Now(), Expires: time.Now().Add(time.Hour)}
	if _, err := g.store.TakeLease(t.Context(), lease, time.Now(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := g.store.SaveRollout(t.Context(), store.Rollout{ID: r.ID, Started: r.Started, State: string(r.State), Doc: doc}, lease); err != nil {
		t.Fatal(err)
	}
}

// orders are those that a rollout was given.
func (g *rig) orders(t *testing.T, id string) (all []string) {
	t.Helper()
	given, err := g.store.Orders(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range given {
		all = append(all, o.Verb+" by "+o.By)
	}
	return all
}

const password = "correct horse battery"

// loginFile is a password file with the user anna.
func loginFile(t *testing.T) string {
	t.Helper()
	line, err := HashLogin("anna", password)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "logins")
	if err := os.WriteFile(file, []byte("# people\n"+line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// rig is a page that is served over a real socket.
type rig struct {
	*seen
	store  *store.Store
	server *Server
	url    string
	client *http.Client
}

func newRig(t *testing.T, access Access, results ...fleet.Result) *rig {
	t.Helper()
	g := newStillRig(t, access, results...)
	web := httptest.NewServer(g.server)
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	g.url = web.URL
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g.client = &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return g
}

// newStillRig is a page without a socket, which would keep the clock of a bubble
// from going on.
func newStillRig(t *testing.T, access Access, results ...fleet.Result) *rig {
	t.Helper()
	g := &rig{seen: &seen{results: map[string]fleet.Result{}, events: make(chan monitor.Event, 64)}}
	for i, r := range results {
		if r.At.IsZero() {
			r.At = time.Now()
		}
		in := fleet.Instance{
			Name: r.Name, URL: "https://" + r.Name + ".example.com", Channel: "stable", Interval: 30 * time.Second,
			Labels: map[string]string{"tier": []string{"canary", "rest"}[min(i, 1)]},
		}
		g.in = append(g.in, in)
		if r.Health != "" {
			g.results[r.Name] = r
		}
	}
	records, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	g.store = records
	g.server, err = New(Options{Store: records, Access: access})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := g.follow(ctx, g.in)
	t.Cleanup(func() { cancel(); <-done })
	return g
}

// page is what the page answers without a socket.
func (g *rig) page(path string) string {
	w := httptest.NewRecorder()
	g.server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, http.NoBody))
	return w.Body.String()
}

// quietly puts results in place that no event tells of, and waits until the page
// has looked again.
func (g *rig) quietly(t *testing.T, results map[string]fleet.Result) {
	t.Helper()
	g.mu.Lock()
	g.results = results
	g.mu.Unlock()
	<-time.After(refreshEvery)
	synctest.Wait()
}

// follow lets the page show an inventory, and waits until it does.
func (g *rig) follow(ctx context.Context, instances []fleet.Instance) (done chan struct{}) {
	done = make(chan struct{})
	before := g.server.model.seq.Load()
	go func() {
		g.server.Follow(ctx, Inventory{Name: "fleet.yaml", Instances: instances, Loaded: time.Now()}, g.seen)
		close(done)
	}()
	for len(g.server.model.all()) != len(instances) || len(instances) > 0 && g.server.model.all()[0].seq <= before {
		runtime.Gosched()
	}
	return done
}

func (g *rig) do(t *testing.T, method, path, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func (g *rig) get(t *testing.T, path string, headers ...string) (int, string) {
	t.Helper()
	status, body, _ := g.do(t, http.MethodGet, path, "", headers...)
	return status, body
}

// signIn opens a session for anna.
func (g *rig) signIn(t *testing.T) {
	t.Helper()
	status, body, _ := g.do(t, http.MethodPost, "/login", url.Values{"user": {"anna"}, "password": {password}}.Encode())
	if status != http.StatusSeeOther {
		t.Fatalf("signing in: %d %s", status, body)
	}
}

// token returns the one of the forms on a page.
func (g *rig) token(t *testing.T, path string) string {
	t.Helper()
	_, body := g.get(t, path)
	found := regexp.MustCompile(`name="token" value="([^"]+)"`).FindStringSubmatch(body)
	if found == nil {
		t.Fatalf("no form on %s:\n%s", path, body)
	}
	return found[1]
}

func healthy(name, version string) fleet.Result {
	return fleet.Result{Name: name, Health: fleet.Healthy, Version: version, Channel: "stable", Timing: fleet.Timing{Total: 12 * time.Millisecond}}
}

func TestThePageSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	t.Parallel()
	bad := healthy("bolt", "2026.04.2")
	bad.Health, bad.Channel = fleet.Unhealthy, "dev"
	bad.Err = problem.New(problem.Unavailable, "The instance is unhealthy: storage: full", "Free some space.")
	gone := fleet.Result{Name: "core", Health: fleet.Unreachable, Fault: fleet.FaultConnect, Err: problem.New(problem.Unavailable, "Expected a server, found none.", "Start it.")}
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"), bad, gone, fleet.Result{Name: "dawn"})
	status, body := g.get(t, "/")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	for _, want := range []string{"storage: full", `id="c-acme" class="c healthy"`, `class="c unhealthy off"`, `class="c unreachable"`, `class="c unknown"`, `aria-label="bolt: unhealthy, 2026.04.2, drift"`, "2026.04.3"} {
		if !strings.Contains(body, want) {
			t.Errorf("the overview lacks %q", want)
		}
	}
	if at := strings.Index(body, `id="r-core"`); at < 0 || at > strings.Index(body, `id="r-acme"`) {
		t.Error("the worst is not the first row")
	}
	_, one := g.get(t, "/i/bolt")
	for _, want := range []string{"Free some space.", "runs channel dev, wanted stable", "agnesctl fleet history bolt"} {
		if !strings.Contains(one, want) {
			t.Errorf("the instance's page lacks %q:\n%s", want, one)
		}
	}
	if status, body := g.get(t, "/i/nobody"); status != http.StatusNotFound || !strings.Contains(body, "agnesctl fleet list") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := g.get(t, "/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %s", status, body)
	}
}

func TestNothingThatAnInstanceSaysGetsOut(t *testing.T) {
	t.Parallel()
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)> '{{.}}' javascript:alert(3) `
	r := healthy("evil", evil)
	r.Channel, r.Commit, r.Phase, r.Latest, r.Deprecated = evil, evil, evil, evil, true
	r.Warnings = []string{evil, "clear\x1b[2Jthe\x00screen\u202egnp.exe", "</svg></style></title>" + evil}
	r.Digest, r.BundleVersion, r.ConfigHash, r.Details = evil, evil, evil, true
	r.Health, r.Err = fleet.Degraded, problem.New(problem.Unavailable, evil, evil)
	g := newRig(t, Access{}, r, healthy("acme", "2026.04.3"))
	g.roll(t, rollout.Rollout{
		ID: "1", Tag: evil, State: evil, Reason: evil, By: evil, Digest: evil, CatchUp: []string{evil}, Skipped: []rollout.Skipped{{Name: evil, Reason: evil}},
		Waves: []rollout.WaveState{{Name: evil, State: evil, Members: []rollout.Member{{Name: "evil", State: evil, From: evil, To: evil, Detail: evil}}}},
	})
	if err := g.store.Remember(t.Context(), store.Batch{
		Seen: time.Now(), Changes: []store.Change{{At: time.Now(), Name: "evil", What: store.ChangeVersion, From: evil, To: evil, Version: evil, Reason: evil}},
		Opened: []store.Opening{{Incident: store.Incident{ID: "1", Name: "evil", Kind: evil, Opened: time.Now(), Summary: evil, Hint: evil, Silenced: evil}}},
	}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/?q=" + url.QueryEscape(evil), "/?l=" + url.QueryEscape(evil), "/?version=" + url.QueryEscape(evil), "/?sort=" + url.QueryEscape(evil), "/i/evil", "/i/" + url.PathEscape(evil), "/rollouts", "/rollouts/1", "/rollouts/" + url.PathEscape(evil), "/incidents", "/nowhere" + url.PathEscape(evil)} {
		_, body := g.get(t, path)
		if n := strings.Count(body, "<script"); n != 1 {
			t.Errorf("%s has %d scripts", path, n)
		}
		for _, bad := range []string{"<img", "\x1b", "\x00", "\u202e", `href="javascript`, `style="`, " onerror=alert(2)> '{{"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
	}
	status, _, h := g.do(t, http.MethodGet, "/", "")
	policy := h.Get("Content-Security-Policy")
	if status != http.StatusOK || !strings.Contains(policy, "script-src 'self'") || strings.Contains(policy, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" {
		t.Errorf("%v", h)
	}
}

func TestAViewIsInItsAddress(t *testing.T) {
	t.Parallel()
	warned := healthy("bolt", "2026.04.10")
	warned.Warnings = []string{"The disk has 4% left."}
	dev := healthy("core", "2026.04.9")
	dev.Channel = "dev"
	gone := fleet.Result{Name: "dawn", Health: fleet.Unreachable, Err: problem.New(problem.Unavailable, "Expected a server, found none.", "Start it.")}
	g := newRig(t, Access{}, healthy("acme", "2026.04.10"), warned, dev, gone)
	for _, tt := range []struct{ query, want string }{
		{"", "dawn core bolt acme"},
		{"?sort=name", "acme bolt core dawn"},
		{"?sort=-name", "dawn core bolt acme"},
		{"?sort=version", "core acme bolt dawn"}, // 9 before 10
		{"?state=unreachable,unhealthy", "dawn"},
		{"?state=healthy&version=2026.04.10&sort=name", "acme bolt"},
		{"?channel=dev", "core"},
		{"?drift=yes", "core"},
		{"?drift=unknown", "dawn"},
		{"?warn=1", "bolt"},
		{"?l=tier%3Dcanary", "acme"},
		{"?l=tier!%3Dcanary,name+notin+(core)&sort=name", "bolt dawn"},
		{"?q=disk", "bolt"},
		{"?q=DISK+bolt", "bolt"},
		{"?q=tier%3Drest&sort=name", "bolt core dawn"},
		{"?q=nothing+at+all", ""},
		{"?state=nonsense", "dawn core bolt acme"},
		{"?page=99&sort=name", "acme bolt core dawn"},
	} {
		_, body := g.get(t, "/"+tt.query)
		var rows []string
		for _, m := range regexp.MustCompile(`<tr id="r-([a-z]+)"`).FindAllStringSubmatch(body, -1) {
			rows = append(rows, m[1])
		}
		if got := strings.Join(rows, " "); got != tt.want {
			t.Errorf("%s shows %q, want %q", tt.query, got, tt.want)
		}
		if got := strings.Count(body, `id="c-`); got != len(rows) {
			t.Errorf("%s has %d cells for %d rows", tt.query, got, len(rows))
		}
		q, err := url.ParseQuery(strings.TrimPrefix(tt.query, "?"))
		if err != nil {
			t.Fatal(err)
		}
		if once := parseFilter(q); once.Query() != parseFilter(once.values()).Query() {
			t.Errorf("%s is not read back: %s", tt.query, once.Query())
		}
	}
	if status, body := g.get(t, "/?l=tier==="); status != http.StatusBadRequest || !strings.Contains(body, "Write it as") {
		t.Errorf("a selector that cannot be read: %d", status)
	}
}

func TestWhatIsNotKnownComesLastEitherWay(t *testing.T) {
	t.Parallel()
	slow, gone := healthy("bolt", "2026.04.4"), fleet.Result{Name: "core", Health: fleet.Unreachable, At: time.Now()}
	slow.Timing.Total, slow.Details, slow.LastSync, slow.At = time.Second, true, time.Now().Add(-48*time.Hour), time.Now().Add(-time.Minute)
	fresh := healthy("acme", "2026.04.3")
	fresh.Details, fresh.LastSync, fresh.At = true, time.Now().Add(-time.Hour), time.Now()
	g := newRig(t, Access{}, gone, fresh, slow, fleet.Result{Name: "dawn"})
	row := regexp.MustCompile(`<tr id="r-([a-z]+)"`)
	for _, tt := range []struct{ sort, aria, want string }{
		{"latency", "descending", "bolt acme core dawn"},
		{"-latency", "ascending", "acme bolt core dawn"},
		{"age", "descending", "bolt acme core dawn"},
		{"-age", "ascending", "acme bolt core dawn"},
		{"version", "ascending", "acme bolt core dawn"},
		{"-version", "descending", "bolt acme core dawn"},
		{"probed", "ascending", "bolt core acme dawn"},
		{"state", "descending", "core dawn acme bolt"},
		{"-state", "ascending", "acme bolt dawn core"},
	} {
		_, body := g.get(t, "/?l=name!%3Dnobody&sort="+tt.sort)
		var rows []string
		for _, m := range row.FindAllStringSubmatch(body, -1) {
			rows = append(rows, m[1])
		}
		head := regexp.MustCompile(`class="f-` + strings.TrimPrefix(tt.sort, "-") + `[^>]* aria-sort="([a-z]+)"`).FindStringSubmatch(body)
		if got := strings.Join(rows, " "); got != tt.want || head == nil || head[1] != tt.aria {
			t.Errorf("%s: %s %v, want %s %s", tt.sort, got, head, tt.want, tt.aria)
		}
	}
}

func TestAFleetOfTenThousandIsShownInPages(t *testing.T) {
	t.Parallel()
	var all []fleet.Result
	for i := range 10_000 {
		all = append(all, healthy(fmt.Sprintf("i%05d", i), fmt.Sprintf("2026.04.%d", i%40)))
	}
	g := newRig(t, Access{}, all...)
	began := time.Now()
	_, body := g.get(t, "/?page=2&sort=name&group=tier")
	took := time.Since(began)
	if rows, cells := strings.Count(body, "<tr id="), strings.Count(body, `id="c-`); rows != perPage || cells != 10_000 || !strings.Contains(body, `<tr id="r-i00250"`) {
		t.Errorf("%d rows, %d cells", rows, cells)
	}
	if versions := strings.Count(body, `<svg viewBox="0 0 100 6"`); versions != maxVersions || !strings.Contains(body, "32 further versions") {
		t.Errorf("%d versions", versions)
	}
	began = time.Now()
	g.get(t, "/?page=3&sort=-latency")
	t.Logf("first page %s (%d KB), next one %s", took, len(body)>>10, time.Since(began))
}

func TestABrokenInventoryIsSaidOnEveryPage(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"))
	g.server.Report(problem.New(problem.Usage, "fleet.yaml:3:1: expected an instance, found <b>", "Mend it."))
	for _, path := range []string{"/", "/i/acme", "/rollouts"} {
		if _, body := g.get(t, path); !strings.Contains(body, "fleet.yaml:3:1: expected an instance, found &lt;b&gt;") || !strings.Contains(body, "as it was last good") {
			t.Errorf("%s does not say it", path)
		}
	}
}

func TestWhatWasSeenStaysUntilTheNextMonitorHasLooked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newStillRig(t, Access{}, healthy("acme", "2026.04.3"), healthy("bolt", "2026.04.3"))
		g.mu.Lock()
		clear(g.results) // the monitor of another inventory has seen nothing yet
		instances := slices.Clone(g.in)
		instances[1].URL = "https://moved.example.com"
		g.mu.Unlock()
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := g.follow(ctx, instances)
		defer func() { cancel(); <-done }()
		for _, when := range []string{"at once", "after a while"} {
			if body := g.page("/"); !strings.Contains(body, `id="c-acme" class="c healthy"`) || !strings.Contains(body, `id="c-bolt" class="c unknown"`) {
				t.Errorf("%s: %s", when, body)
			}
			g.quietly(t, map[string]fleet.Result{})
		}
	})
}

func TestThePageGoesOnWithoutItsStore(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"))
	if err := g.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/i/acme"} {
		if status, body := g.get(t, path); status != http.StatusOK || !strings.Contains(body, "2026.04.3") || !strings.Contains(body, "--state") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestAFleetThatIsNotAskedYetIsNoTroubleOfThisMachine(t *testing.T) {
	t.Parallel()
	troubled := fleet.Result{Name: "bolt", Health: fleet.Unreachable, SelfTrouble: true}
	for want, bolt := range map[bool]fleet.Result{true: troubled, false: {Name: "bolt"}} {
		g := newRig(t, Access{}, fleet.Result{Name: "acme"}, bolt)
		_, body := g.get(t, "/")
		if strings.Contains(body, "1 instance could not be asked because") != want || strings.Contains(body, "2 instances could") || !strings.Contains(body, "It was not asked yet.") {
			t.Errorf("trouble: %v: %s", want, body)
		}
	}
}

func TestAnEmptyFleetSaysHowToBegin(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{})
	for path, want := range map[string]string{"/": "agnesctl fleet list", "/rollouts": "agnesctl fleet rollout", "/incidents": "Nothing is wrong"} {
		if _, body := g.get(t, path); !strings.Contains(body, want) {
			t.Errorf("%s lacks %q", path, want)
		}
	}
}

func TestOnlyTheTrustedProxyNamesAUser(t *testing.T) {
	t.Parallel()
	run := rollout.Rollout{ID: "r1", Tag: "stable", State: rollout.Running}
	trusted := newRig(t, Access{Header: "X-Forwarded-User", Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	other := newRig(t, Access{Header: "X-Forwarded-User", Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	trusted.roll(t, run)
	other.roll(t, run)
	if _, body := trusted.get(t, "/rollouts/r1", "X-Forwarded-User", "anna@acme.com"); !strings.Contains(body, "anna@acme.com") || !strings.Contains(body, "abort-now") {
		t.Error("the proxy's user is not signed in")
	}
	if _, body := other.get(t, "/rollouts/r1", "X-Forwarded-User", "anna@acme.com"); strings.Contains(body, "anna@acme.com") || strings.Contains(body, "abort-now") {
		t.Error("anybody may say who they are")
	}
	for _, a := range []Access{{Header: "X-Forwarded-User"}, {Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, {Closed: true}, {File: "/nowhere"}} {
		if _, err := New(Options{Store: other.store, Access: a}); !problem.Is(err, problem.Usage) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

func TestAnOrderNeedsALoginAndTheFormOfItsSession(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t)})
	run := rollout.Rollout{ID: "r1", Tag: "stable", State: rollout.Running}
	g.roll(t, run)
	order := func(token string, headers ...string) int {
		status, _, _ := g.do(t, http.MethodPost, "/rollouts/r1/orders", url.Values{"order": {"abort"}, "token": {token}}.Encode(), headers...)
		return status
	}
	if status := order(""); status != http.StatusUnauthorized {
		t.Errorf("without a login: %d", status)
	}
	if _, body := g.get(t, "/rollouts/r1"); strings.Contains(body, "<button name=\"order\"") || !strings.Contains(body, "Sign in") {
		t.Error("the buttons are there without a login")
	}
	g.signIn(t)
	token := g.token(t, "/rollouts/r1")
	for name, status := range map[string]int{
		"without the token": order(""),
		"a wrong token":     order(strings.Repeat("A", len(token))),
		"another site":      order(token, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"),
		"an old browser":    order(token, "Origin", "https://evil.example"),
	} {
		if status != http.StatusForbidden {
			t.Errorf("%s: %d", name, status)
		}
	}
	if given := g.orders(t, "r1"); len(given) != 0 {
		t.Fatalf("orders were given: %v", given)
	}
	if status := order(token, "Origin", g.url, "Sec-Fetch-Site", "same-origin"); status != http.StatusSeeOther {
		t.Errorf("an order: %d", status)
	}
	if given := g.orders(t, "r1"); len(given) != 1 || given[0] != "abort by anna" {
		t.Errorf("%v", given)
	}
	run.State, run.Ended = rollout.Aborted, time.Now()
	g.roll(t, run)
	if status := order(token); status != http.StatusConflict {
		t.Errorf("an order to one that has ended: %d", status)
	}
	// A cookie that somebody has kept is worth nothing after signing out.
	u, err := url.Parse(g.url)
	if err != nil {
		t.Fatal(err)
	}
	cookie := g.client.Jar.Cookies(u)[0]
	if status, _, _ := g.do(t, http.MethodPost, "/logout", "token="+url.QueryEscape(token)); status != http.StatusSeeOther {
		t.Errorf("signing out: %d", status)
	}
	if _, body := g.get(t, "/", "Cookie", cookie.Name+"="+cookie.Value); strings.Contains(body, "Sign out") {
		t.Error("the session goes on after its end")
	}
}

func TestThePageOffersTheOrdersThatARolloutTakes(t *testing.T) {
	t.Parallel()
	for state, want := range map[rollout.State]string{
		rollout.Planned: "abort", rollout.Running: "pause abort", rollout.Pausing: "resume abort", rollout.Paused: "resume abort",
		rollout.Stopping: "resume abort", rollout.Stopped: "resume abort", rollout.Reverting: "abort", rollout.Aborting: "", rollout.Done: "", rollout.Failed: "", rollout.Aborted: "",
	} {
		var offered []string
		for _, verb := range []rollout.Verb{rollout.Pause, rollout.Resume, rollout.Abort} {
			if can(rollout.Rollout{State: state}, string(verb)) {
				offered = append(offered, string(verb))
			}
		}
		if got := strings.Join(offered, " "); got != want {
			t.Errorf("%s: %s, want %s", state, got, want)
		}
	}
}

func TestASessionCookieCannotBeReadOrSentByOthers(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t)})
	_, _, h := g.do(t, http.MethodPost, "/login", url.Values{"user": {"anna"}, "password": {password}, "next": {"//evil.example/x"}}.Encode())
	cookie := h.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("%s lacks %s", cookie, want)
		}
	}
	if to := h.Get("Location"); to != "/" {
		t.Errorf("signing in leads to %s", to)
	}
	value := strings.TrimPrefix(strings.Split(cookie, ";")[0], sessionCookie+"=")
	payload, mac, _ := strings.Cut(value, ".")
	fresh := newRig(t, Access{File: g.server.o.Access.File}) // a restart
	for name, c := range map[string]string{"": "", "no mac": payload, "another mac": payload + "." + strings.Repeat("A", len(mac)), "another payload": "e30." + mac, "nonsense": "..", "long": strings.Repeat("a", 5000) + "." + mac} {
		if _, body := g.get(t, "/", "Cookie", sessionCookie+"="+c); strings.Contains(body, "Sign out") && name != "" {
			t.Errorf("%s is a session", name)
		}
	}
	if _, body := fresh.get(t, "/", "Cookie", sessionCookie+"="+value); strings.Contains(body, "Sign out") {
		t.Error("a cookie of another process is a session")
	}
	if _, body := g.get(t, "/"); !strings.Contains(body, "Sign out") {
		t.Fatal("there is no session")
	}
	// Another password ends the sessions of the old one.
	line, err := HashLogin("anna", "another good password")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.server.o.Access.File, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, body := g.get(t, "/"); strings.Contains(body, "Sign out") {
		t.Error("the session outlives its password")
	}
}

func TestGuessingAPasswordIsSlow(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t)})
	counts := map[int]int{}
	for i := range 9 {
		status, _, h := g.do(t, http.MethodPost, "/login", url.Values{"user": {[]string{"anna", "nobody"}[i%2]}, "password": {fmt.Sprint("guess", i)}}.Encode())
		counts[status]++
		if status == http.StatusTooManyRequests && h.Get("Retry-After") == "" {
			t.Error("nothing says when to try again")
		}
	}
	if counts[http.StatusUnauthorized] != 5 || counts[http.StatusTooManyRequests] != 4 {
		t.Errorf("%v", counts)
	}
}

func TestLoginsThatCannotBeReadAreNoWrongPassword(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t)})
	if err := os.Chmod(g.server.o.Access.File, 0o666); err != nil { // others can write it
		t.Fatal(err)
	}
	status, body, _ := g.do(t, http.MethodPost, "/login", url.Values{"user": {"anna"}, "password": {password}}.Encode())
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "The log of agnesctl fleet serve says why.") || strings.Contains(body, g.server.o.Access.File) {
		t.Errorf("%d %s", status, body)
	}
}

func TestALoginCalledOperatorScrapes(t *testing.T) {
	t.Parallel()
	line, err := HashLogin(Operator, password)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "logins")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	basic := &http.Request{Header: http.Header{}}
	basic.SetBasicAuth(Operator, password)
	for want, access := range map[int]Access{http.StatusOK: {File: file, Closed: true}, http.StatusUnauthorized: {File: file, Once: password, Closed: true}} {
		if status, _ := newRig(t, access).get(t, "/metrics", "Authorization", basic.Header.Get("Authorization")); status != want {
			t.Errorf("%d, want %d", status, want)
		}
	}
}

func TestBehindAProxyOneStrangerLocksNobodyElseOut(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t), Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	try := func(from, password string) int {
		status, _, _ := g.do(t, http.MethodPost, "/login", url.Values{"user": {"anna"}, "password": {password}}.Encode(), "X-Forwarded-For", from)
		return status
	}
	for i := range 6 { // each from another address of its own network
		try(fmt.Sprintf("2001:db8:1:2::%d", i), "a guess")
	}
	if a, b := try("2001:db8:1:2::9", password), try("2001:db8:1:3::1", password); a != http.StatusTooManyRequests || b != http.StatusSeeOther {
		t.Errorf("the stranger: %d, anna: %d", a, b)
	}
}

func TestASessionCookieIsSecureWhereThePageIsReachedByHTTPS(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t), Hosts: []string{"fleet.acme.com"}, Secure: true})
	for host, want := range map[string]bool{"fleet.acme.com": true, "localhost": false} {
		_, _, h := g.do(t, http.MethodPost, "/login", url.Values{"user": {"anna"}, "password": {password}}.Encode(), "Host", host)
		if cookie := h.Get("Set-Cookie"); strings.Contains(cookie, "; Secure") != want || cookie == "" {
			t.Errorf("%s: %s", host, cookie)
		}
	}
}

func TestAPasswordForOneSessionOpensOne(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{Once: "tiger-tiger"})
	try := func(p string) int {
		status, _, _ := g.do(t, http.MethodPost, "/login", url.Values{"password": {p}}.Encode())
		return status
	}
	if a, b, c := try("lion-lion"), try("tiger-tiger"), try("tiger-tiger"); a != http.StatusUnauthorized || b != http.StatusSeeOther || c != http.StatusUnauthorized {
		t.Errorf("%d %d %d", a, b, c)
	}
	if _, body := g.get(t, "/"); !strings.Contains(body, Operator) {
		t.Error("the first session has ended")
	}
}

func TestAClosedPageTellsNothingWithoutALogin(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{File: loginFile(t), Closed: true}, healthy("acme", "2026.04.3"))
	g.server.Report(problem.New(problem.Usage, "parts/acme.yaml:3:1: expected an instance.", "Mend it."))
	for _, path := range []string{"/", "/i/acme", "/rollouts", "/rollouts/x", "/incidents", "/events", "/metrics", "/sd", "/login", "/nowhere", "/assets/nothing"} {
		if status, body := g.get(t, path); strings.Contains(body, "acme.") || strings.Contains(body, "fleet.yaml") || status == http.StatusOK && path != "/login" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, h := g.do(t, http.MethodGet, "/i/acme?x=1", ""); status != http.StatusSeeOther || h.Get("Location") != "/login?next=%2Fi%2Facme%3Fx%3D1" {
		t.Errorf("%d %s", status, h.Get("Location"))
	}
	if status, body := g.get(t, "/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %s", status, body)
	}
	basic := &http.Request{Header: http.Header{}}
	basic.SetBasicAuth("anna", password)
	for range 20 { // a program signs in with each request, and is not slowed down
		if status, body := g.get(t, "/metrics", "Authorization", basic.Header.Get("Authorization")); status != http.StatusOK || !strings.Contains(body, `name="acme"`) {
			t.Fatalf("%d %s", status, body)
		}
	}
	basic.SetBasicAuth("anna", "wrong")
	if status, _ := g.get(t, "/metrics", "Authorization", basic.Header.Get("Authorization")); status != http.StatusUnauthorized {
		t.Errorf("%d", status)
	}
	// A link on another site brings no cookie: the page asks itself again.
	if status, body, h := g.do(t, http.MethodGet, "/i/acme", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"); status != http.StatusOK || body != "" || h.Get("Refresh") != "0; url=/i/acme" {
		t.Errorf("%d %v", status, h)
	}
	g.signIn(t)
	if status, body := g.get(t, "/i/acme"); status != http.StatusOK || !strings.Contains(body, "acme") {
		t.Errorf("%d", status)
	}
}

func TestAnotherSitesNameIsNotServed(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{Hosts: []string{"Fleet.acme.com"}}, healthy("acme", "2026.04.3"))
	for host, want := range map[string]int{"127.0.0.1:8800": 200, "localhost": 200, "[::1]:8800": 200, "fleet.acme.com": 200, "FLEET.acme.com:443": 200, "evil.example": 400, "127.0.0.1.evil.example:8800": 400} {
		if status, body := g.get(t, "/", "Host", host); status != want || strings.Contains(body, "fleet.yaml") != (want == http.StatusOK) {
			t.Errorf("%s: %d, want %d: %s", host, status, want, body)
		}
	}
}

func TestThemeIsKeptWithoutJavaScript(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{})
	status, _, h := g.do(t, http.MethodPost, "/theme", "to=dark&next=%2Frollouts")
	if status != http.StatusSeeOther || h.Get("Location") != "/rollouts" {
		t.Errorf("%d %v", status, h)
	}
	if _, body := g.get(t, "/"); !strings.Contains(body, `<html lang="en" data-theme="dark">`) {
		t.Error("it is not dark")
	}
}
