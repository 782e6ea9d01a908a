package release_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// pruneNow is the moment of all plans here.
var pruneNow = time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)

// world is a package host and its registry in memory: real manifests under their
// real digests, and the host's rules of deletion.
type world struct {
	release.Registry // what is not defined below must not be called

	manifests map[string]release.Manifest
	attic     map[string]release.Manifest // deleted, and not forgotten
	versions  map[int64]release.PackageVersion
	deleted   map[int64]release.PackageVersion
	digests   []string // in the order of creation
	nextID    int64
	dropped   int
	hidden    map[string]bool // by digest: in the registry, and not in the list
	staleTags map[string]bool // tags that the list does not show
	retained  map[int64]bool
	tagless   bool // restored versions come back without tags
	reads     map[string]int

	calls int
	fault func(call int) error // nil: answer; ErrUncertain: do it and lose the reply
}

func newWorld() *world {
	return &world{
		manifests: map[string]release.Manifest{}, attic: map[string]release.Manifest{}, versions: map[int64]release.PackageVersion{}, deleted: map[int64]release.PackageVersion{},
		hidden: map[string]bool{}, staleTags: map[string]bool{}, retained: map[int64]bool{}, reads: map[string]int{}, nextID: 1000,
	}
}

// push adds a manifest and returns its digest.
func (w *world) push(children []string, subject string, age time.Duration, tags ...string) string {
	doc := map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "annotations": map[string]string{"n": fmt.Sprint(len(w.digests))}}
	if children != nil {
		doc["mediaType"] = "application/vnd.oci.image.index.v1+json"
		list := make([]map[string]any, 0, len(children))
		for _, c := range children {
			list = append(list, map[string]any{"digest": c, "size": 1})
		}
		doc["manifests"] = list
	}
	if subject != "" {
		doc["subject"] = map[string]any{"digest": subject, "size": 1}
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
	w.nextID++
	w.manifests[digest] = release.Manifest{Digest: digest, Raw: raw}
	w.versions[w.nextID] = release.PackageVersion{ID: w.nextID, Digest: digest, Tags: tags, CreatedAt: pruneNow.Add(-age)}
	w.digests = append(w.digests, digest)
	return digest
}

func (w *world) id(digest string) int64 {
	for id, v := range w.versions {
		if v.Digest == digest {
			return id
		}
	}
	return 0
}

// tag moves a tag as a registry does: to one manifest alone.
func (w *world) tag(digest, tag string) {
	for id, v := range w.versions {
		at := slices.Index(v.Tags, tag)
		switch {
		case v.Digest == digest && at < 0:
			v.Tags = append(slices.Clone(v.Tags), tag)
		case v.Digest != digest && at >= 0:
			v.Tags = slices.Delete(slices.Clone(v.Tags), at, at+1)
		}
		w.versions[id] = v
	}
}

// drop removes a manifest behind everybody's back, as an earlier prune did.
func (w *world) drop(digest string) {
	delete(w.versions, w.id(digest))
	delete(w.manifests, digest)
	w.dropped++
}

func (w *world) tagsByDigest() map[string][]string {
	tags := make(map[string][]string, len(w.versions))
	for _, v := range w.versions {
		tags[v.Digest] = v.Tags
	}
	return tags
}

func (w *world) called() error {
	w.calls++
	if w.fault == nil {
		return nil
	}
	return w.fault(w.calls)
}

func absent() error {
	return problem.Wrap(release.ErrNotFound, problem.NotFound, "no such version", "")
}

// Versions lists what is not hidden.
func (w *world) Versions(context.Context) ([]release.PackageVersion, error) {
	if err := w.called(); err != nil {
		return nil, err
	}
	var all []release.PackageVersion
	for _, id := range slices.Sorted(maps.Keys(w.versions)) {
		v := w.versions[id]
		if w.hidden[v.Digest] {
			continue
		}
		v.Tags = slices.DeleteFunc(slices.Clone(v.Tags), func(tag string) bool { return w.staleTags[tag] })
		all = append(all, v)
	}
	return all, nil
}

