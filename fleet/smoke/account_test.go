package smoke_test

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
)

var throwAway = regexp.MustCompile(`smoke-[a-z2-7]{20}@agnes\.invalid`)

// withToken is bubble with an administrator's token alone. Whatever happens, no
// account may be left.
func withToken(t *testing.T, in func(t *testing.T, i *smoketest.Instance, o smoke.Options)) {
	t.Helper()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		o.Account, o.AdminToken = smoke.Account{}, smoketest.AdminToken
		in(t, i, o)
		if left := i.Emails(); !slices.Equal(left, []string{smoketest.Email}) {
			t.Errorf("accounts are left: %v", left)
		}
	})
}

func TestTheThrowAwayAccountIsGoneAfterwards(t *testing.T) {
	t.Parallel()
	withToken(t, func(t *testing.T, _ *smoketest.Instance, o smoke.Options) {
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		if len(r.Warnings) > 0 || !throwAway.MatchString(r.Steps[1].Detail) || !strings.Contains(r.Steps[1].Detail, "(admin)") {
			t.Errorf("the report is %s", dump(r))
		}
	})
	for _, call := range []string{"POST /auth/token", "GET /api/catalog/tables", "POST /api/query", "POST /api/sync/trigger", "GET /api/sync/jobs/"} {
		withToken(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
			i.Break(call, 1, smoketest.Cut())
			if r := smoke.Run(t.Context(), o); r.Verdict != smoke.Fail {
				t.Errorf("%s cut: %s", call, dump(r))
			}
		})
	}
}

func TestAReadOnlyTestMakesAnAnalyst(t *testing.T) {
	t.Parallel()
	withToken(t, func(t *testing.T, _ *smoketest.Instance, o smoke.Options) {
		o.Profile = smoke.ReadOnly
		if r := smoke.Run(t.Context(), o); r.Verdict != smoke.Pass || !strings.Contains(r.Steps[1].Detail, "(analyst)") {
			t.Errorf("the report is %s", dump(r))
		}
	})
}

// The instance makes the account, but its answer does not arrive.
func TestAnAccountWhoseMakingWasNotHeardOfIsRemoved(t *testing.T) {
	t.Parallel()
	withToken(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Break("POST /api/users", 1, func(_ http.ResponseWriter, r *http.Request) {
			email := throwAway.FindString(readAll(r))
			i.AddUser(api.User{ID: "lost", Email: email, CreatedAt: time.Now()}, "")
			panic(http.ErrAbortHandler)
		})
		wants(t, smoke.Run(t.Context(), o), smoke.Fail, "token", "broke")
	})
}

func TestACanceledMakingOfAnAccountLeavesNone(t *testing.T) {
	t.Parallel()
	withToken(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		i.Break("POST /api/users", 1, func(w http.ResponseWriter, r *http.Request) {
			cancel() // while the instance works on it
			email := throwAway.FindString(readAll(r))
			<-time.After(2 * time.Second)
			i.AddUser(api.User{ID: "late", Email: email, CreatedAt: time.Now()}, "")
			smoketest.Answer(201, "application/json", `{"id":"late","email":"`+email+`","role":"admin"}`)(w, r)
		})
		wants(t, smoke.Run(ctx, o), smoke.Inconclusive, "token", "was ended")
	})
}

func TestLeftOversOfKilledRunsAreRemoved(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		o.Account, o.AdminToken, o.Profile = smoke.Account{}, smoketest.AdminToken, smoke.ReadOnly
		const name = "Throw-away account of agnesctl smoke"
		add := func(id, email, name string, age time.Duration) {
			i.AddUser(api.User{ID: id, Email: email, Name: name, CreatedAt: time.Now().Add(-age)}, "")
		}
		add("a", "smoke-aaaaaaaaaaaaaaaaaaaa@agnes.invalid", name, 2*time.Hour)
		add("b", "smoke-bbbbbbbbbbbbbbbbbbbb@agnes.invalid", name, time.Minute) // may be at work
		add("c", "smoke-cccccccccccccccccccc@company.com", "Carla Smoke", 2*time.Hour)
		add("d", "smoke-tests@company.com", name, 2*time.Hour)
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		want := []string{
			smoketest.Email, "smoke-bbbbbbbbbbbbbbbbbbbb@agnes.invalid", "smoke-cccccccccccccccccccc@company.com", "smoke-tests@company.com",
		}
		if got := i.Emails(); !slices.Equal(got, want) {
			t.Errorf("accounts %v, want %v", got, want)
		}
	})
}

func TestALeftOverThatStaysIsAWarning(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		o.Account, o.AdminToken = smoke.Account{}, smoketest.AdminToken
		i.AddUser(api.User{
			ID: "a", Email: "smoke-aaaaaaaaaaaaaaaaaaaa@agnes.invalid", Name: "Throw-away account of agnesctl smoke", CreatedAt: time.Now().Add(-2 * time.Hour),
		}, "")
		i.Break("DELETE /api/users/a", 1, smoketest.Problem(500, "internal", "It broke."))
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "smoke-aaaaaaaaaaaaaaaaaaaa@agnes.invalid") {
			t.Errorf("the warnings are %v", r.Warnings)
		}
	})
}

func TestAnInstanceThatCannotRemoveTheAccountDoesNotPass(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault   smoketest.Fault
		verdict smoke.Verdict
	}{
		"500":   {smoketest.Problem(500, "internal", "It broke."), smoke.Fail},
		"drain": {smoketest.Problem(409, "draining", "The instance is draining."), smoke.Inconclusive},
	} {
		bubble(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
			o.Account, o.AdminToken = smoke.Account{}, smoketest.AdminToken
			i.Break("DELETE /api/users/", 1, tt.fault)
			r := smoke.Run(t.Context(), o)
			if r.Verdict != tt.verdict || len(r.Warnings) != 1 || !throwAway.MatchString(r.Warnings[0]) {
				t.Errorf("%s: %s", name, dump(r))
			}
			noSecrets(t, r)
		})
	}
}

func TestAnInstanceThatWantsADomainGetsIt(t *testing.T) {
	t.Parallel()
	withToken(t, func(t *testing.T, i *smoketest.Instance, o smoke.Options) {
		i.Change(func(k *smoketest.Knobs) { k.AllowedDomain = "company.com" })
		r := smoke.Run(t.Context(), o)
		wants(t, r, smoke.Pass, "", "")
		if !regexp.MustCompile(`smoke-[a-z2-7]{20}@company\.com`).MatchString(r.Steps[1].Detail) {
			t.Errorf("signed in: %q", r.Steps[1].Detail)
		}
	})
}

func readAll(r *http.Request) string {
	body, _ := io.ReadAll(r.Body) // the pattern then matches nothing
	return string(body)
}
