package smoke_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// bubble runs a smoke test in memory, by a clock that jumps.
func bubble(t *testing.T, in func(t *testing.T, i *smoketest.Instance, o smoke.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		i := smoketest.New()
		dial, closeServer := smoketest.Pipe(i)
		defer closeServer()
		in(t, i, smoke.Options{
			URL: "http://agnes.test", Dial: dial, Account: smoke.Account{Email: smoketest.Email, Password: smoketest.Password},
		})
	})
}

// wants compares verdict and the step that it comes from, and looks for secrets.
func wants(t *testing.T, r smoke.Report, verdict smoke.Verdict, step, detail string) {
	t.Helper()
	failed := smoke.Step{}
	if f := r.Failed(); f != nil {
		failed = *f
	}
	if r.Verdict != verdict || failed.Name != step || !strings.Contains(failed.Detail, detail) {
		t.Errorf("verdict %s at %q: %q, want %s at %q: %q\n%s", r.Verdict, failed.Name, failed.Detail, verdict, step, detail, dump(r))
	}
	noSecrets(t, r)
}

func dump(r smoke.Report) string {
	out, _ := json.MarshalIndent(r, "", " ")
	return string(out)
}

func noSecrets(t *testing.T, r smoke.Report) {
	t.Helper()
	text := fmt.Sprintf("%+v %s", r, dump(r))
	quoted, _ := json.Marshal(smoketest.Password.Reveal())
	for _, secret := range []string{
		smoketest.Password.Reveal(), strings.Trim(string(quoted), `"`), smoketest.AdminToken.Reveal(), "agnes-session-", "half-of-a-tok",
	} {
		if strings.Contains(text, secret) {
			t.Errorf("the report holds the secret %s:\n%s", secret, text)
		}
	}
}

func names(r smoke.Report) (all, skipped []string) {
	for _, s := range r.Steps {
		all = append(all, s.Name)
		if s.Skipped {
			skipped = append(skipped, s.Name)
		}
	}
	return all, skipped
}

func TestLiteReadsOnly(t *testing.T) {
	t.Parallel()
	lite := func(t *testing.T, change func(*smoketest.Instance, *smoke.Options)) (smoke.Report, []string) {
		t.Helper()
		var report smoke.Report
		var calls []string
		bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
			o.Profile, o.Account, o.AdminToken = smoke.Lite, smoke.Account{}, smoketest.AdminToken
			change(i, &o)
			report, calls = smoke.Run(t.Context(), o), i.Requests()
		})
		return report, calls
	}
	r, calls := lite(t, func(*smoketest.Instance, *smoke.Options) {})
	wants(t, r, smoke.Pass, "", "")
	if got := strings.Join(calls, ", "); got != "GET /api/health, GET /api/health/details, GET /api/catalog/tables, POST /api/query" {
		t.Errorf("it called %s", got)
	}
	for name, tt := range map[string]struct {
		change  func(*smoketest.Instance, *smoke.Options)
		verdict smoke.Verdict
		step    string
		detail  string
	}{
		"no table":      {func(i *smoketest.Instance, _ *smoke.Options) { i.Empty() }, smoke.Fail, smoke.StepCatalog, "found a count of 0"},
		"a wrong token": {func(_ *smoketest.Instance, o *smoke.Options) { o.AdminToken = "half-of-a-tok" }, smoke.Inconclusive, smoke.StepToken, "401"},
		"no token":      {func(_ *smoketest.Instance, o *smoke.Options) { o.AdminToken = "" }, smoke.Inconclusive, smoke.StepToken, "found none"},
		"an account":    {func(_ *smoketest.Instance, o *smoke.Options) { o.Account.Email = smoketest.Email }, smoke.Inconclusive, smoke.StepToken, "signs nobody in"},
		"not set up": {func(i *smoketest.Instance, _ *smoke.Options) {
			i.Change(func(k *smoketest.Knobs) { k.SetupRequired = true })
		}, smoke.Fail, smoke.StepToken, "first admin"},
		"a wrong answer": {func(i *smoketest.Instance, _ *smoke.Options) {
			i.Break("POST /api/query", 1, smoketest.Problem(500, "internal", "It broke."))
		}, smoke.Fail, smoke.StepQuery, "500"},
	} {
		r, _ := lite(t, tt.change)
		t.Log(name)
		wants(t, r, tt.verdict, tt.step, tt.detail)
	}
}

