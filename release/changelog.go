package release

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// ChangelogEntry is one change in the changelog: a list item below a heading such as
// "### Added".
type ChangelogEntry struct {
	Section  string // the heading's text: Added, Breaking, …; empty above the first one
	Raw      string // the item as it stands in the file, with the line breaks at its end
	Fragment string // the file that it comes from, or empty
	source   string // the fragment's bytes: says whether a fragment is still the same
}

// Text returns the entry's Markdown without bullet and indentation.
func (e ChangelogEntry) Text() string { return fromItem(e.Raw) }

// Item returns the entry as one list item that ends with one line break.
func (e ChangelogEntry) Item() string {
	return strings.TrimRight(strings.ReplaceAll(e.Raw, "\r\n", "\n"), " \t\n") + "\n"
}

// Breaking reports whether the entry tells of a breaking change.
func (e ChangelogEntry) Breaking() bool {
	return strings.HasPrefix(strings.ToLower(e.Section), "breaking")
}

var migrationMark = regexp.MustCompile(`(?i)\bmigration(?:[ \t]+guide)?[*_]{0,2}:[*_]{0,2}|(?im:^[ \t]*#{1,6}[ \t]+migration(?:[ \t]+guide)?[ \t]*$)`)

// Migration returns what the entry's text says after "Migration:", or nothing.
func (e ChangelogEntry) Migration() string {
	text := e.Text()
	at := migrationMark.FindStringIndex(text)
	if at == nil {
		return ""
	}
	return strings.TrimSpace(text[at[1]:])
}

// Changelog is a file in the format of https://keepachangelog.com: a section
// "## Unreleased" and below it one section a release, "## 2026.04.5 - 2026-04-09".
// Brackets around a heading's name, as in "## [Unreleased]", are allowed.
//
// It is kept as the bytes that were read, cut into pieces: Release moves entries
// and leaves every other byte as it is.
type Changelog struct {
	sections []changelogSection // the first one is everything above the first heading
	newline  string
}

type changelogSection struct {
	name    string // Unreleased, 2026.04.5
	heading string // the whole line
	body    string // to the next section
	tail    string // of the last section: link definitions at the file's end
}

const unreleased = "Unreleased"

var sectionHeading = regexp.MustCompile(`^##[ \t]+\[?([^\]\s]+)\]?`)

// ParseChangelog reads a changelog. Headings inside code blocks and HTML comments
// are text. Name is for errors.
func ParseChangelog(name string, file []byte) (*Changelog, error) {
	c := &Changelog{newline: "\n"}
	if i := bytes.IndexByte(file, '\n'); i > 0 && file[i-1] == '\r' {
		c.newline = "\r\n"
	}
	c.sections = []changelogSection{{}}
	lines := map[string]int{}
	var opaque opaqueState
	text := string(file)
	n, at, begin := 0, 0, 0 // the line, where it begins, where the section's body does
	for line := range strings.SplitAfterSeq(text, "\n") {
		n++
		start := at
		at += len(line)
		inside := opaque.next(line)
		m := sectionHeading.FindStringSubmatch(line)
		if inside || m == nil {
			continue
		}
		c.sections[len(c.sections)-1].body = text[begin:start]
		begin = at
		title := m[1]
		if strings.EqualFold(title, unreleased) {
			title = unreleased
		}
		if first, ok := lines[title]; ok {
			return nil, problem.New(problem.Invalid,
				fmt.Sprintf("expected one section %q in %s, found a second one in line %d (the first is in line %d)", title, name, n, first),
				fmt.Sprintf("move what is below line %d into the section of line %d", n, first))
		}
		lines[title] = n
		c.sections = append(c.sections, changelogSection{name: title, heading: line})
	}
	last := &c.sections[len(c.sections)-1]
	last.body, last.tail = cutLinks(text[begin:])
	return c, nil
}

var linkDefinition = regexp.MustCompile(`^ {0,3}\[[^\]]+\]:[ \t]*\S`)

// cutLinks splits off the link definitions at the end of a file, with the blank
// lines above them.
func cutLinks(body string) (text, links string) {
	lines := strings.SplitAfter(body, "\n")
	at, found := len(lines), false
	for i := len(lines) - 1; i >= 0; i-- {
		if linkDefinition.MatchString(lines[i]) {
			at, found = i, true
		} else if strings.TrimSpace(lines[i]) != "" {
			break
		}
	}
	if !found {
		return body, ""
	}
	for at > 0 && strings.TrimSpace(lines[at-1]) == "" {
		at--
	}
	return strings.Join(lines[:at], ""), strings.Join(lines[at:], "")
}

