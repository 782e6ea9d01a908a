package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// wide is the table with all that fits into lines.
const wide cli.Format = "wide"

func newFleetStatus(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	format := cli.Table
	var failOn []string
	c := &cobra.Command{
		Use:   "status",
		Short: "Ask every instance how it is, and compare with what is wanted",
		Long: `status asks each instance of the inventory for its health, once, and puts it
beside what the inventory wants. It only reads. An instance with a token is also
asked for its image's digest, its configuration's hash and the age of its data.

When nothing answers, this machine's own network is at fault, and nothing is said
to be down.

Exit codes: 0; 3 where --fail-on finds something; 5 where this machine or its
network is in trouble.`,
		Example: `  agnesctl fleet status -f fleet.yaml
  agnesctl fleet status -l tier=canary -o wide
  agnesctl fleet status --fail-on unhealthy --fail-on drift -o json`,
		Args: cobra.NoArgs,
	}
	f.add(c)
	c.Flags().StringSliceVar(&failOn, "fail-on", nil, "end with exit code 3 when an instance is unhealthy (or unreachable), degraded (or worse), or has drift")
	_ = c.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions([]string{"unhealthy", "degraded", "drift"}, cobra.ShellCompDirectiveNoFileComp))
	cli.OutputFlag(c, &format, wide, markdown)
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, word := range failOn {
			if !slices.Contains([]string{"unhealthy", "degraded", "drift"}, word) {
				return cli.UsageError("--fail-on is %q; expected unhealthy, degraded or drift.", word)
			}
		}
		_, instances, err := f.load(c.Context())
		if err != nil {
			return err
		}
		status, err := sweepOnce(c.Context(), env, instances)
		if err != nil {
			return err
		}
		if err := printStatus(env, format, status); err != nil {
			return err
		}
		return statusError(status, failOn)
	}
	return c
}

// sweepOnce asks every instance once; nothing is kept for another time.
func sweepOnce(ctx context.Context, env cli.Env, instances []fleet.Instance) (fleet.Status, error) {
	prober := fleet.NewProber(fleet.ProbeOptions{MaxIdle: -1, MaxSessions: -1, Proxy: http.ProxyFromEnvironment})
	defer prober.Close()
	bar := cli.NewProgress(env, "status")
	defer bar.Close()
	results := make([]fleet.Result, 0, len(instances))
	_, err := prober.Sweep(ctx, instances, func(r fleet.Result) {
		results = append(results, r)
		bar.Set(float64(len(results))/float64(len(instances)), r.Name)
	})
	return fleet.NewStatus(time.Now(), instances, results), err
}

func printStatus(env cli.Env, format cli.Format, s fleet.Status) error {
	switch format {
	case markdown:
		_, err := fmt.Fprint(env.Stdout, statusMarkdown(s))
		return err
	case wide:
		return cli.Print(env.Stdout, cli.Table, s, func(g *cli.Grid) { statusTable(g, s, true) })
	}
	return cli.Print(env.Stdout, format, s, func(g *cli.Grid) { statusTable(g, s, false) })
}

// statusRow are the columns of one instance.
func statusRow(i fleet.InstanceStatus, all bool) []string {
	drift := "unknown"
	if i.Drift != nil {
		drift = "no"
		if *i.Drift {
			drift = "yes: " + i.DriftReason
		}
	}
	age, latency := "", ""
	if i.DataAgeS != nil {
		age = (time.Duration(*i.DataAgeS) * time.Second).String()
	}
	if i.LatencyMS != nil {
		latency = fmt.Sprint(*i.LatencyMS, " ms")
	}
	said := i.Error
	if said == "" && len(i.Warnings) > 0 {
		said = i.Warnings[0]
		if more := len(i.Warnings) - 1; more > 0 {
			said += fmt.Sprintf(" (and %d more)", more)
		}
	}
	row := []string{i.Name, string(i.Status), i.Version, i.Channel, i.Wanted, drift, age, latency, said}
	if all {
		row = append(row, i.URL, i.Digest, i.BundleVersion, i.ConfigHash)
	}
	return row
}

func statusHead(all bool) []string {
	head := []string{"NAME", "STATUS", "VERSION", "CHANNEL", "WANTED", "DRIFT", "DATA AGE", "LATENCY", "SAYS"}
	if all {
		head = append(head, "URL", "DIGEST", "BUNDLE", "CONFIG")
	}
	return head
}

func cells(row []string) []any {
	out := make([]any, len(row))
	for i, text := range row {
		out[i] = text
	}
	return out
}

func statusTable(g *cli.Grid, s fleet.Status, all bool) {
	g.Row(cells(statusHead(all))...)
	for _, i := range s.Instances {
		g.Row(cells(statusRow(i, all))...)
	}
	g.Line("")
	g.Line("%s", statusSummary(s.Summary))
}

func statusSummary(s fleet.StatusSummary) string {
	text := fmt.Sprintf("%s: %d healthy, %d degraded, %d unhealthy, %d unreachable; %d drifted, %d deprecated.",
		plural(s.Total, "instance"), s.Healthy, s.Degraded, s.Unhealthy, s.Unreachable, s.Drifted, s.Deprecated)
	var versions []string
	for _, v := range slices.Sorted(maps.Keys(s.Versions)) {
		versions = append(versions, fmt.Sprintf("%s on %d", v, s.Versions[v]))
	}
	if len(versions) > 0 {
		text += " Versions: " + strings.Join(versions, ", ") + "."
	}
	if s.SelfTrouble != "" {
		text += " " + s.SelfTrouble
	}
	return text
}

func statusMarkdown(s fleet.Status) string {
	var b strings.Builder
	line := func(row []string) {
		b.WriteString("|")
		for _, text := range row {
			b.WriteString(" " + strings.NewReplacer("|", `\|`, "\n", " ").Replace(cli.Sanitize(text)) + " |")
		}
		b.WriteString("\n")
	}
	line(statusHead(false))
	b.WriteString("|" + strings.Repeat("---|", len(statusHead(false))) + "\n")
	for _, i := range s.Instances {
		line(statusRow(i, false))
	}
	b.WriteString("\n" + cli.Sanitize(statusSummary(s.Summary)) + "\n")
	return b.String()
}

// statusError is the exit code of what was found.
func statusError(s fleet.Status, failOn []string) error {
	if s.Summary.SelfTrouble != "" {
		return problem.New(problem.Inconclusive, s.Summary.SelfTrouble, "Look at this machine's network, then ask again.")
	}
	n := s.Summary
	found := map[string]int{
		"unhealthy": n.Unhealthy + n.Unreachable,
		"degraded":  n.Degraded + n.Unhealthy + n.Unreachable,
		"drift":     n.Drifted,
	}
	for _, word := range failOn {
		if found[word] > 0 {
			return problem.New(problem.Found, fmt.Sprintf("%s of %d: %s.", plural(found[word], "instance"), n.Total, word), "The table says which; each line of -o json has a hint.")
		}
	}
	return nil
}
