package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Sanitize returns s with everything escaped that could drive a terminal or
// make text read differently from what it is: control characters, escape
// sequences with them, bidirectional overrides, line separators and broken
// UTF-8. Line breaks and tabs are escaped too, since a cell is one line.
func Sanitize(s string) string {
	if clean(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && brokenAt(s[i:]):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case dangerous(r):
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func clean(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, dangerous) < 0
}

func brokenAt(s string) bool {
	_, size := utf8.DecodeRuneInString(s)
	return size == 1
}

// dangerous reports whether a terminal or a reader could be misled by r. The
// format characters of category Cf hold the bidirectional controls; the zero
// width joiner stays, because names in many scripts need it.
func dangerous(r rune) bool {
	switch r {
	case '\u200c', '\u200d':
		return false
	case '\u2028', '\u2029':
		return true
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}

// SafeWriter returns w itself, or, when w is a terminal, a writer that passes
// line breaks and tabs and escapes whatever else Sanitize escapes. It is for
// streams of text from another machine.
func SafeWriter(w io.Writer) io.Writer {
	if !IsTerminal(w) {
		return w
	}
	return &safeWriter{w: w}
}

type safeWriter struct {
	w    io.Writer
	rest []byte // the beginning of a rune whose end is still to come
}

func (s *safeWriter) Write(p []byte) (int, error) {
	data := append(s.rest, p...)
	cut := len(data)
	for i := len(data) - 1; i >= 0 && i >= len(data)-utf8.UTFMax; i-- {
		if utf8.RuneStart(data[i]) {
			if !utf8.FullRune(data[i:]) {
				cut = i
			}
			break
		}
	}
	s.rest = append([]byte(nil), data[cut:]...)

	var b strings.Builder
	for piece := range strings.SplitAfterSeq(string(data[:cut]), "\n") {
		text, newline := strings.CutSuffix(piece, "\n")
		for i, field := range strings.Split(text, "\t") {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(Sanitize(field))
		}
		if newline {
			b.WriteByte('\n')
		}
	}
	if _, err := io.WriteString(s.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Bytes formats a size for people, in powers of ten.
func Bytes(n int64) string {
	if n < 0 {
		return "unknown"
	}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 999.95 && unit < len("kMGTPE") {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTPE"[unit-1])
}
