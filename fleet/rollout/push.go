package rollout

import (
	"context"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Push delivers over SSH: the deploy transaction, carried out from here.
type Push struct {
	// Open connects to a member's host and returns its folder there. The shell is
	// closed after each delivery.
	Open func(fleet.Instance) (deploy.Shell, string, error)
	// Options are those of every deploy; shell, folder and image are filled in.
	Options deploy.Options
}

var _ Deliverer = (*Push)(nil)

// Look asks the host what it runs.
func (p *Push) Look(ctx context.Context, j Job) (deploy.Image, *deploy.Desired, error) {
	status, err := p.inspect(ctx, j)
	return status.Running, nil, err
}

// inspect asks a host what it runs and what is under way there.
func (p *Push) inspect(ctx context.Context, j Job) (status deploy.Status, err error) {
	err = p.on(j, func(o deploy.Options) error {
		if _, err := o.Shell.Run(ctx, deploy.Command{Args: []string{"true"}}); err != nil {
			if k := problem.As(err).Kind; k != problem.Unavailable && k != problem.Timeout {
				return err // a key that nobody knows is the operator's to mend, on all hosts
			}
			return problem.Wrap(err, problem.Unavailable, "its host cannot be reached", "See why: agnesctl host status --host "+j.Instance.Host).WithCode(codeAway)
		}
		var err error
		status, err = deploy.Inspect(ctx, o.Shell, o.Dir)
		if err == nil && status.Trouble != "" {
			err = problem.New(problem.Unavailable, "docker on its host cannot be asked: "+status.Trouble, "See why: agnesctl host status --host "+j.Instance.Host)
		}
		return err
	})
	return status, err
}

// on opens the member's host for one piece of work.
func (p *Push) on(j Job, do func(deploy.Options) error) error {
	shell, dir, err := p.Open(j.Instance)
	if err != nil {
		return err
	}
	defer func() { _ = shell.Close() }() // what counts is said by then
	o := p.Options
	o.Shell, o.Dir = shell, dir
	return do(o)
}

// Take deploys the target.
func (p *Push) Take(ctx context.Context, j Job) Outcome {
	return p.deploy(ctx, j, func(o *deploy.Options) {
		o.Image, o.Tag, o.Digest = j.Target.Repository, j.Target.Tag, j.Target.Digest
	})
}

// deploy carries out one transaction and says what it means for the rollout.
func (p *Push) deploy(ctx context.Context, j Job, set func(*deploy.Options)) Outcome {
	var got deploy.Outcome
	err := p.on(j, func(o deploy.Options) error {
		set(&o)
		var err error
		got, err = deploy.Deploy(ctx, o)
		return err
	})
	runs := got.Running.Version
	switch {
	case err == nil:
		return Outcome{What: Delivered, Detail: got.Message, Runs: runs}
	case got.Halted:
		return Outcome{What: Halted, Detail: problem.As(err).Message, Runs: runs}
	case got.Verdict == smoke.Fail:
		return p.broke(ctx, j, got, err)
	}
	// Trouble on the way to a host that cannot be reached is the host's, not the
	// rollout's.
	if _, lerr := p.inspect(ctx, j); isAway(lerr) {
		return Outcome{What: Away, Detail: inWords(err)}
	}
	return Outcome{What: Doubtful, Detail: inWords(err), Runs: runs}
}

// broke says where a deploy that speaks against the image has left the host.
func (p *Push) broke(ctx context.Context, j Job, got deploy.Outcome, err error) Outcome {
	status, lerr := p.inspect(ctx, j)
	switch {
	case lerr == nil && status.Underway == nil && status.Running.Digest == j.Target.Digest && j.Target.Digest != "":
		return Outcome{What: Sick, Detail: inWords(err), Runs: status.Running.Version}
	case !got.Reverted && (lerr != nil || status.Underway != nil): // it may be anywhere in between
		return Outcome{What: Halted, Detail: inWords(err), Runs: status.Running.Version}
	}
	return Outcome{What: Broke, Detail: inWords(err), Runs: got.Running.Version}
}

// inWords is an error on one line, with its cause.
func inWords(err error) string {
	p := problem.As(err)
	if p.Kind == problem.Internal {
		return err.Error()
	}
	if p.Err != nil {
		return p.Message + ": " + p.Err.Error()
	}
	return p.Message
}

// Settle ends an interrupted deploy on the host, begins none, and says what runs.
func (p *Push) Settle(ctx context.Context, j Job) Outcome {
	out := p.deploy(ctx, j, func(o *deploy.Options) {
		o.Image, o.Tag, o.Digest, o.Finish = j.Target.Repository, j.Target.Tag, j.Target.Digest, true
	})
	if out.What != Delivered {
		return out
	}
	status, err := p.inspect(ctx, j)
	switch {
	case isAway(err):
		return Outcome{What: Away, Detail: inWords(err)}
	case err != nil:
		return Outcome{What: Doubtful, Detail: inWords(err)}
	case status.Running.Digest == j.Target.Digest:
		return Outcome{What: Delivered, Runs: status.Running.Version}
	}
	return Outcome{What: Untouched, Detail: "nothing had begun there", Runs: status.Running.Version}
}

// Back takes the host to what it ran before the rollout, by the transaction of
// `agnesctl host rollback`. What runs is asked first, so that one that was
// interrupted is ended and not repeated.
func (p *Push) Back(ctx context.Context, j Job) Outcome {
	status, err := p.inspect(ctx, j)
	if err == nil && status.Underway != nil {
		if out := p.rollback(ctx, j); out.What != Delivered {
			return out
		}
		status, err = p.inspect(ctx, j)
	}
	if err != nil {
		return Outcome{What: Doubtful, Detail: inWords(err)}
	}
	was := j.Before.Image
	runs := status.Running
	switch {
	case was.Digest == j.Target.Digest:
		return Outcome{What: Home, Detail: "ran it before", Runs: runs.Version}
	case runs.Digest != j.Target.Digest && (runs.Digest == was.Digest || runs.ID == was.ID):
		return Outcome{What: Home, Detail: "runs " + runs.Name(), Runs: runs.Version}
	case runs.Digest != j.Target.Digest:
		return Outcome{What: Lost, Detail: "it runs " + runs.Name() + ", which somebody else has deployed since", Runs: runs.Version}
	}
	if out := p.rollback(ctx, j); out.What != Delivered {
		return out
	}
	if status, err = p.inspect(ctx, j); err != nil {
		return Outcome{What: Doubtful, Detail: inWords(err)}
	}
	if status.Running.Digest == j.Target.Digest {
		return Outcome{What: Lost, Detail: "it runs " + status.Running.Name(), Runs: status.Running.Version}
	}
	return Outcome{What: Home, Detail: "runs " + status.Running.Name() + " again", Runs: status.Running.Version}
}

// rollback is one transaction back. What speaks against the image that it goes
// back to is final.
func (p *Push) rollback(ctx context.Context, j Job) Outcome {
	out := p.deploy(ctx, j, func(o *deploy.Options) { o.Back = true })
	switch out.What {
	case Delivered, Doubtful:
	case Away:
		out.What = Doubtful
	default:
		out.What = Lost
	}
	return out
}
