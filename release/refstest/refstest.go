// Package refstest is the conformance suite of release.Refs: what claims and the
// ledger rely on, shown on the real thing behind each implementation.
//
// It is imported by tests only.
package refstest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Repository is one empty place for refs, and what the suite needs around it.
type Repository struct {
	Refs    release.Refs
	Another release.Refs           // a second client of the same repository, without a common memory
	Commits []string               // three at least, all in the repository
	Plant   func(ref, name string) // points a ref directly at a commit, as a person would
	Atomic  bool                   // Create makes all refs or none
}

// Run runs the suite; open is called for each test.
func Run(t *testing.T, open func(t *testing.T) Repository) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Repository){
		"what is created can be found, listed and read":               roundTrip,
		"a ref that exists is never written again":                    neverAgain,
		"the same object twice is no success":                         sameObject,
		"a second ref that exists stops the creation":                 secondRef,
		"a commit that is not there is said to be missing":            missingCommit,
		"a ref can be added to an object that exists":                 point,
		"a ref directly at a commit is no tag object":                 lightweight,
		"a prefix is text":                                            prefix,
		"a listing has all pages":                                     pages,
		"looking and creating in one conversation":                    chosen,
		"of many who create one ref exactly one succeeds":             race,
		"a canceled call says so":                                     canceled,
		"a listing of nothing is empty, a search for nothing says so": nothing,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func sample(r Repository, name, nonce string) release.Tag {
	return release.Tag{
		Name: name, Commit: r.Commits[0], At: time.Date(2026, 4, 8, 12, 30, 15, 0, time.UTC),
		Message: "Claim " + name + "\n\nTwo lines of text,\nand ünïcode: 数.\n\nChannel: dev\nNonce: " + nonce,
	}
}

func create(t *testing.T, refs release.Refs, tag release.Tag, also ...string) release.Tag {
	t.Helper()
	made, err := refs.Create(t.Context(), tag, also...)
	if err != nil {
		t.Fatalf("Create(%s, %v): %v", tag.Name, also, err)
	}
	return made
}

func roundTrip(t *testing.T, r Repository) {
	want := create(t, r.Refs, sample(r, "2026.04.1", "a"), "refs/agnes/claims/dev/one")
	if want.ID == "" {
		t.Fatal("Create returned no ID")
	}
	if diff := cmp.Diff(sample(r, "2026.04.1", "a"), want, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "ID" }, cmp.Ignore())); diff != "" {
		t.Errorf("Create changed the tag (-want +got):\n%s", diff)
	}
	for _, refs := range []release.Refs{r.Refs, r.Another} {
		for _, name := range []string{"refs/tags/2026.04.1", "refs/agnes/claims/dev/one"} {
			got, err := refs.Find(t.Context(), name)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("Find(%s): %v (-want +got):\n%s", name, err, diff)
			}
		}
	}
	second := create(t, r.Another, sample(r, "2026.04.2", "b"))
	list := names(t, r.Refs, "refs/tags/2026.04.", 2)
	if list["refs/tags/2026.04.1"].ID != want.ID || list["refs/tags/2026.04.2"].ID != second.ID {
		t.Errorf("List gives %v, want the IDs %s and %s", list, want.ID, second.ID)
	}
	for _, ref := range list {
		if ref.Commit != "" && ref.Commit != r.Commits[0] {
			t.Errorf("List says that %s is at commit %s, want %s or nothing", ref.Name, ref.Commit, r.Commits[0])
		}
	}
	for _, refs := range []release.Refs{r.Refs, r.Another, r.Refs} {
		got, err := refs.Read(t.Context(), []release.Ref{list["refs/tags/2026.04.2"], list["refs/tags/2026.04.1"]})
		if diff := cmp.Diff([]release.Tag{second, want}, got); err != nil || diff != "" {
			t.Errorf("Read: %v (-want +got):\n%s", err, diff)
		}
	}
	if got, err := r.Refs.Read(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("Read of nothing: %v, %v", got, err)
	}
}

// names lists a prefix, and expects n refs. A listing may lag behind.
func names(t *testing.T, refs release.Refs, prefix string, n int) map[string]release.Ref {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		list, err := refs.List(t.Context(), prefix)
		if err != nil {
			t.Fatalf("List(%s): %v", prefix, err)
		}
		found := map[string]release.Ref{}
		for _, ref := range list {
			found[ref.Name] = ref
		}
		if len(found) == n && len(list) == n {
			return found
		}
		if time.Now().After(deadline) || len(list) > n {
			t.Fatalf("List(%s) gives %d refs, %d different: want %d", prefix, len(list), len(found), n)
		}
	}
}

