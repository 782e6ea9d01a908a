//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tick runs one tick of the host's own updates, on the host.
func (s *site) tick() (reason string, goes bool, o *outcome, code int) {
	s.t.Helper()
	out, errs, code := s.agnesctl("", "host", "auto-update", "--dir", s.dir, "--soak", "1s", "--ready-wait", "20s", "-o", "json")
	var answer struct {
		Decision struct {
			Go     bool
			Reason string
		}
		Outcome *outcome
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		s.t.Fatalf("auto-update ended with %d\n%s%s", code, out, errs)
	}
	s.t.Logf("auto-update: exit %d, %v: %s", code, answer.Decision.Go, answer.Decision.Reason)
	return answer.Decision.Reason, answer.Decision.Go, answer.Outcome, code
}

// setEnv changes lines of the host's .env, as a customer does.
func (s *site) setEnv(lines ...string) {
	s.t.Helper()
	path := filepath.Join(s.dir, ".env")
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, "=")
		drop := false
		for _, l := range lines {
			drop = drop || strings.HasPrefix(l, name+"=")
		}
		if !drop {
			kept = append(kept, strings.TrimSuffix(line, "\n"))
		}
	}
	writeFile(s.t, path, strings.Join(append(kept, lines...), "\n")+"\n")
}

func TestAHostKeepsItselfUpToDate(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	before := s.data()
	s.setEnv("AGNES_TAG=stable", "AGNES_UPDATE_JITTER=0s", "AGNES_UPDATE_MIN_AGE=24h")
	jobs := func() string {
		status, err := s.client().SyncStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, j := range status.Jobs {
			ids = append(ids, j.ID)
		}
		return strings.Join(ids, " ")
	}
	synced := jobs()
	expect := func(goes bool, wantCode int, reason, runs string) *outcome {
		t.Helper()
		why, went, o, code := s.tick()
		if went != goes || code != wantCode || !strings.Contains(why, reason) {
			t.Fatalf("it went: %v, exit %d, %q; want %v, %d, …%s…", went, code, why, goes, wantCode, reason)
		}
		s.holds(t, runs, before)
		return o
	}

	expect(false, 0, "runs", first.version)
	second := s.release("good", nil)
	expect(false, 0, "not confirmed yet", first.version)
	s.bot(nil, "verdict", second.version, "pass", "--registry", s.image())
	expect(true, 0, "is confirmed", second.version)
	if got := jobs(); got != synced {
		t.Errorf("the update started a sync: %s, before %s", got, synced)
	}

	// A version that is well elsewhere and fails here: back, and not again.
	bad := s.release("queryless", faultd(t), noQuery...)
	s.bot(nil, "verdict", bad.version, "pass", "--registry", s.image())
	if o := expect(true, 1, "is confirmed", second.version); o == nil || !o.Reverted {
		t.Errorf("the failed update did not go back: %+v", o)
	}
	expect(false, 0, "failed here", second.version)

	// What runs is withdrawn: the host goes back with :stable.
	third := s.release("good", nil)
	s.bot(nil, "verdict", third.version, "pass", "--registry", s.image())
	expect(true, 0, "is confirmed", third.version)
	s.bot(nil, "rollback", "--failed", third.version, "--to", second.version, "--reason", "drill", "--registry", s.image())
	expect(true, 0, "is deprecated", second.version)

	// The fleet's repository says what this host shall run.
	asked := ""
	desired := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Authorization")
		_ = json.NewEncoder(w).Encode(map[string]string{"tag": "stable-" + first.version, "digest": first.digest})
	}))
	defer desired.Close()
	s.setEnv("AGNES_UPDATE_URL="+desired.URL+"/acme.json", "AGNES_UPDATE_TOKEN_FILE="+secret(t, "fleet-token"))
	expect(true, 0, "asked for by name", first.version)
	if asked != "Bearer fleet-token" {
		t.Errorf("the desired state was asked for with %q", asked)
	}

	// By hand back to what ran before: the timer does not undo it.
	s.setEnv("AGNES_UPDATE_URL=")
	o, code := s.try(append(append([]string{"host", "rollback"}, s.where()...), "--soak", "1s", "-o", "json"))
	if code != 0 || o.Running.Version != second.version {
		t.Fatalf("rollback ended with %d: %+v", code, o)
	}
	s.holds(t, second.version, before)
	expect(false, 0, "runs", second.version)
	if _, errs, code := s.agnesctl("", append(append([]string{"host", "rollback"}, s.where()...), "--soak", "1s")...); code != 4 || !strings.Contains(errs, "went back already") {
		t.Errorf("going back twice ended with %d: %s", code, errs)
	}
	s.holds(t, second.version, before)
	if text, err := os.ReadFile(filepath.Join(s.dir, ".env")); err != nil || !strings.Contains(string(text), "AGNES_TAG=stable-"+second.version+"\n") {
		t.Errorf("the rollback is not pinned in .env: %v\n%s", err, text)
	}
}
