package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Formats of a smoke test's report beside those of every command.
const (
	junit    cli.Format = "junit"
	markdown cli.Format = "markdown"
)

// smokeFlags are the command line of a smoke test.
type smokeFlags struct {
	email, passwordFile, ca, profile string
	wait                             time.Duration
	dryMode                          bool
	format                           cli.Format
}

func newSmoke(env cli.Env) *cobra.Command {
	a := &app{env: env}
	var o smokeFlags
	c := &cobra.Command{
		Use:   "smoke URL",
		Short: "Ask a running instance whether it works; the answer is a verdict",
		Long: `Ask a running instance whether it works: health, a login, the catalog, SELECT 1,
a sync, its end with fresh data, and health again without errors that were not
there before. It stops at the first step that is not answered well; the report
holds each request, its answer, status and time, without secrets.

Sign in with --email and --password-file, or give an administrator's token by
--token-file, AGNES_TOKEN, AGNES_TOKEN_FILE or a saved login: then the test makes
an account of its own and removes it at the end. The profile readonly starts no
sync and does not wait. The profile lite makes no account either: it asks for
health, catalog and SELECT 1 with the token itself.

The verdict is the exit code:
  0  pass
  1  fail: the instance answered wrongly, or not at all though its host did
  2  the command line is wrong
  5  inconclusive: the way to the instance or the credentials are at fault, or
     the test was interrupted; this says nothing about the release

In a GitHub workflow verdict and message are the step's outputs, and the report
is its summary.`,
		Example: `  agnesctl smoke https://canary.company.com --token-file canary.token
  agnesctl smoke http://127.0.0.1:8000 --email smoke@company.com --password-file smoke.password -o json
  agnesctl smoke https://canary.company.com --token-file canary.token -o junit > smoke.xml
  agnesctl smoke https://data.company.com --profile readonly -o markdown >> "$GITHUB_STEP_SUMMARY"`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			a.url = args[0]
			options, err := a.smokeOptions(o)
			if err != nil {
				return err
			}
			if o.dryMode {
				return a.printPlan(o.format, options.URL, smokePlan(options)...)
			}
			bar := cli.NewProgress(env, "smoke")
			done, all := 0, len(smokePlan(options))
			options.Progress = func(s smoke.Step) {
				done++
				bar.Set(float64(done)/float64(all), s.Name)
			}
			report := smoke.Run(c.Context(), options)
			bar.Close()
			verdict := smokeError(report)
			return firstOf(printSmoke(env, o.format, report), recordSmoke(env, o.format, report, verdict), verdict)
		},
	}
	f := c.Flags()
	f.StringVar(&o.email, "email", "", "sign in as this user; an admin for the full profile")
	f.StringVar(&o.passwordFile, "password-file", "", "file that holds the user's password; - is standard input")
	f.StringVar(&a.tokenFile, "token-file", "", "file that holds an administrator's token, for a throw-away account (AGNES_TOKEN_FILE)")
	f.StringVar(&o.profile, "profile", string(smoke.Full), "full: all steps; readonly: no sync; lite: reads with the token itself, makes no account")
	f.DurationVar(&o.wait, "wait", smoke.DefaultWait, "longest time to follow the sync")
	f.StringVar(&o.ca, "ca", "", "file of PEM certificates to trust besides the system's")
	f.BoolVar(&o.dryMode, "dry-run", false, "print the calls that would be made")
	cli.OutputFlag(c, &o.format, junit, markdown)
	c.MarkFlagsRequiredTogether("email", "password-file")
	c.MarkFlagsMutuallyExclusive("email", "token-file")
	_ = c.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions( // the error is "flag does not exist" only
		[]string{string(smoke.Full), string(smoke.ReadOnly), string(smoke.Lite)}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// smokeOptions reads what the command line names.
func (a *app) smokeOptions(o smokeFlags) (smoke.Options, error) {
	out := smoke.Options{Profile: smoke.Profile(o.profile), Wait: o.wait}
	switch {
	case out.Profile != smoke.Full && out.Profile != smoke.ReadOnly && out.Profile != smoke.Lite:
		return out, cli.UsageError("Expected the profile full, readonly or lite, found %q.", o.profile)
	case out.Profile == smoke.Lite && o.email != "":
		return out, cli.UsageError("The profile lite signs nobody in; expected a token (--token-file, AGNES_TOKEN) in place of --email.")
	case o.wait <= 0:
		return out, cli.UsageError("Expected a time to wait of more than 0, found %s.", o.wait)
	}
	var err error
	if out.URL, err = a.target(); err != nil {
		return out, err
	}
	if o.ca != "" {
		if out.TLS, err = trusting(o.ca); err != nil {
			return out, err
		}
	}
	if o.email != "" {
		out.Account.Email = o.email
		out.Account.Password, err = a.passwordFrom(o.passwordFile)
		return out, err
	}
	if out.AdminToken, err = a.credential(out.URL); err == nil && out.AdminToken == "" {
		err = cli.UsageError("Expected an account (--email and --password-file) or an administrator's token (--token-file, AGNES_TOKEN), found neither.")
	}
	return out, err
}

// trusting returns a TLS configuration with the system's roots and a file's.
func trusting(path string) (*tls.Config, error) {
	const hint = "Name a file of PEM blocks that begin with -----BEGIN CERTIFICATE-----."
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, fmt.Sprintf("Expected certificates in %s, but it cannot be read.", path), hint)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, problem.New(problem.Usage, fmt.Sprintf("Expected certificates in %s, found none.", path), hint)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}

