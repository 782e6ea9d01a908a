package githubtest

import (
	"crypto/sha1" //nolint:gosec // git's object ids
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

// Repo is a repository.
type Repo struct {
	Private  bool // set before the first call
	NoIssues bool

	s           *Server
	id          int64
	owner, name string
	created     time.Time
	branch      string
	commits     map[string]*commit
	tags        map[string]*tagObject
	refs        map[string]ref
	locked      []string // patterns of refs that a ruleset keeps from being created
	files       map[string]file
	trees       map[string]map[string]file // by id of the tree; a commit's own has the commit's

	numbers  int // of issues and pull requests
	issues   []*issue
	comments []*comment
	labels   []*label
	pulls    []*pull
	statuses []*status
	releases []*page
	checks   []string // required status checks of the default branch
}

type commit struct {
	message string
	parents []string
	at      time.Time
}

type tagObject struct {
	id, name, object, kind, message string
	tagger                          person
}

type person struct {
	Name  string    `json:"name"`
	Email string    `json:"email"`
	Date  time.Time `json:"date"`
}

type ref struct {
	id    string
	since lagging
}

// Repo returns the repository OWNER/NAME, an empty one at first.
func (s *Server) Repo(name string) *Repo {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(name)
	if s.repos[key] == nil {
		owner, short, found := strings.Cut(name, "/")
		if !found {
			s.t.Fatalf("expected a repository OWNER/NAME, found %q", name)
		}
		s.owner(owner)
		s.repos[key] = &Repo{
			s: s, id: s.id(), owner: owner, name: short, created: s.stamp(), branch: "main",
			commits: map[string]*commit{}, tags: map[string]*tagObject{}, refs: map[string]ref{}, files: map[string]file{}, trees: map[string]map[string]file{},
		}
	}
	return s.repos[key]
}

// Commit adds a commit upon the default branch's head, moves that branch to it,
// and returns its id.
func (r *Repo) Commit(message string) string {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.commit(message)
}

func (r *Repo) commit(message string) string {
	head := "refs/heads/" + r.branch
	var parents []string
	if at, found := r.refs[head]; found {
		parents = []string{at.id}
	}
	id := objectID("commit", fmt.Sprintf("parents %v\n\n%s\n%d\n", parents, message, r.s.id()))
	r.commits[id] = &commit{message: message, parents: parents, at: r.s.stamp()}
	r.trees[id] = maps.Clone(r.files)
	r.refs[head] = ref{id: id, since: r.s.mark()}
	return id
}

// AddCommit adds a commit by its id, on no branch.
func (r *Repo) AddCommit(id string, parents ...string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.commits[id] = &commit{message: "commit " + id[:7], parents: parents, at: r.s.stamp()}
}

// SetRef points a ref at a commit, as `git push` does: a lightweight tag, a branch.
func (r *Repo) SetRef(name, id string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.refs[name] = ref{id: id, since: r.s.mark()}
}

// Refs returns all refs and the objects that they point at.
func (r *Repo) Refs() map[string]string {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	all := map[string]string{}
	for name, at := range r.refs {
		all[name] = at.id
	}
	return all
}

// Message returns the message of the tag object that a ref points at.
func (r *Repo) Message(ref string) string {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if t := r.tags[r.refs[ref].id]; t != nil {
		return t.message
	}
	return ""
}

// Lock keeps refs that a pattern matches from being created, as a ruleset without
// a bypass for the caller does.
func (r *Repo) Lock(pattern string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.locked = append(r.locked, pattern)
}

func objectID(kind, content string) string {
	sum := sha1.Sum(fmt.Appendf(nil, "%s %d\x00%s", kind, len(content), content)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}

func gitRoutes() []route {
	const repo = "/repos/{owner}/{repo}"
	return []route{
		{"GET", repo, need{}, func(c *call) answer { return ok(c.repo.show(c.grant)) }},
		{"GET", "/users/{username}", need{}, getUser},
		{"POST", repo + "/git/tags", contents(Write), createTag},
		{"GET", repo + "/git/tags/{tag_sha}", contents(Read), getTag},
		{"POST", repo + "/git/refs", contents(Write), createRef},
		{"GET", repo + "/git/ref/{ref...}", contents(Read), getRef},
		{"GET", repo + "/git/matching-refs/{ref...}", contents(Read), matchingRefs},
		{"GET", repo + "/git/commits/{commit_sha}", contents(Read), getCommit},
		{"GET", repo + "/compare/{basehead}", contents(Read), compare},
	}
}

func getUser(c *call) answer {
	o := c.s.owners[strings.ToLower(c.r.PathValue("username"))]
	if o == nil {
		return notFound
	}
	return ok(c.s.showOwner(o))
}

// empty: everything about git answers 409 in a repository without a commit
// (observed).
func (r *Repo) empty() *answer {
	if len(r.commits) > 0 {
		return nil
	}
	a := refusal(http.StatusConflict, "Git Repository is empty.")
	return &a
}

func createTag(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	var in struct {
		Tag, Message, Object, Type string
		Tagger                     *person
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	if c.repo.commits[in.Object] == nil {
		return refusal(http.StatusUnprocessableEntity, "Could not verify object") // observed
	}
	if in.Tagger == nil {
		in.Tagger = &person{Name: c.login, Email: c.login + "@users.noreply.github.com"}
	}
	if in.Tagger.Date.IsZero() {
		in.Tagger.Date = c.s.stamp()
	}
	in.Tagger.Date = in.Tagger.Date.UTC().Truncate(time.Second)
	t := &tagObject{name: in.Tag, object: in.Object, kind: in.Type, message: in.Message, tagger: *in.Tagger}
	// The id is git's own: the same content twice is one object.
	t.id = objectID("tag", fmt.Sprintf("object %s\ntype %s\ntag %s\ntagger %s <%s> %d +0000\n\n%s",
		t.object, t.kind, t.name, t.tagger.Name, t.tagger.Email, t.tagger.Date.Unix(), t.message))
	c.repo.tags[t.id] = t
	return created(c.repo.showTag(t))
}

func getTag(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	t := c.repo.tags[c.r.PathValue("tag_sha")]
	if t == nil {
		return notFound // a commit's id, too: this route knows tag objects alone
	}
	return ok(c.repo.showTag(t))
}

func createRef(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	var in struct{ Ref, SHA string }
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	// docs.github.com/rest/git/refs#create-a-reference: begins with refs, at least
	// two slashes.
	if !strings.HasPrefix(in.Ref, "refs/") || strings.Count(in.Ref, "/") < 2 || path.Clean(in.Ref) != in.Ref {
		return refusal(http.StatusUnprocessableEntity, "Reference name must start with 'refs/' and have two slashes")
	}
	if c.repo.commits[in.SHA] == nil && c.repo.tags[in.SHA] == nil {
		return refusal(http.StatusUnprocessableEntity, "Object does not exist") // observed
	}
	for _, pattern := range c.repo.locked {
		if match(pattern, in.Ref) {
			return refusal(http.StatusUnprocessableEntity, "Repository rule violations found\n\nCannot create ref due to creations being restricted.")
		}
	}
	if _, exists := c.repo.refs[in.Ref]; exists {
		return refusal(http.StatusUnprocessableEntity, "Reference already exists")
	}
	for name := range c.repo.refs { // git keeps refs as files in folders
		if strings.HasPrefix(name, in.Ref+"/") || strings.HasPrefix(in.Ref, name+"/") {
			return refusal(http.StatusUnprocessableEntity, "Reference update failed")
		}
	}
	c.repo.refs[in.Ref] = ref{id: in.SHA, since: c.s.mark()}
	return created(c.repo.showRef(in.Ref))
}

func getRef(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	name := "refs/" + c.r.PathValue("ref")
	if _, exists := c.repo.refs[name]; !exists {
		return notFound
	}
	return ok(c.repo.showRef(name))
}

func matchingRefs(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	c.s.listed()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.repo.refs)) {
		if strings.HasPrefix(name, "refs/"+c.r.PathValue("ref")) && c.s.shows(c.repo.refs[name].since) {
			names = append(names, name)
		}
	}
	if c.s.pageRefs {
		return pages(c, names, c.repo.showRef)
	}
	all := make([]object, 0, len(names))
	for _, name := range names {
		all = append(all, c.repo.showRef(name))
	}
	return ok(all)
}

func getCommit(c *call) answer {
	if a := c.repo.empty(); a != nil {
		return *a
	}
	id := c.r.PathValue("commit_sha")
	if c.repo.commits[id] == nil {
		return notFound
	}
	return ok(c.repo.showGitCommit(id))
}

// resolve finds a commit by id, branch or tag.
func (r *Repo) resolve(name string) string {
	for _, full := range []string{"refs/heads/" + name, "refs/tags/" + name} {
		if at, found := r.refs[full]; found {
			name = at.id
			break
		}
	}
	if t := r.tags[name]; t != nil {
		name = t.object
	}
	if r.commits[name] == nil {
		return ""
	}
	return name
}

// history returns a commit and all before it.
func (r *Repo) history(id string) map[string]bool {
	seen, next := map[string]bool{}, []string{id}
	for len(next) > 0 {
		id, next = next[0], next[1:]
		if seen[id] || r.commits[id] == nil {
			continue
		}
		seen[id] = true
		next = append(next, r.commits[id].parents...)
	}
	return seen
}

func compare(c *call) answer {
	base, head, _ := strings.Cut(c.r.PathValue("basehead"), "...")
	from, to := c.repo.resolve(base), c.repo.resolve(head)
	if from == "" || to == "" {
		return notFound
	}
	before, after := c.repo.history(from), c.repo.history(to)
	var ahead, behind []string
	common := ""
	for id := range after {
		if !before[id] {
			ahead = append(ahead, id)
		} else if common == "" || c.repo.history(id)[common] {
			common = id
		}
	}
	for id := range before {
		if !after[id] {
			behind = append(behind, id)
		}
	}
	if common == "" {
		return refusal(http.StatusNotFound, fmt.Sprintf("No common ancestor between %s and %s.", base, head)) // observed
	}
	state := "diverged"
	switch {
	case len(ahead) == 0 && len(behind) == 0:
		state = "identical"
	case len(behind) == 0:
		state = "ahead"
	case len(ahead) == 0:
		state = "behind"
	}
	slices.Sort(ahead)
	shown := pages(c, ahead, c.repo.showCommit)
	u := c.s.URL + c.r.URL.EscapedPath()
	shown.body = object{
		"url": u, "html_url": u, "permalink_url": u, "diff_url": u + ".diff", "patch_url": u + ".patch",
		"base_commit": c.repo.showCommit(from), "merge_base_commit": c.repo.showCommit(common),
		"status": state, "ahead_by": len(ahead), "behind_by": len(behind), "total_commits": len(ahead),
		"commits": shown.body, "files": []object{},
	}
	return shown
}
