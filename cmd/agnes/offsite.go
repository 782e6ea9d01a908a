package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/folder"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/gcs"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/s3"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/sftp"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// targets lists the kinds of places that backups can be copied to, by the
// scheme of their URL.
func targets() map[string]agent.OpenTarget {
	return map[string]agent.OpenTarget{
		"file": func(u offsite.URL, config *settings.Resolved) (offsite.Target, error) {
			return folder.New(folder.Options{URL: u, Apart: config.Get(settings.DataDir)}), nil
		},
		"s3": func(u offsite.URL, config *settings.Resolved) (offsite.Target, error) {
			return s3.New(s3.Options{URL: u, AccessKeyID: config.Get(settings.BackupS3AccessKeyID), SecretKey: redact.Secret(config.Get(settings.BackupS3SecretKey))})
		},
		"gs": func(u offsite.URL, _ *settings.Resolved) (offsite.Target, error) {
			return gcs.New(gcs.Options{URL: u})
		},
		"sftp": func(u offsite.URL, config *settings.Resolved) (offsite.Target, error) {
			key, err := keyText(config.Value(settings.BackupSFTPKey))
			if err != nil {
				return nil, err
			}
			return sftp.New(sftp.Options{URL: u, Key: key, HostKey: config.Get(settings.BackupSFTPHostKey)})
		},
	}
}

// keyText returns a private key that is given as itself or by its path.
func keyText(v settings.Value) (redact.Secret, error) {
	if v.Text == "" || strings.HasPrefix(v.Text, "-----BEGIN ") {
		return redact.Secret(v.Text + "\n"), nil
	}
	data, err := os.ReadFile(v.Text)
	if err != nil {
		return "", problem.New(problem.Usage, fmt.Sprintf("The file that %s names cannot be read.", v.Env), "Set it to the path of a private key that this user can read.")
	}
	return redact.Secret(data), nil
}

// elsewhere are the flags of a command that works on copies at a target.
type elsewhere struct {
	url      *string
	identity *string
	instance *string
}

func elsewhereFlags(c *cobra.Command) elsewhere {
	return elsewhere{
		url:      c.Flags().String("from", "", "target that the backup is fetched from; the forms are those of AGNES_BACKUP_TARGET"),
		identity: c.Flags().String("identity", "", "file with the private key that opens the backup"),
		instance: c.Flags().String("instance", "", "ID of the instance, where several keep backups at the target"),
	}
}

// given reports whether a target was named, and refuses flags that need one.
func (e elsewhere) given() (bool, error) {
	if *e.url == "" && (*e.identity != "" || *e.instance != "") {
		return false, cli.UsageError("--identity and --instance go with --from URL.")
	}
	if *e.url != "" && *e.identity == "" {
		return false, problem.New(problem.Usage, "A backup at a target is encrypted; expected --identity FILE.", "Give the file that agnes backup keygen wrote: --identity FILE")
	}
	return *e.url != "", nil
}

// fetched is a copy that was brought here.
type fetched struct {
	offsite.Copy

	file *os.File // open, so that nobody sweeps it
}

// forget removes the file, unless it got another name.
func (f fetched) forget() error {
	err := os.Remove(f.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.file.Close())
}

// fetch brings a copy to a file in dir. The file is whole, since it was
// decrypted to its end, and it is the backup that was asked for. Where it is
// not, the error is a problem.Found, and nothing stays but the copy's name.
func (e elsewhere) fetch(ctx context.Context, env cli.Env, in settings.Inputs, id, dir string) (_ fetched, err error) {
	with, err := offsite.LoadIdentities(*e.identity)
	if err != nil {
		return fetched{}, err
	}
	vault, err := openVault(in, *e.url)
	if err != nil {
		return fetched{}, err
	}
	defer func() { err = errors.Join(err, vault.Target.Close()) }()
	found, err := vault.Find(ctx, *e.instance, id)
	if err != nil {
		return fetched{}, err
	}
	if err := room(dir, found.Size); err != nil {
		return fetched{}, err
	}
	f, err := backup.NewFetch(dir)
	if err != nil {
		return fetched{}, err
	}
	out := fetched{found, f}
	bar := cli.NewProgress(env, "Fetching "+found.ID)
	defer bar.Close()
	err = vault.Fetch(ctx, with, found, &progress{w: f, bar: bar, what: "Fetching " + found.ID, size: found.Size})
	if err = errors.Join(err, f.Sync()); err == nil {
		err = out.check(vault.URL)
	}
	if err != nil {
		return fetched{Copy: found}, errors.Join(err, out.forget())
	}
	return out, nil
}

