package dashboard

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"

	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// running reports whether a rollout has not ended.
func running(r rollout.Rollout) bool { return !r.State.Ended() }

// can reports whether an order makes sense now.
func can(r rollout.Rollout, verb string) bool {
	switch rollout.Verb(verb) {
	case rollout.Pause:
		return r.State == rollout.Running
	case rollout.Resume:
		return r.State == rollout.Pausing || r.State == rollout.Paused || r.State == rollout.Stopping || r.State == rollout.Stopped
	case rollout.Abort:
		return running(r) && r.State != rollout.Aborting
	}
	return false
}

// tally counts members by their tone.
type tally struct {
	Members, Done, Bad int
	by                 map[string]int
}

func (t *tally) add(members []rollout.Member) {
	for _, m := range members {
		t.Members++
		t.by[tone(m.State)]++
	}
	t.Done, t.Bad = t.by["good"], t.by["bad"]
}

func tallyOf(r rollout.Rollout) tally {
	t := tally{by: map[string]int{}}
	for _, w := range r.Waves {
		t.add(w.Members)
	}
	return t
}

func tallyOfWave(w rollout.WaveState) tally {
	t := tally{by: map[string]int{}}
	t.add(w.Members)
	return t
}

// tone is how a state of a rollout, a wave or a member is colored: good, busy, held,
// bad or idle.
func tone(state any) string {
	switch s := state.(type) {
	case rollout.State:
		switch s {
		case rollout.Done:
			return "good"
		case rollout.Running:
			return "busy"
		case rollout.Pausing, rollout.Paused, rollout.Stopping, rollout.Aborting:
			return "held"
		case rollout.Stopped, rollout.Reverting, rollout.Failed, rollout.Aborted:
			return "bad"
		}
	case rollout.WaveStage:
		switch s {
		case rollout.WavePassed:
			return "good"
		case rollout.WaveTaking, rollout.WaveSoaking:
			return "busy"
		case rollout.WaveFailed:
			return "bad"
		case rollout.WaveWaiting, rollout.WaveLeftOver:
		}
	case rollout.MemberState:
		switch s {
		case rollout.Taken:
			return "good"
		case rollout.Taking, rollout.TakingBack:
			return "busy"
		case rollout.Unreached, rollout.Unclear:
			return "held"
		case rollout.Bad, rollout.FailedBack, rollout.Reverted, rollout.Astray:
			return "bad"
		case rollout.Waiting:
		}
	}
	return "idle"
}

// notable are the members of a wave that something happens to, or has.
func notable(w rollout.WaveState) (all []rollout.Member) {
	for _, m := range w.Members {
		if t := tone(m.State); t != "good" && t != "idle" {
			all = append(all, m)
		}
	}
	return all
}

// quiet are members of whom there is nothing to say but their state.
type quiet struct {
	ID      string
	State   rollout.MemberState
	Members []rollout.Member
}

func quietOf(w rollout.WaveState) (all []quiet) {
	for _, state := range []rollout.MemberState{rollout.Taken, rollout.Waiting} {
		q := quiet{ID: digest(w.Name) + "-" + string(state), State: state}
		for _, m := range w.Members {
			if m.State == state {
				q.Members = append(q.Members, m)
			}
		}
		if len(q.Members) > 0 {
			all = append(all, q)
		}
	}
	return all
}

// bar is a part of a drawn line that is 1000 long.
type bar struct {
	State string
	X, W  float64
}

// bars lays parts beside each other; a small part can still be seen.
func bars(order []string, by map[string]int, total int) (all []bar) {
	x := 0.0
	for _, name := range order {
		if n := by[name]; n > 0 {
			w := max(3, 1000*float64(n)/float64(max(1, total)))
			all = append(all, bar{name, x, w})
			x += w
		}
	}
	return all
}

func barsOfStates(c counts) []bar {
	return bars([]string{"healthy", "degraded", "unhealthy", "unreachable", stateUnknown}, c.By, c.Total)
}

func barsOfTally(t tally) []bar {
	return bars([]string{"good", "busy", "held", "bad"}, t.by, t.Members)
}

// lately returns the last rollouts, newest first. Those that have ended are kept
// decoded, since they do not change.
func (s *Server) lately(ctx context.Context, limit int) ([]rollout.Rollout, error) {
	records, err := s.o.Store.Rollouts(ctx, limit)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[string]rollout.Rollout{}
	all := make([]rollout.Rollout, 0, len(records))
	for _, record := range records {
		one, known := s.ended[record.ID]
		if !known {
			if one, err = rollout.Decode(record); err != nil {
				return nil, err
			}
		}
		if one.State.Ended() {
			kept[one.ID] = one
		}
		all = append(all, one)
	}
	if limit == maxRollouts {
		s.ended = kept // forgets those that are older
	} else {
		maps.Copy(s.ended, kept)
	}
	return all, nil
}

type rolloutsView struct {
	Rollouts []rollout.Rollout
	have     string
}

func (v rolloutsView) events() string { return "/events?rollouts=1&have=" + v.have }

func (s *Server) rolloutsPage(w http.ResponseWriter, r *http.Request) {
	v := rolloutsView{}
	var err error
	if v.have, err = s.storeDigest(r.Context(), "", false); err == nil {
		v.Rollouts, err = s.lately(r.Context(), maxRollouts)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.render(w, r, http.StatusOK, "rollouts", "Rollouts", v)
}

type rolloutView struct {
	rollout.Rollout
	Given  string // the order that was just given
	Driver string // who drives it; empty: nobody does
	have   string
}

func (v rolloutView) events() string {
	return "/events?have=" + v.have + "&rollout=" + url.QueryEscape(v.ID)
}

func (s *Server) rolloutPage(w http.ResponseWriter, r *http.Request) {
	v := rolloutView{}
	var err error
	if v.have, err = s.storeDigest(r.Context(), r.PathValue("id"), false); err == nil {
		v.Rollout, err = rollout.Get(r.Context(), s.o.Store, r.PathValue("id"))
	}
	if err == nil {
		v.Driver, _, _, err = rollout.Driver(r.Context(), s.o.Store)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if given := r.URL.Query().Get("given"); given == "pause" || given == "resume" || given == "abort" {
		v.Given = given
	}
	s.render(w, r, http.StatusOK, "rollout", "Rollout of "+cli.Sanitize(v.Tag), v)
}

// giveOrder takes pause, resume or abort from a signed-in user.
func (s *Server) giveOrder(w http.ResponseWriter, r *http.Request) {
	v, err := s.ordered(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id, verb := r.PathValue("id"), r.PostFormValue("order")
	one, err := rollout.Get(r.Context(), s.o.Store, id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if !can(one, verb) {
		s.fail(w, r, problem.New(problem.Conflict, fmt.Sprintf("A rollout that is %s takes no order %q.", one.State, cli.Sanitize(verb)), "Open its page again and see where it is."))
		return
	}
	if err := rollout.Give(r.Context(), s.o.Store, id, rollout.Verb(verb), v.User); err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Info("an order was given", "rollout", id, "order", verb, "user", v.User, "address", s.door.from(r))
	http.Redirect(w, r, "/rollouts/"+url.PathEscape(id)+"?given="+verb, http.StatusSeeOther) //nolint:gosec // a path of this page: the id is escaped, the verb is one of three
}
