package analytics

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
)

const (
	databaseFile   = "server.duckdb"
	manifestFile   = "manifest.json"
	manifestFormat = 1
)

// Generation is one published state of all tables. It never changes.
type Generation struct {
	ID           int64
	Dir          string
	DatabasePath string // server.duckdb inside Dir
	PublishedAt  time.Time
	Tables       map[string]TableInfo                 // by id
	Remotes      map[string][]connectors.RemoteAttach // by source; only sources with remote tables

	root     string // analytics folder at build time: the views hold paths below it
	life     *life
	pinned   bool
	released atomic.Bool
}

// Release gives up the pin that Acquire gave. Further calls do nothing.
func (g *Generation) Release() {
	if g.pinned && !g.released.Swap(true) {
		g.life.store.unpin(g.life)
	}
}

// OnRetire registers a call for the moment when this generation is neither
// current nor pinned, before any of its files are deleted: the place to close
// what was opened for it. Register while holding a pin. On a generation that
// is retired already the call is made at once.
func (g *Generation) OnRetire(f func()) { g.life.store.onRetire(g.life, f) }

// life counts the readers of one generation; Store.mu guards it.
type life struct {
	store    *Store
	id       int64
	dir      string
	current  bool
	pins     int
	phase    phase
	onRetire []func()
}

type phase int

const (
	live     phase = iota
	retiring       // its callbacks run
	retired
)

// part is one parquet file of a table.
type part struct {
	File   string   `json:"file"` // relative to the generation, slashes
	Size   int64    `json:"size"`
	Mtime  int64    `json:"mtime"` // of File, nanoseconds: a part that was changed is not carried on
	SHA256 string   `json:"sha256"`
	Linked bool     `json:"linked,omitempty"` // hardlink of the extract's file, not a copy
	Origin identity `json:"origin"`           // of the extract's file when it was taken

	from string // where a file still has to be linked from; empty when it is in place
}

// prove reports why the file at path, this part's own, is not what was
// published. Another time than the recorded one, as after a restore from a
// backup, is no fault as long as the bytes are the same.
func (p *part) prove(path string) error {
	id, err := identityOf(path)
	if err != nil {
		return err
	}
	if id.Size != p.Size {
		return fmt.Errorf("%s: expected %d bytes, found %d", path, p.Size, id.Size)
	}
	if id.Mtime == p.Mtime {
		return nil
	}
	sum, err := hashFile(path)
	if err == nil && sum != p.SHA256 {
		err = fmt.Errorf("%s: expected sha256 %s, found %s", path, p.SHA256, sum)
	}
	p.Mtime = id.Mtime
	return err
}

// manifest is a generation on disk. Paths in it are relative, so that a data
// directory may be moved; Root tells whether the views need to be made anew.
type manifest struct {
	Format      int                                  `json:"format"`
	ID          int64                                `json:"id"`
	Root        string                               `json:"root"`
	PublishedAt time.Time                            `json:"published_at"`
	Tables      []record                             `json:"tables"`
	Remotes     map[string][]connectors.RemoteAttach `json:"remotes,omitempty"`
}

type record struct {
	TableInfo
	Parts   []part   `json:"parts,omitempty"`
	Columns []string `json:"columns,omitempty"` // name, type, name, type ...: quick to read, and Open must be
}

func newRecord(t TableInfo) record {
	r := record{TableInfo: t, Parts: t.parts}
	for _, c := range t.Columns {
		r.Columns = append(r.Columns, c.Name, c.Type)
	}
	return r
}

func (r record) table(dir string) TableInfo {
	t := r.withParts(dir, r.Parts)
	for pair := range slices.Chunk(r.Columns, 2) {
		if len(pair) == 2 {
			t.Columns = append(t.Columns, Column{pair[0], pair[1]})
		}
	}
	return t
}

func generationDir(root string, id int64) string {
	return filepath.Join(root, generationsDir, fmt.Sprintf("%08d", id))
}

// parseGeneration returns the number of a generation's folder.
func parseGeneration(name string) (int64, bool) {
	id, err := strconv.ParseInt(name, 10, 64)
	return id, err == nil && id > 0 && fmt.Sprintf("%08d", id) == name
}

// loadGeneration reads the generation in dir without opening DuckDB.
func loadGeneration(dir string, id int64) (*Generation, error) {
	path := filepath.Join(dir, manifestFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if m.Format != manifestFormat || m.ID != id {
		return nil, fmt.Errorf("read %s: expected format %d of generation %d, found format %d of generation %d",
			path, manifestFormat, id, m.Format, m.ID)
	}
	g := &Generation{
		ID: id, Dir: dir, DatabasePath: filepath.Join(dir, databaseFile), PublishedAt: m.PublishedAt,
		Tables: make(map[string]TableInfo, len(m.Tables)), Remotes: m.Remotes, root: m.Root,
	}
	for _, r := range m.Tables {
		g.Tables[r.ID] = r.table(dir)
	}
	return g, nil
}

// withParts returns t over these files of the generation in dir.
func (t TableInfo) withParts(dir string, parts []part) TableInfo {
	t.parts, t.Files, t.FileHashes, t.ContentHash = parts, nil, nil, ""
	for _, p := range parts {
		t.Files = append(t.Files, filepath.Join(dir, filepath.FromSlash(p.File)))
		t.FileHashes = append(t.FileHashes, p.SHA256)
	}
	switch len(parts) {
	case 0:
	case 1:
		t.ContentHash = parts[0].SHA256
	default:
		sum := sha256.New()
		for _, h := range t.FileHashes {
			sum.Write([]byte(h))
		}
		t.ContentHash = hex.EncodeToString(sum.Sum(nil))
	}
	return t
}
