package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// signedIn is the answer of `instance token`. Token is there with --print only.
type signedIn struct {
	URL       string    `json:"url"`
	Email     string    `json:"email"`
	Role      string    `json:"role"`
	ExpiresAt time.Time `json:"expires_at"`
	SavedTo   string    `json:"saved_to,omitempty"`
	Token     string    `json:"token,omitempty"`
}

func (a *app) tokenCommand() *cobra.Command {
	var (
		email                        string
		passwordStdin, show, dryMode bool
		format                       cli.Format
	)
	c := &cobra.Command{
		Use:   "token",
		Short: "Sign in and save the access token",
		Long: `Sign in by password and save the access token for further commands, in
$XDG_CONFIG_HOME/agnesctl/logins.yaml (mode 0600). With --print the token goes to
standard output and nothing is saved.`,
		Example: `  agnesctl instance token --email admin@company.com
  agnesctl instance token --url https://data.company.com --email ci@company.com --password-stdin <password.txt
  agnesctl instance token --email ci@company.com --password-stdin --print <password.txt`,
		Args: cobra.NoArgs,
		RunE: a.does(func(c *cobra.Command, _ []string) error {
			address, err := a.target()
			if err != nil {
				return err
			}
			if dryMode {
				return a.printPlan(format, address, plannedCall{
					Method: "POST", Path: "/auth/token",
					Body: api.TokenRequest{Email: email, Password: redact.Placeholder},
				})
			}
			password, err := a.password(c.Context(), passwordStdin, false)
			if err != nil {
				return err
			}
			client, err := a.clientWith(address, "")
			if err != nil {
				return err
			}
			got, err := client.Token(c.Context(), api.TokenRequest{Email: email, Password: password})
			if err != nil {
				return err
			}
			out := signedIn{URL: address, Email: got.Email, Role: got.Role, ExpiresAt: got.ExpiresAt}
			if show {
				out.Token = got.AccessToken
			} else if out.SavedTo, err = a.saveLogin(address, got); err != nil {
				return err
			}
			return cli.Print(a.env.Stdout, format, out, func(g *cli.Grid) {
				if show {
					g.Line("%s", out.Token)
					return
				}
				g.Line("Signed in to %s as %s (%s) until %s.", out.URL, out.Email, out.Role, when(&out.ExpiresAt))
				g.Line("Saved to %s.", out.SavedTo)
			})
		}),
	}
	c.Flags().StringVar(&email, "email", "", "e-mail address of the account")
	c.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from the first line of standard input")
	c.Flags().BoolVar(&show, "print", false, "print the token instead of saving it")
	c.Flags().BoolVar(&dryMode, "dry-run", false, "print the call that would be made")
	_ = c.MarkFlagRequired("email") // the error is "flag does not exist" only
	cli.OutputFlag(c, &format)
	return c
}
