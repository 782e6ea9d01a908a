package gitlog_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitlog"
)

// commit describes one commit of a test's repository.
type commit struct {
	name    string            // in the test
	parents []string          // names; the first one is what a merge merged into
	author  string            // default "Ada Lovelace <ada@example.com>"
	message string            // default the name
	files   map[string]string // new contents; "-" deletes
}

// repo is a real repository, made by git itself.
type repo struct {
	t    testing.TB
	dir  string
	ids  map[string]string
	when int
}

func newRepo(t testing.TB, commits ...commit) *repo {
	t.Helper()
	r := &repo{t: t, dir: filepath.Join(t.TempDir(), "clone"), ids: map[string]string{}}
	r.git("init", "-q", "-b", "main", r.dir)
	r.add(commits...)
	return r
}

// add makes commits and leaves main at the last one, with its files checked out.
func (r *repo) add(commits ...commit) {
	r.t.Helper()
	var in bytes.Buffer
	data := func(text string) { fmt.Fprintf(&in, "data %d\n%s\n", len(text), text) }
	marks := map[string]int{}
	for i, c := range commits {
		marks[c.name] = i + 1
		author := c.author
		if author == "" {
			author = "Ada Lovelace <ada@example.com>"
		}
		r.when++
		if len(c.parents) == 0 {
			in.WriteString("reset refs/heads/main\n") // a root does not go on from the branch's tip
		}
		fmt.Fprintf(&in, "commit refs/heads/main\nmark :%d\nauthor %s %d +0200\ncommitter GitHub <noreply@github.com> %d +0200\n",
			i+1, author, 1775000000+r.when*60, 1775000000+r.when*60)
		message := c.message
		if message == "" {
			message = c.name
		}
		data(r.expand(message))
		for j, p := range c.parents {
			from := r.ids[p]
			if marks[p] != 0 {
				from = fmt.Sprintf(":%d", marks[p])
			}
			fmt.Fprintf(&in, "%s %s\n", map[bool]string{true: "from", false: "merge"}[j == 0], from)
		}
		for _, path := range slices.Sorted(maps.Keys(c.files)) {
			if c.files[path] == "-" {
				fmt.Fprintf(&in, "D %s\n", path)
				continue
			}
			fmt.Fprintf(&in, "M 100644 inline %s\n", path)
			data(c.files[path])
		}
	}
	export := filepath.Join(r.t.TempDir(), "marks")
	cmd := r.cmd("fast-import", "--quiet", "--force", "--export-marks="+export)
	cmd.Stdin = &in
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("git fast-import: %v\n%s", err, out)
	}
	written, err := os.ReadFile(export)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(written)) {
		var mark int
		var id string
		if _, err := fmt.Sscanf(line, ":%d %s", &mark, &id); err != nil {
			r.t.Fatal(err)
		}
		r.ids[commits[mark-1].name] = id
	}
	r.git("-C", r.dir, "reset", "-q", "--hard", "main")
}

// expand puts ids of earlier commits into a message: {name}.
func (r *repo) expand(message string) string {
	for name, id := range r.ids {
		message = strings.ReplaceAll(message, "{"+name+"}", id)
	}
	return message
}

func (r *repo) cmd(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Dir = r.dir
	if len(args) > 0 && args[0] == "init" {
		cmd.Dir = ""
	}
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.com")
	return cmd
}

func (r *repo) git(args ...string) {
	r.t.Helper()
	if out, err := r.cmd(args...).CombinedOutput(); err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func (r *repo) open() *gitlog.Clone {
	r.t.Helper()
	c, err := gitlog.Open(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// names turns ids into the test's names.
func (r *repo) names(commits []release.Commit) string {
	byID := map[string]string{}
	for name, id := range r.ids {
		byID[id] = name
	}
	var out []string
	for _, c := range commits {
		out = append(out, byID[c.ID])
	}
	return strings.Join(out, " ")
}
