package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// setupResult is the answer of `instance setup`.
type setupResult struct {
	URL     string             `json:"url"`
	Changed bool               `json:"changed"` // false: the instance was as wanted already
	Steps   []setupStep        `json:"steps"`
	Tables  []api.CatalogTable `json:"tables"`
	Next    []string           `json:"next"`
}

type setupStep struct {
	Name    string `json:"name"`
	Changed bool   `json:"changed"`
	Detail  string `json:"detail"`
}

// setup is one run of `instance setup`: an ordered list of steps, each of which
// looks first and acts only where something is missing.
type setup struct {
	*app
	address        string
	email          string
	name           string // the admin's
	passwordStdin  bool
	setupToken     string
	setupTokenFile string
	timeout        time.Duration
	request        api.ConfigureRequest

	client     *api.Client
	result     setupResult
	newData    bool // the configuration changed what a sync brings
	registered int  // tables registered now
}

func (a *app) setupCommand() *cobra.Command {
	var (
		s       settings
		u       = &setup{app: a}
		dryMode bool
		format  cli.Format
	)
	c := &cobra.Command{
		Use:   "setup",
		Short: "Take a fresh instance to synced tables",
		Long: `Take a fresh instance to synced tables: create the first admin (or sign in when
there is one), choose the data source, register its tables, sync them and wait.
Each step looks first, so a second run changes nothing and says so. The login is
saved for further commands.

An instance that others can reach asks for its setup token. It is in the log of
the first start and in DATA_DIR/state/.setup_token.`,
		Example: `  agnesctl instance setup --email admin@company.com --source csv --csv-dir /srv/shop
  agnesctl instance setup --url https://data.company.com --email admin@company.com --password-stdin \
    --setup-token-file setup_token --source csv --csv-dir /srv/shop -o json <password.txt`,
		Args: cobra.NoArgs,
		RunE: a.does(func(c *cobra.Command, _ []string) error {
			var err error
			if u.address, err = a.target(); err != nil {
				return err
			}
			if u.request, err = s.request(c, u.address); err != nil {
				return err
			}
			if dryMode {
				return u.plan(c.Context(), format)
			}
			return u.run(c.Context(), format)
		}),
	}
	f := c.Flags()
	f.StringVar(&u.email, "email", "", "e-mail address of the admin; may be left out where a token is at hand")
	f.StringVar(&u.name, "name", "", "name of the admin")
	f.BoolVar(&u.passwordStdin, "password-stdin", false, "read the password from the first line of standard input")
	f.StringVar(&u.setupTokenFile, "setup-token-file", "", "file that holds the setup token (AGNES_SETUP_TOKEN_FILE)")
	f.StringVar(&u.setupToken, "setup-token", "", "one-time setup token (AGNES_SETUP_TOKEN)")
	f.DurationVar(&u.timeout, "timeout", 0, "longest time to wait for the sync, such as 10m; 0 is no limit")
	f.BoolVar(&dryMode, "dry-run", false, "print the calls that would be made")
	s.register(c)
	c.MarkFlagsMutuallyExclusive("setup-token", "setup-token-file")
	cli.OutputFlag(c, &format)
	return c
}

func (u *setup) run(ctx context.Context, format cli.Format) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) (changed bool, detail string, err error)
	}{
		{"admin", u.admin},
		{"configure", u.configure},
		{"discover", u.discover},
		{"sync", u.sync},
	} {
		changed, detail, err := step.do(ctx)
		if err != nil {
			return err
		}
		u.note("%s: %s", step.name, detail)
		u.result.Steps = append(u.result.Steps, setupStep{Name: step.name, Changed: changed, Detail: detail})
		u.result.Changed = u.result.Changed || changed
	}
	catalog, err := u.client.Catalog(ctx)
	if err != nil {
		return err
	}
	u.result.URL = u.address
	u.result.Tables = catalog.Tables
	u.result.Next = u.next()
	return cli.Print(u.env.Stdout, format, u.result, func(g *cli.Grid) {
		catalogGrid(g, catalog.Tables)
		if !u.result.Changed {
			g.Line("Nothing to do: %s is set up as wanted.", u.address)
		}
		for _, line := range u.result.Next {
			g.Line("Next: %s", line)
		}
	})
}

