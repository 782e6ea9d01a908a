package release

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// judge decides what a manifest's own tags and users say about it. Age comes
// from the ledger alone: the registry does not know when a tag was added.
type judge struct {
	in       PruneInput
	claims   map[Version]Claim
	lastDev  map[Version]bool // the newest dev versions that the registry has
	rollback map[Version]bool // where the next rollbacks go
	used     map[string]bool  // entries of InUse that were met
}

func newJudge(in PruneInput) *judge {
	j := &judge{in: in, claims: make(map[Version]Claim, len(in.Claims)), lastDev: map[Version]bool{}, rollback: map[Version]bool{}, used: map[string]bool{}}
	for _, c := range in.Claims {
		j.claims[c.Version] = c
	}
	var tags []string
	for _, listed := range in.Versions {
		tags = append(tags, listed.Tags...)
	}
	for _, more := range in.Unlisted {
		tags = append(tags, more...)
	}
	dev, confirmed := map[Version]bool{}, map[Version]bool{}
	for _, tag := range tags {
		t := ParseTag(tag)
		claim, claimed := j.claims[t.Version]
		switch {
		case !claimed:
		case t.Kind == TagVersion && t.Channel == Dev && claim.Channel == Dev && !j.over(t.Version):
			// What a deprecation lets go does not push another out of the newest, so
			// a plan stays the same when half of it has been carried out.
			dev[t.Version] = true
		case claim.Channel == Stable && j.passed(t):
			confirmed[t.Version] = true
		}
	}
	j.lastDev = newest(dev, in.Policy.KeepDevLast)
	j.rollback = newest(confirmed, in.Policy.KeepRollback)
	return j
}

func newest(of map[Version]bool, n int) map[Version]bool {
	sorted := slices.SortedFunc(maps.Keys(of), func(a, b Version) int { return b.Compare(a) })
	first := map[Version]bool{}
	for _, v := range sorted[:min(n, len(sorted))] {
		first[v] = true
	}
	return first
}

// passed reports whether a tag is one of a version that a rollback can go to.
func (j *judge) passed(t ParsedTag) bool {
	_, deprecated := j.in.Deprecations[t.Version]
	verdict := j.in.Verdicts[t.Version]
	return !deprecated && (t.Kind == TagConfirmed && verdict != VerdictFail || t.Kind == TagVersion && verdict == VerdictPass)
}

// over reports whether a deprecation's grace has passed.
func (j *judge) over(v Version) bool {
	d, ok := j.in.Deprecations[v]
	return ok && j.in.Now.Sub(d.At) >= time.Duration(j.in.Policy.DeprecatedDays)*day
}

// of says whether a manifest stays for its own sake, or why it need not.
func (j *judge) of(digest string, tags []string) fate {
	versions := map[Version][]ParsedTag{}
	kinds := map[TagKind]string{} // a tag of each kind
	for _, tag := range tags {
		t := ParseTag(tag)
		kinds[t.Kind] = tag
		if !t.Version.IsZero() {
			versions[t.Version] = append(versions[t.Version], t)
		}
	}
	f := j.ofTags(kinds, versions)
	if more := j.in.Unlisted[digest]; len(more) > 0 {
		f = fate{true, RuleUnlisted, fmt.Sprintf("the registry has the tag %s there and the package's list has not: kept until they agree", more[0])}
	}
	if who := j.users(digest, tags, versions); who != "" && !f.kept {
		text := "in use by " + who
		if f.reason != "" {
			text += "; otherwise it would go: " + f.reason
		}
		f = fate{true, RuleInUse, text}
	}
	return f
}

func (j *judge) ofTags(kinds map[TagKind]string, versions map[Version][]ParsedTag) fate {
	has := func(k TagKind) bool { return kinds[k] != "" }
	switch {
	case has(TagFloating):
		return fate{true, RuleFloating, fmt.Sprintf("the channel %s points at it", kinds[TagFloating])}
	case has(TagForeign):
		return fate{true, RuleForeign, fmt.Sprintf("release-bot did not set the tag %s", kinds[TagForeign])}
	case len(versions) > 0:
		return j.ofVersions(versions)
	case has(TagCommit):
		return fate{true, RuleUndated, "it has commit tags alone, so no version tells its age"}
	case has(TagReferrer):
		return fate{rule: RuleReferrer}
	default:
		return fate{rule: RuleUntagged}
	}
}

