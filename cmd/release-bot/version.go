package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// newVersion tells the build and holds the verbs of version numbers.
func newVersion(a *app) *cobra.Command {
	c := cli.VersionCommand(a.env)
	c.AddCommand(newVersionClaim(a), newVersionNext(a), newVersionList(a))
	return c
}

// claimAnswer is a claim, or what it would be.
type claimAnswer struct {
	release.Claim
	DryRun bool `json:"dry_run,omitzero"`
}

func newVersionClaim(a *app) *cobra.Command {
	var channel, commit, at string
	var dryRun bool
	c := &cobra.Command{
		Use:   "claim",
		Short: "Claim the version number of a commit's build",
		Long: `claim gives a commit's build for a channel its version: the next number of this
month (UTC) over all channels, or the one that it has. It can be repeated, and
run by many at once: each (channel, commit) gets one number, each number belongs
to one. A claim is the annotated tag YYYY.MM.N; claims are never deleted.

Over GitHub it needs contents: write. The commit must have been pushed.`,
		Example: `  release-bot version claim --channel stable --commit "$(git rev-parse HEAD)" --git "$(git remote get-url origin)"
  release-bot version claim --channel dev -o json
  release-bot version claim --channel dev --git https://git.example.com/team/app.git --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ch, err := release.ParseChannel(channel)
			if err != nil {
				return err
			}
			if commit == "" {
				commit = a.env.Getenv("GITHUB_SHA")
			}
			if _, err := release.ParseCommit(commit); err != nil {
				return err
			}
			opts := a.ledgerOptions()
			if at != "" {
				moment, err := time.Parse(time.RFC3339, at)
				if err != nil {
					return problem.New(problem.Usage, fmt.Sprintf("expected --at as a time such as 2026-04-08T12:00:00Z, found %q", at),
						"release-bot version claim --at \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\" …")
				}
				opts.Now = func() time.Time { return moment }
			}
			refs, err := a.refs()
			if err != nil {
				return err
			}
			ledger := release.NewLedger(refs, opts)
			answer := claimAnswer{DryRun: dryRun}
			if dryRun {
				answer.Claim, err = wouldClaim(c.Context(), ledger, ch, commit)
			} else {
				answer.Claim, err = ledger.Claim(c.Context(), ch, commit)
			}
			if err != nil {
				return err
			}
			return a.answer("Version", answer, func(g *cli.Grid) {
				g.Row("version", answer.Version)
				g.Row("channel", answer.Channel)
				g.Row("commit", answer.Commit)
				switch {
				case dryRun && answer.Claimed:
					g.Row("claimed", "no: a dry run; this number is free now")
				case answer.Claimed:
					g.Row("claimed", "yes")
				default:
					g.Row("claimed", "no: this commit has had it since "+answer.ClaimedAt.Format(time.RFC3339))
				}
			})
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&channel, "channel", "", "`CHANNEL` that the build is for: dev or stable")
	c.Flags().StringVar(&commit, "commit", "", "full `SHA` of the commit (default $GITHUB_SHA)")
	c.Flags().StringVar(&at, "at", "", "`TIME` of the claim, RFC 3339 (default now)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say which number it would be, and claim nothing")
	_ = c.MarkFlagRequired("channel")
	return c
}

// wouldClaim is a claim without writing: somebody else may be quicker.
func wouldClaim(ctx context.Context, l *release.Ledger, ch release.Channel, commit string) (release.Claim, error) {
	got, err := l.ClaimOf(ctx, ch, commit)
	if !errors.Is(err, release.ErrNotFound) {
		return got, err
	}
	next, err := l.Next(ctx)
	return release.Claim{Version: next, Channel: ch, Commit: commit, Tag: next.String(), Claimed: true}, err
}

func newVersionNext(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "next",
		Short: "Print the number that the next claim gets",
		Long: `next prints the number that the next claim of this month (UTC) gets, if nobody
claims before. Only "version claim" makes it yours.`,
		Example: `  release-bot version next --git "$(git remote get-url origin)"
  release-bot version next -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ledger, err := a.ledger()
			if err != nil {
				return err
			}
			next, err := ledger.Next(c.Context())
			if err != nil {
				return err
			}
			answer := struct {
				Version release.Version `json:"version"`
			}{next}
			return a.answer("Next version", answer, func(g *cli.Grid) { g.Line("%s", next) })
		},
	}
	cli.OutputFlag(c, &a.format)
	return c
}

// listed is a line of `version list`.
type listed struct {
	Version    release.Version `json:"version"`
	Channel    release.Channel `json:"channel"`
	Commit     string          `json:"commit"`
	ClaimedAt  time.Time       `json:"claimed_at"`
	Deprecated bool            `json:"deprecated"`
	Verdict    release.Verdict `json:"verdict"`
}

func newVersionList(a *app) *cobra.Command {
	var channel string
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "List claimed versions with their verdicts, newest first",
		Long: `list shows claimed versions, newest first, with what the ledger says of them.
Over GitHub each line costs a request for its time: --limit bounds them.`,
		Example: `  release-bot version list --git "$(git remote get-url origin)"
  release-bot version list --channel stable --limit 5 -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if channel != "" {
				if _, err := release.ParseChannel(channel); err != nil {
					return err
				}
			}
			if limit < 0 {
				return cli.UsageError("Expected --limit as a count of versions, or 0 for all.")
			}
			ledger, err := a.ledger()
			if err != nil {
				return err
			}
			rows, err := list(c.Context(), ledger, release.Channel(channel), limit)
			if err != nil {
				return err
			}
			return a.answer("Versions", rows, func(g *cli.Grid) {
				g.Row("VERSION", "CHANNEL", "COMMIT", "CLAIMED", "VERDICT", "DEPRECATED")
				for _, r := range rows {
					deprecated := ""
					if r.Deprecated {
						deprecated = "deprecated"
					}
					g.Row(r.Version, r.Channel, r.Commit[:7], r.ClaimedAt.Format(time.RFC3339), r.Verdict, deprecated)
				}
			})
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().StringVar(&channel, "channel", "", "only this `CHANNEL`: dev or stable")
	c.Flags().IntVar(&limit, "limit", 20, "at most `N` versions; 0 for all")
	return c
}

func list(ctx context.Context, l *release.Ledger, ch release.Channel, limit int) ([]listed, error) {
	claims, err := l.Claims(ctx)
	if err != nil {
		return nil, err
	}
	var wanted []release.Claim
	for _, c := range claims {
		if (ch == "" || c.Channel == ch) && (limit == 0 || len(wanted) < limit) {
			wanted = append(wanted, c)
		}
	}
	if wanted, err = l.Dated(ctx, wanted...); err != nil {
		return nil, err
	}
	verdicts, err := l.Verdicts(ctx)
	if err != nil {
		return nil, err
	}
	deprecations, err := l.Deprecations(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]listed, len(wanted)) // an empty list is [], not null
	for i, c := range wanted {
		_, deprecated := deprecations[c.Version]
		rows[i] = listed{c.Version, c.Channel, c.Commit, c.ClaimedAt, deprecated, verdicts[c.Version]}
	}
	return rows, nil
}
