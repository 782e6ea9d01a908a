package main

import (
	"fmt"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// newTags says what publish would set, without asking anybody.
func newTags(a *app) *cobra.Command {
	var f channelVersionCommit
	c := &cobra.Command{
		Use:   "tags",
		Short: "Print the image tags of a build",
		Long: `tags prints the image tags that publish sets for a build, the floating one
first. It asks nobody.`,
		Example: `  release-bot tags --channel stable --version 2026.04.3 --commit "$(git rev-parse HEAD)"
  release-bot tags --channel dev --version 2026.04.4 -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := f.build(a)
			if err != nil {
				return err
			}
			answer := struct {
				Tags []string `json:"tags"`
			}{release.TagsFor(b.Channel, b.Version, b.Commit).All()}
			return a.answer("Tags", answer, func(g *cli.Grid) {
				for _, tag := range answer.Tags {
					g.Line("%s", tag)
				}
			})
		},
	}
	cli.OutputFlag(c, &a.format)
	f.register(c)
	return c
}

var digestText = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func checkDigest(digest string) error {
	if digestText.MatchString(digest) {
		return nil
	}
	return problem.New(problem.Usage, fmt.Sprintf("expected --digest as sha256: and 64 hexadecimal digits, found %q", digest),
		"docker buildx build --metadata-file build.json … && jq -r '.\"containerimage.digest\"' build.json")
}

func newPublish(a *app) *cobra.Command {
	var f channelVersionCommit
	var digest, promotion string
	var breaking, keepFirst, dryRun bool
	c := &cobra.Command{
		Use:   "publish",
		Short: "Point a build's tags at its digest",
		Long: `publish points the tags of a build at an image that was pushed by digest. It
works in the registry: nothing is pulled or rebuilt, and all platforms and
attestations stay as they are. Tags of the version and of the commit come
first. The floating tag comes last and moves forward only: a newer version, a
failed or deprecated one, and a commit that does not descend keep it where it
is, and the answer says why (descent is asked of GitHub, or of a --git on this
machine). A version tag that is at another image is refused; with --keep-first
that image is the version, and the answer's digest is its. An image that failed or
was deprecated as another version is refused.

With --git or --repo the version must be claimed for this commit and channel.
Run it again after an interruption: what is there is left alone.

It needs the right to write the image repository: packages: write on GitHub.`,
		Example: `  release-bot publish --registry ghcr.io/OWNER/NAME --channel stable --version 2026.04.3 --commit "$GITHUB_SHA" --digest sha256:…
  release-bot publish --channel stable --version 2026.04.3 --digest sha256:… --breaking
  release-bot publish --registry 127.0.0.1:5000/agnes --channel dev --version 2026.04.4 --digest sha256:… --dry-run -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := f.build(a)
			if err != nil {
				return err
			}
			b.Digest = digest
			if err := checkDigest(digest); err != nil {
				return err
			}
			if b.Breaking = breaking; breaking && b.Channel != release.Stable {
				return problem.New(problem.Usage, "expected --breaking with --channel stable: nobody relies on dev", "leave --breaking away")
			}
			switch promotion {
			case "immediate":
			case "gated":
				b.Gated = true
			default:
				return problem.New(problem.Usage, fmt.Sprintf("expected --promotion immediate or gated, found %q", promotion), "release-bot publish … --promotion gated")
			}
			p, err := a.publisher()
			if err != nil {
				return err
			}
			p.DryRun, b.KeepFirst = dryRun, keepFirst
			got, err := p.Publish(c.Context(), b)
			return a.after("Published "+b.Version.String(), got, got.Steps, err, func(g *cli.Grid) { publishedTable(g, got) })
		},
	}
	cli.OutputFlag(c, &a.format)
	f.register(c)
	c.Flags().StringVar(&digest, "digest", "", "`DIGEST` of the image or index: sha256:…")
	c.Flags().StringVar(&promotion, "promotion", "immediate", "when the floating tag moves: `immediate|gated`; gated leaves it to promote")
	c.Flags().BoolVar(&breaking, "breaking", false, "deprecate the previous stable version, with this one as its replacement")
	c.Flags().BoolVar(&keepFirst, "keep-first", false, "go on with the image that the version has already: for a job that built twice")
	dryRunFlag(c, &dryRun)
	_ = c.MarkFlagRequired("digest")
	return c
}

func publishedTable(g *cli.Grid, p release.Published) {
	wrote := "moved"
	if p.DryRun {
		wrote = "would move"
	}
	g.Row("TAG", "", "REASON", "PREVIOUS")
	for _, m := range p.Tags {
		moved := "kept"
		if m.Moved {
			moved = wrote
		}
		g.Row(m.Tag, moved, m.Reason, m.Previous)
	}
	stepRows(g, p.Steps)
}

func newPromote(a *app) *cobra.Command {
	var breaking, dryRun bool
	c := &cobra.Command{
		Use:   "promote VERSION",
		Short: "Point the floating tag at a version that passed",
		Long: `promote points the floating tag at a version that was published with
--promotion gated and has the verdict pass. It moves forward only: when a newer
version has the tag, or has passed, it stays and the answer says why.

It needs the right to write the image repository and to read the ledger.`,
		Example: `  release-bot promote 2026.04.3
  release-bot promote 2026.04.3 --breaking --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := release.ParseVersion(args[0])
			if err != nil {
				return err
			}
			p, err := a.bookkeeper("promote " + args[0])
			if err != nil {
				return err
			}
			p.DryRun = dryRun
			got, err := p.Promote(c.Context(), v, breaking)
			return a.after("Promoted "+v.String(), got, got.Steps, err, func(g *cli.Grid) { publishedTable(g, got) })
		},
	}
	cli.OutputFlag(c, &a.format)
	c.Flags().BoolVar(&breaking, "breaking", false, "deprecate the stable version before it, with this one as its replacement")
	dryRunFlag(c, &dryRun)
	return c
}
