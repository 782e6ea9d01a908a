package githubtest

import (
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// textLimit is what an issue's or a comment's text may have, in characters
// (observed: "body is too long (maximum is 65536 characters)").
const textLimit = 65536

type issue struct {
	id                         int64
	number                     int
	title, body, state, author string
	labels                     []string
	created, closed            time.Time
	pull                       bool
	since                      lagging
}

type comment struct {
	id               int64
	issue            int
	body, author     string
	created, updated time.Time
	since            lagging
}

type label struct {
	id          int64
	name, color string
}

// Issue is what tests see of an issue.
type Issue struct {
	Number      int
	Title, Body string
	State       string // open or closed
	Labels      []string
	Comments    []string
}

// Issues returns all issues, without pull requests.
func (r *Repo) Issues() []Issue {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	var all []Issue
	for _, i := range r.issues {
		if i.pull {
			continue
		}
		one := Issue{Number: i.number, Title: i.title, Body: i.body, State: i.state, Labels: slices.Clone(i.labels)}
		for _, c := range r.commentsOf(i.number) {
			one.Comments = append(one.Comments, c.body)
		}
		all = append(all, one)
	}
	return all
}

// CloseIssue closes an issue, as a person does.
func (r *Repo) CloseIssue(number int) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if i := r.issue(number); i != nil {
		i.state, i.closed = "closed", r.s.stamp()
	}
}

func (r *Repo) issue(number int) *issue {
	for _, i := range r.issues {
		if i.number == number {
			return i
		}
	}
	return nil
}

func (r *Repo) commentsOf(number int) []*comment {
	var of []*comment
	for _, c := range r.comments {
		if c.issue == number {
			of = append(of, c)
		}
	}
	return of
}

// label returns a label of the repository, which GitHub makes when an issue
// names one that is not there (observed).
func (r *Repo) label(name string) *label {
	for _, l := range r.labels {
		if strings.EqualFold(l.name, name) {
			return l
		}
	}
	l := &label{id: r.s.id(), name: name, color: "ededed"}
	r.labels = append(r.labels, l)
	return l
}

func (r *Repo) newIssue(title, body, author string, labels []string) *issue {
	r.numbers++
	i := &issue{
		id: r.s.id(), number: r.numbers, title: title, body: body, state: "open", author: author,
		labels: labels, created: r.s.stamp(), since: r.s.mark(),
	}
	r.issues = append(r.issues, i)
	return i
}

func issueRoutes() []route {
	const one = "/repos/{owner}/{repo}/issues"
	return []route{
		{"GET", one, issues(Read), listIssues},
		{"POST", one, issues(Write), createIssue},
		{"GET", one + "/{issue_number}", issues(Read), withIssue(func(c *call, i *issue) answer { return ok(c.repo.showIssue(i)) })},
		{"PATCH", one + "/{issue_number}", issues(Write), withIssue(changeIssue)},
		{"GET", one + "/{issue_number}/comments", issues(Read), withIssue(listComments)},
		{"POST", one + "/{issue_number}/comments", issues(Write), withIssue(createComment)},
		{"PATCH", one + "/comments/{comment_id}", issues(Write), changeComment},
		{"POST", one + "/{issue_number}/labels", issues(Write), withIssue(addLabels)},
		{"DELETE", one + "/{issue_number}/labels/{name}", issues(Write), withIssue(removeLabel)},
		{"GET", "/repos/{owner}/{repo}/labels", issues(Read), func(c *call) answer { return pages(c, c.repo.labels, c.repo.showLabel) }},
		{"POST", "/repos/{owner}/{repo}/labels", issues(Write), createLabel},
	}
}

// off answers 410 where issues are switched off.
func (r *Repo) off() *answer {
	if !r.NoIssues {
		return nil
	}
	a := refusal(http.StatusGone, "Issues has been disabled in this repository.")
	return &a
}

func withIssue(handle func(*call, *issue) answer) func(*call) answer {
	return func(c *call) answer {
		if a := c.repo.off(); a != nil {
			return *a
		}
		i := c.repo.issue(int(c.number("issue_number")))
		if i == nil {
			return notFound
		}
		return handle(c, i)
	}
}

// listIssues also lists pull requests
// (docs.github.com/rest/issues/issues#list-repository-issues).
func listIssues(c *call) answer {
	if a := c.repo.off(); a != nil {
		return *a
	}
	c.s.listed()
	q := c.r.URL.Query()
	state := q.Get("state")
	if state == "" {
		state = "open"
	}
	var found []*issue
	for _, i := range c.repo.issues {
		if state != "all" && i.state != state || !c.s.shows(i.since) {
			continue
		}
		if names := q.Get("labels"); names != "" && !hasAll(i.labels, strings.Split(names, ",")) {
			continue
		}
		found = append(found, i)
	}
	if q.Get("direction") != "asc" {
		slices.Reverse(found) // newest first
	}
	return pages(c, found, c.repo.showIssue)
}

