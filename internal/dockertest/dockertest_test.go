package dockertest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// server is a container that answers on port 80 with what it is told.
func server(d *Daemon, name, text string, flags ...string) (addr string) {
	d.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	addr = ln.Addr().String()
	_ = ln.Close()
	program := `use IO::Socket; $s = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1) or die;
while ($c = $s->accept) { print $c "` + text + `"; close $c }`
	d.Docker(append(append([]string{"run", "--detach", "--name", name, "--publish", addr + ":80"}, flags...), BaseImage, "perl", "-e", program)...)
	return addr
}

// hears waits until the address says something.
func hears(t *testing.T, addr string) string {
	t.Helper()
	buf := make([]byte, 100)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		n, _ := c.Read(buf)
		_ = c.Close()
		if n > 0 {
			return string(buf[:n])
		}
	}
	t.Fatalf("%s says nothing within 20 s", addr)
	return ""
}

func TestAContainerComesBackAfterAPowerCutWhereItsPolicySaysSo(t *testing.T) {
	t.Parallel()
	d := Start(t)
	d.Base(BaseImage)
	d.Docker("volume", "create", "kept")
	addr := server(d, "web1", "hello", "--restart", "unless-stopped", "--volume", "kept:/kept")
	d.Docker("run", "--detach", "--name", "once", BaseImage, "sleep", "infinity")
	d.Docker("exec", "web1", "sh", "-c", "echo data >/kept/file; sync")
	if got := hears(t, addr); got != "hello" {
		t.Fatalf("the container says %q", got)
	}
	d.Kill()
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Fatal("a container answers on a host without power")
	}
	d.Boot()
	if got := hears(t, addr); got != "hello" {
		t.Errorf("after the power cut the container says %q", got)
	}
	if got := d.Docker("exec", "web1", "cat", "/kept/file"); got != "data" {
		t.Errorf("the volume holds %q", got)
	}
	if got := d.Docker("inspect", "--format", "{{.State.Running}}", "once"); got != "false" {
		t.Error("a container without a restart policy came back")
	}
	d.Restart()
	if got := hears(t, addr); got != "hello" {
		t.Errorf("after a restart in order the container says %q", got)
	}
}

func TestTwoDaemonsRunSideBySideAndLeaveNothing(t *testing.T) {
	t.Parallel()
	type left struct{ dir, slot string }
	var was [2]left
	t.Run("run", func(t *testing.T) {
		var addrs [2]string
		var daemons [2]*Daemon
		for i := range daemons {
			d := Start(t)
			d.Base(BaseImage)
			d.Docker("network", "create", "shared-name")
			addrs[i] = server(d, "web1", "daemon "+strconv.Itoa(i), "--network", "shared-name")
			daemons[i], was[i] = d, left{d.Dir, d.slot.name}
		}
		for i, d := range daemons {
			if got, want := hears(t, addrs[i]), fmt.Sprintf("daemon %d", i); got != want {
				t.Errorf("%s says %q, want %q", addrs[i], got, want)
			}
			program := `use IO::Socket; $c = IO::Socket::INET->new("web1:80") or die; print <$c>`
			if got, want := d.Docker("run", "--rm", "--network", "shared-name", BaseImage, "perl", "-e", program), fmt.Sprintf("daemon %d", i); got != want {
				t.Errorf("by name, the neighbor says %q, want %q", got, want)
			}
		}
	})
	for _, w := range was {
		if _, err := os.Stat(w.dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", w.dir, err)
		}
		if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), w.dir) {
			t.Errorf("something is still mounted below %s", w.dir)
		}
		cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range cmdlines {
			if line, _ := os.ReadFile(path); strings.Contains(string(line), w.dir) {
				t.Errorf("still runs: %q", line)
			}
		}
		if groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + w.slot + "/*/"); len(groups) != 0 && !claimed(w.slot) {
			t.Errorf("cgroups are still there: %v", groups)
		}
	}
}

// claimed reports whether another daemon has the slot by now.
func claimed(slot string) bool {
	_, err := net.InterfaceByName(slot)
	return err == nil
}

func TestASnapshotStartsFurtherDaemonsWithItsImages(t *testing.T) {
	t.Parallel()
	d := Start(t)
	d.Base(BaseImage)
	s := d.Snapshot()
	t.Cleanup(func() {
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	})
	d.Docker("image", "rm", BaseImage)
	for name, opts := range map[string][]Option{"on the same disk": nil, "on a disk of its own": {WithDisk(400 << 20)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			copied := Start(t, append(opts, From(s))...)
			if got := copied.Docker("run", "--rm", BaseImage, "cat", "/etc/debian_version"); !strings.HasPrefix(got, "12") {
				t.Errorf("the image holds Debian %q", got)
			}
		})
	}
}

func TestADiskFillsUpAndIsKeptAcrossAPowerCut(t *testing.T) {
	t.Parallel()
	d := Start(t, WithDisk(250<<20))
	d.Base(BaseImage)
	d.Docker("volume", "create", "full")
	out, err := d.Command(t.Context(), "run", "--rm", "--volume", "full:/full", BaseImage, "dd", "if=/dev/zero", "of=/full/zeros", "bs=1M").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "No space left on device") {
		t.Fatalf("a disk of 250 MB took everything: %v\n%s", err, out)
	}
	zeros := "volumes/full/_data/zeros"
	if fi, err := os.Stat(filepath.Join(d.Data(), zeros)); err != nil || fi.Size() < 50<<20 {
		t.Errorf("the test sees %v (%v)", fi, err)
	}
	d.Kill()
	d.Boot()
	if err := os.Remove(filepath.Join(d.Data(), zeros)); err != nil {
		t.Error(err)
	}
	d.Docker("run", "--rm", "--volume", "full:/full", BaseImage, "dd", "if=/dev/zero", "of=/full/zeros", "bs=1M", "count=10")
}

func TestComposeSpeaksToTheDaemon(t *testing.T) {
	t.Parallel()
	d := Start(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte("services: {a: {image: "+BaseImage+", command: [sleep, infinity], init: true}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Base(BaseImage)
	d.Docker("compose", "--project-directory", dir, "up", "--detach", "--wait", "--quiet-pull")
	if got := d.Docker("compose", "--project-directory", dir, "ps", "--services", "--status", "running"); got != "a" {
		t.Errorf("compose runs %q", got)
	}
	start := time.Now()
	d.Docker("compose", "--project-directory", dir, "down")
	t.Logf("down in %s", time.Since(start))
}
