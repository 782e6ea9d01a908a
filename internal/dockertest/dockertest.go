// Package dockertest gives tests a Docker daemon of their own: a host that can
// be restarted and lose its power.
//
// Start boots a dockerd in a process and mount namespace of its own, with its
// own socket, data, address range and bridge, so that many run at once and none
// touches a daemon of the machine. Kill ends everything in that namespace at
// one moment, containers and all, as a power cut does; Boot starts it again on
// the same data. When the test process ends, however it ends, so does the host.
//
// Containers reach each other and this machine; ports published on 127.0.0.1
// are reached from the test. Nothing reaches the internet, except from a daemon
// started WithInternet. Images come from BaseImages, from a build, or from a
// Snapshot, which makes further daemons with the same images in a blink.
//
// `make deps-test` installs all of it. Where something is missing, a test is
// skipped with a word on that, and fails where CI is "true". Without root,
// everything that needs it goes through sudo, which must not ask.
package dockertest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Daemon is a running dockerd.
type Daemon struct {
	Host   string // unix://…, what DOCKER_HOST takes
	Dir    string // socket, log and data of this daemon
	Config string // what DOCKER_CONFIG takes: holds the compose plugin

	t    testing.TB
	opts options
	slot *slot

	mu    sync.Mutex // of what follows: a test may cut the power from another goroutine
	cmd   *exec.Cmd
	power io.WriteCloser // while it is open, the host runs
	ended chan struct{}  // closed when the host is down
}

type options struct {
	disk     int64
	internet bool
	from     *Snapshot
	flags    []string
}

// Option changes what Start starts.
type Option func(*options)

// WithDisk puts the daemon's data on a file system of its own with that many
// bytes, which a test can fill up.
func WithDisk(bytes int64) Option { return func(o *options) { o.disk = bytes } }

// WithInternet lets the containers reach the world, for builds that download.
func WithInternet() Option { return func(o *options) { o.internet = true } }

// From starts with the images and volumes of a snapshot.
func From(s *Snapshot) Option { return func(o *options) { o.from = s } }

// WithFlags adds flags to dockerd's command line.
func WithFlags(flags ...string) Option {
	return func(o *options) { o.flags = append(o.flags, flags...) }
}

//go:embed host.sh
var host string

// Start starts a daemon that ends with the test.
func Start(t testing.TB, opts ...Option) *Daemon {
	t.Helper()
	d := &Daemon{t: t}
	for _, o := range opts {
		o(&d.opts)
	}
	preflight(t)
	dir, err := os.MkdirTemp("", "agnes-docker-") //nolint:usetesting // the path of a socket may have 107 characters
	if err != nil {
		t.Fatal(err)
	}
	d.Dir, d.Host = dir, "unix://"+filepath.Join(dir, "docker.sock")
	d.Config = filepath.Join(dir, "config")
	plugins := filepath.Join(d.Config, "cli-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(Compose(t), filepath.Join(plugins, "docker-compose")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Config, "config.json"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.slot = claim(t, dir, d.opts.internet)
	t.Cleanup(d.Stop)
	if d.opts.disk > 0 {
		d.makeDisk()
	} else if d.opts.from != nil {
		d.opts.from.cloneTo(t, d.data())
	}
	d.Boot()
	return d
}

// preflight ends a test that cannot have a daemon.
func preflight(t testing.TB) {
	t.Helper()
	for _, program := range []string{"docker", "dockerd", "containerd", "unshare", "ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil && !isFile("/usr/sbin/"+program) {
			missing(t, program)
		}
	}
	if os.Geteuid() != 0 {
		if err := exec.CommandContext(t.Context(), "sudo", "-n", "true").Run(); err != nil {
			missing(t, "root, nor sudo without a password")
		}
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	text := fmt.Sprintf("%s: NOT RUN: there is no %s. Next: make deps-test", t.Name(), what)
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// tools is the folder that `make deps-test` fills.
func tools() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "../../.tools")
}

// Compose returns the path of Docker Compose v2: the plugin of each daemon's
// Config, and a program that parses files without one.
func Compose(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(tools(), "bin/docker-compose"))
	if err != nil {
		t.Fatal(err)
	}
	if !isFile(path) {
		missing(t, path)
	}
	return path
}

