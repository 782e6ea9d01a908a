package query

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// The server and a worker speak in frames: one byte of kind, four of length
// (little endian), then the payload. Control frames carry JSON; data frames
// carry the answer's bytes, which the server copies through unread.
type frameKind byte

const (
	frameBind  frameKind = 'B' // server: what this worker may see; once
	frameQuery frameKind = 'Q' // server: one statement
	frameReady frameKind = 'R' // worker: bound
	frameStart frameKind = 'S' // worker: the statement runs; columns
	frameData  frameKind = 'D' // worker: bytes of the answer
	frameEnd   frameKind = 'E' // worker: the answer is complete
	frameFail  frameKind = 'F' // worker: the statement failed
)

const (
	frameHeader = 5
	maxControl  = 16 << 20 // a bind frame names each granted file
	dataSize    = 256 << 10
)

// bindMessage says what a worker may see. It is sent once.
type bindMessage struct {
	Views       []View
	MemoryBytes int64
	Sandbox     bool // restrict the process itself, beyond DuckDB's own settings
	Threads     int  // of one statement; 0: one
	Attach      *attachMessage
}

type queryMessage struct {
	SQL           string
	Params        []any
	Format        Format
	Limit         int64 // most rows; negative: all
	MaxBytes      int64 // most bytes of the answer
	BigIntStrings bool
}

type readyMessage struct {
	Isolation string
	Err       *workerError
}

type startMessage struct {
	Columns []string
	Types   []string
	Tables  []string // that the statement reads
}

type endMessage struct {
	Rows      int64
	Truncated bool
}

// workerError is a failure on its way from a worker; see explain.
type workerError struct {
	Kind    string // of a problem; empty: DuckDB's own error
	Code    string
	Message string
	Hint    string
	Type    int // DuckDB's error type, where Kind is empty
	Tables  []string

	Attachment string // of codeNeedsRemote
	Detail     string // for the log alone
}

func (e *workerError) Error() string { return e.Message }

// writeFrame writes one frame. The writer is buffered; who writes flushes.
func writeFrame(w *bufio.Writer, kind frameKind, payload []byte) error {
	var head [frameHeader]byte
	head[0] = byte(kind)
	binary.LittleEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

func writeMessage(w *bufio.Writer, kind frameKind, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, kind, payload)
}

// readFrame reads one frame into buf, growing it where needed.
func readFrame(r io.Reader, buf []byte) (frameKind, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf, err
	}
	n := int(binary.LittleEndian.Uint32(head[1:]))
	if n > maxControl {
		return 0, buf, fmt.Errorf("a frame of %d bytes; expected at most %d", n, maxControl)
	}
	buf = slices.Grow(buf[:0], n)[:n]
	_, err := io.ReadFull(r, buf)
	return frameKind(head[0]), buf, err
}
