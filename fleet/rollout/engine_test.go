package rollout_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestEveryWaveIsTakenAfterTheOneBeforeHasSoaked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(5, true))
		began := time.Now()
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Done, "a0 taken, a1 taken, a2 taken, a3 taken, a4 taken")
		if n := len(st.world.running(newVersion)); n != 5 {
			t.Errorf("%d run the target", n)
		}
		if st.world.most != 2 {
			t.Errorf("%d were away at a time, want 2", st.world.most)
		}
		if soaked := got.Waves[1].Began.Sub(began); soaked < 2*time.Minute {
			t.Errorf("the second wave began after %s, and the first one soaks 2m", soaked)
		}
		checkAudit(t, st, got)
	})
}

// checkAudit wants every line once and in order, and each member taken in it.
func checkAudit(t *testing.T, st *stage, r rollout.Rollout) {
	t.Helper()
	file, err := os.Open(filepath.Join(st.dir, rollout.AuditFile))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	var last int64
	seen := map[string]int{}
	for lines.Scan() {
		var e rollout.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if last++; e.Seq != last {
			t.Fatalf("line %d has the number %d", last, e.Seq)
		}
		if e.At.IsZero() || e.Who == "" || e.Digest != newDigest || e.Rollout != r.ID {
			t.Errorf("a line lacks something: %s", lines.Text())
		}
		seen[e.Member+" "+e.Event]++
	}
	if last != r.Events {
		t.Errorf("the audit has %d lines, want %d", last, r.Events)
	}
	for _, w := range r.Waves {
		for _, m := range w.Members {
			if m.State != rollout.Waiting && seen[m.Name+" taking"] == 0 {
				t.Errorf("the audit does not say that %s was taken: %v", m.Name, seen)
			}
		}
	}
}

func TestAFailInTheCanaryLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(4, true))
		st.world.change("a0", func(m *machine) {
			m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke, Detail: "smoke: query"} }
		})
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Failed, "a0 failed, a1 waiting, a2 waiting, a3 waiting")
		if len(st.world.trips) != 1 {
			t.Errorf("others were touched: %v", st.world.trips)
		}
		if !strings.Contains(got.Reason, "a0") || !strings.Contains(got.Reason, "smoke: query") {
			t.Errorf("the reason is %q", got.Reason)
		}
		checkAudit(t, st, got)
	})
}

func TestNoDeployBeginsAfterItsWaveFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.world.change("a1", func(m *machine) {
			m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke, Detail: "not ready"} }
		})
		st.probe = func(ctx context.Context, in fleet.Instance) fleet.Result {
			if in.Name == "a2" { // it is still looked at when a1 fails
				pass(40 * time.Second)
			}
			return st.world.Probe(ctx, in)
		}
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 failed, a2 waiting")
		if st.world.trips["a2"] > 0 {
			t.Error("a2 was deployed to")
		}
	})
}

func TestWhatIsInconclusiveIsTriedAgainUnlessTheRolloutEnds(t *testing.T) {
	t.Parallel()
	for _, abort := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, members(1, true))
			st.retries = 2
			want, trips := rollout.Stopped, 3
			if abort {
				want, trips = rollout.Aborted, 1
			}
			st.world.change("a0", func(m *machine) {
				m.take = func() rollout.Outcome {
					if abort {
						if err := rollout.Give(t.Context(), st.s, "r1", rollout.Abort, "eve@page"); err != nil {
							t.Error(err)
						}
					}
					return rollout.Outcome{What: rollout.Doubtful, Detail: "no disk"}
				}
			})
			wantStates(t, st.run(plan(t, st.instances, fleet.Limit{})), want, "a0 unclear")
			if st.world.trips["a0"] != trips {
				t.Errorf("it was deployed to %d times, want %d", st.world.trips["a0"], trips)
			}
		})
	}
}

func TestAFailOnOneTakesItsWholeWaveBackAndNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(6, true))
		st.world.change("a4", func(m *machine) {
			m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke, Detail: "not ready"} }
		})
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 reverted, a2 reverted, a3 reverted, a4 failed, a5 waiting")
		if new := fmt.Sprint(st.world.running(newVersion)); new != "[a0]" {
			t.Errorf("%s run the target", new)
		}
		if st.world.most > 2 {
			t.Errorf("%d were away at a time", st.world.most)
		}
	})
}

