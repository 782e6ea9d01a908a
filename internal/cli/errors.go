package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// printError writes `label: message`, the cause where one is known, and
// `Next:  hint`, all sanitized: parts of it may come from another machine.
func printError(env Env, label string, err error) {
	message, cause, hint := err.Error(), "", ""
	if e, ok := errors.AsType[*problem.Error](err); ok {
		hint = e.Hint
		if err == error(e) { //nolint:errorlint // an error around a problem speaks for itself
			message = e.Message
			if e.Err != nil && !errors.Is(e.Err, context.Canceled) {
				cause = e.Err.Error()
			}
		}
	} else if errors.Is(err, context.Canceled) {
		message = "What had not finished was left undone."
	}

	red, bold, off := "", "", ""
	if IsTerminal(env.Stderr) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb" {
		red, bold, off = "\x1b[31m", "\x1b[1m", "\x1b[0m"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s:%s %s\n", red, label, off, indented(message))
	if cause != "" {
		fmt.Fprintf(&b, "Cause: %s\n", indented(cause))
	}
	if hint != "" {
		fmt.Fprintf(&b, "%sNext:%s  %s\n", bold, off, indented(hint))
	}
	_, _ = io.WriteString(env.Stderr, b.String()) // there is no one left to tell
}

// indented sanitizes text but keeps its line breaks, aligned below the first.
func indented(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range lines {
		lines[i] = Sanitize(lines[i])
	}
	return strings.Join(lines, "\n       ")
}

func seeHelp(c *cobra.Command) string {
	return c.CommandPath() + " --help"
}

// usageError explains what cobra or pflag said about a command line.
func usageError(c *cobra.Command, err error) error {
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return e
	}
	hint := seeHelp(c)
	if notExist, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if near := nearestFlag(c, notExist.GetSpecifiedName()); near != "" {
			hint = fmt.Sprintf("Did you mean --%s? See: %s", near, hint)
		}
	}
	message, _, _ := strings.Cut(err.Error(), "\n") // cobra appends its own suggestions
	return problem.New(problem.Usage, fmt.Sprintf("%s: %s.", c.CommandPath(), strings.TrimSuffix(message, ".")), hint)
}

func unknownCommand(c *cobra.Command, word string) error {
	hint := seeHelp(c)
	if near := c.SuggestionsFor(word); len(near) > 0 {
		hint = fmt.Sprintf("Did you mean %s? See: %s", strings.Join(near, " or "), hint)
	}
	return problem.New(problem.Usage, fmt.Sprintf("%s has no command %q.", c.CommandPath(), word), hint)
}

// nearestFlag returns the flag of c whose name is at most two edits away.
func nearestFlag(c *cobra.Command, name string) string {
	best, bestDistance := "", 3
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(f.Name, name); !f.Hidden && d < bestDistance {
			best, bestDistance = f.Name, d
		}
	})
	return best
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			above := row[j+1]
			row[j+1] = min(above+1, row[j]+1, diagonal+cost)
			diagonal = above
		}
	}
	return row[len(b)]
}
