package release

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plain is text that anybody may have written, such as a commit's subject: one
// line without control characters. Templates print it by String, which escapes
// what Markdown would read as more than text; JSON holds it as it is.
type Plain string

// Markdown is text that maintainers wrote and reviewed as Markdown, and text that
// this package has made safe. It is printed as it is.
type Markdown string

const (
	plainLimit  = 200  // runes of one line of foreign text
	detailLimit = 4000 // runes of a quoted passage of a commit's message
)

// String returns the text as Markdown that reads as the text does and is nothing
// else: no link, no image, no HTML, no heading, and no mention that would call
// people. Code spans stay.
func (p Plain) String() string {
	var b strings.Builder
	for text := string(p); text != ""; {
		at, end := codeSpan(text)
		escapeProse(&b, text[:at])
		if at < end {
			writeCode(&b, text[at:end])
		}
		text = text[end:]
	}
	return b.String()
}

// writeCode adds a code span apart from one that stands right before it: two
// backticks in a row would be another fence.
func writeCode(b *strings.Builder, span string) {
	if strings.HasSuffix(b.String(), "`") {
		b.WriteByte(' ')
	}
	b.WriteString(span)
}

// oneLine makes a Plain of any text: white space becomes one space, control and
// format characters (among them those that reverse the direction of reading) are
// dropped, broken UTF-8 is replaced, and what is too long is cut.
func oneLine(s string) Plain {
	s = strings.Join(strings.Fields(printable(s)), " ")
	return Plain(cutRunes(s, plainLimit))
}

// printable drops what is neither text nor white space.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\u200c' || r == '\u200d': // joiners: names in many scripts need them
			return r
		case r == '\n' || r == '\t':
			return r
		case r == '\r' || unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			return -1
		case r == '\u2028' || r == '\u2029':
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

func cutRunes(s string, limit int) string {
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	return strings.TrimRight(string([]rune(s)[:limit]), " \n") + "…"
}

// codeSpan finds the first code span between single backticks in one line of
// text; at is len(text) where there is none.
func codeSpan(text string) (at, end int) {
	for i := 0; i < len(text); {
		if text[i] != '`' {
			i++
			continue
		}
		run := backticks(text[i:])
		if run > 1 {
			i += run
			continue
		}
		for j := i + 1; j < len(text); {
			if text[j] != '`' {
				j++
				continue
			}
			closing := backticks(text[j:])
			if closing == 1 {
				return i, j + 1
			}
			j += closing
		}
		i++
	}
	return len(text), len(text)
}

func backticks(s string) int { return len(s) - len(strings.TrimLeft(s, "`")) }

// mentionText is what a code host may turn into a message to somebody. A backslash
// does not keep GitHub from that (https://github.com/github/markup/issues/1168); a
// code span does. It goes on behind a second @, which would otherwise come to stand
// at the beginning of a text.
var mentionText = regexp.MustCompile(`@[A-Za-z0-9](?:[-A-Za-z0-9_./@]*[A-Za-z0-9])?`)

// escapeProse escapes a piece of a line that holds no code span.
func escapeProse(b *strings.Builder, s string) {
	first := b.Len() == 0
	for i := 0; i < len(s); {
		if name := mentionAt(s, i); name != "" {
			writeCode(b, "`"+name+"`")
			i += len(name)
			continue
		}
		c := s[i]
		switch {
		case strings.IndexByte("\\`*[]<>|~&$#", c) >= 0,
			c == '_' && (!wordAt(s, i-1) || !wordAt(s, i+1)),
			first && i == 0 && strings.IndexByte("-+=", c) >= 0,
			first && (c == '.' || c == ')') && leadingNumber.MatchString(s[:i]):
			b.WriteByte('\\')
		}
		b.WriteByte(c)
		i++
	}
}

var leadingNumber = regexp.MustCompile(`^[0-9]+$`)

