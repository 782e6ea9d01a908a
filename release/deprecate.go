package release

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Withdrawn is the answer of Deprecate and of Rollback.
type Withdrawn struct {
	Stable        string  `json:"stable"`        // the version that :stable is at; empty: none that is known
	StableDigest  string  `json:"stable_digest"` // what it points at; empty: it does not exist
	Failed        Version `json:"failed"`        // the version that should be left
	DeprecatedTag string  `json:"deprecated_tag"`
	Replacement   Version `json:"replacement,omitzero"`
	IssueURL      string  `json:"issue_url"`
	DryRun        bool    `json:"dry_run,omitempty"`
	Steps         []Step  `json:"steps"`
}

// Deprecate says that a version should be left: in the ledger first, which is
// what its 30 days are counted from, then by the tag deprecated-V on its
// image, which instances look for. Repeating it adds what is missing; the first
// entry stays as it is.
func (p *Publisher) Deprecate(ctx context.Context, v Version, reason string, replacement Version) (Withdrawn, error) {
	out := Withdrawn{Failed: v, DeprecatedTag: DeprecatedTag(v), Replacement: replacement, DryRun: p.DryRun}
	switch {
	case strings.TrimSpace(reason) == "":
		return out, problem.New(problem.Usage, "expected a reason: people and instances read it", fmt.Sprintf("release-bot deprecate %s --reason 'loses rows of incremental tables'", v))
	case replacement == v:
		return out, problem.New(problem.Usage, fmt.Sprintf("expected a replacement other than %s itself", v), "release-bot version list --channel stable")
	}
	var image Manifest
	ran, err := walk(ctx, []step{
		{name: "image", run: func(ctx context.Context) (outcome, error) {
			c, err := p.claimed(ctx, v)
			if err != nil {
				return outcome{}, err
			}
			if !replacement.IsZero() {
				if _, err := p.claimed(ctx, replacement); err != nil {
					return outcome{}, err
				}
				known, err := p.book(ctx)
				if err != nil {
					return outcome{}, err
				}
				if why := known.against(shelf{}, replacement); why != "" {
					return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected a good version as the replacement of %s, found that %s %s", v, replacement, why),
						"release-bot version list --channel stable")
				}
			}
			if image, err = p.published(ctx, c); err != nil {
				return outcome{}, err
			}
			return p.whereStable(ctx, &out, c, image)
		}},
		{name: "ledger", run: func(ctx context.Context) (outcome, error) { return p.write(ctx, &out, reason) }},
		{name: "tag", run: func(ctx context.Context) (outcome, error) { return p.markDeprecated(ctx, image, v) }},
	})
	out.Steps = ran
	return out, err
}

// published reads a version's image; one that is not in the registry is the
// zero Manifest.
func (p *Publisher) published(ctx context.Context, c Claim) (Manifest, error) {
	m, err := p.image(ctx, c.Channel, c.Version)
	if errors.Is(err, ErrNotFound) {
		return Manifest{}, nil
	}
	return m, err
}

// whereStable fills in where :stable is, and warns when that is at the version
// itself: everybody who follows it gets a deprecated one.
func (p *Publisher) whereStable(ctx context.Context, out *Withdrawn, c Claim, image Manifest) (outcome, error) {
	at, err := p.Registry.Digest(ctx, string(Stable))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return outcome{}, err
	}
	out.StableDigest = at
	found := image.Digest
	if found == "" {
		found = "not in the registry"
	}
	if at != "" && at == image.Digest && c.Channel == Stable {
		out.Stable = c.Version.String()
		return looked("%s; :stable is at it, too: publish a newer version, or release-bot rollback --failed %s", found, c.Version), nil
	}
	s, err := p.shelf(ctx, Stable)
	if err != nil {
		return outcome{}, err
	}
	if v, ok, err := p.whose(ctx, Stable, s.versions, at); err != nil {
		return outcome{}, err
	} else if ok {
		out.Stable = v.String()
	}
	return looked("%s is %s", VersionTag(c.Channel, c.Version), found), nil
}

// write adds the ledger's entry, or finds the one that is there and takes its
// replacement over.
func (p *Publisher) write(ctx context.Context, out *Withdrawn, reason string) (outcome, error) {
	if p.DryRun {
		known, err := p.Ledger.Deprecations(ctx)
		if err != nil {
			return outcome{}, err
		}
		if d, there := known[out.Failed]; there {
			return standing(out, d), nil
		}
		return p.did("%s is deprecated", out.Failed), nil
	}
	d, created, err := p.Ledger.Deprecate(ctx, out.Failed, reason, out.Replacement)
	if err != nil {
		return outcome{}, err
	}
	if !created {
		return standing(out, d), nil
	}
	out.Replacement = d.Replacement
	return p.did("%s is deprecated", out.Failed), nil
}

// standing tells of the entry that is there, and whose words count.
func standing(out *Withdrawn, d Deprecation) outcome {
	o := skipped("%s is deprecated since %s: %s", out.Failed, d.At.Format("2006-01-02"), d.Reason)
	if !out.Replacement.IsZero() && d.Replacement != out.Replacement {
		instead := "none"
		if !d.Replacement.IsZero() {
			instead = d.Replacement.String()
		}
		o.detail += fmt.Sprintf(" (the first entry stays, and so does its replacement: %s)", instead)
	}
	out.Replacement = d.Replacement
	return o
}

func (p *Publisher) markDeprecated(ctx context.Context, image Manifest, v Version) (outcome, error) {
	if image.Digest == "" {
		return skipped("%s is not in the registry", v), nil
	}
	return p.mark(ctx, image, DeprecatedTag(v))
}
