// Package update finds out whether the running version is deprecated and which
// one is newest, by asking the registry that its image comes from.
//
// A deprecation is a tag, deprecated-VERSION, so the question is one HEAD, and no
// service of a vendor is needed. The newest version is a label of the image that
// the channel's floating tag points at. Checker asks soon after the start and
// then every six hours. What could not be asked stays as it was known last; the
// last answers lie in a file, so that a restart without a registry still warns.
//
//	update.go    Checker: when it asks, what it concludes, what it remembers
//	registry.go  the questions
//	version.go   calendar versions
package update

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/renameio/v2"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// When a Checker asks. The spreads keep the instances of a fleet, which may all
// have been restarted at once, from asking at once.
const (
	firstSpread = time.Minute // of the first check after a start
	every       = 6 * time.Hour
	spread      = 30 * time.Minute // of the checks after it
	retryFirst  = time.Minute      // after a failure; twice as long after each further one
	checkTime   = time.Minute      // what one check may take
)

// Options are what a Checker is made of.
type Options struct {
	Image   string // repository, such as ghcr.io/owner/name; a tag or digest behind it does not matter
	Version string // that runs, YYYY.MM.N
	Channel string // whose floating tag has the newest version
	File    string // where the last answers are kept
	Log     *slog.Logger

	Jitter    func(upTo time.Duration) time.Duration // nil: random
	Transport http.RoundTripper                      // nil: an http.Transport of its own
}

// Status is what is known of the running version.
type Status struct {
	Deprecated bool
	Latest     string // a newer version that is not deprecated; empty where none is known
}

// Checker watches over one version. It is safe for concurrent use.
type Checker struct {
	opt        Options
	running    version
	repository name.Repository
	transport  http.RoundTripper

	mu    sync.Mutex
	known answers
}

// answers are what the registry said last, as they lie in the file.
type answers struct {
	Image   string `json:"image"` // of which, with the two below, the rest holds
	Version string `json:"version"`
	Channel string `json:"channel"`

	Deprecated bool   `json:"deprecated"`
	Latest     string `json:"latest,omitempty"`
	Digest     string `json:"digest,omitempty"` // that the floating tag pointed at
	Label      string `json:"label,omitempty"`  // the version in that image's label
}

// Watchable reports whether a version is one that can be deprecated: that of a
// release, and not a build of somebody's own.
func Watchable(text string) bool {
	_, ok := parseVersion(text)
	return ok
}

// New returns a Checker that knows what the last one has found out. A version
// that is not Watchable or an image whose name cannot be read is a problem.Usage.
func New(opt Options) (*Checker, error) {
	running, ok := parseVersion(opt.Version)
	if !ok {
		return nil, problem.New(problem.Usage, fmt.Sprintf("Expected a version YYYY.MM.N, found %q.", opt.Version), "Set AGNES_UPDATE_CHECK=off.")
	}
	image, err := name.ParseReference(opt.Image)
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, fmt.Sprintf("Expected the name of an image repository such as ghcr.io/owner/name, found %q.", opt.Image),
			"Set AGNES_IMAGE to where the image was pulled from, or switch the question for updates off: AGNES_UPDATE_CHECK=off")
	}
	c := &Checker{opt: opt, running: running, repository: image.Context(), transport: transport(opt.Transport)}
	if c.opt.Jitter == nil {
		c.opt.Jitter = rand.N[time.Duration]
	}
	c.known = c.load()
	c.tell(answers{}, c.known)
	return c, nil
}

// Status returns what is known.
func (c *Checker) Status() Status {
	k := c.answers()
	return Status{Deprecated: k.Deprecated, Latest: k.Latest}
}

func (c *Checker) answers() answers {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// Run asks until ctx ends.
func (c *Checker) Run(ctx context.Context) {
	var wait time.Duration
	if !loopback(c.repository.RegistryStr()) { // a registry on this machine has no crowd to fear
		wait = c.opt.Jitter(firstSpread)
	}
	failures := 0
	for pause.For(ctx, wait) == nil {
		err := c.check(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures, wait = 0, every+c.opt.Jitter(spread)
			continue
		case failures == 0:
			c.opt.Log.Info("The registry could not be asked whether this version is deprecated; what was known stays, and it is asked again.",
				"image", c.repository.Name(), "error", err)
		}
		wait = min(retryFirst<<min(failures, 16), every)
		wait += c.opt.Jitter(wait / 2)
		failures++
	}
}

// check asks once and stores what it learned, also where it was not all.
func (c *Checker) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	was := c.answers()
	now, err := c.ask(ctx, was)
	if now == was {
		return err
	}
	c.mu.Lock()
	c.known = now
	c.mu.Unlock()
	c.tell(was, now)
	if err := c.save(now); err != nil {
		c.opt.Log.Warn("What the registry says of this version could not be stored; after a restart it is asked anew.", "path", c.opt.File, "error", err)
	}
	return err
}

// tell logs what has changed.
func (c *Checker) tell(was, now answers) {
	switch {
	case now.Deprecated && !was.Deprecated:
		c.opt.Log.Warn("This version is deprecated.", "version", now.Version, "latest", now.Latest, "hint", "Update to stable.")
	case was.Deprecated && !now.Deprecated:
		c.opt.Log.Info("This version is not deprecated any more.", "version", now.Version)
	case now.Latest != "" && now.Latest != was.Latest:
		c.opt.Log.Info("There is a newer version.", "version", now.Version, "latest", now.Latest)
	}
}

// load reads the file. One of another version or image, or one that cannot be
// read, says nothing.
func (c *Checker) load() answers {
	none := answers{Image: c.repository.Name(), Version: c.opt.Version, Channel: c.opt.Channel}
	var a answers
	data, err := os.ReadFile(c.opt.File)
	if err != nil || json.Unmarshal(data, &a) != nil || a.Image != none.Image || a.Version != none.Version || a.Channel != none.Channel {
		return none
	}
	return a
}

func (c *Checker) save(a answers) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return renameio.WriteFile(c.opt.File, append(data, '\n'), 0o600)
}
