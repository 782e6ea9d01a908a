package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	gh "github.com/google/go-github/v62/github"
	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// textLimit is what GitHub takes as the text of an issue, a comment or a
// release, in characters (docs.github.com/rest/issues says nothing; the answer to
// a longer one does: 65536).
const textLimit = 65000

// Alert implements release.Forge. It looks through the open issues themselves:
// the search endpoint knows a new issue only after a while, and labels can be
// taken away by anybody.
func (c *Client) Alert(ctx context.Context, a release.Alert) (string, error) {
	found, err := c.alerted(ctx, a.Marker)
	if found != nil || err != nil {
		return found.GetHTMLURL(), err
	}
	body := a.Marker + "\n" + shorten(a.Body)
	labels := a.Labels
	if labels == nil {
		labels = []string{}
	}
	for attempt := 1; ; attempt++ {
		made, _, err := c.gh.Issues.Create(ctx, c.owner, c.repo, &gh.IssueRequest{Title: &a.Title, Body: &body, Labels: &labels})
		if err == nil {
			return made.GetHTMLURL(), nil
		}
		if _, off := says(err, http.StatusGone); off {
			return "", problem.New(problem.Refused, "expected "+c.Repo()+" to take issues, found that they are switched off",
				"switch them on (Settings, Features, Issues), or pass --webhook-url")
		}
		err = c.fail(err, "open an issue", WriteIssues)
		if attempt == attempts || !errors.Is(err, release.ErrUncertain) {
			return "", err
		}
		// It may be there, and the list may be late to show it.
		if err := c.sleep(ctx, time.Second<<attempt); err != nil {
			return "", err
		}
		if found, err := c.alerted(ctx, a.Marker); found != nil || err != nil {
			return found.GetHTMLURL(), err
		}
	}
}

// Settle implements release.Forge. The line and the closing are one call, so that
// a second run finds either both or neither.
func (c *Client) Settle(ctx context.Context, marker, line string) (string, error) {
	found, err := c.alerted(ctx, marker)
	if found == nil || err != nil {
		return "", err
	}
	body := found.GetBody() + "\n\n" + line + "\n"
	_, _, err = c.gh.Issues.Edit(ctx, c.owner, c.repo, found.GetNumber(),
		&gh.IssueRequest{Body: &body, State: gh.String("closed"), StateReason: gh.String("completed")})
	if err != nil {
		return "", c.fail(err, fmt.Sprintf("close the issue %d", found.GetNumber()), WriteIssues)
	}
	return found.GetHTMLURL(), nil
}

// alerted returns the first open issue that holds the marker, or nil.
func (c *Client) alerted(ctx context.Context, marker string) (*gh.Issue, error) {
	if marker == "" {
		return nil, problem.New(problem.Internal, "expected a marker for the issue, found none", "")
	}
	issues, err := list[*gh.Issue](ctx, c, c.path("issues?state=open&sort=created&direction=asc&per_page=100"))
	if _, off := says(err, http.StatusGone); off {
		return nil, nil //nolint:nilnil // Create says it
	}
	if err != nil {
		return nil, c.fail(err, "list the open issues", WriteIssues)
	}
	for _, issue := range issues {
		if !issue.IsPullRequest() && strings.Contains(issue.GetBody(), marker) {
			return issue, nil
		}
	}
	return nil, nil //nolint:nilnil // there is none
}

// Release implements release.Forge. GitHub would create a missing tag at the head
// of the default branch, and so use up a number that nobody claimed: the tag must
// be there.
func (c *Client) Release(ctx context.Context, page release.Page) (string, error) {
	tag, body := page.Version.String(), shorten(page.Body)
	if _, err := c.Refs().Find(ctx, "refs/tags/"+tag); err != nil {
		return "", err
	}
	for attempt := 1; ; attempt++ {
		found, _, err := c.gh.Repositories.GetReleaseByTag(ctx, c.owner, c.repo, tag)
		_, none := says(err, http.StatusNotFound)
		switch {
		case none:
			url, err := c.newRelease(ctx, page, tag, body)
			if _, taken := says(err, http.StatusUnprocessableEntity); taken && attempt < attempts {
				continue // another run made it meanwhile
			}
			if err == nil {
				return url, nil
			}
			err = c.fail(err, "create the release "+tag, WriteContents)
			if attempt == attempts || !errors.Is(err, release.ErrUncertain) {
				return "", err
			}
			if err := c.sleep(ctx, backoff<<attempt); err != nil {
				return "", err
			}
		case err != nil:
			return "", c.fail(err, "show the release "+tag, ReadContents)
		case found.GetBody() == body && found.GetPrerelease() == page.Prerelease && !found.GetDraft():
			return found.GetHTMLURL(), nil
		default:
			edited, _, err := c.gh.Repositories.EditRelease(ctx, c.owner, c.repo, found.GetID(),
				&gh.RepositoryRelease{Body: &body, Prerelease: &page.Prerelease, Draft: gh.Bool(false)})
			if err != nil {
				return "", c.fail(err, "change the release "+tag, WriteContents)
			}
			return edited.GetHTMLURL(), nil
		}
	}
}

