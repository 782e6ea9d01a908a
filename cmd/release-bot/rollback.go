package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func newRollback(a *app) *cobra.Command {
	var failed, to, reason, digest string
	var alerts alertFlags
	var dryRun bool
	c := &cobra.Command{
		Use:   "rollback",
		Short: "Take a failed stable version back",
		Long: `rollback points stable back at the newest version that neither failed nor is
deprecated nor lacks anything in the registry; --to names another one, which has
to meet the same. Then it records the verdict fail and the deprecation in the
ledger, sets the tag deprecated-VERSION, and tells people: an issue on GitHub,
and a webhook where one is given.

stable is touched only when it points at the failed image or is missing. Where no
good version exists it stays, everything else is done, and the exit code is 4.
With --digest, the image that failed has to be the one that the version's tag
points at; for any other, nothing is done, and the exit code is 4.
Run it again after an interruption: it ends in the same state.

The webhook gets a POST of {"text": "…"}, which Slack understands. Its address is
--webhook-url or RELEASE_BOT_WEBHOOK_URL. With a secret, in --webhook-secret-file
or RELEASE_BOT_WEBHOOK_SECRET, X-Agnes-Signature-256 is the HMAC-SHA256 of the
body.

It needs the right to write the image repository (packages: write on GitHub), the
ledger (contents: write) and issues (issues: write).`,
		Example: `  release-bot rollback --failed 2026.04.3
  release-bot rollback --failed 2026.04.3 --to 2026.03.11 --reason "smoke: step 4 answered 500" --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, w, err := twoVersions(failed, to)
			if err != nil {
				return err
			}
			p, err := a.bookkeeper("rollback --failed " + failed)
			if err != nil {
				return err
			}
			p.DryRun = dryRun
			if err := tested(c.Context(), p, v, digest, false); err != nil {
				return err
			}
			if err := a.alerting(p, alerts); err != nil {
				return err
			}
			got, err := p.Rollback(c.Context(), v, w, reason)
			if len(got.Steps) < 2 { // it did not even find out what to do
				return err
			}
			if e := a.answer("Rolled back "+v.String(), got, func(g *cli.Grid) { withdrawnTable(g, "failed", got) }); err == nil {
				err = e
			}
			return err
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&failed, "failed", "", "`VERSION` that failed")
	c.Flags().StringVar(&to, "to", "", "`VERSION` to go back to (default: the newest good one)")
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` that people read")
	testedFlag(c, &digest)
	alerts.register(c)
	dryRunFlag(c, &dryRun)
	_ = c.MarkFlagRequired("failed")
	return c
}
