//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// fill takes all but about free bytes of a file system, in one file; the
// returned function gives them back.
func fill(t *testing.T, dir string, free int64) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || os.Truncate(path, info.Size()-free) != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAFullDiskStopsWritesAndNothingElse fills the disk under a running
// instance. What was there goes on answering, what cannot be stored is refused
// with the way out, and with space it goes on where it was, without a restart.
func TestAFullDiskStopsWritesAndNothingElse(t *testing.T) {
	parallel(t)
	disk := t.TempDir()
	mountTmpfs(t, disk, 0, "128m")
	data, files := filepath.Join(disk, "data"), t.TempDir()
	rows := 1000
	more := func() { // another, larger content of the source's file
		t.Helper()
		rows += 20_000
		var b strings.Builder
		b.WriteString("id,stamp,text\n")
		for i := range rows {
			fmt.Fprintf(&b, "%d,%d,%x\n", i, rows, uint64(i*rows)*0x9e3779b97f4a7c15)
		}
		writeFile(t, filepath.Join(files, "facts.csv"), b.String())
	}
	more()
	in := settled(t, data, files)
	served := in.count("facts")
	var users []string
	create := func() error {
		email := fmt.Sprintf("user%d@company.com", len(users))
		err := in.createUser(email)
		if err == nil {
			users = append(users, email)
		}
		return err
	}
	wantAll := func(when string) {
		t.Helper()
		got, err := in.client.Users(t.Context())
		if err != nil {
			t.Fatalf("%s: %v\n%s", when, err, in.out)
		}
		have := map[string]bool{}
		for _, u := range got.Users {
			have[u.Email] = true
		}
		for _, email := range append(users, adminEmail) {
			if !have[email] {
				t.Errorf("%s: the user %s, who was answered for, is lost", when, email)
			}
		}
		if n := in.count("facts"); n != served {
			t.Errorf("%s: facts has %d rows, want %d", when, n, served)
		}
	}
	fullUp := func() { // no user can be created any more
		t.Helper()
		var err error
		for range 2000 { // the last blocks of the log may have room
			if err = create(); err != nil {
				break
			}
		}
		wantProblem(t, err, problem.NoSpace, data, "df -h")
	}
	if err := create(); err != nil {
		t.Fatal(err)
	}

	// Space that ends in the middle of a sync: the job fails, the tables stay.
	release := fill(t, disk, 192<<10)
	more()
	trig, err := in.client.TriggerSync(t.Context(), api.SyncRequest{})
	if err != nil {
		t.Fatalf("trigger with a little space: %v\n%s", err, in.out)
	}
	job := waitJob(t, in.process, in.secrets["token"], trig.JobID, api.JobFailed)
	if !strings.Contains(job.Hint, "df -h") {
		t.Errorf("the sync that met the full disk says %q, %q; want a hint at the space", job.Error, job.Hint)
	}
	wantAll("after a sync without space")
	release()

	// No space at all.
	release = fill(t, disk, 0)
	fullUp()
	_, err = in.client.TriggerSync(t.Context(), api.SyncRequest{})
	wantProblem(t, err, problem.NoSpace, data, "df -h")
	wantAll("while the disk is full")
	name := "Another"
	_, err = in.client.Configure(t.Context(), api.ConfigureRequest{DataSource: "csv", InstanceName: &name})
	wantProblem(t, err, problem.NoSpace, data, "df -h")
	_, err = in.client.RegisterTable(t.Context(), api.RegisterTableRequest{Source: "elsewhere", SourceTable: "things"})
	wantProblem(t, err, problem.NoSpace, data, "df -h")
	if _, err := in.client.Token(t.Context(), api.TokenRequest{Email: adminEmail, Password: adminPassword}); err != nil {
		t.Errorf("signing in on a full disk: %v", err)
	}
	if d := in.health().Services["disk"]; d.Status != api.Unhealthy || !strings.Contains(d.Detail, "disk is full") || !strings.Contains(d.Hint, "DATA_DIR") {
		t.Errorf("health of the disk = %+v", d)
	}
	eventually(t, 30*time.Second, "/readyz says that nothing can be written", func() bool { return !in.ready() })
	if h := in.health(); h.Status != api.Unhealthy || !strings.Contains(h.Services["state"].Hint, "df -h") {
		t.Errorf("health = %s, of the state %+v; want unhealthy with a hint at the space", h.Status, h.Services["state"])
	}

	// Space again, without a restart.
	release()
	if err := create(); err != nil {
		t.Errorf("creating a user with space again: %v\n%s", err, in.out)
	}
	in.sync(api.JobSucceeded)
	served = rows
	wantAll("with space again")
	eventually(t, 30*time.Second, "/readyz says that writes succeed", in.ready)
	if d := in.health().Services["disk"]; d.Status == api.Unhealthy {
		t.Errorf("health of the disk with space again = %+v", d)
	}

	// Killed while it is full; the start over a full disk may be refused, but
	// clearly, and loses nothing either way.
	release = fill(t, disk, 0)
	fullUp()
	in.kill()
	p := launch(t, data)
	eventually(t, 30*time.Second, "the start over a full disk ends or succeeds", func() bool {
		select {
		case <-p.done:
			return true
		default:
		}
		resp, err := http.Get(p.url + "/livez")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return true
	})
	select {
	case <-p.done:
		if out := p.out.String(); !strings.Contains(out, "df -h") {
			t.Errorf("the start over a full disk was refused without a hint:\n%s", out)
		}
	default:
		p.kill()
	}
	keepsSecrets(t, p.out.String(), in.secrets)
	release()
	in.start()
	wantAll("after a kill on a full disk")
	if err := create(); err != nil {
		t.Error(err)
	}
	more()
	in.sync(api.JobSucceeded)
	served = rows
	wantAll("after the restart")

	// Stopped while it is full: what was answered for is in the log already.
	release = fill(t, disk, 0)
	fullUp()
	in.stop()
	release()
	in.start()
	wantAll("after a stop on a full disk")
	in.stop()
}
