package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf16"
)

// yamlFromJSON rewrites a JSON document as block YAML, keeping the order of
// keys, the digits of numbers and every escape in strings.
//
// It is not done by the YAML library, whose encoder writes control characters
// as they are, turns numbers of many digits into strings and loses a string's
// leading tab. YAML's double-quoted strings and numbers are a superset of
// JSON's, so the rest is indentation.
func yamlFromJSON(doc []byte) ([]byte, error) {
	y := &yamlWriter{dec: json.NewDecoder(bytes.NewReader(doc)), doc: doc}
	y.dec.UseNumber()
	if err := y.value(0, false); err != nil {
		return nil, err
	}
	out := bytes.TrimLeft(y.out.Bytes(), " \n")
	return append(out, '\n'), nil
}

type yamlWriter struct {
	dec *json.Decoder
	doc []byte
	out bytes.Buffer
}

// value writes the next JSON value at a depth. The cursor stands behind "key:"
// or "-"; inline says that a mapping may begin on the same line, as it does in
// a list.
func (y *yamlWriter) value(depth int, inline bool) error {
	start := y.dec.InputOffset()
	token, err := y.dec.Token()
	if err != nil {
		return err
	}
	open, isDelim := token.(json.Delim)
	if !isDelim {
		y.out.WriteByte(' ')
		y.out.WriteString(y.scalar(token, start))
		return nil
	}
	if !y.dec.More() {
		fmt.Fprintf(&y.out, " %s", map[json.Delim]string{'{': "{}", '[': "[]"}[open])
		_, err = y.dec.Token()
		return err
	}
	for first := true; y.dec.More(); first = false {
		if first && inline {
			y.out.WriteByte(' ')
		} else {
			y.out.WriteByte('\n')
			y.out.WriteString(strings.Repeat("  ", depth))
		}
		if open == '[' {
			y.out.WriteByte('-')
			err = y.value(depth+1, true)
		} else {
			err = y.member(depth)
		}
		if err != nil {
			return err
		}
	}
	_, err = y.dec.Token()
	return err
}

func (y *yamlWriter) member(depth int) error {
	start := y.dec.InputOffset()
	key, err := y.dec.Token()
	if err != nil {
		return err
	}
	y.out.WriteString(y.scalar(key, start))
	y.out.WriteByte(':')
	return y.value(depth+1, false)
}

// plain matches strings that no YAML reader can take for something else.
var plain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+(),-]+)*$`)

// words that some YAML version reads as a boolean, null or number.
var words = regexp.MustCompile(`(?i)^(y|n|yes|no|true|false|on|off|null|nan|inf)$`)

// scalar returns the token as YAML: plain where that is safe, otherwise the
// bytes of the JSON document, which keep its escapes and digits.
func (y *yamlWriter) scalar(token json.Token, start int64) string {
	if s, ok := token.(string); ok && plain.MatchString(s) && !words.MatchString(s) {
		return s
	}
	raw := strings.TrimLeft(string(y.doc[start:y.dec.InputOffset()]), " \t\r\n,:")
	return surrogatePair.ReplaceAllStringFunc(raw, func(escape string) string {
		if escape == `\\` {
			return escape
		}
		var high, low rune
		// The pattern admits nothing but two hexadecimal numbers.
		_, _ = fmt.Sscanf(escape, `\u%04x\u%04x`, &high, &low)
		return fmt.Sprintf(`\U%08x`, utf16.DecodeRune(high, low))
	})
}

// surrogatePair matches JSON's escape of one rune beyond 16 bits, which YAML
// does not have, and, to be skipped, an escaped backslash.
var surrogatePair = regexp.MustCompile(`\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`)