func TestAGoodInstancePasses(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncTakes = 12 * time.Second })
		var seen []string
		o.Progress = func(s smoke.Step) { seen = append(seen, s.Name) }
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		all, _ := names(r)
		if want := []string{"health", "token", "catalog", "query", "sync", "wait", "health-after"}; !slices.Equal(all, want) || !slices.Equal(seen, want) {
			t.Errorf("steps %v, progress %v, want %v", all, seen, want)
		}
		for _, s := range r.Steps {
			if !s.OK || s.Verdict != smoke.Pass || s.Status != 200 || s.Detail == "" || s.Request == "" || s.Response == "" {
				t.Errorf("step %+v is not filled in", s)
			}
		}
		if r.Version != smoketest.Version || r.Profile != "full" || r.URL != "http://agnes.test" || r.ElapsedMS < 12_000 || r.Steps[5].ElapsedMS > 14_000 {
			t.Errorf("the report is %s", dump(r))
		}
		if !strings.Contains(r.Steps[1].Request, `"password":"[redacted]"`) || !strings.Contains(r.Steps[1].Response, `"access_token":"[redacted]"`) {
			t.Errorf("the token's step is %+v", r.Steps[1])
		}
	})
}

func TestReadOnlyStartsNoSyncAndDoesNotWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		o.Profile, o.Account, o.AdminToken = smoke.ReadOnly, smoke.Account{}, smoketest.AdminToken
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		if all, _ := names(r); !slices.Equal(all, []string{"health", "token", "catalog", "query", "health-after"}) || r.Profile != "readonly" || r.ElapsedMS != 0 {
			t.Errorf("the report is %s", dump(r))
		}
		if slices.Contains(i.Requests(), "POST /api/sync/trigger") {
			t.Errorf("a sync was triggered: %v", i.Requests())
		}
	})
}

