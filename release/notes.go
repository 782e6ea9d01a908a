package release

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// History is a clone's commits and the files in them.
type History interface {
	// Between returns the commits that are reachable from to and not from from,
	// children before parents; with from "", all that are reachable from to.
	Between(ctx context.Context, from, to string) (Range, error)
	// ReadFile returns a file of a commit, or ErrNotFound.
	ReadFile(ctx context.Context, commit, path string) ([]byte, error)
	// ReadDir returns the names in a folder of a commit, or ErrNotFound.
	ReadDir(ctx context.Context, commit, path string) ([]string, error)
}

// Range is what lies between two commits.
type Range struct {
	Commits []Commit
	Older   bool // to lies in from's history, so that there is nothing between them
	Gone    int  // commits that from has and to lacks: history was rewritten
}

// ChangelogFiles says where a repository keeps its changelog.
type ChangelogFiles struct {
	Path string // the file, such as CHANGELOG.md
	Dir  string // the folder of fragments, such as changes
}

// NotesOptions are what release notes are made of.
type NotesOptions struct {
	Claim       Claim     // of the version; ClaimedAt is the date of the release
	Previous    Claim     // the release before it on stable; none for the first one
	Unpublished []Version // claimed between the two and never published: their changes count here
	History     History
	Forge       Forge // asked for pull requests where it is not nil
	Files       ChangelogFiles
	Edited      []byte // the changelog as it is now: where it has a section for the version, that one counts
	Image       string // HOST/NAME that people pull
	Digest      string // "sha256:…" of the version, where it is known
}

// Notes say what a release brings. Printing a Plain escapes it, so a template
// cannot be misled by what somebody wrote into a commit.
type Notes struct {
	Version      Version       `json:"version"`
	Channel      Channel       `json:"channel"`
	Commit       string        `json:"commit"`
	Date         string        `json:"date"`                  // YYYY-MM-DD, UTC
	Previous     *Release      `json:"previous"`              // nil for the first release
	Unpublished  []Version     `json:"unpublished,omitempty"` // see NotesOptions
	Older        bool          `json:"older,omitempty"`       // the commit lies in Previous's history
	Rewritten    int           `json:"rewritten,omitempty"`   // commits of Previous that this release lacks
	Breaking     []Note        `json:"breaking"`
	Sections     []NoteSection `json:"sections"`     // of the changelog, without what breaks
	Changes      []NoteGroup   `json:"changes"`      // pull requests, and commits without one; empty for the first release
	Contributors []Plain       `json:"contributors"` // names
	Commits      int           `json:"commits"`      // merges not counted
	Reverted     int           `json:"reverted,omitempty"`
	Image        string        `json:"image,omitempty"`
	Digest       string        `json:"digest,omitempty"`
	Pull         []string      `json:"pull"` // commands
	Warnings     []string      `json:"warnings,omitempty"`
	Hidden       int           `json:"hidden,omitempty"` // changes that did not fit into the rendered text

	entries []ChangelogEntry // what belongs into the changelog's section
}

// Release is a version and its commit.
type Release struct {
	Version Version `json:"version"`
	Commit  string  `json:"commit"`
}

// Note is one entry of the changelog, or what a commit says of a breaking change.
type Note struct {
	Item      Markdown `json:"-"`    // a list item, ready to print
	Text      Markdown `json:"text"` // without the bullet
	Migration Markdown `json:"migration,omitempty"`
}

// NoteSection is a heading of the changelog with its entries.
type NoteSection struct {
	Title Plain  `json:"title"`
	Notes []Note `json:"entries"`
}

// NoteGroup is one kind of changes.
type NoteGroup struct {
	Title   string       `json:"title"`
	Changes []NoteChange `json:"changes"`
}

