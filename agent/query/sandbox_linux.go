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
// landlock(7) and seccomp(2), as far as the kernel has them.
func sandbox(files []string, memory int64) (string, error) {
	if err := limit(memory); err != nil {
		return "", err
	}
	active, err := confine("granted files only, read only, no TCP", landlock.Config.Restrict, landlock.ROFiles(files...).IgnoreIfMissing())
	if err != nil {
		return "", err
	}
	if err := deny(unix.SYS_SOCKET, unix.SYS_IO_URING_SETUP, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_BPF); err != nil {
		return active + "; no seccomp in this kernel", nil //nolint:nilerr // said in the text, which health shows
	}
	return active + "; seccomp: no sockets, no look at other processes", nil
}

// limit bounds what this process may use.
func limit(memory int64) error {
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
			return fmt.Errorf("limit the worker's %s: %w", l.name, err)
		}
	}
	return nil
}

// confine leaves this process what the rules allow, as far as the kernel can.
// allowed says that in words.
func confine(allowed string, restrict func(landlock.Config, ...landlock.Rule) error, rules ...landlock.Rule) (string, error) {
	active := []string{"process with resource limits"}
	abi, err := llsyscall.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return strings.Join(append(active, "no Landlock in this kernel"), "; "), nil //nolint:nilerr // said in the text, which health shows
	}
	if err := restrict(landlock.V8.BestEffort(), rules...); err != nil {
		return "", fmt.Errorf("restrict the worker by Landlock: %w", err)
	}
	return strings.Join(append(active, fmt.Sprintf("Landlock ABI %d: %s", abi, allowed)), "; "), nil
}

// What name lookups and TLS read.
const networkFiles = "/etc/resolv.conf /etc/hosts /etc/nsswitch.conf /etc/gai.conf /etc/services /etc/ssl/openssl.cnf"

const certificateDirs = "/etc/ssl/certs /usr/share/ca-certificates /usr/local/share/ca-certificates /etc/pki/tls/certs /etc/pki/ca-trust/extracted"

// sandboxRemote is sandbox for a worker that reads a database elsewhere: no
// file of the instance, and, where the url tells, its TCP port only. A database
// that is a file gets that file, read only, and no network.
func sandboxRemote(at *attachMessage, memory int64) (string, error) {
	if err := limit(memory); err != nil {
		return "", err
	}
	if file, is := LocalFile(at.Extension, at.URL); is {
		beside := []string{file + "-wal", file + "-shm", file + "-journal"}
		return confine("one database file only, read only, no TCP", landlock.Config.Restrict, landlock.ROFiles(file), landlock.ROFiles(beside...).IgnoreIfMissing())
	}
	rules := []landlock.Rule{
		landlock.ROFiles(strings.Fields(networkFiles)...).IgnoreIfMissing(),
		landlock.RODirs(strings.Fields(certificateDirs)...).IgnoreIfMissing(),
	}
	if at.TokenFile != "" {
		rules = append(rules, landlock.ROFiles(at.TokenFile).IgnoreIfMissing())
	}
	ports := at.ports()
	if len(ports) == 0 {
		return confine("no file of the instance, TCP to anywhere", landlock.Config.RestrictPaths, rules...)
	}
	for _, port := range ports {
		rules = append(rules, landlock.ConnectTCP(port))
	}
	return confine("no file of the instance, TCP to the database's port", landlock.Config.Restrict, rules...)
}
