package gitrefs_test

import (
	"path/filepath"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
	"github.com/keboola/agnes-the-ai-analyst/release/refstest"
)

func TestAFolderConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		return repository(t, path, commits, path, gitrefs.Options{})
	})
}

func TestAFileURLOfAWorktreeConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		clone := filepath.Join(t.TempDir(), "clone")
		git(t, ".", "clone", "-q", path, clone)
		tree := filepath.Join(t.TempDir(), "tree")
		git(t, clone, "worktree", "add", "-q", "--detach", tree)
		return repository(t, filepath.Join(clone, ".git"), commits, "file://"+tree, gitrefs.Options{})
	})
}

func TestHTTPConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		return repository(t, path, commits, serveHTTP(t, filepath.Dir(path), "s3cret")+"/r.git", gitrefs.Options{Token: "s3cret"})
	})
}

func TestTheGitProtocolConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		return repository(t, path, commits, serveDaemon(t, filepath.Dir(path))+"/r.git", gitrefs.Options{})
	})
}

func TestSSHConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		h := serveSSH(t)
		return repository(t, path, commits, h.url+path, gitrefs.Options{AgentSocket: h.agent, KnownHosts: []string{h.knownHosts}})
	})
}

// A server that cannot push atomically, too.
func TestInOrderConforms(t *testing.T) {
	t.Parallel()
	refstest.Run(t, func(t *testing.T) refstest.Repository {
		path, commits := bare(t, 3)
		git(t, path, "config", "receive.advertiseAtomic", "false")
		r := repository(t, path, commits, path, gitrefs.Options{})
		r.Atomic = false
		return r
	})
}
