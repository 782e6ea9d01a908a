package release

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const day = 24 * time.Hour

// PrunePolicy says what may be forgotten. What it does not name is kept.
type PrunePolicy struct {
	// DeprecatedDays is the grace of a deprecated version, from its ledger entry.
	DeprecatedDays int `json:"deprecated_days"`
	// KeepDevDays and KeepDevLast keep a dev version while it is younger than so
	// many days, by its claim, or among so many newest in the registry.
	KeepDevDays int `json:"keep_dev_days"`
	KeepDevLast int `json:"keep_dev_last"`
	// KeepRollback names so many newest confirmed stable versions as what a
	// rollback goes to.
	KeepRollback int `json:"keep_rollback"`
	// MinUntaggedDays is how long a manifest without a tag stays in any case: it
	// may belong to a push that has not finished. At least 1.
	MinUntaggedDays int `json:"min_untagged_days"`
}

// DefaultPrunePolicy is what the design asks for: deprecated images go after 30
// days, dev images after 30 days except for the newest 20.
func DefaultPrunePolicy() PrunePolicy {
	return PrunePolicy{DeprecatedDays: 30, KeepDevDays: 30, KeepDevLast: 20, KeepRollback: 3, MinUntaggedDays: 7}
}

const maxPolicy = 36500 // a hundred years, in days

// Validate finds numbers that no policy can have.
func (p PrunePolicy) Validate() error {
	for _, limit := range []struct {
		flag       string
		value, min int
	}{
		{"deprecated-days", p.DeprecatedDays, 0},
		{"keep-dev-days", p.KeepDevDays, 0},
		{"keep-dev-last", p.KeepDevLast, 0},
		{"keep-rollback", p.KeepRollback, 1},
		{"min-untagged-days", p.MinUntaggedDays, 1},
	} {
		if limit.value < limit.min || limit.value > maxPolicy {
			return problem.New(problem.Usage, fmt.Sprintf("expected --%s from %d to %d, found %d", limit.flag, limit.min, maxPolicy, limit.value), "")
		}
	}
	return nil
}

// PruneInput is all that a plan depends on: Survey collects it.
type PruneInput struct {
	Repository string // host/owner/name, for the reader
	Now        time.Time
	Policy     PrunePolicy
	Versions   []PackageVersion
	// Links has every listed digest. A digest that is here and not in Versions
	// exists in the registry without being listed: it is kept with all that it
	// needs. A digest that is named by another's links and is not here is missing
	// from the registry.
	Links map[string]Links
	// Unlisted are the tags that the registry has and the listing has not, or has
	// elsewhere, by digest: the list may lag behind.
	Unlisted     map[string][]string
	Claims       []Claim // without ClaimedAt where the month alone decides
	Deprecations map[Version]Deprecation
	Verdicts     map[Version]Verdict
	InUse        InUse
}

// PruneAction is what a plan does with a version.
type PruneAction string

// The actions.
const (
	PruneKeep   PruneAction = "keep"
	PruneDelete PruneAction = "delete"
)

// PruneRule is the reason's kind, for programs.
type PruneRule string

// The rules, in the order in which they are asked. Those up to RuleUndated look
// at a version's own tags, those after it at what names it.
const (
	RuleUnlisted   PruneRule = "unlisted"   // kept: the registry and the list do not agree about its tags
	RuleFloating   PruneRule = "floating"   // kept: a channel points at it
	RuleForeign    PruneRule = "foreign"    // kept: a tag that release-bot did not set
	RuleUnclaimed  PruneRule = "unclaimed"  // kept: the ledger does not know the version
	RuleRollback   PruneRule = "rollback"   // kept: the next rollback goes there
	RuleStable     PruneRule = "stable"     // kept: a stable version that is not deprecated
	RuleGrace      PruneRule = "grace"      // kept: deprecated, but not for long enough
	RuleDevLast    PruneRule = "dev-last"   // kept: one of the newest dev versions
	RuleDevAge     PruneRule = "dev-age"    // kept: a young dev version; deleted: an old one
	RuleDeprecated PruneRule = "deprecated" // deleted: deprecated for long enough
	RuleInUse      PruneRule = "in-use"     // kept: it would go, but an instance runs or pins it
	RuleUndated    PruneRule = "undated"    // kept: commit tags alone tell no version, and so no age
	RuleChild      PruneRule = "child"      // kept: part of an index that stays
	RuleReferrer   PruneRule = "referrer"   // kept or deleted with the manifest that it is about
	RuleSubject    PruneRule = "subject"    // kept: a manifest that stays is about it
	RuleUntagged   PruneRule = "untagged"   // kept: young and without a tag; deleted: older, and nothing that stays needs it
)

