package release_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// noKeychain keeps the developer's own credentials out.
type noKeychain struct{}

func (noKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// house is a registry over HTTP and a bare git repository.
type house struct {
	*ocitest.Server
	dir     string // of the bare repository
	ledger  *release.Ledger
	commits []string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{Server: ocitest.New(t), dir: filepath.Join(t.TempDir(), "repo.git")}
	h.git(t, "", "init", "-q", "--bare", h.dir)
	refs, err := gitrefs.Open(h.dir, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 4, 8, 12, 0, 0, 0, time.UTC)
	h.ledger = release.NewLedger(refs, release.LedgerOptions{Run: "test", Now: func() time.Time { return at }})
	return h
}

func (h *house) git(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit adds a commit to the repository.
func (h *house) commit(t *testing.T) string {
	t.Helper()
	tree := h.git(t, "", "--git-dir", h.dir, "hash-object", "-t", "tree", "-w", "--stdin")
	args := []string{"--git-dir", h.dir, "commit-tree", tree, "-m", fmt.Sprint("commit ", len(h.commits))}
	if n := len(h.commits); n > 0 {
		args = append(args, "-p", h.commits[n-1])
	}
	id := h.git(t, "", args...)
	h.git(t, "", "--git-dir", h.dir, "update-ref", "refs/heads/main", id)
	h.commits = append(h.commits, id)
	return id
}

func (h *house) publisher(t *testing.T) *release.Publisher {
	t.Helper()
	r, err := oci.New(h.Repository(), oci.Options{Keychain: noKeychain{}, Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }})
	if err != nil {
		t.Fatal(err)
	}
	return &release.Publisher{Registry: r, Ledger: h.ledger}
}

// build claims the next version for a new commit and pushes its image.
func (h *house) build(t *testing.T, c release.Channel) release.Build {
	t.Helper()
	commit := h.commit(t)
	claim, err := h.ledger.Claim(t.Context(), c, commit)
	if err != nil {
		t.Fatal(err)
	}
	m := h.Push(t, ocitest.Image{Text: commit, Labels: map[string]string{"org.opencontainers.image.revision": commit}})
	return release.Build{Channel: c, Version: claim.Version, Commit: commit, Digest: m.Digest}
}

// publish publishes a build and expects no error.
func (h *house) publish(t *testing.T, b release.Build) release.Published {
	t.Helper()
	got, err := h.publisher(t).Publish(t.Context(), b)
	if err != nil {
		t.Fatalf("publish %s: %v\n%+v", b.Version, err, got)
	}
	return got
}

// stable publishes n versions of stable.
func (h *house) stable(t *testing.T, n int) []release.Build {
	t.Helper()
	var all []release.Build
	for range n {
		b := h.build(t, release.Stable)
		h.publish(t, b)
		all = append(all, b)
	}
	return all
}

func (h *house) expect(t *testing.T, want map[string]string) {
	t.Helper()
	got := h.Tags(t)
	for tag, digest := range want {
		if got[tag] != digest {
			t.Errorf("%s is at %q, want %q", tag, got[tag], digest)
		}
	}
}

func move(t *testing.T, p release.Published, tag string) release.TagMove {
	t.Helper()
	i := slices.IndexFunc(p.Tags, func(m release.TagMove) bool { return m.Tag == tag })
	if i < 0 {
		t.Fatalf("no tag %s in %+v", tag, p.Tags)
	}
	return p.Tags[i]
}

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if problem.ExitCode(err) != 4 {
		t.Errorf("exit %d (%v), want 4: refused", problem.ExitCode(err), err)
		return
	}
	e := problem.As(err)
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("the message %q lacks %q", e.Message, w)
		}
	}
	if e.Hint == "" {
		t.Errorf("%q has no hint", e.Message)
	}
}

