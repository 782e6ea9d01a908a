package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
)

// openRegistry is the image repository: --registry, or the one of GHCR that is named
// like the GitHub repository.
func (a *app) openRegistry() (*oci.Registry, error) {
	at := a.registry
	if at == "" {
		if a.repo == "" {
			return nil, problem.New(problem.Usage, "expected the image repository, found neither --registry nor --repo", "add --registry HOST/NAME")
		}
		at = "ghcr.io/" + strings.ToLower(a.repo)
	}
	return oci.New(at, oci.Options{Token: a.token(), Log: a.log()})
}

// publisher wires the places that the flags name. Without --git and --repo there
// is no ledger, which only publish can do without.
func (a *app) publisher() (*release.Publisher, error) {
	images, err := a.openRegistry()
	if err != nil {
		return nil, err
	}
	p := &release.Publisher{Registry: images}
	if a.git == "" && a.repo == "" {
		return p, nil
	}
	refs, err := a.refs()
	if err != nil {
		return nil, err
	}
	p.Ledger = release.NewLedger(refs, a.ledgerOptions())
	if history, ok := refs.(release.Ancestry); ok {
		p.Ancestry = history
	} else if p.Ancestry, err = a.github(); err != nil {
		return nil, err
	}
	return p, nil
}

// bookkeeper is a publisher for a verb that cannot do without the ledger.
func (a *app) bookkeeper(verb string) (*release.Publisher, error) {
	if a.git == "" && a.repo == "" {
		return nil, problem.New(problem.Usage, "expected the repository that holds the ledger, found neither --git nor --repo",
			fmt.Sprintf("release-bot %s … --git PATH|URL, or --repo OWNER/NAME with GITHUB_TOKEN", verb))
	}
	return a.publisher()
}

// after prints an answer, also that of a verb that failed after it had changed
// something: what was done until then must not get lost.
func (a *app) after(title string, value any, steps []release.Step, err error, table func(*cli.Grid)) error {
	if err != nil && !release.Wrote(steps) {
		return err
	}
	if e := a.answer(title, value, table); err == nil {
		err = e
	}
	return err
}

// stepRows shows what became of each step.
func stepRows(g *cli.Grid, steps []release.Step) {
	g.Line("")
	g.Row("STEP", "STATE", "DETAIL")
	for _, s := range steps {
		g.Row(s.Name, s.State, s.Detail)
	}
}

// dryRunFlag is what every verb has that changes something.
func dryRunFlag(c *cobra.Command, dryRun *bool) {
	c.Flags().BoolVar(dryRun, "dry-run", false, "look and say what would be done; change nothing")
}

// channelVersionCommit are the flags that name a build.
type channelVersionCommit struct{ channel, version, commit string }

func (f *channelVersionCommit) register(c *cobra.Command) {
	c.Flags().StringVar(&f.channel, "channel", "", "`CHANNEL` of the build: dev or stable")
	c.Flags().StringVar(&f.version, "version", "", "`VERSION` that was claimed for it: YYYY.MM.N")
	c.Flags().StringVar(&f.commit, "commit", "", "full `SHA` of the commit (default $GITHUB_SHA)")
	// The error is "flag does not exist" only.
	_ = c.MarkFlagRequired("channel")
	_ = c.MarkFlagRequired("version")
}

func (f *channelVersionCommit) build(a *app) (b release.Build, err error) {
	if b.Channel, err = release.ParseChannel(f.channel); err != nil {
		return b, err
	}
	if b.Version, err = release.ParseVersion(f.version); err != nil {
		return b, err
	}
	commit := f.commit
	if commit == "" {
		commit = a.env.Getenv("GITHUB_SHA")
	}
	b.Commit, err = release.ParseCommit(commit)
	return b, err
}

// forgeIfAny is the code host of --repo, or none.
func (a *app) forgeIfAny() (release.Forge, error) {
	if a.repo == "" {
		return nil, nil //nolint:nilnil // release.Publisher does without
	}
	return a.forge()
}

// testedFlag is the digest that a verb's judgment is about.
func testedFlag(c *cobra.Command, digest *string) {
	c.Flags().StringVar(digest, "digest", "", "`DIGEST` that was tested: sha256:…; refused where it is not the version's image")
}

// tested refuses a judgment over another image than the version's. Where the
// question stays open, the registry may be what was in trouble, and is done without.
func tested(ctx context.Context, p *release.Publisher, v release.Version, digest string, open bool) error {
	if digest == "" {
		return nil
	}
	if err := checkDigest(digest); err != nil {
		return err
	}
	if err := p.Match(ctx, v, digest); err != nil && (!open || problem.Is(err, problem.Refused)) {
		return err
	}
	return nil
}
