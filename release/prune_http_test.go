package release_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
)

// online is a scene's registry at a GitHub of its own.
type online struct {
	*githubtest.Server
	pkg      *githubtest.Package
	packages *github.Packages
	registry *oci.Registry
	clock    time.Time // moves when somebody would have waited
}

func putOnline(t *testing.T, w *world, options ...githubtest.Option) *online {
	t.Helper()
	o := &online{Server: githubtest.New(t, options...), clock: pruneNow}
	o.pkg = o.Package("acme", "agnes")
	byDigest := map[string]release.PackageVersion{}
	for _, v := range w.versions {
		byDigest[v.Digest] = v
	}
	for _, digest := range w.digests {
		v, there := byDigest[digest]
		if !there {
			continue
		}
		media := "application/vnd.oci.image.manifest.v1+json"
		if strings.Contains(string(w.manifests[digest].Raw), `"manifests"`) {
			media = "application/vnd.oci.image.index.v1+json"
		}
		id := o.pkg.Push(media, w.manifests[digest].Raw, v.Tags...).ID
		o.pkg.SetCreated(id, v.CreatedAt)
		if w.retained[v.ID] {
			o.pkg.SetDownloads(id, 5001)
		}
	}
	client, err := github.New(github.Options{
		API: o.URL, Repo: "acme/agnes", Token: githubtest.Token,
		Now:   func() time.Time { return o.clock },
		Sleep: func(ctx context.Context, d time.Duration) error { o.clock = o.clock.Add(d); return ctx.Err() },
	})
	if err != nil {
		t.Fatal(err)
	}
	o.packages = client.Packages("acme", "agnes")
	if o.registry, err = oci.New(o.Host+"/acme/agnes", oci.Options{Token: githubtest.Token, Keychain: noKeychain{}, Wait: instant}); err != nil {
		t.Fatal(err)
	}
	return o
}

// left returns what is there: tags by digest.
func (o *online) left() map[string][]string {
	there := map[string][]string{}
	for _, v := range o.pkg.Versions() {
		if !v.Deleted {
			there[v.Digest] = slices.Sorted(slices.Values(v.Tags))
		}
	}
	return there
}

// survey reads everything over HTTP, but takes the ledger from the scene.
func (o *online) survey(t *testing.T, s scene) release.PruneInput {
	t.Helper()
	in, err := release.Survey(t.Context(), release.SurveyOptions{
		Packages: o.packages, Registry: o.registry, Ledger: release.NewLedger(noRefs{}, release.LedgerOptions{}),
		Policy: s.in.Policy, InUse: s.in.InUse, Now: pruneNow,
	})
	if err != nil {
		t.Fatal(err)
	}
	in.Claims, in.Deprecations, in.Verdicts = s.in.Claims, s.in.Deprecations, s.in.Verdicts
	return in
}

// noRefs is a repository without refs.
type noRefs struct{ release.Refs }

// List finds nothing.
func (noRefs) List(context.Context, string) ([]release.Ref, error) { return nil, nil }

// Read has nothing to read.
func (noRefs) Read(context.Context, []release.Ref) ([]release.Tag, error) { return nil, nil }

