package csv

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// readPositions notes how far the open descriptors of paths have been read, as
// the kernel keeps it.
func readPositions(paths []string, furthest map[string]int64) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || !slices.Contains(paths, target) {
			continue
		}
		f, err := os.Open(filepath.Join("/proc/self/fdinfo", e.Name()))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "pos:"); ok {
				if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
					furthest[target] = max(furthest[target], n)
				}
				break
			}
		}
		_ = f.Close()
	}
}
