package release_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// desk is a publisher that tells people: on a GitHub, and by notices.
type desk struct {
	*house
	*release.Publisher
	hub     *githubtest.Server
	repo    *githubtest.Repo
	notices []release.Notice
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	h := newHouse(t)
	server, repo, client := hub(t)
	d := &desk{house: h, Publisher: h.publisher(t), hub: server, repo: repo}
	d.Forge, d.Places = client, "--repo keboola/agnes"
	d.Notify = func(_ context.Context, n release.Notice) error { d.notices = append(d.notices, n); return nil }
	return d
}

// judge records a verdict and expects no error.
func (d *desk) judge(t *testing.T, v release.Version, verdict release.Verdict) release.Judged {
	t.Helper()
	got, err := d.Verdict(t.Context(), v, verdict, "the canary's host did not answer")
	if err != nil {
		t.Fatalf("%s: %v, %+v", verdict, err, got)
	}
	return got
}

func TestAnInconclusiveVerdictTellsPeopleAndRollsNothingBack(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	all := d.stable(t, 2)
	b := all[1]
	before := d.Tags(t)
	d.Requests()
	got := d.judge(t, b.Version, release.VerdictInconclusive)
	for range 2 {
		if again := d.judge(t, b.Version, release.VerdictInconclusive); again.IssueURL != got.IssueURL || got.IssueURL == "" {
			t.Errorf("repeated: %q, first %q", again.IssueURL, got.IssueURL)
		}
	}
	if w := ocitest.Writes(d.Requests()); len(w) > 0 {
		t.Errorf("wrote %+v to the registry", w)
	}
	d.expect(t, before)
	if v, err := d.ledger.Verdicts(t.Context()); err != nil || v[b.Version] != release.VerdictInconclusive {
		t.Errorf("%v, %v", v, err)
	}
	issues := d.repo.Issues()
	if len(issues) != 1 || !slices.Equal(issues[0].Labels, []string{"canary"}) || !strings.Contains(issues[0].Title, b.Version.String()) {
		t.Fatalf("%+v, want one issue", issues)
	}
	for _, want := range []string{
		"<!-- release-bot:inconclusive:" + b.Version.String() + " -->",
		b.Commit,
		"the canary's host did not answer",
		"Nothing was rolled back. `:stable` is left where it is: it points at " + b.Version.String() + ", which hosts that follow it get untested.\n",
		"agnesctl canary deploy --host ssh://USER@HOST --host-key 'ssh-ed25519 …' --image " + d.Repository() + " --tag " + release.VersionTag(release.Stable, b.Version) + " --digest " + b.Digest + "\n",
		"release-bot verdict " + b.Version.String() + " pass --repo keboola/agnes\n",
		"release-bot rollback --failed " + b.Version.String() + " --reason '…' --repo keboola/agnes\n",
	} {
		if !strings.Contains(issues[0].Body, want) {
			t.Errorf("the issue lacks %q:\n%s", want, issues[0].Body)
		}
	}
	n := d.notices[0]
	if len(d.notices) != 3 || n != d.notices[2] || n.Event != "inconclusive/"+b.Version.String() ||
		!strings.Contains(n.Text, "Nothing was rolled back") || !strings.HasSuffix(n.Text, got.IssueURL) {
		t.Errorf("%+v", d.notices)
	}
}

