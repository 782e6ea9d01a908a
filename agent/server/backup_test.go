package server_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (w *world) audited(admin, action string) (entries []api.AuditEntry) {
	w.t.Helper()
	var log api.AuditLog
	w.call("GET", "/api/admin/audit?limit=1000", admin, nil).into(w.t, &log)
	for _, e := range log.Entries {
		if e.Action == action {
			entries = append(entries, e)
		}
	}
	return entries
}

func TestAdminsMakeBackups(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.bootstrap()
	w.call("POST", "/api/users", admin, map[string]any{"email": "ana@company.com", "role": api.RoleAnalyst, "password": adminPassword}).into(t, &api.User{})
	var analyst api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": "ana@company.com", "password": adminPassword}).into(t, &analyst)
	for token, want := range map[string]int{"": http.StatusUnauthorized, analyst.AccessToken: http.StatusForbidden} {
		for _, call := range [][2]string{{"POST", "/api/admin/backup"}, {"GET", "/api/admin/backups"}} {
			if r := w.call(call[0], call[1], token, nil); r.status != want {
				t.Errorf("%s %s: %d, want %d", call[0], call[1], r.status, want)
			}
		}
	}
	var list api.Backups
	w.call("GET", "/api/admin/backups", admin, nil).into(t, &list)
	if list.Count != 0 || list.Backups == nil {
		t.Errorf("%+v", list)
	}
	var made api.Backup
	w.call("POST", "/api/admin/backup", admin, api.BackupRequest{Reason: "a test", Extracts: true}).into(t, &made)
	if made.Version != "2026.04.3" || made.SchemaVersion != state.LatestSchemaVersion() || len(made.SHA256) != 64 || made.Reason != "a test" || made.SizeBytes == 0 {
		t.Errorf("%+v", made)
	}
	if _, err := backup.Verify(t.Context(), made.Path, ""); err != nil {
		t.Error(err)
	}
	w.call("GET", "/api/admin/backups", admin, nil).into(t, &list)
	if list.Count != 1 || list.Backups[0].ID != made.ID {
		t.Errorf("%+v", list)
	}
	entries := w.audited(admin, "backup.create")
	if len(entries) != 1 || entries[0].Target != made.ID || entries[0].Actor != adminEmail || entries[0].Outcome != state.OutcomeOK {
		t.Errorf("%+v", entries)
	}
	h := w.instance.Health(t.Context()).Services["backup"]
	if h.Status != api.Healthy || !strings.Contains(h.Detail, made.CreatedAt.Format(time.RFC3339)) {
		t.Errorf("%+v", h)
	}
}

func TestOneBackupAtATime(t *testing.T) {
	t.Parallel()
	holding, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(o *worldOptions) {
		o.afterBackup = func(backup.Info) { close(holding); <-release }
	})
	admin := w.bootstrap()
	done := make(chan reply)
	go func() { done <- w.call("POST", "/api/admin/backup", admin, api.BackupRequest{}) }()
	<-holding
	r := w.call("POST", "/api/admin/backup", admin, api.BackupRequest{})
	if p := r.problem(t); r.status != http.StatusConflict || p.Code != "backup_in_progress" || p.Hint == "" {
		t.Errorf("%d %+v", r.status, p)
	}
	close(release)
	if r := <-done; r.status != http.StatusOK {
		t.Errorf("the first one: %d %s", r.status, r.body)
	}
}

func TestBackupSettings(t *testing.T) {
	t.Parallel()
	for key, value := range map[string]string{"AGNES_BACKUP_SCHEDULE": "weekly", "AGNES_BACKUP_KEEP": "0", "AGNES_BACKUP_EXTRACTS": "yes"} {
		_, err := agent.Open(t.Context(), agent.Options{
			Inputs: settings.Inputs{Flags: map[string]string{settings.DataDir: t.TempDir()}, Getenv: func(k string) string { return map[string]string{key: value}[k] }},
			Log:    slog.New(slog.DiscardHandler),
		})
		if p := problem.As(err); p.Kind != problem.Usage || !strings.Contains(p.Message+p.Hint, key) || !strings.Contains(p.Message, value) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
	w := newWorld(t, func(o *worldOptions) { o.env["AGNES_BACKUP_SCHEDULE"] = "off" })
	if h := w.instance.Health(t.Context()).Services["backup"]; h.Status != api.Healthy || !strings.Contains(h.Detail, "off") {
		t.Errorf("%+v", h)
	}
}

// A restore that was killed between its two renames is finished by the next
// start, before anything is read; the start also audits it.
func TestAStartFinishesARestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var made api.Backup
	t.Run("before", func(t *testing.T) {
		w := newWorld(t, func(o *worldOptions) { o.dir = dir })
		admin := w.bootstrap()
		w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files", "instance_name": "Before"}).into(t, &api.ConfigureResponse{})
		w.call("POST", "/api/admin/backup", admin, api.BackupRequest{}).into(t, &made)
		w.call("POST", "/api/admin/configure", admin, map[string]string{"data_source": "csv", "csv_dir": "/files", "instance_name": "After"}).into(t, &api.ConfigureResponse{})
	})
	// What the restore has brought beside, and what it has set aside.
	state1, kept := filepath.Join(dir, "state"), filepath.Join("backups", "before-restore-20261124T045222Z")
	elsewhere := agent.Layout{Root: t.TempDir()}
	if _, err := backup.Restore(t.Context(), elsewhere.BackupDirs(), made.Path, backup.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	content, err := state.ReadContent(t.Context(), elsewhere.Database())
	if err != nil {
		t.Fatal(err)
	}
	work := agent.Layout{Root: dir}.BackupDirs().Work
	for _, folder := range []string{filepath.Join(work, "new"), filepath.Join(dir, kept)} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	journal, err := json.Marshal(map[string]any{
		"id": made.ID, "phase": "swap", "kept": kept, "database": content, "moves": []any{map[string]any{"target": "state", "replaces": true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []error{
		os.WriteFile(filepath.Join(work, "journal.json"), journal, 0o600),
		os.Rename(elsewhere.State(), filepath.Join(work, "new", "state")),
		os.Rename(state1, filepath.Join(dir, kept, "state")),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}

	w := newWorld(t, func(o *worldOptions) { o.dir = dir })
	if name := w.instance.Settings().Get(settings.InstanceName); name != "Before" {
		t.Errorf("the instance is called %q, want the restored Before", name)
	}
	var admin api.TokenResponse
	w.call("POST", "/auth/token", "", map[string]string{"email": adminEmail, "password": adminPassword}).into(t, &admin)
	for deadline := time.Now().Add(10 * time.Second); ; {
		entries := w.audited(admin.AccessToken, "backup.restore")
		if len(entries) == 1 && entries[0].Target == made.ID {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the restore is not audited: %+v", entries)
		}
		<-time.After(10 * time.Millisecond)
	}
	if _, err := os.Stat(work); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", work, err)
	}
	if _, err := os.Stat(filepath.Join(dir, kept, "state", "system.duckdb")); err != nil {
		t.Error(err)
	}
}

// A restore that was killed while it unpacked has changed nothing; what it had
// unpacked holds secrets and goes.
func TestAStartSweepsWhatAKilledRestoreUnpacked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	work := agent.Layout{Root: dir}.BackupDirs().Work
	if err := os.MkdirAll(filepath.Join(work, "new", "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	newWorld(t, func(o *worldOptions) { o.dir = dir })
	if _, err := os.Stat(work); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", work, err)
	}
}