func hasAll(have, want []string) bool {
	for _, name := range want {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h, name) }) {
			return false
		}
	}
	return true
}

// tooLong answers a text beyond the limit.
func tooLong(resource, text string) *answer {
	if utf8.RuneCountInString(text) <= textLimit {
		return nil
	}
	a := refusal(http.StatusUnprocessableEntity, "Validation Failed",
		object{"resource": resource, "field": "body", "code": "custom", "message": "body is too long (maximum is 65536 characters)"})
	return &a
}

func createIssue(c *call) answer {
	if a := c.repo.off(); a != nil {
		return *a
	}
	var in struct {
		Title, Body string
		Labels      []string
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	if in.Title == "" {
		return invalid("Issue", "title", "missing_field")
	}
	if a := tooLong("Issue", in.Body); a != nil {
		return *a
	}
	// Who may not push cannot set labels: they are dropped without a word
	// (docs.github.com/rest/issues/issues#create-an-issue).
	if c.grant.Contents < Read && c.grant.Issues < Write {
		in.Labels = nil
	}
	for _, name := range in.Labels {
		c.repo.label(name)
	}
	return created(c.repo.showIssue(c.repo.newIssue(in.Title, in.Body, c.login, in.Labels)))
}

func changeIssue(c *call, i *issue) answer {
	var in struct {
		Title, Body, State *string
		Labels             []string
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	if in.Title != nil {
		i.title = *in.Title
	}
	if in.Body != nil {
		if a := tooLong("Issue", *in.Body); a != nil {
			return *a
		}
		i.body = *in.Body
	}
	if in.Labels != nil {
		i.labels = in.Labels
	}
	if in.State != nil {
		i.state, i.closed = *in.State, time.Time{}
		if i.state == "closed" {
			i.closed = c.s.stamp()
		}
	}
	return ok(c.repo.showIssue(i))
}

func listComments(c *call, i *issue) answer {
	c.s.listed()
	var found []*comment
	for _, one := range c.repo.commentsOf(i.number) {
		if c.s.shows(one.since) {
			found = append(found, one)
		}
	}
	return pages(c, found, c.repo.showComment)
}

func createComment(c *call, i *issue) answer {
	var in struct{ Body string }
	if !c.read(&in) || in.Body == "" {
		return invalid("IssueComment", "body", "missing_field")
	}
	if a := tooLong("IssueComment", in.Body); a != nil {
		return *a
	}
	one := &comment{id: c.s.id(), issue: i.number, body: in.Body, author: c.login, created: c.s.stamp(), updated: c.s.stamp(), since: c.s.mark()}
	c.repo.comments = append(c.repo.comments, one)
	return created(c.repo.showComment(one))
}

func changeComment(c *call) answer {
	var in struct{ Body string }
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	for _, one := range c.repo.comments {
		if one.id == c.number("comment_id") {
			if a := tooLong("IssueComment", in.Body); a != nil {
				return *a
			}
			one.body, one.updated = in.Body, c.s.stamp()
			return ok(c.repo.showComment(one))
		}
	}
	return notFound
}

func addLabels(c *call, i *issue) answer {
	var in struct{ Labels []string }
	if !c.read(&in) && !c.read(&in.Labels) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	for _, name := range in.Labels {
		c.repo.label(name)
		if !hasAll(i.labels, []string{name}) {
			i.labels = append(i.labels, name)
		}
	}
	return ok(c.repo.showLabels(i.labels))
}

func removeLabel(c *call, i *issue) answer {
	name := c.r.PathValue("name")
	if !hasAll(i.labels, []string{name}) {
		return refusal(http.StatusNotFound, "Label does not exist")
	}
	i.labels = slices.DeleteFunc(i.labels, func(l string) bool { return strings.EqualFold(l, name) })
	return ok(c.repo.showLabels(i.labels))
}

func createLabel(c *call) answer {
	var in struct{ Name, Color string }
	if !c.read(&in) || in.Name == "" {
		return invalid("Label", "name", "missing_field")
	}
	for _, l := range c.repo.labels {
		if strings.EqualFold(l.name, in.Name) {
			return invalid("Label", "name", "already_exists")
		}
	}
	l := c.repo.label(in.Name)
	if in.Color != "" {
		l.color = in.Color
	}
	return created(c.repo.showLabel(l))
}
