package release

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Channel is a stream of releases that instances follow; its name is also its
// floating tag.
type Channel string

// The channels that builds are made for. "Deprecated" is a state of a version,
// kept in the ledger, and not a channel that anything is built for.
const (
	Dev    Channel = "dev"
	Stable Channel = "stable"
)

// ParseChannel reads "dev" or "stable".
func ParseChannel(s string) (Channel, error) {
	switch c := Channel(s); c {
	case Dev, Stable:
		return c, nil
	default:
		return "", problem.New(problem.Usage, fmt.Sprintf("expected the channel dev or stable, found %q", s), "release-bot version claim --channel stable")
	}
}

var commitText = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// ParseCommit checks that s is a whole commit id: abbreviations are ambiguous
// one day.
func ParseCommit(s string) (string, error) {
	if !commitText.MatchString(s) {
		return "", problem.New(problem.Usage, fmt.Sprintf("expected a full commit id of 40 hexadecimal digits, found %q", s),
			`release-bot … --commit "$(git rev-parse HEAD)"`)
	}
	return s, nil
}

// Tags are the image tags of one build, by kind.
type Tags struct {
	Floating string   // moves forward with each build: dev or stable
	Version  []string // name this version forever
	Commit   []string // name this commit; kept by the first build of it
}

// TagsFor returns the tags that a build of commit as version sets.
//
//	dev:    dev, dev-YYYY.MM.N, sha-abc1234, dev-sha-abc1234
//	stable: stable, stable-YYYY.MM.N, YYYY.MM.N, sha-abc1234
func TagsFor(c Channel, v Version, commit string) Tags {
	short := "sha-" + commit[:7]
	if c == Stable {
		return Tags{Floating: string(c), Version: []string{VersionTag(c, v), v.String()}, Commit: []string{short}}
	}
	return Tags{Floating: string(c), Version: []string{VersionTag(c, v)}, Commit: []string{short, "dev-" + short}}
}

// All returns the tags in the order in which people read them: floating first.
func (t Tags) All() []string {
	return append(append([]string{t.Floating}, t.Version...), t.Commit...)
}

// VersionTag is the tag that customers pin: stable-2026.04.3.
func VersionTag(c Channel, v Version) string { return string(c) + "-" + v.String() }

// ConfirmedTag says that a version passed its smoke test.
func ConfirmedTag(v Version) string { return "confirmed-" + v.String() }

// DeprecatedTag says that a version should be left.
func DeprecatedTag(v Version) string { return "deprecated-" + v.String() }

// TagKind is what a tag's text says of it.
type TagKind string

// The kinds. TagForeign is everything that this package did not set: it is
// never moved and never deleted.
const (
	TagFloating   TagKind = "floating"
	TagVersion    TagKind = "version" // of a channel: dev-2026.04.3, stable-2026.04.3
	TagNumber     TagKind = "number"  // 2026.04.3
	TagCommit     TagKind = "commit"  // sha-abc1234, dev-sha-abc1234
	TagConfirmed  TagKind = "confirmed"
	TagDeprecated TagKind = "deprecated"
	TagReferrer   TagKind = "referrer" // sha256-<hex>, with .sig, .att or .sbom of cosign
	TagForeign    TagKind = "foreign"
)

var (
	commitTag   = regexp.MustCompile(`^(?:dev-)?sha-[0-9a-f]{7,64}$`)
	referrerTag = regexp.MustCompile(`^sha256-([0-9a-f]{64})(?:\.[a-z0-9]+)?$`)
)

// ParsedTag is a tag taken apart.
type ParsedTag struct {
	Kind    TagKind
	Channel Channel // of floating and version tags
	Version Version // of version, number, confirmed and deprecated tags
	Subject string  // of referrer tags: the digest that they are about, "sha256:…"
}

// ParseTag takes a tag apart. It never fails: what it does not know is foreign.
func ParseTag(tag string) ParsedTag {
	switch {
	case tag == string(Dev) || tag == string(Stable):
		return ParsedTag{Kind: TagFloating, Channel: Channel(tag)}
	case commitTag.MatchString(tag):
		return ParsedTag{Kind: TagCommit}
	}
	if m := referrerTag.FindStringSubmatch(tag); m != nil {
		return ParsedTag{Kind: TagReferrer, Subject: "sha256:" + m[1]}
	}
	if v, err := ParseVersion(tag); err == nil {
		return ParsedTag{Kind: TagNumber, Version: v}
	}
	word, rest, _ := strings.Cut(tag, "-")
	v, err := ParseVersion(rest)
	if err != nil {
		return ParsedTag{Kind: TagForeign}
	}
	switch word {
	case string(Dev), string(Stable):
		return ParsedTag{Kind: TagVersion, Channel: Channel(word), Version: v}
	case "confirmed":
		return ParsedTag{Kind: TagConfirmed, Version: v}
	case "deprecated":
		return ParsedTag{Kind: TagDeprecated, Version: v}
	default:
		return ParsedTag{Kind: TagForeign}
	}
}
