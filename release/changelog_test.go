package release

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var april5 = Version{2026, 4, 5}

func mustChangelog(t testing.TB, text string) *Changelog {
	t.Helper()
	c, err := ParseChangelog("CHANGELOG.md", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustFragment(t testing.TB, file, text string) ChangelogEntry {
	t.Helper()
	e, err := ParseFragment(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const head = "# Changelog\n\nAll changes.\n\n"

func TestReleaseMovesEntriesAndNothingElse(t *testing.T) {
	t.Parallel()
	fragments := []ChangelogEntry{
		mustFragment(t, "changes/a.md", "---\nkind: added\n---\nFrom a fragment\nin two lines.\n"),
		mustFragment(t, "changes/b.md", "---\nkind: breaking\n---\nGone.\n\nMigration: go, too.\n"),
	}
	const old = "## 2026.04.3 - 2026-04-02\n\n### Fixed\n\n- old\n"
	for name, tc := range map[string]struct {
		before, after string
		waiting       string // entries that were released with are those of this text, and of before where it is empty
		fragments     []ChangelogEntry
	}{
		"all entries go, their text as it was": {
			before: head + "## Unreleased\n\n### Added\n\n- one\n  more\n\n  still one\n- two\n\n### Fixed\n\n* three\n\n" + old,
			after:  head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n  more\n\n  still one\n- two\n\n### Fixed\n\n* three\n\n" + old,
		},
		"the first release of a file": {
			before: head + "## Unreleased\n\n### Added\n\n- one\n",
			after:  head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n",
		},
		"fragments join the lists, breaking ones come first": {
			before:    head + "## Unreleased\n\n### Added\n\n- one\n\n" + old,
			fragments: fragments,
			after: head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Breaking\n\n- Gone.\n\n  Migration: go, too.\n\n" +
				"### Added\n\n- one\n- From a fragment\n  in two lines.\n\n" + old,
		},
		"fragments alone": {
			before:    head + "## Unreleased\n",
			fragments: fragments[:1],
			after:     head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- From a fragment\n  in two lines.\n",
		},
		"what came later stays": {
			before:  head + "## Unreleased\n\n### Added\n\n- one\n- later\n\n### Fixed\n\n- three\n\n### Removed\n\n- later, too\n\n" + old,
			waiting: "## Unreleased\n\n### Added\n\n- one\n\n### Fixed\n\n- three\n",
			after: head + "## Unreleased\n\n### Added\n\n- later\n\n### Removed\n\n- later, too\n\n" +
				"## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n\n### Fixed\n\n- three\n\n" + old,
		},
		"an entry that stands twice goes once": {
			before:  head + "## Unreleased\n\n### Added\n\n- same\n- same\n",
			waiting: "## Unreleased\n\n### Added\n\n- same\n",
			after:   head + "## Unreleased\n\n### Added\n\n- same\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- same\n",
		},
		"a comment stays where it is": {
			before: head + "## Unreleased\n\n<!-- Write below:\n\n## 1999.01.1\n-->\n\n### Added\n\n- one\n\n" + old,
			after:  head + "## Unreleased\n\n<!-- Write below:\n\n## 1999.01.1\n-->\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n\n" + old,
		},
		"a code block ends with its list item": {
			before: head + "## Unreleased\n\n### Added\n\n- one\n\n  ```md\n## 2026.04.1\n  ```\n\n" + old,
			after: head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n\n  ```md\n\n" +
				"## 2026.04.1\n  ```\n\n" + old,
		},
		"headings in a code block at the margin are text": {
			before: head + "```md\n## Unreleased\n```\n\n## Unreleased\n\n- one\n\n```\n## 2026.04.1\n```\n\n" + old,
			after:  head + "```md\n## Unreleased\n```\n\n## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n- one\n\n```\n## 2026.04.1\n```\n\n" + old,
		},
		"brackets and link definitions": {
			before: head + "## [Unreleased]\n\n### Added\n\n- one\n\n[Unreleased]: https://example.com/a\n[2026.04.3]: https://example.com/b\n",
			after:  head + "## [Unreleased]\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n\n[Unreleased]: https://example.com/a\n[2026.04.3]: https://example.com/b\n",
		},
		"Windows line breaks": {
			before:    strings.ReplaceAll(head+"## Unreleased\n\n### Added\n\n- one\n\n"+old, "\n", "\r\n"),
			fragments: fragments[:1],
			after:     strings.ReplaceAll(head+"## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n- From a fragment\n  in two lines.\n\n"+old, "\n", "\r\n"),
		},
		"a version that was overtaken stands below the newer one": {
			before: head + "## Unreleased\n\n### Added\n\n- one\n\n## 2026.04.6 - 2026-04-10\n\n- newer\n\n" + old,
			after:  head + "## Unreleased\n\n## 2026.04.6 - 2026-04-10\n\n- newer\n\n## 2026.04.5 - 2026-04-09\n\n### Added\n\n- one\n\n" + old,
		},
		"a version with a section stays as it is": {
			before:    head + "## Unreleased\n\n### Added\n\n- one\n\n## 2026.04.5 - 2026-04-08\n\n- done\n",
			fragments: fragments,
			after:     head + "## Unreleased\n\n### Added\n\n- one\n\n## 2026.04.5 - 2026-04-08\n\n- done\n",
		},
		"nothing waits": {
			before: head + "## Unreleased\n\n" + old,
			after:  head + "## Unreleased\n\n" + old,
		},
		"no line break at the end": {
			before: head + "## Unreleased\n\n- one",
			after:  head + "## Unreleased\n\n## 2026.04.5 - 2026-04-09\n\n- one\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := mustChangelog(t, tc.before)
			waiting := c.Unreleased()
			if tc.waiting != "" {
				waiting = mustChangelog(t, tc.waiting).Unreleased()
			}
			waiting = append(waiting, tc.fragments...)
			for range 2 { // the second time changes nothing
				if err := c.Release("CHANGELOG.md", april5, "2026-04-09", waiting); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.after, string(c.Bytes())); diff != "" {
					t.Fatalf("the changelog differs (-want +got):\n%s", diff)
				}
				c = mustChangelog(t, string(c.Bytes()))
			}
		})
	}
}

func TestChangelogErrorsNameLineAndWayOut(t *testing.T) {
	t.Parallel()
	_, err := ParseChangelog("CHANGELOG.md", []byte("## Unreleased\n\n## 2026.04.5\n\n## [unreleased]\n"))
	wantText(t, err, "CHANGELOG.md", "line 5", "line 1")
	c := mustChangelog(t, "# Changelog\n\n## 2026.04.1\n")
	err = c.Release("CHANGELOG.md", april5, "2026-04-09", []ChangelogEntry{mustFragment(t, "changes/a.md", "---\nkind: fixed\n---\nText.")})
	wantText(t, err, "`## Unreleased`", "CHANGELOG.md")
}

func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error is %v, want %q in it", err, part)
		}
	}
}