// newRelease creates a release. "Latest" is what the repository's front page
// shows; GitHub's own order does not know calendar versions.
func (c *Client) newRelease(ctx context.Context, page release.Page, tag, body string) (string, error) {
	latest := "false"
	if !page.Prerelease {
		newest, _, err := c.gh.Repositories.GetLatestRelease(ctx, c.owner, c.repo)
		if _, none := says(err, http.StatusNotFound); err != nil && !none {
			return "", err
		}
		if v, err := release.ParseVersion(newest.GetTagName()); err != nil || v.Compare(page.Version) < 0 {
			latest = "true"
		}
	}
	made, _, err := c.gh.Repositories.CreateRelease(ctx, c.owner, c.repo, &gh.RepositoryRelease{
		TagName: &tag, Name: &tag, Body: &body, Prerelease: &page.Prerelease, MakeLatest: &latest,
	})
	return made.GetHTMLURL(), err
}

// Changes implements release.Forge. A commit that GitHub does not have, or that
// came without a merged pull request, is not in the answer. Each commit costs a
// request.
func (c *Client) Changes(ctx context.Context, commits []string) (map[string]release.Change, error) {
	changes := map[string]release.Change{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, commit := range commits {
		group.Go(func() error {
			pulls, err := list[*gh.PullRequest](ctx, c, c.path("commits/%s/pulls?per_page=100", url.PathEscape(commit)))
			if _, unknown := says(err, http.StatusUnprocessableEntity); unknown {
				return nil
			}
			if err != nil {
				return c.fail(err, "list the pull requests of "+commit, ReadPulls)
			}
			if pull := merged(pulls, commit); pull != nil {
				mu.Lock()
				defer mu.Unlock()
				changes[commit] = asChange(pull)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return changes, nil
}

// merged chooses the pull request that brought a commit: the one whose merge it
// is, else the first that was merged. A commit is also listed for those that
// merely build upon it.
func merged(pulls []*gh.PullRequest, commit string) *gh.PullRequest {
	var first *gh.PullRequest
	for _, pull := range pulls {
		switch {
		case pull.MergedAt == nil:
		case pull.GetMergeCommitSHA() == commit:
			return pull
		case first == nil:
			first = pull
		}
	}
	return first
}

func asChange(pull *gh.PullRequest) release.Change {
	change := release.Change{Number: pull.GetNumber(), Title: pull.GetTitle(), Author: pull.GetUser().GetLogin(), URL: pull.GetHTMLURL()}
	for _, label := range pull.Labels {
		change.Labels = append(change.Labels, label.GetName())
	}
	return change
}

// Descends implements release.Forge. Histories without a common ancestor do not
// descend from each other; a commit that GitHub does not have is ErrNotFound.
func (c *Client) Descends(ctx context.Context, ancestor, commit string) (bool, error) {
	if ancestor == commit {
		return true, nil
	}
	var compared struct {
		Status string `json:"status"`
	}
	// The second page holds neither commits nor files worth their transfer.
	_, err := c.do(ctx, http.MethodGet, c.path("compare/%s...%s?per_page=1&page=2", url.PathEscape(ancestor), url.PathEscape(commit)), nil, &compared)
	if text, missing := says(err, http.StatusNotFound); missing {
		if strings.Contains(text, "No common ancestor") {
			return false, nil
		}
		if err := c.visible(ctx); err != nil {
			return false, err
		}
		return false, absent(fmt.Sprintf("expected %s to have the commits %s and %s, found that one is missing", c.Repo(), ancestor, commit),
			"push the commit first: git push origin COMMIT:refs/heads/BRANCH")
	}
	if err != nil {
		return false, c.fail(err, "compare two commits", ReadContents)
	}
	switch compared.Status {
	case "ahead", "identical":
		return true, nil
	case "behind", "diverged":
		return false, nil
	default:
		return false, problem.New(problem.Unavailable, fmt.Sprintf("expected ahead, identical, behind or diverged, found %q in GitHub's comparison", compared.Status), "run the command again")
	}
}

// shorten cuts a text to what GitHub takes, at a line's end.
func shorten(text string) string {
	runes := []rune(text)
	if len(runes) <= textLimit {
		return text
	}
	cut := string(runes[:textLimit])
	if i := strings.LastIndexByte(cut, '\n'); i > 0 {
		cut = cut[:i]
	}
	return cut + "\n\n… (too long for this page)\n"
}
