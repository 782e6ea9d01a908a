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
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
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

// firstContact is how long docker may be away before a deploy begins.
const firstContact = 20 * time.Second

// preflight finds out what runs, and whether the host can be deployed to.
func (t *transaction) preflight(ctx context.Context) (string, error) {
	if t.opt.Back {
		if err := t.chooseBack(ctx); err != nil {
			return "", err
		}
	}
	patience := firstContact
	if t.opt.DryRun { // a person waits for the answer, and nothing is lost by it
		patience = 2 * time.Second
	}
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := t.host.docker(first, false, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Docker does not answer on %s", t.opt.Shell),
			"Start it there, or let the user of the connection use it: sudo usermod -aG docker USER")
	}
	docker := strings.TrimSpace(string(out.Stdout))
	if out, err = t.host.docker(ctx, false, "compose", "version", "--short"); err != nil {
		return "", problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Docker Compose v2 is not installed on %s", t.opt.Shell),
			"Install docker-compose-plugin there: https://docs.docker.com/compose/install/linux/")
	}
	compose := strings.TrimSpace(string(out.Stdout))
	if t.j, err = t.survey(ctx); err != nil {
		return "", err
	}
	t.out.From, t.out.Running = t.j.From, t.j.From
	if err := t.space(ctx, leastImageKB); err != nil {
		return "", err
	}
	now := "nothing runs yet"
	if !t.j.WasUp {
		if err := t.hidden(ctx); err != nil {
			return "", err
		}
	}
	if t.j.WasUp {
		now = t.j.From.Name() + " runs"
		if err := t.wayBack(ctx); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("docker %s, compose %s, project %s; %s", docker, compose, t.j.Project, now), nil
}

// hidden refuses to deploy over data whose instance was taken down: there would
// be neither a backup nor a way back for it.
func (t *transaction) hidden(ctx context.Context) error {
	if !slices.Contains(t.j.Live.Names, baseFile) {
		return nil // nothing was ever kept here; a first deploy that went back may have left a volume
	}
	out, err := t.host.docker(ctx, false, "volume", "ls", "-q", "--filter", "label=com.docker.compose.project="+t.j.Project, "--filter", "label=com.docker.compose.volume=data")
	if err != nil || len(strings.TrimSpace(string(out.Stdout))) == 0 {
		return err
	}
	return problem.New(problem.Refused,
		fmt.Sprintf("The instance on %s was taken down, and its data is there: what its schema is cannot be told.", t.opt.Shell),
		fmt.Sprintf("Start it, then run this again: cd %s && docker compose up -d", t.host.dir)).WithCode("instance_down")
}

// survey looks at what runs on the host.
func (t *transaction) survey(ctx context.Context) (journal, error) {
	j := journal{ID: t.id, Owner: t.opt.Owner, StartedAt: t.opt.Now().UTC(), Phase: preparing, Policy: t.opt.Schema}
	var err error
	if j.Live, err = t.host.liveFiles(ctx); err != nil {
		return j, err
	}
	if j.Env, j.HadEnv, err = t.host.read(ctx, ".env"); err != nil {
		return j, err
	}
	if j.Project, err = t.project(ctx, j.Live, j.Env); err != nil {
		return j, err
	}
	if t.opt.Image == "" {
		if t.opt.Image = envValue(j.Env, envImage); t.opt.Image == "" || t.opt.Image == rollbackName {
			t.opt.Image = StandardImage
		}
	}
	j.Back = t.opt.Back
	list, err := t.host.app(ctx, j.Project)
	if err != nil || len(list) == 0 {
		return j, err
	}
	at := slices.IndexFunc(list, func(c container) bool { return c.State.Status == "running" })
	t.alive, at = at >= 0, max(0, at)
	j.WasUp = true
	found, ok, err := t.host.image(ctx, list[at].Image)
	if err != nil {
		return j, err
	}
	j.From = Image{ID: list[at].Image, Repository: envValue(j.Env, envImage), Digest: envValue(j.Env, envDigest)}
	if ok {
		j.From = describe(found, t.opt.Image, j.From.Digest)
	}
	j.From.Tag = envValue(j.Env, envTag)
	j.Schema = j.From.Schema // what the instance itself says is better
	return j, nil
}

// project returns the name of the compose project, which names containers and
// volumes: with another one, the data would seem gone.
func (t *transaction) project(ctx context.Context, f files, env []byte) (string, error) {
	if !slices.Contains(f.Names, baseFile) {
		if name := envValue(env, "COMPOSE_PROJECT_NAME"); name != "" {
			return name, nil
		}
		return "agnes", nil // as the release's compose file pins it
	}
	config, err := t.host.config(ctx, f)
	return config.Name, err
}

// wayBack makes sure that the image that runs can be started again.
func (t *transaction) wayBack(ctx context.Context) error {
	_, found, err := t.host.image(ctx, t.j.From.ID)
	if err != nil || found {
		return err
	}
	if t.j.From.Digest != "" && t.j.From.Repository != "" && !t.opt.DryRun {
		if _, err := t.host.docker(ctx, true, "pull", "-q", t.j.From.Ref()); err == nil {
			return nil
		}
	}
	return problem.New(problem.Refused,
		fmt.Sprintf("There is no way back on %s: the image that runs (%s) is neither on the host nor in its registry.", t.opt.Shell, t.j.From.Name()),
		"Keep it first: docker commit the container, or load the image from a copy; then run this again.").WithCode("no_way_back")
}

