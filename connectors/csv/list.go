package csv

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// readerVersion is part of every fingerprint: raise it when the same file would
// be read differently than before.
const readerVersion = 1

type kind string

const (
	delimited kind = "delimited text"
	ndjson    kind = "NDJSON"
	jsonFile  kind = "JSON"
	parquet   kind = "Parquet"
)

// fileID tells one state of a file from another.
type fileID struct {
	Size, ModTime, ChangeTime int64 // bytes; nanoseconds
	Inode                     uint64
}

type dataFile struct {
	path string // resolved
	rel  string // as a person knows it, from the directory
	ext  string // the ending that says the kind: ".csv"
	kind kind
	id   fileID
}

// table is a file or sub-folder that makes one table. With err set it cannot be
// read at all.
type table struct {
	name  string
	from  string // file or folder, from the directory
	kind  kind
	files []dataFile
	err   error
}

func (t table) description() string {
	if len(t.files) == 1 && t.files[0].rel == t.from {
		return "From the file " + t.from
	}
	return fmt.Sprintf("From the %d files in %s", len(t.files), t.from)
}

func (t table) size() int64 {
	var n int64
	for _, f := range t.files {
		n += f.id.Size
	}
	return n
}

// fingerprint names everything that the table's content depends on.
func (t table) fingerprint(policy BadRowPolicy) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	_ = enc.Encode([]any{readerVersion, policy}) // a hash takes every write
	for _, f := range t.files {
		_ = enc.Encode([]any{f.path, f.id})
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:16])
}

// unchanged returns an error when a file is no longer what list saw.
func (t table) unchanged() error {
	for _, f := range t.files {
		info, err := os.Stat(f.path)
		if err == nil && identify(info) == f.id {
			continue
		}
		return problem.New(problem.Conflict,
			fmt.Sprintf("The file %s changed while it was being read; the next sync will try again.", f.rel),
			"Write files under a temporary name outside the directory and rename them when they are complete, then POST /api/sync/trigger").WithCode("file_changed")
	}
	return nil
}

// settleTime is longer than the clock tick of a file system: a file that was
// changed again within the tick of its last change would keep its time.
const settleTime = 20 * time.Millisecond

// settle waits until the newest file is older than settleTime.
func (t table) settle(ctx context.Context) error {
	var newest int64
	for _, f := range t.files {
		newest = max(newest, f.id.ModTime, f.id.ChangeTime)
	}
	age := time.Since(time.Unix(0, newest))
	if age < 0 || age >= settleTime {
		return nil
	}
	timer := time.NewTimer(settleTime - age)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if err == nil {
		return entries, nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return nil, problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("Expected a directory of data files that can be listed at %q.", dir),
		`Name one that the instance's user may read: POST /api/admin/configure {"data_source":"csv","csv_dir":"/path"}`).WithCode("csv_dir_unreadable")
}

// list finds the tables of a directory, sorted by name, and warns of whatever
// it ignores.
func list(dir string) ([]table, []connectors.Warning, error) {
	entries, err := readDir(dir)
	if err != nil {
		return nil, nil, err
	}
	root, err := filepath.EvalSymlinks(dir)
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return nil, nil, err
	}
	l := &lister{root: root}
	var tables []table
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path, info := l.resolve(e.Name())
		switch {
		case info == nil:
		case info.IsDir():
			if t, ok := l.folder(e.Name(), path); ok {
				tables = append(tables, t)
			}
		default:
			if f, ok := l.file(e.Name(), path, info); ok {
				tables = append(tables, table{name: tableName(stem(e.Name(), f.ext)), from: e.Name(), kind: f.kind, files: []dataFile{f}})
			}
		}
	}
	return unite(tables), l.warnings, nil
}

type lister struct {
	root     string
	warnings []connectors.Warning
}

func (l *lister) warn(format string, args ...any) {
	l.warnings = append(l.warnings, connectors.Warning{Message: fmt.Sprintf(format, args...)})
}

// resolve follows links that stay inside the directory. A nil info means that
// the entry is ignored, which was warned of.
func (l *lister) resolve(rel string) (string, fs.FileInfo) {
	path, err := filepath.EvalSymlinks(filepath.Join(l.root, rel))
	if err != nil {
		l.warn("%s was ignored: its target cannot be found", rel)
		return "", nil
	}
	inside, err := filepath.Rel(l.root, path)
	if err != nil || inside == "." || inside == ".." || strings.HasPrefix(inside, ".."+string(filepath.Separator)) {
		l.warn("%s was ignored: it is a link that leaves the directory", rel)
		return "", nil
	}
	info, err := os.Stat(path)
	if err != nil {
		l.warn("%s was ignored: it cannot be looked at", rel)
		return "", nil
	}
	return path, info
}

