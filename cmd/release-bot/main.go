// Command release-bot releases Agnes images: it claims version numbers, points
// tags at digests, keeps the ledger of verdicts and deprecations, rolls back,
// and prunes what nobody can need any more.
//
// It runs as a GitHub Action and as a command line, and holds no state: a verb
// can be run again at any point and then converges. Each verb is a function that
// returns its cobra command; app holds what they share: the surroundings, the
// places outside (refs, registry, forge) and the one way to answer.
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
	if len(args) == 1 && args[0] == "action" {
		return runAction(ctx, env)
	}
	return cli.Main(ctx, env, newRoot)
}

func newRoot(env cli.Env) *cobra.Command {
	a := &app{env: env}
	root := &cobra.Command{
		Use:   "release-bot",
		Short: "Release Agnes images",
		Long: `release-bot releases Agnes images: every merge to main is a version.

Claims and the ledger are git refs: of the GitHub repository that --repo names,
or of any git remote by --git. Images are those of --registry. Every verb can be
run again after an interruption and ends the same.

Environment: GITHUB_TOKEN, GITHUB_REPOSITORY, GITHUB_API_URL, GITHUB_SHA and
GITHUB_REF are defaults of the flags; with GITHUB_OUTPUT and GITHUB_STEP_SUMMARY
the answer is written there, too.`,
		Example: `  release-bot version claim --git . --channel dev --commit "$(git rev-parse HEAD)"
  release-bot tags --channel stable --version 2026.04.3 --commit "$(git rev-parse HEAD)"
  release-bot version -o json`,
	}
	a.flags(root.PersistentFlags())
	root.AddCommand(
		newVersion(a),
		newTags(a),
		newPublish(a),
		newPromote(a),
		newVerdict(a),
		newDeprecate(a),
		newRollback(a),
		newPrune(a),
		newRestore(a),
		newNotes(a),
		newPreflight(a),
		newAction(a),
		cli.CompletionCommand(env),
		cli.TreeCommand(env),
		cli.DocsCommand(env),
	)
	return root
}
