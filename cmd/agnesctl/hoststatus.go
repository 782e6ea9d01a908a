package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func newHostStatus(env cli.Env) *cobra.Command {
	h := &hostFlags{env: env}
	format := cli.Table
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what a host runs, and a deploy that has not ended",
		Example: `  agnesctl host status
  agnesctl host status --host ssh://agnes@203.0.113.7/opt/agnes --known-hosts known_hosts -o json`,
		Args: cobra.NoArgs,
	}
	h.add(c)
	cli.OutputFlag(c, &format)
	c.RunE = func(c *cobra.Command, _ []string) error {
		shell, dir, err := h.open()
		if err != nil {
			return err
		}
		defer func() { _ = shell.Close() }()
		s, err := deploy.Inspect(c.Context(), shell, dir)
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, s, func(g *cli.Grid) { statusGrid(g, s) })
	}
	return c
}

func statusGrid(g *cli.Grid, s deploy.Status) {
	g.Row("host", s.Host)
	g.Row("directory", s.Dir)
	g.Row("runs", s.Running.Name())
	g.Row("container", fmt.Sprintf("%s, %s", s.Container, plural(s.Restarts, "restart")))
	g.Row("pinned by .env", s.Pinned.Ref())
	if s.Current != nil {
		g.Row("since", when(&s.Current.Since))
		g.Row("before", s.Current.Previous.Name())
	}
	if s.Trouble != "" {
		g.Row("trouble", s.Trouble)
	}
	if s.Locked != "" {
		g.Row("locked by", s.Locked)
	}
	if u := s.Underway; u != nil {
		state := "interrupted; the next deploy ends it first"
		if s.Locked != "" {
			state = "at work"
		}
		g.Row("under way", fmt.Sprintf("%s to %s by %s, at %s: %s", u.ID, u.To.Name(), u.Owner, u.Step, state))
	}
	for _, f := range s.Foreign {
		g.Row("foreign updater", f+": it can undo a rollback; remove it")
	}
	if len(s.History) > 0 {
		g.Line("")
		g.Row("ENDED", "VERDICT", "FROM", "TO", "WENT BACK", "WHY")
		for _, r := range s.History {
			back := ""
			if r.Reverted {
				back = "yes"
			}
			g.Row(when(&r.Ended), string(r.Verdict), r.From.Name(), r.To.Name(), back, r.Reason)
		}
	}
}
