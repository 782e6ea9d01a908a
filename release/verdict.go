package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Verdict is what was found out about a version.
type Verdict string

// The verdicts. Only a fail rolls back; what could not be found out, because the
// infrastructure was in trouble, is inconclusive.
const (
	VerdictPass         Verdict = "pass"
	VerdictFail         Verdict = "fail"
	VerdictInconclusive Verdict = "inconclusive"
)

// ParseVerdict reads a verdict.
func ParseVerdict(s string) (Verdict, error) {
	switch v := Verdict(s); v {
	case VerdictPass, VerdictFail, VerdictInconclusive:
		return v, nil
	default:
		return "", problem.New(problem.Usage, fmt.Sprintf("expected the verdict pass, fail or inconclusive, found %q", s), "release-bot verdict 2026.04.3 pass")
	}
}

// outweighs orders verdicts: fail over pass over inconclusive over none.
func (v Verdict) outweighs(w Verdict) bool {
	rank := map[Verdict]int{VerdictInconclusive: 1, VerdictPass: 2, VerdictFail: 3}
	return rank[v] > rank[w]
}

// Record adds a verdict to the ledger. The verdict that holds is the heaviest
// one recorded; what would not change it writes nothing, so repeating is free.
// A version that failed never becomes good again: a pass is then refused.
func (l *Ledger) Record(ctx context.Context, v Version, verdict Verdict, detail string) error {
	if _, err := ParseVerdict(string(verdict)); err != nil {
		return err
	}
	claim, err := l.ByVersion(ctx, v)
	if err != nil {
		return err
	}
	all, err := l.verdictEntries(ctx, v.String())
	if err != nil {
		return err
	}
	have, last := all[v].verdict, all[v].last
	for {
		switch {
		case have == VerdictFail && verdict == VerdictPass:
			return problem.New(problem.Refused, fmt.Sprintf("expected %s without a failed verdict, found one: a version that failed does not become good again", v),
				"build and release a new version")
		case !verdict.outweighs(have):
			return nil
		}
		last++
		t, created, err := l.writeOnce(ctx, verdictTag(v, last), claim.Commit, entry{
			subject:  fmt.Sprintf("Verdict of %s: %s", v, verdict),
			body:     detail,
			trailers: []trailer{{trailerVerdict, string(verdict)}},
		}, verdictRefs+v.String()+"/"+string(verdict))
		if err != nil || created {
			return err
		}
		// Somebody recorded something at the same time: count it in.
		if found := Verdict(parseEntry(t.Message).get(trailerVerdict)); found.outweighs(have) {
			have = found
		}
	}
}

func verdictTag(v Version, n int) string {
	if n == 1 {
		return verdicts + v.String()
	}
	return fmt.Sprintf("%s%s.%d", verdicts, v, n)
}

// parseVerdictTag is verdictTag's inverse.
func parseVerdictTag(tag string) (v Version, n int, ok bool) {
	text := strings.TrimPrefix(tag, verdicts)
	if v, err := ParseVersion(text); err == nil {
		return v, 1, true
	}
	i := strings.LastIndexByte(text, '.')
	if i < 0 {
		return Version{}, 0, false
	}
	v, err := ParseVersion(text[:i])
	n, e := strconv.Atoi(text[i+1:])
	return v, n, err == nil && e == nil && n > 1
}

type verdictEntry struct {
	verdict      Verdict // the heaviest
	last         int     // number of the newest entry
	inconclusive bool    // one of them is: people were told that there is a question
}

// verdictEntries reads the index: an entry says its verdict by the name of the
// second ref at it. Only an entry that was cut off before that is read itself.
func (l *Ledger) verdictEntries(ctx context.Context, prefix string) (map[Version]verdictEntry, error) {
	tags, err := l.refs.List(ctx, tagRefs+verdicts+prefix)
	if err != nil {
		return nil, err
	}
	index, err := l.refs.List(ctx, verdictRefs+prefix)
	if err != nil {
		return nil, err
	}
	said := map[string]Verdict{}
	for _, ref := range index {
		said[ref.ID] = Verdict(ref.Name[strings.LastIndexByte(ref.Name, '/')+1:])
	}
	var single []Ref
	for _, ref := range tags {
		if said[ref.ID] == "" {
			single = append(single, ref)
		}
	}
	if len(single) > 0 {
		read, err := l.refs.Read(ctx, single)
		if err != nil {
			return nil, err
		}
		for i, t := range read {
			said[single[i].ID] = Verdict(parseEntry(t.Message).get(trailerVerdict))
		}
	}
	entries := map[Version]verdictEntry{}
	for _, ref := range tags {
		v, n, ok := parseVerdictTag(strings.TrimPrefix(ref.Name, tagRefs))
		if !ok {
			continue
		}
		e := entries[v]
		if said[ref.ID].outweighs(e.verdict) {
			e.verdict = said[ref.ID]
		}
		e.last = max(e.last, n)
		e.inconclusive = e.inconclusive || said[ref.ID] == VerdictInconclusive
		entries[v] = e
	}
	return entries, nil
}

