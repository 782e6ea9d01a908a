package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Judged is the answer of Verdict.
type Judged struct {
	Version  Version `json:"version"`
	Verdict  Verdict `json:"verdict"`
	Tag      string  `json:"tag"`       // confirmed-V, where it passed
	IssueURL string  `json:"issue_url"` // tells people that it is inconclusive
	DryRun   bool    `json:"dry_run,omitempty"`
	Steps    []Step  `json:"steps"`
}

// inconclusive is the kind of incident that an open question is.
const inconclusive = "inconclusive"

// judging is one run of Verdict.
type judging struct {
	*Publisher
	out     Judged
	version Version
	detail  string

	claim  Claim
	image  Manifest
	before verdictEntry // what the ledger had
	stable string       // where :stable is, for the alert; a sentence
	open   bool         // neither passed nor failed: people have to look
}

// Verdict records what was found out about a version: in the ledger; where it
// passed, by the tag confirmed-V on its image; where it is inconclusive, by an
// alert, because nothing else happens then. Only Rollback acts on a fail.
//
// A version that passed or failed stays what it is when a later test is
// inconclusive, and nobody is told: there is no question that is open.
func (p *Publisher) Verdict(ctx context.Context, v Version, verdict Verdict, detail string) (Judged, error) {
	j := judging{Publisher: p, version: v, detail: strings.TrimSpace(detail), out: Judged{Version: v, Verdict: verdict, DryRun: p.DryRun}}
	ledger := step{name: "ledger", run: j.record}
	settle := step{name: "settle", run: func(ctx context.Context) (outcome, error) { return p.settle(ctx, v, j.before, verdict) }}
	var steps []step
	switch verdict {
	case VerdictPass:
		j.out.Tag = ConfirmedTag(v)
		tag := step{name: "tag", run: func(ctx context.Context) (outcome, error) { return p.mark(ctx, j.image, j.out.Tag) }}
		steps = []step{{name: "image", run: j.find}, ledger, tag, settle}
	case VerdictInconclusive:
		steps = append([]step{ledger, {name: "look", run: j.look}}, p.telling(j.incident, &j.out.IssueURL)...)
	default:
		steps = []step{ledger, settle}
	}
	ran, err := walk(ctx, steps)
	j.out.Steps = ran
	return j.out, err
}

// Match refuses, by problem.Refused, a digest that is not what the version's own tag
// points at: what was found out about one image says nothing about another.
func (p *Publisher) Match(ctx context.Context, v Version, digest string) error {
	c, err := p.claimed(ctx, v)
	if err != nil {
		return err
	}
	tag := VersionTag(c.Channel, v)
	at, err := p.Registry.Digest(ctx, tag)
	found := "it at " + at
	switch {
	case errors.Is(err, ErrNotFound):
		found = "no such tag"
	case err != nil:
		return Unsettled(err)
	case at == digest:
		return nil
	}
	return problem.New(problem.Refused, fmt.Sprintf("expected %s:%s at %s, which was tested, found %s; nothing was recorded", p.Registry, tag, digest, found),
		"test the image that the tag points at, or name the version whose image was tested: release-bot version list")
}

// find reads the image that passed.
func (j *judging) find(ctx context.Context) (outcome, error) {
	c, err := j.claimed(ctx, j.version)
	if err != nil {
		return outcome{}, err
	}
	j.image, err = j.Publisher.image(ctx, c.Channel, j.version)
	if errors.Is(err, ErrNotFound) {
		return outcome{}, unpublished(err, j.Registry, c)
	}
	return looked("%s is %s", VersionTag(c.Channel, j.version), j.image.Digest), err
}

func (j *judging) record(ctx context.Context) (o outcome, err error) {
	j.before, o, err = j.Publisher.record(ctx, j.version, j.out.Verdict, j.detail)
	return o, err
}

