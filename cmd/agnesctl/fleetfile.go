package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// fleetFlags say which inventory is meant, and which of its instances.
type fleetFlags struct {
	env       cli.Env
	file      string
	selector  string
	git, at   string
	secretDir string
}

func (f *fleetFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVarP(&f.file, "file", "f", "fleet.yaml", "inventory; with --git its path inside the repository")
	flags.StringVarP(&f.selector, "selector", "l", "", "instances by their labels, such as 'tier=canary,cloud!=aws,region in (eu,us),!beta'")
	flags.StringVar(&f.git, "git", "", "git repository to read the inventory from; AGNES_GIT_TOKEN signs in over https")
	flags.StringVar(&f.at, "at", "", "branch, tag or commit: what was wanted then")
	flags.StringVar(&f.secretDir, "secrets", "", "folder for ${file:…} in place of the inventory's own")
	_ = c.MarkFlagFilename("file", "yaml", "yml") // the error is "flag does not exist" only
	_ = c.MarkFlagDirname("secrets")
}

// words name the same inventory to another command.
func (f *fleetFlags) words() []string {
	words := []string{"-f", f.file}
	for _, flag := range []struct{ name, value string }{{"--git", f.git}, {"--at", f.at}, {"--secrets", f.secretDir}} {
		if flag.value != "" {
			words = append(words, flag.name, flag.value)
		}
	}
	return words
}

// load returns the inventory, and those of its instances that are meant.
func (f *fleetFlags) load(ctx context.Context) (*fleet.Inventory, []fleet.Instance, error) {
	selector, err := fleet.ParseSelector(f.selector)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.Usage, "-l cannot be read", "Write it as -l 'tier=canary,cloud!=aws,region in (eu,us),!beta'")
	}
	o := fleet.LoadOptions{Getenv: f.env.Getenv, SecretDir: f.secretDir, GitToken: redact.Secret(f.env.Getenv("AGNES_GIT_TOKEN"))}
	var inventory *fleet.Inventory
	switch {
	case f.git != "":
		inventory, err = fleet.LoadGit(ctx, f.git, f.at, f.file, o)
	case f.at != "":
		inventory, err = fleet.LoadAt(ctx, f.file, f.at, o)
	default:
		inventory, err = fleet.Load(f.file, o)
	}
	if err != nil {
		return nil, nil, err
	}
	chosen := inventory.Select(selector)
	if len(chosen) == 0 && len(inventory.Instances) > 0 {
		fmt.Fprintf(f.env.Stderr, "None of %s matches %s.\n", plural(len(inventory.Instances), "instance"), cli.Sanitize(selector.String()))
	}
	return inventory, chosen, nil
}

// fleetListing is the answer of `agnesctl fleet list`. It names where tokens are,
// and holds none.
type fleetListing struct {
	Image     string          `json:"image"`
	Waves     []listedWave    `json:"waves"`
	Instances []listedMachine `json:"instances"`
}

type listedWave struct {
	Name           string         `json:"name"`
	Match          fleet.Selector `json:"match"`
	Percent        int            `json:"percent,omitempty"`
	Soak           string         `json:"soak"`
	MaxUnavailable string         `json:"max_unavailable"`
	Members        int            `json:"members"` // of the whole fleet
}

type listedMachine struct {
	Name     string            `json:"name"`
	URL      string            `json:"url"`
	Wanted   string            `json:"wanted"`
	Channel  string            `json:"channel,omitempty"`
	Pin      string            `json:"pin,omitempty"`
	Delivery string            `json:"delivery"`
	Host     string            `json:"host,omitempty"`
	Cloud    string            `json:"cloud,omitempty"`
	Wave     string            `json:"wave"`
	Labels   map[string]string `json:"labels"`
	Interval string            `json:"interval"`
	Timeout  string            `json:"timeout"`
	Token    string            `json:"token,omitempty"` // ${file:…} or ${env:…}
	Source   string            `json:"source"`
}

func listFleet(inventory *fleet.Inventory, chosen []fleet.Instance) (fleetListing, error) {
	assigned, err := inventory.Assign(inventory.Waves)
	if err != nil {
		return fleetListing{}, err
	}
	listing := fleetListing{Image: inventory.Image, Waves: []listedWave{}, Instances: []listedMachine{}}
	wave := map[string]string{}
	for _, a := range assigned {
		listing.Waves = append(listing.Waves, listedWave{
			Name: a.Wave.Name, Match: a.Wave.Match, Percent: a.Wave.Percent, Soak: a.Wave.Soak.String(),
			MaxUnavailable: a.Wave.MaxUnavailable.String(), Members: len(a.Members),
		})
		for _, m := range a.Members {
			wave[m.Name] = a.Wave.Name
		}
	}
	for _, i := range chosen {
		listing.Instances = append(listing.Instances, listedMachine{
			Name: i.Name, URL: i.URL, Wanted: i.Wanted(), Channel: i.Channel, Pin: i.Pin, Delivery: i.Delivery(), Host: i.Host, Cloud: i.Cloud,
			Wave: wave[i.Name], Labels: i.Labels, Interval: i.Interval.String(), Timeout: i.Timeout.String(), Token: i.Token.String(), Source: i.Source.String(),
		})
	}
	return listing, nil
}

func newFleetList(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	format := cli.Table
	c := &cobra.Command{
		Use:   "list",
		Short: "Check an inventory, and list what it wants of whom",
		Long: `List the instances of an inventory with what each should run, how it gets there and
which wave of a rollout takes it. No instance is asked. An inventory with faults is
refused with all of them, by file, line and column.`,
		Example: `  agnesctl fleet list
  agnesctl fleet list -f ops/fleet.yaml -l 'tier=canary,cloud!=aws'
  agnesctl fleet list --at HEAD~3 -o json
  agnesctl fleet list --git https://github.com/acme/fleet.git --at main`,
		Args: cobra.NoArgs,
	}
	f.add(c)
	cli.OutputFlag(c, &format)
	c.RunE = func(c *cobra.Command, _ []string) error {
		inventory, chosen, err := f.load(c.Context())
		if err != nil {
			return err
		}
		listing, err := listFleet(inventory, chosen)
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, listing, func(g *cli.Grid) {
			g.Row("NAME", "URL", "WANTED", "DELIVERY", "WAVE", "LABELS")
			for _, m := range listing.Instances {
				g.Row(m.Name, m.URL, m.Wanted, m.Delivery, m.Wave, labelText(m.Labels))
			}
		})
	}
	return c
}

// labelText writes labels as a selector has them.
func labelText(labels map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, key+"="+labels[key])
	}
	return strings.Join(all, ",")
}

func newFleetSchema(env cli.Env) *cobra.Command {
	var part bool
	c := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of an inventory, for editors",
		Long: `Print the JSON Schema (draft 2020-12) of fleet.yaml. It is made from the table
that the decoder checks against. An editor with a YAML language server follows it
where the inventory begins with:

  # yaml-language-server: $schema=fleet.schema.json`,
		Example: `  agnesctl fleet schema > fleet.schema.json
  agnesctl fleet schema --part > customers/part.schema.json`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVar(&part, "part", false, "of a file that the inventory includes")
	c.RunE = func(*cobra.Command, []string) error {
		made := fleet.Schema
		if part {
			made = fleet.PartSchema
		}
		text, err := made()
		if err != nil {
			return err
		}
		if _, err := env.Stdout.Write(text); err != nil {
			return fmt.Errorf("write the schema: %w", err)
		}
		return nil
	}
	return c
}