// The alert says where production is, whichever way it is.
func TestAnInconclusiveVerdictSaysWhereStableIs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		channel release.Channel
		prepare func(*testing.T, *desk, release.Build)
		want    func(old, b release.Build) string
		never   string
	}{
		"at the version before": {
			release.Stable,
			func(t *testing.T, d *desk, b release.Build) { b.Gated = true; d.publish(t, b) },
			func(old, _ release.Build) string { return "it points at " + old.Version.String() + "." }, "untested",
		},
		"nowhere": {
			release.Stable,
			func(t *testing.T, d *desk, _ release.Build) { d.Remove(t, "stable") },
			func(release.Build, release.Build) string { return "there is none." }, "points at",
		},
		"at an image that nobody knows": {
			release.Stable,
			func(t *testing.T, d *desk, b release.Build) { d.SetTag(t, d.Manifest(t, b.Digest), "stable") },
			func(_, b release.Build) string { return "it points at " + b.Digest + "." }, "untested",
		},
		"the registry is in trouble": {
			release.Stable,
			func(_ *testing.T, d *desk, _ release.Build) {
				d.Intercept(func(w http.ResponseWriter, _ *http.Request, after bool) bool {
					if !after {
						w.WriteHeader(http.StatusBadGateway)
					}
					return !after
				})
			},
			func(release.Build, release.Build) string { return "the registry did not say where that is." }, "points at",
		},
		"and the version is one of dev": {
			release.Dev,
			func(t *testing.T, d *desk, b release.Build) { d.publish(t, b) },
			func(_, b release.Build) string { return "release-bot verdict " + b.Version.String() + " fail" }, "rollback --failed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			old := d.stable(t, 1)[0]
			b := d.build(t, c.channel)
			c.prepare(t, d, b)
			d.judge(t, b.Version, release.VerdictInconclusive)
			issues := d.repo.Issues()
			if len(issues) != 1 || !strings.Contains(issues[0].Body, c.want(old, b)) || strings.Contains(issues[0].Body, c.never) {
				t.Errorf("want %q and not %q: %+v", c.want(old, b), c.never, issues)
			}
		})
	}
}

func TestAVersionWithAnAnswerKeepsItAndNobodyIsTold(t *testing.T) {
	t.Parallel()
	for _, answer := range []release.Verdict{release.VerdictPass, release.VerdictFail} {
		d := newDesk(t)
		b := d.stable(t, 1)[0]
		d.judge(t, b.Version, answer)
		got := d.judge(t, b.Version, release.VerdictInconclusive)
		if n := len(d.repo.Issues()); n > 0 || len(d.notices) > 0 || got.IssueURL != "" || release.Wrote(got.Steps) {
			t.Errorf("after %s: %d issues, %+v, %+v", answer, n, d.notices, got)
		}
		if v, err := d.ledger.Verdicts(t.Context()); err != nil || v[b.Version] != answer {
			t.Errorf("%v, %v, want %s", v, err, answer)
		}
	}
}

// meanwhile does something once, right after an entry was written.
type meanwhile struct {
	release.Refs
	do func()
}

func (m *meanwhile) Create(ctx context.Context, t release.Tag, also ...string) (release.Tag, error) {
	made, err := m.Refs.Create(ctx, t, also...)
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return made, err
}

// A pass that another run records between this run's entry and its alert.
func TestAnAnswerThatComesMeanwhileStopsTheAlert(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	b := d.stable(t, 1)[0]
	refs, err := gitrefs.Open(d.dir, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	between := &meanwhile{refs, func() {
		if err := d.ledger.Record(t.Context(), b.Version, release.VerdictPass, ""); err != nil {
			t.Error(err)
		}
	}}
	d.Ledger = release.NewLedger(between, release.LedgerOptions{})
	d.judge(t, b.Version, release.VerdictInconclusive)
	if n := len(d.repo.Issues()); n > 0 || between.do != nil {
		t.Errorf("%d issues about a version that passed", n)
	}
}

func TestAnAnswerClosesTheIssueThatAskedForIt(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(*testing.T, *desk, release.Version) []release.Step{
		"pass": func(t *testing.T, d *desk, v release.Version) []release.Step {
			return d.judge(t, v, release.VerdictPass).Steps
		},
		"fail": func(t *testing.T, d *desk, v release.Version) []release.Step {
			return d.judge(t, v, release.VerdictFail).Steps
		},
		"rollback": func(t *testing.T, d *desk, v release.Version) []release.Step {
			got, err := d.Rollback(t.Context(), v, release.Version{}, "")
			if err != nil {
				t.Fatal(err)
			}
			return got.Steps
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			all := d.stable(t, 2)
			other := d.judge(t, all[0].Version, release.VerdictInconclusive)
			d.judge(t, all[1].Version, release.VerdictInconclusive)

			// What keeps it open is no reason to fail.
			d.hub.Inject(githubtest.Fault{Method: http.MethodPatch, Path: "/repos/*/issues/*", Status: http.StatusForbidden})
			if steps := answer(t, d, all[1].Version); state(steps, "settle") != release.Skipped || d.repo.Issues()[1].State != "open" {
				t.Errorf("%+v, %+v", steps, d.repo.Issues())
			}
			d.hub.Heal()
			for _, want := range []release.StepState{release.Done, release.Skipped} {
				if steps := answer(t, d, all[1].Version); state(steps, "settle") != want {
					t.Errorf("%+v, want settle %s", steps, want)
				}
			}
			issues := d.repo.Issues()
			if issues[0].State != "open" || issues[1].State != "closed" || strings.Count(issues[1].Body, "Settled: the verdict of") != 1 {
				t.Errorf("%+v, want the second one closed, and %s open", issues, other.IssueURL)
			}
		})
	}
}