// file recognizes a data file by its ending.
func (l *lister) file(rel, path string, info fs.FileInfo) (dataFile, bool) {
	ext, k := kindOf(rel)
	switch {
	case !info.Mode().IsRegular():
		l.warn("%s was ignored: it is no regular file", rel)
		return dataFile{}, false
	case !utf8.ValidString(rel):
		l.warn("%q was ignored: its name is not UTF-8", rel)
		return dataFile{}, false
	case k == "" && isNotice(rel):
		return dataFile{}, false
	case k == "":
		l.warn("%s was ignored: its ending is none of .csv .tsv .json .ndjson .jsonl .parquet, with or without .gz or .zst", rel)
		return dataFile{}, false
	}
	return dataFile{path: path, rel: rel, ext: ext, kind: k, id: identify(info)}, true
}

// isNotice reports whether a file is there for people: nobody expects a table
// of it, so nobody needs a warning at each sync.
func isNotice(rel string) bool {
	name := strings.ToUpper(filepath.Base(rel))
	return strings.HasPrefix(name, "README") || strings.HasPrefix(name, "LICENSE")
}

func (l *lister) folder(rel, path string) (table, bool) {
	t := table{name: tableName(rel), from: rel}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.err = problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("The folder %s cannot be listed.", rel), "Make it readable: chmod -R u+rX '"+path+"'")
		return t, true
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		inner := filepath.Join(rel, e.Name())
		resolved, info := l.resolve(inner)
		switch {
		case info == nil:
		case info.IsDir():
			l.warn("%s was ignored: folders are read one level deep", inner)
		default:
			if f, ok := l.file(inner, resolved, info); ok {
				t.files = append(t.files, f)
			}
		}
	}
	if len(t.files) == 0 {
		l.warn("%s was ignored: it holds no data files", rel)
		return t, false
	}
	t.kind = t.files[0].kind
	for _, f := range t.files {
		if f.kind != t.kind {
			t.err = problem.New(problem.Unprocessable,
				fmt.Sprintf("The folder %s mixes kinds of files: %s is %s, %s is %s.", rel, t.files[0].rel, t.kind, f.rel, f.kind),
				"Keep files of one kind in a folder, one folder a table.")
			break
		}
	}
	return t, true
}

// kindOf returns the ending that says what a file holds, in lower case.
func kindOf(name string) (ext string, k kind) {
	lower := strings.ToLower(name)
	for _, packed := range []string{".gz", ".zst"} {
		lower = strings.TrimSuffix(lower, packed)
	}
	switch ext := filepath.Ext(lower); ext {
	case ".csv", ".tsv":
		return ext, delimited
	case ".ndjson", ".jsonl":
		return ext, ndjson
	case ".json":
		return ext, jsonFile
	case ".parquet":
		if lower == strings.ToLower(name) {
			return ext, parquet
		}
	}
	return "", ""
}

// stem returns a file's name without its endings.
func stem(name, ext string) string {
	i := strings.LastIndex(strings.ToLower(name), ext)
	return name[:i]
}

// tableName makes a valid name: what is no letter, digit or underscore becomes
// an underscore, a leading digit gets one in front.
func tableName(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			b.WriteRune(r)
		} else {
			b.WriteByte('_')
		}
	}
	name := b.String()
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "_" + name
	}
	return name[:min(len(name), 64)]
}

// unite sorts the tables by name and refuses those whose names DuckDB cannot
// tell apart: neither may win in silence.
func unite(tables []table) []table {
	slices.SortStableFunc(tables, func(a, b table) int {
		if c := strings.Compare(strings.ToLower(a.name), strings.ToLower(b.name)); c != 0 {
			return c
		}
		return strings.Compare(a.from, b.from)
	})
	var out []table
	for i := 0; i < len(tables); {
		j := i + 1
		for j < len(tables) && strings.EqualFold(tables[i].name, tables[j].name) {
			j++
		}
		if j == i+1 {
			out = append(out, tables[i])
			i = j
			continue
		}
		from := make([]string, 0, j-i)
		for _, t := range tables[i:j] {
			from = append(from, t.from)
		}
		err := problem.New(problem.Conflict,
			fmt.Sprintf("%s would all be the table %s; none of them was read.", strings.Join(from, ", "), strings.ToLower(tables[i].name)),
			"Rename all but one of them, or move those that belong together into one sub-folder, then POST /api/sync/trigger").WithCode("duplicate_table")
		seen := map[string]bool{}
		for _, t := range tables[i:j] {
			if !seen[t.name] {
				out = append(out, table{name: t.name, from: t.from, kind: t.kind, err: err})
			}
			seen[t.name] = true
		}
		i = j
	}
	for i, t := range out {
		if connectors.ReservedName(t.name) {
			out[i].err = problem.New(problem.Unprocessable, fmt.Sprintf("%s would be the table %s, a name that extracts use themselves.", t.from, t.name),
				"Rename it, then POST /api/sync/trigger").WithCode("invalid_name")
		}
	}
	return out
}
