//go:build e2e

package e2e

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
	"github.com/keboola/agnes-the-ai-analyst/release/cosign/cosigntest"
)

// The lines that make a bad image of a good one.
var (
	neverReady = []string{`ENTRYPOINT ["sleep", "1000"]`, `CMD []`, `HEALTHCHECK NONE`}
	endsAtOnce = []string{`ENTRYPOINT ["false"]`}
	noQuery    = []string{`COPY faultd /usr/local/bin/faultd`, `ENV FAULT=query`, `ENTRYPOINT ["faultd"]`, `CMD ["serve"]`}
	staleData  = []string{`COPY faultd /usr/local/bin/faultd`, `ENV FAULT=stale`, `ENTRYPOINT ["faultd"]`, `CMD ["serve"]`}
	migrates   = []string{`COPY faultd /usr/local/bin/faultd`, `COPY migrated /usr/local/bin/agnes`, `ENV FAULT=query`, `ENTRYPOINT ["faultd"]`, `CMD ["serve"]`, `LABEL io.agnes.schema-version=9999`}
)

// faultd builds the program that answers wrongly.
func faultd(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{"faultd": program(t, "faultd", "CGO_ENABLED=0", "./faultd")}
}

var building sync.Mutex

// program builds a program of the name beside the binaries, the first time that
// it is asked for.
func program(t *testing.T, name, env string, args ...string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	path := filepath.Join(bin, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	build := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
	build.Env = append(os.Environ(), env)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// migrated builds an instance whose schema is one step further.
func migrated(t *testing.T) map[string]string {
	t.Helper()
	files, dir := faultd(t), t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	migration := filepath.Join(dir, "next.sql")
	writeFile(t, migration, "ALTER TABLE users ADD COLUMN nickname VARCHAR;\n")
	entries, err := filepath.Glob("../agent/state/migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(root, "agent", "state", "migrations", strings.Replace("000N_next.sql", "N", string(rune('1'+len(entries))), 1))
	overlay := filepath.Join(dir, "overlay.json")
	writeFile(t, overlay, `{"Replace":{"`+next+`":"`+migration+`"}}`)
	files["migrated"] = program(t, "migrated", "CGO_ENABLED=1", "-tags", "duckdb_arrow", "-overlay", overlay, "-ldflags", "-s -w", "../cmd/agnes")
	return files
}

// A drill is one release that comes to a canary, and what must be true
// afterwards.
func (s *site) drill(t *testing.T, r release, before data, wantVerdict, wantStep string, more ...string) outcome {
	t.Helper()
	old, since := s.running()
	stable := s.stableAt()
	o, code := s.canary(r, more...)
	if o.Verdict != wantVerdict || o.failedAt() != wantStep || code != map[string]int{"pass": 0, "fail": 1, "inconclusive": 5}[wantVerdict] {
		t.Fatalf("the canary said %q at %q with exit code %d; want %q at %q\n%+v", o.Verdict, o.failedAt(), code, wantVerdict, wantStep, o)
	}
	s.registry.down.Store(false)
	s.judge(r, o, code)
	now, sinceNow := s.running()
	switch wantVerdict {
	case "pass":
		s.last = r
		if now != r.version || s.stableAt() != r.version || len(s.alerts(r)) != 0 {
			t.Errorf("after a pass %s runs, :stable is at %s, alerts %v; want %s everywhere and no alert", now, s.stableAt(), s.alerts(r), r.version)
		}
	case "fail":
		if now != old || s.stableAt() == r.version || len(s.alerts(r)) != 1 || !o.Reverted {
			t.Errorf("after a failure %s runs, :stable is at %s, alerts %v, reverted %v; want %s, another one than %s, one alert", now, s.stableAt(), s.alerts(r), o.Reverted, old, r.version)
		}
		s.judge(r, o, code) // a workflow's job that is run again
		if got := s.alerts(r); len(got) != 1 {
			t.Errorf("after the same verdict twice there are the alerts %v; want one", got)
		}
	case "inconclusive":
		if now != old || sinceNow != since || s.stableAt() != stable || len(s.alerts(r)) != 1 {
			t.Errorf("after an inconclusive try %s runs since %s, :stable is at %s, alerts %v; want %s since %s, %s, one alert", now, sinceNow, s.stableAt(), s.alerts(r), old, since, stable)
		}
	}
	if diff := cmp.Diff(before, s.data()); diff != "" {
		t.Errorf("the data changed (- before, + after):\n%s", diff)
	}
	s.tidy(t)
	return o
}

// tidy holds that a deploy has left nothing half done on the host.
func (s *site) tidy(t *testing.T) {
	t.Helper()
	for _, name := range []string{"journal.json", "lease", "candidate.env", "before.env"} {
		if _, err := os.Stat(filepath.Join(s.dir, ".agnes", name)); err == nil {
			t.Errorf(".agnes/%s is left on the host", name)
		}
	}
	if left := s.docker.Docker("ps", "-aq", "--filter", "label=com.docker.compose.project=agnes"); len(strings.Fields(left)) != 1 {
		t.Errorf("the project has the containers %q; want one", left)
	}
	for name, want := range map[string]string{".env": "# Acme's own\nAGNES_PORT=" + s.port, "docker-compose.override.yml": "/shop:ro"} {
		text, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s does not hold what the customer wrote: %v\n%s", name, err, text)
		}
	}
}

func TestACanaryIsTakenForwardOrBack(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	s.last = first
	faulty, moved := faultd(t), migrated(t)
	before := s.data()

	s.story("a good release stays, and is down for less than five seconds", func(t *testing.T) {
		r := s.release("good", nil)
		down := watch(t, s.url()+"/readyz")
		s.drill(t, r, before, "pass", "")
		longest := down()
		t.Logf("longest time without an answer, asked every 100 ms: %s", longest)
		if longest > 5*time.Second {
			t.Errorf("the deploy took the instance down for %s", longest)
		}
	})
	s.story("an image that never gets ready", func(t *testing.T) {
		s.drill(t, s.release("silent", nil, neverReady...), before, "fail", "ready", "--ready-wait", "3s")
	})
	s.story("an image that ends at once", func(t *testing.T) {
		s.drill(t, s.release("crashing", nil, endsAtOnce...), before, "fail", "ready")
	})
	s.story("healthy, but its queries fail", func(t *testing.T) {
		o := s.drill(t, s.release("queryless", faulty, noQuery...), before, "fail", "smoke")
		took := o.took("halt", "restore", "return")
		t.Logf("the way back took %s", took)
		if took > 20*time.Second {
			t.Errorf("the way back took %s; the bar is 20 s", took)
		}
	})
	s.story("healthy, but its data is never refreshed", func(t *testing.T) {
		now := time.Now() // its source has something new, which only who refreshes notices
		if err := os.Chtimes(filepath.Join(s.shop, "orders.csv"), now, now); err != nil {
			t.Fatal(err)
		}
		s.drill(t, s.release("stale", faulty, staleData...), before, "fail", "smoke")
	})
	s.story("it moves the schema, and then fails: the state comes back", func(t *testing.T) {
		o := s.drill(t, s.release("migrating", moved, migrates...), before, "fail", "smoke")
		if o.Restored == "" {
			t.Errorf("nothing was restored: %+v", o)
		}
	})
	s.story("it moves the schema, and the policy is to halt: it is left running", func(t *testing.T) {
		r := s.release("migrating", moved, migrates...)
		o, code := s.canary(r, "--schema", "halt")
		if code != 1 || !o.Halted || o.Reverted || !strings.Contains(o.Hint, "--digest "+s.last.digest+" --schema restore") {
			t.Fatalf("exit %d, halted %v, reverted %v, hint %q", code, o.Halted, o.Reverted, o.Hint)
		}
		if now, _ := s.running(); now != r.version {
			t.Errorf("%s runs, want %s", now, r.version)
		}
		// The person decides: back, and what changed since is lost.
		previous, _ := s.deploy(s.last, "--schema", "restore")
		if previous.Verdict != "pass" || previous.Restored == "" {
			t.Errorf("the way back by hand: %+v", previous)
		}
		s.holds(t, s.last.version, before)
		s.judge(r, o, code)
	})
	s.story("only what is signed is deployed", func(t *testing.T) {
		key := cosigntest.NewKey(t, "acme")
		pub := filepath.Join(t.TempDir(), "cosign.pub")
		writeFile(t, pub, string(key.Public))
		r := s.release("good", nil)
		_, since := s.running()
		if o, code := s.canary(r, "--verify", "key", "--key", pub); code != 1 || o.failedAt() != "verify" {
			t.Fatalf("an image without a signature: exit %d at %q", code, o.failedAt())
		}
		if _, now := s.running(); now != since {
			t.Errorf("the instance was touched: it runs since %s, before since %s", now, since)
		}
		cosigntest.Sign(t, s.image(), r.digest, key)
		if o := s.drill(t, r, before, "pass", "", "--verify", "key", "--key", pub); o.Running.Digest != r.digest {
			t.Errorf("it runs %s, want %s", o.Running.Digest, r.digest)
		}
	})
	s.story("what a person types in the directory afterwards changes nothing", func(t *testing.T) {
		version, since := s.running()
		s.typed("up", "-d")
		if now, sinceNow := s.running(); now != version || sinceNow != since {
			t.Errorf("after docker compose up -d %s runs since %s; want %s since %s", now, sinceNow, version, since)
		}
	})
	s.story("an override that names another image is refused before anything is touched", func(t *testing.T) {
		r := s.release("good", nil)
		override := filepath.Join(s.dir, "docker-compose.override.yml")
		text, err := os.ReadFile(override)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, override, strings.Replace(string(text), "  app:\n", "  app:\n    image: other\n", 1))
		_, since := s.running()
		o, code := s.deploy(r)
		writeFile(t, override, string(text))
		if _, now := s.running(); code != 4 || o.failedAt() != "pull" || now != since || !strings.Contains(o.Hint, "docker-compose.override.yml") {
			t.Errorf("exit %d at %q, since %s, before %s, hint %q", code, o.failedAt(), now, since, o.Hint)
		}
	})
	s.story("an instance that was taken down is not deployed over", func(t *testing.T) {
		r := s.release("good", nil)
		s.typed("down")
		if o, code := s.deploy(r); code != 4 || !strings.Contains(o.Hint, "docker compose up -d") {
			t.Errorf("exit %d, hint %q", code, o.Hint)
		}
		s.typed("up", "-d", "--wait")
		s.holds(t, s.last.version, before)
	})
	s.story("the pull breaks off", func(t *testing.T) {
		r := s.release("large", nil, `RUN ["dd", "if=/dev/urandom", "of=/tmp/large", "bs=1M", "count=8"]`)
		s.registry.cut.Store(true)
		defer s.registry.cut.Store(false)
		s.drill(t, r, before, "inconclusive", "pull")
	})
	s.story("the registry is down", func(t *testing.T) {
		r := s.release("good", nil)
		s.registry.down.Store(true)
		s.drill(t, r, before, "inconclusive", "resolve")
	})
}

// A host with little room. That the image does not fit is known beforehand,
// unless its layers grow more than any other: then the disk runs full under the
// running instance.
func TestACanaryWhoseDiskIsFullIsLeftAsItIs(t *testing.T) {
	parallelOnImage(t)
	s, _ := newSite(t, dockertest.WithDisk(1<<30))
	before := s.data()
	s.story("the image does not fit", func(t *testing.T) {
		r := s.release("large", nil, `RUN ["dd", "if=/dev/urandom", "of=/tmp/large", "bs=1M", "count=300"]`)
		o := s.drill(t, r, before, "inconclusive", "pull")
		if !strings.Contains(o.Message+o.Hint, "MB") {
			t.Errorf("it does not say how much is missing: %q, %q", o.Message, o.Hint)
		}
	})
	s.story("the disk runs full while the image is unpacked", func(t *testing.T) {
		r := s.release("swelling", nil, `RUN ["dd", "if=/dev/zero", "of=/tmp/large", "bs=1M", "count=1200"]`)
		s.drill(t, r, before, "inconclusive", "pull")
	})
	s.story("there is hardly any room at all", func(t *testing.T) {
		r := s.release("good", nil)
		s.fill(t, 100<<20)
		s.drill(t, r, before, "inconclusive", "preflight")
	})
}

// fill leaves that many bytes of the host's disk free.
func (s *site) fill(t *testing.T, free int64) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(s.docker.Data(), &fs); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(s.docker.Data(), "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-free); err != nil {
		t.Fatal(err)
	}
}

