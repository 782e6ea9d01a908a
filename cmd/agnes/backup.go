package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func newBackup(env cli.Env) *cobra.Command {
	group := &cobra.Command{
		Use:   "backup",
		Short: "Make, list, verify and restore backups of this data directory",
		Long: `A backup is one file below DATA_DIR/backups: the state of the instance, its
configuration, its secrets and, where that is asked for, its tables' data. Keep
it as you keep a password. With AGNES_BACKUP_TARGET set, each backup is also
copied off this host, encrypted to AGNES_BACKUP_RECIPIENTS.`,
	}
	group.AddCommand(newBackupCreate(env), newBackupList(env), newBackupVerify(env), newBackupRestore(env), newBackupKeygen(env))
	return group
}

func newBackupCreate(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a backup and verify it",
		Long: `create makes a backup, reads it back and opens its database before it says that
it is there. While the instance runs it is asked to do it, at AGNES_ADDR; while
it is stopped, create does it itself and migrates nothing. --upload ends when the
copy is at AGNES_BACKUP_TARGET; a running instance copies it there in any case.`,
		Example: `  agnes backup create --data-dir ./data
  agnes backup create --extracts --reason "before the new source" -o json
  agnes backup create --upload`,
		Args: cobra.NoArgs,
	}
	extracts := c.Flags().Bool("extracts", false, "take the tables' data too")
	upload := c.Flags().Bool("upload", false, "wait until its encrypted copy is off this host")
	reason := c.Flags().String("reason", "", "why it is made; shown in the list")
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir, settings.Addr)
	c.RunE = func(c *cobra.Command, _ []string) error {
		in := settings.Inputs{Flags: flags(), Getenv: env.Getenv}
		made, err := createBackup(c.Context(), env, in, api.BackupRequest{Extracts: *extracts, Reason: *reason}, *upload)
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, made, func(g *cli.Grid) {
			g.Line("Made and verified the backup %s (%s).", made.ID, size(made.SizeBytes))
			g.Line("%s", made.Path)
			for _, source := range made.LeftOut {
				g.Line("Left out: %s", source)
			}
			if made.Offsite {
				g.Line("Its encrypted copy is off this host: agnes backup list --target")
			}
		})
	}
	return c
}

func createBackup(ctx context.Context, env cli.Env, in settings.Inputs, req api.BackupRequest, copied bool) (*api.Backup, error) {
	layout, addr, err := place(in)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(layout.Database()); errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, fmt.Sprintf("There is no instance in %s: expected %s.", layout.Root, layout.Database()), "Name its data directory with --data-dir or DATA_DIR.")
	}
	lock, err := state.Lock(layout.Root)
	if problem.Is(err, problem.Refused) && problem.As(err).Code == "data_dir_in_use" {
		return askForBackup(ctx, layout, addr, req, copied)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	dirs, log := layout.BackupDirs(), quietLog(env)
	if _, err := backup.Recover(ctx, dirs, log); err != nil {
		return nil, err
	}
	version := buildinfo.Get(env.Getenv).Version
	info, err := backup.Create(ctx, dirs, backup.Request{
		Reason: req.Reason, Extracts: req.Extracts, Version: version,
		Snapshot: func(ctx context.Context, dest string) error {
			return state.SnapshotClosed(ctx, state.Options{Dir: layout.State(), Log: log, Version: version}, dest)
		},
	})
	if err != nil {
		return nil, err
	}
	made := agent.ShowBackup(info)
	if copied {
		if err := upload(ctx, env, in, layout, info); err != nil {
			return nil, err
		}
		made.Offsite = true
	}
	return &made, nil
}

// askForBackup asks the running instance, which alone may open its database.
func askForBackup(ctx context.Context, layout agent.Layout, addr string, req api.BackupRequest, copied bool) (*api.Backup, error) {
	path := layout.OperatorToken()
	token, err := os.ReadFile(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Refused,
			fmt.Sprintf("The instance in %s runs, and the token that lets this machine's operator use it cannot be read from %s.", layout.Root, path),
			"Run this as the user that runs the instance (docker compose exec app agnes backup create), or call POST /api/admin/backup as an admin.")
	}
	url, err := localURL(addr)
	if err != nil {
		return nil, err
	}
	client, err := api.NewClient(url, api.WithToken(redact.Secret(strings.TrimSpace(string(token)))), api.WithUserAgent("agnes backup"))
	if err != nil {
		return nil, err
	}
	made, err := client.Backup(ctx, req)
	if err != nil || !copied {
		return made, err
	}
	made.Offsite = true
	return made, awaitUpload(ctx, client, made.ID)
}

