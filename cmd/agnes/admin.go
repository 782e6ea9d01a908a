package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func newConfig(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "config",
		Short: "Show every setting with its value and where it comes from",
		Long: `config shows every setting, its value and its source. The first source that has
a value wins: flag, environment variable NAME, the file named by NAME_FILE,
DATA_DIR/state/instance.yaml, default. Secrets are redacted.`,
		Example: `  agnes config
  agnes config -o json`,
		Args: cobra.NoArgs,
	}
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(*cobra.Command, []string) error {
		config, _, err := agent.LoadConfig(settings.Inputs{Flags: flags(), Getenv: env.Getenv})
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, agent.ShowConfig(config), func(g *cli.Grid) {
			g.Row("SETTING", "VALUE", "SOURCE", "VARIABLE")
			for _, v := range config.Values() {
				g.Row(v.Key, v.Shown(), v.Source, v.Env)
			}
		})
	}
	return c
}

func newAdmin(env cli.Env) *cobra.Command {
	group := &cobra.Command{Use: "admin", Short: "Manage accounts beside the data, while the instance is stopped"}
	format := cli.Table
	create := &cobra.Command{
		Use:   "create",
		Short: "Create an admin account",
		Long: `create makes an admin in the data directory. It is the way back in where no
admin can sign in, so it needs no token but the instance has to be stopped.`,
		Example: `  agnes admin create --data-dir ./data --email you@company.com --password-stdin < password.txt`,
		Args:    cobra.NoArgs,
	}
	email := create.Flags().String("email", "", "e-mail address of the account")
	name := create.Flags().String("name", "", "the person's name")
	stdin := create.Flags().Bool("password-stdin", false, "read the password from standard input")
	_ = create.MarkFlagRequired("email")
	_ = create.MarkFlagRequired("password-stdin")
	cli.OutputFlag(create, &format)
	flags := configFlags(create, settings.DataDir)
	create.RunE = func(c *cobra.Command, _ []string) (err error) {
		if !*stdin {
			return cli.UsageError("The password comes from standard input; expected --password-stdin.")
		}
		password, err := readSecret(env.Stdin)
		if err != nil {
			return err
		}
		instance, err := open(c.Context(), env, flags())
		if err != nil {
			return err
		}
		defer closeInto(&err, instance)
		user, err := instance.CreateAdmin(c.Context(), api.CreateUserRequest{Email: *email, Name: *name, Password: password})
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, user, func(g *cli.Grid) {
			g.Line("Created the admin %s. Start the instance and sign in: agnesctl instance token --email %s", user.Email, user.Email)
		})
	}
	group.AddCommand(create)
	return group
}

func newToken(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "token",
		Short: "Create a personal access token beside the data, while the instance is stopped",
		Long: `token makes a personal access token for an account, for a machine that nobody
signs in to. The token is printed once. While the instance runs, use
agnesctl instance token instead.`,
		Example: `  agnes token --data-dir ./data --email you@company.com --name backup-job --days 30`,
		Args:    cobra.NoArgs,
	}
	email := c.Flags().String("email", "", "e-mail address of the account")
	name := c.Flags().String("name", "command line", "what the token is for")
	days := c.Flags().Int("days", 90, "days until it expires")
	_ = c.MarkFlagRequired("email")
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if *days < 1 {
			return cli.UsageError("--days is %d; expected at least 1.", *days)
		}
		instance, err := open(c.Context(), env, flags())
		if err != nil {
			return err
		}
		defer closeInto(&err, instance)
		token, err := instance.IssueAccessToken(c.Context(), *email, api.CreateTokenRequest{Name: *name, ExpiresInDays: *days})
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, token, func(g *cli.Grid) { g.Line("%s", token.Token) })
	}
	return c
}

// readSecret reads one line, so that `echo`, a file and a password manager all
// work.
func readSecret(r io.Reader) (redact.Secret, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", problem.New(problem.Usage, "Expected a password on standard input, found nothing.", "Pipe it in: … --password-stdin < password.txt")
	}
	return redact.Secret(line), nil
}
