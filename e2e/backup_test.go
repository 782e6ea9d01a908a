//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// agnes runs a command of the instance's binary over a data directory and
// reads its JSON answer.
func agnes(t *testing.T, data string, answer any, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "agnes"), append(args, "--data-dir", data, "-o", "json")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), answer); err != nil {
		t.Fatalf("agnes %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return 0, errs.String()
}

func mustAgnes(t *testing.T, data string, answer any, args ...string) {
	t.Helper()
	if code, stderr := agnes(t, data, answer, args...); code != 0 {
		t.Fatalf("agnes %s: exit %d\n%s", strings.Join(args, " "), code, stderr)
	}
}

type restored struct {
	Restored      string `json:"restored"`
	SchemaVersion int    `json:"schema_version"`
	Version       string `json:"version"`
	Kept          string `json:"kept"`
	Extracts      bool   `json:"extracts"`
}

// TestAnInstanceComesBackOnAnEmptyMachine makes a backup of a running instance
// as its operator does, loses everything, and restores it elsewhere.
func TestAnInstanceComesBackOnAnEmptyMachine(t *testing.T) {
	parallel(t)
	data, files := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(files, "facts.csv"), "id,name\n1,one\n2,two\n")
	in := settled(t, data, files)
	if err := in.createUser("ana@company.com"); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(in.url, "http://")
	var made api.Backup
	mustAgnes(t, data, &made, "backup", "create", "--extracts", "--reason", "drill", "--addr", addr)
	if made.Reason != "drill" || !made.Extracts {
		t.Errorf("%+v", made)
	}
	var none api.Backup
	if code, stderr := agnes(t, data, &none, "backup", "restore", made.ID); code != 4 || !strings.Contains(stderr, "docker compose stop app") {
		t.Errorf("restore while it runs: exit %d\n%s", code, stderr)
	}
	if code, _ := agnes(t, data, &none, "schema"); code != 4 {
		t.Errorf("schema while it runs: exit %d", code)
	}
	if got := in.count("facts"); got != 2 {
		t.Errorf("facts has %d rows", got)
	}
	in.stop()

	empty := filepath.Join(t.TempDir(), "elsewhere")
	began := time.Now()
	var back restored
	mustAgnes(t, empty, &back, "backup", "restore", made.Path)
	if back.Restored != made.ID || !back.Extracts || back.SchemaVersion != made.SchemaVersion || back.Version != made.Version {
		t.Errorf("%+v", back)
	}
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	in.data = empty
	in.attach(start(t, empty, debug))
	for deadline := time.Now().Add(20 * time.Second); ; { // published in the background
		if r, err := in.client.Query(t.Context(), api.QueryRequest{SQL: "SELECT count(*) FROM facts"}); err == nil {
			if len(r.Rows) != 1 || fmt.Sprint(r.Rows[0][0]) != "2" {
				t.Errorf("%v", r.Rows)
			}
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("facts: %v\n%s", err, in.out)
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Logf("from the file to the first answer: %s", time.Since(began).Round(time.Millisecond))
	users, err := in.client.Users(t.Context())
	if err != nil || users.Count != 2 {
		t.Errorf("%+v, %v", users, err)
	}
	// The token of before is signed by the restored secret.
	list, err := in.client.Backups(t.Context())
	if err != nil || list.Count != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if resp, err := http.Get(in.url + "/api/health"); err != nil || resp.Body.Close() != nil {
		t.Error(err)
	}
	if h := in.health().Services["backup"]; h.Status != api.Healthy {
		t.Errorf("%+v", h)
	}
}

// TestAFullDiskStopsABackupAndNothingElse fills the disk under a running
// instance that is asked for a backup.
func TestAFullDiskStopsABackupAndNothingElse(t *testing.T) {
	parallel(t)
	disk := t.TempDir()
	mountTmpfs(t, disk, 0, "192m")
	data, files := filepath.Join(disk, "data"), t.TempDir()
	writeFile(t, filepath.Join(files, "facts.csv"), "id,name\n1,one\n2,two\n")
	in := settled(t, data, files)
	good, err := in.client.Backup(t.Context(), api.BackupRequest{Reason: "good"})
	if err != nil {
		t.Fatal(err)
	}
	release := fill(t, disk, 8<<20)
	_, err = in.client.Backup(t.Context(), api.BackupRequest{Reason: "no room"})
	wantProblem(t, err, problem.NoSpace, data, "df -h")
	entries, err := os.ReadDir(filepath.Join(data, "backups"))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(good.Path) {
		t.Errorf("the folder holds %v, %v; want the good one alone", entries, err)
	}
	if h := in.health().Services["backup"]; !strings.Contains(h.Detail, "failed") || !strings.Contains(h.Hint, "df -h") {
		t.Errorf("%+v", h)
	}
	if err := in.createUser("ana@company.com"); err != nil {
		t.Errorf("the instance does not go on: %v", err)
	}
	release()
	if _, err := in.client.Backup(t.Context(), api.BackupRequest{Reason: "again"}); err != nil {
		t.Error(err)
	}
	if h := in.health().Services["backup"]; strings.Contains(h.Detail, "failed") {
		t.Errorf("%+v", h)
	}
}
