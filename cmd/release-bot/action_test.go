package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
)

// actionFile is action.yml, as far as the tests ask.
type actionFile struct {
	Inputs  map[string]struct{ Description string }
	Outputs map[string]struct{ Value string }
	Runs    struct {
		Steps []struct {
			Run string
			Env map[string]string
		}
	}
}

// workflow is a workflow file, as far as the tests ask.
type workflow struct {
	Jobs map[string]workflowJob
}

type workflowJob struct {
	If, Uses, Environment     string
	Permissions, Outputs, Env map[string]string
	Secrets                   any
	Steps                     []workflowStep
}

type workflowStep struct {
	ID, If, Uses, Run string
	With              map[string]string
	Env               map[string]string
}

func readYAML[T any](t *testing.T, path string) T {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := yaml.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

func testRoot(t *testing.T) *cobra.Command {
	t.Helper()
	return newRoot(cli.Env{Getenv: func(string) string { return "" }})
}

func lookup(m map[string]string) func(string) string {
	return func(name string) string { return m[name] }
}

func envName(input string) string {
	return "INPUT_" + strings.ToUpper(strings.ReplaceAll(input, "-", "_"))
}

func TestTheActionHasAnInputForEachFlagThatItGives(t *testing.T) {
	t.Parallel()
	a := readYAML[actionFile](t, "../../action.yml")
	want := slices.Sorted(slices.Values(append(actionInputs(), "verb", "verdict", "version")))
	var got []string
	for name, in := range a.Inputs {
		got = append(got, name)
		if value := a.Runs.Steps[0].Env[envName(name)]; value != "${{ inputs."+name+" }}" {
			t.Errorf("input %s: the step gives %s=%q", name, envName(name), value)
		}
		if in.Description == "" {
			t.Errorf("input %s has no description", name)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inputs of action.yml (+) and of the program (-) differ:\n%s", diff)
	}
	flags := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, name := range actionInputs() {
			flags[name] = flags[name] || flagOf(c, name) != nil
		}
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(testRoot(t))
	for _, name := range actionInputs() {
		if !flags[name] {
			t.Errorf("no verb has a flag --%s, but the action has an input for it", name)
		}
	}
}

func TestInputsBecomeACommandLine(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"flags":                     {map[string]string{"INPUT_VERB": "version claim", "INPUT_CHANNEL": "dev"}, []string{"version", "claim", "--channel=dev"}},
		"a version that is a flag":  {map[string]string{"INPUT_VERB": "publish", "INPUT_VERSION": "2026.04.3"}, []string{"publish", "--version=2026.04.3"}},
		"a version that is a word":  {map[string]string{"INPUT_VERB": "promote", "INPUT_VERSION": "2026.04.3"}, []string{"promote", "--", "2026.04.3"}},
		"verdict and version":       {map[string]string{"INPUT_VERB": "verdict", "INPUT_VERSION": "2026.04.3", "INPUT_VERDICT": "pass"}, []string{"verdict", "--", "2026.04.3", "pass"}},
		"a value like a flag":       {map[string]string{"INPUT_VERB": "deprecate", "INPUT_VERSION": "--help", "INPUT_REASON": "--x=y; rm"}, []string{"deprecate", "--reason=--x=y; rm", "--", "--help"}},
		"a flag of the root":        {map[string]string{"INPUT_VERB": "version list", "INPUT_GIT": "."}, []string{"version", "list", "--git=."}},
		"an empty input is not set": {map[string]string{"INPUT_VERB": "version next", "INPUT_GIT": ""}, []string{"version", "next"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := actionArgs(testRoot(t), lookup(c.env))
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
	for name, env := range map[string]map[string]string{
		"no verb":               {},
		"an unknown verb":       {"INPUT_VERB": "publsh"},
		"words behind the verb": {"INPUT_VERB": "version claim now"},
		"a flag in the verb":    {"INPUT_VERB": "rollback --failed=2026.04.3"},
		"no verdict":            {"INPUT_VERB": "verdict", "INPUT_VERSION": "2026.04.3"},
		"an input of another":   {"INPUT_VERB": "version next", "INPUT_DIGEST": "sha256:00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if args, err := actionArgs(testRoot(t), lookup(env)); !problem.Is(err, problem.Usage) {
				t.Errorf("got %q, %v", args, err)
			}
		})
	}
}

// What actionlint cannot know: that the verb takes the inputs it is given, and
// that a step's outputs exist.
func TestEveryWorkflowCallsTheActionAsItIs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	more, _ := filepath.Glob("../../examples/release/.github/workflows/*.yml")
	calls := 0
	for _, file := range append(files, more...) {
		for job, j := range readYAML[workflow](t, file).Jobs {
			for _, s := range j.Steps {
				if s.Uses != "./" && !strings.HasPrefix(s.Uses, "keboola/agnes-the-ai-analyst@") {
					continue
				}
				calls++
				env := map[string]string{}
				for name, value := range s.With {
					env[envName(name)] = value
				}
				if _, err := actionArgs(testRoot(t), lookup(env)); err != nil {
					t.Errorf("%s, job %s: %v", file, job, err)
				}
			}
		}
	}
	if calls < 10 {
		t.Errorf("only %d steps call the action: is this looking at the right files?", calls)
	}
	outputs := readYAML[actionFile](t, "../../action.yml").Outputs
	for name, out := range outputs {
		if want := "${{ steps.bot.outputs." + name + " }}"; out.Value != want {
			t.Errorf("output %s is %q, want %q", name, out.Value, want)
		}
	}
}

// What actionlint cannot know, either: that a job has the rights of the verbs that it
// runs, and of those that it asks preflight about, and a caller those of the job it calls.
func TestEveryJobHasTheRightsOfItsVerbs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	more, _ := filepath.Glob("../../examples/release/.github/workflows/*.yml")
	held := 0
	hold := func(where string, job workflowJob, what, level, of string) {
		t.Helper()
		held++
		ranks := []string{"", "read", "write"}
		if slices.Index(ranks, job.Permissions[what]) < slices.Index(ranks, level) {
			t.Errorf("%s has %s: %q, and %s needs %q", where, what, job.Permissions[what], of, level)
		}
	}
	for _, file := range append(files, more...) {
		for name, job := range readYAML[workflow](t, file).Jobs {
			where := filepath.Base(file) + ", job " + name
			if called, ok := strings.CutPrefix(job.Uses, "./"); ok {
				for its, other := range readYAML[workflow](t, filepath.Join("../..", called)).Jobs {
					for what, level := range other.Permissions {
						hold(where, job, what, level, its+" of "+called)
					}
				}
			}
			for _, s := range job.Steps {
				if s.Uses != "./" && !strings.HasPrefix(s.Uses, "keboola/agnes-the-ai-analyst@") {
					continue
				}
				for _, text := range append(strings.Split(s.With["for"], ","), s.With["verb"]) {
					verb, _, _ := strings.Cut(strings.TrimSpace(text), " ")
					rights, ok := verbRights()[verb]
					if !ok && verb != "" && verb != "preflight" {
						t.Errorf("%s: the rights of the verb %q are not known", where, verb)
					}
					for _, right := range rights {
						if right == github.DeletePackages { // a workflow has it by the package's settings
							right = github.WritePackages
						}
						what, level, _ := strings.Cut(string(right), ": ")
						hold(where, job, what, level, verb)
					}
				}
			}
		}
	}
	if held < 40 {
		t.Errorf("only %d rights were looked at: is this looking at the right files?", held)
	}
}

