package rollout_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// bare is a fleet's repository on the disk.
type bare struct {
	t   testing.TB
	dir string
}

func newBare(t testing.TB) *bare {
	t.Helper()
	b := &bare{t, filepath.Join(t.TempDir(), "fleet.git")}
	work := filepath.Join(t.TempDir(), "work")
	for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", b.dir}, {"init", "-q", "-b", "main", work}} {
		b.git(args...)
	}
	for name, text := range map[string]string{"fleet.yaml": "instances: []\n", "desired/other.json": "{}\n", "desired-not/x": "x\n", "a": "a\n"} {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.git("-C", work, "add", ".")
	b.git("-C", work, "commit", "-qm", "the fleet")
	b.git("-C", work, "push", "-q", b.dir, "main")
	return b
}

func (b *bare) git(args ...string) string {
	b.t.Helper()
	c := exec.CommandContext(context.Background(), "git", args...)
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := c.CombinedOutput()
	if err != nil {
		b.t.Errorf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (b *bare) in(args ...string) string {
	b.t.Helper()
	return b.git(append([]string{"--git-dir", b.dir}, args...)...)
}

func (b *bare) files() string {
	b.t.Helper()
	return strings.ReplaceAll(b.in("ls-tree", "-r", "--name-only", "main"), "\n", " ")
}

// commits are the rollout's, newest first: subject | members.
func (b *bare) commits() (list []string) {
	b.t.Helper()
	for _, one := range strings.Split(b.in("log", "--format=%x00%s%x01%b", "main"), "\x00") {
		subject, body, _ := strings.Cut(one, "\x01")
		if strings.HasPrefix(subject, "rollout") {
			list = append(list, subject+" | "+strings.TrimSpace(body))
		}
	}
	return list
}

func (b *bare) open() *rollout.Repository {
	b.t.Helper()
	remote, err := fleet.NewRemote(b.dir, "")
	if err != nil {
		b.t.Fatal(err)
	}
	return rollout.NewRepository(remote, "main", "ada@ops")
}

func TestAChangeLeavesAllOtherFilesAndIsMadeOnce(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	r := b.open()
	change := map[string][]byte{"desired/acme.json": []byte("{}\n"), "deep/er/x.json": []byte("1\n")}
	for range 2 {
		if err := r.Change(t.Context(), change, "set them\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := b.files(), "a deep/er/x.json desired-not/x desired/acme.json desired/other.json fleet.yaml"; got != want {
		t.Errorf("the files are %s\nwant %s", got, want)
	}
	if got := b.in("rev-list", "--count", "main"); got != "2" {
		t.Errorf("there are %s commits, want 2: nothing changed the second time", got)
	}
	if err := r.Change(t.Context(), map[string][]byte{"deep/er/x.json": nil, "desired/none.json": nil}, "remove it\n"); err != nil {
		t.Fatal(err)
	}
	if got, want := b.files(), "a desired-not/x desired/acme.json desired/other.json fleet.yaml"; got != want {
		t.Errorf("the files are %s\nwant %s", got, want)
	}
	b.in("fsck", "--strict")
}

func TestAChangeOfManyFilesWritesEachFolderOnce(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{}
	for i := range 50 {
		files[fmt.Sprintf("desired/m%d.json", i)] = fmt.Append(nil, i)
	}
	got, err := rollout.Fresh(t.Context(), newBare(t).open(), files)
	if want := len(files) + 3; err != nil || got != want {
		t.Errorf("%d objects are pushed (%v), want %d: the files, two trees and the commit", got, err, want)
	}
}

func TestManyWhoWriteAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			r := b.open()
			if err := r.Change(t.Context(), map[string][]byte{fmt.Sprintf("desired/m%d.json", i): []byte("{}\n")}, fmt.Sprintf("m%d\n", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, want := b.files(), "a desired-not/x desired/m0.json desired/m1.json desired/m2.json desired/m3.json desired/m4.json desired/other.json fleet.yaml"; got != want {
		t.Errorf("the files are %s\nwant %s", got, want)
	}
	if got := b.in("rev-list", "--count", "--no-merges", "main"); got != "6" {
		t.Errorf("there are %s commits, want 6", got)
	}
}

func TestARepositoryThatRefusesPushesIsSaidSo(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	hook := filepath.Join(b.dir, "hooks", "pre-receive")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho protected >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		err := b.open().Change(t.Context(), map[string][]byte{"x": []byte("x")}, "x\n")
		if p := problem.As(err); err == nil || !strings.Contains(p.Error(), "pre-receive hook declined") || p.Hint == "" {
			t.Fatalf("the refusal reads %v", err)
		}
	})
}

func lease(owner, nonce string) store.Lease {
	return store.Lease{Name: "rollout", Owner: owner + " [other-boot 1 1 1]", Nonce: nonce, Since: time.Now(), Expires: time.Now().Add(time.Minute)}
}

func TestOfTwoMachinesOneHoldsTheLeaseInGit(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	ada, bob := b.open(), b.open()
	mine, theirs := lease("ada@ops", "n1"), lease("bob@desk", "n2")
	if err := ada.Lock(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	err := bob.Lock(t.Context(), theirs)
	if p := problem.As(err); p.Kind != problem.Refused || !strings.Contains(p.Message, "ada@ops drives a rollout of this fleet since 20") {
		t.Fatalf("the second one hears %v", err)
	}
	if err := ada.Renew(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	if err := bob.Unlock(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	if err := bob.Lock(t.Context(), theirs); err == nil {
		t.Fatal("somebody else's unlock has opened it")
	}
	if err := ada.Unlock(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	if err := bob.Lock(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	if err := ada.Renew(t.Context(), mine); !errors.Is(err, store.ErrLeaseLost) {
		t.Fatalf("a lease that somebody else has was renewed: %v", err)
	}
	if refs := b.in("for-each-ref", "--format=%(refname)"); refs != rollout.LeaseRef+"\nrefs/heads/main" {
		t.Errorf("the refs are %s", refs)
	}
}

func TestOfManyWhoLockAtOnceOneGetsIt(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	var mu sync.Mutex
	got := 0
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			err := b.open().Lock(t.Context(), lease("operator", fmt.Sprint("n", i)))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				got++
			case !problem.Is(err, problem.Refused):
				t.Errorf("one hears %v", err)
			}
		})
	}
	all.Wait()
	if got != 1 {
		t.Errorf("%d hold the lease", got)
	}
}

func TestALeaseInGitThatNobodyRenewsEndsByItself(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		if err := b.open().Lock(t.Context(), lease("ada@ops", "n1")); err != nil {
			t.Fatal(err)
		}
		pass(12 * time.Minute)
		if err := b.open().Lock(t.Context(), lease("bob@desk", "n2")); err != nil {
			t.Fatalf("after 12 minutes: %v", err)
		}
	})
}

// hosts read their file in the repository whenever they are probed, and run what
// it says by the second time.
type hosts struct {
	*world
	b     *bare
	asked map[string]string // by member, what its file said the last time

	mu   sync.Mutex
	head string // of main, when files were read
	read map[string]deploy.Desired
}

// desired returns a member's file as it is now.
func (h *hosts) desired(name string) deploy.Desired {
	h.mu.Lock()
	defer h.mu.Unlock()
	head, err := os.ReadFile(filepath.Join(h.b.dir, "refs", "heads", "main"))
	if err != nil {
		h.b.t.Error(err)
	}
	if h.head != string(head) {
		h.head, h.read = string(head), map[string]deploy.Desired{}
	}
	d, known := h.read[name]
	if !known {
		text, err := exec.Command("git", "--git-dir", h.b.dir, "show", "main:desired/"+name+".json").Output()
		if err == nil {
			err = json.Unmarshal(text, &d)
		}
		if err != nil {
			d = deploy.Desired{}
		}
		h.read[name] = d
	}
	return d
}

func (h *hosts) Probe(ctx context.Context, in fleet.Instance) fleet.Result {
	if d := h.desired(in.Name); d.Tag != "" {
		h.change(in.Name, func(m *machine) {
			_, version, _ := strings.Cut(d.Tag, "-")
			if h.asked[in.Name] == d.Tag && !m.silent && (m.take == nil || version != newVersion) {
				m.runs = version
			}
			h.asked[in.Name] = d.Tag
		})
	}
	return h.world.Probe(ctx, in)
}

// pulls is a stage whose members come by themselves.
func pulls(t *testing.T, b *bare, n int) (*stage, *hosts) {
	t.Helper()
	st := newStage(t, members(n, false))
	st.deliver = rollout.NewPull(b.open(), "desired")
	h := &hosts{world: st.world, b: b, asked: map[string]string{}}
	st.probe = h.Probe
	return st, h
}

// asked is how what a member is sent to begins; the time follows.
const asked = `{"tag":"stable-2026.04.3","digest":"` + newDigest + `","asked_at":"2000-01-01T00:`

func TestAWaveOfThoseWhoComeByThemselvesIsACommit(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, _ := pulls(t, b, 5)
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Done, "a0 taken, a1 taken, a2 taken, a3 taken, a4 taken")
	})
	want := []string{
		"rollout r1: wave rest to 2026.04.3 (sha256:0123456789ab) | Members: a3, a4",
		"rollout r1: wave rest to 2026.04.3 (sha256:0123456789ab) | Members: a1, a2",
		"rollout r1: wave canary to 2026.04.3 (sha256:0123456789ab) | Members: a0",
	}
	if got := b.commits(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the commits are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := b.in("show", "main:desired/a3.json"); !strings.HasPrefix(got, asked) {
		t.Errorf("a host reads %s, want %s…", got, asked)
	}
}

