package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Publisher moves the tags of one image repository and writes what that means
// into the ledger. Publish, Promote, Verdict, Deprecate and Rollback are its
// verbs. Each looks first, writes what is missing, and can be run again after an
// interruption at any point: it then ends in the state that one undisturbed run
// gives. A failed call to a place outside is problem.Inconclusive, and is
// never taken for an answer.
type Publisher struct {
	Registry Registry
	Ledger   *Ledger // nil: only what the registry itself can tell is checked (Publish, no other verb)
	Forge    Forge   // nil: no issues
	// Ancestry tells which commit descends from which; nil: versions alone decide
	// what is newer.
	Ancestry Ancestry
	// Notify sends an alert besides the issue, or is nil. A verb that is repeated
	// sends it again: Notice.Event is the same then.
	Notify func(context.Context, Notice) error
	// Places are the flags of release-bot that name the places above, for commands
	// that people copy out of an alert: --repo keboola/agnes.
	Places string
	// DryRun looks as always and writes nothing; what would be done is Planned.
	DryRun bool
}

// Notice is a message to people.
type Notice struct {
	Event string // identifies the incident: rollback/2026.04.3
	Text  string // a few lines of plain text
}

// Step is one part of a verb and what became of it.
type Step struct {
	Name   string    `json:"name"`
	State  StepState `json:"state"`
	Detail string    `json:"detail"`

	wrote bool
}

// Wrote reports whether any of the steps changed something outside.
func Wrote(steps []Step) bool {
	return slices.ContainsFunc(steps, func(s Step) bool { return s.wrote })
}

// StepState says what became of a step.
type StepState string

// The states of a step.
const (
	Done    StepState = "done"
	Skipped StepState = "skipped" // there was nothing to do, or a reason not to; Detail says which
	Planned StepState = "planned" // a dry run would have done it
	Failed  StepState = "failed"  // the verb's error says why; steps after it did not run
)

// step is a part of a verb that has not run yet.
type step struct {
	name string
	run  func(context.Context) (outcome, error)
	// onward lets the verb go on when this step failed: the next ones do not
	// depend on it. The verb still fails at its end.
	onward bool
}

// outcome is what became of a step. One without a state had no reason to run,
// and is not told of.
type outcome struct {
	state  StepState
	detail string
	wrote  bool
}

func skipped(format string, args ...any) outcome {
	return outcome{state: Skipped, detail: fmt.Sprintf(format, args...)}
}

// did is the outcome of a step that wrote something, or would have.
func (p *Publisher) did(format string, args ...any) outcome {
	if p.DryRun {
		return outcome{state: Planned, detail: fmt.Sprintf(format, args...)}
	}
	return outcome{state: Done, detail: fmt.Sprintf(format, args...), wrote: true}
}

func looked(format string, args ...any) outcome {
	return outcome{state: Done, detail: fmt.Sprintf(format, args...)}
}

// walk runs steps in order. It returns what became of each that ran, and the
// first error.
func walk(ctx context.Context, steps []step) ([]Step, error) {
	var ran []Step
	var first error
	for _, s := range steps {
		o, err := s.run(ctx)
		if err != nil {
			err = Unsettled(err)
			ran = append(ran, Step{Name: s.name, State: Failed, Detail: problem.As(err).Message})
			if first == nil {
				first = err
			}
			if !s.onward || ctx.Err() != nil {
				return ran, first
			}
			continue
		}
		if o.state == "" {
			continue
		}
		ran = append(ran, Step{Name: s.name, State: o.state, Detail: o.detail, wrote: o.wrote})
	}
	return ran, first
}

// Unsettled makes trouble of a place outside what it is for a release:
// inconclusive, whatever kind the adapter gave it.
func Unsettled(err error) error {
	const again = "run the same command again: it continues where it ended"
	e, ok := errors.AsType[*problem.Error](err)
	switch {
	case ok && slices.Contains([]problem.Kind{problem.Unavailable, problem.RateLimited, problem.Timeout}, e.Kind):
		c := e.WithCode(e.WireCode())
		c.Kind = problem.Inconclusive
		c.Hint = cmp.Or(c.Hint, again)
		return c
	case !ok && errors.Is(err, ErrUncertain):
		return problem.Wrap(err, problem.Inconclusive, "expected an answer, found none", again)
	default:
		return err
	}
}

