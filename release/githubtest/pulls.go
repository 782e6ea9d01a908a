package githubtest

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Pull is a pull request for Repo.Pull.
type Pull struct {
	Number      int // set by Repo.Pull
	Title, Body string
	Author      string
	Labels      []string
	Commits     []string // those that it lists, the last is its head
	Head, Base  string   // set by Repo.Pull: commits
	Closed      bool
	Merged      time.Time // zero: not
	MergeCommit string    // what the default branch got
}

type pull struct {
	Pull

	id      int64
	created time.Time
	reviews []*review
}

// Review is somebody's opinion of a pull request's state at a commit.
type Review struct {
	Author, Body, Commit string
	State                string // APPROVED, CHANGES_REQUESTED, COMMENTED, DISMISSED
}

type review struct {
	Review

	id int64
	at time.Time
}

type status struct {
	id                                          int64
	commit, state, context, description, author string
	target                                      any
	at                                          time.Time
}

// Pull adds a pull request and returns its number.
func (r *Repo) Pull(p Pull) int {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	i := r.newIssue(p.Title, p.Body, p.Author, p.Labels)
	i.pull = true
	if p.Closed || !p.Merged.IsZero() {
		i.state = "closed"
	}
	p.Number = i.number
	if len(p.Commits) > 0 {
		p.Head = p.Commits[len(p.Commits)-1]
	}
	if p.Base == "" {
		p.Base = r.refs["refs/heads/"+r.branch].id
	}
	r.pulls = append(r.pulls, &pull{Pull: p, id: r.s.id(), created: r.s.stamp()})
	return p.Number
}

// Review adds a review to a pull request.
func (r *Repo) Review(number int, v Review) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for _, p := range r.pulls {
		if p.Number == number {
			p.reviews = append(p.reviews, &review{Review: v, id: r.s.id(), at: r.s.stamp()})
		}
	}
}

// Status returns the state of a commit status: the newest of its context.
func (r *Repo) Status(commit, context string) string {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for _, t := range slices.Backward(r.statuses) {
		if t.commit == commit && t.context == context {
			return t.state
		}
	}
	return ""
}

func pullRoutes() []route {
	const repo = "/repos/{owner}/{repo}"
	return []route{
		{"GET", repo + "/pulls", pulls(Read), listPulls},
		{"GET", repo + "/pulls/{pull_number}", pulls(Read), withPull(getPull)},
		{"GET", repo + "/commits/{commit_sha}/pulls", pulls(Read), pullsOf},
		{"GET", repo + "/pulls/{pull_number}/reviews", pulls(Read), withPull(func(c *call, p *pull) answer {
			return pages(c, p.reviews, func(v *review) object { return c.repo.showReview(p, v) })
		})},
		{"POST", repo + "/pulls/{pull_number}/reviews", pulls(Write), withPull(createReview)},
		{"PUT", repo + "/pulls/{pull_number}/reviews/{review_id}/dismissals", pulls(Write), withPull(dismiss)},
		{"POST", repo + "/statuses/{sha}", statuses(Write), createStatus},
		{"GET", repo + "/commits/{ref}/status", statuses(Read), combined},
	}
}

func withPull(handle func(*call, *pull) answer) func(*call) answer {
	return func(c *call) answer {
		for _, p := range c.repo.pulls {
			if int64(p.Number) == c.number("pull_number") {
				// Labels are the issue's: live, whatever the event's payload says.
				p.Labels = c.repo.issue(p.Number).labels
				return handle(c, p)
			}
		}
		return notFound
	}
}

func listPulls(c *call) answer {
	c.s.listed()
	state := c.r.URL.Query().Get("state")
	var found []*pull
	for _, p := range slices.Backward(c.repo.pulls) {
		open := p.Merged.IsZero() && !p.Closed
		if state == "all" || open == (state == "" || state == "open") {
			found = append(found, p)
		}
	}
	return pages(c, found, c.repo.showPull)
}

func getPull(c *call, p *pull) answer {
	o := c.repo.showPull(p)
	for name, value := range (object{
		"merged": !p.Merged.IsZero(), "mergeable": nil, "mergeable_state": "unknown", "merged_by": nil, "comments": 0, "review_comments": 0,
		"maintainer_can_modify": false, "commits": len(p.Commits), "additions": 0, "deletions": 0, "changed_files": 0,
	}) {
		o[name] = value
	}
	return ok(o)
}

