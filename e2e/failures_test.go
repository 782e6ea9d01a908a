//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// world is a data directory with an admin and synced tables, the process
// that serves it, and every secret that no process may print.
type world struct {
	*process
	data, csv  string
	client     *api.Client
	secrets    map[string]string
	setupToken string
}

// debug makes a process print all that it ever prints.
const debug = "AGNES_LOG_LEVEL=debug"

// settled starts an instance over an empty data directory and sets it up.
func settled(t *testing.T, data, csv string) *world {
	t.Helper()
	in := &world{data: data, csv: csv, secrets: map[string]string{"password": adminPassword}}
	in.attach(start(t, data, debug))
	for _, name := range []string{".setup_token", ".jwt_secret", ".session_secret", ".operator_token"} {
		raw, err := os.ReadFile(filepath.Join(data, "state", name))
		if err != nil {
			t.Fatal(err)
		}
		in.secrets[name] = strings.TrimSpace(string(raw))
	}
	in.setupToken = in.secrets[".setup_token"]
	delete(in.secrets, ".setup_token") // its first start shows it, see attach

	got, err := in.client.Bootstrap(t.Context(), api.BootstrapRequest{Email: adminEmail, Password: adminPassword}, "")
	if err != nil {
		t.Fatalf("bootstrap: %v\n%s", err, in.out)
	}
	in.secrets["token"] = got.AccessToken
	in.attach(in.process)
	if _, err := in.client.Configure(t.Context(), api.ConfigureRequest{DataSource: "csv", CSVDir: &csv}); err != nil {
		t.Fatalf("configure: %v\n%s", err, in.out)
	}
	in.sync(api.JobSucceeded)
	return in
}

// attach makes p the process that serves the instance. When the test is over,
// all that p has printed is searched for secrets.
func (in *world) attach(p *process) {
	p.t.Helper()
	again := in.process == p
	in.process = p
	var err error
	if in.client, err = api.NewClient(p.url, api.WithToken(redact.Secret(in.secrets["token"]))); err != nil {
		p.t.Fatal(err)
	}
	if again {
		return
	}
	first := in.setupToken == ""
	p.t.Cleanup(func() {
		p.kill()
		keepsSecrets(p.t, p.out.String(), in.secrets)
		shown := strings.Count(p.out.String(), in.setupToken)
		switch {
		case in.setupToken == "" || first && shown == 1 && !strings.Contains(p.log.String(), in.setupToken):
		case shown > 0:
			p.t.Errorf("the setup token was printed %d times (on first start: %v); expected once, on standard output, on first start\n%s", shown, first, p.out)
		}
	})
}

func (in *world) start() { in.attach(start(in.t, in.data, debug)) }

// keepsSecrets fails the test when output holds a secret or the traces of a
// crash.
func keepsSecrets(t *testing.T, output string, secrets map[string]string) {
	t.Helper()
	for name, secret := range secrets {
		if strings.Contains(output, secret) {
			t.Errorf("the secret %s was printed:\n%s", name, output)
		}
	}
	for _, crash := range []string{"panic:", "goroutine ", "fatal error:", "SIGSEGV"} {
		if strings.Contains(output, crash) {
			t.Errorf("a process crashed:\n%s", output)
		}
	}
}

// sync runs a sync to its end, which must be want.
func (in *world) sync(want string) api.Job {
	in.t.Helper()
	trig, err := in.client.TriggerSync(in.t.Context(), api.SyncRequest{})
	if err != nil {
		in.t.Fatalf("trigger: %v\n%s", err, in.out)
	}
	return waitJob(in.t, in.process, in.secrets["token"], trig.JobID, want)
}

// count answers SELECT count(*) of a table.
func (in *world) count(table string) int {
	in.t.Helper()
	got, err := in.client.Query(in.t.Context(), api.QueryRequest{SQL: "SELECT count(*) FROM " + table})
	if err != nil {
		in.t.Fatalf("count %s: %v\n%s", table, err, in.out)
	}
	var n int
	if _, err := fmt.Sscan(fmt.Sprint(got.Rows[0][0]), &n); err != nil {
		in.t.Fatalf("count %s = %v", table, got.Rows)
	}
	return n
}

