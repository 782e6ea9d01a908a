package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
)

// machine is a host whose files are below a folder here, and whose docker is told.
type machine struct {
	docker map[string]string // by the first words of a call: what it prints

	mu     sync.Mutex
	asked  []string
	closed bool
}

// Run serves deploy.Shell.
func (m *machine) Run(ctx context.Context, c deploy.Command) (deploy.Output, error) {
	call := strings.Join(c.Args, " ")
	if c.Args[0] == "docker" {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.asked = append(m.asked, call)
		for words, says := range m.docker {
			if strings.HasPrefix(call, "docker "+words) {
				return deploy.Output{Stdout: []byte(says)}, nil
			}
		}
		return deploy.Output{Code: 1, Stderr: []byte("docker knows no " + call)}, nil
	}
	var out, errs bytes.Buffer
	run := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	run.Dir, run.Stdin, run.Stdout, run.Stderr = c.Dir, c.Stdin, &out, &errs
	err := run.Run()
	if exit, ended := errors.AsType[*exec.ExitError](err); ended {
		return deploy.Output{Stdout: out.Bytes(), Stderr: errs.Bytes(), Code: exit.ExitCode()}, nil
	}
	return deploy.Output{Stdout: out.Bytes(), Stderr: errs.Bytes()}, err
}

// Dial, Close and String serve deploy.Shell.
func (m *machine) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nobody dials")
}

func (m *machine) Close() error   { m.closed = true; return nil }
func (m *machine) String() string { return "a machine" }

func TestHostsAreLookedAtAndNotTouched(t *testing.T) {
	t.Parallel()
	const runs, pinned = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("AGNES_IMAGE=ghcr.io/acme/agnes\nAGNES_IMAGE_DIGEST="+pinned+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{docker: map[string]string{
		"ps -aq":            "c1\n",
		"container inspect": `[{"Id":"c1","Image":"sha256:1","State":{"Status":"running"}}]`,
		"image inspect":     `[{"Id":"sha256:1","RepoDigests":["ghcr.io/acme/agnes@` + runs + `"],"Config":{"Labels":{}}}]`,
		"ps --format":       "agnes-app-1 ghcr.io/acme/agnes\ntower containrrr/watchtower:1\n",
	}}
	instances := []fleet.Instance{
		{Name: "acme", Channel: "stable", Host: "ssh://agnes@acme.example.com" + dir},
		{Name: "bolt", Channel: "stable", Host: "ssh://agnes@bolt.example.com/opt/agnes"},
		{Name: "core", Channel: "stable"},
	}
	hosts := fleet.InspectHosts(t.Context(), instances, func(to deploy.Target) (deploy.Shell, error) {
		if to.Host == "bolt.example.com" {
			return nil, errors.New("no route")
		}
		return m, nil
	})
	acme := hosts["acme"]
	if acme.Running != runs || acme.Pinned != pinned || !slices.Equal(acme.Foreign, []string{"tower (containrrr/watchtower:1)"}) || acme.Trouble != "" || !m.closed {
		t.Errorf("%+v, closed: %v", acme, m.closed)
	}
	if bolt := hosts["bolt"]; bolt.Trouble != "no route" {
		t.Errorf("%+v", bolt)
	}
	if _, asked := hosts["core"]; asked || len(hosts) != 2 {
		t.Errorf("%v", hosts)
	}
	for _, call := range m.asked {
		if words := strings.Fields(call); words[1] != "ps" && words[2] != "inspect" {
			t.Errorf("docker was asked to %s", call)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("the folder has %v, %v", files, err)
	}
	r := fleet.Result{Health: fleet.Healthy, Version: "2026.04.3", Channel: "stable"}
	d := fleet.Facts{Hosts: hosts}.Drift(instances[0], r)
	if !d.Drifted || len(d.Reasons) != 2 || d.Reasons[0].Kind != fleet.DriftUpdater || d.Reasons[1].Kind != fleet.DriftHost {
		t.Errorf("%+v", d)
	}
}
