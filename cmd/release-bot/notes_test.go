package main

import (
	"bytes"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// notesWorld is a clone with two claims, and the repository that it is of.
type notesWorld struct {
	*githubtest.Server

	t        *testing.T
	repo     *githubtest.Repo
	dir      string
	old, new string
}

const (
	oldChangelog = "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- spell it well\n"
	fragment     = "---\nkind: added\n---\nGreets in Czech.\n"
)

func newNotesWorld(t *testing.T) *notesWorld {
	t.Helper()
	w := &notesWorld{Server: githubtest.New(t), t: t, dir: filepath.Join(t.TempDir(), "clone")}
	git := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func(at int, message string, files map[string]string) string {
		text := fmt.Sprintf("commit refs/heads/main\ncommitter Ada <ada@example.com> %d +0000\ndata %d\n%s\n", 1775000000+at, len(message), message)
		if at > 0 {
			text += "from refs/heads/main^0\n"
		}
		for name, body := range files {
			text += fmt.Sprintf("M 100644 inline %s\ndata %d\n%s\n", name, len(body), body)
		}
		git(text, "-C", w.dir, "fast-import", "--quiet")
		return git("", "-C", w.dir, "rev-parse", "refs/heads/main")
	}
	git("", "init", "-q", "-b", "main", w.dir)
	w.old = commit(0, "one", nil)
	w.new = commit(1, "greet in Czech", map[string]string{"CHANGELOG.md": oldChangelog, "changes/x.md": fragment})

	w.repo = w.Repo("acme/hello")
	w.repo.AddCommit(w.old)
	w.repo.AddCommit(w.new, w.old)
	w.repo.SetRef("refs/heads/main", w.new)
	// main has moved on since.
	w.repo.SetFile("changes/x.md", []byte(fragment))
	w.repo.SetFile("changes/later.md", []byte(strings.Replace(fragment, "Czech", "Slovak", 1)))
	w.repo.SetFile("CHANGELOG.md", []byte(oldChangelog+"- later\n"))
	w.repo.Pull(githubtest.Pull{Title: "feat: Greet in @everybody's language", Author: "ada", Commits: []string{w.new}, Merged: time.Now(), MergeCommit: w.new})
	for i, id := range []string{w.old, w.new} {
		w.run(0, "version", "claim", "--channel", "stable", "--commit", id, "--at", fmt.Sprintf("2026-04-0%dT12:00:00Z", i+1))
	}
	return w
}

// run is the program in a workflow of the repository.
func (w *notesWorld) run(want int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	env := w.Env("acme/hello")
	maps.Copy(env, map[string]string{"GITHUB_REF": "refs/heads/main"})
	var out, errs bytes.Buffer
	if code := run(w.t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs); code != want {
		w.t.Errorf("release-bot %v: exit %d, want %d\n%s", args, code, want, errs.String())
	}
	return out.String(), errs.String()
}

func TestNotesArePublished(t *testing.T) {
	t.Parallel()
	w := newNotesWorld(t)
	const text = "Changes since 2026.04.1.\n\n## Fixed\n\n- spell it well\n\n## Added\n\n- Greets in Czech.\n\n" +
		"## Features\n\n- Greet in `@everybody`'s language (#1) by ada\n\n## Contributors\n\nAda\n\n" +
		"## Image\n\n```sh\ndocker pull ghcr.io/acme/hello:stable-2026.04.2\n```\n"

	stdout, stderr := w.run(0, "notes", "2026.04.2", "--repo-dir", w.dir, "--publish", "--dry-run")
	if stdout != text || !strings.Contains(stderr, "planned release page") || len(w.repo.Releases()) != 0 {
		t.Errorf("the dry run says\n%s%s\nwant\n%s; releases: %v", stdout, stderr, text, w.repo.Releases())
	}
	w.run(0, "notes", "2026.04.2", "--repo-dir", w.dir, "--publish")
	pages := w.repo.Releases()
	if len(pages) != 1 || pages[0].Tag != "2026.04.2" || pages[0].Body != text || pages[0].Prerelease || !pages[0].Latest {
		t.Errorf("the release pages are %+v, want one with\n%s", pages, text)
	}
	want := "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- later\n\n## 2026.04.2 - 2026-04-02\n\n### Fixed\n\n- spell it well\n\n### Added\n\n- Greets in Czech.\n"
	if got := string(w.repo.File("CHANGELOG.md")); got != want {
		t.Errorf("the branch's changelog is\n%s\nwant\n%s", got, want)
	}
	if w.repo.File("changes/x.md") != nil || w.repo.File("changes/later.md") == nil {
		t.Error("the branch should have lost the fragment of the release, and no other")
	}

	head := w.repo.Refs()["refs/heads/main"]
	stdout, _ = w.run(0, "notes", "2026.04.2", "--repo-dir", w.dir, "--publish", "-o", "json")
	if w.repo.Refs()["refs/heads/main"] != head || len(w.repo.Releases()) != 1 || !strings.Contains(stdout, `"skipped"`) {
		t.Errorf("the second time something changed:\n%s", stdout)
	}
}

func TestNotesSurviveABranchThatRefuses(t *testing.T) {
	t.Parallel()
	w := newNotesWorld(t)
	w.repo.Lock("refs/heads/main")
	stdout, stderr := w.run(4, "notes", "2026.04.2", "--repo-dir", w.dir, "--publish", "-o", "json")
	if len(w.repo.Releases()) != 1 || !strings.Contains(stdout, `"release page"`) || !strings.Contains(stderr, "through a pull request") || !strings.Contains(stderr, "--write") {
		t.Errorf("releases %v\n%s%s", w.repo.Releases(), stdout, stderr)
	}
}

func TestNotesPassOverWhatWasNeverPublished(t *testing.T) {
	t.Parallel()
	w := newNotesWorld(t)
	image := w.Package("acme", "hello")
	image.Push("application/vnd.oci.image.manifest.v1+json", []byte(`{"n":1}`), "stable-2026.04.1")
	args := []string{"notes", "2026.04.2", "--repo-dir", w.dir, "--registry", w.Host + "/acme/hello"}
	stdout, _ := w.run(0, args...)
	if !strings.HasPrefix(stdout, "Changes since 2026.04.1.\n") || strings.Contains(stdout, "@sha256") {
		t.Errorf("published after a published one:\n%s", stdout)
	}
	made := image.Push("application/vnd.oci.image.manifest.v1+json", []byte(`{"n":2}`), "stable-2026.04.2")
	stdout, _ = w.run(0, args...)
	if want := "docker pull " + w.Host + "/acme/hello@" + made.Digest + "\n"; !strings.Contains(stdout, want) {
		t.Errorf("the notes are\n%s\nwant %q in them", stdout, want)
	}
	image = w.Package("acme", "other")
	image.Push("application/vnd.oci.image.manifest.v1+json", []byte(`{"n":3}`), "dev")
	args[len(args)-1] = w.Host + "/acme/other"
	stdout, _ = w.run(0, args...)
	if !strings.HasPrefix(stdout, "The first release.") {
		t.Errorf("after one that was never published:\n%s", stdout)
	}
}
