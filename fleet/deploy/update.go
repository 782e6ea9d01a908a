package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// UpdatePolicy is when a host updates itself. Its values stand in .env, in lines
// of these names.
type UpdatePolicy struct {
	Off    bool          // AGNES_UPDATE=off
	Window Window        // AGNES_UPDATE_WINDOW=02:00-05:00 Europe/Prague; any time when empty
	MinAge time.Duration // AGNES_UPDATE_MIN_AGE=24h: a stable version that no smoke test has confirmed waits as long
	Jitter time.Duration // AGNES_UPDATE_JITTER=10m: hosts spread over it, each always at its own place
	Tag    string        // AGNES_TAG: a channel or a pinned version
	Image  string        // AGNES_IMAGE
	URL    string        // AGNES_UPDATE_URL: who says what this host shall run, instead of AGNES_TAG
	Token  redact.Secret // content of the file that AGNES_UPDATE_TOKEN_FILE names

	Verify SignaturePolicy // AGNES_VERIFY: key or off; of every deploy of the host
	Key    []byte          // content of the file that AGNES_VERIFY_KEY names: a public key
}

// Decision is what an update found, and what it does about it.
type Decision struct {
	Go     bool   `json:"go"`
	Reason string `json:"reason"`
	Wanted Image  `json:"wanted"`
	Runs   Image  `json:"runs"`
}

// updatePolicy reads the policy of a host from its .env.
func (h *host) updatePolicy(ctx context.Context) (UpdatePolicy, error) {
	env, _, err := h.read(ctx, ".env")
	if err != nil {
		return UpdatePolicy{}, err
	}
	return parseUpdatePolicy(env, func(name string) ([]byte, error) {
		text, found, err := h.read(ctx, name)
		if err == nil && !found {
			err = fs.ErrNotExist
		}
		return text, err
	})
}

func parseUpdatePolicy(env []byte, readFile func(string) ([]byte, error)) (p UpdatePolicy, err error) {
	wrong := func(name, value, want string) error {
		return problem.New(problem.Usage, fmt.Sprintf("%s in .env is %q; expected %s.", name, value, want), "Correct the line in .env, or remove it.")
	}
	get := func(name, standard string) string {
		if v := envValue(env, name); v != "" {
			return v
		}
		return standard
	}
	p = UpdatePolicy{
		Tag: get(envTag, "stable"), Image: get(envImage, StandardImage), URL: get("AGNES_UPDATE_URL", ""),
		Verify: SignaturePolicy(get("AGNES_VERIFY", "off")),
	}
	if p.Image == rollbackName { // what a clone built, kept by a deploy that went back
		p.Image, p.Tag = StandardImage, "stable"
	}
	switch v := get("AGNES_UPDATE", "on"); v {
	case "on", "off":
		p.Off = v == "off"
	default:
		return p, wrong("AGNES_UPDATE", v, "on or off")
	}
	if v := get("AGNES_UPDATE_MIN_AGE", "24h"); true {
		if p.MinAge, err = time.ParseDuration(v); err != nil || p.MinAge < 0 {
			return p, wrong("AGNES_UPDATE_MIN_AGE", v, "a duration such as 24h")
		}
	}
	if v := get("AGNES_UPDATE_JITTER", "10m"); true {
		if p.Jitter, err = time.ParseDuration(v); err != nil || p.Jitter < 0 {
			return p, wrong("AGNES_UPDATE_JITTER", v, "a duration such as 10m")
		}
	}
	if v := get("AGNES_UPDATE_WINDOW", ""); v != "" {
		if p.Window, err = ParseWindow(v); err != nil {
			return p, err
		}
	}
	if p.Verify != VerifyByKey && p.Verify != VerifyOff {
		return p, wrong("AGNES_VERIFY", string(p.Verify), "key or off")
	}
	key, token := get("AGNES_VERIFY_KEY", ""), get("AGNES_UPDATE_TOKEN_FILE", "")
	if p.Verify == VerifyByKey && key == "" {
		return p, wrong("AGNES_VERIFY_KEY", "", "the file with the public key that AGNES_VERIFY=key checks by")
	}
	read := func(name, file string) []byte {
		if file == "" || err != nil {
			return nil
		}
		var text []byte
		if text, err = readFile(file); err != nil {
			err = problem.Wrap(err, problem.Usage, name+" in .env names a file that cannot be read", "Make it readable to who deploys, on the host: "+file)
		}
		return text
	}
	p.Key = read("AGNES_VERIFY_KEY", key)
	p.Token = redact.Secret(strings.TrimSpace(string(read("AGNES_UPDATE_TOKEN_FILE", token))))
	return p, err
}

