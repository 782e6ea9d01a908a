package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newFleetPlan(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	ask := &gathering{env: env, registry: true}
	format := cli.Table
	var failOn []string
	var offline, all bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what a fleet is against what is wanted, like a diff",
		Long: `plan asks each instance what it runs, and the registry what each wanted tag is, and
shows by wave what would be done, why, and by which command:

  ~  something is to be done
  =  it is what is wanted
  !  it cannot be told

It carries nothing out: agnesctl fleet rollout does.

Exit codes: 0; 3 where --fail-on drift finds something to do; 5 where this machine
or its network is in trouble.`,
		Example: `  agnesctl fleet plan
  agnesctl fleet plan -f ops/fleet.yaml -l tier=canary --hosts
  agnesctl fleet plan --git https://github.com/acme/fleet.git --at main --fail-on drift
  agnesctl fleet plan -o markdown >> "$GITHUB_STEP_SUMMARY"`,
		Args: cobra.NoArgs,
	}
	f.add(c)
	c.Flags().StringSliceVar(&failOn, "fail-on", nil, "drift: end with exit code 3 when there is something to do")
	_ = c.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions([]string{"drift"}, cobra.ShellCompDirectiveNoFileComp))
	c.Flags().BoolVar(&offline, "no-registry", false, "do not ask the registry; who follows a channel is behind only where it says so itself")
	c.Flags().BoolVar(&all, "all", false, "show every instance that is what is wanted, however many there are")
	ask.addHosts(c)
	cli.OutputFlag(c, &format, markdown)
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, word := range failOn {
			if word != "drift" {
				return cli.UsageError("--fail-on is %q; expected drift.", word)
			}
		}
		inventory, instances, err := f.load(c.Context())
		if err != nil {
			return err
		}
		ask.registry = !offline
		results, facts, err := ask.ask(c.Context(), inventory.Image, instances)
		if err != nil {
			return err
		}
		plan, err := fleet.NewPlan(fleet.PlanRequest{At: time.Now(), Inventory: inventory, Instances: instances, Results: results, Facts: facts, Flags: f.words(), Selector: f.selector})
		if err != nil {
			return err
		}
		if err := printPlan(env, format, plan, all); err != nil {
			return err
		}
		return planError(plan, failOn)
	}
	return c
}

func printPlan(env cli.Env, format cli.Format, p fleet.Plan, all bool) error {
	switch format {
	case markdown:
		_, err := io.WriteString(env.Stdout, planMarkdown(p, all))
		return err
	case cli.Table:
		var text bytes.Buffer
		if err := cli.Print(&text, cli.Table, p, func(g *cli.Grid) { planGrid(g, p, all) }); err != nil {
			return err
		}
		out := text.String()
		if colored(env) {
			out = planColors(out)
		}
		_, err := io.WriteString(env.Stdout, out)
		return err
	}
	return cli.Print(env.Stdout, format, p, nil)
}

// colored reports whether standard output shows colors to a person who wants them.
func colored(env cli.Env) bool {
	return cli.IsTerminal(env.Stdout) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb"
}

// planMarks begin the lines of instances.
func planMark(a fleet.PlanAction) string {
	switch a {
	case fleet.PlanChange:
		return "~"
	case fleet.PlanSame:
		return "="
	default:
		return "!"
	}
}

// planColors colors the lines of instances by their marks.
func planColors(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		color := ""
		switch {
		case strings.HasPrefix(line, "~ "):
			color = "\x1b[33m"
		case strings.HasPrefix(line, "! "):
			color = "\x1b[31m"
		case strings.HasPrefix(line, "= "):
			color = "\x1b[2m"
		}
		if color == "" {
			b.WriteString(line)
			continue
		}
		b.WriteString(color + strings.TrimSuffix(line, "\n") + "\x1b[0m\n")
	}
	return b.String()
}

// planMove is what an instance runs and what is wanted: both, where they differ.
func planMove(i fleet.PlannedInstance) string {
	from, to := cmp.Or(i.From, "?"), cmp.Or(i.To, "?")
	if i.From != "" && (from == to || i.Action == fleet.PlanSame) {
		return fmt.Sprintf("%s (%s)", from, i.Wanted)
	}
	return fmt.Sprintf("%s -> %s (%s)", from, to, i.Wanted)
}

func planBecause(i fleet.PlannedInstance) string {
	if i.Action == fleet.PlanSame {
		return ""
	}
	reason := strings.Join(i.Because, "; ")
	if i.Action == fleet.PlanUnknown {
		return "cannot tell: " + strings.TrimPrefix(reason, "unknown: ")
	}
	return "because " + reason
}

// samesShown is how many lines of a wave that ask for nothing are shown.
const samesShown = 20

