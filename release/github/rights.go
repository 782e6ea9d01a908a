package github

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	gh "github.com/google/go-github/v62/github"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Right is what a call needs, as a workflow's `permissions:` block names it.
type Right string

// The rights that the verbs need. Claims and the ledger are refs, which are
// contents.
const (
	ReadContents   Right = "contents: read"
	WriteContents  Right = "contents: write"
	WriteIssues    Right = "issues: write"
	ReadPulls      Right = "pull-requests: read"
	ReadPackages   Right = "packages: read"
	WritePackages  Right = "packages: write"
	DeletePackages Right = "packages: delete"
)

// scopes returns the scopes of a classic token, any of which gives the right.
func (r Right) scopes() []string {
	switch r {
	case ReadPackages:
		return []string{"read:packages", "write:packages"}
	case WritePackages:
		return []string{"write:packages"}
	case DeletePackages:
		return []string{"delete:packages"}
	default:
		return []string{"repo", "public_repo"}
	}
}

// hint says how to give the right.
func (r Right) hint(repo string) string {
	if r == DeletePackages {
		return "Give the token the scope delete:packages and its owner the role Admin of the package; in a workflow `permissions: {packages: write}`, and under the package's settings, Manage Actions access, the role Admin for " + repo
	}
	return fmt.Sprintf("Give the token the right for %s: in a workflow `permissions: {%s}`, of a classic token the scope %s", repo, r, r.scopes()[0])
}

// Preflight finds out whether the token has the rights, and names the first that
// is missing. What GitHub tells nobody beforehand, such as whether a workflow's
// token may delete a package's versions, passes here and fails with the same hint
// where it is used.
//
// It costs one request for the repository and at most one a right. Probes of
// writes cannot succeed: they name an object that no repository has, or leave
// empty what is required; GitHub looks at the right first.
func (c *Client) Preflight(ctx context.Context, rights ...Right) error {
	if !c.token {
		return problem.New(problem.Unauthenticated, "expected a token for GitHub, found none",
			"set GITHUB_TOKEN; in a workflow: env: {GITHUB_TOKEN: ${{ github.token }}}")
	}
	repo, resp, err := c.gh.Repositories.Get(ctx, c.owner, c.repo)
	if err != nil {
		return c.fail(err, "show the repository "+c.Repo(), ReadContents)
	}
	scopes, classic := scopesOf(resp)
	for _, right := range rights {
		if classic && !right.within(scopes, repo.GetPrivate()) {
			return right.missing(c.Repo(), fmt.Sprintf("the token's scopes are %q", strings.Join(scopes, ", ")))
		}
		if err := c.probe(ctx, right, repo); err != nil {
			return err
		}
	}
	return nil
}

// probe makes the harmless call that needs the right, where there is one.
func (c *Client) probe(ctx context.Context, right Right, repo *gh.Repository) error {
	var err error
	switch right {
	case WriteContents:
		nothing := strings.Repeat("0", 39) + "1"
		_, err = c.do(ctx, http.MethodPost, c.path("git/refs"), map[string]string{"ref": "refs/agnes/preflight", "sha": nothing}, nil)
	case WriteIssues:
		if !repo.GetHasIssues() {
			return problem.New(problem.Refused, "expected "+c.Repo()+" to take issues, found that they are switched off", "Settings, Features, Issues")
		}
		_, err = c.do(ctx, http.MethodPost, c.path("issues"), map[string]string{"title": ""}, nil)
	case ReadPulls:
		_, err = c.do(ctx, http.MethodGet, c.path("pulls?per_page=1"), nil, nil)
	default:
		return nil
	}
	if err == nil {
		return nil
	}
	if _, refused := says(err, http.StatusUnprocessableEntity); refused || isEmpty(err) {
		return nil // the right was there, the request was not to be carried out
	}
	for _, status := range []int{http.StatusForbidden, http.StatusNotFound} {
		if text, denied := says(err, status); denied {
			return right.missing(c.Repo(), fmt.Sprintf("%d: %s", status, text))
		}
	}
	return c.fail(err, "answer whether the right "+string(right)+" is there", right)
}

// missing is the error of a right that is not there.
func (r Right) missing(repo, found string) error {
	return problem.New(problem.Forbidden, fmt.Sprintf("expected the right %q for %s, found it missing (%s)", string(r), repo, found), r.hint(repo))
}

// within reports whether one of a classic token's scopes gives the right.
func (r Right) within(scopes []string, private bool) bool {
	for _, scope := range r.scopes() {
		if slices.Contains(scopes, scope) && (scope != "public_repo" || !private) {
			return true
		}
	}
	return r == ReadContents || r == ReadPulls // the repository was shown already
}

// scopesOf returns a classic token's scopes. Tokens of workflows and
// fine-grained ones have none, and no such header.
func scopesOf(resp *gh.Response) ([]string, bool) {
	header, classic := resp.Header["X-Oauth-Scopes"]
	if !classic {
		return nil, false
	}
	var scopes []string
	for _, scope := range strings.Split(strings.Join(header, ","), ",") {
		if scope = strings.TrimSpace(scope); scope != "" {
			scopes = append(scopes, scope)
		}
	}
	return scopes, true
}