func TestAMemberThatGetsSickWhileItsWaveSoaksTakesItBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				st.world.change("a0", func(m *machine) { m.health = fleet.Unhealthy })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Failed, "a0 reverted, a1 waiting, a2 waiting")
		if !got.Waves[0].Members[0].Failed {
			t.Error("a0 is not named as the reason")
		}
	})
}

func TestAMemberThatIsLostWhileItSoaksIsTakenBackWithItsWave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.notify = func(e rollout.Event) {
			switch {
			case e.Event == "wave soaking" && e.Wave == "rest":
				st.world.change("a1", func(m *machine) { m.silent = true })
			case e.Member == "a1" && e.Event == "unreachable":
				st.world.change("a2", func(m *machine) { m.health = fleet.Unhealthy })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 astray, a2 reverted")
	})
}

func TestDataThatGetsStallerIsAFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(2, true))
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				st.world.change("a0", func(m *machine) { m.stale = 3 })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Failed, "a0 reverted, a1 waiting")
		if !strings.Contains(got.Reason, "3 of its tables are stale, and 0 were before") {
			t.Errorf("the reason is %q", got.Reason)
		}
	})
}

func TestProbesThatFailNowAndThenUseTheErrorBudgetUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		asked := 0
		st.probe = func(ctx context.Context, in fleet.Instance) fleet.Result {
			r := st.world.Probe(ctx, in)
			if asked++; asked%4 == 0 { // which no 2 of 3 ever sees
				r.Health = fleet.Unhealthy
			}
			return r
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		if got.State != rollout.Failed || !strings.Contains(got.Reason, "error budget is 10%") {
			t.Fatalf("got %s, %s", got.State, got.Reason)
		}
	})
}

func TestWhatIsInconclusiveStopsTakesNothingBackAndCanBeResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(4, true))
		st.world.change("a2", func(m *machine) {
			m.once = true
			m.take = func() rollout.Outcome {
				return rollout.Outcome{What: rollout.Doubtful, Detail: "the registry is down"}
			}
		})
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 taken, a1 taken, a2 unclear, a3 waiting")
		if err := rollout.Give(t.Context(), st.s, got.ID, rollout.Resume, "bob@desk"); err != nil {
			t.Fatal(err)
		}
		got = st.run(got)
		wantStates(t, got, rollout.Done, "a0 taken, a1 taken, a2 taken, a3 taken")
		if st.world.trips["a1"] != 1 || st.world.trips["a2"] != 2 {
			t.Errorf("members were taken again: %v", st.world.trips)
		}
		checkAudit(t, st, got)
	})
}

func TestUnreachableMembersDoNotBlockWithinTheirBudgetAndAreListed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(4, true))
		st.world.change("a2", func(m *machine) { m.silent = true })
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Done, "a0 taken, a1 taken, a2 unreachable, a3 taken")
		if fmt.Sprint(got.CatchUp) != "[a2]" {
			t.Fatalf("the catch-up list is %v", got.CatchUp)
		}
		st.world.change("a2", func(m *machine) { m.silent = false })
		later, err := rollout.CatchUpPlan(got, rollout.PlanOptions{
			Inventory: &fleet.Inventory{Waves: waves(t, fleet.Limit{}), Instances: st.instances}, Seen: map[string]fleet.Result{},
			Now: time.Now(), By: "ada@ops", ID: "r2", ErrorBudget: 10,
		})
		if err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(later), rollout.Done, "a2 taken")
	})
}

func TestACatchUpGoesToWhomItIsMeantForAndSaysWhoIsGone(t *testing.T) {
	t.Parallel()
	old := rollout.Rollout{ID: "r1", State: rollout.Done, Tag: "stable", Digest: newDigest, CatchUp: []string{"a1", "a2", "gone"}, Flags: map[string][]string{"schema": {"halt"}}}
	o := rollout.PlanOptions{
		Inventory: &fleet.Inventory{Waves: waves(t, fleet.Limit{}), Instances: members(4, true)}, Now: time.Now(), ID: "r2",
		Chosen: func(in fleet.Instance) bool { return in.Name != "a2" },
	}
	got, err := rollout.CatchUpPlan(old, o)
	if err != nil {
		t.Fatal(err)
	}
	wantStates(t, got, rollout.Planned, "a1 waiting")
	if last := got.Skipped[len(got.Skipped)-1]; last.Name != "gone" || !strings.Contains(last.Reason, "inventory") {
		t.Errorf("who left the inventory is not named: %+v", got.Skipped)
	}
	if got.Flags["schema"] == nil {
		t.Error("it deploys in another way than the one before")
	}
	old.State = rollout.Failed
	if _, err := rollout.CatchUpPlan(old, o); !problem.Is(err, problem.Refused) {
		t.Errorf("the image of a failed rollout is sent to more members: %v", err)
	}
}

