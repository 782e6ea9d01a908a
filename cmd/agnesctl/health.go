package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (a *app) healthCommand() *cobra.Command {
	var (
		details bool
		format  cli.Format
	)
	c := &cobra.Command{
		Use:   "health",
		Short: "Show the instance's health; exit 3 when it is not healthy",
		Example: `  agnesctl instance health --url https://data.company.com
  agnesctl instance health --details -o json`,
		Args: cobra.NoArgs,
		RunE: a.does(func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if details {
				d, err := client.HealthDetails(c.Context())
				if err != nil {
					return err
				}
				err = cli.Print(a.env.Stdout, format, d, func(g *cli.Grid) {
					healthGrid(g, client.URL(), d.Health)
					detailsGrid(g, d)
				})
				return firstOf(err, a.verdict(client.URL(), d.Health))
			}
			h, err := client.Health(c.Context())
			if err != nil {
				return err
			}
			err = cli.Print(a.env.Stdout, format, h, func(g *cli.Grid) { healthGrid(g, client.URL(), *h) })
			return firstOf(err, a.verdict(client.URL(), *h))
		}),
	}
	c.Flags().BoolVar(&details, "details", false, "with tables, sources and disk; needs a login")
	cli.OutputFlag(c, &format)
	return c
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// verdict turns anything but healthy into exit code 3. A status that this
// program does not know is not healthy.
func (a *app) verdict(address string, h api.Health) error {
	if h.Status == api.Healthy {
		return nil
	}
	hint := "Read the instance's log."
	for _, name := range slices.Sorted(maps.Keys(h.Services)) {
		if s := h.Services[name]; s.Status != api.Healthy && s.Hint != "" {
			hint = s.Hint
			break
		}
	}
	return problem.New(problem.Found, fmt.Sprintf("%s is %s, not healthy.", address, h.Status), hint)
}

func healthGrid(g *cli.Grid, address string, h api.Health) {
	g.Row("instance", address)
	g.Row("status", h.Status)
	g.Row("version", h.Version+" ("+h.Channel+")")
	g.Row("schema", h.SchemaVersion)
	if h.Update.Latest != "" {
		g.Row("latest", h.Update.Latest)
	}
	for _, w := range h.Warnings {
		g.Row("warning", w)
	}
	if h.SetupRequired {
		g.Row("setup", "required: no admin exists yet")
	}
	g.Line("")
	g.Row("SERVICE", "STATUS", "DETAIL", "NEXT")
	for _, name := range slices.Sorted(maps.Keys(h.Services)) {
		s := h.Services[name]
		g.Row(name, s.Status, s.Detail, s.Hint)
	}
}

func detailsGrid(g *cli.Grid, d *api.HealthDetails) {
	g.Line("")
	g.Row("tables", fmt.Sprintf("%d, %d stale", d.Tables, len(d.StaleTables)))
	g.Row("generation", d.Generation)
	g.Row("isolation", d.Isolation)
	g.Row("disk", cli.Bytes(d.Disk.FreeBytes)+" free of "+cli.Bytes(d.Disk.TotalBytes))
	g.Row("write-ahead log", cli.Bytes(d.WALBytes))
	if len(d.Sources) > 0 {
		g.Line("")
		g.Row("SOURCE", "LAST SYNC", "STATUS", "ERROR")
		for _, s := range d.Sources {
			g.Row(s.Name, when(s.LastSync), s.Status, s.Error)
		}
	}
	if len(d.StaleTables) > 0 {
		g.Line("")
		g.Row("STALE TABLE", "LAST SYNC", "REASON")
		for _, t := range d.StaleTables {
			g.Row(t.ID, when(&t.LastSync), t.Reason)
		}
	}
}
