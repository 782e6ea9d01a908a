package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/webhook"
)

func newRollback(a *app) *cobra.Command {
	var failed, to, reason, hook, secretFile string
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
			if p.Forge, err = a.forgeIfAny(); err != nil {
				return err
			}
			if p.Notify, err = a.notifier(hook, secretFile); err != nil {
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
	c.Flags().StringVar(&hook, "webhook-url", "", "`URL` that is told, as Slack expects it (default $RELEASE_BOT_WEBHOOK_URL)")
	c.Flags().StringVar(&secretFile, "webhook-secret-file", "", "`FILE` with the secret that signs it (default: $RELEASE_BOT_WEBHOOK_SECRET)")
	dryRunFlag(c, &dryRun)
	_ = c.MarkFlagRequired("failed")
	return c
}

// notifier is the webhook that the flags or the environment name, or nil.
func (a *app) notifier(address, secretFile string) (func(context.Context, release.Notice) error, error) {
	if address == "" {
		address = a.env.Getenv("RELEASE_BOT_WEBHOOK_URL")
	}
	if address == "" {
		return nil, nil //nolint:nilnil // no webhook is a valid choice
	}
	secret := a.env.Getenv("RELEASE_BOT_WEBHOOK_SECRET")
	if secretFile != "" {
		raw, err := os.ReadFile(secretFile)
		if err != nil {
			return nil, problem.Wrap(err, problem.Usage, "expected to read the webhook's secret", "check --webhook-secret-file")
		}
		if secret = strings.TrimSpace(string(raw)); secret == "" {
			return nil, problem.New(problem.Usage, fmt.Sprintf("expected a secret in %s, found an empty file", secretFile), "check --webhook-secret-file")
		}
	}
	h, err := webhook.New(webhook.Options{URL: redact.Secret(address), Secret: redact.Secret(secret)})
	if err != nil {
		return nil, err
	}
	return h.Send, nil
}
