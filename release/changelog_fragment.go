package release

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// fragmentLimit is far above any change's description, and far below what hurts.
const fragmentLimit = 64 << 10

// fragmentKinds lists the kinds of fragments and the changelog's headings for them.
func fragmentKinds() [][2]string {
	return [][2]string{
		{"breaking", "Breaking"},
		{"added", "Added"},
		{"changed", "Changed"},
		{"deprecated", "Deprecated"},
		{"removed", "Removed"},
		{"fixed", "Fixed"},
		{"security", "Security"},
	}
}

const fragmentShape = "---\nkind: added\n---\n`agnes query --explain` shows the plan of a query."

// IsFragment reports whether a file of the fragments' folder is one. Hidden files
// and the README are not; anything else that is not *.md is an error, for nobody
// would miss its text.
func IsFragment(file string) (bool, error) {
	base := path.Base(file)
	switch {
	case strings.HasPrefix(base, "."), strings.EqualFold(base, "README.md"):
		return false, nil
	case strings.HasSuffix(base, ".md"):
		return true, nil
	default:
		return false, problem.New(problem.Invalid,
			fmt.Sprintf("expected changelog fragments named *.md, found %s", file), "rename it, or move it elsewhere")
	}
}

// ParseFragment reads a changelog fragment: front matter with the one key kind,
// then the text of the change in Markdown. File is for errors, which name the line.
//
//	---
//	kind: added
//	---
//	What a user sees.
//
// A file a change keeps pull requests that run in parallel from meeting in one place.
func ParseFragment(file string, content []byte) (ChangelogEntry, error) {
	fail := func(line int, expected, found string) error {
		return problem.New(problem.Invalid, fmt.Sprintf("%s:%d: expected %s, found %s", file, line, expected, found),
			"write "+file+" like this:\n"+fragmentShape)
	}
	if len(content) > fragmentLimit {
		return ChangelogEntry{}, fail(1, fmt.Sprintf("at most %d bytes", fragmentLimit), fmt.Sprintf("%d", len(content)))
	}
	if !utf8.Valid(content) {
		return ChangelogEntry{}, fail(1, "UTF-8 text", "other bytes")
	}
	text := strings.ReplaceAll(strings.TrimPrefix(string(content), "\ufeff"), "\r\n", "\n")
	lines := strings.Split(text, "\n")
	if strings.TrimSpace(lines[0]) != "---" {
		return ChangelogEntry{}, fail(1, "front matter that begins with ---", quoteLine(lines[0]))
	}
	section, body := "", -1
	for i, line := range lines[1:] {
		n := i + 2
		line = strings.TrimSpace(line)
		if line == "---" {
			body = i + 2
			break
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(key) != "kind" {
			return ChangelogEntry{}, fail(n, "the line kind: KIND", quoteLine(line))
		}
		if section != "" {
			return ChangelogEntry{}, fail(n, "one kind", "a second one")
		}
		kind := strings.Trim(strings.TrimSpace(value), `"'`)
		var names []string
		for _, k := range fragmentKinds() {
			names = append(names, k[0])
			if k[0] == kind {
				section = k[1]
			}
		}
		if section == "" {
			return ChangelogEntry{}, fail(n, "a kind of "+strings.Join(names, ", "), quoteLine(kind))
		}
	}
	switch {
	case body < 0:
		return ChangelogEntry{}, fail(len(lines), "the line --- below the front matter", "the end of the file")
	case section == "":
		return ChangelogEntry{}, fail(2, "the line kind: KIND", "none")
	}
	for body < len(lines) && strings.TrimSpace(lines[body]) == "" {
		body++
	}
	if body == len(lines) {
		return ChangelogEntry{}, fail(len(lines), "the text of the change", "the end of the file")
	}
	if first := lines[body]; isBullet(first) || strings.HasPrefix(first, "#") || first[0] == ' ' || first[0] == '\t' {
		return ChangelogEntry{}, fail(body+1, "a sentence: the bullet is set at the release", quoteLine(first))
	}
	var opaque opaqueState
	for _, line := range lines[body:] {
		opaque.next(line + "\n")
	}
	if what := opaque.open(); what != "" {
		return ChangelogEntry{}, fail(len(lines), "the end of "+what, "the end of the file")
	}
	return ChangelogEntry{
		Section: section, Raw: asItem(strings.Join(lines[body:], "\n")),
		Fragment: file, source: string(content),
	}, nil
}

func quoteLine(s string) string {
	return fmt.Sprintf("%q", cutRunes(s, 60))
}
