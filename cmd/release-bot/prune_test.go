package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
)

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
)

// attic is a package with a ledger in which some things are old: one stable
// version that was deprecated 40 days ago, one that is current, and dev versions
// from 50 days ago and from today.
type attic struct {
	*githubtest.Server
	pkg     *githubtest.Package
	git     string
	indexes map[string]string // digests by version
	env     map[string]string
}

// push pushes an index of two platforms and an attestation, 60 days ago.
func (a *attic) push(tags ...string) string {
	var parts []string
	for _, platform := range []string{"amd64", "arm64", "attestation of"} {
		v := a.pkg.Push(mediaManifest, fmt.Appendf(nil, `{"mediaType":%q,"annotations":{"is":"%s %s"}}`, mediaManifest, platform, tags))
		a.pkg.SetCreated(v.ID, time.Now().AddDate(0, 0, -60))
		parts = append(parts, fmt.Sprintf(`{"digest":%q}`, v.Digest))
	}
	v := a.pkg.Push(mediaIndex, fmt.Appendf(nil, `{"mediaType":%q,"manifests":[%s]}`, mediaIndex, strings.Join(parts, ",")), tags...)
	a.pkg.SetCreated(v.ID, time.Now().AddDate(0, 0, -60))
	return v.Digest
}

func newAttic(t *testing.T) *attic {
	t.Helper()
	dir, commits := bareRepository(t, 5)
	hub := githubtest.New(t)
	a := &attic{Server: hub, pkg: hub.Package("acme", "agnes"), git: dir, indexes: map[string]string{}, env: hub.Env("acme/agnes")}
	refs, err := gitrefs.Open(dir, gitrefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	ledger := release.NewLedger(refs, release.LedgerOptions{Now: func() time.Time { return at }})
	var first release.Version
	for i, build := range []struct {
		ch  release.Channel
		age int
	}{{release.Stable, 50}, {release.Dev, 50}, {release.Stable, 45}, {release.Dev, 1}} {
		at = time.Now().AddDate(0, 0, -build.age)
		claim, err := ledger.Claim(t.Context(), build.ch, commits[i])
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = claim.Version
		}
		tags := release.TagsFor(build.ch, claim.Version, commits[i])
		all := append(slices.Clone(tags.Version), tags.Commit...)
		if i >= 2 {
			all = tags.All()
		}
		a.indexes[fmt.Sprint(build.ch, i)] = a.push(all...)
	}
	at = time.Now().AddDate(0, 0, -40)
	if _, _, err := ledger.Deprecate(t.Context(), first, "loses rows", release.Version{}); err != nil {
		t.Fatal(err)
	}
	return a
}

// args adds what leads a command to the attic.
func (a *attic) args(args ...string) []string {
	return append(args, "--git", a.git, "--registry", a.Host+"/acme/agnes")
}

// there returns the tags of what is there, by digest.
func (a *attic) there() map[string]string {
	all := map[string]string{}
	for _, v := range a.pkg.Versions() {
		if !v.Deleted {
			all[v.Digest] = strings.Join(slices.Sorted(slices.Values(v.Tags)), " ")
		}
	}
	return all
}

