package github_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// addLine appends to a.md and deletes b.md, where a.md lacks the line.
func addLine(line string) func(context.Context, release.FileReader) (map[string][]byte, error) {
	return func(ctx context.Context, head release.FileReader) (map[string][]byte, error) {
		text, err := head.ReadFile(ctx, "a.md")
		if err != nil || strings.Contains(string(text), line) {
			return nil, err
		}
		edits := map[string][]byte{"a.md": append(text, line+"\n"...)}
		if _, err := head.ReadFile(ctx, "dir/b.md"); err == nil {
			edits["dir/b.md"] = nil
		} else if !errors.Is(err, release.ErrNotFound) {
			return nil, err
		}
		return edits, nil
	}
}

func branchWorld(t *testing.T, options ...githubtest.Option) *world {
	t.Helper()
	w := newWorld(t, options...)
	w.repo.SetFile("a.md", []byte("first\n"))
	w.repo.SetFile("dir/b.md", []byte("b"))
	w.repo.SetFile("dir/sub/c.md", []byte("c"))
	return w
}

func TestCommitChangesABranchAtOnce(t *testing.T) {
	t.Parallel()
	w := branchWorld(t)
	id, err := w.client.Commit(t.Context(), "main", "changelog", addLine("second"))
	if err != nil || w.repo.Refs()["refs/heads/main"] != id {
		t.Fatalf("%s, %v; main is at %s", id, err, w.repo.Refs()["refs/heads/main"])
	}
	if a, b, c := w.repo.File("a.md"), w.repo.File("dir/b.md"), w.repo.File("dir/sub/c.md"); string(a) != "first\nsecond\n" || b != nil || string(c) != "c" {
		t.Errorf("the files are %q, %q, %q", a, b, c)
	}
	before := w.Count("", "*/git/trees")
	if id, err := w.client.Commit(t.Context(), "main", "changelog", addLine("second")); err != nil || id != "" || w.Count("", "*/git/trees") != before {
		t.Errorf("nothing to change: %q, %v", id, err)
	}
}

func TestFilesOfABranchsHead(t *testing.T) {
	t.Parallel()
	w := branchWorld(t)
	_, err := w.client.Commit(t.Context(), "main", "x", func(ctx context.Context, head release.FileReader) (map[string][]byte, error) {
		names, err := head.ReadDir(ctx, "dir")
		if err != nil || fmt.Sprint(names) != "[b.md sub]" {
			t.Errorf("the folder holds %v, %v", names, err)
		}
		if _, err := head.ReadDir(ctx, "none"); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("a missing folder: %v", err)
		}
		if _, err := head.ReadFile(ctx, "none.md"); !errors.Is(err, release.ErrNotFound) {
			t.Errorf("a missing file: %v", err)
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCommitLosesNothingOfOthers(t *testing.T) {
	t.Parallel()
	w := branchWorld(t)
	rounds := 0
	_, err := w.client.Commit(t.Context(), "main", "changelog", func(ctx context.Context, head release.FileReader) (map[string][]byte, error) {
		edits, err := addLine("mine")(ctx, head)
		if rounds++; rounds <= 2 { // somebody else is quicker, twice
			text, _ := head.ReadFile(ctx, "a.md")
			w.repo.SetFile("a.md", fmt.Appendf(text, "theirs %d\n", rounds))
		}
		return edits, err
	})
	if got := string(w.repo.File("a.md")); err != nil || rounds != 3 || got != "first\ntheirs 1\ntheirs 2\nmine\n" {
		t.Errorf("%d rounds, %v; the file is %q", rounds, err, got)
	}
}

func TestCommitUnderFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]githubtest.Fault{
		"the branch was moved, the reply lost":  {Method: "PATCH", Path: "*/git/refs/heads/main", Times: 1, Carry: true, Cut: true},
		"the branch was moved, a gateway's 502": {Method: "PATCH", Path: "*/git/refs/heads/main", Times: 1, Carry: true, Status: 502},
		"the commit was made, the reply lost":   {Method: "POST", Path: "*/git/commits", Times: 1, Carry: true, Cut: true},
		"no tree":                               {Method: "POST", Path: "*/git/trees", Times: 2, Status: 500},
		"a conflict":                            {Method: "PATCH", Path: "*/git/refs/heads/main", Times: 1, Status: 409},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := branchWorld(t)
			w.Inject(fault)
			id, err := w.client.Commit(t.Context(), "main", "changelog", addLine("second"))
			if got := string(w.repo.File("a.md")); err != nil || got != "first\nsecond\n" || w.repo.Refs()["refs/heads/main"] != id {
				t.Errorf("%s, %v; the file is %q", id, err, got)
			}
		})
	}
}

func TestCommitSaysWhatStandsAgainstIt(t *testing.T) {
	t.Parallel()
	w := branchWorld(t)
	_, err := w.client.Commit(t.Context(), "none", "x", addLine("x"))
	if !errors.Is(err, release.ErrNotFound) || !strings.Contains(problem.As(err).Hint, "--branch") {
		t.Errorf("a missing branch: %v", err)
	}
	_, err = w.client.Commit(t.Context(), "main", "x", func(context.Context, release.FileReader) (map[string][]byte, error) {
		return map[string][]byte{"a.md": []byte("\xff")}, nil
	})
	if !problem.Is(err, problem.Invalid) || !strings.Contains(err.Error(), "a.md") {
		t.Errorf("bytes that are no text: %v", err)
	}
	w.repo.Lock("refs/heads/main")
	_, err = w.client.Commit(t.Context(), "main", "x", addLine("x"))
	if !problem.Is(err, problem.Refused) || !strings.Contains(err.Error(), "through a pull request") || !strings.Contains(problem.As(err).Hint, "--write") {
		t.Errorf("a protected branch: %v", err)
	}
}
