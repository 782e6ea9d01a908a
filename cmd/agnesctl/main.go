// Command agnesctl drives Agnes instances from a terminal, a script or an AI
// agent: every step that the browser offers has a headless twin here.
//
// It talks to an instance through agent/api alone and needs no DuckDB, so it is
// one static file. Each command is a function that returns its cobra command;
// app holds what they share: the surroundings and which instance is meant.
package main

import (
	"context"
	"io"
	"os"
	_ "time/tzdata" // windows of maintenance name zones, and a small image has no files of them

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
		Use:   "agnesctl",
		Short: "Set up, drive and deploy Agnes instances",
		Long: `agnesctl sets up, drives and deploys Agnes instances.

Answers go to standard output, everything else to standard error.`,
		Example: `  agnesctl instance setup --email admin@company.com --source csv --csv-dir /srv/shop
  agnesctl instance query 'SELECT count(*) FROM orders'
  agnesctl instance health -o json
  agnesctl smoke https://canary.company.com --token-file canary.token
  agnesctl host deploy --tag stable
  agnesctl fleet list -f fleet.yaml`,
	}
	root.AddCommand(
		newInstance(env),
		newSmoke(env),
		newHost(env),
		newCanary(env),
		newFleet(env),
		cli.VersionCommand(env),
		cli.CompletionCommand(env),
		cli.TreeCommand(env),
		cli.DocsCommand(env),
	)
	return root
}
