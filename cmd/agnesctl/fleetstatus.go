package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// wide is the table with all that fits into lines.
const wide cli.Format = "wide"

func newFleetStatus(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	ask := &gathering{env: env}
	format := cli.Table
	var failOn []string
	var watch bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Ask every instance how it is, and compare with what is wanted",
		Long: `status asks each instance of the inventory for its health, once, and puts it
beside what the inventory wants. It only reads. An instance with a token is also
asked for its image's digest, its configuration's hash and the age of its data.

--resolve asks the registry what the wanted tags are, so that an instance behind
its channel has drift, and one whose tag was moved. --hosts looks over SSH for
what only a host can tell. --smoke asks each instance with a token for its catalog
and for SELECT 1, too; it makes no account and starts no sync.

--watch goes on asking, each instance at its interval: on a terminal as a live
view (press ? for its keys), elsewhere as a line for each change.

When nothing answers, this machine's own network is at fault, and nothing is said
to be down.

Exit codes: 0; 3 where --fail-on finds something; 5 where this machine or its
network is in trouble, or a smoke test that --fail-on asks about is inconclusive.`,
		Example: `  agnesctl fleet status -f fleet.yaml
  agnesctl fleet status --watch
  agnesctl fleet status -l tier=canary -o wide --resolve --hosts
  agnesctl fleet status --smoke --fail-on unhealthy,drift,smoke -o json`,
		Args: cobra.NoArgs,
	}
	f.add(c)
	words := []string{"unhealthy", "degraded", "drift", "smoke"}
	c.Flags().StringSliceVar(&failOn, "fail-on", nil, "end with exit code 3 when an instance is unhealthy (or unreachable), degraded (or worse), has drift, or fails its smoke test")
	_ = c.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	c.Flags().BoolVar(&watch, "watch", false, "go on asking, each instance at its interval, until interrupted")
	c.Flags().BoolVar(&ask.registry, "resolve", false, "ask the registry once what each wanted tag is")
	c.Flags().BoolVar(&ask.smoke, "smoke", false, "also make a smoke test that only reads, where there is a token")
	ask.addHosts(c)
	cli.OutputFlag(c, &format, wide, markdown)
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, word := range failOn {
			if !slices.Contains(words, word) {
				return cli.UsageError("--fail-on is %q; expected unhealthy, degraded, drift or smoke.", word)
			}
			if word == "smoke" && !ask.smoke {
				return cli.UsageError("--fail-on smoke needs a smoke test; expected --smoke, too.")
			}
		}
		if watch && (ask.smoke || len(failOn) > 0 || format != cli.Table) {
			return cli.UsageError("--watch does not end by itself; expected it without --smoke, --fail-on and -o.")
		}
		inventory, instances, err := f.load(c.Context())
		if err != nil {
			return err
		}
		if watch {
			return watchFleet(c.Context(), ask, inventory.Image, instances)
		}
		results, facts, err := ask.ask(c.Context(), inventory.Image, instances)
		if err != nil {
			return err
		}
		status := facts.Status(time.Now(), instances, results)
		if err := printStatus(env, format, status); err != nil {
			return err
		}
		return statusError(status, failOn)
	}
	return c
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

// statusColumn is one column of the table.
type statusColumn struct {
	head string
	cell func(fleet.InstanceStatus) string
}

// statusColumns are those of a table: all of them, or those that fit into lines. A
// column of smoke tests is there where some were asked for.
func statusColumns(s fleet.Status, all bool) []statusColumn {
	columns := []statusColumn{
		{"NAME", func(i fleet.InstanceStatus) string { return i.Name }},
		{"STATUS", statusWord},
		{"VERSION", func(i fleet.InstanceStatus) string { return i.Version }},
		{"CHANNEL", func(i fleet.InstanceStatus) string { return i.Channel }},
		{"WANTED", func(i fleet.InstanceStatus) string { return i.Wanted }},
		{"DRIFT", statusDrift},
		{"DATA AGE", statusAge},
		{"LATENCY", statusLatency},
	}
	if s.Summary.Smoke != nil {
		columns = append(columns, statusColumn{"SMOKE", statusSmoke})
	}
	columns = append(columns, statusColumn{"SAYS", statusSays})
	if all {
		columns = append(columns,
			statusColumn{"CERTIFICATE", statusCertificate},
			statusColumn{"URL", func(i fleet.InstanceStatus) string { return i.URL }},
			statusColumn{"DIGEST", func(i fleet.InstanceStatus) string { return i.Digest }},
			statusColumn{"BUNDLE", func(i fleet.InstanceStatus) string { return i.BundleVersion }},
			statusColumn{"CONFIG", func(i fleet.InstanceStatus) string { return i.ConfigHash }})
	}
	return columns
}

// statusWord is the state, with what kept the probe from an answer: a name that
// does not resolve is another trouble than a host that is silent.
func statusWord(i fleet.InstanceStatus) string {
	if i.Fault != fleet.NoFault {
		return fmt.Sprintf("%s (%s)", i.Status, i.Fault)
	}
	return string(i.Status)
}

