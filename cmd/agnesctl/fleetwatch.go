package main

import (
	"context"
	"net/http"
	"os"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/watch"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// watchFleet goes on asking until it is interrupted, which is its end and no error.
func watchFleet(ctx context.Context, ask *gathering, image string, instances []fleet.Instance) error {
	prober := fleet.NewProber(fleet.ProbeOptions{Proxy: http.ProxyFromEnvironment})
	defer prober.Close()
	env, facts := ask.env, ask.surroundings(ctx, image, instances)
	in, fromTerminal := env.Stdin.(*os.File)
	out, toTerminal := env.Stdout.(*os.File)
	var err error
	if fromTerminal && toTerminal && cli.IsTerminal(in) && cli.IsTerminal(out) && env.Getenv("TERM") != "dumb" {
		err = watch.Show(ctx, watch.Terminal{In: in, Out: out, Getenv: env.Getenv}, prober, instances, facts)
	} else {
		err = watch.Lines(ctx, env.Stdout, prober, instances, facts)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
