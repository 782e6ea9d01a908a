package githubtest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// The git database beyond refs and tags: trees, commits made of them, branches
// that are moved. Of a tree only its files are kept, flat.

func treeRoutes() []route {
	const repo = "/repos/{owner}/{repo}"
	return []route{
		{"POST", repo + "/git/trees", contents(Write), createTree},
		{"POST", repo + "/git/commits", contents(Write), createCommit},
		{"PATCH", repo + "/git/refs/{ref...}", contents(Write), updateRef},
	}
}

// getContents answers a file, or a folder's list (docs.github.com/rest/repos/contents).
func getContents(c *call) answer {
	name, files := c.r.PathValue("path"), c.repo.files
	if at := c.r.URL.Query().Get("ref"); at != "" {
		id := c.repo.resolve(at)
		if id == "" {
			return refusal(http.StatusNotFound, "No commit found for the ref "+at)
		}
		files = c.repo.trees[id]
	}
	if f, found := files[name]; found {
		return ok(c.showFile(name, f))
	}
	list, seen := []object{}, map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		rest, below := strings.CutPrefix(path, name+"/")
		first, _, deeper := strings.Cut(rest, "/")
		if !below || seen[first] {
			continue
		}
		seen[first] = true
		o := c.showFile(name+"/"+first, files[path])
		delete(o, "content")
		delete(o, "encoding")
		if deeper {
			o["type"], o["size"] = "dir", 0
		}
		list = append(list, o)
	}
	if len(list) == 0 {
		return notFound
	}
	return ok(list)
}

func createTree(c *call) answer {
	var in struct {
		Base string `json:"base_tree"`
		Tree []map[string]any
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	files := maps.Clone(c.repo.trees[in.Base])
	if files == nil {
		return refusal(http.StatusUnprocessableEntity, "base_tree is not a valid tree oid")
	}
	shown := []object{}
	for _, e := range in.Tree {
		path, _ := e["path"].(string)
		text, given := e["content"].(string)
		if sha, named := e["sha"]; named && sha == nil { // null deletes; a path that is not there is an error (observed)
			if _, exists := files[path]; !exists {
				return refusal(http.StatusUnprocessableEntity, "GitRPC::BadObjectState")
			}
			delete(files, path)
			continue
		}
		if !given {
			return refusal(http.StatusUnprocessableEntity, "tree.sha or tree.content is missing")
		}
		files[path] = file{id: objectID("blob", text), body: []byte(text)}
		shown = append(shown, object{"path": path, "mode": "100644", "type": "blob", "sha": files[path].id})
	}
	id := objectID("tree", fmt.Sprint(c.s.id()))
	c.repo.trees[id] = files
	return created(object{"sha": id, "url": c.repo.url() + "/git/trees/" + id, "truncated": false, "tree": shown})
}

// createCommit makes a commit that no ref points at.
func createCommit(c *call) answer {
	var in struct {
		Message, Tree string
		Parents       []string
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	files := c.repo.trees[in.Tree]
	if files == nil {
		return refusal(http.StatusUnprocessableEntity, "Tree SHA does not exist")
	}
	for _, p := range in.Parents {
		if c.repo.commits[p] == nil {
			return refusal(http.StatusUnprocessableEntity, "Parent SHA does not exist or is not a commit object")
		}
	}
	id := objectID("commit", fmt.Sprintf("%v %d %s", in.Parents, c.s.id(), in.Message))
	c.repo.commits[id] = &commit{message: in.Message, parents: in.Parents, at: c.s.stamp()}
	c.repo.trees[id] = files
	return created(c.repo.showGitCommit(id))
}

// updateRef moves a branch: without force to a commit that has the present one in
// its history (docs.github.com/rest/git/refs#update-a-reference).
func updateRef(c *call) answer {
	var in struct {
		SHA   string
		Force bool
	}
	if !c.read(&in) {
		return refusal(http.StatusBadRequest, "Problems parsing JSON")
	}
	name := "refs/" + c.r.PathValue("ref")
	at, exists := c.repo.refs[name]
	switch {
	case !exists:
		return refusal(http.StatusUnprocessableEntity, "Reference does not exist")
	case c.repo.commits[in.SHA] == nil:
		return refusal(http.StatusUnprocessableEntity, "Object does not exist")
	case !in.Force && !c.repo.history(in.SHA)[at.id]:
		return refusal(http.StatusUnprocessableEntity, "Update is not a fast forward")
	}
	for _, pattern := range c.repo.locked {
		if match(pattern, name) {
			return refusal(http.StatusUnprocessableEntity, "Repository rule violations found\n\nChanges must be made through a pull request.")
		}
	}
	c.repo.refs[name] = ref{id: in.SHA, since: c.s.mark()}
	if name == "refs/heads/"+c.repo.branch {
		c.repo.files = maps.Clone(c.repo.trees[in.SHA])
	}
	return ok(c.repo.showRef(name))
}