func TestAFailureOfTheActionIsAnAnnotation(t *testing.T) {
	t.Parallel()
	var out, errs strings.Builder
	env := map[string]string{"INPUT_VERB": "tags", "INPUT_CHANNEL": "nightly\n::stop", "INPUT_VERSION": "2026.04.3", "INPUT_COMMIT": strings.Repeat("a", 40), "GITHUB_ACTIONS": "true"}
	code := run(t.Context(), []string{"action"}, lookup(env), strings.NewReader(""), &out, &errs)
	if code != 2 {
		t.Errorf("exit %d", code)
	}
	annotation := regexp.MustCompile(`(?m)^::error title=release-bot tags::.*dev or stable.*%0A.*Next:.*$`)
	if !annotation.MatchString(errs.String()) || strings.Contains(errs.String(), "\n::stop") {
		t.Errorf("standard error: %s", errs.String())
	}
}

func TestAnswersBecomeOutputsAndASummary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := map[string]string{
		"INPUT_VERB": "tags", "INPUT_CHANNEL": "stable", "INPUT_VERSION": "2026.04.3", "INPUT_COMMIT": strings.Repeat("a", 40),
		"GITHUB_OUTPUT": filepath.Join(dir, "output"), "GITHUB_STEP_SUMMARY": filepath.Join(dir, "summary"),
	}
	var out, errs strings.Builder
	if code := run(t.Context(), []string{"action"}, lookup(env), strings.NewReader(""), &out, &errs); code != 0 {
		t.Fatal(errs.String())
	}
	if got := stepOutputs(t, env["GITHUB_OUTPUT"])["tags"]; got != `["stable","stable-2026.04.3","2026.04.3","sha-aaaaaaa"]` {
		t.Errorf("output tags: %s", got)
	}
	summary, err := os.ReadFile(env["GITHUB_STEP_SUMMARY"])
	if err != nil || !strings.HasPrefix(string(summary), "### ") || !strings.Contains(string(summary), "    ") || !strings.Contains(string(summary), "stable-2026.04.3") {
		t.Errorf("%v\n%s", err, summary)
	}
}

