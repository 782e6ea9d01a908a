package backup

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"
)

// keepReplaced is how long what a restore replaced is kept.
const keepReplaced = 30 * 24 * time.Hour

// Retention says which backups stay.
type Retention struct {
	// Keep is how many days of scheduled backups stay, the newest of each day,
	// and how many of those that a person or a deploy asked for.
	Keep int
	// Offsite tells whether a copy of a backup is elsewhere. Where it is set,
	// a backup without a copy stays for twice as long.
	Offsite func(id string) bool
}

// Expired returns those of list, newest first, that may go. The newest backup
// always stays, and so do all scheduled ones of the last 24 hours. What is
// Ahead stays as well and is not counted, so that it pushes nothing out.
func (r Retention) Expired(list []Info, now time.Time) []Info {
	keep := r.Keep
	days := map[string]bool{}
	asked := 0
	var gone []Info
	list = slices.DeleteFunc(slices.Clone(list), func(b Info) bool { return Ahead(b.CreatedAt, now) })
	for n, b := range list {
		stays := func(keep int) bool {
			if !b.Scheduled {
				return asked < keep
			}
			day := b.CreatedAt.UTC().Format(time.DateOnly)
			return now.Sub(b.CreatedAt) < 24*time.Hour || !days[day] && len(days) < keep
		}
		switch {
		case n == 0, stays(keep):
		case r.Offsite != nil && !r.Offsite(b.ID) && stays(2*keep):
		default:
			gone = append(gone, b)
			continue
		}
		if b.Scheduled {
			days[b.CreatedAt.UTC().Format(time.DateOnly)] = true
		} else {
			asked++
		}
	}
	return gone
}

// Prune deletes the backups that may go, and what restores replaced more than
// 30 days ago, by the clock now, of which the caller is sure. It returns the IDs
// of the deleted backups.
func Prune(d Dirs, r Retention, now time.Time) (gone []string, err error) {
	list, _, err := List(d)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, b := range r.Expired(list, now) {
		if err := os.Remove(b.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, b.ID)
	}
	kept, err := keptFolders(d)
	errs = append(errs, err)
	for path, at := range kept {
		if now.Sub(at) > keepReplaced {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	slices.SortFunc(gone, strings.Compare)
	return gone, errors.Join(errs...)
}
