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
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
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
		Example: `  release-bot version claim --git "$(git remote get-url origin)" --channel dev --commit "$(git rev-parse HEAD)"
  release-bot tags --channel stable --version 2026.04.3 --commit "$(git rev-parse HEAD)"
  release-bot version -o json`,
	}
	flags := root.PersistentFlags()
	a.flags(flags)
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
	each(root, func(c *cobra.Command) {
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error { return nextStep(flags, release.Unsettled(run(c, args))) }
		}
	})
	return root
}

func each(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, child := range c.Commands() {
		each(child, do)
	}
}

// nextStep gives the command of an error's hint the places that this call named,
// so that it can be run as it stands.
func nextStep(flags *pflag.FlagSet, err error) error {
	e, ok := errors.AsType[*problem.Error](err)
	if !ok || err != error(e) || //nolint:errorlint // an error around a problem speaks for itself
		!strings.HasPrefix(e.Hint, "release-bot ") || strings.ContainsAny(e.Hint, ";\n") || strings.Count(e.Hint, "release-bot ") > 1 {
		return err
	}
	hint := e.Hint
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed && !strings.Contains(hint, "--"+f.Name) && !strings.Contains(f.Value.String(), "@") { // nor a password
			hint += " --" + f.Name + " " + f.Value.String()
		}
	})
	if hint == e.Hint {
		return err
	}
	c := *e
	c.Hint = hint
	return &c
}
