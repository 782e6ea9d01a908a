package githubtest

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"
)

type page struct {
	id                      int64
	tag, name, body, author string
	draft, prerelease       bool
	latest                  bool
	at                      time.Time
}

type file struct {
	id   string
	body []byte
}

// Page is what tests see of a release.
type Page struct {
	Tag, Name, Body    string
	Prerelease, Latest bool
}

// Releases returns all releases, oldest first.
func (r *Repo) Releases() []Page {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	var all []Page
	for _, p := range r.releases {
		all = append(all, Page{Tag: p.tag, Name: p.name, Body: p.body, Prerelease: p.prerelease, Latest: p.latest})
	}
	return all
}

// Require makes status checks required on the default branch, by a ruleset.
func (r *Repo) Require(contexts ...string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.checks = append(r.checks, contexts...)
}

// File returns a file of the default branch, or nil.
func (r *Repo) File(name string) []byte {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.files[name].body
}

// SetFile writes a file of the default branch.
func (r *Repo) SetFile(name string, body []byte) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.files[name] = file{id: objectID("blob", string(body)), body: body}
	r.commit("change " + name)
}

func releaseRoutes() []route {
	const repo = "/repos/{owner}/{repo}"
	return []route{
		{"POST", repo + "/releases", contents(Write), createRelease},
		{"PATCH", repo + "/releases/{release_id}", contents(Write), changeRelease},
		{"GET", repo + "/releases/tags/{tag}", contents(Read), getRelease},
		{"GET", repo + "/releases/latest", contents(Read), latestRelease},
		{"GET", repo + "/contents/{path...}", contents(Read), getContents},
		{"PUT", repo + "/contents/{path...}", contents(Write), putContents},
	}
}

func createRelease(c *call) answer {
	var in struct {
		Name, Body        *string
		Tag               string `json:"tag_name"`
		Draft, Prerelease bool
		Latest            string `json:"make_latest"`
	}
	if !c.read(&in) || in.Tag == "" {
		return invalid("Release", "tag_name", "missing_field")
	}
	for _, p := range c.repo.releases {
		if p.tag == in.Tag && !p.draft {
			return invalid("Release", "tag_name", "already_exists")
		}
	}
	if _, exists := c.repo.refs["refs/tags/"+in.Tag]; !exists {
		// Without a tag of that name GitHub makes one at the default branch
		// (docs.github.com/rest/releases/releases#create-a-release, target_commitish).
		head, some := c.repo.refs["refs/heads/"+c.repo.branch]
		if !some {
			return refusal(http.StatusUnprocessableEntity, "Repository is empty.")
		}
		c.repo.refs["refs/tags/"+in.Tag] = ref{id: head.id, since: c.s.mark()}
	}
	p := &page{id: c.s.id(), tag: in.Tag, draft: in.Draft, prerelease: in.Prerelease, author: c.login, at: c.s.stamp()}
	if in.Name != nil {
		p.name = *in.Name
	}
	if in.Body != nil {
		p.body = *in.Body
	}
	if in.Latest != "false" && !in.Prerelease && !in.Draft {
		for _, other := range c.repo.releases {
			other.latest = false
		}
		p.latest = true
	}
	c.repo.releases = append(c.repo.releases, p)
	return created(c.repo.showPage(p))
}

func changeRelease(c *call) answer {
	var in struct {
		Name, Body        *string
		Draft, Prerelease *bool
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	for _, p := range c.repo.releases {
		if p.id != c.number("release_id") {
			continue
		}
		if in.Name != nil {
			p.name = *in.Name
		}
		if in.Body != nil {
			p.body = *in.Body
		}
		if in.Draft != nil {
			p.draft = *in.Draft
		}
		if in.Prerelease != nil {
			p.prerelease = *in.Prerelease
		}
		return ok(c.repo.showPage(p))
	}
	return notFound
}

// getRelease does not find drafts: they have no tag yet.
func getRelease(c *call) answer {
	for _, p := range c.repo.releases {
		if p.tag == c.r.PathValue("tag") && !p.draft {
			return ok(c.repo.showPage(p))
		}
	}
	return notFound
}

func latestRelease(c *call) answer {
	for _, p := range c.repo.releases {
		if p.latest {
			return ok(c.repo.showPage(p))
		}
	}
	return notFound
}

func (c *call) showFile(name string, f file) object {
	u := c.repo.url() + "/contents/" + name
	short := name[strings.LastIndexByte(name, '/')+1:]
	return object{
		"type": "file", "encoding": "base64", "size": len(f.body), "name": short, "path": name, "content": base64.StdEncoding.EncodeToString(f.body),
		"sha": f.id, "url": u, "git_url": u, "html_url": u, "download_url": u, "_links": object{"git": u, "html": u, "self": u},
	}
}

// putContents changes a file only for who names what it replaces
// (docs.github.com/rest/repos/contents#create-or-update-file-contents).
func putContents(c *call) answer {
	var in struct{ Message, Content, SHA, Branch string }
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	body, err := base64.StdEncoding.DecodeString(in.Content)
	if err != nil {
		return refusal(http.StatusUnprocessableEntity, "content is not valid Base64")
	}
	name := c.r.PathValue("path")
	old, exists := c.repo.files[name]
	switch {
	case in.Branch != "" && in.Branch != c.repo.branch:
		return refusal(http.StatusNotFound, "Branch "+in.Branch+" not found")
	case exists && in.SHA == "":
		return refusal(http.StatusUnprocessableEntity, "Invalid request.\n\n\"sha\" wasn't supplied.")
	case exists && in.SHA != old.id:
		return refusal(http.StatusConflict, name+" does not match "+in.SHA)
	}
	f := file{id: objectID("blob", string(body)), body: body}
	c.repo.files[name] = f
	id := c.repo.commit(in.Message)
	a := ok(object{"content": c.showFile(name, f), "commit": c.repo.showGitCommit(id)})
	if !exists {
		a.status = http.StatusCreated
	}
	return a
}

func ruleRoutes() []route {
	const repo = "/repos/{owner}/{repo}"
	return []route{
		{"GET", repo + "/rules/branches/{branch}", contents(Read), branchRules},
		{"GET", repo + "/rulesets", contents(Read), rulesets},
		{"GET", repo + "/branches/{branch}/protection", contents(Admin), func(*call) answer {
			return refusal(http.StatusNotFound, "Branch not protected")
		}},
	}
}

func branchRules(c *call) answer {
	rules := []object{}
	if len(c.repo.checks) > 0 && c.r.PathValue("branch") == c.repo.branch {
		checks := []object{}
		for _, name := range c.repo.checks {
			checks = append(checks, object{"context": name})
		}
		rules = append(rules, object{
			"type": "required_status_checks", "ruleset_source_type": "Repository", "ruleset_source": c.repo.owner + "/" + c.repo.name, "ruleset_id": 1,
			"parameters": object{"required_status_checks": checks, "strict_required_status_checks_policy": false},
		})
	}
	return ok(rules)
}

func rulesets(c *call) answer {
	sets := []object{}
	if len(c.repo.checks) > 0 {
		sets = append(sets, object{"id": 1, "name": "main", "target": "branch", "source_type": "Repository", "source": c.repo.owner + "/" + c.repo.name, "enforcement": "active"})
	}
	return ok(slices.Clip(sets))
}
