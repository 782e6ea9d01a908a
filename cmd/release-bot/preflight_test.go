package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// preflightOf runs the verb with a token that has the rights given.
func preflightOf(t *testing.T, g githubtest.Grant, prepare func(*githubtest.Repo), args ...string) (answer preflight, code int, said string) {
	t.Helper()
	s := githubtest.New(t)
	repo := s.Repo("acme/hello")
	repo.Commit("Begin")
	if prepare != nil {
		prepare(repo)
	}
	s.Grant("ghs_some", g)
	env := s.Env("acme/hello")
	env["GITHUB_TOKEN"] = "ghs_some"
	var out, errs strings.Builder
	args = append([]string{"preflight", "-o", "json", "--registry", s.Host + "/acme/hello"}, args...)
	code = run(t.Context(), args, lookup(env), strings.NewReader(""), &out, &errs)
	if out.Len() > 0 {
		if err := json.Unmarshal([]byte(out.String()), &answer); err != nil {
			t.Fatal(err)
		}
	}
	return answer, code, errs.String()
}

func (p preflight) check(id string) preflightCheck {
	for _, c := range p.Checks {
		if c.ID == id {
			return c
		}
	}
	return preflightCheck{}
}

func TestPreflightNamesTheRightThatIsMissing(t *testing.T) {
	t.Parallel()
	all := githubtest.All()
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		answer, code, said := preflightOf(t, all, func(r *githubtest.Repo) { r.Require("checks / test") }, "--for", "release")
		if code != 0 || !answer.OK || !answer.check("required-checks").OK || !strings.Contains(answer.check("required-checks").Detail, "checks / test") {
			t.Errorf("exit %d, %+v\n%s", code, answer, said)
		}
	})
	t.Run("required checks, which only warns", func(t *testing.T) {
		t.Parallel()
		answer, code, said := preflightOf(t, all, nil, "--for", "release")
		c := answer.check("required-checks")
		if code != 0 || !answer.OK || c.OK || c.Level != "warning" || !strings.Contains(c.Hint, ".github/rulesets/main.json") {
			t.Errorf("exit %d, %+v\n%s", code, answer, said)
		}
	})
	t.Run("contents", func(t *testing.T) {
		t.Parallel()
		g := all
		g.Contents = githubtest.Read
		answer, code, said := preflightOf(t, g, nil, "--for", "version claim")
		if code != 3 || answer.OK || answer.check("contents: write").OK || !strings.Contains(said, "permissions: {contents: write}") {
			t.Errorf("exit %d, %+v\n%s", code, answer, said)
		}
	})
	t.Run("packages and contents, of two verbs, and no other", func(t *testing.T) {
		t.Parallel()
		g := all
		g.Issues, g.Pulls = githubtest.None, githubtest.None
		answer, code, said := preflightOf(t, g, nil, "--for", "version claim, publish")
		if code != 0 || !answer.check("contents: write").OK || !answer.check("packages: write").OK || !answer.check("registry").OK || len(answer.Checks) != 4 {
			t.Errorf("exit %d, %+v\n%s", code, answer, said)
		}
	})
	t.Run("issues, of a rollback", func(t *testing.T) {
		t.Parallel()
		g := all
		g.Issues = githubtest.Read
		answer, code, said := preflightOf(t, g, nil, "--for", "rollback")
		if code != 3 || answer.check("issues: write").OK || !answer.check("contents: write").OK {
			t.Errorf("exit %d, %+v\n%s", code, answer, said)
		}
	})
	t.Run("a scope of a classic token, of prune", func(t *testing.T) {
		t.Parallel()
		g := all
		g.Scopes = []string{"repo", "read:packages"}
		_, code, said := preflightOf(t, g, nil, "--for", "prune")
		if code != 3 || !strings.Contains(said, "delete:packages") {
			t.Errorf("exit %d\n%s", code, said)
		}
	})
	t.Run("an unknown verb", func(t *testing.T) {
		t.Parallel()
		if _, code, said := preflightOf(t, all, nil, "--for", "prunes"); code != 2 || !strings.Contains(said, "prune, publish") {
			t.Errorf("exit %d\n%s", code, said)
		}
	})
}
