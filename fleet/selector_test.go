package fleet_test

import (
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func TestASelectorMatchesAsKubernetesDoes(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"tier": "canary", "cloud": "gcp", "empty": "", "example.com/x": "y"}
	for text, want := range map[string]bool{
		"":                                  true,
		" ":                                 true,
		"tier=canary":                       true,
		"tier==canary":                      true,
		" tier = canary , cloud = gcp ":     true,
		"tier=canary,cloud=aws":             false,
		"tier!=canary":                      false,
		"cloud!=aws":                        true,
		"region!=eu":                        true,
		"tier in (beta,canary)":             true,
		"tier in(beta)":                     false,
		"tier notin (beta, canary)":         false,
		"region notin (eu)":                 true,
		"region in (eu)":                    false,
		"tier":                              true,
		"region":                            false,
		"!region":                           true,
		"! tier":                            false,
		"empty=":                            true,
		"empty,tier=":                       false,
		"empty in (,x)":                     true,
		"example.com/x=y":                   true,
		"in=x":                              false,
		"!in,tier notin (),empty notin (x)": true,
	} {
		s, err := fleet.ParseSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := s.Matches(labels); got != want {
			t.Errorf("%q matches: %t, want %t", text, got, want)
		}
	}
}

func TestAFaultOfASelectorIsNamedWithItsPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"tier=":                  "",
		"=canary":                `a label's name at character 1 of the selector, found "="`,
		"tier=canary,":           `a label's name at character 13 of the selector, found its end`,
		"tier = a b":             `a comma or the end at character 10 of the selector, found "b"`,
		"tier>5":                 `a label's name at character 1 of the selector, found "tier>5"`,
		"tier in canary":         `( at character 9 of the selector, found "canary"`,
		"tier in (a":             `a comma or ) at character 11 of the selector, found its end`,
		"tier in (a b)":          `a comma or ) at character 12 of the selector, found "b"`,
		"tier is a":              `=, !=, in, notin, a comma or the end at character 6 of the selector, found "is"`,
		"!tier=a":                `a comma or the end at character 6 of the selector, found "="`,
		"tier=-a":                `a label's value at character 6 of the selector, found "-a"`,
		"é=a":                    `a label's name at character 1 of the selector, found "é"`,
		"a=" + longText(64):      `a label's value at character 3 of the selector`,
		longText(5_000):          `at most 4096 characters at character 4097 of the selector, found more`,
		"a!b":                    `=, !=, in, notin, a comma or the end at character 2 of the selector, found "!"`,
		"x/y/z":                  `a label's name at character 1 of the selector, found "x/y/z"`,
		"tier===canary":          `a label's value at character 7 of the selector, found "="`,
		"tier in (a),,cloud=gcp": `a label's name at character 13 of the selector, found ","`,
	} {
		_, err := fleet.ParseSelector(text)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "expected "+want) {
			t.Errorf("%q: got %v\nwant %s", text, err, want)
		}
	}
}

func longText(n int) string { return strings.Repeat("a", n) }

func FuzzSelector(f *testing.F) {
	for _, text := range []string{"tier=canary,cloud!=aws,region in (eu,us),!beta", "a notin (,b)", "!", "a==", "in in (in)", "x/y=z", "a in (", "\xff=a", "a=,b"} {
		f.Add(text, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		s, err := fleet.ParseSelector(text)
		if err != nil {
			return
		}
		again, err := fleet.ParseSelector(s.String())
		if err != nil {
			t.Fatalf("%q is written as %q, which does not parse: %v", text, s, err)
		}
		if again.String() != s.String() {
			t.Errorf("%q: %q becomes %q", text, s, again)
		}
		labels := map[string]string{key: value}
		if s.Matches(labels) != again.Matches(labels) {
			t.Errorf("%q and %q differ about %v", text, again, labels)
		}
	})
}