// watch asks a URL every 100 ms until the returned function is called, which
// tells the longest time without a good answer.
func watch(t *testing.T, url string) (longest func() time.Duration) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	found := make(chan time.Duration)
	go func() {
		var most time.Duration
		good := time.Now()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for {
			if resp, err := client.Get(url); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					most, good = max(most, time.Since(good)), time.Now()
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				found <- max(most, time.Since(good))
				return
			}
		}
	}()
	return func() time.Duration {
		stop()
		return <-found
	}
}

// deploySteps are those in which a deploy to a new image can be interrupted.
var deploySteps = []string{"lock", "preflight", "resolve", "verify", "pull", "drain", "backup", "keep", "switch", "assert", "ready", "smoke", "soak", "commit"}

// revertSteps are those of the way back.
var revertSteps = []string{"halt", "restore", "return"}

func TestADeployThatIsKilledAtAnyStepIsEndedByTheNext(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	second := s.release("good", nil)
	before := s.data()
	to := map[string]release{first.version: second, second.version: first}
	kill := func(p *os.Process) { _ = p.Kill() }
	for _, step := range deploySteps {
		s.story(step, func(t *testing.T) { s.through(t, to, before, step, kill, -1) })
	}
	for _, step := range []string{"pull", "switch", "smoke"} {
		s.story("Ctrl-C, "+step, func(t *testing.T) {
			old, _ := s.running()
			o, code := s.interrupted(s.deployArgs([]string{"canary", "deploy"}, to[old]), step, func(p *os.Process) { _ = p.Signal(os.Interrupt) })
			if code != 130 || o.Verdict != "inconclusive" || !strings.Contains(o.Message, "interrupted from here") {
				t.Errorf("the deploy ended with %d, %s: %s; an operator who changes his mind says nothing about the release", code, o.Verdict, o.Message)
			}
			s.holds(t, old, before)
		})
	}
	bad := s.release("queryless", faultd(t), noQuery...)
	for _, step := range revertSteps {
		s.story("the way back, "+step, func(t *testing.T) {
			old, _ := s.running()
			args := s.deployArgs([]string{"canary", "deploy"}, bad)
			if _, code := s.interrupted(args, step, kill); code != -1 {
				t.Fatalf("the deploy ended with %d before it could be killed", code)
			}
			o, code := s.try(args)
			if code != 1 || o.Verdict != "fail" {
				t.Fatalf("the next deploy ended with %d, %s; it has to go on with the way back\n%+v", code, o.Verdict, o)
			}
			s.holds(t, old, before)
		})
	}
}

