package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/dashboard"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestAChangeOfAnyFileOfAnInventoryIsSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("fleet.yaml", "include: [customers/*.yaml]\n")
	write("customers/a.yaml", "instances: [{name: acme, url: https://data.acme.com}]\n")
	inventory, err := fleet.Load(filepath.Join(dir, "fleet.yaml"), fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	last := stampOf(inventory.Files)
	for _, change := range []func(){
		func() { write("fleet.yaml", "include: [customers/*.yaml]\n# changed\n") },
		func() { write("customers/a.yaml", "instances: [{name: acme2, url: https://data.acme.com}]\n") },
		func() { write("customers/b.yaml", "instances: [{name: bolt, url: https://bolt.acme.com}]\n") }, // a new one
		func() { _ = os.Remove(filepath.Join(dir, "customers/a.yaml")) },
	} {
		change()
		now := stampOf(inventory.Files)
		if now == last {
			t.Errorf("a change was not seen:\n%s", now)
		}
		last = now
	}
	if stampOf(inventory.Files) != last {
		t.Error("a change was seen where there was none")
	}
}

func TestReadingNeedsALoginWhereOthersReachThePage(t *testing.T) {
	t.Parallel()
	const here, public = "127.0.0.1:8800", "https://fleet.acme.com"
	for _, tt := range []struct {
		s      fleetServer
		closed bool
	}{
		{fleetServer{addr: here}, false},
		{fleetServer{addr: here, authFile: "logins"}, false},
		{fleetServer{addr: here, authFile: "logins", publicURL: "http://localhost:8800"}, false},
		{fleetServer{addr: here, authFile: "logins", publicURL: public}, true},
		{fleetServer{addr: "0.0.0.0:8800", authFile: "logins"}, true},
		{fleetServer{addr: here, authFile: "logins", publicURL: public, closedSaid: true}, false},
		{fleetServer{addr: here, closed: true, closedSaid: true, authFile: "logins"}, true},
	} {
		a, err := tt.s.access()
		if err != nil || a.Closed != tt.closed || a.Secure != (tt.s.publicURL == public) {
			t.Errorf("%+v: %+v %v", tt.s, a, err)
		}
	}
	for _, s := range []fleetServer{{addr: "0.0.0.0:8800"}, {addr: "0.0.0.0:8800", closedSaid: true}} {
		if _, err := s.access(); !problem.Is(err, problem.Refused) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	a, err := (&fleetServer{addr: here, publicURL: public}).access()
	if err == nil {
		err = a.Check()
	}
	if !problem.Is(err, problem.Usage) || !strings.Contains(problem.As(err).Hint, "--login-to-read=false") {
		t.Errorf("a public page without logins: %v", err)
	}
}

func TestThePageNamesARepositoryWithoutItsToken(t *testing.T) {
	t.Parallel()
	for git, want := range map[string]string{
		"":                                    "fleet.yaml",
		"https://TOKEN@git.example.com/a.git": "https://git.example.com/a.git fleet.yaml",
		"git@git.example.com:a.git":           "git@git.example.com:a.git fleet.yaml",
	} {
		if got := (&fleetServer{f: &fleetFlags{file: "fleet.yaml", git: git}}).name(); got != want {
			t.Errorf("%q is shown as %q", git, got)
		}
	}
}

func TestAnInventoryThatChangedWhileItWasReadIsReadAgain(t *testing.T) {
	t.Parallel()
	// What receives signals lives as long as the program, not as long as a bubble.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	signal.Stop(hangup)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "fleet.yaml")
		write := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("fleet.yaml", "instances: [{name: acme, url: https://data.acme.com}]\n")
		records, err := store.Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = records.Close() }()
		page, err := dashboard.New(dashboard.Options{Store: records})
		if err != nil {
			t.Fatal(err)
		}
		s := &fleetServer{f: &fleetFlags{file: file, env: cli.Env{Getenv: func(string) string { return "" }}}, page: page, log: slog.New(slog.DiscardHandler)}
		inventory, err := s.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		write("fleet.yaml", "include: [part.yaml]\n")
		write("part.yaml", "instances: [{name: bolt, url: https://bolt.acme.com}]\n")
		ctx, end := context.WithCancel(t.Context())
		defer end()
		fresh := make(chan *fleet.Inventory)
		go s.lookForChanges(ctx, inventory, fresh)
		next := func() string { // the instance of the next inventory within an hour
			select {
			case i := <-fresh:
				return i.Instances[0].Name
			case <-time.After(time.Hour):
				return "none"
			}
		}
		if name := next(); name != "bolt" {
			t.Errorf("the inventory has %s", name)
		}
		write("part.yaml", "instances: [{name: core, url: https://core.acme.com}]\n") // the part was not watched when it was read
		if name := next(); name != "core" {
			t.Errorf("the inventory has %s", name)
		}
		if name := next(); name != "none" {
			t.Errorf("an inventory is handed on that is the same: %s", name)
		}
	})
}

func TestAClientThatStallsIsNoFaultOfTheEnd(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, []byte("instances: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	said, out := io.Pipe()
	ended := make(chan int, 1)
	var trouble strings.Builder
	go func() {
		ended <- run(ctx, []string{"fleet", "serve", "-f", file, "--addr", "127.0.0.1:0"}, func(string) string { return "" }, strings.NewReader(""), out, &trouble)
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, address, _ := strings.Cut(strings.TrimSuffix(line, "/\n"), "http://")
	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, "POST /theme HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(client).ReadString('\n'); err != nil || !strings.Contains(answer, "100 Continue") {
		t.Fatalf("%q %v", answer, err)
	}
	end()
	if code := <-ended; code != 0 {
		t.Errorf("exit %d: %s", code, &trouble)
	}
}

func TestLoginsStayTheirOwners(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "logins")
	if err := os.WriteFile(file, []byte("bert:x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // as with sudo
		uid, gid = 4242, 4243
	}
	if err := errors.Join(os.Chmod(file, 0o644), os.Chown(file, uid, gid)); err != nil {
		t.Fatal(err)
	}
	if err := setLogin(cli.Env{Stderr: io.Discard}, file, "anna", "anna:y"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if text, _ := os.ReadFile(file); !ok || int(owner.Uid) != uid || int(owner.Gid) != gid || info.Mode().Perm() != 0o640 || string(text) != "bert:x\nanna:y\n" {
		t.Errorf("%+v %s", owner, text)
	}
}

func TestARolloutSilencesOnlyWhatItIsAtWorkOn(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now := time.Now()
	lease := store.Lease{Name: "test", Nonce: "n", Since: now, Expires: now.Add(time.Hour)}
	if _, err := s.TakeLease(t.Context(), lease, now, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	one := rollout.Rollout{ID: "r1", State: rollout.Running, Started: now, Waves: []rollout.WaveState{
		{Name: "canary", State: rollout.WavePassed, Members: []rollout.Member{{Name: "passed", State: rollout.Taken}}},
		{Name: "rest", State: rollout.WaveTaking, Members: []rollout.Member{{Name: "taking", State: rollout.Taking, To: "2026.05.1"}, {Name: "back", State: rollout.TakingBack}, {Name: "bad", State: rollout.Bad}, {Name: "waiting", State: rollout.Waiting}}},
	}}
	save := func() {
		t.Helper()
		doc, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SaveRollout(t.Context(), store.Rollout{ID: one.ID, Started: now, State: string(one.State), Doc: doc}, lease); err != nil {
			t.Fatal(err)
		}
	}
	save()
	r := &rolling{store: s, log: slog.New(slog.DiscardHandler)}
	for name, want := range map[string]bool{"taking": true, "back": true, "passed": false, "bad": false, "waiting": false, "other": false} {
		if reason, silent := r.silenced(name, now); silent != want {
			t.Errorf("%s is silenced: %v %s", name, silent, reason)
		}
	}
	one.State, one.Waves[1].State = rollout.Reverting, rollout.WaveFailed // a wave that is taken back
	save()
	now = now.Add(lookAtRollouts)
	if _, silent := r.silenced("back", now); !silent {
		t.Error("a member that is taken back is told of")
	}
	if reason, _ := r.silenced("taking", now); reason != "The rollout r1 takes it to 2026.05.1." {
		t.Error(reason)
	}
	one.State = rollout.Paused
	save()
	if _, silent := r.silenced("taking", now.Add(lookAtRollouts)); silent {
		t.Error("a rollout that rests silences")
	}
}
