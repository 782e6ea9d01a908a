package fleet

import (
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Drift says whether an instance runs what the inventory wants.
type Drift struct {
	Known   bool // false where the instance did not say enough
	Drifted bool
	Reason  string // why it drifted, or why that is not known; empty where it runs what is wanted
}

func drifted(format string, args ...any) Drift {
	return Drift{Known: true, Drifted: true, Reason: fmt.Sprintf(format, args...)}
}

func unclear(format string, args ...any) Drift { return Drift{Reason: fmt.Sprintf(format, args...)} }

// Drifted compares an instance's pin, or else its channel, with what it says that
// it runs. A pin is a version, an image tag of one (stable-2026.04.3, sha-abc1234)
// or a digest. What follows a channel has drifted when it is on another one, or on
// a version that is deprecated.
func Drifted(in Instance, r Result) Drift {
	if r.Version == "" {
		if r.Err != nil {
			return unclear("unknown: it did not say what it runs (%s)", r.Health)
		}
		return unclear("unknown: it was not asked")
	}
	if in.Pin != "" {
		return fromPin(in.Pin, r)
	}
	switch {
	case in.Channel == "":
		return unclear("unknown: the inventory wants neither a pin nor a channel")
	case r.Channel == "":
		return unclear("unknown: it does not say its channel")
	case r.Channel != in.Channel:
		return drifted("runs channel %s, wanted %s", r.Channel, in.Channel)
	case r.Deprecated && r.Latest != "":
		return drifted("runs %s, which is deprecated; %s has %s", r.Version, in.Channel, r.Latest)
	case r.Deprecated:
		return drifted("runs %s, which is deprecated", r.Version)
	}
	return Drift{Known: true}
}

func fromPin(pin string, r Result) Drift {
	tag := pin
	if i := strings.LastIndex(pin, "@"); i >= 0 || release.IsDigest(pin) {
		digest := pin[i+1:]
		switch {
		case r.Digest == "":
			if i <= 0 {
				return unclear("unknown: pinned to a digest, which only GET %s tells; give a token", detailsPath)
			}
			tag = pin[:i]
		case r.Digest != digest:
			return drifted("runs %s, pinned to %s", r.Digest, digest)
		default:
			return Drift{Known: true}
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
			return unclear("unknown: pinned to the commit %s, and it does not say its own", sha)
		case !strings.HasPrefix(r.Commit, sha) && !strings.HasPrefix(sha, r.Commit):
			return drifted("runs %s (commit %.7s), pinned to the commit %s", r.Version, r.Commit, sha)
		}
		return Drift{Known: true}
	}
	if _, err := release.ParseVersion(rest); err != nil {
		return unclear("unknown: the pin %q names no version, commit or digest", pin)
	}
	if rest != r.Version {
		return drifted("runs %s, pinned to %s", r.Version, rest)
	}
	if (kind == "stable" || kind == "dev") && r.Channel != "" && kind != r.Channel {
		return drifted("runs channel %s, pinned to %s", r.Channel, pin)
	}
	return Drift{Known: true}
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
