package release

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// revisionLabel names the commit that an image was built from (OCI image
// specification, predefined annotation keys).
const revisionLabel = "org.opencontainers.image.revision"

// Build is an image that was pushed by digest and what it is to be called.
type Build struct {
	Channel Channel
	Version Version
	Commit  string
	Digest  string
	// Breaking deprecates the previous stable version, with this one as its replacement.
	Breaking bool
	// Gated leaves the floating tag to Promote.
	Gated bool
	// KeepFirst goes on with the image that the version has already, where that
	// is another one: what a job that is run again after its build needs.
	KeepFirst bool
}

// Published says what became of each tag.
type Published struct {
	Version    Version   `json:"version"`
	Channel    Channel   `json:"channel"`
	Commit     string    `json:"commit,omitempty"`
	Digest     string    `json:"digest"`
	Tags       []TagMove `json:"tags"`                // floating first
	Deprecated Version   `json:"deprecated,omitzero"` // by a breaking release
	DryRun     bool      `json:"dry_run,omitempty"`   // nothing was written
	Steps      []Step    `json:"steps"`
}

// TagMove is one tag.
type TagMove struct {
	Tag      string `json:"tag"`
	Previous string `json:"previous"` // digest before; empty: the tag did not exist
	Moved    bool   `json:"moved"`    // it was written by this run (in a dry run: would be)
	Reason   string `json:"reason"`
}

// publication is one run of Publish.
type publication struct {
	*Publisher
	Build
	tags     Tags
	manifest Manifest
	moves    []TagMove // in the order of tags.All
	write    []int     // of moves: what is to be written besides the floating tag
	floats   bool      // the floating tag is at this version or a newer one
	previous Version   // deprecated by this run
}

// Publish points a build's tags at its digest: first those that never move,
// then, if the version is the newest good one of its channel, the floating
// tag. Everything is checked before the first write. The image's bytes are
// neither pulled nor rebuilt. Published is also returned with an error: what
// was done until then.
func (p *Publisher) Publish(ctx context.Context, b Build) (Published, error) {
	pub := publication{Publisher: p, Build: b, tags: TagsFor(b.Channel, b.Version, b.Commit)}
	steps := []step{
		{name: "claim", run: pub.checkClaim},
		{name: "read", run: pub.read},
		{name: "check", run: pub.check},
		{name: "tag", run: pub.writeFixed},
		{name: "float", run: pub.moveFloating},
	}
	if b.Breaking {
		steps = append(steps, step{name: "deprecate previous", run: pub.deprecatePrevious})
	}
	ran, err := walk(ctx, steps)
	return Published{
		Version: b.Version, Channel: b.Channel, Commit: b.Commit, Digest: pub.Digest,
		Tags: slices.Concat([]TagMove{}, pub.moves), Deprecated: pub.previous, DryRun: p.DryRun, Steps: ran,
	}, err
}

// checkClaim refuses a version that is not this build's.
func (p *publication) checkClaim(ctx context.Context) (outcome, error) {
	if p.Ledger == nil {
		return skipped("no ledger at hand: --git or --repo would name one"), nil
	}
	c, err := p.Ledger.ByVersion(ctx, p.Version)
	hint := fmt.Sprintf("release-bot version claim --channel %s --commit %s", p.Channel, p.Commit)
	switch {
	case errors.Is(err, ErrNotFound):
		return outcome{}, problem.Wrap(err, problem.Refused, fmt.Sprintf("expected %s to be claimed for this build, found no claim", p.Version), hint)
	case err != nil:
		return outcome{}, err
	case c.Channel != p.Channel || c.Commit != p.Commit:
		return outcome{}, problem.New(problem.Refused,
			fmt.Sprintf("expected %s to be claimed for %s of %s, found that it is %s of %s", p.Version, p.Channel, p.Commit, c.Channel, c.Commit), hint)
	}
	return looked("%s is claimed for this build", p.Version), nil
}

