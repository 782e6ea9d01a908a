package release

import "strings"

// fenceState follows a Markdown text line by line through its fenced code blocks.
type fenceState struct {
	fence  string // the run of characters that opened the block, or empty
	indent int
}

// next takes the next line and reports whether it belongs to a fenced block, the
// fences among it.
//
// Source: https://spec.commonmark.org/0.31.2/#fenced-code-blocks. A fence that
// stands in a list item ends with the item, too.
func (f *fenceState) next(line string) bool {
	text := strings.TrimLeft(line, " ")
	indent := len(line) - len(text)
	text = strings.TrimRight(text, " \t\r\n")
	if f.fence != "" {
		if text != "" && f.indent >= 2 && indent < 2 { // the list item has ended
			f.fence = ""
			return f.next(line)
		}
		if strings.HasPrefix(text, f.fence) && strings.Trim(text, f.fence[:1]) == "" {
			f.fence = ""
		}
		return true
	}
	// A list item may begin with a fence.
	if isBullet(text) {
		rest := strings.TrimLeft(text[1:], " \t")
		indent, text = indent+len(text)-len(rest), rest
	}
	for _, c := range []string{"`", "~"} {
		run := len(text) - len(strings.TrimLeft(text, c))
		if run >= 3 && (c != "`" || !strings.Contains(text[run:], "`")) {
			f.fence, f.indent = text[:run], indent
			return true
		}
	}
	return false
}

// opaqueState follows a Markdown text line by line through what is no Markdown:
// fenced code blocks and HTML comments.
type opaqueState struct {
	fence   fenceState
	comment bool
}

// next takes the next line and reports whether its beginning lies inside a code
// block or a comment. A comment in a code span is text.
func (o *opaqueState) next(line string) bool {
	began := o.comment
	if !o.comment && o.fence.next(line) {
		return true
	}
	for rest := line; rest != ""; {
		if o.comment {
			_, after, closed := strings.Cut(rest, "-->")
			if !closed {
				return began
			}
			o.comment, rest = false, after
			continue
		}
		at := strings.Index(rest, "<!--")
		if at < 0 {
			return began
		}
		if strings.IndexByte(rest[:at], '`') >= 0 {
			if code, end := anyCodeSpan(rest); code < at {
				rest = rest[end:]
				continue
			}
		}
		o.comment, rest = true, rest[at+len("<!--"):]
	}
	return began
}

// open reports what a text that ends here leaves open: "a code block", "a comment"
// or nothing.
func (o *opaqueState) open() string {
	switch {
	case o.comment:
		return "an HTML comment (`<!--` without `-->`)"
	case o.fence.fence != "":
		return "a code block (a line of " + o.fence.fence + " without its twin)"
	default:
		return ""
	}
}
