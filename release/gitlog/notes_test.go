package gitlog_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

const image = "ghcr.io/keboola/agnes-the-ai-analyst"

func changelogFiles() release.ChangelogFiles {
	return release.ChangelogFiles{Path: "CHANGELOG.md", Dir: "changes"}
}

func claim(r *repo, n int64, commit string) release.Claim {
	return release.Claim{
		Version: release.Version{Year: 2026, Month: 4, N: n}, Channel: release.Stable, Commit: r.ids[commit],
		ClaimedAt: time.Date(2026, 4, 9, 23, 59, 0, 0, time.UTC),
	}
}

// options are those of version 2026.04.5 after 2026.04.3.
func (r *repo) options(from, to string) release.NotesOptions {
	r.t.Helper()
	o := release.NotesOptions{
		Claim: claim(r, 5, to), History: r.open(), Files: changelogFiles(),
		Image: image, Digest: "sha256:" + strings.Repeat("ab", 32),
	}
	if from != "" {
		o.Previous = claim(r, 3, from)
	}
	return o
}

func render(t *testing.T, n *release.Notes) string {
	t.Helper()
	tmpl, err := release.ParseNotesTemplate("the default", release.DefaultNotesTemplate)
	if err != nil {
		t.Fatal(err)
	}
	text, err := tmpl.Render(n)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const emptyChangelog = "# Changelog\n\n## Unreleased\n\n## 2026.04.3 - 2026-04-02\n\n### Fixed\n\n- old\n"

// month is a history with everything in it that histories have.
func month(t *testing.T) *repo {
	r := newRepo(t,
		commit{name: "before"},
		commit{name: "p", parents: []string{"before"}, files: map[string]string{"CHANGELOG.md": emptyChangelog, "changes/README.md": "How to."}},
		commit{
			name: "squashed", parents: []string{"p"}, message: "feat(query): stream Arrow (#12)\n\nCo-authored-by: Grace Hopper <grace@example.com>\nCo-authored-by: dependabot[bot] <49699333+dependabot[bot]@users.noreply.github.com>",
			files: map[string]string{"changes/12-arrow.md": "---\nkind: added\n---\nQueries answer as **Arrow** streams; thanks @grace.\n"},
		},
		commit{name: "branch1", parents: []string{"p"}, author: "Linus <linus@example.com>", message: "wip"},
		commit{name: "synced", parents: []string{"branch1", "squashed"}, author: "Linus <linus@example.com>", message: "Merge branch 'main' into topic"},
		commit{name: "branch2", parents: []string{"synced"}, author: "linus <linus@example.com>", message: "fix: really"},
		commit{name: "pr13", parents: []string{"squashed", "branch2"}, message: "Merge pull request #13 from linus/topic\n\nfix: Answer [all](https://x.example) of @everybody"},
		commit{name: "direct", parents: []string{"pr13"}, message: "agent/query: escape <b>HTML</b>, `a*b` & *stars* # @octocat\n\n" + strings.Repeat("A very long body.\n", 5000)},
		commit{name: "odd", parents: []string{"direct"}, author: "[Evil](https://x.example) @all <e@example.com>", message: "\xff\xfe ![pixel](https://x.example/p) \u202e<!-- \x1b[2J"},
		commit{name: "mistake", parents: []string{"odd"}, message: "feat: mistake (#14)"},
		commit{name: "undo", parents: []string{"mistake"}, message: "Revert \"feat: mistake (#14)\" (#15)\n\nReverts keboola/agnes-the-ai-analyst#14"},
		commit{name: "good", parents: []string{"undo"}, message: "fix: twice reverted"},
	)
	r.add(
		commit{name: "undo-good", parents: []string{"good"}, message: "Revert \"fix: twice reverted\"\n\nThis reverts commit {good}."},
		commit{name: "bot", parents: []string{"good"}, author: "renovate[bot] <29139614+renovate[bot]@users.noreply.github.com>", message: "chore(deps): update x (#16)"},
	)
	r.add(
		commit{name: "redo", parents: []string{"undo-good"}, message: "Revert \"Revert \"fix: twice reverted\"\"\n\nThis reverts commit {undo-good}."},
		commit{name: "pr16", parents: []string{"redo", "bot"}, message: "Merge pull request #16 from renovate/x\n\nUpdate x"},
		commit{name: "log", parents: []string{"pr16"}, message: "changelog: release 2026.04.3 [skip ci]"},
		commit{
			name: "breaking", parents: []string{"log"},
			message: "BREAKING: drop `_meta.size` (#17)\n\nBREAKING CHANGE: the column is gone.\n\nMigration:\n\n- read `_meta.size_bytes`\n- never mind ``` or @x\n\nSigned-off-by: Ada Lovelace <ada@example.com>",
			files:   map[string]string{"changes/17.md": "---\nkind: breaking\n---\nThe column `_meta.size` is gone.\n\nMigration: read `_meta.size_bytes`:\n\n```sql\nSELECT size_bytes\n\n\nFROM _meta -- @x\n```\n"},
		},
		commit{name: "tip", parents: []string{"breaking"}, message: "docs: say so", files: map[string]string{
			"CHANGELOG.md": strings.Replace(emptyChangelog, "## Unreleased\n", "## Unreleased\n\n### Security\n\n- Written by hand.\n", 1),
		}},
	)
	return r
}

func TestNotesOfAMonth(t *testing.T) {
	t.Parallel()
	r := month(t)
	n, err := release.CollectNotes(t.Context(), r.options("p", "tip"))
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/month.md", []byte(render(t, n)))
	// What programs get is the same without escapes; ids of commits are git's.
	doc, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/month.json", append(doc, '\n'))
	if strings.Contains(string(doc), "example.com") && strings.Contains(string(doc), "linus@") {
		t.Error("the notes hold an address")
	}
}

func TestNotesOfTheFirstRelease(t *testing.T) {
	t.Parallel()
	r := month(t)
	o := r.options("", "tip")
	o.Digest = ""
	n, err := release.CollectNotes(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/first.md", []byte(render(t, n)))
}

func TestNotesOfRangesWithoutChanges(t *testing.T) {
	t.Parallel()
	r := newRepo(t,
		commit{name: "a"}, commit{name: "b", parents: []string{"a"}}, commit{name: "c", parents: []string{"b"}},
		commit{name: "rewritten", parents: []string{"a"}, message: "fix: again"},
	)
	for name, tc := range map[string]struct{ from, to, want string }{
		"the same commit":  {"b", "b", "No changes since 2026.04.3.\n"},
		"an older commit":  {"c", "b", "An older build than 2026.04.3: nothing in it is new since then.\n"},
		"another history":  {"c", "rewritten", "Changes since 2026.04.3. 2 commits of 2026.04.3 are not part of it: the history was rewritten.\n\n## Fixes\n\n- again ("},
		"the first commit": {"", "a", "The first release.\n\n## Contributors\n\nAda Lovelace\n"},
	} {
		o := r.options(tc.from, tc.to)
		o.Image = ""
		n, err := release.CollectNotes(t.Context(), o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := render(t, n); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s:\n%s\nwant it to begin with\n%s", name, got, tc.want)
		}
	}
}

// forge knows one pull request for every commit, or fails.
type forge struct {
	release.Forge
	known map[string]release.Change
	err   error
}

// Changes implements release.Forge.
func (f forge) Changes(_ context.Context, commits []string) (map[string]release.Change, error) {
	out := map[string]release.Change{}
	for _, c := range commits {
		if change, ok := f.known[c]; ok {
			out[c] = change
		}
	}
	return out, f.err
}

func TestPullRequestsOfTheForge(t *testing.T) {
	t.Parallel()
	r := newRepo(t,
		commit{name: "p"},
		commit{name: "rebased1", parents: []string{"p"}},
		commit{name: "rebased2", parents: []string{"rebased1"}},
		commit{name: "lonely", parents: []string{"rebased2"}, message: "lonely (#1)"},
		commit{name: "squashed", parents: []string{"lonely"}, message: "old title (#21)"},
	)
	o := r.options("p", "squashed")
	o.Image = ""
	pr20 := release.Change{Number: 20, Title: "feat: Rebased [x](y)", Author: "octo-cat", URL: "https://github.com/o/n/pull/20", Labels: []string{"enhancement"}}
	o.Forge = forge{known: map[string]release.Change{
		r.ids["rebased1"]: pr20, r.ids["rebased2"]: pr20,
		r.ids["squashed"]: {Number: 21, Title: "Edited title", Author: "app/@bot", Labels: []string{"BREAKING"}},
	}}
	n, err := release.CollectNotes(t.Context(), o)
	if !problem.Is(err, problem.Found) || !strings.Contains(err.Error(), "Edited title (#21)") {
		t.Errorf("a label BREAKING without a guide: %v, want a problem.Found that names the pull request", err)
	}
	want := "Changes since 2026.04.3.\n\n## Features\n\n- Rebased \\[x\\](y) (#20) by octo-cat\n\n" +
		"## Other changes\n\n- **BREAKING** Edited title (#21) by app/`@bot`\n- lonely (#1)\n\n## Contributors\n\nAda Lovelace\n"
	if diff := cmp.Diff(want, render(t, n)); diff != "" {
		t.Errorf("the notes differ (-want +got):\n%s", diff)
	}
	if c := n.Changes[0].Changes[0]; len(c.Commits) != 2 || c.URL == "" || !slices.Equal(c.Labels, []string{"enhancement"}) {
		t.Errorf("the rebased pull request is %+v", c)
	}

	o.Forge = forge{err: errors.New("503")}
	n, err = release.CollectNotes(t.Context(), o)
	if err != nil || len(n.Warnings) != 1 || !strings.Contains(n.Warnings[0], "503") {
		t.Errorf("the forge's trouble: %v, warnings %q; want the notes with a warning", err, n.Warnings)
	}
}

func TestBreakingChangesNeedAGuide(t *testing.T) {
	t.Parallel()
	fragment := func(text string) map[string]string {
		return map[string]string{"changes/x.md": "---\nkind: breaking\n---\n" + text}
	}
	for name, tc := range map[string]struct {
		message string
		files   map[string]string
		want    string // in the error; empty: there is none
	}{
		"a commit without":              {message: "BREAKING: drop it (#7)", want: "drop it (#7)"},
		"a bang without":                {message: "feat(api)!: drop it", want: "api: drop it ("},
		"a package's bang without":      {message: "agent/query!: drop it", want: "agent/query!: drop it ("},
		"a footer without":              {message: "feat: x\n\nBREAKING CHANGE: gone", want: "x ("},
		"a fragment without":            {files: fragment("Gone."), want: `changes/x.md: "Gone."`},
		"a fragment with an empty one":  {files: fragment("Gone.\n\nMigration:\n"), want: `changes/x.md: "Gone."`},
		"an entry without":              {files: map[string]string{"CHANGELOG.md": "## Unreleased\n\n### Breaking changes\n\n- Gone.\n"}, want: `section Breaking changes: "Gone."`},
		"a commit with":                 {message: "BREAKING: drop it\n\nMigration: use that."},
		"a footer with":                 {message: "feat: x\n\nBREAKING-CHANGE: gone.\nMigration: use that."},
		"a commit, a fragment with":     {message: "feat!: x", files: fragment("Gone.\n\n## Migration\n\nUse that.")},
		"an entry with":                 {files: map[string]string{"CHANGELOG.md": "## Unreleased\n\n### Breaking\n\n- Gone.\n  Migration: use that.\n"}},
		"the word inside of a sentence": {message: "fix: BREAKING news!: no"},
		"a bang elsewhere":              {message: "fix: wow! this: works"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRepo(t, commit{name: "p"}, commit{name: "c", parents: []string{"p"}, message: tc.message, files: tc.files})
			n, err := release.CollectNotes(t.Context(), r.options("p", "c"))
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("an error: %v", err)
			case tc.want == "":
			case !problem.Is(err, problem.Found) || !strings.Contains(err.Error(), tc.want):
				t.Errorf("the error is %v, want a problem.Found with %q", err, tc.want)
			case !strings.Contains(problem.As(err).Hint, "kind: breaking") || n == nil:
				t.Errorf("the hint is %q, and notes %v", problem.As(err).Hint, n)
			}
		})
	}
}

