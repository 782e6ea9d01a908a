// Command release-bot will be the release workflow's helper: it claims
// versions, publishes and promotes images, and judges breaking changes.
//
// So far it tells its own build. Each verb is registered when it works, and not
// before, so that --help never promises what cannot be run.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func main() {
	ctx, stop := cli.Signals()
	defer stop()
	env := cli.OS()
	os.Exit(run(ctx, env.Args, env.Getenv, env.Stdin, env.Stdout, env.Stderr))
}

// run is the whole program.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	env := cli.Env{Args: args, Getenv: getenv, Stdin: stdin, Stdout: stdout, Stderr: stderr}
	return cli.Main(ctx, env, newRoot)
}

func newRoot(env cli.Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "release-bot",
		Short: "Release Agnes images",
		Long: `release-bot releases Agnes images.

This build tells its own version and nothing else yet. Planned, and not to be
called before they are listed below: claiming versions (version next, claim,
list), tags, publish, promote, verdict, deprecate, rollback, prune, restore, and
the breaking-change check (check, gate, notes).`,
		Example: `  release-bot version
  release-bot version -o json`,
	}
	root.AddCommand(
		cli.VersionCommand(env),
		cli.CompletionCommand(env),
		cli.TreeCommand(env),
		cli.DocsCommand(env),
	)
	return root
}
