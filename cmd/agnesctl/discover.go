package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (a *app) discoverCommand() *cobra.Command {
	var (
		dryMode bool
		format  cli.Format
	)
	c := &cobra.Command{
		Use:   "discover",
		Short: "Find the source's tables and register them",
		Long: `Find the tables of the configured source and register those that are not
registered yet. With --dry-run the instance looks, but registers nothing.`,
		Example: `  agnesctl instance discover --dry-run
  agnesctl instance discover -o json`,
		Args: cobra.NoArgs,
		RunE: a.does(func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			found, err := client.Discover(c.Context(), dryMode)
			if err != nil {
				return err
			}
			for _, w := range found.Warnings {
				a.note("Warning: %s", w)
			}
			err = cli.Print(a.env.Stdout, format, found, func(g *cli.Grid) { discoveryGrid(g, found) })
			return firstOf(err, notRegistered(found))
		}),
	}
	c.Flags().BoolVar(&dryMode, "dry-run", false, "look, but register nothing")
	cli.OutputFlag(c, &format)
	return c
}

func discoveryGrid(g *cli.Grid, found *api.Discovery) {
	g.Row("TABLE", "SOURCE", "MODE", "DESCRIPTION")
	for _, t := range found.Tables {
		g.Row(t.ID, t.Source, t.QueryMode, t.Description)
	}
	for _, e := range found.Errors {
		g.Row(e.Table, found.Source, "failed", e.Message)
	}
	verb := "Registered"
	if found.DryRun {
		verb = "Would register"
	}
	g.Line("%s %s of %s; %d registered before.", verb, plural(found.Registered, "table"), found.Source, found.Skipped)
}

func notRegistered(found *api.Discovery) error {
	if len(found.Errors) == 0 {
		return nil
	}
	first := found.Errors[0]
	return problem.New(problem.Unprocessable,
		fmt.Sprintf("%s could not be registered, the first one %s: %s", plural(len(found.Errors), "table"), first.Table, first.Message),
		first.Hint)
}
