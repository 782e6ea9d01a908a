package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestThePackageOfAnImage(t *testing.T) {
	t.Parallel()
	for registry, want := range map[string]string{
		"":                         "ghcr.io/acme/agnes", // the repository's own
		"ghcr.io/acme/agnes":       "ghcr.io/acme/agnes",
		"ghcr.io/acme/agnes/tools": "ghcr.io/acme/agnes/tools",
		"127.0.0.1:5000/acme/x":    "ghcr.io/acme/x",
		"docker.io/acme/agnes":     "",
		"ghcr.io.evil.com/acme/x":  "",
		"ghcr.io/acme":             "",
		"ghcr.io/acme/agnes:dev":   "",
		"ghcr.io/acme/x@sha256:1":  "",
		"127.0.0.1:5000":           "",
	} {
		a := &app{repo: "Acme/Agnes", registry: registry, env: cli.Env{Getenv: func(string) string { return "" }, Stderr: &strings.Builder{}}}
		got, err := a.packages()
		switch {
		case want == "" && !problem.Is(err, problem.Usage):
			t.Errorf("%q: %v, %v, want a usage error", registry, got, err)
		case want != "" && (err != nil || fmt.Sprint(got) != want):
			t.Errorf("%q: %v, %v, want %s", registry, got, err, want)
		}
	}
	a := &app{env: cli.Env{Getenv: func(string) string { return "" }}}
	if _, err := a.forge(); !problem.Is(err, problem.Usage) {
		t.Errorf("no repository: %v, want a usage error", err)
	}
}