// each runs do for every item, eight at a time; the first error ends them.
func each[T any](ctx context.Context, items []T, do func(context.Context, int, T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, item := range items {
		g.Go(func() error { return do(ctx, i, item) })
	}
	return g.Wait()
}

// digests looks tags up; what is not there is "".
func (p *Publisher) digests(ctx context.Context, tags []string) ([]string, error) {
	found := make([]string, len(tags))
	err := each(ctx, tags, func(ctx context.Context, i int, tag string) error {
		digest, err := p.Registry.Digest(ctx, tag)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		found[i] = digest
		return err
	})
	return found, err
}

// put points a tag at a manifest, unless nothing is to be written.
func (p *Publisher) put(ctx context.Context, m Manifest, tag string) error {
	if p.DryRun {
		return nil
	}
	return p.Registry.Tag(ctx, m, tag)
}

// mark points a tag that says something about a version (confirmed-V,
// deprecated-V) at its image, once and for all.
func (p *Publisher) mark(ctx context.Context, m Manifest, tag string) (outcome, error) {
	switch at, err := p.Registry.Digest(ctx, tag); {
	case errors.Is(err, ErrNotFound):
		return p.did("%s points at %s", tag, m.Digest), p.put(ctx, m, tag)
	case err != nil:
		return outcome{}, err
	case at == m.Digest:
		return skipped("%s points there already", tag), nil
	default:
		return outcome{}, problem.New(problem.Refused,
			fmt.Sprintf("expected %s at %s or absent, found it at %s", tag, m.Digest, at),
			"somebody else made that tag: look at both images, then remove the tag by hand")
	}
}

// image reads what a version's own tag points at, or ErrNotFound.
func (p *Publisher) image(ctx context.Context, c Channel, v Version) (Manifest, error) {
	return p.Registry.Manifest(ctx, VersionTag(c, v))
}

// shelf is what the registry's list of tags tells about one channel.
type shelf struct {
	versions   []Version // published, newest first
	deprecated map[Version]bool
}

func (p *Publisher) shelf(ctx context.Context, c Channel) (shelf, error) {
	tags, err := p.Registry.Tags(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return shelf{}, err
	}
	s := shelf{deprecated: map[Version]bool{}}
	for _, tag := range tags {
		switch t := ParseTag(tag); {
		case t.Kind == TagVersion && t.Channel == c:
			s.versions = append(s.versions, t.Version)
		case t.Kind == TagDeprecated:
			s.deprecated[t.Version] = true
		}
	}
	slices.SortFunc(s.versions, func(a, b Version) int { return b.Compare(a) })
	return s, nil
}

// book is what the ledger knows against versions.
type book struct {
	verdicts   map[Version]Verdict
	deprecated map[Version]bool
}

// book is empty where no ledger is at hand.
func (p *Publisher) book(ctx context.Context) (b book, err error) {
	if p.Ledger == nil {
		return book{}, nil
	}
	if b.verdicts, err = p.Ledger.Verdicts(ctx); err != nil {
		return book{}, err
	}
	b.deprecated, err = p.Ledger.deprecated(ctx)
	return b, err
}

// deprecated returns the versions that have a deprecation, from one listing:
// over a forge's API Deprecations costs a request for each.
func (l *Ledger) deprecated(ctx context.Context) (map[Version]bool, error) {
	refs, err := l.refs.List(ctx, tagRefs+deprecations)
	if err != nil {
		return nil, err
	}
	found := map[Version]bool{}
	for _, ref := range refs {
		if v, err := ParseVersion(strings.TrimPrefix(ref.Name, tagRefs+deprecations)); err == nil {
			found[v] = true
		}
	}
	return found, nil
}

// against says why nobody should get a version, or nothing.
func (b book) against(s shelf, v Version) string {
	switch {
	case b.verdicts[v] == VerdictFail:
		return "has failed"
	case b.deprecated[v] || s.deprecated[v]:
		return "is deprecated"
	default:
		return ""
	}
}

// newest returns the first version that keep accepts and nothing speaks against.
func (b book) newest(s shelf, keep func(Version) bool) (Version, bool) {
	for _, v := range s.versions {
		if b.against(s, v) == "" && keep(v) {
			return v, true
		}
	}
	return Version{}, false
}

// whose returns the version of a channel whose own tag points at digest. It
// looks at the newest twenty of versions: what floats is among them, or nobody
// here put it there.
func (p *Publisher) whose(ctx context.Context, c Channel, versions []Version, digest string) (Version, bool, error) {
	versions = versions[:min(len(versions), 20)]
	for batch := range slices.Chunk(versions, 5) {
		tags := make([]string, len(batch))
		for i, v := range batch {
			tags[i] = VersionTag(c, v)
		}
		found, err := p.digests(ctx, tags)
		if err != nil {
			return Version{}, false, err
		}
		if i := slices.Index(found, digest); i >= 0 && digest != "" {
			return batch[i], true, nil
		}
	}
	return Version{}, false, nil
}

// claimed returns a version's claim, for verbs that cannot do without one.
func (p *Publisher) claimed(ctx context.Context, v Version) (Claim, error) {
	if p.Ledger == nil {
		return Claim{}, problem.New(problem.Usage, "expected a ledger: verdicts and deprecations are git refs", "add --git PATH|URL or --repo OWNER/NAME")
	}
	c, err := p.Ledger.ByVersion(ctx, v)
	if errors.Is(err, ErrNotFound) {
		return Claim{}, problem.Wrap(err, problem.NotFound, fmt.Sprintf("expected %s to be a claimed version, found no claim of it", v), "release-bot version list")
	}
	return c, err
}
