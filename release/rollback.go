package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// rollback is one run of Rollback.
type rollback struct {
	*Publisher
	out    Withdrawn
	failed Version
	wanted Version // by the caller; zero: the best one
	reason string

	claim    Claim
	image    Manifest // of the failed version; zero when it is not in the registry
	shelf    shelf
	known    book
	at       string  // digest of :stable before
	newer    Version // what :stable is at, when that is neither the failed version nor unknown
	target   Version // what :stable goes back to
	manifest Manifest
	noTarget error
	before   verdictEntry // the ledger's verdicts of the failed version
}

// Rollback takes a failed stable version back. :stable is restored first,
// because every minute it is wrong instances may pull it; the ledger and the tag
// deprecated-V come second, the alert third. :stable is only touched when it
// points at the failed image or does not exist, and never goes to a version
// that failed, is deprecated, or is not complete in the registry. Where there is
// no other, a version will do that was deprecated for the failed one's sake alone, by
// its breaking release. Where no good version exists, it stays, everything else is done, and the error is
// problem.Refused.
func (p *Publisher) Rollback(ctx context.Context, failed, to Version, reason string) (Withdrawn, error) {
	r := rollback{
		Publisher: p, failed: failed, wanted: to, reason: cmp.Or(strings.TrimSpace(reason), "Failed after release."),
		out: Withdrawn{Failed: failed, DeprecatedTag: DeprecatedTag(failed), DryRun: p.DryRun},
	}
	steps := []step{
		{name: "look", run: r.look},
		{name: "choose", run: r.choose},
		{name: "restore", run: r.restore},
		{name: "verdict", run: func(ctx context.Context) (o outcome, err error) {
			r.before, o, err = r.record(ctx, failed, VerdictFail, r.reason)
			return o, err
		}},
		{name: "ledger", run: func(ctx context.Context) (outcome, error) { return r.write(ctx, &r.out, r.reason) }},
		{name: "tag", run: func(ctx context.Context) (outcome, error) { return r.markDeprecated(ctx, r.image, failed) }},
		{name: "look again", run: r.lookAgain},
	}
	steps = append(steps, r.telling(r.incident, &r.out.IssueURL)...)
	steps = append(steps, step{name: "settle", run: func(ctx context.Context) (outcome, error) { return r.settle(ctx, failed, r.before, VerdictFail) }})
	ran, err := walk(ctx, steps)
	r.out.Steps = ran
	return r.out, cmp.Or(err, r.noTarget)
}

func (r *rollback) look(ctx context.Context) (outcome, error) {
	c, err := r.claimed(ctx, r.failed)
	if err != nil {
		return outcome{}, err
	}
	if c.Channel != Stable {
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected a version of stable, found that %s is one of %s: nobody follows it in production", r.failed, c.Channel),
			fmt.Sprintf("release-bot deprecate %s --reason …", r.failed))
	}
	r.claim = c
	if r.known, err = r.book(ctx); err != nil {
		return outcome{}, err
	}
	if r.shelf, err = r.Publisher.shelf(ctx, Stable); err != nil {
		return outcome{}, err
	}
	if r.at, err = r.Registry.Digest(ctx, string(Stable)); err != nil && !errors.Is(err, ErrNotFound) {
		return outcome{}, err
	}
	r.out.StableDigest = r.at
	if r.image, err = r.published(ctx, c); err != nil {
		return outcome{}, err
	}
	switch r.at {
	case "":
		return looked(":stable does not exist"), nil
	case r.image.Digest:
		return looked(":stable is at the failed version"), nil
	}
	v, ok, err := r.whose(ctx, Stable, r.shelf.versions, r.at)
	if err != nil {
		return outcome{}, err
	}
	if !ok {
		return looked(":stable is at %s, which is none of the newest versions", r.at), nil
	}
	r.newer, r.out.Stable = v, v.String()
	return looked(":stable is at %s", v), nil
}

// mustMove reports whether :stable has to be restored.
func (r *rollback) mustMove() bool { return r.at == "" || r.at == r.image.Digest }