func TestEntriesBelongToTheReleaseThatBroughtThem(t *testing.T) {
	t.Parallel()
	const a, b = "---\nkind: added\n---\nA.\n", "---\nkind: added\n---\nB.\n"
	unreleased := func(entries string) string {
		return "# Changelog\n\n## Unreleased\n\n### Fixed\n\n" + entries
	}
	r := newRepo(t,
		commit{name: "root"},
		commit{name: "p", parents: []string{"root"}, files: map[string]string{"changes/a.md": a, "changes/bad.md": "no front matter", "CHANGELOG.md": unreleased("- one\n")}},
		// Merged before the changelog of p was written.
		commit{name: "c", parents: []string{"p"}, files: map[string]string{"changes/b.md": b, "changes/bad.md": "-", "CHANGELOG.md": unreleased("- one\n- two\n")}},
	)
	n, err := release.CollectNotes(t.Context(), r.options("p", "c"))
	if err != nil {
		t.Fatal(err)
	}
	text := render(t, n)
	if strings.Contains(text, "A.") || strings.Contains(text, "one") || !strings.Contains(text, "- B.") || !strings.Contains(text, "- two") {
		t.Errorf("the notes hold entries of the release before, or lack own ones:\n%s", text)
	}
	if len(n.Warnings) != 1 || !strings.Contains(n.Warnings[0], "2 changelog entries of 2026.04.3") {
		t.Errorf("the warnings are %q", n.Warnings)
	}

	o := r.options("p", "c")
	o.Edited = []byte("## Unreleased\n\n## 2026.04.3 - 2026-04-02\n\n- A.\n")
	if n, err := release.CollectNotes(t.Context(), o); err != nil || len(n.Warnings) != 0 {
		t.Errorf("with the section of the release before: %v, warnings %q", err, n.Warnings)
	}

	// The branch has moved on: p's changelog was written, d came.
	tree := files{
		"CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- two\n- three\n\n## 2026.04.3 - 2026-04-02\n\n### Added\n\n- A.\n\n### Fixed\n\n- one\n",
		"changes/b.md": b, "changes/d.md": "---\nkind: added\n---\nD.\n", "changes/README.md": "x",
	}
	edits, err := n.EditChangelog(t.Context(), changelogFiles(), tree)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- three\n\n## 2026.04.5 - 2026-04-09\n\n### Fixed\n\n- two\n\n### Added\n\n- B.\n\n" +
			"## 2026.04.3 - 2026-04-02\n\n### Added\n\n- A.\n\n### Fixed\n\n- one\n",
		"changes/b.md": "(deleted)",
	}
	if diff := cmp.Diff(want, show(edits)); diff != "" {
		t.Errorf("the edits differ (-want +got):\n%s", diff)
	}
	// Cut off between the changelog and the fragment; then once more.
	tree["CHANGELOG.md"] = string(edits["CHANGELOG.md"])
	if edits, err = n.EditChangelog(t.Context(), changelogFiles(), tree); err != nil || cmp.Diff(map[string]string{"changes/b.md": "(deleted)"}, show(edits)) != "" {
		t.Errorf("after an interruption: %v, %v", show(edits), err)
	}
	delete(tree, "changes/b.md")
	if edits, err = n.EditChangelog(t.Context(), changelogFiles(), tree); err != nil || len(edits) != 0 {
		t.Errorf("the second time: %v, %v", show(edits), err)
	}
	// With the section written, the notes say what it says: people may have edited it.
	o.Edited = []byte(strings.Replace(tree["CHANGELOG.md"], "- B.", "- B, edited.", 1))
	if edited, err := release.CollectNotes(t.Context(), o); err != nil || !strings.Contains(render(t, edited), "- B, edited.") {
		t.Errorf("an edited section: %v\n%s", err, render(t, edited))
	}
	if edits, err := n.EditChangelog(t.Context(), changelogFiles(), files{}); err != nil || len(edits) != 1 || !strings.HasPrefix(string(edits["CHANGELOG.md"]), "# Changelog\n\n## Unreleased\n") {
		t.Errorf("no changelog yet: %q, %v", show(edits), err)
	}
}

