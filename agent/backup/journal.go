package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// The folder of a restore that is under way:
//
//	DATA_DIR/.restore/new/          the backup's content, until it is swapped in
//	DATA_DIR/.restore/journal.json  from the first rename to the last
//
// Without a journal nothing was touched, and the folder is rubbish.
const (
	freshDir    = "new"
	journalFile = "journal.json"
)

const (
	phaseSwap = "swap" // moving forward
	phaseUndo = "undo" // the swapped-in state did not open; moving back
)

// journal is what a swap needs to be finished or undone by another process.
// Which of its renames were made is seen by what stands where.
type journal struct {
	ID       string        `json:"id"`
	At       time.Time     `json:"at"`
	Phase    string        `json:"phase"`
	Kept     string        `json:"kept"` // what is replaced goes below it; relative to DATA_DIR
	Moves    []move        `json:"moves"`
	Database state.Content `json:"database"`
}

// move replaces one folder.
type move struct {
	Target   string `json:"target"`   // relative to DATA_DIR, and below new/ and Kept alike
	Replaces bool   `json:"replaces"` // whether there was something at Target
}

func (j *journal) kept(d Dirs) string { return filepath.Join(d.Root, j.Kept) }

func (j *journal) extracts() bool {
	return slices.ContainsFunc(j.Moves, func(m move) bool { return m.Target != "state" })
}

func journalPath(d Dirs) string { return filepath.Join(d.Work, journalFile) }

func (j *journal) write(d Dirs) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := state.WriteFileAtomic(journalPath(d), data, 0o600); err != nil {
		return err
	}
	return syncPath(d.Root) // names Work itself
}

// Pending reports whether a restore was interrupted in the middle of its swap.
// Until Recover has run, nothing below DATA_DIR can be relied on.
func Pending(d Dirs) (bool, error) { return exists(journalPath(d)) }

// Recover finishes or undoes a restore that was killed, and removes what one
// left that was killed before its swap. It returns what is in place now where
// the swap was finished. The caller holds the DATA_DIR lock.
func Recover(ctx context.Context, d Dirs, log *slog.Logger) (finished *Restored, err error) {
	return recoverWith(ctx, d, log, func(string) {})
}

func recoverWith(ctx context.Context, d Dirs, log *slog.Logger, step func(string)) (finished *Restored, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	data, err := os.ReadFile(journalPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, os.RemoveAll(d.Work)
	}
	if err != nil {
		return nil, err
	}
	j := &journal{}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, problem.Wrap(err, problem.Internal, fmt.Sprintf("The journal of a restore, %s, cannot be read.", journalPath(d)),
			fmt.Sprintf("What was there before is below %s; put it back by hand, then remove %s.", d.Backups, d.Work))
	}
	if err := j.proceed(ctx, d, step); err != nil {
		log.Error("An interrupted restore was undone.", "backup", j.ID, "error", err)
		if pending, perr := Pending(d); perr != nil || pending {
			return nil, errors.Join(err, perr)
		}
		return nil, nil //nolint:nilnil // what was there before the restore is in place
	}
	log.Warn("An interrupted restore was finished.", "backup", j.ID, "kept", j.kept(d))
	return &Restored{Restored: j.ID, Schema: j.Database.Schema, Kept: j.kept(d), Extracts: j.extracts()}, nil
}

// swap begins the swap and carries it through.
func (j *journal) swap(ctx context.Context, d Dirs, step func(string)) error {
	if err := j.write(d); err != nil {
		return err
	}
	step("journal")
	// A person's Ctrl-C must not leave the swap half done.
	return j.proceed(context.WithoutCancel(ctx), d, step)
}

