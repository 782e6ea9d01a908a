package main

import (
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newContract(env cli.Env) *cobra.Command {
	group := &cobra.Command{Use: "contract", Short: "Check extracts against the contract"}
	format := cli.Table
	verify := &cobra.Command{
		Use:   "verify PATH",
		Short: "Check an extract and say how to mend each fault",
		Long: `verify examines an extract: the folder with extract.duckdb and data/, made by
any program. It changes nothing. For each fault it says what was expected, what
was found and the SQL that mends it, and ends with exit code 3.`,
		Example: `  agnes contract verify ./data/extracts/csv
  agnes contract verify ./out/extract.duckdb -o json`,
		Args: cobra.ExactArgs(1),
	}
	cli.OutputFlag(verify, &format)
	verify.RunE = func(c *cobra.Command, args []string) error {
		config, err := settings.Resolve(settings.Inputs{Getenv: env.Getenv})
		if err != nil {
			return err
		}
		report, err := config.RemotePolicy().Verify(c.Context(), args[0])
		if err != nil {
			return err
		}
		if err := cli.Print(env.Stdout, format, report, func(g *cli.Grid) { drawReport(g, report) }); err != nil {
			return err
		}
		if !report.OK {
			return problem.New(problem.Found, fmt.Sprintf("The extract %s does not fit the contract.", args[0]),
				"Mend what is marked FAIL, then verify again: agnes contract verify "+args[0])
		}
		return nil
	}
	group.AddCommand(verify)
	return group
}

func drawReport(g *cli.Grid, report *connectors.Report) {
	for _, check := range report.Checks {
		if check.OK {
			g.Line("ok    %s", check.ID)
			continue
		}
		g.Line("FAIL  %s", check.ID)
		g.Line("      expected  %s", check.Expected)
		g.Line("      found     %s", check.Found)
		g.Line("      mend      %s", check.Hint)
	}
}

type extractReport struct {
	Source    string            `json:"source"`
	Dir       string            `json:"dir"`
	Tables    []extractedTable  `json:"tables"`
	Unchanged []string          `json:"unchanged"`
	Failed    map[string]string `json:"failed"`
	Warnings  []string          `json:"warnings"`
}

type extractedTable struct {
	Name      string `json:"name"`
	Rows      int64  `json:"rows"`
	SizeBytes int64  `json:"size_bytes"`
}

func newExtract(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "extract SOURCE",
		Short: "Extract a source into its folder, without publishing",
		Long: `extract runs one source's connector and commits the extract below
DATA_DIR/extracts, or below --out. It publishes nothing: the next sync does. A
source that the server is extracting at the moment is left alone.`,
		Example: `  agnes extract csv --csv-dir ./examples/shop --out /tmp/extracts
  agnes contract verify /tmp/extracts/csv`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: slices.Sorted(maps.Keys(sources(slog.New(slog.DiscardHandler)))),
	}
	out := c.Flags().String("out", "", "folder to write the extract below; DATA_DIR/extracts when left out")
	tables := c.Flags().StringSlice("table", nil, "only these tables of the source")
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir, settings.CSVDir)
	c.RunE = func(c *cobra.Command, args []string) error {
		config, layout, err := agent.LoadConfig(settings.Inputs{Flags: flags(), Getenv: env.Getenv})
		if err != nil {
			return err
		}
		all := sources(newLogger(env, config))
		openSource, ok := all[args[0]]
		if !ok {
			return cli.UsageError("There is no source %q; expected one of %s.", args[0], strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		source, err := openSource(config)
		if err != nil {
			return err
		}
		dir := *out
		if dir == "" {
			dir = layout.Extracts()
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		bar := cli.NewProgress(env, "Extracting")
		_, res, err := connectors.Run(c.Context(), source, connectors.Request{Tables: *tables}, dir, func(p connectors.Progress) {
			if p.Total > 0 {
				bar.Set(float64(p.Done)/float64(p.Total), p.Table)
			}
		})
		bar.Close()
		if err != nil {
			return err
		}
		return printExtract(env, format, filepath.Join(dir, source.Name()), source.Name(), res)
	}
	return c
}

func printExtract(env cli.Env, format cli.Format, dir, source string, res connectors.Result) error {
	report := extractReport{Source: source, Dir: dir, Tables: []extractedTable{}, Unchanged: append([]string{}, res.Unchanged...), Failed: map[string]string{}, Warnings: []string{}}
	for _, m := range res.Tables {
		report.Tables = append(report.Tables, extractedTable{m.Table, m.Rows, m.SizeBytes})
	}
	for name, err := range res.Failed {
		report.Failed[name] = problem.As(err).Message
	}
	for _, w := range res.Warnings {
		report.Warnings = append(report.Warnings, strings.TrimPrefix(w.Table+": "+w.Message, ": "))
	}
	err := cli.Print(env.Stdout, format, report, func(g *cli.Grid) {
		g.Row("TABLE", "RESULT", "ROWS", "SIZE")
		for _, t := range report.Tables {
			g.Row(t.Name, "extracted", t.Rows, cli.Bytes(t.SizeBytes))
		}
		for _, name := range report.Unchanged {
			g.Row(name, "unchanged", "", "")
		}
		for _, name := range slices.Sorted(maps.Keys(report.Failed)) {
			g.Row(name, "failed", "", "")
		}
		for _, w := range report.Warnings {
			g.Line("Warning: %s", w)
		}
		for _, name := range slices.Sorted(maps.Keys(report.Failed)) {
			g.Line("Failed: %s: %s", name, report.Failed[name])
		}
	})
	if err != nil {
		return err
	}
	if len(res.Failed) > 0 {
		return problem.New(problem.Internal, fmt.Sprintf("%d tables could not be extracted.", len(res.Failed)),
			"Mend what is said above of each, then extract again; unchanged tables cost nothing.")
	}
	return nil
}
