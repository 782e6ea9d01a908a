package release_test

import (
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

func TestAFailedBreakingReleaseGoesBackToWhatItSuperseded(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]bool{"by itself": false, "as asked for": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			good := h.stable(t, 1)[0]
			b := h.build(t, release.Stable)
			b.Breaking = true
			h.publish(t, b)
			var wanted release.Version
			if to {
				wanted = good.Version
			}
			got, err := h.publisher(t).Rollback(t.Context(), b.Version, wanted, "smoke failed")
			if err != nil || got.Stable != good.Version.String() {
				t.Fatalf("%+v, %v, want :stable at %s", got, err, good.Version)
			}
			h.expect(t, map[string]string{"stable": good.Digest, release.DeprecatedTag(b.Version): b.Digest})
			again, err := h.publisher(t).Rollback(t.Context(), b.Version, wanted, "smoke failed")
			if err != nil || again.Stable != got.Stable || release.Wrote(again.Steps) {
				t.Errorf("again: %+v, %v", again, err)
			}
		})
	}
}

func TestAVersionDeprecatedForItsOwnFaultsIsNoWayBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 2)
	if _, err := h.publisher(t).Deprecate(t.Context(), all[0].Version, "loses rows", release.Version{}); err != nil {
		t.Fatal(err)
	}
	_, err := h.publisher(t).Rollback(t.Context(), all[1].Version, release.Version{}, "")
	refused(t, err, all[0].Version.String(), "deprecated")
	h.expect(t, map[string]string{"stable": all[1].Digest})
}

func TestWhatAnOlderGoodVersionIsGoesBeforeASupersededOne(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 2)
	b := h.build(t, release.Stable)
	b.Breaking = true
	h.publish(t, b) // deprecates the second, not the first
	got, err := h.publisher(t).Rollback(t.Context(), b.Version, release.Version{}, "")
	if err != nil || got.Stable != all[0].Version.String() {
		t.Errorf("%+v, %v, want %s, which nothing speaks against", got, err, all[0].Version)
	}
}

func TestAnImageThatFailedIsNotPublishedUnderAnotherName(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	if _, err := h.publisher(t).Rollback(t.Context(), all[2].Version, release.Version{}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := h.publisher(t).Deprecate(t.Context(), all[0].Version, "loses rows", release.Version{}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []release.Build{all[2], all[0]} {
		next := h.build(t, release.Stable)
		next.Digest = bad.Digest
		h.Requests()
		_, err := h.publisher(t).Publish(t.Context(), next)
		refused(t, err, next.Version.String(), bad.Version.String(), bad.Digest)
		if w := ocitest.Writes(h.Requests()); len(w) > 0 {
			t.Errorf("wrote %+v before it refused", w)
		}
	}
	h.expect(t, map[string]string{"stable": all[1].Digest})
}

func TestKeepFirstGoesOnWithTheImageThatIsThere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	b := h.build(t, release.Stable)
	first := b.Digest
	b.KeepFirst = true
	if got := h.publish(t, b); got.Digest != first {
		t.Errorf("nothing is there yet, but %s was published", got.Digest)
	}
	b.Digest = h.Push(t, ocitest.Image{Text: "built once more"}).Digest
	got := h.publish(t, b)
	if got.Digest != first || release.Wrote(got.Steps) {
		t.Errorf("%+v, want %s and nothing written", got, first)
	}
	h.expect(t, map[string]string{"stable": first, release.VersionTag(release.Stable, b.Version): first})
}

func TestABreakingReleaseDeprecatesWhatStableWasAt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	good := h.stable(t, 1)[0]
	skipped := h.build(t, release.Stable)
	skipped.Gated = true // published, and never stable
	h.publish(t, skipped)
	b := h.build(t, release.Stable)
	b.Breaking = true
	if got := h.publish(t, b); got.Deprecated != good.Version {
		t.Errorf("deprecated %s, want %s, which people run", got.Deprecated, good.Version)
	}
}

func TestAReplacementIsAGoodVersion(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	p := h.publisher(t)
	if _, err := p.Deprecate(t.Context(), all[1].Version, "loses rows", release.Version{}); err != nil {
		t.Fatal(err)
	}
	_, err := p.Deprecate(t.Context(), all[0].Version, "loses rows", all[1].Version)
	refused(t, err, all[0].Version.String(), all[1].Version.String(), "deprecated")

	if _, err := p.Deprecate(t.Context(), all[0].Version, "loses rows", release.Version{}); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		p.DryRun = dry
		got, err := p.Deprecate(t.Context(), all[0].Version, "loses rows", all[2].Version)
		if err != nil || !got.Replacement.IsZero() {
			t.Errorf("dry run %v: %+v, %v, want the first entry, which has no replacement", dry, got, err)
		}
		if !strings.Contains(got.Steps[1].Detail, "the first entry stays") {
			t.Errorf("dry run %v: %+v does not say that the replacement was not taken", dry, got.Steps)
		}
	}
}
