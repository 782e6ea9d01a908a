package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// forged is a backup taken apart, to be put together otherwise.
type forged struct {
	Manifest
	head    func([]byte) []byte // changes the manifest's text
	entries []forgedEntry
	behind  []byte // decompressed bytes behind the tar archive
}

type forgedEntry struct {
	tar.Header
	data []byte
}

func takeApart(t *testing.T, path string) *forged {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	packed, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	out := &forged{}
	for archive := tar.NewReader(packed); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == manifestName {
			if err := json.Unmarshal(data, &out.Manifest); err != nil {
				t.Fatal(err)
			}
			continue
		}
		out.entries = append(out.entries, forgedEntry{*h, data})
	}
}

func (f *forged) bytes(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	packed, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(packed)
	head, err := json.Marshal(f.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if f.head != nil {
		head = f.head(head)
	}
	for _, e := range append([]forgedEntry{{tar.Header{Name: manifestName, Typeflag: tar.TypeReg, Size: int64(len(head)), Mode: 0o600}, head}}, f.entries...) {
		if err := archive.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := packed.Write(f.behind); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// put replaces the entry n and what the manifest says of it.
func (f *forged) put(n int, name string, data []byte) {
	sum := sha256.Sum256(data)
	f.Files[n] = File{Path: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	f.entries[n].Name, f.entries[n].Size, f.entries[n].data = name, int64(len(data)), data
}

func TestAForgedOrDamagedBackupTouchesNothing(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	made := mustCreate(t, d)
	original, err := os.ReadFile(made.Path)
	if err != nil {
		t.Fatal(err)
	}
	advance(t, d, "g2")
	before := tree(t, d.Root)
	outside := filepath.Join(filepath.Dir(d.Root), "evil")

	forge := func(change func(f *forged)) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			t.Helper()
			f := takeApart(t, made.Path)
			change(f)
			return f.bytes(t)
		}
	}
	raw := func(change func(data []byte) []byte) func(*testing.T) []byte {
		return func(*testing.T) []byte { return change(bytes.Clone(original)) }
	}
	last := len(made.Files) - 1
	yaml := slices.IndexFunc(made.Files, func(f File) bool { return f.Path == "state/instance.yaml" })
	cases := map[string]struct {
		data func(t *testing.T) []byte
		kind problem.Kind
		says string
	}{
		"a bit flipped near the beginning": {raw(func(b []byte) []byte { b[40] ^= 1; return b }), problem.Found, ""},
		"a bit flipped in the middle":      {raw(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), problem.Found, ""},
		"a bit flipped at the end":         {raw(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), problem.Found, ""},
		"cut to nothing":                   {raw(func([]byte) []byte { return nil }), problem.Found, "something else"},
		"cut within the manifest":          {raw(func(b []byte) []byte { return b[:100] }), problem.Found, ""},
		"cut in the middle":                {raw(func(b []byte) []byte { return b[:len(b)/2] }), problem.Found, ""},
		"the last byte missing":            {raw(func(b []byte) []byte { return b[:len(b)-1] }), problem.Found, ""},
		"bytes behind the end":             {raw(func(b []byte) []byte { return append(b, "more"...) }), problem.Found, ""},
		"another archive behind the end":   {raw(func(b []byte) []byte { return append(b, b...) }), problem.Found, "data follows"},
		"another kind of file":             {raw(func([]byte) []byte { return []byte(strings.Repeat("no backup\n", 1000)) }), problem.Found, "something else"},

		"a manifest that is no JSON":        {forge(func(f *forged) { f.head = func(b []byte) []byte { return b[1:] } }), problem.Found, "cannot be understood"},
		"a manifest of another format":      {forge(func(f *forged) { f.Format = 2 }), problem.Found, "format 2"},
		"a manifest with a path for an ID":  {forge(func(f *forged) { f.ID = "../../evil" }), problem.Found, "ID"},
		"a manifest with another size":      {forge(func(f *forged) { f.Files[yaml].Size++ }), problem.Found, "instance.yaml"},
		"a manifest with another checksum":  {forge(func(f *forged) { f.Files[yaml].SHA256 = strings.Repeat("0", 64) }), problem.Found, "SHA-256"},
		"a manifest with a size below zero": {forge(func(f *forged) { f.Files[yaml].Size = -1 }), problem.Found, "size"},
		"a manifest with other rows":        {forge(func(f *forged) { f.Database.Tables["users"] = "7/1" }), problem.Found, "users"},
		"a manifest with a table more":      {forge(func(f *forged) { f.Database.Tables["more"] = "0/0" }), problem.Found, "more"},
		"a manifest without the database": {forge(func(f *forged) {
			f.Files, f.entries = f.Files[1:], f.entries[1:]
		}), problem.Found, "no state/system.duckdb"},
		"another content of a file": {forge(func(f *forged) { f.entries[yaml].data = bytes.ToUpper(f.entries[yaml].data) }), problem.Found, "SHA-256"},
		"a database that is none":   {forge(func(f *forged) { f.put(0, database, []byte("no database")) }), problem.Found, "cannot be opened"},

		"a path out of the folder":                      {forge(func(f *forged) { f.put(last, "extracts/csv/../../../evil", []byte("x")) }), problem.Found, "no place"},
		"a path out of the folder, in state":            {forge(func(f *forged) { f.put(last, "state/../../evil", []byte("x")) }), problem.Found, "no place"},
		"an absolute path":                              {forge(func(f *forged) { f.put(last, outside, []byte("x")) }), problem.Found, "no place"},
		"a file that no backup holds":                   {forge(func(f *forged) { f.put(last, "state/authorized_keys", []byte("x")) }), problem.Found, "no place"},
		"a file in a source's staging folder":           {forge(func(f *forged) { f.put(last, "extracts/.staging/x", []byte("x")) }), problem.Found, "no place"},
		"an entry that leaves its name in the manifest": {forge(func(f *forged) { f.entries[last].Name = "../evil" }), problem.Found, "found the entry"},
		"a symbolic link": {forge(func(f *forged) {
			f.entries[yaml].Header = tar.Header{Name: "state/instance.yaml", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}
			f.entries[yaml].data = nil
		}), problem.Found, "found the entry"},
		"a hard link": {forge(func(f *forged) {
			f.entries[yaml].Header = tar.Header{Name: "state/instance.yaml", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}
			f.entries[yaml].data = nil
		}), problem.Found, "found the entry"},
		"a device": {forge(func(f *forged) {
			f.entries[yaml].Header = tar.Header{Name: "state/instance.yaml", Typeflag: tar.TypeChar}
			f.entries[yaml].data = nil
		}), problem.Found, "found the entry"},
		"an entry twice": {forge(func(f *forged) { f.entries = append(f.entries, f.entries[0]) }), problem.Found, "does not name"},
		"an entry twice, in the manifest": {forge(func(f *forged) {
			f.Files, f.entries = append(f.Files, f.Files[yaml]), append(f.entries, f.entries[yaml])
		}), problem.Found, "twice"},
		"an entry missing":         {forge(func(f *forged) { f.entries = f.entries[:last] }), problem.Found, "it ends before"},
		"entries in another order": {forge(func(f *forged) { f.entries[0], f.entries[1] = f.entries[1], f.entries[0] }), problem.Found, "found the entry"},

		"a size beyond any disk":    {forge(func(f *forged) { f.Files[last].Size = 1 << 60 }), problem.NoSpace, "needs up to"},
		"sizes whose sum overflows": {forge(func(f *forged) { f.Files[last].Size = 1<<63 - 1 }), problem.Found, "size"},
		"a size near the overflow": {forge(func(f *forged) {
			f.Files[last].Size += 1<<63 - 1 - f.Bytes()
		}), problem.Found, "size"},
		"a database whose copies overflow": {forge(func(f *forged) { f.Files[0].Size = 1 << 62 }), problem.Found, "size"},
		"much behind the end":              {forge(func(f *forged) { f.behind = make([]byte, 512<<20) }), problem.Found, "data follows"},
		"a manifest beyond reason": {forge(func(f *forged) {
			f.head = func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), maxManifest)...) }
		}), problem.Found, "first entry"},
		"a newer schema":              {forge(func(f *forged) { f.Database.Schema = state.LatestSchemaVersion() + 1 }), problem.Refused, "knows versions up to"},
		"a newer schema than it says": {forge(func(f *forged) { f.put(0, database, newerDatabase(t, f.entries[0].data)) }), problem.Found, "schema version"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "backup.tar.zst")
			if err := os.WriteFile(path, c.data(t), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Restore(t.Context(), d, path, RestoreOptions{})
			wantProblem(t, err, c.kind, c.says)
			if diffs := changes(before, tree(t, d.Root)); len(diffs) > 0 {
				t.Errorf("the refused backup left %v", diffs)
			}
			if _, err := os.Lstat(outside); err == nil {
				t.Error("a file was written outside of the data directory")
			}
			if c.kind == problem.Found {
				_, err := Verify(t.Context(), path, "")
				wantProblem(t, err, problem.Found, c.says)
			}
		})
	}
	wantGeneration(t, d, "g2")
	for _, path := range []string{filepath.Join(d.Root, "missing.tar.zst"), "20261124T045222Z-1a2b3c"} {
		_, err := Find(d, path)
		wantProblem(t, err, problem.NotFound, "agnes backup list")
	}
	if _, err := Restore(t.Context(), d, made.Path, RestoreOptions{}); err != nil {
		t.Errorf("the backup that all these were made of: %v", err)
	}
	wantGeneration(t, d, "g1")
}

// newerDatabase returns a database like the given one with one migration more.
func newerDatabase(t *testing.T, data []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "system.duckdb")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	migrateOnce(t, path)
	out, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
