package fleet

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Plan is what a fleet is against what its inventory wants, like a diff: what would
// be done with each instance, and why. To make one carries nothing out.
type Plan struct {
	At      time.Time     `json:"at"`
	Image   string        `json:"image"`
	Summary PlanSummary   `json:"summary"`
	Tags    []PlannedTag  `json:"tags"`  // that are wanted, in the order of their names
	Waves   []PlannedWave `json:"waves"` // in a rollout's order
}

// PlanSummary counts.
type PlanSummary struct {
	Total   int `json:"total"`
	Same    int `json:"same"`
	Change  int `json:"change"`
	Unknown int `json:"unknown"`

	SelfTrouble string `json:"self_trouble,omitempty"` // as in StatusSummary
}

// PlannedTag is a tag that some instances want, and what the registry has under it.
type PlannedTag struct {
	Tag       string `json:"tag"`
	Digest    string `json:"digest"`  // empty: unknown
	Version   string `json:"version"` // empty: unknown
	Trouble   string `json:"trouble,omitempty"`
	Hint      string `json:"hint,omitempty"`
	Instances int    `json:"instances"`         // that want it
	Changes   int    `json:"changes"`           // of them, that a rollout would take there
	Rollout   string `json:"rollout,omitempty"` // the command that does, where there are changes
}

// PlannedWave is a wave of a rollout with what it would do.
type PlannedWave struct {
	Name           string            `json:"name"`
	Soak           string            `json:"soak"`
	MaxUnavailable string            `json:"max_unavailable"`
	Instances      []PlannedInstance `json:"instances"`
}

// PlanAction is what a plan says of an instance.
type PlanAction string

// The actions.
const (
	PlanSame    PlanAction = "same"    // it is what is wanted
	PlanChange  PlanAction = "change"  // something is to be done
	PlanUnknown PlanAction = "unknown" // it cannot be told
)

// PlannedInstance is one line of a plan.
type PlannedInstance struct {
	Name     string     `json:"name"`
	Action   PlanAction `json:"action"`
	Wanted   string     `json:"wanted"` // tag
	Delivery string     `json:"delivery"`
	Status   Health     `json:"status"`

	From       string `json:"from"`        // version that runs; empty: unknown
	To         string `json:"to"`          // version that is wanted; empty: unknown
	FromDigest string `json:"from_digest"` // the same as digests
	ToDigest   string `json:"to_digest"`

	Because []string      `json:"because"` // why, or why it cannot be told
	Steps   []PlannedStep `json:"steps"`   // what would be done
	Hint    string        `json:"hint,omitempty"`
}

// PlannedStep is one thing to do.
type PlannedStep struct {
	Kind    DriftKind `json:"kind"` // the first of what it mends
	What    string    `json:"what"`
	Command string    `json:"command"`
}

// PlanRequest is what a plan is made from.
type PlanRequest struct {
	At        time.Time
	Inventory *Inventory
	Instances []Instance // those of the inventory that are meant
	Results   []Result   // of a sweep over them
	Facts     Facts
	Flags     []string // words that name the inventory to commands, such as -f ops/fleet.yaml
	Selector  string   // that chose the instances; empty: all
}

// NewPlan makes a plan. It is an error where an instance is in no wave.
func NewPlan(q PlanRequest) (Plan, error) {
	assigned, err := q.Inventory.Assign(q.Inventory.Waves)
	if err != nil {
		return Plan{}, err
	}
	status := q.Facts.Status(q.At, q.Instances, q.Results)
	lines := make(map[string]InstanceStatus, len(status.Instances))
	for _, l := range status.Instances {
		lines[l.Name] = l
	}
	p := Plan{At: q.At.UTC(), Image: q.Inventory.Image, Waves: []PlannedWave{}, Tags: []PlannedTag{}}
	p.Summary.Total, p.Summary.SelfTrouble = len(q.Instances), status.Summary.SelfTrouble
	tags := map[string]*PlannedTag{}
	for _, a := range assigned {
		wave := PlannedWave{Name: a.Wave.Name, Soak: a.Wave.Soak.String(), MaxUnavailable: a.Wave.MaxUnavailable.String(), Instances: []PlannedInstance{}}
		for _, in := range a.Members {
			line, meant := lines[in.Name]
			if !meant {
				continue
			}
			tag := tags[in.Wanted()]
			if tag == nil {
				tag = q.tag(in.Wanted())
				tags[tag.Tag] = tag
			}
			planned := q.instance(in, line, tag)
			p.Summary.count(planned.Action)
			tag.Instances++
			if slices.ContainsFunc(line.DriftReasons, Divergence.Deploys) {
				tag.Changes++
			}
			wave.Instances = append(wave.Instances, planned)
		}
		if len(wave.Instances) > 0 {
			p.Waves = append(p.Waves, wave)
		}
	}
	for _, tag := range tags {
		if tag.Changes > 0 {
			tag.Rollout = command("fleet rollout", q.Flags, "--tag", tag.Tag)
			if q.Selector != "" {
				tag.Rollout += " -l " + quoted(q.Selector)
			}
		}
		p.Tags = append(p.Tags, *tag)
	}
	slices.SortFunc(p.Tags, func(a, b PlannedTag) int { return cmp.Compare(a.Tag, b.Tag) })
	return p, nil
}

