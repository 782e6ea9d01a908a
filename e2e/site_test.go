//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/dockertest"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/internal/registrytest"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// site is a company with one host: a GitHub, a registry and a machine where
// releases are made, and another machine with dockerd and sshd on which an
// instance runs.
type site struct {
	t        *testing.T
	builder  *dockertest.Daemon
	docker   *dockertest.Daemon // of the host
	ssh      *sshtest.Server
	registry *hub
	github   *githubtest.Server
	repo     *githubtest.Repo
	dir      string // of the instance on the host
	port     string // of the instance
	shop     string // its source, a folder of the host
	versions map[string]release
	last     release // that the canary kept
}

// release is one version as it was published.
type release struct{ version, digest string }

// story is t.Run with the site at hand.
func (s *site) story(name string, f func(t *testing.T)) {
	outer := s.t
	outer.Run(name, func(t *testing.T) {
		s.t = t
		defer func() { s.t = outer }()
		f(t)
	})
}

// newSite makes a company whose host runs a first good version, set up over the
// sample shop.
func newSite(t *testing.T, opts ...dockertest.Option) (*site, release) {
	t.Helper()
	s := &site{t: t, builder: slimHost(t), docker: slimHost(t, append(opts, dockertest.WithFlags("--max-download-attempts=1"))...), registry: newHub(t), github: githubtest.New(t), versions: map[string]release{}}
	s.repo = s.github.Repo(project)
	config := []string{"SetEnv " + strings.Join(s.docker.Env(), " ")} // a host's shell knows its docker
	if at := s.docker.Data(); strings.HasPrefix(at, "/proc/") {       // and sees its disks
		config = append(config, "ForceCommand exec nsenter --mount=/proc/"+strings.Split(at, "/")[2]+`/ns/mnt -- sh -c "$SSH_ORIGINAL_COMMAND"`)
	}
	s.ssh = sshtest.Start(t, config...)
	s.dir, s.port = filepath.Join(t.TempDir(), "opt", "agnes"), freePort(t)
	s.shop = filepath.Join(filepath.Dir(s.dir), "shop")
	if err := os.CopyFS(s.shop, os.DirFS("../examples/shop")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(s.dir, ".env"), "# Acme's own\nAGNES_PORT="+s.port+"\nAGNES_UPDATE_CHECK=off\n")
	writeFile(t, filepath.Join(s.dir, "docker-compose.override.yml"), "services:\n  app:\n    volumes:\n      - "+s.shop+":/shop:ro\n")
	first := s.release("good", nil)
	if out, code := s.deploy(first, "--smoke", "readonly"); code != 0 {
		t.Fatalf("the first deploy ended with %d: %+v", code, out)
	}
	if said, errs, code := s.agnesctl(adminPassword+"\n", "instance", "setup", "--url", s.url(), "--email", adminEmail, "--password-stdin", "--source", "csv", "--csv-dir", "/shop"); code != 0 {
		t.Fatalf("setup ended with %d\n%s%s", code, said, errs)
	}
	return s, first
}

func (s *site) url() string { return "http://127.0.0.1:" + s.port }

// tool runs one of our programs with the host's docker and GitHub at hand.
func (s *site) tool(stdin, name string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	env := append([]string{"XDG_CONFIG_HOME=" + s.t.TempDir(), "GITHUB_SERVER_URL=" + s.github.URL}, s.docker.Env()...)
	for k, v := range s.github.Env(project) {
		env = append(env, k+"="+v)
	}
	return command(s.t, stdin, env, name, args...)
}

func (s *site) agnesctl(stdin string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	return s.tool(stdin, "agnesctl", args...)
}

