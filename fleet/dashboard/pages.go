package dashboard

import (
	"bytes"
	"context"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// frame is what every page has around its own view.
type frame struct {
	Title, Site string
	At          string // of the navigation
	Theme       string // dark, light, or empty: as the system has it
	Path        string // of this page, to come back to
	User        string
	Proxy       bool
	CanSignIn   bool
	Token       string
	CSS, JS     string
	Icon        string
	Events      string // address of the page's changes; empty for a page without
	Inventory   Inventory
	News        news
	View        any
}

func (s *Server) loadTemplates() (map[string]*template.Template, error) {
	base, err := template.New("").Funcs(functions()).ParseFS(templateFiles, "templates/frame.html", "templates/parts.html")
	if err != nil {
		return nil, fmt.Errorf("read the page's templates: %w", err)
	}
	all := map[string]*template.Template{"": base}
	for _, name := range []string{"overview", "instance", "rollouts", "rollout", "incidents", "login", "problem"} {
		page, err := base.Clone()
		if err == nil {
			page, err = page.ParseFS(templateFiles, "templates/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("read the page's templates: %w", err)
		}
		all[name] = page
	}
	return all, nil
}

// render answers with a page.
func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, name, title string, view any) {
	v := visitorOf(r)
	f := frame{
		Title: title, Site: s.o.Title, At: name, Path: r.URL.RequestURI(), User: v.User, Proxy: v.Proxy, CanSignIn: s.door.forms(),
		CSS: "/assets/" + s.assets["app.css"].name, JS: "/assets/" + s.assets["app.js"].name, Icon: "/assets/" + s.assets["icon.svg"].name,
		View: view,
	}
	if v.User != "" {
		f.Token = s.door.form(v)
	}
	if r.Method != http.MethodGet {
		f.Path = "/"
	}
	if c, err := r.Cookie("theme"); err == nil && (c.Value == "dark" || c.Value == "light") {
		f.Theme = c.Value
	}
	if !s.door.access.Closed || v.User != "" { // the login tells strangers nothing of the fleet
		f.Inventory, _, _ = s.current()
		f.News = s.newsNow(r.Context())
	}
	if v, ok := view.(interface{ events() string }); ok {
		f.Events = v.events() + "&news=" + f.News.id
	}
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, "frame", f); err != nil {
		s.log.Error("a page cannot be drawn", "page", name, "error", err)
		http.Error(w, "This page cannot be drawn; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Vary", "Cookie")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// fail answers with a problem and its next step.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problem.As(err)
	if p.Kind == problem.Internal {
		s.log.Error("a request failed", "path", r.URL.Path, "error", err)
	}
	s.render(w, r, p.Kind.Status(), "problem", "Something is wrong", p)
}

type overviewView struct {
	Filter   filter
	All      counts
	Matching int
	Groups   []group
	GroupBy  []string
	Rows     []*row
	From, To int
	Pages    []int
	Last     int
	Empty    bool
	Size     string // of the grid's cells
	seq      int64  // of the newest row
}

// events is the address of what changes on the page after it was made.
func (v overviewView) events() string {
	q := v.Filter.values()
	q.Set("since", fmt.Sprint(v.seq))
	return "/events?" + q.Encode()
}

// cellSize is smaller the more there are.
func cellSize(n int) string {
	switch {
	case n <= 80:
		return "named"
	case n <= 400:
		return "large"
	case n <= 3000:
		return "medium"
	}
	return "small"
}

// maxLabels bounds the labels that the grid is offered to be grouped by.
const maxLabels = 12

func (s *Server) overview(w http.ResponseWriter, r *http.Request) {
	seq, rows := s.model.replacedAt(), s.model.all()
	v := overviewView{Filter: parseFilter(r.URL.Query()), All: count(rows), Empty: len(rows) == 0, GroupBy: groupings(rows), seq: seq}
	for _, one := range rows {
		v.seq = max(v.seq, one.seq)
	}
	if !slices.Contains(v.GroupBy, v.Filter.Group) {
		v.Filter.Group = ""
	}
	shown := v.Filter.apply(rows)
	v.Matching, v.Size = len(shown), cellSize(len(shown))
	v.Groups = v.Filter.groups(shown)
	v.Rows, v.From, v.Last = v.Filter.slice(shown)
	v.To = v.From + len(v.Rows)
	v.Filter.Page = min(v.Filter.Page, v.Last)
	for n := 1; n <= v.Last; n++ {
		if n <= 2 || n > v.Last-2 || n >= v.Filter.Page-2 && n <= v.Filter.Page+2 {
			v.Pages = append(v.Pages, n)
		} else if v.Pages[len(v.Pages)-1] != 0 {
			v.Pages = append(v.Pages, 0)
		}
	}
	status := http.StatusOK
	if v.Filter.Wrong != nil {
		status = http.StatusBadRequest
	}
	s.render(w, r, status, "overview", "Overview", v)
}

// slice returns the rows of the filter's page in order, what is before them, and
// the last page.
func (f *filter) slice(shown []*row) (page []*row, from, last int) {
	sorted := slices.Clone(shown)
	f.sort(sorted)
	last = max(1, (len(sorted)+perPage-1)/perPage)
	from = (min(f.Page, last) - 1) * perPage
	return sorted[from:min(len(sorted), from+perPage)], from, last
}

// groupings are the labels that divide the fleet into a few parts.
func groupings(rows []*row) []string {
	values := map[string]map[string]bool{}
	for _, r := range rows {
		for key, value := range r.Labels {
			if values[key] == nil {
				values[key] = map[string]bool{}
			}
			if len(values[key]) <= 40 {
				values[key][value] = true
			}
		}
	}
	var keys []string
	for key, v := range values {
		if len(v) > 1 && len(v) <= 40 && key != "name" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return append(keys[:min(len(keys), maxLabels)], "version")
}

// VersionChoices are those of the filter: the shown ones, and the one that was asked for.
func (v overviewView) VersionChoices() []string {
	var all []string
	for _, c := range v.All.Versions {
		all = append(all, c.Version)
	}
	if v.Filter.Version != "" && !slices.Contains(all, v.Filter.Version) {
		all = append(all, v.Filter.Version)
	}
	return all
}

// ClearURL is the overview without a filter.
func (v overviewView) ClearURL() string {
	return filter{Sort: v.Filter.Sort, Group: v.Filter.Group}.URL()
}

type instanceView struct {
	*row
	Uptime    []store.Uptime
	Latency   sparkline
	Changes   []store.Change
	Incidents []store.Incident
	Deploys   []deployView
	Trouble   *problem.Error // what is remembered cannot be read
}

func (v instanceView) events() string { return fmt.Sprintf("/events?i=%s&since=%d", v.Name, v.seq) }

// deployView is an instance's part in a rollout.
type deployView struct {
	Rollout rollout.Rollout
	Wave    string
	Member  rollout.Member
}

func (s *Server) instancePage(w http.ResponseWriter, r *http.Request) {
	one := s.model.get(r.PathValue("name"))
	if one == nil {
		s.fail(w, r, problem.New(problem.NotFound, fmt.Sprintf("The inventory has no instance %q.", cli.Sanitize(r.PathValue("name"))), "Look for it on the overview; agnesctl fleet list says what the inventory has."))
		return
	}
	v := instanceView{row: one}
	ctx, now := r.Context(), time.Now()
	if err := s.remembered(ctx, &v, now); err != nil {
		s.log.Error("history cannot be read", "name", one.Name, "error", err)
		v.Trouble = unreadable(err)
	}
	s.render(w, r, http.StatusOK, "instance", one.Name, v)
}

// remembered adds what the store knows of an instance.
func (s *Server) remembered(ctx context.Context, v *instanceView, now time.Time) (err error) {
	const day = 24 * time.Hour
	if v.Uptime, err = s.o.Store.Uptime(ctx, v.Name, now, day, 7*day, 30*day); err != nil {
		return err
	}
	hours, err := s.o.Store.Latency(ctx, v.Name, now.Add(-7*day))
	if err != nil {
		return err
	}
	v.Latency = newSparkline(hours, now.Add(-7*day), now)
	if v.Changes, err = s.o.Store.Changes(ctx, v.Name, now.Add(-90*day), 50); err != nil {
		return err
	}
	if v.Incidents, err = s.o.Store.Incidents(ctx, store.IncidentQuery{Name: v.Name, Limit: 20}); err != nil {
		return err
	}
	rollouts, err := s.lately(ctx, 12)
	if err != nil {
		return err
	}
	for _, one := range rollouts {
		for _, wave := range one.Waves {
			for _, m := range wave.Members {
				if m.Name == v.Name && len(v.Deploys) < 8 {
					v.Deploys = append(v.Deploys, deployView{one, wave.Name, m})
				}
			}
		}
	}
	return nil
}

type incidentsView struct {
	Open, Closed []store.Incident
	have         string
}

func (v incidentsView) events() string { return "/events?incidents=1&have=" + v.have }

func (s *Server) incidentsPage(w http.ResponseWriter, r *http.Request) {
	all, err := s.o.Store.Incidents(r.Context(), store.IncidentQuery{Limit: maxIncidents})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	v := incidentsView{have: digest(all)}
	for _, i := range all {
		if i.Closed.IsZero() {
			v.Open = append(v.Open, i)
		} else {
			v.Closed = append(v.Closed, i)
		}
	}
	s.render(w, r, http.StatusOK, "incidents", "Incidents", v)
}