func TestEachStepIsJudgedByWhatTheInstanceAnswers(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name, call string
		nth        int
		seconds    int64 // that its deadline allows
	}{
		{"health", "GET /api/health", 1, 10},
		{"token", "POST /auth/token", 1, 10},
		{"catalog", "GET /api/catalog/tables", 1, 30},
		{"query", "POST /api/query", 1, 30},
		{"sync", "POST /api/sync/trigger", 1, 10},
		{"wait", "GET /api/sync/jobs/", 1, 10},
		{"wait", "GET /api/catalog/tables", 2, 30},
		{"health-after", "GET /api/health", 2, 10},
	}
	faults := []struct {
		name    string
		fault   smoketest.Fault
		verdict smoke.Verdict
		detail  string
	}{
		{"500", smoketest.Problem(500, "internal", "It broke."), smoke.Fail, "found 500: It broke."},
		{"503 of a proxy", smoketest.Answer(503, "text/html", "<h1>no upstream</h1>"), smoke.Fail, "found 503."},
		{"404", smoketest.Problem(404, "not_found", "No such path."), smoke.Fail, "found 404"},
		{"401 to a token that it gave itself", smoketest.Problem(401, "invalid_token", "The token is not valid."), smoke.Fail, "found 401"},
		{"200 with a page", smoketest.Page(), smoke.Fail, "Expected the JSON"},
		{"200 with nothing", smoketest.Answer(200, "application/json", ""), smoke.Fail, "Expected the JSON"},
		{"200 with an empty object", smoketest.Answer(200, "application/json", "{}"), smoke.Fail, ""},
		{"200 with null", smoketest.Answer(200, "application/json", "null"), smoke.Fail, ""},
		{"200 with other types", smoketest.Answer(200, "application/json", `{"status":[],"access_token":1,"count":"x","rows":1,"job_id":{},"id":2,"tables":5}`), smoke.Fail, "Expected the JSON"},
		{"two answers in one", smoketest.Answer(200, "application/json", `{"status":"healthy"}{"status":"healthy"}`), smoke.Fail, "more follows"},
		{"silence", smoketest.Silent(), smoke.Fail, "found none"},
		{"a cut connection", smoketest.Cut(), smoke.Fail, "broke"},
		{"a redirect on the spot", smoketest.Redirect("/login"), smoke.Fail, "found 308"},
		{"a redirect away", smoketest.Redirect("https://elsewhere.test/api"), smoke.Inconclusive, "https://elsewhere.test/api"},
		{"429", smoketest.Problem(429, "rate_limited", "Too many attempts."), smoke.Inconclusive, "Too many attempts"},
	}
	for _, s := range steps {
		for _, f := range faults {
			t.Run(s.name+" "+s.call+" with "+f.name, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
					i.Break(s.call, s.nth, f.fault)
					verdict := f.verdict
					if strings.HasPrefix(f.name, "401") && (s.name == "token" || s.name == "sync") {
						verdict = smoke.Inconclusive // there the given account is what is refused
					}
					r := smoke.Run(t.Context(), o)
					wants(t, r, verdict, s.name, f.detail)
					all, skipped := names(r)
					at := slices.Index(all, s.name)
					if len(all) != 7 || !slices.Equal(skipped, all[at+1:]) {
						t.Errorf("steps %v, not run %v, want all after %s", all, skipped, s.name)
					}
					if took := r.Steps[at].ElapsedMS / 1000; f.name == "silence" && took != s.seconds {
						t.Errorf("the step gave up after %d s, want %d", took, s.seconds)
					}
				})
			})
		}
	}
}

func TestWhatAnAnswerMayAndMayNotSay(t *testing.T) {
	t.Parallel()
	const ok = 200
	json := func(body string) smoketest.Fault { return smoketest.Answer(ok, "application/json", body) }
	for name, tt := range map[string]struct {
		call    string
		fault   smoketest.Fault
		verdict smoke.Verdict
		step    string
	}{
		"unknown fields are none of its business": {"POST /api/query", json(`{"rows":[[1]],"row_count":1,"new":{"a":[]}}`), smoke.Pass, ""},
		"a degraded start":                        {"GET /api/health", json(`{"status":"degraded","services":{"disk":{"status":"degraded","detail":"d"}},"warnings":["d"]}`), smoke.Pass, ""},
		"an unhealthy start":                      {"GET /api/health", json(`{"status":"unhealthy","warnings":["The disk is full."]}`), smoke.Fail, "health"},
		"a status of another world":               {"GET /api/health", json(`{"status":"ok"}`), smoke.Fail, "health"},
		"an empty catalog":                        {"GET /api/catalog/tables", json(`{"tables":[],"count":0}`), smoke.Fail, "catalog"},
		"a catalog that counts what it lacks":     {"GET /api/catalog/tables", json(`{"tables":[],"count":3}`), smoke.Fail, "catalog"},
		"two rows":                                {"POST /api/query", json(`{"rows":[[1],[1]],"row_count":2}`), smoke.Fail, "query"},
		"another number":                          {"POST /api/query", json(`{"rows":[[2]],"row_count":1}`), smoke.Fail, "query"},
		"a text":                                  {"POST /api/query", json(`{"rows":[["1"]],"row_count":1}`), smoke.Fail, "query"},
		"no row":                                  {"POST /api/query", json(`{"rows":[],"row_count":0}`), smoke.Fail, "query"},
		"a token of another kind":                 {"POST /auth/token", json(`{"access_token":"agnes-session-x","token_type":"mac"}`), smoke.Fail, "token"},
		"a job of someone else":                   {"GET /api/sync/jobs/", json(`{"id":"job-9","status":"succeeded","tables":[{"id":"orders","status":"unchanged"}]}`), smoke.Fail, "wait"},
		"a job without tables":                    {"GET /api/sync/jobs/", json(`{"id":"job-1","status":"succeeded","tables":[]}`), smoke.Fail, "wait"},
		"a job in limbo":                          {"GET /api/sync/jobs/", json(`{"id":"job-1","status":"paused"}`), smoke.Fail, "wait"},
		"a 409 that is no sync":                   {"POST /api/sync/trigger", smoketest.Problem(409, "conflict", "No."), smoke.Fail, "sync"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
				i.Break(tt.call, 1, tt.fault)
				wants(t, smoke.Run(t.Context(), o), tt.verdict, tt.step, "")
			})
		})
	}
}