// bot runs release-bot and fails the test unless it succeeds.
func (s *site) bot(into any, args ...string) {
	s.t.Helper()
	out, errs, code := s.tool("", "release-bot", append(args, "-o", "json")...)
	if code != 0 {
		s.t.Fatalf("release-bot %s ended with %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(out), into); err != nil {
			s.t.Fatalf("release-bot %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// image is HOST/NAME of the instance's image.
func (s *site) image() string { return s.registry.host + "/" + project }

// release makes a version as the release workflow does: claim, build, push,
// publish. lines are what the Dockerfile adds to the good image.
func (s *site) release(kind string, files map[string]string, lines ...string) release {
	s.t.Helper()
	commit := s.repo.Commit("Make a " + kind + " version")
	var claim struct{ Version string }
	s.bot(&claim, "version", "claim", "--channel", "stable", "--commit", commit)
	text := strings.Join(append([]string{
		"FROM " + slimImage,
		"ENV AGNES_VERSION=" + claim.Version + " RELEASE_CHANNEL=stable",
		"LABEL org.opencontainers.image.version=" + claim.Version + " org.opencontainers.image.revision=" + commit + " io.agnes.channel=stable",
	}, lines...), "\n")
	ref := s.image() + ":build-" + claim.Version
	s.build(ref, text, files)
	s.builder.Docker("push", "-q", ref)
	var digests []string
	if err := json.Unmarshal([]byte(s.builder.Docker("image", "inspect", "--format", "{{json .RepoDigests}}", ref)), &digests); err != nil {
		s.t.Fatal(err)
	}
	_, digest, _ := strings.Cut(digests[0], "@")
	s.bot(nil, "publish", "--registry", s.image(), "--channel", "stable", "--version", claim.Version, "--commit", commit, "--digest", digest)
	r := release{claim.Version, digest}
	s.versions[claim.Version] = r
	return r
}

// build builds an image of a Dockerfile's text and files, given by their paths.
func (s *site) build(ref, dockerfile string, files map[string]string) {
	s.t.Helper()
	dir := s.t.TempDir()
	writeFile(s.t, filepath.Join(dir, "Dockerfile"), dockerfile+"\n")
	for name, from := range files {
		if out, err := exec.Command("cp", from, filepath.Join(dir, name)).CombinedOutput(); err != nil {
			s.t.Fatalf("%v\n%s", err, out)
		}
	}
	s.builder.Docker("build", "-q", "-t", ref, dir)
}

// outcome is what agnesctl says of a deploy.
type outcome struct {
	Verdict, Message, Hint, Resumed, Restored string
	Reverted, Halted                          bool
	Running                                   struct{ Version, Digest string }
	Steps                                     []struct {
		Name, Detail string
		OK           bool
		ElapsedMS    int64 `json:"elapsed_ms"`
	}
}

// failedAt names the first step that was not well.
func (o outcome) failedAt() string {
	for _, s := range o.Steps {
		if !s.OK {
			return s.Name
		}
	}
	return ""
}

// took is how long some steps took together.
func (o outcome) took(names ...string) (d time.Duration) {
	for _, s := range o.Steps {
		if slices.Contains(names, s.Name) {
			d += time.Duration(s.ElapsedMS) * time.Millisecond
		}
	}
	return d
}

// times lists what each step took, in seconds.
func (o outcome) times() string {
	var b strings.Builder
	for _, s := range o.Steps {
		fmt.Fprintf(&b, " %s %.1f", s.Name, float64(s.ElapsedMS)/1000)
	}
	return b.String()
}

// where are the flags that lead to the host.
func (s *site) where() []string {
	_, port, _ := net.SplitHostPort(s.ssh.Addr)
	return []string{"--host", "ssh://" + s.ssh.User + "@127.0.0.1:" + port + s.dir, "--host-key", s.ssh.HostKey, "--identity", s.ssh.KeyFile}
}

func (s *site) deployArgs(command []string, r release, more ...string) []string {
	args := append(slices.Clone(command), s.where()...)
	args = append(args, "--image", s.image(), "--tag", "stable-"+r.version, "--soak", "1s", "--ready-wait", "20s", "--wait", "20s", "--lease", "6s", "-o", "json")
	return append(args, more...)
}

// deploy runs host deploy.
func (s *site) deploy(r release, more ...string) (outcome, int) {
	s.t.Helper()
	return s.try(s.deployArgs([]string{"host", "deploy"}, r, more...))
}

// canary runs canary deploy.
func (s *site) canary(r release, more ...string) (outcome, int) {
	s.t.Helper()
	return s.try(s.deployArgs([]string{"canary", "deploy"}, r, more...))
}

// typed runs docker compose in the host's directory, as a person there does.
func (s *site) typed(args ...string) {
	s.t.Helper()
	cmd := s.docker.Command(s.t.Context(), append([]string{"compose"}, args...)...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("docker compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (s *site) try(args []string) (outcome, int) {
	s.t.Helper()
	out, errs, code := s.agnesctl("", args...)
	keepsSecrets(s.t, out+errs, map[string]string{"password": adminPassword})
	var o outcome
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		s.t.Fatalf("agnesctl %s ended with %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	s.t.Logf("%s: exit %d, %s %s: %s%s", strings.Join(args[:2], " "), code, o.Verdict, o.failedAt(), o.Message, o.times())
	return o, code
}

// judge does what the smoke-test workflow does with a canary's verdict.
func (s *site) judge(r release, o outcome, code int) {
	s.t.Helper()
	switch code {
	case 0:
		s.bot(nil, "verdict", r.version, "pass", "--registry", s.image())
	case 1:
		s.bot(nil, "rollback", "--failed", r.version, "--reason", o.Message, "--registry", s.image())
	case 5:
		s.bot(nil, "verdict", r.version, "inconclusive", "--detail", o.Message, "--registry", s.image())
	default:
		s.t.Fatalf("canary deploy ended with %d", code)
	}
}

// digest returns what a tag of the registry points at, or nothing.
func (s *site) digest(tag string) string {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodHead, "http://"+s.registry.inner+"/v2/"+project+"/manifests/"+tag, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.Header.Get("Docker-Content-Digest")
}

// stableAt returns the version that :stable is at.
func (s *site) stableAt() string {
	s.t.Helper()
	at := s.digest("stable")
	for _, r := range s.versions {
		if r.digest == at {
			return r.version
		}
	}
	return at
}

// alerts returns the titles of the open issues that speak of a version.
func (s *site) alerts(r release) []string {
	var titles []string
	for _, i := range s.repo.Issues() {
		if i.State == "open" && strings.Contains(i.Title+i.Body, r.version) && strings.Contains(i.Title, r.version) {
			titles = append(titles, i.Title)
		}
	}
	return titles
}

// client is signed in as the admin.
func (s *site) client() *api.Client {
	s.t.Helper()
	plain, err := api.NewClient(s.url())
	if err != nil {
		s.t.Fatal(err)
	}
	login, err := plain.Token(s.t.Context(), api.TokenRequest{Email: adminEmail, Password: adminPassword})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := api.NewClient(s.url(), api.WithToken(redact.Secret(login.AccessToken)))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// data is everything about an instance that no deploy may change.
type data struct {
	Schema int
	Users  []string
	Tables []string // id and rows
	Files  string   // hash of all published Parquet files
}

func (s *site) data() data {
	s.t.Helper()
	ctx, c := s.t.Context(), s.client()
	health, err := c.Health(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	d := data{Schema: health.SchemaVersion}
	users, err := c.Users(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range users.Users {
		d.Users = append(d.Users, u.ID+" "+u.Email+" "+u.Role)
	}
	slices.Sort(d.Users)
	tables, err := c.Catalog(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, t := range tables.Tables {
		d.Tables = append(d.Tables, fmt.Sprint(t.ID, " ", t.Rows))
	}
	slices.Sort(d.Tables)
	d.Files = s.files("extracts", ".parquet")
	return d
}

// volume is where docker keeps the instance's data.
func (s *site) volume() string {
	s.t.Helper()
	at := s.docker.Docker("volume", "inspect", "--format", "{{.Mountpoint}}", "agnes_data")
	return strings.Replace(at, filepath.Join(s.docker.Dir, "data"), s.docker.Data(), 1)
}

// files hashes the files below a folder of the data directory, by name and
// content.
func (s *site) files(folder, suffix string) string {
	s.t.Helper()
	all := map[string]string{}
	root := filepath.Join(s.volume(), folder)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		all[strings.TrimPrefix(path, root)] = hex.EncodeToString(sum[:])
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(all) == 0 {
		s.t.Fatalf("no %s below %s", suffix, root)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintln(&b, name, all[name])
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

// running returns the version that answers, and since when its container runs.
func (s *site) running() (version, since string) {
	s.t.Helper()
	c, err := api.NewClient(s.url())
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := c.Version(s.t.Context())
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.docker.Docker("ps", "-a"))
	}
	return v.Version, s.docker.Docker("inspect", "--format", "{{.State.StartedAt}}", "agnes-app-1")
}

// interrupted runs a deploy and calls do as soon as a step begins; do gets the
// running program. It returns the program's exit code, -1 where it was killed.
func (s *site) interrupted(args []string, step string, do func(*os.Process)) (outcome, int) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "agnesctl"), append(args, "--verbose")...)
	cmd.Env = append(os.Environ(), s.docker.Env()...)
	var out bytes.Buffer
	cmd.Stdout = &out
	pipe, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	reached := false
	var said strings.Builder
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if !reached && strings.Contains(lines.Text(), "A step begins.") && strings.Contains(lines.Text(), "step="+step+" ") {
			reached = true
			do(cmd.Process)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if !reached {
		s.t.Fatalf("the deploy never came to the step %s\n%s%s", step, said.String(), out.String())
	}
	var o outcome
	_ = json.Unmarshal(out.Bytes(), &o) // nothing where it was killed
	s.t.Logf("interrupted at %s: exit %d, %s %s: %s", step, cmd.ProcessState.ExitCode(), o.Verdict, o.failedAt(), o.Message)
	return o, cmd.ProcessState.ExitCode()
}

// hub is a real registry behind a gateway that can be in trouble.
type hub struct {
	host  string // what everybody uses
	inner string // past the gateway
	down  atomic.Bool
	cut   atomic.Bool // large answers break off
}

func newHub(t *testing.T) *hub {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(images.pushed)); err != nil {
		t.Fatal(err)
	}
	r := &hub{inner: registrytest.StartIn(t, dir)}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.inner})
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	proxy.ModifyResponse = func(resp *http.Response) error {
		if r.cut.Load() && resp.ContentLength > 1<<20 {
			resp.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(resp.Body, 1000), broken{}), resp.Body}
		}
		return nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.host = ln.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.down.Load() {
			panic(http.ErrAbortHandler)
		}
		req.Host = r.inner
		proxy.ServeHTTP(w, req)
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	return r
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
