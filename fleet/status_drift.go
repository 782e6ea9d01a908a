package fleet

import (
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Drift says whether an instance is what the inventory wants.
type Drift struct {
	Known   bool // false where the instance did not say enough
	Drifted bool
	Reason  string       // why it drifted, or why that is not known; empty where it is what is wanted
	Reasons []Divergence // all that differs, the version first; empty where nothing does
}

// DriftKind says what differs.
type DriftKind string

// The kinds. Each is mended in another way.
const (
	DriftVersion    DriftKind = "version"    // another version or commit than the pin's
	DriftChannel    DriftKind = "channel"    // another channel than the one that is wanted
	DriftDeprecated DriftKind = "deprecated" // follows a channel, and is on a version that was taken back
	DriftBehind     DriftKind = "behind"     // follows a channel that has moved on
	DriftDigest     DriftKind = "digest"     // the right version's name on another image
	DriftConfig     DriftKind = "config"     // other settings than those that the inventory pins
	DriftBundle     DriftKind = "bundle"     // compose files and scripts of another version than the image's
	DriftHost       DriftKind = "host"       // its host's .env names another image than the one that runs
	DriftUpdater    DriftKind = "updater"    // another program on its host updates images
)

// Divergence is one difference between what is wanted and what is.
type Divergence struct {
	Kind   DriftKind `json:"kind"`
	Wanted string    `json:"wanted"`
	Actual string    `json:"actual"`
	Text   string    `json:"text"` // for people
}

// Deploys reports whether a rollout of what is wanted mends a difference. One leaves
// alone whoever runs the wanted image, whatever else is on its host.
func (d Divergence) Deploys() bool {
	switch d.Kind {
	case DriftConfig, DriftUpdater, DriftBundle, DriftHost:
		return false
	default:
		return true
	}
}

// Drifted compares an instance with the inventory alone: Facts.Drift without facts.
func Drifted(in Instance, r Result) Drift { return Facts{}.Drift(in, r) }

// Drift compares an instance with what the inventory wants of it and what else is
// known. Its pin, or else its channel, is held against what it says that it runs. A
// pin is a version, an image tag of one (stable-2026.04.3, sha-abc1234) or a digest.
// What follows a channel has drifted when it is on another one, or on a version that
// is deprecated; and where the registry was asked, when the channel has moved on.
//
// Settings and digest are told by GET /api/health/details, which needs a token. A
// difference that is seen counts, whatever else cannot be seen.
func (f Facts) Drift(in Instance, r Result) Drift {
	c := comparison{in: in, r: r}
	c.running(f.Tags[in.Wanted()])
	c.settings()
	c.bundle()
	if h, asked := f.Hosts[in.Name]; asked {
		c.host(h)
	}
	d := Drift{Reasons: c.found}
	switch {
	case len(c.found) > 0:
		texts := make([]string, len(c.found))
		for i, one := range c.found {
			texts[i] = one.Text
		}
		d.Known, d.Drifted, d.Reason = true, true, strings.Join(texts, "; ")
	case c.unknown != "":
		d.Reason = c.unknown
	default:
		d.Known = true
	}
	return d
}

// comparison gathers what differs, and the first thing that cannot be told.
type comparison struct {
	in      Instance
	r       Result
	found   []Divergence
	unknown string
}

func (c *comparison) differs(kind DriftKind, wanted, actual, format string, args ...any) {
	c.found = append(c.found, Divergence{kind, wanted, actual, fmt.Sprintf(format, args...)})
}

func (c *comparison) unclear(format string, args ...any) {
	if c.unknown == "" {
		c.unknown = "unknown: " + fmt.Sprintf(format, args...)
	}
}

// running compares the image.
func (c *comparison) running(tag Tagged) {
	r, in := c.r, c.in
	switch {
	case r.Version == "" && r.Err != nil:
		c.unclear("it did not say what it runs (%s)", r.Health)
	case r.Version == "":
		c.unclear("it was not asked")
	case in.Pin != "":
		c.pin(in.Pin)
		if len(c.found) == 0 {
			c.digest(in.Pin, tag)
		}
	case in.Channel == "":
		c.unclear("the inventory wants neither a pin nor a channel")
	case r.Channel == "":
		c.unclear("it does not say its channel")
	case r.Channel != in.Channel:
		c.differs(DriftChannel, in.Channel, r.Channel, "runs channel %s, wanted %s", r.Channel, in.Channel)
	default:
		c.following(tag)
	}
}

// following compares one that is on its channel with where the channel is.
func (c *comparison) following(tag Tagged) {
	r, in := c.r, c.in
	latest := tag.Version
	if latest == "" {
		latest = r.Latest
	}
	switch {
	case r.Deprecated && latest != "" && latest != r.Version:
		c.differs(DriftDeprecated, latest, r.Version, "runs %s, which is deprecated; %s has %s", r.Version, in.Channel, latest)
	case r.Deprecated:
		c.differs(DriftDeprecated, in.Channel, r.Version, "runs %s, which is deprecated", r.Version)
	case tag.Version != "" && tag.Version != r.Version:
		c.differs(DriftBehind, tag.Version, r.Version, "runs %s, %s is at %s", r.Version, in.Channel, tag.Version)
	case tag.Version == "" && tag.Digest != "" && r.Digest == "":
		c.unclear("%s is %.19s…, and only GET %s tells which digest runs; give a token", in.Channel, tag.Digest, detailsPath)
	default:
		c.digest(in.Channel, tag)
	}
}

// digest compares what a tag is with what runs, where both are known.
func (c *comparison) digest(name string, tag Tagged) {
	if tag.Digest != "" && c.r.Digest != "" && tag.Digest != c.r.Digest {
		c.differs(DriftDigest, tag.Digest, c.r.Digest, "runs %s, %s is %s", c.r.Digest, name, tag.Digest)
	}
}

func (c *comparison) pin(pin string) {
	r, tag := c.r, pin
	if i := strings.LastIndex(pin, "@"); i >= 0 || release.IsDigest(pin) {
		digest := pin[i+1:]
		switch {
		case r.Digest == "":
			if i <= 0 {
				c.unclear("pinned to a digest, which only GET %s tells; give a token", detailsPath)
				return
			}
			tag = pin[:i]
		case r.Digest != digest:
			c.differs(DriftDigest, digest, r.Digest, "runs %s, pinned to %s", r.Digest, digest)
			return
		default:
			return
		}
	}
	if i := strings.LastIndex(tag, ":"); i >= 0 {
		tag = tag[i+1:] // a whole image reference
	}
	kind, rest, found := strings.Cut(tag, "-")
	if !found {
		kind, rest = "", tag
	}
	if sha, ok := commitOf(tag); ok {
		switch {
		case len(r.Commit) < 7:
			c.unclear("pinned to the commit %s, and it does not say its own", sha)
		case !strings.HasPrefix(r.Commit, sha) && !strings.HasPrefix(sha, r.Commit):
			c.differs(DriftVersion, sha, r.Commit, "runs %s (commit %.7s), pinned to the commit %s", r.Version, r.Commit, sha)
		}
		return
	}
	if _, err := release.ParseVersion(rest); err != nil {
		c.unclear("the pin %q names no version, commit or digest", pin)
		return
	}
	if rest != r.Version {
		c.differs(DriftVersion, rest, r.Version, "runs %s, pinned to %s", r.Version, rest)
	}
	if (kind == "stable" || kind == "dev") && r.Channel != "" && kind != r.Channel {
		c.differs(DriftChannel, kind, r.Channel, "runs channel %s, pinned to %s", r.Channel, pin)
	}
}

// settings compares the configuration with the hash that the inventory pins.
func (c *comparison) settings() {
	want := c.in.ConfigHash
	switch {
	case want == "":
	case c.r.ConfigHash == "" && c.in.Token.IsZero():
		c.unclear("its settings are pinned to %s, and only GET %s tells them; give a token", want, detailsPath)
	case c.r.ConfigHash == "":
		c.unclear("its settings are pinned to %s, and it did not tell their hash", want)
	case c.r.ConfigHash != want:
		c.differs(DriftConfig, want, c.r.ConfigHash, "its settings are %s, pinned to %s", c.r.ConfigHash, want)
	}
}

// bundle compares the files on the host with the image: one digest governs both.
// An instance that no deploy has set up knows no bundle.
func (c *comparison) bundle() {
	if b := c.r.BundleVersion; b != "" && c.r.Version != "" && b != c.r.Version {
		c.differs(DriftBundle, c.r.Version, b, "its host has the compose files of %s, it runs %s", b, c.r.Version)
	}
}

// host compares with what was found over SSH.
func (c *comparison) host(h HostFacts) {
	for _, program := range h.Foreign {
		c.differs(DriftUpdater, "", program, "%s on its host updates images, and can undo a rollback", program)
	}
	switch {
	case h.Trouble != "":
		c.unclear("its host cannot be looked at: %s", h.Trouble)
	case h.Pinned != "" && h.Running != "" && h.Pinned != h.Running:
		c.differs(DriftHost, h.Pinned, h.Running, "its host's .env names %s, what runs is %s", h.Pinned, h.Running)
	}
}

// commitOf reads the tags sha-abc1234 and dev-sha-abc1234.
func commitOf(tag string) (string, bool) {
	if _, sha, ok := strings.Cut("-"+tag, "-sha-"); ok && len(sha) >= 7 {
		return sha, true
	}
	return "", false
}

// digestOf returns the digest in "image@sha256:…" or alone, and nothing for what
// is none.
func digestOf(s string) string {
	if d := s[strings.LastIndex(s, "@")+1:]; release.IsDigest(d) {
		return d
	}
	return ""
}