// read fetches the manifest and looks all tags up, at once.
func (p *publication) read(ctx context.Context) (outcome, error) {
	all := p.tags.All()
	p.moves = make([]TagMove, len(all))
	const manifest = -1
	jobs := []int{manifest}
	for i, tag := range all {
		p.moves[i].Tag = tag
		jobs = append(jobs, i)
	}
	if p.KeepFirst {
		first, err := p.Registry.Digest(ctx, p.tags.Version[0])
		if err != nil && !errors.Is(err, ErrNotFound) {
			return outcome{}, err
		}
		p.Digest = cmp.Or(first, p.Digest)
	}
	err := each(ctx, jobs, func(ctx context.Context, _, job int) (err error) {
		if job == manifest {
			p.manifest, err = p.Registry.Manifest(ctx, p.Digest)
			return p.notPushed(err)
		}
		p.moves[job].Previous, err = p.Registry.Digest(ctx, all[job])
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return outcome{}, err
	}
	return looked("%s in %s", p.Digest, p.Registry), nil
}

func (p *publication) notPushed(err error) error {
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	return problem.Wrap(err, problem.NotFound, fmt.Sprintf("expected %s in %s, found nothing", p.Digest, p.Registry),
		"push the image first: docker buildx build --output type=image,name="+p.Registry.String()+",push-by-digest=true,push=true .")
}

// check decides about every tag that never moves, and refuses before anything
// is written.
func (p *publication) check(ctx context.Context) (outcome, error) {
	if revision := annotation(p.manifest, revisionLabel); revision != "" && revision != p.Commit {
		return outcome{}, problem.New(problem.Refused, fmt.Sprintf("expected an image of commit %s, found that %s says %s", p.Commit, p.Digest, revision),
			"publish the digest that was built from --commit")
	}
	if err := p.notWithdrawn(ctx); err != nil {
		return outcome{}, err
	}
	for i := range p.moves {
		m := &p.moves[i]
		switch {
		case m.Tag == p.tags.Floating:
			continue
		case m.Previous == p.Digest:
			m.Reason = "points there already"
		case m.Previous == "":
			m.Reason = "new"
			p.write = append(p.write, i)
		case slices.Contains(p.tags.Version, m.Tag):
			return outcome{}, problem.New(problem.Refused,
				fmt.Sprintf("expected %s at %s or absent, found it at %s: a version is one image for ever", m.Tag, p.Digest, m.Previous),
				fmt.Sprintf("publish the first image (--digest %s, or --keep-first), or build a new commit and claim a new version", m.Previous))
		default:
			reason, err := p.keepsFirst(ctx, *m)
			if err != nil {
				return outcome{}, err
			}
			m.Reason = reason
		}
	}
	return looked("no tag of another build is in the way"), nil
}

// notWithdrawn refuses an image that failed or was deprecated as another
// version: under a new name it would reach everybody again.
func (p *publication) notWithdrawn(ctx context.Context) error {
	known, err := p.book(ctx)
	if err != nil {
		return err
	}
	var versions []Version
	for v := range known.deprecated {
		versions = append(versions, v)
	}
	for v, verdict := range known.verdicts {
		if verdict == VerdictFail && !known.deprecated[v] {
			versions = append(versions, v)
		}
	}
	slices.SortFunc(versions, func(a, b Version) int { return b.Compare(a) })
	versions = slices.DeleteFunc(versions, func(v Version) bool { return v == p.Version })
	v, found, err := p.whose(ctx, p.Channel, versions, p.Digest)
	if err != nil || !found {
		return err
	}
	return problem.New(problem.Refused, fmt.Sprintf("expected an image of %s's own, found that %s is %s, which %s", p.Version, p.Digest, v, known.against(shelf{}, v)),
		"build the commit and publish that image's digest")
}

// keepsFirst says why a sha- tag stays at the digest that it is at, or refuses
// because that is another commit's: seven digits of two commits are the same.
func (p *publication) keepsFirst(ctx context.Context, m TagMove) (reason string, err error) {
	first, err := p.Registry.Manifest(ctx, m.Previous)
	if err != nil {
		return "", err
	}
	revision := annotation(first, revisionLabel)
	if revision == "" {
		labels, err := p.Registry.Labels(ctx, first)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return "", err
		}
		revision = labels[revisionLabel]
	}
	switch revision {
	case p.Commit:
		return "kept: the first build of this commit has it", nil
	case "":
		return "kept: an earlier image has it, which does not say its commit", nil
	default:
		return "", problem.New(problem.Refused,
			fmt.Sprintf("expected %s to be absent or of commit %s, found that of commit %s at %s", m.Tag, p.Commit, revision, m.Previous),
			"add a commit, so that its id begins otherwise: git commit --allow-empty -m 'Build again'")
	}
}