// ofVersions asks each version that tags of one manifest name: one that stays
// is enough.
func (j *judge) ofVersions(versions map[Version][]ParsedTag) fate {
	var over fate
	for _, v := range slices.SortedFunc(maps.Keys(versions), func(a, b Version) int { return b.Compare(a) }) {
		f := j.ofVersion(v, versions[v])
		if f.kept {
			return f
		}
		if over.reason != "" {
			f.reason = over.reason + "; " + f.reason
		}
		over = f
	}
	return over
}

func (j *judge) ofVersion(v Version, tags []ParsedTag) fate {
	claim, ok := j.claims[v]
	if !ok {
		return fate{true, RuleUnclaimed, fmt.Sprintf("the ledger has no claim of %s, so nobody can say how old it is", v)}
	}
	d, deprecated := j.in.Deprecations[v]
	if j.over(v) {
		return fate{false, RuleDeprecated, fmt.Sprintf("%s was deprecated on %s, %s", v, d.At.UTC().Format(time.DateOnly), ago(j.in.Now.Sub(d.At)))}
	}
	released := slices.ContainsFunc(tags, func(t ParsedTag) bool {
		return t.Kind == TagNumber || t.Kind == TagVersion && t.Channel == Stable
	})
	switch {
	case claim.Channel == Dev && !released:
		return j.ofDev(v, claim)
	case deprecated:
		end := d.At.UTC().Add(time.Duration(j.in.Policy.DeprecatedDays) * day)
		return fate{true, RuleGrace, fmt.Sprintf("%s was deprecated on %s: it goes on %s", v, d.At.UTC().Format(time.DateOnly), end.Format(time.DateOnly))}
	case claim.Channel == Dev:
		return fate{true, RuleStable, fmt.Sprintf("%s is claimed for dev and tagged as stable: it stays until it is deprecated", v)}
	case j.rollback[v]:
		return fate{true, RuleRollback, fmt.Sprintf("%s is confirmed: a rollback can go there", v)}
	default:
		return fate{true, RuleStable, fmt.Sprintf("%s is stable and not deprecated", v)}
	}
}

// ofDev goes by the claim's time. Where it was not read, it was before the end
// of the version's month.
func (j *judge) ofDev(v Version, claim Claim) fate {
	if j.lastDev[v] {
		return fate{true, RuleDevLast, fmt.Sprintf("%s is among the newest %d dev versions", v, j.in.Policy.KeepDevLast)}
	}
	word, at := "claimed on", claim.ClaimedAt
	if at.IsZero() {
		word, at = "claimed before", v.MonthEnd()
	}
	text := fmt.Sprintf("dev version %s was %s %s", v, word, at.UTC().Format(time.DateOnly))
	if j.in.Now.Sub(at) < time.Duration(j.in.Policy.KeepDevDays)*day {
		return fate{true, RuleDevAge, text + ": kept for " + days(j.in.Policy.KeepDevDays)}
	}
	return fate{false, RuleDevAge, text + fmt.Sprintf(" and is not among the newest %d", j.in.Policy.KeepDevLast)}
}

// users says who uses a manifest, by digest, tag or version.
func (j *judge) users(digest string, tags []string, versions map[Version][]ParsedTag) string {
	names := slices.Concat([]string{digest}, tags)
	for version := range versions {
		names = append(names, version.String())
	}
	who := map[string]bool{}
	for _, name := range names {
		for _, user := range j.in.InUse.By[name] {
			who[user] = true
			j.used[name] = true
		}
	}
	all := slices.Sorted(maps.Keys(who))
	const most = 5
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

// unseen are the notes about what is in use and not in the registry.
func (j *judge) unseen() []string {
	var notes []string
	for _, name := range slices.Sorted(maps.Keys(j.in.InUse.By)) {
		if !j.used[name] {
			notes = append(notes, fmt.Sprintf("%s is in use by %s and not in the registry.", name, j.in.InUse.By[name][0]))
		}
	}
	return notes
}