func TestFragmentsAreReadStrictly(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"no front matter":   {"kind: added\n", `changes/x.md:1: expected front matter that begins with ---, found "kind: added"`},
		"unknown key":       {"---\nknd: added\n---\nx", `changes/x.md:2: expected the line kind: KIND, found "knd: added"`},
		"unknown kind":      {"---\n# why\nkind: add\n---\nx", `changes/x.md:3: expected a kind of breaking, added, changed, deprecated, removed, fixed, security, found "add"`},
		"two kinds":         {"---\nkind: added\nkind: fixed\n---\nx", `changes/x.md:3: expected one kind`},
		"no kind":           {"---\n---\nx", `changes/x.md:2: expected the line kind: KIND, found none`},
		"front matter open": {"---\nkind: added\n", `changes/x.md:3: expected the line --- below the front matter`},
		"no text":           {"---\nkind: added\n---\n\n \n", `changes/x.md:6: expected the text of the change`},
		"a bullet":          {"---\nkind: added\n---\n- x", `changes/x.md:4: expected a sentence: the bullet is set at the release, found "- x"`},
		"a heading":         {"---\nkind: added\n---\n\n## x", `changes/x.md:5: expected a sentence`},
		"an open comment":   {"---\nkind: added\n---\nx <!-- y", `changes/x.md:4: expected the end of an HTML comment`},
		"an open block":     {"---\nkind: added\n---\nx\n\n~~~\ny", "changes/x.md:7: expected the end of a code block"},
		"other bytes":       {"---\nkind: added\n---\n\xff", `changes/x.md:1: expected UTF-8 text`},
		"far too long":      {"---\nkind: added\n---\n" + strings.Repeat("x", fragmentLimit), `changes/x.md:1: expected at most 65536 bytes`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseFragment("changes/x.md", []byte(tc.text))
			wantText(t, err, tc.want)
		})
	}
	e := mustFragment(t, "changes/x.md", "\ufeff---\r\nkind: \"breaking\"\r\n---\r\n\r\nA.\r\n\r\n**Migration guide:** do B:\r\n\r\n```sh\r\nb <!-- c\r\n```\r\n")
	want := ChangelogEntry{Section: "Breaking", Raw: "- A.\n\n  **Migration guide:** do B:\n\n  ```sh\n  b <!-- c\n  ```\n", Fragment: "changes/x.md", source: e.source}
	if diff := cmp.Diff(want, e, cmp.AllowUnexported(ChangelogEntry{})); diff != "" {
		t.Errorf("the entry differs (-want +got):\n%s", diff)
	}
	if got, want := e.Migration(), "do B:\n\n```sh\nb <!-- c\n```"; got != want {
		t.Errorf("the guide is %q, want %q", got, want)
	}
	for file, want := range map[string]string{"changes/README.md": "no", "changes/.gitkeep": "no", "changes/12-x.md": "yes", "changes/x.txt": "error", "changes/sub": "error"} {
		got := "no"
		if ok, err := IsFragment(file); err != nil {
			got = "error"
		} else if ok {
			got = "yes"
		}
		if got != want {
			t.Errorf("IsFragment(%q): %s, want %s", file, got, want)
		}
	}
}

