package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
)

// github returns the client of --repo at --api-url. It makes no call.
func (a *app) github() (*github.Client, error) {
	if a.repo == "" {
		return nil, problem.New(problem.Usage, "expected a GitHub repository, found neither --repo nor GITHUB_REPOSITORY",
			"pass --repo OWNER/NAME; verbs that need claims and ledger alone also take --git PATH|URL")
	}
	return github.New(github.Options{
		API:   a.apiURL,
		Repo:  a.repo,
		Token: a.token(),
		// A wait for a rate limit is the one thing that a person must hear of.
		Log: slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// forge returns issues, releases and pull requests.
func (a *app) forge() (release.Forge, error) {
	client, err := a.github()
	if err != nil {
		return nil, err
	}
	return client, nil
}

// packages returns the versions of the image that --registry names. Only GitHub's
// registry has such a list.
func (a *app) packages() (release.Packages, error) {
	client, err := a.github()
	if err != nil {
		return nil, err
	}
	registry := cmp.Or(a.registry, "ghcr.io/"+strings.ToLower(a.repo))
	host, rest, _ := strings.Cut(registry, "/")
	owner, name, _ := strings.Cut(rest, "/")
	if owner == "" || name == "" || strings.ContainsAny(rest, "@:") {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected an image HOST/OWNER/NAME without tag and digest, found %q", registry),
			"release-bot … --registry ghcr.io/OWNER/NAME")
	}
	local := strings.HasPrefix(host, "127.0.0.1:") || strings.HasPrefix(host, "localhost:")
	if host != "ghcr.io" && !strings.HasPrefix(host, "containers.") && !local { // containers.HOST is an enterprise server's
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected an image of GitHub's registry, found the host %q", host),
			"only ghcr.io lists and deletes versions by GitHub's packages API; prune other registries by their own means")
	}
	return client.Packages(owner, name), nil
}
