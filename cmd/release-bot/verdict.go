package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

func newVerdict(a *app) *cobra.Command {
	var detail, digest string
	var alerts alertFlags
	var dryRun bool
	c := &cobra.Command{
		Use:   "verdict VERSION pass|fail|inconclusive",
		Short: "Record what was found out about a version",
		Long: `verdict writes what a smoke test found into the ledger. A pass also sets the tag
confirmed-VERSION on the image. A fail changes no tag: rollback does.

What could not be found out, because something else was in trouble, is
inconclusive. It rolls nothing back and tells people: an issue on GitHub, and a
webhook where one is given. Repeated, it finds the same issue; a later pass or
fail closes it. The exit code is 0.

A version that failed never becomes good again: a pass is then refused. A later
inconclusive changes nothing about a version that passed or failed, and tells
nobody.

With --digest, the image that was tested has to be the one that the version's tag
points at; for any other, nothing is recorded, and the exit code is 4.

The webhook gets a POST of {"text": "…"}, which Slack understands. Its address is
--webhook-url or RELEASE_BOT_WEBHOOK_URL. With a secret, in --webhook-secret-file
or RELEASE_BOT_WEBHOOK_SECRET, X-Agnes-Signature-256 is the HMAC-SHA256 of the
body.

It needs the right to write the ledger (contents: write on GitHub), for a pass the
image repository (packages: write), and for the issue issues: write.`,
		Example: `  release-bot verdict 2026.04.3 pass
  release-bot verdict 2026.04.3 pass --digest sha256:…
  release-bot verdict 2026.04.3 fail --detail "step 4, query: 500"
  release-bot verdict 2026.04.3 inconclusive --detail "the canary did not answer on port 22"`,
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
			if err := tested(c.Context(), p, v, digest, verdict == release.VerdictInconclusive); err != nil {
				return err
			}
			if verdict == release.VerdictInconclusive {
				err = a.alerting(p, alerts)
			} else {
				p.Forge, err = a.forgeIfAny() // whose issue may be settled; the webhook is not called
			}
			if err != nil {
				return err
			}
			got, err := p.Verdict(c.Context(), v, verdict, detail)
			return a.after("Verdict of "+v.String(), got, got.Steps, err, func(g *cli.Grid) {
				g.Row("version", got.Version)
				g.Row("verdict", got.Verdict)
				if got.IssueURL != "" {
					g.Row("issue", got.IssueURL)
				}
				stepRows(g, got.Steps)
			})
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&detail, "detail", "", "`TEXT` that says what was found")
	testedFlag(c, &digest)
	alerts.register(c)
	dryRunFlag(c, &dryRun)
	return c
}