func TestMoreUnreachableMembersThanTheBudgetStopTheRollout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(5, true))
		for _, name := range []string{"a1", "a2"} {
			st.world.change(name, func(m *machine) { m.silent = true })
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 taken, a1 unreachable, a2 unreachable, a3 waiting, a4 waiting")
	})
}

func TestACanaryThatCannotBeReachedProvesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.world.change("a0", func(m *machine) { m.silent = true })
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 unreachable, a1 waiting, a2 waiting")
	})
}

func TestACanaryThatIsLostWhileItSoaksProvesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				st.world.change("a0", func(m *machine) { m.silent = true })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 unreachable, a1 waiting, a2 waiting")
	})
}

func TestASoakThatNobodyWatchedBeginsAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(2, true))
		lease := st.acquire()
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" && e.Wave == "canary" {
				rollout.Kill(lease)
			}
		}
		if _, err := st.engine().Run(t.Context(), lease, plan(t, st.instances, fleet.Limit{})); err == nil {
			t.Fatal("the kill came too late")
		}
		pass(time.Hour)
		st.notify = nil
		r, err := rollout.Get(t.Context(), st.s, "r1")
		if err != nil {
			t.Fatal(err)
		}
		again := time.Now()
		got := st.run(r)
		if soaked := got.Waves[1].Began.Sub(again); soaked < 2*time.Minute {
			t.Errorf("the next wave began %s after the resumption, and the soak is 2m", soaked)
		}
	})
}

func TestOurOwnNetworkInTroubleStopsAndBlamesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				st.world.change("a0", func(m *machine) { m.silent, m.self = true, true })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 unclear, a1 waiting, a2 waiting")
	})
}

func TestAnAbortLeavesWhoHadArrived(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(2, false))
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" {
				st.world.change("a0", func(m *machine) { m.silent, m.self = true, true })
			}
		}
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Stopped, "a0 unclear, a1 waiting")
		if err := rollout.Give(t.Context(), st.s, "r1", rollout.Abort, "eve@page"); err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(got), rollout.Aborted, "a0 unclear, a1 waiting")
	})
}

func TestAMemberThatWasUnhealthyBeforeIsHomeWhereItIsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, false))
		st.world.change("a1", func(m *machine) {
			m.health = fleet.Unhealthy
			m.take = func() rollout.Outcome {
				m.runs, m.health = newVersion, fleet.Healthy
				return rollout.Outcome{What: rollout.Delivered}
			}
			m.back = func() rollout.Outcome {
				m.runs, m.health = oldVersion, fleet.Unhealthy
				return rollout.Outcome{What: rollout.Delivered}
			}
		})
		st.notify = func(e rollout.Event) {
			if e.Event == "wave soaking" && e.Wave == "rest" {
				st.world.change("a2", func(m *machine) { m.health = fleet.Unhealthy })
			}
		}
		wantStates(t, st.run(plan(t, st.instances, fleet.Limit{Count: 2})), rollout.Failed, "a0 taken, a1 reverted, a2 reverted")
	})
}

func TestTheTimeToArriveBeginsWhenAMemberIsSentFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(1, false))
		st.world.change("a0", func(m *machine) {
			m.take = func() rollout.Outcome {
				time.AfterFunc(time.Hour, func() { st.world.change("a0", func(m *machine) { m.runs = newVersion }) })
				return rollout.Outcome{What: rollout.Delivered}
			}
		})
		lease := st.acquire()
		st.notify = func(e rollout.Event) {
			if e.Member == "a0" && e.Event == "taking" { // it is not even looked at yet
				rollout.Kill(lease)
			}
		}
		if _, err := st.engine().Run(t.Context(), lease, plan(t, st.instances, fleet.Limit{})); err == nil {
			t.Fatal("the kill came too late")
		}
		pass(12 * time.Hour)
		st.notify = nil
		r, err := rollout.Get(t.Context(), st.s, "r1")
		if err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(r), rollout.Done, "a0 taken")
	})
}