// NoteChange is a pull request, or a commit that came without one.
type NoteChange struct {
	Title    Plain    `json:"title"`
	Ref      string   `json:"ref,omitempty"` // #12, or !12 on GitLab
	Author   Plain    `json:"author,omitempty"`
	URL      string   `json:"url,omitempty"`
	Labels   []string `json:"labels,omitempty"`
	Commits  []string `json:"commits"`
	Breaking bool     `json:"breaking,omitempty"`
}

// First reports whether there was no release before.
func (n *Notes) First() bool { return n.Previous == nil }

// Empty reports whether there is nothing to tell.
func (n *Notes) Empty() bool {
	return len(n.Breaking)+len(n.Sections)+len(n.Changes) == 0
}

// PreviousRelease returns the release that version v follows for the users of
// stable: the greatest stable claim below it that was published; and the claims
// in between that were not. Published nil takes every claim for published. A dev
// version is compared with stable, too: dev builds come from different branches.
func PreviousRelease(claims []Claim, v Version, published func(Version) bool) (previous Claim, unpublished []Version) {
	for _, c := range claims {
		if c.Channel != Stable || c.Version.Compare(v) >= 0 {
			continue
		}
		if published != nil && !published(c.Version) {
			unpublished = append(unpublished, c.Version)
			continue
		}
		if c.Version.Compare(previous.Version) > 0 {
			previous = c
		}
	}
	unpublished = slices.DeleteFunc(unpublished, func(w Version) bool { return w.Compare(previous.Version) < 0 })
	slices.SortFunc(unpublished, Version.Compare)
	return previous, unpublished
}

// forgeLimit bounds the questions to a forge: one a commit, at worst.
const forgeLimit = 300

// CollectNotes works out the notes of a version. A breaking change without a
// migration guide is a problem.Found; the notes are returned with it.
func CollectNotes(ctx context.Context, o NotesOptions) (*Notes, error) {
	n := &Notes{
		Version: o.Claim.Version, Channel: o.Claim.Channel, Commit: o.Claim.Commit,
		Date: o.Claim.ClaimedAt.UTC().Format("2006-01-02"), Unpublished: o.Unpublished,
		Breaking: []Note{}, Sections: []NoteSection{}, Changes: []NoteGroup{}, Contributors: []Plain{}, Pull: []string{},
		Image: o.Image, Digest: o.Digest,
	}
	if !o.Previous.Version.IsZero() {
		n.Previous = &Release{o.Previous.Version, o.Previous.Commit}
	}
	between, err := o.History.Between(ctx, o.Previous.Commit, o.Claim.Commit)
	if err != nil {
		return nil, err
	}
	n.Older, n.Rewritten = between.Older, between.Gone
	for _, c := range between.Commits {
		n.Commits += btoi(len(c.Parents) < 2 && !bookkeeping(c))
	}
	if n.entries, err = o.entries(ctx, n); err != nil {
		return nil, err
	}
	changes, reverted := changesOf(between.Commits, o.pullRequests(ctx, n, between.Commits))
	n.Reverted = reverted
	n.Contributors = append(n.Contributors, contributorsOf(changes)...)
	unexplained := n.describe(changes)
	if n.Image != "" {
		n.Pull = append(n.Pull, "docker pull "+n.Image+":"+VersionTag(n.Channel, n.Version))
		if n.Digest != "" {
			n.Pull = append(n.Pull, "docker pull "+n.Image+"@"+n.Digest)
		}
	}
	return n, n.guided(unexplained)
}