func TestTheSync(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		knobs   func(*smoketest.Knobs)
		verdict smoke.Verdict
		step    string
		detail  string
	}{
		"fails":                {func(k *smoketest.Knobs) { k.SyncFails = true }, smoke.Fail, "wait", "The folder cannot be read. customers: cannot be read"},
		"leaves stale data":    {func(k *smoketest.Knobs) { k.SyncStale = true }, smoke.Fail, "wait", "customers is stale: Its Parquet file is damaged."},
		"lies":                 {func(k *smoketest.Knobs) { k.SyncLies = true }, smoke.Fail, "wait", "still has the data of 1999-12-31"},
		"finds nothing new":    {func(k *smoketest.Knobs) { k.SyncUnchanged = true }, smoke.Pass, "", ""},
		"hangs":                {func(k *smoketest.Knobs) { k.SyncHangs, k.NoPhase = true, true }, smoke.Fail, "wait", "does not get on"},
		"is slow, old phase":   {func(k *smoketest.Knobs) { k.SyncTakes, k.NoPhase = time.Hour, true }, smoke.Pass, "", ""},
		"is slow at the start": {func(k *smoketest.Knobs) { k.SyncHangs = true }, smoke.Pass, "", ""}, // health says syncing
		"meets a drain":        {func(k *smoketest.Knobs) { k.Draining = true }, smoke.Inconclusive, "sync", "draining"},
		"makes a service worse": {func(k *smoketest.Knobs) {
			k.AfterSync = func(k *smoketest.Knobs) {
				k.Services = map[string]api.ServiceHealth{"disk": {Status: api.Degraded, Detail: "The disk is nearly full."}}
			}
		}, smoke.Fail, "health-after", "disk is degraded: The disk is nearly full."},
		"brings a warning": {func(k *smoketest.Knobs) {
			k.AfterSync = func(k *smoketest.Knobs) { k.Warnings = append(k.Warnings, "The log was torn.") }
		}, smoke.Fail, "health-after", "New warning: The log was torn."},
		"brings old age": {func(k *smoketest.Knobs) {
			k.AfterSync = func(k *smoketest.Knobs) {
				k.Warnings = []string{"Running deprecated version 2026.04.3. Update to stable."}
			}
		}, smoke.Pass, "", ""},
		"keeps a warning": {func(k *smoketest.Knobs) {
			k.Warnings = []string{"Only 12 MB left of 100."}
			k.AfterSync = func(k *smoketest.Knobs) { k.Warnings = []string{"Only 11 MB left of 100."} }
		}, smoke.Pass, "", ""},
		"doubles a warning": {func(k *smoketest.Knobs) {
			k.Warnings = []string{"Volume 1 is slow."}
			k.AfterSync = func(k *smoketest.Knobs) { k.Warnings = append(k.Warnings, "Volume 2 is slow.") }
		}, smoke.Fail, "health-after", "New warning"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
				i.Change(tt.knobs)
				wants(t, smoke.Run(t.Context(), o), tt.verdict, tt.step, tt.detail)
			})
		})
	}
}

func TestAnAnswerWithoutEndIsNotReadToIt(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Break("POST /api/query", 1, smoketest.Answer(200, "application/json", `{"rows":[[1]],"row_count":1}`+strings.Repeat(" ", 17<<20)))
		wants(t, smoke.Run(t.Context(), o), smoke.Fail, "query", "larger than 16 MiB")
	})
}