func (u *setup) next() []string {
	next := []string{u.command("tables"), u.command("health")}
	if len(u.result.Tables) > 0 {
		sql := fmt.Sprintf("SELECT * FROM %s LIMIT 5", `"`+strings.ReplaceAll(u.result.Tables[0].ID, `"`, `""`)+`"`)
		next = append([]string{u.command("query %s", shellQuote(sql))}, next...)
	}
	return next
}

// admin leaves u with a client that is signed in.
func (u *setup) admin(ctx context.Context) (bool, string, error) {
	anonymous, err := u.clientWith(u.address, "")
	if err != nil {
		return false, "", err
	}
	health, err := anonymous.Health(ctx)
	if err != nil {
		return false, "", err
	}
	if u.email == "" {
		return u.tokenAtHand(health)
	}
	password, err := u.password(ctx, u.passwordStdin, health.SetupRequired)
	if err != nil {
		return false, "", err
	}
	created := false
	var got *api.TokenResponse
	if health.SetupRequired {
		if got, err = u.bootstrap(ctx, anonymous, password); err != nil {
			return false, "", err
		}
		created = got != nil
	}
	if got == nil {
		if got, err = anonymous.Token(ctx, api.TokenRequest{Email: u.email, Password: password}); err != nil {
			return false, "", err
		}
	}
	if u.client, err = u.clientWith(u.address, redact.Secret(got.AccessToken)); err != nil {
		return false, "", err
	}
	if _, err := u.saveLogin(u.address, got); err != nil {
		e := problem.As(err)
		u.note("Warning: %s %s", e.Message, e.Hint)
	}
	if created {
		return true, "created " + got.Email, nil
	}
	return false, "signed in as " + got.Email, nil
}

func (u *setup) tokenAtHand(health *api.Health) (bool, string, error) {
	token, err := u.credential(u.address)
	if err != nil {
		return false, "", err
	}
	if health.SetupRequired || token == "" {
		return false, "", cli.UsageError("Expected --email: there is no token to go on with, or no admin yet.")
	}
	u.client, err = u.clientWith(u.address, token)
	return false, "uses the token at hand", err
}

// bootstrap creates the first admin. It returns nil without an error when
// somebody else was faster.
func (u *setup) bootstrap(ctx context.Context, client *api.Client, password redact.Secret) (*api.TokenResponse, error) {
	token, err := u.oneTimeToken()
	if err != nil {
		return nil, err
	}
	got, err := client.Bootstrap(ctx, api.BootstrapRequest{Email: u.email, Password: password, Name: u.name}, token)
	if problem.Is(err, problem.Forbidden) {
		if health, healthErr := client.Health(ctx); healthErr == nil && !health.SetupRequired {
			return nil, nil
		}
	}
	return got, err
}

func (u *setup) oneTimeToken() (redact.Secret, error) {
	if u.setupTokenFile != "" {
		return readSecretFile(u.setupTokenFile)
	}
	if token := cmp.Or(u.setupToken, u.env.Getenv("AGNES_SETUP_TOKEN")); token != "" {
		return redact.Secret(token), nil
	}
	if file := u.env.Getenv("AGNES_SETUP_TOKEN_FILE"); file != "" {
		return readSecretFile(file)
	}
	return "", nil
}

func (u *setup) configure(ctx context.Context) (bool, string, error) {
	lacks, err := compare(ctx, u.client, u.request)
	if err != nil {
		return false, "", err
	}
	req := lacks.req
	if !lacks.some {
		return false, "data source " + req.DataSource + " as before", nil
	}
	got, err := u.client.Configure(ctx, req)
	if problem.Is(err, problem.Conflict) && fixedAlready(ctx, u.client, req) {
		return false, "data source " + req.DataSource + ", fixed by the instance's environment", nil
	}
	if err != nil {
		return false, "", err
	}
	u.newData = lacks.data
	return true, fmt.Sprintf("stored %s, connection %s", describe(req), got.Connection), nil
}