// describe sorts entries and changes into the notes. It returns the breaking
// changes whose messages hold no migration guide.
func (n *Notes) describe(changes []change) (unexplained []string) {
	for _, section := range sectionsOf(n.entries) {
		s := NoteSection{Title: oneLine(section)}
		for _, e := range n.entries {
			if e.Section != section {
				continue
			}
			note := Note{Item: Markdown(silence(e.Item())), Text: Markdown(silence(e.Text()))}
			if e.Breaking() {
				note.Migration = Markdown(silence(e.Migration()))
				n.Breaking = append(n.Breaking, note)
			} else {
				s.Notes = append(s.Notes, note)
			}
		}
		if len(s.Notes) > 0 {
			n.Sections = append(n.Sections, s)
		}
	}
	groups := []NoteGroup{{Title: "Features"}, {Title: "Fixes"}, {Title: "Other changes"}}
	for _, c := range changes {
		out, kind := c.note()
		if out.Breaking {
			note, guide := c.breakingNote(out)
			if note != nil && !n.First() {
				n.Breaking = append(n.Breaking, *note)
			}
			if !guide {
				unexplained = append(unexplained, strings.TrimSpace(string(out.Title)+" "+out.label()))
			}
		}
		at := 2
		switch kind {
		case "feat", "feature":
			at = 0
		case "fix", "bugfix":
			at = 1
		}
		groups[at].Changes = append(groups[at].Changes, out)
	}
	if n.First() { // everything is new: a list of all commits tells nobody anything
		return nil
	}
	n.Changes = slices.DeleteFunc(groups, func(g NoteGroup) bool { return len(g.Changes) == 0 })
	return unexplained
}

// guided returns a problem.Found when a breaking change comes without a guide.
func (n *Notes) guided(unexplained []string) error {
	var missing []string
	documented := false
	for _, e := range n.entries {
		if !e.Breaking() {
			continue
		}
		documented = true
		if e.Migration() == "" {
			where := "the changelog's section " + e.Section
			if e.Fragment != "" {
				where = e.Fragment
			}
			missing = append(missing, fmt.Sprintf("%s: %q", where, cutRunes(firstLine(e.Text()), 80)))
		}
	}
	if !documented {
		missing = append(missing, unexplained...)
	}
	if len(missing) == 0 {
		return nil
	}
	return problem.New(problem.Found, "expected a migration guide for each breaking change of "+n.Version.String()+", found none for:\n"+strings.Join(missing, "\n"),
		"write what users have to do, as a fragment or below the heading `### Breaking`:\n"+GuideExample)
}

// GuideExample shows the fragment of a breaking change.
const GuideExample = "---\nkind: breaking\n---\nThe column `_meta.size` is now `_meta.size_bytes`.\n\nMigration: rename the column in your connector, then run `agnes contract verify`."

// note describes a change in the list.
func (c change) note() (NoteChange, string) {
	title := c.title
	if c.forge.Number != 0 {
		title = c.forge.Title
	}
	if title == "" {
		title = withoutNumber(c.commits[0].subject())
		if c.ref == "" {
			title = c.commits[0].subject()
		}
	}
	t := tell(title)
	out := NoteChange{
		Title: oneLine(t.title), Ref: c.ref, Author: oneLine(c.forge.Author), URL: c.forge.URL,
		Labels: c.forge.Labels, Breaking: t.breaking || slices.Contains(c.forge.Labels, "BREAKING"),
	}
	if out.Title == "" {
		out.Title = "(no subject)"
	}
	for _, commit := range c.commits {
		out.Commits = append(out.Commits, commit.ID)
		breaking, _, _ := commit.breaks()
		out.Breaking = out.Breaking || breaking
	}
	if c.merge != nil {
		breaking, _, _ := c.merge.breaks()
		out.Breaking = out.Breaking || breaking
	}
	return out, t.kind
}

func (c NoteChange) label() string {
	if c.Ref != "" {
		return "(" + c.Ref + ")"
	}
	return "(" + c.Commits[0][:7] + ")"
}

// breakingNote tells what the messages say of what breaks, or nil where they say
// nothing but that it does. Guide reports whether they hold a migration guide.
func (c change) breakingNote(listed NoteChange) (note *Note, guide bool) {
	said := c.commits
	if c.merge != nil {
		said = append([]Commit{*c.merge}, said...)
	}
	for _, commit := range said {
		_, passage, how := commit.breaks()
		if passage == "" && how == "" {
			continue
		}
		text := listed.Title.String() + " " + listed.label()
		if passage != "" {
			text += "\n\n" + string(quoted(passage))
		}
		note = &Note{Text: Markdown(text)}
		if how != "" {
			note.Migration = quoted(how)
			text += "\n\nMigration:\n\n" + string(note.Migration)
			guide = true
		}
		note.Item = Markdown(asItem(text))
		if guide {
			break
		}
	}
	return note, guide
}

