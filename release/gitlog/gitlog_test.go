package gitlog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitlog"
)

func TestBetween(t *testing.T) {
	t.Parallel()
	r := newRepo(t,
		commit{name: "root"},
		commit{name: "a", parents: []string{"root"}},
		commit{name: "b1", parents: []string{"root"}},
		commit{name: "b2", parents: []string{"b1"}},
		commit{name: "c", parents: []string{"a"}},
		commit{name: "merge", parents: []string{"c", "b2"}},
		commit{name: "d", parents: []string{"merge"}},
		commit{name: "rewritten", parents: []string{"a"}},
		commit{name: "other-root"},
	)
	clone := r.open()
	for name, tc := range map[string]struct {
		from, to, want string
		older          bool
		gone           int
	}{
		"everything, children before parents":      {"", "d", "d merge c b2 b1 a root", false, 0},
		"a merge brings a branch from before from": {"a", "d", "d merge c b2 b1", false, 0},
		"the tip of a branch":                      {"b2", "merge", "merge c a", false, 0},
		"nothing, the same commit":                 {"d", "d", "", false, 0},
		"nothing, an older commit":                 {"d", "a", "", true, 0},
		"history was rewritten":                    {"d", "rewritten", "rewritten", false, 5},
		"another history":                          {"d", "other-root", "other-root", false, 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := clone.Between(t.Context(), r.ids[tc.from], r.ids[tc.to])
			if err != nil {
				t.Fatal(err)
			}
			if names := r.names(got.Commits); names != tc.want || got.Older != tc.older || got.Gone != tc.gone {
				t.Errorf("got %q, older %v, %d gone; want %q, %v, %d", names, got.Older, got.Gone, tc.want, tc.older, tc.gone)
			}
		})
	}
	got, err := clone.Between(t.Context(), "", r.ids["root"])
	if err != nil || len(got.Commits) != 1 {
		t.Fatal(got, err)
	}
	if c := got.Commits[0]; c.Author != (release.Person{Name: "Ada Lovelace", Email: "ada@example.com"}) ||
		strings.TrimSpace(c.Message) != "root" || c.At.Format("2006-01-02T15:04:05Z07:00") != "2026-03-31T23:34:20Z" {
		t.Errorf("the commit is %+v", c)
	}
	_, err = clone.Between(t.Context(), "", strings.Repeat("1", 40))
	if !errors.Is(err, release.ErrNotFound) || !strings.Contains(problem.As(err).Hint, "fetch --tags origin 1111") {
		t.Errorf("a missing commit: %v, hint %q", err, problem.As(err).Hint)
	}
}

func TestShallowClonesSayHowToGoOn(t *testing.T) {
	t.Parallel()
	r := newRepo(t, commit{name: "a"}, commit{name: "b", parents: []string{"a"}}, commit{name: "c", parents: []string{"b"}}, commit{name: "d", parents: []string{"c"}})
	shallow := filepath.Join(t.TempDir(), "shallow")
	r.git("clone", "-q", "--depth", "3", "file://"+r.dir, shallow) // b, c and d
	clone, err := gitlog.Open(shallow)
	if err != nil {
		t.Fatal(err)
	}
	got, err := clone.Between(t.Context(), r.ids["b"], r.ids["d"])
	if err != nil || r.names(got.Commits) != "d c" {
		t.Errorf("a range that is there: %q, %v", r.names(got.Commits), err)
	}
	for _, from := range []string{"", r.ids["a"]} {
		_, err = clone.Between(t.Context(), from, r.ids["d"])
		if err == nil || !strings.Contains(problem.As(err).Hint, "fetch --") {
			t.Errorf("from %q: %v, want how to fetch the rest", from, err)
		}
	}
}

func TestFilesOfCommits(t *testing.T) {
	t.Parallel()
	r := newRepo(t,
		commit{name: "one", files: map[string]string{"CHANGELOG.md": "one", "changes/a.md": "A", "changes/sub/b.md": "B"}},
		commit{name: "two", parents: []string{"one"}, files: map[string]string{"CHANGELOG.md": "two", "changes/a.md": "-", "changes/sub/b.md": "-"}},
	)
	if err := os.Symlink("CHANGELOG.md", filepath.Join(r.dir, "LINK.md")); err != nil {
		t.Fatal(err)
	}
	r.git("add", "LINK.md")
	r.git("commit", "-q", "-m", "link")
	clone := r.open()
	for _, name := range []string{"one", "two"} {
		if got, err := clone.ReadFile(t.Context(), r.ids[name], "CHANGELOG.md"); err != nil || string(got) != name {
			t.Errorf("CHANGELOG.md of %s is %q, %v", name, got, err)
		}
	}
	if got, err := clone.ReadDir(t.Context(), r.ids["one"], "changes"); err != nil || fmt.Sprint(got) != "[a.md sub]" {
		t.Errorf("the folder holds %v, %v", got, err)
	}
	for _, path := range []string{"none.md", "none/none.md"} {
		if _, err := clone.ReadFile(t.Context(), r.ids["two"], path); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("ReadFile(%s): %v, want ErrNotFound", path, err)
		}
	}
	if _, err := clone.ReadDir(t.Context(), r.ids["two"], "changes"); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("ReadDir of a missing folder: %v, want ErrNotFound", err)
	}
	if _, err := clone.ReadFile(t.Context(), r.ids["one"], "changes"); err == nil || !strings.Contains(err.Error(), "found a folder") {
		t.Errorf("ReadFile of a folder: %v", err)
	}
	if _, err := clone.ReadDir(t.Context(), r.ids["one"], "CHANGELOG.md"); err == nil || !strings.Contains(err.Error(), "found a file") {
		t.Errorf("ReadDir of a file: %v", err)
	}
	out, err := r.cmd("rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clone.ReadFile(t.Context(), strings.TrimSpace(string(out)), "LINK.md"); err == nil || !strings.Contains(err.Error(), "found a symbolic link") {
		t.Errorf("ReadFile of a link: %v", err)
	}
}

