package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// JournalEntry is a version that is about to be deleted: written, and on disk,
// before the host is asked. It says what to put back, not that it is gone.
type JournalEntry struct {
	ID       int64     `json:"id"`
	Digest   string    `json:"digest"`
	Tags     []string  `json:"tags"`
	Children []string  `json:"children"`
	At       time.Time `json:"at"`
}

// Journal is the file of a prune, one entry a line. The same file serves the
// re-run of an interrupted prune, which adds to it, and Restore.
type Journal struct {
	path    string
	file    journalFile
	entries []JournalEntry
	known   map[int64]string // digest by id
}

type journalFile interface {
	io.Writer
	Sync() error // returns when what was written is on disk
	io.Closer
}

// OpenJournal opens or creates a journal. A last line without an end was cut off
// while it was written, so its deletion was never asked for: it is dropped.
func OpenJournal(path string) (*Journal, error) {
	entries, size, err := readJournal(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, journalError(err, path)
	}
	if err = f.Truncate(size); err == nil {
		_, err = f.Seek(size, 0)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path)) // the name must last as long as the lines
	}
	if err != nil {
		_ = f.Close()
		return nil, journalError(err, path)
	}
	return newJournal(path, f, entries), nil
}

// PeekJournal reads a journal, or none, without touching it: for a dry run, which
// adds nothing. It need not be closed.
func PeekJournal(path string) (*Journal, error) {
	entries, _, err := readJournal(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return newJournal(path, nil, entries), nil
}

func newJournal(path string, f journalFile, entries []JournalEntry) *Journal {
	j := &Journal{path: path, file: f, entries: entries, known: map[int64]string{}}
	for _, e := range entries {
		j.known[e.ID] = e.Digest
	}
	return j
}

// ReadJournal returns the entries of a journal in their order.
func ReadJournal(path string) ([]JournalEntry, error) {
	entries, _, err := readJournal(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.Wrap(err, problem.Usage, "expected a journal at "+path+", found no file", "release-bot restore --journal PLAN.json.journal")
	}
	return entries, err
}

func readJournal(path string) (entries []JournalEntry, size int64, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read the journal: %w", err)
	}
	return parseJournal(path, content)
}

// parseJournal also returns where the last whole line ends.
func parseJournal(path string, content []byte) (entries []JournalEntry, size int64, err error) {
	whole := content[:bytes.LastIndexByte(content, '\n')+1]
	line := 0
	for text := range bytes.Lines(whole) {
		line++
		var e JournalEntry
		if err := json.Unmarshal(text, &e); err != nil || e.ID == 0 || e.Digest == "" {
			return nil, 0, problem.Wrap(err, problem.Invalid, fmt.Sprintf("expected an entry {id, digest, tags, children, at} at %s:%d, found %.80q", path, line, text),
				"give the journal that `release-bot prune --apply` wrote beside its plan")
		}
		entries = append(entries, e)
	}
	return entries, int64(len(whole)), nil
}

// add writes an entry, and returns when it is on disk. One that is there stays.
func (j *Journal) add(e JournalEntry) error {
	if j.has(e.ID, e.Digest) {
		return nil
	}
	if j.file == nil {
		return journalError(errors.New("it was opened for reading"), j.path)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an entry of the journal: %w", err)
	}
	if _, err = j.file.Write(append(line, '\n')); err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return journalError(err, j.path)
	}
	j.known[e.ID] = e.Digest
	j.entries = append(j.entries, e)
	return nil
}

// has reports whether the deletion of a version may have been asked for.
func (j *Journal) has(id int64, digest string) bool { return j.known[id] == digest }

// Path is where the journal lies.
func (j *Journal) Path() string { return j.path }

// Close closes the file; every entry is on disk already.
func (j *Journal) Close() error {
	if err := j.file.Close(); err != nil {
		return journalError(err, j.path)
	}
	return nil
}

func journalError(err error, path string) error {
	return problem.Wrap(err, problem.Internal, "expected to write the journal "+path+": nothing is deleted that is not in it",
		"release-bot prune --apply PLAN.json --journal FILE, with a FILE that can be written")
}

// syncFolder makes a new file's name durable, where the system can.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
