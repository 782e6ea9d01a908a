// Package backup makes, proves and restores backups of an instance.
//
// One backup is one file, DATA_DIR/backups/agnes-ID.tar.zst (mode 0600): a tar
// archive, compressed with Zstandard, whose first entry is manifest.json. The
// manifest lists every other entry with its size and SHA-256, in their order;
// an archive that holds anything else is refused. So a list of backups reads
// the beginning of each file, and nothing is kept beside them.
//
//	manifest.json
//	state/system.duckdb       copied by DuckDB from one transaction
//	state/instance.yaml       and the secrets .jwt_secret, .session_secret, .env_overlay, where there are any
//	extracts/<source>/...     the committed extract of each source, where that was asked for
//
// Create (create.go) collects the content in a folder of its own, writes the
// archive there (archive.go), reads it back as a restore would (verify.go) and
// only then gives it its name. Restore (restore.go) brings the content beside
// what is there, proves it, and swaps; a journal lets Recover finish or undo a
// swap that was killed. Schedule, Scheduler and Expired decide when a backup is
// made and which ones go.
//
// The package knows files and the state's database, no server: who may ask for
// a backup and how often is decided above it.
package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// format is the version of the archive's layout.
const format = 1

// Dirs are the places of one instance. All are below DATA_DIR; State, Extracts
// and Work are on one file system.
type Dirs struct {
	Root     string // DATA_DIR
	State    string
	Extracts string
	Backups  string
	Work     string // of a restore that is under way; absent otherwise
}

// Manifest is the first entry of a backup: what it holds and where it is from.
type Manifest struct {
	Format    int           `json:"format"`
	ID        string        `json:"id"` // sorts by time
	CreatedAt time.Time     `json:"created_at"`
	Reason    string        `json:"reason,omitempty"`
	Scheduled bool          `json:"scheduled,omitempty"` // made by the clock, not by a person or a deploy
	Version   string        `json:"version"`             // of the agnes that made it
	Extracts  bool          `json:"extracts"`            // whether the tables' data was asked for
	LeftOut   []string      `json:"left_out,omitempty"`  // sources whose extract could not be taken, with the reason
	Database  state.Content `json:"database"`
	Files     []File        `json:"files"` // every other entry, in this order
}

// File is one entry.
type File struct {
	Path   string `json:"path"` // slashes, relative to DATA_DIR
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// Bytes is the size of the content before compression.
func (m Manifest) Bytes() int64 {
	var sum int64
	for _, f := range m.Files {
		sum += f.Size
	}
	return sum
}

// Info is a backup on this machine's disk.
type Info struct {
	Manifest
	Path      string
	SizeBytes int64  // of the file
	SHA256    string // of the file; known to Create and Verify only
}

const (
	prefix = "agnes-"
	suffix = ".tar.zst"

	stampLayout = "20060102T150405Z"
	keptPrefix  = "before-restore-"
	workPrefix  = ".new-"         // a backup that is being made
	proofPrefix = ".verify-"      // one that is being read
	fetchPrefix = ".agnes-fetch-" // one that is being brought here; it may be in a folder of others

	longestProof = 24 * time.Hour
)

var idPattern = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}$`)

// newID returns an ID that sorts by time.
func newID(at time.Time) string {
	random := make([]byte, 3)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the process instead
	return at.UTC().Format(stampLayout) + "-" + hex.EncodeToString(random)
}

// path is where the backup of an ID is.
func (d Dirs) path(id string) string { return filepath.Join(d.Backups, prefix+id+suffix) }

// List returns the backups on disk, newest first. One that cannot be read is
// in broken, by its path. A folder that does not exist holds none.
func List(d Dirs) (list []Info, broken map[string]error, err error) {
	entries, err := os.ReadDir(d.Backups)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	broken = map[string]error{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		path := filepath.Join(d.Backups, e.Name())
		info, err := Describe(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted since
		case err != nil:
			broken[path] = err
		default:
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(b.ID, a.ID) })
	return list, broken, nil
}

// Find returns the path of a backup by its ID or by its file's name or path.
func Find(d Dirs, idOrFile string) (string, error) {
	if idPattern.MatchString(idOrFile) {
		path := d.path(idOrFile)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		return "", problem.New(problem.NotFound, fmt.Sprintf("There is no backup %s in %s.", idOrFile, d.Backups), "See which there are: agnes backup list")
	}
	for _, path := range []string{idOrFile, filepath.Join(d.Backups, filepath.Base(idOrFile))} {
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			return filepath.Abs(path)
		}
	}
	return "", problem.New(problem.NotFound, fmt.Sprintf("Expected the ID or the file of a backup, found that there is no file %s.", idOrFile), "See which there are: agnes backup list")
}

// bad is an archive that cannot be trusted.
func bad(path, what string, err error) error {
	return problem.Wrap(err, problem.Found, fmt.Sprintf("The backup %s cannot be used: %s.", path, what),
		"Use another one: agnes backup list; agnes backup verify --all").WithCode("backup_damaged")
}

// writeProblem turns what a write met into a problem, NoSpace where the disk is
// full.
func writeProblem(err error, dir, what string) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*problem.Error](err); ok {
		return err
	}
	if noSpace(err) {
		return problem.Wrap(err, problem.NoSpace, fmt.Sprintf("The disk that holds %s is full; %s.", dir, what),
			fmt.Sprintf("Free space there (df -h %s shows how much is left), then try again.", dir))
	}
	return fmt.Errorf("%s: %w", what, err)
}
