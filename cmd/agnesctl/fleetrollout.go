package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// rolloutFlags are those of `agnesctl fleet rollout`.
type rolloutFlags struct {
	fleetFlags
	deployFlags
	state   func() string
	channel string

	yes                          bool
	resume, abort, pause, status string
	catchUp                      string
	list                         bool

	unreachable  string
	arriveWithin time.Duration
	waveSoak     time.Duration
	waveSoakSet  bool // 0s means no soak at all
	retries      int
	every        time.Duration
	localLease   bool
	desiredGit   string

	env    cli.Env
	flags  *pflag.FlagSet
	format cli.Format
}

// latest is the value of --resume and its like where no id is given.
const latest = "latest"

func newFleetRollout(env cli.Env) *cobra.Command {
	f := &rolloutFlags{env: env, fleetFlags: fleetFlags{env: env}, deployFlags: deployFlags{hostFlags: hostFlags{env: env}}}
	c := &cobra.Command{
		Use:   "rollout [ID]",
		Short: "Take the fleet to another version, wave by wave, and stop by itself",
		Long: `rollout takes the members of the inventory to an image, in the order of its waves.
The tag is resolved to a digest once. Each wave must pass its gates before the
next one begins: every member runs that digest and is well, its data is no staller
than before, and all that for as long as the wave soaks. A member that fails takes
its wave back to what it ran before; what is inconclusive stops the rollout and
takes nothing back.

A member with a host is deployed to over SSH. One without reads what it shall run
from the fleet's git repository, where each wave is a commit, and is expected to
arrive within --arrive-within.

The plan is shown first; --yes goes ahead without asking. Ctrl-C pauses: nothing
more begins, and what is under way is finished. Killed at any moment, --resume goes
on, with the flags that say how to deploy unless others are given. --pause, --resume and --abort also reach a rollout that another program drives.

Exit codes: 0 done; 1 a member failed and its wave was taken back; 4 refused;
5 stopped, paused or aborted before the end.`,
		Example: `  agnesctl fleet rollout --tag stable --dry-run
  agnesctl fleet rollout --tag stable-2026.04.3 --yes -o json
  agnesctl fleet rollout --tag stable -l 'cloud=gcp' --known-hosts known_hosts --identity fleet.key
  agnesctl fleet rollout --list
  agnesctl fleet rollout --abort
  agnesctl fleet rollout --resume 20260403-101500-1a2b
  agnesctl fleet rollout --catch-up`,
		Args: cobra.MaximumNArgs(1),
	}
	f.add(c)
	c.ValidArgsFunction = f.complete
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := f.take(args); err != nil {
			return err
		}
		f.waveSoakSet = c.Flags().Changed("wave-soak")
		return f.run(c.Context())
	}
	return c
}

func (f *rolloutFlags) add(c *cobra.Command) {
	f.fleetFlags.add(c)
	f.state = stateFlag(c, &f.fleetFlags)
	f.addSSH(c)
	f.addDeploy(c)
	flags := c.Flags()
	f.flags = flags
	flags.StringVar(&f.image, "image", "", "repository of the image (image of the inventory)")
	flags.StringVar(&f.tag, "tag", "", "tag to roll out, such as stable or stable-2026.04.3; resolved to a digest once")
	flags.StringVar(&f.digest, "digest", "", "exactly this image, sha256:…; --tag then only names it")
	flags.StringVar(&f.channel, "channel", "", "what the channel points at now: dev or stable; the same as --tag with it")
	flags.BoolVar(&f.yes, "yes", false, "go ahead without asking")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show the plan, and change nothing")
	flags.StringVar(&f.unreachable, "max-unreachable", "", "how many members may be out of reach before the rollout stops, a number or a share (max_unreachable of the inventory, else 5%)")
	flags.DurationVar(&f.arriveWithin, "arrive-within", 0, "how long a member without a host may take to arrive (arrive_within of the inventory, else 2h)")
	flags.DurationVar(&f.waveSoak, "wave-soak", 0, "how long each wave must stay well, in place of the inventory's soak")
	flags.IntVar(&f.retries, "retries", 1, "how often an inconclusive deploy, or way back, is repeated")
	flags.DurationVar(&f.every, "every", 5*time.Second, "time between two probes of a member")
	flags.BoolVar(&f.localLease, "local-lease", false, "hold the rollout's lease in the folder of --state alone, and not in the fleet's git repository")
	flags.StringVar(&f.desiredGit, "desired-git", "", "git repository with the hosts' desired state, where it is not the inventory's")
	flags.BoolVar(&f.list, "list", false, "list the fleet's rollouts")
	for _, order := range []struct {
		to          *string
		name, usage string
	}{
		{&f.status, "status", "show a rollout"},
		{&f.resume, "resume", "go on with a rollout that was paused, stopped or killed"},
		{&f.pause, "pause", "let a rollout begin nothing more"},
		{&f.abort, "abort", "end a rollout; what is under way is finished or called back"},
		{&f.catchUp, "catch-up", "roll out to the members that a rollout could not reach"},
	} {
		flags.StringVar(order.to, order.name, "", order.usage+" (the last one without an ID)")
		flags.Lookup(order.name).NoOptDefVal = latest
		_ = c.RegisterFlagCompletionFunc(order.name, f.complete)
	}
	c.MarkFlagsMutuallyExclusive("status", "resume", "pause", "abort", "catch-up", "list", "tag")
	c.MarkFlagsMutuallyExclusive("status", "resume", "pause", "abort", "catch-up", "list", "digest")
	c.MarkFlagsMutuallyExclusive("status", "resume", "pause", "abort", "catch-up", "list", "channel")
	c.MarkFlagsMutuallyExclusive("channel", "tag")
	cli.OutputFlag(c, &f.format)
}