func (s *PlanSummary) count(a PlanAction) {
	switch a {
	case PlanSame:
		s.Same++
	case PlanChange:
		s.Change++
	case PlanUnknown:
		s.Unknown++
	}
}

// tag is what is known of a wanted tag: of a version's, its text says the version.
func (q PlanRequest) tag(name string) *PlannedTag {
	found := q.Facts.Tags[name]
	t := &PlannedTag{Tag: name, Digest: found.Digest, Version: found.Version, Trouble: found.Trouble, Hint: found.Hint}
	if parsed := release.ParseTag(name); t.Version == "" && (parsed.Kind == release.TagVersion || parsed.Kind == release.TagNumber) {
		t.Version = parsed.Version.String()
	}
	return t
}

// command is an agnesctl command line for a POSIX shell.
func command(verb string, flags []string, more ...string) string {
	line := "agnesctl " + verb
	for _, word := range append(slices.Clone(flags), more...) {
		line += " " + quoted(word)
	}
	return line
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`)

func quoted(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// instance says what would be done with one.
func (q PlanRequest) instance(in Instance, line InstanceStatus, tag *PlannedTag) PlannedInstance {
	p := PlannedInstance{
		Name: in.Name, Wanted: tag.Tag, Delivery: in.Delivery(), Status: line.Status,
		From: line.Version, To: tag.Version, FromDigest: line.Digest, ToDigest: tag.Digest,
		Action: PlanSame, Because: []string{}, Steps: []PlannedStep{}, Hint: line.Hint,
	}
	switch {
	case line.Drift == nil:
		p.Action, p.Because = PlanUnknown, []string{line.DriftReason}
		if line.Error != "" {
			p.Because = append(p.Because, line.Error)
		}
	case *line.Drift:
		p.Action = PlanChange
		for _, d := range line.DriftReasons {
			p.Because = append(p.Because, d.Text)
		}
		p.Steps = q.steps(in, line)
	case in.Pin == "" && tag.Trouble != "" && tag.Version == "":
		// It follows a channel, and nobody can say where that is.
		p.Action, p.Because, p.Hint = PlanUnknown, []string{"unknown: where " + tag.Tag + " is: " + tag.Trouble}, tag.Hint
	}
	return p
}

// steps are what mends the differences: one deploy for all that it mends, the rest
// each by itself.
func (q PlanRequest) steps(in Instance, line InstanceStatus) []PlannedStep {
	var steps []PlannedStep
	deploys := slices.ContainsFunc(line.DriftReasons, Divergence.Deploys)
	said := false
	var there []string // its host, where it is known; else the command is for there
	if in.Host != "" {
		there = []string{"--host", in.Host}
	}
	for _, d := range line.DriftReasons {
		switch {
		case d.Kind == DriftConfig:
			steps = append(steps, PlannedStep{d.Kind, "change its settings back, or pin config_hash: " + d.Actual, command("instance configure", nil, "--url", in.URL)})
		case d.Kind == DriftUpdater:
			steps = append(steps, PlannedStep{d.Kind, "remove " + d.Actual + " from its host", command("host status", there)})
		case deploys && (said || !d.Deploys()): // the deploy brings these, too
		case d.Kind == DriftHost:
			steps = append(steps, PlannedStep{d.Kind, "deploy what runs once more, which corrects .env", command("host deploy", there, "--image", q.Inventory.Image, "--tag", in.Wanted())})
		case d.Kind == DriftBundle:
			steps = append(steps, PlannedStep{d.Kind, "see why its last deploy left other files; the next version brings its own", command("host status", there)})
		default:
			said = true
			what := "deploy " + in.Wanted() + " to its host over SSH"
			if in.Delivery() == Pull {
				what = "set " + in.Wanted() + " as what its host fetches"
			}
			steps = append(steps, PlannedStep{d.Kind, what, command("fleet rollout", q.Flags, "--tag", in.Wanted(), "-l", "name="+in.Name)})
		}
	}
	return steps
}
