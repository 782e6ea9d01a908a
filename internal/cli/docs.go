package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Docs returns the reference manual of a command tree as Markdown: one section
// a command with its usage, flags and examples, and the exit codes.
func Docs(root *cobra.Command) string {
	tree := Tree(root)
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n", tree.Name)
	for _, c := range tree.Commands {
		if c.Path == tree.Name {
			fmt.Fprintf(&b, "%s\n\n", paragraphs(c))
			writeIndex(&b, tree)
			continue
		}
		if c.Runnable {
			writeCommand(&b, c)
		}
	}
	fmt.Fprintf(&b, "### Exit codes of %s\n\n", tree.Name)
	for line := range strings.Lines(strings.TrimPrefix(ExitCodes, "Exit codes:\n")) {
		code, meaning, _ := strings.Cut(strings.TrimSpace(line), " ")
		fmt.Fprintf(&b, "- `%s` %s\n", code, strings.TrimSpace(meaning))
	}
	return b.String()
}

func writeIndex(b *strings.Builder, tree Commands) {
	b.WriteString("| Command | |\n|---|---|\n")
	for _, c := range tree.Commands {
		if c.Runnable && c.Path != tree.Name {
			fmt.Fprintf(b, "| [`%s`](#%s) | %s |\n", c.Path, strings.ReplaceAll(c.Path, " ", "-"), cell(c.Short))
		}
	}
	b.WriteByte('\n')
}

func writeCommand(b *strings.Builder, c Command) {
	fmt.Fprintf(b, "### %s\n\n%s\n\n", c.Path, paragraphs(c))
	usage := strings.TrimSpace(c.Path + " " + c.Args)
	if len(c.Flags) > 0 {
		usage += " [flags]"
	}
	fmt.Fprintf(b, "```\n%s\n```\n\n", usage)
	if c.example != "" {
		fmt.Fprintf(b, "Examples:\n\n```sh\n%s\n```\n\n", unindent(c.example))
	}
	if len(c.Flags) == 0 {
		return
	}
	b.WriteString("| Flag | Type | Default | |\n|---|---|---|---|\n")
	for _, f := range c.Flags {
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		text := cell(f.usage)
		if f.Required {
			text += " (required)"
		}
		value := ""
		if f.Default != "" && f.Default != "[]" {
			value = "`" + f.Default + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", name, f.Type, value, text)
	}
	b.WriteByte('\n')
}

// paragraphs is the long text of a command, or its short one as a sentence.
func paragraphs(c Command) string {
	if c.long != "" {
		return c.long
	}
	return c.Short + "."
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func unindent(s string) string {
	var lines []string
	for line := range strings.Lines(strings.Trim(s, "\n")) {
		lines = append(lines, strings.TrimRight(strings.TrimPrefix(line, "  "), "\n"))
	}
	return strings.Join(lines, "\n")
}
