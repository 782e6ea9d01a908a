package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Claim says that a version number belongs to a build: one claim for a
// (channel, commit), and one (channel, commit) for a number.
type Claim struct {
	Version   Version   `json:"version"`
	Channel   Channel   `json:"channel"`
	Commit    string    `json:"commit"`
	ClaimedAt time.Time `json:"claimed_at,omitzero"` // UTC; Claims leaves it out, see Dated
	Tag       string    `json:"tag"`                 // the git tag that is the claim
	Claimed   bool      `json:"claimed"`             // by this call; false: the pair had it already
	ID        string    `json:"-"`                   // of the tag object
}

func pairRef(ch Channel, commit string) string { return claimRefs + string(ch) + "/" + commit }

// claimOf reads a claim from its tag object; ok is false for any other tag.
func claimOf(t Tag) (c Claim, nonce string, ok bool) {
	e := parseEntry(t.Message)
	v, err := ParseVersion(t.Name)
	if err != nil {
		return Claim{}, "", false
	}
	ch, err := ParseChannel(e.get(trailerChannel))
	if err != nil || e.get(trailerCommit) != t.Commit {
		return Claim{}, "", false
	}
	return Claim{Version: v, Channel: ch, Commit: t.Commit, ClaimedAt: t.At, Tag: t.Name, ID: t.ID}, e.get(trailerNonce), true
}

// claiming is one call of Claim: it keeps its nonce over all attempts, so that
// it knows its own object when the reply was lost.
type claiming struct {
	*Ledger
	channel Channel
	commit  string
	entry   entry
	nonce   string
	tag     Tag     // of the last attempt: the same number is tried with the same bytes
	taken   Version // known to be another's, whatever a lagging list says
}

// errTaken: the number belongs to another pair.
var errTaken = errors.New("the number is taken")

// Claim gives the pair its version number: the one that it has, or the next of
// this month (UTC). Calling it again, at the same time, or after it was
// interrupted gives the same number. What decides is the creation of refs, which
// everybody but one fails at. Numbers may be left unused, but are never given
// twice: where the refs cannot be created together, a crash or a race for one
// pair in between can burn one.
func (l *Ledger) Claim(ctx context.Context, ch Channel, commit string) (Claim, error) {
	if _, err := ParseChannel(string(ch)); err != nil {
		return Claim{}, err
	}
	if _, err := ParseCommit(commit); err != nil {
		return Claim{}, err
	}
	c := claiming{Ledger: l, channel: ch, commit: commit}
	c.entry, c.nonce = l.sign(entry{trailers: []trailer{{trailerChannel, string(ch)}, {trailerCommit, commit}}})
	p := patience{l: l, what: fmt.Sprintf("claim a version for %s of %s", ch, commit)}
	for {
		got, err := c.attempt(ctx)
		switch {
		case err == nil:
			return got, nil
		case errors.Is(err, errTaken):
			err = p.lostRace(ctx)
		default:
			err = p.after(ctx, err)
		}
		if err != nil {
			return Claim{}, err
		}
	}
}

// attempt is one try, in one conversation where that is possible.
func (c *claiming) attempt(ctx context.Context) (Claim, error) {
	if chooser, ok := c.refs.(Chooser); ok {
		got, err := c.inOne(ctx, chooser)
		if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, errSingle) {
			return got, err
		}
	}
	return c.stepwise(ctx)
}

var (
	errHasOne = errors.New("the pair has a claim")
	errSingle = errors.New("a number has no pair") // perhaps a claim that was cut off: somebody has to look
)

