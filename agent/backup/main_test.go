package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// helperEnv makes the test binary play a process that is killed.
const helperEnv = "AGNES_BACKUP_TEST_HELPER"

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		if err := helper(role, os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper plays one command on the data directory root. args end with the step
// at which the process kills itself.
func helper(role, root string, args []string) error {
	ctx, d := context.Background(), dirsOf(root)
	lock, err := state.Lock(root)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	at := args[len(args)-1]
	step := func(name string) {
		fmt.Println(name)
		if name == "state in place" && role == "restore-broken" {
			if err := os.Truncate(filepath.Join(d.State, "system.duckdb"), 100); err != nil {
				panic(err)
			}
		}
		if name == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	switch role {
	case "create":
		_, err = Create(ctx, d, closedRequest(d, step))
	case "restore", "restore-broken":
		_, err = Restore(ctx, d, args[0], RestoreOptions{step: step})
	case "recover":
		_, err = recoverWith(ctx, d, nil, step)
	}
	return err
}

// play runs helper in a process of its own and returns what it printed, one
// step a line.
func play(t *testing.T, role, root string, args ...string) (steps []string, killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{root}, args...)...)
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signaled() {
		killed = true
	} else if err != nil && role != "restore-broken" {
		t.Fatalf("%s %v: %v\n%s", role, args, err, errs.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), killed
}

func dirsOf(root string) Dirs {
	return Dirs{
		Root: root, State: filepath.Join(root, "state"), Extracts: filepath.Join(root, "extracts"),
		Backups: filepath.Join(root, "backups"), Work: filepath.Join(root, ".restore"),
	}
}

func closedRequest(d Dirs, step func(string)) Request {
	return Request{
		Reason: "test", Extracts: true, Version: "2026.04.3", step: step,
		Snapshot: func(ctx context.Context, dest string) error {
			return state.SnapshotClosed(ctx, state.Options{Dir: d.State, Version: "2026.04.3"}, dest)
		},
	}
}

// newData makes a data directory with one user, a configuration, secrets and
// one extract, all of the given generation.
func newData(t *testing.T, generation string) Dirs {
	t.Helper()
	d := dirsOf(t.TempDir())
	advance(t, d, generation)
	for _, secret := range []string{".jwt_secret", ".session_secret"} {
		if _, err := state.EnsureSecret(nil, filepath.Join(d.State, secret)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// advance brings a data directory to another generation.
func advance(t *testing.T, d Dirs, generation string) {
	t.Helper()
	store, err := state.Open(t.Context(), state.Options{Dir: d.State, Version: "2026.04.3"})
	if err != nil {
		t.Fatal(err)
	}
	addUser(t, store, generation)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFileAtomic(filepath.Join(d.State, "instance.yaml"), []byte("instance_name: "+generation+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	extract(t, d, "csv", generation)
}

func addUser(t *testing.T, store *state.Store, name string) {
	t.Helper()
	_, err := store.CreateUser(context.Background(), state.User{Email: name + "@b.co", Role: state.RoleAdmin, PasswordHash: "argon2id$x"}, state.By{Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
}

// extract commits an extract with one table that holds generation.
func extract(t *testing.T, d Dirs, source, generation string) {
	t.Helper()
	w, err := connectors.NewWriter(t.Context(), d.Extracts, source)
	if err != nil {
		t.Fatal(err)
	}
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("COPY (SELECT %s AS generation) TO %s (FORMAT parquet)", duck.Literal(generation), duck.Literal(w.Path("facts")))); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(connectors.Meta{Table: "facts", Rows: 1, QueryMode: connectors.Local}, generation); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// generation returns what the state says of itself: the newest user of the
// database, the configuration, and the extract's fingerprint.
func generation(t *testing.T, d Dirs) (database, config, data string) {
	t.Helper()
	store, err := state.Open(t.Context(), state.Options{Dir: d.State, Version: "2026.04.3"})
	if err != nil {
		t.Fatalf("the state does not open: %v", err)
	}
	defer func() { _ = store.Close() }()
	if w := store.Warnings(); len(w) > 0 {
		t.Errorf("the state opens with warnings: %v", w)
	}
	users, err := store.ListUsers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		database = max(database, strings.TrimSuffix(u.Email, "@b.co"))
	}
	yaml, err := os.ReadFile(filepath.Join(d.State, "instance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ext, err := connectors.ReadExtract(t.Context(), filepath.Join(d.Extracts, "csv"))
	if err != nil {
		t.Fatal(err)
	}
	return database, strings.TrimSpace(strings.TrimPrefix(string(yaml), "instance_name: ")), ext.State["facts"]
}

func wantGeneration(t *testing.T, d Dirs, want string) {
	t.Helper()
	if database, config, data := generation(t, d); database != want || config != want || data != want {
		t.Errorf("found database %s, configuration %s, data %s; want %s of all", database, config, data, want)
	}
}

func mustCreate(t *testing.T, d Dirs) Info {
	t.Helper()
	info, err := Create(t.Context(), d, closedRequest(d, nil))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// tree returns the content of every file below root, hashed, without the
// places that come and go.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case rel == "agnes.lock":
			return nil
		case e.IsDir():
			files[rel+"/"] = ""
			return nil
		case !e.Type().IsRegular():
			files[rel] = e.Type().String()
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		files[rel] = hex.EncodeToString(h.Sum(nil))
		return errors.Join(err, f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// changes lists what differs between two trees.
func changes(before, after map[string]string) (diffs []string) {
	for path, sum := range before {
		if got, ok := after[path]; !ok || got != sum {
			diffs = append(diffs, "changed or gone: "+path)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			diffs = append(diffs, "new: "+path)
		}
	}
	return diffs
}

func wantProblem(t *testing.T, err error, kind problem.Kind, names ...string) {
	t.Helper()
	p, ok := errors.AsType[*problem.Error](err)
	if !ok || p.Kind != kind || p.Hint == "" {
		t.Fatalf("got %v, want a problem of kind %s with a hint", err, kind)
	}
	for _, n := range names {
		if !strings.Contains(err.Error()+"\n"+p.Hint, n) {
			t.Errorf("%v, hint %q: want %q named", err, p.Hint, n)
		}
	}
}
