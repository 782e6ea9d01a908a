package update

import (
	"cmp"
	"regexp"
	"strconv"
)

// version is a calendar version YYYY.MM.N: numbers, of which only the month is
// padded.
type version struct{ year, month, n int64 }

var versionText = regexp.MustCompile(`^(\d{4})\.(0[1-9]|1[0-2])\.([1-9]\d{0,17})$`)

func parseVersion(text string) (version, bool) {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return version{}, false
	}
	number := func(s string) int64 {
		n, _ := strconv.ParseInt(s, 10, 64) // the expression leaves nothing to refuse
		return n
	}
	return version{number(m[1]), number(m[2]), number(m[3])}, true
}

func (v version) compare(w version) int {
	return cmp.Or(cmp.Compare(v.year, w.year), cmp.Compare(v.month, w.month), cmp.Compare(v.n, w.n))
}
