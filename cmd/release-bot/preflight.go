package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
)

// preflight is the answer of the verb.
type preflight struct {
	OK     bool             `json:"ok"`
	Checks []preflightCheck `json:"checks"`
}

type preflightCheck struct {
	ID     string `json:"id"`
	OK     bool   `json:"ok"`
	Level  string `json:"level"` // error: the verb cannot work; warning: it works, and should not have to
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// verbRights are the least rights of each verb; docs/release.md shows them as
// `permissions:` blocks.
func verbRights() map[string][]github.Right {
	return map[string][]github.Right{
		"version":   {github.WriteContents}, // claim; next and list read
		"publish":   {github.ReadContents, github.WritePackages},
		"promote":   {github.ReadContents, github.WritePackages},
		"verdict":   {github.WriteContents, github.WritePackages, github.WriteIssues},
		"deprecate": {github.WriteContents, github.WritePackages},
		"rollback":  {github.WriteContents, github.WritePackages, github.WriteIssues},
		"prune":     {github.ReadContents, github.DeletePackages},
		"restore":   {github.DeletePackages},
		"notes":     {github.WriteContents, github.ReadPulls},
		"release":   {github.WriteContents, github.WritePackages, github.WriteIssues, github.ReadPulls},
	}
}

// newPreflight asks whether a verb would be allowed to do its work.
func newPreflight(a *app) *cobra.Command {
	rights := verbRights()
	known := slices.Sorted(maps.Keys(rights))
	verbs := []string{"release"}
	c := &cobra.Command{
		Use:   "preflight",
		Short: "Say which right a verb lacks, before it is needed",
		Long: `preflight asks GitHub whether the token has the rights that a verb needs, or several
verbs (those of a workflow's job, say), whether the registry answers, and, for
"release", whether the default branch requires status checks
(.github/rulesets/main.json is a ruleset that does; import it under Settings, Rules).

It changes nothing. A missing right exits with 3; missing required checks are a
warning, because a release works without them and should not.`,
		Example: `  release-bot preflight --for release --repo acme/hello
  release-bot preflight --for "version claim,publish"
  release-bot preflight --for prune -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var needs []github.Right
			for i, text := range verbs {
				verb, _, _ := strings.Cut(strings.TrimSpace(text), " ") // version claim
				if _, ok := rights[verb]; !ok {
					return problem.New(problem.Usage, fmt.Sprintf("expected a verb of %s, found %q", strings.Join(known, ", "), verb), "release-bot preflight --for release")
				}
				verbs[i] = verb
				for _, right := range rights[verb] {
					if !slices.Contains(needs, right) {
						needs = append(needs, right)
					}
				}
			}
			answer, err := a.preflight(c.Context(), verbs, needs)
			if err != nil {
				return err
			}
			if err := a.answer("Preflight of "+strings.Join(verbs, ", "), answer, answer.table); err != nil {
				return err
			}
			return answer.verdict(verbs)
		},
	}
	c.Flags().StringSliceVar(&verbs, "for", verbs, "`VERBS` to check: "+strings.Join(known, ", "))
	_ = c.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	cli.OutputFlag(c, &a.format)
	return c
}

func (a *app) preflight(ctx context.Context, verbs []string, needs []github.Right) (preflight, error) {
	client, err := a.github()
	if err != nil {
		return preflight{}, err
	}
	answer := preflight{OK: true}
	add := func(id, level, detail string, err error) error {
		check := preflightCheck{ID: id, OK: err == nil, Level: level, Detail: detail}
		if err != nil {
			p := problem.As(err)
			if p.Kind == problem.Unavailable || p.Kind == problem.RateLimited || p.Kind == problem.Inconclusive || ctx.Err() != nil {
				return err // nothing was found out
			}
			check.Detail, check.Hint = p.Message, p.Hint
			answer.OK = answer.OK && level != "error"
		}
		answer.Checks = append(answer.Checks, check)
		return nil
	}
	for _, right := range needs {
		if err := add(string(right), "error", client.Repo(), client.Preflight(ctx, right)); err != nil {
			return preflight{}, err
		}
	}
	if slices.Contains(needs, github.WritePackages) {
		registry, err := a.openRegistry()
		detail := ""
		if err == nil {
			detail = registry.String()
			_, err = registry.Tags(ctx)
			if errors.Is(err, release.ErrNotFound) {
				err, detail = nil, detail+" (nothing was pushed yet)"
			}
		}
		if err := add("registry", "error", detail, err); err != nil {
			return preflight{}, err
		}
	}
	if slices.Contains(verbs, "release") {
		branch, checks, err := client.RequiredChecks(ctx)
		if err == nil && len(checks) == 0 {
			err = problem.New(problem.Found, fmt.Sprintf("expected status checks to be required on %s of %s, found none: what fails CI can be merged, and every merge is a release", branch, client.Repo()),
				"import .github/rulesets/main.json: gh api repos/"+client.Repo()+"/rulesets --input .github/rulesets/main.json")
		}
		if err := add("required-checks", "warning", branch+" requires "+strings.Join(checks, ", "), err); err != nil {
			return preflight{}, err
		}
	}
	return answer, nil
}

func (p preflight) table(g *cli.Grid) {
	g.Row("CHECK", "", "DETAIL")
	for _, c := range p.Checks {
		state := "ok"
		if !c.OK {
			state = c.Level
		}
		g.Row(c.ID, state, c.Detail)
	}
	for _, c := range p.Checks {
		if !c.OK {
			g.Line("%s: %s", c.ID, c.Hint)
		}
	}
}

// verdict is the error of an answer that found something missing.
func (p preflight) verdict(verbs []string) error {
	for _, c := range p.Checks {
		if !c.OK && c.Level == "error" {
			return problem.New(problem.Found, fmt.Sprintf("release-bot %s would fail: %s", strings.Join(verbs, ", "), c.Detail), c.Hint)
		}
	}
	return nil
}