// inOne looks and claims in one conversation. Number and pair are created
// together, so a number that is taken says that the pair has to be looked at
// again, and nothing else.
func (c *claiming) inOne(ctx context.Context, chooser Chooser) (Claim, error) {
	ref := pairRef(c.channel, c.commit)
	var next Version
	made, err := chooser.CreateChosen(ctx, func(refs []Ref) (Tag, []string, error) {
		now := c.opts.Now().UTC()
		next = MonthOf(now)
		single := map[string]bool{}
		for _, r := range refs {
			if v := numberOf(r); v.Prefix() == next.Prefix() {
				next.N = max(next.N, v.N)
				single[r.ID] = true
			}
		}
		for _, r := range refs {
			if r.Name == ref {
				return Tag{}, nil, errHasOne
			}
			if strings.HasPrefix(r.Name, claimRefs) {
				delete(single, r.ID)
			}
		}
		if len(single) > 0 {
			return Tag{}, nil, errSingle
		}
		next.N++
		return c.tagFor(next, now), []string{ref}, nil
	})
	switch {
	case err == nil:
		got, _, _ := claimOf(made)
		got.Claimed = true
		return got, nil
	case errors.Is(err, errHasOne):
		return c.ofPair(ctx)
	case errors.Is(err, ErrUncertain):
		return c.whose(ctx, next, err)
	case errors.Is(err, ErrExists):
		return Claim{}, errTaken
	default:
		return Claim{}, err
	}
}

// tagFor returns the tag object that claims v.
func (c *claiming) tagFor(v Version, now time.Time) Tag {
	if c.tag.Name != v.String() {
		e := c.entry
		e.subject = "Claim " + v.String()
		c.tag = Tag{Name: v.String(), Commit: c.commit, Message: e.String(), At: now.Truncate(time.Second)}
	}
	return c.tag
}

// stepwise reads numbers before the pair: if another run of the same pair wins
// in between, the pair is seen here or its number collides below.
func (c *claiming) stepwise(ctx context.Context) (Claim, error) {
	now := c.opts.Now().UTC()
	numbers, next, err := c.month(ctx, now)
	if err != nil {
		return Claim{}, err
	}
	switch got, err := c.ofPair(ctx); {
	case err == nil:
		return got, nil
	case !errors.Is(err, ErrNotFound):
		return Claim{}, err
	}
	if got, ok, err := c.adopt(ctx, numbers); ok || err != nil {
		return got, err
	}
	if next.Prefix() == c.taken.Prefix() && next.N <= c.taken.N {
		next.N = c.taken.N + 1
	}
	ref := pairRef(c.channel, c.commit)
	made, err := c.refs.Create(ctx, c.tagFor(next, now), ref)
	if err == nil {
		got, _, _ := claimOf(made)
		got.Claimed = true
		return got, nil
	}
	if exists, ok := errors.AsType[*RefError](err); ok && exists.Ref == ref {
		return c.ofPair(ctx)
	}
	if errors.Is(err, ErrExists) || errors.Is(err, ErrUncertain) {
		return c.whose(ctx, next, err)
	}
	return Claim{}, err
}

// month lists the numbers of now's month and returns the next one: one more
// than the greatest. Counting would give a number again after a deletion.
func (l *Ledger) month(ctx context.Context, now time.Time) (numbers []Ref, next Version, err error) {
	next = MonthOf(now)
	refs, err := l.refs.List(ctx, tagRefs+next.Prefix())
	if err != nil {
		return nil, Version{}, err
	}
	for _, ref := range refs {
		if v, err := ParseVersion(strings.TrimPrefix(ref.Name, tagRefs)); err == nil {
			numbers = append(numbers, ref)
			next.N = max(next.N, v.N)
		}
	}
	next.N++
	return numbers, next, nil
}

// Next returns the number that the next claim of this month will get, if
// nobody else claims before.
func (l *Ledger) Next(ctx context.Context) (Version, error) {
	_, next, err := l.month(ctx, l.opts.Now())
	return next, err
}

// ofPair returns the pair's claim, or ErrNotFound.
func (c *claiming) ofPair(ctx context.Context) (Claim, error) {
	ref := pairRef(c.channel, c.commit)
	t, err := c.refs.Find(ctx, ref)
	if err != nil {
		return Claim{}, err
	}
	got, nonce, ok := claimOf(t)
	if !ok || got.Channel != c.channel || got.Commit != c.commit {
		return Claim{}, problem.New(problem.Conflict, fmt.Sprintf("expected a claim of %s for %s at %s, found the tag object %s that is none", c.commit, c.channel, ref, t.ID),
			"somebody else wrote that ref; look at it: git fetch origin "+ref+" && git show FETCH_HEAD")
	}
	got.Claimed = nonce == c.nonce
	return got, nil
}

