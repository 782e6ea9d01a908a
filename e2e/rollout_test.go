//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// estate is a company with a fleet: twelve instances on two hosts, each with its
// own folder, port and data. Those with odd numbers are pushed to over SSH; the
// others' hosts read on their timers what the fleet's repository wants of them.
type estate struct {
	*site              // what releases are made with
	places  [2]*place  // the hosts
	members []resident // m01 … m12
	fleet   string     // working copy of the fleet's repository, where the operator sits
	git     string     // the repository itself
}

// place is one host.
type place struct {
	docker *dockertest.Daemon
	ssh    *sshtest.Server
	off    sync.RWMutex // held for reading by a tick of its timers
	lost   bool
}

// resident is one instance.
type resident struct {
	name, wave string
	push       bool
	at         *place
	dir, port  string
}

func (r resident) url() string { return "http://127.0.0.1:" + r.port }

// The waves: two canaries, one of each delivery; four early ones; the rest.
func waveOf(n int) string {
	switch {
	case n <= 2:
		return "canary"
	case n <= 6:
		return "early"
	}
	return "rest"
}

const fleetToken = "fleet-token"

// badForOne makes a release that is bad where FAULT says so.
var badForOne = []string{`COPY faultd /usr/local/bin/faultd`, `ENTRYPOINT ["faultd"]`, `CMD ["serve"]`}

// oddOne is where the one bad instance of a drill is: pushed to, in the last wave.
const oddOne = "m09"

func newEstate(t *testing.T) (*estate, release) {
	t.Helper()
	s := &site{t: t, builder: slimHost(t), registry: newHub(t), github: githubtest.New(t), versions: map[string]release{}}
	s.repo = s.github.Repo(project)
	e := &estate{site: s, fleet: filepath.Join(t.TempDir(), "fleet"), git: filepath.Join(t.TempDir(), "fleet.git")}
	for n := range e.places {
		d := slimHost(t, dockertest.WithFlags("--max-download-attempts=1"))
		e.places[n] = &place{docker: d, ssh: sshtest.Start(t, "SetEnv "+strings.Join(d.Env(), " "))}
	}
	s.docker = e.places[0].docker
	first := s.release("good", nil)

	e.sh(".", "git", "init", "-q", "--bare", "--initial-branch=main", e.git)
	e.sh(".", "git", "clone", "-q", e.git, e.fleet)
	repo := e.desiredServer()
	root := t.TempDir()
	var wg sync.WaitGroup
	failed := make(chan string, 12)
	for n := 1; n <= 12; n++ {
		r := resident{name: fmt.Sprintf("m%02d", n), wave: waveOf(n), push: n%2 == 1, at: e.places[(n/2)%2], port: freePort(t)}
		r.dir = filepath.Join(root, r.name)
		writeFile(t, filepath.Join(r.dir, ".env"), strings.Join([]string{
			"COMPOSE_PROJECT_NAME=" + r.name, "AGNES_PORT=" + r.port, "AGNES_IMAGE=" + s.image(), "AGNES_UPDATE_CHECK=off",
			"AGNES_UPDATE_JITTER=0s", "AGNES_UPDATE_URL=" + repo + "/" + r.name + ".json", "AGNES_UPDATE_TOKEN_FILE=" + filepath.Join(root, "token"), "",
		}, "\n"))
		shop := filepath.Join(r.dir, "shop")
		if err := os.CopyFS(shop, os.DirFS("../examples/shop")); err != nil {
			t.Fatal(err)
		}
		override := "services:\n  app:\n    volumes:\n      - " + shop + ":/shop:ro\n"
		if r.name == oddOne {
			override += "    environment:\n      FAULT: query\n" // which only a release with faultd heeds
		}
		writeFile(t, filepath.Join(r.dir, "docker-compose.override.yml"), override)
		writeFile(t, filepath.Join(e.fleet, "desired", r.name+".json"), fmt.Sprintf("{\"tag\":%q,\"digest\":%q}\n", "stable-"+first.version, first.digest))
		e.members = append(e.members, r)
	}
	writeFile(t, filepath.Join(root, "token"), fleetToken+"\n")
	for _, p := range e.places { // each host's own at a time
		wg.Go(func() {
			for _, r := range e.members {
				if r.at == p {
					if said := e.settle(r, first); said != "" {
						failed <- said
						return
					}
				}
			}
		})
	}
	wg.Wait()
	select {
	case said := <-failed:
		t.Fatal(said)
	default:
	}
	e.writeInventory()
	e.commit("Begin with " + first.version)
	e.timers()
	return e, first
}

