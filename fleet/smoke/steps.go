package smoke

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func (r *run) health(ctx context.Context, s *Step) *finding {
	h, wrong := r.askHealth(ctx, s)
	if wrong != nil {
		return wrong
	}
	r.first, r.report.Version = h, h.Version
	s.Detail = fmt.Sprintf("The instance is %s.", h.Status)
	return nil
}

// signIn gets a token, with the account that was given or one of its own.
func (r *run) signIn(ctx context.Context, s *Step) *finding {
	if r.first.SetupRequired {
		return r.notSetUp()
	}
	account, own := r.o.Account, false
	switch {
	case r.o.AdminToken != "" && account.Email != "":
		return undecided("Give one of them.", "Expected an account or an administrator's token, found both.")
	case r.o.AdminToken != "":
		var wrong *finding
		if account, wrong = r.createAccount(ctx, s); wrong != nil {
			return wrong
		}
		own = true
	case account.Email == "" || account.Password == "":
		return undecided("Give one of them.", "Expected an account or an administrator's token, found neither.")
	}
	e := exchange{
		method: http.MethodPost, path: "/auth/token", given: !own,
		body: map[string]string{"email": account.Email, "password": account.Password.Reveal()},
	}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return wrong
	}
	// api.TokenResponse with its token as a secret
	got, wrong := decode[struct {
		AccessToken redact.Secret `json:"access_token"`
		TokenType   string        `json:"token_type"`
		Role        string        `json:"role"`
	}](e, a)
	if wrong != nil {
		return wrong
	}
	r.token = got.AccessToken
	r.calls.secrets = append(r.calls.secrets, r.token)
	if r.token == "" || !strings.EqualFold(got.TokenType, "bearer") {
		return failing("", "Expected a bearer token from POST /auth/token, found none.")
	}
	s.Detail = fmt.Sprintf("Signed in as %s (%s).", account.Email, cmp.Or(got.Role, "no role named"))
	return nil
}

// takeToken goes on with the token that was given, once the instance knows it.
func (r *run) takeToken(ctx context.Context, s *Step) *finding {
	switch {
	case r.first.SetupRequired:
		return r.notSetUp()
	case r.o.Account.Email != "":
		return undecided("Take the profile readonly.", "Expected an administrator's token alone, found an account: the profile %s signs nobody in.", Lite)
	case r.o.AdminToken == "":
		return undecided("Give one.", "Expected an administrator's token, found none.")
	}
	e := exchange{method: http.MethodGet, path: "/api/health/details", token: r.o.AdminToken, given: true}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return wrong
	}
	if _, wrong = decode[api.HealthDetails](e, a); wrong != nil {
		return wrong
	}
	r.token = r.o.AdminToken
	s.Detail = "The token works."
	return nil
}

func (r *run) notSetUp() *finding {
	return failing("Set it up: agnesctl instance setup --url "+r.report.URL+" --email YOU@COMPANY --source csv --csv-dir DIR",
		"Expected an instance that is set up, found one that waits for its first admin.")
}

func (r *run) catalog(ctx context.Context, s *Step) *finding {
	tables, wrong := r.askCatalog(ctx, s)
	if wrong != nil {
		return wrong
	}
	r.before = tables
	s.Detail = counted(len(tables)) + " in the catalog."
	return nil
}

// askCatalog returns the tables by id.
func (r *run) askCatalog(ctx context.Context, s *Step) (map[string]api.CatalogTable, *finding) {
	e := exchange{method: http.MethodGet, path: "/api/catalog/tables", token: r.token, limit: longCallLimit}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return nil, wrong
	}
	c, wrong := decode[api.Catalog](e, a)
	if wrong != nil {
		return nil, wrong
	}
	tables := map[string]api.CatalogTable{}
	for _, t := range c.Tables {
		if t.ID == "" {
			return nil, failing("", "Expected an id for each table of the catalog, found a table without one.")
		}
		tables[t.ID] = t
	}
	switch {
	case c.Count <= 0:
		return nil, failing("Register tables: POST /api/admin/discover-and-register", "Expected at least one table in the catalog, found a count of %d.", c.Count)
	case c.Count != len(tables):
		return nil, failing("", "The catalog counts %d tables and lists %d.", c.Count, len(tables))
	}
	return tables, nil
}

