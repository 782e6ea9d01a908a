package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/cosign"
	"github.com/keboola/agnes-the-ai-analyst/release/oci"
)

// deployFlags are the flags of every command that takes a host to an image.
type deployFlags struct {
	hostFlags
	image, tag, digest string
	verify             string
	keys               []string
	profile            string
	email              string
	passwordFile       string
	schema             string
	wait, soak         time.Duration
	drain, ready       time.Duration
	lease              time.Duration
	withoutBackup      bool
	dryRun             bool
	format             cli.Format
}

// add declares the flags; profile and schema are the command's standards.
func (d *deployFlags) add(c *cobra.Command, profile smoke.Profile, schema deploy.SchemaPolicy) {
	d.hostFlags.add(c)
	f := c.Flags()
	f.StringVar(&d.verify, "verify", "", "key: the image must be signed by a --key; off: any image (AGNES_VERIFY in the host's .env)")
	f.StringArrayVar(&d.keys, "key", nil, "file with a public key that may sign images (repeatable)")
	f.StringVar(&d.profile, "smoke", string(profile), "smoke test that decides: full, or readonly, which starts no sync")
	f.StringVar(&d.email, "email", "", "account that the smoke test signs in with; a throw-away one when left out")
	f.StringVar(&d.passwordFile, "password-file", "", "file with that account's password")
	f.StringVar(&d.schema, "schema", string(schema), "on a way back after the schema moved: restore the backup, or halt and ask for a person")
	f.DurationVar(&d.wait, "wait", smoke.DefaultWait, "how long the smoke test follows the sync that it starts")
	f.DurationVar(&d.soak, "soak", 30*time.Second, "how long the new version is watched after the smoke test")
	f.DurationVar(&d.drain, "drain-wait", 10*time.Minute, "how long a running sync is waited for")
	f.DurationVar(&d.ready, "ready-wait", 3*time.Minute, "how long the new version may take to get ready")
	f.DurationVar(&d.lease, "lease", 30*time.Second, "how long the host stays locked after this program died elsewhere")
	f.BoolVar(&d.withoutBackup, "without-backup", false, "deploy although the running instance cannot be backed up; its state may be lost")
	f.BoolVar(&d.dryRun, "dry-run", false, "look and check only; say what would be done")
	cli.OutputFlag(c, &d.format)
}

// target declares the flags that name the image.
func (d *deployFlags) target(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&d.image, "image", "", "repository of the image (AGNES_IMAGE in the host's .env, else "+deploy.StandardImage+")")
	f.StringVar(&d.tag, "tag", "", "tag to deploy, such as stable or stable-2026.04.3; resolved to a digest once")
	f.StringVar(&d.digest, "digest", "", "exactly this image, sha256:…; --tag then only names it")
}

func (d *deployFlags) options(shell deploy.Shell, dir string) (deploy.Options, error) {
	o := deploy.Options{
		Shell: shell, Dir: dir, Owner: whoami(), Image: d.image, Tag: d.tag, Digest: d.digest,
		Registry: func(repository string) (release.Registry, error) { return oci.New(repository, oci.Options{}) },
		Smoke:    deploy.SmokeOptions{Profile: smoke.Profile(d.profile), Wait: d.wait},
		Verify:   deploy.SignaturePolicy(d.verify), Signed: signed,
		Schema: deploy.SchemaPolicy(d.schema), DrainWait: d.drain, ReadyWait: d.ready, Soak: d.soak, Lease: d.lease,
		WithoutBackup: d.withoutBackup, DryRun: d.dryRun, Log: d.log(),
	}
	switch {
	case o.Smoke.Profile != smoke.Full && o.Smoke.Profile != smoke.ReadOnly:
		return o, cli.UsageError("--smoke is %q; expected full or readonly.", d.profile)
	case o.Schema != deploy.RestoreState && o.Schema != deploy.HaltOnSchema:
		return o, cli.UsageError("--schema is %q; expected restore or halt.", d.schema)
	case d.lease < 3*time.Second:
		return o, cli.UsageError("--lease is %s; expected 3s or more.", d.lease)
	case (d.email == "") != (d.passwordFile == ""):
		return o, cli.UsageError("--email and --password-file come together.")
	}
	if d.email != "" {
		password, err := readSecretFile(d.passwordFile)
		if err != nil {
			return o, err
		}
		o.Smoke.Account = smoke.Account{Email: d.email, Password: password}
	}
	if cli.IsTerminal(d.env.Stderr) {
		o.Progress = func(s deploy.StepResult) {
			mark := "ok"
			if !s.OK {
				mark = "FAILED"
			}
			fmt.Fprintf(d.env.Stderr, "%-10s %-7s %6.1fs  %s\n", s.Name, mark, float64(s.ElapsedMS)/1000, cli.Sanitize(s.Detail))
		}
	}
	var err error
	o.Keys, err = d.publicKeys()
	return o, err
}

// publicKeys returns the keys of --verify key, none for off and for the host's
// own policy.
func (d *deployFlags) publicKeys() ([][]byte, error) {
	switch {
	case d.verify != "" && d.verify != "key" && d.verify != "off":
		return nil, cli.UsageError("--verify is %q; expected key or off.", d.verify)
	case d.verify != "key" && len(d.keys) > 0:
		return nil, cli.UsageError("--key goes with --verify key.")
	case d.verify == "key" && len(d.keys) == 0:
		return nil, cli.UsageError("--verify key needs the public key; expected --key FILE.")
	}
	var pems [][]byte
	for _, file := range d.keys {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, problem.Wrap(err, problem.Usage, "Expected a public key in "+file+", but it cannot be read.", "Check the path and its permissions.")
		}
		pems = append(pems, pem)
	}
	return pems, nil
}

