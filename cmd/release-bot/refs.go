package main

import (
	"cmp"
	"log/slog"
	"net/url"
	"path/filepath"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/gitrefs"
)

// refs is where claims and ledger are: the repository of --git, otherwise
// GitHub's.
func (a *app) refs() (release.Refs, error) {
	if a.git == "" {
		if a.repo == "" {
			return nil, problem.New(problem.Usage, "expected the repository that holds claims and ledger, found neither --repo nor --git",
				"repeat with --git \"$(git remote get-url origin)\" or, with GITHUB_TOKEN set, with --repo OWNER/NAME")
		}
		client, err := a.github()
		if err != nil {
			return nil, err
		}
		return client.Refs(), nil
	}
	return gitrefs.Open(a.git, gitrefs.Options{
		Token:       a.gitToken(),
		AgentSocket: a.env.Getenv("SSH_AUTH_SOCK"),
		KnownHosts:  filepath.SplitList(a.env.Getenv("SSH_KNOWN_HOSTS")),
		Log:         a.log(),
	})
}

// gitToken is GITHUB_TOKEN, for GitHub's own host alone: any other host that
// --git names would only learn it.
func (a *app) gitToken() redact.Secret {
	at, err := url.Parse(a.git)
	if err != nil {
		return ""
	}
	server, err := url.Parse(cmp.Or(a.env.Getenv("GITHUB_SERVER_URL"), "https://github.com"))
	if err != nil || at.Host != server.Host {
		return ""
	}
	return a.token()
}

// ledger is the book over refs.
func (a *app) ledger() (*release.Ledger, error) {
	refs, err := a.refs()
	if err != nil {
		return nil, err
	}
	return release.NewLedger(refs, a.ledgerOptions()), nil
}

func (a *app) ledgerOptions() release.LedgerOptions {
	return release.LedgerOptions{Run: a.run(), Log: a.log()}
}

// log tells on standard error what a person who waits wants to know.
func (a *app) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}
