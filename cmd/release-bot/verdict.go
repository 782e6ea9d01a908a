package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

func newVerdict(a *app) *cobra.Command {
	var detail string
	var dryRun bool
	c := &cobra.Command{
		Use:   "verdict VERSION pass|fail|inconclusive",
		Short: "Record what was found out about a version",
		Long: `verdict writes what a smoke test found into the ledger. A pass also sets the tag
confirmed-VERSION on the image. A fail changes no tag: rollback does. What could
not be found out, because something else was in trouble, is inconclusive, and
that is recorded with exit code 0.

A version that failed never becomes good again: a pass is then refused.

It needs the right to write the ledger (contents: write on GitHub), and for a
pass the image repository (packages: write).`,
		Example: `  release-bot verdict 2026.04.3 pass
  release-bot verdict 2026.04.3 fail --detail "step 4, query: 500"`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := release.ParseVersion(args[0])
			if err != nil {
				return err
			}
			verdict, err := release.ParseVerdict(args[1])
			if err != nil {
				return err
			}
			p, err := a.bookkeeper("verdict " + args[0] + " " + args[1])
			if err != nil {
				return err
			}
			p.DryRun = dryRun
			got, err := p.Verdict(c.Context(), v, verdict, detail)
			return a.after("Verdict of "+v.String(), got, got.Steps, err, func(g *cli.Grid) {
				g.Row("version", got.Version)
				g.Row("verdict", got.Verdict)
				stepRows(g, got.Steps)
			})
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&detail, "detail", "", "`TEXT` that says what was found")
	dryRunFlag(c, &dryRun)
	return c
}