// files is a repository's state in memory.
type files map[string]string

// ReadFile implements release.FileReader.
func (f files) ReadFile(_ context.Context, path string) ([]byte, error) {
	if text, ok := f[path]; ok {
		return []byte(text), nil
	}
	return nil, release.ErrNotFound
}

// ReadDir implements release.FileReader.
func (f files) ReadDir(_ context.Context, dir string) (names []string, err error) {
	for path := range f {
		if rest, ok := strings.CutPrefix(path, dir+"/"); ok {
			names = append(names, rest)
		}
	}
	if names == nil {
		return nil, release.ErrNotFound
	}
	return names, nil
}

func show(edits map[string][]byte) map[string]string {
	out := map[string]string{}
	for path, content := range edits {
		if out[path] = string(content); content == nil {
			out[path] = "(deleted)"
		}
	}
	return out
}

func TestAFragmentThatCannotBeReadIsNamed(t *testing.T) {
	t.Parallel()
	r := newRepo(t, commit{name: "p"}, commit{name: "c", parents: []string{"p"}, files: map[string]string{"changes/x.md": "---\nkind: news\n---\nx"}})
	_, err := release.CollectNotes(t.Context(), r.options("p", "c"))
	if err == nil || !strings.Contains(err.Error(), "changes/x.md:2") {
		t.Errorf("the error is %v", err)
	}
}