func TestOneWhoDoesNotArriveInTimeIsUnreachableAndComesLater(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, h := pulls(t, b, 3)
		h.change("a1", func(m *machine) { m.take = func() rollout.Outcome { return rollout.Outcome{} } }) // its host goes back by itself
		began := time.Now()
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Done, "a0 taken, a1 unreachable, a2 taken")
		if took := time.Since(began); took < 2*time.Hour || took > 3*time.Hour {
			t.Errorf("it took %s", took)
		}
		if fmt.Sprint(got.CatchUp) != "[a1]" {
			t.Errorf("the catch-up list is %v", got.CatchUp)
		}
	})
}

func TestAHostThatTookTheTargetBackIsAFail(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, h := pulls(t, b, 3)
		h.change("a1", func(m *machine) {
			m.take = func() rollout.Outcome { return rollout.Outcome{} }
			m.failed = true
		})
		began := time.Now()
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 reverted, a2 reverted")
		if a1 := got.Waves[1].Members[0]; !a1.Failed || !strings.Contains(a1.Detail, "it failed") {
			t.Errorf("a1 is not named as the reason: %+v", a1)
		}
		if took := time.Since(began); took > time.Hour {
			t.Errorf("it took %s", took)
		}
	})
	if got, want := b.in("show", "main:desired/a1.json"), `{"tag":"stable-2026.04.2"}`; got != want {
		t.Errorf("a1 reads %s, want %s", got, want)
	}
}

