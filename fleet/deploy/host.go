package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// host is the machine: its files below one directory, its docker, its compose
// project.
type host struct {
	shell Shell
	dir   string
	log   *slog.Logger
	owner string // id of the lease without which nothing is changed; none where nothing is
}

const (
	commandTimeout = 2 * time.Minute
	dockerTimeout  = 8 * time.Minute // with the wait for a command that another deploy left behind
	// dockerBack is how long docker may be away, as in a restart or an update of
	// the host's packages.
	dockerBack = 60 * time.Second
)

// run runs a command in the host's directory; one that fails is an error.
func (h *host) run(ctx context.Context, args ...string) (Output, error) {
	c := Command{Args: args, Dir: h.dir}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := h.shell.Run(ctx, c)
	if err != nil {
		return out, h.lost(ctx, err)
	}
	return out, out.Failed(c)
}

// lost is the error of a command of which nothing is known.
func (h *host) lost(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errLost) {
		err = errLost
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The deploy to %s was interrupted from here", h.shell),
			"Run it again when you want it.")
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The host %s did not carry a command out", h.shell),
		"Run this again: it goes on from where the host is now.")
}

// script runs a POSIX shell script in the host's directory. Its arguments are
// $1 and so on, so that nothing has to be quoted.
func (h *host) script(ctx context.Context, stdin io.Reader, text string, args ...string) (Output, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := h.shell.Run(ctx, Command{Args: append([]string{"sh", "-c", text, "sh"}, args...), Dir: h.dir, Stdin: stdin})
	switch {
	case err != nil:
		return out, h.lost(ctx, err)
	case out.Code == 126: // as Shell says of a Dir that cannot be entered
		return out, problem.New(problem.NotFound, fmt.Sprintf("Expected the instance's directory %s on %s, found none that can be entered.", h.dir, h.shell),
			fmt.Sprintf("Name another one, or make it for the user that deploys: sudo install -d -o USER %s", h.dir))
	}
	return out, nil
}

func (h *host) read(ctx context.Context, name string) (content []byte, found bool, err error) {
	out, err := h.script(ctx, nil, `[ -e "$1" ] || exit 44; cat "$1"`, name)
	switch {
	case err != nil:
		return nil, false, err
	case out.Code == 44:
		return nil, false, nil
	}
	return out.Stdout, true, out.Failed(Command{Args: []string{"read", name}})
}

// writeFile replaces a file as a whole: a reader sees the old or the new one,
// and after a power cut, too. Owner and mode stay; a new file is its owner's alone.
const writeFile = holds + `set -eu
umask 077
mkdir -p "$(dirname "$1")"
at=$1
if [ -L "$at" ]; then at=$(readlink -f "$at"); fi
if [ -e "$at" ]; then cp -p "$at" "$at.new"; fi
cat >"$at.new"
[ "$(wc -c <"$at.new")" -eq "$2" ]
sync "$at.new" 2>/dev/null || sync
mv "$at.new" "$at"
sync "$(dirname "$at")" 2>/dev/null || sync`

func (h *host) write(ctx context.Context, name string, content []byte) error {
	out, err := h.script(ctx, bytes.NewReader(content), writeFile, h.owner, name, strconv.Itoa(len(content)))
	if err != nil {
		return err
	}
	if out.Code == leaseLost {
		return lostLease()
	}
	if err := out.Failed(Command{Args: []string{"write", path.Join(h.dir, name)}}); err != nil {
		p := problem.As(err)
		return problem.New(problem.NoSpace, p.Message, fmt.Sprintf("See whether the disk is full or %s belongs to somebody else: df -h %s; ls -ld %s", h.dir, h.dir, h.dir))
	}
	return nil
}

// noDocker matches what docker's command line says when the daemon is away or
// went away under it.
var noDocker = regexp.MustCompile(`(?i)cannot connect to the docker daemon|error during connect|connection refused|unexpected EOF|\bEOF$|connection reset|server gave HTTP|transport is closing|daemon is shutting down`)

// docker runs docker's command line. What changes something runs under a lock of
// the host: a command that a killed deploy left behind ends first. While the
// daemon is away, as in a restart of the host's docker, the command waits for it
// and is repeated: each one that is used here can be.
func (h *host) docker(ctx context.Context, change bool, args ...string) (Output, error) {
	c := Command{Args: append([]string{"docker"}, args...), Dir: h.dir}
	return h.patient(ctx, h.locked(change, c), "docker "+strings.Join(args, " "))
}

// busy is the exit code of a command that waited in vain for another one.
const busy = 75 // EX_TEMPFAIL of sysexits.h

// locked lets a command that changes something run alone, and only while the
// lease is ours: that is looked at when its turn has come, for it may wait for long.
func (h *host) locked(change bool, c Command) Command {
	if change {
		c.Args = append([]string{"flock", "-w", "300", "-E", strconv.Itoa(busy), ".agnes/command.lock", "sh", "-c", holds + `exec "$@"`, "sh", h.owner}, c.Args...)
	}
	return c
}

