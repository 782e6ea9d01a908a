package state

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func TestRegistryIdsAreUniqueOverAllSources(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	first, err := s.RegisterTable(ctx, Table{ID: "Orders", Source: "csv", SourceTable: "orders", Enabled: true}, By{Actor: "a@b.c"})
	if err != nil {
		t.Fatal(err)
	}
	if first.SyncStrategy != SyncFullRefresh || first.QueryMode != "local" || first.CreatedAt.IsZero() {
		t.Errorf("defaults: %+v", first)
	}
	for name, bad := range map[string]struct {
		table Table
		kind  problem.Kind
		code  string
	}{
		"the same id in another case": {Table{ID: "ORDERS", Source: "keboola", SourceTable: "x"}, problem.Conflict, "table_exists"},
		"the same table of a source":  {Table{ID: "other", Source: "csv", SourceTable: "orders"}, problem.Conflict, "source_table_exists"},
		"an id with a dot":            {Table{ID: "a.b", Source: "csv", SourceTable: "x"}, problem.Unprocessable, "unprocessable"},
		"an empty id":                 {Table{Source: "csv", SourceTable: "x"}, problem.Unprocessable, "unprocessable"},
		"a path as source":            {Table{ID: "a", Source: "../x", SourceTable: "x"}, problem.Unprocessable, "unprocessable"},
		"no source table":             {Table{ID: "a", Source: "csv"}, problem.Unprocessable, "unprocessable"},
		"an unknown query mode":       {Table{ID: "a", Source: "csv", SourceTable: "x", QueryMode: "x"}, problem.Unprocessable, "unprocessable"},
	} {
		_, err := s.RegisterTables(ctx, []Table{{ID: "fine", Source: "csv", SourceTable: "fine"}, bad.table}, By{})
		if p := wantProblem(t, err, bad.kind); p.WireCode() != bad.code {
			t.Errorf("%s: code %s, want %s", name, p.WireCode(), bad.code)
		}
	}
	_, err = s.RegisterTables(ctx, []Table{{ID: "x", Source: "csv", SourceTable: "x"}, {ID: "X", Source: "csv", SourceTable: "y"}}, By{})
	wantProblem(t, err, problem.Conflict)
	tables, err := s.ListTables(ctx)
	if err != nil || len(tables) != 1 {
		t.Fatalf("a refused batch left rows: %v, %v", tables, err)
	}
	if diff := cmp.Diff(first, tables[0]); diff != "" {
		t.Error(diff)
	}
	audit, err := s.ListAudit(ctx, 0, "")
	if err != nil || len(audit) != 1 {
		t.Errorf("a refused batch left audit entries: %v, %v", audit, err)
	}
}

func TestRegistryUpdateAndDelete(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	for range 3 { // an id can be registered again
		if _, err := s.RegisterTables(ctx, []Table{{ID: "a", Source: "csv", SourceTable: "a"}, {ID: "ab", Source: "csv", SourceTable: "b"}}, By{}); err != nil {
			t.Fatal(err)
		}
		u := mustUser(t, s, "a@b.c", RoleAnalyst)
		if _, err := s.UpdateUser(ctx, u.ID, UserPatch{Grants: &[]string{"A", "ab"}}, By{}); err != nil {
			t.Fatal(err)
		}
		got, err := s.UpdateTable(ctx, "A", TablePatch{Description: ptr("new"), Enabled: ptr(true)}, By{})
		if err != nil || got.Description != "new" || !got.Enabled || got.ID != "a" {
			t.Fatalf("%+v, %v", got, err)
		}
		if read, err := s.TableByID(ctx, "a"); err != nil || read != got {
			t.Errorf("read %+v, %v; want %+v", read, err, got)
		}
		_, err = s.UpdateTable(ctx, "a", TablePatch{QueryMode: ptr("x")}, By{})
		wantProblem(t, err, problem.Unprocessable)
		if err := s.DeleteTable(ctx, "A", By{}); err != nil {
			t.Fatal(err)
		}
		if u, err = s.UserByID(ctx, u.ID); err != nil || u.CanSee("a") || !u.CanSee("ab") {
			t.Errorf("grants after the table went: %v, %v", u.Grants, err)
		}
		if err := errors.Join(s.DeleteTable(ctx, "ab", By{}), s.DeleteUser(ctx, u.ID, By{})); err != nil {
			t.Fatal(err)
		}
	}
	wantProblem(t, s.DeleteTable(ctx, "a", By{}), problem.NotFound)
	_, err := s.UpdateTable(ctx, "a", TablePatch{}, By{})
	wantProblem(t, err, problem.NotFound, "GET /api/admin/registry")
}