// annotation reads one annotation of a manifest or index.
func annotation(m Manifest, key string) string {
	var doc struct {
		Annotations map[string]string `json:"annotations"`
	}
	_ = json.Unmarshal(m.Raw, &doc) // what cannot be read has none; Links reports it where it matters
	return doc.Annotations[key]
}

// writeFixed writes the tags that never move.
func (p *publication) writeFixed(ctx context.Context) (outcome, error) {
	if len(p.write) == 0 {
		return skipped("all are there"), nil
	}
	names := make([]string, len(p.write))
	err := each(ctx, p.write, func(ctx context.Context, i, at int) error {
		names[i] = p.moves[at].Tag
		if err := p.put(ctx, p.manifest, p.moves[at].Tag); err != nil {
			return err
		}
		p.moves[at].Moved = true
		return nil
	})
	return p.did("%s", strings.Join(names, ", ")), err
}

// moveFloating moves the floating tag forward. A registry has no
// compare-and-set, so it looks again after the write and mends what another
// run changed meanwhile.
func (p *publication) moveFloating(ctx context.Context) (outcome, error) {
	m := &p.moves[0]
	keep := func(format string, args ...any) outcome {
		m.Reason = fmt.Sprintf(format, args...)
		return skipped("%s: %s", m.Tag, m.Reason)
	}
	if p.Gated {
		return keep("promotion is gated: release-bot promote %s moves it once its verdict is pass", p.Version), nil
	}
	before, err := p.shelf(ctx, p.Channel)
	if err != nil {
		return outcome{}, err
	}
	known, err := p.book(ctx)
	if err != nil {
		return outcome{}, err
	}
	if why := known.against(before, p.Version); why != "" {
		return keep("%s %s", p.Version, why), nil
	}
	p.floats = true
	if newer, ok := known.newest(before, func(v Version) bool { return v.Compare(p.Version) > 0 }); ok {
		return keep("%s is newer", newer), nil
	}
	if m.Previous == p.Digest {
		return keep("points there already"), nil
	}
	if stray, err := p.strays(ctx, before, known, m.Previous); err != nil || stray != "" {
		p.floats = false
		return keep("%s", stray), err
	}
	if err := p.put(ctx, p.manifest, m.Tag); err != nil {
		return outcome{}, err
	}
	m.Moved, m.Reason = true, "new"
	if m.Previous != "" {
		m.Reason = "moved forward"
	}
	if p.DryRun {
		return p.did("%s points at %s", m.Tag, p.Digest), nil
	}
	now, err := p.settle(ctx, before, known)
	if err != nil {
		return outcome{}, err
	}
	if now != p.Version {
		m.Moved, m.Reason = false, fmt.Sprintf("%s arrived meanwhile and has it", now)
		return looked("%s: %s", m.Tag, m.Reason), nil
	}
	return p.did("%s points at %s", m.Tag, p.Digest), nil
}

