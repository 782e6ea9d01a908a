package githubtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What the API shows of things: everything that GitHub's description requires,
// little more. Names are those of the description.

// addresses sets NAME_url fields below base.
func addresses(o object, base string, names ...string) object {
	for _, name := range names {
		o[name+"_url"] = base + "/" + name
	}
	return o
}

func node(kind string, id int64) string { return kind + "_" + strconv.FormatInt(id, 36) }

func when(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// orNull shows a time that may not have come.
func orNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return when(t)
}

func (s *Server) showOwner(o *owner) object {
	full := s.showLogin(o.login)
	for name, value := range (object{
		"name": nil, "company": nil, "blog": "", "location": nil, "email": nil, "hireable": nil, "bio": nil,
		"user_view_type": "public", "public_repos": 1, "public_gists": 0, "followers": 0, "following": 0,
		"created_at": "2020-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z",
	}) {
		full[name] = value
	}
	return full
}

func (s *Server) showLogin(login string) object {
	id, kind := int64(1), "User"
	if o := s.owners[strings.ToLower(login)]; o != nil {
		id, kind = o.id, o.kind
	}
	if strings.HasSuffix(login, "[bot]") {
		kind = "Bot"
	}
	base := s.URL + "/users/" + strings.NewReplacer("[", "%5B", "]", "%5D").Replace(login)
	return addresses(object{
		"login": login, "id": id, "node_id": node("U", id), "avatar_url": s.URL + "/avatar", "gravatar_id": "",
		"url": base, "html_url": base, "type": kind, "site_admin": false,
	}, base, "followers", "following", "gists", "starred", "subscriptions", "organizations", "repos", "events", "received_events")
}

func (r *Repo) url() string { return r.s.URL + "/repos/" + r.owner + "/" + r.name }

func (r *Repo) show(g Grant) object {
	o := addresses(object{
		"id": r.id, "node_id": node("R", r.id), "name": r.name, "full_name": r.owner + "/" + r.name, "owner": r.s.showLogin(r.owner),
		"private": r.Private, "html_url": r.url(), "description": nil, "fork": false, "url": r.url(),
		"git_url": "git://127.0.0.1/" + r.name, "ssh_url": "git@127.0.0.1:" + r.name, "mirror_url": nil,
		"homepage": nil, "language": nil, "license": nil, "default_branch": r.branch, "visibility": "public",
		"forks_count": 0, "stargazers_count": 0, "watchers_count": 0, "size": 0, "open_issues_count": 0, "subscribers_count": 0, "network_count": 0,
		"forks": 0, "open_issues": 0, "watchers": 0,
		"has_issues": !r.NoIssues, "has_downloads": true, "has_projects": false, "has_wiki": false, "has_pages": false, "has_discussions": false,
		"archived": false, "disabled": false,
		"pushed_at": when(r.created), "created_at": when(r.created), "updated_at": when(r.created),
		"permissions": object{"admin": g.Contents >= Admin, "maintain": g.Contents >= Admin, "push": g.Contents >= Write, "triage": g.Contents >= Write, "pull": true},
	}, r.url(), "archive", "assignees", "blobs", "branches", "collaborators", "comments", "commits", "compare", "contents", "contributors",
		"deployments", "downloads", "events", "forks", "git_commits", "git_refs", "git_tags", "issue_comment", "issue_events", "issues",
		"keys", "labels", "languages", "merges", "milestones", "notifications", "pulls", "releases", "stargazers", "statuses",
		"subscribers", "subscription", "tags", "teams", "trees", "clone", "hooks", "svn")
	if r.Private {
		o["visibility"] = "private"
	}
	return o
}

func (r *Repo) showTag(t *tagObject) object {
	return object{
		"node_id": node("TA", r.id), "tag": t.name, "sha": t.id, "url": r.url() + "/git/tags/" + t.id, "message": t.message,
		"tagger": object{"name": t.tagger.Name, "email": t.tagger.Email, "date": when(t.tagger.Date)},
		"object": object{"sha": t.object, "type": t.kind, "url": r.url() + "/git/" + t.kind + "s/" + t.object},
	}
}

