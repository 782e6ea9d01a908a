package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitlog"
)

// markdown is the text itself.
const markdown cli.Format = "markdown"

const repoTemplate = ".github/release-notes.md"

// notesOptions are the flags of `notes`.
type notesOptions struct {
	from, dir, template, digest, branch  string
	files                                release.ChangelogFiles
	write, publish, dryRun, showTemplate bool
}

// notesAnswer are the notes, their text, and what was done with them.
type notesAnswer struct {
	*release.Notes

	Markdown string         `json:"markdown"`
	Steps    []release.Step `json:"steps"`
	URL      string         `json:"url,omitempty"` // of the release page
	DryRun   bool           `json:"dry_run,omitzero"`
}

func newNotes(a *app) *cobra.Command {
	var o notesOptions
	format := markdown
	c := &cobra.Command{
		Use:   "notes VERSION",
		Short: "Make a version's release notes, and write its changelog",
		Long: `notes tells what a version brings since the stable version before it: breaking
changes with their migration guides, changelog entries, pull requests,
contributors, and how to pull the image. It reads the history of the clone at
--repo-dir, and claims from there too unless --git or --repo says otherwise;
from GitHub it takes the titles and authors of pull requests. With --registry,
a version that was never published there is passed over.

Changelog entries are files of --fragments and lines below "## Unreleased" of
--changelog, as they stand in the version's own commit. --write moves them below
"## VERSION - DATE" in the working tree; --publish does so on the branch at
GitHub, in one commit that starts no release, and writes the release page. Both can
be repeated.

A breaking change (a fragment or an entry below "### Breaking", a commit that
begins with BREAKING: or has ! before its colon or a footer BREAKING CHANGE:, a
pull request with the label BREAKING) needs a migration guide, else the verb ends
with 3. A template is a Go text/template over what -o json prints.

Over GitHub it needs contents: read and pull-requests: read; --publish needs
contents: write.`,
		Example: `  release-bot notes 2026.04.5
  release-bot notes 2026.04.5 --write
  release-bot notes 2026.04.5 --publish --digest sha256:4f53… --repo keboola/agnes-the-ai-analyst
  release-bot notes 2026.04.5 --from 2026.04.1 -o json`,
		Args: func(c *cobra.Command, args []string) error {
			if o.showTemplate {
				return cobra.NoArgs(c, args)
			}
			return cobra.ExactArgs(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.showTemplate {
				_, err := io.WriteString(a.env.Stdout, release.DefaultNotesTemplate)
				return err
			}
			return a.notes(c.Context(), args[0], o, c.Flags().Changed("template"), format)
		},
	}
	cli.OutputFlag(c, &format, markdown)
	f := c.Flags()
	f.StringVar(&o.from, "from", "", "`VERSION` after which the notes begin (default the stable one before)")
	f.StringVar(&o.dir, "repo-dir", ".", "`DIR` of the clone whose history is read")
	f.StringVar(&o.files.Path, "changelog", "CHANGELOG.md", "changelog `FILE` in the repository")
	f.StringVar(&o.files.Dir, "fragments", "changes", "`DIR` of changelog fragments in the repository")
	f.StringVar(&o.template, "template", repoTemplate, "template `FILE`; without the default one, a built-in is used")
	f.StringVar(&o.digest, "digest", "", "`DIGEST` of the image, sha256:… (default: with --registry, what is there)")
	f.StringVar(&o.branch, "branch", "", "`BRANCH` that --publish changes (default that of $GITHUB_REF, or main)")
	f.BoolVar(&o.write, "write", false, "move the changelog's entries below the version, in the working tree")
	f.BoolVar(&o.publish, "publish", false, "write the release page and the branch's changelog at GitHub")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what --write and --publish would do, and do nothing")
	f.BoolVar(&o.showTemplate, "print-template", false, "print the built-in template")
	return c
}

// notes is the verb: read, render, then what was asked for, the working tree first.
func (a *app) notes(ctx context.Context, version string, o notesOptions, ownTemplate bool, format cli.Format) error {
	v, err := release.ParseVersion(version)
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	clone, err := gitlog.Open(o.dir)
	if err != nil {
		return err
	}
	tmpl, err := notesTemplate(ctx, clone, o, ownTemplate)
	if err != nil {
		return err
	}
	in, err := a.notesOf(ctx, v, clone, o)
	if err != nil {
		return err
	}
	if in.Forge == nil && o.publish {
		return problem.New(problem.Usage, "expected a GitHub repository for --publish, found none", "add --repo OWNER/NAME")
	}
	notes, err := release.CollectNotes(ctx, in)
	if err != nil {
		return err
	}
	for _, w := range notes.Warnings {
		fmt.Fprintln(a.env.Stderr, "Warning: "+cli.Sanitize(w))
	}
	answer := notesAnswer{Notes: notes, Steps: []release.Step{}, DryRun: o.dryRun}
	if answer.Markdown, err = tmpl.Render(notes); err != nil {
		return err
	}
	if o.write {
		err = answer.writeChangelog(ctx, clone, o)
	}
	if o.publish && err == nil {
		err = answer.publish(ctx, in.Forge, cmp.Or(o.branch, a.branch()), o)
	}
	if err != nil && !slices.ContainsFunc(answer.Steps, func(s release.Step) bool { return s.State == release.Done }) {
		return err
	}
	// What was done until then must not get lost.
	if e := a.tellNotes(answer, format); err == nil {
		err = e
	}
	return err
}

func (o notesOptions) check() error {
	for flag, path := range map[string]string{"changelog": o.files.Path, "fragments": o.files.Dir} {
		if !fs.ValidPath(path) || path == "." {
			return problem.New(problem.Usage, fmt.Sprintf("expected --%s as a path in the repository with slashes, found %q", flag, path),
				"release-bot notes VERSION --changelog CHANGELOG.md --fragments changes")
		}
	}
	if o.digest != "" && !digestText.MatchString(o.digest) {
		return problem.New(problem.Usage, fmt.Sprintf("expected --digest as sha256: and 64 hexadecimal digits, found %q", o.digest), "crane digest HOST/NAME:TAG")
	}
	return nil
}

// notesTemplate reads the named template, else the repository's, else the built-in.
func notesTemplate(ctx context.Context, clone *gitlog.Clone, o notesOptions, own bool) (*release.NotesTemplate, error) {
	if own {
		text, err := os.ReadFile(o.template)
		if err != nil {
			return nil, problem.Wrap(err, problem.NotFound, "expected a template at "+o.template, "release-bot notes --print-template >"+o.template)
		}
		return release.ParseNotesTemplate(o.template, string(text))
	}
	if tree, err := clone.WorkTree(); err == nil {
		text, err := tree.ReadFile(ctx, repoTemplate)
		if err == nil {
			return release.ParseNotesTemplate(repoTemplate, string(text))
		}
		if !errors.Is(err, release.ErrNotFound) {
			return nil, err
		}
	}
	return release.ParseNotesTemplate("the built-in template", release.DefaultNotesTemplate)
}

// notesOf finds the two claims and everything else that notes are made of.
func (a *app) notesOf(ctx context.Context, v release.Version, clone *gitlog.Clone, o notesOptions) (in release.NotesOptions, err error) {
	at := *a
	if at.git == "" && at.repo == "" { // a clone has the tags of what it fetched
		at.git = cmp.Or(clone.Root(), o.dir)
	}
	ledger, err := at.ledger()
	if err != nil {
		return in, err
	}
	in = release.NotesOptions{History: clone, Files: o.files, Digest: o.digest}
	if in.Claim, err = ledger.ByVersion(ctx, v); err != nil {
		return in, fetchTags(err, a, o)
	}
	switch {
	case o.from != "":
		from, err := release.ParseVersion(o.from)
		if err != nil {
			return in, err
		}
		if from.Compare(v) >= 0 {
			return in, problem.New(problem.Usage, fmt.Sprintf("expected --from before %s, found %s", v, from), "release-bot version list --channel stable")
		}
		if in.Previous, err = ledger.ByVersion(ctx, from); err != nil {
			return in, fetchTags(err, a, o)
		}
	default:
		claims, err := ledger.Claims(ctx)
		if err != nil {
			return in, err
		}
		published, err := a.published(ctx)
		if err != nil {
			return in, err
		}
		verdicts, err := ledger.Verdicts(ctx)
		if err != nil {
			return in, err
		}
		// Who left a version that failed, or never got it, still has to read of it.
		claims = slices.DeleteFunc(claims, func(c release.Claim) bool { return verdicts[c.Version] == release.VerdictFail && c.Version != v })
		in.Previous, in.Unpublished = release.PreviousRelease(claims, v, published)
	}
	if err := a.notesImage(ctx, clone, &in); err != nil {
		return in, err
	}
	if in.Forge, err = a.forgeIfAny(); err != nil {
		return in, err
	}
	if tree, err := clone.WorkTree(); err == nil {
		in.Edited, err = tree.ReadFile(ctx, o.files.Path)
		if err != nil && !errors.Is(err, release.ErrNotFound) {
			return in, err
		}
	}
	return in, nil
}

// fetchTags says what a clone may lack.
func fetchTags(err error, a *app, o notesOptions) error {
	e, ok := errors.AsType[*problem.Error](err)
	if !ok || !errors.Is(err, release.ErrNotFound) || a.git != "" || a.repo != "" {
		return err
	}
	return problem.Wrap(e, e.Kind, e.Message+", in the clone at "+o.dir, fmt.Sprintf("git -C %s fetch --tags, or ask GitHub: --repo OWNER/NAME", o.dir))
}

// notesImage finds the image's name and, where the registry is to be asked, its digest.
func (a *app) notesImage(ctx context.Context, clone *gitlog.Clone, in *release.NotesOptions) error {
	in.Image = a.registry
	if repo := cmp.Or(a.repo, clone.GitHub()); in.Image == "" && repo != "" {
		in.Image = "ghcr.io/" + strings.ToLower(repo)
	}
	if a.registry == "" || in.Digest != "" {
		return nil
	}
	registry, err := a.openRegistry()
	if err != nil {
		return err
	}
	in.Digest, err = registry.Digest(ctx, release.VersionTag(in.Claim.Channel, in.Claim.Version))
	if errors.Is(err, release.ErrNotFound) {
		return nil
	}
	return err
}

// published tells which versions the registry of --registry has; nil without one.
func (a *app) published(ctx context.Context) (func(release.Version) bool, error) {
	if a.registry == "" {
		return nil, nil //nolint:nilnil // no registry to ask
	}
	registry, err := a.openRegistry()
	if err != nil {
		return nil, err
	}
	tags, err := registry.Tags(ctx)
	if err != nil {
		return nil, err
	}
	return func(v release.Version) bool { return slices.Contains(tags, release.VersionTag(release.Stable, v)) }, nil
}

// branch is the workflow's, or main.
func (a *app) branch() string {
	branch, ok := strings.CutPrefix(a.env.Getenv("GITHUB_REF"), "refs/heads/")
	if !ok {
		return "main"
	}
	return branch
}

// did notes a step.
func (n *notesAnswer) did(name string, state release.StepState, detail string) {
	n.Steps = append(n.Steps, release.Step{Name: name, State: state, Detail: detail})
}

func (n *notesAnswer) writeChangelog(ctx context.Context, clone *gitlog.Clone, o notesOptions) error {
	const name = "changelog"
	tree, err := clone.WorkTree()
	if err != nil {
		return err
	}
	edits, err := n.EditChangelog(ctx, o.files, tree)
	switch {
	case err != nil:
		return err
	case len(edits) == 0:
		n.did(name, release.Skipped, "nothing to move: "+n.why())
	case o.dryRun:
		n.did(name, release.Planned, listEdits(edits))
	default:
		if err := tree.Write(ctx, edits); err != nil {
			return err
		}
		n.did(name, release.Done, listEdits(edits))
	}
	return nil
}

// why says why there is nothing to write.
func (n *notesAnswer) why() string {
	if n.Channel != release.Stable {
		return "a changelog tells of stable versions"
	}
	return "no entries, or they are below the version already"
}

func listEdits(edits map[string][]byte) string {
	var out []string
	for _, path := range slices.Sorted(maps.Keys(edits)) {
		if edits[path] == nil {
			path += " (deleted)"
		}
		out = append(out, path)
	}
	return strings.Join(out, ", ")
}

// publish writes the release page, then the branch's changelog: the page must not
// wait for a branch that refuses.
func (n *notesAnswer) publish(ctx context.Context, forge release.Forge, branch string, o notesOptions) error {
	if o.dryRun {
		n.did("release page", release.Planned, n.Version.String())
		n.did("branch", release.Planned, o.files.Path+" on "+branch)
		return nil
	}
	url, err := forge.Release(ctx, release.Page{Version: n.Version, Prerelease: n.Channel != release.Stable, Body: n.Markdown})
	if err != nil {
		return err
	}
	n.URL = url
	n.did("release page", release.Done, url)
	committer, ok := forge.(release.Committer)
	if !ok {
		n.did("branch", release.Skipped, "this host's branches cannot be changed from here: use --write, and commit")
		return nil
	}
	id, err := committer.Commit(ctx, branch, n.ChangelogCommit(), func(ctx context.Context, head release.FileReader) (map[string][]byte, error) {
		return n.EditChangelog(ctx, o.files, head)
	})
	switch {
	case err != nil:
		return err
	case id == "":
		n.did("branch", release.Skipped, "nothing to move: "+n.why())
	default:
		n.did("branch", release.Done, fmt.Sprintf("%s on %s is %s", o.files.Path, branch, id[:min(7, len(id))]))
	}
	return nil
}

// tellNotes prints the text itself, or the answer as all verbs do.
func (a *app) tellNotes(n notesAnswer, format cli.Format) error {
	if format != markdown {
		a.format = format
		return a.answer("Release notes", n, func(g *cli.Grid) {
			g.Row("version", n.Version)
			g.Row("since", n.since())
			g.Row("commits", n.Commits)
			g.Row("breaking", len(n.Breaking))
			for _, s := range n.Steps {
				g.Row(s.Name, fmt.Sprintf("%s: %s", s.State, s.Detail))
			}
		})
	}
	if _, err := io.WriteString(cli.SafeWriter(a.env.Stdout), n.Markdown); err != nil {
		return fmt.Errorf("write the notes: %w", err)
	}
	for _, s := range n.Steps {
		fmt.Fprintf(a.env.Stderr, "%s %s: %s\n", s.State, s.Name, cli.Sanitize(s.Detail))
	}
	return cli.Record(a.env, n, "### "+n.Version.String()+"\n\n"+n.Markdown)
}

func (n *notesAnswer) since() string {
	if n.Previous == nil {
		return "the beginning"
	}
	return n.Previous.Version.String()
}
