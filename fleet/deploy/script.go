package deploy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Check reports what no host can run: no program, a zero byte, a malformed
// variable. Messages leave values out, which may be secrets.
func (c Command) Check() error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return problem.New(problem.Internal, "expected a command, found no program", "")
	}
	for i, text := range append([]string{c.Dir}, c.Args...) {
		if strings.ContainsRune(text, 0) {
			return problem.New(problem.Internal, fmt.Sprintf("expected text without a zero byte, found one in argument %d of %s", i-1, c.Args[0]), "")
		}
	}
	for _, pair := range c.Env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || !envName.MatchString(name) || strings.ContainsRune(value, 0) {
			return problem.New(problem.Internal, fmt.Sprintf("expected a variable NAME=value for %s, found the name %q", c.Args[0], name), "")
		}
	}
	return nil
}

// Script returns the command as text for a POSIX shell, for adapters whose host
// takes nothing else. The shell becomes the program: process number and exit
// code are the program's.
func (c Command) Script() (string, error) {
	if err := c.Check(); err != nil {
		return "", err
	}
	var b strings.Builder
	if dir := c.Dir; dir != "" {
		if !strings.HasPrefix(dir, "/") {
			dir = "./" + dir // neither an option, nor - for the last one, nor looked for in CDPATH
		}
		fmt.Fprintf(&b, "cd %s || exit 126\n", Quote(dir))
	}
	for _, pair := range c.Env {
		name, value, _ := strings.Cut(pair, "=")
		fmt.Fprintf(&b, "export %s=%s\n", name, Quote(value))
	}
	b.WriteString("exec")
	for _, arg := range c.Args {
		b.WriteString(" " + Quote(arg))
	}
	return b.String(), nil
}

// Quote returns text as one word of a POSIX shell (section 2.2.2: nothing is
// special between single quotes but the quote itself).
func Quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
