package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

// walFiles returns the write-ahead log files that exist beside a database. A
// crash during a checkpoint leaves more than one (.wal, .wal.checkpoint,
// .wal.recovery).
func walFiles(path string) []string {
	var files []string
	for _, suffix := range []string{".wal", ".wal.checkpoint", ".wal.recovery"} {
		if fi, err := os.Lstat(path + suffix); err == nil && fi.Mode().IsRegular() {
			files = append(files, path+suffix)
		}
	}
	return files
}

// flushEntry is how a committed transaction ends in the WAL: the entry of
// type WAL_FLUSH, five bytes long.
const flushEntry = "\x64\x00\x64\xff\xff"

// walDamage is what inspectWAL found; text is "" when the log is whole or
// merely torn. stop is the byte at which reading ends, 0 when unknown.
type walDamage struct {
	text string
	stop int64
}

// inspectWAL looks for damage that DuckDB would pass over in silence. DuckDB
// takes an entry that reaches past the end of the file for a torn write, drops
// it and all that follows, and reports nothing; a log whose head is not
// readable it drops as a whole. A torn write is harmless, because a commit is
// confirmed only after its flush entry is on disk. So damage is: no readable
// head, or flush entries after the point at which reading stops.
//
// The layout is that of src/storage/wal_replay.cpp, version 2:
// a head without checksum, then (size, checksum, entry)*.
func inspectWAL(path string) (walDamage, error) {
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return walDamage{}, err
	}
	head, ok := walHead(data)
	if !ok {
		if len(data) < 64 {
			return walDamage{}, nil // the head itself is torn: nothing was committed yet
		}
		return walDamage{text: fmt.Sprintf("its head is not that of a DuckDB write-ahead log (%d bytes)", len(data))}, nil
	}
	pos := head
	for pos+16 <= len(data) {
		size := binary.LittleEndian.Uint64(data[pos:])
		if size > uint64(len(data)-pos-16) {
			break
		}
		pos += 16 + int(size)
	}
	if pos == len(data) {
		return walDamage{}, nil
	}
	if n := flushes(data[pos:]); n > 0 {
		return walDamage{
			text: fmt.Sprintf("reading it stops at byte %d of %d, before the end of at least %d committed changes", pos, len(data), n),
			stop: int64(pos),
		}, nil
	}
	return walDamage{}, nil
}

// flushes counts flush entries with their size field in front.
func flushes(data []byte) int {
	n := 0
	for {
		i := bytes.Index(data, []byte(flushEntry))
		if i < 0 {
			return n
		}
		if i >= 16 && binary.LittleEndian.Uint64(data[i-16:]) == uint64(len(flushEntry)) {
			n++
		}
		data = data[i+len(flushEntry):]
	}
}

// walHead returns the length of the log's first record: type 98 (version),
// version 2 and, since storage version 1.4, the database's 16-byte id and its
// checkpoint number, each number as a variable-length integer.
func walHead(data []byte) (int, bool) {
	start := []byte{0x64, 0x00, 0x62, 0x65, 0x00, 0x02}
	if !bytes.HasPrefix(data, start) {
		return 0, false
	}
	pos := len(start)
	varint := func() bool {
		_, n := binary.Uvarint(data[pos:])
		pos += max(n, 0)
		return n > 0
	}
	if bytes.HasPrefix(data[pos:], []byte{0x66, 0x00, 0x10}) {
		pos += 3
		for range 16 {
			if !varint() {
				return 0, false
			}
		}
	}
	if bytes.HasPrefix(data[pos:], []byte{0x67, 0x00}) {
		pos += 2
		if !varint() {
			return 0, false
		}
	}
	if !bytes.HasPrefix(data[pos:], []byte{0xff, 0xff}) {
		return 0, false
	}
	return pos + 2, true
}
