package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// An attempt that began before the backup was made may end after it, and fails
// for reasons of its own.
func TestAnUploadIsJudgedByAnAttemptOfItsOwn(t *testing.T) {
	t.Parallel()
	const id = "20261124T045222Z-1a2b3c"
	tried := time.Now().Add(time.Hour) // after everything
	failed := &api.Offsite{Target: "file:///away", Waiting: 1, Error: "The disk is full.", Hint: "Free space.", TriedAt: &tried}
	well := &api.Offsite{Target: "file:///away", InStep: &tried, TriedAt: &tried}
	list := func(o *api.Offsite, b ...api.Backup) api.Backups {
		return api.Backups{Backups: b, Count: len(b), Offsite: o}
	}
	for what, tc := range map[string]struct {
		answers []api.Backups
		kind    problem.Kind // where it fails
		says    string
	}{
		"another attempt failed, its own did not": {[]api.Backups{list(failed, api.Backup{ID: id}), list(well, api.Backup{ID: id, Offsite: true, OffsiteTried: true})}, "", ""},
		"its own failed":      {[]api.Backups{list(failed, api.Backup{ID: id}), list(failed, api.Backup{ID: id, OffsiteTried: true})}, problem.Unavailable, "The disk is full."},
		"its own left it out": {[]api.Backups{list(well, api.Backup{ID: id, OffsiteTried: true})}, problem.Unavailable, "not among it"},
		"it was deleted":      {[]api.Backups{list(well)}, problem.NotFound, "not there any more"},
		"there is no target":  {[]api.Backups{list(nil, api.Backup{ID: id})}, problem.Usage, "no target"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				n := min(int(asked.Add(1)), len(tc.answers)) - 1
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(tc.answers[n])
			}))
			defer s.Close()
			client, err := api.NewClient(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			err = awaitUpload(t.Context(), client, id)
			if tc.says == "" && err != nil || tc.says != "" && (!problem.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) || problem.As(err).Hint == "") {
				t.Errorf("%v; want %s %q", err, tc.kind, tc.says)
			}
			if n := asked.Load(); n != int64(len(tc.answers)) {
				t.Errorf("asked %d times, want %d", n, len(tc.answers))
			}
		})
	}
}
