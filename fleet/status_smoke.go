package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// smokeLimit bounds the smoke test of one instance.
const smokeLimit = 30 * time.Second

// SmokeAll makes the smoke test that only reads (smoke.Lite) at the instances that
// answered a probe, some at a time, and hands each report on, one at a time. One
// without a token, and one that did not answer, is inconclusive without being asked.
func SmokeAll(ctx context.Context, instances []Instance, results []Result, each func(name string, r smoke.Report)) {
	answered := make(map[string]bool, len(results))
	for _, r := range results {
		answered[r.Name] = r.Version != ""
	}
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	group.SetLimit(atOnce)
	for _, in := range instances {
		group.Go(func() error {
			r := smokeOne(ctx, in, answered[in.Name])
			mu.Lock()
			defer mu.Unlock()
			each(in.Name, r)
			return nil
		})
	}
	_ = group.Wait() // its functions return none
}

func smokeOne(ctx context.Context, in Instance, answered bool) smoke.Report {
	switch {
	case !answered:
		return notSmoked(in, smoke.StepHealth, "It did not answer its probe as an instance does.", "Mend that first.")
	case in.Token.IsZero():
		return notSmoked(in, smoke.StepToken, "The inventory names no token for it.", "Give it one: token: ${file:secrets/"+in.Name+".token}")
	}
	token, err := in.Token.Read()
	if err != nil {
		p := problem.As(err)
		return notSmoked(in, smoke.StepToken, p.Message, p.Hint)
	}
	config, wrong := in.TLS.config()
	if wrong != nil {
		return notSmoked(in, smoke.StepHealth, wrong.Message, wrong.Hint)
	}
	ctx, cancel := context.WithTimeout(ctx, smokeLimit)
	defer cancel()
	return smoke.Run(ctx, smoke.Options{URL: in.URL, TLS: config, AdminToken: token, Profile: smoke.Lite})
}

// notSmoked is the report of a test that could not begin.
func notSmoked(in Instance, step, detail, hint string) smoke.Report {
	return smoke.Report{
		Verdict: smoke.Inconclusive, URL: in.URL, Profile: string(smoke.Lite), StartedAt: time.Now().UTC(),
		Steps: []smoke.Step{{Name: step, Verdict: smoke.Inconclusive, Detail: detail, Hint: hint}},
	}
}

// config returns what trusts the instance's authority alone where it has one, and
// the system's otherwise.
func (t TLS) config() (*tls.Config, *problem.Error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.PEM != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(t.PEM)) {
			return nil, problem.New(problem.Invalid, "expected the certificate authority of the instance in "+t.CAFile+", found no certificate in PEM",
				"Mend tls.ca of the instance in the inventory.")
		}
	}
	return c, nil
}
