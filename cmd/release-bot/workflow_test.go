package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// expression evaluates what smoke-test.yml uses of GitHub's expressions: names,
// strings, always(), ==, !=, && and ||, whose values are strings; what a context
// does not have is empty, and so false.
type expression struct {
	t      *testing.T
	names  map[string]string
	tokens []string
}

func evaluate(t *testing.T, text string, names map[string]string) string {
	t.Helper()
	e := &expression{t: t, names: names, tokens: regexp.MustCompile(`'[^']*'|&&|\|\||[!=]=|[()]|[\w.-]+`).FindAllString(text, -1)}
	if got := strings.Join(e.tokens, ""); got != strings.ReplaceAll(text, " ", "") {
		t.Fatalf("the test does not know all of the expression %s", text)
	}
	value := e.or()
	if len(e.tokens) > 0 {
		t.Fatalf("%s goes on after its end: %v", text, e.tokens)
	}
	return value
}

// expand replaces every ${{ … }} of a text.
func expand(t *testing.T, text string, names map[string]string) string {
	t.Helper()
	return regexp.MustCompile(`\$\{\{(.*?)\}\}`).ReplaceAllStringFunc(text, func(m string) string {
		return evaluate(t, strings.TrimSpace(m[3:len(m)-2]), names)
	})
}

func (e *expression) take(wanted ...string) string {
	if len(e.tokens) > 0 && slices.Contains(wanted, e.tokens[0]) {
		token := e.tokens[0]
		e.tokens = e.tokens[1:]
		return token
	}
	return ""
}

func (e *expression) or() string {
	value := e.and()
	for e.take("||") != "" {
		if right := e.and(); value == "" {
			value = right
		}
	}
	return value
}

func (e *expression) and() string {
	value := e.compared()
	for e.take("&&") != "" {
		if right := e.compared(); value != "" {
			value = right
		}
	}
	return value
}

func (e *expression) compared() string {
	left := e.value()
	if op := e.take("==", "!="); op != "" {
		if (left == e.value()) == (op == "==") {
			return "true"
		}
		return ""
	}
	return left
}

func (e *expression) value() string {
	if e.take("(") != "" {
		value := e.or()
		e.take(")")
		return value
	}
	if len(e.tokens) == 0 {
		e.t.Fatal("the expression ends early")
	}
	token := e.tokens[0]
	e.tokens = e.tokens[1:]
	if text, ok := strings.CutPrefix(token, "'"); ok {
		return strings.TrimSuffix(text, "'")
	}
	if token == "always" && e.take("(") != "" && e.take(")") != "" {
		return "true"
	}
	return e.names[token]
}

// judged returns what smoke-test.yml's job judge does when the jobs before it went
// as found says: one verb after the other, with its verdict and its text.
func judged(t *testing.T, found map[string]string, promotion string) []string {
	t.Helper()
	jobs := readYAML[workflow](t, "../../.github/workflows/smoke-test.yml").Jobs
	names := map[string]string{
		"inputs.version": "2026.04.3", "inputs.digest": "sha256:ab", "vars.PROMOTION": promotion, // whoever starts it: no input stands against the variable
		"github.server_url": "https://github.com", "github.repository": "keboola/agnes", "github.run_id": "7",
	}
	ran := 0
	for _, job := range []string{"canary", "runner"} {
		if evaluate(t, jobs[job].If, found) == "" {
			continue
		}
		if ran++; found["lost"] != "" { // its outputs with it
			continue
		}
		for name, text := range jobs[job].Outputs {
			names["needs."+job+".outputs."+name] = expand(t, text, found)
		}
	}
	if ran != 1 {
		t.Errorf("%d jobs test the release, want one", ran)
	}
	judge := jobs["judge"]
	if evaluate(t, judge.If, names) == "" {
		return nil
	}
	for name, text := range judge.Env {
		names["env."+name] = expand(t, text, names)
	}
	var did []string
	for _, s := range judge.Steps {
		if s.Uses == "./" && evaluate(t, s.If, names) != "" {
			did = append(did, strings.TrimSpace(s.With["verb"]+" "+expand(t, s.With["verdict"], names)))
			if text := expand(t, s.With["reason"]+s.With["detail"], names); s.With["verb"] != "promote" &&
				(!strings.HasSuffix(text, " https://github.com/keboola/agnes/actions/runs/7") || !strings.Contains(text, found["steps.deploy.outputs.message"])) {
				t.Errorf("%s does not say what was found and where: %q", s.With["verb"], text)
			}
			if digest := expand(t, s.With["digest"], names); s.With["verb"] != "promote" && digest != "sha256:ab" {
				t.Errorf("%s is not told which image was tested, but %q", s.With["verb"], digest)
			}
		}
	}
	return did
}

