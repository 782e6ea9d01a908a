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
		return firstLine(a.env.Stdin, "standard input")
	}
	file, ok := a.env.Stdin.(*os.File)
	if !ok || !cli.IsTerminal(file) {
		return "", cli.UsageError("There is no terminal to ask for the password; pass it on standard input with --password-stdin.")
	}
	prompts := []string{"Password: "}
	if fresh {
		prompts = append(prompts, "The same password again: ")
	}
	typed, err := a.ask(ctx, file, prompts)
	if err != nil {
		return "", err
	}
	if typed[0] == "" {
		return "", cli.UsageError("Expected a password.")
	}
	if fresh && typed[0] != typed[1] {
		return "", cli.UsageError("The two passwords differ.")
	}
	return redact.Secret(typed[0]), nil
}

// passwordFrom reads a password from the first line of a file; - is standard
// input.
func (a *app) passwordFrom(path string) (redact.Secret, error) {
	if path == "-" {
		return firstLine(a.env.Stdin, "standard input")
	}
	file, err := os.Open(path)
	if err != nil {
		return "", problem.Wrap(err, problem.Usage, fmt.Sprintf("Expected a password in %s, but it cannot be read.", path), "Check the path and its permissions.")
	}
	defer func() { _ = file.Close() }() // it was read alone
	return firstLine(file, path)
}

func firstLine(from io.Reader, name string) (redact.Secret, error) {
	line, err := bufio.NewReader(io.LimitReader(from, maxPassword+2)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", problem.Wrap(err, problem.Usage, fmt.Sprintf("The password cannot be read from %s.", name), "")
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" || len(line) > maxPassword {
		return "", cli.UsageError("Expected a password of 1 to %d bytes on the first line of %s.", maxPassword, name)
	}
	return redact.Secret(line), nil
}

// ask reads a line without echo for each prompt. Echo is off before the first
// prompt shows, so that nothing typed ahead appears, and it is on again however
// the reading ends, which a killed process could not see to. Ctrl-C arrives as
// a character and ends it like the context does.
func (a *app) ask(ctx context.Context, file *os.File, prompts []string) ([]string, error) {
	fd := int(file.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("turn the terminal's echo off: %w", err)
	}
	defer func() { _ = term.Restore(fd, before) }() // there is no other way to mend it
	terminal := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{file, a.env.Stderr}, "")

	type answer struct {
		lines []string
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		var got answer
		for _, prompt := range prompts {
			line, err := terminal.ReadPassword(prompt)
			if err != nil {
				got.err = err
				break
			}
			got.lines = append(got.lines, line)
		}
		done <- got
	}()
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case got := <-done:
		if got.err == nil {
			return got.lines, nil
		}
		err = got.err
		if errors.Is(err, io.EOF) { // Ctrl-C or Ctrl-D
			err = context.Canceled
		}
	}
	fmt.Fprint(a.env.Stderr, "\r\n") // leave the prompt's line
	return nil, err
}
