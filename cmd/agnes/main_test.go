package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

// TestScripts runs every command that ends by itself. Scripts have some more
// commands: `hold DIR` takes the lock of a data directory as a running instance
// does, `listen STATUS` starts a server that answers /readyz and puts its
// address into $ADDR, `named` puts the path and the ID of the only backup
// into $BACKUP and $ID, `recipient FILE` puts the public key of an identity into
// $AGNES_BACKUP_RECIPIENTS, `spoil DIR ID` changes a copy below a folder, and
// `disguise DIR ID INSTANCE NEWID` puts a copy beside it under another name.
func TestScripts(t *testing.T) {
	t.Parallel()
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/script",
		Programs: map[string]golden.Program{"agnes": run},
		Cmds:     map[string]func(*testscript.TestScript, bool, []string){"hold": hold, "listen": listen, "named": named, "recipient": recipient, "spoil": spoil, "disguise": disguise},
		Setup: func(env *testscript.Env) error {
			env.Setenv("DATA_DIR", filepath.Join(env.WorkDir, "data"))
			return nil
		},
	})
}

func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold DIR")
	}
	lock, err := state.Lock(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { _ = lock.Close() })
}

func named(ts *testscript.TestScript, neg bool, args []string) {
	found, err := filepath.Glob(ts.MkAbs("data/backups/agnes-*.tar.zst"))
	if neg || len(args) != 0 || err != nil || len(found) != 1 {
		ts.Fatalf("usage: named, where there is one backup; found %v (%v)", found, err)
	}
	ts.Setenv("BACKUP", found[0])
	ts.Setenv("ID", strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), "agnes-"), ".tar.zst"))
}

func recipient(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: recipient FILE")
	}
	_, key, found := strings.Cut(ts.ReadFile(args[0]), "# public key: ")
	if !found {
		ts.Fatalf("%s names no public key", args[0])
	}
	key, _, _ = strings.Cut(key, "\n")
	ts.Setenv("AGNES_BACKUP_RECIPIENTS", key)
}

func disguise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: disguise DIR ID INSTANCE NEWID")
	}
	found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*", "agnes-"+args[1]+".tar.zst.age"))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("expected one copy, found %v", found)
	}
	as := filepath.Join(ts.MkAbs(args[0]), args[2], "agnes-"+args[3]+".tar.zst.age")
	ts.Check(os.MkdirAll(filepath.Dir(as), 0o700))
	ts.Check(os.WriteFile(as, []byte(ts.ReadFile(found[0])), 0o600))
}

func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: spoil DIR ID")
	}
	found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*", "agnes-"+args[1]+".tar.zst.age"))
	ts.Check(err)
	for _, path := range found {
		data := []byte(ts.ReadFile(path))
		data[len(data)/2] ^= 1
		ts.Check(os.WriteFile(path, data, 0o600))
	}
	if len(found) != 1 {
		ts.Fatalf("found %v", found)
	}
}

func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen STATUS")
	}
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
	}))
	ts.Defer(srv.Close)
	ts.Setenv("ADDR", srv.Listener.Addr().String())
}

func output(t *testing.T, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errs); code != 0 || errs.Len() > 0 {
		t.Fatalf("agnes %s: exit %d\n%s", strings.Join(args, " "), code, errs.String())
	}
	return out.Bytes()
}

func TestHelpOfTheRoot(t *testing.T) {
	t.Parallel()
	golden.Compare(t, filepath.Join("testdata", "help.golden"), output(t, "--help"))
}

func TestTheSurfaceIsTheSameEachTime(t *testing.T) {
	t.Parallel()
	first, second := output(t, "surface"), output(t, "surface")
	if !bytes.Equal(first, second) {
		t.Error("two runs of surface differ")
	}
	var doc struct {
		OpenAPI struct {
			OpenAPI string         `json:"openapi"`
			Paths   map[string]any `json:"paths"`
		} `json:"openapi"`
		SystemSchema map[string]any              `json:"system_schema"`
		Extract      map[string][]map[string]any `json:"extract"`
		Commands     map[string]any              `json:"commands"`
		Config       []map[string]any            `json:"config"`
	}
	if err := json.Unmarshal(first, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI.OpenAPI, "3.1") || doc.OpenAPI.Paths["/api/query"] == nil || len(doc.SystemSchema) == 0 ||
		len(doc.Extract["_meta"]) != 6 || len(doc.Extract["_remote_attach"]) != 4 || doc.Commands["agnes"] == nil || len(doc.Config) == 0 {
		t.Errorf("the surface lacks a part: %.2000s", first)
	}
}
