package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/dashboard"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newFleetSD(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	var what, shardText, output string
	c := &cobra.Command{
		Use:   "sd",
		Short: "List the instances for Prometheus (service discovery)",
		Long: `sd prints the inventory as Prometheus' HTTP and file service discovery read it: a
list of targets with labels. No instance is asked. agnesctl fleet serve answers the
same at /sd.

--for metrics lists host:port, for the instances' own GET /metrics (which needs a
token of each instance). --for health lists whole addresses of GET /api/health, for
an exporter that probes. The label name stays on every series; what begins with
__meta_agnes_ is for relabeling: wanted, channel, delivery, cloud, url and
label_KEY for each label. docs/fleet.md and infra/monitoring have examples.`,
		Example: `  agnesctl fleet sd
  agnesctl fleet sd -l tier=canary --for health
  agnesctl fleet sd --shard 2/5 --output /etc/prometheus/agnes.json`,
		Args: cobra.NoArgs,
	}
	f.add(c)
	c.Flags().StringVar(&what, "for", dashboard.ForMetrics, "metrics or health")
	c.Flags().StringVar(&shardText, "shard", "", "a part of the fleet alone, I/N")
	c.Flags().StringVar(&output, "output", "", "file to write; it is replaced in one step")
	_ = c.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{dashboard.ForMetrics, dashboard.ForHealth}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.MarkFlagFilename("output", "json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		shard, err := fleet.ParseShard(shardText)
		if err != nil {
			return err
		}
		_, chosen, err := f.load(c.Context())
		if err != nil {
			return err
		}
		groups, err := dashboard.Targets(shard.Of(chosen), what)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		if err := e.Encode(groups); err != nil {
			return fmt.Errorf("write the targets: %w", err)
		}
		if output == "" {
			_, err := env.Stdout.Write(b.Bytes())
			return err
		}
		if err := renameio.WriteFile(output, b.Bytes(), 0o644); err != nil {
			return problem.Wrap(err, problem.Internal, "The targets cannot be written to "+output+".", "Check the folder, or name another file: --output FILE")
		}
		fmt.Fprintf(env.Stderr, "%s in %s.\n", plural(len(groups), "target"), cli.Sanitize(output))
		return nil
	}
	return c
}
