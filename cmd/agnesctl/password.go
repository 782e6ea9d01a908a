package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const maxPassword = 1024

// password reads a password: the first line of standard input with
// --password-stdin, otherwise typed without echo, twice when it is a new one.
func (a *app) password(ctx context.Context, fromStdin, fresh bool) (redact.Secret, error) {
	if fromStdin {
		line, err := bufio.NewReader(io.LimitReader(a.env.Stdin, maxPassword+2)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", problem.Wrap(err, problem.Usage, "The password cannot be read from standard input.", "")
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" || len(line) > maxPassword {
			return "", cli.UsageError("Expected a password of 1 to %d bytes on the first line of standard input.", maxPassword)
		}
		return redact.Secret(line), nil
	}
	file, ok := a.env.Stdin.(*os.File)
	if !ok || !cli.IsTerminal(file) {
		return "", cli.UsageError("There is no terminal to ask for the password; pass it on standard input with --password-stdin.")
	}
	typed, err := a.ask(ctx, file, "Password: ")
	if err != nil || !fresh {
		return typed, err
	}
	again, err := a.ask(ctx, file, "The same password again: ")
	if err != nil {
		return "", err
	}
	if typed != again {
		return "", cli.UsageError("The two passwords differ.")
	}
	return typed, nil
}

// ask reads a line without echo. When ctx ends it gives the terminal its echo
// back, which a killed process could not.
func (a *app) ask(ctx context.Context, file *os.File, prompt string) (redact.Secret, error) {
	fd := int(file.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("look at the terminal: %w", err)
	}
	fmt.Fprint(a.env.Stderr, prompt) // a terminal that is gone shows in the read
	defer fmt.Fprintln(a.env.Stderr)
	type answer struct {
		line []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		done <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		_ = term.Restore(fd, before) // the process is about to end
		return "", ctx.Err()
	case got := <-done:
		if got.err != nil {
			return "", fmt.Errorf("read the password: %w", got.err)
		}
		if len(got.line) == 0 {
			return "", cli.UsageError("Expected a password.")
		}
		return redact.Secret(got.line), nil
	}
}