func TestPublishCostsOneReadAndOneHeadAndOneWritePerTag(t *testing.T) {
	t.Parallel()
	for _, c := range []release.Channel{release.Dev, release.Stable} {
		h := newHouse(t)
		b := h.build(t, c)
		h.Requests()
		h.publish(t, b)
		tags := release.TagsFor(c, b.Version, b.Commit).All()
		asked := h.Requests()
		count := map[string]int{}
		for _, r := range asked {
			count[r.Method+" "+r.Path]++
			if strings.Contains(r.Path, "/blobs/") {
				t.Errorf("%s: asked for a blob: %+v", c, r)
			}
		}
		if count["GET /manifests/"+b.Digest] != 1 {
			t.Errorf("%s: %v: the manifest was not read once", c, count)
		}
		for _, tag := range tags {
			if count["HEAD /manifests/"+tag] != 1 || count["PUT /manifests/"+tag] != 1 {
				t.Errorf("%s: %s: %v, want one HEAD and one PUT", c, tag, count)
			}
		}
		if len(tags) != 4 || len(asked) != 1+4+4+2 { // and two lists, before and after the floating tag
			t.Errorf("%s: %d requests for %d tags: %+v", c, len(asked), len(tags), asked)
		}
		// The floating tag is written last.
		if w := ocitest.Writes(asked); w[len(w)-1].Path != "/manifests/"+string(c) {
			t.Errorf("%s: %+v: the floating tag was not the last write", c, w)
		}
		for _, tag := range tags {
			if got := h.Manifest(t, tag); got.Digest != b.Digest || string(got.Raw) != string(h.Manifest(t, b.Digest).Raw) {
				t.Errorf("%s: %s is at %s, want the same bytes at %s", c, tag, got.Digest, b.Digest)
			}
		}
		// Again: nothing is written.
		again := h.publish(t, b)
		if w := ocitest.Writes(h.Requests()); len(w) > 0 {
			t.Errorf("%s: a second run wrote %+v", c, w)
		}
		for _, m := range again.Tags {
			if m.Moved || m.Previous != b.Digest || m.Reason == "" {
				t.Errorf("%s: second run: %+v", c, m)
			}
		}
	}
}

func TestTheFloatingTagMovesForwardOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	older, newer := h.build(t, release.Stable), h.build(t, release.Stable)
	h.publish(t, newer)
	got := h.publish(t, older)
	if m := move(t, got, "stable"); m.Moved || !strings.Contains(m.Reason, newer.Version.String()) {
		t.Errorf("%+v: the older build took stable", m)
	}
	h.expect(t, map[string]string{"stable": newer.Digest, release.VersionTag(release.Stable, older.Version): older.Digest, older.Version.String(): older.Digest})
	// The channels do not see each other's numbers.
	dev := h.build(t, release.Dev)
	h.publish(t, dev)
	h.publish(t, h.build(t, release.Stable))
	h.expect(t, map[string]string{"dev": dev.Digest})
}

func TestAVersionThatIsBadNeverFloats(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*testing.T, *house, release.Build){
		"failed in the ledger": func(t *testing.T, h *house, b release.Build) {
			if err := h.ledger.Record(t.Context(), b.Version, release.VerdictFail, "x"); err != nil {
				t.Fatal(err)
			}
		},
		"deprecated in the ledger": func(t *testing.T, h *house, b release.Build) {
			if _, _, err := h.ledger.Deprecate(t.Context(), b.Version, "x", release.Version{}); err != nil {
				t.Fatal(err)
			}
		},
		"deprecated in the registry": func(t *testing.T, h *house, b release.Build) {
			h.SetTag(t, h.Manifest(t, b.Digest), release.DeprecatedTag(b.Version))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			good := h.stable(t, 1)[0]
			bad := h.build(t, release.Stable)
			spoil(t, h, bad)
			if m := move(t, h.publish(t, bad), "stable"); m.Moved {
				t.Errorf("%+v: a bad version floats", m)
			}
			h.expect(t, map[string]string{"stable": good.Digest})
			// And it does not hold a good one back that is older than it.
			late := h.build(t, release.Stable)
			spoilt := h.build(t, release.Stable)
			spoil(t, h, spoilt)
			h.publish(t, spoilt)
			h.publish(t, late)
			h.expect(t, map[string]string{"stable": late.Digest})
		})
	}
}

func TestAVersionIsOneImageForEver(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	b := h.stable(t, 1)[0]
	before := h.Tags(t)
	other := b
	other.Digest = h.Push(t, ocitest.Image{Text: "another build"}).Digest
	h.Requests()
	_, err := h.publisher(t).Publish(t.Context(), other)
	refused(t, err, b.Version.String(), b.Digest, other.Digest)
	if w := ocitest.Writes(h.Requests()); len(w) > 0 {
		t.Errorf("wrote %+v before it refused", w)
	}
	h.expect(t, before)
}

func TestACommitTagKeepsItsFirstImage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	dev := h.build(t, release.Dev)
	h.publish(t, dev)
	claim, err := h.ledger.Claim(t.Context(), release.Stable, dev.Commit)
	if err != nil {
		t.Fatal(err)
	}
	stable := release.Build{
		Channel: release.Stable, Version: claim.Version, Commit: dev.Commit,
		Digest: h.Push(t, ocitest.Image{Text: "the same commit, built again"}).Digest,
	}
	m := move(t, h.publish(t, stable), "sha-"+dev.Commit[:7])
	if m.Moved || m.Previous != dev.Digest || !strings.Contains(m.Reason, "first build") {
		t.Errorf("%+v, want it kept at the first build", m)
	}
	h.expect(t, map[string]string{"sha-" + dev.Commit[:7]: dev.Digest, "stable": stable.Digest})
}

