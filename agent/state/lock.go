package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const lockFile = "agnes.lock"

// DirLock is the hold of one process on DATA_DIR.
type DirLock struct {
	file *os.File
	once sync.Once
	err  error
}

// Lock takes the flock on DATA_DIR/agnes.lock, creating DATA_DIR if need be,
// and writes the process id into it. A second holder, in this process or
// another, is refused with problem.Refused. The kernel releases the lock when
// the process ends, however it ends.
func Lock(dataDir string) (*DirLock, error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		if fi, serr := os.Stat(dataDir); serr == nil && !fi.IsDir() || errors.Is(err, syscall.ENOTDIR) {
			return nil, notADirectory(dataDir, err)
		}
		return nil, orSystemProblem(err, dataDir)
	}
	path := filepath.Join(dataDir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, orSystemProblem(err, dataDir)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, problem.Wrap(err, problem.Unavailable,
				fmt.Sprintf("The file system of %s cannot lock files, which protects the data from a second writer.", dataDir),
				"Set DATA_DIR to a directory on a local disk.")
		}
		pid := strings.TrimSpace(string(holder))
		if pid == "" { // between its flock and its write
			pid = "unknown"
		}
		return nil, problem.New(problem.Refused,
			fmt.Sprintf("%s is in use by another agnes process (pid %s).", dataDir, pid),
			fmt.Sprintf("Use that instance through its API, stop it with `kill %s`, or set DATA_DIR to another directory.", pid)).
			WithCode("data_dir_in_use")
	}
	if err := writePid(f); err != nil {
		return nil, errors.Join(orSystemProblem(err, dataDir), f.Close())
	}
	return &DirLock{file: f}, nil
}

func writePid(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

// Close releases the lock; it is idempotent. The file stays, because removing
// it could let two processes lock two files of the same name.
func (l *DirLock) Close() error {
	// Unlocked before it is closed: a child process that is being started may
	// hold the descriptor for a moment longer.
	l.once.Do(func() { l.err = errors.Join(unix.Flock(int(l.file.Fd()), unix.LOCK_UN), l.file.Close()) })
	return l.err
}
