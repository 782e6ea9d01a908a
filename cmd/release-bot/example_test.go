package main

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// adopted is the sample repository on a GitHub of its own, with a runner that
// knows as much of workflows as the sample's needs.
type adopted struct {
	github *githubtest.Server
	repo   *githubtest.Repo
	image  string // HOST/OWNER/NAME
}

func adopt(t *testing.T) *adopted {
	t.Helper()
	s := githubtest.New(t)
	return &adopted{github: s, repo: s.Repo("acme/hello"), image: s.Host + "/acme/hello"}
}

// release pushes a commit to main and runs the sample's workflow on it. good
// is what smoke.sh finds. It returns the version.
func (a *adopted) release(t *testing.T, good bool) string {
	t.Helper()
	commit := a.repo.Commit("Say hello")
	outputs := map[string]map[string]string{}
	outcomes := map[string]string{}
	failed := false
	expand := func(text string) string {
		return regexp.MustCompile(`\$\{\{ *([a-z0-9._]+) *\}\}`).ReplaceAllStringFunc(text, func(m string) string {
			expr := strings.Trim(m, "${} ")
			switch parts := strings.Split(expr, "."); {
			case expr == "github.sha":
				return commit
			case expr == "github.repository":
				return "acme/hello"
			case expr == "github.token":
				return githubtest.Token
			case expr == "github.actor":
				return "ada"
			case len(parts) == 4 && parts[0] == "steps" && parts[2] == "outputs":
				value, ok := outputs[parts[1]][parts[3]]
				if !ok {
					t.Errorf("step %s has no output %s, which the workflow uses", parts[1], parts[3])
				}
				return value
			default:
				t.Fatalf("the test's runner does not know %s", m)
				return ""
			}
		})
	}
	for _, s := range readYAML[workflow](t, "../../examples/release/.github/workflows/release.yml").Jobs["release"].Steps {
		wanted := !failed
		switch s.If {
		case "":
		case "failure() && steps.smoke.outcome == 'failure'":
			wanted = failed && outcomes["smoke"] == "failure"
		default:
			t.Fatalf("the test's runner does not know the condition %q", s.If)
		}
		if !wanted {
			continue
		}
		outcome := "success"
		switch {
		case strings.HasPrefix(s.Uses, "keboola/agnes-the-ai-analyst@"):
			got, code, said := a.action(t, commit, s.With, expand)
			if code != 0 {
				t.Fatalf("step %v: exit %d\n%s", s.With, code, said)
			}
			outputs[s.ID] = got
		case strings.HasPrefix(s.Uses, "docker/build-push-action@"):
			for _, text := range s.With {
				expand(text)
			}
			outputs[s.ID] = map[string]string{"digest": a.build(t)}
		case s.Uses != "": // checkout, buildx, login
		case strings.HasPrefix(s.Run, "docker pull "):
		case s.ID == "smoke":
			if want := "ghcr.io/${GITHUB_REPOSITORY}@${DIGEST}"; !strings.Contains(s.Run, want) || expand(s.Env["DIGEST"]) == "" {
				t.Errorf("the smoke test is not given the digest: %+v", s)
			}
			if !good {
				outcome = "failure"
			}
		default:
			t.Fatalf("the test's runner does not know the step %+v", s)
		}
		failed = failed || outcome == "failure"
		outcomes[s.ID] = outcome
	}
	return outputs["claim"]["version"]
}

// action runs one step as action.yml does.
func (a *adopted) action(t *testing.T, commit string, with map[string]string, expand func(string) string) (outputs map[string]string, code int, said string) {
	t.Helper()
	env := a.github.Env("acme/hello")
	env["GITHUB_SHA"] = commit
	env["GITHUB_ACTIONS"] = "true"
	env["GITHUB_OUTPUT"] = filepath.Join(t.TempDir(), "output")
	env["INPUT_REGISTRY"] = a.image // the workflow's own is ghcr.io
	for input, value := range with {
		env[envName(input)] = expand(value)
	}
	var out, errs strings.Builder
	if code = run(t.Context(), []string{"action"}, lookup(env), strings.NewReader(""), &out, &errs); code != 0 {
		return nil, code, errs.String()
	}
	return stepOutputs(t, env["GITHUB_OUTPUT"]), 0, errs.String()
}

// build stands for docker/build-push-action: an index of two platforms, pushed
// by digest.
func (a *adopted) build(t *testing.T) string {
	t.Helper()
	index, err := random.Index(256, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(a.image+"@"+digest.String(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// points returns what a tag points at, or nothing.
func (a *adopted) points(t *testing.T, tag string) string {
	t.Helper()
	ref, err := name.NewTag(a.image+":"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Head(ref, remote.WithContext(t.Context()))
	if err != nil {
		return ""
	}
	return d.Digest.String()
}

func TestTheSampleRepositoryReleasesAndRollsBack(t *testing.T) {
	t.Parallel()
	a := adopt(t)
	first := a.release(t, true)
	good := a.points(t, "stable")
	for _, tag := range []string{first, "stable-" + first, "confirmed-" + first} {
		if got := a.points(t, tag); got != good || got == "" {
			t.Errorf("after a good release %s is at %q and stable at %q", tag, got, good)
		}
	}
	if n := len(a.repo.Issues()); n > 0 {
		t.Errorf("a good release opened %d issues", n)
	}

	second := a.release(t, false)
	bad := a.points(t, "stable-"+second)
	if bad == "" || bad == good {
		t.Fatalf("the second release was not published: %q", bad)
	}
	if got := a.points(t, "stable"); got != good {
		t.Errorf("after a failed release stable is at %q, want that of %s, %q", got, first, good)
	}
	if got := a.points(t, "deprecated-"+second); got != bad {
		t.Errorf("deprecated-%s is at %q, want %q", second, got, bad)
	}
	if got := a.points(t, "confirmed-"+second); got != "" {
		t.Errorf("a failed release is confirmed")
	}
	if issues := a.repo.Issues(); len(issues) != 1 || !strings.Contains(issues[0].Title, second) {
		t.Errorf("issues: %+v, want one about %s", issues, second)
	}

	third := a.release(t, true)
	if got := a.points(t, "stable"); got != a.points(t, "stable-"+third) || got == "" {
		t.Errorf("a good release after a failed one did not become stable: %q", got)
	}
	var tags []string
	for ref := range maps.Keys(a.repo.Refs()) {
		if tag, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	want := []string{first, second, third, "deprecated/" + second, "verdict/" + first, "verdict/" + second, "verdict/" + third}
	slices.SortFunc(want, cmp.Compare[string])
	if fmt.Sprint(tags) != fmt.Sprint(want) {
		t.Errorf("the ledger holds %v, want %v", tags, want)
	}
}
