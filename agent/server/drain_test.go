package server_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func (w *world) drain(token string, req api.DrainRequest) (out api.Drain) {
	w.t.Helper()
	w.call("POST", "/api/admin/drain", token, req).into(w.t, &out)
	return out
}

func (w *world) phase() string {
	w.t.Helper()
	var h api.Health
	w.call("GET", "/api/health", "", nil).into(w.t, &h)
	return h.Phase
}

func TestADrainHoldsChangesBackAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	analyst, analystID := w.analyst(admin, "ana@company.com", "orders")
	var tok api.CreatedToken
	w.call("POST", "/auth/tokens", admin, map[string]string{"name": "program"}).into(t, &tok)
	w.source.set("later", "SELECT 1 AS id") // for a discovery to find
	var before api.Health
	w.call("GET", "/api/health", "", nil).into(t, &before)
	if before.Phase != api.PhaseServing {
		t.Errorf("phase = %q, want serving", before.Phase)
	}

	client, err := api.NewClient(w.url, api.WithToken(redact.Secret(w.operator())))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d, err := client.Drain(t.Context(), api.DrainRequest{Drain: true})
	if err != nil || !d.Draining || d.SyncRunning || d.JobID != "" || d.Until == nil || d.Until.Before(began.Add(14*time.Minute)) || d.Until.After(time.Now().Add(15*time.Minute)) {
		t.Fatalf("drain = %+v, %v; want one of 15 minutes without a sync", d, err)
	}
	changes := []struct {
		method, path, token string
		body                any
	}{
		{"POST", "/api/sync/trigger", admin, nil},
		{"POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/other"}},
		{"POST", "/api/admin/discover-and-register", admin, nil},
		{"POST", "/api/admin/register-table", admin, map[string]string{"source": "csv", "source_table": "new"}},
		{"PUT", "/api/admin/registry/orders", admin, map[string]any{"enabled": false}},
		{"DELETE", "/api/admin/registry/orders", admin, nil},
		{"POST", "/api/users", admin, map[string]string{"email": "ben@company.com", "role": "analyst"}},
		{"PATCH", "/api/users/" + analystID, admin, map[string]string{"name": "Ana"}},
		{"POST", "/auth/tokens", analyst, map[string]string{"name": "mine"}},
		{"DELETE", "/api/users/" + analystID, admin, nil},
		{"DELETE", "/auth/tokens/" + tok.ID, admin, nil},
	}
	for _, c := range changes {
		r := w.call(c.method, c.path, c.token, c.body)
		if p := r.problem(t); r.status != http.StatusConflict || p.Code != "draining" || !strings.Contains(p.Hint, `"drain":false`) || r.header.Get("Retry-After") == "" {
			t.Errorf("%s %s = %d %s, want 409 draining with a hint and Retry-After", c.method, c.path, r.status, r.body)
		}
	}
	if out, r := w.query(analyst, "SELECT count(*) FROM orders"); fmt.Sprint(out.Rows) != "[[100]]" {
		t.Errorf("a query during a drain = %d %s", r.status, r.body)
	}
	w.call("POST", "/api/admin/backup", admin, api.BackupRequest{}).into(t, &api.Backup{})
	w.call("POST", "/api/admin/discover-and-register?dry_run=true", admin, nil).into(t, &api.Discovery{})
	w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files"}).into(t, &api.ConfigureResponse{})
	var signedIn api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": "ana@company.com", "password": "another-password"}).into(t, &signedIn)
	if r := w.call("POST", "/auth/logout", signedIn.AccessToken, nil); r.status != http.StatusNoContent {
		t.Errorf("sign out during a drain = %d %s", r.status, r.body)
	}
	var during api.Health
	w.call("GET", "/api/health", "", nil).into(t, &during)
	if during.Phase != api.PhaseDraining || during.Status != before.Status || len(during.Warnings) != len(before.Warnings) {
		t.Errorf("health = %+v, want the status of before and the phase draining", during)
	}
	if r := w.call("GET", "/readyz", "", nil); r.status != http.StatusOK {
		t.Errorf("/readyz = %d during a drain, want 200", r.status)
	}

	if d := w.drain(admin, api.DrainRequest{Drain: true, Seconds: 3600}); d.Until.Before(began.Add(59 * time.Minute)) {
		t.Errorf("a second call = %+v, want it to extend the drain", d)
	}
	if d := w.drain(admin, api.DrainRequest{}); d.Draining || d.Until != nil {
		t.Errorf("the end = %+v", d)
	}
	w.drain(admin, api.DrainRequest{}) // and once more changes nothing
	if p := w.phase(); p != api.PhaseServing {
		t.Errorf("phase after the drain = %q", p)
	}
	for _, c := range changes[1:] {
		if r := w.call(c.method, c.path, c.token, c.body); r.status >= 300 {
			t.Errorf("%s %s after the drain = %d %s", c.method, c.path, r.status, r.body)
		}
	}
	if n := len(w.audited(admin, "drain.begin")); n != 1 {
		t.Errorf("%d drains were audited, want 1: an extension is none", n)
	}
	if e := w.audited(admin, "drain.begin"); e[0].Actor != "operator" {
		t.Errorf("%+v", e)
	}
	if n := len(w.audited(admin, "drain.end")); n != 1 {
		t.Errorf("%d ends were audited, want 1", n)
	}
}

func TestOnlyAdminsDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if d := w.drain(w.operator(), api.DrainRequest{Drain: true}); !d.Draining {
		t.Errorf("in setup mode = %+v", d)
	}
	if p := w.phase(); p != api.PhaseDraining {
		t.Errorf("phase = %q", p)
	}
	if r := w.call("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}); r.status != http.StatusConflict || r.problem(t).Code != "draining" {
		t.Errorf("bootstrap during a drain = %d %s, want 409 draining", r.status, r.body)
	}
	w.drain(w.operator(), api.DrainRequest{})
	if p := w.phase(); p != api.PhaseSetup {
		t.Errorf("phase = %q, want setup", p)
	}
	admin := w.synced()
	analyst, _ := w.analyst(admin, "ana@company.com", "*")
	for token, want := range map[string]int{"": http.StatusUnauthorized, analyst: http.StatusForbidden} {
		if r := w.call("POST", "/api/admin/drain", token, api.DrainRequest{Drain: true}); r.status != want {
			t.Errorf("drain = %d, want %d", r.status, want)
		}
	}
	for _, seconds := range []int{-1, 86401} {
		if r := w.call("POST", "/api/admin/drain", admin, api.DrainRequest{Drain: true, Seconds: seconds}); r.status != http.StatusUnprocessableEntity {
			t.Errorf("%d seconds = %d, want 422", seconds, r.status)
		}
	}
	if p := w.phase(); p != api.PhaseServing {
		t.Errorf("phase = %q, want serving", p)
	}
}

func TestASyncThatRunsWhenADrainBeginsGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.synced()
	hold := make(chan struct{})
	w.source.mu.Lock()
	w.source.hold = hold
	w.source.mu.Unlock()
	var trig api.SyncTriggered
	w.call("POST", "/api/sync/trigger", admin, nil).into(t, &trig)
	if p := w.phase(); p != api.PhaseSyncing {
		t.Errorf("phase = %q, want syncing", p)
	}
	if d := w.drain(admin, api.DrainRequest{Drain: true}); !d.Draining || !d.SyncRunning || d.JobID != trig.JobID {
		t.Errorf("drain = %+v, want the sync %s in it", d, trig.JobID)
	}
	if p := w.phase(); p != api.PhaseDraining {
		t.Errorf("phase = %q, want draining", p)
	}
	close(hold)
	if job := w.wait(admin, trig.JobID); job.Status != api.JobSucceeded {
		t.Errorf("job = %+v", job)
	}
	if d := w.drain(admin, api.DrainRequest{Drain: true}); !d.Draining || d.SyncRunning {
		t.Errorf("drain = %+v, want nothing to wait for", d)
	}
}

