//go:build !unix

package fleet

func fileLimit() uint64 { return 0 }

// RaiseFileLimit does nothing where the system has no such limit.
func RaiseFileLimit(uint64) uint64 { return 0 }
