package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// asProgram is the environment variable that makes the test binary the program,
// for tests that need real processes: many at once, or killed.
const asProgram = "RELEASE_BOT_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		ctx, stop := cli.Signals()
		env := cli.OS()
		code := run(ctx, env.Args, env.Getenv, env.Stdin, env.Stdout, env.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// program returns a process of release-bot that is yet to be started, with
// nothing in its environment but env and what finds git.
func program(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append([]string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null"}, env...)
	return cmd
}
