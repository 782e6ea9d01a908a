package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pseudoTerminal returns both ends of a terminal.
func pseudoTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("open a pseudo terminal: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestAPasswordIsAskedForWithoutEcho(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		typed []string // one a prompt
		code  int
		want  string
	}{
		"typed twice": {[]string{"correct horse battery\r", "correct horse battery\r"}, 0, "admin: created admin@company.com"},
		"mistyped":    {[]string{"correct horse battery\r", "correct house battery\r"}, 2, "The two passwords differ."},
		"Ctrl-C":      {[]string{"correct\x03"}, 130, "\r\nInterrupted: What had not finished was left undone.\n"},
		"empty":       {[]string{"\r", "\r"}, 2, "Expected a password."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			server := f.start()
			t.Cleanup(server.Close)
			master, slave := pseudoTerminal(t)
			if !echoes(t, slave) {
				t.Fatal("the terminal does not echo in the beginning")
			}
			prompts := 0
			errs := &onPrompt{do: func() {
				if echoes(t, slave) {
					t.Error("the terminal echoes while a password is asked for")
				}
				if _, err := master.WriteString(tc.typed[prompts]); err != nil {
					t.Error(err)
				}
				prompts++
			}}
			env := map[string]string{"AGNES_URL": server.URL, "AGNES_SETUP_TOKEN": setupToken, "HOME": t.TempDir()}
			var out bytes.Buffer
			args := []string{"instance", "setup", "--email", "admin@company.com", "--source", "csv", "--csv-dir", "/srv/shop"}
			code := run(t.Context(), args, func(k string) string { return env[k] }, slave, &out, errs)
			if code != tc.code || !strings.Contains(errs.String(), tc.want) || prompts != len(tc.typed) {
				t.Errorf("exit %d after %d prompts, stderr %q; want %d, %q", code, prompts, errs.String(), tc.code, tc.want)
			}
			if strings.Contains(errs.String()+out.String(), "correct") {
				t.Errorf("the password is shown: %q %q", errs.String(), out.String())
			}
			if !echoes(t, slave) {
				t.Error("the terminal does not echo any more")
			}
		})
	}
}

// onPrompt does something each time a prompt is written.
type onPrompt struct {
	bytes.Buffer
	do func()
}

func (o *onPrompt) Write(p []byte) (int, error) {
	n, err := o.Buffer.Write(p)
	if strings.Contains(string(p), "assword") && strings.HasSuffix(string(p), ": ") || strings.HasSuffix(string(p), "again: ") {
		o.do()
	}
	return n, err
}
