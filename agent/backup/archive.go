package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

const (
	manifestName = "manifest.json"
	maxManifest  = 64 << 20
	maxFiles     = 1 << 20
	maxBytes     = 1<<61 - 1<<20 // of all files together: a room of four times as much can be reckoned with
	maxPadding   = 1 << 20       // zeros behind the last entry
	window       = 4 << 20       // of the compressor; a decoder needs as much memory
)

// database is the entry that each backup has.
const database = "state/system.duckdb"

// stateFiles returns what is taken of DATA_DIR/state besides the database.
func stateFiles() []string {
	return []string{"instance.yaml", ".jwt_secret", ".session_secret", ".env_overlay"}
}

// writeArchive writes a new archive of m's files, which are below dir, and
// returns its SHA-256. The file is durable; its name is not.
func writeArchive(ctx context.Context, to string, m Manifest, dir func(name string) string) (sum string, err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	whole := sha256.New()
	packed, err := zstd.NewWriter(io.MultiWriter(out, whole), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err != nil {
		return "", err
	}
	archive := tar.NewWriter(packed)
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", err
	}
	entry := func(name string, size int64) error {
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: m.CreatedAt, Format: tar.FormatPAX})
	}
	if err := entry(manifestName, int64(len(head))); err != nil {
		return "", err
	}
	if _, err := archive.Write(head); err != nil {
		return "", err
	}
	// The manifest stands in a frame of its own, so that reading it needs no more.
	if err := archive.Flush(); err != nil {
		return "", err
	}
	if err := packed.Flush(); err != nil {
		return "", err
	}
	for _, f := range m.Files {
		if err := entry(f.Path, f.Size); err != nil {
			return "", err
		}
		if err := copyInto(ctx, archive, dir(f.Path)); err != nil {
			return "", err
		}
	}
	if err := errors.Join(archive.Close(), packed.Close()); err != nil {
		return "", err
	}
	return hex.EncodeToString(whole.Sum(nil)), out.Sync()
}

func copyInto(ctx context.Context, w io.Writer, path string) error {
	f, err := openRegular(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, reader{ctx, f})
	return errors.Join(err, f.Close())
}

// opened is an archive that is being read.
type opened struct {
	Manifest
	path string
	size int64
	sum  string // of the whole file, once each read it

	file   *os.File
	whole  hash.Hash
	packed *zstd.Decoder
	tar    *tar.Reader
}

// open opens a backup and reads its manifest. Nothing in a manifest is trusted
// before it was checked.
func open(path string) (_ *opened, err error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	o := &opened{path: path, size: fi.Size(), file: f, whole: sha256.New()}
	o.packed, err = zstd.NewReader(io.TeeReader(f, o.whole), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(2*window))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	o.tar = tar.NewReader(o.packed)
	if err := o.readManifest(); err != nil {
		o.close()
		return nil, bad(path, err.Error(), nil)
	}
	return o, nil
}

func (o *opened) close() {
	o.packed.Close()
	_ = o.file.Close() // it was only read
}

func (o *opened) readManifest() error {
	h, err := o.tar.Next()
	switch {
	case err != nil:
		return fmt.Errorf("expected a tar archive compressed with Zstandard, found something else (%w)", err)
	case h.Name != manifestName || h.Typeflag != tar.TypeReg || h.Size > maxManifest:
		return fmt.Errorf("expected %s as its first entry, found %q (%d bytes)", manifestName, h.Name, h.Size)
	}
	data, err := io.ReadAll(o.tar)
	if err != nil {
		return fmt.Errorf("%s cannot be read (%w)", manifestName, err)
	}
	if err := json.Unmarshal(data, &o.Manifest); err != nil {
		return fmt.Errorf("%s cannot be understood (%w)", manifestName, err)
	}
	if err := o.check(); err != nil {
		return fmt.Errorf("%s says %w", manifestName, err)
	}
	return nil
}

var sumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// check refuses a manifest that no agnes would write.
func (m Manifest) check() error {
	switch {
	case m.Format != format:
		return fmt.Errorf("format %d; this agnes reads format %d", m.Format, format)
	case !idPattern.MatchString(m.ID):
		return fmt.Errorf("the ID %q; expected one like 20261124T045222Z-1a2b3c", m.ID)
	case len(m.Files) > maxFiles:
		return fmt.Errorf("%d files; expected at most %d", len(m.Files), maxFiles)
	}
	seen := map[string]bool{}
	var sum int64
	for _, f := range m.Files {
		switch {
		case !allowed(f.Path):
			return fmt.Errorf("the file %q, which has no place in a backup", f.Path)
		case seen[f.Path]:
			return fmt.Errorf("the file %q twice", f.Path)
		case f.Size < 0 || f.Size > maxBytes-sum:
			return fmt.Errorf("the size %d of %q", f.Size, f.Path)
		case !sumPattern.MatchString(f.SHA256):
			return fmt.Errorf("the SHA-256 %q of %q", f.SHA256, f.Path)
		}
		seen[f.Path] = true
		sum += f.Size
	}
	if !seen[database] {
		return fmt.Errorf("no %s", database)
	}
	return nil
}

