package smoke

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	// throwAwayName marks the accounts that smoke tests made, together with
	// throwAwayEmail: both are needed before one is removed.
	throwAwayName   = "Throw-away account of agnesctl smoke"
	throwAwayDomain = "agnes.invalid" // reserved (RFC 2606): nobody gets mail there
	leftOverAfter   = time.Hour
)

var throwAwayEmail = regexp.MustCompile(`^smoke-[a-z2-7]{20}@`)

// throwAway is the account that a run makes for itself.
type throwAway struct {
	email string // set before it is made
	id    string // empty while it is not known whether it was made
}

// createAccount makes an account that may do what the profile needs and no more.
//
// Making it is not ended with ctx: the instance may make it all the same, and
// nobody would know. The time of a call is all that a canceled run waits for.
func (r *run) createAccount(ctx context.Context, s *Step) (Account, *finding) {
	if wrong := r.removeLeftOvers(ctx, s); wrong != nil {
		return Account{}, wrong
	}
	if ctx.Err() != nil {
		return Account{}, undecided("Run the smoke test again.", "The smoke test was ended before it had an account: %s.", ctx.Err())
	}
	account, wrong := r.postAccount(ctx, s, throwAwayDomain)
	if wrong != nil && wrong.code == "domain_not_allowed" {
		domain, notFound := r.allowedDomain(ctx, s)
		if notFound != nil {
			return Account{}, notFound
		}
		account, wrong = r.postAccount(ctx, s, domain)
	}
	return account, wrong
}

func (r *run) postAccount(ctx context.Context, s *Step, domain string) (Account, *finding) {
	account := Account{
		Email:    "smoke-" + strings.ToLower(rand.Text()[:20]) + "@" + domain,
		Password: redact.Secret(rand.Text() + "-" + rand.Text()),
	}
	r.account = throwAway{email: account.Email}
	r.calls.secrets = append(r.calls.secrets, account.Password)
	role := api.RoleAnalyst
	if r.o.Profile == Full {
		role = api.RoleAdmin // the one who may start a sync
	}
	e := exchange{
		method: http.MethodPost, path: "/api/users", token: r.o.AdminToken, given: true, want: http.StatusCreated,
		body: map[string]any{
			"email": account.Email, "password": account.Password.Reveal(), "name": throwAwayName, "role": role, "grants": []string{api.AllTables},
		},
	}
	a, wrong := r.call(context.WithoutCancel(ctx), s, e)
	if wrong != nil {
		if a.status >= 400 && a.status < 500 {
			r.account = throwAway{} // refused, so there is nothing to remove
		}
		return Account{}, wrong
	}
	user, wrong := decode[api.User](e, a)
	if wrong != nil {
		return Account{}, wrong
	}
	if user.ID == "" || user.Email != account.Email || user.Role != role {
		return Account{}, failing("", "Asked for the account %s with the role %s, got %q with %q.", account.Email, role, user.Email, user.Role)
	}
	r.account.id = user.ID
	return account, nil
}

// allowedDomain asks which domain new accounts must have.
func (r *run) allowedDomain(ctx context.Context, s *Step) (string, *finding) {
	e := exchange{method: http.MethodGet, path: "/api/admin/config", token: r.o.AdminToken, given: true}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return "", wrong
	}
	config, wrong := decode[api.Config](e, a)
	if wrong != nil {
		return "", wrong
	}
	domain, _ := config.Value("allowed_domain")
	if domain == "" {
		return "", failing("", "The instance refuses an account for its domain, but has no allowed_domain.")
	}
	return domain, nil
}

func (r *run) users(ctx context.Context, s *Step) ([]api.User, *finding) {
	e := exchange{method: http.MethodGet, path: "/api/users", token: r.o.AdminToken, given: true}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return nil, wrong
	}
	got, wrong := decode[api.Users](e, a)
	return got.Users, wrong
}

// removeLeftOvers removes the accounts of runs that were killed. The instance's
// own clock says how old they are.
func (r *run) removeLeftOvers(ctx context.Context, s *Step) *finding {
	users, wrong := r.users(ctx, s)
	if wrong != nil {
		return wrong
	}
	now := time.Now()
	if !r.first.Timestamp.IsZero() {
		now = r.first.Timestamp
	}
	for _, u := range users {
		if u.Name != throwAwayName || !throwAwayEmail.MatchString(u.Email) || now.Sub(u.CreatedAt) < leftOverAfter {
			continue
		}
		if wrong := r.deleteUser(ctx, u.ID); wrong != nil {
			r.warn("The account %s of an earlier smoke test could not be removed: %s", u.Email, wrong.detail)
		}
	}
	return nil
}

func (r *run) deleteUser(ctx context.Context, id string) *finding {
	a, wrong := r.calls.do(ctx, exchange{
		method: http.MethodDelete, path: "/api/users/" + url.PathEscape(id), token: r.o.AdminToken, given: true, want: http.StatusNoContent,
	})
	if a.status == http.StatusNotFound {
		return nil
	}
	return wrong
}

// cleanUp removes the run's own account, also after ctx has ended. One that
// stays is a pass no more: an instance that cannot remove an account does not
// work as it should.
func (r *run) cleanUp(ctx context.Context) {
	if r.account.email == "" {
		return
	}
	ctx = context.WithoutCancel(ctx) // each call has its own limit
	wrong := r.removeAccount(ctx)
	if wrong == nil {
		return
	}
	r.warn("The throw-away account %s could not be removed: %s Remove it: DELETE /api/users/%s", r.account.email, wrong.detail, r.account.id)
	if r.report.Verdict == Pass {
		r.report.Verdict = wrong.verdict
	}
}

func (r *run) removeAccount(ctx context.Context) *finding {
	if r.account.id == "" { // the answer to its making got lost
		var unrecorded Step
		users, wrong := r.users(ctx, &unrecorded)
		if wrong != nil {
			return wrong
		}
		for _, u := range users {
			if u.Email == r.account.email {
				r.account.id = u.ID
			}
		}
		if r.account.id == "" {
			return nil
		}
	}
	return r.deleteUser(ctx, r.account.id)
}

func (r *run) warn(format string, args ...any) {
	r.report.Warnings = append(r.report.Warnings, r.calls.mask(fmt.Sprintf(format, args...)))
}