// settle deploys the first version for a member, sets it up and keeps a token.
func (e *estate) settle(r resident, first release) (failure string) {
	run := func(stdin string, args ...string) (string, bool) {
		cmd := exec.Command(filepath.Join(bin, "agnesctl"), args...)
		cmd.Env = append(os.Environ(), append(r.at.docker.Env(), "XDG_CONFIG_HOME="+r.dir)...)
		cmd.Stdin = strings.NewReader(stdin)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			return fmt.Sprintf("%s: agnesctl %s: %v\n%s%s", r.name, strings.Join(args, " "), err, out.String(), errs.String()), false
		}
		return strings.TrimSpace(out.String()), true
	}
	if said, ok := run("", "host", "deploy", "--dir", r.dir, "--tag", "stable-"+first.version, "--digest", first.digest, "--soak", "0s", "--smoke", "readonly"); !ok {
		return said
	}
	if said, ok := run(adminPassword+"\n", "instance", "setup", "--url", r.url(), "--email", adminEmail, "--password-stdin", "--source", "csv", "--csv-dir", "/shop"); !ok {
		return said
	}
	token, ok := run(adminPassword+"\n", "instance", "token", "--url", r.url(), "--email", adminEmail, "--password-stdin", "--print")
	if !ok {
		return token
	}
	path := filepath.Join(e.fleet, "secrets", r.name+".token")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(token+"\n"), 0o600)); err != nil {
		return err.Error()
	}
	return ""
}

func (e *estate) writeInventory() {
	e.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "image: %s\ndefaults: {channel: stable, interval: 1s, timeout: 1s}\n", e.image())
	b.WriteString("waves:\n  - {name: canary, match: {tier: canary}, soak: 1s}\n  - {name: early, match: {tier: early}, soak: 1s, max_unavailable: 2}\n  - {name: rest, max_unavailable: 50%}\ninstances:\n")
	for _, r := range e.members {
		fmt.Fprintf(&b, "  - {name: %s, url: %q, labels: {tier: %s}, token: \"${file:secrets/%s.token}\"", r.name, r.url(), r.wave, r.name)
		if r.push {
			fmt.Fprintf(&b, ", host: \"ssh://%s@%s%s\"", r.at.ssh.User, r.at.ssh.Addr, r.dir)
		}
		b.WriteString("}\n")
	}
	writeFile(e.t, filepath.Join(e.fleet, "fleet.yaml"), b.String())
	writeFile(e.t, filepath.Join(e.fleet, ".gitignore"), "secrets/\n.agnes-fleet/\n")
	var known strings.Builder
	for _, p := range e.places {
		host, port, _ := strings.Cut(p.ssh.Addr, ":")
		fmt.Fprintf(&known, "[%s]:%s %s\n", host, port, p.ssh.HostKey)
	}
	writeFile(e.t, filepath.Join(e.fleet, "known_hosts"), known.String())
	e.places[1].ssh.Trust(e.places[0].ssh.KeyFile)
}

func (e *estate) commit(message string) {
	e.t.Helper()
	e.sh(e.fleet, "git", "add", "-A")
	e.sh(e.fleet, "git", "-c", "user.name=Acme", "-c", "user.email=ops@acme.test", "commit", "-q", "-m", message)
	e.sh(e.fleet, "git", "push", "-q", "origin", "HEAD:main")
}

func (e *estate) sh(dir, name string, args ...string) string {
	e.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		e.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// desiredServer serves the folder desired/ of the repository's main branch, as a
// forge serves raw files, to who has the token.
func (e *estate) desiredServer() string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+fleetToken {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		text, err := exec.CommandContext(r.Context(), "git", "-C", e.git, "show", "main:desired"+r.URL.Path).Output()
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(text)
	}))
	e.t.Cleanup(server.Close)
	return server.URL
}