// settle looks once more after the floating tag was written. A newer version
// that arrived since then gets it; if this one was deprecated since then, the
// newest good one does. It returns the version that the tag was left at.
func (p *publication) settle(ctx context.Context, before shelf, known book) (Version, error) {
	at, seen := p.Version, before
	for {
		after, err := p.shelf(ctx, p.Channel)
		if err != nil {
			return at, err
		}
		arrived := func(v Version) bool { return v.Compare(at) > 0 && !slices.Contains(seen.versions, v) }
		if known.against(after, at) != "" {
			arrived = func(v Version) bool { return v != at }
		}
		next, ok := known.newest(after, arrived)
		if !ok {
			return at, nil
		}
		m, err := p.image(ctx, p.Channel, next)
		if err != nil {
			return at, err
		}
		if err := p.put(ctx, m, p.tags.Floating); err != nil {
			return at, err
		}
		at, seen = next, after
	}
}

// strays says why the commit is no successor of what the floating tag is at,
// where somebody can tell. Branches of dev are no successors of each other.
func (p *publication) strays(ctx context.Context, s shelf, known book, digest string) (string, error) {
	if p.Channel != Stable || p.Ancestry == nil || p.Ledger == nil || digest == "" {
		return "", nil
	}
	older := slices.DeleteFunc(slices.Clone(s.versions), func(v Version) bool {
		return v.Compare(p.Version) >= 0 || known.against(s, v) != ""
	})
	current, ok, err := p.whose(ctx, p.Channel, older, digest)
	if err != nil || !ok {
		return "", err
	}
	c, err := p.Ledger.ByVersion(ctx, current)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	descends, err := p.Ancestry.Descends(ctx, c.Commit, p.Commit)
	if errors.Is(err, ErrNotFound) || err == nil && descends {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("commit %s does not descend from %s, which is %s; if that is meant, release-bot promote %s moves it once its verdict is pass",
		p.Commit[:7], c.Commit[:7], current, p.Version), nil
}

// deprecatePrevious deprecates what was stable before a breaking release.
func (p *publication) deprecatePrevious(ctx context.Context) (outcome, error) {
	if p.Gated {
		return skipped("promotion is gated: release-bot promote %s --breaking does it", p.Version), nil
	}
	if !p.floats {
		return skipped("%s did not become %s", p.Version, p.tags.Floating), nil
	}
	v, o, err := p.supersede(ctx, p.Version, p.moves[0].Previous)
	p.previous = v
	return o, err
}

// supersede deprecates the stable version before by, with by as replacement.
// The previous one is what :stable was at (digest), where that is known; else the
// newest published below it that did not fail: if that one is deprecated, this ran
// before, or a person was first.
func (p *Publisher) supersede(ctx context.Context, by Version, digest string) (Version, outcome, error) {
	s, err := p.shelf(ctx, Stable)
	if err != nil {
		return Version{}, outcome{}, err
	}
	known, err := p.book(ctx)
	if err != nil {
		return Version{}, outcome{}, err
	}
	i := slices.IndexFunc(s.versions, func(v Version) bool { return v.Compare(by) < 0 && known.verdicts[v] != VerdictFail })
	if i < 0 {
		return Version{}, skipped("there is no stable version before %s", by), nil
	}
	previous := s.versions[i]
	older := slices.DeleteFunc(slices.Clone(s.versions), func(v Version) bool { return v.Compare(by) >= 0 })
	if v, ok, err := p.whose(ctx, Stable, older, digest); err != nil {
		return Version{}, outcome{}, err
	} else if ok && known.verdicts[v] != VerdictFail {
		previous = v
	}
	const reason = "Superseded by a breaking release."
	if p.Ledger == nil {
		m, err := p.image(ctx, Stable, previous)
		if err != nil {
			return Version{}, outcome{}, err
		}
		o, err := p.mark(ctx, m, DeprecatedTag(previous))
		o.detail += fmt.Sprintf("; no ledger knows: release-bot deprecate %s --replacement %s --git … writes it", previous, by)
		return previous, o, err
	}
	d, err := p.Deprecate(ctx, previous, reason, by)
	if err != nil {
		return Version{}, outcome{}, err
	}
	if !slices.ContainsFunc(d.Steps, func(s Step) bool { return s.State != Skipped && s.Name != "image" }) {
		return previous, skipped("%s is deprecated already", previous), nil
	}
	return previous, p.did("%s is deprecated; its replacement is %s", previous, by), nil
}