func (u *setup) discover(ctx context.Context) (bool, string, error) {
	found, err := u.client.Discover(ctx, false)
	if err != nil {
		return false, "", err
	}
	for _, w := range found.Warnings {
		u.note("Warning: %s", w)
	}
	for _, e := range found.Errors {
		u.note("Warning: %s was not registered: %s %s", e.Table, e.Message, e.Hint)
	}
	u.registered = found.Registered
	detail := fmt.Sprintf("%d registered, %d were before", found.Registered, found.Skipped)
	return found.Registered > 0, detail, nil
}

// sync runs a job when tables are new, their source changed, or one has no data
// yet; a job that runs already is waited for instead.
func (u *setup) sync(ctx context.Context) (bool, string, error) {
	status, err := u.client.SyncStatus(ctx)
	if err != nil {
		return false, "", err
	}
	catalog, err := u.client.Catalog(ctx)
	if err != nil {
		return false, "", err
	}
	var id string
	switch {
	case status.Running != nil:
		id = status.Running.ID
	case len(catalog.Tables) == 0:
		return false, "there are no tables to sync", nil
	case u.registered == 0 && !u.newData && !neverSynced(status, catalog.Tables):
		return false, "tables are synced already", nil
	default:
		started, err := u.trigger(ctx, u.client, api.SyncRequest{})
		switch job := running(ctx, u.client); {
		case err == nil:
			id = started.JobID
		case problem.Is(err, problem.Conflict) && job != nil:
			id = job.ID
		default:
			return false, "", err
		}
	}
	job, err := u.await(ctx, u.client, id, u.timeout)
	if err != nil {
		return false, "", err
	}
	if err := jobError(job); err != nil {
		return false, "", err
	}
	for _, w := range job.Warnings {
		u.note("Warning: %s", w)
	}
	return true, fmt.Sprintf("job %s synced %s", job.ID, plural(len(job.Tables), "table")), nil
}

// neverSynced reports whether a table waits for its first data.
func neverSynced(status *api.SyncStatus, tables []api.CatalogTable) bool {
	for _, t := range tables {
		if t.QueryMode == "local" && t.LastSync == nil && !failedLast(status, t.ID) {
			return true
		}
	}
	return status.Last == nil
}

// failedLast reports whether the last job tried a table in vain while it
// succeeded as a whole: trying again would change nothing.
func failedLast(status *api.SyncStatus, table string) bool {
	if status.Last == nil || status.Last.Status != api.JobSucceeded {
		return false
	}
	for _, t := range status.Last.Tables {
		if t.ID == table {
			return t.Status == api.JobFailed
		}
	}
	return false
}

// plan prints what run would do, from what can be seen without changing
// anything.
func (u *setup) plan(ctx context.Context, format cli.Format) error {
	anonymous, err := u.clientWith(u.address, "")
	if err != nil {
		return err
	}
	health, err := anonymous.Health(ctx)
	if err != nil {
		return err
	}
	var calls []plannedCall
	switch {
	case health.SetupRequired:
		calls = append(calls, plannedCall{
			Method: "POST", Path: "/auth/bootstrap",
			Body: api.BootstrapRequest{Email: u.email, Password: redact.Placeholder, Name: u.name},
		})
	case u.email != "":
		calls = append(calls, plannedCall{
			Method: "POST", Path: "/auth/token",
			Body: api.TokenRequest{Email: u.email, Password: redact.Placeholder},
		})
	}
	return u.printPlan(format, u.address, append(calls,
		plannedCall{Method: "POST", Path: "/api/admin/configure", Body: u.request, When: "if a setting differs"},
		plannedCall{Method: "POST", Path: "/api/admin/discover-and-register"},
		plannedCall{Method: "POST", Path: "/api/sync/trigger", When: "if tables are new or never synced"},
	)...)
}
