package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Rollouts is where rollouts are read, and orders given.
type Rollouts interface {
	List(ctx context.Context, limit int) ([]Rollout, error)
	Get(ctx context.Context, id string) (Rollout, error)
	Give(ctx context.Context, id, verb, by string) error
}

// Rollout is one.
type Rollout struct {
	ID, Image, Tag, Digest, Version, State, Reason string
	Started, Ended                                 time.Time
	By                                             string
	Waves                                          []WaveState
}

// WaveState is one of its waves.
type WaveState struct {
	Name, State string
	Began       time.Time
	Members     []Member
}

// Member is one instance in it.
type Member struct {
	Name, Delivery, State, From, To, Detail string
	Since                                   time.Time
}

// running reports whether a rollout has not ended.
func running(r Rollout) bool { return r.Ended.IsZero() }

// can reports whether an order makes sense now.
func can(r Rollout, verb string) bool {
	switch verb {
	case "pause":
		return r.State == "running"
	case "resume":
		return r.State == "paused" || r.State == "pausing" || r.State == "stopped"
	case "abort":
		return running(r) && r.State != "aborting"
	}
	return false
}

// tally counts members by their tone.
type tally struct {
	Members, Done, Bad int
	by                 map[string]int
}

func (t *tally) add(members []Member) {
	for _, m := range members {
		t.Members++
		t.by[tone(m.State)]++
	}
	t.Done, t.Bad = t.by["good"], t.by["bad"]
}

func tallyOf(r Rollout) tally {
	t := tally{by: map[string]int{}}
	for _, w := range r.Waves {
		t.add(w.Members)
	}
	return t
}

func tallyOfWave(w WaveState) tally {
	t := tally{by: map[string]int{}}
	t.add(w.Members)
	return t
}

// tone is how a state of a rollout, a wave or a member is colored.
func tone(state any) string {
	switch fmt.Sprint(state) {
	case "done", "passed", "taken":
		return "good"
	case "failed", "aborted", "stopped", "bad", "reverted", "astray":
		return "bad"
	case "running", "taking", "soaking", "reverting":
		return "busy"
	case "paused", "pausing", "stopping", "aborting", "unreachable", "unclear":
		return "held"
	}
	return "idle"
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

type rolloutsView struct{ Rollouts []Rollout }

func (v rolloutsView) events() string { return "/events?rollouts=1&have=" + digest(v.Rollouts) }

func (s *Server) rolloutsPage(w http.ResponseWriter, r *http.Request) {
	all, err := s.o.Rollouts.List(r.Context(), maxRollouts)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.render(w, r, http.StatusOK, "rollouts", "Rollouts", rolloutsView{all})
}

type rolloutView struct {
	Rollout
	Given string // the order that was just given
}

func (v rolloutView) events() string {
	return "/events?have=" + digest(v.Rollout) + "&rollout=" + url.QueryEscape(v.ID)
}

func (s *Server) rolloutPage(w http.ResponseWriter, r *http.Request) {
	one, err := s.o.Rollouts.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	v := rolloutView{Rollout: one}
	if given := r.URL.Query().Get("given"); given == "pause" || given == "resume" || given == "abort" {
		v.Given = given
	}
	s.render(w, r, http.StatusOK, "rollout", "Rollout of "+cli.Sanitize(one.Tag), v)
}

// giveOrder takes pause, resume or abort from a signed-in user.
func (s *Server) giveOrder(w http.ResponseWriter, r *http.Request) {
	v, err := s.ordered(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id, verb := r.PathValue("id"), r.PostFormValue("order")
	one, err := s.o.Rollouts.Get(r.Context(), id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if !can(one, verb) {
		s.fail(w, r, problem.New(problem.Conflict, fmt.Sprintf("A rollout that is %s takes no order %q.", cli.Sanitize(one.State), cli.Sanitize(verb)), "Open its page again and see where it is."))
		return
	}
	if err := s.o.Rollouts.Give(r.Context(), id, verb, v.User); err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Info("an order was given", "rollout", id, "order", verb, "user", v.User, "address", s.door.from(r))
	http.Redirect(w, r, "/rollouts/"+url.PathEscape(id)+"?given="+verb, http.StatusSeeOther)
}
