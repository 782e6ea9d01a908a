package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
)

// addSSH declares how hosts of the inventory are reached.
func (f *rolloutFlags) addSSH(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.knownHosts, "known-hosts", "", "known_hosts file with the hosts' keys (~/.ssh/known_hosts)")
	flags.StringVar(&f.identity, "identity", "", "file with the private key to sign in with; ssh-agent's keys when left out")
	flags.BoolVar(&f.system, "system-ssh", false, "connect by the ssh program and what ~/.ssh/config says")
	flags.StringVar(&f.jump, "jump", "", "host to go through, ssh://USER@HOST[:PORT]; implies --system-ssh")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "log each step on standard error")
}

// addDeploy declares what holds for the deploy to each host.
func (f *rolloutFlags) addDeploy(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.verify, "verify", "", "key: the image must be signed by a --key; off: any image (AGNES_VERIFY in each host's .env)")
	flags.StringArrayVar(&f.keys, "key", nil, "file with a public key that may sign images (repeatable)")
	flags.StringVar(&f.profile, "smoke", string(smoke.Full), "smoke test that decides each deploy: full, or readonly, which starts no sync")
	flags.StringVar(&f.schema, "schema", string(deploy.RestoreState), "on a way back after the schema moved: restore the backup, or halt and ask for a person")
	flags.DurationVar(&f.wait, "wait", smoke.DefaultWait, "how long the smoke test follows the sync that it starts")
	flags.DurationVar(&f.soak, "deploy-soak", 10*time.Second, "how long each host is watched before its deploy is done")
	flags.DurationVar(&f.drain, "drain-wait", 10*time.Minute, "how long a running sync is waited for")
	flags.DurationVar(&f.ready, "ready-wait", 3*time.Minute, "how long the new version may take to get ready")
	flags.DurationVar(&f.lease, "lease", 30*time.Second, "how long a host stays locked after this program died elsewhere")
	flags.BoolVar(&f.withoutBackup, "without-backup", false, "deploy although a running instance cannot be backed up; its state may be lost")
}

// plan looks at the fleet and at the image.
func (f *rolloutFlags) plan(ctx context.Context, inventory *fleet.Inventory, chosen []fleet.Instance, old rollout.Rollout) (rollout.Rollout, error) {
	limit, err := f.limit(inventory.Rollout.MaxUnreachable)
	if err != nil {
		return rollout.Rollout{}, err
	}
	now := time.Now()
	picked := map[string]bool{}
	for _, in := range chosen {
		picked[in.Name] = true
	}
	o := rollout.PlanOptions{
		Inventory: inventory, Chosen: func(in fleet.Instance) bool { return picked[in.Name] },
		MaxUnreachable: limit, ArriveWithin: cmp.Or(f.arriveWithin, inventory.Rollout.ArriveWithin), ErrorBudget: inventory.Rollout.ErrorBudget,
		Now: now, By: whoami(), ID: newRolloutID(now), Seen: map[string]fleet.Result{},
	}
	if f.waveSoakSet {
		o.Soak = &f.waveSoak
	}
	if old.ID == "" {
		o.Target, err = resolve(ctx, cmp.Or(f.image, inventory.Image), cmp.Or(f.tag, f.channel), f.digest)
	} else {
		_, err = resolve(ctx, old.Image, old.Tag, old.Digest)
	}
	if err != nil {
		return rollout.Rollout{}, err
	}
	prober := fleet.NewProber(fleet.ProbeOptions{MaxIdle: -1, MaxSessions: -1, Proxy: http.ProxyFromEnvironment})
	defer prober.Close()
	if _, err := prober.Sweep(ctx, chosen, func(r fleet.Result) { o.Seen[r.Name] = r }); err != nil {
		return rollout.Rollout{}, err
	}
	if old.ID != "" {
		return rollout.CatchUpPlan(old, o)
	}
	return rollout.NewPlan(o)
}

// resolve asks the registry what an image is, and whether it still is one to roll
// out.
func resolve(ctx context.Context, image, tag, digest string) (rollout.Target, error) {
	registry, err := oci.New(image, oci.Options{})
	if err != nil {
		return rollout.Target{}, err
	}
	return rollout.Resolve(ctx, registry, tag, digest)
}

// repositories returns the git repository with the folder of desired states, and
// the one that holds the lease: that of the inventory, for all who have it. They are
// nil where the inventory comes from no repository with a remote.
func (f *rolloutFlags) repositories(inventory *fleet.Inventory) (desired, lock *rollout.Repository, dir string, err error) {
	place := fleet.Place{Repository: f.git, Branch: f.at, Dir: path.Dir(filepath.ToSlash(f.file))}
	if f.git == "" {
		found, ok, err := fleet.PlaceOf(f.file)
		if err != nil {
			return nil, nil, "", err
		}
		place = found
		if !ok {
			place.Dir = "."
		}
	}
	if lock, err = f.repository(place); err != nil {
		return nil, nil, "", err
	}
	desired = lock
	if f.desiredGit != "" {
		place = fleet.Place{Repository: f.desiredGit, Dir: "."}
		if desired, err = f.repository(place); err != nil {
			return nil, nil, "", err
		}
		lock = cmp.Or(lock, desired)
	}
	if f.localLease {
		lock = nil
	}
	return desired, lock, path.Join(place.Dir, inventory.Rollout.Desired), nil
}

func (f *rolloutFlags) repository(place fleet.Place) (*rollout.Repository, error) {
	if place.Repository == "" {
		return nil, nil //nolint:nilnil // there is none, which is no fault
	}
	remote, err := fleet.NewRemote(place.Repository, redact.Secret(f.env.Getenv("AGNES_GIT_TOKEN")))
	if err != nil {
		return nil, err
	}
	return rollout.NewRepository(remote, place.Branch, whoami()), nil
}