func TestPrunePlansAppliesAndRestores(t *testing.T) {
	t.Parallel()
	a := newAttic(t)
	dir := t.TempDir()
	plan := filepath.Join(dir, "plan.json")
	a.env["GITHUB_OUTPUT"], a.env["GITHUB_STEP_SUMMARY"] = filepath.Join(dir, "output"), filepath.Join(dir, "summary")
	before := a.there()

	// One dev version is kept as the newest; the other and the deprecated one go,
	// with their three parts each.
	var made release.PrunePlan
	code, errs := call(t, a.env, &made, a.args("prune", "--plan", plan, "--keep-dev-last", "1")...)
	if code != 0 || made.Delete != 8 || made.Keep != 8 {
		t.Fatalf("exit %d, %d stay and %d go\n%s", code, made.Keep, made.Delete, errs)
	}
	for _, key := range []string{"stable0", "dev1"} {
		i := slices.IndexFunc(made.Versions, func(v release.PlannedVersion) bool { return v.Digest == a.indexes[key] })
		if v := made.Versions[i]; v.Action != release.PruneDelete {
			t.Errorf("%s: %s, %s: %s", key, v.Action, v.Rule, v.Reason)
		}
	}
	if diff := cmp.Diff(before, a.there()); diff != "" {
		t.Fatalf("a plan changed something:\n%s", diff)
	}

	// The table names every version; what a workflow gets is small.
	var table, stderr bytes.Buffer
	run(t.Context(), a.args("prune", "--keep-dev-last", "1"), func(name string) string { return a.env[name] }, strings.NewReader(""), &table, &stderr)
	for digest := range before {
		if !strings.Contains(table.String(), digest[:19]) {
			t.Errorf("the table does not name %s", digest)
		}
	}
	for _, want := range []string{"8 versions stay, 8 go", "Nothing was changed. Next: release-bot prune --plan FILE", "was deprecated on", "the channel stable points at it"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("expected %q in the table:\n%s", want, table.String())
		}
	}
	for file, want := range map[string]string{"output": "delete<<", "summary": "| delete, deprecated | 1 |"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || !strings.Contains(string(got), want) || strings.Contains(string(got), `"versions"`) {
			t.Errorf("%s: %v\n%s", file, err, got)
		}
	}

	var done applied
	if code, errs := call(t, a.env, &done, a.args("prune", "--apply", plan, "--dry-run")...); code != 0 || len(done.Versions) != 8 || len(a.there()) != 16 {
		t.Errorf("dry run: exit %d, %+v\n%s", code, done, errs)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 3 {
		t.Errorf("after the dry run there are %v, %v", files, err)
	}
	done = applied{}
	if code, errs := call(t, a.env, &done, a.args("prune", "--apply", plan)...); code != 0 || done.Deleted != 8 || done.Journal != plan+".journal" {
		t.Fatalf("exit %d, %+v\n%s", code, done, errs)
	}
	after := a.there()
	if len(after) != 8 || a.pkg.Tag("stable") != a.indexes["stable2"] || a.pkg.Tag("dev") != a.indexes["dev3"] {
		t.Errorf("left: %v", after)
	}
	if code, errs := call(t, a.env, &done, a.args("prune", "--apply", plan)...); code != 0 || done.Deleted != 0 || done.Gone != 8 {
		t.Errorf("again: exit %d, %+v\n%s", code, done, errs)
	}
	if code, _ := call(t, a.env, &made, a.args("prune", "--keep-dev-last", "1")...); code != 0 || made.Delete != 0 {
		t.Errorf("a new plan: exit %d, %d to delete", code, made.Delete)
	}

	var back release.RestoreResult
	if code, errs := call(t, a.env, &back, a.args("restore", "--journal", done.Journal, "--dry-run")...); code != 0 || len(back.Versions) != 8 || len(a.there()) != 8 {
		t.Errorf("dry run: exit %d, %+v\n%s", code, back, errs)
	}
	if code, errs := call(t, a.env, &back, a.args("restore", "--journal", done.Journal)...); code != 0 || back.Restored != 8 {
		t.Errorf("exit %d, %+v\n%s", code, back, errs)
	}
	if diff := cmp.Diff(before, a.there()); diff != "" {
		t.Errorf("restored:\n%s", diff)
	}
	if code, _ := call(t, a.env, &back, a.args("restore", "--journal", done.Journal)...); code != 0 || back.There != 8 {
		t.Errorf("again: exit %d, %+v", code, back)
	}
}

