// Package smoke asks a running instance the seven questions that decide whether
// a release may stay: health, a login, the catalog, a query, a sync, its end
// with fresh data, and health again without errors that were not there before.
//
// Run asks them in this order and stops at the first one that is not answered
// well; the steps after it are in the report as not run, which is not OK. An
// answer is judged by its body and not by its status alone: 200 with a proxy's
// page is wrong, and fields that this version does not know are none of its
// business.
//
// # Verdict
//
// Fail speaks against the release, so it needs an answer of the instance, or its
// silence where it can be reached:
//
//   - an answer with another status or body than the step asks for, any 5xx among
//     them; stale data after a sync counts as a wrong answer
//   - connection refused: the host is there, and nothing listens
//   - a connection that was made, but breaks or stays silent past the step's time
//
// Inconclusive is what says nothing about the release, for then a rollback would
// mend nothing:
//
//   - the connection cannot be made for another reason: the name does not
//     resolve, the dial or the tunnel fails or takes too long, TLS is not trusted
//   - the credentials that were given do not work: 401 or 403 to them
//   - 429, which tells of the calls before these, and a redirect to another
//     origin, which tells of a wrong address
//   - the instance is draining: someone has asked it to take no change, and no
//     start brings that about
//   - the context ended
//
// Everything else that was asked and answered well is a Pass. An instance in
// setup mode fails at the token: what is smoke tested must be set up.
//
// # Accounts
//
// With an administrator's token Run makes an account of its own, with a random
// password, signs in with it and removes it at the end, whatever has happened
// and even when the context has ended. What a killed run left behind, a later
// run removes once it is an hour old.
package smoke

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Profile says how much a smoke test may do.
type Profile string

// The profiles.
const (
	Full     Profile = "full"     // all seven steps; starts a sync
	ReadOnly Profile = "readonly" // no sync and no wait, for an instance that people work with

	// Lite reads only: health, catalog and query with AdminToken itself, so that no
	// account is made. It shows that a token works, not that somebody can sign in.
	Lite Profile = "lite"
)

// DefaultWait is how long the sync that a smoke test starts is followed.
const DefaultWait = 30 * time.Second

// Options say what is tested, and how. Either Account or AdminToken is needed.
type Options struct {
	URL  string                                                               // of the instance, such as https://data.company.com
	TLS  *tls.Config                                                          // nil for the system's roots
	Dial func(ctx context.Context, network, address string) (net.Conn, error) // the way there, such as a tunnel; ctx bounds the dial alone

	Account    Account       // an existing account; for the full profile an admin's
	AdminToken redact.Secret // makes a throw-away account instead

	Profile  Profile       // Full when empty; Lite takes an AdminToken and no Account
	Wait     time.Duration // DefaultWait when zero
	Baseline *api.Health   // before the deploy; the first answer of this run when nil
	Progress func(Step)    // sees each step when it is over; may be nil
}

// Account is one that exists at the instance.
type Account struct {
	Email    string
	Password redact.Secret
}

// Names of the steps, in their order.
const (
	StepHealth  = "health"
	StepToken   = "token"
	StepCatalog = "catalog"
	StepQuery   = "query"
	StepSync    = "sync"
	StepWait    = "wait"
	StepAfter   = "health-after"
)

// run is one smoke test under way.
type run struct {
	o      Options
	calls  *caller
	report Report

	first   *api.Health                 // of the first step
	account throwAway                   // zero without an AdminToken
	token   redact.Secret               // of the session
	before  map[string]api.CatalogTable // by id, as it was before the sync
	job     string                      // the sync to follow
}

type step struct {
	name string
	ask  func(context.Context, *Step) *finding
}

// steps returns those of the profile.
func (r *run) steps() []step {
	health, catalog, query := step{StepHealth, r.health}, step{StepCatalog, r.catalog}, step{StepQuery, r.query}
	signIn, after := step{StepToken, r.signIn}, step{StepAfter, r.healthAfter}
	switch r.o.Profile {
	case Lite:
		return []step{health, {StepToken, r.takeToken}, catalog, query}
	case ReadOnly:
		return []step{health, signIn, catalog, query, after}
	default:
		return []step{health, signIn, catalog, query, {StepSync, r.sync}, {StepWait, r.wait}, after}
	}
}

// Run tests an instance. What goes wrong is in the report, never an error; the
// package comment says how it is judged. Each request has a time limit of its
// own, so that Run ends, at the latest, some two minutes after Wait.
func Run(ctx context.Context, o Options) Report {
	if o.Profile == "" {
		o.Profile = Full
	}
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	began := time.Now()
	r := &run{o: o, report: Report{
		Verdict: Pass, Profile: string(o.Profile), StartedAt: began.UTC(), Steps: []Step{},
	}}
	if r.calls = newCaller(o); r.calls.base != nil {
		r.report.URL = r.calls.base.String() // the address as it was given may hold a password
	}
	r.perform(ctx)
	r.cleanUp(ctx)
	r.report.ElapsedMS = time.Since(began).Milliseconds()
	return r.report
}

func (r *run) perform(ctx context.Context) {
	failed := ""
	for _, s := range r.steps() {
		out := Step{Name: s.name}
		if failed != "" {
			out.Skipped, out.Detail = true, "Not run, for "+failed+" was not answered well."
		} else if wrong := r.one(ctx, s, &out); wrong != nil {
			failed = s.name
			r.report.Verdict = wrong.verdict
		}
		r.report.Steps = append(r.report.Steps, out)
		if r.o.Progress != nil {
			r.o.Progress(out)
		}
	}
}

// one asks one question and fills in the step.
func (r *run) one(ctx context.Context, s step, out *Step) *finding {
	began := time.Now()
	wrong := s.ask(ctx, out)
	out.ElapsedMS = time.Since(began).Milliseconds()
	out.OK, out.Verdict = wrong == nil, Pass
	if wrong != nil {
		out.Verdict, out.Detail, out.Hint = wrong.verdict, wrong.detail, wrong.hint
	}
	for _, text := range []*string{&out.Detail, &out.Hint, &out.Request, &out.Response} {
		*text = r.calls.mask(*text)
	}
	return wrong
}

// call makes a request and records it in the step.
func (r *run) call(ctx context.Context, s *Step, e exchange) (answer, *finding) {
	a, wrong := r.calls.do(ctx, e)
	s.Request, s.Response, s.Status = a.request, r.calls.beginning(a.body), a.status
	return a, wrong
}
