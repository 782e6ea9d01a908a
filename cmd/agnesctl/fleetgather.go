package main

import (
	"context"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
)

// gathering says what is asked beside the instances themselves.
type gathering struct {
	env      cli.Env
	registry bool // what the wanted tags are
	hosts    bool // what only a host can tell, over SSH
	smoke    bool
	reach    hostFlags // of the hosts
}

func (q *gathering) addHosts(c *cobra.Command) {
	q.reach.env = q.env
	c.Flags().BoolVar(&q.hosts, "hosts", false, "also look at the hosts that the inventory names, over SSH: foreign updaters, what .env pins; changes nothing")
	q.reach.addReach(c)
}

// registryLimit bounds the questions to the registry: an answer without it is better
// than none.
const registryLimit = 30 * time.Second

// ask sweeps once, keeping nothing for another time, and asks what else is wanted.
func (q *gathering) ask(ctx context.Context, image string, instances []fleet.Instance) ([]fleet.Result, fleet.Facts, error) {
	results, err := q.sweep(ctx, instances)
	if err != nil {
		return results, fleet.Facts{}, err
	}
	facts := q.surroundings(ctx, image, instances)
	if q.smoke {
		facts.Smoke = q.smokes(ctx, instances, results)
	}
	if ctx.Err() != nil {
		err = problem.Wrap(ctx.Err(), problem.Inconclusive, "It was ended before everything had been asked.", "Ask again.")
	}
	return results, facts, err
}

// surroundings asks the registry and the hosts.
func (q *gathering) surroundings(ctx context.Context, image string, instances []fleet.Instance) (facts fleet.Facts) {
	if q.registry {
		facts.Tags = q.tags(ctx, image, instances)
	}
	if q.hosts {
		facts.Hosts = fleet.InspectHosts(ctx, instances, q.shell)
	}
	return facts
}

func (q *gathering) sweep(ctx context.Context, instances []fleet.Instance) ([]fleet.Result, error) {
	prober := fleet.NewProber(fleet.ProbeOptions{MaxIdle: -1, MaxSessions: -1, Proxy: http.ProxyFromEnvironment})
	defer prober.Close()
	bar := cli.NewProgress(q.env, "status")
	defer bar.Close()
	results := make([]fleet.Result, 0, len(instances))
	_, err := prober.Sweep(ctx, instances, func(r fleet.Result) {
		results = append(results, r)
		bar.Set(float64(len(results))/float64(len(instances)), r.Name)
	})
	return results, err
}

func (q *gathering) tags(ctx context.Context, image string, instances []fleet.Instance) map[string]fleet.Tagged {
	ctx, cancel := context.WithTimeout(ctx, registryLimit)
	defer cancel()
	registry, err := oci.New(image, oci.Options{Timeout: registryLimit / 3, Token: redact.Secret(q.env.Getenv("GITHUB_TOKEN"))})
	if err != nil {
		tags := map[string]fleet.Tagged{}
		for _, in := range instances {
			p := problem.As(err)
			tags[in.Wanted()] = fleet.Tagged{Trouble: p.Message, Hint: "Mend image: in the inventory."}
		}
		return tags
	}
	return fleet.ResolveTags(ctx, registry, instances)
}

// shell opens a host of the fleet as --known-hosts and its like say.
func (q *gathering) shell(to deploy.Target) (deploy.Shell, error) {
	h := q.reach
	h.host = to.String()
	shell, _, err := h.open()
	return shell, err
}

func (q *gathering) smokes(ctx context.Context, instances []fleet.Instance, results []fleet.Result) map[string]smoke.Report {
	bar := cli.NewProgress(q.env, "smoke")
	defer bar.Close()
	reports := make(map[string]smoke.Report, len(instances))
	fleet.SmokeAll(ctx, instances, results, func(name string, r smoke.Report) {
		reports[name] = r
		bar.Set(float64(len(reports))/float64(len(instances)), name)
	})
	return reports
}