// smokePlan lists the calls of a smoke test, one a step.
func smokePlan(o smoke.Options) []plannedCall {
	health := plannedCall{Method: http.MethodGet, Path: "/api/health"}
	calls := []plannedCall{
		health,
		{Method: http.MethodPost, Path: "/auth/token", Body: api.TokenRequest{Email: o.Account.Email, Password: o.Account.Password}},
		{Method: http.MethodGet, Path: "/api/catalog/tables"},
		{Method: http.MethodPost, Path: "/api/query", Body: api.QueryRequest{SQL: "SELECT 1"}},
	}
	switch {
	case o.Profile == smoke.Lite:
		calls[1] = plannedCall{Method: http.MethodGet, Path: "/api/health/details"}
		return calls
	case o.AdminToken != "":
		calls[1] = plannedCall{Method: http.MethodPost, Path: "/auth/token", When: "with a new account, removed at the end"}
	}
	if o.Profile == smoke.Full {
		calls = append(calls,
			plannedCall{Method: http.MethodPost, Path: "/api/sync/trigger"},
			plannedCall{Method: http.MethodGet, Path: "/api/sync/jobs/{id}", When: "until it ends, at most " + o.Wait.String()})
	}
	return append(calls, health)
}

func printSmoke(env cli.Env, format cli.Format, r smoke.Report) error {
	var out bytes.Buffer
	switch format {
	case junit:
		if err := smoke.WriteJUnit(&out, r); err != nil {
			return err
		}
	case markdown:
		if err := smoke.WriteMarkdown(&out, r); err != nil {
			return err
		}
	default:
		return cli.Print(env.Stdout, format, r, func(g *cli.Grid) { smokeGrid(g, r) })
	}
	if _, err := out.WriteTo(env.Stdout); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// recordSmoke gives a GitHub workflow's later steps the verdict, which they cannot
// tell from a step that failed, and its readers the report.
func recordSmoke(env cli.Env, format cli.Format, r smoke.Report, verdict error) error {
	said := struct {
		Verdict smoke.Verdict `json:"verdict"`
		Message string        `json:"message"`
	}{Verdict: r.Verdict}
	if verdict != nil {
		said.Message = cli.Sanitize(problem.As(verdict).Message)
	}
	var summary bytes.Buffer
	if format != markdown { // which is what people send there themselves
		if err := smoke.WriteMarkdown(&summary, r); err != nil {
			return err
		}
	}
	return cli.Record(env, said, summary.String())
}

func smokeGrid(g *cli.Grid, r smoke.Report) {
	g.Row("STEP", "VERDICT", "STATUS", "TIME", "DETAIL")
	for _, s := range r.Steps {
		verdict, status := string(s.Verdict), "-"
		if s.Skipped {
			verdict = "not run"
		}
		if s.Status != 0 {
			status = fmt.Sprint(s.Status)
		}
		g.Row(s.Name, verdict, status, time.Duration(s.ElapsedMS)*time.Millisecond, s.Detail)
	}
	for _, w := range r.Warnings {
		g.Line("Warning: %s", w)
	}
	g.Line("Verdict: %s (%s, version %s).", r.Verdict, r.URL, cmp.Or(r.Version, "unknown"))
}

// smokeError turns a verdict into its exit code.
func smokeError(r smoke.Report) error {
	kind, what := problem.Unprocessable, "failed"
	switch r.Verdict {
	case smoke.Pass:
		return nil
	case smoke.Inconclusive:
		kind, what = problem.Inconclusive, "is inconclusive"
	}
	s := r.Failed()
	if s == nil {
		return problem.New(kind, fmt.Sprintf("The smoke test of %s %s: its own account is left.", r.URL, what), "Remove it; the warning names it.")
	}
	return problem.New(kind, fmt.Sprintf("The smoke test of %s %s at %s. %s", r.URL, what, s.Name, s.Detail), s.Hint)
}