// facts are all that a decision depends on.
type facts struct {
	now        time.Time
	policy     UpdatePolicy
	seed       string // of the jitter: this host
	runs       Image
	wanted     Image
	named      bool // by digest or version: no channel is followed
	seen       time.Time
	asked      time.Time // when somebody asked for the wanted one; zero where that is not known
	confirmed  bool      // a smoke test has passed
	deprecated bool      // the wanted one
	withdrawn  bool      // what runs is deprecated
	failed     *Record   // the wanted one failed here
	tried      *Record   // it could not be tried, not long ago
	left       *Record   // somebody went back from it by hand
}

// decide is pure: the same facts always give the same decision.
func decide(f facts) Decision {
	d := Decision{Wanted: f.wanted, Runs: f.runs}
	no := func(format string, args ...any) Decision {
		d.Reason = fmt.Sprintf(format, args...)
		return d
	}
	yes := func(reason string) Decision {
		if !f.policy.Window.Contains(f.now) {
			return no("%s; the window %s is not open", reason, f.policy.Window)
		}
		if due := f.seen.Add(spread(f.seed+f.wanted.Digest, f.policy.Jitter)); f.now.Before(due) {
			return no("%s; this host's turn is at %s", reason, due.UTC().Format(time.RFC3339))
		}
		d.Go, d.Reason = true, reason
		return d
	}
	switch {
	case f.policy.Off:
		return no("AGNES_UPDATE is off")
	case f.wanted.Digest == f.runs.Digest:
		return no("%s runs", f.runs.Name())
	case f.failed != nil:
		return no("%s failed here at %s (%s); agnesctl host deploy tries it again", f.wanted.Name(), f.failed.Ended.Format(time.RFC3339), f.failed.Reason)
	case f.left != nil:
		return no("%s was left by hand at %s; agnesctl host deploy goes there again", f.wanted.Name(), f.left.Ended.Format(time.RFC3339))
	case f.tried != nil:
		return no("%s could not be tried at %s (%s); it is tried again after %s", f.wanted.Name(), f.tried.Ended.Format(time.RFC3339), f.tried.Reason, againFor)
	case f.named:
		return yes(f.wanted.Name() + " is asked for by name")
	case f.deprecated:
		return no("%s is deprecated", f.wanted.Name())
	}
	order := 1
	wanted, werr := release.ParseVersion(f.wanted.Version)
	runs, rerr := release.ParseVersion(f.runs.Version)
	if werr == nil && rerr == nil {
		order = wanted.Compare(runs)
	}
	switch {
	case order < 0 && !f.withdrawn:
		return no("%s is older than %s, which is not deprecated", f.wanted.Name(), f.runs.Name())
	case order < 0:
		return yes(fmt.Sprintf("%s is deprecated; %s is the newest that is not", f.runs.Name(), f.wanted.Name()))
	case f.confirmed:
		return yes(f.wanted.Name() + " is confirmed")
	case f.wanted.Tag == "dev":
		return yes(f.wanted.Name() + " is the newest of the channel dev")
	case f.now.Sub(f.seen) >= f.policy.MinAge:
		return yes(fmt.Sprintf("%s has been out for %s", f.wanted.Name(), f.policy.MinAge))
	}
	return no("%s is not confirmed yet; without that it waits until %s", f.wanted.Name(), f.seen.Add(f.policy.MinAge).UTC().Format(time.RFC3339))
}

// spread returns the place of a seed within a duration.
func spread(seed string, within time.Duration) time.Duration {
	if within <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, seed) // never fails
	return time.Duration(h.Sum64() % uint64(within))
}

const seenFile = ".agnes/seen.json"

