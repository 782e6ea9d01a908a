package release

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Version is a calendar version, YYYY.MM.N: year, month in UTC, and a number
// that counts all claims of that month over all channels, from 1, without an
// upper bound. Its text is not SemVer: the month has two digits. The zero
// Version is none.
type Version struct {
	Year, Month int
	N           int64
}

var versionText = regexp.MustCompile(`^(\d{4})\.(0[1-9]|1[0-2])\.([1-9]\d{0,17})$`)

// ParseVersion reads a version in its one spelling: 2026.04.3, not 2026.4.3,
// v2026.04.3 or 2026.04.03.
func ParseVersion(s string) (Version, error) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return Version{}, problem.New(problem.Usage,
			fmt.Sprintf("expected a version YYYY.MM.N such as 2026.04.3, found %q", s),
			"release-bot version list")
	}
	// The expression leaves nothing that these could refuse.
	year, _ := strconv.Atoi(m[1])
	month, _ := strconv.Atoi(m[2])
	n, _ := strconv.ParseInt(m[3], 10, 64)
	return Version{Year: year, Month: month, N: n}, nil
}

// MonthOf returns the version series of a moment: its N is 0.
func MonthOf(at time.Time) Version {
	at = at.UTC()
	return Version{Year: at.Year(), Month: int(at.Month())}
}

// String returns YYYY.MM.N.
func (v Version) String() string { return fmt.Sprintf("%s%d", v.Prefix(), v.N) }

// Prefix returns what all versions of v's month begin with: "2026.04.".
func (v Version) Prefix() string { return fmt.Sprintf("%04d.%02d.", v.Year, v.Month) }

// Compare orders versions by time of claim: -1, 0 or 1.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Year, w.Year), cmp.Compare(v.Month, w.Month), cmp.Compare(v.N, w.N))
}

// IsZero reports whether v is no version.
func (v Version) IsZero() bool { return v == Version{} }

// MonthEnd returns the first moment after v's month: v was claimed before it.
func (v Version) MonthEnd() time.Time {
	return time.Date(v.Year, time.Month(v.Month)+1, 1, 0, 0, 0, 0, time.UTC)
}

// MarshalText writes the version as String does, and none as nothing.
func (v Version) MarshalText() ([]byte, error) {
	if v.IsZero() {
		return nil, nil
	}
	return []byte(v.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (v *Version) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*v = Version{}
		return nil
	}
	parsed, err := ParseVersion(string(b))
	if err == nil {
		*v = parsed
	}
	return err
}
