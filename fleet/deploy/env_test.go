package deploy

import (
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
)

func TestOnlyOurLinesOfEnvChange(t *testing.T) {
	t.Parallel()
	customer := "# Acme's own\nKEBOOLA_STORAGE_TOKEN='a=b # c'\n\nAGNES_TAG=stable # follow\nexport DOMAIN=data.acme.com\nAGNES_TAG=dev\n"
	to := Image{Repository: "ghcr.io/x/y", Tag: "stable", Digest: "sha256:ab", Version: "2026.11.4"}
	for _, c := range []struct {
		name, have, want string
		set              map[string]string
	}{
		{
			"in its place, doubles dropped, new ones at the end", customer,
			"# Acme's own\nKEBOOLA_STORAGE_TOKEN='a=b # c'\n\nAGNES_TAG=stable\nexport DOMAIN=data.acme.com\n" +
				"AGNES_IMAGE=ghcr.io/x/y\nAGNES_IMAGE_DIGEST=sha256:ab\nAGNES_BUNDLE_VERSION=2026.11.4\n", envOf(to),
		},
		{"an empty value takes the line away", "A=1\nAGNES_TAG=x\nAGNES_IMAGE_DIGEST=sha256:ab", "A=1\nAGNES_TAG=dev\n", map[string]string{envTag: "dev", envDigest: "", envImage: "", envBundle: ""}},
		{"a last line without its end", "A=1", "A=1\nAGNES_TAG=dev\n", map[string]string{envTag: "dev"}},
		{"nothing to set leaves every byte", "A=1\r\nB = 2", "A=1\r\nB = 2\n", nil},
		{"nothing at all", "", "", envOf(Image{})},
	} {
		if got := string(editEnv([]byte(c.have), c.set)); got != c.want {
			t.Errorf("%s:\n%q\nwant\n%q", c.name, got, c.want)
		}
	}
}

func TestAnImageThatFailedIsNotedForTheOneThatRunsAgain(t *testing.T) {
	t.Parallel()
	before := "AGNES_TAG=stable\nAGNES_IMAGE_DIGEST=sha256:old\n"
	j := journal{From: Image{Repository: "r/i", Tag: "stable", Digest: "sha256:old"}, To: Image{Repository: "r/i", Tag: "stable", Digest: "sha256:bad"}, WasUp: true, Env: []byte(before)}
	for verdict, want := range map[smoke.Verdict]string{smoke.Fail: "sha256:bad", smoke.Inconclusive: ""} {
		j.Verdict = verdict
		after := editEnv([]byte(before), (&transaction{j: j}).envBefore())
		if got := envValue(after, envFailed); got != want {
			t.Errorf("after %s the note is %q, want %q", verdict, got, want)
		}
		if got := envValue(editEnv(after, envOf(Image{Repository: "r/i", Tag: "stable", Digest: "sha256:good"})), envFailed); got != "" {
			t.Errorf("the next deploy leaves the note %q", got)
		}
	}
}

func TestWhatSomebodyWentBackToIsNamedByItsVersion(t *testing.T) {
	t.Parallel()
	pulled := Image{Repository: "r/i", Tag: "stable", Digest: "sha256:old", Version: "2026.11.4", Channel: "stable"}
	built := pulled
	built.Digest = ""
	for name, c := range map[string]struct {
		from Image
		left bool
		want string
	}{
		"it went back by itself":       {pulled, false, "stable"},
		"somebody went back":           {pulled, true, "stable-2026.11.4"},
		"somebody, to one built there": {built, true, "agnes"}, // which has no other name than the kept one
	} {
		tx := &transaction{j: journal{From: c.from, WasUp: true, Left: c.left, Project: "agnes"}}
		if got := tx.envBefore()[envTag]; got != c.want {
			t.Errorf("%s: the tag is %q, want %q", name, got, c.want)
		}
	}
}

func TestEnvIsReadAsComposeReadsIt(t *testing.T) {
	t.Parallel()
	text := []byte("A=1\nA=2\nB=\"x y\"\nC='#z'\nexport D=d # comment\n#E=no\nF=a#b\nH=\"stable\" # x\n")
	for name, want := range map[string]string{"A": "2", "B": "x y", "C": "#z", "D": "d", "E": "", "F": "a#b", "G": "", "H": "stable"} {
		if got := envValue(text, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
