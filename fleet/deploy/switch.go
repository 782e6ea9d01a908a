package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// releaseDir is where the bundle of an image lies until it is in force.
func releaseDir(i Image) string {
	return path.Join(releasesDir, strings.TrimPrefix(i.Digest, "sha256:")[:12])
}

// unpack writes the bundle that an image carries into $2. It is whole or absent.
const unpack = `exec 8>.agnes/command.lock
flock -w 300 -E 75 8 || exit 75
` + holds + `set -eu
rm -rf "$2" "$2.new"
mkdir -p "$2.new"
docker run --rm --network none --log-driver none --entrypoint agnesctl "$1" host bundle --tar >"$2.new/bundle.tar" || {
  code=$?
  [ "$code" -eq 125 ] || exit 91
  exit "$code"
}
tar -xof "$2.new/bundle.tar" -C "$2.new"
rm "$2.new/bundle.tar"
[ -s "$2.new/docker-compose.yml" ] && [ -s "$2.new/docker-compose.prod.yml" ] || exit 91
mv "$2.new" "$2"`

// noBundle is the exit code of unpack for an image that is at fault itself: its
// program ended badly, or made no bundle. 125 is docker's own trouble.
const noBundle = 91

// pull fetches all that the new release needs and proves that its files and the
// customer's fit, before anything is touched.
func (t *transaction) pull(ctx context.Context) (string, error) {
	if err := t.enter(ctx, preparing, "pull"); err != nil {
		return "", err
	}
	ref := t.j.To.Repository + "@" + t.j.To.Digest
	if err := t.fetch(ctx, ref); err != nil {
		return "", err
	}
	dir := releaseDir(t.j.To)
	out, err := t.host.patient(ctx, Command{Args: []string{"sh", "-c", unpack, "sh", t.id, ref, dir}, Dir: t.host.dir}, "docker run "+ref+" host bundle")
	if err != nil {
		err = problem.Wrap(err, problem.Unavailable, "The image's bundle of compose files could not be written out",
			fmt.Sprintf("Look at it: docker run --rm --entrypoint agnesctl %s host bundle --tar | tar -t", ref))
		if out.Code == noBundle {
			return "", t.blame(ctx, err)
		}
		return "", err
	}
	t.candidate = files{Names: append([]string{path.Join(dir, baseFile), path.Join(dir, prodFile)}, t.j.Live.customers()...), Env: candidateEnv}
	if err := t.host.write(ctx, t.candidate.Env, editEnv(t.j.Env, envOf(t.j.To))); err != nil {
		return "", err
	}
	config, err := t.host.config(ctx, t.candidate)
	switch {
	case err != nil && problem.As(err).Code == commandFailed:
		return "", problem.Wrap(err, problem.Refused, "The release's compose files and the customer's do not fit together",
			fmt.Sprintf("Mend %s on %s, then run this again.", overrideFile, t.opt.Shell)).WithCode("compose_invalid")
	case err != nil:
		return "", err
	}
	if got := config.Services[service].Image; !strings.HasSuffix(got, "@"+t.j.To.Digest) {
		return "", problem.New(problem.Refused,
			fmt.Sprintf("The service %s would run %q instead of %s: a file of the customer's names another image.", service, got, t.j.To.Name()),
			fmt.Sprintf("Take image: and build: of the service %s out of %s on %s, then run this again.", service, strings.Join(t.j.Live.customers(), ", "), t.opt.Shell)).WithCode("compose_invalid")
	}
	if project := config.Name; project != t.j.Project {
		return "", problem.New(problem.Refused,
			fmt.Sprintf("The compose project would change its name from %s to %s, and with it the volume that holds the data.", t.j.Project, project),
			fmt.Sprintf("Keep the name: add COMPOSE_PROJECT_NAME=%s to %s/.env on %s", t.j.Project, t.host.dir, t.opt.Shell)).WithCode("project_changed")
	}
	pulling, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	if _, err := t.host.compose(pulling, true, t.candidate, "pull", "--policy", "missing", "--ignore-buildable", "--quiet"); err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "An image of the release could not be pulled",
			"Try again in a moment: nothing that runs was touched.")
	}
	found, ok, err := t.host.image(ctx, ref)
	if err != nil || !ok {
		return "", problem.Wrap(err, problem.Unavailable, "The image was pulled and is not there: "+ref, "Run this again.")
	}
	t.j.To.ID = found.ID
	t.out.To = t.j.To
	return ref, t.enter(ctx, preparing, "pull")
}

