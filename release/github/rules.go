package github

import (
	"context"
	"net/url"
	"slices"
)

// RequiredChecks returns the status checks that must pass before anything is
// merged into the default branch, by rulesets; none, when nothing is required.
// Rules of the older branch protection are not seen: reading them takes an admin.
func (c *Client) RequiredChecks(ctx context.Context) (branch string, checks []string, err error) {
	repo, _, err := c.gh.Repositories.Get(ctx, c.owner, c.repo)
	if err != nil {
		return "", nil, c.fail(err, "show the repository "+c.Repo(), ReadContents)
	}
	branch = repo.GetDefaultBranch()
	type rule struct {
		Type       string `json:"type"`
		Parameters struct {
			Required []struct {
				Context string `json:"context"`
			} `json:"required_status_checks"`
		} `json:"parameters"`
	}
	rules, err := list[rule](ctx, c, c.path("rules/branches/%s?per_page=100", url.PathEscape(branch)))
	if err != nil {
		return "", nil, c.fail(err, "list the rules of "+branch, ReadContents)
	}
	for _, r := range rules {
		if r.Type != "required_status_checks" {
			continue
		}
		for _, check := range r.Parameters.Required {
			checks = append(checks, check.Context)
		}
	}
	slices.Sort(checks)
	return branch, slices.Compact(checks), nil
}