const canceled = "cancelled" //nolint:misspell // as GitHub spells it

func TestOnlyAFailedSmokeTestRollsBack(t *testing.T) {
	t.Parallel()
	host := func(more ...string) map[string]string {
		return situation(append([]string{"vars.CANARY_HOST", "ssh://agnes@canary"}, more...)...)
	}
	for name, c := range map[string]struct {
		found     map[string]string
		promotion string
		want      []string
	}{
		"the canary passes":                      {host("steps.deploy.outputs.verdict", "pass", "job.status", "success"), "immediate", []string{"verdict pass"}},
		"the canary passes, gated":               {host("steps.deploy.outputs.verdict", "pass", "job.status", "success"), "gated", []string{"verdict pass", "promote"}},
		"the canary fails":                       {host("steps.deploy.outputs.verdict", "fail", "steps.deploy.outputs.message", "Step 4 answered 500.", "job.status", "failure"), "gated", []string{"rollback"}},
		"the canary cannot tell":                 {host("steps.deploy.outputs.verdict", "inconclusive", "job.status", "failure"), "gated", []string{"verdict inconclusive"}},
		"agnesctl says nothing":                  {host("steps.deploy.outcome", "failure", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"a step before agnesctl fails":           {host("steps.deploy.outcome", "skipped", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"the canary's job is canceled":           {host("steps.deploy.outcome", canceled, "job.status", canceled), "immediate", []string{"verdict inconclusive"}},
		"the canary's runner is lost":            {host("lost", "yes"), "gated", []string{"verdict inconclusive"}},
		"the runner passes":                      {situation("steps.start.outcome", "success", "steps.smoke.outputs.verdict", "pass", "job.status", "success"), "gated", []string{"verdict pass", "promote"}},
		"it passes and its log cannot be shown":  {situation("steps.start.outcome", "success", "steps.smoke.outputs.verdict", "pass", "job.status", "failure"), "immediate", []string{"verdict pass"}},
		"the runner fails":                       {situation("steps.start.outcome", "success", "steps.smoke.outputs.verdict", "fail", "steps.smoke.outcome", "failure", "job.status", "failure"), "immediate", []string{"rollback"}},
		"the runner cannot tell":                 {situation("steps.start.outcome", "success", "steps.smoke.outputs.verdict", "inconclusive", "steps.smoke.outcome", "failure", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"the instance does not get ready":        {situation("steps.start.outcome", "success", "steps.smoke.outcome", "skipped", "job.status", "failure"), "immediate", []string{"rollback"}},
		"the smoke test's command line is wrong": {situation("steps.start.outcome", "success", "steps.smoke.outcome", "failure", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"the image cannot be pulled":             {situation("steps.start.outcome", "skipped", "steps.smoke.outcome", "skipped", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"the container does not start":           {situation("steps.start.outcome", "failure", "steps.smoke.outcome", "skipped", "job.status", "failure"), "immediate", []string{"verdict inconclusive"}},
		"canceled while the instance gets ready": {situation("steps.start.outcome", "success", "steps.smoke.outcome", "skipped", "job.status", canceled), "immediate", []string{"verdict inconclusive"}},
		"canceled before it began":               {situation("lost", "yes"), "immediate", []string{"verdict inconclusive"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := judged(t, c.found, c.promotion); !slices.Equal(got, c.want) {
				t.Errorf("did %v, want %v", got, c.want)
			}
		})
	}
}

func situation(pairs ...string) map[string]string {
	names := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		names[pairs[i]] = pairs[i+1]
	}
	return names
}

// What actionlint cannot know, either: that agnesctl has the commands and flags that
// workflows call. surface.json has them all, and CI holds it to the programs.
func TestEveryWorkflowCallsAgnesctlAsItIs(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../surface.json")
	if err != nil {
		t.Fatal(err)
	}
	type command struct {
		Path     string
		Runnable bool
		Flags    []struct{ Name string }
	}
	var surface struct {
		Commands map[string]struct{ Commands []command }
	}
	if err := json.Unmarshal(raw, &surface); err != nil {
		t.Fatal(err)
	}
	commands := map[string]command{}
	for _, c := range surface.Commands["agnesctl"].Commands {
		commands[c.Path] = c
	}
	files, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, file := range files {
		for job, j := range readYAML[workflow](t, file).Jobs {
			for _, s := range j.Steps {
				_, line, ok := strings.Cut(s.Run, "bin/agnesctl ")
				if !ok {
					continue
				}
				calls++
				words := strings.Fields(line)
				path := "agnesctl"
				for _, w := range words {
					if _, ok := commands[path+" "+w]; ok {
						path += " " + w
					}
				}
				if !commands[path].Runnable {
					t.Errorf("%s, job %s: %s is no command", file, job, path)
				}
				for _, w := range words {
					name, long := strings.CutPrefix(w, "--")
					if long && !slices.ContainsFunc(commands[path].Flags, func(f struct{ Name string }) bool { return f.Name == name }) {
						t.Errorf("%s, job %s: %s has no flag --%s", file, job, path, name)
					}
				}
			}
		}
	}
	if calls < 3 {
		t.Errorf("only %d steps call agnesctl: is this looking at the right files?", calls)
	}
}

// A runner is not root, and with CI=true a test that may not mount its disk fails.
func TestTheChecksTestAsRoot(t *testing.T) {
	t.Parallel()
	tested := 0
	for name, job := range readYAML[workflow](t, "../../.github/workflows/checks.yml").Jobs {
		for i, s := range job.Steps {
			if !regexp.MustCompile(`\bmake (test|e2e)$`).MatchString(s.Run) {
				continue
			}
			tested++
			if !strings.HasPrefix(s.Run, `sudo -E env "PATH=$PATH" "HOME=$HOME" make `) {
				t.Errorf("job %s tests without root: %s", name, s.Run)
			}
			if i+1 == len(job.Steps) || job.Steps[i+1].If != "always()" || !strings.Contains(job.Steps[i+1].Run, "chown -R") {
				t.Errorf("job %s leaves folders of the cache to root", name)
			}
		}
	}
	if tested != 2 {
		t.Errorf("%d steps test, want two: is this looking at the right file?", tested)
	}
}

// Where a ruleset keeps the changelog's commit from main, a release has its programs all the same.
func TestARefusedBranchKeepsNoProgramsOffARelease(t *testing.T) {
	t.Parallel()
	jobs := readYAML[workflow](t, "../../.github/workflows/release.yml").Jobs
	steps := map[string]string{}
	for name, job := range jobs {
		for _, s := range job.Steps {
			switch {
			case s.With["verb"] == "notes":
				steps["notes"] = name
			case strings.HasPrefix(s.Run, "make dist "):
				steps["dist"] = name
			case strings.HasPrefix(s.Run, "gh release upload "):
				steps["upload"] = name
			}
		}
	}
	if steps["notes"] == "" || steps["dist"] == "" || steps["dist"] != steps["upload"] || steps["dist"] == steps["notes"] {
		t.Fatalf("the steps are in the jobs %v, want programs in one of their own", steps)
	}
	for notes, image := range map[string]string{"failure": "success", "success": "success", "skipped": "failure"} {
		found := situation("needs.notes.result", notes, "needs.image.result", image)
		if got := evaluate(t, jobs[steps["dist"]].If, found) != ""; got != (image == "success") {
			t.Errorf("image %s, notes %s: the programs are built: %v", image, notes, got)
		}
	}
}

// GitHub answers 422 to its own Actions app in a repository's ruleset.
func TestARepositoryCanImportTheRulesets(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../.github/rulesets/*.json")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var ruleset struct {
			BypassActors []struct {
				ActorType string `json:"actor_type"`
			} `json:"bypass_actors"`
		}
		if err := json.Unmarshal(raw, &ruleset); err != nil {
			t.Fatal(err)
		}
		for _, actor := range ruleset.BypassActors {
			if actor.ActorType == "Integration" {
				t.Errorf("%s lets an app by, which a repository's ruleset takes only where the owner has made it", file)
			}
		}
	}
}

// Where the image's job does not succeed, no smoke test runs: what may have been published has to be told of.
func TestAPublicationThatBrokeOffIsToldOf(t *testing.T) {
	t.Parallel()
	job := readYAML[workflow](t, "../../.github/workflows/release.yml").Jobs["unfinished"]
	for name, c := range map[string]struct {
		result, version, publish string
		told                     bool
	}{
		"all is well":                     {"success", "2026.04.3", "success", false},
		"nothing was claimed":             {"failure", "", "skipped", false},
		"the build failed":                {"failure", "2026.04.3", "skipped", false},
		"a tag could not be moved":        {"failure", "2026.04.3", "failure", true},
		"canceled in the middle":          {canceled, "2026.04.3", canceled, true},
		"published, and then out of time": {canceled, "2026.04.3", "success", true},
		"a step after it failed":          {"failure", "2026.04.3", "success", true},
	} {
		names := situation("needs.image.result", c.result, "needs.image.outputs.version", c.version, "needs.image.outputs.publish", c.publish)
		if told := evaluate(t, job.If, names) != ""; told != c.told {
			t.Errorf("%s: told %v, want %v", name, told, c.told)
		}
	}
	last := workflowStep{}
	if len(job.Steps) > 0 {
		last = job.Steps[len(job.Steps)-1]
	}
	if last.With["verb"] != "verdict" || last.With["verdict"] != "inconclusive" || last.With["version"] == "" || job.Env["RELEASE_BOT_WEBHOOK_URL"] == "" {
		t.Errorf("the job tells nobody: %+v", job)
	}
}

// A branch's workflow is what its author wrote: it must never be given the key, and no
// step of a release but the one that signs.
func TestTheSigningKeyIsInTheStepThatSignsStableImagesAlone(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile(`\$\{\{ *secrets\.COSIGN_\w+ *\}\}`)
	branch := regexp.MustCompile(`secrets\.CHANGELOG_TOKEN`)
	signs := 0
	for _, file := range files {
		for name, job := range readYAML[workflow](t, file).Jobs {
			if text := fmt.Sprint(job.Env, job.Secrets); key.MatchString(text) || filepath.Base(file) == "ci.yml" && job.Secrets != nil {
				t.Errorf("%s, job %s: secrets go to all steps: %s", file, name, text)
			}
			if branch.MatchString(fmt.Sprint(job)) && job.Environment != "release" {
				t.Errorf("%s, job %s takes a token that may change main from where every branch can", file, name)
			}
			if job.Permissions["id-token"] != "" {
				t.Errorf("%s, job %s may ask for identity tokens, which nothing here uses", file, name)
			}
			for _, s := range job.Steps {
				if !key.MatchString(fmt.Sprint(s)) {
					continue
				}
				signs++
				if !strings.HasPrefix(s.Run, "cosign sign ") {
					t.Errorf("%s, job %s: a step has the key and does not sign: %+v", file, name, s)
				}
				for channel, want := range map[string]string{"stable": "release", "dev": ""} {
					names := situation("inputs.channel", channel, "secrets.COSIGN_PRIVATE_KEY", "key")
					names["env.SIGN"] = expand(t, job.Env["SIGN"], names)
					if got := expand(t, job.Environment, names); got != want {
						t.Errorf("%s is built in the environment %q, want %q", channel, got, want)
					}
					if got := evaluate(t, s.If, names) != ""; got != (channel == "stable") {
						t.Errorf("%s is signed: %v", channel, got)
					}
				}
			}
		}
	}
	if signs != 1 {
		t.Errorf("%d steps sign, want one", signs)
	}
}
