package query

import (
	"fmt"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// What a worker may use beyond the memory of its query: the programs's own
// code, DuckDB's fixed parts and the frames under way.
const workerOverhead = 512 << 20

// sandbox takes from this process what no statement needs, and says what it
// could take. files stay readable; nothing can be written, made or reached
// over TCP. The descriptors that are open already keep working.
//
// It does not rely on DuckDB: it still holds when a statement has found a way
// around every setting. Resource limits: setrlimit(2); files and network:
// landlock(7), as far as the kernel has it.
func sandbox(files []string, memory int64) (string, error) {
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"data", unix.RLIMIT_DATA, uint64(memory) + workerOverhead}, // memory_limit alone does not bound results
		{"fsize", unix.RLIMIT_FSIZE, 0},                             // no file grows, whatever is opened
		{"core", unix.RLIMIT_CORE, 0},                               // a crash leaves no data behind
		{"nofile", unix.RLIMIT_NOFILE, 1024},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return "", fmt.Errorf("limit the worker's %s: %w", l.name, err)
		}
	}
	active := []string{"process with resource limits"}
	abi, err := llsyscall.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return strings.Join(append(active, "no Landlock in this kernel"), "; "), nil //nolint:nilerr // said in the text, which health shows
	}
	if err := landlock.V8.BestEffort().Restrict(landlock.ROFiles(files...)); err != nil {
		return "", fmt.Errorf("restrict the worker by Landlock: %w", err)
	}
	return strings.Join(append(active, fmt.Sprintf("Landlock ABI %d: granted files only, read only, no TCP", abi)), "; "), nil
}
