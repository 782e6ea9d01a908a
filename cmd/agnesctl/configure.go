package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// settings are the flags of what configure stores.
type settings struct {
	source, csvDir, csvOnBadRow, name, domain string
}

func (s *settings) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.source, "source", "", "kind of data source: csv, keboola, bigquery, jira, custom, local")
	f.StringVar(&s.csvDir, "csv-dir", "", "directory with CSV, TSV, JSON or Parquet files, on the instance's machine")
	f.StringVar(&s.csvOnBadRow, "csv-on-bad-row", "", "skip: keep the rest of the table; fail: keep its last good data")
	f.StringVar(&s.name, "instance-name", "", "name that the instance shows")
	f.StringVar(&s.domain, "allowed-domain", "", "e-mail domain that new users must have")
	_ = c.MarkFlagRequired("source") // the errors are "flag does not exist" only
	_ = c.RegisterFlagCompletionFunc("source", cobra.FixedCompletions(
		[]string{"csv", "keboola", "bigquery", "jira", "custom", "local"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.MarkFlagDirname("csv-dir")
}

// request returns the settings that flags name. A relative directory means one
// of this machine, so it is made absolute for an instance that runs here.
func (s *settings) request(c *cobra.Command, address string) (api.ConfigureRequest, error) {
	req := api.ConfigureRequest{DataSource: s.source}
	if c.Flags().Changed("csv-dir") {
		dir := s.csvDir
		if !filepath.IsAbs(dir) {
			if !loopback(address) || dir == "" {
				return req, cli.UsageError("--csv-dir is a directory on the instance's machine: expected an absolute path, found %q.", dir)
			}
			absolute, err := filepath.Abs(dir)
			if err != nil {
				return req, fmt.Errorf("make %s absolute: %w", dir, err)
			}
			dir = absolute
		}
		dir = filepath.Clean(dir)
		req.CSVDir = &dir
	}
	for flag, field := range map[string]struct {
		from *string
		to   **string
	}{
		"csv-on-bad-row": {&s.csvOnBadRow, &req.CSVOnBadRow},
		"instance-name":  {&s.name, &req.InstanceName},
		"allowed-domain": {&s.domain, &req.AllowedDomain},
	} {
		if c.Flags().Changed(flag) {
			*field.to = field.from
		}
	}
	return req, nil
}

func loopback(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	host := u.Hostname()
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

func (a *app) configureCommand() *cobra.Command {
	var (
		s       settings
		dryMode bool
		format  cli.Format
	)
	c := &cobra.Command{
		Use:   "configure",
		Short: "Choose the data source and the instance's settings",
		Long: `Choose the data source and the instance's settings; what no flag names stays. A
value that the instance's environment fixes is refused with exit code 4.`,
		Example: `  agnesctl instance configure --source csv --csv-dir /srv/shop
  agnesctl instance configure --source csv --instance-name Shop --dry-run`,
		Args: cobra.NoArgs,
		RunE: a.does(func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			req, err := s.request(c, client.URL())
			if err != nil {
				return err
			}
			if dryMode {
				return a.printPlan(format, client.URL(), plannedCall{Method: "POST", Path: "/api/admin/configure", Body: req})
			}
			got, err := client.Configure(c.Context(), req)
			if err != nil {
				return err
			}
			return cli.Print(a.env.Stdout, format, got, func(g *cli.Grid) {
				g.Line("Configured the data source %s (connection %s).", got.DataSource, got.Connection)
				g.Line("Next: %s", a.command("discover"))
			})
		}),
	}
	s.register(c)
	c.Flags().BoolVar(&dryMode, "dry-run", false, "print the call that would be made")
	cli.OutputFlag(c, &format)
	return c
}

// difference is what an instance lacks of wanted settings.
type difference struct {
	req  api.ConfigureRequest // these settings alone
	some bool                 // there are any
	data bool                 // one of them changes what a sync brings
}

// compare returns the settings of req that the instance does not have yet. An
// instance that does not tell its settings gets all of them.
func compare(ctx context.Context, client *api.Client, req api.ConfigureRequest) (difference, error) {
	config, err := client.Config(ctx)
	if problem.Is(err, problem.NotFound) {
		return difference{req: req, some: true, data: true}, nil
	}
	if err != nil {
		return difference{}, err
	}
	source, _ := config.Value("data_source")
	for key, field := range map[string]**string{
		"csv_dir":        &req.CSVDir,
		"csv_on_bad_row": &req.CSVOnBadRow,
		"instance_name":  &req.InstanceName,
		"allowed_domain": &req.AllowedDomain,
	} {
		if value, _ := config.Value(key); *field != nil && **field == value {
			*field = nil
		}
	}
	data := source != req.DataSource || req.CSVDir != nil || req.CSVOnBadRow != nil
	return difference{req: req, some: data || req.InstanceName != nil || req.AllowedDomain != nil, data: data}, nil
}

// fixedAlready reports whether the settings of req that a Conflict refused are
// what the instance has anyway, as far as it tells.
func fixedAlready(ctx context.Context, client *api.Client, req api.ConfigureRequest) bool {
	config, err := client.Config(ctx)
	if err != nil {
		return false
	}
	if source, _ := config.Value("data_source"); source != req.DataSource {
		return false
	}
	if req.CSVDir == nil {
		return true
	}
	dir, told := config.Value("csv_dir")
	return !told || filepath.Clean(dir) == *req.CSVDir
}

// describe lists the settings of a request, for a step's detail.
func describe(req api.ConfigureRequest) string {
	encoded, err := json.Marshal(req) // secrets print as [redacted]
	if err != nil {
		return req.DataSource
	}
	return string(encoded)
}
