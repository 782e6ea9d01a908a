// Package deploy is the transaction that takes a host from one image to another
// and, if anything is wrong, back again with its data as it was.
//
// Deploy runs the steps that steps lists, in that order. Until the step
// "switch" nothing that runs is touched, and any failure leaves the host as it
// was. From there on every failure goes back: files, image and, where the
// schema of the data moved, the state from the backup made on the way. A canary,
// a rollout's wave, a rollback by hand and a customer's automatic update are all
// this one transaction.
//
// What it is doing is written to a journal on the host before it is done. Killed
// at any point and run again, it finishes the deploy or goes back; a lease on
// the host keeps a second operator out, and is renewed while the first one
// lives. Everything on the host is done through a Shell: POSIX commands and
// docker's command line. Adapters: local/, ssh/.
//
// What lies in the host's directory:
//
//	docker-compose.yml, docker-compose.prod.yml, Caddyfile, bin/, systemd/   of the release: written by each deploy
//	docker-compose.override.yml, config/, custom-connectors/                 the customer's: never touched
//	.env                                                                     the customer's, but for the lines named in env.go
//	.agnes/                                                                  lease, journal, history, bundles
package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// SchemaPolicy says what a way back does when the new version has changed the
// schema of the state, which the old one cannot read.
type SchemaPolicy string

// The policies.
const (
	// RestoreState puts the backup back that was made before the switch. What
	// people did since then, sign-ins and registrations, is lost.
	RestoreState SchemaPolicy = "restore"
	// HaltOnSchema leaves the new version running and asks for a person.
	HaltOnSchema SchemaPolicy = "halt"
)

// SignaturePolicy says which images may run on a host.
type SignaturePolicy string

// The policies.
const (
	VerifyByHost SignaturePolicy = ""    // as AGNES_VERIFY and AGNES_VERIFY_KEY in its .env say
	VerifyByKey  SignaturePolicy = "key" // what a key signed
	VerifyOff    SignaturePolicy = "off" // any
)

// StandardImage is what hosts run unless they say otherwise.
const StandardImage = "ghcr.io/keboola/agnes-the-ai-analyst"

// Options are one deploy.
type Options struct {
	Shell Shell
	Dir   string // of the host's files, absolute
	Owner string // who deploys, for others that find the lease taken

	Image  string // repository; when empty that of the host's .env, else StandardImage
	Tag    string // resolved to a digest once; recorded beside it
	Digest string // sha256:…; when it is given, the tag is not asked for
	Back   bool   // go back to what ran before the last deploy instead
	Finish bool   // end an interrupted deploy, and begin none

	// Registry answers questions about a repository from where this program runs.
	Registry func(repository string) (release.Registry, error)
	Verify   SignaturePolicy
	Keys     [][]byte // PEM, of VerifyByKey
	// Signed checks that one of the keys signed a digest. A problem.Refused says
	// that none did, any other error that it could not be checked.
	Signed func(ctx context.Context, keys [][]byte, repository, digest string) error

	Smoke  SmokeOptions
	Schema SchemaPolicy

	DrainWait time.Duration // longest wait for a running sync
	ReadyWait time.Duration // longest wait for a started instance
	Soak      time.Duration // how long it must stay healthy after the smoke test
	Lease     time.Duration // validity of the lease without a heartbeat
	LeaseWait time.Duration // longest wait for another's lease

	// Unasked says that nobody watches: a state is then not given up for an old
	// backup, which only a person can want.
	Unasked bool

	WithoutBackup bool // deploy although the instance that runs cannot be backed up
	DryRun        bool // ask and check only

	Log      *slog.Logger
	Progress func(StepResult) // at the end of each step; may be nil
	Now      func() time.Time
}

// SmokeOptions are those of the smoke test that the deploy decides by.
type SmokeOptions struct {
	Profile smoke.Profile
	Account smoke.Account // a throw-away one when empty
	Wait    time.Duration
}

// Image is one image, by everything that is known of it.
type Image struct {
	Repository string `json:"repository,omitempty"`
	Tag        string `json:"tag,omitempty"`
	Digest     string `json:"digest,omitempty"`   // empty for an image built on the host
	ID         string `json:"image_id,omitempty"` // of the host's docker
	Version    string `json:"version,omitempty"`
	Channel    string `json:"channel,omitempty"`
	Schema     int    `json:"schema_version,omitempty"`
}

// Ref returns repository:tag@digest, as far as they are known.
func (i Image) Ref() string {
	ref := i.Repository
	if i.Tag != "" {
		ref += ":" + i.Tag
	}
	if i.Digest != "" {
		ref += "@" + i.Digest
	}
	return ref
}