// allowed reports whether a file of this path belongs into a backup.
func allowed(name string) bool {
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\\x00") {
		return false
	}
	parts := strings.Split(name, "/")
	switch parts[0] {
	case "state":
		return name == database || len(parts) == 2 && slices.Contains(stateFiles(), parts[1])
	case "extracts":
		return len(parts) > 2 && connectors.ValidName(parts[1]) == nil
	}
	return false
}

// each reads every entry to the archive's end and proves that it is what the
// manifest says. take, where it is not nil, says where an entry's bytes go.
func (o *opened) each(ctx context.Context, take func(File) (io.WriteCloser, error)) error {
	for _, f := range o.Files {
		h, err := o.tar.Next()
		if errors.Is(err, io.EOF) {
			return bad(o.path, fmt.Sprintf("it ends before %s", f.Path), nil)
		}
		if err != nil {
			return bad(o.path, fmt.Sprintf("it cannot be read before %s", f.Path), err)
		}
		if h.Typeflag != tar.TypeReg || h.Name != f.Path || h.Size != f.Size {
			return bad(o.path, fmt.Sprintf("expected the file %s of %d bytes, found the entry %q of type %q with %d bytes", f.Path, f.Size, h.Name, h.Typeflag, h.Size), nil)
		}
		if err := o.one(ctx, f, take); err != nil {
			return err
		}
	}
	if h, err := o.tar.Next(); !errors.Is(err, io.EOF) {
		name := ""
		if h != nil {
			name = h.Name
		}
		return bad(o.path, fmt.Sprintf("expected its end, found the entry %q, which the manifest does not name", name), err)
	}
	// What follows the tar archive can be nothing but padding.
	rest, err := io.ReadAll(io.LimitReader(o.packed, maxPadding+1))
	if err != nil {
		return bad(o.path, "its end cannot be read", err)
	}
	if len(rest) > maxPadding || slices.ContainsFunc(rest, func(b byte) bool { return b != 0 }) {
		return bad(o.path, "data follows its last entry", nil)
	}
	o.sum = hex.EncodeToString(o.whole.Sum(nil))
	return nil
}

func (o *opened) one(ctx context.Context, f File, take func(File) (io.WriteCloser, error)) (err error) {
	sum := sha256.New()
	to := io.Writer(sum)
	if take != nil {
		w, err := take(f)
		if err != nil {
			return err
		}
		if w != nil {
			defer func() { err = errors.Join(err, w.Close()) }()
			to = io.MultiWriter(sum, tagged{w})
		}
	}
	n, err := io.Copy(to, reader{ctx, o.tar})
	switch _, ours := errors.AsType[*writeError](err); {
	case ours || ctx.Err() != nil:
		return err
	case err != nil:
		return bad(o.path, fmt.Sprintf("%s cannot be read", f.Path), err)
	case n != f.Size || hex.EncodeToString(sum.Sum(nil)) != f.SHA256:
		return bad(o.path, fmt.Sprintf("the content of %s is not what the manifest says (SHA-256)", f.Path), nil)
	}
	return nil
}

// tagged tells an error of the disk that is written to from one of the archive.
type tagged struct{ io.Writer }

type writeError struct{ error }

// Unwrap returns the cause.
func (e *writeError) Unwrap() error { return e.error }

// Write serves io.Writer.
func (w tagged) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		return n, &writeError{err}
	}
	return n, nil
}

// into returns a take that writes each file below dir, as new files.
func into(dir string) func(File) (io.WriteCloser, error) {
	return func(f File) (io.WriteCloser, error) {
		folder, file := fs.FileMode(0o700), fs.FileMode(0o600)
		if strings.HasPrefix(f.Path, "extracts/") {
			folder, file = 0o755, 0o644
		}
		to := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(path.Dir(f.Path))), folder); err != nil {
			return nil, err
		}
		return os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, file)
	}
}

// Describe reads the manifest of the backup at path.
func Describe(path string) (Info, error) {
	o, err := open(path)
	if err != nil {
		return Info{}, err
	}
	defer o.close()
	return o.info(), nil
}

func (o *opened) info() Info {
	return Info{Manifest: o.Manifest, Path: o.path, SizeBytes: o.size, SHA256: o.sum}
}
