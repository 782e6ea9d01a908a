//go:build !linux

package csv

// readPositions knows nothing here: progress moves a table at a time.
func readPositions([]string, map[string]int64) {}