func expectExists(t *testing.T, err error, ref string) {
	t.Helper()
	which, ok := errors.AsType[*release.RefError](err)
	if !ok || !errors.Is(err, release.ErrExists) || errors.Is(err, release.ErrUncertain) || which.Ref != ref {
		t.Errorf("got the error %v, want a RefError for %s", err, ref)
	}
}

func neverAgain(t *testing.T, r Repository) {
	want := create(t, r.Refs, sample(r, "2026.04.1", "a"))
	other := sample(r, "2026.04.1", "b")
	other.Commit = r.Commits[1]
	for _, refs := range []release.Refs{r.Refs, r.Another} {
		_, err := refs.Create(t.Context(), other, "refs/agnes/claims/dev/one")
		expectExists(t, err, "refs/tags/2026.04.1")
		if got, err := refs.Find(t.Context(), "refs/tags/2026.04.1"); err != nil || got != want {
			t.Errorf("afterwards it is %v, %v; want %v", got, err, want)
		}
		if _, err := refs.Find(t.Context(), "refs/agnes/claims/dev/one"); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("the second ref was created though the first exists: %v", err)
		}
	}
}

func sameObject(t *testing.T, r Repository) {
	create(t, r.Refs, sample(r, "2026.04.1", "a"))
	_, err := r.Another.Create(t.Context(), sample(r, "2026.04.1", "a"))
	expectExists(t, err, "refs/tags/2026.04.1")
}

func secondRef(t *testing.T, r Repository) {
	create(t, r.Refs, sample(r, "2026.04.1", "a"), "refs/agnes/claims/dev/one")
	_, err := r.Another.Create(t.Context(), sample(r, "2026.04.2", "b"), "refs/agnes/claims/dev/one")
	expectExists(t, err, "refs/agnes/claims/dev/one")
	if _, err := r.Refs.Find(t.Context(), "refs/tags/2026.04.2"); r.Atomic && !errors.Is(err, release.ErrNotFound) {
		t.Errorf("the number was burned: %v", err)
	}
}

func missingCommit(t *testing.T, r Repository) {
	tag := sample(r, "2026.04.1", "a")
	tag.Commit = strings.Repeat("0123456789", 4)
	_, err := r.Refs.Create(t.Context(), tag, "refs/agnes/claims/dev/one")
	if !errors.Is(err, release.ErrNotFound) || errors.Is(err, release.ErrUncertain) {
		t.Fatalf("got %v, want an ErrNotFound", err)
	}
	if p := problem.As(err); !strings.Contains(p.Message, tag.Commit) || !strings.Contains(p.Hint, "push") {
		t.Errorf("the problem says %q, %q: want the commit, and to push it", p.Message, p.Hint)
	}
	if _, err := r.Refs.Find(t.Context(), "refs/tags/2026.04.1"); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("afterwards the ref exists: %v", err)
	}
}

func point(t *testing.T, r Repository) {
	want := create(t, r.Refs, sample(r, "2026.04.1", "a"))
	if err := r.Another.Point(t.Context(), "refs/agnes/claims/dev/one", want); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Refs.Find(t.Context(), "refs/agnes/claims/dev/one"); err != nil || got != want {
		t.Errorf("Find gives %v, %v; want %v", got, err, want)
	}
	expectExists(t, r.Refs.Point(t.Context(), "refs/agnes/claims/dev/one", want), "refs/agnes/claims/dev/one")
	other := create(t, r.Refs, sample(r, "2026.04.2", "b"))
	expectExists(t, r.Refs.Point(t.Context(), "refs/agnes/claims/dev/one", other), "refs/agnes/claims/dev/one")
}

func lightweight(t *testing.T, r Repository) {
	r.Plant("refs/tags/2026.04.7", r.Commits[1])
	create(t, r.Refs, sample(r, "2026.04.8", "a"))
	want := release.Tag{ID: r.Commits[1], Name: "2026.04.7", Commit: r.Commits[1]}
	if got, err := r.Refs.Find(t.Context(), "refs/tags/2026.04.7"); err != nil || got != want {
		t.Errorf("Find gives %+v, %v; want %+v", got, err, want)
	}
	list := names(t, r.Refs, "refs/tags/2026.04.", 2)
	if ref := list["refs/tags/2026.04.7"]; ref.ID != r.Commits[1] || ref.Commit != ref.ID {
		t.Errorf("List gives %+v, want ID and Commit %s", ref, r.Commits[1])
	}
	got, err := r.Another.Read(t.Context(), []release.Ref{list["refs/tags/2026.04.7"], list["refs/tags/2026.04.8"]})
	if err != nil || len(got) != 2 || got[0] != want || got[1].Name != "2026.04.8" || got[1].Message == "" {
		t.Errorf("Read gives %+v, %v", got, err)
	}
	_, err = r.Refs.Create(t.Context(), sample(r, "2026.04.7", "c"))
	expectExists(t, err, "refs/tags/2026.04.7")
}

