package cli

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Commands describes a command tree: what people and scripts may type.
type Commands struct {
	Name     string    `json:"name"`
	Commands []Command `json:"commands"` // sorted by path
}

// Command is one command of a tree.
type Command struct {
	Path       string   `json:"path"` // such as "tool noun verb"
	Args       string   `json:"args"` // as in the usage line, empty for none
	Short      string   `json:"short"`
	Runnable   bool     `json:"runnable"` // false for a group, which only holds others
	Aliases    []string `json:"aliases,omitempty"`
	Deprecated string   `json:"deprecated,omitempty"`
	Flags      []Flag   `json:"flags"` // own and inherited, sorted by name

	long, example string
}

// Flag is one flag of a command.
type Flag struct {
	Name       string `json:"name"`
	Shorthand  string `json:"shorthand,omitempty"`
	Type       string `json:"type"`
	Default    string `json:"default"`
	Required   bool   `json:"required"`
	Deprecated string `json:"deprecated,omitempty"`

	usage string
}

// Tree describes the commands of root. Hidden commands and flags are left out,
// and so are `help` and --help, which every program has. The result depends on
// the tree alone.
func Tree(root *cobra.Command) Commands {
	out := Commands{Name: root.Name(), Commands: []Command{}}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		out.Commands = append(out.Commands, describe(c))
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
	slices.SortFunc(out.Commands, func(a, b Command) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

func describe(c *cobra.Command) Command {
	_, args, _ := strings.Cut(c.Use, " ")
	d := Command{
		Path:       c.CommandPath(),
		Args:       strings.TrimSpace(strings.TrimSuffix(args, "[flags]")),
		Short:      c.Short,
		Runnable:   c.Runnable() && c.Annotations[groupAnnotation] == "",
		Aliases:    slices.Sorted(slices.Values(c.Aliases)),
		Deprecated: c.Deprecated,
		Flags:      []Flag{},
		long:       strings.TrimSpace(strings.TrimSuffix(c.Long, ExitCodes)),
		example:    c.Example,
	}
	seen := map[string]bool{"help": true}
	add := func(f *pflag.Flag) {
		if f.Hidden || seen[f.Name] {
			return
		}
		seen[f.Name] = true
		d.Flags = append(d.Flags, Flag{
			Name:       f.Name,
			Shorthand:  f.Shorthand,
			Type:       f.Value.Type(),
			Default:    f.DefValue,
			Required:   slices.Contains(f.Annotations[cobra.BashCompOneRequiredFlag], "true"),
			Deprecated: f.Deprecated,
			usage:      f.Usage,
		})
	}
	c.LocalFlags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	slices.SortFunc(d.Flags, func(a, b Flag) int { return cmp.Compare(a.Name, b.Name) })
	return d
}
