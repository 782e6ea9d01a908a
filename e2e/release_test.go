//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// The whole way of a release that turns out bad, as the workflows go it: two
// images, the second of which answers no query; claim, push, publish, canary,
// the smoke test fails, rollback, deprecation, alert; and an instance that had
// taken the bad version in the meantime says so by itself.
func TestABadReleaseIsTakenBackEverywhere(t *testing.T) {
	parallelOnImage(t)
	s, first := newSite(t)
	before := s.data()
	o, code := s.canary(first)
	s.judge(first, o, code)
	if o.Verdict != "pass" || s.stableAt() != first.version {
		t.Fatalf("%s: %s, :stable is at %s", first.version, o.Verdict, s.stableAt())
	}

	bad := s.release("queryless", faultd(t), noQuery...)
	if at := s.stableAt(); at != bad.version {
		t.Fatalf("after its publication :stable is at %s, want %s", at, bad.version)
	}
	early := s.takesStable(t) // a customer that was quick
	s.drill(t, bad, before, "fail", "smoke")
	if at := s.stableAt(); at != first.version {
		t.Errorf(":stable is at %s, want %s", at, first.version)
	}
	var tags []struct{ Version, Verdict string }
	s.bot(&tags, "version", "list")
	verdicts := map[string]string{}
	for _, v := range tags {
		verdicts[v.Version] = v.Verdict
	}
	if verdicts[first.version] != "pass" || verdicts[bad.version] != "fail" {
		t.Errorf("the ledger says %v", verdicts)
	}
	if got, want := s.digest("deprecated-"+bad.version), bad.digest; got != want {
		t.Errorf("deprecated-%s is at %q, want %s", bad.version, got, want)
	}
	if got, want := s.digest("confirmed-"+first.version), first.digest; got != want {
		t.Errorf("confirmed-%s is at %q, want %s", first.version, got, want)
	}

	s.docker.Docker("restart", "early") // it asks when it starts, and then every six hours
	want := "Running deprecated version " + bad.version + ". Update to stable."
	deadline := time.Now().Add(30 * time.Second)
	for {
		health, err := early.Health(t.Context())
		if err == nil && strings.Contains(strings.Join(health.Warnings, "\n"), want) {
			if !health.Update.Deprecated || health.Channel != "stable" {
				t.Errorf("the deprecated instance says %+v on the channel %s", health.Update, health.Channel)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the deprecated instance never said %q: %+v, %v\n%s", want, health, err, s.docker.Docker("logs", "early"))
		}
		<-time.After(100 * time.Millisecond)
	}
}

// takesStable runs an instance of :stable that asks the registry about itself
// as often as it can.
func (s *site) takesStable(t *testing.T) *api.Client {
	t.Helper()
	port := freePort(t)
	s.docker.Docker("run", "--detach", "--name", "early", "--network", "host", "--env", "AGNES_ADDR=127.0.0.1:"+port,
		"--env", "AGNES_IMAGE="+s.image(), "--entrypoint", "agnes", s.image()+":stable", "serve")
	c, err := api.NewClient("http://127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
