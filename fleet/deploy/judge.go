package deploy

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (t *transaction) assert(ctx context.Context) (string, error) {
	if !t.runs {
		if err := t.enter(ctx, judging, "assert"); err != nil {
			return "", err
		}
	}
	list, err := t.host.app(ctx, t.j.Project)
	if err != nil {
		return "", err
	}
	want, ok, err := t.host.image(ctx, t.j.To.Repository+"@"+t.j.To.Digest)
	if err != nil {
		return "", err
	}
	if !ok || len(list) != 1 || list[0].Image != want.ID {
		return "", problem.New(problem.Unavailable,
			fmt.Sprintf("Expected one container of %s, found %s.", t.j.To.Name(), imagesOf(list)),
			"Look for somebody else who updates this host: agnesctl host status").WithCode("image_mismatch")
	}
	return t.j.To.Name() + " runs", nil
}

func imagesOf(list []container) string {
	if len(list) == 0 {
		return "none"
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Config.Image+" ("+c.State.Status+")")
	}
	return strings.Join(names, ", ")
}

// ready waits for /readyz, and gives up at once on a program that keeps ending.
func (t *transaction) ready(ctx context.Context) (string, error) {
	began := time.Now()
	deadline := began.Add(t.opt.ReadyWait)
	const mostRestarts = 3
	first, restarts := "", 0 // a container that has run for long may have been restarted before
	for {
		list, err := t.host.app(ctx, t.j.Project)
		if err != nil {
			return "", err
		}
		if len(list) == 1 {
			c := list[0]
			if first == "" || first != c.ID {
				first, restarts = c.ID, c.RestartCount
			}
			if c.RestartCount-restarts >= mostRestarts {
				return "", t.blame(ctx, problem.New(problem.Unavailable,
					fmt.Sprintf("The instance ended %d times instead of getting ready: %s", c.RestartCount-restarts, t.lastWords(ctx, c)),
					"Its log: docker compose logs app"))
			}
			for range 4 { // asking docker costs more than asking the instance
				if t.isReady(ctx, c) {
					return fmt.Sprintf("after %.1f s", time.Since(began).Seconds()), nil
				}
				if err := pause.For(ctx, 250*time.Millisecond); err != nil {
					return "", err
				}
			}
		} else if err := pause.For(ctx, 500*time.Millisecond); err != nil {
			return "", err
		}
		if time.Now().After(deadline) {
			words := "it has no container"
			if len(list) == 1 {
				words = t.lastWords(ctx, list[0])
			}
			return "", t.blame(ctx, problem.New(problem.Unavailable,
				fmt.Sprintf("The instance was not ready after %s: %s", t.opt.ReadyWait, words), "Its log: docker compose logs app"))
		}
	}
}