// Version reads one.
func (w *world) Version(_ context.Context, id int64) (release.PackageVersion, error) {
	if err := w.called(); err != nil {
		return release.PackageVersion{}, err
	}
	v, ok := w.versions[id]
	if !ok {
		return v, absent()
	}
	return v, nil
}

// Delete removes a version with all its tags, except for what is retained.
func (w *world) Delete(_ context.Context, id int64) error {
	err := w.called()
	if err != nil && !errors.Is(err, release.ErrUncertain) {
		return err
	}
	v, ok := w.versions[id]
	switch {
	case !ok:
		return errors.Join(err, absent())
	case w.retained[id]:
		return fmt.Errorf("%w: Publicly visible package versions with more than 5000 downloads cannot be deleted.", release.ErrRetained)
	}
	delete(w.versions, id)
	w.attic[v.Digest] = w.manifests[v.Digest]
	delete(w.manifests, v.Digest)
	w.deleted[id] = v
	return err
}

// Restore brings a version back.
func (w *world) Restore(_ context.Context, id int64) error {
	err := w.called()
	if err != nil && !errors.Is(err, release.ErrUncertain) {
		return err
	}
	v, ok := w.deleted[id]
	if !ok {
		return absent()
	}
	delete(w.deleted, id)
	if w.tagless {
		v.Tags = []string{}
	}
	w.versions[id] = v
	w.manifests[v.Digest] = w.attic[v.Digest]
	return err
}

// Manifest reads one.
func (w *world) Manifest(_ context.Context, digest string) (release.Manifest, error) {
	w.reads[digest]++
	if err := w.called(); err != nil {
		return release.Manifest{}, err
	}
	m, ok := w.manifests[digest]
	if !ok {
		return m, absent()
	}
	return m, nil
}

// Tags lists all tags, and never lags.
func (w *world) Tags(context.Context) ([]string, error) {
	var tags []string
	for _, v := range w.versions {
		tags = append(tags, v.Tags...)
	}
	slices.Sort(tags)
	return tags, w.called()
}

// Digest resolves a tag.
func (w *world) Digest(_ context.Context, tag string) (string, error) {
	for _, v := range w.versions {
		if slices.Contains(v.Tags, tag) {
			return v.Digest, w.called()
		}
	}
	return "", absent()
}

// String names the repository.
func (w *world) String() string { return "ghcr.io/acme/agnes" }

// input is what Survey would collect, without the ledger.
func (w *world) input() release.PruneInput {
	in := release.PruneInput{
		Repository: w.String(), Now: pruneNow, Policy: release.DefaultPrunePolicy(), Links: map[string]release.Links{}, Unlisted: map[string][]string{},
		Deprecations: map[release.Version]release.Deprecation{}, Verdicts: map[release.Version]release.Verdict{},
	}
	in.Versions, _ = w.Versions(context.Background())
	for digest, m := range w.manifests {
		in.Links[digest], _ = m.Links()
	}
	for _, v := range w.versions {
		for _, tag := range v.Tags {
			if w.hidden[v.Digest] || w.staleTags[tag] {
				in.Unlisted[v.Digest] = append(in.Unlisted[v.Digest], tag)
			}
		}
	}
	w.calls = 0
	return in
}

// scene is a random world with its ledger.
type scene struct {
	*world
	in release.PruneInput
}

func version(year, month int, n int64) release.Version {
	return release.Version{Year: year, Month: month, N: n}
}