// patient runs a command that needs docker; shown is how an error names it.
func (h *host) patient(ctx context.Context, c Command, shown string) (Output, error) {
	const attempts = 4
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dockerTimeout)
		defer cancel()
	}
	for again := 1; ; again++ {
		out, err := h.shell.Run(ctx, c)
		if err != nil {
			return out, h.lost(ctx, err)
		}
		if out.Code == leaseLost && h.owner != "" {
			return out, lostLease()
		}
		if out.Code == busy {
			return out, problem.New(problem.Unavailable, fmt.Sprintf("Another command of a deploy still runs on %s after five minutes; this one waited for it: %s", h.shell, shown),
				fmt.Sprintf("See which: fuser -v %s/.agnes/command.lock; then run this again.", h.dir))
		}
		if out.Code == 0 || again == attempts || !noDocker.Match(bytes.TrimSpace(out.Stderr)) {
			return out, out.Failed(Command{Args: []string{shown}})
		}
		h.log.Debug("Docker went away; waiting for it.", "said", string(out.Stderr))
		if err := h.dockerReturns(ctx); err != nil {
			return out, err
		}
	}
}

func (h *host) dockerReturns(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dockerBack)
	defer cancel()
	for {
		out, err := h.shell.Run(ctx, Command{Args: []string{"docker", "version", "--format", "{{.Server.Version}}"}, Dir: h.dir})
		if err == nil && out.Code == 0 {
			return nil
		}
		if perr := pause.For(ctx, 500*time.Millisecond); perr != nil {
			return problem.New(problem.Unavailable, fmt.Sprintf("Docker does not answer on %s: %s", h.shell, strings.TrimSpace(string(out.Stderr))),
				"Start it there (sudo systemctl start docker), then run this again: it goes on from where the host is now.")
		}
	}
}

// files are the compose files in force: the release's from one directory, and
// the customer's own.
type files struct {
	Names []string `json:"names"`         // relative to the host's directory
	Env   string   `json:"env,omitempty"` // of another .env than the directory's
}

func (h *host) composeArgs(f files, args ...string) []string {
	all := []string{"compose", "--project-directory", h.dir}
	if f.Env != "" {
		all = append(all, "--env-file", path.Join(h.dir, f.Env))
	}
	for _, name := range f.Names {
		if !path.IsAbs(name) {
			name = path.Join(h.dir, name)
		}
		all = append(all, "-f", name)
	}
	return append(all, args...)
}

// bare runs a command with what docker needs of the environment, and nothing
// else: to compose, a variable of whoever deploys would outweigh .env.
const bare = `for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
  case $name in
  PATH | HOME | TMPDIR | SSH_AUTH_SOCK | XDG_* | DOCKER_* | *_PROXY | *_proxy) ;;
  *) unset "$name" ;;
  esac
done
export COMPOSE_PROGRESS=plain COMPOSE_ANSI=never
exec "$@"`

// compose runs docker compose over the customer's files and .env.
func (h *host) compose(ctx context.Context, change bool, f files, args ...string) (Output, error) {
	docker := append([]string{"docker"}, h.composeArgs(f, args...)...)
	c := Command{Args: append([]string{"sh", "-c", bare, "sh"}, docker...), Dir: h.dir}
	return h.patient(ctx, h.locked(change, c), strings.Join(docker, " "))
}

const (
	baseFile     = "docker-compose.yml"
	prodFile     = "docker-compose.prod.yml"
	overrideFile = "docker-compose.override.yml"
)

// liveFiles returns the compose files in force: the release's that are there,
// and the customer's, by compose's own names for an override or by COMPOSE_FILE.
func (h *host) liveFiles(ctx context.Context) (files, error) {
	env, _, err := h.read(ctx, ".env")
	if err != nil {
		return files{}, err
	}
	names := []string{baseFile, prodFile, overrideFile, "docker-compose.override.yaml", "compose.override.yml", "compose.override.yaml"}
	for _, name := range strings.Split(envValue(env, "COMPOSE_FILE"), ":") {
		if name != "" && !slices.Contains(names, path.Clean(name)) {
			names = append(names, path.Clean(name))
		}
	}
	out, err := h.script(ctx, nil, `for f in "$@"; do if [ -e "$f" ]; then printf '%s\n' "$f"; fi; done`, names...)
	if err != nil {
		return files{}, err
	}
	return files{Names: slices.Collect(strings.FieldsFuncSeq(string(out.Stdout), func(r rune) bool { return r == '\n' }))}, nil
}

// customers returns the files that no release brings.
func (f files) customers() []string {
	return slices.DeleteFunc(slices.Clone(f.Names), func(name string) bool { return name == baseFile || name == prodFile })
}

