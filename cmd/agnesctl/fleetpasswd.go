package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/dashboard"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newFleetPasswd(env cli.Env) *cobra.Command {
	var file string
	var stdin, remove bool
	c := &cobra.Command{
		Use:   "passwd NAME",
		Short: "Set or remove a login of the fleet's page",
		Long: `passwd writes a login into the file that agnesctl fleet serve --auth-file reads:
NAME and a bcrypt hash, which htpasswd -B writes alike. The page takes it at once, and
ends the sessions of the password before.`,
		Example: `  agnesctl fleet passwd anna --auth-file logins
  printf '%s\n' "$PASSWORD" | agnesctl fleet passwd anna --auth-file logins --password-stdin
  agnesctl fleet passwd anna --auth-file logins --remove`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&file, "auth-file", "", "file of logins")
	c.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	c.Flags().BoolVar(&remove, "remove", false, "remove the login")
	_ = c.MarkFlagRequired("auth-file")
	_ = c.MarkFlagFilename("auth-file")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, line := args[0], ""
		if !remove {
			password, err := (&app{env: env}).password(c.Context(), stdin, true)
			if err != nil {
				return err
			}
			if line, err = dashboard.HashLogin(name, password); err != nil {
				return err
			}
		}
		return setLogin(env, file, name, line)
	}
	return c
}

// setLogin replaces a name's line; without one it is removed.
func setLogin(env cli.Env, file, name, line string) error {
	cannot := func(err error) error {
		return problem.Wrap(err, problem.Usage, "The logins in "+file+" cannot be changed.", "Check its folder and permissions, or name another file: --auth-file FILE")
	}
	content, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cannot(err)
	}
	var lines []string
	found := false
	for old := range strings.Lines(string(content)) {
		old = strings.TrimRight(old, "\r\n")
		if of, _, _ := strings.Cut(old, ":"); of == name {
			found = true
			continue
		}
		lines = append(lines, old)
	}
	if line == "" && !found {
		return problem.New(problem.NotFound, fmt.Sprintf("Expected a login %q in %s, found none.", name, file), "See which there are: cut -d: -f1 "+shellQuote(file))
	}
	if line != "" {
		lines = append(lines, line)
	}
	text := ""
	if len(lines) > 0 {
		text = strings.Join(lines, "\n") + "\n"
	}
	if err := replaceLogins(file, text); err != nil {
		return cannot(err)
	}
	fmt.Fprintf(env.Stderr, "%s: %s\n", cli.Sanitize(file), map[bool]string{true: "removed " + name, false: "set the password of " + name}[line == ""])
	return nil
}

// replaceLogins puts a file in place of another one, for the same owner and group to
// read: whoever sets a password with sudo must not take the file away from the page.
func replaceLogins(file, text string) (err error) {
	mode, owner := fs.FileMode(0o600), &syscall.Stat_t{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	if info, err := os.Stat(file); err == nil {
		mode |= info.Mode().Perm() & 0o040
		if of, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = of
		}
	}
	fresh, err := renameio.NewPendingFile(file, renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fresh.Cleanup()) }()
	if err := fresh.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return err
	}
	if _, err := fresh.WriteString(text); err != nil {
		return err
	}
	return fresh.CloseAtomicallyReplace()
}
