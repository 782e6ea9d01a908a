package dockertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// slots is how many daemons can run at once on a machine.
const slots = 64

// slot is what one daemon has of the things that a machine has once: names,
// and a range of addresses. A lock on a file holds it, for as long as this
// process lives at most.
type slot struct {
	name  string // of the bridge and the cgroups
	pool  string // CIDR, a /20
	rules [][]string

	t    testing.TB
	lock *os.File
}

// claim takes a free slot and clears what a killed process left in it.
func claim(t testing.TB, dir string, internet bool) *slot {
	t.Helper()
	for n := range slots {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("agnes-docker-%d.lock", n))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
		if errors.Is(err, os.ErrPermission) {
			continue // another user's
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = f.Close()
			continue
		}
		s := &slot{t: t, lock: f, name: fmt.Sprintf("agnes%d", n), pool: fmt.Sprintf("10.%d.%d.0/20", 201+n/16, n%16*16)}
		s.rules = [][]string{
			// Where the machine filters what crosses a bridge, ours may.
			{"filter", "FORWARD", "-s", s.pool, "-d", s.pool, "-j", "ACCEPT"},
		}
		if internet {
			s.rules = append(s.rules,
				[]string{"filter", "FORWARD", "-s", s.pool, "-j", "ACCEPT"},
				[]string{"filter", "FORWARD", "-d", s.pool, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
				[]string{"nat", "POSTROUTING", "-s", s.pool, "!", "-d", s.pool, "-j", "MASQUERADE"},
			)
		}
		s.clear()
		if old, err := os.ReadFile(path); err == nil && strings.Contains(string(old), "agnes-docker-") {
			mustRoot(t, "rm", "-rf", strings.TrimSpace(string(old)))
		}
		if err := errors.Join(f.Truncate(0), writeAt(f, dir)); err != nil {
			t.Fatal(err)
		}
		s.set(internet)
		return s
	}
	t.Fatalf("%d daemons run already, or %s/agnes-docker-*.lock belong to another user", slots, os.TempDir())
	return nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// set makes the bridge and the rules.
func (s *slot) set(internet bool) {
	s.t.Helper()
	gateway := netip.MustParsePrefix(s.pool).Addr().Next()
	mustRoot(s.t, "ip", "link", "add", s.name, "type", "bridge")
	mustRoot(s.t, "ip", "addr", "add", gateway.String()+"/24", "dev", s.name)
	mustRoot(s.t, "ip", "link", "set", s.name, "up")
	for _, r := range s.rules {
		mustRoot(s.t, "iptables", append([]string{"-w", "-t", r[0], "-I"}, r[1:]...)...)
	}
	if internet {
		mustRoot(s.t, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	}
}

// clear removes bridge, rules and cgroups, as far as they are there.
func (s *slot) clear() {
	pool := netip.MustParsePrefix(s.pool)
	run := func(name string, args ...string) bool {
		return root(context.WithoutCancel(s.t.Context()), name, args...).Run() == nil
	}
	for _, r := range s.rules {
		for run("iptables", append([]string{"-w", "-t", r[0], "-D"}, r[1:]...)...) {
		}
	}
	run("ip", "link", "del", s.name)
	links, _ := net.Interfaces()
	for _, link := range links {
		addrs, _ := link.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && pool.Contains(p.Addr()) {
				run("ip", "link", "del", link.Name)
			}
		}
	}
	s.clearCgroups()
}

// clearCgroups removes the empty groups of containers that were killed.
func (s *slot) clearCgroups() {
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.name)
	if unified := "/sys/fs/cgroup/" + s.name; isDir(unified) {
		groups = append(groups, unified)
	}
	if len(groups) == 0 {
		return
	}
	_ = root(context.WithoutCancel(s.t.Context()), "find", append(groups, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";")...).Run()
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// release gives the slot back, empty.
func (s *slot) release() {
	s.clear()
	_ = s.lock.Truncate(0)
	_ = s.lock.Close()
}
