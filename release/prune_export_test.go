package release

import "bytes"

// MemoryJournal keeps a journal's lines in memory: thousands of tests that wait
// for a disk each time would be slow, and a few that do are enough.
type MemoryJournal struct{ bytes.Buffer }

// Sync has nothing to do.
func (*MemoryJournal) Sync() error { return nil }

// Close has nothing to do.
func (*MemoryJournal) Close() error { return nil }

// Open returns a journal that continues the lines.
func (m *MemoryJournal) Open() (*Journal, error) {
	entries, _, err := parseJournal("memory", m.Bytes())
	return newJournal("memory", m, entries), err
}

// Entries are the lines of a journal.
func (j *Journal) Entries() []JournalEntry { return j.entries }