// signed checks that one of the keys signed a digest.
func signed(ctx context.Context, keys [][]byte, repository, digest string) error {
	v, err := cosign.New(repository, cosign.Options{Keys: keys})
	if err != nil {
		return err
	}
	return v.Verify(ctx, digest)
}

// whoami names the operator for others who find the host locked.
func whoami() string {
	name, machine := "somebody", "some machine"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		machine = h
	}
	return fmt.Sprintf("%s@%s, process %d", name, machine, os.Getpid())
}

// conclude prints an outcome and turns its verdict into the exit code.
func (d *deployFlags) conclude(out deploy.Outcome, err error) error {
	if perr := cli.Print(d.env.Stdout, d.format, out, func(g *cli.Grid) { outcomeGrid(g, out) }); perr != nil {
		return perr
	}
	return verdictError(out, err)
}

// verdictError returns the error whose exit code is the verdict: none for pass,
// 1 for fail, 5 for inconclusive, and 4 where a guard refused to begin.
func verdictError(out deploy.Outcome, err error) error {
	if err == nil {
		return nil
	}
	if out.Verdict != smoke.Fail && !out.Halted {
		return inconclusive(err)
	}
	p := *problem.As(err)
	p.Hint = out.Hint // of a halted one the decision to take, whatever it stopped for
	if out.Verdict != smoke.Fail {
		return inconclusive(&p)
	}
	p.Kind = problem.Unavailable
	return &p
}

// inconclusive returns an error that speaks against nothing: exit code 5, but for
// a guard's refusal and a wrong call.
func inconclusive(err error) error {
	p := *problem.As(err)
	switch p.Kind {
	case problem.Refused, problem.Usage:
		return &p
	case problem.Internal: // its message is for people who do not know the program
		p.Message, p.Err = err.Error(), nil
	}
	p.Kind = problem.Inconclusive
	return &p
}

func outcomeGrid(g *cli.Grid, out deploy.Outcome) {
	g.Row("host", out.Host)
	g.Row("verdict", string(out.Verdict))
	g.Row("from", out.From.Name())
	g.Row("to", out.To.Name())
	g.Row("runs now", out.Running.Name())
	if out.Backup != "" {
		g.Row("backup", out.Backup)
	}
	if out.Restored != "" {
		g.Row("state from", out.Restored)
	}
	g.Line("")
	g.Row("STEP", "OK", "SECONDS", "DETAIL")
	for _, s := range out.Steps {
		ok := "yes"
		if !s.OK {
			ok = "NO"
		}
		g.Row(s.Name, ok, fmt.Sprintf("%.1f", float64(s.ElapsedMS)/1000), s.Detail)
	}
}

func newHostDeploy(env cli.Env) *cobra.Command {
	d := &deployFlags{hostFlags: hostFlags{env: env}}
	c := &cobra.Command{
		Use:   "deploy",
		Short: "Take a host to an image, and back again if anything is wrong",
		Long: `deploy takes a host from the image that it runs to another one, as one
transaction: look at the host, resolve the tag to a digest, check the signature,
pull, drain, back the state up, switch, wait until it is ready, smoke test,
watch. Until the switch nothing that runs is touched. After it every failure
goes back: files, image and, if the schema of the state moved, the state.

Interrupted at any point and run again, it finishes or goes back. The host is
this machine, or the one of --host.`,
		Example: `  agnesctl host deploy --tag stable
  agnesctl host deploy --host ssh://agnes@203.0.113.7/opt/agnes --known-hosts known_hosts --tag stable-2026.04.3
  agnesctl host deploy --tag stable --verify key --key cosign.pub --dry-run -o json`,
		Args: cobra.NoArgs,
	}
	d.add(c, smoke.Full, deploy.RestoreState)
	d.target(c)
	c.MarkFlagsOneRequired("tag", "digest")
	c.RunE = func(c *cobra.Command, _ []string) error { return d.run(c.Context()) }
	return c
}

// on opens the host, reads the flags, and does what is to be done.
func (d *deployFlags) on(do func(deploy.Options) error) error {
	shell, dir, err := d.open()
	if err != nil {
		return err
	}
	defer func() { _ = shell.Close() }()
	o, err := d.options(shell, dir)
	if err != nil {
		return err
	}
	return do(o)
}

func (d *deployFlags) run(ctx context.Context) error {
	return d.on(func(o deploy.Options) error { return d.conclude(deploy.Deploy(ctx, o)) })
}

func newHostRollback(env cli.Env) *cobra.Command {
	d := &deployFlags{hostFlags: hostFlags{env: env}}
	c := &cobra.Command{
		Use:   "rollback",
		Short: "Take a host back to the image that ran before the last deploy",
		Long: `rollback is a deploy of the image that ran before the last one that stayed. If
the state has moved to a newer schema since then, the old version cannot read
it: --schema restore puts back the backup of then, which loses what changed
since; --schema halt, the default, refuses.`,
		Example: `  agnesctl host rollback --dry-run
  agnesctl host rollback --host ssh://agnes@203.0.113.7 --known-hosts known_hosts
  agnesctl host rollback --schema restore`,
		Args: cobra.NoArgs,
	}
	d.add(c, smoke.ReadOnly, deploy.HaltOnSchema)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return d.on(func(o deploy.Options) error {
			o.Back = true
			return d.conclude(deploy.Deploy(c.Context(), o))
		})
	}
	return c
}
