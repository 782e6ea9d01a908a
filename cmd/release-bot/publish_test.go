package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
	"github.com/keboola/agnes-the-ai-analyst/release/webhook"
)

// TestRegistryScripts runs the scripts that need a registry: each has its own,
// with four images, and `tag NAME [DIGEST]` says what a tag points at.
func TestRegistryScripts(t *testing.T) {
	t.Parallel()
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/registry",
		Programs: map[string]golden.Program{"release-bot": run},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"tag": func(ts *testscript.TestScript, neg bool, args []string) {
				s := ts.Value(serverKey{}).(*ocitest.Server)
				got := s.Digest(t, args[0])
				if len(args) == 1 && (got == "") != neg || len(args) == 2 && (got == args[1]) == neg {
					ts.Fatalf("tag %v: it is at %q", args, got)
				}
			},
		},
		Setup: func(e *testscript.Env) error {
			s := ocitest.New(t)
			e.Values[serverKey{}] = s
			e.Setenv("REGISTRY", s.Repository())
			e.Setenv("DOCKER_CONFIG", e.WorkDir)
			for i := range 4 {
				e.Setenv(fmt.Sprintf("DIGEST%d", i+1), s.Push(t, ocitest.Image{Text: fmt.Sprint(i)}).Digest)
			}
			return nil
		},
	})
}

type serverKey struct{}

// call runs the program in this process and decodes its JSON answer.
func call(t *testing.T, env map[string]string, into any, args ...string) (code int, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), append(args, "-o", "json"), func(name string) string { return env[name] }, strings.NewReader(""), &stdout, &stderr)
	if into != nil {
		if err := json.Unmarshal(stdout.Bytes(), into); err != nil {
			t.Errorf("%v: exit %d, %v: %s%s", args, code, err, stdout.String(), stderr.String())
		}
	}
	return code, stderr.String()
}

// TestAReleaseOnGitHub is a release's life over GitHub's API and registry alone:
// claimed, published, found broken, rolled back, told about.
func TestAReleaseOnGitHub(t *testing.T) {
	t.Parallel()
	hub := githubtest.New(t)
	repo := hub.Repo("keboola/agnes")
	env := hub.Env("keboola/agnes")
	registry := hub.Host + "/keboola/agnes"
	var said []string
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		if r.Header.Get(webhook.SignatureHeader) != webhook.Sign(redact.Secret("s3cret"), body.Bytes()) {
			t.Error("the webhook's signature is wrong")
		}
		said = append(said, body.String())
	}))
	t.Cleanup(hook.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	var versions, digests []string
	for i := range 3 {
		commit := repo.Commit(fmt.Sprint("commit ", i))
		var claim release.Claim
		if code, errs := call(t, env, &claim, "version", "claim", "--channel", "stable", "--commit", commit); code != 0 {
			t.Fatal(errs)
		}
		pushed := hub.Package("keboola", "agnes").Push("application/vnd.oci.image.manifest.v1+json",
			fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","n":%d}`, i))
		var got release.Published
		if code, errs := call(t, env, &got, "publish", "--registry", registry, "--channel", "stable", "--version", claim.Version.String(), "--commit", commit, "--digest", pushed.Digest); code != 0 || !got.Tags[0].Moved {
			t.Fatalf("publish: %+v %s", got, errs)
		}
		versions, digests = append(versions, claim.Version.String()), append(digests, pushed.Digest)
	}
	at := hub.Package("keboola", "agnes").Tag
	rollback := []string{"rollback", "--registry", registry, "--failed", versions[2], "--reason", "smoke: step 4 answered 500", "--webhook-url", hook.URL + "/T0/secret", "--webhook-secret-file", secret}
	var first, second release.Withdrawn
	if code, errs := call(t, env, &first, rollback...); code != 0 {
		t.Fatal(errs)
	}
	if code, errs := call(t, env, &second, rollback...); code != 0 {
		t.Fatal(errs)
	}
	if first.IssueURL == "" || first.IssueURL != second.IssueURL || first.Stable != versions[1] || len(repo.Issues()) != 1 {
		t.Errorf("%+v, then %+v, %d issues: want one issue", first, second, len(repo.Issues()))
	}
	if at("stable") != digests[1] || at("deprecated-"+versions[2]) != digests[2] {
		t.Errorf("stable at %s, deprecated at %s", at("stable"), at("deprecated-"+versions[2]))
	}
	if len(said) != 2 || !strings.Contains(said[0], versions[1]) || !strings.Contains(said[0], first.IssueURL) {
		t.Errorf("the webhook was told %q", said)
	}
	// A publication of the failed version that is run again changes nothing.
	var again release.Published
	commit := repo.Refs()["refs/heads/main"]
	if code, errs := call(t, env, &again, "publish", "--registry", registry, "--channel", "stable", "--version", versions[2], "--commit", commit, "--digest", digests[2]); code != 0 || again.Tags[0].Moved {
		t.Errorf("%+v %s", again, errs)
	}
	if at("stable") != digests[1] {
		t.Errorf("stable is at %s after that", at("stable"))
	}
}

// TestTroubleEndsInconclusive holds the exit codes of the programs, and that an
// answer tells what was done before it failed.
func TestTroubleEndsInconclusive(t *testing.T) {
	t.Parallel()
	s := ocitest.New(t)
	m := s.Push(t, ocitest.Image{Text: "a"})
	args := []string{"publish", "--registry", s.Repository(), "--channel", "stable", "--version", "2026.04.3", "--commit", strings.Repeat("a", 40), "--digest", m.Digest}
	s.Intercept(func(w http.ResponseWriter, r *http.Request, after bool) bool {
		if after || !strings.HasSuffix(r.URL.Path, "/manifests/stable") || r.Method != http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	var got release.Published
	code, errs := call(t, nil, &got, args...)
	if code != 5 || !strings.Contains(errs, "502") || !strings.Contains(errs, "Next:") || len(got.Tags) != 4 || !got.Tags[1].Moved || got.Tags[0].Moved {
		t.Errorf("exit %d, %+v, %s", code, got, errs)
	}
	s.Intercept(nil)
	if code, errs := call(t, nil, &got, args...); code != 0 || s.Digest(t, "stable") != m.Digest {
		t.Errorf("then: exit %d %s", code, errs)
	}
}
