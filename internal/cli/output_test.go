package cli_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func TestSanitizeEscapesWhatCouldMislead(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain, naïve, 日本, 👩‍💻": "plain, naïve, 日本, 👩‍💻",
		"\x1b[31mred":           `\x1b[31mred`,
		"a\nb\tc\r":             `a\nb\tc\r`,
		"c1 \u009b2J":           `c1 \u009b2J`,
		"bidi \u202etxt.exe":    `bidi \u202etxt.exe`,
		"line\u2028sep":         `line\u2028sep`,
		"broken \xff utf8":      `broken \xff utf8`,
		"kept \ufffd":           "kept \ufffd",
		"\x7f":                  `\x7f`,
	} {
		if got := cli.Sanitize(in); got != want {
			t.Errorf("Sanitize(%q) = %q, want %q", in, got, want)
		}
	}
}

// document draws JSON values, hostile strings among them.
func document(depth int) *rapid.Generator[any] {
	scalar := rapid.OneOf(
		rapid.Just[any](nil),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Map(rapid.Int64(), func(n int64) any { return n }),
		rapid.Map(rapid.String(), func(s string) any { return s }),
		rapid.Map(rapid.SampledFrom([]string{
			"", " x ", "\ttab", "no", "NULL", "~", "1.0", "0x1f", "1e3", "2020-01-01", "a: b", "- x", "#c", "{a}", "l1\nl2\x1b[2J",
			"trail\n", "\u009b31m", "\u202e", "k: v", "'q'", `"q"`, "&a", "*a", "!t", "%d", "@x", "`x`", "?", ":", "-", "---", "...", "=", "<<", ".inf", "+.5",
			"/data/csv", "in.c-crm", "it's", "a #b", "x:", "\U000e0041", "\ufeff", "12:30:45", "0o7", "_1", "e5", "a, b", "(x)",
		}), func(s string) any { return s }),
	)
	if depth == 0 {
		return scalar
	}
	return rapid.OneOf(
		scalar,
		rapid.Map(rapid.SliceOfN(document(depth-1), 0, 4), func(s []any) any { return s }),
		rapid.Map(rapid.MapOfN(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"no", "1", "a: b", "key"})), document(depth-1), 0, 4), func(m map[string]any) any { return m }),
	)
}

func TestJSONAndYAMLSayTheSameAndAreSafeOnATerminal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := document(3).Draw(t, "value")
		plain, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		var asJSON, asYAML bytes.Buffer
		if err := cli.Print(&asJSON, cli.JSON, value, nil); err != nil {
			t.Fatal(err)
		}
		if err := cli.Print(&asYAML, cli.YAML, value, nil); err != nil {
			t.Fatal(err)
		}
		for _, out := range []string{asJSON.String(), asYAML.String()} {
			for _, r := range out {
				if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
					t.Fatalf("the output holds %q:\n%q", r, out)
				}
			}
			if !utf8.ValidString(out) || !strings.HasSuffix(out, "\n") {
				t.Fatalf("not text that ends with a line break: %q", out)
			}
		}
		want := decode(t, plain)
		if got := decode(t, asJSON.Bytes()); !reflect.DeepEqual(got, want) {
			t.Fatalf("JSON reads back as %#v, want %#v", got, want)
		}
		var fromYAML any
		if err := yaml.Unmarshal(asYAML.Bytes(), &fromYAML); err != nil {
			t.Fatalf("the YAML cannot be read: %v\n%s", err, asYAML.String())
		}
		back, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		if got := decode(t, back); !reflect.DeepEqual(got, want) {
			t.Fatalf("YAML reads back as %#v, want %#v:\n%s", got, want, asYAML.String())
		}
	})
}

func decode(t *rapid.T, doc []byte) any {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("decode %s: %v", doc, err)
	}
	return v
}

func TestYAMLKeepsOrderDigitsAndShape(t *testing.T) {
	t.Parallel()
	value := struct {
		Zebra  string           `json:"zebra"`
		Number json.Number      `json:"number"`
		List   []map[string]any `json:"list"`
		Empty  []string         `json:"empty"`
		Nested [][]int          `json:"nested"`
	}{"two words", "12345678901234567890.10", []map[string]any{{"a": 1, "b": nil}, {}}, []string{}, [][]int{{1, 2}, {3}}}
	var out bytes.Buffer
	if err := cli.Print(&out, cli.YAML, value, nil); err != nil {
		t.Fatal(err)
	}
	want := `zebra: two words
number: 12345678901234567890.10
list:
  - a: 1
    b: null
  - {}
empty: []
nested:
  - - 1
    - 2
  - - 3
`
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

func TestGridAlignsBlocksAndTrimsLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := cli.Print(&out, cli.Table, nil, func(g *cli.Grid) {
		g.Row("ID", "ROWS", "NOTE")
		g.Row("orders", 12, "")
		g.Row("x\x1b[2J", 3, "tab\there")
		g.Line("done: %s", "a\nb")
		g.Row("a", "b")
	})
	want := "ID        ROWS  NOTE\norders    12\nx\\x1b[2J  3     tab\\there\ndone: a\\nb\na  b\n"
	if err != nil || out.String() != want {
		t.Errorf("got %q, %v; want %q", out.String(), err, want)
	}
}

func TestSafeWriterEscapesOnATerminalOnlyAndKeepsSplitRunes(t *testing.T) {
	t.Parallel()
	const text = "id,name\n1,\"naïve 日本\"\t\x1b[2J\n"
	for cut := range len(text) {
		tty := &terminal{}
		w := cli.SafeWriter(tty)
		for _, part := range []string{text[:cut], text[cut:]} {
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		if want := "id,name\n1,\"naïve 日本\"\t\\x1b[2J\n"; tty.String() != want {
			t.Fatalf("cut at %d: got %q, want %q", cut, tty.String(), want)
		}
	}
	var pipe bytes.Buffer
	if _, err := cli.SafeWriter(&pipe).Write([]byte(text)); err != nil || pipe.String() != text {
		t.Errorf("the pipe got %q, %v; want the bytes as they are", pipe.String(), err)
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		-1: "unknown", 0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1 << 62: "4.6 EB",
	} {
		if got := cli.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}
