package deploy

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

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
		return "", problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Docker cannot be used on %s", t.opt.Shell),
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
	if err := t.reachable(ctx); err != nil {
		return "", err
	}
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
	if f := t.j.Live.unnamed(t.j.Env); f != "" {
		now += "; COMPOSE_FILE in .env does not name " + f + ", so that docker compose leaves it out where a deploy does not: name it last"
	}
	return fmt.Sprintf("docker %s, compose %s, project %s; %s", docker, compose, t.j.Project, now), nil
}

// hidden refuses to deploy over data whose instance was taken down: there would
// be neither a backup nor a way back for it.
func (t *transaction) hidden(ctx context.Context) error {
	if !slices.Contains(t.j.Live.Names, baseFile) {
		return nil // nothing was ever kept here; a first deploy that went back may have left a volume
	}
	found, err := t.data(ctx)
	if err != nil || !found {
		return err
	}
	return problem.New(problem.Refused,
		fmt.Sprintf("The instance on %s was taken down, and its data is there: what its schema is cannot be told.", t.opt.Shell),
		fmt.Sprintf("Start it, then run this again: cd %s && docker compose up -d", t.host.dir)).WithCode("instance_down")
}

// isFull ends with 0 where a folder has something in it, or does not say.
const isFull = `[ -d "$1" ] || exit 1; in=$(ls -A "$1" 2>/dev/null) || exit 0; [ -n "$in" ]`

// data reports whether the instance has data: on the volume that compose makes,
// or where the customer's files put it.
func (t *transaction) data(ctx context.Context) (bool, error) {
	config, err := t.host.config(ctx, t.j.Live)
	if err != nil {
		return false, err
	}
	for _, v := range config.Services[service].Volumes {
		switch {
		case v.Target != "/data":
		case v.Type == "bind":
			out, err := t.host.script(ctx, nil, isFull, v.Source)
			return out.Code == 0, err
		case config.Volumes[v.Source].External: // made by hand before the first deploy, too
			_, deployed, err := t.host.read(ctx, currentFile)
			return deployed, err
		}
	}
	out, err := t.host.docker(ctx, false, "volume", "ls", "-q", "--filter", "label=com.docker.compose.project="+t.j.Project, "--filter", "label=com.docker.compose.volume=data")
	return len(strings.TrimSpace(string(out.Stdout))) > 0, err
}

// reachable refuses a host whose ports cannot be reached at all: each instance
// would seem dead there. One on which nothing answers is no matter here.
func (t *transaction) reachable(ctx context.Context) error {
	address := net.JoinHostPort("127.0.0.1", cmp.Or(envValue(t.j.Env, "AGNES_PORT"), "8000"))
	if t.alive {
		if c, err := t.running(ctx); err == nil {
			if at, ok := c.address(); ok {
				address = at
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := t.opt.Shell.Dial(ctx, "tcp", address)
	if err == nil {
		return conn.Close()
	}
	if problem.As(err).Code == NoForwarding {
		return err
	}
	return nil
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
		if _, err := t.host.docker(ctx, true, "pull", "-q", t.j.From.Ref()); err == nil || problem.As(err).Code != commandFailed {
			return err
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
	if err := t.ask(ctx, &to); err != nil {
		if !t.opt.Back { // the image of a way back is here, whatever became of it elsewhere
			return "", err
		}
		found, ok, herr := t.host.image(ctx, to.Repository+"@"+to.Digest)
		if herr != nil || !ok {
			return "", err
		}
		to.label(found.Config.Labels)
	}
	if to.Tag == "" {
		to = to.pinned() // a tag is where the host's own updates read what they shall stay at
	}
	t.j.To, t.out.To = to, to
	t.runs = t.alive && t.j.From.Digest == to.Digest
	detail := fmt.Sprintf("%s is %s, version %s, schema %d", to.Tag, short(to.Digest), to.Version, to.Schema)
	if t.runs {
		detail += "; it runs already"
	}
	return detail, t.readable(ctx)
}

// ask completes an image by what its registry knows of it.
func (t *transaction) ask(ctx context.Context, to *Image) error {
	registry, err := t.opt.Registry(to.Repository)
	if err != nil {
		return err
	}
	if to.Digest == "" {
		if to.Digest, err = registry.Digest(ctx, to.Tag); err != nil {
			return unreachable(err, to.Ref())
		}
	}
	manifest, err := registry.Manifest(ctx, to.Digest)
	if err != nil {
		return unreachable(err, to.Ref())
	}
	labels, err := registry.Labels(ctx, manifest)
	if err != nil {
		return unreachable(err, to.Ref())
	}
	to.label(labels)
	if t.needKB, err = needed(ctx, registry, manifest); err != nil {
		return unreachable(err, to.Ref())
	}
	return nil
}