// timers are the hosts' own: each tick runs the updates of the host's pulling
// instances, one after the other. Those that would find nothing to do are left out,
// for they take the processors from all else.
func (e *estate) timers() {
	done, t := make(chan struct{}), e.t
	var wg sync.WaitGroup
	for _, p := range e.places {
		wg.Go(func() {
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for {
				for _, r := range e.members {
					if r.at != p || r.push {
						continue
					}
					select {
					case <-done:
						return
					case <-tick.C:
						if version, _ := e.version(r); e.wanted(r) != "stable-"+version {
							p.tick(r)
						}
					}
				}
			}
		})
	}
	t.Cleanup(func() { close(done); wg.Wait() })
}

func (p *place) tick(r resident) {
	p.off.RLock()
	defer p.off.RUnlock()
	if p.lost {
		return
	}
	cmd := exec.Command(filepath.Join(bin, "agnesctl"), "host", "auto-update", "--dir", r.dir, "--soak", "0s", "--ready-wait", "20s")
	cmd.Env = append(os.Environ(), p.docker.Env()...)
	_ = cmd.Run() // what it came to is seen from outside alone
}

// lose takes a host away with everything on it, and returns what brings it back.
func (p *place) lose() (find func()) {
	p.docker.Kill() // ends a tick that is at work, too
	p.ssh.Stop()
	p.off.Lock()
	p.lost = true
	p.off.Unlock()
	return func() {
		p.docker.Boot()
		p.ssh.Restart()
		p.off.Lock()
		p.lost = false
		p.off.Unlock()
	}
}

// rolled is what agnesctl says of a rollout.
type rolled struct {
	ID, State, Reason string
	CatchUp           []string `json:"catch_up"`
	Waves             []struct {
		Name, State string
		Members     []struct{ Name, State, From, To, Runs, Detail string }
	}
}

func (o rolled) states() string {
	var b strings.Builder
	for _, w := range o.Waves {
		fmt.Fprintf(&b, "\n  %s %s:", w.Name, w.State)
		for _, m := range w.Members {
			fmt.Fprintf(&b, " %s %s", m.Name, m.State)
			if m.Detail != "" {
				fmt.Fprintf(&b, " (%s)", m.Detail)
			}
		}
	}
	return b.String()
}