func (in *world) table(id string) api.CatalogTable {
	in.t.Helper()
	got, err := in.client.CatalogTable(in.t.Context(), id)
	if err != nil {
		in.t.Fatalf("table %s: %v\n%s", id, err, in.out)
	}
	return *got
}

func (in *world) health() api.Health {
	in.t.Helper()
	got, err := in.client.Health(in.t.Context())
	if err != nil {
		in.t.Fatalf("health: %v\n%s", err, in.out)
	}
	return *got
}

// ready asks /readyz.
func (in *world) ready() bool {
	in.t.Helper()
	resp, err := http.Get(in.url + "/readyz")
	if err != nil {
		in.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (in *world) createUser(email string) error {
	_, err := in.client.CreateUser(in.t.Context(), api.CreateUserRequest{Email: email, Role: api.RoleAnalyst})
	return err
}

// eventually polls until ok, or fails the test with what was waited for.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %s in vain: %s", within, what)
		}
	}
}

// wantProblem fails the test unless err is a problem of this kind, with a next
// step, and its text holds every word.
func wantProblem(t *testing.T, err error, kind problem.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("expected a problem of kind %s with %q, got none", kind, words)
		return
	}
	p := problem.As(err)
	if p.Kind != kind || p.Hint == "" {
		t.Errorf("%s: %v, hint %q; want kind %s and a hint", p.Kind, err, p.Hint, kind)
	}
	for _, w := range words {
		if !strings.Contains(p.Message+"\n"+p.Hint, w) {
			t.Errorf("message %q, hint %q; expected %q in them", p.Message, p.Hint, w)
		}
	}
}

// refused starts agnes serve, as another user where uid is not 0, and expects
// it to end by itself with a next step. It returns what it printed.
func refused(t *testing.T, uid int, data string, codes ...int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "agnes"), "serve", "--data-dir", data, "--addr", "127.0.0.1:0")
	if uid != 0 {
		needRoot(t, os.Chmod(bin, 0o755))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	var out buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := out.String()
	if ctx.Err() != nil {
		t.Fatalf("agnes serve started over %s:\n%s", data, text)
	}
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); !slices.Contains(codes, code) {
		t.Errorf("exit code %d, want one of %v:\n%s", code, codes, text)
	}
	if !strings.Contains(text, "Error: ") || !strings.Contains(text, "\nNext:  ") {
		t.Errorf("expected an error and its next step:\n%s", text)
	}
	keepsSecrets(t, text, nil)
	return text
}

// needRoot ends a test that only root can do. With CI=true that is a failure.
func needRoot(t *testing.T, err error) {
	t.Helper()
	if err == nil && os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs root, to mount and to change users: %v", err)
	}
	t.Skipf("NOT RUN: it needs root, to mount and to change users: %v", err)
}