func prefix(t *testing.T, r Repository) {
	for _, name := range []string{"2026.04.1", "2026.04.10", "2026.05.1", "verdict/2026.04.1", "verdict/2026.04.1.2"} {
		r.Plant("refs/tags/"+name, r.Commits[0])
	}
	r.Plant("refs/agnes/claims/dev/"+r.Commits[0], r.Commits[0])
	for prefix, n := range map[string]int{
		"refs/tags/2026.04.1": 2, "refs/tags/2026.04.": 2, "refs/tags/2026": 3, "refs/tags/": 5,
		"refs/tags/verdict/": 2, "refs/agnes/": 1, "refs/tags/2026.04.1x": 0,
	} {
		names(t, r.Refs, prefix, n)
	}
}

func pages(t *testing.T, r Repository) {
	const n = 230 // more than two pages of a hundred
	for i := range n {
		r.Plant(fmt.Sprintf("refs/tags/2026.04.%d", i+1), r.Commits[0])
	}
	names(t, r.Refs, "refs/tags/2026.04.", n)
}

// chosen concerns those that are a release.Chooser.
func chosen(t *testing.T, r Repository) {
	chooser, ok := r.Refs.(release.Chooser)
	if !ok {
		return // an ability, not a duty
	}
	create(t, r.Another, sample(r, "2026.04.1", "a"), "refs/agnes/claims/dev/one")
	var seen []string
	choose := func(also string, err error) func([]release.Ref) (release.Tag, []string, error) {
		return func(refs []release.Ref) (release.Tag, []string, error) {
			for _, ref := range refs {
				seen = append(seen, ref.Name)
			}
			return sample(r, "2026.04.2", "b"), []string{also}, err
		}
	}
	made, err := chooser.CreateChosen(t.Context(), choose("refs/agnes/claims/dev/two", nil))
	if !r.Atomic {
		if !errors.Is(err, errors.ErrUnsupported) || len(seen) > 0 {
			t.Errorf("without atomic pushes: %v, want ErrUnsupported, and no choice", err)
		}
		return
	}
	if err != nil || !slices.Contains(seen, "refs/tags/2026.04.1") || !slices.Contains(seen, "refs/agnes/claims/dev/one") {
		t.Fatalf("chose with %v in sight: %v", seen, err)
	}
	for _, name := range []string{"refs/tags/2026.04.2", "refs/agnes/claims/dev/two"} {
		if got, err := r.Another.Find(t.Context(), name); err != nil || got != made {
			t.Errorf("Find(%s) gives %v, %v; want %v", name, got, err, made)
		}
	}
	_, err = chooser.CreateChosen(t.Context(), choose("refs/agnes/claims/dev/three", nil))
	expectExists(t, err, "refs/tags/2026.04.2")
	enough := errors.New("enough")
	if _, err := chooser.CreateChosen(t.Context(), choose("", enough)); !errors.Is(err, enough) {
		t.Errorf("an error of choose becomes %v", err)
	}
	names(t, r.Refs, "refs/agnes/claims/", 2)
}

func race(t *testing.T, r Repository) {
	const n = 6
	results := make(chan error, n)
	for i := range n {
		refs := []release.Refs{r.Refs, r.Another}[i%2]
		go func() {
			for {
				_, err := refs.Create(t.Context(), sample(r, "2026.04.1", fmt.Sprint(i)), "refs/agnes/claims/dev/"+fmt.Sprint(i))
				if p, ok := errors.AsType[*problem.Error](err); ok && p.Kind == problem.Unavailable && t.Context().Err() == nil {
					continue // another writer's lock
				}
				results <- err
				return
			}
		}()
	}
	var failed []error
	for range n {
		if err := <-results; err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) != n-1 || slices.ContainsFunc(failed, func(err error) bool { return !errors.Is(err, release.ErrExists) }) {
		t.Errorf("%d of %d failed, want all but one, each with ErrExists: %v", len(failed), n, errors.Join(failed...))
	}
	if r.Atomic {
		names(t, r.Refs, "refs/agnes/claims/", 1)
	}
}

func canceled(t *testing.T, r Repository) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, list := r.Refs.List(ctx, "refs/tags/")
	_, find := r.Refs.Find(ctx, "refs/tags/2026.04.1")
	_, make := r.Refs.Create(ctx, sample(r, "2026.04.1", "a"))
	for name, err := range map[string]error{"List": list, "Find": find, "Create": make} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, release.ErrNotFound) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
}

func nothing(t *testing.T, r Repository) {
	names(t, r.Refs, "refs/tags/", 0)
	for _, ref := range []string{"refs/tags/2026.04.1", "refs/agnes/claims/dev/one"} {
		if got, err := r.Refs.Find(t.Context(), ref); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("Find(%s) gives %v, %v; want ErrNotFound", ref, got, err)
		}
	}
}