func TestWhatWasTriedTwiceStillGoesBackToWhereItWasFirst(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, h := pulls(t, b, 2)
		h.change("a0", func(m *machine) { m.take = func() rollout.Outcome { return rollout.Outcome{} } })
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 unreachable, a1 waiting")
		h.change("a0", func(m *machine) { m.take = nil })
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				h.change("a0", func(m *machine) { m.health = fleet.Unhealthy })
			}
			if e.Event == "reverting" {
				h.change("a0", func(m *machine) { m.health = fleet.Healthy })
			}
		}
		if err := rollout.Give(t.Context(), st.s, "r1", rollout.Resume, "ada@ops"); err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(got), rollout.Failed, "a0 reverted, a1 waiting")
	})
	if got, want := b.in("show", "main:desired/a0.json"), `{"tag":"stable-2026.04.2"}`; got != want {
		t.Errorf("a0 reads %s, want %s", got, want)
	}
}

func TestAFailedWaveOfThoseWhoComeByThemselvesIsCommittedBack(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, h := pulls(t, b, 4)
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" && e.Wave == "rest" {
				h.change("a2", func(m *machine) { m.health = fleet.Unhealthy })
			}
			if e.Member == "a2" && e.Event == "reverting" {
				h.change("a2", func(m *machine) { m.health = fleet.Healthy })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 3}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 reverted, a2 reverted, a3 reverted")
		if old := fmt.Sprint(h.running(oldVersion)); old != "[a1 a2 a3]" {
			t.Errorf("%s run the old version", old)
		}
	})
	if got, want := b.commits()[0], "rollout r1: wave rest back | Members: a1, a2, a3"; got != want {
		t.Errorf("the last commit is %q, want %q", got, want)
	}
	if got, want := b.in("show", "main:desired/a1.json"), `{"tag":"stable-2026.04.2"}`; got != want {
		t.Errorf("a host reads %s, want %s", got, want)
	}
}

func TestAnAbortCallsBackWhoHasNotArrived(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, h := pulls(t, b, 4)
		for _, name := range []string{"a1", "a2", "a3"} {
			h.change(name, func(m *machine) { m.take = func() rollout.Outcome { return rollout.Outcome{} } })
		}
		st.notify = func(e rollout.Event) {
			if e.Member == "a1" && e.Event == "taking" {
				go func() {
					pass(10 * time.Minute)
					if err := rollout.Give(t.Context(), st.s, "r1", rollout.Abort, "eve@page"); err != nil {
						t.Error(err)
					}
				}()
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Aborted, "a0 taken, a1 reverted, a2 reverted, a3 waiting")
	})
	for member, want := range map[string]string{"a0": asked, "a1": `{"tag":"stable-2026.04.2"}`} {
		if got := b.in("show", "main:desired/"+member+".json"); !strings.HasPrefix(got, want) {
			t.Errorf("%s reads %s, want %s", member, got, want)
		}
	}
}

func TestAKillWhileMembersComeIsGoneOnFrom(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	synctest.Test(t, func(t *testing.T) {
		st, _ := pulls(t, b, 4)
		l := st.acquire()
		st.notify = func(e rollout.Event) {
			if e.Member == "a1" && e.Event == "taking" {
				go func() {
					pass(2 * time.Second) // in the middle of its way
					rollout.Kill(l)
				}()
			}
		}
		if _, err := st.engine().Run(t.Context(), l, plan(t, st.instances, fleet.Limit{Count: 3})); err == nil {
			t.Fatal("the kill came too late")
		}
		pass(time.Minute)
		r, err := rollout.Get(t.Context(), st.s, "r1")
		if err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(r), rollout.Done, "a0 taken, a1 taken, a2 taken, a3 taken")
	})
	if n := len(b.commits()); n != 2 {
		t.Errorf("there are %d commits, want 2: %v", n, b.commits())
	}
}
