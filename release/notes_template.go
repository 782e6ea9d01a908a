package release

import (
	_ "embed" // the default template
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// DefaultNotesTemplate is the text of the template that is used where a repository
// has none. Its fields are those of Notes.
//
//go:embed notes.md.tmpl
var DefaultNotesTemplate string

// notesLimit keeps the text within what code hosts take, in bytes, which are never
// fewer than characters. GitHub takes 125,000 characters for a release
// (https://github.com/orgs/community/discussions/63414) and 65,536 for an issue or a
// comment that repeats the notes.
const notesLimit = 60_000

// NotesTemplate renders notes as Markdown.
type NotesTemplate struct {
	name string
	tmpl *template.Template
}

var templatePlace = regexp.MustCompile(`^template: .*?:(\d+)(?::\d+)?: (?:executing ".*?" at )?(.*)$`)

// ParseNotesTemplate reads a text/template over Notes. Name is for errors, which
// name line and field. Besides text/template's own functions it may call
//
//	short COMMIT   the first seven digits
//	raw TEXT       a Plain without escaping: only where Markdown is not read
func ParseNotesTemplate(name, text string) (*NotesTemplate, error) {
	t := &NotesTemplate{name: name}
	var err error
	t.tmpl, err = template.New("notes").Option("missingkey=error").Funcs(template.FuncMap{
		"short": func(commit string) string { return commit[:min(7, len(commit))] },
		"raw":   func(p Plain) string { return string(p) },
	}).Parse(text)
	if err != nil {
		return nil, t.wrong(err)
	}
	return t, nil
}

func (t *NotesTemplate) wrong(err error) error {
	where, what := t.name, err.Error()
	if m := templatePlace.FindStringSubmatch(strings.ReplaceAll(what, "\n", " ")); m != nil {
		where, what = t.name+", line "+m[1], m[2]
	}
	return problem.New(problem.Invalid, fmt.Sprintf("expected a template over the notes in %s: %s", where, what),
		"mend it after the default, which uses every field: release-bot notes --print-template")
}

var errTooLong = errors.New("the text is too long")

// bounded ends a template that would write without end.
type bounded struct{ strings.Builder }

// Write takes what fits.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > 100*notesLimit {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

// Render returns the notes as Markdown that ends with a line break. Where the text
// would be longer than a code host takes, changes are left out from the end of the
// list, and Hidden tells the template how many.
func (t *NotesTemplate) Render(n *Notes) (string, error) {
	total := 0
	for _, g := range n.Changes {
		total += len(g.Changes)
	}
	for shown := total; ; shown /= 2 {
		text, err := t.render(n.cut(shown))
		if err != nil {
			return "", err
		}
		if len(text) <= notesLimit {
			return text, nil
		}
		if shown == 0 {
			return "", problem.New(problem.TooLarge, fmt.Sprintf("expected notes of at most %d bytes, found %d without the list of changes", notesLimit, len(text)),
				"shorten the changelog's entries for "+n.Version.String())
		}
	}
}

func (t *NotesTemplate) render(n *Notes) (string, error) {
	var out bounded
	if err := t.tmpl.Execute(&out, n); err != nil {
		return "", t.wrong(err)
	}
	return oneBlankLine(strings.TrimSpace(out.String())) + "\n", nil
}

// oneBlankLine makes one blank line of several, outside of code blocks: so a
// template can have its conditions on lines of their own.
func oneBlankLine(text string) string {
	var b strings.Builder
	var fence fenceState
	blank := false
	for line := range strings.SplitAfterSeq(text, "\n") {
		code := fence.next(line)
		empty := !code && strings.TrimSpace(line) == ""
		switch {
		case !empty:
			b.WriteString(line)
		case !blank:
			b.WriteByte('\n')
		}
		blank = empty
	}
	return b.String()
}

// cut returns a copy that lists at most so many changes.
func (n *Notes) cut(shown int) *Notes {
	c := *n
	c.Changes = nil
	for _, g := range n.Changes {
		keep := min(shown, len(g.Changes))
		shown -= keep
		c.Hidden += len(g.Changes) - keep
		if keep > 0 {
			c.Changes = append(c.Changes, NoteGroup{g.Title, g.Changes[:keep]})
		}
	}
	return &c
}
