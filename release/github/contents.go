package github

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	gh "github.com/google/go-github/v62/github"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

var _ release.Committer = (*Client)(nil)

// moves is how often a branch may move away before Commit gives up: each time
// somebody else's commit went through.
const moves = 20

// Commit implements release.Committer by the git database API: a tree upon the
// head's, a commit with the head as its parent, and the branch moved to it only if
// that is a fast-forward (docs.github.com/rest/git/refs#update-a-reference).
func (c *Client) Commit(ctx context.Context, branch, message string, edit func(context.Context, release.FileReader) (map[string][]byte, error)) (string, error) {
	ref := "refs/heads/" + branch
	made := ""
	trouble := 0
	for move := 1; ; move++ {
		head, err := c.head(ctx, ref)
		if err != nil {
			return "", err
		}
		if head == made { // the reply to an earlier attempt was lost
			return made, nil
		}
		edits, err := edit(ctx, &tree{c: c, commit: head})
		if err != nil || len(edits) == 0 {
			return "", err
		}
		made, err = c.commit(ctx, head, message, edits)
		if err == nil {
			_, err = c.do(ctx, http.MethodPatch, c.path("git/%s", escape(ref)), map[string]any{"sha": made, "force": false}, nil)
			if err == nil {
				return made, nil
			}
		}
		text, refused := says(err, http.StatusUnprocessableEntity)
		moved := refused && strings.Contains(strings.ToLower(text), "fast forward")
		if err = c.failBranch(err, branch); !moved && !errors.Is(err, release.ErrUncertain) {
			return "", err
		}
		if !moved {
			trouble++
		}
		if move == moves || trouble == attempts {
			return "", err
		}
		if err := c.sleep(ctx, backoff<<min(move-1, 4)); err != nil {
			return "", err
		}
	}
}

// failBranch says why a branch could not be changed.
func (c *Client) failBranch(err error, branch string) error {
	for _, status := range []int{http.StatusUnprocessableEntity, http.StatusForbidden} {
		text, refused := says(err, status)
		if text = strings.ToLower(text); refused && (strings.Contains(text, "rule violation") || strings.Contains(text, "protected branch")) {
			return problem.New(problem.Refused, fmt.Sprintf("expected GitHub to let this bot change %s of %s, found a rule against it: %s", branch, c.Repo(), firstWords(err)),
				"call with the token of somebody in the rule's bypass list (Settings, Rules, Rulesets; docs/release.md, Notes), or run the verb with --write in a branch of your own and open a pull request")
		}
	}
	return c.fail(err, "change the branch "+branch, WriteContents)
}

func firstWords(err error) string {
	answer := (*gh.ErrorResponse)(nil)
	if errors.As(err, &answer) {
		return messages(answer)
	}
	return err.Error()
}

func (c *Client) head(ctx context.Context, ref string) (string, error) {
	found, _, err := c.gh.Git.GetRef(ctx, c.owner, c.repo, ref)
	if err == nil {
		return found.GetObject().GetSHA(), nil
	}
	if _, gone := says(err, http.StatusNotFound); gone {
		if e := c.visible(ctx); e != nil {
			return "", e
		}
		return "", absent(fmt.Sprintf("expected the branch %s in %s, found none", strings.TrimPrefix(ref, "refs/heads/"), c.Repo()), "name the branch: --branch BRANCH")
	}
	return "", c.fail(err, "show "+ref, ReadContents)
}

// commit writes a commit that no branch points at yet.
func (c *Client) commit(ctx context.Context, parent, message string, edits map[string][]byte) (string, error) {
	var base struct {
		Tree struct{ SHA string } `json:"tree"`
	}
	if _, err := c.do(ctx, http.MethodGet, c.path("git/commits/%s", parent), nil, &base); err != nil {
		return "", err
	}
	var entries []map[string]any
	for _, path := range slices.Sorted(maps.Keys(edits)) {
		e := map[string]any{"path": path, "mode": "100644", "type": "blob"}
		switch {
		case edits[path] == nil:
			e["sha"] = nil // deletes
		case !utf8.Valid(edits[path]): // JSON would replace what is none
			return "", problem.New(problem.Invalid, "expected "+path+" as UTF-8 text, found other bytes", "mend the file, then run the command again")
		default:
			e["content"] = string(edits[path])
		}
		entries = append(entries, e)
	}
	var made struct{ SHA string }
	if _, err := c.do(ctx, http.MethodPost, c.path("git/trees"), map[string]any{"base_tree": base.Tree.SHA, "tree": entries}, &made); err != nil {
		return "", err
	}
	in := map[string]any{"message": message, "tree": made.SHA, "parents": []string{parent}}
	made.SHA = ""
	_, err := c.do(ctx, http.MethodPost, c.path("git/commits"), in, &made)
	return made.SHA, err
}

// tree reads files of one commit: a release.FileReader.
type tree struct {
	c      *Client
	commit string
}

// content is a file, or one line of a folder's list.
type content struct {
	Type     string `json:"type"`
	Name     string `json:"name"`
	Encoding string `json:"encoding"`
	Content  string `json:"content"`
	Size     int64  `json:"size"`
}

// get reads contents/PATH, which answers a file or a list.
func (t *tree) get(ctx context.Context, path string, out any) error {
	_, err := t.c.do(ctx, http.MethodGet, t.c.path("contents/%s?ref=%s", escape(path), t.commit), nil, out)
	if _, gone := says(err, http.StatusNotFound); gone {
		if e := t.c.visible(ctx); e != nil {
			return e
		}
		return absent(fmt.Sprintf("expected %s in %s at %s, found none", path, t.c.Repo(), t.commit), "")
	}
	if err != nil {
		return t.c.fail(err, "show "+path, ReadContents)
	}
	return nil
}

// ReadFile implements release.FileReader.
func (t *tree) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var file content
	if err := t.get(ctx, path, &file); err != nil {
		return nil, err
	}
	if file.Type != "file" || file.Encoding != "base64" {
		return nil, problem.New(problem.Invalid, fmt.Sprintf("expected a file of at most 1 MB at %s in %s, found a %s of %d bytes", path, t.c.Repo(), file.Type, file.Size), "")
	}
	text, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(file.Content, "\n", ""))
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "expected "+path+" from GitHub in Base64", "run the command again")
	}
	return text, nil
}

// ReadDir implements release.FileReader.
func (t *tree) ReadDir(ctx context.Context, path string) ([]string, error) {
	var list []content
	if err := t.get(ctx, path, &list); err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, one := range list {
		names[i] = one.Name
	}
	return names, nil
}

// escape escapes each part of a path.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return strings.Join(parts, "/")
}
