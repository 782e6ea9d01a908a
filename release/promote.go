package release

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// promotion is one run of Promote.
type promotion struct {
	*Publisher
	version  Version
	claim    Claim
	manifest Manifest
	move     TagMove
	stands   bool // the floating tag is at this version or a newer one
	previous Version
}

// Promote points the floating tag at a version that was published gated and has
// the verdict pass. It moves forward only: where a newer version has the tag,
// or has passed, it stays. With breaking the stable version before it is
// deprecated, as Publish does.
func (p *Publisher) Promote(ctx context.Context, v Version, breaking bool) (Published, error) {
	pro := promotion{Publisher: p, version: v}
	steps := []step{
		{name: "verdict", run: pro.mayMove},
		{name: "read", run: pro.read},
		{name: "float", run: pro.moveFloating},
	}
	if breaking {
		steps = append(steps, step{name: "deprecate previous", run: pro.deprecatePrevious})
	}
	ran, err := walk(ctx, steps)
	out := Published{
		Version: v, Channel: pro.claim.Channel, Commit: pro.claim.Commit, Digest: pro.manifest.Digest,
		Tags: []TagMove{}, Deprecated: pro.previous, DryRun: p.DryRun, Steps: ran,
	}
	if pro.move.Tag != "" {
		out.Tags = append(out.Tags, pro.move)
	}
	return out, err
}

func (p *promotion) mayMove(ctx context.Context) (outcome, error) {
	c, err := p.claimed(ctx, p.version)
	if err != nil {
		return outcome{}, err
	}
	p.claim = c
	known, err := p.book(ctx)
	if err != nil {
		return outcome{}, err
	}
	switch verdict := known.verdicts[p.version]; {
	case verdict == VerdictFail:
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected the verdict pass for %s, found fail", p.version), "build and release a new version")
	case verdict != VerdictPass:
		found := "none"
		if verdict != "" {
			found = string(verdict)
		}
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected the verdict pass for %s, found %s", p.version, found),
			fmt.Sprintf("smoke the image, then: release-bot verdict %s pass", p.version))
	case known.deprecated[p.version]:
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected a version that is not deprecated, found that %s is", p.version), "build and release a new version")
	}
	return looked("%s passed", p.version), nil
}

func (p *promotion) read(ctx context.Context) (outcome, error) {
	m, err := p.image(ctx, p.claim.Channel, p.version)
	if errors.Is(err, ErrNotFound) {
		return outcome{}, unpublished(err, p.Registry, p.claim)
	}
	if err != nil {
		return outcome{}, err
	}
	p.manifest = m
	return looked("%s is %s", VersionTag(p.claim.Channel, p.version), m.Digest), nil
}

func unpublished(err error, r Registry, c Claim) error {
	return problem.Wrap(err, problem.NotFound, fmt.Sprintf("expected %s:%s, found no such tag", r, VersionTag(c.Channel, c.Version)),
		fmt.Sprintf("release-bot publish --registry %s --channel %s --version %s --commit %s --digest sha256:…", r, c.Channel, c.Version, c.Commit))
}

func (p *promotion) moveFloating(ctx context.Context) (outcome, error) {
	floating := string(p.claim.Channel)
	p.move.Tag = floating
	keep := func(format string, args ...any) (outcome, error) {
		p.stands = true
		p.move.Reason = fmt.Sprintf(format, args...)
		return skipped("%s: %s", floating, p.move.Reason), nil
	}
	at, err := p.Registry.Digest(ctx, floating)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return outcome{}, err
	}
	p.move.Previous = at
	if at == p.manifest.Digest {
		return keep("points there already")
	}
	s, newer, err := p.newerPassed(ctx, p.version)
	if err != nil {
		return outcome{}, err
	}
	if s.deprecated[p.version] {
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected a version that is not deprecated, found the tag %s", DeprecatedTag(p.version)), "build and release a new version")
	}
	if !newer.IsZero() {
		return keep("%s passed, too, and is newer: release-bot promote %s", newer, newer)
	}
	above := slices.DeleteFunc(slices.Clone(s.versions), func(v Version) bool { return v.Compare(p.version) <= 0 })
	if current, ok, err := p.whose(ctx, p.claim.Channel, above, at); err != nil {
		return outcome{}, err
	} else if ok {
		return keep("it is at %s, which is newer; the one way back is release-bot rollback --failed %s --to %s", current, current, p.version)
	}
	if err := p.put(ctx, p.manifest, floating); err != nil {
		return outcome{}, err
	}
	p.stands, p.move.Moved, p.move.Reason = true, true, "moved forward"
	if p.DryRun {
		return p.did("%s points at %s", floating, p.manifest.Digest), nil
	}
	// Another promotion may have been at work meanwhile: the newest that passed wins.
	for now := p.version; ; {
		_, newer, err := p.newerPassed(ctx, now)
		if err != nil {
			return outcome{}, err
		}
		if newer.IsZero() {
			break
		}
		m, err := p.image(ctx, p.claim.Channel, newer)
		if err != nil {
			return outcome{}, err
		}
		if err := p.put(ctx, m, floating); err != nil {
			return outcome{}, err
		}
		now = newer
		p.move.Moved, p.move.Reason = false, fmt.Sprintf("%s passed meanwhile and has it", newer)
	}
	return p.did("%s points at %s", floating, p.manifest.Digest), nil
}

// newerPassed returns the newest published version above v that passed, or none.
func (p *promotion) newerPassed(ctx context.Context, v Version) (shelf, Version, error) {
	s, err := p.shelf(ctx, p.claim.Channel)
	if err != nil {
		return shelf{}, Version{}, err
	}
	known, err := p.book(ctx)
	if err != nil {
		return shelf{}, Version{}, err
	}
	newer, _ := known.newest(s, func(w Version) bool { return w.Compare(v) > 0 && known.verdicts[w] == VerdictPass })
	return s, newer, nil
}

func (p *promotion) deprecatePrevious(ctx context.Context) (outcome, error) {
	if p.claim.Channel != Stable || !p.stands {
		return skipped("%s did not become stable", p.version), nil
	}
	v, o, err := p.supersede(ctx, p.version, p.move.Previous)
	p.previous = v
	return o, err
}
