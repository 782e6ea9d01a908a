package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// sample is a small tree with everything that Main has to deal with.
func sample(env cli.Env) *cobra.Command {
	root := &cobra.Command{Use: "tool", Short: "Do things", Long: "Tool does things."}
	group := &cobra.Command{Use: "thing", Short: "Work with things"}

	format := cli.Table
	var email string
	show := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a thing | really",
		Example: "  tool thing show x\n  tool thing show x -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "refused":
				return problem.New(problem.Refused, "A guard says no.", "tool thing show other")
			case "wrapped":
				return problem.Wrap(errors.New("dial: refused"), problem.Unavailable, "Cannot reach it.", "start it\nthen wait")
			case "outer":
				return fmt.Errorf("outer: %w", problem.New(problem.Found, "Found faults.", "mend them"))
			case "hostile":
				return problem.New(problem.Invalid, "bad \x1b]0;owned\x07 text", "run \x1b[2J")
			case "usage":
				return cli.UsageError("Give one of the two.")
			case "ctx":
				return problem.Wrap(c.Context().Err(), problem.Timeout, "The upload was not finished.", "run it again")
			case "plainctx":
				return c.Context().Err()
			}
			return cli.Print(env.Stdout, format, map[string]string{"name": args[0]}, func(g *cli.Grid) {
				g.Row("NAME", "EMAIL")
				g.Row(args[0], email)
			})
		},
	}
	cli.OutputFlag(show, &format)
	show.Flags().StringVar(&email, "email", "", "address")
	secret := show.Flags().String("secret", "", "not shown")
	_ = secret
	_ = show.Flags().MarkHidden("secret")

	need := &cobra.Command{Use: "need", Short: "Need a flag", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
	need.Flags().StringP("must", "m", "", "needed")
	_ = need.MarkFlagRequired("must")

	group.AddCommand(show, need)
	group.PersistentFlags().String("url", "http://localhost", "where")
	root.AddCommand(group, cli.VersionCommand(env, cli.Fact{Name: "engine", Value: "1.2"}),
		cli.CompletionCommand(env), cli.TreeCommand(env), cli.DocsCommand(env))
	return root
}

func run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	env := cli.Env{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
		Getenv: func(k string) string {
			return map[string]string{"AGNES_VERSION": "2026.04.3", "AGNES_COMMIT_SHA": "abc1234"}[k]
		},
	}
	code = cli.Main(ctx, env, sample)
	return code, out.String(), errs.String()
}

func TestMainReportsWhatIsWrongAndReturnsTheExitCode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args string
		code int
		want string
	}{
		"unknown command suggests the near one": {"thng", 2, "Error: tool has no command \"thng\".\nNext:  Did you mean thing? See: tool --help\n"},
		"unknown verb of a group":               {"thing shw", 2, "Error: tool thing has no command \"shw\".\nNext:  Did you mean show? See: tool thing --help\n"},
		"unknown word far from any":             {"thing zzzzzz", 2, "Error: tool thing has no command \"zzzzzz\".\nNext:  tool thing --help\n"},
		"unknown flag suggests the near one":    {"thing show x --emial a", 2, "Error: tool thing show: unknown flag: --emial.\nNext:  Did you mean --email? See: tool thing show --help\n"},
		"missing argument":                      {"thing show", 2, "Error: tool thing show: accepts 1 arg(s), received 0.\nNext:  tool thing show --help\n"},
		"missing required flag":                 {"thing need", 2, "Error: tool thing need: required flag(s) \"must\" not set.\nNext:  tool thing need --help\n"},
		"bad output format":                     {"thing show x -o xml", 2, "Error: tool thing show: invalid argument \"xml\" for \"-o, --output\" flag: expected table, json, yaml.\nNext:  tool thing show --help\n"},
		"usage found by the command":            {"thing show usage", 2, "Error: Give one of the two.\nNext:  tool thing show --help\n"},
		"a guard":                               {"thing show refused", 4, "Error: A guard says no.\nNext:  tool thing show other\n"},
		"a cause and a hint of two lines":       {"thing show wrapped", 1, "Error: Cannot reach it.\nCause: dial: refused\nNext:  start it\n       then wait\n"},
		"an error around a problem":             {"thing show outer", 3, "Error: outer: Found faults.\nNext:  mend them\n"},
		"text that would drive a terminal":      {"thing show hostile", 1, "Error: bad \\x1b]0;owned\\a text\nNext:  run \\x1b[2J\n"},
		"unknown help topic":                    {"help thing shw", 2, "Error: tool thing has no command \"shw\".\nNext:  Did you mean show? See: tool thing --help\n"},
		"unknown shell":                         {"completion tcsh", 2, "Error: tool completion: invalid argument \"tcsh\" for \"tool completion\".\nNext:  tool completion --help\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := run(t.Context(), strings.Fields(tc.args)...)
			if code != tc.code || stderr != tc.want || stdout != "" {
				t.Errorf("exit %d, stdout %q, stderr:\n%swant exit %d, stderr:\n%s", code, stdout, stderr, tc.code, tc.want)
			}
		})
	}
}