// AutoUpdate is one tick of a host's own timer: an interrupted deploy is ended,
// then what shall run is compared with what runs, and deployed where the policy
// allows it. Nothing is remembered between ticks but what the host's files say,
// so an update that had to wait is never forgotten. A smoke test of the read-only
// profile decides: people work with this instance.
//
// A host that another deploy works on is left to that.
func AutoUpdate(ctx context.Context, o Options) (Decision, *Outcome, error) {
	o = o.withDefaults()
	h := host{shell: o.Shell, dir: o.Dir, log: o.Log}
	p, err := h.updatePolicy(ctx)
	if err != nil {
		return Decision{}, nil, err
	}
	o.LeaseWait = time.Nanosecond // whoever has the host does what is to be done
	o.Smoke.Profile, o.Unasked = smoke.ReadOnly, true
	if j, found, err := readJSON[journal](ctx, &h, journalFile); err != nil {
		return Decision{}, nil, err
	} else if found {
		o.Image, o.Tag, o.Digest, o.Finish = j.To.Repository, j.To.Tag, j.To.Digest, true
		if j.Policy != "" {
			o.Schema = j.Policy
		}
		out, err := Deploy(ctx, o)
		if p := problem.As(err); err != nil && p.Code == hostLocked {
			return Decision{Reason: p.Message, Wanted: j.To, Runs: j.From}, nil, nil
		}
		return Decision{Go: true, Reason: "the deploy " + j.ID + " was interrupted at " + j.Step, Wanted: j.To, Runs: j.From}, &out, err
	}
	if p.Off {
		return Decision{Reason: "AGNES_UPDATE is off"}, nil, nil
	}
	f, err := gather(ctx, o, h, p)
	if err != nil {
		return Decision{}, nil, err
	}
	d := decide(f)
	if !d.Go {
		return d, nil, nil
	}
	o.Image, o.Tag, o.Digest = f.wanted.Repository, f.wanted.Tag, f.wanted.Digest
	out, err := Deploy(ctx, o)
	if p := problem.As(err); err != nil && p.Code == hostLocked {
		return Decision{Reason: p.Message, Wanted: f.wanted, Runs: f.runs}, nil, nil
	}
	return d, &out, err
}

func gather(ctx context.Context, o Options, h host, p UpdatePolicy) (facts, error) {
	t := &transaction{opt: o, host: h}
	f := facts{now: o.Now(), policy: p, wanted: Image{Repository: p.Image, Tag: p.Tag}}
	if p.URL != "" {
		desired, err := desired(ctx, p)
		if err != nil {
			return f, err
		}
		f.wanted.Tag, f.wanted.Digest, f.asked = desired.Tag, desired.Digest, desired.AskedAt
	}
	j, err := t.survey(ctx)
	if err != nil {
		return f, err
	}
	f.runs = j.From
	f.named = f.wanted.Digest != "" || f.wanted.Tag != "stable" && f.wanted.Tag != "dev"
	registry, err := o.Registry(f.wanted.Repository)
	if err != nil {
		return f, err
	}
	if f.wanted.Digest == "" {
		if f.wanted.Digest, err = registry.Digest(ctx, f.wanted.Tag); err != nil {
			return f, unreachable(err, f.wanted.Ref())
		}
	}
	if f.wanted.Digest == f.runs.Digest {
		f.wanted = f.runs
		return f, nil
	}
	manifest, err := registry.Manifest(ctx, f.wanted.Digest)
	if err != nil {
		return f, unreachable(err, f.wanted.Ref())
	}
	labels, err := registry.Labels(ctx, manifest)
	if err != nil {
		return f, unreachable(err, f.wanted.Ref())
	}
	f.wanted.label(labels)
	for _, ask := range []struct {
		tag    string
		digest string // what it must point at; anything when empty
		yes    *bool
	}{
		{"confirmed-" + f.wanted.Version, f.wanted.Digest, &f.confirmed},
		{"deprecated-" + f.wanted.Version, f.wanted.Digest, &f.deprecated},
		{"deprecated-" + f.runs.Version, f.runs.Digest, &f.withdrawn},
	} {
		digest, err := registry.Digest(ctx, ask.tag)
		if err != nil && !errors.Is(err, release.ErrNotFound) {
			return f, unreachable(err, p.Image+":"+ask.tag)
		}
		*ask.yes = err == nil && (digest == ask.digest || ask.digest == "")
	}
	records, err := history(ctx, &h)
	if err != nil {
		return f, err
	}
	f.against(records)
	f.seed = o.Shell.String() + h.dir + hostID(ctx, &h)
	f.seen, err = firstSeen(ctx, &h, f.wanted.Digest, f.now, o.DryRun)
	return f, err
}

