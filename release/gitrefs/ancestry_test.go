package gitrefs_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
)

func TestDescentIsToldOfARepositoryOnThisMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.com"}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "-q", "-b", "main")
	commit := func(text string) string {
		run("commit", "-q", "--allow-empty", "-m", text)
		return run("rev-parse", "HEAD")
	}
	first, second := commit("one"), commit("two")
	run("checkout", "-q", "-b", "side", first)
	side := commit("aside")
	r, err := gitrefs.Open("file://"+dir, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ancestor, commit string
		want             bool
	}{
		"a child of its parent":     {first, second, true},
		"a parent of its child":     {second, first, false},
		"a branch of another":       {second, side, false},
		"a branch of its beginning": {first, side, true},
		"a commit of itself":        {second, second, true},
	} {
		if got, err := r.Descends(t.Context(), c.ancestor, c.commit); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := r.Descends(t.Context(), strings.Repeat("1", 40), second); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("an unknown commit: %v", err)
	}
	remote, err := gitrefs.Open("https://git.example.com/acme/hello.git", gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Descends(t.Context(), first, second); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("over the network: %v", err)
	}
}