// A server that sends back what it was sent, in each form.
func TestAnInstanceThatRepeatsSecretsIsNotQuoted(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"bad password " + smoketest.Password.Reveal(),
		"bad password=" + url.QueryEscape(smoketest.Password.Reveal()),
		`{"status":400,"detail":"bad token agnes-session-00-0123456789 and S3cure \"Pass\"/123"}`,
		strings.Repeat("x", 2040) + smoketest.Password.Reveal(),
	} {
		bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
			i.Break("POST /api/query", 1, smoketest.Answer(400, "text/plain", body))
			r := smoke.Run(t.Context(), o)
			wants(t, r, smoke.Fail, "query", "found 400")
			if text := dump(r); strings.Contains(text, "S3cure") || strings.Contains(text, "S3cu") {
				t.Errorf("the report holds a part of the password:\n%s", text)
			}
		})
	}
}

func TestDataThatGoBackInTimeAreStale(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncUnchanged = true })
		i.Break("GET /api/catalog/tables", 2, smoketest.Answer(200, "application/json",
			`{"count":2,"tables":[{"id":"orders","last_sync":"1999-01-01T00:00:00Z"},{"id":"customers","last_sync":"2000-01-01T00:00:00Z"}]}`))
		wants(t, smoke.Run(t.Context(), o), smoke.Fail, "wait", "orders went back")
	})
}

// The data of a sync that ran already are published before its job ends, so that
// the catalog may have shown them from the start.
func TestASyncThatRunsAlreadyMayHavePublished(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncTakes, k.SyncLies = 5*time.Second, true })
		i.StartSync()
		fresh := time.Now().Add(time.Second).UTC().Format(time.RFC3339)
		i.Break("GET /api/catalog/tables", 1, smoketest.Answer(200, "application/json",
			`{"count":2,"tables":[{"id":"orders","last_sync":"`+fresh+`"},{"id":"customers","last_sync":"`+fresh+`"}]}`))
		wants(t, smoke.Run(t.Context(), o), smoke.Pass, "", "")
	})
}

func TestASyncThatRunsAlreadyIsFollowed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncTakes = 8 * time.Second })
		i.StartSync()
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		if s := r.Steps[4]; !strings.Contains(s.Detail, "job-1 ran already") || !strings.Contains(r.Steps[5].Detail, "job-1 succeeded") {
			t.Errorf("the steps are %+v and %+v", s, r.Steps[5])
		}
	})
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncTakes, k.SyncFails = 8*time.Second, true })
		i.StartSync()
		wants(t, smoke.Run(t.Context(), o), smoke.Fail, "wait", "job-1 ended as failed")
	})
}

func TestNewErrorsAreThoseThatTheBaselineLacks(t *testing.T) {
	t.Parallel()
	bad := map[string]api.ServiceHealth{"disk": {Status: api.Degraded, Detail: "The disk is nearly full: 12 MB free."}}
	for name, tt := range map[string]struct {
		baseline *api.Health
		verdict  smoke.Verdict
		step     string
	}{
		"without one, the first step's health is it": {nil, smoke.Pass, ""},
		"it was as bad before":                       {&api.Health{Status: api.Degraded, Services: bad, Warnings: []string{"The disk is nearly full: 15 MB free."}}, smoke.Pass, ""},
		"it was as bad before, in other words":       {&api.Health{Status: api.Degraded, Services: bad, Warnings: []string{"Hardly any room."}}, smoke.Pass, ""},
		"it was good before":                         {&api.Health{Status: api.Healthy}, smoke.Fail, "health-after"},
		"another part was bad before":                {&api.Health{Status: api.Degraded, Services: map[string]api.ServiceHealth{"sync": {Status: api.Degraded}}}, smoke.Fail, "health-after"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
				i.Change(func(k *smoketest.Knobs) { k.Services = bad })
				o.Baseline = tt.baseline
				wants(t, smoke.Run(t.Context(), o), tt.verdict, tt.step, "")
			})
		})
	}
}