// pullsOf lists the pull requests of a commit: merged ones for a commit of the
// default branch, otherwise open and merged ones alike
// (docs.github.com/rest/commits/commits#list-pull-requests-associated-with-a-commit).
func pullsOf(c *call) answer {
	id := c.r.PathValue("commit_sha")
	if c.repo.commits[id] == nil {
		return refusal(http.StatusUnprocessableEntity, "No commit found for SHA: "+id)
	}
	c.s.listed()
	var found []*pull
	for _, p := range c.repo.pulls {
		if p.MergeCommit == id || slices.Contains(p.Commits, id) {
			found = append(found, p)
		}
	}
	return pages(c, found, c.repo.showPull)
}

func createReview(c *call, p *pull) answer {
	var in struct {
		Body, Event string
		CommitID    string `json:"commit_id"`
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	states := map[string]string{"APPROVE": "APPROVED", "REQUEST_CHANGES": "CHANGES_REQUESTED", "COMMENT": "COMMENTED", "": "PENDING"}
	if in.Event == "APPROVE" && c.login == p.Author {
		return refusal(http.StatusUnprocessableEntity, "Unprocessable Entity: Can not approve your own pull request")
	}
	if in.CommitID == "" {
		in.CommitID = p.Head
	}
	v := &review{Review: Review{Author: c.login, Body: in.Body, Commit: in.CommitID, State: states[in.Event]}, id: c.s.id(), at: c.s.stamp()}
	p.reviews = append(p.reviews, v)
	return ok(c.repo.showReview(p, v))
}

func dismiss(c *call, p *pull) answer {
	for _, v := range p.reviews {
		if v.id == c.number("review_id") {
			v.State = "DISMISSED"
			return ok(c.repo.showReview(p, v))
		}
	}
	return notFound
}

// createStatus keeps at most 1000 statuses of a commit and context
// (docs.github.com/rest/commits/statuses#create-a-commit-status).
func createStatus(c *call) answer {
	var in struct {
		State, Context, Description string
		TargetURL                   *string `json:"target_url"`
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	id := c.r.PathValue("sha")
	if c.repo.commits[id] == nil {
		return refusal(http.StatusUnprocessableEntity, "No commit found for SHA: "+id)
	}
	if len(in.Description) > 140 { // observed
		return invalid("Status", "description", "custom")
	}
	if in.Context == "" {
		in.Context = "default"
	}
	n := 0
	for _, t := range c.repo.statuses {
		if t.commit == id && t.context == in.Context {
			n++
		}
	}
	if n >= 1000 {
		return refusal(http.StatusUnprocessableEntity, "Validation Failed: this SHA and context has reached the maximum number of statuses.")
	}
	t := &status{id: c.s.id(), commit: id, state: in.State, context: in.Context, description: in.Description, author: c.login, at: c.s.stamp()}
	if in.TargetURL != nil {
		t.target = *in.TargetURL
	}
	c.repo.statuses = append(c.repo.statuses, t)
	return created(c.repo.showStatus(t))
}

// combined is failure if any context failed, pending if any waits or there is
// none, else success
// (docs.github.com/rest/commits/statuses#get-the-combined-status-for-a-specific-reference).
func combined(c *call) answer {
	id := c.repo.resolve(c.r.PathValue("ref"))
	if id == "" {
		return notFound
	}
	newest, names := map[string]*status{}, []string{}
	for _, t := range c.repo.statuses {
		if t.commit == id {
			if newest[t.context] == nil {
				names = append(names, t.context)
			}
			newest[t.context] = t
		}
	}
	state, list := "success", []object{}
	if len(names) == 0 {
		state = "pending"
	}
	for _, name := range names {
		t := newest[name]
		list = append(list, c.repo.showStatus(t))
		switch {
		case t.state == "failure" || t.state == "error":
			state = "failure"
		case t.state == "pending" && state == "success":
			state = "pending"
		}
	}
	return ok(object{
		"state": state, "statuses": list, "sha": id, "total_count": len(list), "repository": c.repo.show(c.grant),
		"commit_url": c.repo.url() + "/commits/" + id, "url": c.repo.url() + "/commits/" + id + "/status",
	})
}

// Label puts a label on an issue or a pull request.
func (r *Repo) Label(number int, names ...string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if i := r.issue(number); i != nil {
		for _, name := range names {
			r.label(strings.TrimSpace(name))
			i.labels = append(i.labels, name)
		}
	}
}