func TestMainAnswersOnStandardOutput(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"thing show x --email a@b.c": "NAME  EMAIL\nx     a@b.c\n",
		"thing show x":               "NAME  EMAIL\nx\n",
		"thing show x -o json":       "{\n  \"name\": \"x\"\n}\n",
		"thing show x -o yaml":       "name: x\n",
		"thing need -m x":            "",
	} {
		code, stdout, stderr := run(t.Context(), strings.Fields(args)...)
		if code != 0 || stdout != want || stderr != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q; want %q", args, code, stdout, stderr, want)
		}
	}
	code, stdout, _ := run(t.Context(), "version", "-o", "json")
	for _, part := range []string{`"version": "2026.04.3"`, `"commit": "abc1234"`, `"engine": "1.2"`} {
		if code != 0 || !strings.Contains(stdout, part) {
			t.Errorf("version: exit %d, no %s in %s", code, part, stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, stdout, _ := run(t.Context(), "completion", shell); code != 0 || !strings.Contains(stdout, "tool") {
			t.Errorf("completion %s: exit %d and %d bytes", shell, code, len(stdout))
		}
	}
}

func TestACanceledCommandExits130AndSaysWhatWasLeft(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, stderr := run(ctx, "thing", "show", "ctx")
	if want := "Interrupted: The upload was not finished.\nNext:  run it again\n"; code != 130 || stderr != want {
		t.Errorf("exit %d, stderr %q; want 130, %q", code, stderr, want)
	}
	code, _, stderr = run(ctx, "thing", "show", "plainctx")
	if want := "Interrupted: What had not finished was left undone.\n"; code != 130 || stderr != want {
		t.Errorf("exit %d, stderr %q; want 130, %q", code, stderr, want)
	}
}

// terminal is a stream that says it is one.
type terminal struct{ bytes.Buffer }

func (*terminal) IsTerminal() bool { return true }

func TestErrorsAreColoredOnATerminalUnlessNoColor(t *testing.T) {
	t.Parallel()
	for noColor, want := range map[string]bool{"": true, "1": false} {
		var out bytes.Buffer
		errs := &terminal{}
		env := cli.Env{Args: []string{"nope"}, Stdin: strings.NewReader(""), Stdout: &out, Stderr: errs, Getenv: func(k string) string {
			if k == "NO_COLOR" {
				return noColor
			}
			return ""
		}}
		cli.Main(t.Context(), env, sample)
		if got := strings.Contains(errs.String(), "\x1b[31m"); got != want {
			t.Errorf("NO_COLOR=%q: color %v, want %v in %q", noColor, got, want, errs.String())
		}
	}
}

func TestProgressDrawsOnATerminalOnly(t *testing.T) {
	t.Parallel()
	var pipe bytes.Buffer
	tty := &terminal{}
	for _, env := range []cli.Env{{Stderr: &pipe}, {Stderr: tty}} {
		p := cli.NewProgress(env, "sync")
		p.Set(0.5, "orders \x1b[2J")
		p.Close()
	}
	if pipe.Len() > 0 {
		t.Errorf("the pipe got %q, want nothing", pipe.String())
	}
	if tty.Len() == 0 || strings.Contains(tty.String(), "orders \x1b") {
		t.Errorf("the terminal got %q, want a bar with sanitized text", tty.String())
	}
}

func TestHelpTreeAndDocs(t *testing.T) {
	t.Parallel()
	for file, args := range map[string][]string{
		"help.golden":       {"--help"},
		"help-group.golden": {"help", "thing"},
		"surface.golden":    {"surface"},
		"docs.golden":       {"docs"},
	} {
		code, stdout, stderr := run(t.Context(), args...)
		if code != 0 || stderr != "" {
			t.Errorf("%v: exit %d, stderr %q", args, code, stderr)
		}
		golden.Compare(t, filepath.Join("testdata", file), []byte(stdout))
		if strings.Contains(stdout, "not shown") {
			t.Errorf("%v shows a hidden flag", args)
		}
	}
	_, bare, _ := run(t.Context())
	_, help, _ := run(t.Context(), "--help")
	if bare != help {
		t.Errorf("the bare program prints:\n%s\nwant its help:\n%s", bare, help)
	}
}
