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
// stopped, or a clock is wrong, time alone deletes nothing.
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

// Stays tells of each backup of list, which is newest first, whether it stays.
func (k Keep) Stays(list []Dated) map[string]bool {
	stays := map[string]bool{}
	for i, d := range list {
		switch {
		case i == 0, k.Count > 0 && i < k.Count, k.Age > 0 && list[0].Made.Sub(d.Made) <= k.Age:
			stays[d.ID] = true
		}
	}
	return stays
}