// adopt finishes the claim of an earlier run of the pair that was cut off
// between the number and the pair's ref.
func (c *claiming) adopt(ctx context.Context, numbers []Ref) (Claim, bool, error) {
	var mine, unknown []Ref
	for _, ref := range numbers {
		switch ref.Commit {
		case c.commit:
			mine = append(mine, ref)
		case "":
			unknown = append(unknown, ref)
		}
	}
	// Where a listing does not tell commits, each look costs a request, and a run
	// that was cut off is repeated soon.
	const looks = 3
	slices.SortFunc(unknown, func(a, b Ref) int { return numberOf(b).Compare(numberOf(a)) })
	mine = append(mine, unknown[:min(looks, len(unknown))]...)
	if len(mine) == 0 {
		return Claim{}, false, nil
	}
	tags, err := c.refs.Read(ctx, mine)
	if err != nil {
		return Claim{}, false, err
	}
	for _, t := range tags {
		if got, _, ok := claimOf(t); ok && got.Channel == c.channel && got.Commit == c.commit {
			got, err := c.secure(ctx, t)
			return got, err == nil, err
		}
	}
	return Claim{}, false, nil
}

// numberOf returns the version that a ref claims, or none.
func numberOf(ref Ref) Version {
	name, ok := strings.CutPrefix(ref.Name, tagRefs)
	if !ok {
		return Version{}
	}
	v, _ := ParseVersion(name) // none, when it is none
	return v
}

// whose looks at a number that could not be created, or perhaps was.
func (c *claiming) whose(ctx context.Context, v Version, why error) (Claim, error) {
	t, err := c.refs.Find(ctx, tagRefs+v.String())
	if errors.Is(err, ErrNotFound) {
		if errors.Is(why, ErrExists) { // gone again: a reply that was not true
			return Claim{}, problem.Wrap(why, problem.Unavailable, "expected "+tagRefs+v.String()+" to exist as the answer said, found nothing", "repeat the command")
		}
		return Claim{}, why // not carried out: the same number again
	}
	if err != nil {
		return Claim{}, err
	}
	if got, _, ok := claimOf(t); ok && got.Channel == c.channel && got.Commit == c.commit {
		return c.secure(ctx, t)
	}
	c.taken = v
	return Claim{}, errTaken
}

// secure points the pair's ref at t, a claim of the pair, and returns what the
// ref then says: it decides between two runs of one pair.
func (c *claiming) secure(ctx context.Context, t Tag) (Claim, error) {
	if err := c.refs.Point(ctx, pairRef(c.channel, c.commit), t); err != nil && !errors.Is(err, ErrExists) {
		return Claim{}, err
	}
	return c.ofPair(ctx)
}

// Claims returns all claims, newest first, from two listings. Only a claim that
// was cut off before its pair's ref was written has its object read. ClaimedAt
// is left out: Dated has it.
func (l *Ledger) Claims(ctx context.Context) ([]Claim, error) {
	refs, err := l.refs.List(ctx, tagRefs+"2") // versions of this millennium, and little else
	if err != nil {
		return nil, err
	}
	pairs, err := l.refs.List(ctx, claimRefs)
	if err != nil {
		return nil, err
	}
	byID := map[string]Claim{}
	taken := map[string]bool{}
	for _, ref := range pairs {
		channel, commit, ok := strings.Cut(strings.TrimPrefix(ref.Name, claimRefs), "/")
		if ok {
			byID[ref.ID] = Claim{Channel: Channel(channel), Commit: commit, ID: ref.ID}
			taken[ref.Name] = true
		}
	}
	var claims []Claim
	var single []Ref
	for _, ref := range refs {
		tag := strings.TrimPrefix(ref.Name, tagRefs)
		v, err := ParseVersion(tag)
		if err != nil || ref.ID == ref.Commit {
			continue
		}
		c, ok := byID[ref.ID]
		if !ok {
			single = append(single, ref)
			continue
		}
		c.Version, c.Tag = v, tag
		claims = append(claims, c)
	}
	more, err := l.cutOff(ctx, single, taken)
	if err != nil {
		return nil, err
	}
	claims = append(claims, more...)
	slices.SortFunc(claims, func(a, b Claim) int { return b.Version.Compare(a.Version) })
	return claims, nil
}

