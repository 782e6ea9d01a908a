package main

import (
	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// newVersion tells the build and holds the verbs of version numbers.
func newVersion(a *app) *cobra.Command { return cli.VersionCommand(a.env) }
