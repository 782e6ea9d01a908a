package csv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// input is a file as DuckDB is to read it.
type input struct {
	dataFile
	read  string // path for DuckDB: the file itself, or a mended copy in scratch
	codec codec  // how read is compressed
	head  []byte // its first bytes, decompressed
}

type codec string

const (
	plain   codec = "none"
	gzipped codec = "gzip"
	zstded  codec = "zstd"
)

// headSize is how much of a file is looked at before DuckDB reads it.
const headSize = 64 << 10

//nolint:gochecknoglobals // constants in all but Go's syntax
var (
	bom8    = []byte{0xef, 0xbb, 0xbf}
	bom16LE = []byte{0xff, 0xfe}
	bom16BE = []byte{0xfe, 0xff}
)

// inspect finds out how a file is compressed, from its content and not from its
// name, and whether DuckDB can read it as it is. UTF-16 is converted into a
// copy: DuckDB takes the big-endian form for the little-endian one. The error
// is errEmpty for a file without content.
func inspect(ctx context.Context, f dataFile, scratch string) (input, error) {
	in := input{dataFile: f, read: f.path}
	var err error
	if in.codec, err = codecOf(f.path); err != nil {
		return in, cannotRead(f, err)
	}
	if f.kind == parquet {
		if f.id.Size == 0 {
			return in, errEmpty
		}
		return in, nil
	}
	r, err := in.open()
	if err != nil {
		return in, cannotRead(f, err)
	}
	defer r.Close()
	in.head = make([]byte, headSize)
	n, err := io.ReadFull(r, in.head)
	in.head = in.head[:n]
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return in, damaged(f, err)
	}
	switch {
	case len(bytes.TrimSpace(bytes.TrimPrefix(in.head, bom8))) == 0:
		blank, err := onlySpace(r)
		if err != nil {
			return in, damaged(f, err)
		}
		if blank {
			return in, errEmpty
		}
	case bytes.HasPrefix(in.head, bom16LE), bytes.HasPrefix(in.head, bom16BE):
		return in.fromUTF16(ctx, scratch)
	case bytes.IndexByte(in.head, 0) >= 0:
		return in, problem.New(problem.Unprocessable, fmt.Sprintf("Expected text in %s, found bytes that are none (a spreadsheet, an archive or UTF-16 without a mark).", f.rel),
			fmt.Sprintf("Export it as UTF-8 text, or convert it: iconv -f UTF-16LE -t UTF-8 '%s'", f.rel))
	}
	return in, nil
}

func onlySpace(r io.Reader) (bool, error) {
	buf := make([]byte, headSize)
	for {
		n, err := r.Read(buf)
		if len(bytes.TrimSpace(buf[:n])) > 0 {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (in input) fromUTF16(ctx context.Context, scratch string) (input, error) {
	r, err := in.open()
	if err != nil {
		return in, cannotRead(in.dataFile, err)
	}
	defer r.Close()
	copyTo, err := os.CreateTemp(scratch, "utf8-*")
	if err != nil {
		return in, connectors.WriteError(err, "convert "+in.rel)
	}
	decoded := transform.NewReader(r, unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewDecoder())
	_, err = io.Copy(copyTo, &stoppable{ctx, decoded})
	if err = errors.Join(err, copyTo.Close()); err != nil {
		return in, connectors.WriteError(err, "convert "+in.rel+" from UTF-16")
	}
	in.read, in.codec = copyTo.Name(), plain
	if in.head, err = readHead(in.read); err != nil {
		return in, err
	}
	if len(bytes.TrimSpace(in.head)) == 0 {
		return in, errEmpty
	}
	return in, nil
}

func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, headSize))
}

// stoppable ends a long read when its context does.
type stoppable struct {
	ctx context.Context //nolint:containedctx // io.Reader has no other place for it
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

func codecOf(path string) (codec, error) {
	f, err := os.Open(path)
	if err != nil {
		return plain, err
	}
	defer f.Close()
	var magic [4]byte
	n, err := io.ReadFull(f, magic[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return plain, err
	}
	switch {
	case bytes.HasPrefix(magic[:n], []byte{0x1f, 0x8b}):
		return gzipped, nil
	case bytes.Equal(magic[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstded, nil
	}
	return plain, nil
}

// open returns the decompressed content of what DuckDB reads.
func (in input) open() (io.ReadCloser, error) {
	f, err := os.Open(in.read)
	if err != nil {
		return nil, err
	}
	switch in.codec {
	case gzipped:
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return readCloser{z, f}, nil
	case zstded:
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return readCloser{z.IOReadCloser(), f}, nil
	default:
		return f, nil
	}
}

type readCloser struct {
	io.ReadCloser
	file io.Closer
}

// Close closes the decompressor, then the file.
func (r readCloser) Close() error { return errors.Join(r.ReadCloser.Close(), r.file.Close()) }

// whole reads a compressed file to its end. DuckDB takes a truncated one for
// one that is complete.
func (in input) whole(ctx context.Context) error {
	if in.codec == plain {
		return nil
	}
	r, err := in.open()
	if err != nil {
		return damaged(in.dataFile, err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, &stoppable{ctx, r}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return damaged(in.dataFile, err)
	}
	return nil
}

// fractions reports whether a file may hold one. Reading a plain file without
// any costs a twentieth of what DuckDB's reading of it does.
func (in input) fractions(ctx context.Context) (bool, error) {
	if in.codec != plain {
		return true, nil
	}
	f, err := os.Open(in.read)
	if err != nil {
		return false, cannotRead(in.dataFile, err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	kept := 0 // the last byte of the chunk before, which may begin an exponent
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := f.Read(buf[kept:])
		chunk := buf[:kept+n]
		if bytes.IndexByte(chunk, '.') >= 0 || bytes.Contains(chunk, []byte("e-")) || bytes.Contains(chunk, []byte("E-")) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, cannotRead(in.dataFile, err)
		}
		if n > 0 {
			buf[0], kept = chunk[len(chunk)-1], 1
		}
	}
}

func cannotRead(f dataFile, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("The file %s cannot be opened.", f.rel),
		fmt.Sprintf("Make it readable for the instance's user: chmod a+r '%s'", filepath.Base(f.rel)))
}

func damaged(f dataFile, err error) error {
	return problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("Expected a whole compressed file, found %s damaged or cut off.", f.rel),
		"Copy or export it again, under a temporary name until it is complete, then POST /api/sync/trigger").WithCode("file_damaged")
}