// againFor is how long a version that could not be tried is left alone, once it
// has cost the host a way back.
const againFor = 6 * time.Hour

// against finds what the host's history, oldest first, has against the wanted
// image: it failed since it last passed, it cost a way back not long ago, or
// somebody went back from it by hand.
func (f *facts) against(records []Record) {
	for _, r := range records {
		switch {
		case r.Back && r.From.Digest == f.wanted.Digest && r.Verdict == smoke.Pass, r.Left && r.To.Digest == f.wanted.Digest:
			f.left = &r
		case r.To.Digest != f.wanted.Digest:
		case r.Verdict == smoke.Pass:
			f.failed, f.tried, f.left = nil, nil, nil
		case r.Verdict == smoke.Fail:
			f.failed = &r
		case r.Reverted && !r.Ended.After(f.now) && f.now.Sub(r.Ended) < againFor && (f.asked.Before(r.Ended) || f.asked.After(f.now)):
			f.tried = &r
		}
	}
}

// hostID tells hosts apart that were made from one disk image under one name.
func hostID(ctx context.Context, h *host) string {
	id, _, err := h.read(ctx, "/etc/machine-id")
	if err != nil {
		return ""
	}
	return string(id)
}

// firstSeen remembers since when a digest has been on offer here. A registry's
// own times cannot tell.
func firstSeen(ctx context.Context, h *host, digest string, now time.Time, dryRun bool) (time.Time, error) {
	seen, _, err := readJSON[map[string]time.Time](ctx, h, seenFile)
	if err != nil {
		return now, err
	}
	at, ok := seen[digest]
	if ok && !at.After(now) { // else the clock was wrong
		return at, nil
	}
	if dryRun {
		return now, nil
	}
	text, err := json.Marshal(map[string]time.Time{digest: now.UTC()}) // only the newest can be waited for
	if err != nil {
		return now, err
	}
	return now, h.write(ctx, seenFile, append(text, '\n'))
}

// Desired is what a host's desired-state URL answers.
type Desired struct {
	Tag    string `json:"tag"`              // a channel or a version's tag
	Digest string `json:"digest,omitempty"` // exactly this image; the tag then only names it

	// AskedAt is when somebody asked for it. What could not be tried before is tried
	// once more for that, without the wait that keeps a host from trying by itself.
	AskedAt time.Time `json:"asked_at,omitzero"`
}

func desired(ctx context.Context, p UpdatePolicy) (Desired, error) {
	const hint = `It has to answer {"tag":"stable"} or {"tag":"stable-2026.04.3","digest":"sha256:…"}; try it: curl -H "Authorization: Bearer TOKEN" URL`
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "127.0.0.1" && u.Hostname() != "localhost") {
		return Desired{}, problem.New(problem.Usage, "AGNES_UPDATE_URL is no https address.", "Correct the line in .env.")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return Desired{}, err
	}
	if p.Token != "" {
		req.Header.Set("Authorization", "Bearer "+p.Token.Reveal())
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the address may hold a credential
		}
		return Desired{}, problem.Wrap(err, problem.Unavailable, "The desired state cannot be fetched from "+u.Host, "It is asked again at the next tick.")
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || resp.StatusCode != http.StatusOK {
		return Desired{}, problem.New(problem.Unavailable, fmt.Sprintf("The desired state at %s answered %s.", u.Host, resp.Status), hint)
	}
	var d Desired
	if err := json.Unmarshal(body, &d); err != nil || !tagPattern.MatchString(d.Tag) || d.Digest != "" && !digestPattern.MatchString(d.Digest) {
		return Desired{}, problem.New(problem.Unavailable, fmt.Sprintf("The desired state at %s is no JSON with a tag, and a digest if there is one.", u.Host), hint)
	}
	return d, nil
}