func TestPruneRefusals(t *testing.T) {
	t.Parallel()
	a := newAttic(t)
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plan := filepath.Join(dir, "plan.json")
	if code, errs := call(t, a.env, nil, a.args("prune", "--plan", plan, "--keep-dev-last", "1")...); code != 0 {
		t.Fatal(errs)
	}
	inUse := write("status.json", fmt.Sprintf(`{"instances":[{"name":"acme","status":"healthy","digest":%q}]}`, a.indexes["stable0"]))
	other := strings.ReplaceAll(string(read(t, plan)), a.Host, "ghcr.io")
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"both ways at once":        {[]string{"--plan", plan, "--apply", plan}, 2, []string{"[apply plan]"}},
		"a policy for an old plan": {[]string{"--apply", plan, "--keep-dev-days", "3"}, 2, []string{"--keep-dev-days"}},
		"no minimum age":           {[]string{"--min-untagged-days", "0"}, 2, []string{"--min-untagged-days"}},
		"no such plan":             {[]string{"--apply", plan + ".no"}, 2, []string{"Next:  release-bot prune --plan"}},
		"no plan":                  {[]string{"--apply", write("x.json", "{}")}, 1, []string{"format"}},
		"another's plan":           {[]string{"--apply", write("o.json", other)}, 4, []string{"ghcr.io/acme/agnes", "--registry"}},
		"no fleet":                 {[]string{"--in-use", write("f.yaml", "hello: world\n")}, 1, []string{"f.yaml", "no list of instances", "Next:  agnesctl fleet status"}},
		"no fleet file":            {[]string{"--in-use", filepath.Join(dir, "no")}, 2, nil},
		"what is in use by now":    {[]string{"--apply", plan, "--in-use", inUse}, 4, []string{"in use by acme"}},
	} {
		before := len(a.there())
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), a.args(append([]string{"prune"}, c.args...)...), func(name string) string { return a.env[name] }, strings.NewReader(""), &stdout, &stderr)
		if code != c.code || len(a.there()) != before {
			t.Errorf("%s: exit %d, expected %d: %s", name, code, c.code, stderr.String())
		}
		for _, want := range c.want {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%s: expected %q in %s", name, want, stderr.String())
			}
		}
	}

	// What is in use is kept and said.
	var made release.PrunePlan
	if code, errs := call(t, a.env, &made, a.args("prune", "--keep-dev-last", "1", "--in-use", inUse)...); code != 0 || made.Delete != 4 {
		t.Errorf("exit %d, %d to delete\n%s", code, made.Delete, errs)
	}
	if !slices.ContainsFunc(made.Versions, func(v release.PlannedVersion) bool {
		return v.Rule == release.RuleInUse && strings.Contains(v.Reason, "in use by acme; otherwise it would go: ")
	}) {
		t.Errorf("%+v", made.Versions)
	}

	// Drift, and then a manifest that cannot be read.
	late := a.push("dev-late")
	if code, errs := call(t, a.env, nil, a.args("prune", "--apply", plan)...); code != 4 || !strings.Contains(errs, "is new") {
		t.Errorf("exit %d: %s", code, errs)
	}
	a.Inject(githubtest.Fault{Method: http.MethodGet, Path: "*/manifests/" + late, Status: http.StatusInternalServerError})
	if code, errs := call(t, a.env, nil, a.args("prune")...); code != 5 || !strings.Contains(errs, "nothing can be deleted") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if len(a.there()) != 20 {
		t.Errorf("%d versions are left", len(a.there()))
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestPruneKilledAnywhereConverges kills the program at each of its calls while it
// applies a plan, right before and right after the host acts, and runs it again.
func TestPruneKilledAnywhereConverges(t *testing.T) {
	t.Parallel()
	a := newAttic(t)
	plan := filepath.Join(t.TempDir(), "plan.json")
	if code, errs := call(t, a.env, nil, a.args("prune", "--plan", plan, "--keep-dev-last", "1")...); code != 0 {
		t.Fatal(errs)
	}
	env := []string{"GITHUB_API_URL=" + a.URL, "GITHUB_TOKEN=" + githubtest.Token, "GITHUB_REPOSITORY=acme/agnes", "HOME=" + t.TempDir()}
	before := a.there()
	start := func(journal string, k int, afterwards bool) (code, calls int, out string) {
		var text bytes.Buffer
		cmd := program(t, env, a.args("prune", "--apply", plan, "--journal", journal)...)
		cmd.Stdout, cmd.Stderr = &text, &text
		started, dead := make(chan struct{}), make(chan struct{})
		count := make(chan int, 1)
		count <- 0
		at := func(after bool) func(githubtest.Request) {
			return func(githubtest.Request) {
				n := <-count
				if !after {
					n++
				}
				count <- n
				if n == k && after == afterwards {
					<-started
					_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL) // it may be dead already
					<-dead
					panic(http.ErrAbortHandler)
				}
			}
		}
		a.Watch(at(false), at(true))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		close(started)
		_ = cmd.Wait() // the exit code says it
		close(dead)
		a.Watch(nil, nil)
		return cmd.ProcessState.ExitCode(), <-count, text.String()
	}
	code, calls, out := start(filepath.Join(t.TempDir(), "journal"), 0, false)
	if code != 0 || calls < 17 { // a list, and a look and a deletion for each of 8
		t.Fatalf("undisturbed: exit %d after %d calls\n%s", code, calls, out)
	}
	want := a.there()
	restore := func(journal string) {
		t.Helper()
		if code, errs := call(t, a.env, nil, a.args("restore", "--journal", journal)...); code != 0 {
			t.Fatal(errs)
		}
		if diff := cmp.Diff(before, a.there()); diff != "" {
			t.Fatalf("restored:\n%s", diff)
		}
	}
	// What was deleted has its whole record in the plan, so any journal will do.
	var entries bytes.Buffer
	for _, v := range mustPlan(t, plan).Versions {
		if v.Action == release.PruneDelete {
			line, err := json.Marshal(release.JournalEntry{ID: v.ID, Digest: v.Digest, Tags: v.Tags, Children: v.Children})
			if err != nil {
				t.Fatal(err)
			}
			entries.Write(append(line, '\n'))
		}
	}
	everything := filepath.Join(t.TempDir(), "everything")
	if err := os.WriteFile(everything, entries.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d calls, each killed before and after", calls)
	for _, afterwards := range []bool{false, true} {
		for k := 1; k <= calls; k++ {
			restore(everything)
			journal := filepath.Join(t.TempDir(), "journal")
			if code, _, out := start(journal, k, afterwards); code != -1 {
				t.Fatalf("call %d: it was not killed: exit %d\n%s", k, code, out)
			}
			// What is gone is in the journal, and every tag still has all its parts.
			recorded := string(orNothing(journal))
			for digest := range before {
				if _, there := a.there()[digest]; !there && !strings.Contains(recorded, digest) {
					t.Errorf("call %d: %s is gone and not in the journal", k, digest)
				}
			}
			if a.pkg.Tag("stable") != a.indexes["stable2"] {
				t.Errorf("call %d: stable is lost", k)
			}
			if code, _, out := start(journal, 0, false); code != 0 {
				t.Fatalf("call %d: the second run: exit %d\n%s", k, code, out)
			}
			if diff := cmp.Diff(want, a.there()); diff != "" {
				t.Fatalf("call %d: it ends elsewhere:\n%s", k, diff)
			}
		}
	}
	// Killed halfway, the journal alone brings everything back.
	restore(everything)
	journal := filepath.Join(t.TempDir(), "journal")
	start(journal, calls/2, true)
	restore(journal)
}

func orNothing(path string) []byte {
	content, _ := os.ReadFile(path)
	return content
}

func mustPlan(t *testing.T, path string) release.PrunePlan {
	t.Helper()
	plan, err := release.ReadPlan(path, read(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// TestPrunePlanOfTenThousandVersions measures a whole process over HTTP: calls,
// peak memory, time.
func TestPrunePlanOfTenThousandVersions(t *testing.T) {
	dir, commits := bareRepository(t, 2500)
	hub := githubtest.New(t)
	pkg := hub.Package("acme", "agnes")
	created := time.Now().AddDate(-1, 0, 0)
	var tags strings.Builder
	for n := range 2500 {
		v := release.Version{Year: 2025, Month: 1 + n%12, N: int64(n + 1)}
		message := fmt.Sprintf("Claim %s\n\nChannel: dev\nCommit: %s\nRun: manual\nNonce: %016x\n", v, commits[n], n)
		fmt.Fprintf(&tags, "tag %s\nfrom %s\ntagger release-bot <release-bot@users.noreply.github.com> 1740000000 +0000\ndata %d\n%s\n", v, commits[n], len(message), message)
		var parts []string
		for _, part := range []string{"amd64", "arm64", "attestation"} {
			one := pkg.Push(mediaManifest, fmt.Appendf(nil, `{"mediaType":%q,"annotations":{"is":"%s of %d"}}`, mediaManifest, part, n))
			pkg.SetCreated(one.ID, created)
			parts = append(parts, fmt.Sprintf(`{"digest":%q,"size":1,"platform":{"os":"linux"}}`, one.Digest))
		}
		index := pkg.Push(mediaIndex, fmt.Appendf(nil, `{"mediaType":%q,"manifests":[%s]}`, mediaIndex, strings.Join(parts, ",")), release.VersionTag(release.Dev, v), fmt.Sprintf("sha-%07x", n))
		pkg.SetCreated(index.ID, created)
	}
	runGit(t, tags.String(), "-C", dir, "fast-import", "--quiet")

	plan := filepath.Join(t.TempDir(), "plan.json")
	cmd := program(t, []string{"GITHUB_API_URL=" + hub.URL, "GITHUB_TOKEN=" + githubtest.Token, "GITHUB_REPOSITORY=acme/agnes", "HOME=" + t.TempDir()},
		"prune", "--plan", plan, "--git", dir, "--registry", hub.Host+"/acme/agnes")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	took := time.Since(began)
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		t.Fatal("no measurement of memory on this system")
	}
	made := mustPlan(t, plan)
	if made.Delete != 10000-80 || made.Keep != 80 {
		t.Errorf("%d stay, %d go", made.Keep, made.Delete)
	}
	lists := hub.Count(http.MethodGet, "/orgs/acme/packages/container/agnes/versions")
	reads := map[string]int{}
	for _, r := range hub.Requests() {
		if strings.Contains(r.Path, "/manifests/") {
			reads[r.Path]++
		}
	}
	for path, n := range reads {
		if n > 1 {
			t.Errorf("%s was read %d times", path, n)
		}
	}
	peak := usage.Maxrss >> 10 // Linux counts in KiB
	t.Logf("10,000 versions: %d lists, %d manifests read, %d MiB at most, %v, %v of CPU; the plan has %d KiB",
		lists, len(reads), peak, took.Round(time.Millisecond), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), len(read(t, plan))>>10)
	if lists != 100 || len(reads) != 10000 {
		t.Errorf("expected 100 lists and 10,000 manifests")
	}
	build, _ := debug.ReadBuildInfo()
	if raced := slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"}); raced {
		t.Log("memory is not judged: the race detector takes several times as much")
	} else if peak > 150 {
		t.Errorf("expected less than 150 MiB")
	}
}

func TestInUseFiles(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("0a", 32)
	for name, c := range map[string]struct {
		text  string
		want  map[string][]string
		notes int
	}{
		"fleet status": {
			`{"summary":{"healthy":1},"instances":[
			{"name":"acme","url":"https://a","status":"healthy","version":"2026.04.3","channel":"stable","wanted":"stable-2026.04.3","drift":false,"digest":"` + digest + `","latency_ms":3},
			{"name":"bravo","status":"unreachable","wanted":"stable","error":"timeout"}]}`,
			map[string][]string{"2026.04.3": {"acme"}, "stable-2026.04.3": {"acme"}, digest: {"acme"}, "stable": {"bravo"}},
			1,
		},
		"fleet status as YAML": {
			"summary: {}\ninstances:\n  - {name: acme, status: degraded, version: 2026.04.3, digest: 'ghcr.io/a/b@" + digest + "'}\n",
			map[string][]string{"2026.04.3": {"acme"}, digest: {"acme"}},
			0,
		},
		"inventory": {
			"image: ghcr.io/acme/agnes\ndefaults: {channel: stable}\nwaves: [{name: all}]\ninstances:\n" +
				"  - {name: acme, url: 'https://a', pin: stable-2026.04.3, labels: {tier: canary}}\n  - {name: bravo, url: 'https://b'}\n  - {name: charlie, url: 'https://c', channel: dev}\n  - {name: delta, url: 'https://d', pin: '" + digest + "'}\n",
			map[string][]string{"stable-2026.04.3": {"acme"}, "stable": {"bravo"}, "dev": {"charlie"}, digest: {"delta"}},
			0,
		},
		"the inventory as agnesctl fleet list prints it": {
			`{"image":"x","waves":[],"instances":[{"name":"acme","url":"https://a","wanted":"2026.04.3","pin":"2026.04.3","labels":{}},{"name":"bravo","url":"https://b","wanted":"dev","channel":"dev"}]}`,
			map[string][]string{"2026.04.3": {"acme"}, "dev": {"bravo"}},
			0,
		},
		"no instances yet": {"image: x\ninstances: []\n", nil, 0},
	} {
		got, err := parseInUse([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got.By); diff != "" || len(got.Notes) != c.notes {
			t.Errorf("%s: %v\n%s", name, got.Notes, diff)
		}
	}
	for name, text := range map[string]string{
		"nothing":                   "",
		"no instances":              "image: x\n",
		"instances of nothing":      `{"instances":null}`,
		"a list":                    `[{"name":"acme","status":"healthy"}]`,
		"another program's answer":  `{"items":[{"metadata":{"name":"x"}}]}`,
		"a plan":                    `{"format":1,"versions":[]}`,
		"no name":                   `{"instances":[{"status":"healthy"}]}`,
		"half an inventory":         "include: [customers/*.yaml]\ninstances: [{name: acme, url: 'https://a'}]\n",
		"names alone":               "instances: [{name: acme}]\n",
		"half a status":             `{"instances":[{"name":"a","status":"healthy"},{"name":"b","url":"https://b"}]}`,
		"a digest that is none":     `{"instances":[{"name":"a","status":"healthy","digest":"abc"}]}`,
		"text where a list belongs": "instances: acme\n",
		"broken JSON":               `{"instances":[`,
		"broken YAML":               "instances: [\n",
	} {
		if got, err := parseInUse([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %v", name, got.By)
		}
	}
	if _, err := readInUse([]string{t.TempDir()}); problem.ExitCode(err) != 2 {
		t.Errorf("%v", err)
	}
}