// Bytes returns the file.
func (c *Changelog) Bytes() []byte {
	var b bytes.Buffer
	for _, s := range c.sections {
		b.WriteString(s.heading)
		b.WriteString(s.body)
		b.WriteString(s.tail)
	}
	return b.Bytes()
}

func (c *Changelog) find(name string) int {
	return slices.IndexFunc(c.sections, func(s changelogSection) bool { return s.heading != "" && s.name == name })
}

// Unreleased returns the entries that wait for a release.
func (c *Changelog) Unreleased() []ChangelogEntry {
	if i := c.find(unreleased); i >= 0 {
		return entriesOf(c.sections[i].body)
	}
	return nil
}

// Section returns the entries of a released version, and whether it has a section.
func (c *Changelog) Section(v Version) ([]ChangelogEntry, bool) {
	if i := c.find(v.String()); i >= 0 {
		return entriesOf(c.sections[i].body), true
	}
	return nil, false
}

// Release moves entries into the section of a version: those of the section
// Unreleased are taken out of it, those of fragments are added. Entries of
// Unreleased that are not among the given ones stay, as does every other byte.
//
// The new section stands right below Unreleased, or, where newer versions have
// sections already, above the first older one. Where the version has a section,
// nothing is changed. Fragment files are the caller's to delete.
func (c *Changelog) Release(name string, v Version, date string, entries []ChangelogEntry) error {
	if _, done := c.Section(v); done || len(entries) == 0 {
		return nil
	}
	from := c.find(unreleased)
	if from < 0 {
		return problem.New(problem.Invalid, fmt.Sprintf("expected a line `## Unreleased` in %s, found none", name),
			fmt.Sprintf("write the line `## Unreleased` above the newest release in %s", name))
	}
	var added []ChangelogEntry
	for _, e := range entries {
		if e.Fragment != "" {
			added = append(added, e)
		}
	}
	moved, rest := c.take(c.sections[from].body, countEntries(entries))
	if len(moved)+len(added) == 0 {
		return nil // somebody has moved them by hand
	}
	c.sections[from].body = rest

	at := from + 1
	for at < len(c.sections) {
		w, err := ParseVersion(c.sections[at].name)
		if err != nil || w.Compare(v) < 0 {
			break
		}
		at++
	}
	above := &c.sections[at-1]
	tail := above.tail
	above.tail = ""
	if text := above.heading + above.body; !strings.HasSuffix(text, "\n") {
		above.body += c.newline
	}
	if !strings.HasSuffix(above.heading+above.body, c.newline+c.newline) {
		above.body += c.newline
	}
	body := c.newline + c.write(append(moved, added...))
	if at == len(c.sections) { // no blank line at the end of the file, unless links follow
		body = strings.TrimRight(body, "\r\n") + c.newline
	}
	c.sections = slices.Insert(c.sections, at, changelogSection{
		name: v.String(), heading: "## " + v.String() + " - " + date + c.newline, body: body, tail: tail,
	})
	return nil
}

// write lays entries out: one heading a section, in the order of first mention;
// each group ends with a blank line. Entries of fragments get the file's line
// breaks.
func (c *Changelog) write(entries []ChangelogEntry) string {
	var b strings.Builder
	for _, section := range sectionsOf(entries) {
		if section != "" {
			b.WriteString("### " + section + c.newline + c.newline)
		}
		var group strings.Builder
		for _, e := range entries {
			if e.Section != section {
				continue
			}
			raw := e.Raw
			if e.Fragment != "" {
				// A fragment joins the list above it: no blank line between.
				list := strings.TrimRight(group.String(), "\r\n")
				group.Reset()
				if list != "" {
					group.WriteString(list + c.newline)
				}
				raw = strings.ReplaceAll(raw, "\n", c.newline)
			}
			group.WriteString(raw)
			if !strings.HasSuffix(raw, "\n") {
				group.WriteString(c.newline)
			}
		}
		b.WriteString(strings.TrimRight(group.String(), "\r\n") + c.newline + c.newline)
	}
	return b.String()
}

