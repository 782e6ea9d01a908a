package main

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
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
	return cli.Record(a.env, value, fmt.Sprintf("### %s\n\n%s\n\n", title, block))
}
