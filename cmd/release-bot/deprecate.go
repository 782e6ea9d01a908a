package main

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

func newDeprecate(a *app) *cobra.Command {
	var reason, replacement string
	var dryRun bool
	c := &cobra.Command{
		Use:   "deprecate VERSION",
		Short: "Say that a version should be left",
		Long: `deprecate writes into the ledger that a version should be left, and sets the tag
deprecated-VERSION on its image, which instances look for. 30 days after the
ledger's entry prune may delete the image. Run it again after an interruption:
what is missing is added, the first entry stays as it is.

It needs the right to write the ledger (contents: write on GitHub) and the image
repository (packages: write).`,
		Example: `  release-bot deprecate 2026.04.3 --reason "loses rows of incremental tables" --replacement 2026.04.5`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, w, err := twoVersions(args[0], replacement)
			if err != nil {
				return err
			}
			p, err := a.bookkeeper("deprecate " + args[0])
			if err != nil {
				return err
			}
			p.DryRun = dryRun
			got, err := p.Deprecate(c.Context(), v, reason, w)
			return a.after("Deprecated "+v.String(), got, got.Steps, err, func(g *cli.Grid) { withdrawnTable(g, "deprecated", got) })
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` that people read")
	c.Flags().StringVar(&replacement, "replacement", "", "`VERSION` to go to instead (default: whatever is stable)")
	dryRunFlag(c, &dryRun)
	_ = c.MarkFlagRequired("reason")
	return c
}

// twoVersions reads a version, and another one that may be left away.
func twoVersions(first, second string) (v, w release.Version, err error) {
	if v, err = release.ParseVersion(first); err != nil || second == "" {
		return v, w, err
	}
	w, err = release.ParseVersion(second)
	return v, w, err
}

func withdrawnTable(g *cli.Grid, what string, w release.Withdrawn) {
	g.Row(what, w.Failed)
	g.Row("stable", cmp.Or(w.Stable, w.StableDigest, "does not exist"))
	if !w.Replacement.IsZero() {
		g.Row("replacement", w.Replacement)
	}
	if w.IssueURL != "" {
		g.Row("issue", w.IssueURL)
	}
	stepRows(g, w.Steps)
}