// check refuses a backup that lies under the name of another: whoever can write
// to the target can rename what is there, though not change it.
func (f fetched) check(at offsite.URL) error {
	info, err := backup.Describe(f.file.Name())
	if err != nil {
		return err
	}
	instance := info.Database.Instance
	if instance == "" { // of a program that did not note it
		instance = f.Instance
	}
	if info.ID == f.ID && instance == f.Instance {
		return nil
	}
	return problem.New(problem.Found, fmt.Sprintf("Expected the backup %s of the instance %s in %s at %s, found the backup %s of the instance %s.", f.ID, f.Instance, f.Name(), at, info.ID, instance),
		"Somebody has renamed it. Use another one: agnes backup list --target "+at.String())
}

// progress moves a bar as it is written to.
type progress struct {
	w          io.Writer
	bar        *cli.Progress
	what       string
	done, size int64
}

// Write implements io.Writer.
func (p *progress) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.done += int64(n)
	p.bar.Set(float64(p.done)/float64(max(p.size, 1)), p.what)
	return n, err
}

// room makes sure that a download fits.
func room(dir string, size int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return err
	}
	if free := int64(s.Bavail) * s.Bsize; free < size {
		return problem.New(problem.NoSpace, fmt.Sprintf("The backup needs %s in %s, where %s are free.", cli.Bytes(size), dir, cli.Bytes(free)), fmt.Sprintf("Free space there: df -h %s", dir))
	}
	return nil
}

func openVault(in settings.Inputs, url string) (offsite.Vault, error) {
	config, err := settings.Resolve(in)
	if err != nil {
		return offsite.Vault{}, err
	}
	if url == "" {
		url = config.Get(settings.BackupTarget)
	}
	if url == "" {
		return offsite.Vault{}, problem.New(problem.Usage, "No backup target is named.", "Set AGNES_BACKUP_TARGET, or give its URL: agnes backup list --target s3://BUCKET/PREFIX")
	}
	return agent.OpenVault(targets(), url, config)
}

// listCopies is agnes backup list --target.
func listCopies(ctx context.Context, env cli.Env, format cli.Format, in settings.Inputs, url string) (err error) {
	vault, err := openVault(in, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vault.Target.Close()) }()
	copies, err := vault.Copies(ctx, "")
	if err != nil {
		return err
	}
	out := struct {
		Target  string         `json:"target"`
		Backups []offsite.Copy `json:"backups"`
		Count   int            `json:"count"`
	}{vault.URL.String(), copies, len(copies)}
	return cli.Print(env.Stdout, format, out, func(g *cli.Grid) {
		if len(copies) == 0 {
			g.Line("There is no backup at %s.", vault.URL)
			return
		}
		g.Row("ID", "STORED", "SIZE", "INSTANCE")
		for _, c := range copies {
			g.Row(c.ID, c.Stored.UTC().Format(time.RFC3339), size(c.Size), c.Instance)
		}
	})
}

// restoreFrom brings a backup from a target to the data directory, which may
// not exist yet, and restores it.
func restoreFrom(ctx context.Context, env cli.Env, in settings.Inputs, e elsewhere, id string, dryRun bool) (_ backup.Restored, err error) {
	layout, _, err := place(in)
	if err != nil {
		return backup.Restored{}, err
	}
	if err := os.MkdirAll(layout.Backups(), 0o700); err != nil {
		return backup.Restored{}, err
	}
	lock, err := lockStopped(layout, "agnes backup restore --from "+*e.url)
	if err != nil {
		return backup.Restored{}, err
	}
	defer func() { _ = lock.Close() }()
	found, err := e.fetch(ctx, env, in, id, layout.Backups())
	if err != nil {
		return backup.Restored{}, err
	}
	defer func() { err = errors.Join(err, found.forget()) }()
	path := found.file.Name()
	final := filepath.Join(layout.Backups(), "agnes-"+found.ID+".tar.zst")
	// One that is here already stays: it is not proved to be worse than this one.
	if _, serr := os.Lstat(final); errors.Is(serr, fs.ErrNotExist) && !dryRun {
		if err := os.Rename(path, final); err != nil {
			return backup.Restored{}, err
		}
		path = final
	}
	return backup.Restore(ctx, layout.BackupDirs(), path, backup.RestoreOptions{DryRun: dryRun, Log: quietLog(env)})
}

