package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
)

// issueWait bounds how long one message waits for a code host's limits; after it
// the message is tried again later.
const issueWait = 30 * time.Second

// fleetChannels are the channels of an inventory, ready to be used.
func fleetChannels(inventory *fleet.Inventory) []alert.Channel {
	return alert.Channels(inventory.Alerts, alert.Options{
		Issues: func(repo, api string, token redact.Secret) (alert.Issues, error) {
			return github.New(github.Options{Repo: repo, API: api, Token: token, MaxWait: issueWait})
		},
	})
}

func newFleetAlerts(env cli.Env) *cobra.Command {
	group := &cobra.Command{
		Use:   "alerts",
		Short: "Channels that tell people of incidents",
		Long: `The inventory's alerts are the channels by which agnesctl fleet serve tells people
of incidents. docs/fleet.md, "Alerts", explains them.`,
	}
	group.AddCommand(newFleetAlertsTest(env))
	return group
}

// testedChannel is a line of the answer of `agnesctl fleet alerts test`.
type testedChannel struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Sent  bool   `json:"sent"`
	Link  string `json:"link"`
	Error string `json:"error"`
}

func newFleetAlertsTest(env cli.Env) *cobra.Command {
	f := &fleetFlags{env: env}
	format := cli.Table
	var dry bool
	c := &cobra.Command{
		Use:   "test [CHANNEL…]",
		Short: "Send a test message through each channel",
		Long: `test sends a message that says that nothing has happened through each channel of the
inventory, or through those that are named. On GitHub it opens an issue and closes
it again. With --dry-run it reads the secrets and sends nothing.

Exit codes: 0; 3 where a message did not arrive.`,
		Example: `  agnesctl fleet alerts test --dry-run
  agnesctl fleet alerts test slack
  agnesctl fleet alerts test -f ops/fleet.yaml -o json`,
	}
	f.add(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "send nothing")
	cli.OutputFlag(c, &format)
	c.RunE = func(c *cobra.Command, names []string) error {
		inventory, _, err := f.load(c.Context())
		if err != nil {
			return err
		}
		channels, err := namedChannels(fleetChannels(inventory), names)
		if err != nil {
			return err
		}
		tested := []testedChannel{}
		failed := 0
		for _, channel := range channels {
			one := testChannel(c.Context(), channel, dry)
			if one.Error != "" {
				failed++
			}
			tested = append(tested, one)
		}
		if err := cli.Print(env.Stdout, format, tested, func(g *cli.Grid) {
			g.Row("CHANNEL", "TYPE", "ARRIVED", "SAYS")
			for _, one := range tested {
				arrived := "yes"
				switch {
				case one.Error != "":
					arrived = "no"
				case !one.Sent:
					arrived = "not sent"
				}
				g.Row(one.Name, one.Type, arrived, strings.TrimSpace(one.Error+" "+one.Link))
			}
		}); err != nil {
			return err
		}
		if failed > 0 {
			return problem.New(problem.Found, fmt.Sprintf("%d of %s cannot be used.", failed, plural(len(tested), "channel")), "Mend what SAYS names, then: agnesctl fleet alerts test")
		}
		return nil
	}
	return c
}

func namedChannels(all []alert.Channel, names []string) ([]alert.Channel, error) {
	var known []string
	for _, c := range all {
		known = append(known, c.Name)
	}
	if len(all) == 0 {
		return nil, problem.New(problem.Usage, "Expected channels under alerts in the inventory, found none.", `docs/fleet.md, "Alerts", has an example of each.`)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, cli.UsageError("Expected one of the channels %s, found %q.", strings.Join(known, ", "), name)
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(c alert.Channel) bool { return !slices.Contains(names, c.Name) }), nil
}

func testChannel(ctx context.Context, c alert.Channel, dry bool) testedChannel {
	out := testedChannel{Name: c.Name, Type: string(c.Type)}
	var err error
	if dry {
		for _, secret := range []fleet.Token{c.URL, c.Secret} {
			_, wrong := secret.Read()
			err = errors.Join(err, wrong)
		}
	} else {
		out.Link, err = c.Sink.Send(ctx, alert.Message{ID: "test-" + strings.ToLower(rand.Text()), Test: true})
		out.Sent = err == nil
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}