func mountTmpfs(t *testing.T, dir string, flags uintptr, size string) {
	t.Helper()
	needRoot(t, syscall.Mount("tmpfs", dir, "tmpfs", flags, "mode=755,size="+size))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func subdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestADataDirectoryThatCannotBeUsedIsRefusedWithTheNextStep(t *testing.T) {
	parallel(t)
	const nobody = 65534
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // for the other user
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "file"), "x")
	if err := os.Symlink("nowhere", filepath.Join(root, "dangling")); err != nil {
		t.Fatal(err)
	}
	subdir(t, root, "theirs")
	subdir(t, root, "used")
	start(t, filepath.Join(root, "used")).stop()
	if err := os.Chmod(filepath.Join(root, "used"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dir   string
		uid   int
		codes []int
		words []string // besides the directory
	}{
		"a file":                                {"file", 0, []int{4}, []string{"is no directory", "mv " + root + "/file"}},
		"below a file":                          {"file/data", 0, []int{4}, []string{"is no directory", "mv " + root + "/file "}},
		"a link to nowhere":                     {"dangling", 0, []int{4}, []string{"is no directory", "mv " + root + "/dangling"}},
		"another user's":                        {"theirs", nobody, []int{4}, []string{"user with id 65534", "chown -R 65534:65534 " + root + "/theirs"}},
		"another user's, in use":                {"used", nobody, []int{4}, []string{"user with id 65534", "chown -R 65534:65534 " + root + "/used"}},
		"below another user's":                  {"theirs/a/b", nobody, []int{4}, []string{"user with id 65534", "install -d -m 0700 -o 65534 -g 65534 " + root + "/theirs/a/b"}},
		"a name that DuckDB reads as a pattern": {"what?", 0, []int{2}, []string{"'?'", "--data-dir"}},
		"on a read-only mount":                  {"readonly", 0, []int{4}, []string{"read-only file system", "findmnt -T " + root + "/readonly"}},
		"on a disk without space":               {"tiny", 0, []int{1}, []string{"is full", "df -h " + root + "/tiny"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, tc.dir)
			switch tc.dir {
			case "readonly":
				mountTmpfs(t, subdir(t, dir), syscall.MS_RDONLY, "1m")
			case "tiny":
				mountTmpfs(t, subdir(t, dir), 0, "64k")
			}
			out := refused(t, tc.uid, dir, tc.codes...)
			for _, w := range append(tc.words, dir) {
				if !strings.Contains(out, w) {
					t.Errorf("expected %q in:\n%s", w, out)
				}
			}
		})
	}
	t.Run("a missing parent is made", func(t *testing.T) {
		start(t, filepath.Join(root, "new", "a", "b")).stop()
	})
}

func TestASecondServerIsRefusedAndTheFirstGoesOn(t *testing.T) {
	parallel(t)
	first := start(t, t.TempDir())
	data := first.cmd.Args[3]
	pid := fmt.Sprint(first.cmd.Process.Pid)
	out := refused(t, 0, data, 4)
	for _, w := range []string{data, "pid " + pid, "kill " + pid} {
		if !strings.Contains(out, w) {
			t.Errorf("expected %q in:\n%s", w, out)
		}
	}
	// Commands that work beside the data are refused alike.
	_, errs, code := command(t, adminPassword+"\n", nil, "agnes", "admin", "create", "--data-dir", data, "--email", adminEmail, "--password-stdin")
	if code != 4 || !strings.Contains(errs, "pid "+pid) || strings.Contains(errs, adminPassword) {
		t.Errorf("admin create beside a running instance: exit %d\n%s", code, errs)
	}

	other := filepath.Join(t.TempDir(), "other")
	_, errs, code = command(t, "", nil, "agnes", "serve", "--data-dir", other, "--addr", strings.TrimPrefix(first.url, "http://"))
	if code != 4 || !strings.Contains(errs, "address already in use") || !strings.Contains(errs, "Next:  Stop what uses it") {
		t.Errorf("a port in use: exit %d\n%s", code, errs)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("the data directory was made though the port is taken")
	}
	first.must("GET", "/api/health", "", nil, &api.Health{})
	first.stop()
}

