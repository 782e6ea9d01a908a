package release_test

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// model says what a prune must keep, in the plainest way: rules over strings,
// asked again and again until nothing changes. It shares no code with Plan.
type model struct {
	release.PruneInput
	tags map[string][]string // by digest, listed or not
	kept map[string]bool     // for its own sake, or because such a one needs it
	held map[string]bool     // for being young, or because such a one needs it
}

var (
	modelVersion  = regexp.MustCompile(`^(?:(dev|stable|confirmed|deprecated)-)?(\d{4})\.(0[1-9]|1[0-2])\.([1-9]\d*)$`)
	modelCommit   = regexp.MustCompile(`^(dev-)?sha-[0-9a-f]{7,64}$`)
	modelReferrer = regexp.MustCompile(`^sha256-([0-9a-f]{64})(\.[a-z0-9]+)?$`)
)

func newModel(in release.PruneInput) *model {
	m := &model{PruneInput: in, tags: map[string][]string{}, kept: map[string]bool{}, held: map[string]bool{}}
	listed := map[string]bool{}
	for _, v := range in.Versions {
		listed[v.Digest] = true
		m.tags[v.Digest] = append(slices.Clone(v.Tags), in.Unlisted[v.Digest]...)
	}
	for digest := range in.Links {
		if !listed[digest] {
			m.kept[digest] = true
			m.tags[digest] = in.Unlisted[digest]
		}
	}
	for _, v := range in.Versions {
		if m.ownRight(v.Digest) {
			m.kept[v.Digest] = true
		}
	}
	m.close(m.kept, true)
	for _, v := range in.Versions {
		young := in.Now.Sub(v.CreatedAt) < time.Duration(in.Policy.MinUntaggedDays)*24*time.Hour
		if young && (len(m.tags[v.Digest]) == 0 || m.orphanSignature(v.Digest)) && !m.kept[v.Digest] {
			m.held[v.Digest] = true
		}
	}
	m.close(m.held, false)
	return m
}

func (m *model) stays(digest string) bool { return m.kept[digest] || m.held[digest] }

// close adds to set what its members need.
func (m *model) close(set map[string]bool, subjects bool) {
	for grew := true; grew; {
		grew = false
		add := func(digest string) {
			if _, there := m.Links[digest]; there && !set[digest] {
				set[digest], grew = true, true
			}
		}
		for digest, links := range m.Links {
			if set[digest] {
				for _, child := range links.Children {
					add(child)
				}
				if subjects {
					add(links.Subject)
				}
			}
			for _, about := range append(m.aboutByTag(digest), links.Subject) {
				if set[about] {
					add(digest)
				}
			}
		}
	}
}

func (m *model) aboutByTag(digest string) []string {
	var about []string
	for _, tag := range m.tags[digest] {
		if got := modelReferrer.FindStringSubmatch(tag); got != nil {
			about = append(about, "sha256:"+got[1])
		}
	}
	return about
}

// orphanSignature: referrer tags alone, and nothing there that it is about.
func (m *model) orphanSignature(digest string) bool {
	about := m.aboutByTag(digest)
	for _, a := range append(about, m.Links[digest].Subject) {
		if _, there := m.Links[a]; there {
			return false
		}
	}
	return len(about) > 0 && len(about) == len(m.tags[digest])
}

// ownRight: in use, or some tag that is not over, or one that is not listed.
func (m *model) ownRight(digest string) bool {
	if len(m.InUse.By[digest]) > 0 || len(m.Unlisted[digest]) > 0 {
		return true
	}
	var commits, versions int
	for _, tag := range m.tags[digest] {
		if len(m.InUse.By[tag]) > 0 {
			return true
		}
		switch got := modelVersion.FindStringSubmatch(tag); {
		case got != nil:
			if len(m.InUse.By[got[2]+"."+got[3]+"."+got[4]]) > 0 || !m.over(got, m.tags[digest]) {
				return true
			}
			versions++
		case modelCommit.MatchString(tag):
			commits++
		case !modelReferrer.MatchString(tag):
			return true // floating or foreign
		}
	}
	return commits > 0 && versions == 0
}

// over: everything that the policy asks for holds, for a tag among others.
func (m *model) over(tag, others []string) bool {
	number := tag[2] + "." + tag[3] + "." + tag[4]
	i := slices.IndexFunc(m.Claims, func(c release.Claim) bool { return c.Version.String() == number })
	if i < 0 {
		return false
	}
	if m.graceOver(number) {
		return true
	}
	claim := m.Claims[i]
	if claim.Channel != "dev" || slices.Contains(others, number) || slices.Contains(others, "stable-"+number) {
		return false
	}
	newer := 0
	for _, c := range m.Claims {
		if c.Channel == "dev" && m.later(c.Version.String(), number) && m.hasTag("dev-"+c.Version.String()) && !m.graceOver(c.Version.String()) {
			newer++
		}
	}
	if newer < m.Policy.KeepDevLast && m.hasTag("dev-"+number) {
		return false
	}
	at := claim.ClaimedAt
	if at.IsZero() {
		year, _ := strconv.Atoi(tag[2])
		month, _ := strconv.Atoi(tag[3])
		at = time.Date(year, time.Month(month+1), 1, 0, 0, 0, 0, time.UTC)
	}
	return m.Now.Sub(at) >= time.Duration(m.Policy.KeepDevDays)*24*time.Hour
}

func (m *model) graceOver(number string) bool {
	for v, d := range m.Deprecations {
		if v.String() == number {
			return m.Now.Sub(d.At) >= time.Duration(m.Policy.DeprecatedDays)*24*time.Hour
		}
	}
	return false
}

// later compares 2026.04.10 and 2026.04.9 as numbers, which the month's two
// digits leave to the last part.
func (m *model) later(a, b string) bool {
	if a[:8] != b[:8] {
		return a[:8] > b[:8]
	}
	x, _ := strconv.Atoi(a[8:])
	y, _ := strconv.Atoi(b[8:])
	return x > y
}

func (m *model) hasTag(tag string) bool {
	for _, tags := range m.tags {
		if slices.Contains(tags, tag) {
			return true
		}
	}
	return false
}

// walk returns what a pull of a digest with all its signatures reads, of what
// there is.
func walk(links map[string]release.Links, tags map[string][]string, root string) []string {
	seen := map[string]bool{root: true}
	work := []string{root}
	visit := func(digest string) {
		if _, there := links[digest]; there && !seen[digest] {
			seen[digest] = true
			work = append(work, digest)
		}
	}
	for i := 0; i < len(work); i++ {
		for _, child := range links[work[i]].Children {
			visit(child)
		}
		for digest, l := range links {
			byTag := slices.ContainsFunc(tags[digest], func(tag string) bool {
				return strings.HasPrefix(tag, strings.Replace(work[i], ":", "-", 1))
			})
			if l.Subject == work[i] || byTag {
				visit(digest)
			}
		}
	}
	return work
}

// circular reports whether some manifest is about a part of itself, in however
// many steps: then no order deletes both before what needs them.
func circular(links map[string]release.Links, tags map[string][]string) bool {
	for digest := range links {
		for _, next := range walk(links, tags, digest)[1:] {
			if slices.Contains(walk(links, tags, next)[1:], digest) {
				return true
			}
		}
		for _, tag := range tags[digest] {
			if strings.HasPrefix(tag, strings.Replace(digest, ":", "-", 1)) {
				return true
			}
		}
	}
	return false
}
