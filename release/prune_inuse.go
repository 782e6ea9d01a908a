package release

import (
	"regexp"
	"slices"
	"strings"
)

// InUse is what instances run or are pinned to. The zero value is nothing.
type InUse struct {
	// By has the names of the users of a digest, a tag or a version's text.
	By    map[string][]string
	Notes []string // what could not be found out, for the plan's reader
}

var digestText = regexp.MustCompile(`^[a-z0-9]+:[0-9a-f]{32,}$`)

// IsDigest reports whether s is a digest in full, such as "sha256:…".
func IsDigest(s string) bool { return digestText.MatchString(s) }

// Add notes that who uses a reference: a digest, a tag, a version, or an image
// "host/name:tag@digest", of which both tag and digest count. Nothing is nothing.
func (u *InUse) Add(reference, who string) {
	name, digest, pinned := strings.Cut(strings.TrimSpace(reference), "@")
	if pinned {
		u.add(digest, who)
	}
	if !IsDigest(name) {
		path := name[strings.LastIndex(name, "/")+1:]
		if _, tag, ok := strings.Cut(path, ":"); ok {
			name = tag
		} else if path != name {
			name = "" // an image without a tag
		}
	}
	u.add(name, who)
}

func (u *InUse) add(name, who string) {
	if name == "" || slices.Contains(u.By[name], who) {
		return
	}
	if u.By == nil {
		u.By = map[string][]string{}
	}
	u.By[name] = append(u.By[name], who)
}

// Merge adds everything of other.
func (u *InUse) Merge(other InUse) {
	for name, users := range other.By {
		for _, who := range users {
			u.add(name, who)
		}
	}
	u.Notes = append(u.Notes, other.Notes...)
}
