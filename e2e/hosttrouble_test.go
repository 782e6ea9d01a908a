//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
)

// rollback runs host rollback.
func (s *site) rollback(more ...string) (outcome, int) {
	s.t.Helper()
	args := append(append([]string{"host", "rollback"}, s.where()...), "--soak", "1s", "--ready-wait", "20s", "--lease", "6s", "-o", "json")
	return s.try(append(args, more...))
}

func TestAHostInTroubleIsLedOutOfIt(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	s.last = first
	before := s.data()
	second := s.release("good", nil)
	killed := func(r release, step string, more ...string) {
		s.t.Helper()
		if _, code := s.interrupted(s.deployArgs([]string{"host", "deploy"}, r, more...), step, func(p *os.Process) { _ = p.Kill() }); code != -1 {
			s.t.Fatalf("the deploy ended with %d before it could be killed at %s", code, step)
		}
	}

	s.story("what runs is broken: a failed deploy goes back to that, and the next one goes forward", func(t *testing.T) {
		override := filepath.Join(s.dir, "docker-compose.override.yml")
		text, err := os.ReadFile(override)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, override, strings.Replace(string(text), "  app:\n", "  app:\n    command: [serve, --no-such-flag]\n", 1))
		s.typed("up", "-d")
		if o, code := s.deploy(second, "--ready-wait", "4s"); code != 1 || !o.Reverted || o.Running.Version != first.version {
			t.Fatalf("it ended with %d, reverted %v, %q runs: %s", code, o.Reverted, o.Running.Version, o.Message)
		}
		writeFile(t, override, string(text))
		if o, code := s.deploy(second); code != 0 {
			t.Fatalf("the next one ended with %d: %s", code, o.Message)
		}
		s.holds(t, second.version, before)
	})
	s.story("what was stopped is deployed again: the way back stays, and is on the host", func(t *testing.T) {
		s.typed("stop")
		if o, code := s.deploy(second); code != 0 {
			t.Fatalf("it ended with %d: %s", code, o.Message)
		}
		s.registry.down.Store(true)
		defer s.registry.down.Store(false)
		if o, code := s.rollback(); code != 0 || o.Running.Version != first.version {
			t.Fatalf("the way back ended with %d, %q runs: %s", code, o.Running.Version, o.Message)
		}
		s.holds(t, first.version, before)
	})
	s.story("somebody goes back from a deploy that was cut off: the timer does not undo it", func(t *testing.T) {
		s.bot(nil, "verdict", second.version, "pass", "--registry", s.image())
		for _, step := range []string{"drain", "smoke"} {
			killed(second, step)
			if o, code := s.rollback(); code != 0 || o.Running.Version != first.version {
				t.Fatalf("%s: the way back ended with %d, %q runs: %s", step, code, o.Running.Version, o.Message)
			}
			if text, err := os.ReadFile(filepath.Join(s.dir, ".env")); err != nil || !strings.Contains(string(text), "AGNES_TAG=stable-"+first.version+"\n") {
				t.Errorf("%s: .env does not name what runs: %v\n%s", step, err, text)
			}
			s.setEnv("AGNES_TAG=stable", "AGNES_UPDATE_JITTER=0s")
			if reason, goes, _, _ := s.tick(); goes || !strings.Contains(reason, "left by hand") {
				t.Errorf("%s: the timer says %v: %s", step, goes, reason)
			}
			s.holds(t, first.version, before)
		}
	})
	s.story("nothing can be reached through the connection: nothing is touched", func(t *testing.T) {
		open := s.ssh
		defer func() { s.ssh = open }()
		s.ssh = sshtest.Start(t, "SetEnv "+strings.Join(s.docker.Env(), " "), "AllowTcpForwarding no")
		_, since := s.running()
		o, code := s.deploy(second)
		if _, now := s.running(); code != 4 || o.failedAt() != "preflight" || now != since || !strings.Contains(o.Hint, "AllowTcpForwarding") {
			t.Errorf("exit %d at %q, runs since %s, before %s, hint %q", code, o.failedAt(), now, since, o.Hint)
		}
	})
	// From here on somebody works with what a cut off deploy has left.
	s.story("the way back was cut off before it stopped anything, and goes on days later: it asks", func(t *testing.T) {
		moving := s.release("migrating", migrated(t), migrates...)
		killed(moving, "halt")
		path := filepath.Join(s.dir, ".agnes/journal.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		began := regexp.MustCompile(`"started_at": "[^"]*"`)
		writeFile(t, path, began.ReplaceAllString(string(text), `"started_at": "`+time.Now().Add(-50*time.Hour).UTC().Format(time.RFC3339)+`"`))
		if o, code := s.deploy(moving); code != 1 || !o.Halted || o.Restored != "" {
			t.Fatalf("it ended with %d, halted %v, restored %q: %s", code, o.Halted, o.Restored, o.Message)
		}
	})
	s.story("the state was put back and the deploy cut off: what people did since stays", func(t *testing.T) {
		killed(first, "smoke", "--schema", "restore")
		admin := s.client()
		user, err := admin.CreateUser(t.Context(), api.CreateUserRequest{Email: "later@company.com", Role: "analyst", Password: "SecurePass456!"})
		if err != nil {
			t.Fatal(err)
		}
		if o, code := s.deploy(first, "--schema", "restore"); code != 0 || o.Restored == "" {
			t.Fatalf("it ended with %d, restored %q: %s", code, o.Restored, o.Message)
		}
		if err := s.client().DeleteUser(t.Context(), user.ID); err != nil {
			t.Errorf("the user is gone: %v", err)
		}
		s.holds(t, first.version, before)
	})
}