// root returns a command that runs as root.
func root(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append([]string{name}, args...)
	if os.Geteuid() != 0 {
		argv = append([]string{"sudo", "-n", "--"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // tests name the programs
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	return cmd
}

// mustRoot runs a command as root. It works while a test is being cleaned up.
func mustRoot(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := root(context.WithoutCancel(t.Context()), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (d *Daemon) data() string { return filepath.Join(d.Dir, "data") }

// Data returns the daemon's data folder as the test sees it; only root may
// look into it. It moves with each Boot where the daemon is WithDisk.
func (d *Daemon) Data() string {
	d.t.Helper()
	if d.opts.disk == 0 {
		return d.data()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		d.t.Fatal("the disk is not mounted: the host is down")
	}
	outer := d.cmd.Process.Pid
	inner, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", outer, outer))
	if err != nil || len(bytes.Fields(inner)) == 0 {
		d.t.Fatalf("find the host's first process below %d: %v", outer, err)
	}
	return filepath.Join("/proc", string(bytes.Fields(inner)[0]), "root", d.data())
}

func (d *Daemon) makeDisk() {
	d.t.Helper()
	img := filepath.Join(d.Dir, "disk.img")
	f, err := os.Create(img)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(d.opts.disk), f.Close()); err != nil {
		d.t.Fatal(err)
	}
	mustRoot(d.t, "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", img)
}

// Boot starts the host and waits until its daemon answers. Containers whose
// restart policy says so are started by it.
func (d *Daemon) Boot() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return
	}
	from := ""
	if d.opts.from != nil {
		from = d.opts.from.dir
	}
	sock := filepath.Join(d.Dir, "docker.sock")
	args := append([]string{
		"--pid", "--mount", "--fork", "--kill-child", "bash", "-c", host, "host", d.Dir, strconv.FormatInt(d.opts.disk, 10), from,
		"--host", d.Host, "--group", strconv.Itoa(os.Getgid()), "--data-root", d.data(),
		"--exec-root", filepath.Join(d.Dir, "run"), "--pidfile", filepath.Join(d.Dir, "run/pid"),
		"--config-file", filepath.Join(d.Config, "daemon.json"),
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/" + d.slot.name,
		"--bridge", d.slot.name, "--default-address-pool", "base=" + d.slot.pool + ",size=24",
		// What these would write is shared with every other daemon here.
		"--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false",
		"--insecure-registry", "127.0.0.0/8", "--max-concurrent-downloads", "10",
	}, d.opts.flags...)
	if err := os.WriteFile(filepath.Join(d.Config, "daemon.json"), []byte("{}\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	cmd := root(context.WithoutCancel(d.t.Context()), "unshare", args...)
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	power, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	d.cmd, d.power, d.ended = cmd, power, ended
	d.wait(sock)
}

func (d *Daemon) logFile() string { return filepath.Join(d.Dir, "dockerd.log") }

func (d *Daemon) wait(sock string) {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		},
	}}
	ctx, cancel := context.WithTimeout(d.t.Context(), 60*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
		if err != nil {
			d.t.Fatal(err)
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-d.ended:
			d.t.Fatalf("dockerd ended while it started\n%s", d.Log())
		case <-ctx.Done():
			d.t.Fatalf("dockerd is not ready after 60 s\n%s", d.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Log returns what dockerd has logged.
func (d *Daemon) Log() string {
	data, _ := os.ReadFile(d.logFile())
	return string(data)
}

// Kill cuts the host's power: the daemon and all containers end at one moment,
// without a word to any of them.
func (d *Daemon) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return
	}
	_ = d.power.Close()
	<-d.ended
	d.cmd = nil
	d.slot.clearCgroups()
}

// Shutdown ends the host in order: each container is asked to stop and given
// its time, then the daemon ends.
func (d *Daemon) Shutdown() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return
	}
	if _, err := io.WriteString(d.power, "TERM\n"); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(2 * time.Minute):
		d.t.Fatalf("dockerd did not stop within two minutes\n%s", d.Log())
	}
	_ = d.power.Close()
	d.cmd = nil
	d.slot.clearCgroups()
}

// Restart is Shutdown, then Boot: a host that is rebooted in order.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Shutdown()
	d.Boot()
}

// Stop ends the daemon and its containers and removes all that it left.
func (d *Daemon) Stop() {
	if d.slot == nil {
		return
	}
	if d.t.Failed() {
		log := d.Log()
		d.t.Logf("the end of dockerd's log:\n%s", log[max(0, len(log)-4000):])
	}
	d.Kill()
	d.slot.release()
	d.slot = nil
	mustRoot(d.t, "rm", "-rf", d.Dir)
}

// Env returns what a program needs in its environment to use this daemon:
// DOCKER_HOST, DOCKER_CONFIG and PATH.
func (d *Daemon) Env() []string {
	return []string{"DOCKER_HOST=" + d.Host, "DOCKER_CONFIG=" + d.Config, "PATH=" + os.Getenv("PATH")}
}

// Command returns a call of the docker program on this daemon.
func (d *Daemon) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...) //nolint:gosec // arguments come from tests
	cmd.Env = append(os.Environ(), d.Env()...)
	return cmd
}

// Docker runs the docker program and returns its standard output without
// surrounding white space.
func (d *Daemon) Docker(args ...string) string {
	d.t.Helper()
	cmd := d.Command(d.t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}
