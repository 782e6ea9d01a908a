package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Fact is a further line of `version`.
type Fact struct{ Name, Value string }

// VersionCommand says which build is running. Facts are added to what every
// binary knows.
func VersionCommand(env Env, facts ...Fact) *cobra.Command {
	format := Table
	c := &cobra.Command{
		Use:   "version",
		Short: "Print version, channel and commit of this build",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info := buildinfo.Get(env.Getenv)
			all := append([]Fact{
				{"version", info.Version},
				{"channel", info.Channel},
				{"commit", info.Commit},
				{"go", info.Go},
			}, facts...)
			value := make(map[string]string, len(all))
			for _, f := range all {
				value[f.Name] = f.Value
			}
			return Print(env.Stdout, format, value, func(g *Grid) {
				for _, f := range all {
					g.Row(f.Name, f.Value)
				}
			})
		},
	}
	OutputFlag(c, &format)
	return c
}

// CompletionCommand prints a completion script for a shell.
func CompletionCommand(env Env) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:       "completion " + strings.Join(shells, "|"),
		Short:     "Print a shell completion script",
		ValidArgs: shells,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(env.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(env.Stdout)
			case "fish":
				return root.GenFishCompletion(env.Stdout, true)
			default:
				return root.GenPowerShellCompletionWithDesc(env.Stdout)
			}
		},
	}
}

// TreeCommand is the hidden command `surface`: the command tree as JSON.
func TreeCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:    "surface",
		Short:  "Print this program's command tree as JSON",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return Print(env.Stdout, JSON, Tree(c.Root()), nil)
		},
	}
}

// DocsCommand is the hidden command `docs`: the reference manual as Markdown.
func DocsCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:    "docs",
		Short:  "Print this program's reference manual as Markdown",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := fmt.Fprint(env.Stdout, Docs(c.Root())); err != nil {
				return fmt.Errorf("write the manual: %w", err)
			}
			return nil
		},
	}
}

// helpCommand replaces cobra's, which answers an unknown topic with exit 0.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]...",
		Short: "Explain a command",
		RunE: func(c *cobra.Command, args []string) error {
			at := c.Root()
			for _, word := range args {
				next := child(at, word)
				if next == nil {
					return unknownCommand(at, word)
				}
				at = next
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}

func child(c *cobra.Command, name string) *cobra.Command {
	for _, sub := range c.Commands() {
		if sub.Name() == name || sub.HasAlias(name) {
			return sub
		}
	}
	return nil
}

// UsageError is a command line that a command's own code finds wrong. Main adds
// the command's --help as the next step.
func UsageError(format string, args ...any) error {
	return problem.New(problem.Usage, fmt.Sprintf(format, args...), "")
}
