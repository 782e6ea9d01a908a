package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// newAction runs the verb that a GitHub Action's inputs name, so that the action
// itself is one call without logic: action.yml gives every input as INPUT_NAME.
func newAction(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "action",
		Short: "Run the verb that the inputs of a GitHub Action name",
		Long: `action runs one verb as action.yml calls it: INPUT_VERB is the verb, INPUT_VERSION
its version, INPUT_VERDICT the word that "verdict" takes, and every other input of
action.yml, INPUT_NAME, the value of the verb's flag --name. An input that the verb has no flag for is refused. A failure becomes an
annotation of the workflow run.`,
		Example: `  INPUT_VERB="version claim" INPUT_CHANNEL=dev INPUT_GIT=. release-bot action`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := actionArgs(c.Root(), a.env.Getenv) // runAction has run what is right
			return err
		},
	}
}

// runAction runs the verb of the inputs instead of `action`.
func runAction(ctx context.Context, env cli.Env) int {
	if args, err := actionArgs(newRoot(env), env.Getenv); err == nil {
		env.Args = args
	}
	var said bytes.Buffer
	stderr := env.Stderr
	env.Stderr = io.MultiWriter(stderr, &said)
	code := cli.Main(ctx, env, newRoot)
	if code != 0 && env.Getenv("GITHUB_ACTIONS") == "true" {
		fmt.Fprintf(stderr, "::error title=release-bot %s::%s\n",
			escapeProperty(env.Getenv("INPUT_VERB")), escapeData(strings.TrimSpace(said.String())))
	}
	return code
}

// actionInputs are the inputs of action.yml besides verb, version and verdict; a test
// holds the two lists together.
func actionInputs() []string {
	return []string{
		"api-url", "apply", "at", "breaking", "channel", "commit", "detail", "digest", "dry-run", "failed", "for", "from", "git", "in-use",
		"journal", "keep-first", "plan", "promotion", "publish", "reason", "registry", "replacement", "repo", "to", "write",
	}
}

// actionArgs makes a command line of a GitHub Action's inputs.
func actionArgs(root *cobra.Command, getenv func(string) string) ([]string, error) {
	const hint = "compare the step's `with:` with the inputs in action.yml, and the verb's flags: release-bot VERB --help"
	verb := strings.Fields(getenv("INPUT_VERB"))
	cmd, rest, err := root.Find(verb)
	if err != nil || len(verb) == 0 || len(rest) > 0 || cmd == root {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected a verb of release-bot in the input verb, found %q", getenv("INPUT_VERB")), hint)
	}
	args := slices.Clone(verb)
	for _, name := range actionInputs() {
		value := getenv("INPUT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
		if value == "" {
			continue
		}
		if flagOf(cmd, name) == nil {
			return nil, problem.New(problem.Usage, fmt.Sprintf("release-bot %s has no flag --%s, which the input %s sets", cmd.Name(), name, name), hint)
		}
		args = append(args, "--"+name+"="+value)
	}
	var positional []string
	if version := getenv("INPUT_VERSION"); version != "" {
		if flagOf(cmd, "version") != nil {
			args = append(args, "--version="+version)
		} else {
			positional = append(positional, version)
		}
	}
	switch verdict := getenv("INPUT_VERDICT"); {
	case verdict != "":
		positional = append(positional, verdict)
	case cmd.Name() == "verdict":
		return nil, problem.New(problem.Usage, "expected pass, fail or inconclusive in the input verdict, found nothing", hint)
	}
	if len(positional) > 0 {
		args = append(append(args, "--"), positional...)
	}
	return args, nil
}

func flagOf(c *cobra.Command, name string) *pflag.Flag {
	if f := c.Flags().Lookup(name); f != nil {
		return f
	}
	return c.InheritedFlags().Lookup(name)
}

// escapeData and escapeProperty write text for a workflow command; the rules
// are those of GitHub's toolkit.
func escapeData(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s)
}

func escapeProperty(s string) string {
	return strings.NewReplacer(":", "%3A", ",", "%2C").Replace(escapeData(s))
}