func shop(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../examples/shop")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSourceTroubleIsToldAndTheTablesStay(t *testing.T) {
	parallel(t)
	dir := filepath.Join(t.TempDir(), "files")
	writeFile(t, filepath.Join(dir, "people.csv"), "id,name\n1,Ann\n2,Bob\n")
	in := settled(t, filepath.Join(t.TempDir(), `it's an "odd" name; #1 %41`), dir)

	// A row that does not fit is named by file and line, never by its content.
	const cell = "hunter2-in-a-cell"
	writeFile(t, filepath.Join(dir, "people.csv"), "id,name\n1,Ann\n2,Bob,"+cell+",more\n3,Cid\n")
	job := in.sync(api.JobSucceeded)
	told := strings.Join(job.Warnings, "\n")
	if !strings.Contains(told, "people.csv") || !strings.Contains(told, "line 3") {
		t.Errorf("warnings = %q, want the file and line 3", told)
	}
	if raw, err := json.Marshal(job); err != nil || strings.Contains(string(raw), cell) || strings.Contains(in.out.String(), cell) {
		t.Errorf("a cell's value was told (%v): %s\n%s", err, raw, in.out)
	}
	if n := in.count("people"); n != 2 {
		t.Errorf("people has %d rows, want the 2 good ones", n)
	}

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	job = in.sync(api.JobFailed)
	if !strings.Contains(job.Error, dir) || !strings.Contains(job.Hint, "/api/admin/configure") {
		t.Errorf("the failed job says %q, %q", job.Error, job.Hint)
	}
	if n := in.count("people"); n != 2 {
		t.Errorf("people has %d rows after the source has gone, want 2", n)
	}
	if h := in.health(); h.Status != api.Degraded || !strings.Contains(h.Services["sync"].Hint, job.ID) {
		t.Errorf("health = %+v, want degraded with a hint at the job", h)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	in.sync(api.JobSucceeded)
	if h := in.health().Services["sync"]; h.Status != api.Healthy {
		t.Errorf("sync's health after the mending = %+v", h)
	}
	in.stop()
}

// TestAMovedDataDirectoryIsNoticed moves the state away under a running
// instance, whose writes then go to a file that no start would find.
func TestAMovedDataDirectoryIsNoticed(t *testing.T) {
	parallel(t)
	in := settled(t, t.TempDir(), shop(t))
	state := filepath.Join(in.data, "state")
	if err := os.Rename(state, state+".away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "/readyz notices that the state is gone", func() bool { return !in.ready() })
	if h := in.health(); h.Status != api.Unhealthy || !strings.Contains(h.Services["state"].Hint, "Put "+state+" back") {
		t.Errorf("health = %s, of the state %+v; want unhealthy with the way back", h.Status, h.Services["state"])
	}
	if err := in.createUser("meanwhile@company.com"); err != nil {
		t.Errorf("what is open still is: %v", err)
	}
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "/readyz notices that the state is back", in.ready)
	in.stop()
	in.start()
	if users, err := in.client.Users(t.Context()); err != nil || users.Count != 2 {
		t.Errorf("users after the way back = %+v, %v; want both", users, err)
	}
}

func TestStoppingAnswersTheRunningQueryAndEndsTheStream(t *testing.T) {
	parallel(t)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "big.csv"), "id,name\n1,x\n")
	in := settled(t, t.TempDir(), dir)
	f, err := os.OpenFile(filepath.Join(dir, "big.csv"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 120 * 40_000 // which take longer to read than the query to answer
	block := strings.Repeat("1,a name that is quite long\n", 40_000)
	for range lines / 40_000 {
		if _, err := io.WriteString(f, block); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	trig, err := in.client.TriggerSync(t.Context(), api.SyncRequest{})
	if err != nil {
		t.Fatal(err)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, in.url+"/api/sync/jobs/"+trig.JobID+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+in.secrets["token"])
	stream, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	ended := make(chan error, 1)
	var events buffer
	go func() {
		_, err := io.Copy(&events, stream.Body)
		ended <- err
	}()
	type result struct {
		rows [][]any
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		got, err := in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT count(DISTINCT md5(range::VARCHAR)) FROM range(1000000)"})
		if err != nil {
			answered <- result{nil, err}
			return
		}
		answered <- result{got.Rows, nil}
	}()
	eventually(t, 20*time.Second, "the query runs", func() bool {
		resp, err := http.Get(in.url + "/metrics")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(text), "queries_running 1")
	})
	if !strings.Contains(events.String(), "event: job") {
		t.Error("the stream has sent nothing yet")
	}
	in.stop()
	if got := <-answered; got.err != nil || fmt.Sprint(got.rows[0][0]) != "1000000" {
		t.Errorf("the query that ran was answered %v, %v", got.rows, got.err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the stream was cut off: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream did not end")
	}

	// Whether the sync was still running decides how its job ended; never is
	// half of it served.
	in.start()
	job, err := in.client.Job(t.Context(), trig.JobID)
	if err != nil {
		t.Fatal(err)
	}
	rows := in.count("big")
	switch {
	case job.Status == api.JobFailed && strings.Contains(job.Error, "stopped") && job.Hint != "" && rows == 1:
	case job.Status == api.JobSucceeded && rows == lines+1:
		t.Log("the sync ended before the stop")
	default:
		t.Errorf("the sync that was stopped = %+v, with %d rows served", job, rows)
	}
}
