// Package cli is what the command lines share.
//
// A binary's main is three lines: Signals gives it a context that ends with
// Ctrl-C, OS its surroundings as an Env, and Main runs its command tree and
// returns the exit code. Because everything comes in through Env, a test runs
// the whole program in its own process.
//
// Answers go to standard output through Print, as a table, JSON or YAML;
// everything else goes to standard error: errors with their next step, progress
// (only on a terminal) and notes. Text that came from another machine passes
// Sanitize first, so that it cannot drive the reader's terminal.
//
// Tree and Docs describe a command tree for the surface document and for the
// reference manual; both give the same output for the same tree.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// exitInterrupted is the shell's convention for a process ended by SIGINT.
const exitInterrupted = 130

// ExitCodes is the documentation of the codes that Main returns.
const ExitCodes = `Exit codes:
  0    done
  1    failed
  2    the command line is wrong
  3    a check ran and found problems
  4    refused: a guard or a conflict stopped the action
  5    inconclusive: neither success nor failure could be shown
  130  interrupted`

// Env is a program's surroundings.
type Env struct {
	Args           []string // without the program's name
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// OS returns the surroundings of the running process.
func OS() Env {
	return Env{Args: os.Args[1:], Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr} //nolint:forbidigo // for main alone
}

// Signals returns a context that ends with the first SIGINT or SIGTERM. The
// second one kills the process, so that a person can always get out.
func Signals() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// IsTerminal reports whether a stream of an Env is a terminal. A stream that is
// no file answers by a method of the same name, which serves tests.
func IsTerminal(stream any) bool {
	switch s := stream.(type) {
	case *os.File:
		return term.IsTerminal(int(s.Fd()))
	case interface{ IsTerminal() bool }:
		return s.IsTerminal()
	default:
		return false
	}
}

// Main runs the command tree that root builds, prints what went wrong on
// standard error, and returns the exit code.
//
// What cobra itself finds wrong with a command line (flags, arguments, unknown
// commands) becomes a problem.Usage. A command that ends with context.Canceled
// in its error's chain was interrupted by a person: its message should say what
// was left undone.
func Main(ctx context.Context, env Env, root func(Env) *cobra.Command) int {
	cmd := root(env)
	var ran bool
	prepare(cmd, &ran)
	cmd.SetArgs(append([]string{}, env.Args...)) // cobra takes nil for os.Args
	cmd.SetIn(env.Stdin)
	cmd.SetOut(env.Stdout)
	cmd.SetErr(env.Stderr)

	found, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if !ran {
		err = usageError(found, err)
	}
	if errors.Is(err, context.Canceled) {
		printError(env, "Interrupted", err)
		return exitInterrupted
	}
	if e, ok := errors.AsType[*problem.Error](err); ok && e.Kind == problem.Usage && e.Hint == "" {
		e.Hint = seeHelp(found)
	}
	printError(env, "Error", err)
	return problem.ExitCode(err)
}

const groupAnnotation = "cli-group"

// prepare turns off cobra's own printing, makes command groups refuse words
// that they do not know, and notes in ran when a command's own code begins.
func prepare(root *cobra.Command, ran *bool) {
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true
	root.Long = strings.TrimSpace(root.Long) + "\n\n" + ExitCodes
	root.SetHelpCommand(helpCommand())
	// A group is runnable only to report unknown words; its help does not say so.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}",
		`{{if and .Runnable (not (index .Annotations "`+groupAnnotation+`"))}}`, 1))
	walk(root, func(c *cobra.Command) {
		c.SuggestionsMinimumDistance = 2
		if c.HasSubCommands() && !c.Runnable() {
			makeGroup(c)
		}
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				*ran = true
				return run(c, args)
			}
		}
	})
}

func makeGroup(c *cobra.Command) {
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[groupAnnotation] = "true"
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(c, args[0])
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
}

// walk visits c and everything below it.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, child := range c.Commands() {
		walk(child, visit)
	}
}