func (r *Repo) showRef(name string) object {
	id, kind := r.refs[name].id, "commit"
	if r.tags[id] != nil {
		kind = "tag"
	}
	return object{
		"ref": name, "node_id": node("REF", r.id), "url": r.url() + "/git/" + name,
		"object": object{"sha": id, "type": kind, "url": r.url() + "/git/" + kind + "s/" + id},
	}
}

func (r *Repo) showParents(id string) []object {
	parents := []object{}
	for _, p := range r.commits[id].parents {
		parents = append(parents, object{"sha": p, "url": r.url() + "/commits/" + p, "html_url": r.url() + "/commit/" + p})
	}
	return parents
}

func (r *Repo) showGitCommit(id string) object {
	who := object{"name": "Somebody", "email": "somebody@users.noreply.github.com", "date": when(r.commits[id].at)}
	return object{
		"sha": id, "node_id": node("C", r.id), "url": r.url() + "/git/commits/" + id, "html_url": r.url() + "/commit/" + id,
		"author": who, "committer": who, "message": r.commits[id].message, "parents": r.showParents(id),
		"tree":         object{"sha": id, "url": r.url() + "/git/trees/" + id},
		"verification": object{"verified": false, "reason": "unsigned", "signature": nil, "payload": nil, "verified_at": nil},
	}
}

func (r *Repo) showCommit(id string) object {
	inner := r.showGitCommit(id)
	return object{
		"sha": id, "node_id": node("C", r.id), "url": r.url() + "/commits/" + id, "html_url": r.url() + "/commit/" + id,
		"comments_url": r.url() + "/commits/" + id + "/comments", "author": nil, "committer": nil, "parents": r.showParents(id),
		"commit": object{
			"url": r.url() + "/git/commits/" + id, "message": inner["message"], "author": inner["author"], "committer": inner["committer"],
			"comment_count": 0, "tree": inner["tree"], "verification": inner["verification"],
		},
	}
}

func (r *Repo) showLabel(l *label) object {
	return object{
		"id": l.id, "node_id": node("LA", l.id), "url": r.url() + "/labels/" + strings.ReplaceAll(l.name, " ", "%20"), "name": l.name,
		"description": nil, "color": l.color, "default": false,
	}
}

func (r *Repo) showLabels(names []string) []object {
	labels := []object{}
	for _, name := range names {
		labels = append(labels, r.showLabel(r.label(name)))
	}
	return labels
}

func (r *Repo) showIssue(i *issue) object {
	base := fmt.Sprintf("%s/issues/%d", r.url(), i.number)
	o := object{
		"id": i.id, "node_id": node("I", i.id), "url": base, "repository_url": r.url(), "labels_url": base + "/labels{/name}",
		"comments_url": base + "/comments", "events_url": base + "/events", "html_url": fmt.Sprintf("%s/%s/%s/issues/%d", r.s.URL, r.owner, r.name, i.number),
		"number": i.number, "state": i.state, "state_reason": nil, "title": i.title, "body": i.body, "user": r.s.showLogin(i.author),
		"labels": r.showLabels(i.labels), "assignee": nil, "assignees": []object{}, "milestone": nil, "locked": false,
		"comments": len(r.commentsOf(i.number)), "closed_at": orNull(i.closed), "created_at": when(i.created), "updated_at": when(i.created),
		"author_association": "MEMBER",
	}
	if i.pull {
		u := fmt.Sprintf("%s/pulls/%d", r.url(), i.number)
		o["pull_request"] = object{"url": u, "html_url": u, "diff_url": u + ".diff", "patch_url": u + ".patch"}
	}
	return o
}