// Least free space to begin with. The image's own need is checked before it is
// pulled.
const (
	leastImageKB = 256 << 10 // where docker keeps images
	leastFilesKB = 32 << 10
)

func (t *transaction) space(ctx context.Context, imageKB int64) error {
	root, err := t.host.docker(ctx, false, "info", "--format", "{{.DockerRootDir}}")
	if err != nil {
		return err
	}
	for _, need := range []struct {
		at string
		kb int64
	}{{strings.TrimSpace(string(root.Stdout)), imageKB}, {t.host.dir, leastFilesKB}} {
		free, err := t.host.freeKB(ctx, need.at)
		if err != nil {
			return err
		}
		if free < need.kb {
			return problem.New(problem.NoSpace,
				fmt.Sprintf("%s has %d MB free where %s is; a deploy needs %d MB.", t.opt.Shell, free>>10, need.at, need.kb>>10),
				fmt.Sprintf("Make room there: df -h %s; docker image prune", need.at))
		}
	}
	return nil
}

// resolve asks once which digest the tag means; from here on only the digest
// counts.
func (t *transaction) resolve(ctx context.Context) (string, error) {
	to := Image{Repository: t.opt.Image, Tag: t.opt.Tag, Digest: t.opt.Digest}
	registry, err := t.opt.Registry(to.Repository)
	if err != nil {
		return "", err
	}
	if to.Digest == "" {
		if to.Digest, err = registry.Digest(ctx, to.Tag); err != nil {
			return "", unreachable(err, to.Ref())
		}
	}
	manifest, err := registry.Manifest(ctx, to.Digest)
	if err != nil {
		return "", unreachable(err, to.Ref())
	}
	labels, err := registry.Labels(ctx, manifest)
	if err != nil {
		return "", unreachable(err, to.Ref())
	}
	to.label(labels)
	if to.Tag == "" {
		to = to.pinned() // a tag is where the host's own updates read what they shall stay at
	}
	if t.needKB, err = needed(ctx, registry, manifest); err != nil {
		return "", unreachable(err, to.Ref())
	}
	t.j.To, t.out.To = to, to
	t.runs = t.alive && t.j.From.Digest == to.Digest
	detail := fmt.Sprintf("%s is %s, version %s, schema %d", to.Tag, short(to.Digest), to.Version, to.Schema)
	if t.runs {
		detail += "; it runs already"
	}
	return detail, nil
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
	if problem.Is(err, problem.Refused) {
		return "", against(err)
	}
	if err != nil {
		return "", err
	}
	return "signed by a key of the policy", nil
}

// drain lets no sync begin and waits for one that runs.
func (t *transaction) drain(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	client, health, err := t.hello(ctx)
	if err != nil {
		return "the instance does not answer: " + problem.As(err).Message, nil
	}
	t.j.Baseline, t.j.Schema = health, health.SchemaVersion
	if health.SetupRequired {
		return "in setup mode: there is nothing to drain", nil
	}
	t.j.Drained = true
	if err := t.enter(ctx, preparing, "drain"); err != nil {
		return "", err
	}
	return t.quiet(ctx, client)
}

// hello asks the instance for its health, more than once where it or the way
// there is in trouble for a moment.
func (t *transaction) hello(ctx context.Context) (*api.Client, *api.Health, error) {
	const most = 3
	for again := 1; ; again++ {
		client, err := t.client(ctx)
		var health *api.Health
		if err == nil {
			health, err = client.Health(ctx)
		}
		if err == nil || again == most || pause.For(ctx, 2*time.Second) != nil {
			return client, health, err
		}
	}
}

