package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// SurveyOptions are the places that Survey reads.
type SurveyOptions struct {
	Packages Packages
	Registry Registry
	Ledger   *Ledger
	Policy   PrunePolicy
	InUse    InUse
	Now      time.Time
	Parallel int                           // manifests read at a time (default 8)
	Progress func(done, total int)         // of manifests; may be nil
	Note     func(format string, a ...any) // for the reader of a log; may be nil
}

// Survey collects what Plan needs and changes nothing. It reads the package's
// list once, every manifest once, of which it keeps the links alone, and the
// times of those claims whose month does not decide. A manifest that cannot be
// read is an error: without it nobody knows what it needs.
func Survey(ctx context.Context, o SurveyOptions) (PruneInput, error) {
	if err := o.Policy.Validate(); err != nil {
		return PruneInput{}, err
	}
	if o.Parallel < 1 {
		o.Parallel = 8
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	in := PruneInput{Repository: o.Registry.String(), Now: o.Now.UTC(), Policy: o.Policy, InUse: o.InUse}
	listed, err := o.Packages.Versions(ctx)
	if err != nil {
		return PruneInput{}, err
	}
	r := &reading{SurveyOptions: o, links: make(map[string]Links, len(listed)), asked: make(map[string]bool, len(listed)), listed: map[string]int64{}, unlisted: map[string][]string{}, gone: map[string]bool{}}
	if in.Versions, err = r.list(listed); err != nil {
		return PruneInput{}, err
	}
	if err := r.all(ctx, in.Versions); err != nil {
		return PruneInput{}, err
	}
	in.Versions = r.withoutGone(in.Versions)
	in.Links, in.Unlisted = r.links, r.unlisted
	if in.Deprecations, err = o.Ledger.Deprecations(ctx); err != nil {
		return PruneInput{}, err
	}
	if in.Verdicts, err = o.Ledger.Verdicts(ctx); err != nil {
		return PruneInput{}, err
	}
	if in.Claims, err = o.Ledger.Claims(ctx); err != nil {
		return PruneInput{}, err
	}
	return in, date(ctx, o.Ledger, &in)
}

// date reads the times of claims of dev versions in the registry whose month
// lies across the limit. All others are young or old whatever their day.
func date(ctx context.Context, l *Ledger, in *PruneInput) error {
	here := map[Version]bool{}
	for _, listed := range in.Versions {
		for _, tag := range listed.Tags {
			here[ParseTag(tag).Version] = true
		}
	}
	limit := in.Now.Add(-time.Duration(in.Policy.KeepDevDays) * day)
	var at []int
	var unclear []Claim
	for i, c := range in.Claims {
		month := time.Date(c.Version.Year, time.Month(c.Version.Month), 1, 0, 0, 0, 0, time.UTC)
		if c.Channel == Dev && here[c.Version] && !month.After(limit) && c.Version.MonthEnd().After(limit) {
			at = append(at, i)
			unclear = append(unclear, c)
		}
	}
	dated, err := l.Dated(ctx, unclear...)
	if err != nil {
		return err
	}
	for i, c := range dated {
		in.Claims[at[i]] = c
	}
	return nil
}

// reading is the state of one Survey.
type reading struct {
	SurveyOptions
	listed   map[string]int64    // id by digest
	unlisted map[string][]string // tags that the list has not, by digest

	mu    sync.Mutex
	asked map[string]bool  // digests that were or are being read
	links map[string]Links // of those that exist
	gone  map[string]bool  // listed, and by two accounts not there
	done  int
}

// list removes rows that a page brought twice because others moved.
func (r *reading) list(rows []PackageVersion) ([]PackageVersion, error) {
	var versions []PackageVersion
	seen := make(map[int64]PackageVersion, len(rows))
	for _, v := range rows {
		if before, ok := seen[v.ID]; ok {
			if before.Digest != v.Digest || !sameTags(before.Tags, v.Tags) {
				return nil, problem.New(problem.Inconclusive, fmt.Sprintf("expected one state of version %d (%s), found two in one list: it changed while it was read", v.ID, short(v.Digest)), "release-bot prune")
			}
			continue
		}
		seen[v.ID] = v
		r.listed[v.Digest] = v.ID
		versions = append(versions, v)
	}
	return versions, nil
}

// all reads every listed manifest; then what the registry's tags and the
// manifests name besides, until nothing new is named. The list may lag behind:
// a digest that it does not have may exist all the same, and need others.
func (r *reading) all(ctx context.Context, versions []PackageVersion) error {
	if err := r.tags(ctx, versions); err != nil {
		return err
	}
	next := make([]string, 0, len(versions))
	for _, v := range versions {
		next = append(next, v.Digest)
	}
	next = append(next, slices.Sorted(maps.Keys(r.unlisted))...)
	var err error
	for len(next) > 0 && err == nil {
		next, err = r.round(ctx, next)
	}
	return err
}

// tags asks the registry for its tags. Those that the list does not have, or has
// elsewhere, are unlisted. Only floating tags move, so that only they are looked
// up again.
func (r *reading) tags(ctx context.Context, versions []PackageVersion) error {
	at := map[string]string{}
	for _, v := range versions {
		for _, tag := range v.Tags {
			at[tag] = v.Digest
		}
	}
	tags, err := r.Registry.Tags(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) { // a registry without tags may say so
		return err
	}
	for _, tag := range tags {
		if at[tag] != "" && ParseTag(tag).Kind != TagFloating {
			continue
		}
		digest, err := r.Registry.Digest(ctx, tag)
		switch {
		case errors.Is(err, ErrNotFound) || err == nil && digest == at[tag]: // deleted in between, or as listed
		case err != nil:
			return err
		default:
			r.unlisted[digest] = append(r.unlisted[digest], tag)
			r.Note("tag %s points at %s, which the package's list does not say", tag, short(digest))
		}
	}
	return nil
}

// round reads manifests in parallel and returns the digests that they name and
// that nobody asked for yet.
func (r *reading) round(ctx context.Context, digests []string) ([]string, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.Parallel)
	var named []string
	for _, digest := range digests {
		if r.asked[digest] { // written below, between rounds of goroutines that do not touch it
			continue
		}
		r.asked[digest] = true
		group.Go(func() error {
			links, ok, err := r.read(ctx, digest)
			if err != nil || !ok {
				return err
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.links[digest] = links
			named = append(named, links.Children...)
			if links.Subject != "" {
				named = append(named, links.Subject)
			}
			if r.done++; r.Progress != nil {
				r.Progress(r.done, max(r.done, len(r.listed)))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var next []string
	for _, digest := range named {
		if !r.asked[digest] {
			next = append(next, digest)
		}
	}
	return next, nil
}

// read returns a manifest's links, or false where the registry does not have
// it. Of a listed one the package host must say the same.
func (r *reading) read(ctx context.Context, digest string) (Links, bool, error) {
	m, err := r.Registry.Manifest(ctx, digest)
	if errors.Is(err, ErrNotFound) {
		id, listed := r.listed[digest]
		if !listed {
			return Links{}, false, nil
		}
		if _, again := r.Packages.Version(ctx, id); errors.Is(again, ErrNotFound) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.gone[digest] = true
			return Links{}, false, nil
		}
	}
	if err != nil {
		return Links{}, false, unreadable(digest, err)
	}
	if m.Digest != digest {
		return Links{}, false, unreadable(digest, fmt.Errorf("the registry answered with %s", m.Digest))
	}
	links, err := m.Links()
	if err != nil {
		return Links{}, false, unreadable(digest, err)
	}
	return links, true, nil
}

func unreadable(digest string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return problem.Wrap(err, problem.Inconclusive,
		fmt.Sprintf("expected to read the manifest %s, could not: what it needs is unknown, so nothing can be deleted", digest),
		"repeat the command; if it stays so, look at the manifest: crane manifest IMAGE@"+digest)
}

func (r *reading) withoutGone(versions []PackageVersion) []PackageVersion {
	var there []PackageVersion
	for _, v := range versions {
		if r.gone[v.Digest] {
			r.Note("%s is still listed and was deleted", short(v.Digest))
			continue
		}
		there = append(there, v)
	}
	return there
}