// pullRequests asks the forge. Its trouble costs titles and names, not the notes.
func (o NotesOptions) pullRequests(ctx context.Context, n *Notes, commits []Commit) map[string]Change {
	if o.Forge == nil || n.First() || len(commits) == 0 {
		return nil
	}
	if len(commits) > forgeLimit {
		n.Warnings = append(n.Warnings, fmt.Sprintf("the host was not asked for the pull requests of %d commits; their messages tell the numbers", len(commits)))
		return nil
	}
	ids := make([]string, len(commits))
	for i, c := range commits {
		ids[i] = c.ID
	}
	found, err := o.Forge.Changes(ctx, ids)
	if err != nil {
		n.Warnings = append(n.Warnings, "the host did not tell the pull requests: "+err.Error())
		return nil
	}
	return found
}

// entries returns what the changelog says of the release: the section of the
// version, or, where there is none yet, what has come into Unreleased and the
// fragments since the previous release.
func (o NotesOptions) entries(ctx context.Context, n *Notes) ([]ChangelogEntry, error) {
	written := false // the previous release's section
	if o.Edited != nil {
		c, err := ParseChangelog(o.Files.Path, o.Edited)
		if err != nil {
			return nil, err
		}
		if entries, ok := c.Section(n.Version); ok {
			return entries, nil
		}
		_, written = c.Section(o.Previous.Version)
	}
	now, err := o.waiting(ctx, n.Commit, true)
	if err != nil || n.First() {
		return now, err
	}
	// What waited at the previous release already is that release's, even where
	// this commit was made before its changelog was written.
	before, err := o.waiting(ctx, n.Previous.Commit, false)
	if err != nil {
		return nil, err
	}
	old := countEntries(before)
	fresh := slices.DeleteFunc(slices.Clone(now), func(e ChangelogEntry) bool {
		if e.Fragment != "" {
			return slices.ContainsFunc(before, func(b ChangelogEntry) bool { return b.Fragment == e.Fragment && b.source == e.source })
		}
		if key := entryKey(e); old[key] > 0 {
			old[key]--
			return true
		}
		return false
	})
	if left := len(now) - len(fresh); left > 0 && !written {
		n.Warnings = append(n.Warnings, fmt.Sprintf("%d changelog entries of %s are not below its heading yet; unless its release is under way: release-bot notes %s --write",
			left, n.Previous.Version, n.Previous.Version))
	}
	return fresh, nil
}

// waiting returns the entries that wait for a release in a commit. Of an older
// one, what cannot be read is left out: nobody can mend it any more.
func (o NotesOptions) waiting(ctx context.Context, commit string, strict bool) ([]ChangelogEntry, error) {
	var entries []ChangelogEntry
	file, err := o.History.ReadFile(ctx, commit, o.Files.Path)
	if err == nil {
		var c *Changelog
		if c, err = ParseChangelog(o.Files.Path, file); err == nil {
			entries = c.Unreleased()
		} else if !strict {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	names, err := o.History.ReadDir(ctx, commit, o.Files.Dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		e, ok, err := o.fragment(ctx, commit, path.Join(o.Files.Dir, name))
		switch {
		case err != nil && strict:
			return nil, err
		case err == nil && ok:
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func (o NotesOptions) fragment(ctx context.Context, commit, file string) (ChangelogEntry, bool, error) {
	ok, err := IsFragment(file)
	if err != nil || !ok {
		return ChangelogEntry{}, false, err
	}
	content, err := o.History.ReadFile(ctx, commit, file)
	if err != nil {
		return ChangelogEntry{}, false, err
	}
	e, err := ParseFragment(file, content)
	return e, err == nil, err
}
