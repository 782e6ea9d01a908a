package golden

import (
	"context"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Program is a command line program as a function: what a main calls.
type Program func(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int

// Suite is a folder of testscript files and what they may use.
type Suite struct {
	Dir      string
	Programs map[string]Program                                      // by the name that scripts call them
	Cmds     map[string]func(*testscript.TestScript, bool, []string) // further commands
	Setup    func(*testscript.Env) error                             // prepares a script's environment, such as a server and its address
}

// Scripts runs every testscript file of a suite. Each program is a command of
// the script language under its name:
//
//	tool args...         must exit with 0
//	! tool args...       must exit with anything else
//	exits 3 tool args... must exit with 3
//	mode 0600 FILE       the file must have these permissions
//
// A last argument `<FILE` gives the program that file as standard input. The
// programs run in the test's process, so paths in arguments must be absolute:
// $WORK/file.
func Scripts(t *testing.T, s Suite) {
	t.Helper()
	cmds := map[string]func(*testscript.TestScript, bool, []string){}
	maps.Copy(cmds, s.Cmds)
	for name, program := range s.Programs {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			code := runProgram(ts, program, args)
			if (code != 0) != neg {
				ts.Fatalf("%s exited with %d", name, code)
			}
		}
	}
	cmds["exits"] = func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < 2 {
			ts.Fatalf("usage: exits CODE PROGRAM [ARG...] [<FILE]")
		}
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		program, ok := s.Programs[args[1]]
		if !ok {
			ts.Fatalf("exits: no program %q", args[1])
		}
		if code := runProgram(ts, program, args[2:]); code != want {
			ts.Fatalf("%s exited with %d, want %d", args[1], code, want)
		}
	}
	cmds["mode"] = fileMode
	testscript.Run(t, testscript.Params{
		Dir:                s.Dir,
		Setup:              s.Setup,
		Cmds:               cmds,
		UpdateScripts:      *update,
		RequireUniqueNames: true,
	})
}

func runProgram(ts *testscript.TestScript, program Program, args []string) int {
	var stdin io.Reader = strings.NewReader("")
	if n := len(args); n > 0 {
		if file, ok := strings.CutPrefix(args[n-1], "<"); ok {
			stdin, args = strings.NewReader(ts.ReadFile(file)), args[:n-1]
		}
	}
	return program(context.Background(), args, ts.Getenv, stdin, ts.Stdout(), ts.Stderr())
}

// fileMode is the script command `mode 0600 FILE`.
func fileMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := uint64(info.Mode().Perm()); got != want {
		ts.Fatalf("%s has mode %#o, want %#o", args[1], got, want)
	}
}