// take gives the id to the flag that it belongs to.
func (f *rolloutFlags) take(args []string) error {
	if len(args) == 0 {
		return nil
	}
	for _, to := range []*string{&f.status, &f.resume, &f.pause, &f.abort, &f.catchUp} {
		if *to == latest {
			*to = args[0]
			return nil
		}
	}
	return cli.UsageError("%q is the ID of a rollout; expected --status, --resume, --pause, --abort or --catch-up with it.", args[0])
}

// complete offers the ids of the fleet's rollouts.
func (f *rolloutFlags) complete(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	s, err := openHistory(c.Context(), f.state())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer func() { _ = s.Close() }()
	list, err := rollout.List(c.Context(), s, 50)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var ids []string
	for _, r := range list {
		ids = append(ids, r.ID+"\t"+string(r.State)+", "+cmp.Or(r.Version, r.Tag))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// run does what the flags say.
func (f *rolloutFlags) run(ctx context.Context) error {
	s, err := store.Open(ctx, f.state())
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	switch {
	case f.list:
		return f.printList(ctx, s)
	case f.status != "":
		r, err := find(ctx, s, f.status)
		if err != nil {
			return err
		}
		return f.print(r)
	case f.pause != "":
		return f.orderPause(ctx, s)
	case f.resume != "":
		return f.goOn(ctx, s, f.resume, rollout.Resume)
	case f.abort != "":
		return f.goOn(ctx, s, f.abort, rollout.Abort)
	}
	return f.begin(ctx, s)
}

// find returns a rollout by its id, or the last one.
func find(ctx context.Context, s *store.Store, id string) (rollout.Rollout, error) {
	if id != latest {
		return rollout.Get(ctx, s, id)
	}
	list, err := rollout.List(ctx, s, 1)
	if err != nil {
		return rollout.Rollout{}, err
	}
	if len(list) == 0 {
		return rollout.Rollout{}, problem.New(problem.NotFound, "expected a rollout of this fleet, found none", "Begin one: agnesctl fleet rollout --tag stable --dry-run")
	}
	return list[0], nil
}

// orderPause orders a pause. Nobody has to be there to take it in.
func (f *rolloutFlags) orderPause(ctx context.Context, s *store.Store) error {
	r, err := find(ctx, s, f.pause)
	if err != nil {
		return err
	}
	if err := rollout.Give(ctx, s, r.ID, rollout.Pause, whoami()); err != nil {
		return err
	}
	owner, _, driven, err := rollout.Driver(ctx, s)
	if err != nil {
		return err
	}
	if driven {
		f.note("The rollout %s will begin nothing more; %s finishes what is under way. Go on: agnesctl fleet rollout --resume %s", r.ID, owner, r.ID)
	} else {
		f.note("Nobody drives the rollout %s; it stays as it is. Go on: agnesctl fleet rollout --resume %s", r.ID, r.ID)
	}
	return f.print(r)
}

// goOn takes a rollout up, or hands the order to whoever drives it.
func (f *rolloutFlags) goOn(ctx context.Context, s *store.Store, id string, verb rollout.Verb) error {
	r, err := find(ctx, s, id)
	if err != nil {
		return err
	}
	if verb == rollout.Resume && !r.State.Ended() && r.State != rollout.Reverting && r.State != rollout.Aborting {
		_, err := resolve(ctx, r.Image, r.Tag, r.Digest)
		if problem.Is(err, problem.Refused) { // it was withdrawn since
			p := *problem.As(err)
			p.Hint = "End it: agnesctl fleet rollout --abort " + r.ID
			return &p
		}
		if err != nil {
			return err
		}
	}
	owner, since, driven, err := rollout.Driver(ctx, s)
	if err != nil {
		return err
	}
	if driven {
		if verb == rollout.Resume && r.State != rollout.Paused && r.State != rollout.Pausing {
			return problem.New(problem.Refused, fmt.Sprintf("%s drives a rollout of this fleet since %s: there is nothing to resume.", owner, since.Format(time.RFC3339)),
				"Look at it: agnesctl fleet rollout --status "+r.ID)
		}
		if err := rollout.Give(ctx, s, r.ID, verb, whoami()); err != nil {
			return err
		}
		f.note("%s drives the rollout %s and has the order now: %s.", owner, r.ID, verb)
		return f.print(r)
	}
	if r.State.Ended() {
		return problem.New(problem.Refused, fmt.Sprintf("The rollout %s has ended: it is %s.", r.ID, r.State), "Begin another one: agnesctl fleet rollout --tag TAG")
	}
	if verb == rollout.Resume && f.unreachable != "" {
		limit, err := f.limit(fleet.Limit{})
		if err != nil {
			return err
		}
		r.MaxUnreachable = rollout.UnreachableBudget(limit, r.Size())
	}
	inventory, _, err := f.load(ctx)
	if err != nil {
		return err
	}
	return f.drive(ctx, s, inventory, r, func(ctx context.Context) error {
		return rollout.Give(ctx, s, r.ID, verb, whoami()) // also after a kill: a pause may wait to be taken in
	})
}

// begin makes a plan, shows it, and goes ahead.
func (f *rolloutFlags) begin(ctx context.Context, s *store.Store) error {
	var old rollout.Rollout
	if f.catchUp != "" {
		var err error
		if old, err = find(ctx, s, f.catchUp); err != nil {
			return err
		}
	} else if f.tag == "" && f.digest == "" && f.channel == "" {
		return cli.UsageError("expected what to roll out: --tag TAG, --channel CHANNEL or --digest sha256:…; or --list, --status, --resume, --pause, --abort or --catch-up.")
	}
	if owner, since, driven, err := rollout.Driver(ctx, s); err != nil {
		return err
	} else if driven && !f.dryRun {
		return problem.New(problem.Refused, fmt.Sprintf("%s drives a rollout of this fleet since %s.", owner, since.Format(time.RFC3339)),
			"Look at it: agnesctl fleet rollout --status; stop it: agnesctl fleet rollout --pause, or --abort").WithCode("rollout_locked")
	}
	if err := f.noneOpen(ctx, s); err != nil && !f.dryRun {
		return err
	}
	inventory, chosen, err := f.load(ctx)
	if err != nil {
		return err
	}
	r, err := f.plan(ctx, inventory, chosen, old)
	if err != nil {
		return err
	}
	f.planNotes(r)
	if f.dryRun {
		return f.print(r)
	}
	if r.Size() == 0 {
		f.note("Nothing is to be done.")
		r.State, r.Reason = rollout.Done, "every instance runs it already, or is left alone"
		return f.print(r)
	}
	if err := f.agreed(r); err != nil {
		return err
	}
	return f.drive(ctx, s, inventory, r, func(context.Context) error { return nil })
}

// noneOpen refuses a rollout beside one that has not ended.
func (f *rolloutFlags) noneOpen(ctx context.Context, s *store.Store) error {
	list, err := rollout.List(ctx, s, 100)
	if err != nil {
		return err
	}
	for _, r := range list {
		if !r.State.Ended() {
			return problem.New(problem.Refused, fmt.Sprintf("The rollout %s of %s, begun by %s at %s, has not ended: it is %s.", r.ID, cmp.Or(r.Version, r.Tag), r.By, r.Started.Format(time.RFC3339), r.State),
				fmt.Sprintf("Go on with it: agnesctl fleet rollout --resume %s; or end it: agnesctl fleet rollout --abort %s", r.ID, r.ID)).WithCode("rollout_open")
		}
	}
	return nil
}

// planNotes shows the plan to people, on standard error: the answer is printed at
// the end.
func (f *rolloutFlags) planNotes(r rollout.Rollout) {
	if f.dryRun && f.format == cli.Table {
		return // it is the answer
	}
	f.note("%s to take to %s (%s), %d left alone.", plural(r.Size(), "instance"), cmp.Or(r.Version, r.Tag), r.Digest, len(r.Skipped))
	for _, w := range r.Waves {
		var names []string
		for _, m := range w.Members {
			names = append(names, m.Name)
		}
		f.note("  %s: %s; %d at a time, soaks %s", w.Name, short(names), w.MaxUnavailable, time.Duration(w.Soak))
	}
}

func short(names []string) string {
	const most = 8
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// agreed asks, or refuses where nobody can answer.
func (f *rolloutFlags) agreed(r rollout.Rollout) error {
	if f.yes {
		return nil
	}
	refused := problem.New(problem.Refused, "Nothing was begun: a rollout needs a yes.", "Go ahead with this very image: "+f.goAhead(r))
	if !cli.IsTerminal(f.env.Stdin) || !cli.IsTerminal(f.env.Stderr) {
		return refused
	}
	fmt.Fprintf(f.env.Stderr, "Begin? Write yes: ")
	line, err := bufio.NewReader(f.env.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != "yes" {
		return refused
	}
	return nil
}

// note writes a line on standard error.
func (f *rolloutFlags) note(format string, args ...any) {
	fmt.Fprintln(f.env.Stderr, cli.Sanitize(fmt.Sprintf(format, args...))) // there is no one left to tell
}

// limit reads --max-unreachable.
func (f *rolloutFlags) limit(or fleet.Limit) (fleet.Limit, error) {
	if f.unreachable == "" {
		return or, nil
	}
	text, share := strings.CutSuffix(f.unreachable, "%")
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || share && (n < 1 || n > 100) {
		return or, cli.UsageError("--max-unreachable is %q; expected a number from 0, or a share such as 5%%.", f.unreachable)
	}
	if share {
		return fleet.Limit{Percent: n}, nil
	}
	return fleet.Limit{Count: n}, nil
}

// newRolloutID is unique, short, and in the order of time.
func newRolloutID(now time.Time) string {
	return now.UTC().Format("20060102-150405-") + uuid.NewString()[:4]
}

func (f *rolloutFlags) print(r rollout.Rollout) error {
	r.Unsaid = nil // the audit has them
	return cli.Print(f.env.Stdout, f.format, r, func(g *cli.Grid) { rolloutGrid(g, r) })
}

func rolloutGrid(g *cli.Grid, r rollout.Rollout) {
	g.Row("rollout", r.ID)
	g.Row("to", fmt.Sprintf("%s (%s)", cmp.Or(r.Version, r.Tag), r.Digest))
	g.Row("state", string(r.State))
	if r.Reason != "" {
		g.Row("because", r.Reason)
	}
	g.Row("by", r.By)
	g.Row("began", when(&r.Started))
	if len(r.CatchUp) > 0 {
		g.Row("unreachable", short(r.CatchUp))
	}
	g.Line("")
	g.Row("WAVE", "STAGE", "MEMBER", "DELIVERY", "STATE", "FROM", "RUNS", "DETAIL")
	for _, w := range r.Waves {
		for _, m := range w.Members {
			g.Row(w.Name, string(w.State), m.Name, m.Delivery, string(m.State), m.From, m.Runs, m.Detail)
		}
	}
	for _, s := range r.Skipped {
		g.Row(s.Wave, "", s.Name, "", "skipped", "", "", s.Reason)
	}
}

func (f *rolloutFlags) printList(ctx context.Context, s *store.Store) error {
	list, err := rollout.List(ctx, s, 100)
	if err != nil {
		return err
	}
	for i := range list {
		list[i].Unsaid = nil
	}
	return cli.Print(f.env.Stdout, f.format, list, func(g *cli.Grid) {
		g.Row("ID", "TO", "STATE", "MEMBERS", "BEGAN", "BY", "BECAUSE")
		for _, r := range list {
			g.Row(r.ID, cmp.Or(r.Version, r.Tag), string(r.State), r.Size(), when(&r.Started), r.By, r.Reason)
		}
	})
}
