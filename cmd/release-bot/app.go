package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// app is what the verbs share.
type app struct {
	env    cli.Env
	format cli.Format

	repo     string // owner/name on GitHub
	apiURL   string
	registry string // host/name of the image, without a tag
	git      string // path or URL of a git repository, instead of GitHub's API for refs
}

func (a *app) flags(f *pflag.FlagSet) {
	f.StringVar(&a.repo, "repo", a.env.Getenv("GITHUB_REPOSITORY"), "GitHub repository, `OWNER/NAME`")
	f.StringVar(&a.apiURL, "api-url", cmp.Or(a.env.Getenv("GITHUB_API_URL"), "https://api.github.com"), "`URL` of the GitHub API")
	f.StringVar(&a.registry, "registry", "", "image repository, `HOST/NAME` (default ghcr.io/OWNER/NAME)")
	f.StringVar(&a.git, "git", "", "git repository that holds claims and ledger, `PATH|URL`, instead of --repo")
	// Help and manual are the same wherever they are printed.
	f.Lookup("repo").DefValue = ""
	f.Lookup("api-url").DefValue = "https://api.github.com"
}

// token is what GitHub's API and GHCR are called with.
func (a *app) token() redact.Secret { return redact.Secret(a.env.Getenv("GITHUB_TOKEN")) }

// run identifies this run in claims and ledger.
func (a *app) run() string {
	if id := a.env.Getenv("GITHUB_RUN_ID"); id != "" {
		return id + "/" + cmp.Or(a.env.Getenv("GITHUB_RUN_ATTEMPT"), "1")
	}
	return "manual"
}

// answer prints a verb's answer and, in a GitHub workflow, also makes its
// top-level fields the step's outputs and its table the step's summary.
func (a *app) answer(title string, value any, table func(*cli.Grid)) error {
	if err := cli.Print(a.env.Stdout, a.format, value, table); err != nil {
		return err
	}
	if a.env.Getenv("GITHUB_OUTPUT") == "" && a.env.Getenv("GITHUB_STEP_SUMMARY") == "" {
		return nil
	}
	var text bytes.Buffer
	if err := cli.Print(&text, cli.Table, value, table); err != nil {
		return err
	}
	// An indented block shows whatever the text holds as it is.
	block := "    " + strings.ReplaceAll(strings.TrimRight(text.String(), "\n"), "\n", "\n    ")
	return a.record(value, fmt.Sprintf("### %s\n\n%s\n\n", title, block))
}

// record makes an answer the step's outputs and summary, a Markdown text, where
// a workflow wants them.
func (a *app) record(value any, summary string) error {
	if path := a.env.Getenv("GITHUB_OUTPUT"); path != "" {
		out, err := outputs(value)
		if err != nil {
			return err
		}
		if err := appendTo(path, out); err != nil {
			return err
		}
	}
	if path := a.env.Getenv("GITHUB_STEP_SUMMARY"); path != "" {
		return appendTo(path, summary)
	}
	return nil
}

// outputs writes the top-level fields of an answer in the format of the
// workflow command file: name<<DELIMITER, lines, DELIMITER. Strings are bare,
// everything else is JSON.
func outputs(value any) (string, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("encode the step's outputs: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(encoded, &fields) != nil {
		fields["result"] = encoded // a list has no fields
	}
	var out strings.Builder
	for name, raw := range fields {
		text := string(raw)
		var s string
		if json.Unmarshal(raw, &s) == nil {
			text = s
		}
		// Unguessable, so that no text can end its own value and begin another.
		end := "end-" + uuid.NewString()
		fmt.Fprintf(&out, "%s<<%s\n%s\n%s\n", name, end, text, end)
	}
	return out.String(), nil
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return problem.Wrap(err, problem.Internal, "expected to append to "+path,
			"check GITHUB_OUTPUT and GITHUB_STEP_SUMMARY: they name files that the runner made")
	}
	return nil
}
