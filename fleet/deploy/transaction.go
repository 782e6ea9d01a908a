package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// transaction is one deploy under way.
type transaction struct {
	opt  Options
	host host
	id   string // of the lease
	j    journal
	out  Outcome

	held      context.Context //nolint:containedctx // of the lease: the way back outlives the context of the call
	alive     bool            // the container of what runs is up
	runs      bool            // the wanted image runs already
	candidate files           // compose files of the new release, before they are in force
	needKB    int64           // of room for the new image
	resumed   bool            // goes on with an interrupted deploy
	onward    bool            // an interrupted way back is ended on the way to another image
}

// step is one step; look says that it changes nothing, so that a dry run does
// it, too.
type step struct {
	name string
	look bool
	does string // what a dry run says of it
	run  func(context.Context) (detail string, err error)
}

// before are the steps that leave what runs alone. Pulling comes before
// draining: it can take long, and nobody shall wait for it.
func (t *transaction) before() []step {
	return []step{
		{"preflight", true, "", t.preflight},
		{"resolve", true, "", t.resolve},
		{"verify", true, "", t.verify},
		{"pull", false, "pull the image, write out its bundle and check it with the customer's files", t.pull},
		{"drain", false, "let no sync begin, wait for one that runs", t.drain},
		{"backup", false, "make a verified backup of the state", t.backup},
		{"keep", false, "tag what runs, so that no clean-up of the host can take the way back", t.keep},
	}
}

// after are the steps that a failure of goes back from.
func (t *transaction) after() []step {
	return []step{
		{"switch", false, "put the release's files in force and start its containers", t.switchOver},
		{"assert", false, "prove that the container runs the very image", t.assert},
		{"ready", false, "wait until the instance is ready", t.ready},
		{"smoke", false, "ask the smoke test's questions", t.smoke},
		{"soak", false, "watch it for a while", t.soak},
	}
}

func (t *transaction) run(ctx context.Context) error {
	if t.opt.DryRun {
		return t.perform(ctx)
	}
	began := t.begin("lock")
	leased, release, err := t.lease(ctx)
	t.note("lock", began, "as "+t.id, err)
	if err != nil {
		return err
	}
	defer release()
	done, err := t.resume(leased)
	if done || err != nil {
		return err
	}
	if t.opt.Finish && !t.resumed {
		t.out.Verdict, t.out.Message = smoke.Pass, "no deploy is under way"
		return nil
	}
	return t.perform(leased)
}

// perform takes the steps, on a host that is this transaction's.
func (t *transaction) perform(ctx context.Context) error {
	if !t.resumed {
		if err := t.steps(ctx, t.before()); err != nil {
			t.leave(ctx)
			return err
		}
	}
	if t.runs {
		return t.judgeOnly(ctx)
	}
	if err := t.steps(ctx, t.after()); err != nil {
		return t.goBack(err)
	}
	if err := t.step(ctx, step{"commit", false, "note it on the host", t.commit}); err != nil || !t.opt.DryRun {
		return err
	}
	t.out.Verdict, t.out.Message = smoke.Pass, "would take "+t.opt.Shell.String()+" from "+t.j.From.Name()+" to "+t.j.To.Name()
	return nil
}