// sectionsOf returns the sections of entries: without a heading first, breaking
// ones next, then by first mention.
func sectionsOf(entries []ChangelogEntry) []string {
	var names []string
	for _, e := range entries {
		if !slices.Contains(names, e.Section) {
			names = append(names, e.Section)
		}
	}
	rank := func(name string) int {
		switch {
		case name == "":
			return 0
		case ChangelogEntry{Section: name}.Breaking():
			return 1
		default:
			return 2
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names
}

type entryID struct{ section, text string }

func entryKey(e ChangelogEntry) entryID { return entryID{e.Section, e.Text()} }

func countEntries(entries []ChangelogEntry) map[entryID]int {
	count := map[entryID]int{}
	for _, e := range entries {
		if e.Fragment == "" {
			count[entryKey(e)]++
		}
	}
	return count
}

var groupHeading = regexp.MustCompile(`^###[ \t]+(.*?)[ \t]*#*[ \t]*\r?\n?$`)

type pieceKind int

const (
	pieceOther   pieceKind = iota // comments, and blank lines at the beginning
	pieceHeading                  // with the blank lines below it
	pieceEntry                    // with the blank lines below it
)

// piece is a part of a section's body. All pieces together are the body.
type piece struct {
	kind    pieceKind
	section string // of an entry, and the heading's own text
	raw     string
	emptied bool // of a heading: the first entry below it was taken
}

// piecesOf cuts a section's body: a new entry begins with each list item at the
// margin, and with each paragraph at the margin after a blank line.
func piecesOf(body string) []piece {
	pieces := []piece{{}}
	section, blank := "", true
	var opaque opaqueState
	at, begin := 0, 0 // of the line, and of the piece that it may belong to
	add := func(kind pieceKind) {
		pieces[len(pieces)-1].raw = body[begin:at]
		begin = at
		pieces = append(pieces, piece{kind: kind, section: section})
	}
	for line := range strings.SplitAfterSeq(body, "\n") {
		if line == "" {
			continue
		}
		last := &pieces[len(pieces)-1]
		inside := opaque.next(line)
		empty := !inside && strings.TrimSpace(line) == ""
		margin := !inside && !empty && line[0] != ' ' && line[0] != '\t'
		heading := groupHeading.FindStringSubmatch(line)
		switch {
		case margin && heading != nil:
			section = heading[1]
			add(pieceHeading)
		case margin && strings.HasPrefix(line, "<!--") && (blank || last.kind != pieceEntry):
			add(pieceOther)
		case margin && (isBullet(line) || blank), !empty && last.kind == pieceHeading,
			!empty && !inside && last.kind == pieceOther:
			add(pieceEntry)
		case inside && last.kind == pieceOther && strings.TrimSpace(body[begin:at]) == "": // a code block comes first
			add(pieceEntry)
		}
		blank = empty
		at += len(line)
	}
	pieces[len(pieces)-1].raw = body[begin:]
	return pieces
}

func entriesOf(body string) []ChangelogEntry {
	var entries []ChangelogEntry
	for _, p := range piecesOf(body) {
		if p.kind == pieceEntry {
			entries = append(entries, ChangelogEntry{Section: p.section, Raw: p.raw})
		}
	}
	return entries
}

// take cuts the wanted entries out of a section's body. A heading goes with its
// last entry.
func (c *Changelog) take(body string, wanted map[entryID]int) (moved []ChangelogEntry, rest string) {
	var kept []piece
	for _, p := range piecesOf(body) {
		e := ChangelogEntry{Section: p.section, Raw: p.raw}
		if p.kind != pieceEntry || wanted[entryKey(e)] == 0 {
			kept = append(kept, p)
			continue
		}
		wanted[entryKey(e)]--
		moved = append(moved, e)
		if n := len(kept); n > 0 && kept[n-1].kind == pieceHeading {
			kept[n-1].emptied = true
		}
	}
	if len(moved) == 0 {
		return nil, body
	}
	var b strings.Builder
	for i, p := range kept {
		if p.emptied && (i+1 == len(kept) || kept[i+1].kind != pieceEntry) {
			continue
		}
		if text := b.String(); p.kind == pieceHeading && strings.TrimSpace(text) != "" && !strings.HasSuffix(text, c.newline+c.newline) {
			b.WriteString(c.newline)
		}
		b.WriteString(p.raw)
	}
	return moved, b.String()
}