// choose finds where to go: what the caller wants, or the newest stable version
// below the failed one that nothing speaks against; above it only one that passed.
func (r *rollback) choose(ctx context.Context) (outcome, error) {
	if !r.wanted.IsZero() {
		return r.chooseWanted(ctx)
	}
	var passedOver []string
	for _, v := range r.shelf.versions {
		if v == r.failed {
			continue
		}
		if v.Compare(r.failed) > 0 && r.known.verdicts[v] != VerdictPass {
			passedOver = append(passedOver, v.String()+" "+cmp.Or(r.known.against(r.shelf, v), "is newer and has not passed"))
			continue
		}
		m, why, err := r.usable(ctx, v, false)
		if err != nil {
			return outcome{}, err
		}
		if why == "" {
			r.target, r.manifest = v, m
			break
		}
		passedOver = append(passedOver, v.String()+" "+why)
	}
	if r.target.IsZero() {
		if err := r.chooseSuperseded(ctx); err != nil {
			return outcome{}, err
		}
		if !r.target.IsZero() {
			return looked("%s, which was deprecated for %s alone", r.target, r.failed), nil
		}
	}
	found := "there is no other"
	if len(passedOver) > 0 {
		found = strings.Join(passedOver[:min(5, len(passedOver))], ", ")
	}
	if !r.target.IsZero() {
		if len(passedOver) > 0 {
			return looked("%s is the newest good version; %s", r.target, found), nil
		}
		return looked("%s is the newest good version", r.target), nil
	}
	if r.mustMove() {
		r.noTarget = problem.New(problem.Refused, fmt.Sprintf("expected a good stable version to go back to, found none: %s; :stable was left as it is", found),
			"release a fix: its publication moves :stable forward; what there is: release-bot version list --channel stable")
	}
	return skipped("there is no good version to go back to: %s", found), nil
}

// chooseSuperseded takes the newest version that only the failed one's breaking
// release deprecated: its replacement is no good, so it is the best there is.
func (r *rollback) chooseSuperseded(ctx context.Context) error {
	superseded, err := r.superseded(ctx)
	if err != nil {
		return err
	}
	for _, v := range r.shelf.versions {
		if !superseded[v] || v.Compare(r.failed) >= 0 {
			continue
		}
		m, why, err := r.usable(ctx, v, true)
		if err != nil {
			return err
		}
		if why == "" {
			r.target, r.manifest = v, m
			return nil
		}
	}
	return nil
}

// superseded returns the versions whose deprecation names the failed one as
// what to use instead.
func (r *rollback) superseded(ctx context.Context) (map[Version]bool, error) {
	all, err := r.Ledger.Deprecations(ctx)
	if err != nil {
		return nil, err
	}
	found := map[Version]bool{}
	for v, d := range all {
		found[v] = d.Replacement == r.failed
	}
	return found, nil
}

func (r *rollback) chooseWanted(ctx context.Context) (outcome, error) {
	why := "is the failed version itself"
	if r.wanted != r.failed {
		c, err := r.claimed(ctx, r.wanted)
		if err != nil {
			return outcome{}, err
		}
		if c.Channel != Stable {
			why = "is a version of " + string(c.Channel)
		} else {
			superseded, err := r.superseded(ctx)
			if err != nil {
				return outcome{}, err
			}
			if r.manifest, why, err = r.usable(ctx, r.wanted, superseded[r.wanted]); err != nil {
				return outcome{}, err
			}
		}
	}
	if why != "" {
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected a good stable version to go back to, found that %s %s; nothing was done", r.wanted, why),
			fmt.Sprintf("leave --to away for the newest good one: release-bot rollback --failed %s", r.failed))
	}
	r.target = r.wanted
	return looked("%s, as asked for", r.target), nil
}