// wordAt reports whether s[i] is a letter, digit or underscore of ASCII.
func wordAt(s string, i int) bool {
	if i < 0 || i >= len(s) {
		return false
	}
	c := s[i]
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// mentionAt returns the mention that begins at s[i], or nothing. Inside a word
// (an address) and inside a URL there is none.
func mentionAt(s string, i int) string {
	if s[i] != '@' || wordAt(s, i-1) {
		return ""
	}
	word := s[strings.LastIndexAny(s[:i], " \t\n(<\"")+1 : i]
	if strings.HasPrefix(word, "http://") || strings.HasPrefix(word, "https://") {
		return ""
	}
	if at := mentionText.FindStringIndex(s[i:]); at != nil && at[0] == 0 {
		return s[i : i+at[1]]
	}
	return ""
}

// silence returns reviewed Markdown with its mentions in code spans, so that
// publishing notes calls nobody. What is code already stays byte for byte.
func silence(m string) string {
	var b strings.Builder
	var fence fenceState
	var paragraph strings.Builder
	flush := func() {
		silenceParagraph(&b, paragraph.String())
		paragraph.Reset()
	}
	for line := range strings.SplitAfterSeq(m, "\n") {
		switch {
		case fence.next(line):
			flush()
			b.WriteString(line)
		case strings.TrimSpace(line) == "":
			flush()
			b.WriteString(line)
		default: // a code span can continue on the next line
			paragraph.WriteString(line)
		}
	}
	flush()
	return b.String()
}

func silenceParagraph(b *strings.Builder, text string) {
	for text != "" {
		at, end := anyCodeSpan(text)
		for i := 0; i < at; {
			if name := mentionAt(text[:at], i); name != "" {
				writeCode(b, "`"+name+"`")
				i += len(name)
				continue
			}
			b.WriteByte(text[i])
			i++
		}
		if at < end {
			writeCode(b, text[at:end])
		}
		text = text[end:]
	}
}

// anyCodeSpan finds the first code span, of backticks in any number.
func anyCodeSpan(text string) (at, end int) {
	for i := 0; i < len(text); i++ {
		if text[i] != '`' {
			continue
		}
		run := backticks(text[i:])
		for j := i + run; j < len(text); j++ {
			if text[j] != '`' {
				continue
			}
			closing := backticks(text[j:])
			if closing == run {
				return i, j + run
			}
			j += closing - 1
		}
		i += run - 1
	}
	return len(text), len(text)
}

// quoted shows a passage of any text as it is: a fenced block that the text
// cannot leave.
func quoted(text string) Markdown {
	text = cutRunes(strings.Trim(printable(text), "\n\t "), detailLimit)
	longest := 2
	for i := 0; i < len(text); i++ {
		if n := backticks(text[i:]); n > 0 {
			longest = max(longest, n)
			i += n - 1
		}
	}
	fence := strings.Repeat("`", longest+1)
	return Markdown(fence + "text\n" + text + "\n" + fence)
}

// asItem makes a list item of a Markdown text: a bullet, and every further line
// indented below it.
func asItem(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case i == 0:
			b.WriteString("- " + line)
		case strings.TrimSpace(line) != "":
			b.WriteString("\n  " + line)
		default:
			b.WriteByte('\n')
		}
	}
	return b.String() + "\n"
}

// fromItem undoes asItem. Text that is no list item stays as it is.
func fromItem(item string) string {
	item = strings.ReplaceAll(item, "\r\n", "\n")
	if len(item) < 2 || !isBullet(item) {
		return strings.TrimSpace(item)
	}
	rest := strings.TrimLeft(item[1:], " \t")
	lines := strings.Split(strings.TrimRight(rest, "\n"), "\n")
	indent := len(item) - len(rest)
	for i, line := range lines[1:] {
		spaces := len(line) - len(strings.TrimLeft(line, " "))
		lines[i+1] = line[min(spaces, indent):]
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func isBullet(line string) bool {
	return len(line) > 1 && strings.IndexByte("-*+", line[0]) >= 0 && (line[1] == ' ' || line[1] == '\t')
}
