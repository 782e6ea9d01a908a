package analytics

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// helperEnv makes the test binary play a part in a process of its own.
const helperEnv = "AGNES_ANALYTICS_TEST_HELPER"

func TestMain(m *testing.M) {
	part := os.Getenv(helperEnv)
	if part == "" {
		os.Exit(m.Run())
	}
	var err error
	switch dir := os.Args[1]; part {
	case "outside":
		err = outside(dir)
	case "publisher":
		err = publishUntilKilled(dir)
	case "full-disk":
		err = publishToFullDisk(dir)
	default:
		err = fmt.Errorf("no such helper: %s", part)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helper starts the test binary in another part.
func (f *fixture) helper(part, dir string, set ...func(*exec.Cmd)) *exec.Cmd {
	f.Helper()
	exe, err := os.Executable()
	f.must(err)
	cmd := exec.Command(exe, dir)
	cmd.Env = append(os.Environ(), helperEnv+"="+part)
	cmd.Stdout, cmd.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	for _, s := range set {
		s(cmd)
	}
	f.must(cmd.Start())
	f.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// standalone lets a helper's part use the fixture outside of a test.
type standalone struct{ testing.TB }

type fatal struct{ text string }

func (standalone) Helper()                      {}
func (standalone) Cleanup(func())               {}
func (standalone) Fatal(args ...any)            { panic(fatal{fmt.Sprint(args...)}) }
func (standalone) Fatalf(f string, args ...any) { panic(fatal{fmt.Sprintf(f, args...)}) }
func (standalone) Errorf(f string, args ...any) { panic(fatal{fmt.Sprintf(f, args...)}) }
func (standalone) Logf(format string, a ...any) { fmt.Printf(format+"\n", a...) }
func (standalone) Log(args ...any)              { fmt.Println(args...) }

// asError turns what a standalone fixture could not do into err.
func asError(err *error) {
	switch r := recover().(type) {
	case nil:
	case fatal:
		*err = fmt.Errorf("%s", r.text)
	default:
		panic(r)
	}
}
