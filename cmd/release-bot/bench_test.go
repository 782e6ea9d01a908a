//go:build bench

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/release/oci/ocitest"
)

// TestBenchPublishAgainstCrane takes turns between publishing four tags by the
// built program and setting one tag by crane, on the same registry.
func TestBenchPublishAgainstCrane(t *testing.T) {
	const rounds, bar = 41, 1.5
	crane, err := filepath.Abs("../../.tools/bin/crane")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(crane); err != nil {
		t.Fatalf("%v\nNext: make .tools/bin/crane", err)
	}
	bot := filepath.Join(t.TempDir(), "release-bot")
	build := exec.Command("go", "build", "-trimpath", "-o", bot, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s := ocitest.New(t)
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	timed := func(name string, args ...string) time.Duration {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = env
		begin := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(begin)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return took
	}
	var ours, theirs []time.Duration
	for i := 1; i <= rounds; i++ {
		m := s.Push(t, ocitest.Image{Text: fmt.Sprint(i)})
		version := fmt.Sprintf("2026.04.%d", i)
		publish := func() {
			took := timed(bot, "publish", "--registry", s.Repository(), "--channel", "stable", "--version", version,
				"--commit", fmt.Sprintf("%07x%033x", i, 0), "--digest", m.Digest)
			ours = append(ours, took)
		}
		tag := func() {
			theirs = append(theirs, timed(crane, "tag", s.Repository()+"@"+m.Digest, fmt.Sprint("other-", i)))
		}
		if i%2 == 0 {
			publish()
			tag()
		} else {
			tag()
			publish()
		}
	}
	for _, tag := range []string{"stable", fmt.Sprintf("stable-2026.04.%d", rounds), fmt.Sprint("other-", rounds)} {
		if s.Digest(t, tag) == "" {
			t.Errorf("%s was not set", tag)
		}
	}
	median := func(all []time.Duration) time.Duration {
		slices.Sort(all)
		return all[len(all)/2]
	}
	a, b := median(ours), median(theirs)
	t.Logf("median of %d rounds: publish of four tags %s, crane tag of one %s: %.2fx (bar %.1fx)", rounds, a, b, float64(a)/float64(b), bar)
	if float64(a) > bar*float64(b) {
		t.Errorf("publish takes %.2f times as long as crane tag, the bar is %.1f", float64(a)/float64(b), bar)
	}
}