func newBackupList(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "list [URL]",
		Short: "List the backups on this machine, or at a target, newest first",
		Example: `  agnes backup list --data-dir ./data
  agnes backup list -o json
  agnes backup list --target
  agnes backup list --target s3://bucket/agnes?region=eu-central-1`,
		Args: cobra.MaximumNArgs(1),
	}
	target := c.Flags().Bool("target", false, "list the copies at URL, or at AGNES_BACKUP_TARGET without one")
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(c *cobra.Command, args []string) error {
		if *target {
			return listCopies(c.Context(), env, format, settings.Inputs{Flags: flags(), Getenv: env.Getenv}, strings.Join(args, ""))
		}
		if len(args) > 0 {
			return cli.UsageError("A URL goes with --target.")
		}
		layout, _, err := place(settings.Inputs{Flags: flags(), Getenv: env.Getenv})
		if err != nil {
			return err
		}
		list, broken, err := backup.List(layout.BackupDirs())
		if err != nil {
			return err
		}
		for _, path := range slices.Sorted(maps.Keys(broken)) {
			_, _ = fmt.Fprintln(env.Stderr, "Not listed:", cli.Sanitize(broken[path].Error()))
		}
		out := agent.ShowBackups(list)
		return cli.Print(env.Stdout, format, out, func(g *cli.Grid) {
			if len(out.Backups) == 0 {
				g.Line("There is no backup in %s.", layout.Backups())
				return
			}
			g.Row("ID", "MADE", "SIZE", "VERSION", "SCHEMA", "DATA", "REASON")
			for _, b := range out.Backups {
				data := "no"
				if b.Extracts {
					data = "yes"
				}
				g.Row(b.ID, b.CreatedAt.Format(time.RFC3339), size(b.SizeBytes), b.Version, fmt.Sprint(b.SchemaVersion), data, b.Reason)
			}
		})
	}
	return c
}

// verified is what is said of one backup.
type verified struct {
	Path   string `json:"path"`
	ID     string `json:"id,omitempty"`
	OK     bool   `json:"ok"`
	Error  string `json:"error,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

func newBackupVerify(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "verify [ID|FILE]...",
		Short: "Read backups whole and open their databases",
		Long: `verify compares every checksum of a backup, opens its database and compares each
table with what was backed up. Without an argument it verifies the newest one.
It ends with exit code 3 where a backup cannot be used. With --from it fetches
the newest copy at a target, or the one of the ID, and keeps nothing of it.`,
		Example: `  agnes backup verify
  agnes backup verify 20261124T045222Z-1a2b3c
  agnes backup verify --all -o json
  agnes backup verify --from s3://bucket/agnes --identity agnes-backup.age`,
	}
	all := c.Flags().Bool("all", false, "verify every backup of the data directory")
	from := elsewhereFlags(c)
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(c *cobra.Command, args []string) error {
		if *all && len(args) > 0 {
			return cli.UsageError("Expected --all or names of backups, found both.")
		}
		in := settings.Inputs{Flags: flags(), Getenv: env.Getenv}
		away, err := from.given()
		if err != nil {
			return err
		}
		var results []verified
		if away {
			if *all || len(args) > 1 {
				return cli.UsageError("Expected one ID, or none, with --from.")
			}
			r, err := verifyFrom(c.Context(), env, in, from, strings.Join(args, ""))
			if err != nil {
				return err
			}
			results = append(results, r)
		} else if results, err = verifyHere(c.Context(), in, args, *all); err != nil {
			return err
		}
		bad := 0
		for _, r := range results {
			if !r.OK {
				bad++
			}
		}
		err = cli.Print(env.Stdout, format, results, func(g *cli.Grid) {
			for _, r := range results {
				if r.OK {
					g.Row("ok", r.ID, r.Path)
				} else {
					g.Row("BAD", r.ID, r.Error)
				}
			}
		})
		if err == nil && bad > 0 {
			err = problem.New(problem.Found, fmt.Sprintf("%d of %d backups cannot be used.", bad, len(results)), "Make a new one: agnes backup create")
		}
		return err
	}
	return c
}