func TestWhereNothingWasAskedNoIssueIsLookedFor(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	b := d.stable(t, 1)[0]
	got := d.judge(t, b.Version, release.VerdictPass)
	if n := d.hub.Count("GET", "/repos/*/issues"); n > 0 || state(got.Steps, "settle") != "" {
		t.Errorf("looked %d times, %+v", n, got.Steps)
	}
}

func TestAnAlertThatDoesNotGetThroughFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	b := d.stable(t, 1)[0]
	d.hub.Inject(githubtest.Fault{Method: http.MethodPost, Path: "/repos/*/issues", Status: http.StatusBadGateway})
	got, err := d.Verdict(t.Context(), b.Version, release.VerdictInconclusive, "")
	if problem.ExitCode(err) != 5 || state(got.Steps, "issue") != release.Failed || len(d.notices) != 1 {
		t.Errorf("%+v, %v, %+v: want the issue failed and the webhook called", got, err, d.notices)
	}
	d.hub.Heal()
	d.judge(t, b.Version, release.VerdictInconclusive)
	if n := len(d.repo.Issues()); n != 1 {
		t.Errorf("%d issues, want one", n)
	}
}

func TestADryRunTellsNobody(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	b := d.stable(t, 1)[0]
	d.DryRun = true
	got := d.judge(t, b.Version, release.VerdictInconclusive)
	if len(d.repo.Issues()) > 0 || len(d.notices) > 0 || state(got.Steps, "issue") != release.Planned || state(got.Steps, "notify") != release.Planned {
		t.Errorf("%+v, %+v, %+v", d.repo.Issues(), d.notices, got)
	}
	d.DryRun = false
	d.judge(t, b.Version, release.VerdictInconclusive)
	d.DryRun = true
	if got := d.judge(t, b.Version, release.VerdictPass); state(got.Steps, "settle") != release.Planned || d.repo.Issues()[0].State != "open" {
		t.Errorf("%+v, %+v", got, d.repo.Issues())
	}
}

func TestWhatWasFoundOutAboutOneImageSaysNothingAboutAnother(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	all := d.stable(t, 2)
	if err := d.Match(t.Context(), all[1].Version, all[1].Digest); err != nil {
		t.Errorf("its own image: %v", err)
	}
	if err := d.Match(t.Context(), all[1].Version, all[0].Digest); !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), all[1].Digest) {
		t.Errorf("another version's image: %v", err)
	}
	d.Intercept(func(w http.ResponseWriter, _ *http.Request, _ bool) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	if err := d.Match(t.Context(), all[1].Version, all[1].Digest); !problem.Is(err, problem.Inconclusive) {
		t.Errorf("the registry is in trouble: %v", err)
	}
}