func TestACommitTagOfAnotherCommitIsACollision(t *testing.T) {
	t.Parallel()
	for name, i := range map[string]ocitest.Image{
		"label":      {Text: "x", Labels: map[string]string{"org.opencontainers.image.revision": strings.Repeat("e", 40)}},
		"annotation": {Text: "x", Annotations: map[string]string{"org.opencontainers.image.revision": strings.Repeat("e", 40)}},
		"unknown":    {Text: "x"},
	} {
		h := newHouse(t)
		b := h.build(t, release.Stable)
		h.SetTag(t, h.Push(t, i), "sha-"+b.Commit[:7])
		h.Requests()
		got, err := h.publisher(t).Publish(t.Context(), b)
		if name == "unknown" {
			if m := move(t, got, "sha-"+b.Commit[:7]); err != nil || m.Moved || !strings.Contains(m.Reason, "does not say its commit") {
				t.Errorf("unknown: %+v, %v, want it kept", m, err)
			}
			continue
		}
		refused(t, err, "sha-"+b.Commit[:7], strings.Repeat("e", 40))
		if w := ocitest.Writes(h.Requests()); len(w) > 0 {
			t.Errorf("%s: wrote %+v before it refused", name, w)
		}
	}
}

func TestPublishRefusesWhatWasNotClaimedOrIsAnotherCommits(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	b := h.build(t, release.Stable)
	other := h.build(t, release.Dev)
	h.Requests()
	for name, change := range map[string]func(*release.Build){
		"another version's commit": func(b *release.Build) { b.Commit = other.Commit },
		"another channel":          func(b *release.Build) { b.Channel = release.Dev },
		"no claim":                 func(b *release.Build) { b.Version.N = 99 },
	} {
		wrong := b
		change(&wrong)
		if _, err := h.publisher(t).Publish(t.Context(), wrong); problem.ExitCode(err) != 4 {
			t.Errorf("%s: %v, want refused", name, err)
		}
	}
	// Without a ledger the image itself may still say that it is another commit's.
	p := h.publisher(t)
	p.Ledger = nil
	wrong := b
	wrong.Digest = h.Push(t, ocitest.Image{Text: "y", Annotations: map[string]string{"org.opencontainers.image.revision": other.Commit}}).Digest
	_, err := p.Publish(t.Context(), wrong)
	refused(t, err, other.Commit)
	wrong.Digest = "sha256:" + strings.Repeat("0", 64)
	if _, err := p.Publish(t.Context(), wrong); !errors.Is(err, release.ErrNotFound) || !strings.Contains(problem.As(err).Hint, "push") {
		t.Errorf("%v, want: push first", err)
	}
	if w := ocitest.Writes(h.Requests()); len(w) > 0 {
		t.Errorf("wrote %+v", w)
	}
	if _, err := p.Publish(t.Context(), b); err != nil {
		t.Errorf("with a registry alone: %v", err)
	}
}

func TestABreakingReleaseDeprecatesThePreviousStable(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 3)
	// The last one failed and was rolled back: what people run is the one before.
	if _, err := h.publisher(t).Rollback(t.Context(), all[2].Version, release.Version{}, ""); err != nil {
		t.Fatal(err)
	}
	b := h.build(t, release.Stable)
	b.Breaking = true
	for round := range 2 {
		h.Requests()
		got := h.publish(t, b)
		if got.Deprecated != all[1].Version {
			t.Errorf("round %d: deprecated %s, want %s", round, got.Deprecated, all[1].Version)
		}
		if w := ocitest.Writes(h.Requests()); round > 0 && len(w) > 0 {
			t.Errorf("a second run wrote %+v", w)
		}
	}
	h.expect(t, map[string]string{
		"stable": b.Digest, release.DeprecatedTag(all[1].Version): all[1].Digest, release.DeprecatedTag(all[0].Version): "",
	})
	known, err := h.ledger.Deprecations(t.Context())
	if err != nil || known[all[1].Version].Replacement != b.Version || len(known) != 2 {
		t.Errorf("%+v, %v, want %s replaced by %s", known, err, all[1].Version, b.Version)
	}
	// Without a ledger the tag alone is set.
	last := h.build(t, release.Stable)
	last.Breaking = true
	p := h.publisher(t)
	p.Ledger = nil
	if got, err := p.Publish(t.Context(), last); err != nil || got.Deprecated != b.Version {
		t.Errorf("%+v, %v", got, err)
	}
	h.expect(t, map[string]string{release.DeprecatedTag(b.Version): b.Digest})
}

