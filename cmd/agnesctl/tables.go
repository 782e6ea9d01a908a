package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func (a *app) tablesCommand() *cobra.Command {
	var format cli.Format
	c := &cobra.Command{
		Use:   "tables [ID]",
		Short: "List the tables that you may query, or describe one",
		Example: `  agnesctl instance tables
  agnesctl instance tables orders -o yaml`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeTables,
		RunE: a.does(func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				t, err := client.CatalogTable(c.Context(), args[0])
				if err != nil {
					return err
				}
				return cli.Print(a.env.Stdout, format, t, func(g *cli.Grid) { tableGrid(g, t) })
			}
			catalog, err := client.Catalog(c.Context())
			if err != nil {
				return err
			}
			return cli.Print(a.env.Stdout, format, catalog, func(g *cli.Grid) { catalogGrid(g, catalog.Tables) })
		}),
	}
	cli.OutputFlag(c, &format)
	return c
}

func catalogGrid(g *cli.Grid, tables []api.CatalogTable) {
	g.Row("TABLE", "ROWS", "SIZE", "SOURCE", "LAST SYNC", "NOTE")
	for _, t := range tables {
		note := ""
		if t.Stale {
			note = "stale: " + t.StaleReason
		}
		g.Row(t.ID, t.Rows, cli.Bytes(t.SizeBytes), t.SourceType, when(t.LastSync), note)
	}
}

func tableGrid(g *cli.Grid, t *api.CatalogTable) {
	g.Row("table", t.ID)
	if t.Description != "" {
		g.Row("description", t.Description)
	}
	g.Row("source", t.SourceType+", "+t.QueryMode)
	g.Row("rows", t.Rows)
	g.Row("size", cli.Bytes(t.SizeBytes))
	g.Row("last sync", when(t.LastSync))
	if t.Stale {
		g.Row("stale", t.StaleReason)
	}
	g.Line("")
	g.Row("COLUMN", "TYPE")
	for _, column := range t.Columns {
		g.Row(column.Name, column.Type)
	}
}

// completeTables offers table ids to a shell, quickly or not at all.
func (a *app) completeTables(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	catalog, err := client.Catalog(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, t := range catalog.Tables {
		ids = append(ids, cli.Sanitize(t.ID))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