// PlannedVersion is one manifest, what happens to it, and why.
type PlannedVersion struct {
	PackageVersion
	Children []string    `json:"children,omitempty"`
	Subject  string      `json:"subject,omitempty"`
	Action   PruneAction `json:"action"`
	Rule     PruneRule   `json:"rule"`
	Reason   string      `json:"reason"`
}

// PrunePlan is a decision about every version of a package, made from the listing
// that it holds. It can be printed, stored, reviewed and applied; Apply does
// what it says, or nothing.
type PrunePlan struct {
	Format     int              `json:"format"` // PlanFormat
	Repository string           `json:"repository"`
	MadeAt     time.Time        `json:"made_at"`
	Policy     PrunePolicy      `json:"policy"`
	Keep       int              `json:"keep"`   // how many
	Delete     int              `json:"delete"` // how many
	Notes      []string         `json:"notes"`  // what a reviewer should know
	Order      []int64          `json:"order"`  // ids to delete, parents before children
	Versions   []PlannedVersion `json:"versions"`
}

// PlanFormat is the version of a stored plan's shape.
const PlanFormat = 1

// Plan decides about every version. It is a function of its input alone: the
// same input gives the same plan, in whatever order it comes.
//
// Roots are what a tag keeps, what is in use and what exists without being
// listed. Everything that a root needs stays: the manifests of an index, what
// refers to a kept manifest by its subject or by a sha256-… tag, and the subject
// of a kept manifest. A manifest without a tag that is young stays with its
// manifests and referrers. The rest goes.
func Plan(in PruneInput) (PrunePlan, error) {
	if err := in.Policy.Validate(); err != nil {
		return PrunePlan{}, err
	}
	versions, err := planned(in)
	if err != nil {
		return PrunePlan{}, err
	}
	g := newGraph(versions, unlisted(in))
	p := planner{in: in, graph: g, judge: newJudge(in), fates: make([]fate, len(g.nodes))}
	p.keepRoots()
	p.keepYoung()
	p.dropRest()

	plan := PrunePlan{
		Format: PlanFormat, Repository: in.Repository, MadeAt: in.Now.UTC(), Policy: in.Policy,
		Notes: p.notes(), Order: []int64{}, Versions: versions,
	}
	var going []int
	for i := range versions {
		f := p.fates[i]
		versions[i].Action, versions[i].Rule, versions[i].Reason = PruneDelete, f.rule, f.reason
		if f.kept {
			versions[i].Action = PruneKeep
			plan.Keep++
			continue
		}
		plan.Delete++
		going = append(going, i)
	}
	for _, i := range g.order(going) {
		plan.Order = append(plan.Order, versions[i].ID)
	}
	return plan, nil
}