// stepOutputs reads a GITHUB_OUTPUT file as the runner does.
func stepOutputs(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	lines := strings.Split(string(raw), "\n")
	for i := 0; i < len(lines); i++ {
		name, end, ok := strings.Cut(lines[i], "<<")
		if !ok {
			continue
		}
		last := slices.Index(lines[i+1:], end)
		if last < 0 {
			t.Fatalf("output %s does not end: %s", name, raw)
		}
		values[name] = strings.Join(lines[i+1:i+1+last], "\n")
		i += last + 1
	}
	return values
}

func TestTheActionRunsTheReleasesBinaryOnlyIfItIsTheReleases(t *testing.T) {
	t.Parallel()
	binary := "#!/bin/sh\necho \"ran $1 for $INPUT_VERB\"\n"
	name := fmt.Sprintf("release-bot_%s_%s", runtime.GOOS, runtime.GOARCH)
	sums := fmt.Sprintf("%s  agnesctl_linux_amd64\n%x  %s\n", strings.Repeat("0", 64), sha256.Sum256([]byte(binary)), name)
	served := map[string]string{
		"/acme/tools/releases/download/2026.04.3/" + name:         binary,
		"/acme/tools/releases/download/2026.04.3/SHA256SUMS":      sums,
		"/acme/tools/releases/download/2026.04.4/" + name:         binary + "# altered\n",
		"/acme/tools/releases/download/2026.04.4/SHA256SUMS":      sums,
		"/acme/tools/releases/download/2026.04.5/SHA256SUMS":      "",
		"/acme/tools/releases/download/2026.04.6/SHA256SUMS":      sums,
		"/acme/tools/releases/download/2026.04.7/SHA256SUMS":      sums,
		"/acme/tools/releases/download/2026.04.7/" + name:         "cut off",
		"/acme/tools/releases/download/release-bot_none/whatever": "",
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := served[r.URL.Path]
		if ok && body == "cut off" {
			w.Header().Set("Content-Length", "1000") // the connection ends before
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	script, err := filepath.Abs("../../scripts/action.sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ref  string
		code int
		says string
	}{
		"its checksum is right":         {"2026.04.3", 0, "ran action for version"},
		"its checksum is wrong":         {"2026.04.4", 4, "expected " + name + " with SHA-256"},
		"the release has no binary":     {"2026.04.5", 0, "building from source"},
		"its binary is not there":       {"2026.04.6", 0, "cannot be fetched: building from source"},
		"its binary is cut off":         {"2026.04.7", 0, "cannot be fetched: building from source"},
		"the action is in the checkout": {"", 0, "commit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), script)
			cmd.Env = append(os.Environ(), "INPUT_VERB=version", "ACTION_REPOSITORY=acme/tools", "ACTION_REF="+c.ref,
				"GITHUB_SERVER_URL="+srv.URL, "RUNNER_TEMP="+t.TempDir(), "GITHUB_OUTPUT=", "GITHUB_STEP_SUMMARY=", "NO_PROXY=127.0.0.1")
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != c.code || !strings.Contains(string(out), c.says) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