// cutOff returns the claims among numbers that no pair's ref points at. A
// number whose pair has another one is burned, and no claim.
func (l *Ledger) cutOff(ctx context.Context, numbers []Ref, taken map[string]bool) ([]Claim, error) {
	if len(numbers) == 0 {
		return nil, nil
	}
	slices.SortFunc(numbers, func(a, b Ref) int { return numberOf(a).Compare(numberOf(b)) })
	tags, err := l.refs.Read(ctx, numbers)
	if err != nil {
		return nil, err
	}
	var claims []Claim
	for _, t := range tags {
		c, _, ok := claimOf(t)
		if !ok || taken[pairRef(c.Channel, c.Commit)] {
			continue
		}
		taken[pairRef(c.Channel, c.Commit)] = true
		claims = append(claims, c)
	}
	return claims, nil
}

// Dated returns the claims with ClaimedAt. Over a forge's API each one that was
// not read before costs a request.
func (l *Ledger) Dated(ctx context.Context, claims ...Claim) ([]Claim, error) {
	refs := make([]Ref, len(claims))
	for i, c := range claims {
		refs[i] = Ref{Name: tagRefs + c.Tag, ID: c.ID, Commit: c.Commit}
	}
	tags, err := l.refs.Read(ctx, refs)
	if err != nil {
		return nil, err
	}
	dated := slices.Clone(claims)
	for i := range dated {
		dated[i].ClaimedAt = tags[i].At
	}
	return dated, nil
}

// ClaimOf returns the pair's claim, or ErrNotFound.
func (l *Ledger) ClaimOf(ctx context.Context, ch Channel, commit string) (Claim, error) {
	c := claiming{Ledger: l, channel: ch, commit: commit}
	got, err := c.ofPair(ctx)
	if !errors.Is(err, ErrNotFound) {
		return got, err
	}
	all, err := l.Claims(ctx)
	if err != nil {
		return Claim{}, err
	}
	i := slices.IndexFunc(all, func(c Claim) bool { return c.Channel == ch && c.Commit == commit })
	if i < 0 {
		return Claim{}, problem.Wrap(ErrNotFound, problem.NotFound, fmt.Sprintf("expected a version of commit %s for %s, found none", commit, ch),
			fmt.Sprintf("release-bot version claim --channel %s --commit %s", ch, commit))
	}
	dated, err := l.Dated(ctx, all[i])
	if err != nil {
		return Claim{}, err
	}
	return dated[0], nil
}

// ByVersion returns the claim of a number, or ErrNotFound: for a number that
// nobody took, and for one that was burned.
func (l *Ledger) ByVersion(ctx context.Context, v Version) (Claim, error) {
	t, err := l.refs.Find(ctx, tagRefs+v.String())
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Claim{}, err
	}
	got, _, ok := claimOf(t)
	if err != nil || !ok {
		return Claim{}, unclaimed(cmp.Or(err, ErrNotFound), v, "no such claim")
	}
	switch pair, err := l.refs.Find(ctx, pairRef(got.Channel, got.Commit)); {
	case errors.Is(err, ErrNotFound), err == nil && pair.ID == t.ID:
		return got, nil
	case err != nil:
		return Claim{}, err
	default:
		return Claim{}, unclaimed(ErrNotFound, v, fmt.Sprintf("a number that was left unused: %s of %s is %s", got.Channel, got.Commit, pair.Name))
	}
}

func unclaimed(err error, v Version, found string) error {
	return problem.Wrap(err, problem.NotFound, fmt.Sprintf("expected %s to be claimed, found %s", v, found), "release-bot version list")
}