// planned returns the listed versions with their links, newest first.
func planned(in PruneInput) ([]PlannedVersion, error) {
	versions := make([]PlannedVersion, 0, len(in.Versions))
	ids, digests := map[int64]bool{}, map[string]bool{}
	for _, v := range in.Versions {
		links, ok := in.Links[v.Digest]
		if !ok {
			return nil, problem.New(problem.Inconclusive, fmt.Sprintf("expected the manifest of every version, found none for %s: what it needs is unknown, so nothing can be deleted", v.Digest),
				"release-bot prune")
		}
		if ids[v.ID] || digests[v.Digest] {
			return nil, problem.New(problem.Inconclusive, fmt.Sprintf("expected each version once in the package's list, found %s twice: it changed while it was read", v.Digest),
				"release-bot prune")
		}
		ids[v.ID], digests[v.Digest] = true, true
		v.Tags = slices.Sorted(slices.Values(v.Tags))
		if v.Tags == nil {
			v.Tags = []string{}
		}
		v.CreatedAt = v.CreatedAt.UTC()
		versions = append(versions, PlannedVersion{PackageVersion: v, Children: links.Children, Subject: links.Subject})
	}
	slices.SortFunc(versions, func(a, b PlannedVersion) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	return versions, nil
}

// fate is what a planner found out about a version.
type fate struct {
	kept   bool
	rule   PruneRule
	reason string
}

type planner struct {
	in    PruneInput
	graph *graph
	judge *judge
	fates []fate // of the graph's nodes
}

// unlisted returns what the registry has and the listing has not.
func unlisted(in PruneInput) []PlannedVersion {
	listed := make(map[string]bool, len(in.Versions))
	for _, v := range in.Versions {
		listed[v.Digest] = true
	}
	var more []PlannedVersion
	for digest, links := range in.Links {
		if !listed[digest] {
			more = append(more, PlannedVersion{PackageVersion: PackageVersion{Digest: digest}, Children: links.Children, Subject: links.Subject})
		}
	}
	slices.SortFunc(more, func(a, b PlannedVersion) int { return cmp.Compare(a.Digest, b.Digest) })
	return more
}

// keepRoots keeps what a tag or a user holds or nobody lists, and all that this
// needs.
func (p *planner) keepRoots() {
	var work []int
	for i, n := range p.graph.nodes {
		p.fates[i] = fate{kept: true}
		if !p.graph.unlisted(i) {
			p.fates[i] = p.judge.of(n.Digest, n.Tags) // what names it may still keep it
		}
		if p.fates[i].kept {
			work = append(work, i)
		}
	}
	p.spread(work, true)
}

// keepYoung keeps what may be a push in flight, with what it would need. What it
// is about is not among that: an image does not outlive its time because it was
// signed once more.
func (p *planner) keepYoung() {
	var work []int
	for i, n := range p.graph.nodes {
		orphan := p.fates[i].rule == RuleReferrer && len(n.about) == 0
		if age := p.in.Now.Sub(n.CreatedAt); !p.fates[i].kept && (len(n.Tags) == 0 || orphan) && age < time.Duration(p.in.Policy.MinUntaggedDays)*day {
			what := "no tag"
			if orphan {
				what = "about a manifest that is not there"
			}
			p.fates[i] = fate{true, RuleUntagged, fmt.Sprintf("%s, pushed %s: kept for %s, as a push may not have finished", what, ago(age), days(p.in.Policy.MinUntaggedDays))}
			work = append(work, i)
		}
	}
	p.spread(work, false)
}

// spread keeps all that the kept nodes of work need; with subjects, also what
// they are about.
func (p *planner) spread(work []int, subjects bool) {
	for len(work) > 0 {
		i := work[0]
		work = work[1:]
		n := p.graph.nodes[i]
		keep := func(next int, rule PruneRule, text string) {
			if !p.fates[next].kept {
				p.fates[next] = fate{true, rule, fmt.Sprintf(text, n.name())}
				work = append(work, next)
			}
		}
		for _, child := range n.children {
			keep(child, RuleChild, "part of %s, which stays")
		}
		for _, referrer := range n.referrers {
			keep(referrer, RuleReferrer, "about %s, which stays")
		}
		if subjects && n.subject >= 0 {
			keep(n.subject, RuleSubject, "what %s is about, which stays")
		}
	}
}

// dropRest completes the reasons of what goes because nothing needs it.
func (p *planner) dropRest() {
	for i, n := range p.graph.nodes {
		f := &p.fates[i]
		if f.kept || f.rule == RuleDeprecated || f.rule == RuleDevAge {
			continue
		}
		age := p.in.Now.Sub(n.CreatedAt)
		switch {
		case len(n.about) > 0:
			*f = fate{false, RuleReferrer, fmt.Sprintf("about %s, which goes", p.graph.nodes[n.about[0]].name())}
		case f.rule == RuleReferrer || n.Subject != "":
			*f = fate{false, RuleReferrer, fmt.Sprintf("about a manifest that is not there, pushed %s", ago(age))}
		case len(n.parents) > 0:
			*f = fate{false, RuleUntagged, fmt.Sprintf("no tag, pushed %s, part only of %s, which goes", ago(age), p.graph.nodes[n.parents[0]].name())}
		default:
			*f = fate{false, RuleUntagged, fmt.Sprintf("no tag, pushed %s, and nothing needs it", ago(age))}
		}
	}
}

// notes are what the plan's rows cannot say: they are about what is not there.
func (p *planner) notes() []string {
	notes := slices.Clone(p.in.InUse.Notes)
	missing := 0
	for i, n := range p.graph.nodes {
		for _, child := range n.Children {
			if _, ok := p.graph.at[child]; !ok && p.fates[i].kept {
				if missing++; missing <= maxNotes {
					notes = append(notes, fmt.Sprintf("%s is incomplete: its part %s is not in the registry. It was so before this plan.", n.name(), short(child)))
				}
			}
		}
		if p.graph.unlisted(i) {
			notes = append(notes, fmt.Sprintf("%s exists and the package's list does not have it: kept with all that it needs.", short(n.Digest)))
		}
	}
	if missing > maxNotes {
		notes = append(notes, fmt.Sprintf("%d more parts are missing.", missing-maxNotes))
	}
	notes = append(notes, p.judge.unseen()...)
	if notes == nil {
		notes = []string{}
	}
	return notes
}

const maxNotes = 20

func days(n int) string {
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}

func ago(d time.Duration) string {
	if n := int(d / day); n > 0 {
		return days(n) + " ago"
	}
	return "less than a day ago"
}