// unnamed returns a file of the customer's that compose takes by its name alone,
// and would leave out since COMPOSE_FILE names others.
func (f files) unnamed(env []byte) string {
	list := envValue(env, "COMPOSE_FILE")
	if list == "" {
		return ""
	}
	for _, name := range f.customers() {
		if !slices.ContainsFunc(strings.Split(list, ":"), func(n string) bool { return path.Clean(n) == name }) {
			return name
		}
	}
	return ""
}

// container is one of the project's, as docker inspect tells it.
type container struct {
	ID           string `json:"Id"`
	Image        string // id
	RestartCount int
	State        struct {
		Status    string
		StartedAt string
		Error     string
	}
	Config struct {
		Image  string
		Labels map[string]string
	}
	NetworkSettings struct {
		Ports    map[string][]struct{ HostIp, HostPort string } //nolint:staticcheck // docker's names
		Networks map[string]struct{ IPAddress string }
	}
}

// service is the compose service that is the instance.
const service = "app"

// app returns the instance's containers: none, one, or more after a deploy that
// was killed between two.
func (h *host) app(ctx context.Context, project string) ([]container, error) {
	return h.containers(ctx, "label=com.docker.compose.project="+project,
		"label=com.docker.compose.service="+service, "label=com.docker.compose.oneoff=False")
}

func (h *host) containers(ctx context.Context, filters ...string) ([]container, error) {
	args := []string{"ps", "-aq", "--no-trunc"}
	for _, f := range filters {
		args = append(args, "--filter", f)
	}
	out, err := h.docker(ctx, false, args...)
	if err != nil {
		return nil, err
	}
	ids := strings.Fields(string(out.Stdout))
	if len(ids) == 0 {
		return nil, nil
	}
	out, err = h.docker(ctx, false, append([]string{"container", "inspect"}, ids...)...)
	if err != nil {
		return nil, err
	}
	var list []container
	if err := json.Unmarshal(out.Stdout, &list); err != nil {
		return nil, fmt.Errorf("docker container inspect on %s: %w", h.shell, err)
	}
	return list, nil
}

// dockerImage is an image of the host, as docker inspect tells it.
type dockerImage struct {
	ID          string `json:"Id"`
	RepoDigests []string
	Config      struct{ Labels map[string]string }
}

func (h *host) image(ctx context.Context, ref string) (dockerImage, bool, error) {
	out, err := h.docker(ctx, false, "image", "inspect", ref)
	if err != nil {
		if bytes.Contains(out.Stderr, []byte("No such image")) || bytes.Contains(out.Stderr, []byte("no such image")) {
			return dockerImage{}, false, nil
		}
		return dockerImage{}, false, err
	}
	var list []dockerImage
	if err := json.Unmarshal(out.Stdout, &list); err != nil || len(list) != 1 {
		return dockerImage{}, false, fmt.Errorf("docker image inspect %s on %s: %d images, %w", ref, h.shell, len(list), err)
	}
	return list[0], true, nil
}

// describe returns what is known of an image of the host. Where it has several
// names and digests, those of a repository are taken, and best a certain digest.
func describe(i dockerImage, repository, digest string) Image {
	out := Image{ID: i.ID}
	out.label(i.Config.Labels)
	rank := 0
	for _, ref := range i.RepoDigests {
		name, d, _ := strings.Cut(ref, "@")
		r := 1
		if name == repository {
			r = 2
		}
		if d == digest {
			r += 2
		}
		if r > rank {
			rank, out.Repository, out.Digest = r, name, d
		}
	}
	return out
}

// label takes what an image says of itself. A version that could be no tag is
// none: it would be written into .env.
func (i *Image) label(labels map[string]string) {
	i.Schema, _ = strconv.Atoi(labels["io.agnes.schema-version"]) // 0 where it is not said
	if v := labels["org.opencontainers.image.version"]; tagPattern.MatchString(v) {
		i.Version = v
	}
	if c := labels["io.agnes.channel"]; c == "stable" || c == "dev" {
		i.Channel = c
	}
}

// address returns where the instance's port is reached on the host: the
// published one, or the container's own.
func (c container) address() (string, bool) {
	if published := c.NetworkSettings.Ports["8000/tcp"]; len(published) > 0 {
		ip := published[0].HostIp
		switch ip {
		case "", "0.0.0.0":
			ip = "127.0.0.1"
		case "::":
			ip = "::1"
		}
		return net.JoinHostPort(ip, published[0].HostPort), true
	}
	for name, n := range c.NetworkSettings.Networks {
		if name == "host" {
			return "127.0.0.1:8000", true
		}
		if n.IPAddress != "" {
			return net.JoinHostPort(n.IPAddress, "8000"), true
		}
	}
	return "", false
}

// freeKB returns the free kilobytes of the file system that holds a path.
func (h *host) freeKB(ctx context.Context, at string) (int64, error) {
	out, err := h.run(ctx, "df", "-Pk", at)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(string(out.Stdout)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) < 4 {
		return 0, fmt.Errorf("df -Pk %s on %s: expected four fields, found %q", at, h.shell, lines[len(lines)-1])
	}
	return strconv.ParseInt(fields[3], 10, 64)
}