// look finds out whether there still is a question, and where :stable is.
// The registry may be what was in trouble: it is asked, and can be done without.
func (j *judging) look(ctx context.Context) (outcome, error) {
	var err error
	if j.claim, err = j.claimed(ctx, j.version); err != nil {
		return outcome{}, err
	}
	known, err := j.Ledger.verdictEntries(ctx, j.version.String())
	if err != nil {
		return outcome{}, err
	}
	if have := known[j.version].verdict; have.outweighs(VerdictInconclusive) {
		return skipped("%s keeps the verdict %s: nothing is open, and nobody is told", j.version, have), nil
	}
	j.open = true
	var found Withdrawn
	if j.image, err = j.published(ctx, j.claim); err == nil {
		_, err = j.whereStable(ctx, &found, j.claim, j.image)
	}
	switch {
	case ctx.Err() != nil:
		return outcome{}, err
	case err != nil:
		j.stable = "the registry did not say where that is"
	case found.StableDigest == "":
		j.stable = "there is none"
	case found.Stable == j.version.String():
		j.stable = fmt.Sprintf("it points at %s, which hosts that follow it get untested", j.version)
	default:
		j.stable = fmt.Sprintf("it points at %s", cmp.Or(found.Stable, found.StableDigest))
	}
	return looked(":stable is left where it is: %s", j.stable), nil
}

func (j *judging) incident() *incident {
	if !j.open {
		return nil
	}
	notice := fmt.Sprintf("It is not known whether release %s works: the smoke test was inconclusive.", j.version)
	if j.detail != "" {
		notice += " " + strings.TrimSuffix(j.detail, ".") + "."
	}
	return &incident{
		kind: inconclusive, version: j.version, title: fmt.Sprintf("Release %s: the smoke test was inconclusive", j.version), body: j.text(), label: "canary",
		notice: notice + fmt.Sprintf(" Nothing was rolled back; :stable is left where it is: %s.", j.stable),
	}
}

// text is the alert in Markdown.
func (j *judging) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "It is not known whether version **%s** (commit %s) works: the smoke test was inconclusive.\n", j.version, j.claim.Commit)
	if j.detail != "" {
		fmt.Fprintf(&b, "\n%s\n", j.detail)
	}
	fmt.Fprintf(&b, "\nNothing was rolled back. `:stable` is left where it is: %s.\n", j.stable)

	deploy := fmt.Sprintf("agnesctl canary deploy --host ssh://USER@HOST --host-key 'ssh-ed25519 …' --image %s --tag %s", j.Registry, VersionTag(j.claim.Channel, j.version))
	if j.image.Digest != "" {
		deploy += " --digest " + j.image.Digest
	}
	fmt.Fprintf(&b, "\nTo do: mend what was in the way and test again. Run the workflow again, or by hand:\n\n    %s\n", deploy)
	places := "\n"
	if j.Places != "" {
		places = " " + j.Places + "\n"
	}
	b.WriteString("\nThen say what came of it, good or bad; either closes this issue:\n\n")
	fmt.Fprintf(&b, "    release-bot verdict %s pass%s", j.version, places)
	if j.claim.Channel == Stable {
		fmt.Fprintf(&b, "    release-bot rollback --failed %s --reason '…'%s", j.version, places)
		fmt.Fprintf(&b, "\nWhere promotion is gated, a pass is followed by:\n\n    release-bot promote %s%s", j.version, places)
	} else {
		fmt.Fprintf(&b, "    release-bot verdict %s fail --detail '…'%s", j.version, places)
	}
	return b.String()
}

// record writes a verdict into the ledger, unless one that is as strong is there.
// It returns what was there before.
func (p *Publisher) record(ctx context.Context, v Version, verdict Verdict, detail string) (before verdictEntry, o outcome, err error) {
	if _, err := p.claimed(ctx, v); err != nil {
		return before, outcome{}, err
	}
	known, err := p.Ledger.verdictEntries(ctx, v.String())
	if err != nil {
		return before, outcome{}, err
	}
	before = known[v]
	have := before.verdict
	refused := verdict == VerdictPass && have == VerdictFail
	switch {
	case !refused && !verdict.outweighs(have):
		return before, skipped("the verdict of %s is %s already", v, have), nil
	case p.DryRun && !refused:
		return before, p.did("the verdict of %s is %s", v, verdict), nil
	}
	return before, p.did("the verdict of %s is %s", v, verdict), p.Ledger.Record(ctx, v, verdict, detail)
}
