package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Restored is the result of a restore.
type Restored struct {
	Restored string   `json:"restored"`       // the backup's ID
	Schema   int      `json:"schema_version"` // of the restored database
	Version  string   `json:"version"`        // of the agnes that made the backup
	Kept     string   `json:"kept"`           // where that is what was there before
	Extracts bool     `json:"extracts"`       // whether tables' data was restored too
	LeftOut  []string `json:"left_out,omitempty"`
	DryRun   bool     `json:"dry_run,omitempty"`
}

// RestoreOptions change a restore.
type RestoreOptions struct {
	DryRun bool // do everything but the swap
	Log    *slog.Logger

	step func(string) // tests are told what was done
}

// Restore puts the backup at path in the place of what is there. The caller
// holds the DATA_DIR lock.
//
// Nothing is touched before the whole backup was verified and this agnes has
// opened and, on a copy, migrated its database; a backup with a newer schema is
// refused. What was there moves to a folder of its own, which nothing deletes
// for 30 days. Killed at any moment, the next Recover finishes or undoes it.
func Restore(ctx context.Context, d Dirs, path string, opt RestoreOptions) (_ Restored, err error) {
	if opt.step == nil {
		opt.step = func(string) {}
	}
	if _, err := Recover(ctx, d, opt.Log); err != nil {
		return Restored{}, err
	}
	o, err := open(path)
	if err != nil {
		return Restored{}, err
	}
	defer o.close()
	if err := o.fits(); err != nil {
		return Restored{}, err
	}
	if err := placed(d); err != nil {
		return Restored{}, err
	}
	// The copy that is migrated, and its snapshot, are as large as the database.
	if err := roomFor(d.Root, o.Bytes()+3*o.databaseBytes(), "Restoring this backup"); err != nil {
		return Restored{}, err
	}
	defer func() {
		if pending, perr := Pending(d); perr == nil && !pending {
			err = errors.Join(err, os.RemoveAll(d.Work))
		}
		err = writeProblem(err, d.Root, "nothing was restored")
	}()
	j, err := stage(ctx, d, o, opt)
	if err != nil {
		return Restored{}, err
	}
	out := Restored{Restored: o.ID, Schema: j.Database.Schema, Version: o.Version, Extracts: j.extracts(), LeftOut: o.LeftOut, DryRun: opt.DryRun}
	if opt.DryRun {
		return out, nil
	}
	out.Kept = j.kept(d)
	return out, j.swap(ctx, d, opt.step)
}

// fits refuses a database that this agnes cannot read, before anything else.
func (o *opened) fits() error {
	if latest := state.LatestSchemaVersion(); o.Database.Schema > latest {
		return problem.New(problem.Refused,
			fmt.Sprintf("The backup %s has schema version %d, written by agnes %s; this agnes knows versions up to %d.", o.ID, o.Database.Schema, o.Database.Version, latest),
			fmt.Sprintf("Restore it with agnes %s or newer, or choose an older backup: agnes backup list", o.Database.Version)).WithCode("schema_newer")
	}
	return nil
}

// placed makes sure that folders can be swapped by renaming them.
func placed(d Dirs) error {
	for _, dir := range []string{d.Root, d.State, d.Extracts, d.Backups} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{d.State, d.Extracts} {
		if same, err := sameDevice(d.Root, dir); err != nil || !same {
			return problem.Wrap(err, problem.Refused, fmt.Sprintf("%s is a file system of its own, so it cannot be swapped for another folder.", dir),
				fmt.Sprintf("Mount the file system at %s instead, with %s inside it.", d.Root, filepath.Base(dir)))
		}
	}
	return nil
}

// stage brings the backup's content into Work and proves it.
func stage(ctx context.Context, d Dirs, o *opened, opt RestoreOptions) (_ *journal, err error) {
	fresh := filepath.Join(d.Work, freshDir)
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return nil, err
	}
	if err := o.each(ctx, into(fresh)); err != nil {
		return nil, err
	}
	opt.step("extracted")
	copied := filepath.Join(fresh, filepath.FromSlash(database))
	if err := o.proveDatabase(ctx, copied); err != nil {
		return nil, err
	}
	if err := try(ctx, d, copied); err != nil {
		return nil, err
	}
	opt.step("tried")

	j := &journal{ID: o.ID, At: time.Now().UTC().Truncate(time.Second), Phase: phaseSwap, Database: o.Database}
	targets := map[string]bool{"state": true}
	for _, f := range o.Files {
		if source, ok := strings.CutPrefix(f.Path, "extracts/"); ok {
			source, _, _ = strings.Cut(source, "/")
			targets[filepath.Join("extracts", source)] = true
		}
	}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		if target != "state" { // an archive names no empty folder
			if err := os.MkdirAll(filepath.Join(fresh, target, connectors.DataDir), 0o755); err != nil {
				return nil, err
			}
		}
		there, err := exists(filepath.Join(d.Root, target))
		if err != nil {
			return nil, err
		}
		j.Moves = append(j.Moves, move{Target: target, Replaces: there})
	}
	if err := j.leaveNote(fresh); err != nil {
		return nil, err
	}
	if err := syncTree(fresh); err != nil {
		return nil, err
	}
	j.Kept, err = freeName(d, j.At)
	return j, err
}

// freeName returns where what is replaced goes, relative to DATA_DIR.
func freeName(d Dirs, at time.Time) (string, error) {
	parent, err := filepath.Rel(d.Root, d.Backups)
	if err != nil {
		return "", err
	}
	if same, err := sameDevice(d.Root, d.Backups); err != nil {
		return "", err
	} else if !same { // a rename does not reach there
		parent = "."
	}
	stem := filepath.Join(parent, keptPrefix+at.Format(stampLayout))
	for name, n := stem, 2; ; name, n = fmt.Sprintf("%s-%d", stem, n), n+1 {
		if there, err := exists(filepath.Join(d.Root, name)); err != nil || !there {
			return name, err
		}
	}
}

// try opens a copy of the database as a start would, which migrates it.
func try(ctx context.Context, d Dirs, database string) (err error) {
	trial := filepath.Join(d.Work, "trial")
	if err := os.MkdirAll(trial, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(trial)) }()
	if err := copyFile(ctx, database, filepath.Join(trial, filepath.Base(database)), 0o600); err != nil {
		return err
	}
	store, err := state.Open(ctx, state.Options{Dir: trial})
	if err != nil {
		return err
	}
	return store.Close()
}

// Note tells the next start of the instance that its state is a restored one.
type Note struct {
	ID       string    `json:"id"`
	At       time.Time `json:"at"`
	Extracts bool      `json:"extracts"`
}

const noteFile = ".restored"

func (j *journal) leaveNote(fresh string) error {
	data, err := json.Marshal(Note{ID: j.ID, At: j.At, Extracts: j.extracts()})
	if err != nil {
		return err
	}
	return state.WriteFileAtomic(filepath.Join(fresh, "state", noteFile), data, 0o600)
}

// TakeNote returns the note of a restore that no start has seen yet. done
// removes it.
func TakeNote(d Dirs) (note *Note, done func() error, err error) {
	path := filepath.Join(d.State, noteFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	note = &Note{}
	if err := json.Unmarshal(data, note); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return note, func() error { return os.Remove(path) }, nil
}
