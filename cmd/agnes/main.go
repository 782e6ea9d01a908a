// Command agnes is the instance: the server and what has to run beside its
// data. It is the only binary that contains DuckDB.
//
// Each command is a function that returns its cobra command. Here, and nowhere
// else, it is decided which data sources an instance has.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == query.WorkerCommand {
		work()
	}
	ctx, stop := cli.Signals()
	defer stop()
	env := cli.OS()
	os.Exit(run(ctx, env.Args, env.Getenv, env.Stdin, env.Stdout, env.Stderr))
}

// work is the program as a query worker. It comes before everything else, so
// that a worker starts as fast as a process can.
func work() {
	if err := query.WorkerMain(); err != nil {
		_, _ = io.WriteString(os.Stderr, "query worker: "+err.Error()+"\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// run is the whole program.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	env := cli.Env{Args: args, Getenv: getenv, Stdin: stdin, Stdout: stdout, Stderr: stderr}
	return cli.Main(ctx, env, newRoot)
}

func newRoot(env cli.Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "agnes",
		Short: "Run a self-hosted data-analyst instance",
		Long: `agnes runs one Agnes instance: tables from your sources, answered in SQL, for
people and AI agents. All it keeps lies below one data directory.

Answers go to standard output, the log and everything else to standard error.`,
		Example: `  agnes serve --data-dir ./data --csv-dir ./examples/shop
  agnes config
  agnes contract verify ./data/extracts/csv`,
	}
	root.AddCommand(
		newServe(env),
		newHealthcheck(env),
		newConfig(env),
		newAdmin(env),
		newToken(env),
		newBackup(env),
		newSchema(env),
		newContract(env),
		newExtract(env),
		newSurface(env),
		cli.VersionCommand(env),
		cli.CompletionCommand(env),
		cli.DocsCommand(env),
	)
	return root
}

// sources lists the data sources of this build by their data_source.
func sources(log *slog.Logger) map[string]agent.OpenSource {
	return map[string]agent.OpenSource{
		"csv": func(config *settings.Resolved) (connectors.Source, error) {
			dir := config.Get(settings.CSVDir)
			if dir == "" {
				return nil, problem.New(problem.Unprocessable, "Missing csv_dir. Set AGNES_CSV_DIR in .env or pass csv_dir via /api/admin/configure.",
					`POST /api/admin/configure {"data_source":"csv","csv_dir":"/path/to/files"}`).WithCode("missing_setting")
			}
			return csv.New(csv.Options{Dir: dir, OnBadRow: csv.BadRowPolicy(config.Get(settings.CSVOnBadRow)), Log: log}), nil
		},
	}
}

// configFlags adds the flags of the settings that have one. The returned
// function gives those that were set.
func configFlags(c *cobra.Command, keys ...string) func() map[string]string {
	values := map[string]*string{}
	flags := map[string]string{}
	for _, s := range settings.All() {
		for _, key := range keys {
			if s.Key == key {
				values[key] = c.Flags().String(s.Flag, s.Default, s.Help)
				flags[key] = s.Flag
				if len(s.OneOf) > 0 {
					_ = c.RegisterFlagCompletionFunc(s.Flag, cobra.FixedCompletions(s.OneOf, cobra.ShellCompDirectiveNoFileComp))
				}
			}
		}
	}
	return func() map[string]string {
		given := map[string]string{}
		for key, flag := range flags {
			if c.Flags().Changed(flag) {
				given[key] = *values[key]
			}
		}
		return given
	}
}

func newLogger(env cli.Env, config *settings.Resolved) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(config.Get(settings.LogLevel))) // one of the allowed values
	opt := &slog.HandlerOptions{Level: level}
	if config.Get(settings.LogFormat) == "json" {
		return slog.New(slog.NewJSONHandler(env.Stderr, opt))
	}
	return slog.New(slog.NewTextHandler(env.Stderr, opt))
}

// open opens the instance of a data directory for a command that works beside
// its data, which needs the server to be stopped.
func open(ctx context.Context, env cli.Env, flags map[string]string) (*agent.Instance, error) {
	log := slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return agent.Open(ctx, agent.Options{
		Inputs:  settings.Inputs{Flags: flags, Getenv: env.Getenv},
		Sources: sources(log),
		Build:   buildinfo.Get(env.Getenv),
		Log:     log,
	})
}

// closeInto closes an instance. An error of before stays as it is, so that it
// is printed with its own next step.
func closeInto(err *error, instance *agent.Instance) {
	if closing := instance.Close(); closing != nil {
		*err = errors.Join(*err, closing)
	}
}