func TestGatedPublishLeavesTheFloatingTagToPromote(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.stable(t, 1)[0]
	b := h.build(t, release.Stable)
	b.Gated, b.Breaking = true, true
	h.publish(t, b)
	h.expect(t, map[string]string{"stable": first.Digest, release.VersionTag(release.Stable, b.Version): b.Digest, release.DeprecatedTag(first.Version): ""})

	p := h.publisher(t)
	_, err := p.Promote(t.Context(), b.Version, true)
	refused(t, err, "pass", "none")
	if err := h.ledger.Record(t.Context(), b.Version, release.VerdictInconclusive, ""); err != nil {
		t.Fatal(err)
	}
	_, err = p.Promote(t.Context(), b.Version, true)
	refused(t, err, "inconclusive")
	if _, err := p.Verdict(t.Context(), b.Version, release.VerdictPass, "smoke"); err != nil {
		t.Fatal(err)
	}
	h.expect(t, map[string]string{release.ConfirmedTag(b.Version): b.Digest, "stable": first.Digest})
	for round := range 2 {
		h.Requests()
		got, err := p.Promote(t.Context(), b.Version, true)
		if err != nil || move(t, got, "stable").Moved != (round == 0) {
			t.Errorf("round %d: %+v, %v", round, got, err)
		}
		if w := ocitest.Writes(h.Requests()); round > 0 && len(w) > 0 {
			t.Errorf("a second run wrote %+v", w)
		}
	}
	h.expect(t, map[string]string{"stable": b.Digest, release.DeprecatedTag(first.Version): first.Digest})

	// Publishing it gated again takes nothing back.
	h.publish(t, b)
	h.expect(t, map[string]string{"stable": b.Digest})
}

func TestPromoteMovesForwardOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.stable(t, 1)[0]
	var gated []release.Build
	for range 3 {
		b := h.build(t, release.Stable)
		b.Gated = true
		h.publish(t, b)
		gated = append(gated, b)
	}
	p := h.publisher(t)
	pass := func(b release.Build) {
		t.Helper()
		if _, err := p.Verdict(t.Context(), b.Version, release.VerdictPass, ""); err != nil {
			t.Fatal(err)
		}
	}
	pass(gated[0])
	// A newer one that waits for its verdict does not hold it back.
	if got, err := p.Promote(t.Context(), gated[0].Version, false); err != nil || !move(t, got, "stable").Moved {
		t.Errorf("%+v, %v", got, err)
	}
	pass(gated[2])
	if _, err := p.Promote(t.Context(), gated[2].Version, false); err != nil {
		t.Fatal(err)
	}
	pass(gated[1])
	got, err := p.Promote(t.Context(), gated[1].Version, false)
	if m := move(t, got, "stable"); err != nil || m.Moved || !strings.Contains(m.Reason, gated[2].Version.String()) {
		t.Errorf("%+v, %v, want it kept at the newer one", m, err)
	}
	h.expect(t, map[string]string{"stable": gated[2].Digest})
	if err := h.ledger.Record(t.Context(), first.Version, release.VerdictFail, ""); err != nil {
		t.Fatal(err)
	}
	_, err = p.Promote(t.Context(), first.Version, false)
	refused(t, err, "fail")
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	b := h.stable(t, 1)[0]
	p := h.publisher(t)
	for _, v := range []release.Verdict{release.VerdictInconclusive, release.VerdictPass, release.VerdictPass, release.VerdictFail, release.VerdictFail} {
		if got, err := p.Verdict(t.Context(), b.Version, v, "because"); err != nil || len(got.Steps) == 0 {
			t.Fatalf("%s: %+v, %v", v, got, err)
		}
	}
	h.expect(t, map[string]string{release.ConfirmedTag(b.Version): b.Digest, "stable": b.Digest})
	_, err := p.Verdict(t.Context(), b.Version, release.VerdictPass, "")
	refused(t, err, "does not become good")
	// A pass needs the image; a fail does not.
	missing := h.build(t, release.Stable)
	if _, err := p.Verdict(t.Context(), missing.Version, release.VerdictPass, ""); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("%v, want not found", err)
	}
	if _, err := p.Verdict(t.Context(), missing.Version, release.VerdictFail, ""); err != nil {
		t.Error(err)
	}
	if got, err := h.ledger.Verdicts(t.Context()); err != nil || got[missing.Version] != release.VerdictFail || got[b.Version] != release.VerdictFail {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDryRunsWriteNothingAndSayWhatTheyWould(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	all := h.stable(t, 2)
	b := h.build(t, release.Stable)
	b.Breaking = true
	gated := h.build(t, release.Stable)
	gated.Gated = true
	h.publish(t, gated)
	if _, err := h.publisher(t).Verdict(t.Context(), gated.Version, release.VerdictPass, ""); err != nil {
		t.Fatal(err)
	}
	tags, refs := h.Tags(t), h.git(t, "", "--git-dir", h.dir, "for-each-ref")
	p := h.publisher(t)
	p.DryRun = true
	p.Notify = func(context.Context, release.Notice) error { t.Error("a dry run notified"); return nil }
	published, err := p.Publish(t.Context(), b)
	promoted, err2 := p.Promote(t.Context(), gated.Version, true)
	judged, err3 := p.Verdict(t.Context(), all[1].Version, release.VerdictPass, "")
	deprecated, err4 := p.Deprecate(t.Context(), all[0].Version, "x", all[1].Version)
	rolled, err5 := p.Rollback(t.Context(), all[1].Version, release.Version{}, "x")
	for name, steps := range map[string][]release.Step{"publish": published.Steps, "promote": promoted.Steps, "verdict": judged.Steps, "deprecate": deprecated.Steps, "rollback": rolled.Steps} {
		if !slices.ContainsFunc(steps, func(s release.Step) bool { return s.State == release.Planned }) {
			t.Errorf("%s plans nothing: %+v", name, steps)
		}
	}
	if err := errors.Join(err, err2, err3, err4, err5); err != nil {
		t.Error(err)
	}
	if rolled.Stable != gated.Version.String() { // newer than the failed one, and it passed
		t.Errorf("%+v: the plan does not say where stable would go", rolled)
	}
	h.expect(t, tags)
	if len(h.Tags(t)) != len(tags) || h.git(t, "", "--git-dir", h.dir, "for-each-ref") != refs {
		t.Error("a dry run wrote something")
	}
}

// TestTwoPublishersRace runs an older and a newer build at once, many times. The
// newer one has the floating tag when both have ended, whoever was last.
func TestTwoPublishersRace(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	const rounds = 150
	p := h.publisher(t)
	p.Ledger = nil
	v := release.Version{Year: 2026, Month: 4}
	var overtaken atomic.Int32
	for round := range rounds {
		var pair []release.Build
		for i := range 2 {
			v.N++
			m := h.Push(t, ocitest.Image{Text: v.String()})
			pair = append(pair, release.Build{Channel: release.Stable, Version: v, Commit: strings.Repeat(fmt.Sprintf("%03d%d", round, i), 10), Digest: m.Digest})
		}
		// In half of the rounds the older one's floating write is held back until the
		// newer one has ended: the worst moment there is.
		held := make(chan struct{})
		letGo := sync.OnceFunc(func() { close(held) })
		t.Cleanup(letGo) // a failure must not leave the server waiting
		h.Requests()
		if round%2 == 0 {
			var once sync.Once
			h.Intercept(func(_ http.ResponseWriter, r *http.Request, after bool) bool {
				if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifests/stable") && !after {
					first := false
					once.Do(func() { first = true })
					if first {
						<-held
					}
				}
				return false
			})
		} else {
			h.Intercept(nil)
		}
		ended := make(chan error, 2)
		run := func(b release.Build) {
			got, err := p.Publish(t.Context(), b)
			if err == nil && strings.Contains(got.Tags[0].Reason, "meanwhile") {
				overtaken.Add(1)
			}
			ended <- err
		}
		if round%2 == 0 {
			go run(pair[0])
			waitFor(t, func() bool {
				return slices.ContainsFunc(h.Requests(), func(r ocitest.Request) bool { return r.Method == http.MethodPut && r.Path == "/manifests/stable" })
			})
			go run(pair[1])
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			letGo()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		} else {
			go run(pair[0])
			go run(pair[1])
			for range 2 {
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := h.Digest(t, "stable"); got != pair[1].Digest {
			t.Fatalf("round %d: stable is at %s, want the newer build's %s", round, got, pair[1].Digest)
		}
	}
	if overtaken.Load() < rounds/2 {
		t.Errorf("only %d of %d rounds were the race that this is about", overtaken.Load(), rounds)
	}
	t.Logf("%d of %d rounds: the older build wrote last and gave the tag back", overtaken.Load(), rounds)
}

// waitFor polls until cond holds.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatal("it did not happen in a minute")
		case <-tick.C:
		}
	}
}