func (r *run) query(ctx context.Context, s *Step) *finding {
	e := exchange{method: http.MethodPost, path: "/api/query", token: r.token, limit: longCallLimit, body: map[string]string{"sql": "SELECT 1"}}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return wrong
	}
	q, wrong := decode[api.QueryResponse](e, a)
	if wrong != nil {
		return wrong
	}
	if q.RowCount != 1 || len(q.Rows) != 1 || len(q.Rows[0]) != 1 || q.Rows[0][0] != json.Number("1") {
		return failing("", "Expected one row with the number 1 from SELECT 1, found %d rows: %.100v.", q.RowCount, q.Rows)
	}
	s.Detail = "SELECT 1 gave one row, 1."
	return nil
}

// sync starts a sync, or finds the one that runs already.
func (r *run) sync(ctx context.Context, s *Step) *finding {
	e := exchange{method: http.MethodPost, path: "/api/sync/trigger", token: r.token, given: r.o.AdminToken == "", body: struct{}{}}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil && wrong.code == "sync_already_in_progress" {
		return r.findSync(ctx, s)
	}
	if wrong != nil {
		return wrong
	}
	t, wrong := decode[api.SyncTriggered](e, a)
	if wrong != nil {
		return wrong
	}
	if t.JobID == "" {
		return failing("", "Expected the id of a job from POST /api/sync/trigger, found none.")
	}
	r.job = t.JobID
	s.Detail = fmt.Sprintf("Started job %s.", r.job)
	return nil
}

// findSync looks for the sync that stood in the way of a new one. It may have
// ended since.
func (r *run) findSync(ctx context.Context, s *Step) *finding {
	status := s.Status
	e := exchange{method: http.MethodGet, path: "/api/sync/status", token: r.token}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return wrong
	}
	got, wrong := decode[api.SyncStatus](e, a)
	if wrong != nil {
		return wrong
	}
	job := cmp.Or(got.Running, got.Last)
	if job == nil || job.ID == "" {
		return failing("", "The instance answers %d, a sync runs already, but names none.", status)
	}
	r.job = job.ID
	s.Detail = fmt.Sprintf("Job %s ran already; it is followed.", r.job)
	return nil
}

const (
	firstPoll = 100 * time.Millisecond
	lastPoll  = time.Second
)

// wait follows the job to its end and then looks for fresh data.
func (r *run) wait(ctx context.Context, s *Step) *finding {
	e := exchange{method: http.MethodGet, path: "/api/sync/jobs/" + url.PathEscape(r.job), token: r.token}
	until := time.Now().Add(r.o.Wait)
	began := -1.0 // progress at the first look
	for every := firstPoll; ; every = min(2*every, lastPoll) {
		a, wrong := r.call(ctx, s, e)
		if wrong != nil {
			return wrong
		}
		job, wrong := decode[api.Job](e, a)
		switch {
		case wrong != nil:
			return wrong
		case job.ID != r.job:
			return failing("", "Asked for job %s, got %q.", r.job, job.ID)
		case job.Done():
			return r.judgeJob(ctx, s, job)
		case job.Status != api.JobQueued && job.Status != api.JobRunning:
			return failing("", "Job %s has the unknown status %q.", r.job, job.Status)
		}
		if began < 0 {
			began = job.Progress
		}
		left := time.Until(until)
		if left <= 0 {
			return r.stillRunning(ctx, s, job, job.Progress > began)
		}
		if pause.For(ctx, min(every, left)) != nil {
			return undecided("Run the smoke test again.", "The smoke test was ended while job %s ran.", r.job)
		}
	}
}

// stillRunning accepts a sync that is longer than the wait if it gets on.
func (r *run) stillRunning(ctx context.Context, s *Step, job api.Job, moved bool) *finding {
	if !moved {
		h, wrong := r.askHealth(ctx, s)
		if wrong != nil {
			return wrong
		}
		moved = h.Phase == api.PhaseSyncing
	}
	if !moved {
		return failing("Look at GET /api/sync/jobs/"+r.job, "Job %s was not done after %s, and does not get on.", r.job, r.o.Wait)
	}
	s.Detail = fmt.Sprintf("Job %s still runs after %s, at %.0f%%; whether its data are fresh was not seen.", r.job, r.o.Wait, 100*job.Progress)
	return nil
}

