package dashboard

import (
	"bytes"
	"context"
	"errors"
	"html/template"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// news is what changes on open pages beside their rows. Each part is the HTML of the
// element with its id.
type news struct {
	Trouble template.HTML `json:"trouble"` // why a newer inventory could not be taken
	Open    template.HTML `json:"open"`    // how many incidents are
	Self    template.HTML `json:"self"`    // trouble of the monitor itself
	Now     template.HTML `json:"now"`     // rollouts that run, incidents that are open

	id string // the same for the same news
}

// newsView is what news are drawn of.
type newsView struct {
	Trouble      *problem.Error
	Open         int
	SelfTroubled int
	Forgets      string            // why the monitor cannot write what it learns
	Unreadable   *problem.Error    // what is remembered cannot be read
	Incidents    []store.Incident  // the newest that are open
	Rollouts     []rollout.Rollout // that run
}

// newsroom keeps the news for a second, for all pages together.
type newsroom struct {
	mu   sync.Mutex
	made time.Time
	news news
}

// newsNow returns the news. What it reads of the store is read for everybody, so it
// does not end with the one page that asks.
func (s *Server) newsNow(ctx context.Context) news {
	s.newsroom.mu.Lock()
	defer s.newsroom.mu.Unlock()
	if time.Since(s.newsroom.made) < lookAtStore {
		return s.newsroom.news
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeLimit)
	defer cancel()
	_, live, trouble := s.current()
	v := newsView{SelfTroubled: count(s.model.all()).SelfTroubled}
	if trouble != nil {
		v.Trouble = problem.As(trouble)
	}
	if live != nil {
		v.Forgets = live.Condition().Store
	}
	err := s.remember(ctx, &v)
	if err != nil { // what is seen now is shown all the same
		v.Unreadable = unreadable(err)
	}
	var n news
	for name, part := range map[string]*template.HTML{"trouble": &n.Trouble, "open": &n.Open, "self": &n.Self, "now": &n.Now} {
		*part = s.draw(name, v)
	}
	n.id = digest(n)
	if err != nil && n.id != s.newsroom.news.id {
		s.log.Error("what is remembered cannot be read", "error", err)
	}
	s.newsroom.news, s.newsroom.made = n, time.Now()
	return n
}

// remember adds what the store knows.
func (s *Server) remember(ctx context.Context, v *newsView) (err error) {
	if v.Open, err = s.o.Store.OpenIncidents(ctx); err != nil {
		return err
	}
	if v.Incidents, err = s.o.Store.Incidents(ctx, store.IncidentQuery{OpenOnly: true, Limit: 6}); err != nil {
		return err
	}
	rollouts, err := s.lately(ctx, 5)
	for _, one := range rollouts {
		if running(one) {
			v.Rollouts = append(v.Rollouts, one)
		}
	}
	return err
}

// unreadable says that the store cannot be read, in its own words where it has some.
func unreadable(err error) *problem.Error {
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return e
	}
	return problem.Wrap(err, problem.Internal, "What is remembered of the fleet cannot be read.", "Look at the folder of --state; the log says why.")
}

// tellNews tells a page the news where it has others, and returns what it has then.
func (s *Server) tellNews(ctx context.Context, out *stream, have string) (string, error) {
	n := s.newsNow(ctx)
	if n.id == have {
		return have, nil
	}
	return n.id, out.tell(told{News: &n})
}

// draw makes a part of a page; a template that fails is a fault of this program.
func (s *Server) draw(part string, of any) template.HTML {
	var b bytes.Buffer
	if err := s.pages[""].ExecuteTemplate(&b, part, of); err != nil {
		s.log.Error("a part of the page cannot be drawn", "part", part, "error", err)
		return ""
	}
	return template.HTML(b.String()) //nolint:gosec // what html/template has written
}