// Many try to start syncs and to change users while drains come and go, each
// right when a sync has ended and all want to begin the next: once a drain was
// answered without a sync, there is none, and the state stands still.
func TestADrainLetsNoSyncBegin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.synced()
	operator, err := w.instance.Authenticate(t.Context(), w.operator())
	if err != nil {
		t.Fatal(err)
	}
	won, lost := 0, 0
	refused, stop := make(chan struct{}, 50), make(chan struct{})
	var wg sync.WaitGroup
	hammer := func(try func(n int) error) {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				switch err := try(n); {
				case err == nil:
				case problem.As(err).Code == "sync_already_in_progress":
					w.ended(w.newest(operator).ID)
				case problem.As(err).Code == "draining":
					select {
					case refused <- struct{}{}:
					case <-stop:
					}
				default:
					t.Errorf("unexpected: %v", err)
					return
				}
			}
		})
	}
	for range 4 {
		hammer(func(int) error {
			_, err := w.instance.TriggerSync(t.Context(), operator, api.SyncRequest{})
			return err
		})
	}
	hammer(func(n int) error {
		_, err := w.instance.CreateUser(t.Context(), operator, api.CreateUserRequest{Email: fmt.Sprintf("u%d@company.com", n), Role: api.RoleAnalyst})
		return err
	})
	drain := func(on bool) api.Drain {
		d, err := w.instance.Drain(t.Context(), operator, api.DrainRequest{Drain: on})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for round := range 8 {
		w.ended(w.newest(operator).ID)
		d := drain(true)
		if d.SyncRunning {
			lost++
		} else {
			won++
		}
		for ; d.SyncRunning; d = drain(true) {
			w.ended(d.JobID)
		}
		before, users := w.newest(operator), w.users(operator)
		for n := 0; n < 2*cap(refused) && !t.Failed(); n++ {
			<-refused
		}
		after, usersAfter := w.newest(operator), w.users(operator)
		if before.ID != after.ID || !after.Done() || users != usersAfter {
			t.Errorf("round %d: during a drain the newest job was %s and is %s (%s), users %d and %d", round, before.ID, after.ID, after.Status, users, usersAfter)
			break
		}
		drain(false)
		for len(refused) > 0 {
			<-refused
		}
		for w.newest(operator).ID == after.ID && !t.Failed() {
			runtime.Gosched()
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("8 drains: %d began before the next sync did, %d after", won, lost)
}

// newest returns the sync that was started last.
func (w *world) newest(caller agent.Caller) api.Job {
	w.t.Helper()
	status, err := w.instance.SyncStatus(w.t.Context(), caller)
	if err != nil {
		w.t.Fatal(err)
	}
	return status.Jobs[0]
}

func (w *world) users(caller agent.Caller) int {
	w.t.Helper()
	users, err := w.instance.Users(w.t.Context(), caller)
	if err != nil {
		w.t.Fatal(err)
	}
	return users.Count
}

// ended waits for the end of a job.
func (w *world) ended(id string) {
	w.t.Helper()
	changed, stop := w.instance.WatchJob(id)
	defer stop()
	for {
		job, err := w.instance.Job(w.t.Context(), agent.Caller{}, id)
		if err != nil {
			w.t.Fatal(err)
		}
		if job.Done() {
			return
		}
		<-changed
	}
}

// A start that looks at its source while a drain begins is not one any more.
func TestASyncThatWasAboutToBeginIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files"}).into(t, &api.ConfigureResponse{})
	w.source.mu.Lock()
	w.source.asked = func() {
		if d := w.drain(admin, api.DrainRequest{Drain: true}); d.SyncRunning {
			t.Errorf("drain = %+v, want no sync yet", d)
		}
	}
	w.source.mu.Unlock()
	for _, path := range []string{"/api/sync/trigger", "/api/admin/discover-and-register"} {
		w.drain(admin, api.DrainRequest{})
		if r := w.call("POST", path, admin, nil); r.status != http.StatusConflict || r.problem(t).Code != "draining" {
			t.Errorf("%s = %d %s, want 409 draining", path, r.status, r.body)
		}
	}
	var reg api.Registry
	w.call("GET", "/api/admin/registry", admin, nil).into(t, &reg)
	if reg.Count != 0 {
		t.Errorf("tables were registered during the drain: %+v", reg)
	}
}

func TestTheSyncOfAFirstStartWaitsForTheEndOfADrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *worldOptions) { o.env["AGNES_DATA_SOURCE"] = "csv" })
	admin := w.bootstrap()
	w.drain(admin, api.DrainRequest{Drain: true})
	if err := w.instance.SyncOnStart(t.Context()); err != nil {
		t.Fatal(err)
	}
	var status api.SyncStatus
	w.call("GET", "/api/sync/status", admin, nil).into(t, &status)
	if len(status.Jobs) != 0 {
		t.Fatalf("a sync began during the drain: %+v", status.Jobs)
	}
	w.drain(admin, api.DrainRequest{})
	for len(status.Jobs) == 0 && t.Context().Err() == nil {
		w.call("GET", "/api/sync/status", admin, nil).into(t, &status)
	}
	if job := w.wait(admin, status.Jobs[0].ID); job.Status != api.JobSucceeded || job.RequestedBy != "first start" {
		t.Errorf("job = %+v", job)
	}
}