// drive holds the lease, gives the order, and runs the engine to where nothing
// happens by itself any more.
func (f *rolloutFlags) drive(ctx context.Context, s *store.Store, inventory *fleet.Inventory, r rollout.Rollout, order func(context.Context) error) error {
	if err := f.keep(&r); err != nil {
		return err
	}
	repository, lock, dir, err := f.repositories(inventory)
	if err != nil {
		return err
	}
	if repository == nil && r.Pulls() {
		return problem.New(problem.Refused, "Some members have no host: they read what they shall run from the fleet's git repository, and "+f.file+" comes from none with a remote.",
			"Name it: --git URL, or --desired-git URL; or leave them out: -l delivery=push")
	}
	if r.Pulls() {
		if err := repository.HasBranch(ctx); err != nil {
			return err
		}
	}
	o, err := f.engine(s, inventory, repository, dir)
	if err != nil {
		return err
	}
	prober := fleet.NewProber(fleet.ProbeOptions{Proxy: http.ProxyFromEnvironment})
	defer prober.Close()
	o.Probe = prober.One
	tell := newRolloutTeller(ctx, fleetChannels(inventory), r.Version, 3*time.Second, func(channel string, err error) {
		f.note("The channel %s was not told of a step: %s. Next: agnesctl fleet alerts test %s", channel, err, channel)
	})
	defer tell.close()
	o.Notify = func(_ context.Context, e rollout.Event) {
		f.progress(e)
		tell.tell(e)
	}
	engine, err := rollout.New(o)
	if err != nil {
		return err
	}
	lease, err := rollout.Acquire(ctx, s, lock, whoami())
	if err != nil {
		return err
	}
	defer func() {
		if err := lease.Release(ctx); err != nil {
			f.note("The lease of the fleet's rollouts could not be given back; it ends by itself. %s", err)
		}
	}()
	if r.Events > 0 { // it is in the store, and may have gone on since it was read
		given := r
		if r, err = rollout.Get(ctx, s, r.ID); err != nil {
			return err
		}
		r.MaxUnreachable, r.Flags = given.MaxUnreachable, given.Flags
	} else if err := f.noneOpen(ctx, s); err != nil {
		return err
	}
	if err := order(ctx); err != nil {
		return err
	}
	f.note("Rollout %s; look: agnesctl fleet rollout --status %s; end it: agnesctl fleet rollout --abort %s", r.ID, r.ID, r.ID)
	r, err = engine.Run(ctx, lease, r)
	if err != nil {
		return err
	}
	if err := f.print(r); err != nil {
		return err
	}
	if f.abort != "" && r.State == rollout.Aborted {
		return nil // as it was ordered
	}
	return rolloutError(ctx, r)
}

func (f *rolloutFlags) engine(s *store.Store, inventory *fleet.Inventory, repository *rollout.Repository, dir string) (rollout.Options, error) {
	o := rollout.Options{
		Store: s, Instances: inventory.Instances, Audit: filepath.Join(f.state(), rollout.AuditFile), Log: f.log(), Stay: true, Retries: f.retries, Every: f.every,
		Deliver: map[string]rollout.Deliverer{},
	}
	options, err := f.options(nil, "")
	if err != nil {
		return o, err
	}
	options.Progress = nil // of many hosts at once
	o.Deliver[fleet.Push] = &rollout.Push{Options: options, Open: func(in fleet.Instance) (deploy.Shell, string, error) {
		if in.Host == "" { // it had one when the rollout began; without, this machine would be taken for it
			return nil, "", problem.New(problem.Refused, "expected a host of "+in.Name+" in the inventory, found none any more",
				"Give it back its host: line, then: agnesctl fleet rollout --resume; or end it: agnesctl fleet rollout --abort")
		}
		h := f.hostFlags
		h.host = in.Host
		return h.open()
	}}
	if repository != nil {
		o.Deliver[fleet.Pull] = rollout.NewPull(repository, dir)
	}
	return o, nil
}

// progress writes a line on standard error for each step.
func (f *rolloutFlags) progress(e rollout.Event) {
	what := e.Event
	switch {
	case e.Member != "":
		what = e.Wave + "/" + e.Member + ": " + what
	case e.Wave != "":
		what = e.Wave + ": " + what
	}
	if e.Detail != "" {
		what += ", " + e.Detail
	}
	f.note("%s  %s", e.At.Local().Format("15:04:05"), what)
}

// rolloutError is the exit code of where a rollout has come to rest.
func rolloutError(ctx context.Context, r rollout.Rollout) error {
	resume := "agnesctl fleet rollout --resume " + r.ID
	switch r.State {
	case rollout.Done:
		return nil
	case rollout.Failed:
		back := "the wave was taken back"
		if n := r.Count(rollout.Astray); n > 0 {
			back += fmt.Sprintf(", but %d of it could not be and are astray", n)
		}
		return problem.New(problem.Unavailable, "The rollout failed, and "+back+": "+r.Reason, "See each member's detail: agnesctl fleet rollout --status "+r.ID)
	case rollout.Stopped:
		return problem.New(problem.Inconclusive, "The rollout stopped, and nothing was taken back: "+r.Reason, "Mend it, then: "+resume+"; or end it: agnesctl fleet rollout --abort "+r.ID)
	case rollout.Aborted:
		return problem.New(problem.Inconclusive, "The rollout was ended before its end: "+r.Reason, "See where each member is: agnesctl fleet rollout --status "+r.ID)
	}
	p := problem.New(problem.Inconclusive, fmt.Sprintf("The rollout is %s: %s", r.State, r.Reason), "Go on: "+resume)
	if err := ctx.Err(); err != nil {
		p.Err = err
	}
	return p
}