func verifyHere(ctx context.Context, in settings.Inputs, args []string, all bool) ([]verified, error) {
	layout, _, err := place(in)
	if err != nil {
		return nil, err
	}
	paths, err := toVerify(layout.BackupDirs(), args, all)
	if err != nil {
		return nil, err
	}
	results := []verified{}
	for _, path := range paths {
		info, err := backup.Verify(ctx, path, layout.Backups())
		if err != nil && !problem.Is(err, problem.Found) {
			return nil, err
		}
		r := verified{Path: path, ID: info.ID, OK: err == nil, SHA256: info.SHA256}
		if err != nil {
			r.Error = err.Error()
		}
		results = append(results, r)
	}
	return results, nil
}

func toVerify(dirs backup.Dirs, args []string, all bool) (paths []string, err error) {
	for _, arg := range args {
		path, err := backup.Find(dirs, arg)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	if len(args) > 0 {
		return paths, nil
	}
	list, broken, err := backup.List(dirs)
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		paths = append(paths, b.Path)
	}
	switch {
	case all:
		paths = append(paths, slices.Sorted(maps.Keys(broken))...)
	case len(paths) > 1:
		paths = paths[:1]
	}
	if len(paths) == 0 {
		return nil, problem.New(problem.NotFound, fmt.Sprintf("There is no backup in %s that can be read.", dirs.Backups), "Make one: agnes backup create")
	}
	return paths, nil
}

func newBackupRestore(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "restore ID|FILE | --from URL [ID]",
		Short: "Put a backup in the place of what is there, while the instance is stopped",
		Long: `restore verifies the whole backup and opens its database before it touches
anything, then swaps. What was there moves to DATA_DIR/backups/before-restore-…,
which stays for 30 days. Killed in the middle, the next restore or the next start
of the instance finishes or undoes it. Tables' data is restored where the backup
holds it, and left as it is otherwise.

With --from the backup comes from a target: the newest, or the one of the ID. That
works on an empty host, with nothing but the URL, its credentials and an identity.`,
		Example: `  agnes backup restore 20261124T045222Z-1a2b3c --data-dir ./data
  agnes backup restore /mnt/copies/agnes-20261124T045222Z-1a2b3c.tar.zst -o json
  agnes backup restore 20261124T045222Z-1a2b3c --dry-run
  agnes backup restore --from s3://bucket/agnes --identity agnes-backup.age --data-dir ./data`,
		Args: cobra.MaximumNArgs(1),
	}
	from := elsewhereFlags(c)
	dryRun := c.Flags().Bool("dry-run", false, "verify, open and migrate a copy, and change nothing")
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(c *cobra.Command, args []string) error {
		in := settings.Inputs{Flags: flags(), Getenv: env.Getenv}
		away, err := from.given()
		if err != nil {
			return err
		}
		var done backup.Restored
		switch {
		case away:
			done, err = restoreFrom(c.Context(), env, in, from, strings.Join(args, ""), *dryRun)
		case len(args) == 0:
			err = cli.UsageError("Expected the ID or the file of a backup, or --from URL.")
		default:
			done, err = restoreHere(c.Context(), env, in, args[0], *dryRun)
		}
		if err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, done, func(g *cli.Grid) {
			if done.DryRun {
				g.Line("The backup %s (agnes %s, schema version %d) can be restored. Nothing was changed.", done.Restored, done.Version, done.Schema)
				return
			}
			g.Line("Restored the backup %s (agnes %s, schema version %d).", done.Restored, done.Version, done.Schema)
			g.Line("What was there before is in %s", done.Kept)
			if !done.Extracts {
				g.Line("The tables' data is not part of this backup; it was left as it is.")
			}
			for _, source := range done.LeftOut {
				g.Line("Not part of this backup: %s", source)
			}
		})
	}
	return c
}

