package rollout

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// A member that comes in the last moment has not been seen twice yet.
func TestAMemberThatArrivesAtTheEndOfItsTimeHasArrived(t *testing.T) {
	for name, c := range map[string]struct {
		after []fleet.Health // of the probes from its arrival on; the last one goes on
		want  What
	}{
		"and stays well":    {[]fleet.Health{fleet.Healthy}, Arrived},
		"and falls ill":     {[]fleet.Health{fleet.Healthy, fleet.Unhealthy}, Sick},
		"and was ill first": {[]fleet.Health{fleet.Unhealthy}, Sick},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				judge, err := fleet.NewJudge(2, 3)
				if err != nil {
					t.Fatal(err)
				}
				came := time.Now().Add(9 * time.Second)
				n := 0
				w := &worker{Engine: &Engine{judge: judge}, every: 2 * time.Second, window: 10 * time.Second, target: Target{Version: "2026.04.3", Digest: "sha256:1"}, m: Member{Delivery: fleet.Pull, Since: time.Now()}}
				w.o.Probe = func(context.Context, fleet.Instance) fleet.Result {
					r := fleet.Result{At: time.Now(), Health: fleet.Healthy, Version: "2026.04.2"}
					if time.Now().After(came) {
						r.Version, r.Health = "2026.04.3", c.after[min(n, len(c.after)-1)]
						n++
					}
					return r
				}
				if got := w.arrive(t.Context()); got.What != c.want {
					t.Errorf("it is %s (%s), want %s", got.What, got.Detail, c.want)
				}
			})
		})
	}
}