// verifyFrom fetches a backup from a target, proves it and forgets it.
func verifyFrom(ctx context.Context, env cli.Env, in settings.Inputs, e elsewhere, id string) (r verified, err error) {
	layout, _, err := place(in)
	if err != nil {
		return verified{}, err
	}
	dir := layout.Backups()
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		dir = os.TempDir()
	}
	found, err := e.fetch(ctx, env, in, id, dir)
	if problem.Is(err, problem.Found) {
		return verified{Path: *e.url, ID: found.ID, Error: err.Error()}, nil
	}
	if err != nil {
		return verified{}, err
	}
	defer func() { err = errors.Join(err, found.forget()) }()
	info, err := backup.Verify(ctx, found.file.Name(), dir)
	if err != nil && !problem.Is(err, problem.Found) {
		return verified{}, err
	}
	r = verified{Path: strings.TrimRight(*e.url, "/") + " " + found.Name(), ID: found.ID, OK: err == nil, SHA256: info.SHA256}
	if err != nil {
		r.Error = err.Error()
	}
	return r, nil
}

// upload is agnes backup create --upload beside a stopped instance.
func upload(ctx context.Context, env cli.Env, in settings.Inputs, layout agent.Layout, info backup.Info) (err error) {
	config, err := settings.Resolve(in)
	if err != nil {
		return err
	}
	mirror, target, err := agent.NewMirror(targets(), config, offsite.MirrorOptions{Instance: info.Database.Instance, Log: quietLog(env)}, layout.BackupDirs())
	if err != nil {
		return err
	}
	if mirror == nil {
		return noTarget()
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	return mirror.Step(ctx)
}

func noTarget() error {
	return problem.New(problem.Usage, "The backup was made, and no target is set to copy it to.", "Set AGNES_BACKUP_TARGET and AGNES_BACKUP_RECIPIENTS where the instance runs.")
}

// awaitUpload waits until the running instance has copied a backup off the
// host, or has failed to.
func awaitUpload(ctx context.Context, client *api.Client, id string) error {
	for {
		list, err := client.Backups(ctx)
		if err != nil {
			return err
		}
		if list.Offsite == nil {
			return noTarget()
		}
		at := slices.IndexFunc(list.Backups, func(b api.Backup) bool { return b.ID == id })
		switch o := list.Offsite; {
		case at < 0:
			return problem.New(problem.NotFound, fmt.Sprintf("The backup %s was made, and is not there any more.", id), "The instance's log says why; make another: agnes backup create --upload")
		case list.Backups[at].Offsite:
			return nil
		case !list.Backups[at].OffsiteTried: // an attempt that began earlier says nothing of it
		case o.Error != "":
			return problem.New(problem.Unavailable, fmt.Sprintf("The backup %s was made; its copy to %s failed and is tried again: %s", id, o.Target, o.Error), o.Hint)
		default:
			return problem.New(problem.Unavailable, fmt.Sprintf("The backup %s was made; everything that is to be at %s is there, and it is not among it.", id, o.Target), "See what is there: agnes backup list --target")
		}
		if err := pause.For(ctx, time.Second); err != nil {
			return err
		}
	}
}

func newBackupKeygen(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "keygen --out FILE",
		Short: "Make the key pair that copies of backups are encrypted with",
		Long: `keygen writes a private key (an age identity) to a file that only you can read and
prints its public key, which belongs into AGNES_BACKUP_RECIPIENTS.

Run it on your own machine, or move the file away at once: a host that keeps the
private key beside its backups protects nothing. Without the private key no copy
can ever be opened again, by anybody.`,
		Example: `  agnes backup keygen --out agnes-backup.age
  agnes backup keygen --out agnes-backup.age -o json`,
		Args: cobra.NoArgs,
	}
	out := c.Flags().String("out", "", "file for the private key; it must not exist")
	_ = c.MarkFlagRequired("out")
	cli.OutputFlag(c, &format)
	c.RunE = func(*cobra.Command, []string) error {
		recipient, secret, err := offsite.NewIdentity(time.Now())
		if err != nil {
			return err
		}
		if err := writeNew(*out, secret); err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, struct {
			Recipient string `json:"recipient"`
			Identity  string `json:"identity_file"`
		}{recipient, *out}, func(g *cli.Grid) {
			g.Line("Public key:  %s", recipient)
			g.Line("Private key: %s", *out)
			g.Line("")
			g.Line("1. Set AGNES_BACKUP_RECIPIENTS=%s where the instance runs.", recipient)
			g.Line("2. Move %s off that host, into a password manager or a safe, in two places.", *out)
			g.Line("   Without it no copy can be opened again.")
			g.Line("3. Prove it once: agnes backup verify --from URL --identity %s", *out)
		})
	}
	return c
}

func writeNew(path string, secret redact.Secret) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return problem.New(problem.Refused, fmt.Sprintf("The file %s exists; a private key is never overwritten.", path), "Choose another name with --out.")
	}
	if err != nil {
		return problem.Wrap(err, problem.Usage, "The private key cannot be written", "Choose another place with --out.")
	}
	_, err = f.WriteString(secret.Reveal())
	return errors.Join(err, f.Sync(), f.Close())
}
