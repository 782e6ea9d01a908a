package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func newFleet(env cli.Env) *cobra.Command {
	group := &cobra.Command{
		Use:   "fleet",
		Short: "Look after many instances at once",
		Long: `A fleet is what its inventory says: fleet.yaml, a file in git that names each
instance, what it should run, and the order of a rollout. docs/fleet.md explains
it; agnesctl fleet schema is its JSON Schema.`,
	}
	group.AddCommand(
		newFleetStatus(env), newFleetPlan(env), newFleetRollout(env),
		newFleetServe(env), newFleetHistory(env), newFleetAlerts(env), newFleetSD(env),
		newFleetList(env), newFleetSchema(env), newFleetPasswd(env),
	)
	return group
}
