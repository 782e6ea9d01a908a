package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// surfaceFormat is raised when the document's own shape changes.
const surfaceFormat = 1

// surface is everything that others build upon, in one document, so that two
// versions can be compared without building either.
type surface struct {
	Format       int                        `json:"format"`
	OpenAPI      any                        `json:"openapi"`
	SystemSchema *state.SystemSchema        `json:"system_schema"`
	Extract      map[string][]column        `json:"extract"`
	Commands     map[string]json.RawMessage `json:"commands"`
	Config       []configKey                `json:"config"`
}

type column struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Rest string `json:"rest,omitempty"`
}

type configKey struct {
	Key      string   `json:"key"`
	Env      string   `json:"env"`
	Flag     string   `json:"flag,omitempty"`
	Default  string   `json:"default,omitempty"`
	OneOf    []string `json:"one_of,omitempty"`
	Required bool     `json:"required"`
	Secret   bool     `json:"secret"`
	Stored   bool     `json:"stored"`
}

func newSurface(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "surface",
		Short: "Print everything that others build upon as one JSON document",
		Long: `surface prints the HTTP API, the schema of system.duckdb, the extract contract,
the command trees and the configuration keys as one JSON document that is the
same for the same code. The repository keeps it as surface.json.`,
		Example: `  agnes surface --with bin/agnesctl --with bin/release-bot > surface.json`,
		Args:    cobra.NoArgs,
	}
	with := c.Flags().StringSlice("with", nil, "further binaries whose command trees belong to the document")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := makeSurface(c.Context(), c.Root(), *with)
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, cli.JSON, s, nil)
	}
	return c
}

func makeSurface(ctx context.Context, root *cobra.Command, with []string) (*surface, error) {
	schema, err := state.Schema(ctx)
	if err != nil {
		return nil, err
	}
	openAPI, err := describeAPI(ctx)
	if err != nil {
		return nil, err
	}
	s := &surface{
		Format: surfaceFormat, OpenAPI: openAPI, SystemSchema: schema,
		Extract: map[string][]column{
			connectors.MetaTable:         columns(connectors.MetaColumns()),
			connectors.RemoteAttachTable: columns(connectors.RemoteAttachColumns()),
		},
		Commands: map[string]json.RawMessage{},
	}
	own, err := json.Marshal(cli.Tree(root))
	if err != nil {
		return nil, err
	}
	s.Commands[root.Name()] = own
	for _, path := range with {
		out, err := exec.CommandContext(ctx, path, "surface").Output() //nolint:gosec // named on the command line by a developer
		if err != nil {
			return nil, fmt.Errorf("ask %s for its command tree: %w", path, err)
		}
		s.Commands[filepath.Base(path)] = out
	}
	for _, k := range settings.All() {
		s.Config = append(s.Config, configKey{k.Key, k.Env, k.Flag, k.Default, k.OneOf, k.Required, k.Secret, k.Stored})
	}
	return s, nil
}

func columns(in []connectors.Column) (out []column) {
	for _, c := range in {
		out = append(out, column{c.Name, c.Type, c.Rest})
	}
	return out
}

// describeAPI generates the OpenAPI document from an instance on an empty data
// directory, the way a real one does.
func describeAPI(ctx context.Context) (doc any, err error) {
	dir, err := os.MkdirTemp("", "agnes-surface-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log := slog.New(slog.DiscardHandler)
	instance, err := agent.Open(ctx, agent.Options{
		Inputs:  settings.Inputs{Flags: map[string]string{settings.DataDir: dir}, Getenv: func(string) string { return "" }},
		Sources: sources(log),
		Build:   buildinfo.Info{Version: "0", Channel: "dev"}, // the document must not depend on the build
		Log:     log,
	})
	if err != nil {
		return nil, err
	}
	defer closeInto(&err, instance)
	raw, err := json.Marshal(server.New(server.Options{Instance: instance, Log: log}).OpenAPI())
	if err != nil {
		return nil, err
	}
	return doc, json.Unmarshal(raw, &doc)
}
