package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// update is what auto-update prints.
type update struct {
	Decision deploy.Decision `json:"decision"`
	Outcome  *deploy.Outcome `json:"outcome,omitempty"`
}

func newHostAutoUpdate(env cli.Env) *cobra.Command {
	d := &deployFlags{hostFlags: hostFlags{env: env}}
	c := &cobra.Command{
		Use:   "auto-update",
		Short: "One tick of this machine's own updates; run by the agnes-update timer",
		Long: `auto-update compares what shall run with what runs and, where the policy allows
it, deploys it with the same transaction as host deploy; its smoke test starts
no sync. It ends an interrupted deploy first. Lines of .env set the policy:

  AGNES_TAG                stable, dev, or a pinned version such as stable-2026.04.3
  AGNES_UPDATE             on or off (on)
  AGNES_UPDATE_WINDOW      02:00-05:00 Europe/Prague (any time)
  AGNES_UPDATE_MIN_AGE     age from which a version is taken that is not confirmed (24h)
  AGNES_UPDATE_JITTER      hosts spread over this time (10m)
  AGNES_UPDATE_URL         address that answers {"tag":…} or {"tag":…,"digest":…} instead of AGNES_TAG
  AGNES_UPDATE_TOKEN_FILE  file with the bearer token for it
  AGNES_VERIFY             key or off (off)
  AGNES_VERIFY_KEY         file with the public key

A version goes back only when the one that runs is deprecated. One that failed
here is not tried again.`,
		Example: `  agnesctl host auto-update --dir /opt/agnes
  agnesctl host auto-update --dry-run -o json`,
		Args: cobra.NoArgs,
	}
	d.add(c, smoke.ReadOnly, deploy.RestoreState)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return d.on(func(o deploy.Options) error {
			decision, out, err := deploy.AutoUpdate(c.Context(), o)
			return d.report(decision, out, err)
		})
	}
	return c
}

// report prints what a tick came to.
func (d *deployFlags) report(decision deploy.Decision, out *deploy.Outcome, err error) error {
	if out == nil && err != nil {
		return inconclusive(err)
	}
	perr := cli.Print(d.env.Stdout, d.format, update{decision, out}, func(g *cli.Grid) {
		if out == nil {
			g.Line("Nothing to do: %s.", decision.Reason)
			return
		}
		g.Line("%s.", decision.Reason)
		outcomeGrid(g, *out)
	})
	if perr != nil || out == nil {
		return perr
	}
	return verdictError(*out, err)
}