// planShown returns those of a wave that are shown, and how many are not.
func planShown(w fleet.PlannedWave, all bool) (shown []fleet.PlannedInstance, hidden int) {
	same := 0
	for _, i := range w.Instances {
		if i.Action == fleet.PlanSame {
			if same++; same > samesShown && !all {
				hidden++
				continue
			}
		}
		shown = append(shown, i)
	}
	return shown, hidden
}

func planGrid(g *cli.Grid, p fleet.Plan, all bool) {
	g.Line("%s, wanted against actual at %s", p.Image, when(&p.At))
	for _, t := range p.Tags {
		g.Row("  "+t.Tag, planVersion(t), plural(t.Instances, "instance"))
	}
	for _, w := range p.Waves {
		g.Line("")
		g.Line("wave %s: %s, %s at a time, soak %s", w.Name, plural(len(w.Instances), "instance"), w.MaxUnavailable, w.Soak)
		shown, hidden := planShown(w, all)
		for _, i := range shown {
			g.Row(planMark(i.Action)+" "+i.Name, planMove(i), i.Delivery, planBecause(i))
		}
		if hidden > 0 {
			g.Line("= and %d more that are what is wanted (--all)", hidden)
		}
	}
	g.Line("")
	g.Line("%s", planSummary(p))
	for _, command := range planCommands(p) {
		g.Line("  %s", command)
	}
}

func planVersion(t fleet.PlannedTag) string {
	switch {
	case t.Digest != "":
		return cmp.Or(t.Version, "?") + " " + t.Digest
	case t.Trouble != "":
		return cmp.Or(t.Version, "?") + " (digest unknown: " + t.Trouble + ")"
	default:
		return cmp.Or(t.Version, "?") + " (the registry was not asked)"
	}
}

func planSummary(p fleet.Plan) string {
	s := p.Summary
	text := fmt.Sprintf("%s: %d to change, %d as wanted, %d cannot be told.", plural(s.Total, "instance"), s.Change, s.Same, s.Unknown)
	if s.SelfTrouble != "" {
		text += " " + s.SelfTrouble
	}
	if s.Change > 0 {
		text += " Nothing was changed. To do it:"
	}
	return text
}

// planCommands are what carries a plan out: a rollout for each tag, then what no
// rollout mends.
func planCommands(p fleet.Plan) []string {
	var commands []string
	for _, t := range p.Tags {
		if t.Rollout != "" {
			commands = append(commands, fmt.Sprintf("%s    # %s", t.Rollout, plural(t.Changes, "instance")))
		}
	}
	for _, w := range p.Waves {
		for _, i := range w.Instances {
			for _, s := range i.Steps {
				if !(fleet.Divergence{Kind: s.Kind}).Deploys() {
					commands = append(commands, fmt.Sprintf("%s    # %s: %s", s.Command, i.Name, s.What))
				}
			}
		}
	}
	return commands
}

func planMarkdown(p fleet.Plan, all bool) string {
	var b strings.Builder
	for _, w := range p.Waves {
		fmt.Fprintf(&b, "**%s** (%s, %s at a time, soak %s)\n\n", markdownText(w.Name), plural(len(w.Instances), "instance"), w.MaxUnavailable, w.Soak)
		markdownRow(&b, []string{"", "instance", "version", "delivery", "why"})
		b.WriteString("|---|---|---|---|---|\n")
		shown, hidden := planShown(w, all)
		for _, i := range shown {
			markdownRow(&b, []string{planMark(i.Action), i.Name, planMove(i), i.Delivery, planBecause(i)})
		}
		if hidden > 0 {
			markdownRow(&b, []string{"=", fmt.Sprintf("%d more", hidden), "", "", ""})
		}
		b.WriteString("\n")
	}
	b.WriteString(markdownText(planSummary(p)) + "\n")
	if commands := planCommands(p); len(commands) > 0 {
		b.WriteString("\n```sh\n")
		for _, command := range commands {
			b.WriteString(strings.ReplaceAll(cli.Sanitize(command), "```", "` ` `") + "\n")
		}
		b.WriteString("```\n")
	}
	return b.String()
}

func planError(p fleet.Plan, failOn []string) error {
	if p.Summary.SelfTrouble != "" {
		return problem.New(problem.Inconclusive, p.Summary.SelfTrouble, "Look at this machine's network, then ask again.")
	}
	if p.Summary.Change > 0 && slices.Contains(failOn, "drift") {
		return problem.New(problem.Found, fmt.Sprintf("%s of %d: drift.", plural(p.Summary.Change, "instance"), p.Summary.Total), "The plan says which, why, and what to do.")
	}
	return nil
}