// TestPruneOverHTTP prunes random registries at a GitHub with its awkward rules:
// what is left is what the model says, every tag that is left pulls whole, faults
// and lost replies do not show, and restore brings everything back.
func TestPruneOverHTTP(t *testing.T) {
	t.Parallel()
	for n := range 48 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			seed := uint64(100_000 + n)
			r := rand.New(rand.NewPCG(seed, 7))
			s := newScene(r, 16)
			clear(s.hidden)
			clear(s.staleTags)
			var options []githubtest.Option
			if n%4 == 0 {
				options = append(options, githubtest.WithRegistryLogin())
			}
			o := putOnline(t, s.world, append(options, githubtest.WithSeed(seed))...)
			s.in.Links = s.input().Links
			before := o.left()

			in := o.survey(t, s)
			plan := must(release.Plan(in))
			reads := 0
			for _, request := range o.Requests() {
				if request.Method == http.MethodGet && strings.Contains(request.Path, "/manifests/sha256:") {
					reads++
				}
			}
			if most := len(s.Links()); reads > most {
				t.Errorf("%d manifests read, %d digests are there or named", reads, most)
			}
			m := newModel(in)

			if n%3 != 0 { // every third host is in good health
				o.Inject(githubtest.Fault{Path: "*/packages/*", Probability: 0.05, Status: http.StatusBadGateway})
				o.Inject(githubtest.Fault{Method: http.MethodDelete, Probability: 0.1, Carry: true, Cut: true})
				o.Inject(githubtest.Fault{Path: "*/packages/*", Probability: 0.03, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}})
			}
			j := file(t)
			options2 := applyOptions()
			result, err := release.Apply(t.Context(), plan, o.packages, j, options2)
			for attempt := 0; err != nil && attempt < 20; attempt++ { // as a person would: once more
				result, err = release.Apply(t.Context(), plan, o.packages, j, options2)
			}
			o.Heal()
			if err != nil {
				t.Fatal(err)
			}
			after := o.left()
			kept := map[string]bool{}
			for _, v := range result.Versions {
				kept[v.Digest] = v.Outcome == release.PruneRetained || v.Outcome == release.PruneNeeded
			}
			for digest := range before {
				if _, there := after[digest]; there != (m.stays(digest) || kept[digest]) {
					t.Errorf("%s %v: there %v, the model says %v, kept by the host %v", digest[:19], before[digest], there, m.stays(digest), kept[digest])
				}
			}
			for digest, tags := range after {
				if len(tags) == 0 {
					continue
				}
				for _, part := range walk(in.Links, before, digest) {
					if got, err := o.registry.Manifest(t.Context(), part); err != nil || got.Digest != part {
						t.Errorf("%s %v: its part %s: %v", digest[:19], tags, part, err)
					}
				}
			}

			// Planned anew, nothing is left to do but what the host retains.
			again := must(release.Plan(o.survey(t, s)))
			must(release.Apply(t.Context(), again, o.packages, file(t), applyOptions()))
			if diff := cmp.Diff(after, o.left()); diff != "" {
				t.Errorf("the second prune changed something:\n%s", diff)
			}
			must(release.Restore(t.Context(), must(release.ReadJournal(j.Path())), o.packages, applyOptions()))
			if diff := cmp.Diff(before, o.left()); diff != "" {
				t.Errorf("restore did not bring everything back:\n%s", diff)
			}
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
	}
}

// Links are the digests that are there or named by one that is.
func (s scene) Links() map[string]bool {
	all := map[string]bool{}
	for digest, links := range s.in.Links {
		all[digest] = true
		for _, child := range links.Children {
			all[child] = true
		}
		if links.Subject != "" {
			all[links.Subject] = true
		}
	}
	return all
}

// TestPruneWithAListThatLags plans and applies while every list is late: nothing
// that a tag needs goes, and the work ends once the list has caught up.
func TestPruneWithAListThatLags(t *testing.T) {
	t.Parallel()
	s, _, _, _, _ := small()
	o := putOnline(t, s.world, githubtest.WithListLag(2))
	for range 3 { // let the list catch up with what was there
		must(o.packages.Versions(t.Context()))
	}
	plan := must(release.Plan(o.survey(t, s)))
	j := file(t)
	if _, err := release.Apply(t.Context(), plan, o.packages, j, applyOptions()); err != nil {
		t.Fatal(err)
	}
	// The list still has what was deleted. A new plan does not believe it.
	again := must(release.Plan(o.survey(t, s)))
	if again.Delete != 0 || len(again.Versions) != 3 {
		t.Errorf("%d to delete of %d", again.Delete, len(again.Versions))
	}
	// A push that the list does not show yet: what it shares is not let go.
	shared := s.push(nil, "", old)
	o.pkg.SetCreated(o.pkg.Push("application/vnd.oci.image.manifest.v1+json", s.manifests[shared].Raw).ID, pruneNow.Add(-old))
	for range 3 {
		must(o.packages.Versions(t.Context()))
	}
	index := s.push([]string{shared}, "", 0)
	o.pkg.Push("application/vnd.oci.image.index.v1+json", s.manifests[index].Raw, "stable-2026.05.2")
	late := must(release.Plan(o.survey(t, s)))
	if late.Delete != 0 {
		t.Errorf("%+v", late.Versions)
	}
	if got := slices.Collect(maps.Keys(o.left())); len(got) != 5 {
		t.Errorf("%d versions are left", len(got))
	}
}