func TestAMemberWhoseWayBackFailsIsLeftAstrayAndTheOthersGoBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(4, true))
		st.retries = 1
		st.world.change("a1", func(m *machine) {
			m.back = func() rollout.Outcome { return rollout.Outcome{What: rollout.Lost, Detail: "disk full"} }
		})
		st.world.change("a2", func(m *machine) { // a hiccup
			m.back = func() rollout.Outcome {
				m.back = nil
				return rollout.Outcome{What: rollout.Doubtful, Detail: "the link was down"}
			}
		})
		st.world.change("a3", func(m *machine) {
			m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke} }
		})
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		wantStates(t, got, rollout.Failed, "a0 taken, a1 astray, a2 reverted, a3 failed")
		if d := got.Waves[1].Members[0].Detail; !strings.Contains(d, "disk full") || !strings.Contains(d, "agnesctl host rollback --host ssh://agnes@host1/opt/agnes") {
			t.Errorf("nobody hears what to do with a1: %s", d)
		}
	})
}

func TestASecondOperatorIsRefusedWithWhoAndSinceAndWhatToDo(t *testing.T) {
	t.Parallel()
	st := newStage(t, members(1, true))
	lease := st.acquire()
	other, err := store.Open(t.Context(), st.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	_, err = rollout.Acquire(t.Context(), other, nil, "bob@desk")
	p := problem.As(err)
	if p.Kind != problem.Refused || !strings.Contains(p.Message, "ada@ops") || !strings.Contains(p.Message, "since 20") || !strings.Contains(p.Hint, "agnesctl fleet rollout --") {
		t.Fatalf("the second operator hears %v", err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease, err = rollout.Acquire(t.Context(), other, nil, "bob@desk")
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestALeaseThatIsLostEndsTheRunAndWritesNothingMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(3, true))
		lease := st.acquire()
		st.notify = func(e rollout.Event) {
			if e.Member == "a0" && e.Event == "taking" { // somebody took it by force
				err := st.s.DropLease(t.Context(), store.Lease{Name: "rollout", Nonce: rollout.Nonce(lease)})
				if err != nil {
					t.Error(err)
				}
			}
		}
		_, err := st.engine().Run(t.Context(), lease, plan(t, st.instances, fleet.Limit{}))
		if !errors.Is(err, store.ErrLeaseLost) {
			t.Fatalf("the run ended with %v", err)
		}
		r, err := rollout.Get(t.Context(), st.s, "r1")
		if err != nil || r.State != rollout.Running {
			t.Fatalf("the document is %s, %v", r.State, err)
		}
		_ = lease.Release(t.Context()) // it is gone
	})
}

// TestAKillAtAnyStepIsGoneOnFromExactly kills the engine after each line of the
// audit in turn, with deploys under way, and lets another one go on.
func TestAKillAtAnyStepIsGoneOnFromExactly(t *testing.T) {
	t.Parallel()
	for kill := int64(1); ; kill++ {
		var ended bool
		t.Run(fmt.Sprint("after line ", kill), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, members(4, true))
				st.world.change("a3", func(m *machine) {
					m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke, Detail: "not ready"} }
				})
				lease := st.acquire()
				st.notify = func(e rollout.Event) {
					if e.Seq == kill {
						st.world.mu.Lock()
						st.world.dead = true
						st.world.mu.Unlock()
						rollout.Kill(lease)
					}
				}
				got, err := st.engine().Run(t.Context(), lease, plan(t, st.instances, fleet.Limit{Count: 2}))
				if err == nil {
					ended = true
					if err := lease.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					pass(time.Minute) // its lease ends
					st.world.dead = false
					st.notify = nil
					if got, err = rollout.Get(t.Context(), st.s, "r1"); err != nil {
						t.Fatal(err)
					}
					got = st.run(got)
				}
				// Where it ends does not depend on the kill; whether a2 had begun by the
				// time that a3 failed may.
				wantStates(t, got, rollout.Failed, "a0 taken, a1 reverted, a2 reverted, a3 failed")
				if new := fmt.Sprint(st.world.running(newVersion)); new != "[a0]" {
					t.Errorf("%s run the target", new)
				}
				checkAudit(t, st, got)
			})
		})
		if ended || t.Failed() {
			if kill < 15 {
				t.Errorf("the run had %d lines only", kill)
			}
			return
		}
	}
}