func restoreHere(ctx context.Context, env cli.Env, in settings.Inputs, idOrFile string, dryRun bool) (backup.Restored, error) {
	layout, _, err := place(in)
	if err != nil {
		return backup.Restored{}, err
	}
	path, err := backup.Find(layout.BackupDirs(), idOrFile)
	if err != nil {
		return backup.Restored{}, err
	}
	lock, err := lockStopped(layout, "agnes backup restore "+idOrFile)
	if err != nil {
		return backup.Restored{}, err
	}
	defer func() { _ = lock.Close() }()
	return backup.Restore(ctx, layout.BackupDirs(), path, backup.RestoreOptions{DryRun: dryRun, Log: quietLog(env)})
}

// schemaVersions is the answer of agnes schema.
type schemaVersions struct {
	Database int    `json:"database"` // 0 where there is none
	Program  int    `json:"program"`
	Version  string `json:"version"`
}

func newSchema(env cli.Env) *cobra.Command {
	format := cli.Table
	c := &cobra.Command{
		Use:   "schema",
		Short: "Show the schema versions of data directory and program, while the instance is stopped",
		Long: `schema reads the schema version of DATA_DIR's database and changes nothing there,
also where it is newer than this program knows. 0 means that there is none.`,
		Example: `  agnes schema --data-dir ./data
  agnes schema -o json`,
		Args: cobra.NoArgs,
	}
	cli.OutputFlag(c, &format)
	flags := configFlags(c, settings.DataDir)
	c.RunE = func(c *cobra.Command, _ []string) error {
		layout, _, err := place(settings.Inputs{Flags: flags(), Getenv: env.Getenv})
		if err != nil {
			return err
		}
		out := schemaVersions{Program: state.LatestSchemaVersion(), Version: buildinfo.Get(env.Getenv).Version}
		if out.Database, err = databaseSchema(c.Context(), layout, env); err != nil {
			return err
		}
		return cli.Print(env.Stdout, format, out, func(g *cli.Grid) {
			g.Row("database", fmt.Sprint(out.Database))
			g.Row("program", fmt.Sprint(out.Program))
			g.Row("version", out.Version)
		})
	}
	return c
}

func databaseSchema(ctx context.Context, layout agent.Layout, env cli.Env) (int, error) {
	pending, err := backup.Pending(layout.BackupDirs())
	if err != nil {
		return 0, err
	}
	if _, err := os.Lstat(layout.Database()); errors.Is(err, fs.ErrNotExist) && !pending {
		return 0, nil // nothing is created by looking
	}
	lock, err := lockStopped(layout, "agnes schema")
	if err != nil {
		return 0, err
	}
	defer func() { _ = lock.Close() }()
	if pending {
		if _, err := backup.Recover(ctx, layout.BackupDirs(), quietLog(env)); err != nil {
			return 0, err
		}
	}
	return state.StoredSchemaVersion(ctx, layout.State())
}

// lockStopped takes the lock of a data directory whose instance is stopped.
func lockStopped(layout agent.Layout, command string) (io.Closer, error) {
	lock, err := state.Lock(layout.Root)
	if problem.Is(err, problem.Refused) && problem.As(err).Code == "data_dir_in_use" {
		p := *problem.As(err)
		p.Hint = fmt.Sprintf("Stop the instance (docker compose stop app), then: %s", command)
		return nil, &p
	}
	if err != nil {
		return nil, err
	}
	return lock, nil
}

// place finds the data directory without reading anything in it, which a
// restore may have left half done or which may be damaged.
func place(in settings.Inputs) (agent.Layout, string, error) {
	config, err := settings.Resolve(in)
	if err != nil {
		return agent.Layout{}, "", err
	}
	root, err := filepath.Abs(config.Get(settings.DataDir))
	return agent.Layout{Root: root}, config.Get(settings.Addr), err
}

func quietLog(env cli.Env) *slog.Logger {
	return slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func size(bytes int64) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%d kB", (bytes+1023)>>10)
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/(1<<20))
}
