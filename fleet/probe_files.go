//go:build unix

package fleet

import "syscall"

// fileLimit returns how many files this process may have open, 0 for unknown. The
// Go runtime has already raised the soft limit to the hard one.
func fileLimit() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return min(l.Cur, 1<<20)
}

// RaiseFileLimit lets this process open as many files as its user may, and up to
// want where the user may decide that. It returns what holds now.
func RaiseFileLimit(want uint64) uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	for _, try := range []syscall.Rlimit{{Cur: max(want, l.Max), Max: max(want, l.Max)}, {Cur: l.Max, Max: l.Max}} {
		if l.Cur < want && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &try) == nil {
			break
		}
	}
	return fileLimit()
}