func TestAnInterruptFinishesWhatIsUnderWayAndPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(4, true))
		st.stay = true // also then an interrupt ends the program
		ctx, interrupt := context.WithCancel(t.Context())
		st.notify = func(e rollout.Event) {
			if e.Member == "a1" && e.Event == "taking" {
				time.AfterFunc(10*time.Second, interrupt) // in the middle of its deploy
			}
		}
		lease := st.acquire()
		got, err := st.engine().Run(ctx, lease, plan(t, st.instances, fleet.Limit{Count: 2}))
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantStates(t, got, rollout.Paused, "a0 taken, a1 taken, a2 taken, a3 waiting")
		if err := rollout.Give(t.Context(), st.s, got.ID, rollout.Resume, "ada@ops"); err != nil {
			t.Fatal(err)
		}
		wantStates(t, st.run(got), rollout.Done, "a0 taken, a1 taken, a2 taken, a3 taken")
	})
}

func TestOrdersOfAnotherProgramPauseResumeAndAbort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, members(5, true))
		st.stay = true
		page, err := store.Open(t.Context(), st.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = page.Close() }()
		give := func(verb rollout.Verb) {
			t.Helper()
			if err := rollout.Give(t.Context(), page, "r1", verb, "eve@page"); err != nil {
				t.Error(err)
			}
		}
		go func() {
			pass(5 * time.Second)
			give(rollout.Pause)
			pass(time.Hour)
			if r, err := rollout.Get(t.Context(), page, "r1"); err != nil || r.State != rollout.Paused || !strings.Contains(r.Reason, "eve@page") {
				t.Errorf("after an hour it is %s (%s), %v", r.State, r.Reason, err)
			}
			give(rollout.Resume)
			pass(4 * time.Minute)
			give(rollout.Abort)
		}()
		got := st.run(plan(t, st.instances, fleet.Limit{}))
		if got.State != rollout.Aborted || got.Waves[0].State != rollout.WavePassed {
			t.Fatalf("got %s: %s", got.State, states(got))
		}
		if err := rollout.Give(t.Context(), page, "r1", rollout.Resume, "eve@page"); !problem.Is(err, problem.Refused) {
			t.Errorf("an ended rollout took an order: %v", err)
		}
		checkAudit(t, st, got)
	})
}

// TestAnAbortEndsEveryState orders an abort after each line of the audit in turn.
func TestAnAbortEndsEveryState(t *testing.T) {
	t.Parallel()
	for _, host := range []bool{true, false} {
		states := map[rollout.State]bool{}
		for line := int64(1); ; line++ {
			ended := false
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, members(4, host))
				st.world.change("a3", func(m *machine) {
					m.take = func() rollout.Outcome { return rollout.Outcome{What: rollout.Broke} }
				})
				st.probe = func(ctx context.Context, in fleet.Instance) fleet.Result {
					pass(3 * time.Second) // the abort finds some while they are looked at
					return st.world.Probe(ctx, in)
				}
				trips := 0
				var ordered, aborting time.Time
				st.notify = func(e rollout.Event) {
					if e.Seq == line {
						r, err := rollout.Get(t.Context(), st.s, "r1")
						if err != nil {
							t.Error(err)
						}
						states[r.State] = true
						ordered = e.At // other lines of the same turn may follow
						if err := rollout.Give(t.Context(), st.s, "r1", rollout.Abort, "eve@page"); err != nil && !problem.Is(err, problem.Refused) {
							t.Error(err)
						}
					}
					if e.Event == "aborting" {
						aborting = e.At
					}
					if e.Event == "taking" && !ordered.IsZero() && e.At.After(ordered) {
						trips++
					}
				}
				got := st.run(plan(t, st.instances, fleet.Limit{Count: 2}))
				ended = got.State == rollout.Failed
				if !ended && got.State != rollout.Aborted {
					t.Errorf("after line %d it ended as %s", line, got.State)
				}
				if !ended && trips > 0 {
					t.Errorf("after line %d others were begun", line)
				}
				if !aborting.IsZero() && st.world.took.After(aborting) {
					t.Errorf("after line %d a delivery began %s after the abort", line, st.world.took.Sub(aborting))
				}
				for _, w := range got.Waves {
					for _, m := range w.Members {
						if m.State == rollout.Taking || m.State == rollout.TakingBack {
							t.Errorf("after line %d %s is still on its way", line, m.Name)
						}
					}
				}
				checkAudit(t, st, got)
			})
			if ended || t.Failed() {
				break
			}
		}
		if !states[rollout.Running] || !states[rollout.Reverting] {
			t.Errorf("the abort met %v only", states)
		}
	}
}