func (r *Repo) showComment(c *comment) object {
	base := fmt.Sprintf("%s/issues/comments/%d", r.url(), c.id)
	return object{
		"id": c.id, "node_id": node("IC", c.id), "url": base, "html_url": fmt.Sprintf("%s/%s/%s/issues/%d#issuecomment-%d", r.s.URL, r.owner, r.name, c.issue, c.id),
		"body": c.body, "user": r.s.showLogin(c.author), "created_at": when(c.created), "updated_at": when(c.updated),
		"issue_url": fmt.Sprintf("%s/issues/%d", r.url(), c.issue), "author_association": "NONE",
	}
}

func (r *Repo) showPull(p *pull) object {
	base := fmt.Sprintf("%s/pulls/%d", r.url(), p.Number)
	side := func(branch, sha string) object {
		return object{"label": r.owner + ":" + branch, "ref": branch, "sha": sha, "repo": r.show(All()), "user": r.s.showLogin(r.owner)}
	}
	links := object{}
	for _, name := range []string{"comments", "commits", "statuses", "html", "issue", "review_comments", "review_comment", "self"} {
		links[name] = object{"href": base + "/" + name}
	}
	state, merge, mergedAt := "open", any(nil), any(nil)
	if !p.Merged.IsZero() {
		state, merge, mergedAt = "closed", p.MergeCommit, when(p.Merged)
	} else if p.Closed {
		state = "closed"
	}
	return addresses(object{
		"url": base, "id": p.id, "node_id": node("PR", p.id), "html_url": fmt.Sprintf("%s/%s/%s/pull/%d", r.s.URL, r.owner, r.name, p.Number),
		"number": p.Number, "state": state, "locked": false, "title": p.Title, "user": r.s.showLogin(p.Author), "body": p.Body,
		"labels": r.showPullLabels(p.Labels), "milestone": nil, "created_at": when(p.created), "updated_at": when(p.created),
		"closed_at": mergedAt, "merged_at": mergedAt, "merge_commit_sha": merge, "assignee": nil,
		"head": side("work", p.Head), "base": side(r.branch, p.Base), "_links": links, "author_association": "CONTRIBUTOR", "auto_merge": nil, "draft": false,
	}, base, "diff", "patch", "issue", "commits", "review_comments", "review_comment", "comments", "statuses")
}

// showPullLabels differs from showLabels: here a description is never null.
func (r *Repo) showPullLabels(names []string) []object {
	labels := r.showLabels(names)
	for _, l := range labels {
		l["description"] = ""
	}
	return labels
}

func (r *Repo) showReview(p *pull, v *review) object {
	base := fmt.Sprintf("%s/pulls/%d", r.url(), p.Number)
	return object{
		"id": v.id, "node_id": node("PRR", v.id), "user": r.s.showLogin(v.Author), "body": v.Body, "state": v.State,
		"html_url": fmt.Sprintf("%s#pullrequestreview-%d", base, v.id), "pull_request_url": base, "commit_id": v.Commit,
		"_links":             object{"html": object{"href": base}, "pull_request": object{"href": base}},
		"author_association": "MEMBER", "submitted_at": when(v.at),
	}
}

func (r *Repo) showStatus(t *status) object {
	return object{
		"url": r.url() + "/statuses/" + t.commit, "avatar_url": nil, "id": t.id, "node_id": node("SC", t.id), "state": t.state,
		"description": t.description, "target_url": t.target, "context": t.context, "created_at": when(t.at), "updated_at": when(t.at),
		"creator": r.s.showLogin(t.author),
	}
}

func (r *Repo) showPage(p *page) object {
	base := fmt.Sprintf("%s/releases/%d", r.url(), p.id)
	return object{
		"url": base, "html_url": r.s.URL + "/" + r.owner + "/" + r.name + "/releases/tag/" + p.tag, "assets_url": base + "/assets",
		"upload_url": base + "/assets{?name,label}", "tarball_url": nil, "zipball_url": nil, "id": p.id, "node_id": node("RE", p.id),
		"tag_name": p.tag, "target_commitish": r.branch, "name": p.name, "body": p.body, "draft": p.draft, "prerelease": p.prerelease,
		"created_at": when(p.at), "published_at": when(p.at), "author": r.s.showLogin(p.author), "assets": []object{},
	}
}
