package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// pruning is what the flags of prune say.
type pruning struct {
	*app
	plan, apply, journal string
	inUse                []string
	policy               release.PrunePolicy
	dryRun               bool
}

func newPrune(a *app) *cobra.Command {
	p := &pruning{app: a, policy: release.DefaultPrunePolicy()}
	c := &cobra.Command{
		Use:   "prune",
		Short: "Delete images that nobody can need any more",
		Long: `prune decides about every version of the image in GitHub's registry. Without
--apply it changes nothing: it prints what it would keep and delete, with the
reason for each, and --plan stores that. --apply carries a stored plan out, to the
letter, and refuses when the package has changed since. Interrupted, it is run
again with the same plan and goes on from its journal; restore brings back what a
journal names.

What goes: versions 30 days after their deprecation in the ledger; dev versions
that are both 30 days old, by their claim, and not among the newest 20; what has
no tag, was pushed a week ago, and belongs to nothing that stays. What stays:
whatever has a floating tag, a tag that release-bot did not set, a stable version
that is not deprecated, or a version that the ledger does not know; what --in-use
names; and every manifest, signature and attestation that these need. If a single
manifest cannot be read, nothing is deleted.

It needs the right to read claims and ledger (contents: read) and, to apply, to
delete versions (packages: write, as an administrator of the package). Only
ghcr.io has the list of versions that this takes.`,
		Example: `  release-bot prune
  release-bot prune --plan plan.json --in-use fleet.yaml
  release-bot prune --apply plan.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if p.apply == "" {
				return p.makePlan(c.Context())
			}
			for _, flag := range []string{"deprecated-days", "keep-dev-days", "keep-dev-last", "keep-rollback", "min-untagged-days"} {
				if c.Flags().Changed(flag) {
					return problem.New(problem.Usage, "expected --"+flag+" where the plan is made, found it with --apply: a plan is applied as it is", "release-bot prune --plan FILE --"+flag+" …")
				}
			}
			return p.applyPlan(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&p.plan, "plan", "", "store the plan in `FILE`, as JSON")
	f.StringVar(&p.apply, "apply", "", "carry out the plan in `FILE`")
	f.StringVar(&p.journal, "journal", "", "`FILE` that --apply writes what it deletes to, before it does (default: the plan's, with .journal)")
	f.StringArrayVar(&p.inUse, "in-use", nil, "`FILE` with what instances run or pin: output of 'agnesctl fleet status -o json', or a fleet.yaml; repeatable")
	f.IntVar(&p.policy.DeprecatedDays, "deprecated-days", p.policy.DeprecatedDays, "keep a deprecated version so many days from its ledger entry")
	f.IntVar(&p.policy.KeepDevDays, "keep-dev-days", p.policy.KeepDevDays, "keep a dev version so many days from its claim")
	f.IntVar(&p.policy.KeepDevLast, "keep-dev-last", p.policy.KeepDevLast, "keep so many newest dev versions, whatever their age")
	f.IntVar(&p.policy.KeepRollback, "keep-rollback", p.policy.KeepRollback, "name so many newest confirmed stable versions as what a rollback goes to")
	f.IntVar(&p.policy.MinUntaggedDays, "min-untagged-days", p.policy.MinUntaggedDays, "keep what has no tag so many days, as a push may not have finished; at least 1")
	f.BoolVar(&p.dryRun, "dry-run", false, "with --apply: check the plan against the package, delete nothing")
	c.MarkFlagsMutuallyExclusive("plan", "apply")
	cli.OutputFlag(c, &a.format)
	return c
}

// places are where a prune looks.
func (p *pruning) places() (release.Packages, release.Registry, *release.Ledger, error) {
	packages, err := p.packages()
	if err != nil {
		return nil, nil, nil, err
	}
	registry, err := p.openRegistry()
	if err != nil {
		return nil, nil, nil, err
	}
	ledger, err := p.ledger()
	return packages, registry, ledger, err
}

func (p *pruning) makePlan(ctx context.Context) error {
	used, err := readInUse(p.inUse)
	if err != nil {
		return err
	}
	if err := p.policy.Validate(); err != nil {
		return err
	}
	packages, registry, ledger, err := p.places()
	if err != nil {
		return err
	}
	bar := cli.NewProgress(p.env, "reading manifests")
	log := p.log()
	in, err := release.Survey(ctx, release.SurveyOptions{
		Packages: packages, Registry: registry, Ledger: ledger, Policy: p.policy, InUse: used, Now: time.Now(),
		Progress: func(done, total int) { bar.Set(float64(done)/float64(total), "reading manifests") },
		Note: func(format string, args ...any) {
			log.Info("the list lags behind", "detail", fmt.Sprintf(format, args...))
		},
	})
	bar.Close()
	if err != nil {
		return err
	}
	plan, err := release.Plan(in)
	if err != nil {
		return err
	}
	if p.plan != "" {
		var file bytes.Buffer
		if err := plan.Write(&file); err != nil {
			return err
		}
		if err := os.WriteFile(p.plan, file.Bytes(), 0o644); err != nil {
			return problem.Wrap(err, problem.Internal, "expected to write the plan to "+p.plan, "give --plan a file that can be written")
		}
	}
	if err := cli.Print(p.env.Stdout, p.format, plan, func(g *cli.Grid) { planTable(g, plan, p.plan) }); err != nil {
		return err
	}
	return cli.Record(p.env, planSummary{plan.Repository, p.plan, plan.Keep, plan.Delete, plan.Notes}, planMarkdown(plan))
}

// planSummary is what a workflow's later steps get of a plan: the whole would be
// more than an output may be.
type planSummary struct {
	Repository string   `json:"repository"`
	Plan       string   `json:"plan"`
	Keep       int      `json:"keep"`
	Delete     int      `json:"delete"`
	Notes      []string `json:"notes"`
}

// planTable shows what goes first, in order, then what stays.
func planTable(g *cli.Grid, plan release.PrunePlan, file string) {
	byID := make(map[int64]release.PlannedVersion, len(plan.Versions))
	for _, v := range plan.Versions {
		byID[v.ID] = v
	}
	g.Row("ACTION", "RULE", "DIGEST", "PUSHED", "TAGS", "REASON")
	row := func(v release.PlannedVersion) {
		g.Row(v.Action, v.Rule, shortDigest(v.Digest), v.CreatedAt.Format(time.DateOnly), cmp.Or(strings.Join(v.Tags, " "), "-"), v.Reason)
	}
	for _, id := range plan.Order {
		row(byID[id])
	}
	for _, v := range plan.Versions {
		if v.Action == release.PruneKeep {
			row(v)
		}
	}
	g.Line("")
	for _, note := range plan.Notes {
		g.Line("Note: %s", note)
	}
	g.Line("%s: %d versions stay, %d go.", plan.Repository, plan.Keep, plan.Delete)
	switch {
	case plan.Delete == 0:
	case file == "":
		g.Line("Nothing was changed. Next: release-bot prune --plan FILE")
	default:
		g.Line("Nothing was changed. Next: release-bot prune --apply %s", file)
	}
}

// planMarkdown is the step's summary: numbers by rule, and what goes, cut where
// GitHub would refuse it.
func planMarkdown(plan release.PrunePlan) string {
	const most = 500
	counts := map[string]int{}
	for _, v := range plan.Versions {
		counts[fmt.Sprintf("%s, %s", v.Action, v.Rule)]++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "### Prune plan for %s\n\n%d versions stay, %d go.\n\n| what, why | versions |\n|---|---|\n", plan.Repository, plan.Keep, plan.Delete)
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "| %s | %d |\n", what, counts[what])
	}
	b.WriteString("\n")
	for _, note := range plan.Notes {
		fmt.Fprintf(&b, "    %s\n", cli.Sanitize(note))
	}
	n := 0
	for _, v := range plan.Versions {
		if v.Action != release.PruneDelete {
			continue
		}
		if n++; n > most {
			fmt.Fprintf(&b, "    and %d more\n", plan.Delete-most)
			break
		}
		fmt.Fprintf(&b, "    %s %s: %s\n", shortDigest(v.Digest), cli.Sanitize(strings.Join(v.Tags, " ")), cli.Sanitize(v.Reason))
	}
	return b.String() + "\n"
}

func shortDigest(digest string) string {
	const width = len("sha256:") + 12
	return digest[:min(len(digest), width)]
}

func (p *pruning) applyPlan(ctx context.Context) error {
	used, err := readInUse(p.inUse)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(p.apply)
	if err != nil {
		return problem.Wrap(err, problem.Usage, "expected a plan in "+p.apply, "release-bot prune --plan "+p.apply)
	}
	plan, err := release.ReadPlan(p.apply, content)
	if err != nil {
		return err
	}
	packages, registry, _, err := p.places()
	if err != nil {
		return err
	}
	if plan.Repository != registry.String() {
		return problem.New(problem.Refused, fmt.Sprintf("expected a plan for %s, found one for %s in %s", registry, plan.Repository, p.apply), "add --registry "+plan.Repository)
	}
	path := cmp.Or(p.journal, p.apply+".journal")
	journal, err := release.PeekJournal(path)
	if err == nil && !p.dryRun {
		journal, err = release.OpenJournal(path)
	}
	if err != nil {
		return err
	}
	bar := cli.NewProgress(p.env, "deleting")
	result, err := release.Apply(ctx, plan, packages, journal, release.ApplyOptions{
		InUse: used, DryRun: p.dryRun,
		Progress: func(done, total int) {
			bar.Set(float64(done)/float64(total), fmt.Sprintf("deleting %d of %d", done, total))
		},
	})
	bar.Close()
	if !p.dryRun {
		err = cmp.Or(err, journal.Close())
	}
	if err != nil {
		return err
	}
	return p.answer("Pruned "+plan.Repository, applied{result, path}, func(g *cli.Grid) { applyTable(g, result, path) })
}

// applied is the answer of --apply.
type applied struct {
	release.PruneResult
	Journal string `json:"journal"`
}

func applyTable(g *cli.Grid, r release.PruneResult, journal string) {
	g.Row("OUTCOME", "DIGEST", "TAGS", "DETAIL")
	for _, v := range r.Versions {
		g.Row(v.Outcome, shortDigest(v.Digest), cmp.Or(strings.Join(v.Tags, " "), "-"), cmp.Or(v.Detail, "-"))
	}
	g.Line("")
	if r.DryRun {
		g.Line("%s: %d versions would be deleted.", r.Repository, len(r.Versions))
		return
	}
	g.Line("%s: %d deleted, %d were gone, %d retained by the host, %d kept because those need them.", r.Repository, r.Deleted, r.Gone, r.Retained, r.Needed)
	if r.Deleted > 0 {
		g.Line("For 30 days, to bring them back: release-bot restore --journal %s", journal)
	}
}

func newRestore(a *app) *cobra.Command {
	var path string
	var dryRun bool
	c := &cobra.Command{
		Use:   "restore",
		Short: "Bring back what a prune deleted",
		Long: `restore brings back every version that a journal of prune --apply names, the parts
of an index before the index. GitHub keeps deleted versions for 30 days. What is
there stays as it is, so it can be run again. Tags that do not come back with
their version are named, with the command that sets them.

It needs the right to delete versions (packages: write, as an administrator of the
package), which is also the right to restore them.`,
		Example: `  release-bot restore --journal plan.json.journal`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			entries, err := release.ReadJournal(path)
			if err != nil {
				return err
			}
			packages, err := a.packages()
			if err != nil {
				return err
			}
			bar := cli.NewProgress(a.env, "restoring")
			result, err := release.Restore(c.Context(), entries, packages, release.ApplyOptions{
				DryRun:   dryRun,
				Progress: func(done, total int) { bar.Set(float64(done)/float64(total), "restoring") },
			})
			bar.Close()
			if err != nil {
				return err
			}
			return a.answer("Restored versions", result, func(g *cli.Grid) { restoreTable(g, result) })
		},
	}
	c.Flags().StringVar(&path, "journal", "", "`FILE` that prune --apply wrote")
	_ = c.MarkFlagRequired("journal") // the error is "flag does not exist" only
	dryRunFlag(c, &dryRun)
	cli.OutputFlag(c, &a.format)
	return c
}

func restoreTable(g *cli.Grid, r release.RestoreResult) {
	g.Row("OUTCOME", "DIGEST", "TAGS", "DETAIL")
	for _, v := range r.Versions {
		g.Row(v.Outcome, shortDigest(v.Digest), cmp.Or(strings.Join(v.Tags, " "), "-"), cmp.Or(v.Detail, "-"))
	}
	g.Line("")
	if r.DryRun {
		g.Line("%d versions would be restored; %d are there.", len(r.Versions)-r.There, r.There)
		return
	}
	g.Line("%d restored, %d were there, %d are lost.", r.Restored, r.There, r.Lost)
}