// newScene makes a registry of some size with everything that a registry can
// have: platforms and attestations in shared indexes of indexes, subjects,
// signatures by tag, broken indexes, tags of all kinds, lists that lag.
func newScene(r *rand.Rand, size int) scene {
	w := newWorld()
	chance := func(percent int) bool { return r.IntN(100) < percent }
	some := func() string { return w.digests[r.IntN(len(w.digests))] }
	age := func() time.Duration { return time.Duration(r.IntN(100*24)) * time.Hour }
	for range 2 + r.IntN(size) {
		var children []string
		var subject string
		if len(w.digests) > 2 && chance(45) {
			children = []string{}
			for range r.IntN(4) {
				children = append(children, some())
			}
		}
		if len(w.digests) > 0 && chance(25) {
			subject = some()
		}
		w.push(children, subject, age())
	}
	in := release.PruneInput{Deprecations: map[release.Version]release.Deprecation{}, Verdicts: map[release.Version]release.Verdict{}}
	for range r.IntN(size) {
		w.build(r, &in)
	}
	for range r.IntN(size / 2) {
		suffix := []string{"", ".sig", ".att", ".sbom"}[r.IntN(4)]
		about := some()
		if chance(10) {
			about = fmt.Sprintf("sha256:%064x", r.Uint64())
		}
		w.tag(some(), strings.Replace(about, ":", "-", 1)+suffix)
	}
	for _, tag := range []string{"stable", "dev", "latest", "v1", "pr-12", "stable-2026.4.1", "sha-xyz"} {
		if chance(20) {
			w.tag(some(), tag)
		}
	}
	for _, digest := range slices.Clone(w.digests) {
		switch {
		case chance(3):
			w.drop(digest)
		case chance(3):
			w.hidden[digest] = true
		case chance(5):
			w.retained[w.id(digest)] = true
		}
	}
	for _, tag := range must(w.Tags(context.Background())) {
		if chance(3) {
			w.staleTags[tag] = true
		}
	}
	base := w.input()
	if len(w.retained) > 0 && circular(base.Links, w.tagsByDigest()) {
		clear(w.retained)
	}
	in.Repository, in.Now, in.Versions, in.Links, in.Unlisted = base.Repository, base.Now, base.Versions, base.Links, base.Unlisted
	in.Policy = release.PrunePolicy{DeprecatedDays: r.IntN(40), KeepDevDays: r.IntN(60), KeepDevLast: r.IntN(4), KeepRollback: 1 + r.IntN(3), MinUntaggedDays: 1 + r.IntN(30)}
	for range r.IntN(4) {
		who := fmt.Sprintf("instance-%d", r.IntN(9))
		switch r.IntN(3) {
		case 0:
			in.InUse.Add(some(), who)
		case 1:
			in.InUse.Add(version(2026, 2+r.IntN(4), 1+r.Int64N(9)).String(), who)
		default:
			in.InUse.Add("ghcr.io/acme/agnes:dev-"+version(2026, 2+r.IntN(4), 1+r.Int64N(9)).String(), who)
		}
	}
	return scene{w, in}
}

// build tags some manifest as a build would, with what the ledger knows of it.
func (w *world) build(r *rand.Rand, in *release.PruneInput) {
	chance := func(percent int) bool { return r.IntN(100) < percent }
	v := version(2026, 2+r.IntN(4), 1+r.Int64N(9))
	for _, c := range in.Claims {
		if c.Version == v {
			return
		}
	}
	channel := []release.Channel{release.Dev, release.Dev, release.Stable}[r.IntN(3)]
	commit := fmt.Sprintf("%040x", r.Uint64())
	digest := w.digests[r.IntN(len(w.digests))]
	if chance(92) {
		c := release.Claim{Version: v, Channel: channel, Commit: commit}
		if chance(80) {
			c.ClaimedAt = v.MonthEnd().AddDate(0, -1, 0).Add(time.Duration(r.IntN(28*24)) * time.Hour)
		}
		in.Claims = append(in.Claims, c)
	}
	tags := release.TagsFor(channel, v, commit)
	for _, tag := range slices.Concat(tags.Version, tags.Commit) {
		switch {
		case chance(3):
		case chance(3):
			w.tag(w.digests[r.IntN(len(w.digests))], tag)
		default:
			w.tag(digest, tag)
		}
	}
	if chance(30) {
		w.tag(digest, tags.Floating)
	}
	if chance(20) {
		w.tag(digest, release.ConfirmedTag(v))
		in.Verdicts[v] = release.VerdictPass
	}
	if chance(30) {
		in.Deprecations[v] = release.Deprecation{Version: v, At: pruneNow.Add(-time.Duration(r.IntN(60*24)) * time.Hour)}
	}
	if chance(25) {
		w.tag(digest, release.DeprecatedTag(v))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
