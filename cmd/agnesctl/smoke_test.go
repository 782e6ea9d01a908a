package main

import (
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

type smokeKey struct{}

// TestSmokeScripts runs the smoke test against an instance that scripts break
// with `break`, and whose accounts they see with `accounts`.
func TestSmokeScripts(t *testing.T) {
	t.Parallel()
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/smoke",
		Programs: map[string]golden.Program{"agnesctl": run},
		Cmds:     map[string]func(*testscript.TestScript, bool, []string){"break": breakInstance, "accounts": wantAccounts},
		Setup: func(env *testscript.Env) error {
			i := smoketest.New()
			plain, secure := httptest.NewServer(i), httptest.NewUnstartedServer(i)
			secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			secure.StartTLS()
			env.Defer(plain.Close)
			env.Defer(secure.Close)
			env.Setenv("URL", plain.URL)
			env.Setenv("SECURE_URL", secure.URL)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			env.Setenv("EMAIL", smoketest.Email)
			env.Values[smokeKey{}] = i
			for name, text := range map[string]string{
				"password": smoketest.Password.Reveal() + "\n",
				"token":    smoketest.AdminToken.Reveal() + "\n",
				"ca.pem":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})),
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// breakInstance is the script command `break WHAT`.
func breakInstance(ts *testscript.TestScript, neg bool, args []string) {
	i := ts.Value(smokeKey{}).(*smoketest.Instance)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: break WHAT")
	}
	switch args[0] {
	case "catalog":
		i.Empty()
	case "query":
		i.Break("POST /api/query", 1, smoketest.Page())
	case "query-500":
		i.Break("POST /api/query", 1, smoketest.Problem(500, "internal", "It \x1b[31mbroke\x1b[0m."))
	case "removal":
		i.Break("DELETE /api/users/", 1, smoketest.Problem(500, "internal", "It broke."))
	case "sync":
		i.Change(func(k *smoketest.Knobs) { k.SyncFails = true })
	case "setup":
		i.Change(func(k *smoketest.Knobs) { k.SetupRequired = true })
	default:
		ts.Fatalf("break: no %q", args[0])
	}
}

// wantAccounts is the script command `accounts`: nobody but the first admin is
// there.
func wantAccounts(ts *testscript.TestScript, _ bool, _ []string) {
	if got := ts.Value(smokeKey{}).(*smoketest.Instance).Emails(); !slices.Equal(got, []string{smoketest.Email}) {
		ts.Fatalf("the instance has the accounts %v", got)
	}
}