// quiet begins or extends a drain and returns when no sync runs.
func (t *transaction) quiet(ctx context.Context, client *api.Client) (string, error) {
	until := t.opt.Now().Add(t.opt.DrainWait)
	waited := false
	for {
		d, err := client.Drain(ctx, api.DrainRequest{Drain: true, Seconds: seconds(drainFor)})
		switch {
		case err != nil:
			return "", err
		case !d.SyncRunning && waited:
			return "a sync ended", nil
		case !d.SyncRunning:
			return "no sync runs", nil
		case !t.opt.Now().Before(until):
			return "", problem.New(problem.Conflict, fmt.Sprintf("A sync (%s) still runs after %s.", d.JobID, t.opt.DrainWait),
				"Run this again when it has ended: agnesctl instance sync --follow shows it.").WithCode("deferred")
		}
		waited = true
		if err := pause.For(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// drainFor is how long a drain lasts when nobody ends it.
const drainFor = 15 * time.Minute

// backup makes the backup that a way back with a moved schema restores.
func (t *transaction) backup(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	backup, err := t.makeBackup(ctx)
	if passing(err) {
		return "", err
	}
	if err != nil && t.opt.WithoutBackup {
		return "none, as asked for: " + err.Error(), t.chooseOlder(ctx)
	}
	if err != nil {
		return "", problem.Wrap(err, problem.Refused, "The state could not be backed up, so there would be no way back for it",
			"Mend that first. Where the data may be lost: --without-backup").WithCode("no_backup")
	}
	t.j.Backup, t.j.Schema, t.out.Backup = backup.ID, backup.SchemaVersion, backup.ID
	if err := t.chooseOlder(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, schema %d, %d KB, verified", backup.ID, backup.SchemaVersion, backup.SizeBytes>>10), t.enter(ctx, preparing, "backup")
}

// passing reports whether an error of a backup says nothing about backups: a
// sync runs, the connection broke, somebody pressed Ctrl-C.
func passing(err error) bool {
	if err == nil {
		return false
	}
	switch problem.As(err).Kind {
	case problem.Conflict, problem.Timeout:
		return true
	}
	return errors.Is(err, errLost) || errors.Is(err, context.Canceled) || errors.Is(err, errUnheard)
}

// chooseOlder finds the backup that a version with an older schema can read,
// where the deploy goes to such a one.
func (t *transaction) chooseOlder(ctx context.Context) error {
	if t.j.To.Schema == 0 || t.j.To.Schema >= t.j.Schema {
		return nil
	}
	if t.j.Policy == HaltOnSchema {
		return problem.New(problem.Refused,
			fmt.Sprintf("%s has schema %d and cannot read the state, whose schema is %d.", t.j.To.Name(), t.j.To.Schema, t.j.Schema),
			"Go forward to a newer version, or lose what changed since the last backup of the older schema: --schema restore").WithCode("schema_newer")
	}
	list, err := t.backups(ctx)
	if err != nil {
		return err
	}
	for _, b := range list.Backups { // newest first
		if b.SchemaVersion <= t.j.To.Schema {
			t.j.Older = b.ID
			return nil
		}
	}
	return problem.New(problem.Refused,
		fmt.Sprintf("%s has schema %d and cannot read the state, whose schema is %d; no backup on the instance has an older schema.", t.j.To.Name(), t.j.To.Schema, t.j.Schema),
		"Fetch one from off the host, with the instance stopped: docker compose run --rm app backup restore --help").WithCode("schema_newer")
}

func (t *transaction) backups(ctx context.Context) (*api.Backups, error) {
	if t.j.Stopped {
		return oneOff[api.Backups](ctx, t, t.j.Live, askTimeout, "backup", "list", "-o", "json")
	}
	client, err := t.client(ctx)
	if err != nil {
		return nil, err
	}
	return client.Backups(ctx)
}

func (t *transaction) makeBackup(ctx context.Context) (*api.Backup, error) {
	reason := fmt.Sprintf("before the deploy %s of %s", t.j.ID, t.j.To.Name())
	if t.j.Baseline != nil {
		// The host may have restarted it since, and a drain ends with the process.
		if _, err := t.settled(ctx); err != nil {
			return nil, err
		}
		if _, err := t.ready(ctx); err != nil {
			return nil, judged{smoke.Inconclusive, err} // of what ran before
		}
		client, err := t.client(ctx)
		if err != nil {
			return nil, err
		}
		if t.j.Drained {
			if _, err := t.quiet(ctx, client); err != nil {
				return nil, err
			}
		}
		return client.Backup(ctx, api.BackupRequest{Reason: reason})
	}
	// It does not answer, which may be why it is deployed to: it is stopped and
	// its own program makes the backup.
	if c, err := t.running(ctx); err == nil && t.isReady(ctx, c) {
		return nil, problem.Wrap(errUnheard, problem.Unavailable, "The instance is ready, but could not be asked", "Run this again: nothing was touched.")
	}
	t.j.Stopped = true
	if err := t.enter(ctx, preparing, "backup"); err != nil {
		return nil, err
	}
	if err := t.stop(ctx, grace); err != nil {
		return nil, err
	}
	return oneOff[api.Backup](ctx, t, t.j.Live, backupTimeout, "backup", "create", "--reason", reason, "-o", "json")
}

// keep tags the image that runs and copies the files it runs with.
func (t *transaction) keep(ctx context.Context) (string, error) {
	if !t.j.WasUp {
		return "nothing runs", nil
	}
	if _, err := t.host.docker(ctx, true, "tag", t.j.From.ID, t.rollbackTag()); err != nil {
		return "", err
	}
	if t.j.Drained { // a backup can take longer than a drain lasts
		client, err := t.client(ctx)
		if err != nil {
			return "", err
		}
		if _, err := t.quiet(ctx, client); err != nil {
			return "", err
		}
	}
	return t.rollbackTag(), nil
}

// rollbackName is the repository of images that are kept for the way back.
const rollbackName = "agnes-rollback"

func (t *transaction) rollbackTag() string { return rollbackName + ":" + t.j.Project }

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
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "The instance has no operator token in /data/state/.operator_token",
			"It is written when the instance starts: docker compose logs app")
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
