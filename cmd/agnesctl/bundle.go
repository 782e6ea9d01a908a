package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/infra/bundle"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// bundled is what `host bundle` answers.
type bundled struct {
	Version string          `json:"version"`
	Dir     string          `json:"dir"`
	DryRun  bool            `json:"dry_run"`
	Files   []bundle.Change `json:"files"`
}

func newHostBundle(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "bundle [DIR]",
		Short: "Write the compose files, the Caddyfile and the update timer of this version",
		Long: `bundle writes what a host needs beside the image: docker-compose.yml,
docker-compose.prod.yml, an example of an override file, the Caddyfile, the
units of the update timer, and this very program as bin/agnesctl. The folder is
/opt/agnes unless DIR says otherwise.

Each file is replaced as a whole, and only where it differs. Never touched are
.env, docker-compose.override.yml, config/ and custom-connectors/: they are
yours. --tar writes all of it as a tar archive to standard output instead.`,
		Example: `  agnesctl host bundle /opt/agnes
  agnesctl host bundle --dry-run
  docker run --rm --network none --entrypoint agnesctl ghcr.io/keboola/agnes-the-ai-analyst:stable host bundle --tar | tar -x -C /opt/agnes`,
		Args: cobra.MaximumNArgs(1),
	}
	var (
		asTar, dryRun bool
		format        cli.Format
	)
	c.Flags().BoolVar(&asTar, "tar", false, "write a tar archive to standard output")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and write nothing")
	cli.OutputFlag(c, &format)
	c.MarkFlagsMutuallyExclusive("tar", "dry-run")
	c.RunE = func(_ *cobra.Command, args []string) error {
		if asTar && len(args) > 0 {
			return cli.UsageError("With --tar, no folder is written: leave out %q.", args[0])
		}
		if asTar && cli.IsTerminal(env.Stdout) {
			return cli.UsageError("A tar archive does not go to a terminal: agnesctl host bundle --tar >bundle.tar")
		}
		files, err := hostFiles()
		if err != nil {
			return err
		}
		if asTar {
			return bundle.Tar(env.Stdout, files)
		}
		answer := bundled{Version: bundle.Version(env.Getenv), Dir: "/opt/agnes", DryRun: dryRun}
		if len(args) > 0 {
			answer.Dir = args[0]
		}
		does := bundle.Write
		if dryRun {
			does = bundle.Plan
		}
		if answer.Files, err = does(answer.Dir, files); err != nil {
			return problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("Expected to write the bundle into %s, which failed", answer.Dir),
				"Run it as a user who may write there, or name another folder: agnesctl host bundle DIR")
		}
		return cli.Print(env.Stdout, format, answer, func(g *cli.Grid) {
			g.Row("FILE", "ACTION")
			for _, f := range answer.Files {
				g.Row(f.Name, f.Action)
			}
		})
	}
	return c
}

// hostFiles returns the bundle with this program in it.
func hostFiles() ([]bundle.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := bundle.ReadProgram(self)
	if err != nil {
		return nil, err
	}
	return append(bundle.Files(), program), nil
}