// proceed carries a swap on from wherever it stands, to its end. An error that
// leaves no journal means that what was there before is in place.
func (j *journal) proceed(ctx context.Context, d Dirs, step func(string)) error {
	if j.Phase == phaseSwap {
		err := j.forward(d, step)
		if err == nil {
			err = j.opens(ctx, d)
		}
		if err == nil {
			step("opened")
			return j.end(d, step)
		}
		j.Phase = phaseUndo
		if werr := j.write(d); werr != nil {
			return errors.Join(err, werr)
		}
		step("undo")
		if berr := j.backward(d, step); berr != nil {
			return errors.Join(err, berr)
		}
		return errors.Join(j.undone(err), j.end(d, step))
	}
	if err := j.backward(d, step); err != nil {
		return err
	}
	return errors.Join(j.undone(nil), j.end(d, step))
}

func (j *journal) undone(err error) error {
	return problem.Wrap(err, problem.Internal, fmt.Sprintf("The backup %s was verified, but could not be put in place; what was there before is in place again.", j.ID),
		"Check the disk under DATA_DIR for errors (dmesg), then try again.")
}

// opens is the proof after the swap: the state that a start will find.
func (j *journal) opens(ctx context.Context, d Dirs) error {
	got, err := state.ReadContent(ctx, filepath.Join(d.State, "system.duckdb"))
	if err != nil {
		return err
	}
	return j.Database.Differs(got)
}

// forward makes the renames that are left.
func (j *journal) forward(d Dirs, step func(string)) error {
	for _, m := range j.Moves {
		fresh, target, kept := m.paths(d, j)
		staged, err := exists(fresh)
		if err != nil {
			return err
		}
		if !staged {
			continue // it is in place
		}
		if m.Replaces {
			if err := rename(target, kept); err != nil {
				return err
			}
			step(m.Target + " set aside")
		}
		if err := rename(fresh, target); err != nil {
			return err
		}
		step(m.Target + " in place")
	}
	return nil
}

// backward takes back the renames that were made.
func (j *journal) backward(d Dirs, step func(string)) error {
	for _, m := range slices.Backward(j.Moves) {
		fresh, target, kept := m.paths(d, j)
		staged, err := exists(fresh)
		if err != nil {
			return err
		}
		if !staged {
			if err := rename(target, fresh); err != nil {
				return err
			}
			step(m.Target + " taken out")
		}
		if m.Replaces {
			if err := rename(kept, target); err != nil {
				return err
			}
			step(m.Target + " put back")
		}
	}
	// What was set aside is back; the folders that held it are empty.
	for _, dir := range []string{filepath.Join(j.kept(d), "extracts"), j.kept(d)} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (m move) paths(d Dirs, j *journal) (fresh, target, kept string) {
	return filepath.Join(d.Work, freshDir, m.Target), filepath.Join(d.Root, m.Target), filepath.Join(j.kept(d), m.Target)
}

// rename moves a folder and makes that durable. Where it was made already,
// because the process was killed after it, nothing is left to do.
func rename(from, to string) error {
	there, err := exists(from)
	if err != nil {
		return err
	}
	done, err := exists(to)
	if err != nil {
		return err
	}
	switch {
	case !there && done:
		return nil
	case !there:
		return fmt.Errorf("expected a folder at %s or %s, found none", from, to)
	case done:
		return fmt.Errorf("expected nothing at %s, to which %s moves", to, from)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(syncPath(filepath.Dir(to)), syncPath(filepath.Dir(from)), syncPath(filepath.Dir(filepath.Dir(to))))
}

// end removes the journal and then what else is left.
func (j *journal) end(d Dirs, step func(string)) error {
	if err := errors.Join(os.Remove(journalPath(d)), syncPath(d.Work)); err != nil {
		return err
	}
	step("ended")
	return os.RemoveAll(d.Work)
}

// keptFolders returns what earlier restores replaced, with the time of each.
func keptFolders(d Dirs) (map[string]time.Time, error) {
	found := map[string]time.Time{}
	for _, parent := range []string{d.Backups, d.Root} {
		entries, err := os.ReadDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			stamp, ok := strings.CutPrefix(e.Name(), keptPrefix)
			if !ok || !e.IsDir() || len(stamp) < len(stampLayout) {
				continue
			}
			if at, err := time.Parse(stampLayout, stamp[:len(stampLayout)]); err == nil {
				found[filepath.Join(parent, e.Name())] = at
			}
		}
	}
	return found, nil
}
