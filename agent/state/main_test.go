package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// helperEnv makes the test binary play another process: a second instance, a
// user without rights, or one that is killed.
const helperEnv = "AGNES_STATE_TEST_HELPER"

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		helper(role, os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// quiet is a logger for tests; t.Log would outlive the test from the background.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testOptions(dir string) Options {
	return Options{Dir: dir, Log: quiet(), Version: "test", CheckpointEvery: time.Hour}
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), testOptions(dir))
	if err != nil {
		t.Fatalf("Open: %v (hint: %s)", err, problem.As(err).Hint)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// wantProblem asserts the kind of an error, that it has a hint, and that text
// of its message or hint names what it must name. It returns the problem.
func wantProblem(t testing.TB, err error, kind problem.Kind, names ...string) problem.Error {
	t.Helper()
	p, ok := errors.AsType[*problem.Error](err)
	if !ok {
		t.Fatalf("got %v, want a problem of kind %s", err, kind)
	}
	if p.Kind != kind {
		t.Errorf("got kind %s (%v), want %s", p.Kind, err, kind)
	}
	if p.Hint == "" {
		t.Errorf("%v has no hint", err)
	}
	for _, n := range names {
		if !strings.Contains(p.Message+"\n"+p.Hint, n) {
			t.Errorf("message %q and hint %q do not name %q", p.Message, p.Hint, n)
		}
	}
	return *p
}

func newUser(email, role string) User {
	return User{Email: email, Role: role, PasswordHash: "argon2id$not-a-real-hash"}
}

func mustUser(t testing.TB, s *Store, email, role string) User {
	t.Helper()
	u, err := s.CreateUser(context.Background(), newUser(email, role), By{Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func copyTestFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func emails(t testing.TB, s *Store) []string {
	t.Helper()
	users, err := s.ListUsers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, u := range users {
		out = append(out, u.Email)
	}
	return out
}

func helper(role string, args []string) {
	fail := func(err error) {
		p := problem.As(err)
		fmt.Printf("error %s|%s|%s\n", p.Kind, p.Message, p.Hint)
		os.Exit(1)
	}
	switch role {
	case "lock":
		l, err := Lock(args[0])
		if err != nil {
			fail(err)
		}
		fmt.Println("locked", os.Getpid())
		_, _ = os.Stdin.Read(make([]byte, 1))
		_ = l.Close()
	case "secret":
		secret, err := EnsureSecret(nil, args[0])
		if err != nil {
			fail(err)
		}
		fmt.Println(secret.Reveal())
	case "commit":
		opt := testOptions(args[0])
		opt.CheckpointEvery = 7 * time.Millisecond
		s, err := Open(context.Background(), opt)
		if err != nil {
			fail(err)
		}
		fmt.Println("open")
		n, _ := strconv.Atoi(args[1])
		for ; ; n++ {
			if _, err := s.CreateUser(context.Background(), newUser(numbered(n), RoleAnalyst), By{}); err != nil {
				fail(err)
			}
			fmt.Println(n)
		}
	case "migrate":
		first, err := migrationFiles.ReadFile("migrations/0001_init.sql")
		if err != nil {
			fail(err)
		}
		files := fstest.MapFS{"0001_init.sql": {Data: first}}
		for i, sql := range args[1:] {
			files[fmt.Sprintf("%04d_step.sql", i+2)] = &fstest.MapFile{Data: []byte(sql)}
		}
		ms, err := loadMigrations(files)
		if err != nil {
			fail(err)
		}
		fmt.Println("ready")
		if _, err := open(context.Background(), testOptions(args[0]), ms); err != nil {
			fail(err)
		}
		select {} // until it is killed
	case "hold":
		db, err := openDatabase(context.Background(), args[0])
		if err != nil {
			fail(err)
		}
		fmt.Println("open")
		_, _ = os.Stdin.Read(make([]byte, 1))
		_ = db.Close()
	case "open-as-nobody":
		if os.Getuid() == 0 {
			if err := syscall.Setuid(65534); err != nil {
				fail(err)
			}
		}
		if _, err := Open(context.Background(), testOptions(args[0])); err != nil {
			fail(err)
		}
		fmt.Println("open")
	}
}
