package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// RestoreOutcome is what became of an entry of a journal.
type RestoreOutcome string

// The outcomes.
const (
	RestoreDone  RestoreOutcome = "restored"
	RestoreThere RestoreOutcome = "there" // it was never deleted, or is back already
	RestoreLost  RestoreOutcome = "lost"  // the host does not have it any more
	RestoreWould RestoreOutcome = "would" // dry run: it would be restored
)

// RestoredVersion is one row of a RestoreResult.
type RestoredVersion struct {
	ID      int64          `json:"id"`
	Digest  string         `json:"digest"`
	Tags    []string       `json:"tags"`
	Outcome RestoreOutcome `json:"outcome"`
	Detail  string         `json:"detail,omitempty"`
}

// RestoreResult is what Restore did, in its order.
type RestoreResult struct {
	Restored int               `json:"restored"`
	There    int               `json:"there"`
	Lost     int               `json:"lost"`
	DryRun   bool              `json:"dry_run,omitempty"`
	Versions []RestoredVersion `json:"versions"`
}

// Restore brings back what a journal says, children before the indexes that have
// them, so that no index is ever there without its parts. What is there stays as
// it is; repeating it is free.
func Restore(ctx context.Context, entries []JournalEntry, packages Packages, o ApplyOptions) (RestoreResult, error) {
	if o.Wait == nil {
		o.Wait = pause.For
	}
	if o.Progress == nil {
		o.Progress = func(int, int) {}
	}
	result := RestoreResult{DryRun: o.DryRun, Versions: []RestoredVersion{}}
	order := childrenFirst(entries)
	for i, e := range order {
		row := RestoredVersion{ID: e.ID, Digest: e.Digest, Tags: e.Tags}
		outcome, err := putBack(ctx, e, packages, o)
		if err != nil {
			at := fmt.Sprintf("stopped after %d of %d versions (%d restored)", i, len(order), result.Restored)
			if retryable(err) {
				return result, problem.Wrap(err, problem.Inconclusive, at, "repeat the command: what is there stays as it is")
			}
			return result, fmt.Errorf("%s: %w", at, err)
		}
		row.Outcome = outcome
		switch outcome {
		case RestoreDone:
			result.Restored++
		case RestoreThere:
			result.There++
		case RestoreLost:
			result.Lost++
			row.Detail = "the host does not have it any more: it keeps deleted versions for 30 days"
		}
		if outcome == RestoreDone || outcome == RestoreThere {
			if row.Detail, err = missingTags(ctx, e, packages); err != nil {
				return result, err
			}
		}
		result.Versions = append(result.Versions, row)
		o.Progress(i+1, len(order))
	}
	return result, nil
}

// childrenFirst is each version of a journal once, the last entry of it, in an
// order in which every index comes after its manifests.
func childrenFirst(entries []JournalEntry) []JournalEntry {
	at := map[string]int{}
	for i, e := range entries {
		at[e.Digest] = i
	}
	var order []JournalEntry
	seen := map[int]bool{}
	var visit func(i int)
	visit = func(i int) {
		if seen[i] {
			return
		}
		seen[i] = true
		for _, child := range entries[i].Children {
			if next, ok := at[child]; ok {
				visit(next)
			}
		}
		order = append(order, entries[i])
	}
	for i, e := range slices.Backward(entries) { // a prune deletes indexes first
		if at[e.Digest] == i {
			visit(i)
		}
	}
	return order
}

// putBack restores one version unless it is there.
func putBack(ctx context.Context, e JournalEntry, packages Packages, o ApplyOptions) (RestoreOutcome, error) {
	const attempts = 5
	uncertain := false
	for n := 1; ; n++ {
		_, err := packages.Version(ctx, e.ID)
		switch {
		case err == nil && uncertain:
			return RestoreDone, nil // it was this call
		case err == nil:
			return RestoreThere, nil
		case errors.Is(err, ErrNotFound) && o.DryRun:
			return RestoreWould, nil
		case errors.Is(err, ErrNotFound):
			err = packages.Restore(ctx, e.ID)
			if err == nil {
				return RestoreDone, nil
			}
			uncertain = uncertain || errors.Is(err, ErrUncertain)
			if errors.Is(err, ErrNotFound) && !uncertain {
				return RestoreLost, nil
			}
		}
		if n == attempts || !retryable(err) && !errors.Is(err, ErrNotFound) {
			return "", err
		}
		if err := o.Wait(ctx, pauseAfter(err, n)); err != nil {
			return "", err
		}
	}
}

// missingTags says which tags did not come back with a version.
func missingTags(ctx context.Context, e JournalEntry, packages Packages) (string, error) {
	is, err := packages.Version(ctx, e.ID)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, tag := range e.Tags {
		if !slices.Contains(is.Tags, tag) {
			missing = append(missing, tag)
		}
	}
	if len(missing) == 0 {
		return "", nil
	}
	return fmt.Sprintf("without %s: set it again, crane tag IMAGE@%s %s", strings.Join(missing, ", "), e.Digest, missing[0]), nil
}