// Verdicts returns the verdict that holds, for each version that has one.
func (l *Ledger) Verdicts(ctx context.Context) (map[Version]Verdict, error) {
	entries, err := l.verdictEntries(ctx, "")
	if err != nil {
		return nil, err
	}
	found := make(map[Version]Verdict, len(entries))
	for v, e := range entries {
		if e.verdict != "" {
			found[v] = e.verdict
		}
	}
	return found, nil
}

// Deprecation says that a version should be left.
type Deprecation struct {
	Version     Version   `json:"version"`
	Reason      string    `json:"reason"`
	Replacement Version   `json:"replacement,omitzero"` // none: whatever is stable
	At          time.Time `json:"at"`                   // its 30 days begin here; UTC
}

// Deprecate writes the deprecation of a claimed version, once: a further call
// returns the entry that is there, whatever it says, and created is false.
func (l *Ledger) Deprecate(ctx context.Context, v Version, reason string, replacement Version) (d Deprecation, created bool, err error) {
	if replacement == v {
		return Deprecation{}, false, problem.New(problem.Usage, fmt.Sprintf("expected a replacement other than the deprecated version %s itself", v),
			fmt.Sprintf("release-bot deprecate %s --reason … --replacement VERSION", v))
	}
	if reason = strings.TrimSpace(reason); reason == "" {
		return Deprecation{}, false, problem.New(problem.Usage, "expected a reason: instances and people read it", fmt.Sprintf("release-bot deprecate %s --reason …", v))
	}
	t, err := l.refs.Find(ctx, tagRefs+deprecations+v.String())
	if err == nil {
		return l.deprecationOf(v, t), false, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return Deprecation{}, false, err
	}
	claim, err := l.ByVersion(ctx, v)
	if err != nil {
		return Deprecation{}, false, err
	}
	e := entry{subject: "Deprecate " + v.String(), body: reason}
	if !replacement.IsZero() {
		e.trailers = append(e.trailers, trailer{trailerReplacement, replacement.String()})
	}
	t, created, err = l.writeOnce(ctx, deprecations+v.String(), claim.Commit, e)
	if err != nil {
		return Deprecation{}, false, err
	}
	return l.deprecationOf(v, t), created, nil
}

// deprecationOf reads an entry. A tag that a person made by hand is one, too:
// the name says what is meant. Without a time of its own it began just now, so
// that nothing ever expires by it.
func (l *Ledger) deprecationOf(v Version, t Tag) Deprecation {
	e := parseEntry(t.Message)
	d := Deprecation{Version: v, Reason: e.body, At: t.At}
	if t.At.IsZero() {
		d.At = l.opts.Now().UTC()
	}
	if d.Reason == "" {
		d.Reason = e.subject
	}
	d.Replacement, _ = ParseVersion(e.get(trailerReplacement)) // none, when there is none
	return d
}

// Deprecations returns all deprecations. Over a forge's API each one that was
// not read before costs a request.
func (l *Ledger) Deprecations(ctx context.Context) (map[Version]Deprecation, error) {
	refs, err := l.refs.List(ctx, tagRefs+deprecations)
	if err != nil {
		return nil, err
	}
	versions := map[Version]Ref{}
	for _, ref := range refs {
		if v, err := ParseVersion(strings.TrimPrefix(ref.Name, tagRefs+deprecations)); err == nil {
			versions[v] = ref
		}
	}
	order := slices.Collect(maps.Keys(versions))
	wanted := make([]Ref, len(order))
	for i, v := range order {
		wanted[i] = versions[v]
	}
	tags, err := l.refs.Read(ctx, wanted)
	if err != nil {
		return nil, err
	}
	found := make(map[Version]Deprecation, len(order))
	for i, v := range order {
		found[v] = l.deprecationOf(v, tags[i])
	}
	return found, nil
}
