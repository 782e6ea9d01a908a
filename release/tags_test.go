package release_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

const shaOne = "abc1234000000000000000000000000000000000"

func TestTheTagsOfABuild(t *testing.T) {
	t.Parallel()
	for channel, want := range map[release.Channel][]string{
		release.Dev:    {"dev", "dev-2026.04.3", "sha-abc1234", "dev-sha-abc1234"},
		release.Stable: {"stable", "stable-2026.04.3", "2026.04.3", "sha-abc1234"},
	} {
		got := release.TagsFor(channel, ver(t, "2026.04.3"), shaOne).All()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", channel, diff)
		}
	}
}

func TestATagIsTakenApart(t *testing.T) {
	t.Parallel()
	v := ver(t, "2026.04.3")
	hash := strings.Repeat("0a", 32)
	for tag, want := range map[string]release.ParsedTag{
		"dev":                     {Kind: release.TagFloating, Channel: release.Dev},
		"stable":                  {Kind: release.TagFloating, Channel: release.Stable},
		"dev-2026.04.3":           {Kind: release.TagVersion, Channel: release.Dev, Version: v},
		"stable-2026.04.3":        {Kind: release.TagVersion, Channel: release.Stable, Version: v},
		"2026.04.3":               {Kind: release.TagNumber, Version: v},
		"confirmed-2026.04.3":     {Kind: release.TagConfirmed, Version: v},
		"deprecated-2026.04.3":    {Kind: release.TagDeprecated, Version: v},
		"sha-abc1234":             {Kind: release.TagCommit},
		"dev-sha-abc1234":         {Kind: release.TagCommit},
		"sha256-" + hash:          {Kind: release.TagReferrer, Subject: "sha256:" + hash},
		"sha256-" + hash + ".sig": {Kind: release.TagReferrer, Subject: "sha256:" + hash},
		"sha256-" + hash + ".att": {Kind: release.TagReferrer, Subject: "sha256:" + hash},
	} {
		if diff := cmp.Diff(want, release.ParseTag(tag)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tag, diff)
		}
	}
	for _, tag := range []string{
		"", "latest", "stable-", "-2026.04.3", "stable-2026.4.3", "stable-2026.04.03", "Stable", "release-2026.04.3", "stable-sha-abc1234",
		"sha-abc123", "sha-ABC1234", "sha-xyz1234", "sha256-" + hash[1:], "v2026.04.3", "stable-2026.04.3-arm64", "dev-dev-2026.04.3", "stable--2026.04.3",
	} {
		if got := release.ParseTag(tag); got != (release.ParsedTag{Kind: release.TagForeign}) {
			t.Errorf("%q is taken for %+v, want foreign", tag, got)
		}
	}
}

func TestAChannelAndACommitAreRead(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "Stable", "deprecated", "dev "} {
		if _, err := release.ParseChannel(s); !problem.Is(err, problem.Usage) {
			t.Errorf("channel %q: %v", s, err)
		}
	}
	for _, s := range []string{"", "abc1234", strings.ToUpper(shaOne), shaOne + "0", "HEAD", shaOne + "\n"} {
		if _, err := release.ParseCommit(s); !problem.Is(err, problem.Usage) {
			t.Errorf("commit %q: %v", s, err)
		}
	}
	for _, s := range []string{shaOne, strings.Repeat("ab", 32)} {
		if got, err := release.ParseCommit(s); err != nil || got != s {
			t.Errorf("commit %q: %q, %v", s, got, err)
		}
	}
}

// Whatever is set on an image is recognized again, and as what it is.
func FuzzTags(f *testing.F) {
	f.Add("2026.04.3", shaOne, true)
	f.Add("2026.12.999", strings.Repeat("f", 40), false)
	f.Add("dev", "sha-abc", true)
	f.Fuzz(func(t *testing.T, text, commit string, stable bool) {
		release.ParseTag(text) // never panics
		if got := release.ParseTag(text); got.Kind != release.TagForeign && got.Kind != release.TagCommit && got.Kind != release.TagReferrer &&
			got.Kind != release.TagFloating && !strings.Contains(text, got.Version.String()) {
			t.Errorf("%q is taken for %+v", text, got)
		}
		v, err := release.ParseVersion(text)
		if err != nil {
			return
		}
		if _, err := release.ParseCommit(commit); err != nil {
			return
		}
		channel := release.Dev
		if stable {
			channel = release.Stable
		}
		tags := release.TagsFor(channel, v, commit)
		if got := release.ParseTag(tags.Floating); got.Kind != release.TagFloating || got.Channel != channel {
			t.Errorf("%s is taken for %+v", tags.Floating, got)
		}
		for _, tag := range tags.Version {
			got := release.ParseTag(tag)
			if got.Version != v || got.Kind == release.TagVersion && got.Channel != channel || got.Kind != release.TagVersion && got.Kind != release.TagNumber {
				t.Errorf("%s is taken for %+v", tag, got)
			}
		}
		for _, tag := range tags.Commit {
			if got := release.ParseTag(tag); got.Kind != release.TagCommit {
				t.Errorf("%s is taken for %+v", tag, got)
			}
		}
		for kind, tag := range map[release.TagKind]string{release.TagConfirmed: release.ConfirmedTag(v), release.TagDeprecated: release.DeprecatedTag(v)} {
			if got := release.ParseTag(tag); got.Kind != kind || got.Version != v {
				t.Errorf("%s is taken for %+v", tag, got)
			}
		}
		if all := tags.All(); len(all) != 4 || len(slices.Compact(slices.Sorted(slices.Values(all)))) != 4 {
			t.Errorf("%v: want four different tags", all)
		}
	})
}
