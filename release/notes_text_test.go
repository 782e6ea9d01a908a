package release

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPlainPrintsAsTextOnly(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"agent/query: refuse an endless line": "agent/query: refuse an endless line",
		"[click](https://evil.example)":       `\[click\](https://evil.example)`,
		"![x](https://evil.example/pixel)":    `!\[x\](https://evil.example/pixel)`,
		"<script>alert(1)</script> &amp;":     `\<script\>alert(1)\</script\> \&amp;`,
		"<!-- hidden":                         `\<!-- hidden`,
		"# heading":                           `\# heading`,
		"- nested, + and 1. too":              `\- nested, + and 1. too`,
		"1. first":                            `1\. first`,
		"12) first":                           `12\) first`,
		"**bold** _it_ snake_case __x__":      `\*\*bold\*\* \_it\_ snake_case \__x_\_`,
		"a | b ~~c~~ $d$":                     `a \| b \~\~c\~\~ \$d\$`,
		"use `a*b` and `@x`":                  "use `a*b` and `@x`",
		"an open ` span [x](y)":               "an open \\` span \\[x\\](y)",
		"two `` are ` one `` span":            "two \\`\\` are \\` one \\`\\` span",
		"thanks @torvalds, @org/team!":        "thanks `@torvalds`, `@org/team`!",
		"\\@all and (@all) @@all é@all":       "\\\\`@all` and (`@all`) @`@all` é`@all`",
		"`a`@b `c`":                           "`a` `@b` `c`",
		"@b`c`":                               "`@b` `c`",
		"mail a@b.example, x.y_@z":            "mail a@b.example, x.y\\_@z",
		"https://medium.com/@user/x":          "https://medium.com/@user/x",
		"two\nlines\r\n\tand\x00 \x1b[31mred": `two lines and \[31mred`,
		"a\u202etxt.exe \u200bb \u2028c":      "atxt.exe b c",
		"broken \xff utf-8":                   "broken \ufffd utf-8",
		"  ":                                  "",
		strings.Repeat("é", 300):              strings.Repeat("é", 200) + "…",
	} {
		if got := oneLine(in).String(); got != want {
			t.Errorf("%q prints as\n%q, want\n%q", in, got, want)
		}
	}
}

func TestMentionsInMarkdownAreSilenced(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"- by @ada and *@bob*\n":                            "- by `@ada` and *`@bob`*\n",
		"- `@ada` ``a`@b`` [@c](d)\n":                       "- `@ada` ``a`@b`` [`@c`](d)\n",
		"- a `span\n  over @two` lines, @x\n":               "- a `span\n  over @two` lines, `@x`\n",
		"- x\n\n  ```sh\n  npm i @org/pkg\n  ```\n  @ada\n": "- x\n\n  ```sh\n  npm i @org/pkg\n  ```\n  `@ada`\n",
		"a@b.example\n":                                     "a@b.example\n",
	} {
		if got := silence(in); got != want {
			t.Errorf("%q became\n%q, want\n%q", in, got, want)
		}
	}
}

func TestAQuotedPassageCannotLeaveItsBlock(t *testing.T) {
	t.Parallel()
	if got, want := quoted("a\n```\n<b> @c \x1b[1m\n````\n"), Markdown("`````text\na\n```\n<b> @c [1m\n````\n`````"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	long := string(quoted(strings.Repeat("x", 1<<20)))
	if n := utf8.RuneCountInString(long); n > detailLimit+20 {
		t.Errorf("a huge passage has %d characters", n)
	}
}

func TestItemsCanBeUndone(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"a", "a\nb", "a\n\n```sh\n  b\n```\n\nc", "- nested\n  - more"} {
		if got := fromItem(asItem(text)); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if got, want := fromItem("*   a\n    b\n"), "a\nb"; got != want {
		t.Errorf("a wide bullet: %q, want %q", got, want)
	}
}

// FuzzPlain: whatever was written, a reader of Markdown finds text and code spans
// in it and nothing else, and no mention outside of code.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "a `b` @c [d](e) <f> \\", "`a`@b`c` ``", "\\`@a`", "1. *x*", "`@a` `b@c", "@a@b", "a_@b_"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := oneLine(s).String()
		for i := 0; i < len(out); i++ {
			switch c := out[i]; {
			case c == '\\':
				i++ // the next one is text
				if i < len(out) && out[i] >= utf8.RuneSelf {
					t.Fatalf("%q prints as %q: a backslash is left alone", s, out)
				}
			case c == '`':
				run := backticks(out[i:])
				end := -1
				for j := i + run; j < len(out); j++ {
					if out[j] == '`' {
						n := backticks(out[j:])
						if n == run {
							end = j + run
							break
						}
						j += n - 1
					}
				}
				if end < 0 {
					t.Fatalf("%q prints as %q: an open code span at %d", s, out, i)
				}
				i = end - 1
			case strings.IndexByte("*[]<>&|~$#\n", c) >= 0:
				t.Fatalf("%q prints as %q: %q at %d is no text", s, out, c, i)
			case c == '@' && i+1 < len(out) && mentionAt(out, i) != "":
				t.Fatalf("%q prints as %q: a mention at %d", s, out, i)
			}
		}
	})
}

func TestTheRepositorysTemplateIsTheDefault(t *testing.T) {
	t.Parallel()
	own, err := os.ReadFile("../.github/release-notes.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(own) != DefaultNotesTemplate {
		t.Error("release/notes.md.tmpl and .github/release-notes.md differ. Next: cp release/notes.md.tmpl .github/release-notes.md")
	}
}

func TestTheRepositorysFragmentsCanBeRead(t *testing.T) {
	t.Parallel()
	files, err := os.ReadDir("../changes")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		file := "changes/" + f.Name()
		content, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := IsFragment(file); err != nil {
			t.Error(err)
		} else if e, err := ParseFragment(file, content); ok && err != nil {
			t.Error(err)
		} else if ok && e.Breaking() && e.Migration() == "" {
			t.Errorf("%s tells of a breaking change without a migration guide", file)
		}
	}
	changelog, err := os.ReadFile("../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := ParseChangelog("CHANGELOG.md", changelog); err != nil || c.find(unreleased) < 0 {
		t.Errorf("CHANGELOG.md: %v, or no section Unreleased", err)
	}
}