func (t *transaction) steps(ctx context.Context, list []step) error {
	for _, s := range list {
		if t.runs && !s.look {
			continue
		}
		if err := t.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) step(ctx context.Context, s step) error {
	if t.opt.DryRun && !s.look {
		t.note(s.name, t.opt.Now(), "would "+s.does, nil)
		return nil
	}
	began := t.begin(s.name)
	detail, err := s.run(ctx)
	t.note(s.name, began, detail, err)
	return err
}

func (t *transaction) begin(name string) time.Time {
	t.opt.Log.Debug("A step begins.", "step", name, "deploy", t.id)
	return t.opt.Now()
}

// note adds a step to the outcome.
func (t *transaction) note(name string, began time.Time, detail string, err error) {
	r := StepResult{Name: name, OK: err == nil, Detail: detail, ElapsedMS: t.opt.Now().Sub(began).Milliseconds()}
	if err != nil {
		r.Detail = err.Error()
	}
	t.out.Steps = append(t.out.Steps, r)
	if t.opt.Progress != nil {
		t.opt.Progress(r)
	}
}

// chooseBack takes the image that ran before the last deploy that stayed. It is
// named by its version even where a channel was followed, so that the host's own
// updates do not undo the rollback.
func (t *transaction) chooseBack(ctx context.Context) error {
	const hint = "Name the version to go to: agnesctl host deploy --tag stable-YYYY.MM.N"
	no := func(format string, args ...any) error {
		return problem.New(problem.Refused, fmt.Sprintf(format, args...), hint).WithCode("no_way_back")
	}
	current, found, err := readJSON[Current](ctx, &t.host, currentFile)
	previous := current.Previous.pinned()
	switch {
	case err != nil:
		return err
	case !found || previous.ID == "" && previous.Digest == "":
		return no("No deploy has left a way back on %s.", t.opt.Shell)
	case previous.Digest != "" && previous.Digest == current.Image.Digest:
		return no("Before %s ran on %s, the same one did.", current.Image.Name(), t.opt.Shell)
	case current.Back:
		return no("%s went back already, to %s; going back once more would go forward.", t.opt.Shell, current.Image.Name())
	case previous.Digest == "":
		return no("What ran before on %s was built there and has no digest.", t.opt.Shell)
	}
	t.opt.Image, t.opt.Tag, t.opt.Digest = previous.Repository, previous.Tag, previous.Digest
	return nil
}

// needed returns the room that an image takes on a host: its layers, compressed
// while they are fetched and about three times as large afterwards. Of an index
// it is that of the largest platform.
func needed(ctx context.Context, registry release.Registry, m release.Manifest) (kb int64, err error) {
	var doc struct {
		Layers []struct{ Size int64 }
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return 0, err
	}
	for _, l := range doc.Layers {
		kb += 4 * l.Size >> 10
	}
	links, err := m.Links()
	if err != nil {
		return 0, err
	}
	for _, digest := range links.Children {
		child, err := registry.Manifest(ctx, digest)
		if err != nil {
			return 0, err
		}
		one, err := needed(ctx, registry, child)
		if err != nil {
			return 0, err
		}
		kb = max(kb, one)
	}
	return kb, nil
}

func unreachable(err error, ref string) error {
	p := problem.As(err)
	if p.Kind != problem.Internal {
		return err
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The registry did not say what %s is", ref),
		"Try again in a moment: nothing on the host was touched.")
}

func (t *transaction) verify(ctx context.Context) (string, error) {
	policy, keys := t.opt.Verify, t.opt.Keys
	if policy == VerifyByHost {
		p, err := t.host.updatePolicy(ctx)
		if err != nil {
			return "", err
		}
		policy, keys = p.Verify, [][]byte{p.Key}
	}
	if policy == VerifyOff {
		return "the policy asks for no signature", nil
	}
	err := t.opt.Signed(ctx, keys, t.j.To.Repository, t.j.To.Digest)
	switch {
	case problem.Is(err, problem.Refused):
		return "", against(err)
	case err != nil && t.opt.Back:
		return "its signature cannot be asked for; it ran here before", nil
	case err != nil:
		return "", err
	}
	return "signed by a key of the policy", nil
}

// judgeOnly looks at an image that runs already. Nothing is changed, so nothing
// goes back.
func (t *transaction) judgeOnly(ctx context.Context) error {
	t.j.From.Tag = t.j.To.Tag
	for _, s := range t.after()[1:] {
		if err := t.step(ctx, s); err != nil {
			t.out.Running = t.j.From
			p := *problem.As(err)
			p.Hint = "Go back to what ran before: agnesctl host rollback"
			if verdictOf(err) == smoke.Fail {
				return against(&p)
			}
			return &p
		}
	}
	t.out.Verdict, t.out.Message, t.out.Running = smoke.Pass, t.j.To.Name()+" runs already", t.j.To
	if t.opt.DryRun {
		return nil
	}
	env, _, err := t.host.read(ctx, ".env") // the tag may be another one: a pin, or a channel again
	if err != nil {
		return err
	}
	if err := t.host.write(ctx, ".env", editEnv(env, envOf(t.j.To))); err != nil {
		return err
	}
	return t.forget(ctx)
}

// leave ends a deploy that has touched nothing.
func (t *transaction) leave(ctx context.Context) {
	if t.opt.DryRun || errors.Is(context.Cause(ctx), errLost) {
		return // the host is another's now
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	t.undo(ctx)
	if err := t.forget(ctx); err != nil {
		t.opt.Log.Warn("The journal of a deploy that touched nothing is left on the host.", "error", err)
	}
}

// undo takes back what the steps before the switch did to the instance: a stop
// and a drain. It is best effort: a drain ends by itself.
func (t *transaction) undo(ctx context.Context) {
	if t.j.Stopped {
		list, err := t.host.app(ctx, t.j.Project)
		for _, c := range list {
			_, serr := t.host.docker(ctx, true, "start", c.ID)
			err = errors.Join(err, serr)
		}
		if err != nil {
			t.opt.Log.Warn("The instance was stopped for its backup and could not be started again.", "error", err)
		}
		return
	}
	if !t.j.Drained {
		return
	}
	if client, err := t.client(ctx); err == nil {
		if _, err := client.Drain(ctx, api.DrainRequest{}); err != nil {
			t.opt.Log.Warn("The drain could not be ended; it ends by itself.", "error", err)
		}
	}
}

// client returns a client of the instance with the rights of its operator: the
// token lies beside the data, for those who may enter the host.
func (t *transaction) client(ctx context.Context) (*api.Client, error) {
	c, err := t.running(ctx)
	if err != nil {
		return nil, err
	}
	address, ok := c.address()
	if !ok {
		return nil, noAddress(c)
	}
	token, err := t.operatorToken(ctx, c)
	if err != nil {
		return nil, err
	}
	return api.NewClient("http://"+address, api.WithDial(t.opt.Shell.Dial), api.WithToken(token), api.WithUserAgent("agnesctl-deploy"))
}

func (t *transaction) operatorToken(ctx context.Context, c container) (redact.Secret, error) {
	out, err := t.host.docker(ctx, false, "exec", c.ID, "cat", "/data/state/.operator_token")
	switch {
	case err != nil && problem.As(err).Code == commandFailed:
		return "", problem.Wrap(err, problem.Unavailable, "The instance has no operator token in /data/state/.operator_token",
			"It is written when the instance starts: docker compose logs app").WithCode("no_operator_token")
	case err != nil:
		return "", err
	}
	return redact.Secret(strings.TrimSpace(string(out.Stdout))), nil
}

// notRunning is the code of the only error of running that can speak against an
// image; all others are of the host.
const notRunning = "not_running"

// errUnheard says that an instance is well and was not reached.
var errUnheard = errors.New("no answer though it is ready")

// running returns the instance's one container, which must run.
func (t *transaction) running(ctx context.Context) (container, error) {
	list, err := t.host.app(ctx, t.j.Project)
	if err != nil {
		return container{}, err
	}
	list = slices.DeleteFunc(list, func(c container) bool { return c.State.Status != "running" })
	if len(list) != 1 {
		return container{}, problem.New(problem.Unavailable,
			fmt.Sprintf("Expected one running container of the service %s in the project %s, found %d.", service, t.j.Project, len(list)),
			fmt.Sprintf("Look at them on %s: cd %s && docker compose ps -a && docker compose logs app", t.opt.Shell, t.host.dir)).WithCode(notRunning)
	}
	return list[0], nil
}
