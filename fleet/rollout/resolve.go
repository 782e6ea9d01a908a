package rollout

import (
	"context"
	"errors"
	"fmt"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Resolve asks a registry once what a tag points at, and what that image is. With
// a digest the tag only names it. A deprecated version is refused.
func Resolve(ctx context.Context, registry release.Registry, tag, digest string) (Target, error) {
	t := Target{Image: registry.String(), Tag: tag, Digest: digest}
	unsaid := func(err error, ref string) error {
		if problem.As(err).Kind != problem.Internal {
			return err
		}
		return problem.Wrap(err, problem.Inconclusive, "The registry did not say what "+registry.String()+":"+ref+" is", "Try again in a moment: nothing was begun.")
	}
	var err error
	if digest == "" {
		t.Digest, err = registry.Digest(ctx, tag)
		if errors.Is(err, release.ErrNotFound) {
			return t, problem.New(problem.NotFound, fmt.Sprintf("expected the tag %s in %s, found none", tag, registry), "See which there are: release-bot version list")
		}
		if err != nil {
			return t, unsaid(err, tag)
		}
	}
	if !release.IsDigest(t.Digest) {
		return t, problem.New(problem.Usage, fmt.Sprintf("expected a digest sha256: and 64 hexadecimal digits, found %q", t.Digest), "Copy it from the registry: crane digest IMAGE:TAG")
	}
	manifest, err := registry.Manifest(ctx, t.Digest)
	if errors.Is(err, release.ErrNotFound) {
		return t, problem.New(problem.NotFound, fmt.Sprintf("expected the image %s in %s, found none", t.Digest, registry), "See which there are: release-bot version list")
	}
	if err != nil {
		return t, unsaid(err, t.Digest)
	}
	labels, err := registry.Labels(ctx, manifest)
	if err != nil {
		return t, unsaid(err, t.Digest)
	}
	t.Version, t.Channel = labels[labelVersion], labels[labelChannel]
	if t.Version == "" {
		return t, problem.New(problem.Unprocessable, fmt.Sprintf("expected the label %s of %s@%s, found none: no instance could be asked whether it runs it", labelVersion, registry, t.Digest),
			"Publish it by the release workflow, which sets the labels: docs/release.md")
	}
	withdrawn, err := registry.Digest(ctx, "deprecated-"+t.Version)
	switch {
	case err == nil && withdrawn == t.Digest:
		return t, problem.New(problem.Refused, fmt.Sprintf("%s is deprecated.", t.Version), "Take another version: release-bot version list").WithCode("deprecated")
	case err != nil && !errors.Is(err, release.ErrNotFound):
		return t, unsaid(err, "deprecated-"+t.Version)
	}
	if t.Tag == "" {
		t.Tag = t.Version
		if t.Channel != "" {
			t.Tag = t.Channel + "-" + t.Version
		}
	}
	return t, nil
}

// Labels of an image; docs/release.md lists them.
const (
	labelVersion = "org.opencontainers.image.version"
	labelChannel = "io.agnes.channel"
)

// UnreachableBudget is a share of all members with at least one, or exactly a
// number.
func UnreachableBudget(l fleet.Limit, members int) int {
	if l.Percent != 0 {
		return l.Of(members)
	}
	return l.Count
}

// Size counts the members.
func (r *Rollout) Size() (n int) {
	for _, w := range r.Waves {
		n += len(w.Members)
	}
	return n
}

// Count counts the members in a state.
func (r *Rollout) Count(state MemberState) (n int) {
	for i := range r.Waves {
		n += r.Waves[i].count(state)
	}
	return n
}

// Pulls reports whether a member's host fetches by itself what is wanted.
func (r *Rollout) Pulls() bool {
	for _, w := range r.Waves {
		for _, m := range w.Members {
			if m.Delivery == fleet.Pull {
				return true
			}
		}
	}
	return false
}
