package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// defaultURL is where `agnes serve` listens when nothing else is said.
const defaultURL = "http://127.0.0.1:8000"

// app is what the instance commands share.
type app struct {
	env       cli.Env
	url       string // --url
	token     string // --token
	tokenFile string // --token-file
	verbose   bool
}

func newInstance(env cli.Env) *cobra.Command {
	a := &app{env: env}
	c := &cobra.Command{
		Use:   "instance",
		Short: "Set up, feed and query one instance",
		Long: `Set up, feed and query one instance.

The instance is the one of --url, AGNES_URL or the last login, in this order,
and otherwise ` + defaultURL + `. The token is the one of --token-file, --token,
AGNES_TOKEN, AGNES_TOKEN_FILE or the saved login of that address. Prefer a file
or a login: other users of a machine can read the arguments of a process.`,
	}
	f := c.PersistentFlags()
	f.StringVar(&a.url, "url", "", "address of the instance (AGNES_URL)")
	f.StringVar(&a.tokenFile, "token-file", "", "file that holds an access token (AGNES_TOKEN_FILE)")
	f.StringVar(&a.token, "token", "", "access token; visible to other users of this machine (AGNES_TOKEN)")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log each call on standard error")
	c.MarkFlagsMutuallyExclusive("token", "token-file")
	c.AddCommand(
		a.setupCommand(),
		a.configureCommand(),
		a.discoverCommand(),
		a.syncCommand(),
		a.tablesCommand(),
		a.queryCommand(),
		a.healthCommand(),
		a.tokenCommand(),
	)
	return c
}

// target returns the address of the instance that is meant, in normal form.
func (a *app) target() (string, error) {
	raw := cmp.Or(a.url, a.env.Getenv("AGNES_URL"))
	if raw == "" {
		saved, err := a.readLogins()
		if err != nil {
			return "", err
		}
		raw = cmp.Or(saved.Current, defaultURL)
	}
	u, err := api.ParseURL(raw)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// credential returns the token for an address; it may be empty.
func (a *app) credential(address string) (redact.Secret, error) {
	switch {
	case a.tokenFile != "":
		return readSecretFile(a.tokenFile)
	case a.token != "":
		return redact.Secret(a.token), nil
	case a.env.Getenv("AGNES_TOKEN") != "":
		return redact.Secret(a.env.Getenv("AGNES_TOKEN")), nil
	case a.env.Getenv("AGNES_TOKEN_FILE") != "":
		return readSecretFile(a.env.Getenv("AGNES_TOKEN_FILE"))
	}
	saved, err := a.readLogins()
	if err != nil {
		return "", err
	}
	return redact.Secret(saved.Logins[address].Token), nil
}

func readSecretFile(path string) (redact.Secret, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", problem.Wrap(err, problem.Usage, fmt.Sprintf("Expected a token in %s, but it cannot be read.", path), "Check the path and its permissions.")
	}
	value := strings.TrimSpace(string(data))
	if value == "" || strings.ContainsAny(value, " \n\t") || len(value) > 16<<10 {
		return "", problem.New(problem.Usage, fmt.Sprintf("Expected one token in %s and nothing else.", path), "Write the token alone into the file.")
	}
	return redact.Secret(value), nil
}

// client returns a client for the instance that is meant, with the token that
// is at hand.
func (a *app) client() (*api.Client, error) {
	address, err := a.target()
	if err != nil {
		return nil, err
	}
	token, err := a.credential(address)
	if err != nil {
		return nil, err
	}
	return a.clientWith(address, token)
}

func (a *app) clientWith(address string, token redact.Secret) (*api.Client, error) {
	opts := []api.Option{
		api.WithToken(token),
		api.WithUserAgent("agnesctl/" + buildinfo.Get(a.env.Getenv).Version),
	}
	if a.verbose {
		handler := slog.NewTextHandler(cli.SafeWriter(a.env.Stderr), &slog.HandlerOptions{Level: slog.LevelDebug})
		opts = append(opts, api.WithLogger(slog.New(handler)))
	}
	return api.NewClient(address, opts...)
}

// command returns an agnesctl command line for a hint, for the same instance.
func (a *app) command(format string, args ...any) string {
	line := "agnesctl instance " + fmt.Sprintf(format, args...)
	if a.url != "" {
		line += " --url " + shellQuote(a.url)
	}
	return line
}

// does wraps a command's code: errors whose next step is a command of this
// program name it.
func (a *app) does(run func(c *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := run(c, args)
		e, ok := errors.AsType[*problem.Error](err)
		if !ok || err != error(e) { //nolint:errorlint // an error around a problem speaks for itself
			return err
		}
		named := *e
		switch {
		case e.Code == "setup_required":
			named.Hint = a.command("setup --email YOU@COMPANY --source csv --csv-dir DIR")
		case e.Kind == problem.Unauthenticated && c.Name() != "setup" && c.Name() != "token":
			named.Hint = "Sign in: " + a.command("token --email YOU@COMPANY")
		}
		return &named
	}
}

// note writes a line on standard error.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.env.Stderr, cli.Sanitize(fmt.Sprintf(format, args...))) // there is no one left to tell
}

// shellQuote quotes a word for a POSIX shell where that is needed.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