// through takes the host to the version that it does not run, with trouble at a
// step, which ends the deploy with one of some exit codes, and where that is not
// 0, once more, as the workflow does.
func (s *site) through(t *testing.T, to map[string]release, before data, step string, trouble func(*os.Process), ends ...int) {
	t.Helper()
	old, _ := s.running()
	args := s.deployArgs([]string{"canary", "deploy"}, to[old])
	o, code := s.interrupted(args, step, trouble)
	if !slices.Contains(ends, code) {
		t.Fatalf("the deploy ended with %d, %s at %s, want one of %v: %+v", code, o.Verdict, o.failedAt(), ends, o)
	}
	if code != 0 {
		if o, code = s.try(args); code != 0 {
			t.Fatalf("the next deploy ended with %d: %+v", code, o)
		}
	}
	s.holds(t, to[old].version, before)
}

// holds holds that a version runs with the data of before, and nothing is left.
func (s *site) holds(t *testing.T, version string, before data) {
	t.Helper()
	if now, _ := s.running(); now != version {
		t.Errorf("%s runs, want %s", now, version)
	}
	if diff := cmp.Diff(before, s.data()); diff != "" {
		t.Errorf("the data changed (- before, + after):\n%s", diff)
	}
	s.tidy(t)
}

// What a host's restart and a power cut leave is the same to a deploy, but for
// what was written a moment before.
func TestADeployOutlivesARestartOfItsHostAtAnyStep(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	second := s.release("good", nil)
	before := s.data()
	to := map[string]release{first.version: second, second.version: first}
	for _, step := range deploySteps {
		s.story(step, func(t *testing.T) {
			s.through(t, to, before, step, func(*os.Process) { s.docker.Restart() }, 0, 5)
		})
	}
	for _, step := range []string{"backup", "switch", "ready"} {
		s.story("a power cut, "+step, func(t *testing.T) {
			s.through(t, to, before, step, func(p *os.Process) {
				_ = p.Kill()
				s.docker.Kill()
				s.docker.Boot()
			}, -1)
		})
	}
}