func statusDrift(i fleet.InstanceStatus) string {
	switch {
	case i.Drift == nil:
		return "unknown"
	case *i.Drift:
		return "yes: " + i.DriftReason
	}
	return "no"
}

func statusAge(i fleet.InstanceStatus) string {
	if i.DataAgeS == nil {
		return ""
	}
	return (time.Duration(*i.DataAgeS) * time.Second).String()
}

func statusLatency(i fleet.InstanceStatus) string {
	if i.LatencyMS == nil {
		return ""
	}
	return fmt.Sprint(*i.LatencyMS, " ms")
}

func statusSmoke(i fleet.InstanceStatus) string {
	switch s := i.Smoke; {
	case s == nil:
		return ""
	case s.Step != "":
		return fmt.Sprintf("%s at %s: %s", s.Verdict, s.Step, s.Detail)
	default:
		return string(s.Verdict)
	}
}

func statusSays(i fleet.InstanceStatus) string {
	said := i.Error
	if said == "" && len(i.Warnings) > 0 {
		said = i.Warnings[0]
		if more := len(i.Warnings) - 1; more > 0 {
			said += fmt.Sprintf(" (and %d more)", more)
		}
	}
	return said
}

func statusCertificate(i fleet.InstanceStatus) string {
	switch days := i.CertDaysLeft; {
	case days == nil:
		return ""
	case *days < 0:
		return "ended " + i.CertNotAfter.Format(time.DateOnly)
	default:
		return fmt.Sprintf("%s left, to %s", plural(*days, "day"), i.CertNotAfter.Format(time.DateOnly))
	}
}

func statusHead(columns []statusColumn) []string {
	row := make([]string, len(columns))
	for n, c := range columns {
		row[n] = c.head
	}
	return row
}

func statusRow(columns []statusColumn, i fleet.InstanceStatus) []string {
	row := make([]string, len(columns))
	for n, c := range columns {
		row[n] = c.cell(i)
	}
	return row
}

func cells(row []string) []any {
	out := make([]any, len(row))
	for i, text := range row {
		out[i] = text
	}
	return out
}

func statusTable(g *cli.Grid, s fleet.Status, all bool) {
	columns := statusColumns(s, all)
	g.Row(cells(statusHead(columns))...)
	for _, i := range s.Instances {
		g.Row(cells(statusRow(columns, i))...)
	}
	g.Line("")
	g.Line("%s", statusSummary(s.Summary))
}

func statusSummary(s fleet.StatusSummary) string {
	text := fmt.Sprintf("%s: %d healthy, %d degraded, %d unhealthy, %d unreachable; %d drifted, %d deprecated.",
		plural(s.Total, "instance"), s.Healthy, s.Degraded, s.Unhealthy, s.Unreachable, s.Drifted, s.Deprecated)
	if n := s.Faults[fleet.FaultDNS]; n > 0 {
		text += fmt.Sprintf(" DNS: %s without an address.", plural(n, "name"))
	}
	if s.CertExpiring > 0 {
		text += fmt.Sprintf(" Certificates that end soon, or have: %d.", s.CertExpiring)
	}
	if s.Smoke != nil {
		text += fmt.Sprintf(" Smoke tests: %d passed, %d failed, %d inconclusive.", s.Smoke[smoke.Pass], s.Smoke[smoke.Fail], s.Smoke[smoke.Inconclusive])
	}
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
	columns := statusColumns(s, false)
	markdownRow(&b, statusHead(columns))
	b.WriteString("|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, i := range s.Instances {
		markdownRow(&b, statusRow(columns, i))
	}
	b.WriteString("\n" + cli.Sanitize(statusSummary(s.Summary)) + "\n")
	return b.String()
}

// markdownRow writes a row of a table. What instances say is text in it, and
// neither a link nor another cell.
func markdownRow(b *strings.Builder, row []string) {
	b.WriteString("|")
	for _, text := range row {
		b.WriteString(" " + markdownText(text) + " |")
	}
	b.WriteString("\n")
}

func markdownText(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "[", `\[`, "`", "\\`").Replace(cli.Sanitize(text))
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
		"smoke":     n.Smoke[smoke.Fail],
	}
	for _, word := range failOn {
		if found[word] > 0 {
			return problem.New(problem.Found, fmt.Sprintf("%s of %d: %s.", plural(found[word], "instance"), n.Total, word), "The table says which; each line of -o json has a hint.")
		}
	}
	if open := n.Smoke[smoke.Inconclusive]; open > 0 && slices.Contains(failOn, "smoke") {
		return problem.New(problem.Inconclusive, fmt.Sprintf("%s of %d: the smoke test shows nothing.", plural(open, "instance"), n.Total), "The table says why; each line of -o json has a hint.")
	}
	return nil
}
