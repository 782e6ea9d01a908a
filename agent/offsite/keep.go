package offsite

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Keep says which copies stay at a target: the Count newest, or those that are
// at most Age older than the newest. The newest itself always stays.
//
// Age is counted from the newest copy, not from now: where backups have
// stopped, time alone deletes nothing. A clock that was wrong does not either:
// what is ahead of now stays and is not counted, and a copy that is alone, the
// one before it being out of Age, makes no other old.
type Keep struct {
	Count int
	Age   time.Duration
}

// ParseKeep reads "30" (copies) or "30d" (days).
func ParseKeep(text string) (Keep, error) {
	number, days := strings.CutSuffix(strings.TrimSpace(text), "d")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 36500 {
		return Keep{}, problem.New(problem.Usage, fmt.Sprintf("AGNES_BACKUP_OFFSITE_KEEP is %q; expected a number of backups, or of days with a d behind it.", text),
			"Set it to 30 for the thirty newest backups, or to 90d for those of ninety days.")
	}
	if days {
		return Keep{Age: time.Duration(n) * 24 * time.Hour}, nil
	}
	return Keep{Count: n}, nil
}

// Dated is a backup with the time at which it was made.
type Dated struct {
	ID   string
	Made time.Time
}

// tolerance is how far clocks may be apart before a time counts as wrong.
const tolerance = 10 * time.Minute

// ahead reports whether a backup says that it was made later than now.
func ahead(made, now time.Time) bool { return made.After(now.Add(tolerance)) }

// Stays tells of each backup of list, which is newest first, whether it stays.
func (k Keep) Stays(list []Dated, now time.Time) map[string]bool {
	stays := map[string]bool{}
	for len(list) > 0 && ahead(list[0].Made, now) {
		stays[list[0].ID] = true
		list = list[1:]
	}
	from := min(1, len(list)-1)
	if len(list) > 1 && list[0].Made.Sub(list[1].Made) <= k.Age {
		from = 0
	}
	for i, d := range list {
		switch {
		case i == 0, k.Count > 0 && i < k.Count, k.Age > 0 && list[from].Made.Sub(d.Made) <= k.Age:
			stays[d.ID] = true
		}
	}
	return stays
}