func (t *transaction) isReady(ctx context.Context, c container) bool {
	address, ok := c.address()
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: t.opt.Shell.Dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// inSetup reports whether the instance says that nobody has set it up yet.
func (t *transaction) inSetup(ctx context.Context, address string) bool {
	client, err := api.NewClient("http://"+address, api.WithDial(t.opt.Shell.Dial))
	if err != nil {
		return false
	}
	health, err := client.Health(ctx)
	return err == nil && health.SetupRequired
}

// setupToken matches the token in the link that a fresh instance prints.
var setupToken = regexp.MustCompile(`token=[^\s"&]+`)

func (t *transaction) lastWords(ctx context.Context, c container) string {
	out, err := t.host.docker(ctx, false, "logs", "--tail", "5", c.ID)
	if err != nil {
		return "its log cannot be read"
	}
	said := strings.TrimSpace(setupToken.ReplaceAllString(string(out.Stderr)+string(out.Stdout), "token=[redacted]"))
	if said == "" {
		return "its log is empty"
	}
	return said[max(0, len(said)-500):]
}

// blame decides whether an instance that does not get ready speaks against its
// image, or the host has no room for any.
func (t *transaction) blame(ctx context.Context, err error) error {
	if serr := t.space(ctx, leastFilesKB); serr != nil {
		return serr
	}
	return against(err)
}

// undisturbed takes a look at the instance, and another one where the first was
// disturbed by the host: docker or the machine restarted under it, which says
// nothing about the image.
func (t *transaction) undisturbed(ctx context.Context, look func(context.Context, container) (string, error)) (string, error) {
	const most = 3
	for again := 1; ; again++ {
		c, err := t.settled(ctx)
		if err != nil {
			return "", t.blameDown(ctx, err)
		}
		detail, err := look(ctx, c)
		if err == nil || again == most {
			return detail, err
		}
		if now, serr := t.settled(ctx); serr != nil || now.ID != c.ID || now.State.StartedAt == c.State.StartedAt || now.RestartCount > c.RestartCount {
			return detail, err
		}
		t.opt.Log.Warn("The host restarted the instance; it is looked at again.", "error", err)
		if _, err := t.ready(ctx); err != nil {
			return "", err
		}
	}
}

// settled returns the instance's running container. One that is down is given
// the time in which docker starts it again.
func (t *transaction) settled(ctx context.Context) (container, error) {
	for deadline := time.Now().Add(15 * time.Second); ; {
		c, err := t.running(ctx)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
		if err := pause.For(ctx, 250*time.Millisecond); err != nil {
			return c, err
		}
	}
}

// blameDown speaks against the image where its container is down, and not where
// that could not be seen.
func (t *transaction) blameDown(ctx context.Context, err error) error {
	if problem.As(err).Code != notRunning {
		return err
	}
	return t.blame(ctx, err)
}

func (t *transaction) smoke(ctx context.Context) (string, error) {
	if !t.runs {
		t.j.Ready = true
		if err := t.enter(ctx, judging, "smoke"); err != nil {
			return "", err
		}
	}
	return t.undisturbed(ctx, t.smokeOnce)
}

func (t *transaction) smokeOnce(ctx context.Context, c container) (string, error) {
	address, ok := c.address()
	if !ok {
		return "", noAddress(c)
	}
	if t.inSetup(ctx, address) {
		switch before := t.j.Baseline; {
		case before != nil && !before.SetupRequired:
			return "", against(problem.New(problem.Unavailable, "The instance is in setup mode: it does not find the users that there were before.", "Its log: docker compose logs app"))
		case t.opt.Smoke.Profile == smoke.ReadOnly:
			return "in setup mode: nobody can sign in yet", nil
		}
		return "", problem.New(problem.Unavailable, "The instance has not been set up, so the smoke test cannot sign in.",
			"Set it up once: agnesctl instance setup --url http://"+address+"; or deploy with --smoke readonly")
	}
	o := smoke.Options{
		URL: "http://" + address, Dial: t.opt.Shell.Dial, Profile: t.opt.Smoke.Profile, Account: t.opt.Smoke.Account,
		Wait: t.opt.Smoke.Wait, Baseline: t.j.Baseline,
	}
	if o.Account.Email == "" {
		var err error
		if o.AdminToken, err = t.operatorToken(ctx, c); err != nil {
			return "", err
		}
	}
	report := smoke.Run(ctx, o)
	t.out.Smoke = &report
	if report.Verdict == smoke.Pass {
		return fmt.Sprintf("%d steps passed", len(report.Steps)), nil
	}
	what := "it did not end"
	if failed := slices.IndexFunc(report.Steps, func(s smoke.Step) bool { return !s.OK }); failed >= 0 {
		what = report.Steps[failed].Name + ": " + report.Steps[failed].Detail
	}
	err := problem.New(problem.Unavailable, "The smoke test did not pass at "+what, "The whole of it is in this command's -o json, under smoke.")
	if report.Verdict == smoke.Fail {
		return "", against(err)
	}
	return "", err
}

func noAddress(c container) error {
	return problem.New(problem.Unavailable, "The instance's container has no port and no address.", "Look at its network: docker inspect "+c.ID[:12]).WithCode("no_address")
}

// soak watches the instance: it must neither restart nor get unhealthy.
func (t *transaction) soak(ctx context.Context) (string, error) {
	if t.opt.Soak <= 0 {
		return "none asked for", nil
	}
	return t.undisturbed(ctx, t.soakOnce)
}

func (t *transaction) soakOnce(ctx context.Context, first container) (string, error) {
	address, ok := first.address()
	if !ok {
		return "", noAddress(first)
	}
	client, err := api.NewClient("http://"+address, api.WithDial(t.opt.Shell.Dial))
	if err != nil {
		return "", err
	}
	const mostMisses = 3
	misses := 0
	for until := time.Now().Add(t.opt.Soak); time.Now().Before(until); {
		c, err := t.running(ctx)
		if err != nil || c.ID != first.ID || c.State.StartedAt != first.State.StartedAt {
			if err != nil && problem.As(err).Code != notRunning {
				return "", err
			}
			return "", t.blame(ctx, problem.New(problem.Unavailable, "The instance did not stay up while it was watched.", "Its log: docker compose logs app"))
		}
		health, err := client.Health(ctx)
		if err != nil || health.Status == api.Unhealthy {
			misses++
		} else {
			misses = 0
		}
		if misses >= mostMisses {
			return "", t.blame(ctx, problem.New(problem.Unavailable, fmt.Sprintf("The instance was unhealthy %d times in a row while it was watched.", misses), "Ask it: agnesctl instance health"))
		}
		if err := pause.For(ctx, min(time.Second, max(t.opt.Soak/4, 10*time.Millisecond))); err != nil {
			return "", err
		}
	}
	return "healthy for " + t.opt.Soak.String(), nil
}