func TestTemplateErrorsNameLineAndField(t *testing.T) {
	t.Parallel()
	r := newRepo(t, commit{name: "p"}, commit{name: "c", parents: []string{"p"}})
	n, err := release.CollectNotes(t.Context(), r.options("p", "c"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"\n\n{{.Titel}}":                    "notes.md, line 3: <.Titel>: can't evaluate field Titel",
		"\n{{range .Changes}}{{.X}}{{end}}": "notes.md, line 2: <.X>: can't evaluate field X",
		"\n{{if}}":                          "notes.md, line 2: missing value for if",
		"{{range .Pull}}":                   "notes.md, line 1: unexpected EOF",
		"{{shorten .Commit}}":               `notes.md, line 1: function "shorten" not defined`,
	} {
		tmpl, err := release.ParseNotesTemplate("notes.md", text)
		if err == nil {
			_, err = tmpl.Render(n)
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(problem.As(err).Hint, "release-bot notes") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	tmpl, err := release.ParseNotesTemplate("notes.md", "{{define \"x\"}}{{template \"x\"}}a{{end}}{{template \"x\"}}")
	if err == nil {
		_, err = tmpl.Render(n)
	}
	if err == nil {
		t.Error("a template without end was rendered")
	}
	tmpl, err = release.ParseNotesTemplate("notes.md", "{{.Version}} {{short .Commit}} {{range .Changes}}{{range .Changes}}{{raw .Title}}{{end}}{{end}}\n\n\n```\n\n\n```")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Render(n); err != nil || got != "2026.04.5 "+r.ids["c"][:7]+" c\n\n```\n\n\n```\n" {
		t.Errorf("an own template: %q, %v", got, err)
	}
}

func TestNotesFitIntoAReleasePage(t *testing.T) {
	t.Parallel()
	commits := []commit{{name: "p"}}
	for i := range 2000 {
		commits = append(commits, commit{name: strconv.Itoa(i), parents: []string{commits[i].name}, message: strings.Repeat("*", 190) + strconv.Itoa(i)})
	}
	r := newRepo(t, commits...)
	n, err := release.CollectNotes(t.Context(), r.options("p", "1999"))
	if err != nil {
		t.Fatal(err)
	}
	text := render(t, n)
	if len(text) > 60_000 || !strings.Contains(text, "And 1") || !strings.Contains(text, "docker pull") {
		t.Errorf("the text has %d bytes; its end: %s", len(text), text[max(0, len(text)-400):])
	}
	if n.Commits != 2000 || n.Hidden != 0 {
		t.Errorf("%d commits, %d hidden; want the notes themselves complete", n.Commits, n.Hidden)
	}
}

func TestTheWorkingTreeGetsTheSection(t *testing.T) {
	t.Parallel()
	r := month(t)
	n, err := release.CollectNotes(t.Context(), r.options("p", "tip"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.open().WorkTree()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		edits, err := n.EditChangelog(t.Context(), changelogFiles(), tree)
		if err != nil {
			t.Fatal(err)
		}
		if paths := slices.Sorted(maps.Keys(edits)); round == 0 && !slices.Equal(paths, []string{"CHANGELOG.md", "changes/12-arrow.md", "changes/17.md"}) || round == 1 && len(paths) > 0 {
			t.Errorf("round %d changes %v", round, paths)
		}
		if err := tree.Write(t.Context(), edits); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(filepath.Join(r.dir, "CHANGELOG.md"))
		if err != nil {
			t.Fatal(err)
		}
		golden.Compare(t, "testdata/changelog.md", written)
	}
}