// fetch pulls one image unless the host has it.
func (t *transaction) fetch(ctx context.Context, ref string) error {
	if _, found, err := t.host.image(ctx, ref); err != nil || found {
		return err
	}
	if err := t.space(ctx, max(t.needKB, leastImageKB)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	_, err := t.host.docker(ctx, true, "pull", "-q", ref)
	if err != nil {
		kind, hint := problem.Unavailable, "Try again in a moment: nothing that runs was touched."
		if noSpace.MatchString(err.Error()) {
			kind, hint = problem.NoSpace, "Make room there: docker image prune; nothing that runs was touched."
		}
		return problem.Wrap(err, kind, "The image could not be pulled", hint)
	}
	return nil
}

const pullTimeout = 30 * time.Minute

var noSpace = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded`)

// projectName asks compose for the name in force; the answer holds the
// customer's environment, so it is not logged.
func (h *host) config(ctx context.Context, f files) (c composeConfig, err error) {
	out, err := h.compose(ctx, false, f, "config", "--format", "json")
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(out.Stdout, &c); err != nil || c.Name == "" {
		return c, problem.New(problem.Unavailable, "docker compose config named no project.", "Look at it: docker compose config")
	}
	return c, nil
}

// composeConfig is what compose makes of its files.
type composeConfig struct {
	Name     string
	Services map[string]struct {
		Image   string
		Volumes []struct{ Type, Source, Target string }
	}
	Volumes map[string]struct{ External bool }
}

// stash copies the files that the switch replaces to $1, and notes which of
// them do not exist. A second call leaves the first copy alone.
const stash = `set -eu
[ -d "$1" ] && exit 0
rm -rf "$1.new"
mkdir -p "$1.new"
cd "$2"
find . -type f >"$3/$1.new/.names"
cd "$3"
: >"$1.new/.absent"
while read -r f; do
  if [ -e "$f" ]; then mkdir -p "$1.new/$(dirname "$f")"; cp -p "$f" "$1.new/$f"; else echo "$f" >>"$1.new/.absent"; fi
done <"$1.new/.names"
sync
mv "$1.new" "$1"`

// install puts the files of $1 in force, each as a whole.
const install = holds + `set -eu
cd "$1"
find . -type f ! -name .names ! -name .absent >"$2/.agnes/install"
cd "$2"
while read -r f; do
  mkdir -p "$(dirname "$f")"
  cp -p "$1/$f" "$f.new"
  mv "$f.new" "$f"
done <.agnes/install
if [ -e "$1/.absent" ]; then while read -r f; do rm -f "$f"; done <"$1/.absent"; fi
sync`

func (t *transaction) stashDir() string { return path.Join(".agnes/previous", t.j.ID) }

// switchOver puts the release's files in force and starts its containers.
func (t *transaction) switchOver(ctx context.Context) (string, error) {
	if err := t.enter(ctx, switching, "switch"); err != nil {
		return "", err
	}
	dir := releaseDir(t.j.To)
	for _, s := range [][]string{{stash, t.stashDir(), dir, t.host.dir}, {install, t.id, dir, t.host.dir}} {
		out, err := t.host.script(ctx, nil, s[0], s[1:]...)
		if err == nil {
			err = out.Failed(Command{Args: []string{"install", "files", "from", dir}})
		}
		if err != nil {
			return "", err
		}
	}
	// .env may have been edited since the deploy began; only our lines change.
	env, _, err := t.host.read(ctx, ".env")
	if err != nil {
		return "", err
	}
	if err := t.host.write(ctx, ".env", editEnv(env, envOf(t.j.To))); err != nil {
		return "", err
	}
	if err := t.restoreOlder(ctx); err != nil {
		return "", err
	}
	return "", t.up(ctx)
}

// restoreOlder puts the state back that an older schema reads, on the way to a
// version before the one that runs.
func (t *transaction) restoreOlder(ctx context.Context) error {
	if t.j.Older == "" || t.j.Restored == t.j.Older { // done before an interruption: people may have worked since
		t.out.Restored = t.j.Restored
		return nil
	}
	if err := t.stop(ctx, grace); err != nil {
		return err
	}
	live, err := t.host.liveFiles(ctx)
	if err != nil {
		return err
	}
	if _, err := oneOff[struct{}](ctx, t, live, backupTimeout, "backup", "restore", t.j.Older, "-o", "json"); err != nil {
		return problem.Wrap(err, problem.Unavailable, "The backup "+t.j.Older+" could not be restored", "Look at it: docker compose run --rm app backup verify "+t.j.Older)
	}
	t.j.Restored, t.out.Restored = t.j.Older, t.j.Older
	return t.enter(ctx, switching, "switch")
}

// up starts what the files in force describe. Interrupted between the old and
// the new container, compose leaves both: then they go, and it begins anew.
func (t *transaction) up(ctx context.Context) error {
	live, err := t.host.liveFiles(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for range 2 {
		if err = t.clear(ctx); err != nil {
			return err
		}
		if _, err = t.host.compose(ctx, true, live, "up", "-d", "--pull", "missing"); err != nil {
			break
		}
		if list, err := t.host.app(ctx, t.j.Project); err != nil || len(list) < 2 {
			return err
		}
	}
	if err == nil {
		return nil // the assertion tells who is there
	}
	if list, lerr := t.host.app(ctx, t.j.Project); lerr == nil && slices.ContainsFunc(list, func(c container) bool { return noProgram.MatchString(c.State.Error) }) {
		return against(problem.Wrap(err, problem.Unavailable, "The image's program cannot be started", "Look at it: docker compose logs app"))
	}
	return t.blameHost(err, "The containers could not be started")
}

// noProgram matches what the container runtime says of an image that lacks the
// program it names, or has it for another processor. All other trouble of
// starting a container is the host's.
var noProgram = regexp.MustCompile(`exec: .*(executable file not found|no such file or directory|permission denied)|exec format error`)

func (t *transaction) blameHost(err error, message string) error {
	return problem.Wrap(err, problem.Unavailable, message, fmt.Sprintf("Look at them on %s: cd %s && docker compose ps -a", t.opt.Shell, t.host.dir))
}

// How long a container has to end. One that never got ready has nothing to finish:
// its state is what a crash leaves, which the next start or the backup mends.
const (
	grace      = 60 * time.Second // as in the release's compose file
	shortGrace = 5 * time.Second
)

// stop ends the instance's containers the way compose does, which lets it
// checkpoint.
func (t *transaction) stop(ctx context.Context, within time.Duration) error {
	list, err := t.host.app(ctx, t.j.Project)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.State.Status == "exited" || c.State.Status == "created" {
			continue
		}
		if _, err := t.host.docker(ctx, true, "stop", "-t", strconv.Itoa(seconds(within)), c.ID); err != nil {
			return err
		}
	}
	return t.clearOneOffs(ctx)
}

// clear takes containers away that an interrupted deploy may have left between
// old and new; data is on the volume.
func (t *transaction) clear(ctx context.Context) error {
	list, err := t.host.app(ctx, t.j.Project)
	if err != nil || len(list) < 2 {
		return err
	}
	if err := t.stop(ctx, grace); err != nil {
		return err
	}
	for _, c := range list {
		if _, err := t.host.docker(ctx, true, "rm", "-f", c.ID); err != nil && !strings.Contains(err.Error(), "No such container") {
			return err
		}
	}
	return nil
}

func (t *transaction) clearOneOffs(ctx context.Context) error {
	list, err := t.host.containers(ctx, "label=com.docker.compose.project="+t.j.Project,
		"label=com.docker.compose.service="+service, "label=com.docker.compose.oneoff=True")
	if err != nil {
		return err
	}
	for _, c := range list {
		if _, err := t.host.docker(ctx, true, "rm", "-f", c.ID); err != nil && !strings.Contains(err.Error(), "No such container") {
			return err
		}
	}
	return nil
}

// How long commands of the instance's program may take beside its data.
const (
	backupTimeout = 30 * time.Minute // to make one, or to restore one
	askTimeout    = time.Minute
)

// oneOff runs a command of the instance's program beside its data, while the
// instance is stopped, and decodes its answer.
func oneOff[T any](ctx context.Context, t *transaction, f files, within time.Duration, args ...string) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	out, err := t.host.compose(ctx, true, f, append([]string{"run", "--rm", "--no-deps", "-T", service}, args...)...)
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(out.Stdout, v); err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("agnes %s did not answer in JSON: %.200s", strings.Join(args, " "), out.Stdout), "").WithCode("not_json")
	}
	return v, nil
}