// judgeJob looks whether a job that has ended has brought what it says.
func (r *run) judgeJob(ctx context.Context, s *Step, job api.Job) *finding {
	if job.Status != api.JobSucceeded {
		return failing(job.Hint, "Job %s ended as %s: %s", r.job, job.Status, jobError(job))
	}
	if len(job.Tables) == 0 {
		return failing("Register tables: POST /api/admin/discover-and-register", "Job %s succeeded without a table.", r.job)
	}
	var evidence Step // of the catalog; the job's stays unless the catalog is what is wrong
	now, wrong := r.askCatalog(ctx, &evidence)
	if wrong == nil {
		wrong = r.stale(job, now)
	}
	if wrong != nil {
		s.Request, s.Response, s.Status = evidence.Request, evidence.Response, evidence.Status
		return wrong
	}
	s.Detail = fmt.Sprintf("Job %s succeeded; %s fresh.", r.job, counted(len(job.Tables)))
	return nil
}

// jobError collects what a failed job says.
func jobError(job api.Job) string {
	said := []string{cmp.Or(job.Error, "it does not say why.")}
	for _, t := range job.Tables {
		if t.Error != "" {
			said = append(said, t.ID+": "+t.Error)
		}
	}
	const few = 4
	if len(said) > few {
		said = append(said[:few], fmt.Sprintf("and %d more", len(said)-few))
	}
	return strings.Join(said, " ")
}

// stale looks for tables whose data are older than the job makes believe. All
// times are the instance's, so that its clock may be wrong.
func (r *run) stale(job api.Job, now map[string]api.CatalogTable) *finding {
	const hint = "GET /api/health/details and GET /api/sync/status say more."
	var found []string
	for id, t := range now {
		if t.Stale {
			found = append(found, fmt.Sprintf("%s is stale: %s", id, cmp.Or(t.StaleReason, "it does not say why.")))
		}
	}
	for _, done := range job.Tables {
		t, there := now[done.ID]
		before := r.before[done.ID].LastSync
		switch {
		case !there:
			found = append(found, done.ID+" was synced, but is not in the catalog.")
		case t.Stale || t.QueryMode == "remote": // said above; its data stay at the source
		case t.LastSync == nil:
			found = append(found, done.ID+" was synced, but has no last_sync.")
		case before != nil && t.LastSync.Before(*before):
			found = append(found, fmt.Sprintf("%s went back from the data of %s to those of %s.", done.ID, stamp(*before), stamp(*t.LastSync)))
		case done.Status == "unchanged" || before == nil || t.LastSync.After(*before):
		case !t.LastSync.Before(job.CreatedAt): // a sync that ran already had published it
		default:
			found = append(found, fmt.Sprintf("%s was synced, says the job, but still has the data of %s.", done.ID, stamp(*before)))
		}
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	const few = 5
	more := ""
	if len(found) > few {
		found, more = found[:few], fmt.Sprintf(" And %d more.", len(found)-few)
	}
	return failing(hint, "Expected fresh data after job %s. %s%s", r.job, strings.Join(found, " "), more)
}

func counted(tables int) string {
	if tables == 1 {
		return "1 table"
	}
	return fmt.Sprintf("%d tables", tables)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// healthAfter looks for errors that were not there before.
func (r *run) healthAfter(ctx context.Context, s *Step) *finding {
	h, wrong := r.askHealth(ctx, s)
	if wrong != nil {
		return wrong
	}
	baseline, name := r.o.Baseline, "before the deploy"
	if baseline == nil {
		baseline, name = r.first, "at the first step"
	}
	if found := newErrors(*baseline, *h); len(found) > 0 {
		return failing(hintOf(*h), "The instance's health is worse than %s. %s", name, strings.Join(found, " "))
	}
	s.Detail = fmt.Sprintf("The instance is %s; nothing is worse than %s.", h.Status, name)
	return nil
}
