package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newCanary(env cli.Env) *cobra.Command {
	group := &cobra.Command{Use: "canary", Short: "Try a release on a host that is there for it"}
	d := &deployFlags{hostFlags: hostFlags{env: env}}
	var retries int
	var retryWait time.Duration
	c := &cobra.Command{
		Use:   "deploy",
		Short: "Deploy a release to the canary and give a verdict",
		Long: `deploy takes the canary to a release and smoke tests it, all seven steps. A
release that does not pass leaves the canary as it was.

The verdict is the exit code: 0 pass, 1 fail, 5 inconclusive. Only fail speaks
against the release; with 5 the machinery was in trouble: try again (--retries
does), then tell somebody, and roll nothing back. In a GitHub workflow the
fields of the answer are the step's outputs, too.`,
		Example: `  agnesctl canary deploy --host ssh://agnes@canary/opt/agnes --known-hosts known_hosts --tag stable-2026.04.3 -o json
  agnesctl canary deploy --host ssh://agnes@canary --host-key 'ssh-ed25519 AAAA…' --tag stable --digest sha256:… --retries 2`,
		Args: cobra.NoArgs,
	}
	d.add(c, smoke.Full, deploy.RestoreState)
	d.target(c)
	c.Flags().IntVar(&retries, "retries", 0, "how often an inconclusive deploy is tried again")
	c.Flags().DurationVar(&retryWait, "retry-wait", 30*time.Second, "pause before it is tried again")
	c.MarkFlagsOneRequired("tag", "digest")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return d.on(func(o deploy.Options) error {
			out, err := tryAgain(c.Context(), o, retries, retryWait)
			if rerr := cli.Record(env, out, fmt.Sprintf("### Canary: %s\n\n    %s\n\n", out.Verdict, cli.Sanitize(out.Message))); rerr != nil {
				return rerr
			}
			if err = d.conclude(out, err); problem.Is(err, problem.Refused) {
				guard := *problem.As(err) // which says nothing about the release either
				guard.Kind = problem.Inconclusive
				return &guard
			}
			return err
		})
	}
	group.AddCommand(c)
	return group
}

// tryAgain deploys until the verdict is pass or fail, or it was tried often
// enough.
func tryAgain(ctx context.Context, o deploy.Options, retries int, wait time.Duration) (deploy.Outcome, error) {
	for {
		out, err := deploy.Deploy(ctx, o)
		if err == nil || out.Verdict != smoke.Inconclusive || problem.Is(err, problem.Usage) || retries <= 0 || pause.For(ctx, wait) != nil {
			return out, err
		}
		retries--
		o.Log.Warn("The deploy was inconclusive and is tried again.", "error", err)
	}
}