func (e *estate) operator(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(e.t.Context(), filepath.Join(bin, "agnesctl"), append([]string{"fleet", "rollout", "-f", filepath.Join(e.fleet, "fleet.yaml")}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=Acme", "GIT_AUTHOR_EMAIL=ops@acme.test", "XDG_CONFIG_HOME="+e.t.TempDir())
	return cmd
}

func (e *estate) to(r release, more ...string) []string {
	return e.how(append([]string{"--tag", "stable-" + r.version}, more...)...)
}

// how are the flags that say how hosts are reached, and how long things may take.
func (e *estate) how(more ...string) []string {
	return append([]string{
		"--yes", "-o", "json", "--known-hosts", filepath.Join(e.fleet, "known_hosts"), "--identity", e.places[0].ssh.KeyFile,
		"--deploy-soak", "0s", "--ready-wait", "20s", "--arrive-within", "90s", "--every", "500ms",
	}, more...)
}

// underway is a rollout that runs.
type underway struct {
	e         *estate
	cmd       *exec.Cmd
	out, errs bytes.Buffer
	from      int           // lines of the audit before it
	ended     chan struct{} // closed when it has, with err
	err       error
}

func (e *estate) begin(args ...string) *underway {
	e.t.Helper()
	u := &underway{e: e, cmd: e.operator(args...), from: len(e.audit()), ended: make(chan struct{})}
	u.cmd.Stdout, u.cmd.Stderr = &u.out, &u.errs
	if err := u.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() {
		u.err = u.cmd.Wait()
		close(u.ended)
	}()
	return u
}

// end waits for it and checks the exit code and the state.
func (u *underway) end(code int, state string) rolled {
	u.e.t.Helper()
	got, o := u.rest()
	if got != code || o.State != state {
		u.e.t.Fatalf("the rollout ended with %d in %q: %s; want %d in %q%s\n%s", got, o.State, o.Reason, code, state, o.states(), u.errs.String())
	}
	return o
}

// rest waits for it.
func (u *underway) rest() (code int, o rolled) {
	t := u.e.t
	t.Helper()
	began := time.Now()
	<-u.ended
	if exit := (*exec.ExitError)(nil); u.err != nil && !errors.As(u.err, &exit) {
		t.Fatal(u.err)
	}
	_ = json.Unmarshal(u.out.Bytes(), &o)
	keepsSecrets(t, u.out.String()+u.errs.String(), map[string]string{"token": fleetToken, "password": adminPassword})
	code = u.cmd.ProcessState.ExitCode()
	t.Logf("exit %d after %.1fs more, %s: %s%s", code, time.Since(began).Seconds(), o.State, o.Reason, o.states())
	return code, o
}

func (e *estate) roll(code int, state string, args ...string) rolled {
	e.t.Helper()
	return e.begin(args...).end(code, state)
}

type auditLine struct{ Rollout, Who, Wave, Member, Event, To, Digest string }

func (e *estate) audit() []auditLine {
	e.t.Helper()
	text, err := os.ReadFile(filepath.Join(e.fleet, ".agnes-fleet", "audit.jsonl"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		e.t.Fatal(err)
	}
	var lines []auditLine
	for line := range bytes.Lines(text) {
		var l auditLine
		if bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &l) != nil {
			e.t.Fatalf("a line of the audit is no JSON: %s", line)
		}
		lines = append(lines, l)
	}
	return lines
}

// until waits for a line of the audit: wave, member and event, "" for any.
func (u *underway) until(wave, member, event string) {
	t := u.e.t
	t.Helper()
	late, ended := time.After(5*time.Minute), false
	for {
		select {
		case <-u.ended:
			ended = true
		case <-late:
			ended = true
		default:
		}
		for _, l := range u.e.audit()[u.from:] {
			if (wave == "" || l.Wave == wave) && (member == "" || member == "*" && l.Member != "" || l.Member == member) && l.Event == event {
				return
			}
		}
		if ended {
			t.Fatalf("the rollout never came to %s %s %s\n%+v\n%s", wave, member, event, u.e.audit()[u.from:], u.errs.String())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// runs returns what every instance answers that it runs, by name.
func (e *estate) runs() map[string]string {
	e.t.Helper()
	found := map[string]string{}
	for _, r := range e.members {
		var err error
		if found[r.name], err = e.version(r); err != nil {
			found[r.name] = "no answer"
		}
	}
	return found
}

// version asks an instance what it runs.
func (e *estate) version(r resident) (string, error) {
	var v struct{ Version string }
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(r.url() + "/api/version")
	if err == nil {
		err = json.NewDecoder(resp.Body).Decode(&v)
		_ = resp.Body.Close()
	}
	return v.Version, err
}

// wanted is the tag in an instance's file of the fleet's repository.
func (e *estate) wanted(r resident) string {
	var file struct{ Tag string }
	text, err := exec.Command("git", "-C", e.git, "show", "main:desired/"+r.name+".json").Output()
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err != nil {
		return "" // in the midst of a push
	}
	return file.Tag
}

// hold checks which version each instance runs, by a function of the instance,
// and that no two containers of one are left.
func (e *estate) hold(what string, want func(resident) string) {
	e.t.Helper()
	all := map[string]string{}
	for _, r := range e.members {
		all[r.name] = want(r)
	}
	deadline := time.Now().Add(time.Minute) // a host that takes its instance back by its timer
	got := e.runs()
	for !maps.Equal(got, all) && time.Now().Before(deadline) {
		<-time.After(200 * time.Millisecond)
		got = e.runs()
	}
	if diff := cmp.Diff(all, got); diff != "" {
		e.t.Errorf("%s: the wrong versions run (- want, + run):\n%s", what, diff)
	}
}

// since returns when each instance's container was started.
func (e *estate) since() map[string]string {
	e.t.Helper()
	all := map[string]string{}
	for _, r := range e.members {
		all[r.name] = r.at.docker.Docker("inspect", "--format", "{{.State.StartedAt}}", r.name+"-app-1")
	}
	return all
}

// untouched checks that the instances of the waves were not restarted.
func (e *estate) untouched(before map[string]string, waves ...string) {
	e.t.Helper()
	now := e.since()
	for _, r := range e.members {
		if slices.Contains(waves, r.wave) && now[r.name] != before[r.name] {
			e.t.Errorf("%s of the wave %s was restarted at %s; it should not have been touched", r.name, r.wave, now[r.name])
		}
	}
}

// absent watches how many instances of each wave are away at a time; calling the
// answer ends it.
func (e *estate) absent() func() map[string]int {
	stop, found := make(chan struct{}), make(chan map[string]int)
	go func() {
		most := map[string]int{}
		client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			away := map[string]int{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for _, r := range e.members {
				wg.Go(func() {
					resp, err := client.Get(r.url() + "/healthz")
					if err == nil {
						_ = resp.Body.Close()
						return
					}
					mu.Lock()
					away[r.wave]++
					mu.Unlock()
				})
			}
			wg.Wait()
			for wave, n := range away {
				most[wave] = max(most[wave], n)
			}
			select {
			case <-stop:
				found <- most
				return
			case <-tick.C:
			}
		}
	}()
	return func() map[string]int { close(stop); return <-found }
}

func TestARolloutIsTakenThroughTheFleetOrBack(t *testing.T) {
	parallelOnImage(t)
	e, first := newEstate(t)
	odd := faultd(t)
	all := func(r release) func(resident) string { return func(resident) string { return r.version } }
	e.hold("at the beginning", all(first))
	at := first // what the whole fleet runs between two drills

	e.story("a good release reaches all, wave by wave, and a second operator is refused, wherever he sits", func(t *testing.T) {
		r := e.release("good", nil)
		away := e.absent()
		u := e.begin(e.to(r)...)
		u.until("canary", "*", "taking")
		elsewhere := filepath.Join(t.TempDir(), "clone")
		e.sh(".", "git", "clone", "-q", e.git, elsewhere)
		if err := os.CopyFS(filepath.Join(elsewhere, "secrets"), os.DirFS(filepath.Join(e.fleet, "secrets"))); err != nil {
			t.Fatal(err)
		}
		for _, second := range [][]string{e.to(r), e.to(r, "-f", filepath.Join(elsewhere, "fleet.yaml"))} {
			cmd := e.operator(second...)
			if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 4 {
				t.Errorf("the second operator ended with %v: %s", err, out)
			}
		}
		u.end(0, "done")
		e.hold("a good release", all(r))
		most := away()
		t.Logf("most instances away at a time: %v", most)
		for wave, limit := range map[string]int{"canary": 1, "early": 2, "rest": 3} {
			if most[wave] > limit {
				t.Errorf("%d instances of the wave %s were away at a time; allowed are %d", most[wave], wave, limit)
			}
		}
		taken := map[string]int{}
		var waves []string
		for _, l := range e.audit()[u.from:] {
			if l.Event == "taken" && l.Member != "" {
				taken[l.Member]++
				waves = append(waves, l.Wave)
			}
			if l.Digest != r.digest {
				t.Errorf("the audit speaks of %s; the tag was resolved to %s", l.Digest, r.digest)
			}
		}
		if len(taken) != 12 || slices.Max(slices.Collect(maps.Values(taken))) != 1 {
			t.Errorf("the audit has the members %v; want each once", taken)
		}
		order := map[string]int{"canary": 0, "early": 1, "rest": 2}
		if !slices.IsSortedFunc(waves, func(a, b string) int { return order[a] - order[b] }) {
			t.Errorf("the waves came in the order %v", waves)
		}
		at = r
	})

	e.story("a bad release is caught in the canary wave", func(t *testing.T) {
		r := e.release("queryless", odd, noQuery...)
		before := e.since()
		o := e.roll(1, "failed", e.to(r)...)
		e.hold("a bad release", all(at))
		e.untouched(before, "early", "rest")
		if len(o.Waves) != 3 || o.Waves[0].State != "failed" {
			t.Errorf("the waves are %s", o.states())
		}
	})

	e.story("a release that is bad for one takes its wave back", func(t *testing.T) {
		r := e.release("bad for one", odd, badForOne...)
		o := e.roll(1, "failed", e.to(r)...)
		if !strings.Contains(o.states(), oddOne+" failed") {
			t.Errorf("%s is not named as failed: %s", oddOne, o.states())
		}
		e.hold("bad for one", func(m resident) string {
			if m.wave == "rest" {
				return at.version
			}
			return r.version
		})
	})

	e.story("an operator who is killed in a wave is followed by another", func(t *testing.T) {
		r := e.release("good", nil)
		for _, moment := range []struct{ wave, member, event string }{{"canary", "m01", "taking"}, {"early", "*", "taking"}, {"rest", "*", "taken"}} {
			args := e.how("--resume")
			if moment.wave == "canary" {
				args = e.to(r)
			}
			u := e.begin(args...)
			u.until(moment.wave, moment.member, moment.event)
			if err := u.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-u.ended
		}
		u := e.begin(e.how("--resume")...)
		u.end(0, "done")
		e.hold("a killed operator", all(r))
		taken := map[string]int{}
		for _, l := range e.audit() {
			if l.Event == "taken" && l.Member != "" && l.Digest == r.digest {
				taken[l.Member]++
			}
		}
		if len(taken) != 12 || slices.Max(slices.Collect(maps.Values(taken))) != 1 {
			t.Errorf("the audit has the members %v; want each once", taken)
		}
		at = r
	})

	e.story("a host that is lost in a wave is caught up with", func(t *testing.T) {
		r := e.release("good", nil)
		lost := e.places[1]
		u := e.begin(e.to(r, "--max-unreachable", "6", "--arrive-within", "20s")...)
		u.until("early", "*", "taking")
		find := lost.lose()
		// One that was just being deployed to is inconclusive, and stops the rollout.
		code, o := u.rest()
		find()
		switch {
		case code == 5 && o.State == "stopped":
			o = e.roll(0, "done", e.how("--resume")...)
		case code != 0 || o.State != "done" || len(o.CatchUp) == 0:
			t.Fatalf("the rollout ended with %d in %q: %s%s", code, o.State, o.Reason, o.states())
		}
		if len(o.CatchUp) > 0 {
			e.roll(0, "done", e.how("--catch-up")...)
		}
		e.hold("caught up", all(r))
		at = r
	})

	e.story("an abort is heeded in every state", func(t *testing.T) {
		for _, c := range []struct {
			name, wave, member, event string
			bad, pause                bool
		}{
			{name: "while the canary is taken", wave: "canary", member: "m01", event: "taking"},
			{name: "while the canary soaks", wave: "canary", event: "wave soaking"},
			{name: "while it is paused", wave: "canary", event: "wave soaking", pause: true},
			{name: "while a wave is taken back", wave: "rest", member: "*", event: "reverting", bad: true},
		} {
			r := e.release("good", nil)
			if c.bad {
				r = e.release("bad for one", odd, badForOne...)
			}
			ran := e.runs()
			args := e.to(r)
			if c.event == "wave soaking" {
				args = append(args, "--wave-soak", "1m") // long enough to be met
			}
			u := e.begin(args...)
			u.until(c.wave, c.member, c.event)
			give := func(order string) {
				t.Helper()
				if out, err := e.operator(order).CombinedOutput(); err != nil {
					t.Fatalf("%s: %s: %v\n%s", c.name, order, err, out)
				}
			}
			if c.pause {
				give("--pause")
				u.until("", "", "paused") // its program stays, for somebody else may resume it
			}
			give("--abort")
			o := u.end(5, "aborted")
			end := maps.Clone(ran)
			for _, w := range o.Waves {
				for _, m := range w.Members {
					if m.State == "taken" {
						end[m.Name] = r.version
					}
					if !slices.Contains([]string{"waiting", "taken", "failed", "reverted"}, m.State) {
						t.Errorf("%s: %s was left %s", c.name, m.Name, m.State)
					}
				}
			}
			e.hold(c.name, func(m resident) string { return end[m.name] })
		}
	})
}