// usable says why a version cannot be gone back to, or nothing. Forgiven is one
// whose deprecation does not count.
func (r *rollback) usable(ctx context.Context, v Version, forgiven bool) (m Manifest, why string, err error) {
	if why := r.known.against(r.shelf, v); why != "" && (!forgiven || r.known.verdicts[v] == VerdictFail) {
		return Manifest{}, why, nil
	}
	m, err = r.Publisher.image(ctx, Stable, v)
	if errors.Is(err, ErrNotFound) {
		return Manifest{}, "is missing in the registry", nil
	}
	if err != nil {
		return Manifest{}, "", err
	}
	if m.Digest == r.image.Digest {
		return Manifest{}, "is the failed image under another name", nil
	}
	links, err := m.Links()
	if err != nil {
		return Manifest{}, "", err
	}
	found, err := r.digests(ctx, links.Children)
	if err != nil {
		return Manifest{}, "", err
	}
	if slices.Contains(found, "") {
		return Manifest{}, "lacks a platform in the registry", nil
	}
	return m, "", nil
}

func (r *rollback) restore(ctx context.Context) (outcome, error) {
	switch {
	case !r.mustMove():
		r.out.Replacement = cmp.Or(r.newer, r.target)
		if r.newer == r.target && !r.target.IsZero() {
			return skipped(":stable is at %s already", r.target), nil
		}
		if r.newer.IsZero() {
			return skipped(":stable is not at the failed version: it is at %s", r.at), nil
		}
		if why := r.known.against(r.shelf, r.newer); why != "" {
			r.out.Replacement = r.target
			return skipped(":stable is not at the failed version, but at %s, which %s, too: release-bot rollback --failed %s", r.newer, why, r.newer), nil
		}
		return skipped(":stable is not at the failed version: it is at %s", r.newer), nil
	case r.noTarget != nil:
		if r.at != "" {
			r.out.Stable = r.failed.String()
		}
		return skipped("there is no good version to go back to; :stable stays"), nil
	}
	if err := r.put(ctx, r.manifest, string(Stable)); err != nil {
		return outcome{}, err
	}
	r.out.Replacement = r.target
	r.out.Stable, r.out.StableDigest = r.target.String(), r.manifest.Digest
	return r.did(":stable is back at %s, %s", r.target, r.manifest.Digest), nil
}

// lookAgain finds out whether a publication of the failed version that was
// still running took :stable once more: from now on the tag deprecated-V
// keeps it from doing so.
func (r *rollback) lookAgain(ctx context.Context) (outcome, error) {
	if r.DryRun || r.image.Digest == "" || r.target.IsZero() {
		return skipped("nothing was moved"), nil
	}
	at, err := r.Registry.Digest(ctx, string(Stable))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return outcome{}, err
	}
	if at != "" && at != r.image.Digest {
		return skipped(":stable stayed"), nil
	}
	if err := r.put(ctx, r.manifest, string(Stable)); err != nil {
		return outcome{}, err
	}
	r.out.Stable, r.out.StableDigest = r.target.String(), r.manifest.Digest
	return r.did(":stable had been moved to the failed version meanwhile and is back at %s", r.target), nil
}

func (r *rollback) incident() *incident {
	reason := strings.TrimSuffix(r.reason, ".") + "."
	notice := fmt.Sprintf("Release %s failed: %s :stable is at %s.", r.failed, reason, cmp.Or(r.out.Stable, "nothing"))
	if r.out.Stable == r.failed.String() {
		notice = fmt.Sprintf("Release %s failed: %s There is no good version to go back to, and :stable is still at it.", r.failed, reason)
	}
	return &incident{
		kind: "rollback", version: r.failed, title: fmt.Sprintf("Release %s failed", r.failed), body: r.text(), label: "rollback", notice: notice,
	}
}

// text is the alert in Markdown. It leaves out whatever a second run of the same
// rollback would say differently.
func (r *rollback) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Version **%s** (commit %s) failed and is deprecated: %s\n\n", r.failed, r.claim.Commit, r.reason)
	switch {
	case r.out.Stable == "" || r.out.Stable == r.failed.String():
		fmt.Fprintf(&b, "**There is no good version to go back to. `:stable` still gives what it gave: release a fix.**\n")
	default:
		fmt.Fprintf(&b, "`:stable` is at **%s** (`%s`). Hosts that follow it go back by themselves.\n", r.out.Stable, r.out.StableDigest)
	}
	fmt.Fprintf(&b, "\nImage: `%s:%s`\n", r.Registry, r.out.DeprecatedTag)
	b.WriteString("\nTo do: find the cause, release a fix, close this issue. The version itself never becomes good again.\n")
	return b.String()
}