func TestOneJobAtATime(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	job, err := s.CreateJob(ctx, Job{Request: JobRequest{Tables: []string{"a"}}}, By{Actor: "a@b.c"})
	if err != nil || job.Status != JobQueued || job.RequestedBy != "a@b.c" || job.Kind != JobSync {
		t.Fatalf("%+v, %v", job, err)
	}
	conflict := func() {
		t.Helper()
		_, err := s.CreateJob(ctx, Job{}, By{})
		if p := wantProblem(t, err, problem.Conflict, "GET /api/sync/jobs/"+job.ID); p.WireCode() != "sync_already_in_progress" {
			t.Errorf("code %s", p.WireCode())
		}
	}
	conflict()
	job.Status, job.Progress = JobRunning, math.NaN()
	if err := s.UpdateJob(ctx, job); err != nil {
		t.Fatal(err)
	}
	conflict()
	job.Status, job.Progress = JobSucceeded, 7
	job.Sources = []JobSource{{Name: "csv", Status: JobSucceeded, Tables: 1}}
	job.Tables = []JobTable{{ID: "a", Source: "csv", Status: "synced", Rows: 5}}
	job.Warnings = []string{"a warning"}
	if err := s.UpdateJob(ctx, job); err != nil {
		t.Fatal(err)
	}
	got, err := s.JobByID(ctx, job.ID)
	if err != nil || got.Progress != 1 || got.StartedAt.IsZero() || got.EndedAt.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Progress, got.StartedAt, got.EndedAt = 7, time.Time{}, time.Time{}
	if diff := cmp.Diff(job, got); diff != "" {
		t.Error(diff)
	}
	job.Status = JobRunning
	wantProblem(t, s.UpdateJob(ctx, job), problem.Conflict)
	_, err = s.JobByID(ctx, "nothing")
	wantProblem(t, err, problem.NotFound)
	wantProblem(t, s.UpdateJob(ctx, Job{ID: "nothing"}), problem.NotFound)
}

func TestJobsOfADeadProcessFail(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	job, err := s.CreateJob(ctx, Job{}, By{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.FailOrphans(ctx, "The instance was restarted."); n != 1 || err != nil {
		t.Fatalf("FailOrphans = %d, %v", n, err)
	}
	if n, err := s.FailOrphans(ctx, "again"); n != 0 || err != nil {
		t.Errorf("the second FailOrphans = %d, %v", n, err)
	}
	got, err := s.JobByID(ctx, job.ID)
	if err != nil || got.Status != JobFailed || got.Error != "The instance was restarted." || got.Hint == "" || got.EndedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.CreateJob(ctx, Job{}, By{}); err != nil {
		t.Errorf("a failed orphan blocks the next job: %v", err)
	}
}

func TestJobHistoryIsBoundedAndPaged(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	var rows [][]driver.Value
	for range keepJobs + 50 {
		j := Job{ID: newID(), Kind: JobSync, Status: JobSucceeded, CreatedAt: now()}
		row, err := j.columns()
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if err := s.update(ctx, func(tx *writeTx) error { return tx.insert("jobs", rows) }); err != nil {
		t.Fatal(err)
	}
	job, err := s.CreateJob(ctx, Job{}, By{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	before := ""
	for {
		page, err := s.ListJobs(ctx, 300, before)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		if before == "" && page[0].ID != job.ID {
			t.Error("the newest job is not first")
		}
		for _, j := range page {
			seen[j.ID] = true
		}
		before = page[len(page)-1].ID
	}
	if len(seen) != keepJobs || seen[rows[50][0].(string)] || !seen[rows[51][0].(string)] {
		t.Errorf("%d jobs are kept, want the newest %d", len(seen), keepJobs)
	}
}

func TestAuditKeepsNoSecretAndPages(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	for i := range 5 {
		e := AuditEntry{Action: "login", Target: fmt.Sprint(i), Outcome: OutcomeDenied, Detail: map[string]any{"password": redact.Secret("hunter2"), "n": i}, Remote: "10.0.0.1"}
		if err := s.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	page, err := s.ListAudit(ctx, 2, "")
	if err != nil || len(page) != 2 || page[0].Target != "4" || page[0].Actor != "agnes" {
		t.Fatalf("%+v, %v", page, err)
	}
	if page[0].Detail["password"] != redact.Placeholder {
		t.Errorf("detail %v", page[0].Detail)
	}
	page, err = s.ListAudit(ctx, 10, page[1].ID)
	if err != nil || len(page) != 3 || page[0].Target != "2" {
		t.Errorf("%+v, %v", page, err)
	}
}