// FuzzChangelog: no byte is lost, whatever the file holds.
func FuzzChangelog(f *testing.F) {
	for _, text := range []string{
		"", "x", head + "## Unreleased\n\n### Added\n\n- a\n- b\n\n## 2026.04.3 - 2026-04-02\n\n- c\n",
		"## [Unreleased]\r\n\r\n* a\r\n\r\n  b\r\n[x]: y\r\n", "## Unreleased\n<!-- a\n- b\n-->\n- c\n```\n- d\n```\ntext\n\ntext",
		"## Unreleased\n### A\n- x\n### A\n- y\n### B\n\n### C\n- z <!--\n## 2026.04.1\n--> \n",
	} {
		f.Add([]byte(text), uint8(0xff))
		f.Add([]byte(text), uint8(0x55))
	}
	f.Fuzz(func(t *testing.T, file []byte, pick uint8) {
		c, err := ParseChangelog("CHANGELOG.md", file)
		if err != nil {
			return
		}
		if got := c.Bytes(); string(got) != string(file) {
			t.Fatalf("read and written, %q became %q", file, got)
		}
		for _, s := range c.sections {
			joined := ""
			for _, p := range piecesOf(s.body) {
				joined += p.raw
			}
			if joined != s.body {
				t.Fatalf("the pieces of %q are %q", s.body, joined)
			}
		}
		if _, done := c.Section(april5); done || c.find(unreleased) < 0 {
			return
		}
		var chosen []ChangelogEntry
		all := c.Unreleased()
		for i, e := range all {
			if pick&(1<<(i%8)) != 0 {
				chosen = append(chosen, e)
			}
		}
		from := c.find(unreleased)
		before, after := "", ""
		for i, s := range c.sections {
			if i < from {
				before += s.heading + s.body
			} else if i > from {
				after += s.heading + s.body
			}
		}
		if err := c.Release("CHANGELOG.md", april5, "2026-04-09", chosen); err != nil {
			t.Fatal(err)
		}
		text := string(c.Bytes())
		if len(chosen) == 0 {
			if text != string(file) {
				t.Fatalf("without entries %q became %q", file, text)
			}
			return
		}
		// What is not in Unreleased is there as it was, but for the new section and
		// the blank lines around it.
		rest := text
		for _, part := range []string{before, c.sections[from].heading} {
			if !strings.HasPrefix(rest, part) {
				t.Fatalf("%q became %q: it should begin with %q", file, text, part)
			}
			rest = rest[len(part):]
		}
		squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
		have := squeeze(rest)
		for _, e := range all {
			if want := squeeze(e.Raw); !strings.Contains(have, want) {
				t.Fatalf("%q became %q: the entry %q is lost", file, text, want)
			}
		}
		for line := range strings.Lines(after) {
			if want := strings.TrimSpace(line); !strings.Contains(rest, want) {
				t.Fatalf("%q became %q: the line %q is lost", file, text, want)
			}
		}
	})
}

func TestALongChangelogIsReadInTime(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"many entries": strings.Repeat("- a b c d e f g\n", 1<<16),
		"a long entry": "- a\n" + strings.Repeat("  b c d e f g\n", 1<<16),
		"comments":     strings.Repeat("<!-- x --> ", 1<<16),
		"backticks":    strings.Repeat("`` ` ", 1<<17),
	} {
		began := time.Now()
		c := mustChangelog(t, "## Unreleased\n\n"+text)
		if err := c.Release("CHANGELOG.md", april5, "2026-04-09", c.Unreleased()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: a megabyte took %v", name, took)
		}
	}
}
