package state

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A checkpoint of DuckDB writes beside what is in force and then moves the
// header, with one exception: a block of metadata that has room left is written
// again in its place, to fill it. A process that is killed in that write, or a
// machine that loses its power, leaves a block whose checksum is wrong; DuckDB
// then opens the database no more, although nothing in force was changed.
//
// So all blocks of metadata are copied to system.duckdb.undo before a
// checkpoint. Where the next start finds that file and the header has not moved,
// the checkpoint did not come to its end: the blocks are put back, and the
// write-ahead log, which is still whole, is replayed.
const (
	undoSuffix = ".undo"
	undoMagic  = "agnes-undo-1\n"

	// Of DuckDB's file: three headers of 4,096 bytes, of which the later two are
	// written in turn, then the blocks. src/include/duckdb/storage/storage_info.hpp
	headersSize = 3 * 4096
)

// checkpoint moves the WAL's content into the main file.
func (s *Store) checkpoint(ctx context.Context, db *sql.DB) error {
	ctx = context.WithoutCancel(ctx) // half a checkpoint invalidates the database
	if s.WALBytes() > 0 {
		if err := s.writeUndo(ctx, db); err != nil {
			return err
		}
	}
	if _, err := db.ExecContext(ctx, "CHECKPOINT"); err != nil {
		return err // the file stays, for the next open
	}
	return s.removeUndo()
}

// writeUndo saves the headers and every block that the next checkpoint may
// write in its place.
func (s *Store) writeUndo(ctx context.Context, db *sql.DB) error {
	blocks, size, err := metadataBlocks(ctx, db)
	if err != nil {
		return err
	}
	undo := bytes.NewBufferString(undoMagic)
	if err := s.save(undo, 0, headersSize); err != nil {
		return err
	}
	for _, b := range blocks {
		at := headersSize + b*size
		_ = binary.Write(undo, binary.LittleEndian, []int64{at, size}) // to memory
		if err := s.save(undo, at, size); err != nil {
			return err
		}
	}
	return WriteFileAtomic(s.path+undoSuffix, undo.Bytes(), 0o600)
}

// save appends a part of the main file. What lies past its end is left out:
// nothing was written there that could be lost.
func (s *Store) save(to *bytes.Buffer, at, size int64) error {
	part := make([]byte, size)
	if _, err := s.main.ReadAt(part, at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	to.Write(part)
	return nil
}

// metadataBlocks returns the numbers of the blocks that hold metadata, and the
// size of a block.
func metadataBlocks(ctx context.Context, db *sql.DB) (blocks []int64, size int64, err error) {
	if err := db.QueryRowContext(ctx, "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()").Scan(&size); err != nil {
		return nil, 0, err
	}
	rows, err := db.QueryContext(ctx, "SELECT block_id FROM pragma_metadata_info()")
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var b int64
		if err := rows.Scan(&b); err != nil {
			return nil, 0, err
		}
		blocks = append(blocks, b)
	}
	return blocks, size, rows.Err()
}

// undoCheckpoint puts back what a checkpoint has written that did not come to
// its end. The database must not be open. It is idempotent.
func (s *Store) undoCheckpoint() (err error) {
	undo, err := os.ReadFile(s.path + undoSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	saved, ok := bytes.CutPrefix(undo, []byte(undoMagic))
	if !ok || len(saved) < headersSize {
		return fmt.Errorf("%s%s is not what agnes writes", s.path, undoSuffix)
	}
	main, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, main.Close()) }()
	headers := make([]byte, headersSize)
	if _, err := main.ReadAt(headers, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if bytes.Equal(headers, saved[:headersSize]) { // else the checkpoint is in force, or this is another database
		for rest := saved[headersSize:]; len(rest) >= 16; {
			at, size := int64(binary.LittleEndian.Uint64(rest)), int64(binary.LittleEndian.Uint64(rest[8:]))
			rest = rest[16:]
			if size <= 0 || size > int64(len(rest)) || at < headersSize {
				return fmt.Errorf("%s%s is not what agnes writes", s.path, undoSuffix)
			}
			if _, err := main.WriteAt(rest[:size], at); err != nil {
				return err
			}
			rest = rest[size:]
		}
		if err := main.Sync(); err != nil {
			return err
		}
		s.log.Info("a checkpoint that was interrupted was undone; its commits are in the write-ahead log", "path", s.path)
	}
	return s.removeUndo()
}

// removeUndo removes the file. Where a loss of power brings it back, the header
// has moved.
func (s *Store) removeUndo() error {
	if err := os.Remove(s.path + undoSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncPath(filepath.Dir(s.path))
}

// openMain keeps a descriptor of the main file to read from while DuckDB has it
// open. It is closed only when DuckDB has closed its own: closing any drops the
// process's locks on the file (fcntl(2), POSIX locks).
func (s *Store) openMain() (err error) {
	s.main, err = os.Open(s.path)
	return err
}

// closeMain is called when the database is closed. It is idempotent.
func (s *Store) closeMain() error {
	if s.main == nil {
		return nil
	}
	err := s.main.Close()
	s.main = nil
	return err
}