func TestSetupModeFailsWithTheWayOut(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SetupRequired = true })
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Fail, "token", "waits for its first admin")
		if !strings.Contains(r.Failed().Hint, "agnesctl instance setup --url http://agnes.test") {
			t.Errorf("the hint is %q", r.Failed().Hint)
		}
	})
}

func TestCredentialsThatDoNotWorkSayNothingOfTheRelease(t *testing.T) {
	t.Parallel()
	analyst := api.User{ID: "u7", Email: "analyst@company.com", Role: api.RoleAnalyst}
	for name, tt := range map[string]struct {
		account smoke.Account
		token   redact.Secret
		step    string
		detail  string
	}{
		"a wrong password":    {smoke.Account{Email: smoketest.Email, Password: "not-the-password"}, "", "token", "found 401"},
		"a wrong admin token": {smoke.Account{}, "agnes_operator_of_yesterday", "token", "found 401"},
		"an analyst":          {smoke.Account{Email: analyst.Email, Password: "analyst-password"}, "", "sync", "found 403"},
		"none":                {smoke.Account{}, "", "token", "found neither"},
		"too many":            {smoke.Account{Email: smoketest.Email, Password: smoketest.Password}, smoketest.AdminToken, "token", "found both"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
				i.AddUser(analyst, "analyst-password")
				o.Account, o.AdminToken = tt.account, tt.token
				wants(t, smoke.Run(t.Context(), o), smoke.Inconclusive, tt.step, tt.detail)
			})
		})
	}
}

func TestTheWayToTheInstance(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		err     error
		verdict smoke.Verdict
		detail  string
	}{
		"refused by the host":          {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, smoke.Fail, "Nothing listens"},
		"refused at the tunnel's end":  {errors.New("ssh: rejected: connect failed (Connection refused)"), smoke.Fail, "Nothing listens"},
		"no such name":                 {&net.DNSError{Err: "no such host", Name: "agnes.test", IsNotFound: true}, smoke.Inconclusive, "agnes.test cannot be resolved"},
		"the tunnel is down":           {errors.New("ssh: connection lost"), smoke.Inconclusive, "connection lost"},
		"no route":                     {&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, smoke.Inconclusive, "no route to host"},
		"reset before it is connected": {&net.OpError{Op: "dial", Err: syscall.ECONNRESET}, smoke.Inconclusive, "reset"},
		"a dial that takes for ever":   {nil, smoke.Inconclusive, "within 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, _ *smoketest.Instance, o smoke.Options) {
				o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
					if tt.err == nil {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return nil, tt.err
				}
				r := smoke.Run(t.Context(), o)
				wants(t, r, tt.verdict, "health", tt.detail)
				if r.Version != "" || r.Steps[0].Status != 0 {
					t.Errorf("the report is %s", dump(r))
				}
			})
		})
	}
}

func TestAnAddressThatIsNone(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "agnes.test", "ftp://agnes.test", "http://me:sekrit-word@agnes.test", "http://[::1"} {
		r := smoke.Run(t.Context(), smoke.Options{URL: address, AdminToken: smoketest.AdminToken})
		wants(t, r, smoke.Inconclusive, "health", "address cannot be used")
		if strings.Contains(dump(r), "sekrit-word") {
			t.Errorf("the report holds the address's password: %s", dump(r))
		}
	}
}

func TestACanceledTestIsInconclusive(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.SyncTakes = time.Hour })
		o.Account, o.AdminToken = smoke.Account{}, smoketest.AdminToken
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r := smoke.Run(ctx, o)
		wants(t, r, smoke.Inconclusive, "wait", "was ended")
		if r.ElapsedMS != 5000 || !slices.Equal(i.Emails(), []string{smoketest.Email}) {
			t.Errorf("it ended after %d ms; accounts %v", r.ElapsedMS, i.Emails())
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		wants(t, smoke.Run(ctx, o), smoke.Inconclusive, "health", "was ended")
	})
}
