package rollout_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// severed is a host whose connections fail.
type severed struct{ err error }

func (s severed) Run(context.Context, deploy.Command) (deploy.Output, error) {
	return deploy.Output{}, s.err
}

func (s severed) Dial(context.Context, string, string) (net.Conn, error) { return nil, s.err }
func (severed) Close() error                                             { return nil }
func (severed) String() string                                           { return "ssh://agnes@gone" }

func push(open func(fleet.Instance) (deploy.Shell, string, error)) *rollout.Push {
	return &rollout.Push{Open: open, Options: deploy.Options{
		Owner: "ada@ops", Registry: func(string) (release.Registry, error) { return nil, errors.New("no registry here") },
	}}
}

func TestAHostThatCannotBeReachedIsAwayAndAWrongKeyIsNot(t *testing.T) {
	t.Parallel()
	j := rollout.Job{Instance: fleet.Instance{Name: "a"}, Target: deploy.Image{Repository: "r/i", Tag: "stable", Digest: newDigest}}
	for _, c := range []struct {
		err  error
		want rollout.What
	}{
		{problem.New(problem.Unavailable, "expected an SSH connection to gone:22", ""), rollout.Away},
		{problem.New(problem.Unauthenticated, "expected gone to take a key", ""), rollout.Doubtful},
	} {
		p := push(func(fleet.Instance) (deploy.Shell, string, error) { return severed{c.err}, "/opt/agnes", nil })
		if got := p.Take(t.Context(), j); got.What != c.want || !strings.Contains(got.Detail, "gone") {
			t.Errorf("after %v a deploy is %+v, want %s", c.err, got, c.want)
		}
		if got := p.Settle(t.Context(), j); got.What != c.want {
			t.Errorf("after %v it settles as %+v, want %s", c.err, got, c.want)
		}
		if got := p.Back(t.Context(), j); got.What != rollout.Doubtful {
			t.Errorf("after %v the way back is %+v", c.err, got)
		}
	}
}

// The smoke test failed, the way back began, and the host went away.
func TestAHostThatIsLostOnItsWayBackIsNotTakenForOneThatWentBack(t *testing.T) {
	t.Parallel()
	gone := problem.New(problem.Unavailable, "expected an SSH connection to gone:22", "")
	p := push(func(fleet.Instance) (deploy.Shell, string, error) { return severed{gone}, "/opt/agnes", nil })
	for reverted, want := range map[bool]rollout.What{true: rollout.Broke, false: rollout.Halted} {
		got := rollout.AfterFail(t.Context(), p, rollout.Job{}, deploy.Outcome{Verdict: smoke.Fail, Reverted: reverted}, errors.New("smoke: query"))
		if got.What != want {
			t.Errorf("with reverted %t it is %+v, want %s", reverted, got, want)
		}
	}
}