// pinned returns the image under the tag of its version, which no release moves.
func (i Image) pinned() Image {
	if i.Version != "" && i.Channel != "" {
		i.Tag = i.Channel + "-" + i.Version
	}
	return i
}

// Name returns how people call it.
func (i Image) Name() string {
	switch {
	case i.Version != "" && i.Digest != "":
		return fmt.Sprintf("%s (%s)", i.Version, short(i.Digest))
	case i.Version != "":
		return i.Version
	case i.Digest != "":
		return short(i.Digest)
	case i.ID != "":
		return "image " + short(i.ID)
	}
	return "nothing"
}

func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// Outcome is what a deploy came to. Its JSON is a contract.
type Outcome struct {
	ID       string        `json:"id"`
	Host     string        `json:"host"`
	Verdict  smoke.Verdict `json:"verdict"` // only Fail speaks against the image
	Message  string        `json:"message"`
	Hint     string        `json:"hint,omitempty"` // the next step, where there is one
	From     Image         `json:"from"`
	To       Image         `json:"to"`
	Running  Image         `json:"running"` // what runs at the end
	Reverted bool          `json:"reverted"`
	Restored string        `json:"restored,omitempty"` // id of the backup that the state was restored from
	Halted   bool          `json:"halted,omitempty"`   // the schema moved and the policy asks for a person
	Backup   string        `json:"backup,omitempty"`
	Resumed  string        `json:"resumed,omitempty"` // id of the interrupted deploy that was ended first
	DryRun   bool          `json:"dry_run,omitempty"`
	Steps    []StepResult  `json:"steps"`
	Smoke    *smoke.Report `json:"smoke,omitempty"`
}

// StepResult is one step and what came of it.
type StepResult struct {
	Name      string `json:"name"`
	OK        bool   `json:"ok"`
	Detail    string `json:"detail"`
	ElapsedMS int64  `json:"elapsed_ms"`
}

// judged is an error that carries a verdict of its own.
type judged struct {
	verdict smoke.Verdict
	err     error
}

func (j judged) Error() string { return j.err.Error() }
func (j judged) Unwrap() error { return j.err }

// against returns an error that speaks against the image.
func against(err error) error { return judged{smoke.Fail, err} }

// verdictOf returns what an error means. Trouble that nobody has blamed on the
// image is inconclusive.
func verdictOf(err error) smoke.Verdict {
	if j, ok := errors.AsType[judged](err); ok {
		return j.verdict
	}
	return smoke.Inconclusive
}

// Deploy carries the transaction out. It always returns how far it came; the
// error, a problem.Error, says why the verdict is not Pass, and with
// problem.Refused that a guard kept it from beginning. It is idempotent: what
// runs already is judged and left.
func Deploy(ctx context.Context, o Options) (Outcome, error) {
	o = o.withDefaults()
	t := &transaction{opt: o, host: host{shell: o.Shell, dir: o.Dir, log: o.Log}, id: newID(o.Now())}
	t.out = Outcome{ID: t.id, Host: o.Shell.String(), Verdict: smoke.Inconclusive, DryRun: o.DryRun, Steps: []StepResult{}}
	err := o.check()
	if err == nil {
		err = t.run(ctx)
	}
	t.end(err)
	return t.out, err
}

var (
	// https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
	tagPattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// check refuses what no registry has as a tag or a digest. They are written into
// .env, where a line break would begin another setting.
func (o Options) check() error {
	switch {
	case o.Tag != "" && !tagPattern.MatchString(o.Tag):
		return problem.New(problem.Usage, fmt.Sprintf("expected a tag of letters, digits, dots, dashes and underscores, found %q", o.Tag), "name it as in stable-2026.04.3")
	case o.Digest != "" && !digestPattern.MatchString(o.Digest):
		return problem.New(problem.Usage, fmt.Sprintf("expected a digest sha256: and 64 hexadecimal digits, found %q", o.Digest), "copy it from the registry: crane digest IMAGE:TAG")
	}
	return nil
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, standard time.Duration) {
		if *d == 0 {
			*d = standard
		}
	}
	set(&o.DrainWait, 10*time.Minute)
	set(&o.ReadyWait, 3*time.Minute)
	set(&o.Lease, 30*time.Second)
	set(&o.LeaseWait, o.Lease)
	if o.Smoke.Profile == "" {
		o.Smoke.Profile = smoke.Full
	}
	if o.Schema == "" {
		o.Schema = RestoreState
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// end fills in the words of the outcome.
func (t *transaction) end(err error) {
	if err == nil {
		return
	}
	p := problem.As(err)
	t.out.Verdict = verdictOf(err)
	t.out.Message = p.Message
	if !t.out.Halted { // its hint is the decision to take
		t.out.Hint = p.Hint
	}
	if p.Kind == problem.Internal {
		t.out.Message = err.Error()
	}
}
