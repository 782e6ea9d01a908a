package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

// TestScripts runs every command against a fake instance. A script turns the
// instance's knobs with `fake` and sees what changed with `changes`.
func TestScripts(t *testing.T) {
	t.Parallel()
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/script",
		Programs: map[string]golden.Program{"agnesctl": run},
		Cmds:     map[string]func(*testscript.TestScript, bool, []string){"fake": turnKnob, "changes": wantChanges},
		Setup: func(env *testscript.Env) error {
			f := newFake()
			server := f.start()
			env.Defer(server.Close)
			env.Setenv("AGNES_URL", server.URL)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			env.Setenv("SETUP_TOKEN", setupToken)
			env.Values[fakeKey{}] = f
			return nil
		},
	})
}

type fakeKey struct{}

// turnKnob is the script command `fake KNOB [VALUE...]`.
func turnKnob(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fakeKey{}).(*instance)
	f.mu.Lock()
	defer f.mu.Unlock()
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fake KNOB [VALUE...]")
	}
	switch knob, values := args[0], args[1:]; knob {
	case "admin":
		f.email, f.password = values[0], values[1]
	case "status":
		f.status = values[0]
	case "fail-sync":
		f.failSync = values[0] == "on"
	case "stuck":
		f.stuck = values[0] == "on"
	case "fix":
		f.fixed[values[0]] = values[1]
	case "config":
		f.config[values[0]] = values[1]
	case "available":
		f.available = values
	default:
		ts.Fatalf("fake: no knob %q", knob)
	}
}

// wantChanges is the script command `changes [WHAT...]`: exactly these calls
// have changed the instance since the last time.
func wantChanges(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value(fakeKey{}).(*instance)
	f.mu.Lock()
	defer f.mu.Unlock()
	if got, want := strings.Join(f.changes, ", "), strings.Join(args, ", "); got != want {
		ts.Fatalf("the instance's changes are %q, want %q", got, want)
	}
	f.changes = nil
}

func TestHelpOfTheRoot(t *testing.T) {
	t.Parallel()
	for file, args := range map[string]string{
		"help.golden":          "--help",
		"help-instance.golden": "instance --help",
		"surface.golden":       "surface",
		"docs.golden":          "docs",
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), strings.Fields(args), func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		if code != 0 || errs.Len() > 0 {
			t.Errorf("%s: exit %d, %s", args, code, errs.String())
		}
		golden.Compare(t, filepath.Join("testdata", file), out.Bytes())
	}
}

func TestCtrlCWhileWaitingSaysThatTheJobGoesOn(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.email, f.tokens, f.stuck = "a@b.c", 1, true
	f.discover(httptest.NewRecorder(), false)
	server := f.start()
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(t.Context())
	env := map[string]string{"AGNES_URL": server.URL, "AGNES_TOKEN": "agnes-token-1", "HOME": t.TempDir()}
	var out bytes.Buffer
	errs := &cancelOn{text: "/events status=200", cancel: cancel}
	code := run(ctx, []string{"instance", "sync", "-v"}, func(k string) string { return env[k] }, strings.NewReader(""), &out, errs)
	if code != 130 || !strings.Contains(errs.String(), "Interrupted: Stopped waiting; job job-1 goes on") ||
		!strings.Contains(errs.String(), "Next:  agnesctl instance sync --follow job-1") {
		t.Errorf("exit %d, stdout %q, stderr %s", code, out.String(), errs.String())
	}
}

// cancelOn cancels when a text is written.
type cancelOn struct {
	bytes.Buffer
	text   string
	cancel func()
}

func (c *cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return c.Buffer.Write(p)
}
