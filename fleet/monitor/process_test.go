package monitor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// processRole is set for this binary as a monitor that is a process of its own.
const processRole = "AGNES_MONITOR_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(processRole) == "" {
		os.Exit(m.Run())
	}
	if err := watchProcess(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process is what such a monitor is told on its stdin. It ends with that.
type process struct {
	State     string
	Names     []string
	URLs      []string
	CA        string
	Interval  time.Duration
	Hook, Key string // a signed webhook; none where Hook is empty
	GroupWait time.Duration
}

func watchProcess() error {
	in := bufio.NewReaderSize(os.Stdin, 16<<20)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var p process
	if err := json.Unmarshal(line, &p); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	s, err := store.Open(ctx, p.State)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	inventory := &fleet.Inventory{Watch: fleet.DefaultWatch()}
	inventory.Watch.GroupWait = p.GroupWait
	for i, name := range p.Names {
		inventory.Instances = append(inventory.Instances, fleet.Instance{Name: name, URL: p.URLs[i], Channel: "stable", Interval: p.Interval, Timeout: min(5*time.Second, p.Interval), TLS: fleet.TLS{PEM: p.CA}})
	}
	prober := fleet.NewProber(fleet.ProbeOptions{})
	defer prober.Close()
	o := monitor.Options{Inventory: inventory, Store: s, Prober: prober, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if p.Hook != "" {
		dir, err := os.MkdirTemp(p.State, "inventory-")
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "fleet.yaml")
		if err := os.WriteFile(file, []byte("instances: []\nalerts: [{type: webhook, url: '"+p.Hook+"', secret: '${env:KEY}'}]\n"), 0o600); err != nil {
			return err
		}
		read, err := fleet.Load(file, fleet.LoadOptions{Getenv: func(string) string { return p.Key }})
		if err != nil {
			return err
		}
		o.Channels = alert.Channels(read.Alerts, alert.Options{})
	}
	m, err := monitor.New(o)
	if err != nil {
		return err
	}
	err = m.Run(ctx)
	_ = json.NewEncoder(os.Stdout).Encode(m.Condition())
	return err
}

// begin starts it and returns it with how to end it, which is when its stdin ends.
func (p process) begin(t *testing.T) (*exec.Cmd, func() monitor.Condition) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), processRole+"=1")
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(p); err != nil {
		t.Fatal(err)
	}
	return c, func() monitor.Condition {
		_ = in.Close()
		var condition monitor.Condition
		if err := json.NewDecoder(out).Decode(&condition); err != nil {
			t.Error(err)
		}
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
		return condition
	}
}

// TestAMonitorThatIsKilledTellsEverythingOnce kills a real process again and again,
// at moments that nobody chose, while instances come and go.
func TestAMonitorThatIsKilledTellsEverythingOnce(t *testing.T) {
	t.Parallel()
	const instances, kills = 20, 12
	key := []byte("hunter2")
	seeded := rand.New(rand.NewPCG(4, 2))
	var mu sync.Mutex
	bad := map[string]bool{}
	p := process{State: stateDir(t), Interval: 200 * time.Millisecond, GroupWait: 50 * time.Millisecond, Key: string(key)}

	agnes := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		down := bad[strings.Split(r.URL.Path, "/")[1]]
		mu.Unlock()
		if down {
			http.Error(w, "it is down", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"healthy","version":"2026.04.1","channel":"stable"}`)
	}))
	defer agnes.Close()
	for n := range instances {
		p.Names = append(p.Names, fmt.Sprintf("acme-%02d", n))
		p.URLs = append(p.URLs, fmt.Sprintf("%s/acme-%02d", agnes.URL, n))
	}

	messages, heard := map[string]int{}, map[string]int{}
	items := map[string][]alert.Item{}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var payload alert.Payload
		if err := json.Unmarshal(body, &payload); err != nil || !alert.Verify(key, r.Header, body, time.Now()) || r.Header.Get(alert.HeaderDelivery) != payload.ID {
			t.Errorf("%s: %v", body, err)
		}
		defer waitFor(40 * time.Millisecond) // in which its sender may die
		mu.Lock()
		defer mu.Unlock()
		if messages[payload.ID]++; messages[payload.ID] > 1 {
			return // it is known already
		}
		for _, i := range payload.Items {
			heard[i.Incident+" "+string(i.Event)]++
			items[i.Name] = append(items[i.Name], i)
		}
	}))
	defer hook.Close()
	p.Hook = hook.URL

	for range kills {
		c, _ := p.begin(t)
		for end := time.Now().Add(600*time.Millisecond + time.Duration(seeded.Int64N(int64(time.Second)))); time.Now().Before(end); {
			mu.Lock()
			name := p.Names[seeded.IntN(instances)]
			bad[name] = !bad[name]
			mu.Unlock()
			waitFor(20 * time.Millisecond)
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	mu.Lock()
	clear(bad)
	mu.Unlock()
	_, end := p.begin(t)
	s, err := store.Open(t.Context(), p.State)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for deadline := time.Now().Add(time.Minute); ; waitFor(100 * time.Millisecond) {
		waiting, err := s.Unsaid(t.Context())
		open, wrong := s.Incidents(t.Context(), store.IncidentQuery{OpenOnly: true})
		if err = errors.Join(err, wrong); err == nil && len(waiting)+len(open) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d incidents are open, %+v waits: %v", len(open), waiting, err)
		}
	}
	end()

	mu.Lock()
	defer mu.Unlock()
	opened, twice := 0, 0
	for key, n := range heard {
		if n != 1 {
			t.Errorf("%s was told %d times", key, n)
		}
		if id, isOpening := strings.CutSuffix(key, " opened"); isOpening {
			opened++
			if heard[id+" closed"] != 1 {
				t.Errorf("the end of %s was told %d times", id, heard[id+" closed"])
			}
		} else if id, _ := strings.CutSuffix(key, " closed"); heard[id+" opened"] != 1 {
			t.Errorf("the begin of %s was told %d times", id, heard[id+" opened"])
		}
	}
	for _, n := range messages {
		twice += n - 1
	}
	if opened < kills || twice > kills {
		t.Errorf("%d incidents were told, and %d messages came again after %d kills", opened, twice, kills)
	}
	for name, all := range items {
		for i, item := range all {
			if (item.Event == alert.Opened) != (i%2 == 0) || i > 0 && item.Opened.Before(all[i-1].Closed) {
				t.Errorf("%s: %+v comes after %+v", name, item, all[max(0, i-1)])
			}
		}
	}
	t.Logf("%d kills, %d incidents, %d messages, %d of them again", kills, opened, len(messages), twice)
}

// waitFor lets a real process work: its time is the world's.
func waitFor(d time.Duration) { <-time.After(d) }