func TestOpenFindsTheRepository(t *testing.T) {
	t.Parallel()
	r := newRepo(t, commit{name: "a", files: map[string]string{"sub/x": "x"}})
	linked := filepath.Join(t.TempDir(), "linked")
	r.git("worktree", "add", "-q", linked, "-b", "other")
	bare := filepath.Join(t.TempDir(), "bare.git")
	r.git("clone", "-q", "--bare", r.dir, bare)
	for dir, root := range map[string]string{r.dir: r.dir, filepath.Join(r.dir, "sub"): r.dir, linked: linked, bare: ""} {
		clone, err := gitlog.Open(dir)
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if got, err := clone.Between(t.Context(), "", r.ids["a"]); err != nil || len(got.Commits) != 1 || clone.Root() != root {
			t.Errorf("%s: root %q, %v, %v", dir, clone.Root(), got, err)
		}
	}
	_, err := gitlog.Open(t.TempDir())
	if !problem.Is(err, problem.NotFound) || !strings.Contains(err.Error(), "expected a git clone") {
		t.Errorf("a folder without a clone: %v", err)
	}
	if clone, err := gitlog.Open(bare); err != nil {
		t.Error(err)
	} else if _, err := clone.WorkTree(); !problem.Is(err, problem.Usage) {
		t.Errorf("the working tree of a bare repository: %v", err)
	}
}

func TestGitHubIsReadFromTheOrigin(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://github.com/keboola/agnes-the-ai-analyst":  "keboola/agnes-the-ai-analyst",
		"https://x-access-token:secret@github.com/o/n.git": "o/n",
		"git@github.com:o/n.git":                           "o/n",
		"ssh://git@github.com:22/o/n":                      "o/n",
		"https://gitlab.com/o/n.git":                       "",
		"https://example.com/github.com/o/n":               "",
		"/srv/git/o/n.git":                                 "",
		"https://github.com.example.com/o/n":               "",
		"https://github.com/o/n/tree/main":                 "",
		"https://evil.example.com/x@github.com/o/n":        "",
	} {
		r := newRepo(t, commit{name: "a"})
		r.git("remote", "add", "origin", url)
		if got := r.open().GitHub(); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

func TestTheWorkingTreeIsNotLeft(t *testing.T) {
	t.Parallel()
	r := newRepo(t, commit{name: "a", files: map[string]string{"CHANGELOG.md": "a", "changes/x.md": "x"}})
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(r.dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(r.dir, "CHANGELOG.md"), 0o664); err != nil {
		t.Fatal(err)
	}
	tree, err := r.open().WorkTree()
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Write(t.Context(), map[string][]byte{"CHANGELOG.md": []byte("b"), "changes/x.md": nil, "changes/gone.md": nil}); err != nil {
		t.Fatal(err)
	}
	if got, err := tree.ReadFile(t.Context(), "CHANGELOG.md"); err != nil || string(got) != "b" {
		t.Errorf("CHANGELOG.md is %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(r.dir, "CHANGELOG.md")); err != nil || info.Mode().Perm() != 0o664 {
		t.Errorf("CHANGELOG.md: %v, %v; want the mode that it had", info.Mode(), err)
	}
	if got, err := tree.ReadDir(t.Context(), "changes"); err != nil || len(got) != 0 {
		t.Errorf("changes holds %v, %v", got, err)
	}
	for _, path := range []string{"../x", "out/x", "/etc/x"} {
		if err := tree.Write(t.Context(), map[string][]byte{path: []byte("x")}); err == nil {
			t.Errorf("%s was written", path)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside there is %v, %v", left, err)
	}
	if _, err := tree.ReadFile(t.Context(), "none"); !errors.Is(err, release.ErrNotFound) {
		t.Errorf("a missing file: %v", err)
	}
}
